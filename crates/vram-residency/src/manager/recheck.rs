//! Frequent re-checks: a keyed fingerprint of all bytes instead of their hash.
//!
//! ```text
//!  seal, or the last key is used up ─▶ N keys drawn, a fingerprint taken with each ─▶ every byte hashed ─▶ as sealed? keep them
//!  re-check ─▶ the next key ─▶ the same fingerprint? on record, checked
//!                                └ no ─▶ a full verification at once, and what follows from it
//! ```
//!
//! Fingerprints come before the hashing that vouches for them: bytes that were changed before are then found by the hashing,
//! and bytes that are changed afterwards by the re-check. Two are not found by it, but by the hash of the next scrub pass:
//! who changes bytes before the first, puts them right before the second reads them, and changes them again in the same way;
//! and who reads the device's memory while a fingerprint is made, and so has the key of a check to come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::verify::{Comparison, incomplete};
use super::{Recorded, Verified, VramManager, Worker};
use crate::audit::AuditEvent;
use crate::device::{DeviceError, Region};
use crate::digest::BlockValue;
use crate::error::Error;
use crate::fingerprint::{NotDrawn, Spares};
use crate::freshness::nanoseconds;
use crate::loader::Cancelled;
use crate::shard::{SealedShard, Shard, ShardState};

/// Keys for each shard, where nobody says otherwise and re-checks are wanted.
pub const RECHECK_KEYS: u16 = 16;

/// Most keys for each shard: each is a pass over it before it is sealed.
pub const MOST_RECHECK_KEYS: u16 = 1024;

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
    /// Keeps so many keys, at most [`MOST_RECHECK_KEYS`], for each shard that is sealed from now on, and for every shard whose
    /// keys are used up; 0, which is what a manager begins with, keeps none. Of a device without fingerprints none are kept.
    ///
    /// Each costs one pass over the shard when it is made, and 64 bytes of main memory; and what is made at a seal is vouched
    /// for by one more pass of hashing.
    ///
    /// # Errors
    /// [`Error::Scrub`] where they are more than that.
    pub fn keep_recheck_keys(&self, count: u16) -> Result<(), Error> {
        if count > MOST_RECHECK_KEYS {
            let (setting, value) = ("number of re-check keys", count.to_string().into());
            return Err(Error::Scrub { setting, value, limit: "at most 1024; re-check less often instead" });
        }
        self.worker.recheck_keys.store(count, Ordering::Relaxed);
        Ok(())
    }

    /// Whether [`VramManager::recheck`] can do with less than hashing: the device has fingerprints, and keys are kept.
    #[must_use]
    pub fn has_rechecks(&self) -> bool {
        self.worker.has_rechecks()
    }

    /// Checks all bytes of a shard by a fingerprint under a key that was used for no check before. A success allocates nothing, but
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
        self.device.has_fingerprint() && self.recheck_keys() > 0
    }

    /// Keys that each shard gets.
    pub(crate) fn recheck_keys(&self) -> u16 {
        self.recheck_keys.load(Ordering::Relaxed)
    }

    fn recheck(self: &Arc<Self>, shard: &Shard) -> Result<Rechecked, Error> {
        let shard_id = shard.statement.shard_id;
        let _alone = shard.begin_check();
        self.device_is_trusted()?;
        if shard.state().is_out() {
            return Err(Error::Quarantined { shard_id: Box::new(shard_id) });
        }
        loop {
            if let Some(rechecked) = self.recheck_step(shard, &mut 0)? {
                return Ok(rechecked);
            }
        }
    }

    /// Re-checks a shard, or, where no key is left, does the next thing for new ones: none where one was drawn, and nothing is
    /// checked yet. The caller has begun a check of a shard that may be checked. Adds to `passes` how often the whole shard was
    /// read, each counted when its reading begins.
    pub(crate) fn recheck_step(&self, shard: &Shard, passes: &mut u64) -> Result<Option<Rechecked>, Error> {
        let span = tracing::info_span!("recheck", shard_id = %shard.statement.shard_id, bytes = shard.statement.bytes);
        let _entered = span.enter();
        // A fingerprint cannot make good what a hash could not.
        if shard.state() == ShardState::Unverified {
            return self.check_counted(shard, passes);
        }
        let started = self.trail.monotonic();
        let region = shard.region()?;
        let compared = shard.spares.with_next(|spare| {
            *passes = passes.saturating_add(1);
            let taken = region.fingerprint(&spare.key)?;
            Ok::<_, DeviceError>(taken.map(|taken| taken == spare.expected))
        });
        match compared {
            Some(Ok(Some(true))) => self.matched(shard, started).map(Some),
            Some(Ok(Some(false))) => {
                *passes = passes.saturating_add(1);
                self.another(shard).map(Some)
            }
            Some(Ok(None)) | None => self.renew(shard, region, passes),
            Some(Err(error)) => {
                let error = error.into();
                self.not_carried_out(shard, &error);
                Err(error)
            }
        }
    }

    /// Draws one key of a shard that has none left. Where all are drawn, a full verification vouches for their fingerprints.
    fn renew(&self, shard: &Shard, region: &dyn Region, passes: &mut u64) -> Result<Option<Rechecked>, Error> {
        // A shard that may be damaged gets none.
        if !matches!(shard.state(), ShardState::Sealed | ShardState::Verified) {
            return self.check_counted(shard, passes);
        }
        match self.draw(&shard.spares, region, passes) {
            Ok(true) => Ok(None),
            Ok(false) => {
                let verified = self.check_counted(shard, passes)?;
                // Where that is not on record, it is a doubt.
                shard.spares.vouch();
                Ok(verified)
            }
            Err(error) => {
                self.not_carried_out(shard, &error);
                Err(error)
            }
        }
    }

    fn check_counted(&self, shard: &Shard, passes: &mut u64) -> Result<Option<Rechecked>, Error> {
        *passes = passes.saturating_add(1);
        self.check(shard).map(|verified| Some(Rechecked::Verified(verified)))
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

    /// Keys for a region that is about to be sealed, whose blocks have these values.
    ///
    /// # Errors
    /// [`DeviceError::Inconsistent`] where they no longer have: nothing may be sealed then. [`DeviceError::Source`] where it was
    /// asked to stop.
    pub(super) fn first_spares(
        &self,
        region: &dyn Region,
        values: &[BlockValue],
        cancelled: Option<Cancelled<'_>>,
    ) -> Result<Spares, Error> {
        let spares = Spares::default();
        let mut passes = 0_u64;
        while self.draw(&spares, region, &mut passes)? {
            if cancelled.is_some_and(|cancelled| cancelled()) {
                let source = std::io::Error::other("it was asked to stop").into();
                return Err(DeviceError::Source { offset: region.bytes(), source }.into());
            }
        }
        if !spares.has_drawn() {
            return Ok(spares);
        }
        let (mut comparison, mut changed) = (Comparison::new(values), None);
        self.device.hash_regions(&[region], &mut |_, first, values| {
            comparison.compare(first, values, &mut |block, _| changed = changed.or(Some(block)));
        })?;
        match changed {
            Some(block) => Err(DeviceError::Inconsistent { device: self.device.name().into(), block }.into()),
            None if comparison.is_complete() => {
                spares.vouch();
                Ok(spares)
            }
            None => Err(incomplete(&*self.device).into()),
        }
    }

    /// Draws one key more, as long as there are fewer than are to be kept, with the region's fingerprint. False where there are
    /// enough, or the device has no fingerprints.
    fn draw(&self, spares: &Spares, region: &dyn Region, passes: &mut u64) -> Result<bool, Error> {
        let count = self.recheck_keys();
        let drawn = spares.draw(count, |key| {
            *passes = passes.saturating_add(1);
            region.fingerprint(key)
        });
        drawn.map_err(|error| match error {
            NotDrawn::Random(source) => {
                let device = self.device.name().into();
                DeviceError::System { device, step: "draw a key", source: source.into() }.into()
            }
            NotDrawn::Taken(error) => error.into(),
        })
    }
}
