//! What an emit can come to, and the errors.

use std::io;
use std::path::PathBuf;

use crate::finding::Violation;

/// How much depends on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Severity {
    /// Queued at once; on disk within the linger time.
    Routine = 0,
    /// On disk before the call returns, or the call says that it is not.
    Critical = 1,
}

/// What became of a record.
#[must_use = "a record that is late or failed is not on disk"]
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted; it will be on disk soon.
    Queued {
        /// The record's number.
        seq: u64,
    },
    /// It survives a power cut from now on.
    Durable {
        /// The record's number.
        seq: u64,
    },
    /// Accepted, but not on disk when the deadline passed. It will be, unless the log fails afterwards (then it is
    /// counted as failed and the log records a gap).
    Late {
        /// The record's number.
        seq: u64,
    },
    /// Not accepted, or lost. After a storage fault the bytes may have reached the disk all the same: an error from the
    /// disk does not say that nothing was written. The log never counts such a record as its own once it has recovered.
    Failed(Failure),
}

impl Outcome {
    /// Whether the record survives a power cut.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        matches!(self, Outcome::Durable { .. })
    }

    /// The record's number, if it got one.
    #[must_use]
    pub fn seq(&self) -> Option<u64> {
        match *self {
            Outcome::Queued { seq } | Outcome::Durable { seq } | Outcome::Late { seq } => Some(seq),
            Outcome::Failed(_) => None,
        }
    }
}

/// Why a record is not in the log.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The record is larger than a record may be.
    #[error(
        "the audit record has {bytes} bytes and the limit is {limit}: shorten it, or open the log with larger segments (at most 65525 bytes fit a record)"
    )]
    TooLarge {
        /// Bytes of the record.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The queue was full; for a critical record, until its deadline.
    #[error(
        "the audit log's queue of {capacity} bytes is full: the disk is slower than the records come; use a faster disk or a larger queue"
    )]
    QueueFull {
        /// Bytes the queue holds.
        capacity: usize,
    },
    /// The log was closed before.
    #[error("the audit log is closed and takes no more records: emit before closing, or open it again")]
    Closed,
    /// The disk failed twice in a row; the log tries again by itself.
    #[error("the audit log cannot be written, {0}; the log resumes by itself and records the gap")]
    Storage(Fault),
    /// The writer thread is gone. A defect of this crate.
    #[error("the audit log's writer has stopped unexpectedly: open the log again and report this defect")]
    WriterGone,
}

impl Failure {
    /// The short reason that a gap record carries.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Failure::TooLarge { .. } => "record too large",
            Failure::QueueFull { .. } => "queue full",
            Failure::Closed => "closed",
            Failure::Storage(fault) => fault.operation.as_str(),
            Failure::WriterGone => "writer gone",
        }
    }
}

/// An operation that the file system refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What was tried.
    pub operation: Operation,
    /// The kind of error.
    pub kind: io::ErrorKind,
    /// The operating system's error number, if it gave one.
    pub os_error: Option<i32>,
}

impl Fault {
    pub(crate) fn new(operation: Operation, error: &io::Error) -> Self {
        Self { operation, kind: error.kind(), os_error: error.raw_os_error() }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed: ", self.operation.as_str())?;
        match self.os_error {
            Some(code) => write!(f, "{}", io::Error::from_raw_os_error(code))?,
            None => write!(f, "{}", self.kind)?,
        }
        f.write_str(match self.kind {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free space on its disk",
            io::ErrorKind::ReadOnlyFilesystem => ": mount its disk writable",
            io::ErrorKind::PermissionDenied => ": give this user the right to write there",
            io::ErrorKind::NotFound => ": something removed or renamed its files, keep others out of its directory",
            _ => ": check its disk",
        })
    }
}

/// What was tried when the file system refused.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Writing frames.
    Write,
    /// Making written frames durable.
    Sync,
    /// Preparing a new segment file.
    Prepare,
    /// The segment file lost its name, or the name now belongs to another file.
    Vanished,
    /// The segment file was made shorter or longer; what was in it may be gone.
    Resized,
    /// The directory was removed and could not be made again, or belongs to another writer now.
    Directory,
}

impl Operation {
    /// In words.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Operation::Write => "writing a segment",
            Operation::Sync => "syncing a segment",
            Operation::Prepare => "preparing a segment",
            Operation::Vanished => "keeping a segment under its name",
            Operation::Resized => "keeping a segment whole",
            Operation::Directory => "keeping the directory",
        }
    }
}

/// Why a log could not be opened.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another writer has the directory.
    #[error(
        "the audit log {} is being written by {}, and one directory has one writer: stop that process or choose another directory",
        dir.display(), pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The writer's process id, where the lock file tells it.
        pid: Option<u32>,
    },
    /// The file system refused.
    #[error("the audit log {} cannot be opened, {action}: {source}; check the path, its permissions and the free space", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// An option is outside its bounds.
    #[error("the audit log's option {option} is {value}, it must be between {least} and {most}: correct it")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        value: u64,
        /// The least allowed.
        least: u64,
        /// The most allowed.
        most: u64,
    },
    /// The numbers are used up; only a manipulated file can do that.
    #[error("the audit log {} carries record number {seq}, beyond what any log reaches: it was manipulated; keep it as evidence and start a new directory", dir.display())]
    Exhausted {
        /// The directory.
        dir: PathBuf,
        /// The number found.
        seq: u64,
    },
}

/// Why a log could not be read.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refused.
    #[error("{} cannot be read: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The directory holds no log.
    #[error("{} holds no audit log: no file there is named segment-<number>.wal; check the path", dir.display())]
    NoLog {
        /// The directory.
        dir: PathBuf,
    },
    /// Something in the log is not as it was written. Reading goes on behind it.
    #[error("{0}")]
    Violation(Violation),
}
