//! Devices: memories in which weights can be resident, behind one narrow trait.
//!
//! A region lives in two stages, and the types keep them apart:
//!
//! ```text
//! Device::allocate ─▶ StagedRegion ── fill once ──▶ protect ─▶ Region ── hash, view, read, repair
//!    (reserves)         (writable)                             (read-only)
//! ```
//!
//! Dropping either stage gives the memory and its reservation back. Every device must pass [`conformance::check`].
//!
//! This is the only module of the crate in which `unsafe` is allowed.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::attest::statement::Driver;
use crate::digest::{BLOCK_BYTES, BlockValue, block_count, block_range};
use crate::fingerprint::{Fingerprint, FingerprintKey};

mod child;
pub mod conformance;
mod crew;
mod cuda;
mod facts;
mod host;
pub(crate) mod mapping;
pub mod measure;
mod together;

#[cfg(feature = "gpu-check")]
pub use cuda::measure as cuda_measure;
pub use cuda::{
    CudaDevice, CudaError, CudaFacts, CudaOptions, HashVariant, MINIMUM_DRIVER, Survey, Surveyed, Tested, Version,
    Which, WriteTest, disable_kernel_cache,
};
pub(crate) use cuda::{ImportedRegion, Importer, Offered};
pub use facts::{
    Capacity, DeviceInfo, DeviceKind, DeviceUuid, Foreign, MemoryCheck, Mig, Protection, Residency, SuspectedPaged,
};
pub use host::{HostDevice, HostOptions, HugePages, Locking, MemoryFacts};
use together::one_by_one;

/// A device could not do it.
///
/// A device is named as [`Device::name`] does: `host`, `cuda:0`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The region does not fit beside what is already reserved.
    #[error(
        "{device} has {available_bytes} bytes free of {total_bytes}, and {needed_bytes} are needed; \
         release a shard, free memory, raise the capacity limit or choose a smaller model"
    )]
    InsufficientMemory {
        /// The device that was asked.
        device: Box<str>,
        /// Bytes that the region needs, in whole pages.
        needed_bytes: u64,
        /// Bytes that were free.
        available_bytes: u64,
        /// The device's capacity.
        total_bytes: u64,
    },
    /// The CUDA driver or a GPU could not do it.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The operating system or driver refused a step.
    #[error("{device} could not {step}: {source}; `vram doctor` shows what this machine lacks")]
    System {
        /// The device that was asked.
        device: Box<str>,
        /// What was being done.
        step: &'static str,
        /// What the system answered.
        source: Arc<io::Error>,
    },
    /// The source of the bytes failed while the region was filled; nothing of it stays resident.
    #[error("reading the model at byte {offset} failed: {source}; nothing of it stays resident")]
    Source {
        /// Where in the region.
        offset: u64,
        /// What the source answered.
        source: Arc<io::Error>,
    },
    /// Two ways of reading one block disagree, time and again.
    #[error("{device} gives two answers about block {block}; restart, and replace the device if it happens again")]
    Inconsistent {
        /// The device that was asked.
        device: Box<str>,
        /// The block.
        block: u64,
    },
    /// The region's memory cannot be handed to another process.
    #[error(
        "{device} cannot hand this memory to another process: somebody else allocated it, or the GPU exports none; \
         use it in this process, or keep the shard in main memory"
    )]
    Unexportable {
        /// The device that was asked.
        device: Box<str>,
    },
    /// A thread that worked on the region panicked, in code of the caller's.
    #[error("a thread failed while it worked on a region, which is not used further; report this defect")]
    WorkerPanicked,
    /// The byte range is not inside the region.
    #[error("bytes {offset}..{end} are not inside a region of {region_bytes} bytes; ask for bytes that it has")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Byte after the last one asked for.
        end: u64,
        /// What the region has.
        region_bytes: u64,
    },
}

/// Where the bytes of a region come from while it is filled.
///
/// Called from several threads at once, in roughly ascending order, for one block or several that follow one another, as
/// wholes: all that a thread takes at a time.
pub trait Fill: Sync {
    /// Writes the region's bytes from `offset` on into `buffer`, all of it.
    ///
    /// # Errors
    /// Whatever the source answers; filling stops at the first one.
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Told that the filling has failed elsewhere, so that no call of [`Fill::fill`] need wait for blocks that will
    /// never be asked for.
    fn abandon(&self) {}
}

impl Fill for &[u8] {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok().and_then(|start| self.get(start..));
        let bytes = bytes.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A memory in which weights can be resident.
pub trait Device: Send + Sync + fmt::Debug {
    /// Who this device is.
    fn info(&self) -> DeviceInfo;

    /// What it is called where several of its kind are told apart, such as `cuda:0`.
    fn name(&self) -> String {
        self.info().kind.to_string()
    }

    /// How much it may hold and holds.
    fn capacity(&self) -> Capacity;

    /// Bytes that a region may take now: less than the capacity leaves where others hold memory of the same device.
    fn room_bytes(&self) -> u64 {
        self.capacity().available_bytes()
    }

    /// Bytes that a region of `bytes` bytes with so much [lead](Device::allocate) takes, in whole pages or granules.
    fn needed_bytes(&self, bytes: u64, lead_bytes: u8) -> u64 {
        bytes.saturating_add(lead_bytes.into())
    }

    /// What drives it, as it reports itself. For main memory that is the kernel.
    fn driver(&self) -> Driver {
        let system = rustix::system::uname();
        let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
        Driver { name: text(system.sysname()), version: text(system.release()), machine: text(system.machine()) }
    }

    /// Whether its regions have a check that is faster than hashing: [`Region::fingerprint`].
    fn has_fingerprint(&self) -> bool {
        false
    }

    /// What is known about the GPU that it is, where it is one.
    fn cuda_facts(&self) -> Option<&CudaFacts> {
        None
    }

    /// Why nothing on the device can be read any more by this process, where that is so: only a new process can.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Whether that is so: asked each time that a shard's bytes are lent, so whoever can be lost answers without the words.
    fn is_lost(&self) -> bool {
        self.lost().is_some()
    }

    /// Reserves and maps a region of `bytes` bytes whose first byte lies `lead_bytes` (less than 256) behind a
    /// 256-byte boundary, so that what follows a file's header can be aligned. A GPU rounds that down to a multiple of 8.
    ///
    /// The reservation is atomic: of two callers that do not fit together, at least one is refused.
    ///
    /// # Errors
    /// [`DeviceError::InsufficientMemory`] where it does not fit, [`DeviceError::System`] where a step is refused.
    /// Either way nothing stays reserved.
    fn allocate(&self, bytes: u64, lead_bytes: u8) -> Result<Box<dyn StagedRegion>, DeviceError>;

    /// Whether [`Device::hash_regions`] hashes several regions together, and not one after the other: only then is it given
    /// shards that would otherwise be done one by one, and told of so.
    fn hashes_together(&self) -> bool {
        false
    }

    /// Hashes whole regions of this device, together where that is faster. `found` is told of each region's number in
    /// `regions`, the number of the first of some of its blocks, and their values: of every block once, of each region's
    /// in ascending order. Allocates nothing.
    ///
    /// `found` must be short and must ask the device for nothing: regions may be kept from repair, and what the device
    /// works with may be taken, until it returns.
    ///
    /// # Errors
    /// The first one of the device. What `found` was told until then is so; nothing is known of other blocks.
    fn hash_regions(
        &self,
        regions: &[&dyn Region],
        found: &mut dyn FnMut(usize, u64, &[BlockValue]),
    ) -> Result<(), DeviceError> {
        one_by_one(regions.iter().copied().enumerate(), found)
    }
}

/// A region that is still writable and that nobody else can see.
pub trait StagedRegion: Send {
    /// Fills the whole region from `source` and puts into `values` the value of every block, hashed from the
    /// device's own memory after the copy. `values` must hold exactly the region's blocks.
    ///
    /// # Errors
    /// [`DeviceError::Source`] with the offset of the first piece that failed; the region is then good for nothing but dropping.
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError>;

    /// Makes the region read-only for ever.
    ///
    /// # Errors
    /// [`DeviceError::System`] where a step is refused; the memory is given back.
    fn protect(self: Box<Self>) -> Result<Box<dyn Region>, DeviceError>;
}

/// A filled, protected region.
pub trait Region: Any + Send + Sync + fmt::Debug {
    /// Its length in bytes.
    fn bytes(&self) -> u64;

    /// Where the bytes are, as the driver or the kernel last granted it.
    fn residency(&self) -> Residency;

    /// What stops a write, as last shown.
    fn protection(&self) -> Protection;

    /// Hashes blocks `first..first + values.len()` from the device's memory into `values`. Allocates nothing.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] where there are no such blocks.
    fn hash_blocks(&self, first: u64, values: &mut [BlockValue]) -> Result<(), DeviceError>;

    /// The keyed [fingerprint](crate::fingerprint) of all of the region's bytes, computed in place; none where the device has
    /// no faster check than hashing. The key is in the device's memory for that time only. Allocates nothing once the first
    /// one was taken.
    ///
    /// # Errors
    /// Whatever the device answers. The key is then as good as seen.
    fn fingerprint(&self, _key: &FingerprintKey) -> Result<Option<Fingerprint>, DeviceError> {
        Ok(None)
    }

    /// Asks the driver or the kernel anew where the memory is and what stops a write. A part of every full verification.
    ///
    /// # Errors
    /// Whatever the device answers, where it cannot be asked.
    fn check_memory(&self) -> Result<MemoryCheck, DeviceError> {
        let (residency, protection) = (self.residency(), self.protection());
        Ok(MemoryCheck { residency, protection, foreign: None, suspected_paged: None })
    }

    /// Lends the bytes of a range to `look`: in place where the processor can address them, else a copy of them in main
    /// memory, as long as the range, that is wiped afterwards. No repair runs meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] where the range is not inside the region.
    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError>;

    /// Writes into the protected region: the repair path, and the only one. The protection of every other byte
    /// stays as it is, as far as the device's pages allow, and is restored before this returns.
    ///
    /// Callers check `bytes` against the sealed block value first.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`], or [`DeviceError::System`] where the protection cannot be changed or restored.
    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError>;

    /// What another process needs to map the same memory; [`Export::is_writable`] says what it could do with it. The memory lives until the last one who has it
    /// mapped or holds its export is gone, also when the region is dropped before.
    ///
    /// # Errors
    /// [`DeviceError::System`] where this memory cannot be exported, or the system refuses.
    fn export(&self) -> Result<Export, DeviceError>;

    /// For how long somebody else may have been able to write to its memory, because a descriptor that allows that was taken with
    /// [`Region::export`], whatever became of it. None where none was.
    ///
    /// It is asked when the region is sealed: what is then handed out of the shard is known without it.
    fn exported_for(&self) -> Option<Duration> {
        None
    }
}

/// What another process needs to map a region.
#[derive(Debug)]
#[non_exhaustive]
pub enum Export {
    /// A sealed memory file, opened for reading only, to be mapped shared.
    MemoryFile {
        /// The descriptor: an open file of its own, which shares nothing with other exports but the bytes.
        file: OwnedFd,
        /// Where the region's first byte is in the file.
        offset: u64,
    },
    /// An allocation of a GPU's memory, to be imported and mapped with the CUDA driver. The handle itself allows writing:
    /// whoever is given it must be trusted to map it for reading only.
    CudaAllocation {
        /// The descriptor.
        fd: OwnedFd,
        /// The allocation's length.
        bytes: u64,
        /// Where the region's first byte is in it.
        offset: u64,
        /// The device that it is on.
        device: DeviceUuid,
    },
}

impl Export {
    /// Whether who has the descriptor can write to the region's memory.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        matches!(self, Self::CudaAllocation { .. })
    }
}

/// Checks that a region has blocks.
pub(crate) fn check_blocks(first: u64, blocks: usize, region_bytes: u64) -> Result<(), DeviceError> {
    let all = block_count(region_bytes);
    match first.checked_add(blocks as u64) {
        Some(end) if end <= all => Ok(()),
        end => Err(DeviceError::OutOfRange {
            offset: block_range(region_bytes, first).start,
            end: end.unwrap_or(u64::MAX).saturating_mul(BLOCK_BYTES),
            region_bytes,
        }),
    }
}

/// Checks a byte range against a region's length.
pub(crate) fn check_range(offset: u64, bytes: usize, region_bytes: u64) -> Result<Range<u64>, DeviceError> {
    let end = u64::try_from(bytes).ok().and_then(|bytes| offset.checked_add(bytes));
    match end {
        Some(end) if end <= region_bytes => Ok(offset..end),
        _ => Err(DeviceError::OutOfRange { offset, end: end.unwrap_or(u64::MAX), region_bytes }),
    }
}
