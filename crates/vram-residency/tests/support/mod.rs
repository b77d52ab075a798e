//! What the tests share: managers on a real disk, and a look into their logs.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

pub mod moody;
pub mod word;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::Options;
use serde_json::Value;
use tempfile::TempDir;
use vram_residency::audit::AuditTrail;
use vram_residency::device::{HostDevice, HostOptions};
use vram_residency::seal::SealKey;
use vram_residency::{ManagerOptions, Policy, ShardId, VramManager};

pub const SECRET: [u8; 32] = *b"a secret that only tests may see";
pub const WORKER: &str = "worker-under-test";

/// A directory on the disk that the build is on, not in memory: `fsync` must mean something.
pub fn disk_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn host(capacity_bytes: u64) -> Arc<HostDevice> {
    let mut options = HostOptions::default();
    options.capacity_bytes = Some(capacity_bytes);
    Arc::new(HostDevice::open(options).unwrap())
}

pub fn key() -> SealKey {
    SealKey::derive(&SECRET, WORKER).unwrap()
}

pub fn manager_with(device: Arc<HostDevice>, trail: AuditTrail, policy: Policy) -> VramManager {
    VramManager::new(ManagerOptions { worker_id: WORKER.into(), device, key: key(), trail, policy }).unwrap()
}

/// A manager with room for `capacity_bytes` that keeps its log in `dir` and waits for a busy disk.
pub fn manager(dir: &Path, capacity_bytes: u64) -> VramManager {
    let options = Options { critical_deadline: Duration::from_secs(30), ..Options::default() };
    manager_with(host(capacity_bytes), AuditTrail::open_with(dir, options).unwrap(), Policy::default())
}

pub fn id(text: &str) -> ShardId {
    ShardId::new(text).unwrap()
}

/// Small segments, so that short tests make small files.
pub fn small_log() -> Options {
    Options { segment_bytes: 64 << 10, ..Options::default() }
}

/// The events in a log, in order, as JSON; the log's own records are left out.
pub fn events(dir: &Path) -> Vec<Value> {
    let records = audit_logging::reader::records(dir).unwrap().map(Result::unwrap);
    let leaves = records.filter(|record| record.kind == audit_logging::Kind::Event);
    leaves.map(|record| serde_json::from_slice(&record.leaf).unwrap()).collect()
}

pub fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event"].as_str().unwrap()).collect()
}
