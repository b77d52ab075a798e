//! Shows, with one page, that sealed memory cannot be written by any of the ordinary ways.

use rustix::fs::ftruncate;
use rustix::io::{Errno, pwrite};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

use super::memory::{self, Memory};
use super::{DeviceError, HugePages, Locking, Protection};

/// What stops a write to sealed memory on this kernel.
pub(super) fn protection() -> Result<Protection, DeviceError> {
    let page = rustix::param::page_size();
    let memory = Memory::create(page.saturating_mul(2) as u64, 0, Locking::Never, HugePages::Never)?;
    memory.seal()?;
    Ok(protection_of(&memory))
}

/// Tries to write to two pages of zeros in each way, and says what was refused.
fn protection_of(memory: &Memory) -> Protection {
    let page = rustix::param::page_size();
    let writes = [
        ("a store through the owner's mapping", memory::stray_write(memory).is_err()),
        ("a write to the file", pwrite(memory.file(), &[1], 1).is_err()),
        ("a second, writable mapping", map(memory, page, ProtFlags::READ | ProtFlags::WRITE, false).is_err()),
        ("a read-only mapping made writable", map(memory, page, ProtFlags::READ, true).is_err()),
    ];
    // SAFETY: nothing writes to the pages: every attempt above is over.
    let unchanged = unsafe { memory.slice(0..1) } == [0];
    let sizes = [
        ("growing the file", ftruncate(memory.file(), page.saturating_mul(3) as u64).is_err()),
        ("shrinking the file", ftruncate(memory.file(), page as u64).is_err()),
    ];
    let mut holds = unchanged;
    for (attempt, refused) in writes.into_iter().chain(sizes) {
        if !refused {
            tracing::warn!(attempt, "sealed memory could be written; protection is advisory");
            holds = false;
        }
    }
    if holds { Protection::ReadOnly } else { Protection::Advisory }
}

/// Maps the sealed file again and, if asked, tries to make that mapping writable.
fn map(memory: &Memory, page: usize, access: ProtFlags, then_writable: bool) -> Result<(), Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody's.
    let base = unsafe { mmap(std::ptr::null_mut(), page, access, MapFlags::SHARED, memory.file(), 0) }?;
    // SAFETY: the page was mapped above and is used by nobody.
    let answer = if then_writable { unsafe { mprotect(base, page, MprotectFlags::WRITE) } } else { Ok(()) };
    // SAFETY: as above; nothing refers to it.
    let _ = unsafe { munmap(base, page) };
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_can_be_written_is_called_advisory() {
        let page = rustix::param::page_size();
        let memory = Memory::create(page.saturating_mul(2) as u64, 0, Locking::Never, HugePages::Never).unwrap();
        assert_eq!(protection_of(&memory), Protection::Advisory, "nothing was sealed");
        assert_eq!(protection().unwrap(), Protection::ReadOnly);
    }
}
