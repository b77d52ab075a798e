//! Memory that another process handed out, mapped for reading.

use std::ffi::c_void;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A read-only mapping of a sealed memory file. It keeps the memory alive, whoever made it.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    mapped: usize,
    offset: usize,
    length: usize,
}

/// No addresses.
impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("bytes", &self.bytes().len()).finish_non_exhaustive()
    }
}

// SAFETY: the mapping belongs to this value alone, is read-only and is as valid on any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; nobody in this process can write through it.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of a memory file from `offset` on. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// Where the file is no memory file that is sealed against shrinking, growing and further writing, where it is too
    /// short, or where the kernel refuses.
    pub(crate) fn new(file: &OwnedFd, offset: u64, bytes: u64) -> io::Result<Self> {
        let refuse = |what: &'static str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let wanted = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        // Without these a byte could vanish below a reader, who would be killed.
        if !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(wanted)) {
            return refuse("what was handed out is no sealed memory file");
        }
        let end = offset.checked_add(bytes).filter(|end| *end <= u64::try_from(i64::MAX).unwrap_or(0));
        let length = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
        let (Some(end), true) = (end, end.is_some_and(|end| end <= length)) else {
            return refuse("what was handed out is shorter than the shard");
        };
        let sizes = (usize::try_from(end.max(1)), usize::try_from(offset), usize::try_from(bytes));
        let (Ok(mapped), Ok(offset), Ok(length)) = sizes else {
            return refuse("the shard is larger than what this process can address");
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody's.
        let base = unsafe { mmap(std::ptr::null_mut(), mapped, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        let mapping = Self { base, mapped, offset, length };
        // SAFETY: this advice changes no bytes of the mapping, which this value owns.
        let _ = unsafe { madvise(mapping.start(), mapped, Advice::LinuxDontDump) };
        Ok(mapping)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let first = self.base.as_ptr().wrapping_add(self.offset);
        // SAFETY: the range is inside the mapping, which lives as long as `self`. The seals keep the file's length and
        // rule out every writer but the one who made the file, and that one writes only what it must repair: bytes that
        // are not those that were sealed and that nobody can rely on.
        unsafe { std::slice::from_raw_parts(first, self.length) }
    }

    fn start(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and every slice into it has borrowed this value.
        let _ = unsafe { munmap(self.start(), self.mapped) };
    }
}
