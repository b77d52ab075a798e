//! A GPU's memory in the hands of others: what is said of it from then on, and where it is refused.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod gpu;
mod support;

use cuda_emulator::{Emulator, Plan};
use gpu::{manager, try_manager};
use support::{disk_dir, events, id, names};
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{Export, Protection};
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::policy::Violation;
use vram_residency::seal::parse_record;
use vram_residency::{Error, Policy, ShardState};

#[test]
fn what_was_handed_out_is_advisory_until_it_is_loaded_anew_and_goes_on_to_be_verified() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    let weights = Pattern { seed: 3 }.bytes(BLOCK_BYTES + 5);
    let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
    assert_eq!((shard.protection(), shard.writable_since_ns()), (Protection::ReadOnly, None));

    for (client, lease) in [(1, 1), (2, 2)] {
        let Export::CudaAllocation { fd, .. } = manager.hand_out(&shard, client, lease).unwrap() else { panic!() };
        drop(fd);
    }
    let since = shard.writable_since_ns().unwrap();
    assert!(since > shard.sealed_at_ns(), "whoever had the descriptor may have kept it");
    assert_eq!((shard.protection(), shard.sealed_protection()), (Protection::Advisory, Protection::ReadOnly));
    assert_eq!(parse_record(&shard.seal_record()).unwrap().0.protection, Protection::ReadOnly, "what was so then");
    // The seal and what is so now differ, and that is no failure.
    manager.verify_sealed(&shard).unwrap();
    manager.verify_record(&shard, &shard.seal_record()).unwrap();
    assert_eq!(shard.state(), ShardState::Verified);

    // Damage is found as ever, and its record says that others could write.
    manager.inject_fault(&shard, 9, 1).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    assert!(matches!(manager.hand_out(&shard, 3, 3), Err(Error::Quarantined { .. })));
    manager.repair(&shard, &weights.as_slice()).unwrap();

    // Sealed anew in the same memory, which others still have.
    let mut unsealed = manager.unseal(shard, "an update").unwrap();
    unsealed.write(7, &[1, 2, 3]).unwrap();
    let shard = unsealed.reseal().unwrap();
    assert_eq!((shard.protection(), shard.sealed_protection()), (Protection::Advisory, Protection::Advisory));
    assert_eq!(shard.writable_since_ns(), Some(since));
    manager.verify_sealed(&shard).unwrap();
    drop(shard);
    let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
    assert_eq!((shard.protection(), shard.writable_since_ns()), (Protection::ReadOnly, None), "other memory");
    drop((shard, manager));

    let events = events(dir.path());
    let told = names(&events);
    let lowered: Vec<_> = (0..told.len()).filter(|at| told[*at] == "ProtectionLowered").collect();
    assert_eq!((lowered.len(), told[lowered[0] + 1]), (1, "ShardAttached"), "once, and before it left: {told:?}");
    let lowered = &events[lowered[0]];
    assert_eq!((&lowered["from"], &lowered["to"]), (&"read-only".into(), &"advisory".into()));
    assert_eq!(lowered["severity"], "critical");
    let attached: Vec<_> = events.iter().filter(|event| event["event"] == "ShardAttached").collect();
    assert!(attached.len() == 2 && attached.iter().all(|event| event["writable"] == true), "{attached:?}");
    for event in ["SealVerificationFailed", "RepairStarted"] {
        let found = events.iter().find(|one| one["event"] == event).unwrap();
        assert_eq!(found["writable_since_ns"], since, "{found}");
    }
    let seals: Vec<_> = events.iter().filter(|event| event["event"] == "VramSealed").collect();
    assert_eq!(
        seals.iter().map(|seal| seal["protection"].as_str().unwrap()).collect::<Vec<_>>(),
        ["read-only", "advisory", "read-only"]
    );
}

#[test]
fn a_descriptor_that_a_program_takes_itself_counts_as_much() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    assert!(shard.export().unwrap().is_writable());
    assert_eq!(shard.protection(), Protection::Advisory);
    manager.verify_sealed(&shard).unwrap();
}

#[test]
fn a_policy_that_asks_for_read_only_memory_lets_none_of_it_leave() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let mut policy = Policy::default();
    policy.require_read_only = true;
    let manager = try_manager(dir.path(), policy).unwrap();
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    let refused = manager.hand_out(&shard, 1, 1).unwrap_err();
    assert!(matches!(refused, Error::Policy { violation: Violation::HandedOutWritable, .. }), "{refused}");
    assert!(refused.to_string().contains("main memory"), "{refused}");
    assert_eq!((shard.protection(), shard.writable_since_ns()), (Protection::ReadOnly, None));
    manager.verify_sealed(&shard).unwrap();
    drop((shard, manager));
    assert!(!names(&events(dir.path())).iter().any(|name| ["ShardAttached", "ProtectionLowered"].contains(name)));
}
