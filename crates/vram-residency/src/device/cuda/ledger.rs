//! What is promised to regions, so that no two of them are promised the same bytes.

use std::sync::Arc;

use parking_lot::Mutex;

use super::driver::{Context, CudaError};
use crate::device::{Capacity, DeviceError};

/// A device's bytes.
#[derive(Debug)]
pub(super) struct Ledger {
    /// What the device is called.
    device: Box<str>,
    capacity_bytes: u64,
    /// Bytes of the device that are left to others.
    headroom_bytes: u64,
    used_bytes: Mutex<u64>,
}

/// Bytes of it, given back when dropped: with the memory that was dropped before.
#[derive(Debug)]
pub(super) struct Reservation {
    ledger: Arc<Ledger>,
    context: Arc<Context>,
    bytes: u64,
}

impl Ledger {
    pub(super) fn new(device: Box<str>, capacity_bytes: u64, headroom_bytes: u64) -> Arc<Self> {
        Arc::new(Self { device, capacity_bytes, headroom_bytes, used_bytes: Mutex::new(0) })
    }

    pub(super) fn capacity(&self) -> Capacity {
        Capacity { total_bytes: self.capacity_bytes, used_bytes: *self.used_bytes.lock() }
    }

    /// Promises bytes. The capacity is a limit and no promise: what the device has left decides as well.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64, context: &Arc<Context>) -> Result<Reservation, DeviceError> {
        // Asked before the lock is taken: whoever wants to know the capacity does not wait for the driver. What somebody
        // takes in between, the driver refuses.
        let (free, _) = context.memory()?;
        let mut used_bytes = self.used_bytes.lock();
        let available = self.available(*used_bytes, free);
        if bytes > available {
            return Err(self.insufficient(bytes, available));
        }
        *used_bytes = used_bytes.saturating_add(bytes);
        Ok(Reservation { ledger: Arc::clone(self), context: Arc::clone(context), bytes })
    }

    /// What could be promised now.
    pub(super) fn room(&self, context: &Context) -> Result<u64, CudaError> {
        let (free, _) = context.memory()?;
        Ok(self.available(*self.used_bytes.lock(), free))
    }

    fn available(&self, used_bytes: u64, free_bytes: u64) -> u64 {
        let left = self.capacity_bytes.saturating_sub(used_bytes);
        left.min(free_bytes.saturating_sub(self.headroom_bytes))
    }

    pub(super) fn insufficient(&self, needed_bytes: u64, available_bytes: u64) -> DeviceError {
        let (device, total_bytes) = (self.device.clone(), self.capacity_bytes);
        DeviceError::InsufficientMemory { device, needed_bytes, available_bytes, total_bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (ledger, bytes) = (Arc::clone(&self.ledger), self.bytes);
        self.context.when_given_back("count bytes as free", move || {
            let mut used_bytes = ledger.used_bytes.lock();
            *used_bytes = used_bytes.saturating_sub(bytes);
        });
    }
}
