//! A model to try things on: shaped like a small Llama, the same bytes each time.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tempfile::TempDir;
use vram_residency::device::{Device, MemoryFacts};
use vram_residency::model::writer::{Layout, TensorSpec};
use vram_residency::model::{Dtype, ModelError};

use crate::exit::Failure;
use crate::machine;

/// Bytes that a thread makes and writes at a time.
const PIECE: u64 = 1 << 20;

/// The dimensions of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    vocabulary: u64,
    hidden: u64,
    layers: u64,
}

impl Shape {
    /// As large as fits into `bytes`, with one layer at least.
    fn fitting(bytes: u64) -> Self {
        let sizes = [(128_256, 4096), (32_000, 2048), (32_000, 1024), (32_000, 512), (8_000, 256)];
        let shape = |(vocabulary, hidden)| Self { vocabulary, hidden, layers: 1 };
        // The embeddings may take about half of the model.
        let fits = |shape: &Self| shape.outer_bytes() <= bytes / 2;
        let shape = sizes.map(shape).into_iter().find(fits).unwrap_or(shape((1_000, 64)));
        let layers = bytes.saturating_sub(shape.outer_bytes()).checked_div(shape.layer_bytes()).unwrap_or(1);
        Self { layers: layers.max(1), ..shape }
    }

    /// The inner size of the feed-forward part: 2.75 times the hidden size.
    fn inner(self) -> u64 {
        (self.hidden / 4).saturating_mul(11)
    }

    fn layer_bytes(self) -> u64 {
        let attention = self.hidden.saturating_mul(self.hidden / 4).saturating_mul(10);
        let feed_forward = self.hidden.saturating_mul(self.inner()).saturating_mul(3);
        attention.saturating_add(feed_forward).saturating_add(self.hidden.saturating_mul(2)).saturating_mul(2)
    }

    fn outer_bytes(self) -> u64 {
        self.vocabulary.saturating_mul(self.hidden).saturating_mul(4)
    }

    fn tensors(self) -> Vec<TensorSpec> {
        let Self { vocabulary, hidden, .. } = self;
        let (inner, narrow) = (self.inner(), hidden / 4);
        let mut specs = Vec::new();
        let mut add = |name: String, shape: &[u64]| specs.push(TensorSpec::new(name, Dtype::BF16, shape));
        add("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden]);
        for layer in 0..self.layers {
            let parts: [(&str, &[u64]); 9] = [
                ("input_layernorm", &[hidden]),
                ("self_attn.q_proj", &[hidden, hidden]),
                ("self_attn.k_proj", &[narrow, hidden]),
                ("self_attn.v_proj", &[narrow, hidden]),
                ("self_attn.o_proj", &[hidden, hidden]),
                ("post_attention_layernorm", &[hidden]),
                ("mlp.gate_proj", &[inner, hidden]),
                ("mlp.up_proj", &[inner, hidden]),
                ("mlp.down_proj", &[hidden, inner]),
            ];
            for (part, shape) in parts {
                add(format!("model.layers.{layer}.{part}.weight"), shape);
            }
        }
        add("model.norm.weight".to_owned(), &[hidden]);
        add("lm_head.weight".to_owned(), &[vocabulary, hidden]);
        specs
    }
}

/// Writes a model of about `bytes` bytes, with several threads.
pub(crate) fn write(path: &Path, bytes: u64, threads: usize) -> Result<(), Failure> {
    let layout = layout(bytes)?;
    write_pieces(path, &layout, threads).map_err(|error| {
        let message = format!(
            "the model {} of {} bytes cannot be written: {error}; free some space, name another directory with --dir, \
             or make it smaller with --size",
            path.display(),
            layout.file_len()
        );
        Failure::new("io", message)
    })
}

fn layout(bytes: u64) -> Result<Layout, ModelError> {
    Layout::with_metadata(Shape::fitting(bytes).tensors(), &[("format", "pt")])
}

fn write_pieces(path: &Path, layout: &Layout, threads: usize) -> io::Result<()> {
    let file = File::create_new(path)?;
    file.write_all_at(layout.header(), 0)?;
    let next = AtomicU64::new(layout.header().len() as u64);
    let worker = || {
        let mut piece = Vec::new();
        loop {
            let offset = next.fetch_add(PIECE, Ordering::Relaxed);
            let length = layout.file_len().saturating_sub(offset).min(PIECE);
            if length == 0 {
                return Ok(());
            }
            piece.resize(usize::try_from(length).unwrap_or(0), 0);
            fill(offset, &mut piece);
            file.write_all_at(&piece, offset)?;
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let own = worker();
        let joined =
            helpers.into_iter().map(|helper| helper.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        joined.fold(own, io::Result::and)
    })
}

/// Weights as they could be, from nothing but their place in the file: small numbers of either sign, in BF16.
fn fill(offset: u64, bytes: &mut [u8]) {
    // Two numbers at a time. The file is a multiple of 4 bytes long; bytes of a last, shorter piece stay 0.
    let first = (offset / 4) as u32;
    for (index, pair) in (0_u32..).zip(bytes.chunks_exact_mut(4)) {
        let mut x = first.wrapping_add(index).wrapping_mul(0x9e37_79b1);
        x = (x ^ (x >> 15)).wrapping_mul(0x85eb_ca77);
        x ^= x >> 13;
        pair.copy_from_slice(&((x & 0x80ff_80ff) | 0x3c00_3c00).to_le_bytes());
    }
}

/// Where temporary directories go: what the user says, else `TMPDIR`, else `/var/tmp`, which is on a disk by custom
/// where `/tmp` may be in memory.
pub(crate) fn temporary_base(asked: Option<&Path>) -> PathBuf {
    let from_environment = || std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    match asked {
        Some(path) => path.to_owned(),
        None => from_environment().unwrap_or_else(|| {
            let usual = PathBuf::from("/var/tmp");
            if usual.is_dir() { usual } else { std::env::temp_dir() }
        }),
    }
}

/// Says at once where a model of about `bytes` bytes has no room on the disk or in memory, before it is
/// written.
pub(crate) fn check_room(dir: &Path, bytes: u64, device: &dyn Device) -> Result<(), Failure> {
    let needed = layout(bytes)?.file_len();
    if let Ok(free) = machine::free_bytes(dir)
        && free < needed
    {
        let message = format!(
            "the model needs {needed} bytes on the disk and {} has {free} free; make it smaller with --size, name \
             another directory with --dir, or free some space",
            dir.display()
        );
        return Err(Failure::new("disk", message));
    }
    let mut needed = needed;
    let mut available = device.capacity().available_bytes();
    // In a file system that lies in memory, the file takes as much of it again, whatever regions may take.
    if available >= needed
        && machine::is_in_memory(dir).unwrap_or(false)
        && let Ok(facts) = MemoryFacts::measure()
    {
        needed = needed.saturating_mul(2);
        available = facts.usable_bytes();
    }
    if available < needed {
        let message = format!(
            "the model needs {needed} bytes of memory and the host has {available} free; make it smaller with --size, \
             free some memory, or raise --capacity"
        );
        return Err(Failure::new("memory", message));
    }
    Ok(())
}

/// A fresh directory of our own that is removed at the end. Where the end never came, the next start removes it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: TempDir,
    /// Held as long as the directory is in use. Let go after it was removed.
    _lock: File,
}

/// The name of the file that is locked.
const LOCK: &str = "in-use";

impl Scratch {
    /// Makes one, after those were removed that runs of this user left when they were killed.
    pub(crate) fn new(asked: Option<&Path>, purpose: &str) -> Result<Self, Failure> {
        let base = temporary_base(asked);
        sweep(&base);
        Self::make(&base, purpose).map_err(|error| {
            let message = format!(
                "no directory can be made in {}: {}; name another one with --dir",
                base.display(),
                error.kind()
            );
            Failure::new("io", message)
        })
    }

    fn make(base: &Path, purpose: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("vram-{purpose}-")).tempdir_in(base)?;
        // It gets its name once it is locked, so that nobody finds it unlocked who looks in between.
        let draft = dir.path().join("in-use.draft");
        let lock = File::create_new(&draft)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        std::fs::rename(&draft, dir.path().join(LOCK))?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes what runs of this user left here that did not come to their end. What cannot be removed stays.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| PURPOSES.iter().any(|prefix| name.starts_with(prefix)));
        if ours && let Some(lock) = abandoned(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
            drop(lock);
        }
    }
}

/// Beginnings of the names that are swept.
const PURPOSES: [&str; 2] = ["vram-demo-", "vram-bench-"];

/// The lock of a directory that is this user's and in which nobody works any more.
fn abandoned(dir: &Path) -> Option<File> {
    let me = rustix::process::geteuid().as_raw();
    let facts = std::fs::symlink_metadata(dir).ok()?;
    if !facts.is_dir() || facts.uid() != me {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = File::from(rustix::fs::open(dir.join(LOCK), flags, Mode::empty()).ok()?);
    let facts = lock.metadata().ok()?;
    let free = facts.is_file() && facts.uid() == me;
    (free && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()).then_some(lock)
}

#[cfg(test)]
mod tests {
    use vram_residency::device::{HostDevice, HostOptions};

    use super::*;

    #[test]
    fn the_size_is_nearly_what_was_asked_for() {
        for mib in [1_u64, 2, 8, 32, 100, 256, 1000, 2048, 16 << 10] {
            let asked = mib << 20;
            let len = layout(asked).unwrap().file_len();
            assert!(len.abs_diff(asked) <= asked / 8 + 65_536, "{mib} MiB became {len} bytes");
        }
        let shape = Shape::fitting(256 << 20);
        let named = layout(256 << 20).unwrap().table().tensors().iter().map(|tensor| tensor.bytes()).sum::<u64>();
        assert_eq!(named, shape.outer_bytes() + shape.layers * shape.layer_bytes() + shape.hidden * 2);
    }

    #[test]
    fn a_file_system_in_memory_needs_room_beside_the_regions() {
        let shm = Path::new("/dev/shm");
        if !machine::is_in_memory(shm).unwrap_or(false) {
            eprintln!("skipped: /dev/shm is not in memory");
            return;
        }
        let mut options = HostOptions::default();
        options.capacity_bytes = Some(3 << 20);
        let device = HostDevice::open(options).unwrap();
        // The bound on regions is not one on files.
        check_room(shm, 2 << 20, &device).unwrap();
        assert_eq!(check_room(shm, 8 << 20, &device).unwrap_err().kind, "memory");
    }

    #[test]
    fn only_directories_that_nobody_uses_are_swept() {
        let base = tempfile::tempdir().unwrap();
        let used = Scratch::make(base.path(), "demo").unwrap();
        let Scratch { dir, _lock } = Scratch::make(base.path(), "bench").unwrap();
        let left = dir.keep();
        drop(_lock);
        std::fs::write(left.join("model"), b"weights").unwrap();
        // Neither a directory without our lock, nor another name, nor a link to a directory is ours to remove.
        let others = ["vram-demo-no-lock", "another"].map(|name| base.path().join(name));
        others.iter().for_each(|other| std::fs::create_dir(other).unwrap());
        std::fs::write(others[1].join(LOCK), b"").unwrap();
        std::os::unix::fs::symlink(&others[1], base.path().join("vram-demo-link")).unwrap();
        sweep(base.path());
        assert!(!left.exists() && used.path().exists());
        assert!(others.iter().all(|other| other.exists()) && others[1].join(LOCK).exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let scratch = tempfile::tempdir().unwrap();
        let bytes = [1, 3].map(|threads: usize| {
            let path = scratch.path().join(threads.to_string());
            write(&path, 4 << 20, threads).unwrap();
            std::fs::read(path).unwrap()
        });
        assert_eq!(bytes[0], bytes[1]);
        let whole = vram_residency::model::parse(&bytes[0].as_slice(), None).unwrap();
        assert!(whole.table.get("model.layers.0.self_attn.q_proj.weight").is_some());
        // Different blocks are different: a swap would show.
        assert_ne!(bytes[0][1 << 20..2 << 20], bytes[0][2 << 20..3 << 20]);
    }
}
