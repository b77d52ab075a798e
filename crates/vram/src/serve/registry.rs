//! The shards that the daemon holds, and what can be done with them. Everything here may block; nothing here is HTTP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use vram_residency::actor::{Acting, SubjectKey};
use vram_residency::audit::TrailHealth;
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::model::{Format, ModelFile};
use vram_residency::scrub::{ScrubStatus, Scrubber};
use vram_residency::{
    Cancelled, Progress, RepairReport, SealRequest, SealedShard, ServiceEvent, ShardId, Unsealed, Verified, VramManager,
};

use super::config::Settings;
use super::evidence::Evidence;
use super::report::{AuditView, DeviceView, Drilled, Health, Released, ShardView, StatusView, UnsealedView};
use crate::approve::{self, Approved, Source};
use crate::exit::Failure;
use crate::jobs::{self, Job};
use crate::output::rfc3339;
use crate::session::Trail;

/// One shard's place.
struct Place {
    held: Held,
    path: PathBuf,
    format: Format,
    /// What a manifest says of it, where one does.
    approved: Option<Approved>,
}

enum Held {
    Sealed(SealedShard),
    Unsealed(Box<Unsealed>),
    /// Somebody unseals or reseals it just now.
    Busy,
}

pub(crate) struct Registry {
    manager: VramManager,
    scrubber: Scrubber,
    places: Mutex<BTreeMap<ShardId, Place>>,
    /// One change of what is resident at a time.
    changing: Mutex<()>,
    verifying: Mutex<()>,
    audit_dir: PathBuf,
    /// Where the log is signed.
    evidence: Option<Arc<Evidence>>,
    /// Without it nothing is recorded of who gives an order.
    subject_key: Option<SubjectKey>,
    allow_drill: bool,
    require_approval: bool,
    period: Duration,
    /// Bytes verified in a second, as last seen.
    speed: Mutex<f64>,
}

impl Registry {
    pub(super) fn new(
        manager: VramManager,
        scrubber: Scrubber,
        settings: &Settings,
        trail: &Trail,
        evidence: Option<Arc<Evidence>>,
        subject_key: Option<SubjectKey>,
    ) -> Self {
        Self {
            manager,
            scrubber,
            places: Mutex::default(),
            changing: Mutex::default(),
            verifying: Mutex::default(),
            audit_dir: trail.dir.clone(),
            evidence,
            subject_key,
            allow_drill: settings.allow_drill,
            require_approval: settings.require_approval,
            period: settings.period,
            speed: Mutex::new(0.0),
        }
    }

    /// Until this is dropped, what the thread records names the user as who ordered it, by commitment.
    pub(super) fn acting_for(&self, uid: u32) -> Acting {
        Acting::begin(self.subject_key.as_ref().map(|key| key.user(uid)))
    }

    pub(super) fn record_command(&self, command: &'static str, shard_id: Option<&ShardId>) -> Result<(), Failure> {
        Ok(self.manager.record_command(command, shard_id)?)
    }

    /// Seals a file and watches it, unless it is told to stop.
    pub(super) fn load(&self, job: Job, progress: Progress<'_>, stop: Cancelled<'_>) -> Result<ShardView, Failure> {
        let request = job.request().reporting(progress).unless(stop);
        let shard = self.manager.seal_file(&job.file, &request)?;
        let verified = self.manager.verify_sealed(&shard)?;
        self.note_speed(&verified);
        Ok(self.keep(shard, &job.file, job.approved))
    }

    /// Loads what files hold.
    pub(super) fn load_files(
        &self,
        files: &[PathBuf],
        format: Option<Format>,
        source: &Source,
    ) -> Result<Vec<ShardView>, Failure> {
        let _changing = lock(&self.changing);
        let planned = jobs::plan(files, format, None, None, &self.ids());
        let (mut jobs, unreadable) = approve::readable(planned, files, source)?;
        approve::refuse_unreadable(&self.manager, unreadable)?;
        match source.open(&self.manager, &self.audit_dir)? {
            Some(approver) => drop(approver.approve(files, &mut jobs, &self.manager)?),
            None if self.require_approval => {
                let message = "this daemon loads only what a manifest approves; name it with --manifest";
                return Err(Failure::new("forbidden", message));
            }
            None => {}
        }
        let mut loaded = Vec::new();
        for job in jobs {
            let shard_id = job.shard_id;
            match self.load(job, &|_| (), &|| false) {
                Ok(view) => loaded.push(view),
                Err(failure) => {
                    // A model is resident as a whole or not at all.
                    for view in loaded {
                        lock(&self.places).remove(&view.shard_id);
                    }
                    return Err(Failure { message: format!("{shard_id}: {}", failure.message), ..failure });
                }
            }
        }
        Ok(loaded)
    }

    fn keep(&self, shard: SealedShard, file: &ModelFile, approved: Option<Approved>) -> ShardView {
        self.scrubber.watch(&shard, Some(file.shared_source()));
        let view = self.view(&shard);
        let place = Place { held: Held::Sealed(shard), path: file.path().to_owned(), format: file.format(), approved };
        lock(&self.places).insert(view.shard_id, place);
        view
    }

    /// Gives a shard back, sealed or not.
    pub(super) fn release(&self, shard_id: &ShardId) -> Result<Released, Failure> {
        let _changing = lock(&self.changing);
        let place = lock(&self.places).remove(shard_id).ok_or_else(|| unknown(shard_id))?;
        let released = match &place.held {
            Held::Sealed(shard) => Released::Sealed(Box::new(self.view(shard))),
            Held::Unsealed(unsealed) => Released::Unsealed(Box::new(unsealed_view(unsealed))),
            Held::Busy => return Err(busy(shard_id)),
        };
        drop(place);
        // The metrics follow at once.
        self.scrubber.look();
        Ok(released)
    }

    pub(super) fn unseal(&self, shard_id: &ShardId, reason: &str) -> Result<UnsealedView, Failure> {
        let _changing = lock(&self.changing);
        drop(self.sealed(shard_id)?);
        let held = self.replace(shard_id, Held::Busy)?;
        let Held::Sealed(shard) = held else { return Err(unknown(shard_id)) };
        match self.manager.unseal(shard, reason) {
            Ok(unsealed) => {
                let view = unsealed_view(&unsealed);
                self.replace(shard_id, Held::Unsealed(Box::new(unsealed)))?;
                Ok(view)
            }
            Err(refused) => {
                self.replace(shard_id, Held::Sealed(refused.shard))?;
                Err(refused.error.into())
            }
        }
    }

    pub(super) fn reseal(&self, shard_id: &ShardId, file: Option<&Path>) -> Result<ShardView, Failure> {
        let _changing = lock(&self.changing);
        let (path, format, approved) = {
            let places = lock(&self.places);
            let place = places.get(shard_id).ok_or_else(|| unknown(shard_id))?;
            if !matches!(place.held, Held::Unsealed(_)) {
                return Err(Failure::new("shard", format!("'{shard_id}' is sealed; unseal it first, with a reason")));
            }
            (file.map_or_else(|| place.path.clone(), Path::to_owned), place.format, place.approved.clone())
        };
        // Read before anything is given up.
        let file = ModelFile::open(&path, (format == Format::Raw).then_some(Format::Raw))?;
        let Held::Unsealed(unsealed) = self.replace(shard_id, Held::Busy)? else { return Err(unknown(shard_id)) };
        let model_ref = jobs::name_of(&path);
        let mut request = SealRequest::new(*shard_id, &model_ref);
        // What was approved was these bytes: others take a release, and a load with a manifest of their own.
        if let Some(approved) = &approved {
            request = request.approved(approved.approval());
        }
        match unsealed.reseal_file(&file, &request) {
            Ok(shard) => {
                let view = self.keep(shard.clone(), &file, approved.clone());
                self.manager.verify_sealed(&shard)?;
                Ok(ShardView { state: shard.state(), ..view })
            }
            Err(refused) => {
                self.replace(shard_id, Held::Unsealed(Box::new(refused.unsealed)))?;
                let failure = Failure::from(refused.error);
                let message = format!("{}; '{shard_id}' is still unsealed: reseal it or release it", failure.message);
                Err(Failure { message, ..failure })
            }
        }
    }

    /// Verifies a whole shard, one at a time; the policy acts where that fails.
    pub(super) fn verify(&self, shard_id: &ShardId) -> Result<ShardView, Failure> {
        let shard = self.sealed(shard_id)?;
        let _turn = self.begin_verifying()?;
        self.verify_shard(&shard)?;
        Ok(self.view(&shard))
    }

    /// Nobody else verifies until this is dropped.
    pub(super) fn begin_verifying(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        match self.verifying.try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new("busy", "another verification runs; ask again when it is through"))
            }
        }
    }

    pub(super) fn verify_shard(&self, shard: &SealedShard) -> Result<Verified, Failure> {
        let verified = self.scrubber.verify_now(shard)?;
        self.note_speed(&verified);
        Ok(verified)
    }

    /// The names of everything that is held, sealed or not.
    pub(super) fn ids(&self) -> Vec<ShardId> {
        lock(&self.places).keys().copied().collect()
    }

    pub(super) fn manager(&self) -> &VramManager {
        &self.manager
    }

    pub(super) fn evidence(&self) -> Option<&Evidence> {
        self.evidence.as_deref()
    }

    pub(super) fn repair(&self, shard_id: &ShardId) -> Result<RepairReport, Failure> {
        let report = self.scrubber.repair_now(&self.sealed(shard_id)?)?;
        match self.manager.device_quarantined() {
            None => Ok(report),
            Some(reason) => {
                let blocks = jobs::count(report.repaired.len(), "block");
                let message = format!("{blocks} of '{shard_id}' repaired, but the device is quarantined: {reason}");
                Err(Failure::integrity("device-quarantined", message))
            }
        }
    }

    pub(super) fn drill(&self, shard_id: &ShardId, byte: Option<u64>, bit: Option<u8>) -> Result<Drilled, Failure> {
        if !self.allow_drill {
            let message = "this daemon damages nothing on purpose; start it with --allow-drill for a drill";
            return Err(Failure::new("forbidden", message));
        }
        let shard = self.sealed(shard_id)?;
        if let Some(byte) = byte.filter(|byte| *byte >= shard.bytes()) {
            let bytes = shard.bytes();
            return Err(Failure::usage(format!(
                "'{shard_id}' has no byte {byte}; its {bytes} bytes are counted from 0"
            )));
        }
        let mut random = [0; 9];
        getrandom::fill(&mut random).map_err(|error| Failure::new("system", format!("no random numbers: {error}")))?;
        let [at @ .., which] = random;
        let byte = byte.unwrap_or_else(|| u64::from_le_bytes(at).checked_rem(shard.bytes()).unwrap_or(0));
        let bit = bit.unwrap_or(which & 7);
        self.manager.inject_fault(&shard, byte, bit)?;
        Ok(Drilled { shard_id: *shard_id, byte, bit, block: byte / BLOCK_BYTES })
    }

    pub(super) fn shard(&self, shard_id: &ShardId) -> Result<ShardView, Failure> {
        Ok(self.view(&self.sealed(shard_id)?))
    }

    pub(super) fn status(&self) -> StatusView {
        let (mut shards, mut unsealed) = (Vec::new(), Vec::new());
        for (shard_id, place) in &*lock(&self.places) {
            match &place.held {
                Held::Sealed(shard) => shards.push(self.view(shard)),
                Held::Unsealed(without) => unsealed.push(unsealed_view(without)),
                Held::Busy => unsealed.push(UnsealedView { shard_id: *shard_id, bytes: 0, reason: "busy".to_owned() }),
            }
        }
        let health = self.readiness();
        let capacity = self.manager.capacity();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            worker_id: self.manager.worker_id().to_string(),
            ready: health.ok,
            not_ready: health.reasons,
            on_failure: self.manager.policy().on_failure.as_str(),
            device: DeviceView {
                info: self.manager.device(),
                total_bytes: capacity.total_bytes,
                used_bytes: capacity.used_bytes,
                available_bytes: capacity.available_bytes(),
                quarantined: self.manager.device_quarantined().map(str::to_owned),
            },
            scrub: self.scrubber.status(),
            audit: self.audit(),
            shards,
            unsealed,
        }
    }

    /// Whether every shard is fresh: sealed or verified, on record, and every block checked within two periods.
    pub(super) fn readiness(&self) -> Health {
        let places = lock(&self.places);
        let mut reasons: Vec<String> = Vec::new();
        if places.is_empty() {
            reasons.push("no shard is resident".to_owned());
        }
        for (shard_id, place) in &*places {
            match &place.held {
                Held::Sealed(shard) => {
                    if let Err(error) = shard.ensure_fresh(self.period.saturating_mul(2)) {
                        reasons.push(format!("{shard_id}: {error}"));
                    }
                }
                Held::Unsealed(_) | Held::Busy => reasons.push(format!("{shard_id}: it is not sealed")),
            }
        }
        drop(places);
        if let TrailHealth::Failing(reason) = self.manager.trail().health() {
            reasons.push(format!("nothing is recorded: {reason}"));
        }
        if let Some(reason) = self.manager.device_quarantined() {
            reasons.push(format!("the device is quarantined: {reason}"));
        }
        Health { ok: reasons.is_empty(), reasons }
    }

    /// Whether the daemon itself works.
    pub(super) fn liveness(&self) -> Health {
        let mut reasons = Vec::new();
        if !self.is_watched() {
            reasons.push("the continuous check does not move; restart the daemon".to_owned());
        }
        Health { ok: reasons.is_empty(), reasons }
    }

    pub(super) fn is_watched(&self) -> bool {
        self.scrubber.is_alive()
    }

    pub(super) fn scrub_status(&self) -> ScrubStatus {
        self.scrubber.status()
    }

    pub(super) fn sealed_bytes(&self) -> u64 {
        let bytes = |place: &Place| if let Held::Sealed(shard) = &place.held { shard.bytes() } else { 0 };
        lock(&self.places).values().map(bytes).fold(0, u64::saturating_add)
    }

    /// What one thread hashes in a second, about; 0 while nothing was measured.
    pub(super) fn hash_speed(&self) -> f64 {
        *lock(&self.speed)
    }

    /// Ends the watch, releases every shard, and records that.
    pub(super) fn close(&self, reason: &str) -> Result<(), Failure> {
        self.scrubber.stop();
        lock(&self.places).clear();
        Ok(self.manager.record_service(ServiceEvent::Stopped { reason })?)
    }

    fn audit(&self) -> AuditView {
        let trail = self.manager.trail();
        let (health, reason) = match trail.health() {
            TrailHealth::Good => ("good", None),
            TrailHealth::Failing(reason) => ("failing", Some(reason)),
            _ => ("off", None),
        };
        let log = trail.log_status();
        let figure = |read: fn(&audit_logging::Status) -> u64| log.as_ref().map_or(0, read);
        AuditView {
            dir: self.audit_dir.clone(),
            health,
            reason,
            records: figure(|log| log.records),
            queued: figure(|log| log.queued),
            lost: trail.lost_records(),
            late: figure(|log| log.late),
            evidence: self.evidence.as_ref().map(|evidence| evidence.view()),
        }
    }

    /// Brings the metrics of what is signed up to date.
    pub(super) fn show_evidence(&self) {
        if let Some(evidence) = &self.evidence {
            evidence.show();
        }
    }

    fn view(&self, shard: &SealedShard) -> ShardView {
        let scrub = self.scrubber.shard_status(shard);
        ShardView {
            shard_id: *shard.shard_id(),
            model_ref: shard.model_ref().to_owned(),
            shard_index: shard.shard_index(),
            shard_count: shard.shard_count(),
            bytes: shard.bytes(),
            digest: shard.digest(),
            tensors: shard.table().len(),
            state: shard.state(),
            residency: shard.residency(),
            protection: shard.protection(),
            sealed_at: rfc3339(shard.sealed_at_ns()),
            last_verified_at: rfc3339(shard.last_verified_ns()),
            oldest_age_seconds: shard.oldest_age().as_secs_f64(),
            passes: scrub.as_ref().map_or(0, |scrub| scrub.passes),
            faults: scrub.as_ref().map_or(0, |scrub| scrub.faults),
            repairs: scrub.as_ref().map_or(0, |scrub| scrub.repairs),
            has_source: scrub.is_some_and(|scrub| scrub.has_source),
            last_fault: shard.last_fault(),
        }
    }

    /// A shard of which something is to be attested, and the path of its file. One that is not sealed is as bad as a
    /// damaged one here.
    pub(super) fn sealed_with_path(&self, shard_id: &ShardId) -> Result<(SealedShard, PathBuf), Failure> {
        let places = lock(&self.places);
        let place = places.get(shard_id).ok_or_else(|| unknown(shard_id))?;
        match &place.held {
            Held::Sealed(shard) => Ok((shard.clone(), place.path.clone())),
            Held::Unsealed(_) | Held::Busy => Err(Failure::integrity(
                "not-attested",
                format!("'{shard_id}' is not sealed and nothing is attested of it; reseal it or release it"),
            )),
        }
    }

    fn sealed(&self, shard_id: &ShardId) -> Result<SealedShard, Failure> {
        match lock(&self.places).get(shard_id).map(|place| &place.held) {
            Some(Held::Sealed(shard)) => Ok(shard.clone()),
            Some(Held::Unsealed(unsealed)) => Err(Failure::new(
                "shard",
                format!("'{shard_id}' is unsealed ({}); reseal it or release it", unsealed.reason()),
            )),
            Some(Held::Busy) => Err(busy(shard_id)),
            None => Err(unknown(shard_id)),
        }
    }

    fn replace(&self, shard_id: &ShardId, held: Held) -> Result<Held, Failure> {
        let mut places = lock(&self.places);
        let place = places.get_mut(shard_id).ok_or_else(|| unknown(shard_id))?;
        Ok(std::mem::replace(&mut place.held, held))
    }

    /// The crew hashes with every thread; the scrub with one.
    fn note_speed(&self, verified: &Verified) {
        let threads = std::thread::available_parallelism().map_or(1.0, |threads| threads.get() as f64);
        let seconds = verified.duration.as_secs_f64();
        // Too short to say anything.
        if seconds > 0.001 {
            *lock(&self.speed) = verified.bytes as f64 / seconds / threads;
        }
    }
}

fn unknown(shard_id: &ShardId) -> Failure {
    Failure::new("unknown-shard", format!("there is no shard '{shard_id}'; vram status lists them"))
}

fn busy(shard_id: &ShardId) -> Failure {
    Failure::new("busy", format!("'{shard_id}' is being unsealed or resealed; ask again when that is through"))
}

fn unsealed_view(unsealed: &Unsealed) -> UnsealedView {
    UnsealedView { shard_id: *unsealed.shard_id(), bytes: unsealed.bytes(), reason: unsealed.reason().to_owned() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
