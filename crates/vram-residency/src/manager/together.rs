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
    /// hashes small ones together; on a device that does not, one after the other, and each is free for others as soon as
    /// it is done. Each has an outcome, a record and a state of its own, and `told` is told of each once,
    /// with its place in `shards`, in no certain order; it may verify and repair. Where the device fails in the middle,
    /// every shard that was not hashed to its end is [`ShardState::Unverified`], and that is on record for each.
    ///
    /// What somebody else verifies, scrubs or repairs meanwhile comes last. Calls that name the same shards never wait for
    /// each other in a circle, in whatever order they name them. If all are as sealed, nothing is allocated.
    pub fn verify_all(&self, shards: &[SealedShard], told: &mut dyn FnMut(usize, Result<Verified, Error>)) {
        self.worker.verify_all(shards.iter().cloned(), &mut |index, _, outcome| told(index, outcome));
    }
}

/// A shard whose check has begun.
struct Begun<'a> {
    /// Its place in the round.
    place: usize,
    shard: &'a Shard,
    region: &'a dyn Region,
    /// What is wrong with what is kept on the host, if anything is.
    seal: Option<VerifyFailure>,
    comparison: Comparison<'a>,
    damaged: Vec<(u64, BlockValue)>,
    /// Where it stood before a first reading found damage.
    stood: ShardState,
    /// Until it is judged.
    alone: Option<MutexGuard<'a, ()>>,
}

impl Begun<'_> {
    fn is_as_sealed(&self) -> bool {
        self.seal.is_none() && self.damaged.is_empty()
    }
}

type Left = ArrayVec<(usize, SealedShard), TOGETHER>;
type Outcomes = ArrayVec<(usize, Result<Verified, Error>), TOGETHER>;

impl Worker {
    /// Keeps no shard, and no lock of it, longer than until `told` is given it.
    pub(crate) fn verify_all(
        self: &Arc<Self>,
        shards: impl Iterator<Item = SealedShard>,
        told: &mut dyn FnMut(usize, SealedShard, Result<Verified, Error>),
    ) {
        let mut shards = shards.enumerate();
        loop {
            let mut left: Left = shards.by_ref().take(TOGETHER).collect();
            if left.is_empty() {
                return;
            }
            while !left.is_empty() {
                self.verify_round(&mut left, told);
            }
        }
    }

    /// Verifies those that nobody else checks now, or the first of them where the device does one after the other, and takes
    /// them off the list. Where somebody checks each of them, waits for the first one alone: nobody waits here who holds
    /// another.
    fn verify_round(
        self: &Arc<Self>,
        left: &mut Left,
        told: &mut dyn FnMut(usize, SealedShard, Result<Verified, Error>),
    ) {
        let round = std::mem::take(left);
        let mut outcomes = self.verify_some(&round);
        let mut round: ArrayVec<_, TOGETHER> = round.into_iter().map(Some).collect();
        // Nothing is locked any more when somebody is told.
        for (place, outcome) in outcomes.drain(..) {
            if let Some((index, shard)) = round.get_mut(place).and_then(Option::take) {
                told(index, shard, outcome);
            }
        }
        left.extend(round.into_iter().flatten());
    }

    fn verify_some(self: &Arc<Self>, round: &Left) -> Outcomes {
        let most = if self.device.hashes_together() { TOGETHER } else { 1 };
        let (mut outcomes, mut begun) = (Outcomes::new(), ArrayVec::new());
        for (place, (_, shard)) in round.iter().enumerate() {
            let alone = match self.is_own(shard).map(|()| shard.inner.try_begin_check()) {
                Ok(None) => continue,
                Ok(Some(alone)) => Ok(alone),
                Err(error) => Err(error),
            };
            match self.begin(place, shard, alone) {
                Ok(ready) => begun.push(ready),
                Err(error) => outcomes.push((place, Err(error))),
            }
            if begun.len() >= most {
                break;
            }
        }
        if begun.is_empty()
            && outcomes.is_empty()
            && let Some((_, shard)) = round.first()
        {
            match self.begin(0, shard, Ok(shard.inner.begin_check())) {
                Ok(ready) => begun.push(ready),
                Err(error) => outcomes.push((0, Err(error))),
            }
        }
        self.sweep(&mut begun, &mut outcomes);
        outcomes
    }

    fn begin<'a>(
        &self,
        place: usize,
        shard: &'a SealedShard,
        alone: Result<MutexGuard<'a, ()>, Error>,
    ) -> Result<Begun<'a>, Error> {
        let (shard, alone) = (&*shard.inner, Some(alone?));
        self.may_be_checked(shard)?;
        let (region, seal, stood) = (shard.region()?, self.examine_seal(shard).err(), shard.state());
        let (comparison, damaged) = (Comparison::new(&shard.values), Vec::new());
        Ok(Begun { place, shard, region, seal, comparison, damaged, stood, alone })
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
        // Those that are as sealed first, and each is free for others as soon as it is judged: nobody waits for the damage of others.
        for as_sealed in [true, false] {
            for begun in begun.iter_mut() {
                if begun.is_as_sealed() == as_sealed {
                    outcomes.push((begun.place, self.settle(begun, &hashed, started, duration)));
                    begun.alone = None;
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
            (None, Err(error)) => Err(error.clone().into()),
            (None, Ok(())) => Err(incomplete(&*self.device).into()),
        };
        if let (Ok(Ok(_)), false) = (&examined, was_as_sealed) {
            // The second reading did not confirm it.
            shard.set_state(begun.stood);
        }
        self.conclude(shard, started, duration, examined)
    }
}
