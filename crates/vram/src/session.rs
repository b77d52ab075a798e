//! One run of the program as a worker: its device, its key, its audit trail, its rules.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::reader::Violation;
use audit_logging::tlog::note::VerifierKey;
use audit_logging::{OpenError, Options};
use serde::Serialize;
use vram_residency::audit::{AuditTrail, TrailHealth};
use vram_residency::device::{Device, HostDevice, HostOptions, HugePages};
use vram_residency::seal::SealKey;
use vram_residency::{ManagerOptions, Policy, VramManager};

use crate::cli::{Global, Host};
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::Out;
use crate::state;

/// How long the end of the program waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a run waits for others to leave the log, and how often it looks.
const TURN: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// How long the end of a run waits for the log to change to its next key.
const ROTATION: Duration = Duration::from_secs(5);

/// The audit log of a run.
#[derive(Debug)]
pub(crate) struct Trail {
    pub(crate) trail: AuditTrail,
    pub(crate) dir: PathBuf,
    required: bool,
    /// Why records are being lost, as far as was already said.
    told: Option<String>,
    /// What was found damaged when the log was opened.
    finding: Option<Violation>,
    /// Signs it, where there is a key.
    pub(crate) publisher: Option<Arc<Publisher>>,
    /// The file of that key.
    key: PathBuf,
    /// The log could not be opened, and may be yet: then it is to be signed, too.
    unopened: bool,
}

/// What a run left in its audit log.
#[derive(Debug, Serialize)]
pub(crate) struct AuditSummary {
    pub(crate) dir: PathBuf,
    /// Durable records in the log, earlier runs included; 0 where it could not be opened.
    pub(crate) records: u64,
    /// Records of this run that are not in the log.
    pub(crate) lost: Option<u64>,
    pub(crate) health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What was found damaged when the log was opened, among the records of earlier runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finding: Option<String>,
    /// What of it is signed; none where it has no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signed: Option<Signed>,
}

/// What of a log is signed.
#[derive(Debug, Serialize)]
pub(crate) struct Signed {
    /// The log's name.
    pub(crate) origin: String,
    /// The key that verifies it.
    pub(crate) vkey: String,
    /// Records that the newest checkpoint covers.
    pub(crate) records: u64,
    /// Whether these are all.
    pub(crate) complete: bool,
    /// Why not, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Signed {
    pub(crate) fn of(publisher: &Publisher) -> Self {
        let status = publisher.status();
        Self {
            origin: status.origin,
            vkey: status.vkey,
            records: status.signed_size,
            complete: status.caught_up,
            reason: status.refused.map(|refusal| refusal.to_string()).or(status.last_failure),
        }
    }
}

/// Whose cosignatures count, and how many of them it takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cosigners {
    pub(crate) keys: Vec<VerifierKey>,
    pub(crate) quorum: usize,
}

impl Trail {
    /// Opens the log. Where that fails, says so and goes on without it, unless records are required.
    pub(crate) fn open(global: &Global, out: &Out) -> Result<Self, Failure> {
        Self::open_witnessed(global, &Cosigners::default(), out)
    }

    /// The same, for a log that witnesses cosign.
    pub(crate) fn open_witnessed(global: &Global, cosigners: &Cosigners, out: &Out) -> Result<Self, Failure> {
        let dir = state::audit_dir(global)?;
        for state::Exposed { detail, remedy } in state::exposed_directories(global) {
            out.warn(format_args!("warning: {detail}; {remedy}"));
        }
        if global.audit_required {
            let mut opened = Self::open_at(&dir)?;
            opened.publish(global, cosigners)?;
            return Ok(opened);
        }
        let mut opened = Self::new(
            open_in_turn(&dir).unwrap_or_else(|_| AuditTrail::open_or_degraded(&dir, Options::default())),
            &dir,
            false,
        );
        if let Some(finding) = opened.finding {
            out.warn(format_args!(
                "warning: the audit log {} has damaged records: {finding}; this run is recorded behind them",
                dir.display()
            ));
        }
        if let TrailHealth::Failing(reason) = opened.trail.health() {
            out.warn(format_args!(
                "warning: nothing of this run is recorded: {reason}; \
                 give another directory with --audit-dir, or --audit-required to stop instead"
            ));
            opened.told = Some(reason);
        }
        if let Err(failure) = opened.publish(global, cosigners) {
            out.warn(format_args!("warning: the audit log is not signed: {}", failure.message));
        }
        Ok(opened)
    }

    /// Opens a log that is signed, and nothing less.
    pub(crate) fn open_signed(global: &Global) -> Result<(Self, Arc<Publisher>), Failure> {
        let dir = state::audit_dir(global)?;
        // Files of another user would shut its owner out.
        let (owner, user) =
            (std::fs::metadata(&dir).map(|facts| facts.uid()).ok(), rustix::process::geteuid().as_raw());
        if let Some(owner) = owner.filter(|owner| *owner != user) {
            let message = format!("the log {} belongs to the user {owner}; run this as that user", dir.display());
            return Err(Failure::new("audit", message));
        }
        let mut opened = Self::open_at(&dir)?;
        opened.publish(global, &Cosigners::default())?;
        match opened.publisher.clone() {
            Some(publisher) => Ok((opened, publisher)),
            None => Err(Failure::new("audit-key", "the log is not signed: vram audit keygen makes its key")),
        }
    }

    /// Begins to sign a log that could not be opened at first and now is open. Whether it did.
    pub(crate) fn publish_late(&mut self, global: &Global, cosigners: &Cosigners, out: &Out) -> bool {
        if !self.unopened || self.trail.log().is_none() {
            return false;
        }
        self.unopened = false;
        if let Err(failure) = self.publish(global, cosigners) {
            out.warn(format_args!("warning: the audit log is not signed: {}", failure.message));
        }
        self.publisher.is_some()
    }

    /// Begins to sign the log, where it is open and has a key.
    fn publish(&mut self, global: &Global, cosigners: &Cosigners) -> Result<(), Failure> {
        let key = state::audit_key_path(global)?;
        // A key that was named must be there, and a disk that does not say is not one that says that there is none.
        if global.audit_key.is_none() && state::is_absent(&key) {
            return Ok(());
        }
        let Some(log) = self.trail.log() else { return Ok(()) };
        let mut options = PublishOptions::new(&key);
        options.witnesses.clone_from(&cosigners.keys);
        options.quorum = cosigners.quorum.max(1);
        let publisher = Publisher::start(log, options);
        self.publisher = Some(Arc::new(publisher.map_err(|error| Failure::new("audit-key", error.to_string()))?));
        self.key = key;
        Ok(())
    }

    /// Opens the log in a directory of the caller's choice, and fails where that fails or finds damage.
    pub(crate) fn open_at(dir: &Path) -> Result<Self, Failure> {
        let opened = Self::new(open_in_turn(dir)?, dir, true);
        match opened.finding {
            None => Ok(opened),
            Some(finding) => Err(damaged(dir, &finding)),
        }
    }

    fn new(trail: AuditTrail, dir: &Path, required: bool) -> Self {
        let finding = trail.log_status().and_then(|status| status.recovered?.finding);
        let unopened = trail.log().is_none();
        let (publisher, key) = (None, PathBuf::new());
        Self { trail, dir: dir.to_owned(), required, told: None, finding, publisher, key, unopened }
    }

    /// The log's own figures, where it is open.
    pub(crate) fn log_status(&self) -> Option<audit_logging::Status> {
        self.trail.log_status()
    }

    /// Flushes and closes the log, and says how it went.
    pub(crate) fn close(self, out: &Out) -> Result<AuditSummary, Failure> {
        // Asked before it is closed: a closed log loses whatever comes.
        let health = self.trail.health();
        self.publisher.iter().for_each(|publisher| await_rotation(publisher, &self.key));
        let closed = self.trail.close(CLOSE_TIMEOUT);
        // After the close record, so that it is signed too.
        let signed = self.publisher.as_ref().map(|publisher| {
            publisher.finish(CLOSE_TIMEOUT);
            Signed::of(publisher)
        });
        let status = self.trail.log_status();
        let lost = status.as_ref().map(|status| status.failures);
        let reason = match (closed, health) {
            (_, TrailHealth::Failing(reason)) => Some(reason),
            (Err(error), _) => Some(error.to_string()),
            (Ok(()), _) => lost.filter(|lost| *lost > 0).map(|lost| format!("{} lost", count(lost, "record"))),
        };
        if let Some(reason) = &reason {
            if self.required {
                return Err(Failure::new("audit", format!("the audit log is not complete: {reason}")));
            }
            if self.told.as_ref() != Some(reason) {
                out.warn(format_args!("warning: the audit log is not complete: {reason}"));
            }
        }
        if let Some(Signed { complete: false, reason, records, .. }) = &signed {
            let why = reason.clone().unwrap_or_else(|| "the disk was too slow".to_owned());
            let message =
                format!("the audit log is signed in part, {} from its beginning on: {why}", count(*records, "record"));
            if self.required {
                return Err(Failure::integrity("audit", message));
            }
            out.warn(format_args!("warning: {message}"));
        }
        // All is signed, and something is wrong all the same: with the next key.
        if let Some(Signed { complete: true, reason: Some(reason), .. }) = &signed {
            out.warn(format_args!("warning: the log keeps its present key: {reason}"));
        }
        let health = match (&reason, &self.finding) {
            (Some(_), _) => "failing",
            (None, Some(_)) => "damaged",
            (None, None) => "good",
        };
        let finding = self.finding.map(|finding| finding.to_string());
        let records = status.map_or(0, |status| status.records);
        Ok(AuditSummary { dir: self.dir, records, lost, health, reason, finding, signed })
    }
}

/// Where a next key waits, gives the log the time to change to it while it still takes records: a run may be shorter
/// than the publisher's start.
fn await_rotation(publisher: &Publisher, key: &Path) {
    let begun = Instant::now();
    let waits = || {
        let status = publisher.status();
        publish::next_file(key).exists() && status.refused.is_none() && status.last_failure.is_none()
    };
    while waits() && begun.elapsed() < ROTATION {
        publisher.publish_now();
        std::thread::sleep(AGAIN);
    }
}

/// Opens the log. While another run has it, waits for a while: runs are short, and each has something to record.
fn open_in_turn(dir: &Path) -> Result<AuditTrail, OpenError> {
    let begun = Instant::now();
    loop {
        match AuditTrail::open(dir) {
            Err(OpenError::Locked { .. }) if begun.elapsed() < TURN => std::thread::sleep(AGAIN),
            opened => return opened,
        }
    }
}

/// What is said where a log is not begun upon because of what earlier runs left in it.
pub(crate) fn damaged(dir: &Path, finding: &Violation) -> Failure {
    Failure::integrity(
        "audit",
        format!(
            "the audit log {} was damaged before this run: {finding}; nothing was begun; vram audit verify tells more, \
             and --audit-dir names another directory",
            dir.display()
        ),
    )
}

/// Opens main memory as a device.
pub(crate) fn host_device(host: &Host, huge_pages: HugePages) -> Result<HostDevice, Failure> {
    let mut options = HostOptions::default();
    options.capacity_bytes = host.capacity.map(|capacity| capacity.0);
    options.threads = host.threads.map(usize::from);
    options.huge_pages = huge_pages;
    Ok(HostDevice::open(options)?)
}

/// Who this run is.
pub(crate) fn worker_id(global: &Global) -> String {
    match &global.worker_id {
        Some(id) => id.clone(),
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

/// The manager of a run.
pub(crate) fn manager(
    worker_id: String,
    secret: &[u8],
    device: Arc<dyn Device>,
    trail: &Trail,
    policy: Policy,
) -> Result<VramManager, Failure> {
    let key = SealKey::derive(secret, &worker_id).map_err(|error| Failure::new("key", error.to_string()))?;
    let trail = trail.trail.clone();
    Ok(VramManager::new(ManagerOptions { worker_id: worker_id.into(), device, key, trail, policy })?)
}
