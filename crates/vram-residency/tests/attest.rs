//! Attestations: made of what was just verified, believed only where every byte and every rule holds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::Options;
use support::moody::Moody;
use support::word::{NONCE, SECOND, attest, attest_key, believed_as_it_is_alone, fresh, nonce, policy};
use support::{disk_dir, events, id, manager, names};
use vram_residency::attest::{AttestKey, Policy as Rules, Refusal, check};
use vram_residency::audit::{AuditTrail, TrailError, TrailHealth};
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::{Digest, Expected};
use vram_residency::{Error, Policy, ShardState};

#[test]
fn an_attestation_says_what_is_resident_and_is_on_record_before_it_is_handed_out() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let (one, two) =
        (manager.seal_model(id("one"), "org/m", b"weights"), manager.seal_model(id("two"), "org/m", b"more"));
    let (one, two) = (one.unwrap(), two.unwrap());
    let made = attest(&[&manager], &[fresh(&manager, &one, "one.bin"), fresh(&manager, &two, "two.bin")]).unwrap();
    // Read back without any flush.
    let recorded = events(dir.path());
    let last = recorded.last().unwrap();
    assert_eq!(last["event"], "AttestationMade", "{:?}", names(&recorded));
    assert_eq!((&last["severity"], &last["shards"]), (&"critical".into(), &2.into()));
    assert_eq!(last["envelope"], made.digest.to_string());
    assert_eq!(made.digest, Digest::of(made.envelope.as_bytes()));
    assert_eq!(last["key"], attest_key().public().id().to_string());
    assert_eq!(last["nonce"], "00112233445566778899aabbccddeeff");

    let now = one.last_verified_ns() + SECOND;
    let asked = nonce(NONCE);
    let found = check(made.envelope.as_bytes(), &policy(&[&one, &two]), Some(&asked), now).unwrap();
    let predicate = &found.statement.predicate;
    assert_eq!(found.statement.subject[0].name, "one.bin");
    assert_eq!(found.statement.subject[0].digest.blake3, one.digest());
    assert_eq!(predicate.shards[1].shard_id, *two.shard_id());
    assert_eq!((predicate.shards[0].residency, predicate.shards[0].protection), (one.residency(), one.protection()));
    let [device] = predicate.devices.as_slice() else { panic!("{:?}", predicate.devices) };
    assert_eq!((device.uuid, device.driver.name.as_str()), (manager.device().uuid, "Linux"));
    assert!(predicate.shards.iter().all(|shard| shard.device == device.uuid));
    let position = predicate.audit_log.as_ref().unwrap();
    // The verifications were on disk when the position was taken, and the record of the attestation was not.
    let verified = recorded.iter().rposition(|event| event["event"] == "SealVerified").unwrap();
    assert_eq!(verified + 2, recorded.len());
    assert!(position.sequence >= recorded.len() as u64 - 1);
    assert_eq!(position.checkpoint.as_ref().unwrap().root, [9; 32]);
}

#[test]
fn ten_thousand_changes_of_one_byte_are_all_refused() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let made = attest(&[&manager], &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let (policy, now) = (policy(&[&shard]), shard.last_verified_ns() + SECOND);
    believed_as_it_is_alone(made.envelope.as_bytes(), &policy, now);
}

#[test]
fn what_is_replayed_stale_or_of_another_key_or_policy_is_refused() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let made = attest(&[&manager], &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let now = shard.last_verified_ns() + SECOND;
    let good = policy(&[&shard]);
    let judged = |change: &dyn Fn(&mut Rules), asked: Option<&str>, now: u64| {
        let mut policy = good.clone();
        change(&mut policy);
        let asked = asked.map(nonce);
        check(made.envelope.as_bytes(), &policy, asked.as_ref(), now).map(|_| ())
    };
    let same = |_: &mut Rules| ();
    assert_eq!(judged(&same, Some(NONCE), now), Ok(()));
    macro_rules! refused {
        ($pattern:pat, $change:expr, $asked:expr, $now:expr) => {
            let verdict = judged($change, $asked, $now);
            assert!(matches!(verdict, Err($pattern)), "{verdict:?}");
        };
    }
    refused!(Refusal::Nonce { .. }, &same, Some("00112233445566778899aabbccddeefe"), now);
    refused!(Refusal::Nonce { .. }, &same, Some("0011223344556677"), now);
    refused!(Refusal::Stale { .. }, &same, None, now + 61 * SECOND);
    refused!(Refusal::Future { .. }, &same, None, now - 10 * SECOND);
    let other = AttestKey::of(&[8; 32]).unwrap();
    refused!(Refusal::UnknownKey { .. }, &|policy| policy.keys = vec![other.public().clone()], None, now);
    refused!(Refusal::UnknownKey { .. }, &|policy| policy.keys.clear(), None, now);
    let absent = Expected::Blake3(Digest::of(b"others"));
    refused!(Refusal::Digest { .. }, &|policy| policy.digests = vec![absent], None, now);
    // Nobody can say that these are others: their SHA-256 is not known.
    let sha256 = Expected::Sha256([1; 32]);
    refused!(Refusal::NoSha256 { .. }, &|policy| policy.digests = vec![sha256, absent], None, now);
    refused!(Refusal::Missing { .. }, &|policy| policy.digests.push(absent), None, now);
    refused!(Refusal::Worker { .. }, &|policy| policy.workers.push("another".into()), None, now);
    refused!(
        Refusal::Device { .. },
        &|policy| policy.devices.push(vram_residency::device::DeviceUuid([1; 16])),
        None,
        now
    );
    refused!(Refusal::Log { .. }, &|policy| policy.log_origins.push("another.org/log".into()), None, now);
    assert_eq!(judged(&|policy| policy.log_origins.push("example.org/log".into()), None, now), Ok(()));
    if shard.residency() == Residency::HostPageable {
        refused!(Refusal::Residency { .. }, &|policy| policy.residency = Residency::HostLocked, None, now);
    }
    if shard.protection() == Protection::Advisory {
        refused!(Refusal::Protection { .. }, &|policy| policy.protection = Protection::ReadOnly, None, now);
    }
}

/// The statements that a policy compares memory with are signed by hand here: no machine has every kind of memory.
#[test]
fn memory_that_is_worse_than_the_policy_asks_for_is_refused() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let made = attest(&[&manager], &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let now = shard.last_verified_ns() + SECOND;
    let mut good = policy(&[&shard]);
    let checked = check(made.envelope.as_bytes(), &good, None, now).unwrap();
    let judged = |residency, protection, policy: &Rules| {
        let mut statement = checked.statement.clone();
        statement.predicate.shards[0].residency = residency;
        statement.predicate.shards[0].protection = protection;
        let envelope = vram_residency::attest::envelope::Envelope::sign(statement.to_text(), &attest_key()).to_text();
        check(envelope.as_bytes(), policy, None, now).map(|_| ())
    };
    use {Protection::*, Residency::*};
    assert_eq!(judged(HostPageable, Advisory, &good), Ok(()));
    good.residency = HostLocked;
    assert!(matches!(judged(HostPageable, ReadOnly, &good), Err(Refusal::Residency { .. })));
    assert_eq!(judged(HostLocked, Advisory, &good), Ok(()));
    good.protection = ReadOnly;
    assert!(matches!(judged(HostLocked, Advisory, &good), Err(Refusal::Protection { .. })));
    assert_eq!(judged(HostLocked, ReadOnly, &good), Ok(()));
}

#[test]
fn nothing_is_attested_of_what_is_not_verified() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let fresh = fresh(&manager, &shard, "one.bin");
    assert!(attest(&[&manager], std::slice::from_ref(&fresh)).is_ok());
    assert!(matches!(attest(&[&manager], &[]), Err(Error::Attestation { .. })));
    // A fault that is found behind the verification's back.
    manager.inject_fault(&shard, 0, 1).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    let refused = attest(&[&manager], std::slice::from_ref(&fresh)).unwrap_err();
    assert!(matches!(refused, Error::NotAttested { state: ShardState::Quarantined, .. }), "{refused}");
    assert!(refused.is_integrity() && refused.to_string().contains("QUARANTINED"));
}

#[test]
fn a_worker_that_loses_its_records_attests_nothing() {
    let dir = disk_dir();
    let options = Options::default();
    let nowhere = dir.path().join("file");
    std::fs::write(&nowhere, b"no directory").unwrap();
    let trail = AuditTrail::open_or_degraded(&nowhere, options);
    let manager = support::manager_with(support::host(1 << 20), trail, Policy::default());
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let fresh = fresh(&manager, &shard, "one.bin");
    let refused = attest(&[&manager], &[fresh]).unwrap_err();
    assert!(matches!(refused, Error::NotAttested { state: ShardState::Unverified, .. }), "{refused}");
}

/// Also where the disk takes longer than critical records may, and the policy requires none of them.
#[test]
fn an_attestation_leaves_when_its_record_is_on_disk() {
    let dir = disk_dir();
    let disk = Moody::default();
    let log = Options { critical_deadline: Duration::from_millis(1), ..disk.log() };
    let trail = AuditTrail::open_with(dir.path(), log).unwrap();
    let manager = support::manager_with(support::host(1 << 20), trail, Policy::default());
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let fresh = fresh(&manager, &shard, "one.bin");
    manager.trail().flush(Duration::from_secs(60)).unwrap();
    disk.syncs_take(Duration::from_millis(200));
    attest(&[&manager], &[fresh]).unwrap();
    let status = manager.trail().log_status().unwrap();
    assert_eq!((status.durable, status.queued), (status.records, 0), "{status:?}");
    disk.syncs_take(Duration::ZERO);
    assert_eq!(names(&events(dir.path())).last(), Some(&"AttestationMade"));
}

/// The disk stalls beyond the deadline, fails, and is well again before anybody asks whether the record is on it.
#[test]
fn an_attestation_whose_record_was_lost_does_not_leave_once_the_log_is_well_again() {
    let dir = disk_dir();
    let disk = Moody::default();
    let log = Options { critical_deadline: Duration::from_millis(1), ..disk.log() };
    let trail = AuditTrail::open_with(dir.path(), log).unwrap();
    let manager = support::manager_with(support::host(1 << 20), trail.clone(), Policy::default());
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let fresh = fresh(&manager, &shard, "one.bin");
    trail.flush(Duration::from_secs(60)).unwrap();
    disk.syncs_take(Duration::from_millis(200));
    let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let (moods, log) = (disk.clone(), trail.clone());
    trail.tap(Arc::new(move |_, leaf| {
        if !String::from_utf8_lossy(leaf).contains("AttestationMade") {
            return;
        }
        moods.fails_with(libc::EIO);
        wait_for("it is lost", &|| log.log_status().unwrap().failures > 0);
        moods.syncs_take(Duration::ZERO);
        moods.fails_with(0);
        wait_for("the log resumes", &|| log.health() == TrailHealth::Good);
    }));
    let refused = attest(&[&manager], &[fresh]).unwrap_err();
    assert!(matches!(refused, Error::Audit(TrailError::Lost)), "{refused}");
    assert!(!names(&events(dir.path())).contains(&"AttestationMade"));
    trail.close(Duration::from_secs(30)).unwrap();
}
