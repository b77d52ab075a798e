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
use crate::shard::{Home, SealedShard};
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

impl VramManager {
    /// Gives up the seal of a shard so that its bytes may be changed: a merged adapter, an update of a training run. The
    /// record of it, with the reason (1 to 4096 bytes), comes first.
    ///
    /// # Errors
    /// [`Error::InUse`] where somebody else holds a clone and does not let go within a second, [`Error::Text`],
    /// [`Error::Audit`] where the record is lost. The shard stays sealed then, and this clone of it is given up.
    pub fn unseal(&self, shard: SealedShard, reason: &str) -> Result<Unsealed, Error> {
        self.own(&shard)?;
        check_text("reason", reason)?;
        let shard_id = *shard.shard_id();
        let mut inner = shard.inner;
        let mut waited = Duration::ZERO;
        let mut shard = loop {
            // Whoever checks a block holds it for a moment, too.
            match Arc::try_unwrap(inner) {
                Ok(shard) => break shard,
                Err(held) if waited < PATIENCE => {
                    inner = held;
                    std::thread::sleep(LOOK_AGAIN);
                    waited = waited.saturating_add(LOOK_AGAIN);
                }
                Err(_held) => return Err(Error::InUse { shard_id: Box::new(shard_id) }),
            }
        };
        let previous = shard.statement.digest;
        self.worker.record_first(&AuditEvent::ShardUnsealed { shard_id: &shard_id, digest: previous, reason })?;
        tracing::info!(%shard_id, reason, "unsealed");
        let region = shard.region.take();
        let statement = &shard.statement;
        self.worker.past().remember(shard_id, statement.bytes, shard.values.clone());
        Ok(Unsealed {
            worker: Arc::clone(&self.worker),
            part: Some(Part {
                shard_id,
                model_ref: Arc::clone(&statement.model_ref),
                index: statement.shard_index,
                count: statement.shard_count,
            }),
            shard_id,
            previous,
            reason: reason.into(),
            table: shard.table.clone(),
            region,
        })
    }
}

impl Unsealed {
    /// The shard's name.
    #[must_use]
    pub fn shard_id(&self) -> &ShardId {
        &self.shard_id
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
    /// [`Error::Device`], [`Error::DeviceQuarantined`] and, where the policy requires records, [`Error::Audit`]. The memory
    /// is given back then.
    pub fn reseal(mut self) -> Result<SealedShard, Error> {
        let worker = Arc::clone(&self.worker);
        worker.device_is_trusted()?;
        let hashed_ns = worker.now_ns();
        let values = hash_all(self.region()?)?;
        let digest = merge(&values).ok_or(DeviceError::WorkerPanicked)?;
        let gone = || Error::ForeignShard { shard_id: Box::new(self.shard_id) };
        let part = self.part.take().ok_or_else(gone)?;
        worker.record_first(&self.resealed(digest))?;
        let region = self.region.take().ok_or_else(gone)?;
        // From here on the region's end is the shard's, or that of the error below.
        let bytes = region.bytes();
        match worker.sign(part, self.table.clone(), values, digest, region, hashed_ns) {
            Ok(shard) => {
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
    /// As [`VramManager::seal_file`]. Nothing stays resident then.
    pub fn reseal_file(mut self, file: &ModelFile, request: &SealRequest<'_>) -> Result<SealedShard, Error> {
        self.give_back();
        let manager = VramManager { worker: Arc::clone(&self.worker) };
        let request = SealRequest { shard_id: self.shard_id, ..*request };
        let shard = manager.seal_file(file, &request)?;
        self.worker.record_first(&self.resealed(shard.digest()))?;
        Ok(shard)
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
