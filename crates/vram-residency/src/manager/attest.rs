//! Attesting: the word about what was just verified, signed and recorded before it is handed out.

use std::sync::PoisonError;

use super::{REQUIRED_FLUSH, VramManager};
use crate::attest::envelope::Envelope;
use crate::attest::statement::{DeviceFacts, Digests, LogPosition, Predicate, ShardFacts, Statement, Subject};
use crate::attest::{AttestKey, AttestRequest, Attestation, Fresh, MAX_SUBJECTS};
use crate::audit::{AuditEvent, Text};
use crate::digest::Digest;
use crate::error::Error;
use crate::shard::ShardState;

impl VramManager {
    /// Signs a statement about shards that were verified just now, and records that. `position` is asked where the audit
    /// log is, once every record so far is on disk.
    ///
    /// # Errors
    /// [`Error::NotAttested`] where a shard is anything but VERIFIED, be it that its record was lost or that a fault was
    /// found meanwhile; [`Error::Attestation`] where there are none or too many of them or a name is not fit for a
    /// statement; [`Error::ForeignShard`]; [`Error::DeviceQuarantined`]; [`Error::Audit`] where the record is not kept:
    /// then nothing is handed out.
    pub fn attest(
        &self,
        request: &AttestRequest<'_>,
        key: &AttestKey,
        position: &dyn Fn() -> Option<LogPosition>,
    ) -> Result<Attestation, Error> {
        let count = request.shards.len();
        if !(1..=MAX_SUBJECTS).contains(&count) {
            return Err(Error::Attestation { shards: count, limit: MAX_SUBJECTS });
        }
        self.worker.device_is_trusted()?;
        self.worker.trail.flush(REQUIRED_FLUSH).map_err(Error::Audit).or_else(|error| match error {
            // Told by the shards' state below, which names a shard.
            Error::Audit(_) if !self.worker.policy.require_audit => Ok(()),
            error => Err(error),
        })?;
        let audit_log = position();
        // What is said of protections here is on record before any of them is lowered, or says so.
        let _none_lowered = self.worker.lowering.read().unwrap_or_else(PoisonError::into_inner);
        let (mut subjects, mut shards) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for fresh in request.shards {
            let (subject, facts) = self.measured(fresh)?;
            subjects.push(subject);
            shards.push(facts);
        }
        let device = self.worker.device.info();
        let predicate = Predicate {
            nonce: request.nonce.clone(),
            attested_at: self.worker.trail.wall_ns(),
            worker_id: self.worker.worker_id.to_string(),
            software: request.software.clone(),
            device: DeviceFacts { kind: device.kind, uuid: device.uuid, driver: self.worker.device.driver() },
            shards,
            audit_log: audit_log.clone(),
        };
        let envelope = Envelope::sign(Statement::new(subjects, predicate).to_text(), key).to_text();
        let digest = Digest::of(envelope.as_bytes());
        self.worker.record_first(&AuditEvent::AttestationMade {
            nonce: Text(request.nonce),
            envelope: digest,
            shards: count as u64,
            key: Text(&key.public().id()),
        })?;
        self.worker.metrics.attestations.increment(1);
        Ok(Attestation { envelope, digest, audit_log })
    }

    /// What can be said of a shard, where something can.
    fn measured(&self, fresh: &Fresh) -> Result<(Subject, ShardFacts), Error> {
        let Fresh { shard, verified, name } = fresh;
        self.own(shard)?;
        let statement = &shard.inner.statement;
        let region = shard.inner.region()?;
        // Whatever became of it since it was verified, be it a lost record or a fault: it is asked now.
        let state = shard.state();
        if state != ShardState::Verified || verified.digest != statement.digest {
            return Err(Error::NotAttested { shard_id: Box::new(statement.shard_id), state });
        }
        super::check_text("file name", name)?;
        let digests = Digests { blake3: verified.digest, sha256: shard.sha256() };
        let facts = ShardFacts {
            shard_id: statement.shard_id,
            model_ref: statement.model_ref.to_string(),
            shard_index: statement.shard_index,
            shard_count: statement.shard_count,
            bytes: verified.bytes,
            tensor_table: statement.table_digest,
            residency: region.residency(),
            protection: shard.inner.writable.lowers(region.protection()),
            sealed_at: statement.sealed_at_ns,
            verified_at: verified.at_ns,
        };
        Ok((Subject { name: name.clone(), digest: digests }, facts))
    }
}
