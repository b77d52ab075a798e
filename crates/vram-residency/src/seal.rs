//! Seals: what is signed, its canonical bytes, the key, the signature.
//!
//! A seal states that a shard with this digest became resident on this device at this time. Its record is
//!
//! ```text
//! field 0 … field 13, signature          each as: u32 little-endian length, then that many bytes
//! ```
//!
//! with the fields in one fixed order, the first of them the domain `vram-residency/seal/v1`, and the signature
//! HMAC-SHA256 over everything in front of it. There is exactly one encoding of a seal; anything else is refused.
//! `docs/format.md` gives every byte, with test vectors.

use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::device::{DeviceKind, DeviceUuid, Protection, Residency};
use crate::digest::{Digest, fmt_hex};
use crate::shard_id::ShardId;

/// The first field of every seal record: what the signature is about, and the format's version.
pub const DOMAIN: &str = "vram-residency/seal/v1";

/// The first field of what vouches for a pair of hashes, so that it cannot be taken for a seal.
const PAIR_DOMAIN: &str = "vram-residency/pair/v1";

/// Fewest bytes of a secret that a key may be derived from.
pub const MIN_SECRET: usize = 32;
/// Most bytes of a secret that a key may be derived from.
pub const MAX_SECRET: usize = 1024;
/// Most bytes of a worker id and of a model reference.
pub const MAX_TEXT: usize = 4096;

const FIELDS: usize = 14;
const SIGNATURE_BYTES: usize = 32;

/// What a seal states.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a new field is a new format version")]
pub struct Statement<T> {
    /// The shard's name.
    pub shard_id: ShardId,
    /// Who holds it: at most [`MAX_TEXT`] bytes.
    pub worker_id: T,
    /// Where it is resident.
    pub device_kind: DeviceKind,
    /// On which device of that kind.
    pub device_uuid: DeviceUuid,
    /// Its length in bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes, taken from the device's memory.
    pub digest: Digest,
    /// Digest of its tensor table: names, types, shapes and places of the tensors.
    pub table_digest: Digest,
    /// Which model it belongs to, as the caller calls it: at most [`MAX_TEXT`] bytes.
    pub model_ref: T,
    /// Which of the model's shards this is, from 0.
    pub shard_index: u32,
    /// How many shards the model has.
    pub shard_count: u32,
    /// When it was sealed: nanoseconds since 1970-01-01 UTC by the wall clock.
    pub sealed_at_ns: u64,
    /// Where the bytes were.
    pub residency: Residency,
    /// What stopped a write.
    pub protection: Protection,
}

/// HMAC-SHA256 over a statement's canonical bytes. Compared in constant time.
#[derive(Clone, Copy)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    /// The signature with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; SIGNATURE_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0
    }
}

impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for Signature {}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

/// The worker's sealing key: derived, never stored by this crate, never shown, wiped when dropped.
///
/// It is symmetric: whoever holds it can check seals and forge them. Third parties rely on the audit log instead.
#[derive(Clone)]
pub struct SealKey {
    /// 32 bytes of key and 32 zeros, as HMAC pads it to the block of SHA-256. On the heap, so that moving a key leaves
    /// no copies behind.
    block: Arc<Zeroizing<[u8; 64]>>,
    id: [u8; 8],
}

/// The key's parts stay where they are.
impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(")?;
        fmt_hex(&self.id, f)?;
        f.write_str(", …)")
    }
}

/// No key could be derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a seal key is derived from {MIN_SECRET} to {MAX_SECRET} bytes of secret, not from {length}")]
pub struct SecretLengthError {
    /// Bytes that were given.
    pub length: usize,
}

impl SealKey {
    /// Derives the key of a worker from a secret: HKDF-SHA256, with a label of our own and the worker's id, so that
    /// the same secret gives every worker and every other use another key.
    ///
    /// # Errors
    /// [`SecretLengthError`] where the secret is shorter than 32 or longer than 1024 bytes.
    pub fn derive(secret: &[u8], worker_id: &str) -> Result<Self, SecretLengthError> {
        let wrong = SecretLengthError { length: secret.len() };
        if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
            return Err(wrong);
        }
        let source = Hkdf::<Sha256>::new(Some(b"vram-residency"), secret);
        let mut block = Arc::new(Zeroizing::new([0; 64]));
        let mut id = [0; 8];
        let (key, _padding) = Arc::get_mut(&mut block).ok_or(wrong)?.split_at_mut(32);
        source.expand_multi_info(&[b"seal key v1\0", worker_id.as_bytes()], key).map_err(|_| wrong)?;
        source.expand_multi_info(&[b"seal key id v1\0", worker_id.as_bytes()], &mut id).map_err(|_| wrong)?;
        Ok(Self { block, id })
    }

    /// Eight bytes that name the key and tell nothing about it.
    #[must_use]
    pub const fn id(&self) -> [u8; 8] {
        self.id
    }

    /// Signs a statement. Allocates nothing.
    #[must_use]
    pub fn sign<T: AsRef<str>>(&self, statement: &Statement<T>) -> Signature {
        Signature(self.mac(|sink| statement.encode(sink)))
    }

    /// Whether the signature is this key's for the statement. Constant time, allocates nothing.
    #[must_use]
    pub fn verify<T: AsRef<str>>(&self, statement: &Statement<T>, signature: &Signature) -> bool {
        self.sign(statement) == *signature
    }

    /// Vouches for two hashes of the same bytes: HMAC-SHA256 over domain, SHA-256, digest and length, each with its own
    /// length in front.
    pub(crate) fn pair_tag(&self, sha256: &[u8; 32], digest: &Digest, bytes: u64) -> [u8; 32] {
        self.mac(|sink| {
            for field in [PAIR_DOMAIN.as_bytes(), sha256, digest.as_bytes(), &bytes.to_le_bytes()] {
                sink(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes());
                sink(field);
            }
        })
    }

    fn mac(&self, encode: impl FnOnce(&mut dyn FnMut(&[u8]))) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new((&**self.block).into());
        encode(&mut |bytes| mac.update(bytes));
        mac.finalize().into_bytes().into()
    }
}

impl<T: AsRef<str>> Statement<T> {
    /// Puts the canonical bytes into `sink`, piece by piece. Allocates nothing.
    fn encode(&self, sink: &mut dyn FnMut(&[u8])) {
        let mut field = |bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            sink(&length.to_le_bytes());
            sink(bytes);
        };
        field(DOMAIN.as_bytes());
        field(self.shard_id.as_str().as_bytes());
        field(self.worker_id.as_ref().as_bytes());
        field(self.device_kind.as_str().as_bytes());
        field(&self.device_uuid.0);
        field(&self.bytes.to_le_bytes());
        field(self.digest.as_bytes());
        field(self.table_digest.as_bytes());
        field(self.model_ref.as_ref().as_bytes());
        field(&self.shard_index.to_le_bytes());
        field(&self.shard_count.to_le_bytes());
        field(&self.sealed_at_ns.to_le_bytes());
        field(self.residency.as_str().as_bytes());
        field(self.protection.as_str().as_bytes());
    }

    /// The whole record, piece by piece.
    fn encode_signed(&self, signature: &Signature, sink: &mut dyn FnMut(&[u8])) {
        self.encode(sink);
        sink(&(SIGNATURE_BYTES as u32).to_le_bytes());
        sink(&signature.0);
    }

    /// The record in hex, formatted only where it is written.
    pub(crate) fn record_hex<'a>(&'a self, signature: &'a Signature) -> impl fmt::Display + 'a {
        RecordHex { statement: self, signature }
    }

    /// The statement and its signature as a record: the bytes that others keep and present again.
    #[must_use]
    pub fn to_record(&self, signature: &Signature) -> Vec<u8> {
        let mut record = Vec::new();
        self.encode_signed(signature, &mut |bytes| record.extend_from_slice(bytes));
        record
    }
}

/// A record that is formatted piece by piece.
struct RecordHex<'a, T> {
    statement: &'a Statement<T>,
    signature: &'a Signature,
}

impl<T: AsRef<str>> fmt::Display for RecordHex<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut outcome = Ok(());
        self.statement.encode_signed(self.signature, &mut |bytes| outcome = outcome.and_then(|()| fmt_hex(bytes, f)));
        outcome
    }
}

/// Bytes that are not a seal record. Says which field, counted from 0, and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a seal record: field {field} at byte {offset} is {problem}")]
pub struct RecordError {
    /// The field's number; 14 is the signature, 15 is what follows it.
    pub field: usize,
    /// Where the field's length starts.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Reads a record: strict, borrowed, without allocating. The signature is not checked here; see [`SealKey::verify`].
///
/// # Errors
/// [`RecordError`] for the first field that is not as [`Statement::to_record`] writes it.
pub fn parse_record(record: &[u8]) -> Result<(Statement<&str>, Signature), RecordError> {
    let mut fields = Fields { rest: record, offset: 0, start: 0, field: 0 };
    if fields.text(DOMAIN.len())? != DOMAIN {
        return Err(fields.wrong("of another format or version"));
    }
    let shard_id = fields.text(crate::shard_id::MAX_SHARD_ID)?;
    let shard_id = ShardId::new(shard_id).map_err(|_| fields.wrong("no shard id"))?;
    let worker_id = fields.name()?;
    let device_kind = fields.one_of(&DeviceKind::ALL, DeviceKind::as_str)?;
    let device_uuid = DeviceUuid(fields.array()?);
    let bytes = u64::from_le_bytes(fields.array()?);
    let digest = Digest::from_bytes(fields.array()?);
    let table_digest = Digest::from_bytes(fields.array()?);
    let model_ref = fields.name()?;
    let shard_index = u32::from_le_bytes(fields.array()?);
    let shard_count = u32::from_le_bytes(fields.array()?);
    let sealed_at_ns = u64::from_le_bytes(fields.array()?);
    let residency = fields.one_of(&Residency::ALL, Residency::as_str)?;
    let protection = fields.one_of(&[Protection::ReadOnly, Protection::Advisory], Protection::as_str)?;
    let signature = Signature(fields.array()?);
    if !fields.rest.is_empty() {
        return Err(RecordError { field: FIELDS.saturating_add(1), offset: fields.offset, problem: "one too many" });
    }
    let statement = Statement {
        shard_id,
        worker_id,
        device_kind,
        device_uuid,
        bytes,
        digest,
        table_digest,
        model_ref,
        shard_index,
        shard_count,
        sealed_at_ns,
        residency,
        protection,
    };
    Ok((statement, signature))
}

struct Fields<'a> {
    rest: &'a [u8],
    /// Where the next field starts.
    offset: usize,
    /// Where the field that was just read starts.
    start: usize,
    /// Which field is next.
    field: usize,
}

impl<'a> Fields<'a> {
    fn next(&mut self, most: usize) -> Result<&'a [u8], RecordError> {
        let cut = RecordError { field: self.field, offset: self.offset, problem: "cut off" };
        let (length, rest) = self.rest.split_first_chunk::<4>().ok_or(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > most {
            return Err(RecordError { problem: "too long", ..cut });
        }
        let (value, rest) = rest.split_at_checked(length).ok_or(cut)?;
        self.rest = rest;
        self.start = self.offset;
        self.offset = self.offset.saturating_add(4).saturating_add(length);
        self.field = self.field.saturating_add(1);
        Ok(value)
    }

    fn text(&mut self, most: usize) -> Result<&'a str, RecordError> {
        let value = self.next(most)?;
        std::str::from_utf8(value).map_err(|_| self.wrong("not UTF-8"))
    }

    fn name(&mut self) -> Result<&'a str, RecordError> {
        let name = self.text(MAX_TEXT)?;
        if name.is_empty() { Err(self.wrong("empty")) } else { Ok(name) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let value = self.next(N)?;
        value.try_into().map_err(|_| self.wrong("too short"))
    }

    fn one_of<V: Copy>(&mut self, values: &[V], name: impl Fn(V) -> &'static str) -> Result<V, RecordError> {
        let text = self.text(64)?;
        values.iter().copied().find(|value| name(*value) == text).ok_or_else(|| self.wrong("an unknown name"))
    }

    /// An error about the field that was just read.
    fn wrong(&self, problem: &'static str) -> RecordError {
        RecordError { field: self.field.saturating_sub(1), offset: self.start, problem }
    }
}
