//! Several regions at once: how a device without a way of its own does it.

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
