//! Attestations: made of what was just verified, believed only where every byte and every rule holds.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod support;

use std::time::Duration;

use support::{disk_dir, events, id, manager, names};
use vram_residency::attest::statement::{CheckpointFacts, LogPosition, Software};
use vram_residency::attest::{AttestKey, AttestRequest, Attestation, Fresh, Nonce, Policy, Refusal, check};
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::{Digest, Expected};
use vram_residency::{Error, SealedShard, ShardState, VramManager};

const SECOND: u64 = 1_000_000_000;

fn nonce(text: &str) -> Nonce {
    text.parse().unwrap()
}

fn key() -> AttestKey {
    AttestKey::of(&[7; 32]).unwrap()
}

fn fresh(manager: &VramManager, shard: &SealedShard, name: &str) -> Fresh {
    let verified = manager.verify_sealed(shard).unwrap();
    Fresh { shard: shard.clone(), verified, name: name.to_owned() }
}

fn attest(manager: &VramManager, shards: &[Fresh]) -> Result<Attestation, Error> {
    let software = Software { name: "test".into(), version: "1".into() };
    let request = AttestRequest { nonce: &nonce("00112233445566778899aabbccddeeff"), software, shards };
    let checkpoint = CheckpointFacts { origin: "example.org/log".into(), size: 3, root: [9; 32] };
    manager.attest(&request, &key(), &|| {
        let sequence = manager.trail().log_status()?.durable;
        Some(LogPosition { sequence, checkpoint: Some(checkpoint.clone()) })
    })
}

/// A policy that the shards of these tests satisfy, whatever memory this machine gives.
fn policy(shards: &[&SealedShard]) -> Policy {
    Policy {
        keys: vec![key().public().clone()],
        digests: shards.iter().map(|shard| Expected::Blake3(shard.digest())).collect(),
        complete: true,
        residency: Residency::HostPageable,
        protection: Protection::Advisory,
        max_age: Duration::from_secs(60),
        max_skew: Duration::from_secs(5),
        workers: Vec::new(),
        devices: Vec::new(),
        log_origins: Vec::new(),
    }
}

/// Splitmix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

#[test]
fn an_attestation_says_what_is_resident_and_is_on_record_before_it_is_handed_out() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let (one, two) =
        (manager.seal_model(id("one"), "org/m", b"weights"), manager.seal_model(id("two"), "org/m", b"more"));
    let (one, two) = (one.unwrap(), two.unwrap());
    let made = attest(&manager, &[fresh(&manager, &one, "one.bin"), fresh(&manager, &two, "two.bin")]).unwrap();
    // Read back without any flush.
    let recorded = events(dir.path());
    let last = recorded.last().unwrap();
    assert_eq!(last["event"], "AttestationMade", "{:?}", names(&recorded));
    assert_eq!((&last["severity"], &last["shards"]), (&"critical".into(), &2.into()));
    assert_eq!(last["envelope"], made.digest.to_string());
    assert_eq!(made.digest, Digest::of(made.envelope.as_bytes()));
    assert_eq!(last["key"], key().public().id().to_string());
    assert_eq!(last["nonce"], "00112233445566778899aabbccddeeff");

    let now = one.last_verified_ns() + SECOND;
    let asked = nonce("00112233445566778899aabbccddeeff");
    let found = check(made.envelope.as_bytes(), &policy(&[&one, &two]), Some(&asked), now).unwrap();
    let predicate = &found.statement.predicate;
    assert_eq!(found.statement.subject[0].name, "one.bin");
    assert_eq!(found.statement.subject[0].digest.blake3, one.digest());
    assert_eq!(predicate.shards[1].shard_id, *two.shard_id());
    assert_eq!((predicate.shards[0].residency, predicate.shards[0].protection), (one.residency(), one.protection()));
    assert_eq!(predicate.device.uuid, manager.device().uuid);
    assert_eq!(predicate.device.driver.name, "Linux");
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
    let made = attest(&manager, &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let (policy, now) = (policy(&[&shard]), shard.last_verified_ns() + SECOND);
    let whole = made.envelope.into_bytes();
    assert!(check(&whole, &policy, None, now).is_ok());
    let mut random = Random(20_261_125);
    let refused = |changed: &[u8], what: &str| {
        assert!(check(changed, &policy, None, now).is_err(), "{what}: {}", String::from_utf8_lossy(changed));
    };
    for _ in 0..10_000 {
        let mut changed = whole.clone();
        let at = random.below(changed.len());
        let other = u8::try_from(1 + random.below(255)).unwrap();
        changed[at] ^= other;
        refused(&changed, &format!("byte {at} xor {other:02x}"));
    }
    // Every byte at every bit, and every byte left out, doubled, or preceded by a space.
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            refused(&changed, &format!("bit {bit} of byte {at}"));
        }
        let without = [&whole[..at], &whole[at + 1..]].concat();
        refused(&without, &format!("without byte {at}"));
        for more in [whole[at], b' ', b'\n'] {
            refused(&[&whole[..at], &[more], &whole[at..]].concat(), &format!("{more:02x} before byte {at}"));
        }
    }
    refused(&[&whole[..], b" "].concat(), "a space behind it");
}

#[test]
fn what_is_replayed_stale_or_of_another_key_or_policy_is_refused() {
    let dir = disk_dir();
    let manager = manager(dir.path(), 1 << 22);
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let made = attest(&manager, &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let now = shard.last_verified_ns() + SECOND;
    let good = policy(&[&shard]);
    let judged = |change: &dyn Fn(&mut Policy), asked: Option<&str>, now: u64| {
        let mut policy = good.clone();
        change(&mut policy);
        let asked = asked.map(nonce);
        check(made.envelope.as_bytes(), &policy, asked.as_ref(), now).map(|_| ())
    };
    let same = |_: &mut Policy| ();
    assert_eq!(judged(&same, Some("00112233445566778899aabbccddeeff"), now), Ok(()));
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
    let made = attest(&manager, &[fresh(&manager, &shard, "one.bin")]).unwrap();
    let now = shard.last_verified_ns() + SECOND;
    let mut good = policy(&[&shard]);
    let checked = check(made.envelope.as_bytes(), &good, None, now).unwrap();
    let judged = |residency, protection, policy: &Policy| {
        let mut statement = checked.statement.clone();
        statement.predicate.shards[0].residency = residency;
        statement.predicate.shards[0].protection = protection;
        let envelope = vram_residency::attest::envelope::Envelope::sign(statement.to_text(), &key()).to_text();
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
    assert!(attest(&manager, std::slice::from_ref(&fresh)).is_ok());
    assert!(matches!(attest(&manager, &[]), Err(Error::Attestation { .. })));
    // A fault that is found behind the verification's back.
    manager.inject_fault(&shard, 0, 1).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    let refused = attest(&manager, std::slice::from_ref(&fresh)).unwrap_err();
    assert!(matches!(refused, Error::NotAttested { state: ShardState::Quarantined, .. }), "{refused}");
    assert!(refused.is_integrity() && refused.to_string().contains("QUARANTINED"));
}

#[test]
fn a_worker_that_loses_its_records_attests_nothing() {
    let dir = disk_dir();
    let options = audit_logging::Options::default();
    let nowhere = dir.path().join("file");
    std::fs::write(&nowhere, b"no directory").unwrap();
    let trail = vram_residency::audit::AuditTrail::open_or_degraded(&nowhere, options);
    let manager = support::manager_with(support::host(1 << 20), trail, vram_residency::Policy::default());
    let shard = manager.seal_model(id("one"), "org/m", b"weights").unwrap();
    let fresh = fresh(&manager, &shard, "one.bin");
    let refused = attest(&manager, &[fresh]).unwrap_err();
    assert!(matches!(refused, Error::NotAttested { state: ShardState::Unverified, .. }), "{refused}");
}
