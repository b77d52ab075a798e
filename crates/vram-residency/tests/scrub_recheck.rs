//! Re-checks beside the scrub, under a clock that only the test moves: in time, within the budget, and honest.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

#[path = "../../audit-logging/tests/common/mod.rs"]
mod common;
mod sim;
mod support;

use std::sync::Arc;
use std::time::Duration;

use common::MemVfs;
use serde_json::Value;
use sim::{Rules, SimClock};
use support::id;
use vram_residency::model::{Format, ModelFile};
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{Budget, ScrubOptions, Scrubber};
use vram_residency::{Error, MOST_RECHECK_KEYS, Rechecked, SealRequest, SealedShard, ShardState, VramManager};

const PERIOD: Duration = Duration::from_secs(60);
const RECHECK: Duration = Duration::from_secs(2);
const MIB: usize = 1 << 20;

struct Lab {
    clock: Arc<SimClock>,
    rules: Arc<Rules>,
    manager: VramManager,
    vfs: MemVfs,
}

impl Lab {
    fn new(on_failure: OnFailure) -> Self {
        let (clock, vfs) = (SimClock::new(), MemVfs::default());
        let rules = Arc::new(Rules::new(Arc::clone(&clock)));
        let manager = sim::manager(&clock, &vfs, &rules, on_failure);
        Self { clock, rules, manager, vfs }
    }

    fn scrubber(&self, budget: Budget) -> Scrubber {
        let mut options = ScrubOptions::default();
        (options.period, options.recheck, options.budget, options.seed) = (PERIOD, Some(RECHECK), budget, Some(7));
        Scrubber::manual(&self.manager, options).unwrap()
    }

    fn seal(&self, bytes: &[u8]) -> SealedShard {
        let name = format!("shard-{}", self.rules.next_number());
        self.manager.seal_model(id(&name), "model", bytes).unwrap()
    }

    /// Lets time go on, and the scrubber do what is due.
    fn pass(&self, scrubber: &Scrubber, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            if let Some(rest) = scrubber.tick() {
                self.clock.advance(rest.clamp(Duration::from_millis(1), Duration::from_millis(50)));
            }
        }
    }

    /// Names of the events on record.
    fn events(&self) -> Vec<String> {
        self.records().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// The events on record.
    fn records(&self) -> Vec<Value> {
        self.manager.trail().flush(Duration::from_secs(5)).unwrap();
        let records = audit_logging::reader::records_on(Arc::new(self.vfs.clone()), &common::dir()).unwrap();
        let leaves = records.map(Result::unwrap).filter(|record| record.kind == audit_logging::Kind::Event);
        leaves.map(|record| serde_json::from_slice(&record.leaf).unwrap()).collect()
    }
}

/// An auditor reads what was promised, without the configuration.
#[test]
fn the_record_of_the_start_says_whether_fingerprints_are_checked_and_how_often() {
    let lab = Lab::new(OnFailure::FailClosed);
    let mut options = ScrubOptions::default();
    options.period = PERIOD;
    drop(Scrubber::manual(&lab.manager, options).unwrap());
    lab.manager.keep_recheck_keys(100).unwrap();
    drop(lab.scrubber(Budget::Unlimited));
    let started: Vec<_> = lab.records().into_iter().filter(|event| event["event"] == "ScrubStarted").collect();
    assert!(started[0]["period_ns"] == 60_000_000_000_u64, "{started:?}");
    assert_eq!((started[0].get("recheck_ns"), started[0].get("recheck_keys")), (None, None), "{started:?}");
    assert!(started[1]["recheck_ns"] == 2_000_000_000_u64 && started[1]["recheck_keys"] == 100, "{started:?}");
}

#[test]
fn every_shard_is_rechecked_in_time_and_the_scrub_goes_on_beside_that() {
    let lab = Lab::new(OnFailure::FailClosed);
    lab.manager.keep_recheck_keys(100).unwrap();
    let scrubber = lab.scrubber(Budget::Unlimited);
    let shards = [lab.seal(&vec![1; 5 * MIB + 1]), lab.seal(&[2; 300])];
    shards.iter().for_each(|shard| scrubber.watch(shard, None));
    let sealed_at = shards[0].last_verified_ns();
    let mut oldest = Duration::ZERO;
    for _ in 0..1200 {
        lab.pass(&scrubber, Duration::from_millis(100));
        oldest = shards.iter().map(SealedShard::oldest_age).max().unwrap().max(oldest);
    }
    assert!(oldest <= RECHECK + Duration::from_millis(200), "{oldest:?}");
    assert!(oldest > RECHECK / 2, "and not much more often than asked for: {oldest:?}");
    for shard in &shards {
        let status = scrubber.shard_status(shard).unwrap();
        // 120 s in steps of 1.75 to 2 s, and passes of 40 s.
        assert!((60..=70).contains(&status.rechecks), "{status:?}");
        assert_eq!(u64::from(status.recheck_keys) + status.rechecks, 100);
        assert!((2..=3).contains(&status.passes), "{status:?}");
        assert_eq!(shard.state(), ShardState::Verified, "by the passes");
    }
    assert!(shards[0].last_verified_ns() > sealed_at, "by the passes");
    let events = lab.events();
    let counted = |name: &str| events.iter().filter(|event| *event == name).count() as u64;
    assert_eq!(counted("FingerprintMatched"), scrubber.status().rechecks);
    assert_eq!((counted("SealVerified"), counted("VerificationLate")), (0, 0));
}

/// Damage is found by the fingerprint long before the scrub comes to its block, named, and repaired.
#[test]
fn damage_is_found_within_a_recheck_and_repaired_in_the_right_block() {
    let lab = Lab::new(OnFailure::Repair);
    lab.manager.keep_recheck_keys(16).unwrap();
    let scrubber = lab.scrubber(Budget::Unlimited);
    let good: Arc<[u8]> = (0..40 * MIB).map(|at| (at % 251) as u8).collect();
    let shard = lab.seal(&good);
    let source = Arc::new(sim::SimSource::new(good.to_vec(), Arc::clone(&lab.clock)));
    scrubber.watch(&shard, Some(source as _));
    lab.pass(&scrubber, Duration::from_secs(5));
    lab.rules.change(shard.shard_id().as_str(), 33 * MIB + 7, 33 * MIB + 8, |bytes| bytes[0] ^= 4);
    lab.pass(&scrubber, RECHECK + Duration::from_millis(200));
    let fault = shard.last_fault().unwrap();
    assert_eq!((fault.block, fault.differing_bits, fault.outcome), (33, Some(1), "repaired"));
    assert!(lab.rules.equals(shard.shard_id().as_str(), 0..good.len(), &good));
    assert_eq!((shard.state(), scrubber.status().repairs), (ShardState::Verified, 1));
    // With the sealed bytes there again, the keys that are left serve on.
    let before = scrubber.status().rechecks;
    lab.pass(&scrubber, RECHECK * 2);
    assert!(scrubber.status().rechecks > before);
    assert!(!lab.events().iter().any(|event| event == "FingerprintNotConfirmed"));
}

#[test]
fn a_lie_about_a_fingerprint_is_on_record_and_changes_nothing_else() {
    let lab = Lab::new(OnFailure::FailClosed);
    lab.manager.keep_recheck_keys(16).unwrap();
    let scrubber = lab.scrubber(Budget::Unlimited);
    let shard = lab.seal(&vec![3; MIB]);
    lab.rules.lie_once();
    assert_eq!(lab.manager.recheck(&shard).unwrap(), Rechecked::NotConfirmed);
    assert_eq!((shard.state(), shard.recheck_keys()), (ShardState::Sealed, 15));
    scrubber.watch(&shard, None);
    lab.pass(&scrubber, RECHECK * 2);
    assert_eq!((shard.last_fault().is_none(), scrubber.status().faults), (true, 0));
    assert_eq!(lab.events().iter().filter(|event| *event == "FingerprintNotConfirmed").count(), 1);
}

/// What a re-check takes is rested for, like a block's check.
#[test]
fn the_budget_bounds_rechecks_too() {
    let lab = Lab::new(OnFailure::FailClosed);
    lab.manager.keep_recheck_keys(1000).unwrap();
    let shard = lab.seal(&vec![3; 8 * MIB]);
    // At 1 MiB/s a re-check of 8 MiB is rested for 8 s, and a pass of the scrub takes as long: 15 of both in 120 s.
    let scrubber = lab.scrubber(Budget::BytesPerSecond((1_u64 << 20).try_into().unwrap()));
    scrubber.watch(&shard, None);
    let before = shard.recheck_keys();
    lab.pass(&scrubber, Duration::from_secs(120));
    let used = before - shard.recheck_keys();
    let status = scrubber.status();
    let read = u64::from(used) * shard.bytes() + status.bytes;
    assert!(read <= 130 << 20, "{used} re-checks, {status:?}");
    assert!(used >= 5, "but there are some: {used}");
    assert!(status.blocks >= 8, "and the scrub goes on: {status:?}");
}

/// A refill of 16 keys is read in 17 passes, which a budget of 8 s a pass rests for 136 s: longer than a block may wait.
#[test]
fn a_refill_makes_nobody_late_and_is_rested_for_as_far_as_it_was_read() {
    let lab = Lab::new(OnFailure::FailClosed);
    lab.manager.keep_recheck_keys(16).unwrap();
    let speed = 5_u64 << 18;
    let mut options = ScrubOptions::default();
    (options.period, options.recheck, options.seed) = (PERIOD, Some(PERIOD / 2), Some(7));
    options.budget = Budget::BytesPerSecond(speed.try_into().unwrap());
    let scrubber = Scrubber::manual(&lab.manager, options).unwrap();
    let shards = [lab.seal(&vec![1; 10 * MIB]), lab.seal(&[2; 300])];
    shards.iter().for_each(|shard| scrubber.watch(shard, None));
    let (mut oldest, mut failed_at, mut refills, mut keys) = (Duration::ZERO, None, 0, 16);
    let end = lab.clock.now() + Duration::from_secs(2400);
    while lab.clock.now() < end {
        let (before, drawn) = (lab.rules.bytes_read(), lab.rules.fingerprints().len());
        let mut rest = scrubber.tick();
        let read = lab.rules.bytes_read() - before;
        if rest.is_none() && read > 0 {
            rest = scrubber.tick();
            let wanted = Duration::from_nanos(read * 1_000_000_000 / speed);
            assert_eq!(rest.unwrap_or_default(), wanted, "what was read, and nothing else");
            assert!(read <= shards[0].bytes(), "one pass at a time");
            oldest = shards.iter().map(SealedShard::oldest_age).max().unwrap().max(oldest);
            // In the middle of the second refill.
            let is_drawing = shards[0].recheck_keys() == 0 && lab.rules.fingerprints().len() > drawn;
            if refills == 1 && failed_at.is_none() && is_drawing {
                lab.rules.fail_once();
                failed_at = Some(lab.clock.now());
            }
            refills += u32::from(keys == 0 && shards[0].recheck_keys() == 16);
            keys = shards[0].recheck_keys();
        }
        let is_failing = failed_at.is_some_and(|at| lab.clock.now() < at + PERIOD);
        assert!(is_failing || shards[0].state() != ShardState::Unverified, "at {:?}", lab.clock.now());
        scrubber.look();
        if let Some(rest) = rest {
            lab.clock.advance(rest.clamp(Duration::from_millis(1), Duration::from_millis(50)));
        }
    }
    assert!(refills >= 3 && failed_at.is_some(), "{refills}");
    assert!(oldest < PERIOD + Duration::from_secs(17), "two passes behind at most: {oldest:?}");
    let events = lab.events();
    let counted = |name: &str| events.iter().filter(|event| *event == name).count();
    assert_eq!((counted("SealVerificationFailed"), counted("VerificationLate")), (1, 0));
    assert!(counted("FingerprintMatched") >= 2 * 16 * 3);
}

/// Keys are drawn while a block is damaged that is repaired before they are vouched for: the same damage must not match later.
#[test]
fn fingerprints_of_damaged_bytes_are_not_kept_where_a_repair_comes_between() {
    let lab = Lab::new(OnFailure::Repair);
    lab.manager.keep_recheck_keys(2).unwrap();
    let scrubber = lab.scrubber(Budget::Unlimited);
    let good = vec![3; 2 * MIB];
    let shard = lab.seal(&good);
    let source = Arc::new(sim::SimSource::new(good, Arc::clone(&lab.clock)));
    scrubber.watch(&shard, Some(source as _));
    let tick = || {
        if let Some(rest) = scrubber.tick() {
            lab.clock.advance(rest.clamp(Duration::from_millis(1), Duration::from_millis(50)));
        }
    };
    while shard.recheck_keys() > 0 {
        tick();
    }
    let damage = || lab.rules.change(shard.shard_id().as_str(), 7, 8, |bytes| bytes[0] ^= 4);
    damage();
    let drawn = lab.rules.fingerprints().len();
    while lab.rules.fingerprints().len() == drawn {
        tick();
    }
    assert_eq!(shard.recheck_keys(), 0, "drawn, and not vouched for");
    scrubber.repair_now(&shard).unwrap();
    while shard.recheck_keys() == 0 {
        tick();
    }
    damage();
    for _ in 0..2 {
        assert!(!matches!(lab.manager.recheck(&shard), Ok(Rechecked::Matched { .. })), "damage passed for sealed");
    }
    assert!(!lab.events().iter().any(|event| event == "FingerprintNotConfirmed"));
}

#[test]
fn who_asks_a_load_to_stop_does_not_wait_for_the_keys_that_are_left() {
    let lab = Lab::new(OnFailure::FailClosed);
    lab.manager.keep_recheck_keys(1024).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    std::fs::write(&path, vec![5; MIB]).unwrap();
    let file = ModelFile::open(&path, Some(Format::Raw)).unwrap();
    // Three secrets each are noted.
    let stop = || lab.rules.fingerprints().len() >= 2 * 3;
    let error = lab.manager.seal_file(&file, &SealRequest::new(id("shard-1"), "model").unless(&stop)).unwrap_err();
    assert!(
        error.to_string().contains("asked to stop") && error.to_string().contains("nothing of it stays"),
        "{error}"
    );
    assert_eq!(lab.rules.fingerprints().len(), 2 * 3);
    assert_eq!((lab.manager.list().len(), lab.manager.capacity().used_bytes), (0, 0));
}

#[test]
fn more_keys_than_anybody_waits_for_are_refused() {
    let lab = Lab::new(OnFailure::FailClosed);
    let error = lab.manager.keep_recheck_keys(MOST_RECHECK_KEYS + 1).unwrap_err().to_string();
    assert!(error.contains("is 1025") && error.contains("at most 1024"), "{error}");
    assert!(!lab.manager.has_rechecks());
}

#[test]
fn without_keys_or_a_device_for_them_rechecks_are_refused() {
    let lab = Lab::new(OnFailure::FailClosed);
    let mut options = ScrubOptions::default();
    options.recheck = Some(RECHECK);
    let refused = |manager: &VramManager, options: &ScrubOptions| {
        let error = Scrubber::manual(manager, options.clone()).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Scrub { setting: "recheck", .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&lab.manager, &options).contains("no keys are kept"));
    lab.manager.keep_recheck_keys(1).unwrap();
    assert!(Scrubber::manual(&lab.manager, options.clone()).is_ok());
    for recheck in [Duration::from_millis(99), options.period + Duration::from_millis(1)] {
        options.recheck = Some(recheck);
        assert!(refused(&lab.manager, &options).contains("between 100 ms and the period"));
    }
    options.recheck = Some(RECHECK);
    let dir = support::disk_dir();
    let manager = support::manager(dir.path(), 1 << 20);
    manager.keep_recheck_keys(1).unwrap();
    assert!(refused(&manager, &options).contains("no faster check than hashing"));
}
