//! Verification: the seal, the block values, then every byte in place.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::{Recorded, VramManager, Worker};
use crate::audit::{AuditEvent, Text};
use crate::damage::{DamageKind, Fault, TensorsInBlock};
use crate::device::{Device, DeviceError, Region, SuspectedPaged};
use crate::digest::{BlockValue, Digest, block_count, block_range, block_value, merge};
use crate::error::{Error, VerifyFailure};
use crate::freshness::nanoseconds;
use crate::policy::{OnFailure, Violation};
use crate::seal::parse_record;
use crate::shard::{Home, SealedShard, Shard, ShardState};

/// What an examination of everything found: what is only suspected, or what is wrong.
pub(super) type Examined = Result<Option<SuspectedPaged>, VerifyFailure>;

/// A verification that found every byte as sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Bytes hashed.
    pub bytes: u64,
    /// The digest of what is resident, equal to the sealed one.
    pub digest: Digest,
    /// How long it took; of a shard that was verified with others, how long hashing all of them took.
    pub duration: Duration,
    /// When: nanoseconds since 1970-01-01 UTC.
    pub at_ns: u64,
    /// Blocks that were read so slowly that they may not be in the device's memory. A fact and no failure.
    pub suspected_paged: Option<SuspectedPaged>,
}

impl VramManager {
    /// Recomputes the digest of a shard from the bytes in the device's memory and compares it with the sealed one.
    /// A success allocates nothing, but for the record buffer of a thread that emits its first record.
    ///
    /// # Errors
    /// [`Error::SealVerificationFailed`] where seal or bytes are not as sealed: the record of that is on disk before
    /// this returns (or counted as late or lost), and the shard is quarantined unless the policy only logs.
    /// [`Error::Quarantined`] where an earlier check failed. [`Error::Device`] where the device could not do it: the
    /// shard is then [`ShardState::Unverified`], and that is on record as well.
    pub fn verify_sealed(&self, shard: &SealedShard) -> Result<Verified, Error> {
        self.worker.verify_own(shard)
    }

    /// Checks a seal record that somebody presents: that it is this worker's, that the shard it describes is resident
    /// here, and that its bytes are as sealed.
    ///
    /// # Errors
    /// [`Error::SealVerificationFailed`] where the record is forged, damaged or about something else, or the bytes are
    /// not as sealed. A forged record does not quarantine the resident shard.
    pub fn verify_record(&self, shard: &SealedShard, record: &[u8]) -> Result<Verified, Error> {
        self.own(shard)?;
        let shard = &*shard.inner;
        let judged = parse_record(record).map_err(VerifyFailure::from).and_then(|(statement, signature)| {
            if !self.worker.key.verify(&statement, &signature) {
                Err(VerifyFailure::Signature)
            } else if signature != shard.signature {
                Err(VerifyFailure::OtherShard)
            } else {
                Ok(())
            }
        });
        match judged {
            Ok(()) => self.worker.verify(shard),
            Err(cause) => {
                let shard_id = shard.statement.shard_id;
                self.worker.metrics.verification_failures.increment(1);
                self.worker.record_failure(shard, &cause, Some(&cause), "record refused");
                Err(Error::SealVerificationFailed { shard_id: Box::new(shard_id), cause })
            }
        }
    }
}

impl Worker {
    pub(crate) fn verify_own(self: &Arc<Self>, shard: &SealedShard) -> Result<Verified, Error> {
        self.is_own(shard)?;
        self.verify(&shard.inner)
    }

    pub(crate) fn verify(&self, shard: &Shard) -> Result<Verified, Error> {
        let shard_id = shard.statement.shard_id;
        let span = tracing::info_span!("verify", %shard_id, bytes = shard.statement.bytes);
        let _entered = span.enter();
        let _alone = shard.begin_check();
        self.may_be_checked(shard)?;
        self.check(shard)
    }

    /// Refuses what is known to be damaged. The caller has begun a check.
    pub(super) fn may_be_checked(&self, shard: &Shard) -> Result<(), Error> {
        self.device_is_trusted()?;
        if shard.state().is_out() {
            return Err(Error::Quarantined { shard_id: Box::new(shard.statement.shard_id) });
        }
        Ok(())
    }

    /// Examines a shard, whatever its state, and sets its state accordingly. The caller has begun a check.
    pub(super) fn check(&self, shard: &Shard) -> Result<Verified, Error> {
        let started = self.trail.monotonic();
        let examined = self.examine(shard);
        let duration = self.trail.monotonic().saturating_sub(started);
        self.conclude(shard, started, duration, examined)
    }

    /// Sets the state of a shard by what was found, and records that.
    pub(super) fn conclude(
        &self,
        shard: &Shard,
        started: Duration,
        duration: Duration,
        examined: Result<Examined, Error>,
    ) -> Result<Verified, Error> {
        match examined {
            Ok(Ok(paged)) => self.passed(shard, started, duration, paged),
            Ok(Err(cause)) => Err(self.failed(shard, cause)),
            Err(error) => {
                self.not_carried_out(shard, &error);
                Err(error)
            }
        }
    }

    /// A shard is not known to be damaged, and no longer known to be whole.
    pub(crate) fn not_carried_out(&self, shard: &Shard, error: &Error) {
        shard.set_state(ShardState::Unverified);
        self.metrics.verification_failures.increment(1);
        tracing::error!(%error, "a check could not be carried out");
        self.record_failure(shard, error, None, "unverified");
    }

    /// What is kept on the host about a shard: that it is still what was signed.
    pub(crate) fn examine_seal(&self, shard: &Shard) -> Result<(), VerifyFailure> {
        let statement = &shard.statement;
        if !self.key.verify(statement, &shard.signature) {
            Err(VerifyFailure::Signature)
        } else if merge(&shard.values) != Some(statement.digest) {
            Err(VerifyFailure::BlockValues)
        } else if Digest::from_bytes(shard.table.digest()) != statement.table_digest {
            Err(VerifyFailure::TensorTable)
        } else {
            Ok(())
        }
    }

    /// Everything that can be checked about a shard.
    pub(super) fn examine(&self, shard: &Shard) -> Result<Examined, Error> {
        if let Err(cause) = self.examine_seal(shard) {
            return Ok(Err(cause));
        }
        let mut damaged = Vec::new();
        self.find_damage(shard, &mut |block, actual| damaged.push((block, actual)))?;
        self.judge(shard, damaged)
    }

    /// What is left to check where every block was hashed, and some of them were not as sealed.
    pub(super) fn judge(&self, shard: &Shard, damaged: Vec<(u64, BlockValue)>) -> Result<Examined, Error> {
        let statement = &shard.statement;
        let mut confirmed = Vec::new();
        for (block, actual) in damaged {
            if self.confirm(shard, block)? {
                confirmed.push((block, actual));
            }
        }
        let damaged = confirmed;
        if let Some((first_block, _)) = damaged.first() {
            return Ok(Err(VerifyFailure::Damaged {
                damaged_blocks: damaged.len() as u64,
                blocks: shard.values.len() as u64,
                first_block: *first_block,
                tensors: shard.tensors_in(*first_block),
                expected: statement.digest,
                actual: digest_with(shard, &damaged),
            }));
        }
        self.examine_memory(shard)
    }

    /// Whether the memory still is what was signed, as the device states it now. What is only suspected is noted.
    pub(crate) fn examine_memory(&self, shard: &Shard) -> Result<Examined, Error> {
        let statement = &shard.statement;
        let check = shard.region()?.check_memory()?;
        if let Some(foreign) = check.foreign {
            let violation = Violation::NotResident { foreign };
            self.metrics.policy_violations.increment(1);
            self.record_beside_failure(&AuditEvent::PolicyViolation {
                shard_id: &statement.shard_id,
                policy: violation.rule(),
                violation: Text(&violation),
                action: self.policy.on_failure.action(),
            });
            return Ok(Err(VerifyFailure::Foreign { foreign }));
        }
        // What the device states of its own mapping; whether others were given another is the shard's affair.
        if check.residency != statement.residency || !check.protection.is_at_least(statement.protection) {
            return Ok(Err(VerifyFailure::Memory));
        }
        if let Some(SuspectedPaged { first_block, blocks }) = check.suspected_paged {
            self.metrics.suspected_paged.increment(blocks);
            tracing::warn!(first_block, blocks, "blocks are read far more slowly than the others: suspected paged");
        }
        Ok(Ok(check.suspected_paged))
    }

    /// Calls `damaged` with each block whose resident bytes are not as sealed, in ascending order, and its value.
    pub(super) fn find_damage(&self, shard: &Shard, damaged: &mut dyn FnMut(u64, BlockValue)) -> Result<(), Error> {
        let mut comparison = Comparison::new(&shard.values);
        let found = &mut |_, first, values: &[BlockValue]| comparison.compare(first, values, damaged);
        self.device.hash_regions(&[shard.region()?], found)?;
        if comparison.is_complete() { Ok(()) } else { Err(incomplete(&*self.device).into()) }
    }

    /// Reads a block that was found damaged once more, by another way: its bytes, hashed by this thread. Whether it is
    /// damaged indeed.
    ///
    /// # Errors
    /// [`DeviceError::Inconsistent`] where the two ways go on to disagree: then nothing can be said.
    pub(crate) fn confirm(&self, shard: &Shard, block: u64) -> Result<bool, Error> {
        let region = shard.region()?;
        let sealed = shard.sealed_value(block);
        let mut read = None;
        let viewed = region.view(block_range(shard.statement.bytes, block), &mut |bytes| {
            read = block_value(shard.statement.bytes, block, bytes);
        });
        if viewed.is_err() || read.is_none() || read != sealed {
            return Ok(true);
        }
        let mut again = [BlockValue::UNKNOWN];
        region.hash_blocks(block, &mut again)?;
        if again.first().copied() != sealed {
            return Err(DeviceError::Inconsistent { device: self.device.name().into(), block }.into());
        }
        self.metrics.scrub_unconfirmed.increment(1);
        tracing::warn!(block, "a mismatch was not confirmed");
        self.record_beside_failure(&AuditEvent::MismatchNotConfirmed { shard_id: &shard.statement.shard_id, block });
        Ok(false)
    }

    fn passed(
        &self,
        shard: &Shard,
        started: Duration,
        duration: Duration,
        suspected_paged: Option<SuspectedPaged>,
    ) -> Result<Verified, Error> {
        let statement = &shard.statement;
        let verified = Verified {
            bytes: statement.bytes,
            digest: statement.digest,
            duration,
            at_ns: self.trail.wall_ns(),
            suspected_paged,
        };
        let lost_before = self.trail.lost_records();
        let recorded = self.record(&AuditEvent::SealVerified {
            shard_id: &statement.shard_id,
            bytes: verified.bytes,
            digest: verified.digest,
            duration_ns: nanoseconds(duration),
            suspected_paged,
        })?;
        // A check whose record is lost does not count as one.
        match recorded {
            Recorded::Kept => {
                shard.set_last_verified(verified.at_ns);
                shard.freshness.all_checked(nanoseconds(started));
                shard.set_recorded_state(ShardState::Verified, lost_before);
            }
            Recorded::Lost => shard.set_state(ShardState::Unverified),
        }
        self.metrics.verifications.increment(1);
        self.metrics.verify_duration.record(duration);
        tracing::info!(?duration, "verified");
        Ok(verified)
    }

    /// Acts upon a confirmed failure: no more work at once, then the record.
    pub(crate) fn failed(&self, shard: &Shard, cause: VerifyFailure) -> Error {
        shard.set_state(match self.policy.on_failure {
            OnFailure::Log => ShardState::Suspect,
            OnFailure::FailClosed | OnFailure::Repair | OnFailure::StopWorker => ShardState::Quarantined,
        });
        let action = self.policy.on_failure.action();
        self.metrics.verification_failures.increment(1);
        tracing::error!(%cause, action, "verification failed");
        if let Some((block, tensors)) = cause.first_block() {
            shard.set_fault(Fault {
                block,
                blocks: cause.damaged_blocks(),
                tensor: tensors.and_then(TensorsInBlock::only).map(Into::into),
                first_byte: None,
                differing_bytes: None,
                differing_bits: None,
                kind: DamageKind::Unknown,
                suspect_from_ns: self.suspect_since(shard, Some(&cause)),
                found_ns: self.trail.wall_ns(),
                outcome: if self.policy.on_failure == OnFailure::Log { "logged" } else { "quarantined" },
            });
        }
        self.record_failure(shard, &cause, Some(&cause), action);
        Error::SealVerificationFailed { shard_id: Box::new(shard.statement.shard_id), cause }
    }

    /// When what was found damaged was as sealed for the last time, by the wall clock: a block, or with several of them the
    /// shard's oldest one, or without any the whole shard.
    fn suspect_since(&self, shard: &Shard, found: Option<&VerifyFailure>) -> u64 {
        match found.and_then(VerifyFailure::first_block) {
            None => shard.last_verified_ns(),
            Some((block, _)) if found.is_some_and(|found| found.damaged_blocks() == 1) => {
                self.suspect_from_ns(shard, block)
            }
            Some(_) => self.ago(shard.freshness.oldest_age(self.now_ns())),
        }
    }

    /// When a block was found as sealed for the last time, by the wall clock.
    pub(crate) fn suspect_from_ns(&self, shard: &Shard, block: u64) -> u64 {
        self.ago(Duration::from_nanos(self.now_ns().saturating_sub(shard.freshness.block_ns(block))))
    }

    fn ago(&self, age: Duration) -> u64 {
        self.trail.wall_ns().saturating_sub(nanoseconds(age))
    }

    fn record_failure(&self, shard: &Shard, reason: &dyn Display, found: Option<&VerifyFailure>, action: &'static str) {
        let actual = match found {
            Some(VerifyFailure::Damaged { actual, .. }) => Some(*actual),
            _ => None,
        };
        let (first_block, tensors) = found.and_then(VerifyFailure::first_block).unzip();
        let tensors = tensors.flatten();
        self.record_beside_failure(&AuditEvent::SealVerificationFailed {
            shard_id: &shard.statement.shard_id,
            reason: Text(reason),
            expected: shard.statement.digest,
            actual,
            damaged_blocks: found.map_or(0, VerifyFailure::damaged_blocks),
            first_block,
            tensor: tensors.and_then(TensorsInBlock::only),
            tensors,
            suspect_from_ns: self.suspect_since(shard, found),
            writable_since_ns: shard.writable.since_ns(),
            action,
        });
    }
}

/// The value of every block of a region.
pub(super) fn hash_all(region: &dyn Region) -> Result<Box<[BlockValue]>, Error> {
    let blocks = usize::try_from(block_count(region.bytes())).unwrap_or(usize::MAX);
    let mut values = vec![BlockValue::UNKNOWN; blocks].into_boxed_slice();
    region.hash_blocks(0, &mut values)?;
    Ok(values)
}

/// Hashes compared with what was sealed, while a device hands them over.
pub(super) struct Comparison<'a> {
    sealed: &'a [BlockValue],
    compared: u64,
}

impl<'a> Comparison<'a> {
    pub(super) const fn new(sealed: &'a [BlockValue]) -> Self {
        Self { sealed, compared: 0 }
    }

    /// Calls `damaged` with each of some blocks that are not as sealed, in ascending order, and its value.
    pub(super) fn compare(&mut self, first: u64, values: &[BlockValue], damaged: &mut dyn FnMut(u64, BlockValue)) {
        let sealed = usize::try_from(first).ok().and_then(|first| self.sealed.get(first..)).unwrap_or_default();
        for (block, (sealed, actual)) in (first..).zip(sealed.iter().zip(values)) {
            if sealed != actual {
                damaged(block, *actual);
            }
        }
        // Only what continues the row counts: a block that was left out must not be made good by another one.
        if first == self.compared {
            self.compared = first.saturating_add(sealed.len().min(values.len()) as u64);
        }
    }

    /// Whether every block was compared.
    pub(super) fn is_complete(&self) -> bool {
        self.compared == self.sealed.len() as u64
    }
}

/// What a device that left blocks out is told to have done.
pub(super) fn incomplete(device: &dyn Device) -> DeviceError {
    let source = Arc::new(std::io::ErrorKind::UnexpectedEof.into());
    DeviceError::System { device: device.name().into(), step: "hash every block of a region", source }
}

/// The digest of what is resident: the sealed block values, but for the damaged ones.
fn digest_with(shard: &Shard, damaged: &[(u64, BlockValue)]) -> Digest {
    let mut values = shard.values.to_vec();
    for (block, actual) in damaged {
        if let Some(value) = usize::try_from(*block).ok().and_then(|block| values.get_mut(block)) {
            *value = *actual;
        }
    }
    merge(&values).unwrap_or(shard.statement.digest)
}
