//! A GPU's memory in the hands of others: what is said of it from then on, when a write is found, and where it is refused.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../../audit-logging/tests/common/mod.rs"]
mod common;
mod gpu;
mod sim;
mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use audit_logging::Options;
use cuda_emulator::{Emulator, Plan};
use gpu::{manager, try_manager, try_manager_with};
use serde_json::Value;
use sim::SimClock;
use support::moody::Moody;
use support::{disk_dir, events, id, names, small_log};
use vram_residency::attest::envelope::Envelope;
use vram_residency::attest::statement::{Software, Statement};
use vram_residency::attest::{AttestKey, AttestRequest, Fresh};
use vram_residency::audit::{AuditTrail, TrailError, TrailHealth};
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{CudaDevice, Export, Protection, Tested};
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::policy::Violation;
use vram_residency::scrub::{Budget, ScrubOptions, Scrubber};
use vram_residency::seal::parse_record;
use vram_residency::{Error, ManagerOptions, Policy, SealedShard, ShardState, VramManager};

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
    // Nothing of that is on record, so it is when the manager hands it out.
    drop(manager.hand_out(&shard, 1, 1).unwrap());
    drop((shard, manager));
    assert_eq!(count(&events(dir.path()), "ProtectionLowered"), 1);
}

/// A program that makes a region itself, and takes a descriptor of it before it has it sealed.
#[test]
fn a_region_whose_descriptor_was_taken_before_is_sealed_as_advisory() {
    for strict in [false, true] {
        let _emulator = Emulator::lock(Plan::default());
        let dir = disk_dir();
        let device = Arc::new(gpu::device());
        let mut policy = Policy::default();
        policy.require_read_only = strict;
        let manager = VramManager::new(ManagerOptions {
            worker_id: support::WORKER.into(),
            device: Arc::clone(&device) as _,
            key: support::key(),
            trail: AuditTrail::open_with(dir.path(), small_log()).unwrap(),
            policy,
        })
        .unwrap();
        let (kept, _) = gpu::region(&device, b"weights", 0).unwrap();
        let shard = manager.seal_region(id("kept"), "model", kept).unwrap();
        assert_eq!((shard.protection(), shard.writable_since_ns()), (Protection::ReadOnly, None));

        let (region, _) = gpu::region(&device, b"weights", 0).unwrap();
        drop(region.export().unwrap());
        let sealed = manager.seal_region(id("shown"), "model", region);
        if strict {
            assert!(matches!(sealed, Err(Error::Policy { .. })), "{sealed:?}");
            continue;
        }
        let sealed = sealed.unwrap();
        assert_eq!((sealed.protection(), sealed.sealed_protection()), (Protection::Advisory, Protection::Advisory));
        assert!(sealed.writable_since_ns().is_some());
        manager.verify_sealed(&sealed).unwrap();
    }
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
    let refused = shard.export().unwrap_err();
    assert!(matches!(refused, Error::Policy { violation: Violation::HandedOutWritable, .. }), "{refused}");
    assert_eq!((shard.protection(), shard.writable_since_ns()), (Protection::ReadOnly, None));
    manager.verify_sealed(&shard).unwrap();
    drop((shard, manager));
    assert!(!names(&events(dir.path())).iter().any(|name| ["ShardAttached", "ProtectionLowered"].contains(name)));
}

/// Wherever and whenever a client writes: the clock is the test's own, and the way is the descriptor that was handed out.
#[test]
fn what_a_client_writes_is_found_within_two_periods() {
    const PERIOD: Duration = Duration::from_secs(60);
    let _emulator = Emulator::lock(Plan::default());
    let weights = Pattern { seed: 5 }.bytes(2 * BLOCK_BYTES + 5);
    for seed in 0..6_u32 {
        let (dir, clock) = (disk_dir(), SimClock::new());
        let log = Options { clock: Arc::clone(&clock) as _, ..small_log() };
        let manager = try_manager_with(AuditTrail::open_with(dir.path(), log).unwrap(), Policy::default()).unwrap();
        let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
        let mut options = ScrubOptions::default();
        (options.period, options.budget, options.seed) = (PERIOD, Budget::Unlimited, Some(seed.into()));
        let scrubber = Scrubber::manual(&manager, options).unwrap();
        scrubber.watch(&shard, None);
        let step = || {
            if let Some(rest) = scrubber.tick() {
                clock.advance(rest.clamp(Duration::from_millis(1), Duration::from_secs(1)));
            }
        };
        let Export::CudaAllocation { fd, offset, .. } = manager.hand_out(&shard, 1, 1).unwrap() else { panic!() };
        // At any time of a round, into each of the blocks.
        let from = clock.now();
        while clock.now() < from + PERIOD * seed / 4 {
            step();
        }
        assert!(shard.last_fault().is_none(), "{seed}");
        let (block, written) = (u64::from(seed % 3), clock.now());
        let at = block * BLOCK_BYTES + 4;
        let value = !weights[usize::try_from(at).unwrap()];
        assert_eq!(std::fs::File::from(fd).write_at(&[value], offset + at).unwrap(), 1);
        while shard.last_fault().is_none() {
            assert!(clock.now() <= written + PERIOD * 2, "{seed}: block {block} is not found");
            step();
        }
        assert_eq!((shard.last_fault().unwrap().block, shard.state()), (block, ShardState::Quarantined), "{seed}");
        drop((scrubber, shard, manager));
        let failed: Vec<_> =
            events(dir.path()).into_iter().filter(|event| event["event"] == "SealVerificationFailed").collect();
        assert_eq!((failed.len(), &failed[0]["first_block"]), (1, &block.into()));
        // The answers given meanwhile are within the suspect window.
        let wall = |time: Duration| 1_800_000_000_000_000_000 + u64::try_from(time.as_nanos()).unwrap();
        assert!(failed[0]["suspect_from_ns"].as_u64().unwrap() <= wall(written), "{seed}: {}", failed[0]);
    }
}

fn count(events: &[Value], name: &str) -> usize {
    names(events).iter().filter(|told| **told == name).count()
}

/// Eight clients at once, beside somebody who attests: one record that the protection is lowered, before all of theirs, and
/// nothing that says otherwise behind it.
#[test]
fn clients_that_attach_at_once_lower_it_once_and_no_attestation_behind_that_says_otherwise() {
    let _emulator = Emulator::lock(Plan::default());
    let key = AttestKey::of(&[7; 32]).unwrap();
    let nonce = "00112233445566778899aabbccddeeff".parse().unwrap();
    for _ in 0..5 {
        let dir = disk_dir();
        let manager = manager(dir.path());
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        let verified = manager.verify_sealed(&shard).unwrap();
        let shards = [Fresh { shard: shard.clone(), verified, name: "weights".into() }];
        let attest = || {
            let software = Software { name: "test".into(), version: "1".into() };
            let request = AttestRequest { nonce: &nonce, software, shards: &shards };
            let made = manager.attest(&request, &key, &|| None).unwrap();
            let statement = Envelope::parse(made.envelope.as_bytes()).unwrap();
            let statement = Statement::parse(statement.unverified()).unwrap();
            (made.digest.to_string(), statement.predicate.shards[0].protection == Protection::ReadOnly)
        };
        let (start, attached) = (Barrier::new(9), AtomicBool::new(false));
        let high: BTreeSet<String> = std::thread::scope(|scope| {
            let attesting = scope.spawn(|| {
                start.wait();
                let mut high = BTreeSet::new();
                loop {
                    let last = attached.load(Ordering::SeqCst);
                    let (digest, is_high) = attest();
                    if is_high {
                        assert!(!last, "somebody has it already");
                        high.insert(digest);
                    }
                    if last {
                        return high;
                    }
                }
            });
            for client in 0..8 {
                let (start, attached, manager, shard) = (&start, &attached, &manager, &shard);
                scope.spawn(move || {
                    start.wait();
                    drop(manager.hand_out(shard, client, client).unwrap());
                    attached.store(true, Ordering::SeqCst);
                });
            }
            attesting.join().unwrap()
        });
        drop((shards, shard, manager));
        let events = events(dir.path());
        assert_eq!((count(&events, "ProtectionLowered"), count(&events, "ShardAttached")), (1, 8));
        let lowered = names(&events).iter().position(|name| *name == "ProtectionLowered").unwrap();
        for (at, event) in events.iter().enumerate() {
            match event["event"].as_str().unwrap() {
                "ShardAttached" => assert!(at > lowered),
                "AttestationMade" => {
                    let is_high = high.contains(event["envelope"].as_str().unwrap());
                    assert_eq!(is_high, at < lowered, "{:?}", names(&events));
                }
                _ => {}
            }
        }
    }
}

/// Nothing leaves whose records are not on disk, whatever the policy says. What the log says of the protection and what the shard
/// says of it agree, whichever of the records is lost, and the next client's hand-out says it, be it once more.
#[test]
fn where_a_record_of_it_is_lost_nothing_leaves_and_the_shard_agrees_with_the_log() {
    let _emulator = Emulator::lock(Plan::default());
    for (require_audit, lost) in
        [(false, "ProtectionLowered"), (true, "ProtectionLowered"), (true, "ShardAttached"), (false, "ShardAttached")]
    {
        let dir = disk_dir();
        let disk = Moody::default();
        let options = Options { critical_deadline: Duration::from_secs(30), ..disk.log() };
        let mut policy = Policy::default();
        policy.require_audit = require_audit;
        let manager = try_manager_with(AuditTrail::open_with(dir.path(), options).unwrap(), policy).unwrap();
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        manager.trail().flush(Duration::from_secs(30)).unwrap();
        disk.refuses(Some(lost));
        let handed = manager.hand_out(&shard, 1, 1);
        assert!(matches!(handed, Err(Error::Audit(_))), "{require_audit} {lost}: {handed:?}");
        let is_lowered = lost == "ShardAttached";
        assert_eq!(
            (shard.protection(), shard.writable_since_ns().is_some()),
            (if is_lowered { Protection::Advisory } else { Protection::ReadOnly }, is_lowered),
            "{require_audit} {lost}"
        );
        let begun = Instant::now();
        while manager.trail().log_status().unwrap().failures == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
        disk.refuses(None);
        while manager.trail().health() != TrailHealth::Good || manager.verify_sealed(&shard).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the log resumes");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(manager.hand_out(&shard, 2, 2).unwrap());
        assert_eq!(shard.protection(), Protection::Advisory);
        drop((shard, manager));
        let events = events(dir.path());
        assert_eq!(
            (count(&events, "ProtectionLowered"), count(&events, "ShardAttached")),
            (1 + usize::from(is_lowered), 1),
            "{require_audit} {lost}"
        );
    }
}

/// Where nothing was lowered, the only record is that of the client: without it nobody can write, and nothing says so.
#[test]
fn memory_that_was_advisory_already_is_nobody_elses_where_the_record_is_lost() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let disk = Moody::default();
    let log = disk.log();
    let mut options = gpu::options();
    options.write_test = Tested::default();
    let manager = VramManager::new(ManagerOptions {
        worker_id: support::WORKER.into(),
        device: Arc::new(CudaDevice::open(&options).unwrap()),
        key: support::key(),
        trail: AuditTrail::open_with(dir.path(), log).unwrap(),
        policy: Policy::default(),
    })
    .unwrap();
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    assert_eq!(shard.protection(), Protection::Advisory);
    disk.refuses(Some("ShardAttached"));
    assert!(matches!(manager.hand_out(&shard, 1, 1), Err(Error::Audit(_))));
    assert_eq!(shard.writable_since_ns(), None);
    disk.refuses(None);
    let begun = Instant::now();
    while manager.hand_out(&shard, 2, 2).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the log resumes");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(shard.writable_since_ns().is_some());
}

/// A log on a disk with moods, critical deadlines as everybody has them, and a shard in it that is on record.
fn on_a_moody_disk(dir: &Path) -> (Moody, VramManager, SealedShard) {
    let disk = Moody::default();
    let log = disk.log();
    let manager = try_manager_with(AuditTrail::open_with(dir, log).unwrap(), Policy::default()).unwrap();
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    manager.trail().flush(Duration::from_secs(30)).unwrap();
    (disk, manager, shard)
}

/// Has something done as soon as the first such event is emitted.
fn once(trail: &AuditTrail, event: &'static str, action: impl Fn() + Send + Sync + 'static) {
    let is_due = AtomicBool::new(true);
    trail.tap(Arc::new(move |_, leaf| {
        let leaf: Value = serde_json::from_slice(leaf).unwrap();
        if leaf["event"] == event && is_due.swap(false, Ordering::SeqCst) {
            action();
        }
    }));
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A disk that stalls beyond the deadline of critical records, and then fails: that it is lowered was perhaps on record, and is
/// not.
#[test]
fn after_a_stall_that_ends_in_a_loss_it_is_on_record_that_it_is_lowered_before_the_next_client_has_it() {
    let _emulator = Emulator::lock(Plan::default());
    // Less, and more, than a hand-out waits for the disk.
    for stall in [400, 1500] {
        let dir = disk_dir();
        let (disk, manager, shard) = on_a_moody_disk(dir.path());
        disk.syncs_take(Duration::from_millis(stall));
        let failing = disk.clone();
        once(manager.trail(), "ProtectionLowered", move || failing.fails_with(libc::EIO));
        let handed = manager.hand_out(&shard, 1, 1);
        assert!(matches!(handed, Err(Error::Audit(_))), "{stall}: {handed:?}");
        assert_eq!(shard.protection(), Protection::Advisory, "{stall}: the log may come to say so");
        wait_for("it is lost", || manager.trail().log_status().unwrap().failures > 0);
        disk.syncs_take(Duration::ZERO);
        disk.fails_with(0);
        wait_for("the log resumes", || manager.trail().health() == TrailHealth::Good);
        for client in [2, 3] {
            drop(manager.hand_out(&shard, client, client).unwrap());
        }
        drop((shard, manager));
        let events = events(dir.path());
        let told: Vec<_> = names(&events).into_iter().filter(|name| *name != "VramDeallocated").collect();
        assert!(told.ends_with(&["ProtectionLowered", "ShardAttached", "ShardAttached"]), "{stall}: {told:?}");
        assert_eq!(count(&events, "ProtectionLowered"), 1, "{stall}: once it is on disk it is not said again");
    }
}

#[test]
fn what_comes_on_record_as_lent_after_it_was_refused_is_on_record_as_not_lent() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (disk, manager, shard) = on_a_moody_disk(dir.path());
    disk.syncs_take(Duration::from_millis(1500));
    let handed = manager.hand_out(&shard, 7, 8);
    assert!(matches!(handed, Err(Error::Audit(TrailError::Late))), "{handed:?}");
    disk.syncs_take(Duration::ZERO);
    manager.trail().flush(Duration::from_secs(30)).unwrap();
    drop((shard, manager));
    let events = events(dir.path());
    let of = |name: &str| events.iter().find(|event| event["event"] == name).unwrap();
    let (attached, detached) = (of("ShardAttached"), of("ShardDetached"));
    for field in ["shard_id", "digest", "client", "lease"] {
        assert_eq!(attached[field], detached[field], "{detached}");
    }
    assert_eq!((&detached["reason"], &detached["held_ns"]), (&"not-lent".into(), &0.into()));
}

/// The log loses the record and goes on behind the loss before anybody asks whether all is on disk.
#[test]
fn a_log_that_lost_the_record_and_is_well_again_lets_nothing_leave() {
    let _emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let (disk, manager, shard) = on_a_moody_disk(dir.path());
    disk.refuses(Some("ShardAttached"));
    let (mended, trail) = (disk.clone(), manager.trail().clone());
    once(manager.trail(), "ShardAttached", move || {
        wait_for("it is lost", || trail.log_status().unwrap().failures > 0);
        mended.refuses(None);
        wait_for("the log resumes", || trail.health() == TrailHealth::Good);
    });
    let handed = manager.hand_out(&shard, 1, 1);
    assert!(matches!(handed, Err(Error::Audit(TrailError::Lost))), "{handed:?}");
    drop(manager.hand_out(&shard, 2, 2).unwrap());
    manager.trail().close(Duration::from_secs(30)).unwrap();
    let events = events(dir.path());
    let attached: Vec<_> = events.iter().filter(|event| event["event"] == "ShardAttached").collect();
    assert!(attached.len() == 1 && attached[0]["client"] == 2, "{attached:?}");
}
