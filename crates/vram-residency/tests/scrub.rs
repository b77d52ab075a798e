//! The continuous check, step by step under a clock that the test moves: what each policy does, and what is never done.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

#[path = "../../audit-logging/tests/common/mod.rs"]
mod common;
mod sim;
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{MemVfs, Rng};
use serde_json::Value;
use sim::{Mode, Rules, SimClock, SimDevice, SimSource};
use support::{WORKER, host, id, key};
use vram_residency::audit::AuditTrail;
use vram_residency::model::{Format, ModelFile};
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{Budget, ScrubOptions, Scrubber};
use vram_residency::{
    DamageKind, Error, ManagerOptions, NotFresh, Policy, SealRequest, SealedShard, ShardState, VramManager,
};

const PERIOD: Duration = Duration::from_secs(60);

struct Lab {
    clock: Arc<SimClock>,
    rules: Arc<Rules>,
    manager: VramManager,
    records: Arc<Mutex<Vec<Value>>>,
}

impl Lab {
    fn new(on_failure: OnFailure) -> Self {
        let vfs = MemVfs::default();
        Self::with_log(on_failure, &common::dir(), common::options(&vfs, 4 << 20))
    }

    fn with_log(on_failure: OnFailure, dir: &Path, log: audit_logging::Options) -> Self {
        let clock = SimClock::new();
        let rules = Arc::new(Rules::new(Arc::clone(&clock)));
        let mut policy = Policy::default();
        policy.on_failure = on_failure;
        let log = audit_logging::Options { clock: Arc::clone(&clock) as _, ..log };
        let trail = AuditTrail::open_with(dir, log).unwrap();
        let records = Arc::new(Mutex::new(Vec::new()));
        let tapped = Arc::clone(&records);
        trail.tap(Arc::new(move |seq, leaf| {
            assert!(seq.is_some());
            tapped.lock().unwrap().push(serde_json::from_slice(leaf).unwrap());
        }));
        let manager = VramManager::new(ManagerOptions {
            worker_id: WORKER.into(),
            device: Arc::new(SimDevice { inner: host(64 << 20), rules: Arc::clone(&rules) }),
            key: key(),
            trail,
            policy,
        })
        .unwrap();
        Self { clock, rules, manager, records }
    }

    fn scrubber(&self, change: impl Fn(&mut ScrubOptions)) -> Scrubber {
        let mut options = ScrubOptions::default();
        (options.period, options.budget, options.seed) = (PERIOD, Budget::Unlimited, Some(1));
        change(&mut options);
        Scrubber::manual(&self.manager, options).unwrap()
    }

    /// A shard called `shard-N`, the N-th that is sealed, and its source.
    fn seal(&self, scrubber: &Scrubber, bytes: &[u8]) -> (SealedShard, Arc<SimSource>) {
        let name = format!("shard-{}", self.rules.next_number());
        let shard = self.manager.seal_model(id(&name), "model", bytes).unwrap();
        let source = Arc::new(SimSource::new(bytes.to_vec(), Arc::clone(&self.clock)));
        scrubber.watch(&shard, Some(Arc::clone(&source) as _));
        (shard, source)
    }

    /// Lets time pass in small steps, and the scrubber do its work.
    fn pass(&self, scrubber: &Scrubber, time: Duration) {
        for _ in 0..40 {
            self.clock.advance(time / 40);
            while scrubber.tick().is_none_or(|rest| rest.is_zero()) {}
            scrubber.look();
        }
    }

    fn flip(&self, shard: &SealedShard, byte: usize) {
        self.rules.change(shard.shard_id().as_str(), byte, byte + 1, |bytes| bytes[0] ^= 4);
    }

    fn events(&self) -> Vec<String> {
        self.records.lock().unwrap().iter().map(|record| record["event"].as_str().unwrap().to_owned()).collect()
    }

    fn record(&self, name: &str) -> Value {
        let records = self.records.lock().unwrap();
        records.iter().rev().find(|record| record["event"] == name).cloned().unwrap_or_else(|| panic!("no {name}"))
    }
}

fn weights(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

#[test]
fn repair_is_told_in_order_with_a_window_that_holds_the_accident() {
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights((2 << 20) + 9));
    lab.pass(&scrubber, PERIOD * 2);
    assert_eq!(shard.state(), ShardState::Verified);
    lab.flip(&shard, (1 << 20) + 5);
    let broken = 1_800_000_000_000_000_000 + lab.clock.now().as_nanos() as u64;
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Verified);
    let events = lab.events();
    let place = |name: &str| events.iter().position(|event| event == name).unwrap();
    assert!(["SealVerificationFailed", "RepairStarted", "BlockRepaired"].map(place).is_sorted());
    let failed = lab.record("SealVerificationFailed");
    assert_eq!(failed["first_block"], 1);
    let window = failed["suspect_from_ns"].as_u64().unwrap()..=failed["time_ns"].as_u64().unwrap();
    assert!(
        window.contains(&broken) && window.end() - window.start() <= PERIOD.as_nanos() as u64,
        "{window:?} {broken}"
    );
    let fault = shard.last_fault().unwrap();
    assert_eq!((fault.kind, fault.first_byte, fault.outcome), (DamageKind::SingleBit, Some((1 << 20) + 5), "repaired"));
}

#[test]
fn every_block_that_is_repaired_has_its_own_window_and_counts() {
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|options| options.repairs_per_day = 0);
    let (shard, _) = lab.seal(&scrubber, &weights(8 << 20));
    lab.pass(&scrubber, PERIOD * 2);
    // In the middle of a pass: some blocks were checked lately, others long ago.
    lab.pass(&scrubber, PERIOD / 3);
    let broken = 1_800_000_000_000_000_000 + lab.clock.now().as_nanos() as u64;
    for block in 0..8 {
        lab.flip(&shard, (block << 20) + 3);
    }
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Verified);
    let records = lab.records.lock().unwrap().clone();
    let started: Vec<_> = records.iter().filter(|record| record["event"] == "RepairStarted").collect();
    assert_eq!(started.len(), 8);
    let windows: Vec<u64> = started.iter().map(|record| record["suspect_from_ns"].as_u64().unwrap()).collect();
    assert!(windows.iter().all(|from| *from <= broken), "{windows:?} {broken}");
    assert!(windows.iter().any(|from| *from != windows[0]), "they were checked at different times: {windows:?}");
    let fault = shard.last_fault().unwrap();
    assert_eq!((fault.blocks, fault.suspect_from_ns), (8, *windows.iter().min().unwrap()));
    assert_eq!(scrubber.status().faults, 8);
}

#[test]
fn a_bad_block_that_fails_beside_another_one_is_remembered() {
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|options| options.repairs_per_day = 0);
    let (shard, _) = lab.seal(&scrubber, &weights(3 << 20));
    for other in [0, 2] {
        lab.flip(&shard, 1 << 20);
        lab.flip(&shard, other << 20);
        lab.pass(&scrubber, PERIOD);
    }
    let events = lab.events();
    assert_eq!(events.iter().filter(|event| *event == "DeviceQuarantined").count(), 1, "{events:?}");
    assert_eq!(lab.record("DeviceQuarantined")["reason"], "block 1 of 'shard-1' was damaged 2 times");
}

#[test]
fn what_only_a_repair_finds_is_a_failure_on_record() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.flip(&shard, 77);
    assert_eq!(scrubber.repair_now(&shard).unwrap().repaired.len(), 1);
    let events = lab.events();
    let place = |name: &str| events.iter().position(|event| event == name).unwrap();
    assert!(["SealVerificationFailed", "RepairStarted", "BlockRepaired", "SealVerified"].map(place).is_sorted());
    assert_eq!(shard.last_fault().unwrap().outcome, "repaired");
}

#[test]
fn fail_closed_stops_all_work_at_once_and_writes_nothing() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.flip(&shard, 77);
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Quarantined);
    assert_eq!(shard.ensure_fresh(PERIOD * 9), Err(NotFresh::State { state: ShardState::Quarantined }));
    assert!(matches!(shard.with_bytes(0..1, |_| ()), Err(Error::Quarantined { .. })));
    let told = lab.record("DamageDescribed");
    assert_eq!((&told["first_byte"], &told["damage"]), (&Value::from(77), &Value::from("single-bit")));
    assert!(!lab.events().iter().any(|event| event == "RepairStarted"));
    assert_eq!(scrubber.repair_now(&shard).unwrap().repaired.len(), 1);
    assert_eq!((shard.state(), shard.ensure_fresh(PERIOD)), (ShardState::Verified, Ok(())));
}

#[test]
fn log_lends_on_and_stop_worker_asks_to_stop() {
    let lab = Lab::new(OnFailure::Log);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.flip(&shard, 1);
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Suspect);
    assert!(shard.with_bytes(0..1, |_| ()).is_ok() && shard.ensure_fresh(PERIOD).is_err());
    assert_eq!(scrubber.status().stop_requested, None);

    let lab = Lab::new(OnFailure::StopWorker);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.flip(&shard, 1);
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Quarantined);
    assert!(scrubber.status().stop_requested.unwrap().contains("block 0"));
}

#[test]
fn without_a_good_source_nothing_is_written_and_the_shard_stays_out() {
    for mode in [Mode::Missing, Mode::Changed, Mode::Short] {
        let lab = Lab::new(OnFailure::Repair);
        let scrubber = lab.scrubber(|_| ());
        let (shard, source) = lab.seal(&scrubber, &weights(5000));
        source.set(mode);
        lab.flip(&shard, 1);
        lab.pass(&scrubber, PERIOD);
        assert_eq!(shard.state(), ShardState::Failed, "{mode:?}");
        assert!(!lab.rules.has_written(), "{mode:?}");
        assert!(lab.events().iter().any(|event| event == "RepairFailed"));
        // The file is back.
        source.set(Mode::Good);
        scrubber.repair_now(&shard).unwrap();
        assert_eq!(shard.state(), ShardState::Verified);
    }
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|_| ());
    let shard = lab.manager.seal_model(id("shard-1"), "model", &weights(9)).unwrap();
    scrubber.watch(&shard, None);
    lab.flip(&shard, 1);
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Quarantined);
    assert!(lab.record("RepairFailed")["reason"].as_str().unwrap().contains("no source"));
    assert!(matches!(scrubber.repair_now(&shard), Err(Error::NoSource { .. })));
}

#[test]
fn faults_that_come_back_end_the_trust_in_the_device_and_drills_do_not() {
    // Twice in one block, or three repairs in a day.
    for (bytes, places) in [(5000, vec![1, 2]), (3 << 20, vec![1, 1 << 20, 2 << 20])] {
        let lab = Lab::new(OnFailure::Repair);
        let scrubber = lab.scrubber(|_| ());
        let (shard, _) = lab.seal(&scrubber, &weights(bytes));
        let (other, _) = lab.seal(&scrubber, &weights(10));
        for place in places {
            assert_eq!(lab.manager.device_quarantined(), None);
            lab.flip(&shard, place);
            lab.pass(&scrubber, PERIOD);
        }
        assert!(lab.manager.device_quarantined().is_some());
        for shard in [&shard, &other] {
            assert_eq!(shard.state(), ShardState::Quarantined);
            assert!(shard.with_bytes(0..1, |_| ()).is_err() && lab.manager.verify_sealed(shard).is_err());
        }
        let refused = lab.manager.seal_model(id("more"), "model", b"bytes");
        assert!(matches!(refused, Err(Error::DeviceQuarantined { .. })));
        assert!(lab.events().iter().any(|event| event == "DeviceQuarantined"));
    }
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    for _ in 0..5 {
        lab.manager.inject_fault(&shard, 7, 1).unwrap();
        lab.pass(&scrubber, PERIOD);
        assert_eq!(shard.state(), ShardState::Verified);
    }
    assert_eq!((scrubber.status().repairs, lab.manager.device_quarantined()), (5, None));
}

#[test]
fn a_scrubber_that_stands_still_shows_by_itself_and_is_told_of() {
    let lab = Lab::new(OnFailure::Repair);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.pass(&scrubber, PERIOD);
    lab.clock.advance(PERIOD * 2);
    lab.clock.advance(PERIOD);
    assert_eq!(shard.state(), ShardState::Unverified);
    assert!(!scrubber.is_alive());
    scrubber.look();
    assert!(lab.record("VerificationLate")["oldest_age_ns"].as_u64().unwrap() > 2 * PERIOD.as_nanos() as u64);
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Verified);
    assert!(lab.events().iter().any(|event| event == "VerificationResumed"));
    // Stopped on purpose is no better than dead.
    scrubber.stop();
    lab.clock.advance(PERIOD * 3);
    assert_eq!(shard.state(), ShardState::Unverified);
}

#[test]
fn a_million_clean_checks_raise_no_alarm() {
    // A million passes are a million records: more than memory should hold.
    let dir = support::disk_dir();
    let lab = Lab::with_log(OnFailure::FailClosed, dir.path(), audit_logging::Options::default());
    let scrubber = lab.scrubber(|options| options.period = Duration::from_millis(150));
    let shards: Vec<_> = (0..200).map(|number| lab.seal(&scrubber, &weights(1 + number % 60)).0).collect();
    while scrubber.status().blocks < 1_000_000 {
        lab.clock.advance(Duration::from_millis(100));
        while scrubber.tick().is_none_or(|rest| rest.is_zero()) {}
        lab.manager.trail().flush(Duration::from_secs(60)).unwrap();
        lab.records.lock().unwrap().retain(|record| record["event"] != "ScrubPassed");
    }
    let status = scrubber.status();
    assert_eq!((status.faults, lab.manager.device_quarantined()), (0, None));
    assert!(shards.iter().all(|shard| shard.state() == ShardState::Verified));
    let events = lab.events();
    assert!(!events.iter().any(|event| event.contains("Fail") || event.contains("Mismatch")), "{events:?}");
}

#[test]
fn ten_thousand_swapped_stale_and_foreign_blocks_are_all_found() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|options| (options.repeat_faults, options.repairs_per_day) = (0, 0));
    // Small shards have one block each: what lies in it may be another's bytes, or its own of yesterday.
    let mut rng = Rng(7);
    let all: Vec<Vec<u8>> =
        (0..8).map(|n| (0..4096_u32).map(|at| (at * 7 + n * 31 + at / 256) as u8).collect()).collect();
    let mut shards: Vec<_> = all.iter().map(|bytes| lab.seal(&scrubber, bytes)).collect();
    // One of them was sealed with other bytes before.
    let (old, (shard, source)) = (all[0].clone(), shards.remove(0));
    let mut unsealed = lab.manager.unseal(shard, "an update").unwrap();
    unsealed.write(0, &[0xee; 4096]).unwrap();
    let shard = unsealed.reseal().unwrap();
    source.replace(vec![0xee; 4096]);
    scrubber.watch(&shard, Some(Arc::clone(&source) as _));
    shards.insert(0, (shard, source));
    let (mut stale, mut foreign) = (0, 0);
    for round in 0..10_000 {
        let target = rng.below(8) as usize;
        let other = (target + 1 + rng.below(7) as usize) % 8;
        let (is_stale, bytes) = match (target, round % 3) {
            (0, 0) => (true, &old),
            (_, _) if other == 0 => (false, &vec![0xee; 4096]),
            _ => (false, &all[other]),
        };
        let shard = &shards[target].0;
        lab.rules.change(shard.shard_id().as_str(), 0, 4096, |resident| resident.copy_from_slice(bytes));
        assert!(scrubber.verify_now(shard).is_err(), "round {round}");
        let kind = shard.last_fault().unwrap().kind;
        assert_eq!(kind, if is_stale { DamageKind::Stale } else { DamageKind::Foreign }, "round {round}");
        (stale, foreign) = (stale + u32::from(is_stale), foreign + u32::from(!is_stale));
        scrubber.repair_now(shard).unwrap();
        lab.records.lock().unwrap().clear();
    }
    assert!(stale > 100 && foreign > 8000, "{stale} {foreign}");
}

#[test]
fn a_wrong_answer_that_is_not_repeated_is_no_damage_and_is_told() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    lab.pass(&scrubber, PERIOD);
    lab.rules.lie_once();
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Verified);
    assert!(lab.events().iter().any(|event| event == "MismatchNotConfirmed"));
    assert!(!lab.events().iter().any(|event| event == "SealVerificationFailed"));
    // A device that goes on to lie cannot be believed either way.
    lab.rules.lie_for_ever();
    lab.pass(&scrubber, PERIOD);
    assert_eq!(shard.state(), ShardState::Unverified);
    lab.rules.heal();
    lab.pass(&scrubber, PERIOD * 2);
    assert_eq!(shard.state(), ShardState::Verified);
}

#[test]
fn unseal_and_reseal_are_on_record_and_give_the_new_bytes_a_new_digest() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    let (before, held) = (shard.digest(), shard.clone());
    let refused = lab.manager.unseal(shard, "too early").unwrap_err();
    assert!(matches!(refused.error, Error::InUse { .. }));
    drop(refused);
    assert_eq!(held.state(), ShardState::Sealed);
    // A reason that cannot be recorded is no way to lose a shard.
    let refused = lab.manager.unseal(held, "two\nlines").unwrap_err();
    assert!(matches!(refused.error, Error::ControlCharacter { .. }), "{refused:?}");
    let held = refused.shard;
    lab.manager.verify_sealed(&held).unwrap();
    assert!(!lab.events().iter().any(|event| event == "ShardUnsealed" || event == "VramDeallocated"));
    let mut unsealed = lab.manager.unseal(held, "merge of an adapter").unwrap();
    let duplicate = lab.manager.seal_model(id("shard-1"), "model", b"x");
    assert!(matches!(duplicate, Err(Error::DuplicateShard { .. })), "the name is still taken");
    assert!(lab.manager.has_name(&id("shard-1")) && !lab.manager.has_name(&id("shard-2")));
    unsealed.write(10, b"adapter").unwrap();
    assert!(unsealed.write(4999, b"beyond").is_err());
    let shard = unsealed.reseal().unwrap();
    let mut bytes = weights(5000);
    bytes[10..17].copy_from_slice(b"adapter");
    assert_eq!(shard.digest(), vram_residency::digest::Digest::of(&bytes));
    assert_ne!(shard.digest(), before);
    lab.manager.verify_sealed(&shard).unwrap();
    let told = lab.record("ShardResealed");
    assert_eq!(
        (&told["reason"], &told["previous"]),
        (&Value::from("merge of an adapter"), &Value::from(before.to_string()))
    );
    // Given up in between, the memory and the name are free.
    drop(lab.manager.unseal(shard, "no more").unwrap());
    assert_eq!(lab.manager.capacity().used_bytes, 0);
    lab.manager.seal_model(id("shard-1"), "model", b"x").unwrap();
}

#[test]
fn a_fault_that_nobody_repairs_is_one_fault_however_often_it_is_found() {
    let lab = Lab::new(OnFailure::Log);
    let scrubber = lab.scrubber(|_| ());
    let (shard, source) = lab.seal(&scrubber, &weights(5000));
    lab.flip(&shard, 77);
    for _ in 0..5 {
        lab.pass(&scrubber, PERIOD);
        assert_eq!(shard.state(), ShardState::Suspect);
    }
    assert_eq!(lab.manager.device_quarantined(), None);
    // Made well and damaged again, it is the second.
    lab.manager.repair(&shard, &*source).unwrap();
    lab.pass(&scrubber, PERIOD);
    lab.flip(&shard, 77);
    lab.pass(&scrubber, PERIOD);
    assert!(lab.manager.device_quarantined().is_some());
}

#[test]
fn a_drill_says_nothing_about_the_device_whoever_repairs_it() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    for _ in 0..5 {
        lab.manager.inject_fault(&shard, 77, 3).unwrap();
        lab.pass(&scrubber, PERIOD);
        assert_eq!(shard.state(), ShardState::Quarantined);
        scrubber.repair_now(&shard).unwrap();
    }
    assert_eq!((lab.manager.device_quarantined(), shard.state()), (None, ShardState::Verified));
}

#[test]
fn what_cannot_be_resealed_can_be_tried_again() {
    let lab = Lab::new(OnFailure::FailClosed);
    let scrubber = lab.scrubber(|_| ());
    let (shard, _) = lab.seal(&scrubber, &weights(5000));
    let (name, dir) = (*shard.shard_id(), support::disk_dir());
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        ModelFile::open(&path, Some(Format::Raw)).unwrap()
    };
    let (large, small) = (file("large", &vec![1; 65 << 20]), file("small", b"new weights"));
    let unsealed = lab.manager.unseal(shard, "an update").unwrap();
    let request = SealRequest::new(name, "model");
    let refused = unsealed.reseal_file(&large, &request).unwrap_err();
    assert!(matches!(refused.error, Error::Device(_)), "{refused:?}");
    assert_eq!((refused.unsealed.bytes(), lab.manager.capacity().used_bytes), (0, 0));
    let shard = refused.unsealed.reseal_file(&small, &request).unwrap();
    assert_eq!(shard.digest(), vram_residency::digest::Digest::of(b"new weights"));
    assert_eq!(lab.record("ShardResealed")["reason"], "an update");
}

#[test]
fn the_threads_check_by_themselves_and_end_when_asked() {
    let dir = support::disk_dir();
    let manager = support::manager(dir.path(), 16 << 20);
    let mut options = ScrubOptions::default();
    options.period = Duration::from_millis(200);
    let scrubber = Scrubber::start(&manager, options).unwrap();
    let shard = manager.seal_model(id("shard"), "model", &weights(3 << 20)).unwrap();
    scrubber.watch(&shard, None);
    let begun = std::time::Instant::now();
    while scrubber.shard_status(&shard).unwrap().passes < 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{scrubber:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(scrubber.is_alive() && shard.block_ages().len() == 3);
    drop(shard);
    assert_eq!(manager.capacity().used_bytes, 0, "the watch holds nobody");
    scrubber.stop();
    assert!(!scrubber.is_alive());
}
