//! Several regions at once: how a device without a way of its own does it, and what each is told when that fails.

use std::io;

use super::{DeviceError, Region};
use crate::digest::{BlockValue, block_count};

/// Blocks hashed at a time: their values (32 KiB) live on the stack, so that hashing needs no heap.
const BATCH: usize = 1024;

/// Hashes regions one after the other, each under its number.
pub(super) fn one_by_one<'a>(
    regions: impl Iterator<Item = (usize, &'a dyn Region)>,
    found: &mut dyn FnMut(usize, u64, &[BlockValue]),
) -> Result<(), DeviceError> {
    let mut buffer = [BlockValue::UNKNOWN; BATCH];
    for (index, region) in regions {
        let (mut first, blocks) = (0_u64, block_count(region.bytes()));
        while first < blocks {
            let left = usize::try_from(blocks.saturating_sub(first)).unwrap_or(usize::MAX);
            let values = buffer.get_mut(..left.min(BATCH)).unwrap_or_default();
            region.hash_blocks(first, values)?;
            found(index, first, values);
            first = first.saturating_add(values.len() as u64);
        }
    }
    Ok(())
}

impl DeviceError {
    /// The same for another of several regions that it is about.
    pub(crate) fn again(&self) -> Self {
        let repeated = |source: &io::Error| match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(source.kind(), source.to_string()),
        };
        match self {
            Self::InsufficientMemory { device, needed_bytes, available_bytes, total_bytes } => {
                Self::InsufficientMemory {
                    device: *device,
                    needed_bytes: *needed_bytes,
                    available_bytes: *available_bytes,
                    total_bytes: *total_bytes,
                }
            }
            Self::Cuda(error) => Self::Cuda(error.clone()),
            Self::System { device, step, source } => Self::System { device: *device, step, source: repeated(source) },
            Self::Source { offset, source } => Self::Source { offset: *offset, source: repeated(source) },
            Self::Inconsistent { device, block } => Self::Inconsistent { device: *device, block: *block },
            Self::Unexportable { device } => Self::Unexportable { device: *device },
            Self::WorkerPanicked => Self::WorkerPanicked,
            Self::OutOfRange { offset, end, region_bytes } => {
                Self::OutOfRange { offset: *offset, end: *end, region_bytes: *region_bytes }
            }
        }
    }
}
