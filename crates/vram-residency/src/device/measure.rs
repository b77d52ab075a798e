//! What this machine can do at best, measured apart from the rest of the crate: the floor for `vram bench`.
//!
//! Fills a fresh memory file the plain way and hashes it afterwards, with threads of its own: no crew, no seals, no
//! overlap. Whatever sealing costs above that is this crate's doing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::digest::{BLOCK_BYTES, block_value};

const PIECE: usize = 1 << 20;

/// Times for one file, all with the same number of threads.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Floor {
    /// Length of the file.
    pub bytes: u64,
    /// Copying the file from the page cache into a fresh memory file: the kernel clears each page first.
    pub fill: Duration,
    /// BLAKE3 of all of it, in memory.
    pub hash: Duration,
    /// Touching each page of another fresh memory file: what clearing alone takes.
    pub page_clearing: Duration,
    /// Copying the file into pages that are already there.
    pub copy: Duration,
}

/// Measures the floor for sealing a file, once.
///
/// # Errors
/// Where the file cannot be read, or the memory cannot be had.
pub fn floor(path: &Path, threads: usize) -> io::Result<Floor> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let whole = Fresh::map(length)?;
    let fill = in_pieces(&whole, threads, &|offset, piece| file.read_exact_at(piece, offset))?;
    let hash = in_pieces(&whole, threads, &|offset, piece| {
        std::hint::black_box(block_value(bytes, offset / BLOCK_BYTES, piece));
        Ok(())
    })?;
    let copy = in_pieces(&whole, threads, &|offset, piece| file.read_exact_at(piece, offset))?;
    drop(whole);
    let page_clearing = in_pieces(&Fresh::map(length)?, threads, &|_offset, piece| {
        piece.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        Ok(())
    })?;
    Ok(Floor { bytes, fill, hash, page_clearing, copy })
}

/// A fresh memory file, mapped and untouched.
struct Fresh {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is as valid on any thread; `in_pieces` hands out disjoint parts.
unsafe impl Sync for Fresh {}

impl Fresh {
    fn map(bytes: usize) -> io::Result<Self> {
        let file = memfd_create(c"vram-floor", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of anybody's.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes.max(1), access, MapFlags::SHARED, &file, 0) }?;
        Ok(Self { base: base.cast(), bytes })
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's and no slice into it outlives `in_pieces`.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.max(1)) };
    }
}

type Work<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync + 'a;

/// Calls `work` for each piece, several at a time, and tells how long all of it took.
fn in_pieces(memory: &Fresh, threads: usize, work: &Work<'_>) -> io::Result<Duration> {
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let offset = next.fetch_add(PIECE, Ordering::Relaxed);
            if offset >= memory.bytes {
                return Ok(());
            }
            let length = memory.bytes.saturating_sub(offset).min(PIECE);
            // SAFETY: each offset is handed out once, so the piece is inside the mapping and nobody else has it.
            let piece = unsafe { std::slice::from_raw_parts_mut(memory.base.wrapping_add(offset), length) };
            work(offset as u64, piece)?;
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        let all = helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        all.fold(own, io::Result::and)
    })?;
    Ok(started.elapsed())
}
