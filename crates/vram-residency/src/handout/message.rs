//! What is said. One JSON object each, with its name in `type`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;
use crate::model::{Tensor, TensorTable};
use crate::shard::ShardState;

/// What a client asks for. Unknown names and fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
#[expect(clippy::exhaustive_enums, reason = "a new request is a new version")]
pub enum Request {
    /// Comes first.
    Hello {
        /// The version that the client speaks.
        version: u32,
    },
    /// What is there.
    List {},
    /// Hand out a shard in main memory: exactly one of the two says which.
    Attach {
        /// Its id, or the name of a model that has one shard only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shard: Option<String>,
        /// Its digest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
    },
    /// Hand out a shard in a GPU's memory, by a descriptor that allows writing. Of version 2.
    AttachCuda {
        /// As for [`Request::Attach`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shard: Option<String>,
        /// As for [`Request::Attach`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
    },
    /// A lease is given back.
    Release {
        /// Which.
        lease: u64,
    },
    /// From now on tell the states of this connection's leases, present and future.
    Watch {},
}

/// What came is no request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It is JSON of another shape, or none.
    #[error("a request is one JSON object")]
    NoObject,
    /// It is an object, and says nothing that is known.
    #[error("this is no request: {0}")]
    Unknown(serde_json::Error),
}

impl Request {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`RequestError`]: it is no object, or has a type or a field that is not known.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        // Lists would be taken for objects whose fields come in order.
        match body.trim_ascii_start() {
            [b'{', ..] => serde_json::from_slice(body).map_err(RequestError::Unknown),
            _ => Err(RequestError::NoObject),
        }
    }
}

/// What a daemon says. Clients skip fields that they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Answer {
    /// To `hello`.
    Hello {
        /// The version that is spoken from here on.
        version: u32,
        /// The daemon's software.
        software: String,
        /// Who holds the shards.
        worker_id: String,
        /// Within this time every block is checked, in nanoseconds.
        period_ns: u64,
    },
    /// To `list`.
    Shards {
        /// Those that this client may have.
        shards: Vec<ShardInfo>,
    },
    /// To `attach`; the descriptor travels with its first byte, and [`Answer::Tensors`] follows.
    Attached(Box<Attached>),
    /// To `attach-cuda`, in the same way.
    AttachedCuda(Box<AttachedCuda>),
    /// Follows [`Answer::Attached`] and [`Answer::AttachedCuda`].
    Tensors {
        /// In the order of their bytes; none for a raw file.
        tensors: Vec<TensorInfo>,
    },
    /// To `release`.
    Released {
        /// Which.
        lease: u64,
    },
    /// To `watch`.
    Watching {},
    /// How a lease's shard stands: after `watch`, at each change and at least once a second.
    State {
        /// Which lease.
        lease: u64,
        /// Where the shard stands.
        #[serde(with = "shown_state")]
        state: ShardState,
        /// Time since the last check of its oldest block, in nanoseconds.
        oldest_age_ns: u64,
        /// How often it was not to be relied on since it was sealed, however shortly.
        lapses: u64,
    },
    /// The daemon has given a shard up; the memory stays with the client, and nobody checks it any more.
    Ended {
        /// Which lease.
        lease: u64,
        /// Why.
        reason: String,
    },
    /// Why not. After some of these the daemon hangs up; see [`ErrorCode::is_final`].
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
    /// The daemon hangs up.
    Bye {
        /// Why.
        reason: String,
    },
}

/// A shard, as far as a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShardInfo {
    /// Its id.
    pub shard_id: String,
    /// The model that it belongs to.
    pub model_ref: String,
    /// Which of the model's shards it is, from 0.
    pub shard_index: u32,
    /// How many the model has.
    pub shard_count: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
    /// `host-locked`, `host-pageable` or `vram`.
    pub residency: String,
    /// What stops a write now: `read-only` or `advisory`.
    pub protection: String,
    /// Where it stands.
    #[serde(with = "shown_state")]
    pub state: ShardState,
    /// Time since the last check of its oldest block, in nanoseconds.
    pub oldest_age_ns: u64,
    /// How often it was not to be relied on since it was sealed, however shortly.
    pub lapses: u64,
}

impl ShardInfo {
    /// What is to be said of a shard.
    #[must_use]
    pub fn of(shard: &crate::SealedShard) -> Self {
        Self {
            shard_id: shard.shard_id().to_string(),
            model_ref: shard.model_ref().to_owned(),
            shard_index: shard.shard_index(),
            shard_count: shard.shard_count(),
            bytes: shard.bytes(),
            digest: shard.digest(),
            residency: shard.residency().as_str().to_owned(),
            protection: shard.protection().as_str().to_owned(),
            state: shard.state(),
            oldest_age_ns: u64::try_from(shard.oldest_age().as_nanos()).unwrap_or(u64::MAX),
            lapses: shard.lapses(),
        }
    }
}

/// A shard that is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "daemons make it")]
pub struct Attached {
    /// The number of the lease, unique while the daemon runs.
    pub lease: u64,
    /// Where the shard's first byte is in the descriptor's file: map from 0, and look from here.
    pub offset: u64,
    /// The shard.
    pub shard: ShardInfo,
    /// The seal record of `docs/format.md`, section 3, in hex.
    pub seal: String,
}

/// A shard in a GPU's memory that is handed out: an allocation of `cuMemCreate`, to be imported and mapped as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "daemons make it")]
pub struct AttachedCuda {
    /// The number of the lease, unique while the daemon runs.
    pub lease: u64,
    /// UUID of the GPU, which may have another number in another process.
    pub device: String,
    /// Bytes of the allocation.
    pub allocation_bytes: u64,
    /// Where the shard's first byte is in it.
    pub offset: u64,
    /// The shard.
    pub shard: ShardInfo,
    /// The seal record of `docs/format.md`, section 3, in hex.
    pub seal: String,
}

/// A tensor: `start` and `end` count from the shard's first byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name, unique in the shard.
    pub name: String,
    /// How its elements are stored, such as `BF16` or `Q4_K`.
    pub dtype: String,
    /// Its dimensions, in the order of the file.
    pub shape: Vec<u64>,
    /// Its first byte.
    pub start: u64,
    /// The first byte behind it.
    pub end: u64,
}

impl TensorInfo {
    /// The tensors of a table.
    #[must_use]
    pub fn all(table: &TensorTable) -> Vec<Self> {
        table.tensors().iter().map(Self::of).collect()
    }

    fn of(tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.to_string(),
            dtype: tensor.dtype.name().to_owned(),
            shape: tensor.shape.to_vec(),
            start: tensor.start,
            end: tensor.end,
        }
    }
}

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The client speaks a version that the daemon does not.
    Version,
    /// What came is no request, or came before `hello`.
    Malformed,
    /// A descriptor was sent to the daemon, which takes none.
    Descriptor,
    /// This user is not on the list.
    ForbiddenUser,
    /// This digest is not on the list.
    ForbiddenDigest,
    /// No such shard.
    UnknownShard,
    /// The model has several shards: ask for one of them.
    Ambiguous,
    /// The shard's seal was given up, to change it.
    Unsealed,
    /// A check of the shard failed, is late, or is not on record.
    NotVerified,
    /// No such lease on this connection.
    UnknownLease,
    /// So many leases on one connection are not given.
    TooManyLeases,
    /// So many connections are not taken.
    TooManyClients,
    /// The record of it could not be kept, and is required.
    NotRecorded,
    /// The memory cannot be handed out.
    Device,
    /// The request was not complete in time.
    Timeout,
    /// One that this version does not know.
    Other,
}

impl ErrorCode {
    /// Every code but [`ErrorCode::Other`].
    pub const ALL: [Self; 15] = [
        Self::Version,
        Self::Malformed,
        Self::Descriptor,
        Self::ForbiddenUser,
        Self::ForbiddenDigest,
        Self::UnknownShard,
        Self::Ambiguous,
        Self::Unsealed,
        Self::NotVerified,
        Self::UnknownLease,
        Self::TooManyLeases,
        Self::TooManyClients,
        Self::NotRecorded,
        Self::Device,
        Self::Timeout,
    ];

    /// As it is sent, and as metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Descriptor => "descriptor",
            Self::ForbiddenUser => "forbidden-user",
            Self::ForbiddenDigest => "forbidden-digest",
            Self::UnknownShard => "unknown-shard",
            Self::Ambiguous => "ambiguous",
            Self::Unsealed => "unsealed",
            Self::NotVerified => "not-verified",
            Self::UnknownLease => "unknown-lease",
            Self::TooManyLeases => "too-many-leases",
            Self::TooManyClients => "too-many-clients",
            Self::NotRecorded => "not-recorded",
            Self::Device => "device",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }

    /// Whether the daemon hangs up after it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Self::Version
                | Self::Malformed
                | Self::Descriptor
                | Self::ForbiddenUser
                | Self::TooManyClients
                | Self::Timeout
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::ALL.into_iter().find(|code| code.as_str() == text).unwrap_or(Self::Other))
    }
}

/// States in capitals, as everywhere. One that a client does not know is nothing that can be relied on.
pub mod shown_state {
    use super::{Deserialize, Deserializer, Serialize, Serializer, ShardState};

    /// As `VERIFIED` and so on.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(state: &ShardState, serializer: S) -> Result<S::Ok, S::Error> {
        state.serialize(serializer)
    }

    /// From that; [`ShardState::Unverified`] for an unknown one.
    ///
    /// # Errors
    /// Where it is no text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShardState, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = ShardState::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(&text));
        Ok(known.unwrap_or(ShardState::Unverified))
    }
}

/// Bytes as lower-case hex digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    crate::digest::hex(bytes)
}

/// Bytes from hex digits; none where it is something else.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some((nibble(*high)? << 4) | nibble(*low)?)).collect()
}
