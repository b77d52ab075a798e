//! Attestations: the worker's signed word about what is resident, checked just before.
//!
//! ```text
//! verify every shard ─▶ Statement (in-toto v1, our predicate) ─▶ Envelope (DSSE, Ed25519) ─▶ record ─▶ handed out
//!                                                                          check(bytes, policy, nonce, now) elsewhere
//! ```
//!
//! An attestation answers a nonce, so that an old one is none. It is signed with a key of its own: not the seal key,
//! which is symmetric, and not the audit log's, whose signatures mean that something is in the log. Each one made is a
//! record of the audit log before it is handed out. What it proves is bounded by who holds that key: see
//! `docs/attestation.md`, which also tells every field.
#![forbid(unsafe_code)]

mod check;
pub mod envelope;
pub(crate) mod hex;
mod key;
pub mod statement;

pub use check::{Checked, Policy, Refusal, check};
pub use key::{AttestKey, KeyError, KeyId, PublicKey};
pub use statement::{Nonce, NonceError};

use crate::device::DeviceUuid;
use crate::digest::Digest;
use crate::manager::Verified;
use crate::shard::SealedShard;
use statement::{LogPosition, Software};

/// Most shards in one attestation.
pub const MAX_SUBJECTS: usize = 4096;

/// What is to be attested.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "all of it must be chosen")]
pub struct AttestRequest<'a> {
    /// Chosen by whoever asks.
    pub nonce: &'a Nonce,
    /// What measured and signs.
    pub software: Software,
    /// The shards, each verified just now.
    pub shards: &'a [Fresh],
}

/// A shard and the verification that was made for this attestation.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "all of it must be chosen")]
pub struct Fresh {
    /// The shard.
    pub shard: SealedShard,
    /// What a full verification found just now.
    pub verified: Verified,
    /// The name of its file, without directories.
    pub name: String,
}

/// An attestation, as it is handed out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attestation {
    /// The envelope: every byte of it counts.
    pub envelope: String,
    /// BLAKE3 of the envelope, as the audit log knows it.
    pub digest: Digest,
    /// Where the audit log was, as the statement says.
    pub audit_log: Option<LogPosition>,
}

/// Reads a UUID in its usual spelling.
#[must_use]
pub fn uuid(text: &str) -> Option<DeviceUuid> {
    let plain: String = text.chars().filter(|character| *character != '-').collect();
    let uuid = DeviceUuid(hex::array(&plain)?);
    (uuid.to_string() == text).then_some(uuid)
}
