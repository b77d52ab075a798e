//! Seeded lives of a worker whose memory, files, device, disk and scrubber fail, under a clock that only the test moves.
//!
//! After every step, for every shard: what is called fresh or verified has no block that was already bad when it was
//! last checked; nothing bad stays unnoticed; nothing damaged is lent out. `SCRUB_SEEDS` sets how many lives there are,
//! `SCRUB_SEED` repeats one.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

#[path = "../../audit-logging/tests/common/mod.rs"]
mod common;
mod sim;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{FOREVER, Fault as DiskFault, MemVfs, Plan, Rng};
use sim::{Mode, Rules, SimClock, SimSource};
use support::id;
use vram_residency::audit::TrailHealth;
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{Budget, ScrubOptions, Scrubber};
use vram_residency::{SealedShard, ShardState, VramManager};

const PERIOD: Duration = Duration::from_secs(60);
const STEPS: u64 = 120;

/// A shard, and the truth about it.
struct Known {
    shard: SealedShard,
    good: Vec<u8>,
    source: Arc<SimSource>,
    /// Since when each block is bad.
    bad: Vec<Option<Duration>>,
}

struct World {
    rng: Rng,
    clock: Arc<SimClock>,
    vfs: MemVfs,
    disk_fails: bool,
    rules: Arc<Rules>,
    manager: VramManager,
    scrubber: Scrubber,
    shards: Vec<Known>,
    on_failure: OnFailure,
    counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    flips: u64,
    found: u64,
    repaired: u64,
    ticks: u64,
    late: u64,
    quarantined: u64,
    rechecks: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let clock = SimClock::new();
        let vfs = MemVfs::default();
        let rules = Arc::new(Rules::new(Arc::clone(&clock)));
        let on_failure =
            [OnFailure::Repair, OnFailure::Repair, OnFailure::FailClosed, OnFailure::Log, OnFailure::StopWorker]
                [rng.below(5) as usize];
        let manager = sim::manager(&clock, &vfs, &rules, on_failure);
        let mut options = ScrubOptions::default();
        options.period = PERIOD;
        options.seed = Some(seed);
        options.budget = [Budget::Unlimited, Budget::Share(0.5)][rng.below(2) as usize];
        if rng.chance(70) {
            (options.repeat_faults, options.repairs_per_day) = (0, 0);
        }
        if rng.chance(60) {
            manager.keep_recheck_keys(1 + rng.below(4) as u16).unwrap();
            options.recheck = Some(PERIOD / [2, 5, 20][rng.below(3) as usize]);
        }
        let scrubber = Scrubber::manual(&manager, options).unwrap();
        let counts = Counts::default();
        Self { rng, clock, vfs, disk_fails: false, rules, manager, scrubber, shards: Vec::new(), on_failure, counts }
    }

    fn load(&mut self) {
        if self.shards.len() >= 4 {
            return;
        }
        let size: usize = [1, 77, 4096, 70_000, (1 << 20) + 5, (2 << 20) + 9][self.rng.below(6) as usize];
        let tag = self.rng.next();
        let good: Vec<u8> = (0..size as u64).map(|at| (at.wrapping_mul(tag | 1) >> 13) as u8).collect();
        let name = format!("shard-{}", self.rules.next_number());
        let Ok(shard) = self.manager.seal_model(id(&name), "model", &good) else { return };
        let source = Arc::new(SimSource::new(good.clone(), Arc::clone(&self.clock)));
        self.scrubber.watch(&shard, self.rng.chance(90).then(|| Arc::clone(&source) as _));
        self.shards.push(Known { shard, bad: vec![None; size.div_ceil(1 << 20)], good, source });
    }

    fn some(&mut self) -> Option<usize> {
        (!self.shards.is_empty()).then(|| self.rng.below(self.shards.len() as u64) as usize)
    }

    /// Damages resident bytes behind everybody's back.
    fn damage(&mut self) {
        let Some(index) = self.some() else { return };
        let (at, bit, long) = (self.rng.next(), self.rng.below(8), self.rng.chance(20));
        let known = &self.shards[index];
        let at = (at % known.good.len() as u64) as usize;
        let end = if long { (at + 500).min(known.good.len()) } else { at + 1 };
        let name = known.shard.shard_id().as_str().to_owned();
        self.rules.change(&name, at, end, |bytes| if long { bytes.fill(0) } else { bytes[0] ^= 1 << bit });
        self.counts.flips += 1;
        self.learn();
    }

    /// Brings the truth up to date: which blocks are bad now, and since when.
    fn learn(&mut self) {
        let now = self.clock.now();
        for known in &mut self.shards {
            let name = known.shard.shard_id().as_str();
            for (block, bad) in known.bad.iter_mut().enumerate() {
                let range = block << 20..(((block + 1) << 20).min(known.good.len()));
                let is_bad = !self.rules.equals(name, range.clone(), &known.good[range]);
                *bad = is_bad.then(|| bad.unwrap_or(now));
            }
        }
        self.rules.seen();
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=54 => {
                // Mostly small steps, so that the scrubber keeps up.
                let part = self.rng.below(20) + 1;
                self.clock.advance(PERIOD / 100 * part as u32);
                self.run_scrubber();
            }
            55..=66 => self.damage(),
            67..=70 => self.load(),
            71..=72 => {
                if let Some(index) = self.some() {
                    self.shards.swap_remove(index);
                }
            }
            73..=76 => {
                if let Some(index) = self.some() {
                    let verified = self.scrubber.verify_now(&self.shards[index].shard);
                    self.learn();
                    let known = &self.shards[index];
                    assert!(
                        verified.is_err() || known.bad.iter().all(Option::is_none),
                        "a verify saw what was not there"
                    );
                }
            }
            77..=80 => {
                if let Some(index) = self.some() {
                    let repaired = self.scrubber.repair_now(&self.shards[index].shard);
                    self.learn();
                    let known = &self.shards[index];
                    assert!(repaired.is_err() || known.bad.iter().all(Option::is_none), "a repair left a bad block");
                }
            }
            81..=84 => self.scrubber.look(),
            85..=88 => {
                if let Some(index) = self.some() {
                    self.shards[index].source.set(
                        [Mode::Good, Mode::Missing, Mode::Changed, Mode::Short, Mode::Slow][self.rng.below(5) as usize],
                    );
                }
            }
            89..=92 => self.rules.plan(&mut self.rng),
            93..=94 => self.toggle_disk(),
            95..=96 => {
                // The scrubber dies for a while, and time goes on.
                self.clock.advance(PERIOD * 5 / 2);
                for known in &self.shards {
                    let state = known.shard.state();
                    assert!(
                        !matches!(state, ShardState::Sealed | ShardState::Verified),
                        "unwatched and called {state:?}"
                    );
                    self.counts.late += 1;
                }
                self.scrubber.look();
            }
            _ => self.reseal(),
        }
        if self.rules.has_written() {
            self.learn();
        }
    }

    fn run_scrubber(&mut self) {
        // Bounded: a scrubber that never rests would be a defect, unless a slow source keeps it.
        let begun = self.clock.now();
        for _ in 0..500 {
            if self.clock.now() > begun + PERIOD {
                return;
            }
            self.counts.ticks += 1;
            match self.scrubber.tick() {
                None => {}
                Some(rest) if rest.is_zero() => {}
                Some(rest) if rest < Duration::from_millis(20) => self.clock.advance(rest),
                Some(_) => return,
            }
        }
        panic!("the scrubber does not rest: {:?}", self.scrubber.status());
    }

    fn toggle_disk(&mut self) {
        self.disk_fails = !self.disk_fails;
        if self.disk_fails {
            self.vfs.plan([Plan { at: 1, fault: DiskFault::Os(28), span: FOREVER, only: None }]);
        } else {
            self.vfs.plan([]);
            // The log tries again by itself, on a thread of its own.
            for _ in 0..5000 {
                let flushed = self.manager.trail().flush(Duration::from_secs(1));
                if flushed.is_ok() && self.manager.trail().health() == TrailHealth::Good {
                    return;
                }
                self.clock.advance(Duration::from_millis(100));
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("the log does not resume");
        }
    }

    /// A legitimate change of the weights.
    fn reseal(&mut self) {
        let Some(index) = self.some() else { return };
        let known = self.shards.swap_remove(index);
        let Known { shard, mut good, source, .. } = known;
        let Ok(mut unsealed) = self.manager.unseal(shard, "an update") else { return };
        let at = self.rng.below(good.len() as u64) as usize;
        if unsealed.write(at as u64, &[0xa5]).is_err() {
            return;
        }
        let Ok(shard) = unsealed.reseal() else { return };
        // Whatever is resident now is what was signed for; the old file is no source any more.
        good = self.rules.read(shard.shard_id().as_str(), good.len());
        source.replace(good.clone());
        self.scrubber.watch(&shard, Some(Arc::clone(&source) as _));
        self.shards.push(Known { shard, bad: vec![None; good.len().div_ceil(1 << 20)], good, source });
    }

    fn check(&mut self) {
        let now = self.clock.now();
        for known in &self.shards {
            let shard = &known.shard;
            let state = shard.state();
            for max_age in [PERIOD, PERIOD * 2, Duration::ZERO] {
                if shard.ensure_fresh(max_age).is_ok() {
                    for since in known.bad.iter().flatten() {
                        assert!(
                            *since + max_age >= now,
                            "fresh within {max_age:?} and bad since {:?}: {shard:?} {:?} {:?}",
                            now - *since,
                            shard.block_ages(),
                            known.bad
                        );
                    }
                }
            }
            if matches!(state, ShardState::Sealed | ShardState::Verified) {
                for since in known.bad.iter().flatten() {
                    assert!(*since + PERIOD * 2 >= now, "{state:?} and bad since {:?}", now - *since);
                }
            }
            let lent = shard.with_bytes(0..1, |_| ()).is_ok();
            let refuses = matches!(state, ShardState::Quarantined | ShardState::Repairing | ShardState::Failed)
                || (state == ShardState::Suspect && self.on_failure != OnFailure::Log);
            assert_eq!(lent, !refuses, "{state:?}");
        }
    }

    /// Everything works again: within two periods nothing bad is left unnoticed.
    fn settle(&mut self) {
        self.rules.heal();
        self.shards.iter().for_each(|known| known.source.set(Mode::Good));
        if self.disk_fails {
            self.toggle_disk();
        }
        for _ in 0..50 {
            self.clock.advance(PERIOD / 20);
            self.run_scrubber();
            self.scrubber.look();
        }
        self.learn();
        for known in &self.shards {
            let state = known.shard.state();
            let is_bad = known.bad.iter().any(Option::is_some);
            if is_bad {
                assert!(state.is_damaged(), "bad and {state:?}");
                self.counts.found += 1;
            } else if self.manager.device_quarantined().is_none() && !state.is_damaged() {
                let (health, status) = (self.manager.trail().health(), self.scrubber.shard_status(&known.shard));
                assert_eq!(state, ShardState::Verified, "whole and on record: {health:?}, {status:?}");
            }
        }
        let status = self.scrubber.status();
        self.counts.repaired += status.repairs;
        self.counts.rechecks += status.rechecks;
        self.counts.quarantined += u64::from(status.device_quarantined.is_some());
    }
}

fn live(seed: u64) -> Counts {
    let mut world = World::new(seed);
    world.load();
    world.load();
    for _ in 0..STEPS {
        world.step();
        world.check();
    }
    world.settle();
    let World { vfs, rules, manager, scrubber, shards, counts, .. } = world;
    drop(shards);
    drop(scrubber);
    assert_eq!((manager.list().len(), manager.capacity().used_bytes), (0, 0), "everything is given back");
    drop(manager);
    drop(rules);
    let report = audit_logging::reader::verify_on(&vfs, &common::dir()).unwrap();
    assert!(report.is_intact(), "{report:?}");
    counts
}

#[test]
fn nothing_bad_is_ever_called_good() {
    if let Ok(seed) = std::env::var("SCRUB_SEED") {
        println!("{:?}", live(seed.parse().unwrap()));
        return;
    }
    let seeds: u64 = std::env::var("SCRUB_SEEDS").map_or(1000, |seeds| seeds.parse().unwrap());
    let next = AtomicU64::new(0);
    let totals: Vec<Counts> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut total = Counts::default();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds {
                            return total;
                        }
                        let counts = std::panic::catch_unwind(|| live(seed))
                            .unwrap_or_else(|_| panic!("seed {seed} fails; SCRUB_SEED={seed} repeats it"));
                        total.flips += counts.flips;
                        total.found += counts.found;
                        total.repaired += counts.repaired;
                        total.ticks += counts.ticks;
                        total.late += counts.late;
                        total.quarantined += counts.quarantined;
                        total.rechecks += counts.rechecks;
                    }
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    println!("{seeds} seeds: {totals:?}");
    assert!(seeds < 100 || totals.iter().all(|total| total.flips > 100 && total.repaired > 10 && total.late > 10));
    assert!(seeds < 100 || totals.iter().all(|total| total.rechecks > 1000));
}
