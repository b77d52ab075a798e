//! Verification: the seal, the block values, then every byte in place.

use std::fmt::Display;
use std::time::Duration;

use super::{Recorded, VramManager, Worker};
use crate::audit::{AuditEvent, Text};
use crate::digest::{BlockValue, Digest, block_range, merge};
use crate::error::{Error, VerifyFailure};
use crate::policy::OnFailure;
use crate::seal::parse_record;
use crate::shard::{SealedShard, Shard, ShardState};

/// Blocks hashed at a time: their values (32 KiB) live on the stack, so that verifying needs no heap.
const BATCH: usize = 1024;

/// A verification that found every byte as sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Bytes hashed.
    pub bytes: u64,
    /// The digest of what is resident, equal to the sealed one.
    pub digest: Digest,
    /// How long it took.
    pub duration: Duration,
    /// When: nanoseconds since 1970-01-01 UTC.
    pub at_ns: u64,
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
        self.own(shard)?;
        self.worker.verify(&shard.inner)
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
    fn verify(&self, shard: &Shard) -> Result<Verified, Error> {
        let shard_id = shard.statement.shard_id;
        let span = tracing::info_span!("verify", %shard_id, bytes = shard.statement.bytes);
        let _entered = span.enter();
        let _alone = shard.begin_check();
        if matches!(shard.state(), ShardState::Quarantined | ShardState::Repairing | ShardState::Failed) {
            return Err(Error::Quarantined { shard_id: Box::new(shard_id) });
        }
        self.check(shard)
    }

    /// Examines a shard, whatever its state, and sets its state accordingly. The caller has begun a check.
    pub(super) fn check(&self, shard: &Shard) -> Result<Verified, Error> {
        let started = self.trail.monotonic();
        match self.examine(shard) {
            Ok(Ok(())) => self.passed(shard, started),
            Ok(Err(cause)) => Err(self.failed(shard, cause)),
            Err(error) => {
                // Not known to be damaged, and no longer known to be whole.
                shard.set_state(ShardState::Unverified);
                self.metrics.verification_failures.increment(1);
                tracing::error!(%error, "a check could not be carried out");
                self.record_failure(shard, &error, None, "unverified");
                Err(error)
            }
        }
    }

    /// What is kept on the host about a shard: that it is still what was signed.
    pub(super) fn examine_seal(&self, shard: &Shard) -> Result<(), VerifyFailure> {
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
    fn examine(&self, shard: &Shard) -> Result<Result<(), VerifyFailure>, Error> {
        if let Err(cause) = self.examine_seal(shard) {
            return Ok(Err(cause));
        }
        let statement = &shard.statement;
        let region = shard.region()?;
        let mut damaged = Vec::new();
        find_damage(shard, &mut |block, actual| damaged.push((block, actual)))?;
        if let Some((first_block, _)) = damaged.first() {
            let tensor = shard.tensor_in(block_range(statement.bytes, *first_block));
            return Ok(Err(VerifyFailure::Damaged {
                damaged_blocks: damaged.len() as u64,
                blocks: shard.values.len() as u64,
                first_block: *first_block,
                tensor: tensor.map(|tensor| tensor.name.clone()),
                expected: statement.digest,
                actual: digest_with(shard, &damaged),
            }));
        }
        if (region.residency(), region.protection()) != (statement.residency, statement.protection) {
            return Ok(Err(VerifyFailure::Memory));
        }
        Ok(Ok(()))
    }

    fn passed(&self, shard: &Shard, started: Duration) -> Result<Verified, Error> {
        let statement = &shard.statement;
        let duration = self.trail.monotonic().saturating_sub(started);
        let verified =
            Verified { bytes: statement.bytes, digest: statement.digest, duration, at_ns: self.trail.wall_ns() };
        let lost_before = self.trail.lost_records();
        let recorded = self.record(&AuditEvent::SealVerified {
            shard_id: &statement.shard_id,
            bytes: verified.bytes,
            digest: verified.digest,
            duration_ns: u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
        })?;
        // A check whose record is lost does not count as one.
        match recorded {
            Recorded::Kept => {
                shard.set_last_verified(verified.at_ns);
                shard.set_recorded_state(ShardState::Verified, lost_before);
            }
            Recorded::Lost => shard.set_state(ShardState::Unverified),
        }
        self.metrics.verifications.increment(1);
        self.metrics.verify_duration.record(duration);
        tracing::info!(?duration, "verified");
        Ok(verified)
    }

    fn failed(&self, shard: &Shard, cause: VerifyFailure) -> Error {
        let action = match self.policy.on_failure {
            OnFailure::FailClosed => {
                // Before anything else, so that nobody is lent these bytes from now on.
                shard.set_state(ShardState::Quarantined);
                "quarantined"
            }
            OnFailure::Log => {
                shard.set_state(ShardState::Suspect);
                "logged"
            }
        };
        self.metrics.verification_failures.increment(1);
        tracing::error!(%cause, action, "verification failed");
        self.record_failure(shard, &cause, Some(&cause), action);
        Error::SealVerificationFailed { shard_id: Box::new(shard.statement.shard_id), cause }
    }

    fn record_failure(&self, shard: &Shard, reason: &dyn Display, found: Option<&VerifyFailure>, action: &'static str) {
        let (actual, damaged_blocks, first_block, tensor) = match found {
            Some(VerifyFailure::Damaged { actual, damaged_blocks, first_block, tensor, .. }) => {
                (Some(*actual), *damaged_blocks, Some(*first_block), tensor.as_deref())
            }
            _ => (None, 0, None, None),
        };
        self.record_beside_failure(&AuditEvent::SealVerificationFailed {
            shard_id: &shard.statement.shard_id,
            reason: Text(reason),
            expected: shard.statement.digest,
            actual,
            damaged_blocks,
            first_block,
            tensor,
            last_verified_ns: shard.last_verified_ns(),
            action,
        });
    }
}

/// Calls `damaged` with each block whose resident bytes are not as sealed, in ascending order, and its value.
pub(super) fn find_damage(shard: &Shard, damaged: &mut dyn FnMut(u64, BlockValue)) -> Result<(), Error> {
    let region = shard.region()?;
    let mut buffer = [BlockValue::UNKNOWN; BATCH];
    let mut first = 0_u64;
    for sealed in shard.values.chunks(BATCH) {
        let actual = buffer.get_mut(..sealed.len()).unwrap_or_default();
        region.hash_blocks(first, actual)?;
        for (block, (sealed, actual)) in (first..).zip(sealed.iter().zip(&*actual)) {
            if sealed != actual {
                damaged(block, *actual);
            }
        }
        first = first.saturating_add(sealed.len() as u64);
    }
    Ok(())
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
