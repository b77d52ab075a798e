//! Frequent re-checks: a keyed fingerprint of all bytes instead of their hash.
//!
//! ```text
//!  seal, or the last key is used up ─▶ N keys drawn, a fingerprint taken with each ─▶ every byte hashed ─▶ as sealed? keep them
//!  re-check ─▶ the next key ─▶ the same fingerprint? on record, checked
//!                                └ no ─▶ a full verification at once, and what follows from it
//! ```
//!
//! Fingerprints come before the hashing that vouches for them: bytes that were changed before are then found by the hashing,
//! and bytes that are changed afterwards by the re-check. Only who changes them before the first, puts them right before
//! the second reads them, and changes them again in the same way is not found until the next full pass.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Recorded, Verified, VramManager, Worker};
use crate::audit::AuditEvent;
use crate::device::{DeviceError, Region};
use crate::digest::BlockValue;
use crate::error::Error;
use crate::fingerprint::{FingerprintKey, Spare, Spares};
use crate::freshness::nanoseconds;
use crate::shard::{SealedShard, Shard, ShardState};

/// Keys for each shard, where nobody says otherwise and re-checks are wanted.
pub const RECHECK_KEYS: u16 = 16;

/// Blocks hashed at a time: their values live on the stack.
const BATCH: usize = 256;

/// What a re-check came to, where it found no damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rechecked {
    /// The fingerprint is the one that was taken while the bytes were trusted. [`SealedShard::last_verified_ns`] and the
    /// shard's state stay as they were: those are the hash's to change.
    #[non_exhaustive]
    Matched {
        /// Bytes that were read.
        bytes: u64,
        /// How long it took.
        duration: Duration,
        /// When: nanoseconds since 1970-01-01 UTC.
        at_ns: u64,
        /// Keys that are left.
        keys_left: u32,
    },
    /// Every byte was hashed and is as sealed: no key was left, or the device has no fingerprint, or the shard was
    /// [`ShardState::Unverified`].
    Verified(Verified),
    /// The fingerprint is another, and a full verification at once found every byte as sealed. That is on record, and the
    /// shard does not count as checked.
    NotConfirmed,
}

impl VramManager {
    /// Keeps so many keys for each shard that is sealed from now on, and for every shard whose keys are used up; 0, which is
    /// what a manager begins with, keeps none. Of a device without fingerprints none are kept.
    ///
    /// Each costs one pass over the shard when it is made, and 64 bytes of main memory; and what is made at a seal is vouched
    /// for by one more pass of hashing.
    pub fn keep_recheck_keys(&self, count: u16) {
        self.worker.recheck_keys.store(count, Ordering::Relaxed);
    }

    /// Whether [`VramManager::recheck`] can do with less than hashing: the device has fingerprints, and keys are kept.
    #[must_use]
    pub fn has_rechecks(&self) -> bool {
        self.worker.has_rechecks()
    }

    /// Checks all bytes of a shard by a fingerprint under a key that was not used before. A success allocates nothing, but
    /// for the record buffer of a thread that emits its first record. It counts as a check of every block for
    /// [`SealedShard::ensure_fresh`], and neither as a verification nor as a word about the seal or about where the memory is.
    ///
    /// Where the last key is used up, the shard is verified in full instead, and gets new ones.
    ///
    /// # Errors
    /// As [`VramManager::verify_sealed`]: where the fingerprint is another, a full verification follows at once, and its
    /// answer is returned.
    pub fn recheck(&self, shard: &SealedShard) -> Result<Rechecked, Error> {
        self.worker.is_own(shard)?;
        self.worker.recheck(&shard.inner)
    }
}

impl Worker {
    pub(crate) fn has_rechecks(&self) -> bool {
        self.device.has_fingerprint() && self.recheck_keys.load(Ordering::Relaxed) > 0
    }

    fn recheck(self: &Arc<Self>, shard: &Shard) -> Result<Rechecked, Error> {
        let shard_id = shard.statement.shard_id;
        let _alone = shard.begin_check();
        self.device_is_trusted()?;
        if shard.state().is_out() {
            return Err(Error::Quarantined { shard_id: Box::new(shard_id) });
        }
        self.recheck_alone(shard)
    }

    /// The same for who has begun a check of a shard that may be checked.
    pub(crate) fn recheck_alone(&self, shard: &Shard) -> Result<Rechecked, Error> {
        let span = tracing::info_span!("recheck", shard_id = %shard.statement.shard_id, bytes = shard.statement.bytes);
        let _entered = span.enter();
        // A fingerprint cannot make good what a hash could not.
        if shard.state() == ShardState::Unverified {
            return self.check(shard).map(Rechecked::Verified);
        }
        let started = self.trail.monotonic();
        let region = shard.region()?;
        let compared = shard.spares.with_next(|spare| {
            let taken = region.fingerprint(&spare.key)?;
            Ok::<_, DeviceError>(taken.map(|taken| taken == spare.expected))
        });
        match compared {
            Some(Ok(Some(true))) => self.matched(shard, started),
            Some(Ok(Some(false))) => self.another(shard),
            Some(Ok(None)) | None => self.verify_for_new_keys(shard).map(Rechecked::Verified),
            Some(Err(error)) => {
                let error = error.into();
                self.not_carried_out(shard, &error);
                Err(error)
            }
        }
    }

    fn matched(&self, shard: &Shard, started: Duration) -> Result<Rechecked, Error> {
        let bytes = shard.statement.bytes;
        let duration = self.trail.monotonic().saturating_sub(started);
        let (at_ns, keys_left) = (self.trail.wall_ns(), shard.spares.left());
        let recorded = self.record(&AuditEvent::FingerprintMatched {
            shard_id: &shard.statement.shard_id,
            bytes,
            duration_ns: nanoseconds(duration),
            keys_left,
        })?;
        // A check whose record is lost does not count as one.
        match recorded {
            Recorded::Kept => shard.freshness.all_rechecked(nanoseconds(started)),
            Recorded::Lost => shard.set_state(ShardState::Unverified),
        }
        self.metrics.rechecks.increment(1);
        tracing::debug!(?duration, keys_left, "the fingerprint is as expected");
        Ok(Rechecked::Matched { bytes, duration, at_ns, keys_left })
    }

    /// The fingerprint is not as expected: what is wrong, and whether anything is, only the hash can say.
    fn another(&self, shard: &Shard) -> Result<Rechecked, Error> {
        let before = shard.state();
        // No work on it meanwhile.
        shard.set_state(ShardState::Suspect);
        match self.examine(shard) {
            Ok(Ok(_)) => {
                shard.set_state(before);
                self.metrics.rechecks_unconfirmed.increment(1);
                tracing::warn!("another fingerprint was not confirmed: every byte is as sealed");
                let shard_id = &shard.statement.shard_id;
                self.record(&AuditEvent::FingerprintNotConfirmed { shard_id })?;
                Ok(Rechecked::NotConfirmed)
            }
            Ok(Err(cause)) => Err(self.failed(shard, cause)),
            Err(error) => {
                self.not_carried_out(shard, &error);
                Err(error)
            }
        }
    }

    /// A full verification, and keys whose fingerprints it vouches for.
    fn verify_for_new_keys(&self, shard: &Shard) -> Result<Verified, Error> {
        let spares = match self.draw_spares(shard.region()?) {
            Ok(spares) => spares,
            Err(error) => {
                self.not_carried_out(shard, &error);
                return Err(error);
            }
        };
        let verified = self.check(shard)?;
        shard.spares.replace(spares);
        Ok(verified)
    }

    /// Keys for a region that is about to be sealed, whose blocks have these values.
    ///
    /// # Errors
    /// [`DeviceError::Inconsistent`] where they no longer have: nothing may be sealed then.
    pub(super) fn first_spares(&self, region: &dyn Region, values: &[BlockValue]) -> Result<Spares, Error> {
        let spares = self.draw_spares(region)?;
        if spares.is_empty() {
            return Ok(Spares::default());
        }
        let mut buffer = [BlockValue::UNKNOWN; BATCH];
        let mut first = 0_u64;
        for known in values.chunks(BATCH) {
            let again = buffer.get_mut(..known.len()).unwrap_or_default();
            region.hash_blocks(first, again)?;
            if let Some((block, _)) =
                (first..).zip(known.iter().zip(&*again)).find(|(_, (known, again))| known != again)
            {
                return Err(DeviceError::Inconsistent { device: self.device.info().kind, block }.into());
            }
            first = first.saturating_add(known.len() as u64);
        }
        Ok(Spares::new(spares))
    }

    /// So many keys as are to be kept, each with the region's fingerprint. None of a device that has no fingerprints.
    fn draw_spares(&self, region: &dyn Region) -> Result<Vec<Spare>, Error> {
        let count = self.recheck_keys.load(Ordering::Relaxed);
        // As long as needed from the start: secrets that are moved leave copies behind.
        let mut spares = Vec::with_capacity(count.into());
        for _ in 0..count {
            let refused = |source| DeviceError::System { device: self.device.info().kind, step: "draw a key", source };
            let key = FingerprintKey::random().map_err(refused)?;
            let Some(expected) = region.fingerprint(&key)? else { return Ok(Vec::new()) };
            spares.push(Spare { key, expected });
        }
        Ok(spares)
    }
}
