//! The front door: sealing, verifying, sharing, releasing, and what is refused.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use support::{disk_dir, events, host, id, manager, manager_with, names};
use vram_residency::audit::AuditTrail;
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{Device, DeviceError, HostDevice, HostOptions, Locking, Protection};
use vram_residency::digest::{BLOCK_BYTES, Digest, Expected};
use vram_residency::model::writer::{Layout, TensorSpec};
use vram_residency::model::{Dtype, ModelFile};
use vram_residency::policy::RequiredResidency;
use vram_residency::{Error, Policy, SealRequest, ShardState, VramManager};

const MIB: u64 = 1 << 20;

fn silent(capacity_bytes: u64) -> VramManager {
    manager_with(host(capacity_bytes), AuditTrail::off(), Policy::default())
}

/// A safetensors file of two tensors, and its path.
fn model_file(dir: &std::path::Path, bytes: u64) -> std::path::PathBuf {
    let tensors =
        vec![TensorSpec::new("first.weight", Dtype::U8, [1000]), TensorSpec::new("second.weight", Dtype::U8, [bytes])];
    let path = dir.join("model.safetensors");
    let mut file = fs::File::create(&path).unwrap();
    let layout = Layout::new(tensors).unwrap();
    layout
        .write(&mut file, |tensor, offset, bytes| {
            let seed = tensor.name.len() as u64;
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = Pattern { seed }.byte(offset + at as u64);
            }
        })
        .unwrap();
    path
}

#[test]
fn a_sealed_shard_states_what_it_is_and_lends_its_bytes() {
    let manager = silent(64 * MIB);
    let weights = Pattern { seed: 3 }.bytes(3 * MIB + 17);
    let shard = manager.seal_model(id("shard-1"), "org/model", &weights).unwrap();
    assert_eq!(shard.digest(), Digest::of(&weights));
    assert_eq!((shard.bytes(), shard.model_ref()), (weights.len() as u64, "org/model"));
    assert_eq!((shard.state(), shard.protection()), (ShardState::Sealed, Protection::ReadOnly));
    assert!(shard.with_bytes(0..shard.bytes(), |bytes| bytes == weights).unwrap());
    assert!(matches!(shard.with_bytes(0..u64::MAX, |_| ()), Err(Error::Device(DeviceError::OutOfRange { .. }))));

    let verified = manager.verify_sealed(&shard).unwrap();
    assert_eq!((verified.bytes, verified.digest), (shard.bytes(), shard.digest()));
    assert_eq!(shard.state(), ShardState::Verified);
    assert_eq!(shard.last_verified_ns(), verified.at_ns);
    assert_eq!(manager.list().len(), 1);
}

#[test]
fn a_model_file_is_sealed_with_its_tensors_in_place() {
    let dir = disk_dir();
    let path = model_file(dir.path(), 2 * MIB + 13);
    let file = ModelFile::open(&path, None).unwrap();
    let manager = silent(64 * MIB);
    let seen = AtomicU64::new(0);
    let progress = |bytes| {
        seen.fetch_add(bytes, Ordering::Relaxed);
    };
    let contents = fs::read(&path).unwrap();
    let sha256: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&contents).into();
    for expected in [Expected::Sha256(sha256), Expected::Blake3(Digest::of(&contents))] {
        seen.store(0, Ordering::Relaxed);
        let request = SealRequest::new(id("file"), "model").expecting(expected).reporting(&progress);
        let shard = manager.seal_file(&file, &request).unwrap();
        assert_eq!(shard.digest(), Digest::of(&contents));
        assert_eq!(seen.load(Ordering::Relaxed), contents.len() as u64);
        assert_eq!(shard.table().tensors().len(), 2);
        let first = shard.table().get("first.weight").unwrap();
        let (start, end) = (first.start as usize, first.end as usize);
        let same = |bytes: &[u8]| bytes == &contents[start..end] && (bytes.as_ptr() as usize).is_multiple_of(256);
        assert!(shard.with_tensor("first.weight", same).unwrap().unwrap(), "aligned to 256 bytes");
        assert!(shard.with_tensor("third.weight", |_| ()).is_none());
        manager.verify_sealed(&shard).unwrap();
    }
}

#[test]
fn clones_share_one_region_and_the_last_one_gives_it_back() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 64 * MIB);
    let shard = manager.seal_model(id("shard"), "model", &[5; 100_000]).unwrap();
    let used = manager.capacity().used_bytes;
    assert!(used >= 100_000);
    let clone = shard.clone();
    manager.release(shard);
    assert_eq!(manager.capacity().used_bytes, used, "a clone is left");
    manager.verify_sealed(&clone).unwrap();
    // Dropped on another thread, after the manager, without any runtime.
    let trail = manager.trail().clone();
    drop(manager);
    std::thread::spawn(move || drop(clone)).join().unwrap();
    trail.flush(Duration::from_secs(5)).unwrap();
    let events = events(dir.path());
    assert_eq!(names(&events), ["VramAllocated", "VramSealed", "SealVerified", "VramDeallocated"]);
    assert_eq!((&events[3]["freed_bytes"], &events[3]["used_bytes"]), (&100_000.into(), &0.into()));
}

#[test]
fn ids_are_unique_among_resident_shards_and_free_again_afterwards() {
    let manager = silent(64 * MIB);
    let shard = manager.seal_model(id("twice"), "model", b"a").unwrap();
    let again = manager.seal_model(id("twice"), "model", b"b");
    assert!(matches!(again, Err(Error::DuplicateShard { .. })));
    drop(shard);
    manager.seal_model(id("twice"), "model", b"b").unwrap();
}

#[test]
fn shards_of_another_manager_are_refused() {
    let (ours, theirs) = (silent(MIB), silent(MIB));
    let shard = theirs.seal_model(id("shard"), "model", b"weights").unwrap();
    assert!(matches!(ours.verify_sealed(&shard), Err(Error::ForeignShard { .. })));
    assert!(matches!(ours.repair(&shard, &b"weights".as_slice()), Err(Error::ForeignShard { .. })));
    assert!(matches!(ours.inject_fault(&shard, 0, 0), Err(Error::ForeignShard { .. })));
}

#[test]
fn what_does_not_fit_is_refused_with_the_sizes_and_leaves_nothing() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 2 * MIB);
    let exact = manager.seal_model(id("exact"), "model", &vec![1; 2 * MIB as usize]).unwrap();
    let more = manager.seal_model(id("more"), "model", b"x");
    let Err(error @ Error::Device(DeviceError::InsufficientMemory { .. })) = more else { panic!("{more:?}") };
    assert!(error.is_retriable() && !error.is_fatal());
    drop(exact);
    manager.seal_model(id("more"), "model", b"x").unwrap();
    manager.trail().flush(Duration::from_secs(5)).unwrap();
    let events = events(dir.path());
    let failed = events.iter().find(|event| event["event"] == "VramAllocationFailed").unwrap();
    assert_eq!(failed["available_bytes"], 0);
    assert!(failed["reason"].as_str().unwrap().contains("release a shard"));
}

#[test]
fn names_that_cannot_be_signed_are_refused() {
    let manager = silent(MIB);
    for text in [String::new(), "x".repeat(4097)] {
        assert!(matches!(manager.seal_model(id("shard"), &text, b"w"), Err(Error::Text { limit: 4096, .. })));
    }
    let answer = manager.seal_model(id("shard"), "two\nlines", b"w");
    assert!(matches!(answer, Err(Error::ControlCharacter { position: 3, .. })));
    assert_eq!(manager.capacity().used_bytes, 0);
}

#[test]
fn a_hash_that_was_not_expected_leaves_nothing_and_is_on_record_before_the_error() {
    let dir = disk_dir();
    let path = model_file(dir.path(), 5000);
    let log = dir.path().join("audit");
    let manager = manager(&log, 64 * MIB);
    let file = ModelFile::open(&path, None).unwrap();
    for wrong in [Expected::Sha256([1; 32]), Expected::Blake3(Digest::of(b"something else"))] {
        let answer = manager.seal_file(&file, &SealRequest::new(id("wrong"), "model").expecting(wrong));
        // Read the log at once: no flush, no close.
        let events = events(&log);
        let violation = events.iter().rev().find(|event| event["event"] == "PolicyViolation").unwrap();
        assert_eq!((&violation["severity"], &violation["policy"]), (&"critical".into(), &"expected-digest".into()));
        let Err(error @ Error::Unexpected { .. }) = answer else { panic!("{answer:?}") };
        assert!(error.is_integrity());
        assert_eq!((manager.capacity().used_bytes, manager.list().len()), (0, 0));
    }
}

#[test]
fn a_file_that_changes_while_it_is_loaded_is_refused() {
    let dir = disk_dir();
    let path = model_file(dir.path(), 3 * MIB);
    let log = dir.path().join("audit");
    let manager = manager(&log, 64 * MIB);
    let request = || SealRequest::new(id("moving"), "model");
    let open = || ModelFile::open(&path, None).unwrap();

    let file = open();
    let mut header = fs::OpenOptions::new().write(true).open(&path).unwrap();
    header.write_all(&[0x99]).unwrap();
    assert!(matches!(manager.seal_file(&file, &request()), Err(Error::SourceChanged { .. })), "header rewritten");
    let recorded = events(&log);
    let violation = recorded.iter().find(|event| event["event"] == "PolicyViolation").unwrap();
    assert_eq!(violation["policy"], "unchanged-source");

    let file = {
        drop(header);
        model_file(dir.path(), 3 * MIB);
        open()
    };
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    assert!(matches!(manager.seal_file(&file, &request()), Err(Error::SourceChanged { .. })), "grown");

    model_file(dir.path(), 3 * MIB);
    let file = open();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB).unwrap();
    let answer = manager.seal_file(&file, &request());
    assert!(matches!(answer, Err(Error::Device(DeviceError::Source { .. }))), "cut short: {answer:?}");

    // Expecting a SHA-256 makes threads wait for each other; a short file must not leave them waiting.
    let request = request().expecting(Expected::Sha256([0; 32]));
    let answer = manager.seal_file(&file, &request);
    assert!(matches!(answer, Err(Error::Device(DeviceError::Source { .. }))), "cut short: {answer:?}");
    assert_eq!((manager.capacity().used_bytes, manager.list().len()), (0, 0));
}

#[test]
fn the_policy_decides_before_a_shard_exists() {
    let dir = disk_dir();
    let mut options = HostOptions::default();
    options.capacity_bytes = Some(MIB);
    options.locking = Locking::Never;
    let device = std::sync::Arc::new(HostDevice::open(options).unwrap());
    for residency in [RequiredResidency::Locked, RequiredResidency::Vram] {
        let log = dir.path().join(format!("{residency:?}"));
        let mut policy = Policy::default();
        policy.residency = residency;
        let manager = manager_with(std::sync::Arc::clone(&device), AuditTrail::open(&log).unwrap(), policy);
        let answer = manager.seal_model(id("shard"), "model", b"weights");
        let Err(error @ Error::Policy { .. }) = answer else { panic!("{answer:?}") };
        assert!(error.is_fatal() && !error.is_integrity());
        manager.trail().flush(std::time::Duration::from_secs(30)).unwrap();
        let recorded = events(&log);
        let violation = recorded.iter().find(|event| event["event"] == "PolicyViolation").unwrap();
        assert_eq!(violation["severity"], "critical");
        assert_eq!(device.capacity().used_bytes, 0);
    }
}

#[test]
fn many_threads_seal_verify_and_release_without_getting_in_each_others_way() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 256 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let manager = manager.clone();
            scope.spawn(move || {
                for round in 0..20 {
                    let weights = Pattern { seed: thread * 100 + round }.bytes(1 + thread * 7919 + round * 13);
                    let name = format!("shard-{thread}-{round}");
                    let shard = manager.seal_model(id(&name), "model", &weights).unwrap();
                    assert_eq!(manager.verify_sealed(&shard).unwrap().digest, Digest::of(&weights));
                }
            });
        }
    });
    assert_eq!((manager.capacity().used_bytes, manager.list().len()), (0, 0));
    manager.trail().flush(Duration::from_secs(5)).unwrap();
    assert_eq!(events(dir.path()).len(), 16 * 20 * 4);
}

#[test]
fn a_thousand_small_shards_are_told_apart() {
    let manager = silent(64 * MIB);
    let shards: Vec<_> = (0_u64..1000)
        .map(|n| manager.seal_model(id(&format!("s{n}")), "model", &Pattern { seed: n }.bytes(1024)).unwrap())
        .collect();
    for (n, shard) in (0_u64..).zip(&shards) {
        assert_eq!(manager.verify_sealed(shard).unwrap().digest, Digest::of(&Pattern { seed: n }.bytes(1024)));
    }
    assert_eq!(manager.list().len(), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bits are flipped wherever, the blocks that a verification names are those that were hit, and a repair
    /// restores exactly the sealed bytes.
    #[test]
    fn any_damage_is_named_and_repaired(
        bytes in 1_u64..(3 * BLOCK_BYTES),
        hits in prop::collection::btree_set((any::<u64>(), 0_u8..8), 1..20),
    ) {
        let manager = silent(64 * MIB);
        let weights = Pattern { seed: bytes }.bytes(bytes);
        let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
        let hits: std::collections::BTreeSet<_> = hits.into_iter().map(|(byte, bit)| (byte % bytes, bit)).collect();
        for (byte, bit) in &hits {
            manager.inject_fault(&shard, *byte, *bit).unwrap();
        }
        let blocks: std::collections::BTreeSet<_> = hits.iter().map(|(byte, _)| byte / BLOCK_BYTES).collect();
        let failed = matches!(manager.verify_sealed(&shard), Err(Error::SealVerificationFailed { .. }));
        prop_assert!(failed);
        let refused = matches!(shard.with_bytes(0..1, |_| ()), Err(Error::Quarantined { .. }));
        prop_assert!(refused);
        let report = manager.repair(&shard, &weights.as_slice()).unwrap();
        prop_assert_eq!(report.repaired.iter().map(|damage| damage.block).collect::<Vec<_>>(), blocks.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(report.repaired.iter().map(|damage| damage.differing_bits).sum::<u64>(), hits.len() as u64);
        let (first_byte, first_bit) = hits.first().unwrap();
        prop_assert_eq!((report.repaired[0].first_byte, report.repaired[0].first_bit), (*first_byte, *first_bit));
        prop_assert!(shard.with_bytes(0..bytes, |resident| resident == weights).unwrap());
        prop_assert_eq!(shard.state(), ShardState::Verified);
    }
}

#[test]
fn two_tensors_can_be_looked_at_together_while_a_repair_waits() {
    let manager = silent(64 * MIB);
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    std::thread::scope(|scope| {
        shard
            .with_bytes(0..3, |first| {
                scope.spawn(|| manager.inject_fault(&shard, 6, 0).unwrap());
                // Long enough for the writer to queue up; if it does not, the test shows less, not something wrong.
                std::thread::sleep(Duration::from_millis(50));
                shard.with_bytes(3..6, |second| assert_eq!((first, second), (&b"wei"[..], &b"ght"[..]))).unwrap();
            })
            .unwrap();
    });
    assert!(manager.verify_sealed(&shard).is_err());
}

#[test]
fn a_shard_in_a_thread_local_is_released_when_its_thread_ends() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<vram_residency::SealedShard>> = const { std::cell::RefCell::new(None) };
    }
    let dir = disk_dir();
    let manager = manager(dir.path(), 64 * MIB);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Touched before this thread's first record, so it outlives the buffer of the records.
            KEPT.with(|kept| assert!(kept.borrow().is_none()));
            let shard = manager.seal_model(id("kept"), "model", b"weights").unwrap();
            KEPT.with(|kept| kept.replace(Some(shard)));
        });
        thread.join().unwrap();
    });
    assert_eq!(manager.list().len(), 0);
    manager.trail().flush(Duration::from_secs(30)).unwrap();
    assert_eq!(names(&events(dir.path())).last(), Some(&"VramDeallocated"));
}

#[test]
fn parts_and_bits_that_do_not_exist_are_refused() {
    let dir = disk_dir();
    let path = model_file(dir.path(), 5000);
    let file = ModelFile::open(&path, None).unwrap();
    let manager = silent(64 * MIB);
    for (index, count) in [(0, 0), (1, 1), (7, 3)] {
        let answer = manager.seal_file(&file, &SealRequest::new(id("part"), "model").part(index, count));
        assert!(matches!(answer, Err(Error::Part { .. })));
    }
    let shard = manager.seal_file(&file, &SealRequest::new(id("part"), "model").part(2, 3)).unwrap();
    assert!(matches!(manager.inject_fault(&shard, 0, 8), Err(Error::Bit { bit: 8 })));
    assert!(matches!(manager.inject_fault(&shard, shard.bytes(), 0), Err(Error::Device(_))));
    manager.verify_sealed(&shard).unwrap();
}

/// A source that panics half-way through a repair.
struct Panicking;

impl vram_residency::model::Source for Panicking {
    fn len(&self) -> u64 {
        7
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("on purpose")
    }
}

#[test]
fn a_repair_that_is_broken_off_leaves_the_shard_failed_and_repairable() {
    let manager = silent(MIB);
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    manager.repair(&shard, &Panicking).unwrap();
    assert_eq!(shard.state(), ShardState::Verified, "a whole shard needs nothing from its source");
    manager.inject_fault(&shard, 0, 0).unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| manager.repair(&shard, &Panicking))).is_err());
    assert_eq!(shard.state(), ShardState::Failed);
    assert!(matches!(manager.verify_sealed(&shard), Err(Error::Quarantined { .. })));
    manager.repair(&shard, &b"weights".as_slice()).unwrap();
    assert_eq!(shard.state(), ShardState::Verified);
}
