//! Sweeps on an emulated GPU: many regions, and many shards, hashed together with two launches under way.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use cuda_emulator::{Emulator, Fault, Plan};
use gpu::faults::{self, leaves_nothing};
use gpu::{memory, options, region};
use support::{disk_dir, events, host, id};
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{CudaDevice, Device, DeviceError, Region};
use vram_residency::digest::{BLOCK_BYTES, BlockValue, block_count};
use vram_residency::{Error, SealedShard, ShardState, VerifyFailure, VramManager};

/// Opens the GPU with launches of so many blocks.
fn device(launch_blocks: usize) -> CudaDevice {
    let mut options = options();
    options.launch_blocks = Some(launch_blocks);
    CudaDevice::open(&options).unwrap()
}

/// Regions of these lengths, and the values that their blocks were sealed with.
fn regions(device: &CudaDevice, lengths: &[u64]) -> (Vec<Box<dyn Region>>, Vec<Vec<BlockValue>>) {
    let with = |(seed, length): (usize, &u64)| {
        region(device, &Pattern { seed: seed as u64 }.bytes(*length), (seed * 8 % 256) as u8).unwrap()
    };
    lengths.iter().enumerate().map(with).unzip()
}

/// What a sweep over regions tells, by region: every block once and in order.
fn swept(device: &dyn Device, regions: &[&dyn Region]) -> Result<Vec<Vec<BlockValue>>, DeviceError> {
    let mut values: Vec<Vec<BlockValue>> = vec![Vec::new(); regions.len()];
    device.hash_regions(regions, &mut |number, first, told| {
        assert_eq!(first, values[number].len() as u64, "region {number}");
        values[number].extend_from_slice(told);
    })?;
    Ok(values)
}

fn borrowed(regions: &[Box<dyn Region>]) -> Vec<&dyn Region> {
    regions.iter().map(|region| &**region).collect()
}

/// Launches of the emulated GPU since `before`, by its report.
fn launches(emulator: &Emulator) -> u64 {
    let report = emulator.report();
    let of = |name: &str| report.launches.get(name).copied().unwrap_or(0);
    assert_eq!(of("vram_blake3_chunks_plain"), of("vram_blake3_parents"));
    of("vram_blake3_parents")
}

/// Lengths around the size of a launch, empty ones, and enough small ones to fill several tables.
fn mixture(launch_blocks: u64) -> Vec<u64> {
    let mut lengths = vec![0, 1, 700, BLOCK_BYTES, BLOCK_BYTES + 1, 0];
    for blocks in [launch_blocks - 1, launch_blocks, launch_blocks + 1, 2 * launch_blocks, 2 * launch_blocks + 1] {
        lengths.extend([blocks * BLOCK_BYTES, (blocks * BLOCK_BYTES).saturating_sub(5)]);
    }
    lengths.extend((0..150).map(|length| length * 11));
    lengths.push(3 * launch_blocks * BLOCK_BYTES + 77);
    lengths
}

#[test]
fn a_sweep_tells_the_official_values_of_every_block_with_as_few_launches_as_can_be() {
    let emulator = Emulator::lock(Plan::default());
    for launch_blocks in [1_u64, 2, 3, 5] {
        let device = device(launch_blocks as usize);
        let lengths = mixture(launch_blocks);
        assert!(lengths.len() > 128);
        let (regions, sealed) = regions(&device, &lengths);
        let before = launches(&emulator);
        assert!(swept(&device, &borrowed(&regions)).unwrap() == sealed);
        let blocks: u64 = lengths.iter().map(|length| block_count(*length)).sum();
        assert_eq!(launches(&emulator) - before, blocks.div_ceil(launch_blocks), "launches of {launch_blocks} blocks");
        // The other way round, and none, and one after the other.
        let backwards: Vec<_> = borrowed(&regions).into_iter().rev().collect();
        let reversed: Vec<_> = sealed.iter().rev().cloned().collect();
        assert!(swept(&device, &backwards).unwrap() == reversed);
        assert_eq!(swept(&device, &[]).unwrap().len(), 0);
        for (region, sealed) in regions.iter().zip(&sealed) {
            assert!(swept(&device, &[&**region]).unwrap()[0] == *sealed);
            let mut some = vec![BlockValue::UNKNOWN; sealed.len() - sealed.len() / 3];
            region.hash_blocks((sealed.len() / 3) as u64, &mut some).unwrap();
            assert!(some == sealed[sealed.len() / 3..], "from the middle on");
        }
    }
}

/// The device has work while the host looks at values, and no more than one launch of it.
#[test]
fn the_next_launch_is_with_the_driver_while_the_last_is_told_of() {
    let emulator = Emulator::lock(Plan::default());
    let device = device(2);
    let (regions, _) = regions(&device, &[6 << 20, 1, 2]);
    let mut under_way = Vec::new();
    device.hash_regions(&borrowed(&regions), &mut |_, _, _| under_way.push(emulator.report().pending)).unwrap();
    // Two copies, two wipes, two kernels and three marks a launch. The last launch is of two regions.
    assert_eq!(under_way, [9, 9, 9, 0, 0]);
}

/// Launches of the largest size, more regions than a table had room for, and regions of about a launch's length.
#[test]
fn launches_of_1024_blocks_hold_what_they_can() {
    let emulator = Emulator::lock(Plan::default());
    let device = device(1024);
    let lengths: Vec<u64> = (0..1030).map(|length| length % 37).collect();
    let (regions, sealed) = regions(&device, &lengths);
    let before = launches(&emulator);
    assert!(swept(&device, &borrowed(&regions)).unwrap() == sealed);
    assert_eq!(launches(&emulator) - before, 2, "1030 blocks");
}

/// Memory of another device of the same kind, and of the host: told of as well, each by its own device.
#[test]
fn regions_of_others_are_hashed_by_their_own_devices() {
    let _emulator = Emulator::lock(Plan::default());
    let (ours, other, host) = (device(2), device(2), host(16 << 20));
    let (mut regions, mut sealed) = regions(&ours, &[5, 3 << 20, 0]);
    for device in [&other as &dyn Device, &*host] {
        let bytes = Pattern { seed: 77 }.bytes((2 << 20) + 9);
        let mut values = gpu::values(bytes.len() as u64);
        let mut staged = device.allocate(bytes.len() as u64, 0).unwrap();
        staged.fill(&bytes.as_slice(), &mut values).unwrap();
        regions.insert(1, staged.protect().unwrap());
        sealed.insert(1, values);
    }
    assert!(swept(&ours, &borrowed(&regions)).unwrap() == sealed);
    assert!(swept(&other, &borrowed(&regions)).unwrap() == sealed);
    assert!(swept(&*host, &borrowed(&regions)).unwrap() == sealed);
}

/// Whatever is written by the way, a sweep ends, and each block that it tells of is as it was before or after.
#[test]
fn repairs_and_looks_go_on_beside_sweeps() {
    let _emulator = Emulator::lock(Plan::default());
    let device = device(2);
    let (regions, sealed) = regions(&device, &[9 << 20, 3, 0, 5 << 20, 40]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Two sweeps take both lanes; repairs and looks need one as well.
        let sweeps: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..6 {
                        let told = swept(&device, &borrowed(&regions)).unwrap();
                        assert!(told[1..] == sealed[1..] && told[0][1..] == sealed[0][1..]);
                    }
                })
            })
            .collect();
        let (regions, done) = (&regions, &done);
        for worker in 0..2_u64 {
            scope.spawn(move || {
                let first = Pattern { seed: 0 }.byte(worker);
                while !done.load(Ordering::Relaxed) {
                    regions[0].rewrite(worker, &[first ^ 1]).unwrap();
                    regions[0].rewrite(worker, &[first]).unwrap();
                    let whole = Pattern { seed: 3 }.bytes(8);
                    regions[3].rewrite(0, &whole).unwrap();
                    regions[3].view(0..8, &mut |bytes| assert_eq!(bytes, whole)).unwrap();
                }
            });
        }
        for sweep in sweeps {
            sweep.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(swept(&device, &borrowed(&regions)).unwrap() == sealed);
}

#[test]
fn who_only_looks_does_not_wait_for_the_end_of_two_sweeps() {
    let _emulator = Emulator::lock(Plan::default());
    let device = device(1);
    let (regions, _) = regions(&device, &[6 << 20, 2 << 20, 9]);
    let (holds, looked, done) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
    let wait = |flag: &AtomicBool| {
        while !flag.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    };
    let mut told = Vec::new();
    std::thread::scope(|scope| {
        let (regions, device, holds, looked, done) = (&regions, &device, &holds, &looked, &done);
        let swept = device.hash_regions(&[&*regions[0]], &mut |_, first, _| {
            if first == 0 {
                // The other lane is taken for as long as this sweep takes.
                scope.spawn(move || {
                    device.hash_regions(&[&*regions[1]], &mut |_, _, _| {
                        holds.store(true, Ordering::Release);
                        wait(done);
                    })
                });
                wait(holds);
                scope.spawn(move || {
                    regions[2].view(0..9, &mut |_| ()).unwrap();
                    looked.store(true, Ordering::Release);
                });
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            told.push(looked.load(Ordering::Acquire));
        });
        done.store(true, Ordering::Release);
        swept.unwrap();
    });
    assert_eq!((told.len(), told.first(), told.last()), (6, Some(&false), Some(&true)), "{told:?}");
}

/// A panic of who is told leaves no work behind that nobody waits for, and the device in order.
#[test]
fn a_panic_in_the_middle_of_a_sweep_leaves_nothing_under_way() {
    let emulator = Emulator::lock(Plan::default());
    let device = device(2);
    let (regions, sealed) = regions(&device, &[9 << 20, 3]);
    let fell = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        device.hash_regions(&borrowed(&regions), &mut |_, first, _| assert!(first < 4, "on purpose"))
    }));
    assert!(fell.is_err());
    assert_eq!(emulator.report().pending, 0);
    regions[1].rewrite(0, &Pattern { seed: 1 }.bytes(3)).unwrap();
    assert!(swept(&device, &borrowed(&regions)).unwrap() == sealed);
}

const LENGTHS: [u64; 7] = [5 << 20, 0, 1, 70_000, (2 << 20) + 1, 3 << 20, 9];

fn weights(index: usize) -> Vec<u8> {
    Pattern { seed: index as u64 }.bytes(LENGTHS[index])
}

fn seal(manager: &VramManager) -> Result<Vec<SealedShard>, Error> {
    (0..LENGTHS.len()).map(|index| manager.seal_model(id(&format!("s{index}")), "model", &weights(index))).collect()
}

/// The outcomes of one call, by place.
fn verify_all(manager: &VramManager, shards: &[SealedShard]) -> Vec<Result<vram_residency::Verified, Error>> {
    let mut outcomes = BTreeMap::new();
    manager.verify_all(shards, &mut |index, outcome| assert!(outcomes.insert(index, outcome).is_none()));
    assert!(outcomes.keys().copied().eq(0..shards.len()), "each is told of once");
    outcomes.into_values().collect()
}

#[test]
fn damage_is_found_in_its_shard_and_block_and_the_others_are_verified() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    let shards = seal(&manager).unwrap();
    let before = launches(&emulator);
    assert!(verify_all(&manager, &shards).iter().all(Result::is_ok));
    // 15 blocks in launches of two.
    assert_eq!(launches(&emulator) - before, 8);
    // One bit in each of three shards: the last block of one, the only one of another.
    assert!(emulator.flip(&memory(1), 3 * BLOCK_BYTES + 7, 1));
    assert!(emulator.flip(&memory(4), 69_999, 7));
    assert!(emulator.flip(&memory(5), 2 * BLOCK_BYTES, 0));
    let outcomes = verify_all(&manager, &shards);
    for (index, outcome) in outcomes.iter().enumerate() {
        let found = match outcome {
            Ok(verified) => {
                assert_eq!((verified.bytes, verified.digest), (LENGTHS[index], shards[index].digest()));
                None
            }
            Err(Error::SealVerificationFailed {
                cause: VerifyFailure::Damaged { damaged_blocks, first_block, .. },
                ..
            }) => {
                assert_eq!(*damaged_blocks, 1);
                Some(*first_block)
            }
            Err(error) => panic!("{error}"),
        };
        let expected = [(0, 3), (3, 0), (4, 2)].into_iter().find(|(shard, _)| *shard == index).map(|(_, block)| block);
        assert_eq!(found, expected, "shard {index}");
        let state = if found.is_none() { ShardState::Verified } else { ShardState::Quarantined };
        assert_eq!(shards[index].state(), state, "shard {index}");
    }
    let again = verify_all(&manager, &shards);
    for index in [0, 3, 4] {
        assert!(matches!(again[index], Err(Error::Quarantined { .. })));
        manager.repair(&shards[index], &weights(index).as_slice()).unwrap();
    }
    assert!(verify_all(&manager, &shards).iter().all(Result::is_ok));
    drop((shards, manager));
    let events = events(dir.path());
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    // Three repairs verify as well.
    assert_eq!((count("SealVerified"), count("SealVerificationFailed")), (7 + 4 + 4 + 3 + 7, 3));
    let of_a_sweep: Vec<_> = events.iter().filter(|event| event["event"] == "SealVerified").take(7).collect();
    assert!(of_a_sweep.iter().all(|event| event["duration_ns"] == of_a_sweep[0]["duration_ns"]), "{of_a_sweep:?}");
}

/// A region's launches are its own also beside others, so what is slow is told of it and of no other.
#[test]
fn slow_launches_are_suspected_in_a_sweep_as_well() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    let shards: Vec<_> = [(3 << 20) + 5, 13 << 20, 1, 12 << 20]
        .into_iter()
        .enumerate()
        .map(|(index, length)| manager.seal_model(id(&format!("s{index}")), "model", &vec![1; length]).unwrap())
        .collect();
    let (from, to) = (6 * BLOCK_BYTES, 8 * BLOCK_BYTES);
    emulator.add_faults(vec![Fault::Slow { memory: memory(2), from, to, factor: 60.0 }]);
    let suspected: Vec<_> = verify_all(&manager, &shards)
        .into_iter()
        .map(|outcome| outcome.unwrap().suspected_paged.map(|part| (part.first_block, part.blocks)))
        .collect();
    assert_eq!(suspected, [None, Some((6, 2)), None, None]);
}

/// The GPU is lost at some call of a sweep: no shard that was not hashed to its end is called verified, then or later.
#[test]
fn after_a_gpu_that_was_lost_in_a_sweep_nothing_is_verified() {
    for (code, call, nth) in
        [(214, "cuEventSynchronize", 3), (719, "cuLaunchKernel", 6), (999, "cuMemcpyDtoHAsync_v2", 1), (700, "*", 40)]
    {
        let mut emulator = Emulator::lock(Plan::default());
        // What a dead device refuses to take back is the driver's.
        emulator.leaves();
        let dir = disk_dir();
        let manager = gpu::manager(dir.path());
        let shards = seal(&manager).unwrap();
        assert!(verify_all(&manager, &shards).iter().all(Result::is_ok));
        emulator.add_faults(vec![Fault::lost(call, nth, code)]);
        for round in 0..2 {
            for (shard, outcome) in shards.iter().zip(verify_all(&manager, &shards)) {
                assert!(
                    matches!(&outcome, Err(Error::Device(DeviceError::Cuda(error))) if error.is_lost()),
                    "{outcome:?}"
                );
                assert_eq!(shard.state(), ShardState::Unverified, "round {round}");
            }
        }
        drop((shards, manager));
        assert!(emulator.report().leaks().is_empty() && emulator.report().uses_after_free.is_empty());
        let events = events(dir.path());
        let failed = events.iter().filter(|event| event["event"] == "SealVerificationFailed");
        assert!(failed.clone().all(|event| event["action"] == "unverified"));
        assert_eq!(failed.count(), 2 * LENGTHS.len(), "each shard has a record of its own");
    }
}

/// One sweep with one fault of the driver's. Whether it made a difference.
fn with(fault: &Fault) -> bool {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    let shards = seal(&manager).unwrap();
    assert!(emulator.flip(&memory(5), 0, 0));
    emulator.add_faults(vec![fault.clone()]);
    let first = verify_all(&manager, &shards);
    for (index, (shard, outcome)) in shards.iter().zip(&first).enumerate() {
        let is_verified = shard.state() == ShardState::Verified;
        // What was found as sealed before the GPU was lost is in doubt as well.
        let is_lost = manager.device_lost().is_some();
        assert_eq!(is_verified, outcome.is_ok() && !is_lost, "{fault:?}: shard {index}: {outcome:?}");
        assert!(!is_verified || index != 4, "{fault:?}: damaged, and called verified");
    }
    // Where the GPU is still there, the next sweep tells the truth of all of them. An answer that a question has no answer
    // puts a shard out of use.
    let out = |index: usize| index == 4 || matches!(&first[index], Err(Error::SealVerificationFailed { .. }));
    let second = verify_all(&manager, &shards);
    if !second.iter().any(|outcome| matches!(outcome, Err(Error::Device(_)))) {
        assert!(second.iter().enumerate().all(|(index, outcome)| outcome.is_err() == out(index)), "{fault:?}");
    }
    drop((shards, manager));
    leaves_nothing(&emulator.report(), &format!("{fault:?}"));
    first.iter().enumerate().any(|(index, outcome)| outcome.is_ok() == (index == 4))
}

fn every(step: usize) {
    let calls = {
        let emulator = Emulator::lock(Plan::default());
        let dir = disk_dir();
        let manager = gpu::manager(dir.path());
        let shards = seal(&manager).unwrap();
        assert!(emulator.flip(&memory(5), 0, 0));
        let before: u64 = emulator.report().calls.values().sum();
        verify_all(&manager, &shards);
        emulator.report().calls.values().sum::<u64>() - before
    };
    faults::every(calls, step, &mut with);
}

#[test]
fn a_driver_call_that_fails_in_a_sweep_makes_nothing_verified_that_was_not_hashed() {
    // A prime, so that over time each kind of call is met.
    every(29);
}

/// All of them: `cargo xtask campaign cuda`.
#[test]
#[ignore = "minutes, for every call of a sweep: cargo xtask campaign cuda"]
fn every_driver_call_that_fails_in_a_sweep_makes_nothing_verified_that_was_not_hashed() {
    every(1);
}
