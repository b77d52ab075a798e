//! The keyed fingerprint on an emulated GPU that executes the shipped kernels, and the re-checks made of it.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]
#![allow(dead_code, unreachable_pub, clippy::print_stdout)]

mod gpu;
#[path = "kernels/nh.rs"]
mod nh;
mod support;

use std::time::{Duration, Instant};

use cuda_emulator::{After, Emulator, Fault, Kind, Memory, Plan};
use gpu::{faults, manager, memory, options, region, try_manager};
use support::{disk_dir, events, id, names};
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{CudaDevice, Device, HashVariant, Region};
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::fingerprint::{Fingerprint, FingerprintKey, KEYS_BYTES, WORDS_BYTES};
use vram_residency::policy::OnFailure;
use vram_residency::{Error, Policy, Rechecked, SealedShard, ShardState, VerifyFailure, VramManager};

fn secret(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// The fingerprint as docs/kernels.md defines it.
fn expected(secret: [u8; 32], bytes: &[u8]) -> Fingerprint {
    let mut keys = [0; KEYS_BYTES];
    FingerprintKey::from_secret(secret).expand(&mut keys);
    let words = std::array::from_fn(|at| u32::from_le_bytes(keys[at * 4..at * 4 + 4].try_into().unwrap()));
    Fingerprint::from_bytes(nh::tag(&words, keys[WORDS_BYTES..].try_into().unwrap(), bytes))
}

fn taken(region: &dyn Region, secret: [u8; 32]) -> Fingerprint {
    region.fingerprint(&FingerprintKey::from_secret(secret)).unwrap().unwrap()
}

#[test]
fn fingerprints_are_those_of_the_definition_at_every_length_and_alignment() {
    let _emulator = Emulator::lock(Plan::default());
    let mut lengths: Vec<u64> = (0..=48).collect();
    lengths.extend([63, 64, 65, 496, 511, 512, 513, 527, 528, 1023, 1024, 1025, 8191, 8192, 8193, 65_543]);
    lengths.extend([131_071, 131_072, 131_073, 131_088, 200_001]);
    lengths.extend([BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 5 * BLOCK_BYTES + 4321]);
    let pattern = Pattern { seed: 11 }.bytes(*lengths.iter().max().unwrap());
    let mut shown = 0_u64;
    let setups = [(HashVariant::Plain, 2), (HashVariant::Mad, 1024), (HashVariant::Plain, 1)];
    for (setup, (variant, launch_blocks)) in setups.into_iter().enumerate() {
        let mut options = options();
        options.variant = Some(variant);
        options.launch_blocks = Some(launch_blocks);
        let device = CudaDevice::open(&options).unwrap();
        for (index, length) in lengths.iter().enumerate() {
            let bytes = &pattern[..*length as usize];
            for (alignment, lead) in [0, 8, 248].into_iter().enumerate() {
                // Long ones at each alignment, but on one of the devices.
                if *length > 100_000 && (index + setup + alignment) % 3 != 0 {
                    continue;
                }
                let (region, _) = region(&device, bytes, lead).unwrap();
                shown += 1;
                assert!(
                    taken(&*region, secret(shown)) == expected(secret(shown), bytes),
                    "{length} bytes, {lead} behind, {variant}, {launch_blocks} blocks a launch"
                );
            }
        }
    }
    assert!(shown > 600);
}

/// More than the 128 blocks whose tiles are one block of what BLAKE3 hashes, and more than the slice that is in the buffer at
/// one time: values are merged on the host, and the kernels read from behind where the buffer starts.
#[test]
fn fingerprints_of_more_than_a_slice_are_those_of_the_definition() {
    let _emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    for (number, length) in [(1, 128 * BLOCK_BYTES), (2, 130 * BLOCK_BYTES + 5)] {
        let bytes = Pattern { seed: number }.bytes(length);
        let (region, _) = region(&device, &bytes, 0).unwrap();
        assert!(taken(&*region, secret(number)) == expected(secret(number), &bytes), "{length} bytes");
    }
}

#[test]
fn a_flipped_bit_changes_the_fingerprint() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let length = BLOCK_BYTES + 20_011;
    let bytes = Pattern { seed: 3 }.bytes(length);
    let (region, _) = region(&device, &bytes, 8).unwrap();
    // A prime apart: each bit of a byte, each word of a piece, the first and the last byte of both blocks.
    let step = (BLOCK_BYTES / 16 * 8 + 13) as usize;
    let bits = (0..length * 8).step_by(step).chain((BLOCK_BYTES * 8..length * 8).step_by(997));
    for bit in bits.chain([0, BLOCK_BYTES * 8 - 1, length * 8 - 1]) {
        let (byte, number) = (8 + bit / 8, (bit % 8) as u8);
        assert!(emulator.flip(&memory(1), byte, number));
        assert!(taken(&*region, secret(bit)) != expected(secret(bit), &bytes), "bit {bit}");
        assert!(emulator.flip(&memory(1), byte, number));
    }
    assert!(taken(&*region, secret(0)) == expected(secret(0), &bytes), "nothing else was changed");
    assert!(taken(&*region, secret(1)) != taken(&*region, secret(2)), "another key, another fingerprint");
}

/// A key that does not arrive as it was sent would be noticed by nobody else: what is computed without it would match, too.
#[test]
fn a_gpu_that_answers_known_questions_wrongly_takes_no_fingerprint() {
    let mut refused = 0;
    for nth in 1..40 {
        let mut emulator = Emulator::lock(Plan::default());
        let device = gpu::device();
        let (region, _) = region(&device, &[1; 300], 0).unwrap();
        let buffer = Memory { call: "cuMemHostAlloc".to_owned(), nth };
        // Work is done when it is waited for: a bit of the key on its way, among other things.
        let after = After::call("cuLaunchKernel", 1);
        emulator.add_faults(vec![Fault::Flip { memory: buffer, offset: 3, bit: 1, after }]);
        if let Err(error) = region.fingerprint(&FingerprintKey::from_secret(secret(1))) {
            // Of the table of regions a wrong bit is the end of the context.
            let text = error.to_string();
            if !text.contains("known question") {
                assert!(text.contains("700"), "{text}");
                emulator.leaves();
                continue;
            }
            refused += 1;
        }
        emulator.clear_faults();
        assert!(taken(&*region, secret(1)) == expected(secret(1), &[1; 300]), "tried anew");
    }
    assert!(refused > 0);
}

/// A kernel that is silently not run, both when a fingerprint is made and when it is compared: what it left out is another each
/// time, so the two are not the same.
#[test]
fn tiles_that_are_silently_not_computed_are_never_the_same_twice() {
    for kernel in 1..=3 {
        let emulator = Emulator::lock(Plan::default());
        let device = gpu::device();
        let bytes = Pattern { seed: 6 }.bytes(BLOCK_BYTES + 70_000);
        let (region, _) = region(&device, &bytes, 0).unwrap();
        let whole = taken(&*region, secret(1));
        assert!(whole == taken(&*region, secret(1)), "the same, where everything is computed");
        let omitted = || {
            let launches: u64 = emulator.report().launches.values().sum();
            emulator.add_faults(vec![Fault::Asynchronous { nth: launches + kernel, code: 0 }]);
            taken(&*region, secret(1))
        };
        let (first, second) = (omitted(), omitted());
        assert!(first != whole && second != whole && first != second, "kernel {kernel}");
        assert!(whole == taken(&*region, secret(1)));
    }
}

/// The same, seen from above: a re-check whose key was taken without the tiles does not match without them.
#[test]
fn a_recheck_is_no_match_where_neither_the_key_nor_the_check_was_computed() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (manager, shard) = sealed(dir.path(), Policy::default(), 1);
    // The fingerprinter is there; new keys are taken by a full verification when the only one is used up.
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { keys_left: 0, .. })));
    let omit = || {
        let launches: u64 = emulator.report().launches.values().sum();
        emulator.add_faults(vec![Fault::Asynchronous { nth: launches + 1, code: 0 }]);
    };
    omit();
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Verified(_))), "a new key, and every byte hashed");
    assert!(emulator.flip(&memory(1), 5, 5));
    omit();
    assert!(!matches!(manager.recheck(&shard), Ok(Rechecked::Matched { .. })), "a damaged bit, and neither tiles");
}

/// Every byte of a piece of the device's memory; none where there is no such piece.
fn all_bytes(emulator: &Emulator, memory: &Memory) -> Vec<u8> {
    let (mut bytes, mut step) = (Vec::new(), 1 << 16);
    while step > 0 {
        match emulator.read(memory, bytes.len() as u64, step) {
            Some(more) => bytes.extend(more),
            None => step /= 2,
        }
    }
    bytes
}

/// Looks for secrets in all of the device's memory but the weights', the kernels' variables among it. Says in how many pieces.
fn assert_wiped(emulator: &Emulator, secrets: &[&[u8]]) -> usize {
    let variables = (1..=2).map(|nth| Memory { call: "cuModuleLoadDataEx".to_owned(), nth });
    let pieces = variables.chain((1..60).map(Memory::allocated)).map(|memory| (all_bytes(emulator, &memory), memory));
    let pieces: Vec<_> = pieces.filter(|(bytes, _)| !bytes.is_empty()).collect();
    for (bytes, memory) in &pieces {
        for secret in secrets {
            assert!(!bytes.windows(secret.len()).any(|window| window == *secret), "{memory:?} has it still");
        }
    }
    assert!(pieces.iter().any(|(_, memory)| memory.call == "cuModuleLoadDataEx"), "the first key's variable is seen");
    pieces.len()
}

#[test]
fn no_key_and_nothing_that_follows_from_one_stays_on_the_device() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let bytes = Pattern { seed: 5 }.bytes(70_000);
    let (region, _) = region(&device, &bytes, 0).unwrap();
    let mut keys = [0; KEYS_BYTES];
    FingerprintKey::from_secret(secret(1)).expand(&mut keys);
    let words: [u32; nh::KEY_WORDS] =
        std::array::from_fn(|at| u32::from_le_bytes(keys[at * 4..at * 4 + 4].try_into().unwrap()));
    let tiles = nh::tiles(&words, &bytes, 0..1);
    let tag = nh::tag(&words, keys[WORDS_BYTES..].try_into().unwrap(), &bytes);
    let (middle, end) = (&keys[2000..2016], &keys[WORDS_BYTES - 16..WORDS_BYTES]);
    let secrets = [&keys[..16], middle, end, &keys[WORDS_BYTES..], &tiles[..32], &tiles[32..64], &tag];
    assert!(taken(&*region, secret(1)).as_bytes() == &tag);
    assert!(assert_wiped(&emulator, &secrets) >= 8);
    // Also where the check fails, whatever of it: the first key is there by then.
    for call in ["cuLaunchKernel", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"] {
        for nth in 1..4 {
            emulator.add_faults(vec![Fault::fail_once(call, nth, 1)]);
            let _ = region.fingerprint(&FingerprintKey::from_secret(secret(1)));
            emulator.clear_faults();
            assert_wiped(&emulator, &secrets);
        }
    }
}

/// The weights of the tests below: two blocks and a bit.
/// A copy to the buffer of the values may be under way where the last wait was refused: it is not written to then.
#[test]
fn what_a_copy_may_still_write_to_is_left_alone_until_it_was_waited_for() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let device = gpu::device();
    let (region, _) = region(&device, &[3; 5000], 0).unwrap();
    taken(&*region, secret(1));
    let pinned = || {
        let memory = (1..200).map(|nth| Memory { call: "cuMemHostAlloc".to_owned(), nth });
        memory.filter(|memory| emulator.read(memory, 0, 32).is_some_and(|bytes| bytes != [0; 32])).collect::<Vec<_>>()
    };
    let before = pinned();
    // The values have come, and are looked at; then nothing can be waited for any more.
    emulator.add_faults(vec![Fault::fail_forever("cuStreamSynchronize", 2, 304)]);
    assert!(region.fingerprint(&FingerprintKey::from_secret(secret(2))).is_err());
    let after = pinned();
    assert_eq!(after.len(), before.len() + 1, "the values alone: the key is gone");
    emulator.clear_faults();
    drop((region, device));
    assert!(pinned().is_empty());
    assert_eq!(emulator.report().live_of(Kind::Host).len(), 0);
}

fn weights() -> Vec<u8> {
    Pattern { seed: 9 }.bytes(2 * BLOCK_BYTES + 77)
}

fn sealed(dir: &std::path::Path, policy: Policy, keys: u16) -> (VramManager, SealedShard) {
    let manager = try_manager(dir, policy).unwrap();
    manager.keep_recheck_keys(keys).unwrap();
    let shard = manager.seal_model(id("shard"), "model", &weights()).unwrap();
    (manager, shard)
}

#[test]
fn each_key_is_used_once_and_new_ones_come_with_a_full_verification() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (manager, shard) = sealed(dir.path(), Policy::default(), 2);
    assert!(manager.has_rechecks());
    assert_eq!(shard.recheck_keys(), 2);
    let verified_before = shard.last_verified_ns();
    for left in [1, 0] {
        let asked = Instant::now();
        let Rechecked::Matched { bytes, keys_left, .. } = manager.recheck(&shard).unwrap() else { panic!("no match") };
        assert_eq!((bytes, keys_left, shard.recheck_keys()), (shard.bytes(), left, left));
        assert_eq!(shard.last_verified_ns(), verified_before, "that is the hash's to change");
        assert_eq!(shard.state(), ShardState::Sealed, "and so is the state");
        assert!(shard.oldest_age() <= asked.elapsed(), "every block is as old as this check");
    }
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Verified(verified)) if verified.digest == shard.digest()));
    assert_eq!((shard.recheck_keys(), shard.state()), (2, ShardState::Verified));
    assert!(shard.last_verified_ns() > verified_before);
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { keys_left: 1, .. })));

    // Other bytes under the same name have keys of their own.
    let mut unsealed = manager.unseal(shard, "new weights").unwrap();
    unsealed.write(5, b"other").unwrap();
    let shard = unsealed.reseal().unwrap();
    assert_eq!(shard.recheck_keys(), 2);
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { .. })));

    drop(shard);
    drop(manager);
    let records = events(dir.path());
    let matched: Vec<_> = records.iter().filter(|record| record["event"] == "FingerprintMatched").collect();
    assert_eq!(matched.iter().map(|record| record["keys_left"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 0, 1, 1]);
    assert_eq!(names(&records).iter().filter(|name| **name == "SealVerified").count(), 1);
}

#[test]
fn nothing_is_kept_unless_it_is_asked_for_and_then_a_recheck_is_a_full_verification() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (manager, shard) = sealed(dir.path(), Policy::default(), 0);
    assert_eq!((manager.has_rechecks(), shard.recheck_keys()), (false, 0));
    assert_eq!(emulator.report().calls_of("cuModuleGetGlobal_v2"), 0, "the kernel is not even compiled");
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Verified(_))));
    // From now on.
    manager.keep_recheck_keys(1).unwrap();
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Verified(_))));
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { keys_left: 0, .. })));
}

#[test]
fn damage_is_found_located_recorded_and_answered_as_by_a_full_verification() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let mut policy = Policy::default();
    policy.on_failure = OnFailure::FailClosed;
    let (manager, shard) = sealed(dir.path(), policy, 3);
    assert!(emulator.flip(&memory(1), BLOCK_BYTES + 5, 2));
    let Err(Error::SealVerificationFailed { cause, .. }) = manager.recheck(&shard) else { panic!("not found") };
    assert!(matches!(cause, VerifyFailure::Damaged { damaged_blocks: 1, first_block: 1, .. }), "{cause}");
    assert_eq!(shard.state(), ShardState::Quarantined);
    assert!(matches!(manager.recheck(&shard), Err(Error::Quarantined { .. })));
    assert_eq!(shard.recheck_keys(), 2, "a refused check uses no key");
    manager.repair(&shard, &weights().as_slice()).unwrap();
    // The sealed bytes are there again, and so is their fingerprint under the keys that are left.
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { keys_left: 1, .. })));
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { keys_left: 0, .. })));
    // Fingerprints of damaged bytes are not kept.
    assert!(emulator.flip(&memory(1), 5, 2));
    assert!(matches!(manager.recheck(&shard), Err(Error::SealVerificationFailed { .. })));
    manager.repair(&shard, &weights().as_slice()).unwrap();
    assert_eq!(shard.recheck_keys(), 0);
    drop(shard);
    drop(manager);
    let failed: Vec<_> =
        events(dir.path()).into_iter().filter(|record| record["event"] == "SealVerificationFailed").collect();
    let blocks: Vec<_> = failed.iter().map(|record| record["first_block"].as_u64().unwrap()).collect();
    assert_eq!(blocks, [1, 0]);
}

/// What the fingerprint found is gone when the hash looks: a fault that came and went, or who made it.
#[test]
fn a_mismatch_that_the_hash_does_not_find_is_on_record_and_counts_as_no_check() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (manager, shard) = sealed(dir.path(), Policy::default(), 2);
    let launches = emulator.report().calls_of("cuLaunchKernel");
    // The fingerprint is waited for twice, and then the bit is right again.
    assert!(emulator.flip(&memory(1), 9, 1));
    emulator.add_faults(vec![Fault::Flip {
        memory: memory(1),
        offset: 9,
        bit: 1,
        after: After::call("cuStreamSynchronize", 2),
    }]);
    let while_sealed = Duration::from_millis(50);
    std::thread::sleep(while_sealed);
    let asked = Instant::now();
    assert_eq!(manager.recheck(&shard).unwrap(), Rechecked::NotConfirmed);
    assert!(emulator.report().calls_of("cuLaunchKernel") > launches + 4);
    let since = asked.elapsed();
    assert!(shard.oldest_age() >= since + while_sealed, "not called checked");
    assert_eq!((shard.state(), shard.recheck_keys()), (ShardState::Sealed, 1));
    assert!(matches!(manager.recheck(&shard), Ok(Rechecked::Matched { .. })));
    drop(shard);
    drop(manager);
    let records = events(dir.path());
    let names = names(&records);
    assert_eq!(names.iter().filter(|name| **name == "FingerprintNotConfirmed").count(), 1);
    assert!(!names.contains(&"SealVerified"));
}

#[test]
fn bytes_that_change_between_their_hash_and_their_fingerprints_are_not_sealed() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    manager.keep_recheck_keys(1).unwrap();
    // The kernel of the fingerprint is compiled after the load's hash.
    emulator.add_faults(vec![Fault::Flip {
        memory: memory(1),
        offset: 9,
        bit: 1,
        after: After::call("cuModuleGetGlobal_v2", 1),
    }]);
    let error = manager.seal_model(id("shard"), "model", &weights()).unwrap_err();
    assert!(error.to_string().contains("two answers about block 0"), "{error}");
    assert_eq!((manager.list().len(), manager.capacity().used_bytes), (0, 0));
}

/// A seal with keys, one re-check of each kind.
fn life(emulator: &Emulator, dir: &std::path::Path) -> Result<(), Error> {
    let manager = try_manager(dir, Policy::default())?;
    manager.keep_recheck_keys(1).unwrap();
    let sealed = manager.seal_model(id("shard"), "model", &weights()[..4000]);
    if let Err(error) = &sealed {
        assert!(manager.list().is_empty(), "half sealed: {error}");
        let lost = manager.device_lost().unwrap_or_default();
        assert!(manager.capacity().used_bytes == 0 || lost.contains("stays taken"), "{error}");
    }
    let shard = sealed?;
    let mut outcome = Ok(());
    for _ in 0..3 {
        let rechecked = manager.recheck(&shard);
        match &rechecked {
            // A lost answer of one fingerprint, or of the hash, is noticed and said.
            Ok(Rechecked::Matched { .. } | Rechecked::Verified(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(!matches!(shard.state(), ShardState::Sealed | ShardState::Verified), "not carried out"),
        }
        outcome = outcome.and(rechecked.map(|_| ()));
    }
    // Whatever went wrong before: a bit that is wrong is found, or it is said that nothing could be.
    assert!(emulator.flip(&memory(1), 77, 2));
    for _ in 0..2 {
        assert!(manager.recheck(&shard).is_err(), "a damaged bit was not found");
        assert_ne!(shard.state(), ShardState::Verified);
    }
    outcome
}

fn every(step: usize) {
    faults::every(faults::calls(life), step, &mut |fault| faults::with(fault, life));
}

#[test]
fn a_failing_driver_call_is_an_error_and_never_a_check() {
    every(13);
}

/// All of them: `cargo xtask campaign cuda`.
#[test]
#[ignore = "minutes, for every call of a life: cargo xtask campaign cuda"]
fn every_failing_driver_call_is_an_error_and_never_a_check() {
    every(1);
}

#[test]
fn a_lost_gpu_makes_a_shard_unverified_and_no_fingerprint_makes_it_good_again() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let dir = disk_dir();
    let (manager, shard) = sealed(dir.path(), Policy::default(), 3);
    manager.verify_sealed(&shard).unwrap();
    emulator.add_faults(vec![Fault::lost("cuLaunchKernel", 1, 214)]);
    for _ in 0..2 {
        assert!(matches!(manager.recheck(&shard), Err(Error::Device(_))));
        assert_eq!(shard.state(), ShardState::Unverified);
    }
    assert_eq!(shard.recheck_keys(), 2, "the second attempt was one of the hash");
    let device: std::sync::Arc<dyn Device> = support::host(1 << 20);
    assert!(!device.has_fingerprint());
}
