//! What is handed out cannot be written: every way that a client has is tried on the descriptor that he was given.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod support;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};
use support::Home;
use support::attach::Raw;
use support::daemon::Daemon;

const PAGE: usize = 4096;

fn map(file: &File, access: ProtFlags, flags: MapFlags) -> Result<*mut std::ffi::c_void, Errno> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { mmap(std::ptr::null_mut(), PAGE, access, flags, file.as_fd(), 0) }
}

/// Every write through this descriptor, each of which the kernel must refuse.
fn try_everything(file: &File) {
    let refused = |what: &str, answer: std::io::Result<()>| {
        let error = answer.expect_err(what).raw_os_error().unwrap();
        assert!(
            [libc_eperm(), Errno::BADF.raw_os_error(), Errno::INVAL.raw_os_error()].contains(&error),
            "{what}: {error}"
        );
    };
    refused("write", file.write_at(&[0xff], 300).map(drop));
    refused("shrink", file.set_len(0));
    refused("grow", file.set_len(64 << 20));
    for flags in [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE] {
        let answer = rustix::fs::fallocate(file, flags, 0, PAGE as u64);
        assert!(matches!(answer, Err(Errno::PERM | Errno::BADF | Errno::NOTSUP)), "fallocate {flags:?}: {answer:?}");
    }
    assert!(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE).is_err(), "even a further seal");
    let shared = map(file, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    assert!(matches!(shared, Err(Errno::PERM | Errno::ACCESS)), "a writable mapping: {shared:?}");

    let reader = map(file, ProtFlags::READ, MapFlags::SHARED).unwrap();
    // SAFETY: the page was just mapped and nobody refers to it.
    let answer = unsafe { mprotect(reader, PAGE, MprotectFlags::READ | MprotectFlags::WRITE) };
    assert_eq!(answer, Err(Errno::ACCESS), "mprotect");
    // SAFETY: as above; where it were granted it would throw pages away.
    let answer = unsafe { rustix::mm::madvise(reader, PAGE, rustix::mm::Advice::LinuxRemove) };
    assert!(answer.is_err(), "madvise");
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
    assert!(memory.write_at(&[0xff], reader as u64).is_err(), "/proc/self/mem");
    // SAFETY: as above.
    unsafe { munmap(reader, PAGE) }.unwrap();
}

fn libc_eperm() -> i32 {
    Errno::PERM.raw_os_error()
}

/// What the kernel lets root do to a file that he opened for writing, and the seals do not mind: none of it changes a byte.
fn try_what_is_harmless(file: &File) {
    let before = file.metadata().unwrap().len();
    let keep = FallocateFlags::KEEP_SIZE;
    // Room for pages that are there already.
    for flags in [keep, FallocateFlags::empty()] {
        rustix::fs::fallocate(file, flags, 0, PAGE as u64).unwrap();
        assert_eq!(
            rustix::fs::fallocate(file, flags, before, PAGE as u64),
            Err(Errno::PERM),
            "{flags:?} behind the end"
        );
    }
    assert_eq!(file.metadata().unwrap().len(), before);
}

/// What whoever has the descriptor can do with it beside reading.
fn try_what_is_beside_the_bytes(file: &File, other: &File) {
    let is_root = rustix::process::geteuid().is_root();
    let set = rustix::fs::fsetxattr(file, "trusted.vram", b"v", rustix::fs::XattrFlags::empty());
    assert_eq!(set.is_ok(), is_root, "attributes are root's: {set:?}");
    // Locks are of this file, and nobody here waits for one.
    let lock = |file: &File| rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    lock(file).unwrap();
    assert_eq!(lock(other), Err(Errno::WOULDBLOCK), "one client's lock is seen by another");
}

#[test]
fn a_client_cannot_write_by_any_way_there_is() {
    let home = Home::new();
    let daemon = Daemon::start(&home, &[]);
    let mut raw = Raw::greeted(&daemon.attach());
    let (attached, file) = raw.attach("big-bin");
    let file = File::from(file);
    assert_eq!(attached["offset"], 0, "a raw file begins where the memory begins");
    let mut before = vec![0; 5 << 19];
    file.read_exact_at(&mut before, 0).unwrap();
    assert_eq!(before, std::fs::read(home.path("big.bin")).unwrap());

    try_everything(&file);
    // Opened anew for writing: refused by the file's mode; where root passes that, by the seals.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    match OpenOptions::new().read(true).write(true).open(&link) {
        Ok(writable) => {
            assert!(rustix::process::geteuid().is_root(), "only root may open it");
            try_everything(&writable);
            try_what_is_harmless(&writable);
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}"),
    }
    let truncating = OpenOptions::new().write(true).truncate(true).open(&link);
    assert!(truncating.is_err(), "not even by opening it");

    // A private copy is no write: nobody else sees it.
    let copy = map(&file, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).unwrap();
    // SAFETY: a private page of this process, to which nothing else refers.
    unsafe { copy.cast::<u8>().write(!before[0]) };
    // SAFETY: as above.
    unsafe { munmap(copy, PAGE) }.unwrap();

    let (_, second) = raw.attach("big-bin");
    try_what_is_beside_the_bytes(&file, &File::from(second));
    let mut after = vec![0; 5 << 19];
    file.read_exact_at(&mut after, 0).unwrap();
    assert_eq!(before, after);
    assert_eq!(daemon.ask(&["verify", "big-bin"]).code, 0);
    // Each attach is an open file of its own: what one client does to it does not meet the others.
    let (_, other) = raw.attach("big-bin");
    std::io::Seek::seek(&mut &file, std::io::SeekFrom::Start(77)).unwrap();
    assert_eq!(std::io::Seek::stream_position(&mut &File::from(other)).unwrap(), 0);
}
