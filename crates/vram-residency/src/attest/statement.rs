//! What is attested: an in-toto Statement, version 1, with a predicate of our own. `docs/attestation.md` tells every field.
//!
//! There is one text for a statement. It is read strictly and written again; where the two differ, it is refused. So
//! nothing in it goes unread: no unknown field, no field twice, no number or time in another spelling.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_SUBJECTS, Refusal, hex};
use crate::device::{DeviceKind, DeviceUuid, Protection, Residency};
use crate::digest::Digest;
use crate::shard_id::ShardId;

/// The statement's type.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The predicate's type.
pub const PREDICATE_TYPE: &str = "urn:vram-residency:attestation:v2";

/// Fewest bytes of a nonce.
pub const MIN_NONCE: usize = 8;
/// Most bytes of a nonce.
pub const MAX_NONCE: usize = 64;

/// A number that whoever asks has chosen, so that an old answer is none: 8 to 64 bytes, written as lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(Vec<u8>);

/// The text is no nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is {} to {} lower-case hex digits, two for each byte; draw one with: openssl rand -hex 16", 2 * MIN_NONCE, 2 * MAX_NONCE)]
pub struct NonceError;

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, NonceError> {
        let bytes = hex::bytes(text).filter(|bytes| (MIN_NONCE..=MAX_NONCE).contains(&bytes.len()));
        bytes.map(Self).ok_or(NonceError)
    }
}

impl Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digest::hex(&self.0))
    }
}

/// The whole of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Statement {
    /// Always [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// The files whose bytes are resident, one for each shard.
    pub subject: Vec<Subject>,
    /// Always [`PREDICATE_TYPE`].
    pub predicate_type: String,
    /// What is said about them.
    pub predicate: Predicate,
}

/// A file, by name and digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Subject {
    /// The file's name, without directories.
    pub name: String,
    /// Its digests.
    pub digest: Digests,
}

/// Hashes of one file's bytes, in the names that in-toto gives the algorithms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Digests {
    /// BLAKE3, taken of the resident bytes just now.
    #[serde(serialize_with = "as_digest_hex", deserialize_with = "digest_hex")]
    pub blake3: Digest,
    /// SHA-256, where it was computed while these bytes were loaded, or remembered from such a load.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "as_sha256_hex",
        deserialize_with = "sha256_hex"
    )]
    pub sha256: Option<[u8; 32]>,
}

/// What is said about the subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Predicate {
    /// Chosen by whoever asked.
    #[serde(serialize_with = "as_text", deserialize_with = "text")]
    pub nonce: Nonce,
    /// When it was signed: nanoseconds since 1970 in memory, RFC 3339 in the text.
    #[serde(serialize_with = "as_time", deserialize_with = "time")]
    pub attested_at: u64,
    /// Who holds the shards.
    pub worker_id: String,
    /// What measured and signed.
    pub software: Software,
    /// Where the bytes are: each device that holds some, once, in the order in which the shards first name them.
    pub devices: Vec<DeviceFacts>,
    /// The shards, in the order of the subjects.
    pub shards: Vec<ShardFacts>,
    /// Where the audit log was then; null where there is none.
    pub audit_log: Option<LogPosition>,
}

/// What measured and signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Software {
    /// The program.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A device and what drives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct DeviceFacts {
    /// Which kind of memory it is.
    #[serde(serialize_with = "as_text", deserialize_with = "device_kind")]
    pub kind: DeviceKind,
    /// Which one it is.
    #[serde(serialize_with = "as_text", deserialize_with = "device_uuid")]
    pub uuid: DeviceUuid,
    /// What drives it.
    pub driver: Driver,
}

/// What drives a device, as it reports itself; for main memory the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct Driver {
    /// Its name, such as `Linux`.
    pub name: String,
    /// Its version, such as the kernel's release.
    pub version: String,
    /// The machine that it is for, such as `x86_64`.
    pub machine: String,
}

/// A shard, as it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct ShardFacts {
    /// Its name.
    #[serde(serialize_with = "as_text", deserialize_with = "shard_id")]
    pub shard_id: ShardId,
    /// Which model it belongs to, as the operator calls it.
    pub model_ref: String,
    /// Which of the model's shards it is, from 0.
    pub shard_index: u32,
    /// How many the model has.
    pub shard_count: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Digest of its tensor table.
    #[serde(serialize_with = "as_text", deserialize_with = "text")]
    pub tensor_table: Digest,
    /// The device that holds it: one of the statement's.
    #[serde(serialize_with = "as_text", deserialize_with = "device_uuid")]
    pub device: DeviceUuid,
    /// Where its bytes are, as measured.
    #[serde(serialize_with = "as_text", deserialize_with = "residency")]
    pub residency: Residency,
    /// What stops a write, as measured.
    #[serde(serialize_with = "as_text", deserialize_with = "protection")]
    pub protection: Protection,
    /// When it was sealed.
    #[serde(serialize_with = "as_time", deserialize_with = "time")]
    pub sealed_at: u64,
    /// When the verification ended that found every byte as sealed, for this attestation.
    #[serde(serialize_with = "as_time", deserialize_with = "time")]
    pub verified_at: u64,
}

/// Where an audit log was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct LogPosition {
    /// Number of the last record that was on disk: those of the verifications above are among them.
    pub sequence: u64,
    /// The newest checkpoint, where the log is signed.
    pub checkpoint: Option<CheckpointFacts>,
}

/// A checkpoint of a signed log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new predicate type")]
pub struct CheckpointFacts {
    /// The log's name.
    pub origin: String,
    /// Entries that it covers.
    pub size: u64,
    /// The root hash of its tree, in hex.
    #[serde(serialize_with = "as_hash_hex", deserialize_with = "hash_hex")]
    pub root: [u8; 32],
}

impl Statement {
    pub(crate) fn new(subject: Vec<Subject>, predicate: Predicate) -> Self {
        Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate,
        }
    }

    /// The one text of the statement.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        // Only texts and numbers into memory: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads that text, and nothing else. Whose it is must have been found out before.
    ///
    /// # Errors
    /// [`Refusal`]: the first thing that is not as [`Statement::to_text`] writes it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |reason: String| Refusal::Statement { reason: reason.into() };
        let types: Types = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        for (found, expected) in [(types.statement, STATEMENT_TYPE), (types.predicate, PREDICATE_TYPE)] {
            if found != expected {
                return Err(malformed(format!("it is of the type {found:?}, and this program reads {expected}")));
            }
        }
        let statement: Self = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let (subjects, shards) = (statement.subject.len(), statement.predicate.shards.len());
        if subjects != shards || !(1..=MAX_SUBJECTS).contains(&subjects) {
            return Err(malformed(format!("it has {subjects} subjects and {shards} shards; 1 to {MAX_SUBJECTS} each")));
        }
        statement.predicate.check_shards().map_err(malformed)?;
        statement.predicate.check_devices().map_err(malformed)?;
        if statement.to_text() == bytes { Ok(statement) } else { Err(Refusal::NotCanonical) }
    }
}

/// What says how the rest is to be read.
#[derive(Deserialize)]
struct Types {
    #[serde(rename = "_type")]
    statement: String,
    #[serde(rename = "predicateType")]
    predicate: String,
}

impl Predicate {
    /// Each shard is told of once, and is not said to be in a memory that its device is not. Else says what is wrong.
    fn check_shards(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for shard in &self.shards {
            if !seen.insert(shard.shard_id) {
                return Err(format!("it tells of the shard '{}' twice", shard.shard_id));
            }
            let kind = self.devices.iter().find(|device| device.uuid == shard.device).map(|device| device.kind);
            if kind == Some(DeviceKind::Host) && shard.residency == Residency::Vram {
                return Err(format!("it says that main memory holds the shard '{}' in a GPU's memory", shard.shard_id));
            }
        }
        Ok(())
    }

    /// The devices are those that the shards name, each once, in the order in which they first name them: for some shards
    /// there is one list. Else says what is wrong with it.
    fn check_devices(&self) -> Result<(), String> {
        let mut named: Vec<DeviceUuid> = Vec::new();
        for shard in &self.shards {
            if !named.contains(&shard.device) {
                named.push(shard.device);
            }
        }
        let listed: Vec<DeviceUuid> = self.devices.iter().map(|device| device.uuid).collect();
        if named == listed {
            return Ok(());
        }
        let mut seen = Vec::new();
        for device in &listed {
            if seen.contains(device) {
                return Err(format!("it lists the device {device} twice"));
            }
            seen.push(*device);
        }
        if let Some(device) = named.iter().find(|device| !listed.contains(device)) {
            return Err(format!("a shard is on the device {device}, which it does not list"));
        }
        if let Some(device) = listed.iter().find(|device| !named.contains(device)) {
            return Err(format!("it lists the device {device}, which holds none of its shards"));
        }
        Err("its devices are not in the order in which its shards first name them".to_owned())
    }
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// The value whose name stands there.
fn named<'de, D: Deserializer<'de>, T: Copy + Display>(deserializer: D, known: &[T]) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    let found = known.iter().find(|value| value.to_string() == name);
    found.copied().ok_or_else(|| serde::de::Error::custom(format_args!("'{name}' is not known here")))
}

fn device_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceKind, D::Error> {
    named(deserializer, &DeviceKind::ALL)
}

fn residency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Residency, D::Error> {
    named(deserializer, &Residency::ALL)
}

fn protection<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protection, D::Error> {
    named(deserializer, &[Protection::ReadOnly, Protection::Advisory])
}

fn shard_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShardId, D::Error> {
    ShardId::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn device_uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceUuid, D::Error> {
    let text = String::deserialize(deserializer)?;
    super::uuid(&text).ok_or_else(|| serde::de::Error::custom("this is no UUID"))
}

fn as_time<S: Serializer>(nanoseconds: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&jiff::Timestamp::from_nanosecond((*nanoseconds).into()).unwrap_or_default())
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let wrong = || serde::de::Error::custom("this is no time in RFC 3339 from 1970 on");
    let time: jiff::Timestamp = String::deserialize(deserializer)?.parse().map_err(|_| wrong())?;
    u64::try_from(time.as_nanosecond()).map_err(|_| wrong())
}

fn as_digest_hex<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    as_hash_hex(digest.as_bytes(), serializer)
}

fn digest_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    hash_hex(deserializer).map(Digest::from_bytes)
}

fn as_sha256_hex<S: Serializer>(digest: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    as_hash_hex(&digest.unwrap_or_default(), serializer)
}

fn sha256_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
    hash_hex(deserializer).map(Some)
}

fn as_hash_hex<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&crate::digest::hex(hash))
}

fn hash_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    hex::array(&text).ok_or_else(|| serde::de::Error::custom("this is not 64 lower-case hex digits"))
}
