//! What can happen.

use std::fmt;

use audit_logging::Severity;
use serde::Serialize;

use crate::damage::{DamageKind, TensorsInBlock};
use crate::device::{CudaFacts, Protection, Residency, SuspectedPaged};
use crate::digest::Digest;
use crate::shard_id::ShardId;

/// What happened. Sizes are in bytes, times in nanoseconds.
#[derive(Clone, Copy, Serialize)]
#[serde(tag = "event")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named in full, and docs/format.md tells each one's meaning")]
pub enum AuditEvent<'a> {
    /// A GPU was opened: what it is, and what drives it.
    DeviceOpened {
        #[serde(flatten)]
        facts: &'a CudaFacts,
    },
    /// Memory was reserved and mapped for a shard.
    VramAllocated { shard_id: &'a ShardId, requested_bytes: u64, used_bytes: u64, available_bytes: u64 },
    /// It could not be.
    VramAllocationFailed { shard_id: &'a ShardId, requested_bytes: u64, available_bytes: u64, reason: Text<'a> },
    /// A shard was sealed; `seal` is the whole seal record in hex.
    VramSealed {
        shard_id: &'a ShardId,
        model_ref: &'a str,
        shard_index: u32,
        shard_count: u32,
        bytes: u64,
        digest: Digest,
        table_digest: Digest,
        residency: Residency,
        protection: Protection,
        seal: Text<'a>,
    },
    /// Every byte of a shard was found as sealed.
    SealVerified {
        shard_id: &'a ShardId,
        bytes: u64,
        digest: Digest,
        duration_ns: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        suspected_paged: Option<SuspectedPaged>,
    },
    /// It was not, or the seal itself is not ours. The suspect window begins at `suspect_from_ns`, the last time at which
    /// the damaged block was found as sealed, and ends with this record. Before any source was read, all that can be said is which
    /// `tensors` have bytes in the first block, and which `tensor` where the whole block is of one. `writable_since_ns` is there where others can write
    /// to the memory, because it was handed to them so.
    SealVerificationFailed {
        shard_id: &'a ShardId,
        reason: Text<'a>,
        expected: Digest,
        actual: Option<Digest>,
        damaged_blocks: u64,
        first_block: Option<u64>,
        tensor: Option<&'a str>,
        tensors: Option<&'a TensorsInBlock>,
        suspect_from_ns: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        writable_since_ns: Option<u64>,
        action: &'static str,
    },
    /// A shard's memory was given back.
    VramDeallocated { shard_id: &'a ShardId, freed_bytes: u64, used_bytes: u64, available_bytes: u64 },
    /// A rule was broken.
    PolicyViolation { shard_id: &'a ShardId, policy: &'static str, violation: Text<'a>, action: &'static str },
    /// A damaged block is about to be overwritten with bytes of the source that match the seal.
    RepairStarted {
        shard_id: &'a ShardId,
        block: u64,
        tensor: Option<&'a str>,
        first_byte: u64,
        differing_bytes: u64,
        differing_bits: u64,
        damage: DamageKind,
        suspect_from_ns: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        writable_since_ns: Option<u64>,
    },
    /// It was overwritten, read back and found as sealed.
    BlockRepaired { shard_id: &'a ShardId, block: u64 },
    /// It could not be repaired; the shard stays quarantined.
    RepairFailed { shard_id: &'a ShardId, block: Option<u64>, reason: Text<'a> },
    /// What is known of a damaged block that is not repaired. Without a source nothing is known of single bytes.
    DamageDescribed {
        shard_id: &'a ShardId,
        block: u64,
        tensor: Option<&'a str>,
        first_byte: Option<u64>,
        differing_bytes: Option<u64>,
        differing_bits: Option<u64>,
        damage: DamageKind,
        suspect_from_ns: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        writable_since_ns: Option<u64>,
    },
    /// A block was read wrongly once, and as sealed when it was read again, twice and by two ways.
    MismatchNotConfirmed { shard_id: &'a ShardId, block: u64 },
    /// The fingerprint of a shard's bytes, under a key that the device had only once before, when it computed what to compare
    /// with, is as it was then. Says nothing of the seal.
    FingerprintMatched { shard_id: &'a ShardId, bytes: u64, duration_ns: u64, keys_left: u32 },
    /// It was another, and a full verification at once found every byte as sealed. Counts as no check.
    FingerprintNotConfirmed { shard_id: &'a ShardId },
    /// The continuous check began. The last two are there where fingerprints are checked between hashes: how often, and with how many
    /// keys for each shard.
    ScrubStarted {
        period_ns: u64,
        budget: Text<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recheck_ns: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        recheck_keys: Option<u16>,
    },
    /// It ended, or died.
    ScrubStopped { reason: &'a str },
    /// Every block of a shard was found as sealed, one by one, between `started_ns` and now.
    ScrubPassed { shard_id: &'a ShardId, digest: Digest, blocks: u64, bytes: u64, started_ns: u64, duration_ns: u64 },
    /// No check of a shard's oldest block for so long that nothing can be said about it any more.
    VerificationLate { shard_id: &'a ShardId, oldest_age_ns: u64, period_ns: u64 },
    /// Every block of that shard was checked in time again.
    VerificationResumed { shard_id: &'a ShardId, oldest_age_ns: u64 },
    /// Faults keep coming back: nothing on this device is trusted any more.
    DeviceQuarantined { reason: Text<'a> },
    /// A shard's seal was given up on purpose, so that its bytes may be changed.
    ShardUnsealed { shard_id: &'a ShardId, digest: Digest, reason: &'a str },
    /// It was sealed again, with these bytes instead of those.
    ShardResealed { shard_id: &'a ShardId, previous: Digest, digest: Digest, reason: &'a str },
    /// A service that keeps shards began its work.
    ServiceStarted { version: &'a str },
    /// It ended it in good order.
    ServiceStopped { reason: &'a str },
    /// Somebody with access to the manager is about to damage a bit on purpose, to see that it is found.
    FaultInjected { shard_id: &'a ShardId, byte: u64, bit: u8 },
    /// The log could not be opened until now, and so many records before this one are lost.
    RecordsLost { count: u64, reason: Text<'a> },
    /// A file is what a manifest approves, and is about to be sealed. `pair` vouches for both hashes, where both are known.
    ShardApproved {
        shard_id: &'a ShardId,
        manifest: Digest,
        form: &'static str,
        signer: Option<Text<'a>>,
        bytes: u64,
        digest: Digest,
        sha256: Option<Text<'a>>,
        pair: Option<Text<'a>>,
        remembered: bool,
    },
    /// A manifest approves nothing, or not this. Recorded before it is refused.
    ApprovalRefused { policy: &'static str, manifest: Option<Digest>, reason: Text<'a>, action: &'static str },
    /// The worker's word about its shards was signed, and is about to be handed out.
    AttestationMade { nonce: Text<'a>, envelope: Digest, shards: u64, key: Text<'a> },
    /// Somebody with access to the service's control socket ordered something. Recorded before it is done.
    OperatorCommand {
        command: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        shard_id: Option<&'a ShardId>,
    },
    /// Another process was handed a shard's memory: for reading only, unless `writable` is there. With `held_ns` that was so long
    /// ago, and is recorded again because the first record may be lost.
    ShardAttached {
        shard_id: &'a ShardId,
        digest: Digest,
        client: u64,
        lease: u64,
        #[serde(skip_serializing_if = "is_false")]
        writable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        held_ns: Option<u64>,
    },
    /// What stops a write to a shard is less than it was, from now on and for as long as its memory is resident.
    ProtectionLowered { shard_id: &'a ShardId, digest: Digest, from: Protection, to: Protection, reason: &'static str },
    /// Its lease is over.
    ShardDetached { shard_id: &'a ShardId, digest: Digest, client: u64, lease: u64, held_ns: u64, reason: &'static str },
    /// Another process asked for a shard's memory and was refused, or was not even heard.
    AttachRefused {
        #[serde(skip_serializing_if = "Option::is_none")]
        shard_id: Option<&'a ShardId>,
        code: &'static str,
        reason: &'a str,
        /// Others like it since the record before, which have none of their own.
        #[serde(skip_serializing_if = "is_zero")]
        unrecorded: u64,
    },
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl AuditEvent<'_> {
    /// Critical events are on disk before the call that emits them returns.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::SealVerificationFailed { .. }
            | Self::PolicyViolation { .. }
            | Self::RepairStarted { .. }
            | Self::BlockRepaired { .. }
            | Self::RepairFailed { .. }
            | Self::DamageDescribed { .. }
            | Self::VerificationLate { .. }
            | Self::DeviceQuarantined { .. }
            | Self::ShardUnsealed { .. }
            | Self::ShardResealed { .. }
            | Self::ProtectionLowered { .. }
            | Self::ScrubStopped { .. }
            | Self::RecordsLost { .. }
            | Self::OperatorCommand { .. }
            | Self::ApprovalRefused { .. }
            | Self::AttestationMade { .. }
            | Self::FaultInjected { .. } => Severity::Critical,
            Self::DeviceOpened { .. }
            | Self::VramAllocated { .. }
            | Self::VramAllocationFailed { .. }
            | Self::VramSealed { .. }
            | Self::SealVerified { .. }
            | Self::MismatchNotConfirmed { .. }
            | Self::FingerprintMatched { .. }
            | Self::FingerprintNotConfirmed { .. }
            | Self::ScrubStarted { .. }
            | Self::ScrubPassed { .. }
            | Self::VerificationResumed { .. }
            | Self::ShardApproved { .. }
            | Self::ServiceStarted { .. }
            | Self::ServiceStopped { .. }
            | Self::ShardAttached { .. }
            | Self::ShardDetached { .. }
            | Self::AttachRefused { .. }
            | Self::VramDeallocated { .. } => Severity::Routine,
        }
    }
}

/// Something that is written as text, formatted straight into the record.
#[derive(Clone, Copy)]
pub struct Text<'a>(pub &'a dyn fmt::Display);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}
