//! Every driver call of a shard's life fails, each in turn, once and for ever: a typed error, nothing leaks, nothing is
//! released twice or used afterwards, nothing half-sealed is visible, and nothing is called verified that was not.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use std::time::Duration;

use cuda_emulator::{Emulator, Fault, Plan};
use gpu::{faults, memory, try_manager};
use support::{disk_dir, events, id, names};
use vram_residency::digest::{BLOCK_BYTES, BlockValue, Digest, Expected};
use vram_residency::model::{Format, ModelFile};
use vram_residency::{Error, Policy, SealRequest, SealedShard, ShardState, VramManager};

const WEIGHTS: &[u8] = &[0x5a; (BLOCK_BYTES + 700) as usize];

/// Opens the GPU, seals, verifies, finds a damaged bit, repairs it, hands out, releases.
fn life(emulator: &Emulator, dir: &std::path::Path) -> Result<(), Error> {
    let manager = try_manager(dir, Policy::default())?;
    let sealed = manager.seal_model(id("shard"), "model", WEIGHTS);
    let outcome = sealed.as_ref().map_or(Ok(()), |shard| used(emulator, &manager, shard));
    if let Err(error) = &sealed {
        assert!(manager.list().is_empty(), "half sealed: {error}");
        all_free(&manager);
    }
    drop(sealed?);
    all_free(&manager);
    outcome
}

/// Unless the driver cannot wait for work on it any more: then it counts as used, and that is said.
fn all_free(manager: &VramManager) {
    let used = manager.capacity().used_bytes;
    let lost = manager.device_lost().unwrap_or_default();
    assert!(used == 0 || lost.contains("stays taken"), "{used} bytes: {lost}");
}

/// What the shard is called must be so. The emulator shows the truth.
fn honest(emulator: &Emulator, shard: &SealedShard, damaged: bool) {
    if shard.state() == ShardState::Verified {
        assert!(!damaged, "damaged, and called verified");
        let resident = emulator.read(&memory(1), 0, 64).unwrap();
        assert_eq!(resident, &WEIGHTS[..64]);
    }
}

fn used(emulator: &Emulator, manager: &VramManager, shard: &SealedShard) -> Result<(), Error> {
    let first = manager.verify_sealed(shard).map(|_| ());
    honest(emulator, shard, false);
    if first.is_err() {
        assert_ne!(shard.state(), ShardState::Verified, "the check was not carried out");
    }
    assert!(emulator.flip(&memory(1), BLOCK_BYTES + 5, 2));
    let found = manager.verify_sealed(shard);
    assert!(found.is_err(), "a damaged bit was not found");
    honest(emulator, shard, true);
    let repaired = manager.repair(shard, &WEIGHTS).map(|_| ());
    match &repaired {
        // Unless the GPU was lost when all was done.
        Ok(()) => assert!(shard.state() == ShardState::Verified || manager.device_lost().is_some()),
        Err(_) => assert_ne!(shard.state(), ShardState::Verified),
    }
    let exported = shard.export().map(|_| ());
    first.and(repaired).and(exported)
}

fn every(step: usize) {
    faults::every(faults::calls(life), step, &mut |fault| faults::with(fault, life));
}

#[test]
fn a_failing_driver_call_leaves_nothing_behind() {
    // A prime, so that over time each kind of call is met.
    every(17);
}

/// All of them: `cargo xtask campaign cuda`.
#[test]
#[ignore = "minutes, for every call of a life: cargo xtask campaign cuda"]
fn every_failing_driver_call_leaves_nothing_behind() {
    every(1);
}

/// Each kind of call by itself, from its first time on.
#[test]
fn a_driver_call_that_always_fails_leaves_nothing_behind() {
    let names = {
        let emulator = Emulator::lock(Plan::default());
        let dir = disk_dir();
        life(&emulator, dir.path()).unwrap();
        emulator.report().calls.into_keys().collect::<Vec<_>>()
    };
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        faults::with(&Fault::fail_forever(&name, 1, 304), life);
    }
}

/// A kernel that is never run, of which the driver says nothing: what is left of the last time is not taken for its values.
#[test]
fn work_that_is_silently_not_done_is_no_check_and_no_seal() {
    let bytes = vec![7_u8; 5000];
    let mut other = bytes.clone();
    other[100] = 9;
    for kernel in [1, 2] {
        let emulator = Emulator::lock(Plan::default());
        let dir = disk_dir();
        let manager = gpu::manager(dir.path());
        let omit = || {
            let launches: u64 = emulator.report().launches.values().sum();
            emulator.add_faults(vec![Fault::Asynchronous { nth: launches + kernel, code: 0 }]);
        };
        let shard = manager.seal_model(id("shard"), "model", &bytes).unwrap();
        manager.verify_sealed(&shard).unwrap();
        // Nothing is wrong with the bytes: a second reading says so.
        omit();
        manager.verify_sealed(&shard).unwrap();
        manager.trail().flush(Duration::from_secs(60)).unwrap();
        assert!(names(&events(dir.path())).contains(&"MismatchNotConfirmed"));
        assert!(emulator.flip(&memory(1), 100, 3));
        omit();
        assert!(matches!(manager.verify_sealed(&shard), Err(Error::SealVerificationFailed { .. })), "kernel {kernel}");
        drop(shard);

        // The right bytes were here before; these are others.
        drop(manager.seal_model(id("again"), "model", &bytes).unwrap());
        let file = dir.path().join("other.bin");
        std::fs::write(&file, &other).unwrap();
        let file = ModelFile::open(&file, Some(Format::Raw)).unwrap();
        omit();
        let request = SealRequest::new(id("other"), "model").expecting(Expected::Blake3(Digest::of(&bytes)));
        assert!(manager.seal_file(&file, &request).is_err(), "kernel {kernel}: other bytes under the expected digest");
    }
}

/// The same kernel is not run when a value is made and when it is compared: two faults do not hide each other.
#[test]
fn what_is_silently_not_computed_is_never_the_same_twice() {
    for kernel in [1, 2] {
        let emulator = Emulator::lock(Plan::default());
        let device = gpu::device();
        let (region, sealed) = gpu::region(&device, WEIGHTS, 0).unwrap();
        let omitted = || {
            let launches: u64 = emulator.report().launches.values().sum();
            emulator.add_faults(vec![Fault::Asynchronous { nth: launches + kernel, code: 0 }]);
            let mut values = gpu::values(WEIGHTS.len() as u64);
            region.hash_blocks(0, &mut values).unwrap();
            values
        };
        let (first, second) = (omitted(), omitted());
        // Those of the launch whose kernel it was.
        for ((block, first), second) in sealed.iter().zip(first).zip(second).take(2) {
            assert!(first != *block && second != *block, "kernel {kernel}");
            // What the second kernel writes is wiped before: no value, and no seal is made of that.
            assert!(first != second || (kernel == 2 && first == BlockValue::UNKNOWN), "kernel {kernel}");
        }
    }
}
