//! The front door: seal, verify, repair, release, list.

use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use crate::approval::Remembered;
use crate::audit::{AuditEvent, AuditTrail, Origin, Text, TrailError, TrailHealth};
use crate::device::{Capacity, CudaFacts, Device, DeviceInfo};
use crate::digest::Digest;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::metrics::Metrics;
use crate::policy::{OnFailure, Policy};
use crate::seal::{MAX_TEXT, SealKey};
use crate::shard::{Home, SealedShard, Shard};
use crate::shard_id::ShardId;

mod adopt;
mod attest;
mod handout;
mod past;
mod recheck;
mod repair;
mod sealing;
mod together;
mod unseal;
mod verify;

pub use handout::HandoutEvent;
pub use recheck::{MOST_RECHECK_KEYS, RECHECK_KEYS, Rechecked};
pub use repair::RepairReport;
pub use sealing::SealRequest;
pub use unseal::{NotResealed, NotUnsealed, Unsealed};
pub use verify::Verified;

/// How long an operation whose record is required waits for the disk.
const REQUIRED_FLUSH: Duration = Duration::from_secs(10);

/// Seals shards on one device, for one worker. A cheap clone.
///
/// Dropping the last clone, and the last of its shards, flushes and closes the audit log.
#[derive(Clone)]
pub struct VramManager {
    pub(crate) worker: Arc<Worker>,
}

/// How a manager is set up.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "all of it must be chosen")]
pub struct ManagerOptions {
    /// Who holds the shards: 1 to 4096 bytes, part of every seal and record.
    pub worker_id: Arc<str>,
    /// Where shards become resident.
    pub device: Arc<dyn Device>,
    /// The worker's sealing key.
    pub key: SealKey,
    /// Where events go.
    pub trail: AuditTrail,
    /// What must be true before a shard counts as sealed, and what happens when a check fails.
    pub policy: Policy,
}

/// What the clones of a manager and its shards share.
pub(crate) struct Worker {
    pub(crate) worker_id: Arc<str>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) key: SealKey,
    pub(crate) policy: Policy,
    pub(crate) metrics: Metrics,
    residents: Mutex<Vec<Resident>>,
    past: Mutex<past::Past>,
    sha256_bytes: AtomicU64,
    /// Keys for re-checks that each shard gets.
    recheck_keys: AtomicU16,
    quarantined: OnceLock<Box<str>>,
    /// Shared by whoever attests a protection until that is on record, held alone by whoever lowers one.
    lowering: RwLock<()>,
    pub(crate) trail: AuditTrail,
}

/// What a service that keeps shards may have recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceEvent<'a> {
    /// It begins its work.
    Started {
        /// The software's version.
        version: &'a str,
    },
    /// It ends in good order.
    Stopped {
        /// Why.
        reason: &'a str,
    },
}

/// What became of a record that the policy does not require.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    Kept,
    Lost,
}

/// A shard that is being sealed, is resident or is being released.
struct Resident {
    shard_id: ShardId,
    shard: Weak<Shard>,
}

impl VramManager {
    /// A manager. The metrics' recorder, if any, should be installed before.
    ///
    /// # Errors
    /// [`Error::Text`] where the worker id is empty or longer than 4096 bytes, [`Error::ControlCharacter`] where it holds
    /// one, [`Error::Audit`] where the policy requires records and there is no log.
    pub fn new(options: ManagerOptions) -> Result<Self, Error> {
        check_text("worker id", &options.worker_id)?;
        if options.policy.require_audit && options.trail.health() != TrailHealth::Good {
            return Err(Error::Audit(TrailError::NotOpen));
        }
        let ManagerOptions { worker_id, device, key, trail, policy } = options;
        let worker = Worker {
            worker_id,
            key,
            policy,
            metrics: Metrics::register(&device.name()),
            device,
            residents: Mutex::default(),
            past: Mutex::default(),
            sha256_bytes: AtomicU64::new(0),
            recheck_keys: AtomicU16::new(0),
            quarantined: OnceLock::new(),
            lowering: RwLock::default(),
            trail,
        };
        worker.show_capacity();
        if let Some(facts) = worker.device.cuda_facts() {
            worker.record(&AuditEvent::DeviceOpened { facts })?;
        }
        tracing::info!(worker_id = %worker.worker_id, device = %worker.device.info().kind, "manager ready");
        Ok(Self { worker: Arc::new(worker) })
    }

    /// Who holds the shards.
    #[must_use]
    pub fn worker_id(&self) -> &Arc<str> {
        &self.worker.worker_id
    }

    /// The device that shards become resident on.
    #[must_use]
    pub fn device(&self) -> DeviceInfo {
        self.worker.device.info()
    }

    /// What is known about the GPU that the device is, where it is one.
    #[must_use]
    pub fn cuda_facts(&self) -> Option<&CudaFacts> {
        self.worker.device.cuda_facts()
    }

    /// What the device is called where several of its kind are told apart, such as `cuda:0`.
    #[must_use]
    pub fn device_name(&self) -> String {
        self.worker.device.name()
    }

    /// Why nothing on the device can be read any more by this process, where that is so: only a new process can.
    #[must_use]
    pub fn device_lost(&self) -> Option<String> {
        self.worker.device.lost()
    }

    /// How much the device may hold and holds.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.worker.device.capacity()
    }

    /// The rules.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.worker.policy
    }

    /// Why nothing on the device is trusted any more, where that is so.
    #[must_use]
    pub fn device_quarantined(&self) -> Option<&str> {
        self.worker.quarantine_reason()
    }

    /// Records what a service that keeps shards does.
    ///
    /// # Errors
    /// [`Error::Audit`] where the policy requires the record and it is not kept.
    pub fn record_service(&self, event: ServiceEvent<'_>) -> Result<(), Error> {
        let event = match event {
            ServiceEvent::Started { version } => AuditEvent::ServiceStarted { version },
            ServiceEvent::Stopped { reason } => AuditEvent::ServiceStopped { reason },
        };
        self.worker.record(&event).map(|_| ())
    }

    /// Records an order to a service that keeps shards, before it is carried out. Whose it is, is what
    /// [`Acting`](crate::actor::Acting) says.
    ///
    /// # Errors
    /// [`Error::Audit`] where the policy requires the record and it is not kept.
    pub fn record_command(&self, command: &'static str, shard_id: Option<&ShardId>) -> Result<(), Error> {
        self.worker.record(&AuditEvent::OperatorCommand { command, shard_id }).map(|_| ())
    }

    /// Records that a manifest approves nothing, or not what it should, before that is refused: on disk when this returns.
    /// `manifest` is the digest of its bytes, where they could be read.
    ///
    /// # Errors
    /// [`Error::Audit`] where the policy requires the record and it is not kept.
    pub fn record_refused_approval(&self, manifest: Option<Digest>, reason: &str) -> Result<(), Error> {
        self.worker.metrics.policy_violations.increment(1);
        let (policy, action) = ("approval", "refused");
        let event = AuditEvent::ApprovalRefused { policy, manifest, reason: Text(&reason), action };
        self.worker.record(&event).map(|_| ())
    }

    /// Pairs of hashes that this worker computed for approvals before, and recorded in the log in `dir`.
    #[must_use]
    pub fn remembered(&self, dir: &Path) -> Remembered {
        Remembered::read(dir, &self.worker.worker_id, &self.worker.key)
    }

    /// Bytes that this manager hashed with SHA-256 while they were loaded.
    #[must_use]
    pub fn sha256_bytes(&self) -> u64 {
        self.worker.sha256_bytes.load(Ordering::Relaxed)
    }

    /// Where events go.
    #[must_use]
    pub fn trail(&self) -> &AuditTrail {
        &self.worker.trail
    }

    /// The resident shards, in the order in which they were sealed.
    #[must_use]
    pub fn list(&self) -> Vec<SealedShard> {
        self.worker.resident_shards().into_iter().map(|inner| SealedShard { inner }).collect()
    }

    /// Gives up this clone of a shard. The memory is given back, and that recorded, when it was the last.
    pub fn release(&self, shard: SealedShard) {
        drop(shard);
    }

    /// Whether a shard is one of this manager's.
    #[must_use]
    pub fn holds(&self, shard: &SealedShard) -> bool {
        self.own(shard).is_ok()
    }

    /// Whether a shard with that name is resident here, or is being sealed or released.
    #[must_use]
    pub fn has_name(&self, shard_id: &ShardId) -> bool {
        self.worker.residents().iter().any(|resident| resident.shard_id == *shard_id)
    }

    /// Refuses shards of other managers.
    fn own(&self, shard: &SealedShard) -> Result<(), Error> {
        self.worker.is_own(shard)
    }
}

impl std::fmt::Debug for VramManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VramManager")
            .field("worker_id", &self.worker.worker_id)
            .field("device", &self.worker.device.info())
            .field("key", &self.worker.key)
            .field("trail", &self.worker.trail)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// Records an event. Fails only where the policy makes a lost record fatal.
    pub(crate) fn record(&self, event: &AuditEvent<'_>) -> Result<Recorded, Error> {
        let origin = Origin { worker_id: &self.worker_id, device: self.device.info() };
        let lost = self.trail.lost_records();
        let emitted = match self.trail.emit(origin, event) {
            // What is queued or late may still be lost; where that is fatal, the disk is waited for.
            Ok(()) | Err(TrailError::Late) if self.policy.require_audit => self.trail.flush_since(lost, REQUIRED_FLUSH),
            // Otherwise it is counted if it is lost, and every shard's state follows the count.
            Ok(()) | Err(TrailError::Late) => Ok(()),
            Err(error) => Err(error),
        };
        match emitted {
            Ok(()) => Ok(Recorded::Kept),
            Err(error) if self.policy.require_audit => Err(Error::Audit(error)),
            Err(_) => Ok(Recorded::Lost),
        }
    }

    /// Records an event without which the operation must not go on.
    pub(crate) fn record_first(&self, event: &AuditEvent<'_>) -> Result<(), Error> {
        match self.record(event)? {
            Recorded::Kept => Ok(()),
            Recorded::Lost => Err(Error::Audit(TrailError::Lost)),
        }
    }

    /// Has the log take an event, which is then on disk soon, or lost: whoever needs to know waits for the disk.
    fn queue(&self, event: &AuditEvent<'_>) -> Result<(), Error> {
        let origin = Origin { worker_id: &self.worker_id, device: self.device.info() };
        match self.trail.emit(origin, event) {
            Ok(()) | Err(TrailError::Late) => Ok(()),
            Err(error) => Err(Error::Audit(error)),
        }
    }

    /// Has a log opened that could not be opened before, if it is time to try.
    pub(crate) fn mend_trail(&self) {
        self.trail.mend(Origin { worker_id: &self.worker_id, device: self.device.info() });
    }

    /// Records an event next to a failure that is returned in any case.
    pub(crate) fn record_beside_failure(&self, event: &AuditEvent<'_>) {
        // The failure at hand matters more to the caller; the lost record was counted and logged.
        let _ = self.record(event);
    }

    /// Takes a shard id, until the claim is dropped or the shard is.
    fn claim(&self, shard_id: ShardId) -> Result<Claim<'_>, Error> {
        let mut residents = self.residents();
        if residents.iter().any(|resident| resident.shard_id == shard_id) {
            return Err(Error::DuplicateShard { shard_id: Box::new(shard_id) });
        }
        residents.push(Resident { shard_id, shard: Weak::new() });
        Ok(Claim { worker: self, shard_id, kept: false })
    }

    /// Records that memory was given back.
    fn gave_back(&self, shard_id: &ShardId, freed_bytes: u64) {
        self.show_capacity();
        tracing::info!(%shard_id, freed_bytes, "shard released");
        let capacity = self.device.capacity();
        self.record_beside_failure(&AuditEvent::VramDeallocated {
            shard_id,
            freed_bytes,
            used_bytes: capacity.used_bytes,
            available_bytes: capacity.available_bytes(),
        });
    }

    /// Nothing on the device is trusted from now on: what is resident is quarantined and nothing more is sealed. Only a
    /// new manager, which proves everything anew, changes that.
    pub(crate) fn quarantine_device(&self, reason: &str) {
        if self.quarantined.set(reason.into()).is_err() {
            return;
        }
        tracing::error!(reason, "device quarantined");
        self.record_beside_failure(&AuditEvent::DeviceQuarantined { reason: Text(&reason) });
    }

    pub(crate) fn quarantine_reason(&self) -> Option<&str> {
        self.quarantined.get().map(AsRef::as_ref)
    }

    /// Refuses shards of other managers.
    pub(crate) fn is_own(self: &Arc<Self>, shard: &SealedShard) -> Result<(), Error> {
        if std::ptr::addr_eq(Arc::as_ptr(self), Arc::as_ptr(&shard.inner.home)) {
            Ok(())
        } else {
            Err(Error::ForeignShard { shard_id: Box::new(*shard.shard_id()) })
        }
    }

    /// Refuses where the device is quarantined.
    pub(crate) fn device_is_trusted(&self) -> Result<(), Error> {
        match self.quarantined.get() {
            Some(reason) => {
                let device = self.device.name().into();
                Err(Error::DeviceQuarantined { device, reason: reason.clone() })
            }
            None => Ok(()),
        }
    }

    /// The shards that are resident, however they stand.
    pub(crate) fn resident_shards(&self) -> Vec<Arc<Shard>> {
        self.residents().iter().filter_map(|resident| resident.shard.upgrade()).collect()
    }

    /// A shard that was sealed again takes the place of the one that it was.
    fn hold(&self, shard: &Arc<Shard>) {
        let id = shard.statement.shard_id;
        if let Some(resident) = self.residents().iter_mut().find(|resident| resident.shard_id == id) {
            resident.shard = Arc::downgrade(shard);
        }
    }

    fn past(&self) -> MutexGuard<'_, past::Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, shard_id: &ShardId) {
        self.residents().retain(|resident| resident.shard_id != *shard_id);
    }

    fn residents(&self) -> MutexGuard<'_, Vec<Resident>> {
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are f64; 2^53 bytes are 8 PiB")]
    pub(crate) fn show_capacity(&self) {
        let capacity = self.device.capacity();
        self.metrics.device_capacity.set(capacity.total_bytes as f64);
        self.metrics.device_used.set(capacity.used_bytes as f64);
        self.metrics.device_available.set(capacity.available_bytes() as f64);
        self.metrics.device_quarantined.set(if self.quarantined.get().is_some() { 1.0 } else { 0.0 });
        self.metrics.device_lost.set(if self.device.is_lost() { 1.0 } else { 0.0 });
    }
}

impl Home for Worker {
    fn released(&self, shard_id: &ShardId, freed_bytes: u64) {
        // Recorded before the id may be taken again.
        self.gave_back(shard_id, freed_bytes);
        self.strike(shard_id);
    }

    fn lost_records(&self) -> u64 {
        self.trail.lost_records()
    }

    fn is_losing_records(&self) -> bool {
        self.trail.is_failing()
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.trail.monotonic())
    }

    fn wall_ns(&self) -> u64 {
        self.trail.wall_ns()
    }

    fn is_quarantined(&self) -> bool {
        self.quarantined.get().is_some()
    }

    fn is_lost(&self) -> bool {
        self.device.is_lost()
    }

    fn lends_suspects(&self) -> bool {
        self.policy.on_failure == OnFailure::Log
    }

    fn lends_writable(&self) -> bool {
        !self.policy.require_read_only
    }
}

/// A shard id that nobody else can take.
struct Claim<'a> {
    worker: &'a Worker,
    shard_id: ShardId,
    kept: bool,
}

impl Claim<'_> {
    /// From here on the shard itself keeps the id.
    fn keep(mut self, shard: &Arc<Shard>) {
        self.worker.hold(shard);
        self.kept = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.worker.strike(&self.shard_id);
        }
    }
}

fn check_text(what: &'static str, text: &str) -> Result<(), Error> {
    if !(1..=MAX_TEXT).contains(&text.len()) {
        return Err(Error::Text { what, length: text.len(), limit: MAX_TEXT });
    }
    match text.find(char::is_control) {
        Some(position) => Err(Error::ControlCharacter { what, position }),
        None => Ok(()),
    }
}
