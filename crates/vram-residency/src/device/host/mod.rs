//! The `host` device: sealed, locked, read-only main memory.
//!
//! A real device, not a stand-in for a GPU: it serves CPU inference, laptops and continuous integration, and says
//! what it is. Its residency is `host-locked` or `host-pageable`, never "VRAM".

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::crew::{Crew, Panicked};
use super::{
    Capacity, Device, DeviceError, DeviceInfo, DeviceKind, Export, Fill, Protection, Region, Residency, StagedRegion,
    check_blocks, check_range,
};
use crate::digest::{BlockValue, block_count, block_range, block_value};
use facts::MemoryMeter;
use memory::Memory;

mod facts;
mod memory;
mod self_test;

pub use facts::MemoryFacts;

/// Whether regions are locked into main memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Locking {
    /// Lock where the limit (`RLIMIT_MEMLOCK`) allows, else stay pageable and say so.
    #[default]
    WhereAllowed,
    /// Never lock.
    Never,
}

/// Whether regions ask the kernel for huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HugePages {
    /// Ask for transparent huge pages; the kernel's `shmem_enabled` setting decides.
    #[default]
    Ask,
    /// Do not ask.
    Never,
}

/// How a [`HostDevice`] is set up.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct HostOptions {
    /// Most bytes that regions may take together; none: what the machine has available when the device is opened,
    /// less some headroom. Either way no region is given more than the machine has left at that moment.
    pub capacity_bytes: Option<u64>,
    /// Threads that copy and hash; none: one for each processor that this process may use.
    pub threads: Option<usize>,
    /// Whether regions are locked.
    pub locking: Locking,
    /// Whether regions ask for huge pages.
    pub huge_pages: HugePages,
}

/// Main memory as a device.
#[derive(Debug)]
pub struct HostDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: DeviceInfo,
    capacity_bytes: u64,
    /// Free memory is measured again before each allocation.
    meter: MemoryMeter,
    ledger: Mutex<Ledger>,
    protection: Protection,
    locking: Locking,
    huge_pages: HugePages,
    crew: Crew,
}

/// What is promised to regions.
#[derive(Debug, Default)]
struct Ledger {
    /// Bytes reserved.
    used_bytes: u64,
    /// Those of them that the kernel has yet to provide: they still count as free with it.
    owed_bytes: u64,
}

impl HostDevice {
    /// Opens main memory as a device and shows with a page of it whether sealed memory is really read-only.
    ///
    /// # Errors
    /// [`DeviceError::System`] where the kernel has no sealable memory files or its facts cannot be read.
    pub fn open(options: HostOptions) -> Result<Self, DeviceError> {
        let meter = MemoryMeter::open()?;
        let capacity_bytes = match options.capacity_bytes {
            Some(bytes) => bytes,
            None => meter.measure()?.usable_bytes(),
        };
        let threads = match options.threads {
            Some(threads) => threads.max(1),
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let protection = self_test::protection()?;
        tracing::debug!(capacity_bytes, threads, %protection, "host device opened");
        Ok(Self {
            shared: Arc::new(Shared {
                info: DeviceInfo { kind: DeviceKind::Host, uuid: facts::machine_uuid() },
                capacity_bytes,
                meter,
                ledger: Mutex::default(),
                protection,
                locking: options.locking,
                huge_pages: options.huge_pages,
                crew: Crew::new(threads),
            }),
        })
    }

    /// What the self-test showed about writes to sealed memory.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.shared.protection
    }

    /// Threads that copy and hash.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.crew.threads()
    }
}

impl Device for HostDevice {
    fn info(&self) -> DeviceInfo {
        self.shared.info
    }

    fn capacity(&self) -> Capacity {
        Capacity { total_bytes: self.shared.capacity_bytes, used_bytes: self.shared.ledger.lock().used_bytes }
    }

    fn needed_bytes(&self, bytes: u64, lead_bytes: u8) -> u64 {
        memory::mapped_bytes(bytes, lead_bytes)
    }

    fn allocate(&self, bytes: u64, lead_bytes: u8) -> Result<Box<dyn StagedRegion>, DeviceError> {
        let needed_bytes = memory::mapped_bytes(bytes, lead_bytes);
        let reservation = Reservation::take(&self.shared, needed_bytes)?;
        let memory = Memory::create(bytes, lead_bytes, self.shared.locking, self.shared.huge_pages)?;
        Ok(Box::new(HostRegion { memory, repair: RwLock::new(()), protected: AtomicBool::new(false), reservation }))
    }
}

/// Bytes of the device's capacity, given back when dropped.
#[derive(Debug)]
struct Reservation {
    device: Arc<Shared>,
    bytes: u64,
    /// Those of them that the kernel has yet to provide.
    owed_bytes: AtomicU64,
}

impl Reservation {
    fn take(device: &Arc<Shared>, bytes: u64) -> Result<Self, DeviceError> {
        let mut ledger = device.ledger.lock();
        // The capacity is a limit and no promise: what the machine has left decides as well. Better refused than killed
        // half-way.
        let free_bytes = device.meter.measure()?.usable_bytes().saturating_sub(ledger.owed_bytes);
        let available_bytes = device.capacity_bytes.saturating_sub(ledger.used_bytes).min(free_bytes);
        if bytes > available_bytes {
            return Err(DeviceError::InsufficientMemory {
                device: DeviceKind::Host.as_str().into(),
                needed_bytes: bytes,
                available_bytes,
                total_bytes: device.capacity_bytes,
            });
        }
        ledger.used_bytes = ledger.used_bytes.saturating_add(bytes);
        ledger.owed_bytes = ledger.owed_bytes.saturating_add(bytes);
        Ok(Self { device: Arc::clone(device), bytes, owed_bytes: AtomicU64::new(bytes) })
    }

    /// The kernel has provided `bytes` of it, or all.
    fn provided(&self, bytes: u64) {
        let mut ledger = self.device.ledger.lock();
        let owed = self.owed_bytes.load(Ordering::Relaxed);
        let provided = bytes.min(owed);
        self.owed_bytes.store(owed.saturating_sub(provided), Ordering::Relaxed);
        ledger.owed_bytes = ledger.owed_bytes.saturating_sub(provided);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.provided(u64::MAX);
        let mut ledger = self.device.ledger.lock();
        ledger.used_bytes = ledger.used_bytes.saturating_sub(self.bytes);
    }
}

/// One region, in both of its stages.
#[derive(Debug)]
struct HostRegion {
    // Dropped in this order: the memory is gone before its bytes count as free.
    memory: Memory,
    /// Held for reading by whoever looks at the bytes, and again by who looks at more of them meanwhile; for writing by
    /// a repair.
    repair: RwLock<()>,
    /// Whether the mapping is read-only.
    protected: AtomicBool,
    reservation: Reservation,
}

impl HostRegion {
    fn device(&self) -> &Shared {
        &self.reservation.device
    }
}

impl StagedRegion for HostRegion {
    fn fill(&mut self, source: &dyn Fill, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        let bytes = self.memory.bytes();
        if values.len() as u64 != block_count(bytes) {
            return Err(DeviceError::OutOfRange { offset: 0, end: u64::MAX, region_bytes: bytes });
        }
        let failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let fail = |error: DeviceError| {
            failed.store(true, Ordering::Relaxed);
            source.abandon();
            failure.lock().get_or_insert(error);
        };
        let (memory, reservation) = (&self.memory, &self.reservation);
        let fill_block = |index: usize, value: &mut BlockValue| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let range = block_range(bytes, index as u64);
            if let Err(error) = memory.populate(range.clone()) {
                return fail(error);
            }
            reservation.provided(range.end.saturating_sub(range.start));
            // SAFETY: the region is staged and `self` is borrowed mutably, so nobody else has a reference into it but
            // the other calls of this closure, and those are for other blocks.
            let block = unsafe { memory.slice_mut(range.clone()) };
            if let Err(error) = source.fill(range.start, block) {
                return fail(DeviceError::Source { offset: range.start, source: error.into() });
            }
            // The copy is in the cache now, and the digest must be of what arrived.
            match block_value(bytes, index as u64, block) {
                Some(computed) => *value = computed,
                None => fail(DeviceError::WorkerPanicked),
            }
        };
        self.device().crew.for_each_mut(values, &fill_block).map_err(|Panicked| DeviceError::WorkerPanicked)?;
        self.reservation.provided(u64::MAX);
        match failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn protect(self: Box<Self>) -> Result<Box<dyn Region>, DeviceError> {
        self.memory.seal()?;
        self.protected.store(true, Ordering::Release);
        Ok(self)
    }
}

impl Region for HostRegion {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn residency(&self) -> Residency {
        if self.memory.is_locked() { Residency::HostLocked } else { Residency::HostPageable }
    }

    fn protection(&self) -> Protection {
        if self.protected.load(Ordering::Acquire) { self.device().protection } else { Protection::Advisory }
    }

    fn hash_blocks(&self, first: u64, values: &mut [BlockValue]) -> Result<(), DeviceError> {
        let bytes = self.memory.bytes();
        check_blocks(first, values.len(), bytes)?;
        let _no_repair = self.repair.read_recursive();
        let memory = &self.memory;
        let failed = AtomicBool::new(false);
        let hash_block = |index: usize, value: &mut BlockValue| {
            let index = first.saturating_add(index as u64);
            // SAFETY: the region is protected, so only `rewrite` writes to it, and the guard keeps that out.
            let block = unsafe { memory.slice(block_range(bytes, index)) };
            match block_value(bytes, index, block) {
                Some(computed) => *value = computed,
                None => failed.store(true, Ordering::Relaxed),
            }
        };
        let done = self.device().crew.for_each_mut(values, &hash_block);
        if done.is_err() || failed.into_inner() { Err(DeviceError::WorkerPanicked) } else { Ok(()) }
    }

    fn view(&self, range: Range<u64>, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        let bytes = self.memory.bytes();
        if range.start > range.end || range.end > bytes {
            return Err(DeviceError::OutOfRange { offset: range.start, end: range.end, region_bytes: bytes });
        }
        let _no_repair = self.repair.read_recursive();
        // SAFETY: the region is protected, so only `rewrite` writes to it, and the guard keeps that out until `look`
        // has returned; the slice cannot outlive the call.
        look(unsafe { self.memory.slice(range) });
        Ok(())
    }

    fn rewrite(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let range = check_range(offset, bytes.len(), self.memory.bytes())?;
        if range.is_empty() {
            return Ok(());
        }
        let _alone = self.repair.write();
        let opened = self.memory.open_window(range.clone())?;
        // SAFETY: the guard keeps every reader out, and the window over this range is writable.
        unsafe { self.memory.slice_mut(range) }.copy_from_slice(bytes);
        opened.close().inspect_err(|_| self.protected.store(false, Ordering::Release))
    }

    fn export(&self) -> Result<Export, DeviceError> {
        let step = "hand out a region that is not read-only";
        if self.protection() != Protection::ReadOnly {
            return Err(DeviceError::System {
                device: DeviceKind::Host.as_str().into(),
                step,
                source: Arc::new(std::io::ErrorKind::PermissionDenied.into()),
            });
        }
        Ok(Export::MemoryFile { file: self.memory.reopen_read_only()?, offset: self.memory.lead() })
    }
}
