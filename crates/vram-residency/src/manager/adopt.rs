//! Sealing memory that is resident already.

use std::sync::Arc;

use super::sealing::Part;
use super::verify::hash_all;
use super::{VramManager, check_text};
use crate::device::{DeviceError, Region};
use crate::digest::merge;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::model::TensorTable;
use crate::shard::{Home, SealedShard, Writable};
use crate::shard_id::ShardId;

impl VramManager {
    /// Seals a region that is resident on this manager's device already, as raw bytes without tensors: one that
    /// [`CudaDevice::adopt`](crate::device::CudaDevice::adopt) made, for example. Its release is recorded like any other's.
    ///
    /// Where a descriptor that allows writing was taken of it before, with [`Region::export`], its protection is `advisory`.
    ///
    /// # Errors
    /// As [`VramManager::seal_model`]. The region is dropped then.
    pub fn seal_region(
        &self,
        shard_id: ShardId,
        model_ref: &str,
        region: Box<dyn Region>,
    ) -> Result<SealedShard, Error> {
        let worker = &self.worker;
        check_text("model reference", model_ref)?;
        worker.admitted(worker.policy.admit_device(worker.device.info().kind), shard_id)?;
        worker.device_is_trusted()?;
        let claim = worker.claim(shard_id)?;
        let hashed_ns = worker.now_ns();
        let values = hash_all(region.as_ref())?;
        let digest = merge(&values).ok_or(DeviceError::WorkerPanicked)?;
        let since_ns = |age| worker.trail.wall_ns().saturating_sub(nanoseconds(age)).max(1);
        let writable_since_ns = region.exported_for().map(since_ns);
        worker.admit_region(region.as_ref(), shard_id, &Writable::carried(writable_since_ns))?;
        let spares = worker.first_spares(region.as_ref(), &values, None)?;
        let model_ref = Arc::from(model_ref);
        let part = Part { shard_id, model_ref, index: 0, count: 1, writable_since_ns };
        let mut shard = worker.sign(part, TensorTable::empty(), values, digest, region, hashed_ns)?;
        shard.spares = spares;
        worker.device_is_trusted()?;
        let inner = Arc::new(shard);
        claim.keep(&inner);
        worker.metrics.seals.increment(1);
        Ok(SealedShard { inner })
    }
}
