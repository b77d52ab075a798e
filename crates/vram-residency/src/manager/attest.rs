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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex, OnceLock, Weak};
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use audit_logging::{Clock, Options};
    use cuda_emulator::{Emulator, Plan};
    use serde_json::Value;

    use super::*;
    use crate::attest::statement::Software;
    use crate::audit::AuditTrail;
    use crate::device::{CudaDevice, CudaOptions, HashVariant, Protection, WriteTest};
    use crate::manager::Worker;
    use crate::policy::Policy;
    use crate::seal::SealKey;
    use crate::{ManagerOptions, ShardId};

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Held {
        Nothing,
        Shared,
        Alone,
    }

    thread_local! {
        /// Whether what this thread does is looked at.
        static LOOKING: Cell<bool> = const { Cell::new(false) };
    }

    /// A clock, and a look at each record, that see whether the lock is held whenever somebody comes by. Both sides come by
    /// between their first and their last step, so it takes no second thread, and no luck.
    #[derive(Debug, Default)]
    struct Witness {
        now: AtomicU64,
        worker: OnceLock<Weak<Worker>>,
        seen: Mutex<Vec<(String, Held)>>,
    }

    impl Witness {
        fn look(&self, at: &str) {
            let Some(worker) = self.worker.get().and_then(Weak::upgrade).filter(|_| LOOKING.get()) else { return };
            let held = match worker.lowering.try_read().map(drop) {
                Err(_) => Held::Alone,
                Ok(()) if worker.lowering.try_write().is_ok() => Held::Nothing,
                Ok(()) => Held::Shared,
            };
            self.seen.lock().unwrap().push((at.to_owned(), held));
        }

        /// What was seen until a record was made, it included.
        fn seen_until(&self, event: &str) -> Vec<(String, Held)> {
            LOOKING.set(false);
            let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
            let last = seen.iter().position(|(at, _)| at == event).unwrap();
            seen.truncate(last + 1);
            seen
        }

        fn now(&self) -> Duration {
            Duration::from_nanos(self.now.fetch_add(1000, Ordering::SeqCst))
        }
    }

    impl Clock for Witness {
        fn wall(&self) -> SystemTime {
            self.look("wall clock");
            UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.now()
        }

        fn monotonic(&self) -> Duration {
            self.look("monotonic clock");
            self.now()
        }
    }

    /// An attestation that says `read-only` and a hand-out that lowers it: each is one step to the other, from what it finds to
    /// its record. So no log has them in an order in which the attestation is wrong.
    #[test]
    fn from_what_is_said_of_a_protection_to_the_record_of_it_nobody_lowers_it() {
        let _emulator = Emulator::lock(Plan::default());
        let (dir, witness) = (tempfile::tempdir().unwrap(), Arc::new(Witness::default()));
        let mut gpu = CudaOptions::default();
        (gpu.library, gpu.variant) = (Some(cuda_emulator::library()), Some(HashVariant::Plain));
        gpu.write_test = WriteTest::Refused("as the emulated GPU does".into());
        let log = Options { clock: Arc::clone(&witness) as _, segment_bytes: 64 << 10, ..Options::default() };
        let manager = VramManager::new(ManagerOptions {
            worker_id: "worker".into(),
            device: Arc::new(CudaDevice::open(&gpu).unwrap()),
            key: SealKey::derive(&[7; 32], "worker").unwrap(),
            trail: AuditTrail::open_with(dir.path(), log).unwrap(),
            policy: Policy::default(),
        })
        .unwrap();
        witness.worker.set(Arc::downgrade(&manager.worker)).unwrap();
        let recorded = Arc::clone(&witness);
        manager.trail().tap(Arc::new(move |_, leaf| {
            let event: Value = serde_json::from_slice(leaf).unwrap();
            recorded.look(event["event"].as_str().unwrap());
        }));
        let shard = manager.seal_model(ShardId::new("shard").unwrap(), "model", b"weights").unwrap();
        // As where it is checked continuously: whoever asks for its state looks at the clock.
        shard.inner.freshness.watch(1, Duration::from_secs(3600));
        let verified = manager.verify_sealed(&shard).unwrap();

        let shards = [Fresh { shard: shard.clone(), verified, name: "weights".into() }];
        let request = AttestRequest {
            nonce: &"00112233445566778899aabbccddeeff".parse().unwrap(),
            software: Software { name: "test".into(), version: "1".into() },
            shards: &shards,
        };
        let from_here = || {
            LOOKING.set(true);
            None
        };
        manager.attest(&request, &AttestKey::of(&[7; 32]).unwrap(), &from_here).unwrap();
        let seen = witness.seen_until("AttestationMade");
        assert_eq!(seen[0].0, "monotonic clock", "the shard's state, before anything is said of it");
        assert!(seen.iter().all(|(_, held)| *held == Held::Shared), "{seen:?}");

        LOOKING.set(true);
        drop(manager.hand_out(&shard, 1, 1).unwrap());
        let seen = witness.seen_until("ShardAttached");
        assert_eq!(seen[0].0, "wall clock", "since when it is lowered, before that is on record");
        assert!(seen.iter().any(|(at, _)| at == "ProtectionLowered"), "{seen:?}");
        assert!(seen.iter().all(|(_, held)| *held == Held::Alone), "{seen:?}");
        assert_eq!(shard.protection(), Protection::Advisory);
    }
}
