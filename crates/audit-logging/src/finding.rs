//! What a reader can find wrong with a log.

use std::fmt;

/// In which way something is not as it was written.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A segment file is not there although a later one follows it.
    SegmentMissing,
    /// What bears a segment's name cannot be read: it is no regular file, or the file system refuses.
    Unreadable,
    /// The first 64 bytes of a segment are damaged.
    SegmentHeader,
    /// A segment belongs to another log or to another place in this one.
    ForeignSegment,
    /// A segment file is shorter or longer than it was made.
    FileLength,
    /// The bytes of a record that was durable are damaged.
    FrameDamaged,
    /// A record is missing, doubled or out of order; its neighbours are intact.
    SequenceBroken,
    /// A segment does not end where the next one says that it ended.
    LinkBroken,
    /// A record claims a durable bound that no writer can have known.
    BoundImpossible,
    /// The beginning of the log was removed and no record announces it.
    PruningUnannounced,
}

impl What {
    /// In words.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            What::SegmentMissing => "segment file missing",
            What::Unreadable => "segment file unreadable",
            What::SegmentHeader => "segment header damaged",
            What::ForeignSegment => "segment of another log or place",
            What::FileLength => "segment file cut or extended",
            What::FrameDamaged => "durable record damaged",
            What::SequenceBroken => "record missing, doubled or out of order",
            What::LinkBroken => "segment does not end where the next one says",
            What::BoundImpossible => "impossible durable bound",
            What::PruningUnannounced => "beginning of the log removed and no record announces it",
        }
    }
}

/// One thing that is not as it was written: tampering, or damage to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Number of the segment file.
    pub segment: u64,
    /// Byte offset in it.
    pub offset: u64,
    /// Number of the first record concerned; 0 where no record can be named.
    pub seq: u64,
    /// In which way.
    pub what: What,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { segment, offset, seq, what } = self;
        write!(f, "{} in segment {segment} at byte {offset}", what.as_str())?;
        if *seq > 0 {
            write!(f, ", record {seq}")?;
        }
        f.write_str(": keep the directory as evidence and compare it with a copy")
    }
}

/// Bytes at the end that never became durable: what a crash or a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TornTail {
    /// Number of the segment file.
    pub segment: u64,
    /// Byte offset in it.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}
