//! Heap allocations, counted in the whole process, worker threads and log writer included.
//!
//! One test in a binary of its own: another one beside it would be counted too.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::print_stdout)]

mod support;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::time::Duration;
use support::{disk_dir, id};
use vram_residency::audit::AuditTrail;
use vram_residency::device::{HostDevice, HostOptions};
use vram_residency::scrub::{ScrubOptions, Scrubber};
use vram_residency::{Policy, VramManager};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations and reallocations that happen in `work`, and until its records are on disk.
fn allocations<T>(manager: &VramManager, work: impl FnOnce() -> T) -> (usize, T) {
    let region = Region::new(ALLOCATOR);
    let value = work();
    manager.trail().flush(Duration::from_secs(5)).unwrap();
    let change = region.change();
    (change.allocations + change.reallocations, value)
}

#[test]
fn a_verify_allocates_nothing_and_a_cycle_at_most_four_times() {
    let dir = disk_dir();
    // The default device: it measures the machine's free memory before each seal.
    let mut options = HostOptions::default();
    options.threads = Some(3);
    let device = std::sync::Arc::new(HostDevice::open(options).unwrap());
    let manager = support::manager_with(device, AuditTrail::open(dir.path()).unwrap(), Policy::default());

    let warm = manager.seal_model(id("warm"), "model", &[1; 3 << 20]).unwrap();
    for _ in 0..20 {
        manager.verify_sealed(&warm).unwrap();
    }
    drop(warm);
    manager.trail().flush(Duration::from_secs(5)).unwrap();

    for bytes in [1, (3 << 20) + 5, 64 << 20] {
        let weights = vec![7_u8; bytes];
        for round in 0..5 {
            let (cycle, shard) = allocations(&manager, || {
                let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
                manager.verify_sealed(&shard).unwrap();
                shard
            });
            let (verify, _) = allocations(&manager, || manager.verify_sealed(&shard).unwrap());
            println!("{bytes} bytes, round {round}: {cycle} allocations in seal and verify, {verify} in a verify");
            assert_eq!(verify, 0, "{bytes} bytes");
            assert!(cycle <= 4, "{bytes} bytes: {cycle}");
        }
    }

    // The continuous check, and the question on the hot path.
    let mut options = ScrubOptions::default();
    options.period = Duration::from_millis(100);
    let scrubber = Scrubber::manual(&manager, options).unwrap();
    let shard = manager.seal_model(id("watched"), "model", &[7; (3 << 20) + 5]).unwrap();
    scrubber.watch(&shard, None);
    let check = |blocks: u64| {
        let wanted = scrubber.status().blocks + blocks;
        while scrubber.status().blocks < wanted {
            scrubber.tick();
        }
    };
    check(20);
    let (fresh, ()) = allocations(&manager, || {
        for _ in 0..1000 {
            shard.ensure_fresh(Duration::from_secs(60)).unwrap();
        }
    });
    let (checks, ()) = allocations(&manager, || check(100));
    println!("1000 questions: {fresh} allocations; 100 checks in 25 passes: {checks}");
    assert_eq!(fresh, 0);
    // A pass draws a new order: a list of its blocks and one to sort it by. A check by itself takes nothing.
    assert!(checks <= 3 * 26, "{checks}");
}
