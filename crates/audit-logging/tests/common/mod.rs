//! A file system in memory that fails and loses power on command, and small helpers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod mem_vfs;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use audit_logging::evidence::{self, Question, Report};
use audit_logging::publish::{self, PublishOptions};
use audit_logging::tlog::entry;
use audit_logging::tlog::note::VerifierKey;
use audit_logging::tlog::source::{DirSource, Source};
use audit_logging::tlog::tree::tiles_between;
use audit_logging::{Clock, Options, Vfs};

pub use mem_vfs::*;

/// A clock that stands still until it is set.
#[derive(Debug)]
pub struct TestClock {
    /// Seconds since 1970, and monotonic milliseconds.
    pub now: Mutex<(i64, u64)>,
}

impl TestClock {
    pub fn new(unix: i64) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new((unix, 0)) })
    }

    pub fn set(&self, unix: i64) {
        self.now.lock().unwrap().0 = unix;
    }
}

impl Clock for TestClock {
    fn wall(&self) -> SystemTime {
        let unix = self.now.lock().unwrap().0;
        let distance = Duration::from_secs(unix.unsigned_abs());
        if unix < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now.lock().unwrap().1)
    }
}

/// Options for a file system in memory: small segments, everything in one thread's order, no deadline in the way.
pub fn options(vfs: &MemVfs, segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        linger: Duration::from_secs(60),
        critical_deadline: Duration::from_secs(20),
        queue_bytes: 128 << 10,
        retry_after: Duration::from_millis(2),
        spare_thread: false,
        log_id: Some(*b"0123456789abcdef"),
        vfs: Arc::new(vfs.clone()),
        ..Options::default()
    }
}

pub fn dir() -> PathBuf {
    PathBuf::from("/log")
}

pub fn segment(index: u64) -> PathBuf {
    dir().join(format!("segment-{index:012}.wal"))
}

/// A fresh directory on the disk that holds the build directory. Never a tmpfs: syncs prove nothing there.
pub fn disk_dir(name: &str) -> tempfile::TempDir {
    let base = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&base).unwrap();
    tempfile::Builder::new().prefix(name).tempdir_in(base).unwrap()
}

/// A leaf that nobody else writes.
pub fn leaf(tag: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng(tag);
    let mut leaf = format!("{{\"record\":{tag}}}").into_bytes();
    while leaf.len() < length {
        leaf.push(rng.next() as u8);
    }
    leaf
}

/// Where the key of the published log is.
pub fn key_file() -> PathBuf {
    PathBuf::from("/state/audit.key")
}

pub const ORIGIN: &str = "node-7.example/vram-audit/0a1b2c3d";

/// Makes the key of the published log.
pub fn make_key(vfs: &MemVfs) -> VerifierKey {
    publish::generate(vfs, &key_file(), ORIGIN).unwrap()
}

/// Publishing that waits for nobody.
pub fn publish_options() -> PublishOptions {
    PublishOptions {
        interval: Duration::from_millis(5),
        least_interval: Duration::from_millis(1),
        retry_after: Duration::from_millis(1),
        ..PublishOptions::new(key_file())
    }
}

/// Where the log is published.
pub fn tlog_dir() -> PathBuf {
    dir().join("tlog")
}

/// The published log.
pub fn source(vfs: &MemVfs) -> DirSource {
    DirSource::on(Arc::new(vfs.clone()), &tlog_dir())
}

/// Verifies the published log and the log itself.
pub fn verify(vfs: &MemVfs, keys: &[VerifierKey]) -> Report {
    let (source, dir) = (source(vfs), dir());
    let wal: Option<(Arc<dyn Vfs>, &Path)> = Some((Arc::new(vfs.clone()), &dir));
    evidence::verify(&Question { wal, ..Question::new(&source, keys) }).unwrap()
}

/// The entries of the published log.
pub fn published(vfs: &MemVfs, size: u64) -> Vec<Vec<u8>> {
    let source = source(vfs);
    tiles_between(0, size)
        .filter(|tile| tile.is_entries())
        .flat_map(|tile| {
            let bytes = source.get(&tile.path()).unwrap().unwrap_or_else(|| panic!("{tile} is missing"));
            entry::split(&bytes).unwrap().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}
