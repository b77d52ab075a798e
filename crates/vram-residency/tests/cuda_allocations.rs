//! Heap allocations of a verification and of a re-check on a GPU, counted in the whole process.
//!
//! One test in a binary of its own: another one beside it would be counted too. The emulated driver counts nothing here: it
//! has an allocator of its own.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

mod gpu;
mod support;

use std::alloc::System;
use std::time::Duration;

use cuda_emulator::{Emulator, Plan};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{disk_dir, id};
use vram_residency::Rechecked;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_verify_a_recheck_or_a_sweep_on_a_gpu_allocates_nothing() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    manager.keep_recheck_keys(25).unwrap();
    let shard = manager.seal_model(id("shard"), "model", &[7; (9 << 20) + 5]).unwrap();
    for _ in 0..20 {
        manager.verify_sealed(&shard).unwrap();
    }
    manager.trail().flush(Duration::from_secs(5)).unwrap();
    let on_the_device = emulator.report().calls_of("cuMemAlloc_v2");
    for round in 0..5 {
        let region = Region::new(ALLOCATOR);
        manager.verify_sealed(&shard).unwrap();
        manager.trail().flush(Duration::from_secs(5)).unwrap();
        let change = region.change();
        assert_eq!(change.allocations + change.reallocations, 0, "round {round}");
    }
    for round in 0..25 {
        let region = Region::new(ALLOCATOR);
        let rechecked = manager.recheck(&shard).unwrap();
        manager.trail().flush(Duration::from_secs(5)).unwrap();
        let change = region.change();
        assert!(matches!(rechecked, Rechecked::Matched { .. }));
        // The first ones make room for a longer record.
        assert!(round < 20 || change.allocations + change.reallocations == 0, "round {round}: {change:?}");
    }
    assert_eq!(emulator.report().calls_of("cuMemAlloc_v2"), on_the_device);
    let more =
        (0_u8..5).map(|n| manager.seal_model(id(&format!("s{n}")), "model", &vec![n; usize::from(n) << 19]).unwrap());
    let shards: Vec<_> = std::iter::once(shard).chain(more).collect();
    let sweep = || {
        let mut verified = 0;
        manager.verify_all(&shards, &mut |_, outcome| verified += usize::from(outcome.is_ok()));
        assert_eq!(verified, 6);
        manager.trail().flush(Duration::from_secs(5)).unwrap();
    };
    (0..20).for_each(|_| sweep());
    let on_the_device = emulator.report().calls_of("cuMemAlloc_v2");
    for round in 0..5 {
        let region = Region::new(ALLOCATOR);
        sweep();
        let change = region.change();
        assert_eq!(change.allocations + change.reallocations, 0, "sweep {round}");
    }
    assert_eq!(emulator.report().calls_of("cuMemAlloc_v2"), on_the_device);
    assert!(emulator.report().calls_of("cuMemHostAlloc") > 0);
}
