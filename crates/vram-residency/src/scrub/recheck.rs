//! Re-checks by fingerprint beside the check block by block: when, and what follows from one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ScrubOptions;
use super::core::{Core, Job};
use super::schedule::Chance;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::manager::{Rechecked, VramManager};
use crate::shard::Home as _;

/// Refuses re-checks that would be none.
pub(super) fn check(manager: &VramManager, options: &ScrubOptions) -> Result<(), Error> {
    let Some(recheck) = options.recheck else { return Ok(()) };
    let refuse = |limit| Err(Error::Scrub { setting: "recheck", value: format!("{recheck:?}").into(), limit });
    if !manager.worker.device.has_fingerprint() {
        return refuse(
            "left out on a device that has no faster check than hashing, such as host; shorten the period instead",
        );
    }
    if !manager.has_rechecks() {
        return refuse("left out where no keys are kept for it; keep some, or shorten the period instead");
    }
    Ok(())
}

impl Core {
    /// When a re-check is due that follows one of `began_ns`: up to an eighth earlier than asked for, by chance, so that nobody
    /// can tell when.
    pub(super) fn next_recheck(&self, began_ns: u64, chance: &mut Chance) -> Option<u64> {
        let within = nanoseconds(self.options.recheck?);
        let early = chance.below(within / 8);
        Some(began_ns.saturating_add(within.saturating_sub(early)))
    }

    /// Re-checks a shard, and does what follows from that; where it has no keys left, draws one, and comes back for the next as
    /// soon as that is rested for, behind all that is due by then. The caller has begun a check. Says how many bytes were read
    /// for it, and how long that took: what a repair takes is not the budget's affair.
    pub(super) fn recheck(&self, job: &Job, began_ns: u64) -> (u64, Duration) {
        let shard = &job.shard;
        let mut passes = 0;
        let outcome = self.worker.recheck_step(shard, &mut passes);
        let now = self.worker.now_ns();
        let bytes = shard.statement.bytes.saturating_mul(passes);
        let took = Duration::from_nanos(now.saturating_sub(began_ns));
        let matched = u64::from(matches!(outcome, Ok(Some(Rechecked::Matched { .. }))));
        self.totals.rechecks.fetch_add(matched, Ordering::Relaxed);
        if let Some((lane, chance)) = self.lanes().with_chance(shard) {
            lane.recheck_ns = match &outcome {
                Ok(None) => Some(now.saturating_add(nanoseconds(self.options.budget.rest(bytes, took)))),
                _ => self.next_recheck(began_ns, chance),
            };
            lane.rechecks = lane.rechecks.saturating_add(matched);
        }
        match outcome {
            Ok(_) => {}
            Err(Error::SealVerificationFailed { cause, .. }) => {
                if let Some((block, _)) = cause.first_block() {
                    self.respond(shard, block, job.source.as_deref());
                }
            }
            Err(_) => {
                self.metrics.errors.increment(1);
                self.let_rest(shard, now.saturating_add(self.rest_ns()));
            }
        }
        (bytes, took)
    }
}
