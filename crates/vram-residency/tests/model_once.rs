//! Files that are read once, on their way to a GPU: the same bytes by every way, and no copy left in the page cache where
//! the kernel and the file system know how.
#![allow(unsafe_code, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

mod gpu;
mod support;

use std::fs::{File, OpenOptions};
use std::io::{IoSliceMut, Write as _};
use std::os::fd::AsRawFd as _;

use cuda_emulator::{Emulator, Plan};
use rustix::fs::{Advice, MemfdFlags, fadvise, memfd_create};
use rustix::io::{ReadWriteFlags, preadv2};
use sha2::{Digest as _, Sha256};
use support::{disk_dir, id};
use vram_residency::device::conformance::Pattern;
use vram_residency::digest::{BLOCK_BYTES, Digest, Expected};
use vram_residency::model::{Format, ModelFile, Source};
use vram_residency::{SealRequest, VramManager};

/// Whether the file system of a file reads without keeping a copy, when asked to directly.
fn knows_how(file: &File) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0; 1])], 0, ReadWriteFlags::from_bits_retain(0x80)).is_ok()
}

/// Bytes of a file in the page cache, in whole pages; none where the kernel does not tell (before Linux 6.5).
fn cached(file: &File) -> Option<u64> {
    /// `__NR_cachestat`, the same on every architecture.
    const CACHESTAT: libc::c_long = 451;
    let (range, mut found) = ([0_u64, file.len()], [0_u64; 5]);
    // SAFETY: reads a range of two numbers, writes five numbers.
    let answer = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), found.as_mut_ptr(), 0) };
    (answer == 0).then(|| found[0] * rustix::param::page_size() as u64)
}

/// Has the page cache forget a file that is on disk.
fn forget(file: &File) {
    file.sync_all().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

fn on_disk(name: &std::path::Path, bytes: &[u8]) -> File {
    std::fs::write(name, bytes).unwrap();
    File::open(name).unwrap()
}

/// Reads a range as a whole in the way that is tried.
fn read(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut done = 0;
    while done < length {
        let count = file.read_once_at(offset + done as u64, &mut bytes[done..]).unwrap();
        assert!(count > 0, "{offset}, {length}: the file ended");
        done += count;
    }
    bytes
}

#[test]
fn the_bytes_are_the_same_at_every_offset_and_length_warm_or_cold_whatever_the_file_system_knows() {
    let dir = disk_dir();
    let bytes = Pattern { seed: 11 }.bytes(2 * BLOCK_BYTES + 12_345);
    let disk = on_disk(&dir.path().join("file"), &bytes);
    // Memory files know nothing of it, so this is the ordinary way.
    let mut memory = File::from(memfd_create("model", MemfdFlags::CLOEXEC).unwrap());
    memory.write_all(&bytes).unwrap();
    assert!(!knows_how(&memory), "the fallback is not what is tested");
    println!("the disk's file system {} how", if knows_how(&disk) { "knows" } else { "does not know" });

    let block = BLOCK_BYTES as usize;
    let lengths = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_537, block - 1, block, block + 1];
    for offset in [0, 1, 7, 511, 512, 4095, 4096, 4097, 12_345, block - 1, block, block + 3] {
        for length in lengths.into_iter().chain([bytes.len() - offset]).filter(|length| offset + length <= bytes.len())
        {
            let expected = &bytes[offset..offset + length];
            if length % 2 == 1 {
                forget(&disk);
            }
            assert!(read(&disk, offset as u64, length) == expected, "disk, {offset}, {length}");
            assert!(read(&memory, offset as u64, length) == expected, "memory, {offset}, {length}");
        }
    }
    for file in [&disk, &memory] {
        let mut buffer = [0; 10];
        assert_eq!(file.read_once_at(bytes.len() as u64, &mut buffer).unwrap(), 0, "the end");
        assert_eq!(file.read_once_at(bytes.len() as u64 - 4, &mut buffer).unwrap(), 4, "and what is before it");
        // Not taken for the file's own position.
        assert!(file.read_once_at(u64::MAX, &mut buffer).is_err());
    }
}

#[test]
fn what_cannot_be_read_says_why_in_the_ordinary_words() {
    let dir = disk_dir();
    let refused = File::open(dir.path()).unwrap().read_once_at(0, &mut [0; 8]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EISDIR), "{refused}");
    let written = OpenOptions::new().write(true).create_new(true).open(dir.path().join("file")).unwrap();
    let refused = written.read_once_at(0, &mut [0; 8]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADF), "{refused}");
}

/// Through the manager, onto a GPU: a length that ends inside a block, and the publisher's SHA-256 beside.
#[test]
fn a_file_on_its_way_to_a_gpu_leaves_no_copy_and_one_that_was_cached_stays_so() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let bytes = Pattern { seed: 12 }.bytes(9 * BLOCK_BYTES + 777);
    let path = dir.path().join("model.bin");
    let file = on_disk(&path, &bytes);
    let sha256 = Expected::Sha256(Sha256::digest(&bytes).into());
    let manager = gpu::manager(&dir.path().join("log"));
    let seal = |manager: &VramManager| {
        let model = ModelFile::open(&path, Some(Format::Raw)).unwrap();
        let shard = manager.seal_file(&model, &SealRequest::new(id("model"), "model").expecting(sha256)).unwrap();
        assert_eq!(shard.digest(), Digest::of(&bytes));
        shard.with_bytes(0..bytes.len() as u64, |resident| assert!(resident == bytes)).unwrap();
        manager.release(shard);
    };
    forget(&file);
    let before = cached(&file);
    seal(&manager);
    let cold = cached(&file);
    read_ordinarily(&file);
    let full = cached(&file);
    seal(&manager);
    let warm = cached(&file);
    if !knows_how(&file) || before.is_none_or(|before| before > 0) {
        return println!("skipped: this kernel or file system keeps a copy, or does not tell");
    }
    assert!(cold.unwrap() < bytes.len() as u64 / 2, "{cold:?} of {} bytes are in the page cache", bytes.len());
    assert_eq!(warm, full, "what was in the page cache before is still there");
    assert!(warm.unwrap() >= bytes.len() as u64);
}

fn read_ordinarily(file: &File) {
    vram_residency::model::read_exact_at(file, 0, &mut vec![0; usize::try_from(file.len()).unwrap()]).unwrap();
}
