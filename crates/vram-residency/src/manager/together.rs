//! Verifying many shards in one sweep over the device, each with an outcome of its own.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use arrayvec::ArrayVec;

use super::verify::{Comparison, incomplete};
use super::{Verified, VramManager, Worker};
use crate::device::{DeviceError, Region};
use crate::digest::BlockValue;
use crate::error::{Error, VerifyFailure};
use crate::shard::{SealedShard, Shard, ShardState};

/// Most shards of a sweep. What is known of each meanwhile lives on the stack, so that a sweep needs no heap.
const TOGETHER: usize = 128;

impl VramManager {
    /// Verifies shards as [`VramManager::verify_sealed`] does, up to 128 of them in one sweep over the device, where a GPU
    /// hashes small ones together. Each has an outcome, a record and a state of its own, and `told` is told of each once,
    /// with its place in `shards`, in no certain order; it may verify and repair. Where the device fails in the middle,
    /// every shard that was not hashed to its end is [`ShardState::Unverified`], and that is on record for each.
    ///
    /// What somebody else verifies, scrubs or repairs meanwhile comes last. Calls that name the same shards never wait for
    /// each other in a circle, in whatever order they name them. If all are as sealed, nothing is allocated.
    pub fn verify_all(&self, shards: &[SealedShard], told: &mut dyn FnMut(usize, Result<Verified, Error>)) {
        self.worker.verify_all(shards, told);
    }
}

/// A shard whose check has begun.
struct Begun<'a> {
    index: usize,
    shard: &'a Shard,
    region: &'a dyn Region,
    /// What is wrong with what is kept on the host, if anything is.
    seal: Option<VerifyFailure>,
    comparison: Comparison<'a>,
    damaged: Vec<(u64, BlockValue)>,
    /// Where it stood before a first reading found damage.
    stood: ShardState,
    _alone: MutexGuard<'a, ()>,
}

impl Begun<'_> {
    fn is_as_sealed(&self) -> bool {
        self.seal.is_none() && self.damaged.is_empty()
    }
}

type Left<'a> = ArrayVec<(usize, &'a SealedShard), TOGETHER>;
type Outcomes = ArrayVec<(usize, Result<Verified, Error>), TOGETHER>;

impl Worker {
    pub(crate) fn verify_all(
        self: &Arc<Self>,
        shards: &[SealedShard],
        told: &mut dyn FnMut(usize, Result<Verified, Error>),
    ) {
        let mut before = 0_usize;
        for group in shards.chunks(TOGETHER) {
            let mut left: Left<'_> = group.iter().enumerate().collect();
            while !left.is_empty() {
                // Nothing is held any more when somebody is told.
                for (index, outcome) in self.verify_round(&mut left) {
                    told(before.saturating_add(index), outcome);
                }
            }
            before = before.saturating_add(group.len());
        }
    }

    /// Verifies those that nobody else checks now, and takes them off the list. Where somebody checks each of them, waits
    /// for the first one alone: nobody waits here who holds another.
    fn verify_round(self: &Arc<Self>, left: &mut Left<'_>) -> Outcomes {
        let mut outcomes = Outcomes::new();
        let mut begun = ArrayVec::new();
        let mut begin = |index, shard, alone| match self.begin(index, shard, alone) {
            Ok(ready) => begun.push(ready),
            Err(error) => outcomes.push((index, Err(error))),
        };
        let mut busy = Left::new();
        let all = left.len();
        for (index, shard) in left.drain(..) {
            match self.is_own(shard).map(|()| shard.inner.try_begin_check()) {
                Ok(Some(alone)) => begin(index, shard, Ok(alone)),
                Ok(None) => busy.push((index, shard)),
                Err(error) => begin(index, shard, Err(error)),
            }
        }
        if busy.len() == all
            && let Some((index, shard)) = busy.pop_at(0)
        {
            begin(index, shard, Ok(shard.inner.begin_check()));
        }
        *left = busy;
        self.sweep(&mut begun, &mut outcomes);
        outcomes
    }

    fn begin<'a>(
        &self,
        index: usize,
        shard: &'a SealedShard,
        alone: Result<MutexGuard<'a, ()>, Error>,
    ) -> Result<Begun<'a>, Error> {
        let (shard, _alone) = (&*shard.inner, alone?);
        self.may_be_checked(shard)?;
        let (region, seal, stood) = (shard.region()?, self.examine_seal(shard).err(), shard.state());
        let (comparison, damaged) = (Comparison::new(&shard.values), Vec::new());
        Ok(Begun { index, shard, region, seal, comparison, damaged, stood, _alone })
    }

    /// Hashes all of them, then says of each what came of it.
    fn sweep(&self, begun: &mut ArrayVec<Begun<'_>, TOGETHER>, outcomes: &mut Outcomes) {
        let started = self.trail.monotonic();
        let regions: ArrayVec<&dyn Region, TOGETHER> = begun.iter().map(|begun| begun.region).collect();
        let hashed = self.device.hash_regions(&regions, &mut |number, first, values| {
            if let Some(Begun { shard, comparison, damaged, .. }) = begun.get_mut(number) {
                comparison.compare(first, values, &mut |block, actual| {
                    // No work on it from here on: it is read again when all of them were hashed.
                    shard.set_state(ShardState::Suspect);
                    damaged.push((block, actual));
                });
            }
        });
        let duration = self.trail.monotonic().saturating_sub(started);
        // Those that are as sealed first: nobody waits for the damage of others.
        for as_sealed in [true, false] {
            for begun in begun.iter_mut() {
                if begun.is_as_sealed() == as_sealed {
                    outcomes.push((begun.index, self.settle(begun, &hashed, started, duration)));
                }
            }
        }
    }

    fn settle(
        &self,
        begun: &mut Begun<'_>,
        hashed: &Result<(), DeviceError>,
        started: Duration,
        duration: Duration,
    ) -> Result<Verified, Error> {
        let shard = begun.shard;
        let span = tracing::info_span!("verify", shard_id = %shard.statement.shard_id, bytes = shard.statement.bytes);
        let _entered = span.enter();
        let was_as_sealed = begun.is_as_sealed();
        let examined = match (begun.seal.take(), hashed) {
            (Some(cause), _) => Ok(Err(cause)),
            (None, _) if begun.comparison.is_complete() => self.judge(shard, std::mem::take(&mut begun.damaged)),
            (None, Err(error)) => Err(error.again().into()),
            (None, Ok(())) => Err(incomplete(shard.statement.device_kind).into()),
        };
        if let (Ok(Ok(_)), false) = (&examined, was_as_sealed) {
            // The second reading did not confirm it.
            shard.set_state(begun.stood);
        }
        self.conclude(shard, started, duration, examined)
    }
}
