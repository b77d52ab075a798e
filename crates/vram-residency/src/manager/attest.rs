//! Attesting: the word about what was just verified, signed and recorded before it is handed out.

use std::sync::{Arc, PoisonError, RwLockReadGuard};

use super::{REQUIRED_FLUSH, VramManager, Worker};
use crate::attest::envelope::Envelope;
use crate::attest::statement::{DeviceFacts, Digests, LogPosition, Predicate, ShardFacts, Statement, Subject};
use crate::attest::{AttestKey, AttestRequest, Attestation, Fresh, MAX_SUBJECTS};
use crate::audit::{AuditEvent, Text};
use crate::digest::Digest;
use crate::error::Error;
use crate::shard::ShardState;

impl VramManager {
    /// Signs a statement about shards of this manager: [`VramManager::attest_all`] of one.
    ///
    /// # Errors
    /// As [`VramManager::attest_all`].
    pub fn attest(
        &self,
        request: &AttestRequest<'_>,
        key: &AttestKey,
        position: &dyn Fn() -> Option<LogPosition>,
    ) -> Result<Attestation, Error> {
        Self::attest_all(&[self], request, key, position)
    }

    /// Signs one statement about shards of several managers, such as a model that is spread over several GPUs, each shard
    /// verified just now by its own manager, and records that. The managers are one worker's and share its audit trail;
    /// one that is named twice counts once. Name those that hold the shards: the device of every one that is named must be
    /// trusted, whether a shard of it is asked for or not. `position` is asked where the audit log is, once every record so
    /// far is on disk.
    ///
    /// Of none of the managers is a shard's protection lowered from when the first shard is measured until the attestation is
    /// on record. The record's device is that of the first shard.
    ///
    /// # Errors
    /// [`Error::NotAttested`] where a shard is anything but VERIFIED, be it that its record was lost or that a fault was
    /// found meanwhile; [`Error::Attestation`] where there are none or too many of them or a name is not fit for a
    /// statement; [`Error::ForeignShard`] where one is none of these managers'; [`Error::TwoWorkers`], [`Error::TwoTrails`];
    /// [`Error::DeviceQuarantined`]; [`Error::Audit`] where the record is not kept: then nothing is handed out.
    pub fn attest_all(
        managers: &[&Self],
        request: &AttestRequest<'_>,
        key: &AttestKey,
        position: &dyn Fn() -> Option<LogPosition>,
    ) -> Result<Attestation, Error> {
        let count = request.shards.len();
        let wrong_count = || Error::Attestation { shards: count, limit: MAX_SUBJECTS };
        let first = request.shards.first().filter(|_| count <= MAX_SUBJECTS).ok_or_else(wrong_count)?;
        let workers = Workers::of(managers)?;
        // Whose record it is.
        let signer = workers.owner(first)?;
        let require_audit = workers.0.iter().any(|worker| worker.policy.require_audit);
        // Where that is not required, the shards' state below tells of it, which names a shard.
        if let Err(error) = signer.trail.flush(REQUIRED_FLUSH)
            && require_audit
        {
            return Err(Error::Audit(error));
        }
        let audit_log = position();
        // What is said of protections here is on record before any of them is lowered, or says so.
        let none_lowered = workers.none_lowered();
        let mut devices: Vec<DeviceFacts> = Vec::new();
        let (mut subjects, mut shards) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for fresh in request.shards {
            let worker = workers.owner(fresh)?;
            let (subject, facts) = worker.measured(fresh)?;
            if !devices.iter().any(|device| device.uuid == facts.device) {
                devices.push(worker.device_facts());
            }
            subjects.push(subject);
            shards.push(facts);
        }
        let predicate = Predicate {
            nonce: request.nonce.clone(),
            attested_at: signer.trail.wall_ns(),
            worker_id: signer.worker_id.to_string(),
            software: request.software.clone(),
            devices,
            shards,
            audit_log: audit_log.clone(),
        };
        let envelope = Envelope::sign(Statement::new(subjects, predicate).to_text(), key).to_text();
        let digest = Digest::of(envelope.as_bytes());
        let lost = signer.trail.lost_records();
        signer.record_first(&AuditEvent::AttestationMade {
            nonce: Text(request.nonce),
            envelope: digest,
            shards: count as u64,
            key: Text(&key.public().id()),
        })?;
        // It has its place in the log, or will never have one.
        drop(none_lowered);
        // Whatever the policy requires: a word that cannot be taken back is on disk before it leaves.
        signer.trail.flush_since(lost, REQUIRED_FLUSH).map_err(Error::Audit)?;
        signer.metrics.attestations.increment(1);
        Ok(Attestation { envelope, digest, audit_log })
    }
}

/// Whose shards are attested together: each once, in the order of their addresses.
struct Workers<'a>(Vec<&'a Arc<Worker>>);

impl<'a> Workers<'a> {
    /// They speak with one voice, into one log, of devices that are trusted.
    fn of(managers: &[&'a VramManager]) -> Result<Self, Error> {
        let mut workers: Vec<&Arc<Worker>> = managers.iter().map(|manager| &manager.worker).collect();
        for pair in workers.windows(2) {
            let [one, other] = pair else { continue };
            if one.worker_id != other.worker_id {
                let name = |worker: &Worker| worker.worker_id.as_ref().into();
                return Err(Error::TwoWorkers { one: name(one), other: name(other) });
            }
            if !one.trail.is_same(&other.trail) {
                let name = |worker: &Worker| worker.device.name().into();
                return Err(Error::TwoTrails { one: name(one), other: name(other) });
            }
        }
        workers.iter().try_for_each(|worker| worker.device_is_trusted())?;
        workers.sort_unstable_by_key(|worker| Arc::as_ptr(worker));
        workers.dedup_by_key(|worker| Arc::as_ptr(worker));
        Ok(Self(workers))
    }

    /// Until what is returned goes, no protection is lowered. Everybody waits in the same order and for each worker once, so
    /// that nobody waits for somebody who waits for him.
    fn none_lowered(&self) -> Vec<RwLockReadGuard<'a, ()>> {
        self.0.iter().map(|worker| worker.lowering.read().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Whose shard it is.
    fn owner(&self, fresh: &Fresh) -> Result<&'a Arc<Worker>, Error> {
        let owner = self.0.iter().copied().find(|worker| worker.is_own(&fresh.shard).is_ok());
        owner.ok_or_else(|| Error::ForeignShard { shard_id: Box::new(*fresh.shard.shard_id()) })
    }
}

impl Worker {
    /// What can be said of a shard of its own, where something can.
    fn measured(&self, fresh: &Fresh) -> Result<(Subject, ShardFacts), Error> {
        let Fresh { shard, verified, name } = fresh;
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
            device: self.device.info().uuid,
            residency: region.residency(),
            protection: shard.inner.writable.lowers(region.protection()),
            sealed_at: statement.sealed_at_ns,
            verified_at: verified.at_ns,
        };
        Ok((Subject { name: name.clone(), digest: digests }, facts))
    }

    fn device_facts(&self) -> DeviceFacts {
        let device = self.device.info();
        DeviceFacts { kind: device.kind, uuid: device.uuid, driver: self.device.driver() }
    }
}

#[cfg(test)]
mod order_of_locks {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::audit::AuditTrail;
    use crate::device::{HostDevice, HostOptions};
    use crate::manager::ManagerOptions;
    use crate::policy::Policy;
    use crate::seal::SealKey;

    /// Whoever waits for one of the locks holds only such as come before it, whatever order the managers are named in: then
    /// nobody can wait in a circle. None is taken twice, which would wait for a writer who waits for the first time.
    #[test]
    fn locks_are_taken_once_and_in_one_order_however_the_managers_are_named() {
        let device = Arc::new(HostDevice::open(HostOptions::default()).unwrap());
        let trail = AuditTrail::off();
        let [one, other] = [(); 2].map(|()| {
            let key = SealKey::derive(&[7; 32], "worker").unwrap();
            let (device, trail, policy) = (Arc::clone(&device) as _, trail.clone(), Policy::default());
            VramManager::new(ManagerOptions { worker_id: "worker".into(), device, key, trail, policy }).unwrap()
        });
        let (low, high) =
            if Arc::as_ptr(&one.worker) < Arc::as_ptr(&other.worker) { (one, other) } else { (other, one) };
        for managers in [vec![&low, &high], vec![&high, &low], vec![&high, &low, &high, &low, &low]] {
            assert_eq!(Workers::of(&managers).unwrap().0.len(), 2);
            for (lowered, is_first) in [(&low, true), (&high, false)] {
                let has_all = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let lowering = lowered.worker.lowering.write().unwrap();
                    scope.spawn(|| {
                        let _all = Workers::of(&managers).unwrap().none_lowered();
                        has_all.store(true, Ordering::SeqCst);
                    });
                    if is_first {
                        // Not even for a moment: it waits before it takes the second.
                        for _ in 0..20 {
                            assert!(high.worker.lowering.try_write().is_ok());
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    } else {
                        while low.worker.lowering.try_write().is_ok() {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                    assert!(!has_all.load(Ordering::SeqCst));
                    drop(lowering);
                });
                assert!(has_all.into_inner());
                assert!(low.worker.lowering.try_write().is_ok() && high.worker.lowering.try_write().is_ok());
            }
        }
    }
}

#[cfg(test)]
mod lock_until_recorded {
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
    use crate::device::{CudaDevice, CudaOptions, DeviceUuid, HashVariant, Protection, Tested, WriteTest};
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
        let device = Some(DeviceUuid(Plan::default().devices[0].uuid));
        gpu.write_test = Tested { device, outcome: WriteTest::Refused("as the emulated GPU does".into()) };
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
