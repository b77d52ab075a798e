//! Asks so many times whether a watched shard is fresh. What one question costs is the difference between two runs, counted
//! in instructions by `cargo xtask hot`; the time on this machine is printed for people.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vram_residency::audit::AuditTrail;
use vram_residency::device::{HostDevice, HostOptions};
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::seal::SealKey;
use vram_residency::{ManagerOptions, Policy, ShardId, VramManager};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().unwrap().parse().unwrap();
    let log = arguments.next().unwrap();
    let mut options = HostOptions::default();
    (options.threads, options.capacity_bytes) = (Some(1), Some(1 << 20));
    let manager = VramManager::new(ManagerOptions {
        worker_id: "worker".into(),
        device: Arc::new(HostDevice::open(options).unwrap()),
        key: SealKey::derive(&[7; 32], "worker").unwrap(),
        trail: AuditTrail::open(std::path::Path::new(&log)).unwrap(),
        policy: Policy::default(),
    })
    .unwrap();
    // Without threads, so that nothing else is counted.
    let scrubber = Scrubber::manual(&manager, ScrubOptions::default()).unwrap();
    let shard = manager.seal_model(ShardId::new("shard").unwrap(), "model", &[1; 1000]).unwrap();
    scrubber.watch(&shard, None);
    let begun = Instant::now();
    for _ in 0..count {
        assert!(black_box(&shard).ensure_fresh(black_box(Duration::from_secs(3600))).is_ok());
    }
    println!("{:.1} ns each", begun.elapsed().as_secs_f64() * 1e9 / count.max(1) as f64);
}
