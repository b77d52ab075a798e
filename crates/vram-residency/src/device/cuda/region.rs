//! One region of a GPU's memory, in both of its stages.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use zeroize::Zeroizing;

use super::driver::{Access, Address, Context, CudaError, Mapped};
use super::ledger::Reservation;
use super::residency::{self, Sealed};
use super::speed::Speeds;
use super::{MOST_LAUNCH_BLOCKS, Shared, sweep};
use crate::device::{
    DeviceError, Export, Fill, Foreign, MemoryCheck, Protection, Region, Residency, StagedRegion, SuspectedPaged,
    check_blocks, check_range,
};
use crate::digest::{BlockValue, block_count};
use crate::fingerprint::{Fingerprint, FingerprintKey};

/// Where a region's bytes are.
#[derive(Debug)]
enum Memory {
    /// Memory of our own.
    Owned(Mapped),
    /// Memory that somebody else allocated and keeps.
    Adopted(Address),
}

/// One region.
#[derive(Debug)]
pub(super) struct CudaRegion {
    // Dropped in this order: the memory is gone before its bytes count as free.
    memory: Memory,
    _reservation: Option<Reservation>,
    shared: Arc<Shared>,
    /// Bytes in front of the region's first byte.
    lead: u64,
    bytes: u64,
    /// What its ends were backed by when it was sealed.
    block_ids: [Option<u64>; 2],
    /// Held for reading by whoever looks at the bytes, and again by who looks at more of them meanwhile; for writing by
    /// a repair.
    repair: RwLock<()>,
    /// Whether the driver took the order that the device may only read here.
    closed: bool,
    /// Whether it says itself that the device cannot write here.
    read_only: AtomicBool,
    /// Whether others may have it mapped as well, as the driver's answers leave open: adopted memory of which there are, or may
    /// be, descriptors.
    shareable: bool,
    /// When the first descriptor of it was made.
    exported: OnceLock<Instant>,
    speeds: Speeds,
}

/// Bytes that a region takes: whole granules. None where no number is so large.
pub(super) fn needed_bytes(bytes: u64, lead_bytes: u8, granularity: u64) -> Option<u64> {
    // The kernels read from any multiple of 8 bytes on.
    u64::from(lead_bytes & !7).checked_add(bytes.max(1))?.checked_next_multiple_of(granularity)
}

impl CudaRegion {
    /// Memory of our own, still writable.
    pub(super) fn allocate(shared: &Arc<Shared>, bytes: u64, lead_bytes: u8) -> Result<Self, DeviceError> {
        // The kernels read from any multiple of 8 bytes on.
        let lead = u64::from(lead_bytes & !7);
        let too_large = |needed_bytes| shared.ledger.insufficient(needed_bytes, 0);
        let needed = needed_bytes(bytes, lead_bytes, shared.granularity).ok_or_else(|| too_large(u64::MAX))?;
        // What an earlier region could not give back.
        shared.context.settle();
        let reservation = shared.ledger.reserve(needed, &shared.context)?;
        let mapped = Mapped::create(&shared.context, needed).map_err(|error| match error {
            CudaError::OutOfMemory { .. } => match shared.context.memory().unwrap_or_default() {
                // It says that there is enough, and refuses: that is for its own words.
                (free, _) if free >= needed => error.into(),
                (free, _) => shared.ledger.insufficient(needed, free),
            },
            other => other.into(),
        })?;
        Ok(Self::new(shared, Memory::Owned(mapped), Some(reservation), lead, bytes))
    }

    /// Memory of somebody else's.
    pub(super) fn adopt(shared: &Arc<Shared>, start: Address, bytes: u64) -> Result<Self, DeviceError> {
        let mut region = Self::new(shared, Memory::Adopted(start), None, 0, bytes);
        region.note_backing()?;
        region.shareable = residency::is_shareable(region.context(), &region.sealed(), shared.granularity)?;
        Ok(region)
    }

    fn new(shared: &Arc<Shared>, memory: Memory, reservation: Option<Reservation>, lead: u64, bytes: u64) -> Self {
        let speeds = Speeds::new(block_count(bytes), shared.launch_blocks as u64);
        let (repair, read_only) = (RwLock::new(()), AtomicBool::new(false));
        let shared = Arc::clone(shared);
        Self {
            memory,
            _reservation: reservation,
            shared,
            lead,
            bytes,
            block_ids: [None; 2],
            repair,
            closed: false,
            read_only,
            shareable: false,
            exported: OnceLock::new(),
            speeds,
        }
    }

    fn context(&self) -> &Context {
        &self.shared.context
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Keeps repairs out until the guard is dropped, once none is under way.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, ()> {
        self.repair.read_recursive()
    }

    /// The same, where none is under way now.
    pub(super) fn read_unless_repaired(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.repair.try_read_recursive()
    }

    /// A launch for blocks of this region alone was measured.
    pub(super) fn note_speed(&self, first_block: u64, blocks: u64, took: Duration) {
        self.speeds.note(first_block, blocks, took);
    }

    /// Where the region's first byte is.
    pub(super) fn start(&self) -> Address {
        match &self.memory {
            Memory::Owned(mapped) => mapped.start().plus(self.lead),
            Memory::Adopted(start) => *start,
        }
    }

    fn sealed(&self) -> Sealed {
        let owned = matches!(self.memory, Memory::Owned(_));
        Sealed { start: self.start(), bytes: self.bytes, owned, block_ids: self.block_ids }
    }

    /// Notes what the memory is backed by, and what the driver says about writes.
    fn note_backing(&mut self) -> Result<(), CudaError> {
        self.block_ids = residency::block_ids(self.context(), &self.sealed())?;
        let read_only = self.is_read_only()?;
        self.read_only.store(read_only, Ordering::Release);
        Ok(())
    }

    /// Whether the driver states that no byte of the region can be written by its device.
    fn is_read_only(&self) -> Result<bool, CudaError> {
        let Memory::Owned(mapped) = &self.memory else {
            return residency::is_read_only_throughout(self.context(), &self.sealed(), self.shared.granularity);
        };
        // One mapping, closed as a whole: its ends stand for it, and after a repair what was opened is asked about too.
        let last = self.start().plus(self.bytes.max(1).saturating_sub(1));
        for address in [self.start(), last] {
            if !residency::is_read_only(self.context(), address)? {
                return Ok(false);
            }
        }
        // A second way of asking.
        Ok(mapped.access(0)?.is_none_or(|flags| flags == Access::Read as u64))
    }

    /// No repair runs meanwhile. Reads what was slow once more: something else may have kept the device busy. What stays slow is suspected.
    fn suspected_paged(&self) -> Result<Option<SuspectedPaged>, CudaError> {
        let mut again = Ok(());
        self.speeds.for_each_slow(&mut |first| {
            let mut values = [BlockValue::UNKNOWN; MOST_LAUNCH_BLOCKS];
            let values = values.get_mut(..self.shared.launch_blocks).unwrap_or_default();
            if again.is_ok() {
                again = sweep::hash_blocks(self, first, values);
            }
        });
        again?;
        let mut found: Option<SuspectedPaged> = None;
        self.speeds.for_each_slow(&mut |first_block| {
            let blocks = found.map_or(0, |found| found.blocks).saturating_add(self.speeds.launch_blocks());
            found = Some(SuspectedPaged { first_block: found.map_or(first_block, |found| found.first_block), blocks });
        });
        Ok(found)
    }
}

impl StagedRegion for CudaRegion {
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        if values.len() as u64 != block_count(self.bytes) {
            return Err(DeviceError::OutOfRange { offset: 0, end: u64::MAX, region_bytes: self.bytes });
        }
        let shared = Arc::clone(&self.shared);
        let mut loader = shared.loader()?;
        let Some(loader) = loader.as_mut() else { return Err(DeviceError::WorkerPanicked) };
        let kernels = (&shared.kernels, shared.variant);
        // SAFETY: the region is staged, so writable, and `self` is borrowed mutably: nobody else uses it.
        unsafe { loader.fill(kernels, &shared.crew, (self.start(), self.bytes), source, values) }
    }

    fn protect(mut self: Box<Self>) -> Result<Box<dyn Region>, DeviceError> {
        if let Memory::Owned(mapped) = &self.memory {
            match mapped.seal() {
                Ok(()) => self.closed = true,
                Err(error) if error.is_lost() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "this driver does not make memory read-only; protection is advisory");
                }
            }
        }
        self.note_backing()?;
        Ok(self)
    }
}

impl Region for CudaRegion {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn residency(&self) -> Residency {
        Residency::Vram
    }

    fn protection(&self) -> Protection {
        // The driver's word, and what was shown of its worth.
        let shown = self.shared.facts.write_test.is_refused() && !self.shareable;
        if shown && self.read_only.load(Ordering::Acquire) { Protection::ReadOnly } else { Protection::Advisory }
    }

    fn check_memory(&self) -> Result<MemoryCheck, DeviceError> {
        let _no_repair = self.repair.read_recursive();
        let foreign = match self.shared.facts.integrated {
            true => Some(Foreign::Integrated),
            false => residency::examine(self.context(), &self.sealed())?,
        };
        let read_only = self.is_read_only()?;
        if !read_only {
            self.read_only.store(false, Ordering::Release);
        }
        let suspected_paged = self.suspected_paged()?;
        Ok(MemoryCheck { residency: self.residency(), protection: self.protection(), foreign, suspected_paged })
    }

    fn hash_blocks(&self, first: u64, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        check_blocks(first, values.len(), self.bytes)?;
        Ok(sweep::hash_blocks(self, first, values)?)
    }

    fn fingerprint(&self, key: &FingerprintKey) -> Result<Option<Fingerprint>, DeviceError> {
        let _no_repair = self.repair.read_recursive();
        let shared = &self.shared;
        let mut fingerprinter = shared.fingerprinter()?;
        let Some(fingerprinter) = fingerprinter.as_mut() else { return Ok(None) };
        let kernels = (&shared.kernels, shared.variant);
        // SAFETY: the region is mapped and readable for as long as `self` lives.
        let taken = unsafe { fingerprinter.take(kernels, (self.start(), self.bytes), key) }?;
        Ok(Some(taken))
    }

    /// Lends a copy: the processor cannot address the bytes.
    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        if range.start > range.end || range.end > self.bytes {
            return Err(DeviceError::OutOfRange { offset: range.start, end: range.end, region_bytes: self.bytes });
        }
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        // Weights stay nowhere but in their region.
        let mut copy = Zeroizing::new(Vec::new());
        let reserved = copy.try_reserve_exact(length);
        let out_of_memory = || self.shared.system("copy so many bytes to main memory", std::io::ErrorKind::OutOfMemory);
        reserved.map_err(|_| out_of_memory())?;
        copy.resize(length, 0);
        let _no_repair = self.repair.read_recursive();
        let from = self.start().plus(range.start);
        // SAFETY: inside the region, which is mapped and readable for as long as `self` lives.
        unsafe { self.shared.lanes.take().read(from, &mut copy) }?;
        look(&copy);
        Ok(())
    }

    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let range = check_range(offset, bytes.len(), self.bytes)?;
        if range.is_empty() {
            return Ok(());
        }
        let _alone = self.repair.write();
        let was_read_only = self.read_only.load(Ordering::Acquire);
        let window = match &self.memory {
            Memory::Owned(mapped) if self.closed => {
                Some(Window::open(mapped, self.lead.saturating_add(range.start), bytes.len() as u64, &self.shared)?)
            }
            // What is read-only by somebody else's will is not ours to open.
            Memory::Adopted(_) if was_read_only => {
                return Err(self.shared.refused("write to memory that another owns"));
            }
            _ => None,
        };
        let to = self.start().plus(range.start);
        // SAFETY: inside the region, writable for now; the guard keeps everybody else out.
        let written = unsafe { self.shared.lanes.take().write(to, bytes) };
        let Some(window) = window else { return Ok(written?) };
        let closed = window.close();
        // At the ends of the region, and at both ends of what was written, which may lie in two pages.
        let last = to.plus((bytes.len() as u64).saturating_sub(1));
        let is_read_only = |address| residency::is_read_only(self.context(), address);
        let checked = closed.and_then(|()| Ok(self.is_read_only()? && is_read_only(to)? && is_read_only(last)?));
        self.read_only.store(matches!(checked, Ok(true)), Ordering::Release);
        written?;
        match checked {
            Ok(read_only) if read_only || !was_read_only => Ok(()),
            Ok(_) => Err(self.shared.refused("make a region read-only after a repair")),
            Err(error) => Err(error.into()),
        }
    }

    fn export(&self) -> Result<Export, DeviceError> {
        let Memory::Owned(mapped) = &self.memory else { return Err(self.shared.unexportable()) };
        // Whoever has the descriptor can write, whatever this mapping allows: to whom it is given is for the caller to decide.
        let fd = mapped.export()?.ok_or_else(|| self.shared.unexportable())?;
        self.exported.get_or_init(Instant::now);
        Ok(Export::CudaAllocation { fd, bytes: mapped.bytes(), offset: self.lead, device: self.shared.info.uuid })
    }

    fn exported_for(&self) -> Option<Duration> {
        self.exported.get().map(Instant::elapsed)
    }
}

/// Pages that the device may write for the moment. Dropping it closes it as well, but tells nobody if that fails.
struct Window<'a> {
    mapped: &'a Mapped,
    offset: u64,
    bytes: u64,
    open: bool,
}

impl<'a> Window<'a> {
    /// Opens the pages that hold a range of the mapping; where the driver only takes whole mappings, all of them.
    fn open(mapped: &'a Mapped, start: u64, bytes: u64, shared: &Shared) -> Result<Self, CudaError> {
        let page = shared.granularity;
        let offset = start.saturating_sub(start.checked_rem(page).unwrap_or(0));
        let end = start.saturating_add(bytes).checked_next_multiple_of(page).unwrap_or(u64::MAX).min(mapped.bytes());
        let part = end.saturating_sub(offset);
        let (offset, bytes) = match mapped.set_access(offset, part, Access::ReadWrite) {
            Ok(()) => (offset, part),
            Err(error) if error.is_lost() => return Err(error),
            Err(_) => {
                mapped.set_access(0, mapped.bytes(), Access::ReadWrite)?;
                (0, mapped.bytes())
            }
        };
        Ok(Self { mapped, offset, bytes, open: true })
    }

    fn close(mut self) -> Result<(), CudaError> {
        let closed = self.mapped.set_access(self.offset, self.bytes, Access::Read);
        self.open = closed.is_err();
        closed
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if self.open {
            let _ = self.mapped.set_access(self.offset, self.bytes, Access::Read);
        }
    }
}
