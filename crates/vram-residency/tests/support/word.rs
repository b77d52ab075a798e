//! What the tests of attestations share: how one is made, what believes it, and what changes one.

use std::time::Duration;

use vram_residency::attest::statement::{CheckpointFacts, LogPosition, Software};
use vram_residency::attest::{AttestKey, AttestRequest, Attestation, Fresh, Nonce, Policy, check};
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::Expected;
use vram_residency::{Error, SealedShard, VramManager};

pub const SECOND: u64 = 1_000_000_000;
pub const NONCE: &str = "00112233445566778899aabbccddeeff";

pub fn nonce(text: &str) -> Nonce {
    text.parse().unwrap()
}

pub fn attest_key() -> AttestKey {
    AttestKey::of(&[7; 32]).unwrap()
}

pub fn fresh(manager: &VramManager, shard: &SealedShard, name: &str) -> Fresh {
    let verified = manager.verify_sealed(shard).unwrap();
    Fresh { shard: shard.clone(), verified, name: name.to_owned() }
}

pub fn attest(managers: &[&VramManager], shards: &[Fresh]) -> Result<Attestation, Error> {
    let software = Software { name: "test".into(), version: "1".into() };
    let request = AttestRequest { nonce: &nonce(NONCE), software, shards };
    let checkpoint = CheckpointFacts { origin: "example.org/log".into(), size: 3, root: [9; 32] };
    let trail = managers.first().map(|manager| manager.trail().clone());
    let position = || {
        let sequence = trail.as_ref()?.log_status()?.durable;
        Some(LogPosition { sequence, checkpoint: Some(checkpoint.clone()) })
    };
    match managers {
        [manager] => manager.attest(&request, &attest_key(), &position),
        managers => VramManager::attest_all(managers, &request, &attest_key(), &position),
    }
}

/// A policy that the shards of these tests satisfy, whatever memory this machine gives.
pub fn policy(shards: &[&SealedShard]) -> Policy {
    Policy {
        keys: vec![attest_key().public().clone()],
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

/// An attestation that is believed, and none that differs from it in one byte or bit, or has one more or less.
pub fn believed_as_it_is_alone(whole: &[u8], policy: &Policy, now: u64) {
    assert!(check(whole, policy, None, now).is_ok());
    let mut random = Random(20_261_125);
    let refused = |changed: &[u8], what: &str| {
        assert!(check(changed, policy, None, now).is_err(), "{what}: {}", String::from_utf8_lossy(changed));
    };
    for _ in 0..10_000 {
        let mut changed = whole.to_vec();
        let at = random.below(changed.len());
        let other = u8::try_from(1 + random.below(255)).unwrap();
        changed[at] ^= other;
        refused(&changed, &format!("byte {at} xor {other:02x}"));
    }
    // Every byte at every bit, and every byte left out, doubled, or preceded by a space.
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.to_vec();
            changed[at] ^= 1 << bit;
            refused(&changed, &format!("bit {bit} of byte {at}"));
        }
        let without = [&whole[..at], &whole[at + 1..]].concat();
        refused(&without, &format!("without byte {at}"));
        for more in [whole[at], b' ', b'\n'] {
            refused(&[&whole[..at], &[more], &whole[at..]].concat(), &format!("{more:02x} before byte {at}"));
        }
    }
    refused(&[whole, b" "].concat(), "a space behind it");
}
