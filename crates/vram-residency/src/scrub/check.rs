//! One step of the continuous check.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::{Core, Due, Job};
use crate::audit::AuditEvent;
use crate::digest::{BlockValue, block_range};
use crate::error::Error;
use crate::manager::Recorded;
use crate::shard::{Home, Shard, ShardState};

/// How long a shard that somebody else checks is left alone.
const BUSY_NS: u64 = 2_000_000;

/// What became of a block.
enum Found {
    AsSealed,
    Damaged,
    /// Nothing can be said.
    Nothing,
}

impl Core {
    /// Checks what is due, if anything is. Otherwise says for how long there is nothing to do.
    pub(super) fn tick(&self) -> Option<Duration> {
        let now = self.worker.now_ns();
        self.note_move(now);
        let allowed = self.allowed_ns.load(Ordering::Relaxed);
        if allowed > now {
            return Some(Duration::from_nanos(allowed.saturating_sub(now)));
        }
        let job = match self.pick(now) {
            Ok(job) => job,
            Err(idle) => return Some(idle),
        };
        let began_ns = self.worker.now_ns();
        let Some(_alone) = job.shard.try_begin_check() else {
            self.let_rest(&job.shard, now.saturating_add(BUSY_NS));
            return Some(Duration::ZERO);
        };
        if job.shard.state().is_out() {
            return None;
        }
        let (bytes, took) = match job.what {
            Due::Block(block) => {
                let (found, took) = self.check(&job, block, began_ns);
                self.settle(&job.shard, block, &found);
                let range = block_range(job.shard.statement.bytes, block);
                (range.end.saturating_sub(range.start), took)
            }
            Due::Recheck => self.recheck(&job, began_ns),
        };
        let rest = self.options.budget.rest(bytes, took);
        let rest_ns = u64::try_from(rest.as_nanos()).unwrap_or(u64::MAX);
        self.allowed_ns.store(self.worker.now_ns().saturating_add(rest_ns), Ordering::Relaxed);
        None
    }

    /// Reads a block in place, and does what follows from a mismatch. Says how long the reading took: what a repair takes
    /// is not the budget's affair.
    fn check(&self, job: &Job, block: u64, began_ns: u64) -> (Found, Duration) {
        let shard = &*job.shard;
        let span = tracing::debug_span!("scrub", shard_id = %shard.statement.shard_id, block);
        let _entered = span.enter();
        let mut value = [BlockValue::UNKNOWN];
        let hashed = shard.region().and_then(|region| Ok(region.hash_blocks(block, &mut value)?));
        let took = Duration::from_nanos(self.worker.now_ns().saturating_sub(began_ns));
        let is_as_sealed = hashed.map(|()| value.first().copied() == shard.sealed_value(block));
        let verdict = is_as_sealed.and_then(|is_as_sealed| {
            if is_as_sealed {
                return Ok(false);
            }
            // No work on it while it is read again.
            let before = shard.state();
            shard.set_state(ShardState::Suspect);
            let confirmed = self.worker.confirm(shard, block)?;
            if !confirmed {
                shard.set_state(before);
            }
            Ok(confirmed)
        });
        let found = match verdict {
            Ok(false) => {
                shard.freshness.checked(block, began_ns);
                self.is_well(shard, block);
                Found::AsSealed
            }
            Ok(true) => {
                self.found_damage(job, block);
                Found::Damaged
            }
            Err(error) => {
                self.metrics.errors.increment(1);
                self.worker.not_carried_out(shard, &error);
                Found::Nothing
            }
        };
        (found, took)
    }

    /// Notes what was found, and ends the pass where this was its last block.
    fn settle(&self, shard: &Arc<Shard>, block: u64, found: &Found) {
        let (now, wall) = (self.worker.now_ns(), self.worker.trail.wall_ns());
        let mut guard = self.lanes();
        let Some((lane, chance)) = guard.with_chance(shard) else { return };
        match found {
            Found::AsSealed => {
                if let Some(oldest) = lane.schedule.checked() {
                    shard.freshness.set_oldest(oldest);
                }
                let range = block_range(shard.statement.bytes, block);
                let bytes = range.end.saturating_sub(range.start);
                self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.totals.blocks.fetch_add(1, Ordering::Relaxed);
                self.metrics.bytes.increment(bytes);
                self.metrics.blocks.increment(1);
            }
            Found::Damaged => {
                lane.schedule.skip();
                lane.clean = false;
            }
            Found::Nothing => {
                // From the start again, and not at once.
                lane.rests_until_ns = now.saturating_add(self.rest_ns());
                lane.begin_anew(now, wall, chance, shard);
                return;
            }
        }
        if lane.schedule.next(self.pass_ns).is_some() {
            return;
        }
        let (clean, started_ns, started_wall_ns) = (lane.clean, lane.schedule.started_ns(), lane.pass_wall_ns);
        lane.go_on(now, wall, chance);
        lane.passes = lane.passes.saturating_add(u64::from(clean));
        drop(guard);
        // A shard that was verified as a whole since has nothing to gain.
        if clean && shard.freshness.full_ns() <= started_ns {
            self.end_pass(shard, started_wall_ns, now.saturating_sub(started_ns));
        }
    }

    /// Every block was found as sealed: what is left is the seal itself, the memory, and the record.
    fn end_pass(&self, shard: &Shard, started_ns: u64, duration_ns: u64) {
        if shard.state().is_damaged() {
            return;
        }
        let judged = match self.worker.examine_seal(shard) {
            Ok(()) => self.worker.examine_memory(shard).map(|examined| examined.map(|_| ())),
            Err(cause) => Ok(Err(cause)),
        };
        match judged {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => {
                let _ = self.worker.failed(shard, cause);
                return;
            }
            Err(error) => {
                self.metrics.errors.increment(1);
                self.worker.not_carried_out(shard, &error);
                return;
            }
        }
        self.metrics.passes.increment(1);
        let statement = &shard.statement;
        let lost_before = self.worker.trail.lost_records();
        let recorded = self.worker.record(&AuditEvent::ScrubPassed {
            shard_id: &statement.shard_id,
            digest: statement.digest,
            blocks: shard.values.len() as u64,
            bytes: statement.bytes,
            started_ns,
            duration_ns,
        });
        match recorded {
            Ok(Recorded::Kept) => {
                shard.set_last_verified(started_ns);
                shard.set_recorded_state(ShardState::Verified, lost_before);
            }
            // A check whose record is lost does not count as one.
            Ok(Recorded::Lost) | Err(Error::Audit(_)) => shard.set_state(ShardState::Unverified),
            Err(_) => {}
        }
    }

    /// How long a shard is left alone whose check could not be carried out: a device in trouble is not helped by haste.
    pub(super) fn rest_ns(&self) -> u64 {
        (self.pass_ns / 8).min(1_000_000_000)
    }

    pub(super) fn let_rest(&self, shard: &Arc<Shard>, until_ns: u64) {
        if let Some(lane) = self.lanes().of(shard) {
            lane.rests_until_ns = until_ns;
        }
    }
}
