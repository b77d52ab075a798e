//! What can go wrong at the front door.

use crate::audit::TrailError;
use crate::damage::TensorsInBlock;
use crate::device::{DeviceError, Foreign};
use crate::digest::{Digest, Expected, ParseDigestError};
use crate::model::ModelError;
use crate::policy::Violation;
use crate::seal::{RecordError, SecretLengthError};
use crate::shard::ShardState;
use crate::shard_id::{ShardId, ShardIdError};

/// Why an operation of the manager failed. Each text names the thing, the limit and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device could not do it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model file was refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text is no shard id.
    #[error(transparent)]
    ShardId(#[from] ShardIdError),
    /// The text is no digest.
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    /// The secret has a wrong length.
    #[error(transparent)]
    Secret(#[from] SecretLengthError),
    /// A name is empty or too long to be sealed.
    #[error("the {what} has {length} bytes; it must have 1 to {limit}")]
    Text {
        /// Which name.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A name holds a character that does not belong into records.
    #[error("the {what} has a control character at byte {position}; leave it out")]
    ControlCharacter {
        /// Which name.
        what: &'static str,
        /// Where, counted from 0.
        position: usize,
    },
    /// Shards are counted from 0, so the index is below the count.
    #[error("shard {index} of {count} does not exist; the index starts at 0 and is below the count")]
    Part {
        /// The index.
        index: u32,
        /// The count.
        count: u32,
    },
    /// Bytes have eight bits.
    #[error("a byte has no bit {bit}; bits are 0 to 7")]
    Bit {
        /// The bit asked for.
        bit: u8,
    },
    /// A resident shard has this id.
    #[error("a shard called '{shard_id}' is resident already; release it first or choose another id")]
    DuplicateShard {
        /// The id.
        shard_id: Box<ShardId>,
    },
    /// The shard belongs to another manager.
    #[error("the shard '{shard_id}' was sealed by another manager; ask that one")]
    ForeignShard {
        /// The id.
        shard_id: Box<ShardId>,
    },
    /// The bytes that arrived are not those that were expected. Nothing of them stays resident.
    #[error(
        "the bytes of '{shard_id}' are {actual} and {expected} was expected; nothing stays resident, get the file again"
    )]
    Unexpected {
        /// The shard that was to be.
        shard_id: Box<ShardId>,
        /// What was expected.
        expected: Expected,
        /// What arrived.
        actual: Expected,
    },
    /// The file was changed while it was loaded. Nothing of it stays resident.
    #[error(
        "the file of '{shard_id}' was changed while it was loaded; nothing stays resident, load it again when it is at rest"
    )]
    SourceChanged {
        /// The shard that was to be.
        shard_id: Box<ShardId>,
    },
    /// The policy forbids it.
    #[error("'{shard_id}' is not sealed: {violation}")]
    Policy {
        /// The shard that was to be.
        shard_id: Box<ShardId>,
        /// The rule that was broken.
        violation: Violation,
    },
    /// The shard's bytes or its seal are not what was sealed.
    #[error("'{shard_id}' failed verification: {cause}")]
    SealVerificationFailed {
        /// The shard.
        shard_id: Box<ShardId>,
        /// What was found.
        cause: VerifyFailure,
    },
    /// The shard failed a check before and has not been repaired.
    #[error("'{shard_id}' is quarantined after a failed check; repair it from its source or release it")]
    Quarantined {
        /// The shard.
        shard_id: Box<ShardId>,
    },
    /// A damaged block could not be repaired. The shard stays quarantined.
    #[error("block {block} of '{shard_id}' could not be repaired: {cause}")]
    RepairFailed {
        /// The shard.
        shard_id: Box<ShardId>,
        /// The block.
        block: u64,
        /// Why not.
        cause: RepairFailure,
    },
    /// Other clones of the shard are still held.
    #[error("'{shard_id}' is still in use by others who hold it; have them release it first")]
    InUse {
        /// The shard.
        shard_id: Box<ShardId>,
    },
    /// The bytes hold the header that the tensor table was read from.
    #[error(
        "'{shard_id}' can be changed from byte {data_start} on; what lies before describes the tensors: reseal from a file"
    )]
    Header {
        /// The shard.
        shard_id: Box<ShardId>,
        /// Where the first tensor begins.
        data_start: u64,
    },
    /// Faults kept coming back on the device.
    #[error("{device} is quarantined: {reason}; replace or reset it, then restart")]
    DeviceQuarantined {
        /// What the device is called.
        device: Box<str>,
        /// Which faults.
        reason: Box<str>,
    },
    /// The shard has no source that it could be repaired from.
    #[error("'{shard_id}' has no source to be repaired from; release it and load it again from its file")]
    NoSource {
        /// The shard.
        shard_id: Box<ShardId>,
    },
    /// A setting of the scrubber is out of bounds.
    #[error("the scrub {setting} is {value}; it must be {limit}")]
    Scrub {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        value: Box<str>,
        /// What it may be.
        limit: &'static str,
    },
    /// Nothing can be attested of a shard that is not known to be whole.
    #[error("'{shard_id}' is {} and nothing is attested of it; vram status and vram audit show tell why", state.as_str().to_uppercase())]
    NotAttested {
        /// The shard.
        shard_id: Box<ShardId>,
        /// Where it stands.
        state: ShardState,
    },
    /// No shards, or too many for one attestation.
    #[error("an attestation is about 1 to {limit} shards, not {shards}; name some of them")]
    Attestation {
        /// How many were asked for.
        shards: usize,
        /// How many there may be.
        limit: usize,
    },
    /// An attestation is one worker's word.
    #[error("'{one}' and '{other}' are two workers, and an attestation is the word of one; ask for one of each")]
    TwoWorkers {
        /// One of them.
        one: Box<str>,
        /// Another.
        other: Box<str>,
    },
    /// An attestation is on record in one place.
    #[error(
        "the managers of {one} and {other} have two audit trails, and an attestation is a record of one; \
         set them up with clones of one trail, or ask for an attestation of each"
    )]
    TwoTrails {
        /// What one's device is called.
        one: Box<str>,
        /// What another's is.
        other: Box<str>,
    },
    /// The record could not be kept, and the policy makes that fatal, or what it is about must not be done without it.
    #[error("the audit log did not keep the record, and without it this is not done: {0}")]
    Audit(TrailError),
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyFailure {
    /// Resident bytes differ from the sealed ones.
    #[error(
        "{damaged_blocks} of {blocks} block{} not as sealed, the first is block {first_block}{}; \
         the digest is {actual} and {expected} was sealed; repair it from its source",
        if *blocks == 1 { " is" } else if *damaged_blocks == 1 { "s is" } else { "s are" },
        tensors.as_ref().map(|tensors| format!(", which holds bytes of {tensors}")).unwrap_or_default()
    )]
    Damaged {
        /// Blocks that differ.
        damaged_blocks: u64,
        /// Blocks of the region.
        blocks: u64,
        /// The first that differs.
        first_block: u64,
        /// What that block holds.
        tensors: Option<Box<TensorsInBlock>>,
        /// The digest that was sealed.
        expected: Digest,
        /// The digest of what is there.
        actual: Digest,
    },
    /// The list of block values on the host no longer gives the sealed digest.
    #[error("the block values kept beside the seal were changed; seal the shard again")]
    BlockValues,
    /// The tensor table on the host no longer has the sealed digest.
    #[error("the tensor table kept beside the seal was changed; seal the shard again")]
    TensorTable,
    /// The signature is not this worker's.
    #[error("the seal's signature is not this worker's; the seal is forged, damaged or signed with another key")]
    Signature,
    /// The bytes presented are no seal record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A seal record with a good signature that does not describe this shard.
    #[error("the seal record is genuine and describes another shard, device or time; present this shard's own")]
    OtherShard,
    /// A check of single blocks found one whose bytes are not as sealed.
    #[error(
        "block {block}{} is not as sealed; repair it from its source",
        tensors.as_ref().map(|tensors| format!(", which holds bytes of {tensors},")).unwrap_or_default()
    )]
    Block {
        /// The block.
        block: u64,
        /// What it holds.
        tensors: Option<Box<TensorsInBlock>>,
    },
    /// The driver states that the memory is no longer what it was sealed as.
    #[error(
        "the driver states of the region that {foreign}; release the shard and seal it again, on another GPU if it recurs"
    )]
    Foreign {
        /// What it states.
        foreign: Foreign,
    },
    /// Residency or protection are worse than sealed.
    #[error("the memory is no longer as it was sealed: residency or protection was lost; seal the shard again")]
    Memory,
}

/// Why a block could not be repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairFailure {
    /// The source could not be read.
    #[error("its source cannot be read: {0}")]
    Source(ModelError),
    /// The source's bytes are not those that were sealed, so they were not written.
    #[error(
        "the source, as it was opened, no longer has the sealed bytes, so nothing was written; release the shard and load it from the original file"
    )]
    SourceDiffers,
    /// The device refused.
    #[error(transparent)]
    Device(DeviceError),
    /// The bytes were written and read back differently.
    #[error("what was read back is not what was written; the memory is faulty, release the shard and replace it")]
    ReadBack,
}

impl VerifyFailure {
    /// The first damaged block that is known, and what it holds.
    pub(crate) fn first_block(&self) -> Option<(u64, Option<&TensorsInBlock>)> {
        match self {
            Self::Damaged { first_block: block, tensors, .. } | Self::Block { block, tensors } => {
                Some((*block, tensors.as_deref()))
            }
            _ => None,
        }
    }

    /// How many blocks are known to be damaged.
    pub(crate) fn damaged_blocks(&self) -> u64 {
        match self {
            Self::Damaged { damaged_blocks, .. } => *damaged_blocks,
            Self::Block { .. } => 1,
            _ => 0,
        }
    }
}

impl Error {
    /// Whether the same call may succeed later, when memory is free.
    #[must_use]
    pub const fn is_retriable(&self) -> bool {
        match self {
            Self::Device(DeviceError::InsufficientMemory { .. } | DeviceError::System { .. }) => true,
            Self::Device(DeviceError::Cuda(error)) => !error.is_lost(),
            _ => false,
        }
    }

    /// Whether integrity is in question: the shard must not be used.
    #[must_use]
    pub const fn is_integrity(&self) -> bool {
        matches!(
            self,
            Self::Unexpected { .. }
                | Self::SourceChanged { .. }
                | Self::SealVerificationFailed { .. }
                | Self::Quarantined { .. }
                | Self::DeviceQuarantined { .. }
                | Self::RepairFailed { .. }
                | Self::NotAttested { .. }
        )
    }

    /// Whether the operation can never succeed as asked: an integrity failure or a broken rule.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        self.is_integrity() || matches!(self, Self::Policy { .. } | Self::Audit(_))
    }
}
