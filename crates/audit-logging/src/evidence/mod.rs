//! Verifying a published log: is it whole, is it signed, who else has seen how much of it, and does the log itself agree?
//!
//! [`verify`] reads everything: each bundle against its tile, each tile against the root, the signatures, the records'
//! numbers, and, if given, the log's own segments and the checkpoints that others hold. It trusts the keys it is given
//! and nothing else.
//!
//! What it cannot show: that nothing was cut off behind the newest checkpoint that somebody else holds
//! ([`Report::vouched`]), and that what was written was true.

mod blocks;
mod bundle;
mod order;
mod sieve;
mod signers;
mod verify;
mod wal;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use verify::verify;

use crate::publish::SignedState;
use crate::tlog::note::{Verified, VerifierKey};
use crate::tlog::source::{Source, SourceError};
use crate::tlog::tree::Hash;
use crate::vfs::Vfs;

/// Violations that a report lists at most; further ones are only counted.
pub const MAX_LISTED: usize = 1000;

/// A copy of the log, or a checkpoint of it, that somebody else holds.
#[derive(Clone)]
pub enum Held<'a> {
    /// A replica of the published log.
    Replica(&'a dyn Source),
    /// A signed checkpoint, as it was received.
    Checkpoint(Vec<u8>),
}

impl fmt::Debug for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Held::Replica(_) => "Replica",
            Held::Checkpoint(_) => "Checkpoint",
        })
    }
}

/// What is to be verified, and whom to trust.
#[derive(Clone)]
pub struct Question<'a> {
    /// The published log.
    pub source: &'a dyn Source,
    /// The keys that may sign for the log. Keys that it rotated to are followed from these.
    pub log_keys: &'a [VerifierKey],
    /// The witnesses whose cosignatures count.
    pub witness_keys: &'a [VerifierKey],
    /// How many of them make a checkpoint *cosigned*; 0 is taken for 1.
    pub quorum: usize,
    /// The log's name, if it is known. Default: any that its key bears.
    pub expected_origin: Option<&'a str>,
    /// The directory with the log's own segments, if it is at hand, and the file system that it is on:
    /// [`Disk`](crate::Disk).
    pub wal: Option<(Arc<dyn Vfs>, &'a Path)>,
    /// What others hold, each with a name for the report.
    pub held: Vec<(String, Held<'a>)>,
    /// What the log's own machine keeps beside the key as signed last, and the name of that file for the report. It is durable before the checkpoint is there, so the end of a process in between leaves it
    /// ahead. That is no violation where the log's own segments give this root.
    pub last_signed: Option<(String, SignedState)>,
    /// The time now, in seconds since 1970, to find cosignatures from the future.
    pub now: Option<u64>,
    /// Threads that read and hash. Default 2.
    pub threads: usize,
}

impl<'a> Question<'a> {
    /// A published log and the keys that may have signed it; nothing else.
    #[must_use]
    pub fn new(source: &'a dyn Source, log_keys: &'a [VerifierKey]) -> Self {
        Self {
            source,
            log_keys,
            witness_keys: &[],
            quorum: 1,
            expected_origin: None,
            wal: None,
            held: Vec::new(),
            last_signed: None,
            now: None,
            threads: 2,
        }
    }
}

/// In which way something is not as it should be.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// There is no checkpoint.
    NoCheckpoint,
    /// The checkpoint is readable and bears no signature.
    Unsigned,
    /// The checkpoint is no checkpoint.
    CheckpointDamaged,
    /// The checkpoint is signed, but by none of the trusted keys.
    WrongKey,
    /// The signature of a trusted key does not hold.
    SignatureInvalid,
    /// The checkpoint is signed by a key that the log had given up by then.
    RetiredKey,
    /// The checkpoint is of another log.
    WrongOrigin,
    /// The checkpoint speaks of more entries than there are.
    FutureCheckpoint,
    /// The entries give another root hash than was signed.
    RootMismatch,
    /// A tile of hashes is not what the entries give.
    TileChanged,
    /// A tile of hashes is missing.
    TileMissing,
    /// A bundle of entries is missing.
    BundleMissing,
    /// A bundle of entries is not readable.
    BundleDamaged,
    /// A bundle holds other entries altogether: one of another place or log.
    BundleForeign,
    /// An entry was changed.
    EntryEdited,
    /// An entry was put in.
    EntryInserted,
    /// An entry was taken out.
    EntryDeleted,
    /// Entries changed places.
    EntriesReordered,
    /// An entry is there twice.
    EntryDuplicated,
    /// An entry is no record of an audit log.
    EntryMalformed,
    /// Two entries bear the same number.
    NumberDoubled,
    /// Numbers do not rise.
    NumberOutOfOrder,
    /// Numbers are missing and the log does not say why.
    NumberMissing,
    /// Entries of two logs are mixed.
    Spliced,
    /// A record of the log is not what was published under its number.
    RecordEdited,
    /// A record that was published is not in the log any more.
    RecordMissing,
    /// A record is in the log between published ones and was never published.
    RecordInserted,
    /// The log ends before what was published.
    LogShorter,
    /// The log was cut off before the end of what was published, and then went on.
    LogCutAndContinued,
    /// The log's own segments are not as they were written.
    LogDamaged,
    /// Somebody else holds a checkpoint that is larger than this log: it was cut off or put back to an earlier state.
    HeldAhead,
    /// The key has signed more of this log than is here, as the file beside it says.
    KeyAhead,
    /// Somebody else holds a checkpoint that contradicts this log.
    HeldContradicts,
    /// What somebody else holds is not signed by this log.
    HeldInvalid,
    /// The file `cosigned` does not hold what it should.
    CosignedInvalid,
    /// No checkpoint is cosigned by as many witnesses as were asked for.
    NotCosigned,
    /// A cosignature is from the future.
    CosignatureFromFuture,
    /// The change to another key is not signed as it must be.
    RotationInvalid,
    /// Bundles with changes of key were taken away, which a pruning keeps.
    KeysMissing,
    /// What bears the name of a published file is none: not a regular file, or larger than any.
    NoFile,
    /// The file beside the key that says what was signed cannot be read.
    StateDamaged,
    /// Something says that records were pruned, and no signed record announces it.
    PruningUnannounced,
}

impl What {
    /// In words.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            What::NoCheckpoint => "there is no checkpoint",
            What::Unsigned => "the checkpoint is not signed",
            What::CheckpointDamaged => "the checkpoint is not readable",
            What::WrongKey => {
                "the checkpoint is signed by a key that is not trusted, or the key that is trusted is another log's"
            }
            What::SignatureInvalid => "the signature does not hold",
            What::RetiredKey => "the checkpoint is signed by a key that the log had given up",
            What::WrongOrigin => "the checkpoint is of another log",
            What::FutureCheckpoint => "the checkpoint speaks of more entries than there are",
            What::RootMismatch => "the entries are not those that were signed",
            What::TileChanged => "tile changed",
            What::TileMissing => "tile missing",
            What::BundleMissing => "bundle missing",
            What::BundleDamaged => "bundle not readable",
            What::BundleForeign => "bundle of another place or log",
            What::EntryEdited => "published record changed",
            What::EntryInserted => "published record put in",
            What::EntryDeleted => "published record taken out",
            What::EntriesReordered => "published records changed places",
            What::EntryDuplicated => "published record doubled",
            What::EntryMalformed => "published record is no record",
            What::NumberDoubled => "two records with one number",
            What::NumberOutOfOrder => "record out of order",
            What::NumberMissing => "records missing, and the log does not say why",
            What::Spliced => "records of two logs mixed",
            What::RecordEdited => "record of the log changed after it was published",
            What::RecordMissing => "published record missing in the log",
            What::RecordInserted => "record put into the log after its neighbours were published",
            What::LogShorter => "the log ends before what was published",
            What::LogCutAndContinued => "the log was cut off and then continued",
            What::LogDamaged => "the log's segments are not as they were written",
            What::HeldAhead => "somebody else holds more of this log than is here",
            What::KeyAhead => "more of this log was signed on this machine than is here",
            What::HeldContradicts => "somebody else holds a checkpoint that contradicts this log",
            What::HeldInvalid => "what somebody else holds is not signed by this log",
            What::CosignedInvalid => "the cosigned checkpoint is not what it should be",
            What::NotCosigned => "no checkpoint is cosigned by enough of the witnesses asked for",
            What::CosignatureFromFuture => "a cosignature is from the future",
            What::RotationInvalid => "the change to another key is not signed as it must be",
            What::KeysMissing => "records that state a change of key are missing, which a pruning keeps",
            What::NoFile => "what bears the name of a published file is none",
            What::StateDamaged => "the file beside the key that says what was signed cannot be read",
            What::PruningUnannounced => "records were given up and no signed record announces it",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// In which way.
    pub what: What,
    /// The number of the record concerned, the first if there are several; `None` where none can be named.
    pub record: Option<u64>,
    /// Its place in the published log, from 0.
    pub index: Option<u64>,
    /// The file, below the published log or in the log's directory, or the name of who holds it.
    pub file: String,
    /// What more there is to say; may be empty.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what.as_str())?;
        if let Some(record) = self.record {
            write!(f, ", record {record}")?;
        }
        if let Some(index) = self.index {
            write!(f, ", entry {index}")?;
        }
        write!(f, ", in {}", self.file)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        f.write_str(": keep everything as evidence and compare it with a replica")?;
        // What a key that was made just now looks like.
        if self.what == What::NoCheckpoint {
            f.write_str("; where the log was not written since its key was made, start its writer anew first")?;
        }
        Ok(())
    }
}

/// How much of the log who vouches for. Each number is where a range ends, counted in entries; the ranges follow each
/// other: cosigned, replicated, signed, unsigned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Up to here a quorum of witnesses has seen it.
    pub cosigned: u64,
    /// Up to here somebody else holds a checkpoint of it. At least `cosigned`.
    pub replicated: u64,
    /// Up to here the log's key signed it. At least `replicated`.
    pub signed: u64,
    /// Up to here the log's own segments go: what lies behind `signed` is not signed yet. At least `signed`.
    pub unsigned: u64,
}

/// A record that announces a pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruning {
    /// Its number.
    pub seq: u64,
    /// Entries below this place were given up.
    pub minimum_index: u64,
    /// The number of the record at that place.
    pub first_seq: u64,
    /// When, in milliseconds since 1970, as the record says.
    pub time_unix_ms: u64,
    /// How many seconds old records had to be for it, if it was about that.
    pub keep_s: Option<u64>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The log's name, as its checkpoint says.
    pub origin: Option<String>,
    /// The root hash of the newest checkpoint.
    pub root: Option<Hash>,
    /// How much who vouches for.
    pub ranges: Ranges,
    /// Who cosigned, and when; those of the cosigned checkpoint that goes furthest.
    pub cosignatures: Vec<Verified>,
    /// The keys that are trusted for this log in the end, as text.
    pub keys: Vec<String>,
    /// Entries that were read and hashed.
    pub entries: u64,
    /// Entries whose bundles were pruned, as records announce. Their hashes are there.
    pub pruned: u64,
    /// The records that announce it, oldest first; at most [`MAX_LISTED`].
    pub prunings: Vec<Pruning>,
    /// Records of the log's own segments that were compared with what was published.
    pub compared: u64,
    /// What is not as it should be, in the order found; at most [`MAX_LISTED`].
    pub violations: Vec<Violation>,
    /// How many violations there are.
    pub violations_total: u64,
}

impl Report {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.violations_total == 0
    }

    /// Entries that cannot have been cut off unnoticed, because somebody else holds a checkpoint that covers them. Whether
    /// anything behind them was cut off, nobody can tell.
    #[must_use]
    pub fn vouched(&self) -> u64 {
        self.ranges.cosigned.max(self.ranges.replicated)
    }

    /// [`Report::vouched`] in plain words.
    #[must_use]
    pub fn statement(&self) -> String {
        match self.vouched() {
            0 => "Nobody else holds a checkpoint of this log: if records were cut off at its end, this cannot be seen."
                .to_owned(),
            1 => "The first entry cannot have been cut off unnoticed: others hold a checkpoint of it. Whether anything behind it was cut off cannot be seen."
                .to_owned(),
            n => format!(
                "The first {n} entries cannot have been cut off unnoticed: others hold a checkpoint of them. Whether anything behind them was cut off cannot be seen."
            ),
        }
    }

    pub(crate) fn add(&mut self, violation: Violation) {
        self.violations_total = self.violations_total.saturating_add(1);
        if self.violations.len() < MAX_LISTED {
            self.violations.push(violation);
        }
    }

    /// Takes back what turned out to be none.
    pub(crate) fn withdraw(&mut self, what: What) {
        let before = self.violations.len();
        self.violations.retain(|violation| violation.what != what);
        let withdrawn = before.saturating_sub(self.violations.len()) as u64;
        self.violations_total = self.violations_total.saturating_sub(withdrawn);
    }

    pub(crate) fn violation(&mut self, what: What, file: impl Into<String>, detail: impl Into<String>) {
        self.add(Violation { what, record: None, index: None, file: file.into(), detail: detail.into() });
    }
}

/// Why a log could not be verified at all.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// A file could not be read, for another reason than that it is not there.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The log's own directory could not be read.
    #[error(transparent)]
    Wal(#[from] crate::outcome::ReadError),
    /// A thread could not be started.
    #[error("no thread could be started to verify the log: {0}; try again with fewer threads")]
    Thread(std::io::Error),
}
