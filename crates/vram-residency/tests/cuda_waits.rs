//! A driver that refuses to wait: nothing is given back, or used again, under work that may still be going on.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use cuda_emulator::{Emulator, Fault, Kind, Plan, Report};
use gpu::faults::leaves_nothing;
use gpu::{region, try_manager, values};
use support::{disk_dir, id};
use vram_residency::device::{Device, DeviceError};
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::{Policy, ShardState};

const WEIGHTS: &[u8] = &[0x5a; (2 * BLOCK_BYTES + 700) as usize];

/// Every wait from the `nth` of its kind on is refused.
fn refuses_waits(nth: u64) -> Vec<Fault> {
    ["cuStreamSynchronize", "cuEventSynchronize"].map(|call| Fault::fail_forever(call, nth, 304)).to_vec()
}

fn regions(report: &Report) -> usize {
    [Kind::Mapping, Kind::Handle, Kind::Reservation].iter().map(|kind| report.live_of(*kind).len()).sum()
}

#[test]
fn a_region_stays_until_the_work_on_it_was_waited_for() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let (region, _) = region(&device, WEIGHTS, 0).unwrap();
    let used = device.capacity().used_bytes;
    emulator.add_faults(refuses_waits(1));
    let Err(DeviceError::Cuda(error)) = region.hash_blocks(0, &mut values(WEIGHTS.len() as u64)) else {
        panic!("nothing was waited for")
    };
    assert!(error.is_lost() && error.code() == Some(304), "{error}");
    assert!(error.to_string().starts_with("cuda:0 ") && error.to_string().contains("stays taken"), "{error}");
    assert!(emulator.report().pending > 0, "a kernel that reads the region is still to run");

    drop(region);
    assert_eq!((device.capacity().used_bytes, regions(&emulator.report())), (used, 3), "and counts as used");
    assert!(device.allocate(1, 0).is_err());
    assert!(device.lost().unwrap().contains("stays taken"));
    assert_eq!((device.capacity().used_bytes, regions(&emulator.report())), (used, 3));

    emulator.clear_faults();
    // It can be waited for now, and is, but whatever this process knew of the device is gone.
    assert!(device.allocate(1, 0).is_err());
    assert_eq!((device.capacity().used_bytes, regions(&emulator.report())), (0, 0));
    assert!(!device.lost().unwrap().contains("stays taken"));
    drop(device);
    assert_eq!(emulator.report().complaint(), None);
}

/// Where it can never be waited for, the end of the context ends the work, and only then the memory goes.
#[test]
fn what_is_never_waited_for_goes_after_its_context() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let device = gpu::device();
    let (region, _) = region(&device, WEIGHTS, 0).unwrap();
    emulator.add_faults(refuses_waits(1));
    region.hash_blocks(0, &mut values(WEIGHTS.len() as u64)).unwrap_err();
    drop(region);
    drop(device);
    let report = emulator.report();
    leaves_nothing(&report, "refused to the end");
    assert_eq!((regions(&report), report.pending), (0, 0));
}

/// Others in the process hold the context too, so it does not end: then the memory stays, until the process does.
#[test]
fn what_is_never_waited_for_stays_where_others_hold_the_context() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let (device, other) = (gpu::device(), gpu::device());
    let (region, _) = region(&device, WEIGHTS, 0).unwrap();
    emulator.add_faults(refuses_waits(1));
    region.hash_blocks(0, &mut values(WEIGHTS.len() as u64)).unwrap_err();
    drop(region);
    drop(device);
    assert_eq!(regions(&emulator.report()), 3);
    emulator.clear_faults();
    drop(other);
    let report = emulator.report();
    assert!(report.violations.is_empty() && report.uses_after_free.is_empty(), "{report:?}");
}

#[test]
fn a_load_that_cannot_be_waited_for_keeps_its_memory_and_makes_no_shard() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = try_manager(dir.path(), Policy::default()).unwrap();
    emulator.add_faults(refuses_waits(2));
    let error = manager.seal_model(id("shard"), "model", WEIGHTS).unwrap_err();
    assert!(error.to_string().contains("stays taken"), "{error}");
    assert!(manager.list().is_empty());
    assert!(manager.capacity().used_bytes > 0 && manager.device_lost().unwrap().contains("stays taken"));
    emulator.clear_faults();
    manager.seal_model(id("shard"), "model", WEIGHTS).unwrap_err();
    assert_eq!(manager.capacity().used_bytes, 0);
    drop(manager);
    assert_eq!(emulator.report().complaint(), None);
}

/// With which results of a wait the work counts as over, and with which as perhaps going on: those that docs/cuda.md names.
#[test]
fn a_wait_is_over_only_with_the_results_that_are_said_to_end_the_work() {
    let ends = [226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810];
    let leaves = [4, 214, 220, 911, 999];
    let guide = include_str!("../../../docs/cuda.md");
    let row = |start: &str| guide.lines().find(|line| line.starts_with(start)).unwrap().split('|').nth(2).unwrap();
    let named = |start: &str| -> Vec<u32> { row(start).split(',').map(|code| code.trim().parse().unwrap()).collect() };
    assert_eq!((named("| over"), named("| perhaps going on")), (ends.to_vec(), leaves.to_vec()));
    for (code, stays) in ends.map(|code| (code, false)).into_iter().chain(leaves.map(|code| (code, true))) {
        let mut emulator = Emulator::lock(Plan::default());
        emulator.leaves();
        let device = gpu::device();
        let (region, _) = region(&device, WEIGHTS, 0).unwrap();
        let used = device.capacity().used_bytes;
        emulator
            .add_faults(vec![Fault::lost("cuStreamSynchronize", 1, code), Fault::lost("cuEventSynchronize", 1, code)]);
        let Err(DeviceError::Cuda(error)) = region.hash_blocks(0, &mut values(WEIGHTS.len() as u64)) else {
            panic!("{code}: nothing was waited for")
        };
        assert!(error.is_lost() && error.code() == i32::try_from(code).ok(), "{error}");
        drop(region);
        assert_eq!(device.capacity().used_bytes, if stays { used } else { 0 }, "{code}");
        assert_eq!(device.lost().unwrap().contains("stays taken"), stays, "{code}");
        drop(device);
        leaves_nothing(&emulator.report(), &code.to_string());
    }
}

/// What a copy that cannot be waited for reads and writes in main memory stays as long as the copy may be under way.
#[test]
fn a_load_copies_from_and_to_memory_of_the_drivers_alone() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let before = emulator.report().pageable_bytes;
    drop(region(&device, WEIGHTS, 0).unwrap());
    assert_eq!(emulator.report().pageable_bytes, before, "bytes of memory that would be gone with the call");
    // Refused from the first wait of a load on, which is for its table; and at the last one, for its values, with no table left.
    let waits = emulator.report().calls_of("cuStreamSynchronize");
    drop(region(&device, WEIGHTS, 0).unwrap());
    let waits = emulator.report().calls_of("cuStreamSynchronize") - waits;
    drop(device);
    for (nth, kept) in [(1, 2), (waits, 1)] {
        let device = gpu::device();
        let pinned = || emulator.report().live_of(Kind::Host).len();
        // With the first load come the buffers that stay.
        drop(gpu::region(&device, WEIGHTS, 0).unwrap());
        let mut values = values(WEIGHTS.len() as u64);
        let mut staged = device.allocate(WEIGHTS.len() as u64, 0).unwrap();
        let at_first = pinned();
        emulator.add_faults(vec![Fault::fail_forever("cuStreamSynchronize", nth, 304)]);
        staged.fill(&WEIGHTS, &mut values).unwrap_err();
        assert_eq!(pinned(), at_first + kept, "buffers of the load's own, wait {nth} of {waits}");
        emulator.clear_faults();
        drop(staged);
        drop(device);
        assert_eq!(pinned(), 0);
    }
}

/// From whichever wait on they are refused, and whether that ends or not: nothing is used that was given back, nothing is
/// given back that is in use, and what was not checked is not called so.
#[test]
fn waits_that_are_refused_from_any_one_on_leave_nothing_behind() {
    let life = |emulator: &Emulator, recovers: bool| {
        let dir = disk_dir();
        let manager = try_manager(dir.path(), Policy::default())?;
        let shard = manager.seal_model(id("shard"), "model", WEIGHTS)?;
        let verified = manager.verify_sealed(&shard).map(|_| ());
        assert_eq!(verified.is_ok(), shard.state() == ShardState::Verified);
        assert!(emulator.flip(&gpu::memory(1), 9, 1));
        assert!(manager.verify_sealed(&shard).is_err());
        let repaired = manager.repair(&shard, &WEIGHTS).map(|_| ());
        assert_eq!(repaired.is_ok(), shard.state() == ShardState::Verified);
        drop(shard);
        if recovers {
            emulator.clear_faults();
        }
        drop(manager);
        verified.and(repaired)
    };
    let waits = {
        let emulator = Emulator::lock(Plan::default());
        life(&emulator, false).unwrap();
        emulator.report().calls_of("cuStreamSynchronize")
    };
    assert!(waits > 5, "{waits}");
    for (nth, recovers) in (1..=waits).flat_map(|nth| [(nth, true), (nth, false)]) {
        let mut emulator = Emulator::lock(Plan::default());
        emulator.leaves();
        emulator.add_faults(vec![Fault::fail_forever("cuStreamSynchronize", nth, 304)]);
        let lived: Result<(), vram_residency::Error> = life(&emulator, recovers);
        let report = emulator.report();
        leaves_nothing(&report, &format!("{nth} {recovers} {lived:?}"));
        assert_eq!(regions(&report), 0, "{nth} {recovers} {lived:?}");
    }
}
