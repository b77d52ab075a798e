//! What "read-only" means on `host`: each ordinary way to write to a sealed region is tried, and refused by the kernel.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used
)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use support::{host, id, manager_with};
use vram_residency::audit::AuditTrail;
use vram_residency::digest::Digest;
use vram_residency::{Policy, SealedShard, VramManager};

const STRAY: &str = "VRAM_TEST_STRAY_STORE";

/// The tests of this process look at all of its memory: one at a time, so that no other's region is half-made.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sealed() -> (VramManager, SealedShard) {
    let manager = manager_with(host(16 << 20), AuditTrail::off(), Policy::default());
    let shard = manager.seal_model(id("shard"), "model", &[0x5a; 300_000]).unwrap();
    (manager, shard)
}

/// The memory files of this process's regions, opened anew for writing.
fn reopened() -> Vec<File> {
    let links = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let regions =
        links.filter(|link| fs::read_link(link).is_ok_and(|to| to.starts_with("/memfd:vram-region (deleted)")));
    let open = |link| {
        // As their owner may: the mode alone does not protect them.
        fs::set_permissions(&link, fs::Permissions::from_mode(0o600)).unwrap();
        OpenOptions::new().read(true).write(true).open(link).unwrap()
    };
    regions.map(open).collect()
}

#[test]
fn a_memory_file_can_neither_be_written_nor_resized_nor_mapped_for_writing() {
    let _alone = alone();
    let (manager, shard) = sealed();
    let files = reopened();
    assert!(!files.is_empty());
    let denied = |answer: std::io::Result<()>| answer.unwrap_err().raw_os_error() == Some(libc::EPERM);
    for file in files {
        assert!(denied(file.write_at(&[1], 0).map(drop)), "pwrite");
        assert!(denied(file.set_len(0)), "shrink");
        assert!(denied(file.set_len(10 << 20)), "grow");
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(&file, hole, 0, 4096), Err(Errno::PERM), "punch a hole");
        let map = |access| {
            // SAFETY: a new mapping where the kernel likes it.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, access, MapFlags::SHARED, file.as_fd(), 0) }
        };
        assert_eq!(map(ProtFlags::READ | ProtFlags::WRITE), Err(Errno::PERM), "map for writing");
        let reader = map(ProtFlags::READ).expect("reading is what it is for");
        // SAFETY: the page was just mapped, and nothing refers to it.
        let answer = unsafe { rustix::mm::mprotect(reader, 4096, MprotectFlags::READ | MprotectFlags::WRITE) };
        assert_eq!(answer, Err(Errno::ACCESS), "make a reader's mapping writable");
        // SAFETY: as above.
        unsafe { rustix::mm::munmap(reader, 4096) }.unwrap();
    }
    manager.verify_sealed(&shard).unwrap();
}

#[test]
fn writing_through_proc_self_mem_is_refused() {
    let _alone = alone();
    let (manager, shard) = sealed();
    let address = shard.with_bytes(0..1, |bytes| bytes.as_ptr() as u64).unwrap();
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    assert!(memory.write_at(&[0], address).is_err());
    manager.verify_sealed(&shard).unwrap();
}

/// The test runs itself in a child process that stores into its sealed region.
#[test]
fn a_stray_store_of_this_process_kills_it_instead_of_changing_a_weight() {
    if std::env::var_os(STRAY).is_some() {
        let (_manager, shard) = sealed();
        let address = shard.with_bytes(1000..1001, |bytes| bytes.as_ptr().cast_mut()).unwrap();
        // SAFETY: none; that is the point. The page is read-only, and the process ends here.
        unsafe { address.write_volatile(0) };
        std::process::exit(0);
    }
    let name = "a_stray_store_of_this_process_kills_it_instead_of_changing_a_weight";
    let child =
        Command::new(std::env::current_exe().unwrap()).args([name, "--exact"]).env(STRAY, "1").output().unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{child:?}");
}

/// Flags of the mapping that holds an address, as the kernel prints them: `dd` is "not in core dumps", `wr` writable.
fn flags_at(address: u64) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
            let parse = |hex| u64::from_str_radix(hex, 16);
            if let (Ok(start), Ok(end)) = (parse(start), parse(end)) {
                inside = (start..end).contains(&address);
            }
        }
        if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping holds {address:x}")
}

#[test]
fn a_region_is_not_in_core_dumps_not_writable_and_locked_where_it_says_so() {
    let _alone = alone();
    let (manager, shard) = sealed();
    let address = shard.with_bytes(0..1, |bytes| bytes.as_ptr() as u64).unwrap();
    let check = || {
        let flags = flags_at(address);
        let has = |flag: &str| flags.iter().any(|had| had == flag);
        assert!(has("dd") && has("rd") && !has("wr"), "{flags:?}");
        assert_eq!(has("lo"), shard.residency() == vram_residency::device::Residency::HostLocked, "{flags:?}");
    };
    check();
    // A repair opens the page for a moment and leaves everything as it was.
    manager.inject_fault(&shard, 5000, 3).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    manager.repair(&shard, &[0x5a; 300_000].as_slice()).unwrap();
    check();
    assert_eq!(shard.digest(), Digest::of(&[0x5a; 300_000]));
}
