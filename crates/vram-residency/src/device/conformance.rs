//! One suite that every device must pass, shipped so that it can be run on the machine that matters.
//!
//! It states what the rest of the crate relies on: digests are the official ones at every boundary length and
//! alignment, a fingerprint follows from key and bytes, reservations add up, filling that fails leaves nothing behind, protected regions read back what was
//! written, and a repair changes exactly the bytes it was given.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Device, DeviceError, Export, Fill, Protection, Region};
use crate::digest::{BLOCK_BYTES, BlockValue, Digest, block_count, merge};
use crate::fingerprint::{Fingerprint, FingerprintKey};

/// Lengths at which block, chunk and page arithmetic goes wrong first, in bytes.
pub const BOUNDARY_LENGTHS: [u64; 22] = [
    0,
    1,
    7,
    8,
    63,
    64,
    65,
    255,
    256,
    257,
    1023,
    1024,
    1025,
    4095,
    4096,
    4097,
    BLOCK_BYTES - 1,
    BLOCK_BYTES,
    BLOCK_BYTES + 1,
    2 * BLOCK_BYTES,
    3 * BLOCK_BYTES - 1,
    3 * BLOCK_BYTES + 1025,
];

/// Distances behind a 256-byte boundary at which regions are tried, in bytes.
pub const LEADS: [u8; 4] = [0, 8, 120, 248];

/// What a device did wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A call that must work did not.
    #[error("{property}: {source}")]
    Refused {
        /// What was being shown.
        property: &'static str,
        /// What the device answered.
        source: DeviceError,
    },
    /// A property does not hold.
    #[error("{property} does not hold for a region of {bytes} bytes, {lead} bytes behind the boundary")]
    Broken {
        /// The property.
        property: &'static str,
        /// Length of the region.
        bytes: u64,
        /// Its lead.
        lead: u8,
    },
}

/// How much was shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Regions that were filled, protected, verified and repaired.
    pub regions: u64,
}

/// Bytes whose pattern repeats nowhere near a power of two, so that swapped or shifted blocks show.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    /// Makes patterns differ from each other.
    pub seed: u64,
}

impl Pattern {
    /// The byte at an offset.
    #[must_use]
    pub const fn byte(self, offset: u64) -> u8 {
        // The finalizer of SplitMix64: every bit of the offset reaches every bit of the byte.
        let mut z = offset.wrapping_add(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 56) as u8
    }

    /// The first `bytes` bytes.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> Vec<u8> {
        (0..bytes).map(|offset| self.byte(offset)).collect()
    }
}

/// A source that fails at one block.
struct FailsAt {
    /// Blocks that were asked for.
    blocks: AtomicU64,
    at: u64,
    abandoned: AtomicBool,
}

impl Fill for FailsAt {
    fn fill(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(1);
        let blocks = block_count(buffer.len() as u64);
        let before = self.blocks.fetch_add(blocks, Ordering::Relaxed);
        if before.saturating_add(blocks) > self.at { Err(io::Error::other("on purpose")) } else { Ok(()) }
    }

    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

/// Runs the suite. The device should have 16 MiB free and nobody else using it meanwhile.
///
/// # Errors
/// The first [`Failure`].
pub fn check(device: &dyn Device) -> Result<Summary, Failure> {
    let mut summary = Summary::default();
    let before = device.capacity();
    for bytes in BOUNDARY_LENGTHS {
        for lead in LEADS {
            check_region(device, bytes, lead)?;
            summary.regions = summary.regions.saturating_add(1);
        }
        failing_fill_leaves_nothing(device, bytes)?;
    }
    require(device.capacity() == before, "every reservation is given back", 0, 0)?;
    reservations_never_exceed_the_capacity(device)?;
    Ok(summary)
}

fn check_region(device: &dyn Device, bytes: u64, lead: u8) -> Result<(), Failure> {
    let pattern = Pattern { seed: bytes ^ u64::from(lead) }.bytes(bytes);
    let used = device.capacity().used_bytes;
    let mut staged = device.allocate(bytes, lead).map_err(refused("a region is allocated"))?;
    let reserved = device.capacity().used_bytes.saturating_sub(used);
    require(reserved >= bytes.max(1), "a region's bytes are reserved", bytes, lead)?;

    let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(bytes)).unwrap_or(0)];
    let too_few = staged.fill(&pattern.as_slice(), values.get_mut(1..).unwrap_or_default());
    require(too_few.is_err(), "values for every block are asked for", bytes, lead)?;
    staged.fill(&pattern.as_slice(), &mut values).map_err(refused("a region is filled"))?;
    let digest = Digest::of(&pattern);
    require(merge(&values) == Some(digest), "filling gives the official digest", bytes, lead)?;

    let region = staged.protect().map_err(refused("a region is protected"))?;
    let region = region.as_ref();
    require(region.bytes() == bytes, "a region keeps its length", bytes, lead)?;
    let memory = region.check_memory().map_err(refused("a region's memory is asked about"))?;
    let stated = (memory.residency, memory.protection) == (region.residency(), region.protection());
    require(stated && memory.foreign.is_none(), "a region is where it says, protected as it says", bytes, lead)?;
    require(rehash(region)? == Some(digest), "hashing gives the official digest", bytes, lead)?;
    require(reads_back(region, &pattern)?, "a region reads back what was written", bytes, lead)?;
    ranges_are_checked(region)?;
    let first = fingerprint(region, 1)?;
    require(first.is_some() == device.has_fingerprint(), "a device has fingerprints or has none", bytes, lead)?;
    require(first == fingerprint(region, 1)?, "a fingerprint follows from key and bytes", bytes, lead)?;
    let other = fingerprint(region, 2)?;
    require(first.is_none() || first != other, "another key gives another fingerprint", bytes, lead)?;
    require(
        others_read(region, &pattern)?,
        "what is exported is the region, which the kernel keeps from being written where it can",
        bytes,
        lead,
    )?;
    for offset in [0, bytes / 2, bytes.saturating_sub(1)] {
        if offset < bytes {
            rewriting_changes_just_that_byte(region, &pattern, &values, offset, lead)?;
        }
    }
    Ok(())
}

fn rewriting_changes_just_that_byte(
    region: &dyn Region,
    pattern: &[u8],
    sealed: &[BlockValue],
    offset: u64,
    lead: u8,
) -> Result<(), Failure> {
    let bytes = region.bytes();
    let property = "one rewritten byte changes its own block's value and no other";
    let original = usize::try_from(offset).ok().and_then(|offset| pattern.get(offset)).copied().unwrap_or(0);
    let rewrite = |byte: u8| region.rewrite(offset, &[byte]).map_err(refused("a byte is rewritten"));
    let before = fingerprint(region, offset)?;
    rewrite(original ^ 0x10)?;
    let changed = before.is_none() || before != fingerprint(region, offset)?;
    require(changed, "one rewritten byte changes the fingerprint", bytes, lead)?;
    let damaged = offset / BLOCK_BYTES;
    let mut value = [BlockValue::UNKNOWN];
    for (index, sealed) in (0_u64..).zip(sealed) {
        region.hash_blocks(index, &mut value).map_err(refused(property))?;
        require((value == [*sealed]) == (index != damaged), property, bytes, lead)?;
    }
    rewrite(original)?;
    require(before == fingerprint(region, offset)?, "a repaired region has its fingerprint again", bytes, lead)?;
    let memory = region.check_memory().map_err(refused("a repaired region's memory is asked about"))?;
    let same = (memory.residency, memory.protection) == (region.residency(), region.protection());
    require(same, "a repaired region is protected as before", bytes, lead)?;
    require(reads_back(region, pattern)?, "a repaired region reads back what was written", bytes, lead)
}

fn ranges_are_checked(region: &dyn Region) -> Result<(), Failure> {
    let bytes = region.bytes();
    let mut two = [BlockValue::UNKNOWN; 2];
    let refusals = [
        region.rewrite(bytes, &[0]).is_err(),
        region.rewrite(u64::MAX, &[0]).is_err(),
        region.view(0..bytes.saturating_add(1), &mut |_| ()).is_err(),
        region.hash_blocks(block_count(bytes).saturating_sub(1), &mut two).is_err(),
        region.hash_blocks(u64::MAX, &mut two).is_err(),
    ];
    require(refusals.iter().all(|refused| *refused), "ranges outside a region are refused", bytes, 0)
}

fn failing_fill_leaves_nothing(device: &dyn Device, bytes: u64) -> Result<(), Failure> {
    let before = device.capacity();
    let blocks = block_count(bytes);
    for at in 0..blocks {
        let mut staged = device.allocate(bytes, 0).map_err(refused("a region is allocated"))?;
        let mut values = vec![BlockValue::UNKNOWN; usize::try_from(blocks).unwrap_or(0)];
        let source = FailsAt { blocks: AtomicU64::new(0), at, abandoned: AtomicBool::new(false) };
        let answer = staged.fill(&source, &mut values);
        require(matches!(answer, Err(DeviceError::Source { .. })), "a failing source is reported", bytes, 0)?;
        require(source.abandoned.into_inner(), "a fill that failed is abandoned", bytes, 0)?;
    }
    require(device.capacity() == before, "a failed fill leaves nothing reserved", bytes, 0)
}

fn reservations_never_exceed_the_capacity(device: &dyn Device) -> Result<(), Failure> {
    let total = device.capacity().total_bytes;
    let refused = device.allocate(total.saturating_add(1), 0);
    let typed = matches!(refused, Err(DeviceError::InsufficientMemory { .. }));
    require(typed, "more than the capacity is refused with the sizes", total, 0)?;
    let absurd = device.allocate(u64::MAX, 255);
    require(absurd.is_err(), "an absurd length is refused", u64::MAX, 255)
}

fn rehash(region: &dyn Region) -> Result<Option<Digest>, Failure> {
    let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(region.bytes())).unwrap_or(0)];
    region.hash_blocks(0, &mut values).map_err(refused("a region is hashed"))?;
    Ok(merge(&values))
}

fn fingerprint(region: &dyn Region, secret: u64) -> Result<Option<Fingerprint>, Failure> {
    let key = FingerprintKey::from_secret(*Digest::of(&secret.to_le_bytes()).as_bytes());
    region.fingerprint(&key).map_err(refused("a region's fingerprint is taken"))
}

fn reads_back(region: &dyn Region, pattern: &[u8]) -> Result<bool, Failure> {
    let mut same = false;
    region.view(0..region.bytes(), &mut |bytes| same = bytes == pattern).map_err(refused("a region is read"))?;
    Ok(same)
}

/// Whether whoever is given the export reads the region's bytes, and cannot write any where the kernel can stop that.
fn others_read(region: &dyn Region, pattern: &[u8]) -> Result<bool, Failure> {
    let property = "a region is exported";
    match region.export() {
        Ok(Export::MemoryFile { file, offset }) => {
            let file = std::fs::File::from(file);
            let mut read = vec![0; pattern.len()];
            let same = file.read_exact_at(&mut read, offset).is_ok() && read == pattern;
            Ok(same && file.write_at(&[0], offset).is_err() && file.set_len(offset).is_err())
        }
        // Only another process with the same driver can map it; here it is shown that the region is in it.
        Ok(Export::CudaAllocation { bytes, offset, .. }) => {
            Ok(offset.checked_add(region.bytes()).is_some_and(|end| end <= bytes))
        }
        // Not every GPU, and not in every sandbox, exports its memory.
        Err(DeviceError::Unexportable { .. }) => Ok(true),
        // Main memory that is not shown to be read-only is not handed out.
        Err(_) if region.protection() == Protection::Advisory => Ok(true),
        Err(error) => Err(refused(property)(error)),
    }
}

fn require(holds: bool, property: &'static str, bytes: u64, lead: u8) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Broken { property, bytes, lead }) }
}

fn refused(property: &'static str) -> impl FnOnce(DeviceError) -> Failure {
    move |source| Failure::Refused { property, source }
}
