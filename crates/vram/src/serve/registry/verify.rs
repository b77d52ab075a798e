//! Verifying now, one caller at a time: a shard, or all of them, in one sweep on each device.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use vram_residency::{SealedShard, ShardId, Verified};

use super::{Held, Registry, busy};
use crate::exit::{Exit, Failure};
use crate::serve::keepers::{Keeper, side_by_side};
use crate::serve::lock::lock;
use crate::serve::report::ShardView;

/// What came of a shard when all were verified.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::serve) enum Outcome {
    Verified(Box<ShardView>),
    Not {
        shard_id: Box<ShardId>,
        error: Failure,
        /// Whether it is not as sealed.
        integrity: bool,
    },
}

impl Outcome {
    fn not(shard_id: ShardId, error: Failure) -> Self {
        Self::Not { shard_id: Box::new(shard_id), integrity: error.exit == Exit::Integrity, error }
    }
}

impl Registry {
    /// Verifies a whole shard; the policy acts where that fails.
    pub(in crate::serve) fn verify(&self, shard_id: &ShardId) -> Result<ShardView, Failure> {
        let shard = self.sealed(shard_id)?;
        let _turn = self.keepers.of(&shard).begin_verifying()?;
        self.verify_shard(&shard)?;
        Ok(self.view(&shard))
    }

    /// Verifies all shards, in one sweep on each device and on all devices at once, each with an outcome of its own, in the
    /// order of their names. The policy acts on those that fail.
    pub(in crate::serve) fn verify_all(&self) -> Result<Vec<Outcome>, Failure> {
        let _turn = self.keepers.begin_verifying()?;
        let mut outcomes = Vec::new();
        let mut of_devices: Vec<(Arc<Keeper>, Vec<SealedShard>)> = Vec::new();
        for (shard_id, place) in lock(&self.places).iter() {
            match &place.held {
                Held::Sealed(shard) => {
                    match of_devices.iter_mut().find(|(keeper, _)| Arc::ptr_eq(keeper, &place.keeper)) {
                        Some((_, shards)) => shards.push(shard.clone()),
                        None => of_devices.push((Arc::clone(&place.keeper), vec![shard.clone()])),
                    }
                }
                Held::Unsealed(unsealed) => {
                    let reason = unsealed.reason();
                    let message =
                        format!("'{shard_id}' is not sealed ({reason}) and was not verified; reseal it or release it");
                    outcomes.push((*shard_id, Outcome::not(*shard_id, Failure::new("unsealed", message))));
                }
                Held::Busy => outcomes.push((*shard_id, Outcome::not(*shard_id, busy(shard_id)))),
            }
        }
        if of_devices.is_empty() && outcomes.is_empty() {
            let message = "nothing was verified: no shard is resident; vram load FILE loads one";
            return Err(Failure::new("no-shard", message));
        }
        let told = Mutex::new(outcomes);
        side_by_side(of_devices, &|keeper, own| self.verify_on(keeper, own, &told));
        let mut outcomes = told.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|(shard_id, _)| *shard_id);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Verifies the shards of one device in one sweep. Each is let go of as soon as it is told of, so that it can be unsealed
    /// or released while others are repaired.
    fn verify_on(&self, keeper: &Keeper, shards: Vec<SealedShard>, told: &Mutex<Vec<(ShardId, Outcome)>>) {
        let (began, mut bytes) = (Instant::now(), 0_u64);
        let mut all_as_sealed = true;
        keeper.scrubber.verify_all_now(shards, &mut |_, shard, outcome| {
            let shard_id = *shard.shard_id();
            let outcome = match outcome {
                Ok(verified) => {
                    bytes = bytes.saturating_add(verified.bytes);
                    Outcome::Verified(Box::new(self.view(&shard)))
                }
                Err(error) => {
                    all_as_sealed = false;
                    Outcome::not(shard_id, error.into())
                }
            };
            lock(told).push((shard_id, outcome));
        });
        if all_as_sealed {
            keeper.note_speed(bytes, began.elapsed());
        }
    }

    pub(in crate::serve) fn verify_shard(&self, shard: &SealedShard) -> Result<Verified, Failure> {
        let keeper = self.keepers.of(shard);
        let verified = keeper.scrubber.verify_now(shard)?;
        keeper.note_speed(verified.bytes, verified.duration);
        Ok(verified)
    }
}
