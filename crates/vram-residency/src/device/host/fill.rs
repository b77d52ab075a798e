//! Filling a region, block by block, several at a time: copy, then hash what arrived while it is in the cache.
//!
//! Where the bytes are a file's, the kernel copies them into the memory file by itself. It then need not clear the pages
//! first, as it must when they are touched through a mapping; that saves a third of the time with small pages. Huge pages
//! come through the mapping only, and are faster still, so there the mapping is filled.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::super::crew::Panicked;
use super::memory::NotCopied;
use super::{DeviceError, Fill, HostRegion};
use crate::digest::{BlockValue, block_count, block_range, block_value};

pub(super) fn fill(region: &mut HostRegion, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
    let bytes = region.memory.bytes();
    if values.len() as u64 != block_count(bytes) {
        return Err(DeviceError::OutOfRange { offset: 0, end: u64::MAX, region_bytes: bytes });
    }
    let filling = Filling {
        region,
        source,
        by_kernel: AtomicBool::new(region.device().kernel_copies && source.file().is_some()),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let fill_block = |index: usize, value: &mut BlockValue| {
        if !filling.failed.load(Ordering::Relaxed) {
            filling.block(index as u64, value);
        }
    };
    let done = region.device().crew.for_each_mut(values, &fill_block);
    region.reservation.provided(u64::MAX);
    match (done, filling.failure.into_inner()) {
        (_, Some(error)) => Err(error),
        (Err(Panicked), None) => Err(DeviceError::WorkerPanicked),
        (Ok(()), None) => Ok(()),
    }
}

/// One filling. The region is borrowed from somebody who had it to himself, so nobody else looks into it.
struct Filling<'a> {
    region: &'a HostRegion,
    source: &'a dyn Fill,
    /// Whether the kernel copies, as far as it has not refused.
    by_kernel: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<DeviceError>>,
}

impl Filling<'_> {
    fn block(&self, index: u64, value: &mut BlockValue) {
        // Whatever happens, also a panic in the source's code, others must not wait for this block in vain.
        let mut attempt = Attempt { filling: self, error: Some(DeviceError::WorkerPanicked) };
        attempt.error = self.copy_and_hash(index, value).err();
    }

    fn copy_and_hash(&self, index: u64, value: &mut BlockValue) -> Result<(), DeviceError> {
        let memory = &self.region.memory;
        let range = block_range(memory.bytes(), index);
        let failed = |source: io::Error| DeviceError::Source { offset: range.start, source };
        let copied = match self.source.file().filter(|_| self.by_kernel.load(Ordering::Relaxed)) {
            Some(file) => self.copy_by_kernel(file, index)?,
            None => false,
        };
        if !copied {
            memory.populate(range.clone())?;
            // SAFETY: the region is staged and lent to this filling alone, which works on each block once.
            let block = unsafe { memory.slice_mut(range.clone()) };
            self.source.fill(range.start, block).map_err(failed)?;
        }
        self.region.reservation.provided(range.end.saturating_sub(range.start));
        // SAFETY: as above, and the exclusive borrow has ended.
        let block = unsafe { memory.slice(range.clone()) };
        // The copy is in the cache now, and the digest must be of what arrived.
        *value = block_value(memory.bytes(), index, block).ok_or(DeviceError::WorkerPanicked)?;
        self.source.arrived(range.start, block).map_err(failed)
    }

    /// Whether the kernel could copy the block.
    fn copy_by_kernel(&self, file: BorrowedFd<'_>, index: u64) -> Result<bool, DeviceError> {
        let memory = &self.region.memory;
        let range = block_range(memory.bytes(), index);
        match memory.copy_from(file, range) {
            Ok(()) => Ok(true),
            Err(NotCopied::Unable) => {
                self.by_kernel.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(NotCopied::Memory(error)) => Err(error),
            Err(NotCopied::Source { offset, source }) => Err(DeviceError::Source { offset, source }),
        }
    }
}

/// Work on one block. Dropped with an error, it stops the filling.
struct Attempt<'a> {
    filling: &'a Filling<'a>,
    error: Option<DeviceError>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some(error) = self.error.take() else { return };
        self.filling.failed.store(true, Ordering::Relaxed);
        self.filling.failure.lock().get_or_insert(error);
        self.filling.source.abandon();
    }
}
