//! The segment: a file of fixed length, zeros where nothing was written yet. `docs/audit-log.md` explains every byte.

use std::path::{Path, PathBuf};

use crate::control::{Absent, Cause, Link};
use crate::finding::{Violation, What};
use crate::frame::{self, Frame, HEADER, Kind, Parsed, u32_at, u64_at};

/// Bytes before the first frame.
pub(crate) const SEGMENT_HEADER: usize = 64;
/// Bytes kept free for the link frame.
pub(crate) const LINK_ROOM: usize = 512;
/// Largest segment, in bytes. Also what a reader holds in memory at most.
pub(crate) const MAX_SEGMENT: u64 = 256 << 20;

/// Bytes of frames that are in a segment without being synced, at most: the writer syncs before it writes more. So no
/// crash leaves a longer torn tail.
pub(crate) const MAX_UNSYNCED: u64 = 1 << 20;
/// As [`MAX_UNSYNCED`], for the first write into the first segment: the log's own record of how it was found, synced
/// before anybody may emit.
const MAX_FIRST_WRITE: u64 = 1024;

const MAGIC: &[u8; 8] = b"AUDITLOG";
const VERSION: u32 = 1;
const AT_CRC: usize = 60;

/// The first 64 bytes of a segment, on disk before the segment gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) index: u64,
    pub(crate) bytes: u64,
    pub(crate) log_id: [u8; 16],
    /// The segment in use when this one was made. It had its name by then, so if this one is there, that one is missing
    /// for no honest reason. 0 in the first segment only.
    pub(crate) live: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0u8; SEGMENT_HEADER];
        frame::put(&mut out, 0, MAGIC);
        frame::put(&mut out, 8, &VERSION.to_le_bytes());
        frame::put(&mut out, 12, &(SEGMENT_HEADER as u32).to_le_bytes());
        frame::put(&mut out, 16, &self.index.to_le_bytes());
        frame::put(&mut out, 24, &self.bytes.to_le_bytes());
        frame::put(&mut out, 32, &self.log_id);
        frame::put(&mut out, 48, &self.live.to_le_bytes());
        let crc = crc32c::crc32c(out.get(..AT_CRC).unwrap_or_default());
        frame::put(&mut out, AT_CRC, &crc.to_le_bytes());
        out
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..SEGMENT_HEADER)?;
        let crc = crc32c::crc32c(head.get(..AT_CRC)?);
        let good = head.get(..8)? == MAGIC
            && u32_at(head, 8)? == VERSION
            && u32_at(head, 12)? as usize == SEGMENT_HEADER
            && head.get(56..AT_CRC)?.iter().all(|&byte| byte == 0)
            && u32_at(head, AT_CRC)? == crc;
        let (index, live) = (u64_at(head, 16)?, u64_at(head, 48)?);
        let good = good && live < index && (live == 0) == (index == 1);
        good.then_some(Self { index, live, bytes: u64_at(head, 24)?, log_id: head.get(32..48)?.try_into().ok()? })
    }

    /// What the checksums of this segment's frames start from.
    pub(crate) fn salt(&self) -> u32 {
        u32_at(&self.encode(), AT_CRC).unwrap_or(0)
    }
}

/// The file name of a segment.
pub(crate) fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("segment-{index:012}.wal"))
}

/// The index in a segment's file name.
pub(crate) fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".wal")?;
    let plain = digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().filter(|&index| index > 0 && index < frame::MAX_SEQ)
}

/// What is known from outside when a segment is scanned.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expect {
    /// The index in the file's name.
    pub(crate) index: Option<u64>,
    /// The log it must belong to.
    pub(crate) log_id: Option<[u8; 16]>,
    /// The number of the last record before this segment.
    pub(crate) previous: Option<u64>,
    /// What the next segment's link says of this one, if there is a next: then all of it was durable.
    pub(crate) next: Option<Next>,
    /// When the order of the segments was looked up, this one was a spare. If it has a link now, all of it was written
    /// since.
    pub(crate) fresh: bool,
}

/// What a later segment says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Next {
    Link(Link),
    /// There is a later segment, but its link cannot be read.
    Unknown,
}

/// What a scan reports, in the order of the bytes.
#[derive(Debug)]
pub(crate) enum Item<'a> {
    Frame(u64, Frame<'a>),
    Violation(Violation),
    /// Bytes that never became durable: an honest end.
    Torn {
        offset: u64,
        bytes: u64,
    },
}

/// What a scan ends with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scanned {
    pub(crate) header: Option<SegmentHeader>,
    /// Where the last good frame of an unbroken run ends: where writing may go on.
    pub(crate) end: u64,
    /// The last number of that run; what came before the segment if it is empty.
    pub(crate) last_seq: Option<u64>,
    /// The highest number in any valid frame, also behind damage.
    pub(crate) highest: u64,
    /// Every record up to this number was on disk, as the frames themselves say.
    pub(crate) durable: u64,
    /// The last frame is a close record.
    pub(crate) closed: bool,
    pub(crate) frames: u64,
    pub(crate) violations: u64,
    pub(crate) torn: Option<(u64, u64)>,
}

struct Scan<'a, 's> {
    bytes: &'a [u8],
    salt: u32,
    index: u64,
    expect: Expect,
    /// Largest durable bound in the valid frames behind the first hole, once it was needed.
    bound: Option<u64>,
    /// Where the bytes that are not zero end, once it was needed.
    used: Option<usize>,
    out: Scanned,
    sink: &'s mut dyn FnMut(Item<'a>),
}

/// Reads one segment, whatever its bytes are: bounded work, no allocation, no panic.
///
/// A place where no valid frame lies although something follows is a *hole*. A hole is a violation when a record in it
/// was durable: when any later frame that is valid carries a durable bound that reaches into the hole, when a later
/// segment exists, or when more bytes are concerned than a writer leaves unsynced. Otherwise it is the torn tail of writes that were never synced, and everything from there on counts
/// for nothing.
pub(crate) fn scan<'a>(bytes: &'a [u8], expect: Expect, sink: &mut dyn FnMut(Item<'a>)) -> Scanned {
    let header = SegmentHeader::parse(bytes);
    let index = expect.index.or(header.map(|header| header.index)).unwrap_or(0);
    let mut expect = expect;
    if index == 1 {
        expect.previous = Some(0);
    }
    let limit = match expect.next {
        Some(Next::Link(link)) if link.cause == Cause::Fault => usize::try_from(link.end).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let salt = header.map_or_else(|| guess_salt(bytes), |header| header.salt());
    let mut scan = Scan {
        bytes: bytes.get(..limit.min(bytes.len())).unwrap_or_default(),
        salt,
        index,
        expect,
        bound: None,
        used: None,
        out: Scanned { header, end: SEGMENT_HEADER as u64, last_seq: expect.previous, ..Scanned::default() },
        sink,
    };
    scan.header(header, bytes.len() as u64);
    scan.frames();
    scan.tail();
    scan.out
}

/// The salt of a segment whose header is damaged: its checksum as stored or as computed, whichever its frames confirm.
fn guess_salt(bytes: &[u8]) -> u32 {
    let stored = u32_at(bytes, AT_CRC).unwrap_or(0);
    let computed = crc32c::crc32c(bytes.get(..AT_CRC).unwrap_or_default());
    let first = bytes.get(SEGMENT_HEADER..).unwrap_or_default();
    if matches!(frame::parse(first, computed), Parsed::Frame(_)) { computed } else { stored }
}

impl<'a> Scan<'a, '_> {
    fn violation(&mut self, offset: usize, seq: u64, what: What) {
        self.out.violations = self.out.violations.saturating_add(1);
        (self.sink)(Item::Violation(Violation { segment: self.index, offset: offset as u64, seq, what }));
    }

    fn header(&mut self, header: Option<SegmentHeader>, length: u64) {
        let seq = self.missing();
        match header {
            None => self.violation(0, seq, What::SegmentHeader),
            Some(header) => {
                if self.expect.index.is_some_and(|index| index != header.index) {
                    self.violation(16, seq, What::ForeignSegment);
                }
                if self.expect.log_id.is_some_and(|id| id != header.log_id) {
                    self.violation(32, seq, What::ForeignSegment);
                }
                if header.bytes != length {
                    let at = usize::try_from(header.bytes.min(length)).unwrap_or(usize::MAX);
                    self.violation(at, 0, What::FileLength);
                }
            }
        }
    }

    fn used(&mut self) -> usize {
        if let Some(used) = self.used {
            return used;
        }
        let mut used = self.bytes.len();
        for chunk in self.bytes.rchunks(4096) {
            if chunk.iter().fold(0u8, |all, &byte| all | byte) != 0 {
                let last = chunk.iter().rposition(|&byte| byte != 0).unwrap_or(0);
                used = used.saturating_sub(chunk.len()).saturating_add(last).saturating_add(1);
                break;
            }
            used = used.saturating_sub(chunk.len());
        }
        self.used = Some(used);
        used
    }

    /// The number that the next record must have.
    fn missing(&self) -> u64 {
        self.out.last_seq.unwrap_or(0).saturating_add(1)
    }

    fn frames(&mut self) {
        let mut at = SEGMENT_HEADER;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let parsed = if rest.len() < HEADER { Parsed::Damaged } else { frame::parse(rest, self.salt) };
            let skip = match parsed {
                Parsed::Frame(found) => {
                    self.frame(at, found);
                    at = at.saturating_add(found.size);
                    if self.out.violations == 0 {
                        self.out.end = at as u64;
                    }
                    continue;
                }
                Parsed::BadLeaf { size } => size,
                Parsed::End | Parsed::Damaged => 8,
            };
            let used = self.used();
            if used <= at {
                break;
            }
            let next = self.find_frame(at.saturating_add(skip));
            let missing = self.missing();
            let lost = used.saturating_sub(at) as u64;
            let begins = at == SEGMENT_HEADER && self.index == 1;
            let was_durable = self.expect.next.is_some()
                || lost > if begins { MAX_FIRST_WRITE } else { MAX_UNSYNCED }
                || self.out.last_seq.is_none()
                || next.is_some_and(|next| self.bound_from(next) >= missing);
            if !was_durable {
                self.out.torn = Some((at as u64, lost));
                (self.sink)(Item::Torn { offset: at as u64, bytes: lost });
                break;
            }
            self.violation(at, missing, What::FrameDamaged);
            let Some(next) = next else { break };
            if let Parsed::Frame(found) = frame::parse(self.bytes.get(next..).unwrap_or_default(), self.salt) {
                // What is missing is reported; the run goes on from here.
                let before = if found.kind == Kind::Link { found.seq } else { found.seq.saturating_sub(1) };
                self.out.last_seq = Some(before.max(self.out.last_seq.unwrap_or(0)));
            }
            at = next;
        }
    }

    /// A valid frame: does it belong here?
    fn frame(&mut self, at: usize, found: Frame<'a>) {
        let previous = self.out.last_seq;
        let next = previous.map(|previous| previous.saturating_add(1));
        let first = at == SEGMENT_HEADER;
        let (place, durable_below) = match found.kind {
            Kind::Link => (first && self.index != 1 && next.is_none_or(|next| next == found.seq.saturating_add(1)), 1),
            Kind::Gap | Kind::Recovered | Kind::Finding => {
                let absent = Absent::parse(found.leaf);
                (
                    absent.is_some_and(|absent| {
                        absent.next() == found.seq && next.is_none_or(|next| next == absent.first)
                    }),
                    0,
                )
            }
            _ => (next.is_none_or(|next| next == found.seq), 0),
        };
        if first && (found.kind == Kind::Link) == (self.index == 1) && self.index != 0 {
            self.violation(at, self.missing(), What::LinkBroken);
        } else if !place {
            self.violation(at, self.missing(), What::SequenceBroken);
        }
        if found.durable >= found.seq.saturating_add(durable_below) || found.durable < self.out.durable {
            self.violation(at, found.seq, What::BoundImpossible);
        }
        if found.kind == Kind::Link && self.expect.previous.is_none() && first {
            self.out.last_seq = Some(found.seq);
        }
        self.out.last_seq = Some(found.seq.max(self.out.last_seq.unwrap_or(0)));
        self.out.highest = self.out.highest.max(found.seq);
        self.out.durable = self.out.durable.max(found.durable.min(found.seq));
        self.out.closed = found.kind == Kind::Close;
        self.out.frames = self.out.frames.saturating_add(u64::from(found.kind != Kind::Link));
        (self.sink)(Item::Frame(at as u64, found));
    }

    /// The next place at or behind `from` where a valid frame lies that continues the numbers.
    fn find_frame(&self, from: usize) -> Option<usize> {
        let mut at = from;
        while let Some(rest) = self.bytes.get(at..).filter(|rest| rest.len() >= HEADER) {
            at = match frame::parse(rest, self.salt) {
                Parsed::Frame(found) if found.seq > self.out.last_seq.unwrap_or(0) => return Some(at),
                // Its header says where the next one starts. Stepping over it also bounds the work for any input.
                Parsed::BadLeaf { size } => at.saturating_add(size),
                _ => at.saturating_add(8),
            };
        }
        None
    }

    /// The largest durable bound in the valid frames from `from` on. Every frame's bound lies below its own number, so
    /// one figure serves all holes of the segment.
    fn bound_from(&mut self, from: usize) -> u64 {
        if let Some(bound) = self.bound {
            return bound;
        }
        let (mut at, mut bound) = (from, 0u64);
        while let Some(rest) = self.bytes.get(at..).filter(|rest| rest.len() >= HEADER) {
            at = match frame::parse(rest, self.salt) {
                Parsed::Frame(found) => {
                    bound = bound.max(found.durable.min(found.seq));
                    self.out.highest = self.out.highest.max(found.seq);
                    at.saturating_add(found.size)
                }
                Parsed::BadLeaf { size } => at.saturating_add(size),
                _ => at.saturating_add(8),
            };
        }
        self.bound = Some(bound);
        bound
    }

    /// Compares the end with what the next segment says of it.
    fn tail(&mut self) {
        let Some(Next::Link(link)) = self.expect.next else { return };
        if link.cause == Cause::Finding || self.out.violations > 0 {
            return;
        }
        if link.end != self.out.end || Some(link.last_seq) != self.out.last_seq {
            let at = usize::try_from(self.out.end).unwrap_or(usize::MAX);
            self.violation(at, self.missing(), What::LinkBroken);
        }
    }
}
