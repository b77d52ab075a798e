//! Publishing a log while it is written: entry bundles, tiles and signed checkpoints, made from its durable records.
//!
//! [`Publisher::start`] takes a log and a key and runs a thread of its own. It follows the segment files as any reader
//! does, only up to [`Status::durable`](crate::Status::durable), and writes the published log into a directory of static
//! files. The thread that writes records never waits for it.
//!
//! What is signed is never taken back: the largest size ever signed is kept beside the key and is durable before a
//! checkpoint of that size is visible. A log that has become shorter, or other, than what was signed is *refused*: no
//! further checkpoint, a critical record in the log, and [`PublishStatus::refused`] says why.

mod engine;
mod growth;
mod keyfile;
mod prune;
mod publisher;
mod replay;
mod store;
mod tail;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub(crate) use engine::key_in;
pub use keyfile::{
    KeyFileError, SignedState, default_origin, generate, next_file, read_signed, read_signer, read_verifier,
    state_file, verifier_file,
};
pub use prune::{PruneError, PruneOptions, Pruned};
pub use publisher::Publisher;

use crate::tlog::note::{KeyError, VerifierKey};
use crate::tlog::tree::Hash;

/// How a log is published.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// The file with the signing key, as [`generate`] makes it.
    pub key_file: PathBuf,
    /// Where the published log goes. Default: `tlog` in the log's own directory.
    pub dir: Option<PathBuf>,
    /// How long a durable record waits for a checkpoint, at most. Default 1 s.
    pub interval: Duration,
    /// The least time between two checkpoints, however many critical records come. Default 200 ms.
    pub least_interval: Duration,
    /// After so long without a record the log writes a heartbeat, so that silence is evidence. Default 1 h.
    pub heartbeat: Duration,
    /// How long to wait after a failure; doubles up to 5 s. Default 250 ms.
    pub retry_after: Duration,
    /// The witnesses whose cosignatures count.
    pub witnesses: Vec<VerifierKey>,
    /// How many of them [`Publisher::accept_cosigned`] asks for. Default 1.
    pub quorum: usize,
}

impl PublishOptions {
    /// The defaults, with this key.
    #[must_use]
    pub fn new(key_file: impl Into<PathBuf>) -> Self {
        Self {
            key_file: key_file.into(),
            dir: None,
            interval: Duration::from_secs(1),
            least_interval: Duration::from_millis(200),
            heartbeat: Duration::from_secs(3600),
            retry_after: Duration::from_millis(250),
            witnesses: Vec::new(),
            quorum: 1,
        }
    }
}

/// Where publishing stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishStatus {
    /// The log's name.
    pub origin: String,
    /// The key that signs now, as text.
    pub vkey: String,
    /// Entries that the published tree has, signed or about to be.
    pub size: u64,
    /// Entries of the newest checkpoint.
    pub signed_size: u64,
    /// The root hash of the newest checkpoint.
    pub signed_root: Hash,
    /// When the newest checkpoint was made by this process, by the clock of the day.
    pub last_signed_at: Option<SystemTime>,
    /// Entries of the newest checkpoint that a quorum of witnesses cosigned.
    pub cosigned_size: u64,
    /// Checkpoints made by this process.
    pub checkpoints: u64,
    /// Attempts that failed; each is repeated.
    pub failures: u64,
    /// What failed last, or what is wrong with the next key; `None` once that is mended.
    pub last_failure: Option<String>,
    /// Records that were published and that the log no longer has, because of damage that the log has recorded itself.
    pub missing_in_log: u64,
    /// Published entries below this place were pruned; 0 if none were.
    pub minimum_index: u64,
    /// Of these, how many still stand in the log's segments.
    pub pruned_in_segments: u64,
    /// Why nothing is published any more.
    pub refused: Option<Refusal>,
    /// Whether everything that is durable now is signed.
    pub caught_up: bool,
}

/// Why nothing is published any more. What was published stays as it is.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The log has fewer records than were signed.
    #[error(
        "the log ends with entry {found} and was signed up to entry {signed}: it was cut off or put back to an earlier state; keep it as evidence and start a new log with a new key"
    )]
    Rollback {
        /// Entries that the log has.
        found: u64,
        /// Entries that were signed.
        signed: u64,
    },
    /// A record is not the one that was published under its number.
    #[error(
        "record {seq} of the log is not what {file} holds: one of them was changed; keep both as evidence, compare them with a replica and start a new log with a new key"
    )]
    Record {
        /// The record's number.
        seq: u64,
        /// The published file.
        file: String,
    },
    /// A published file is not what the log gives.
    #[error(
        "{file} is not what the log gives: it was changed; keep it as evidence, then remove it and it is made anew"
    )]
    File {
        /// The published file.
        file: String,
    },
    /// The log gives another root than was signed for that size.
    #[error(
        "the log gives another root hash for its first {size} entries than was signed: records were changed, or it was put back to an earlier state and went on; keep the log as evidence, compare it with a replica and start a new log with a new key"
    )]
    Root {
        /// The size that was signed.
        size: u64,
    },
    /// The beginning of the log is missing, and no signed record announces that it was to be removed.
    #[error(
        "the log begins with segment {segment} and no signed record says that what was before it was pruned: it was removed otherwise; keep what there is as evidence, compare it with a replica and start a new log with a new key"
    )]
    Unannounced {
        /// The first segment.
        segment: u64,
    },
    /// The log begins later than it once did, and the file that says so is missing.
    #[error(
        "the beginning of the log {} is missing, and so is the file pruned in it: the log was pruned, so put that file back; its text is that of the last record of the kind pruned",
        dir.display()
    )]
    Beginning {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The records are not those that a published tile stands for, and the tile is right.
    #[error(
        "the records of the log are not those that {file} stands for: they were changed or removed; keep both as evidence, compare them with a replica and start a new log with a new key"
    )]
    Records {
        /// The published file.
        file: String,
    },
    /// A published file is missing or damaged, and the records that it was made from were pruned.
    #[error(
        "{file} is missing or damaged, and what it was made from was pruned: put it back from a replica, or start a new log with a new key"
    )]
    Irreplaceable {
        /// The published file.
        file: String,
    },
    /// A witness or a replica has a checkpoint of this log that is larger than the log.
    #[error(
        "a checkpoint with {seen} entries, signed with this log's key, was seen elsewhere and this log signed {signed}: it was put back to an earlier state, or another machine uses its key; keep it as evidence and start a new log with a new key"
    )]
    Ahead {
        /// The size seen elsewhere.
        seen: u64,
        /// The size that was signed here.
        signed: u64,
    },
}

/// Why publishing could not start.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// Another process publishes there.
    #[error("the published log {} is written by another process: one directory has one publisher; stop that process", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The file system refused.
    #[error("the published log {} cannot be opened, {action}: {source}; check the path and its permissions", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// What was published before is not by this key.
    #[error(
        "{} was not signed with this key ({reason}): give the right key, or publish to a new directory",
        file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

/// Why a cosigned checkpoint was not taken.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// It is not a checkpoint of this log, or a signature does not hold.
    #[error(transparent)]
    Checkpoint(#[from] crate::tlog::checkpoint::CheckpointError),
    /// Too few witnesses signed.
    #[error("{found} of the known witnesses cosigned and {quorum} are asked for: wait for the others")]
    Quorum {
        /// Valid cosignatures of known witnesses.
        found: usize,
        /// How many are asked for.
        quorum: usize,
    },
    /// It is not the newest.
    #[error("a newer checkpoint, with {newest} entries, is cosigned already: drop this one with {size}")]
    Older {
        /// Its size.
        size: u64,
        /// The size of the one that is there.
        newest: u64,
    },
    /// It was signed with this log's key and contradicts this log.
    #[error(transparent)]
    Refused(Refusal),
    /// The tiles or the file could not be read or written.
    #[error("the cosigned checkpoint cannot be kept: {0}; check the disk")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What came of [`Publisher::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Entries of the newest checkpoint.
    pub size: u64,
    /// Whether that is everything that became durable.
    pub caught_up: bool,
}

/// Text for a JSON string of the log's own records.
fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

impl From<KeyError> for PublishError {
    fn from(error: KeyError) -> Self {
        PublishError::Key(error.into())
    }
}
