//! What the two threads and the callers share: the watched shards, each with its schedule.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::ledger::Ledger;
use super::schedule::{Chance, Schedule};
use super::{ScrubOptions, ScrubStatus, ShardScrub};
use crate::audit::{AuditEvent, Text};
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::manager::{VramManager, Worker};
use crate::metrics::{ScrubMetrics, ShardMetrics};
use crate::model::Source;
use crate::shard::{Home, SealedShard, Shard};

pub(super) struct Core {
    pub(super) worker: Arc<Worker>,
    pub(super) options: ScrubOptions,
    pub(super) metrics: ScrubMetrics,
    /// What a pass takes: so much less than the period that no block waits for longer than that.
    pub(super) pass_ns: u64,
    lanes: Mutex<Lanes>,
    pub(super) ledger: Mutex<Ledger>,
    /// The budget allows the next check from then on.
    pub(super) allowed_ns: AtomicU64,
    moved_ns: AtomicU64,
    pub(super) throughput: AtomicU64,
    pub(super) totals: Totals,
    pub(super) stop_requested: OnceLock<Box<str>>,
}

/// Counted since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) bytes: AtomicU64,
    pub(super) blocks: AtomicU64,
    pub(super) rechecks: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) repairs: AtomicU64,
}

pub(super) struct Lanes {
    pub(super) lanes: Vec<Lane>,
    pub(super) chance: Chance,
}

/// One watched shard.
pub(super) struct Lane {
    pub(super) shard: Weak<Shard>,
    pub(super) source: Option<Arc<dyn Source>>,
    pub(super) schedule: Schedule,
    /// When this pass began, by the wall clock.
    pub(super) pass_wall_ns: u64,
    /// Whether every block of this pass was found as sealed so far.
    pub(super) clean: bool,
    /// Not looked at before then: somebody else checks it, or the device failed.
    pub(super) rests_until_ns: u64,
    /// Its fingerprint is due then; none: never.
    pub(super) recheck_ns: Option<u64>,
    /// Whether its lateness is on record.
    pub(super) late: bool,
    pub(super) passes: u64,
    pub(super) rechecks: u64,
    pub(super) faults: u64,
    pub(super) repairs: u64,
    pub(super) metrics: ShardMetrics,
}

/// A shard of which something is due.
pub(super) struct Job {
    pub(super) shard: Arc<Shard>,
    pub(super) source: Option<Arc<dyn Source>>,
    pub(super) what: Due,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Block(u64),
    Recheck,
}

impl Core {
    pub(super) fn new(manager: &VramManager, options: ScrubOptions) -> Result<Self, Error> {
        let chance = match options.seed {
            Some(seed) => Chance::of_number(seed),
            None => Chance::new(random()?),
        };
        let metrics = ScrubMetrics::register(&manager.device_name());
        metrics.period.set(options.period.as_secs_f64());
        let worker = Arc::clone(&manager.worker);
        let now = worker.now_ns();
        Ok(Self {
            pass_ns: nanoseconds(options.period).saturating_mul(2) / 3,
            worker,
            options,
            metrics,
            lanes: Mutex::new(Lanes { lanes: Vec::new(), chance }),
            ledger: Mutex::default(),
            allowed_ns: AtomicU64::new(0),
            moved_ns: AtomicU64::new(now),
            throughput: AtomicU64::new(0),
            totals: Totals::default(),
            stop_requested: OnceLock::new(),
        })
    }

    pub(super) fn record_start(&self) -> Result<(), Error> {
        let (period_ns, budget) = (nanoseconds(self.options.period), Text(&self.options.budget));
        let recheck_ns = self.options.recheck.map(nanoseconds);
        let recheck_keys = recheck_ns.map(|_| self.worker.recheck_keys());
        let event = AuditEvent::ScrubStarted { period_ns, budget, recheck_ns, recheck_keys };
        self.worker.record(&event).map(|_| ())
    }

    pub(super) fn record_stop(&self, reason: &str) {
        self.metrics.alive.set(0.0);
        self.worker.record_beside_failure(&AuditEvent::ScrubStopped { reason });
    }

    pub(super) fn watch(&self, shard: &SealedShard, source: Option<Arc<dyn Source>>) {
        let inner = &shard.inner;
        inner.freshness.watch(inner.values.len(), self.options.period.saturating_mul(2));
        let now = self.worker.now_ns();
        let wall = self.worker.trail.wall_ns();
        let mut lanes = self.lanes();
        if let Some(lane) = lanes.of(inner) {
            lane.source = source;
            return;
        }
        let mut schedule = Schedule::new(inner.values.len(), now, &mut lanes.chance);
        schedule.restart(now, &mut lanes.chance, |block| inner.freshness.block_ns(block));
        let recheck_ns = self.next_recheck(now, &mut lanes.chance);
        lanes.lanes.push(Lane {
            shard: Arc::downgrade(inner),
            source,
            schedule,
            pass_wall_ns: wall,
            clean: true,
            rests_until_ns: 0,
            recheck_ns,
            late: false,
            passes: 0,
            rechecks: 0,
            faults: 0,
            repairs: 0,
            metrics: ShardMetrics::register(shard.shard_id(), shard.residency()),
        });
    }

    /// What is due first, or how long until something is.
    pub(super) fn pick(&self, now: u64) -> Result<Job, Duration> {
        let wall = self.worker.trail.wall_ns();
        let mut guard = self.lanes();
        let Lanes { lanes, chance } = &mut *guard;
        let mut first: Option<(u64, Job)> = None;
        let mut next_look = now.saturating_add(self.pass_ns);
        for lane in lanes {
            if lane.rests_until_ns > now {
                next_look = next_look.min(lane.rests_until_ns);
                continue;
            }
            let Some(shard) = lane.shard.upgrade() else { continue };
            if shard.state().is_out() {
                // Somebody may repair it.
                next_look = next_look.min(now.saturating_add(LOOK_AGAIN_NS));
                continue;
            }
            if shard.freshness.full_ns() > lane.schedule.started_ns() {
                lane.begin_anew(now, wall, chance, &shard);
            }
            let Some((block, due)) = lane.schedule.next(self.pass_ns) else {
                lane.begin_anew(now, wall, chance, &shard);
                continue;
            };
            let (due, what) = match lane.recheck_ns {
                Some(recheck) if recheck < due => (recheck, Due::Recheck),
                _ => (due, Due::Block(block)),
            };
            if first.as_ref().is_none_or(|(first_due, _)| due < *first_due) {
                first = Some((due, Job { shard, source: lane.source.clone(), what }));
            }
        }
        match first {
            Some((due, job)) if due <= now => Ok(job),
            Some((due, _)) => Err(Duration::from_nanos(due.min(next_look).saturating_sub(now))),
            None => Err(Duration::from_nanos(next_look.saturating_sub(now))),
        }
    }

    pub(super) fn status(&self, alive: bool) -> ScrubStatus {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        ScrubStatus {
            period: self.options.period,
            budget: self.options.budget,
            recheck: self.options.recheck,
            alive,
            throughput_bytes_per_second: read(&self.throughput),
            bytes: read(&self.totals.bytes),
            blocks: read(&self.totals.blocks),
            rechecks: read(&self.totals.rechecks),
            faults: read(&self.totals.faults),
            repairs: read(&self.totals.repairs),
            device_quarantined: self.worker.quarantine_reason().map(Into::into),
            stop_requested: self.stop_requested.get().cloned(),
        }
    }

    pub(super) fn shard_status(&self, shard: &SealedShard) -> Option<ShardScrub> {
        let oldest_age = shard.oldest_age();
        let mut lanes = self.lanes();
        let Lane { passes, rechecks, faults, repairs, source, .. } = lanes.of(&shard.inner)?;
        Some(ShardScrub {
            oldest_age,
            passes: *passes,
            rechecks: *rechecks,
            recheck_keys: shard.recheck_keys(),
            faults: *faults,
            repairs: *repairs,
            has_source: source.is_some(),
        })
    }

    pub(super) fn note_move(&self, now: u64) {
        self.moved_ns.store(now, Ordering::Release);
    }

    /// Whether the thread that checks has moved within two periods.
    pub(super) fn has_moved(&self) -> bool {
        let idle = self.worker.now_ns().saturating_sub(self.moved_ns.load(Ordering::Acquire));
        idle <= nanoseconds(self.options.period).saturating_mul(2)
    }

    pub(super) fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often shards that nobody may check are looked at.
const LOOK_AGAIN_NS: u64 = 50_000_000;

impl Lanes {
    /// The lane of a shard.
    pub(super) fn of(&mut self, shard: &Arc<Shard>) -> Option<&mut Lane> {
        self.with_chance(shard).map(|(lane, _)| lane)
    }

    /// The lane of a shard, and where its next order comes from.
    pub(super) fn with_chance(&mut self, shard: &Arc<Shard>) -> Option<(&mut Lane, &mut Chance)> {
        let address = Arc::as_ptr(shard);
        let lane = self.lanes.iter_mut().find(|lane| std::ptr::eq(lane.shard.as_ptr(), address))?;
        Some((lane, &mut self.chance))
    }
}

impl Lane {
    /// Begins a pass in any order.
    pub(super) fn begin_anew(&mut self, now: u64, wall: u64, chance: &mut Chance, shard: &Shard) {
        self.schedule.restart(now, chance, |block| shard.freshness.block_ns(block));
        (self.pass_wall_ns, self.clean) = (wall, true);
    }

    /// Begins the next pass.
    pub(super) fn go_on(&mut self, now: u64, wall: u64, chance: &mut Chance) {
        self.schedule.next_pass(now, chance);
        (self.pass_wall_ns, self.clean) = (wall, true);
    }
}

fn random() -> Result<[u8; 32], Error> {
    let mut seed = [0; 32];
    let got = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    if got == Ok(seed.len()) {
        Ok(seed)
    } else {
        Err(Error::Scrub {
            setting: "seed",
            value: "not to be had".into(),
            limit: "given where the system has no random numbers",
        })
    }
}
