//! Loading streams: the process never holds much more than the region itself.
//!
//! One test in a binary of its own, because the peak is the process's.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, File};

use support::{disk_dir, host, id, manager_with};
use vram_residency::audit::AuditTrail;
use vram_residency::digest::Expected;
use vram_residency::model::{Format, ModelFile};
use vram_residency::{Error, Policy, SealRequest};

const MIB: u64 = 1 << 20;

/// The most memory that this process ever had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn sealing_a_file_takes_its_region_and_at_most_64_mib_more() {
    let dir = disk_dir();
    let path = dir.path().join("model.bin");
    let bytes = 512 * MIB + 12_345;
    File::create(&path).unwrap().set_len(bytes).unwrap();
    let file = ModelFile::open(&path, Some(Format::Raw)).unwrap();
    let manager =
        manager_with(host(1024 * MIB), AuditTrail::open(&dir.path().join("audit")).unwrap(), Policy::default());
    let shard = manager.seal_file(&file, &SealRequest::new(id("plain"), "model")).unwrap();
    manager.verify_sealed(&shard).unwrap();
    drop(shard);
    let wrong = Expected::Sha256([0; 32]);
    let refused = manager.seal_file(&file, &SealRequest::new(id("hashed"), "model").expecting(wrong));
    assert!(matches!(refused, Err(Error::Unexpected { .. })));
    let peak = peak();
    assert!(peak > bytes && peak < bytes + 64 * MIB, "a peak of {} MiB for {} MiB", peak / MIB, bytes / MIB);
}
