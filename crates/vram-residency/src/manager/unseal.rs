//! Legitimate change: give up a seal with a reason, change the bytes, seal again. Both are on record.

use std::sync::Arc;
use std::time::Duration;

use super::sealing::Part;
use super::verify::hash_all;
use super::{VramManager, Worker, check_text};
use crate::audit::AuditEvent;
use crate::device::{DeviceError, Region};
use crate::digest::{Digest, merge};
use crate::error::Error;
use crate::model::{ModelFile, TensorTable};
use crate::shard::{Home, SealedShard, Shard, Writable};
use crate::shard_id::ShardId;

use super::SealRequest;

/// How long others get to let go of a shard.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A resident shard without a seal. Nobody else holds it, so its bytes may be changed. Dropping it gives the memory back.
#[must_use = "dropping it gives the memory back"]
pub struct Unsealed {
    worker: Arc<Worker>,
    part: Option<Part>,
    shard_id: ShardId,
    previous: Digest,
    reason: Box<str>,
    table: TensorTable,
    region: Option<Box<dyn Region>>,
}

/// The shard stays as it was, and here it is.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotUnsealed {
    /// The shard, sealed as before.
    pub shard: SealedShard,
    /// Why.
    #[source]
    pub error: Error,
}

/// Nothing is resident under the name, but it can be tried again.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotResealed {
    /// The name without memory: [`Unsealed::reseal_file`] may follow.
    pub unsealed: Unsealed,
    /// Why.
    #[source]
    pub error: Error,
}

impl VramManager {
    /// Gives up the seal of a shard so that its bytes may be changed: a merged adapter, an update of a training run. The
    /// record of it, with the reason (1 to 4096 bytes without control characters), comes first.
    ///
    /// # Errors
    /// [`NotUnsealed`] with the shard, which stays sealed, and the reason: [`Error::InUse`] where somebody else holds a
    /// clone and does not let go within a second, [`Error::Text`], [`Error::ForeignShard`], [`Error::Audit`] where the
    /// record is lost.
    pub fn unseal(&self, shard: SealedShard, reason: &str) -> Result<Unsealed, Box<NotUnsealed>> {
        let refuse = |shard, error| Err(Box::new(NotUnsealed { shard, error }));
        if let Err(error) = self.own(&shard).and_then(|()| check_text("reason", reason)) {
            return refuse(shard, error);
        }
        let shard_id = *shard.shard_id();
        let in_use = || Error::InUse { shard_id: Box::new(shard_id) };
        if !is_alone(&shard.inner) {
            return refuse(shard, in_use());
        }
        let digest = shard.digest();
        if let Err(error) = self.worker.record_first(&AuditEvent::ShardUnsealed { shard_id: &shard_id, digest, reason })
        {
            return refuse(shard, error);
        }
        match take(shard.inner) {
            Ok(shard) => Ok(self.without_seal(shard, reason)),
            Err(inner) => {
                // Somebody took a clone in between, and what is on record did not come about.
                let shard = SealedShard { inner };
                let reason = "kept as it was: still in use";
                let event = AuditEvent::ShardResealed { shard_id: &shard_id, previous: digest, digest, reason };
                let recorded = self.worker.record_first(&event);
                refuse(shard, recorded.err().unwrap_or_else(in_use))
            }
        }
    }

    fn without_seal(&self, mut shard: Shard, reason: &str) -> Unsealed {
        let shard_id = shard.statement.shard_id;
        tracing::info!(%shard_id, reason, "unsealed");
        let region = shard.region.take();
        let statement = &shard.statement;
        self.worker.past().remember(shard_id, statement.bytes, shard.values.clone());
        Unsealed {
            worker: Arc::clone(&self.worker),
            part: Some(Part {
                shard_id,
                model_ref: Arc::clone(&statement.model_ref),
                index: statement.shard_index,
                count: statement.shard_count,
                // Whoever could write to the memory still can.
                writable_since_ns: shard.writable.since_ns(),
            }),
            shard_id,
            previous: statement.digest,
            reason: reason.into(),
            table: shard.table.clone(),
            region,
        }
    }
}

/// Waits for a while until nobody else holds the shard. Whoever checks a block holds it for a moment, too.
fn is_alone(shard: &Arc<Shard>) -> bool {
    let mut waited = Duration::ZERO;
    while Arc::strong_count(shard) > 1 {
        if waited >= PATIENCE {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
        waited = waited.saturating_add(LOOK_AGAIN);
    }
    true
}

/// Takes the shard out, within a while.
fn take(mut shared: Arc<Shard>) -> Result<Shard, Arc<Shard>> {
    let mut waited = Duration::ZERO;
    loop {
        match Arc::try_unwrap(shared) {
            Ok(shard) => return Ok(shard),
            Err(held) if waited < PATIENCE => {
                shared = held;
                std::thread::sleep(LOOK_AGAIN);
                waited = waited.saturating_add(LOOK_AGAIN);
            }
            Err(held) => return Err(held),
        }
    }
}

impl Unsealed {
    /// The shard's name.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.shard_id
    }

    /// The digest that was sealed.
    #[must_use]
    pub fn previous(&self) -> Digest {
        self.previous
    }

    /// Why it was unsealed.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.region.as_ref().map_or(0, |region| region.bytes())
    }

    /// Changes resident bytes.
    ///
    /// # Errors
    /// [`Error::Header`] where `offset` lies before the first tensor, [`Error::Device`] where the bytes are not inside the
    /// shard or the memory cannot be opened for writing.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let data_start = self.table.tensors().iter().map(|tensor| tensor.start).min().unwrap_or(0);
        if offset < data_start {
            return Err(Error::Header { shard_id: Box::new(self.shard_id), data_start });
        }
        Ok(self.region()?.rewrite(offset, bytes)?)
    }

    /// Seals what is resident now, under the same name: hashed anew, signed for anew.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::DeviceQuarantined`], [`Error::Policy`] where the memory is no longer what the policy asks
    /// for, as where others can write to it now, and, where the policy requires records, [`Error::Audit`]. The memory is
    /// given back then.
    pub fn reseal(mut self) -> Result<SealedShard, Error> {
        let worker = Arc::clone(&self.worker);
        worker.device_is_trusted()?;
        let hashed_ns = worker.now_ns();
        let values = hash_all(self.region()?)?;
        let digest = merge(&values).ok_or(DeviceError::WorkerPanicked)?;
        let spares = worker.first_spares(self.region()?, &values, None)?;
        let gone = || Error::ForeignShard { shard_id: Box::new(self.shard_id) };
        let part = self.part.take().ok_or_else(gone)?;
        worker.admit_region(self.region()?, self.shard_id, &Writable::carried(part.writable_since_ns))?;
        worker.record_first(&self.resealed(digest))?;
        let region = self.region.take().ok_or_else(gone)?;
        // From here on the region's end is the shard's, or that of the error below.
        let bytes = region.bytes();
        match worker.sign(part, self.table.clone(), values, digest, region, hashed_ns) {
            Ok(mut shard) => {
                shard.spares = spares;
                let inner = Arc::new(shard);
                worker.hold(&inner);
                worker.metrics.seals.increment(1);
                Ok(SealedShard { inner })
            }
            Err(error) => {
                worker.gave_back(&self.shard_id, bytes);
                worker.strike(&self.shard_id);
                Err(error)
            }
        }
    }

    /// Gives the memory back and seals a file under the same name instead.
    ///
    /// # Errors
    /// [`NotResealed`], with the reason as of [`VramManager::seal_file`]. Nothing stays resident then, and another file may
    /// be tried.
    pub fn reseal_file(mut self, file: &ModelFile, request: &SealRequest<'_>) -> Result<SealedShard, Box<NotResealed>> {
        self.give_back();
        let manager = VramManager { worker: Arc::clone(&self.worker) };
        let request = SealRequest { shard_id: self.shard_id, ..*request };
        let sealed = manager.seal_file(file, &request).and_then(|shard| {
            self.worker.record_first(&self.resealed(shard.digest()))?;
            Ok(shard)
        });
        sealed.map_err(|error| Box::new(NotResealed { unsealed: self, error }))
    }

    fn resealed(&self, digest: Digest) -> AuditEvent<'_> {
        AuditEvent::ShardResealed { shard_id: &self.shard_id, previous: self.previous, digest, reason: &self.reason }
    }

    fn region(&self) -> Result<&dyn Region, Error> {
        self.region.as_deref().ok_or_else(|| Error::ForeignShard { shard_id: Box::new(self.shard_id) })
    }

    fn give_back(&mut self) {
        if let Some(region) = self.region.take() {
            let bytes = region.bytes();
            drop(region);
            self.worker.gave_back(&self.shard_id, bytes);
            self.worker.strike(&self.shard_id);
        }
    }
}

impl Drop for Unsealed {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Neither bytes nor addresses.
impl std::fmt::Debug for Unsealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsealed")
            .field("shard_id", &self.shard_id)
            .field("reason", &self.reason)
            .field("previous", &self.previous)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use crate::audit::AuditTrail;
    use crate::device::{HostDevice, HostOptions, Protection};
    use crate::policy::{Policy, Violation};
    use crate::seal::SealKey;
    use crate::{Error, ManagerOptions, ShardId, VramManager};

    /// However it came about that others can write to it: nothing in this crate hands it to them under such a policy.
    #[test]
    fn memory_that_others_can_write_to_is_not_sealed_anew_under_a_policy_that_asks_for_more() {
        for require_read_only in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let device = std::sync::Arc::new(HostDevice::open(HostOptions::default()).unwrap());
            let options = ManagerOptions {
                worker_id: "worker".into(),
                device,
                key: SealKey::derive(&[7; 32], "worker").unwrap(),
                trail: AuditTrail::open(dir.path()).unwrap(),
                policy: Policy { require_read_only, ..Policy::default() },
            };
            let manager = VramManager::new(options).unwrap();
            let id = ShardId::new("shard").unwrap();
            let shard = manager.seal_model(id, "model", b"weights").unwrap();
            let reseal = |shard| manager.unseal(shard, "an update").unwrap().reseal();
            let shard = reseal(shard).unwrap();
            shard.inner.writable.note(1);
            match (require_read_only, reseal(shard)) {
                (true, Err(Error::Policy { violation: Violation::NotReadOnly, .. })) => {
                    assert_eq!((manager.capacity().used_bytes, manager.list().len()), (0, 0), "it is given back");
                }
                (false, Ok(shard)) => assert_eq!(shard.sealed_protection(), Protection::Advisory),
                (_, other) => assert!(other.is_err() && other.is_ok(), "{other:?}"),
            }
            manager.trail().flush(Duration::from_secs(30)).unwrap();
        }
    }
}
