//! A sealable memory file, mapped once: writable, then read-only, with a window for repairs.
//!
//! `memfd_create` → `ftruncate` → `mmap` shared, writable → fill → `F_ADD_SEALS` (no further writable mapping, no
//! shrinking, no growing, no further seals) → `mprotect` read-only. From then on nobody can map the file for writing
//! any more, and this process writes only through the mapping it already has, page by page, while a repair runs.
//!
//! Two mappings are older than the seals and stay out of their reach: one that a process with the right to open
//! `/proc/PID/fd` made while the region was filled, and the one that a child inherits by `fork` without `exec`.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fchmod, fcntl_add_seals, ftruncate, memfd_create, open};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags, madvise, mlock_with, mmap, mprotect, munmap};

use super::{DeviceError, DeviceKind, HugePages, Locking};

/// The mapping of one memory file.
pub(super) struct Memory {
    /// Page-aligned start of the mapping.
    base: NonNull<u8>,
    mapped: usize,
    /// Bytes in front of the region's first byte.
    lead: usize,
    bytes: usize,
    locked: bool,
    file: OwnedFd,
}

/// No addresses.
impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).field("locked", &self.locked).finish_non_exhaustive()
    }
}

// SAFETY: the mapping belongs to this value alone and is as valid on any thread; who may read or write it when is the
// contract of `slice` and `slice_mut`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Bytes that a region takes in the device: whole pages, at least one.
pub(super) fn mapped_bytes(bytes: u64, lead_bytes: u8) -> u64 {
    let page = rustix::param::page_size() as u64;
    bytes.saturating_add(lead_bytes.into()).max(1).checked_next_multiple_of(page).unwrap_or(u64::MAX)
}

fn refused(step: &'static str) -> impl FnOnce(Errno) -> DeviceError {
    move |errno| DeviceError::System { device: DeviceKind::Host.as_str().into(), step, source: Arc::new(errno.into()) }
}

impl Memory {
    pub(super) fn create(
        bytes: u64,
        lead_bytes: u8,
        locking: Locking,
        huge_pages: HugePages,
    ) -> Result<Self, DeviceError> {
        let (Ok(mapped), Ok(length)) = (usize::try_from(mapped_bytes(bytes, lead_bytes)), usize::try_from(bytes))
        else {
            return Err(refused("address so large a region")(Errno::NOMEM));
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know NOEXEC_SEAL and refuse it.
        let file = memfd_create(c"vram-region", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create(c"vram-region", flags))
            .map_err(refused("create a memory file"))?;
        ftruncate(&file, mapped as u64).map_err(refused("size a memory file"))?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody's.
        let base = unsafe { mmap(std::ptr::null_mut(), mapped, access, MapFlags::SHARED, &file, 0) };
        let base = base.map_err(refused("map a memory file"))?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(refused("map a memory file")(Errno::FAULT));
        };
        let mut memory = Self { base, mapped, lead: lead_bytes.into(), bytes: length, locked: false, file };
        memory.advise(Advice::LinuxDontDump).map_err(refused("keep a region out of core dumps"))?;
        if huge_pages == HugePages::Ask {
            // A kernel without them says so; small pages serve as well, only more slowly.
            let _ = memory.advise(Advice::LinuxHugepage);
        }
        if locking == Locking::WhereAllowed {
            // Locking ahead of the first touch costs nothing extra; locking afterwards walks every page again.
            // SAFETY: locking changes no bytes of the mapping, which this value owns.
            let answer = unsafe { mlock_with(memory.start(), mapped, MlockFlags::ONFAULT) };
            memory.locked = answer.is_ok();
        }
        Ok(memory)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(super) fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of the file in front of the region's first byte.
    pub(super) fn lead(&self) -> u64 {
        self.lead as u64
    }

    /// The same file, opened anew, for reading only.
    pub(super) fn reopen_read_only(&self) -> Result<OwnedFd, DeviceError> {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        // A lease that somebody took on the file (F_SETLEASE) is no reason to wait for him.
        open(link, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(refused("open a memory file for reading"))
    }

    /// Makes the file and the mapping read-only.
    pub(super) fn seal(&self) -> Result<(), DeviceError> {
        let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&self.file, seals).map_err(refused("seal a memory file"))?;
        // Beside the seals: whoever is handed the file cannot even open it for writing, unless it is his or he is root.
        fchmod(&self.file, Mode::RUSR).map_err(refused("close a memory file to others"))?;
        // SAFETY: this is the whole mapping of this value; from now on nothing writes through it but `Window`s.
        let answer = unsafe { mprotect(self.start(), self.mapped, MprotectFlags::READ) };
        answer.map_err(refused("make a region read-only"))
    }

    /// Has the kernel provide the pages of a range of the still writable region all at once: that is cheaper than one
    /// fault for each page, and where memory runs out it is an error instead of a signal.
    pub(super) fn populate(&self, range: Range<u64>) -> Result<(), DeviceError> {
        let (start, length) = self.pages(range);
        // SAFETY: the pages are inside the mapping, and populating them changes no bytes.
        let answer =
            unsafe { madvise(self.base.as_ptr().wrapping_add(start).cast(), length, Advice::LinuxPopulateWrite) };
        match answer {
            // Kernels before 5.14 do not know it; the faults do the same, one by one.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(refused("provide memory for a region")(errno)),
        }
    }

    /// Makes the pages that hold `range` writable until the window is closed.
    pub(super) fn open_window(&self, range: Range<u64>) -> Result<Window<'_>, DeviceError> {
        let (start, length) = self.pages(range);
        let window = Window { memory: self, start, length };
        window.protect(MprotectFlags::READ | MprotectFlags::WRITE, "open a region for repair")?;
        Ok(window)
    }

    /// The bytes of a range of the region.
    ///
    /// # Safety
    /// Nobody writes to the range while the slice lives.
    pub(super) unsafe fn slice(&self, range: Range<u64>) -> &[u8] {
        let (start, length) = self.locate(range);
        // SAFETY: `locate` keeps the range inside the mapping, which lives as long as `self`; memory files read as
        // zeros where nothing was written; the caller keeps writers out.
        unsafe { std::slice::from_raw_parts(start, length) }
    }

    /// The bytes of a range of the region, to write.
    ///
    /// # Safety
    /// Nobody else has a reference into the range while the slice lives, and its pages are writable.
    #[expect(clippy::mut_from_ref, reason = "distinct blocks are written by several threads at once")]
    pub(super) unsafe fn slice_mut(&self, range: Range<u64>) -> &mut [u8] {
        let (start, length) = self.locate(range);
        // SAFETY: as in `slice`; the caller keeps everybody else out.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }

    /// Address and length of a range, cut to the region.
    fn locate(&self, range: Range<u64>) -> (*mut u8, usize) {
        let start = self.offset(range.start);
        let end = self.offset(range.end).max(start);
        (self.base.as_ptr().wrapping_add(start), end.saturating_sub(start))
    }

    /// Where a byte of the region is in the mapping, at most the region's end.
    fn offset(&self, byte: u64) -> usize {
        let byte = usize::try_from(byte).map_or(self.bytes, |byte| byte.min(self.bytes));
        self.lead.saturating_add(byte)
    }

    /// The whole pages of the mapping that hold a range of the region: where they start, and their length.
    fn pages(&self, range: Range<u64>) -> (usize, usize) {
        let page = rustix::param::page_size();
        let first = self.offset(range.start);
        let last = self.offset(range.end);
        let start = first.checked_rem(page).map_or(first, |over| first.saturating_sub(over));
        let end = last.checked_next_multiple_of(page).map_or(self.mapped, |end| end.min(self.mapped));
        (start, end.saturating_sub(start))
    }

    fn start(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: both kinds of advice used here change no bytes of the mapping, which this value owns.
        unsafe { madvise(self.start(), self.mapped, advice) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and every slice into it has borrowed this value.
        let _ = unsafe { munmap(self.start(), self.mapped) };
    }
}

/// Pages that are writable for the moment. Dropping it closes it as well, but tells nobody if that fails.
#[derive(Debug)]
pub(super) struct Window<'a> {
    memory: &'a Memory,
    start: usize,
    length: usize,
}

impl Window<'_> {
    /// Makes the pages read-only again.
    pub(super) fn close(self) -> Result<(), DeviceError> {
        self.protect(MprotectFlags::READ, "make a region read-only after a repair")
    }

    fn protect(&self, access: MprotectFlags, step: &'static str) -> Result<(), DeviceError> {
        let start = self.memory.base.as_ptr().wrapping_add(self.start);
        // SAFETY: `open_window` keeps the pages inside the mapping; the repair lock keeps other users out of them.
        unsafe { mprotect(start.cast(), self.length, access) }.map_err(refused(step))
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        let _ = self.protect(MprotectFlags::READ, "close");
    }
}

/// Tries to read one byte of `/dev/zero` into a mapping, as a stray write of somebody else's would, and reports what
/// the MMU says. The kernel answers for it, so the process survives.
pub(super) fn stray_write(memory: &Memory) -> io::Result<()> {
    let zeros = std::fs::File::open("/dev/zero")?;
    // SAFETY: one byte inside the mapping; where the page is read-only the kernel answers EFAULT and writes nothing.
    let answer = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zeros), memory.start(), 1) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
