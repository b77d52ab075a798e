//! The continuous check: every block of every shard, again and again, within a period and a budget.
//!
//! ```text
//!  scrub thread    pick the block that is due ─▶ hash it in place ─▶ as sealed? ─▶ note the time ──▶ pass through? record it
//!                                                                      └ no ─▶ SUSPECT ─▶ read again ─▶ record ─▶ policy
//!  watchdog        late? record it; show every gauge
//! ```
//!
//! Whether a shard is late is worked out from the times of its blocks by whoever asks for its state. So a scrub thread that
//! dies, hangs or starves shows as [`ShardState::Unverified`](crate::ShardState::Unverified) within two periods without anybody's help.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::Error;
use crate::manager::{RepairReport, Verified, VramManager};
use crate::model::Source;
use crate::shard::SealedShard;

mod budget;
mod check;
mod core;
mod ledger;
mod recheck;
mod respond;
mod schedule;
mod threads;
mod watchdog;

pub use budget::{Budget, ParseBudgetError};

use self::core::Core;

/// The shortest and the longest period.
pub const PERIODS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(366 * 86_400);

/// How often and how hard to check, and when to give a device up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScrubOptions {
    /// Every block of every shard is checked within this time, 100 ms to 366 days. Default: 60 s.
    pub period: Duration,
    /// What that may cost at most. Where it is too little for the period, shards are late and said to be. Default: 25 % of
    /// one thread's time.
    pub budget: Budget,
    /// Every shard is checked by its [fingerprint](VramManager::recheck) within this time as well, 100 ms to the period, as far
    /// as the budget allows: what one takes is rested for like a block's check. Default: not at all.
    pub recheck: Option<Duration>,
    /// So many faults in one block quarantine the device; 0: never. Default: 2.
    pub repeat_faults: u32,
    /// So many repaired blocks within 24 hours quarantine the device; 0: never. Default: 3.
    pub repairs_per_day: u32,
    /// Chooses the order in which blocks are checked. Default: the system's random numbers, so that nobody can know it.
    pub seed: Option<u64>,
}

impl Default for ScrubOptions {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(60),
            budget: Budget::Share(0.25),
            recheck: None,
            repeat_faults: 2,
            repairs_per_day: 3,
            seed: None,
        }
    }
}

impl ScrubOptions {
    /// Whether every option is within its bounds. Starting checks the same.
    ///
    /// # Errors
    /// [`Error::Scrub`] with the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |setting, value: &dyn fmt::Display, limit| {
            Err(Error::Scrub { setting, value: value.to_string().into(), limit })
        };
        if !PERIODS.contains(&self.period) {
            let value = format!("{:?}", self.period);
            return refuse("period", &value, "between 100 ms and 366 days");
        }
        if let Some(recheck) = self.recheck
            && !(*PERIODS.start()..=self.period).contains(&recheck)
        {
            return refuse(
                "recheck",
                &format!("{recheck:?}, of a period of {:?}", self.period),
                "between 100 ms and the period",
            );
        }
        if !self.budget.is_sound() {
            return refuse("budget", &self.budget, "a share above 0 % and at most 100 %, or a speed");
        }
        Ok(())
    }
}

/// How the continuous check is doing.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct ScrubStatus {
    /// Every block is to be checked within this time.
    #[serde(rename = "period_seconds", serialize_with = "seconds")]
    pub period: Duration,
    /// What that may cost at most.
    pub budget: Budget,
    /// Every shard's fingerprint is to be checked within this time; none: it is not.
    #[serde(rename = "recheck_seconds", serialize_with = "seconds_if_any")]
    pub recheck: Option<Duration>,
    /// Whether it is at work.
    pub alive: bool,
    /// Bytes checked in a second, over the last seconds.
    pub throughput_bytes_per_second: u64,
    /// Bytes found as sealed.
    pub bytes: u64,
    /// Blocks found as sealed.
    pub blocks: u64,
    /// Fingerprints that were as expected.
    pub rechecks: u64,
    /// Damaged blocks found.
    pub faults: u64,
    /// Blocks repaired.
    pub repairs: u64,
    /// Why nothing on the device is trusted any more.
    pub device_quarantined: Option<Box<str>>,
    /// Why the service that keeps the shards should end (policy `stop-worker`).
    pub stop_requested: Option<Box<str>>,
}

/// How the continuous check of one shard is doing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ShardScrub {
    /// Time since the last check of the block that was not checked for longest.
    #[serde(rename = "oldest_age_seconds", serialize_with = "seconds")]
    pub oldest_age: Duration,
    /// Rounds in which every block was found as sealed.
    pub passes: u64,
    /// Fingerprints that were as expected.
    pub rechecks: u64,
    /// Keys that are left for more.
    pub recheck_keys: u32,
    /// Damaged blocks found.
    pub faults: u64,
    /// Blocks repaired.
    pub repairs: u64,
    /// Whether it could be repaired.
    pub has_source: bool,
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn seconds_if_any<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(|time| time.as_secs_f64()), serializer)
}

/// Checks the shards of one manager continuously. Dropping it ends that, and records it.
pub struct Scrubber {
    core: Arc<Core>,
    ending: Arc<Ending>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

/// Tells the threads to end.
#[derive(Debug, Default)]
struct Ending {
    wanted: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Ending {
    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// Waits for so long, or until the end is wanted.
    fn wait(&self, time: Duration) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_wanted() {
            let _ = self.wake.wait_timeout(guard, time);
        }
    }

    fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.notify_all();
    }
}

impl Scrubber {
    /// Starts to check what it is told to watch, on a thread of its own, under the eyes of a second one.
    ///
    /// # Errors
    /// [`Error::Scrub`] where an option is out of bounds, the system gives no thread or no random number, or re-checks are asked
    /// for that the device has not or the manager keeps no keys for,
    /// [`Error::Audit`] where the policy requires records and the first is not kept.
    pub fn start(manager: &VramManager, options: ScrubOptions) -> Result<Self, Error> {
        let scrubber = Self::manual(manager, options)?;
        threads::spawn(&scrubber)?;
        Ok(scrubber)
    }

    /// The same without threads: whoever has a loop of his own calls [`Scrubber::tick`] and [`Scrubber::look`] in it.
    ///
    /// # Errors
    /// As [`Scrubber::start`].
    pub fn manual(manager: &VramManager, options: ScrubOptions) -> Result<Self, Error> {
        options.check()?;
        recheck::check(manager, &options)?;
        let core = Arc::new(Core::new(manager, options)?);
        core.record_start()?;
        Ok(Self { core, ending: Arc::default(), threads: Mutex::default(), stopped: AtomicBool::new(false) })
    }

    /// Checks a shard from now on. Repairs, where the policy wants them, come from `source`. The shard is held weakly:
    /// dropping the last clone of it ends this. Watching it again replaces its source.
    pub fn watch(&self, shard: &SealedShard, source: Option<Arc<dyn Source>>) {
        self.core.watch(shard, source);
        self.ending.wake.notify_all();
    }

    /// Verifies a whole shard now, then does what the policy says: of a repair that succeeds, the caller learns from the
    /// shard's state.
    ///
    /// # Errors
    /// As [`VramManager::verify_sealed`].
    pub fn verify_now(&self, shard: &SealedShard) -> Result<Verified, Error> {
        self.core.verify_now(shard)
    }

    /// Verifies many shards now, as [`VramManager::verify_all`] does, then does what the policy says about each that is
    /// damaged, and tells of it after that. `told` is given each shard with its outcome, and no clone of it is kept here:
    /// it can be unsealed or released while others are still verified and repaired.
    pub fn verify_all_now(
        &self,
        shards: impl IntoIterator<Item = SealedShard>,
        told: &mut dyn FnMut(usize, SealedShard, Result<Verified, Error>),
    ) {
        self.core.verify_all_now(shards.into_iter(), told);
    }

    /// Repairs a shard now from the source it is watched with.
    ///
    /// # Errors
    /// As [`VramManager::repair`]; [`Error::NoSource`] where there is none.
    pub fn repair_now(&self, shard: &SealedShard) -> Result<RepairReport, Error> {
        self.core.repair_now(shard)
    }

    /// Checks the block that is due, if one is. Otherwise says for how long there is nothing to do.
    pub fn tick(&self) -> Option<Duration> {
        self.core.tick()
    }

    /// What the watchdog does: records who has become late or is so no longer, and shows every gauge.
    pub fn look(&self) {
        self.core.look();
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> ScrubStatus {
        self.core.status(self.is_alive())
    }

    /// How the check of one shard is doing; none where it is not watched.
    #[must_use]
    pub fn shard_status(&self, shard: &SealedShard) -> Option<ShardScrub> {
        self.core.shard_status(shard)
    }

    /// Whether it is at work: its threads live, and the one that checks has moved within the last two periods.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let live = self.threads().iter().all(|thread| !thread.is_finished());
        live && !self.ending.is_wanted() && self.core.has_moved()
    }

    /// Asks for its end without waiting for that, as [`Scrubber::stop`] does.
    pub fn begin_to_stop(&self) {
        self.ending.want();
    }

    /// Ends the check and records that. Dropping does the same. What was watched is late, and so UNVERIFIED, two periods
    /// later.
    pub fn stop(&self) {
        self.ending.want();
        let threads: Vec<_> = self.threads().drain(..).collect();
        for thread in threads {
            // Panics were caught and counted inside.
            let _ = thread.join();
        }
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.core.record_stop("asked to");
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Scrubber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrubber").field("status", &self.status()).finish_non_exhaustive()
    }
}
