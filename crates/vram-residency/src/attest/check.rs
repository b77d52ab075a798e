//! Checking an attestation somewhere else, without the machine that made it: by keys and a policy.

use std::time::Duration;

use super::envelope::Envelope;
use super::key::{KeyId, PublicKey};
use super::statement::{Nonce, ShardFacts, Statement, Subject};
use crate::device::{DeviceUuid, Protection, Residency};
use crate::digest::Expected;

/// What an attestation must say to be believed.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "all of it must be chosen")]
pub struct Policy {
    /// Keys that may sign.
    pub keys: Vec<PublicKey>,
    /// Digests that a subject may have: each subject must have one of them.
    pub digests: Vec<Expected>,
    /// Whether each of these digests must be among the subjects, too.
    pub complete: bool,
    /// Where bytes must be, at least.
    pub residency: Residency,
    /// What must stop a write, at least.
    pub protection: Protection,
    /// How old the attestation, and each verification in it, may be.
    pub max_age: Duration,
    /// How far the clock of the machine that signed may be ahead of this one.
    pub max_skew: Duration,
    /// Workers that may hold the shards; empty: any.
    pub workers: Vec<String>,
    /// Devices that may hold them, all of them; empty: any.
    pub devices: Vec<DeviceUuid>,
    /// Names that the audit log may have, which must be signed then; empty: any log, or none.
    pub log_origins: Vec<String>,
}

/// Why an attestation is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is longer than any that is made.
    #[error("the attestation has {bytes} bytes and at most {limit} are read; ask for fewer shards at a time")]
    TooLong {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// It is no DSSE envelope as we write it.
    #[error("this is no attestation: {reason}; ask the daemon for another")]
    Envelope {
        /// What is wrong with it.
        reason: Box<str>,
    },
    /// It says what an attestation says in another spelling.
    #[error("the attestation is not written in its one canonical form: it was changed on its way; ask for another")]
    NotCanonical,
    /// It does not have just one signature.
    #[error("the attestation has {count} signatures and must have one; ask for another")]
    Signatures {
        /// How many there are.
        count: usize,
    },
    /// None of the policy's keys is the one that signed.
    #[error("the attestation was signed with the key {key_id}, which the policy does not name; trust nothing it says")]
    UnknownKey {
        /// The key that is said to have signed.
        key_id: KeyId,
    },
    /// The signature is not that key's for these bytes.
    #[error(
        "the signature is not that of the key {key_id}: the attestation was changed or forged; trust nothing it says"
    )]
    Signature {
        /// The key that is said to have signed.
        key_id: KeyId,
    },
    /// What was signed is no statement as we write it.
    #[error("what was signed is no statement that this program understands: {reason}; check it with a newer one")]
    Statement {
        /// What is wrong with it.
        reason: Box<str>,
    },
    /// It answers another question.
    #[error("the attestation answers the nonce {found} and {asked} was asked: it is an old one; ask again")]
    Nonce {
        /// The nonce in it.
        found: Nonce,
        /// The nonce that was asked.
        asked: Nonce,
    },
    /// It is too old.
    #[error(
        "the {what} is {:.1} s old and {} s are allowed; ask for another", .age.as_secs_f64(), .max_age.as_secs_f64()
    )]
    Stale {
        /// What is too old.
        what: Box<str>,
        /// Its age.
        age: Duration,
        /// The age allowed.
        max_age: Duration,
    },
    /// It comes from the future.
    #[error(
        "the {what} lies {:.1} s ahead of this machine's clock and {} s are allowed; set the clocks",
        .ahead.as_secs_f64(), .max_skew.as_secs_f64()
    )]
    Future {
        /// What lies ahead.
        what: Box<str>,
        /// How far.
        ahead: Duration,
        /// How far it may.
        max_skew: Duration,
    },
    /// A subject is no model that the policy names.
    #[error(
        "the bytes of '{name}' are {digest}, which the policy does not allow: they are not the weights that were \
         approved; trust nothing that they answer"
    )]
    Digest {
        /// The subject's name.
        name: Box<str>,
        /// What it is.
        digest: Box<str>,
    },
    /// The policy names it by a hash that was not computed where it is resident.
    #[error(
        "the attestation has no SHA-256 of '{name}', so it cannot be held against the policy; name its BLAKE3 in the \
         policy (b3sum FILE), or load it with a manifest by SHA-256"
    )]
    NoSha256 {
        /// The subject's name.
        name: Box<str>,
    },
    /// A model that the policy asks for is not attested.
    #[error("{digest} must be resident and is not attested; ask for every shard")]
    Missing {
        /// What is missing.
        digest: Box<str>,
    },
    /// The bytes are in memory that the policy does not take for good enough.
    #[error("'{name}' is {found} and must be {required} at least; change the worker's memory or the policy")]
    Residency {
        /// The subject's name.
        name: Box<str>,
        /// Where it is.
        found: Residency,
        /// Where it must be.
        required: Residency,
    },
    /// The bytes are not protected as the policy asks.
    #[error("the protection of '{name}' is {found} and must be {required} at least; change the worker or the policy")]
    Protection {
        /// The subject's name.
        name: Box<str>,
        /// What there is.
        found: Protection,
        /// What must be.
        required: Protection,
    },
    /// Another worker holds them.
    #[error("the worker is '{found}', which the policy does not name; ask one that it names")]
    Worker {
        /// Who it is.
        found: Box<str>,
    },
    /// Another device holds some of them.
    #[error("the device {found} holds shards and the policy does not name it; ask about shards on those that it names")]
    Device {
        /// Which it is.
        found: DeviceUuid,
    },
    /// The audit log is not one that the policy names.
    #[error("the audit log is {found} and the policy asks for a signed one that it names; change the worker's log")]
    Log {
        /// What it is.
        found: Box<str>,
    },
}

/// An attestation that is believed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Checked {
    /// What it says.
    pub statement: Statement,
    /// The key that signed it.
    pub key_id: KeyId,
    /// How old it is.
    pub age: Duration,
}

/// Checks the bytes of an attestation: first form and signature, then what it says. `nonce` is the one that was asked,
/// where one was; `now_ns` is the time of day in nanoseconds since 1970.
///
/// # Errors
/// The first reason not to believe it.
pub fn check(bytes: &[u8], policy: &Policy, nonce: Option<&Nonce>, now_ns: u64) -> Result<Checked, Refusal> {
    let envelope = Envelope::parse(bytes)?;
    let statement = Statement::parse(envelope.verified(&policy.keys)?)?;
    let predicate = &statement.predicate;
    if let Some(asked) = nonce.filter(|nonce| **nonce != predicate.nonce) {
        return Err(Refusal::Nonce { found: predicate.nonce.clone(), asked: asked.clone() });
    }
    let age = policy.age("attestation", predicate.attested_at, now_ns)?;
    let is_one_of = |list: &[String], name: &String| list.is_empty() || list.contains(name);
    if !is_one_of(&policy.workers, &predicate.worker_id) {
        return Err(Refusal::Worker { found: predicate.worker_id.as_str().into() });
    }
    let is_named = |uuid| policy.devices.is_empty() || policy.devices.contains(uuid);
    if let Some(device) = predicate.devices.iter().find(|device| !is_named(&device.uuid)) {
        return Err(Refusal::Device { found: device.uuid });
    }
    let log = predicate.audit_log.as_ref().and_then(|log| log.checkpoint.as_ref());
    match log {
        _ if policy.log_origins.is_empty() => {}
        None => return Err(Refusal::Log { found: "not signed".into() }),
        Some(log) if !policy.log_origins.contains(&log.origin) => {
            return Err(Refusal::Log { found: format!("'{}'", log.origin).into() });
        }
        Some(_) => {}
    }
    for (subject, shard) in statement.subject.iter().zip(&predicate.shards) {
        policy.allows(subject, shard, now_ns)?;
    }
    if policy.complete {
        let is_there = |digest: &&Expected| statement.subject.iter().any(|subject| is_of(subject, digest));
        if let Some(missing) = policy.digests.iter().find(|digest| !is_there(digest)) {
            return Err(Refusal::Missing { digest: missing.to_string().into() });
        }
    }
    Ok(Checked { key_id: envelope.key_id(), age, statement })
}

impl Policy {
    fn age(&self, what: &str, at_ns: u64, now_ns: u64) -> Result<Duration, Refusal> {
        let ahead = Duration::from_nanos(at_ns.saturating_sub(now_ns));
        let age = Duration::from_nanos(now_ns.saturating_sub(at_ns));
        if ahead > self.max_skew {
            Err(Refusal::Future { what: what.into(), ahead, max_skew: self.max_skew })
        } else if age > self.max_age {
            Err(Refusal::Stale { what: what.into(), age, max_age: self.max_age })
        } else {
            Ok(age)
        }
    }

    fn allows(&self, subject: &Subject, shard: &ShardFacts, now_ns: u64) -> Result<(), Refusal> {
        let name = || subject.name.as_str().into();
        if !self.digests.iter().any(|digest| is_of(subject, digest)) {
            let asks_sha256 = self.digests.iter().any(|digest| matches!(digest, Expected::Sha256(_)));
            if asks_sha256 && subject.digest.sha256.is_none() {
                return Err(Refusal::NoSha256 { name: name() });
            }
            return Err(Refusal::Digest { name: name(), digest: subject.digest.blake3.to_string().into() });
        }
        if residency_rank(shard.residency) < residency_rank(self.residency) {
            return Err(Refusal::Residency { name: name(), found: shard.residency, required: self.residency });
        }
        if protection_rank(shard.protection) < protection_rank(self.protection) {
            return Err(Refusal::Protection { name: name(), found: shard.protection, required: self.protection });
        }
        self.age(&format!("verification of '{}'", subject.name), shard.verified_at, now_ns).map(|_| ())
    }
}

fn is_of(subject: &Subject, digest: &Expected) -> bool {
    match digest {
        Expected::Blake3(digest) => subject.digest.blake3 == *digest,
        Expected::Sha256(digest) => subject.digest.sha256 == Some(*digest),
    }
}

/// The more, the harder it is to get at the bytes.
const fn residency_rank(residency: Residency) -> u8 {
    match residency {
        Residency::HostPageable => 0,
        Residency::HostLocked => 1,
        Residency::Vram => 2,
    }
}

const fn protection_rank(protection: Protection) -> u8 {
    match protection {
        Protection::Advisory => 0,
        Protection::ReadOnly => 1,
    }
}
