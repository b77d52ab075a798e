//! Follows the segment files of a log that is being written, only as far as it is durable.
//!
//! The durable bound is read first, then the segments are listed, then the links are followed from the last segment
//! back. So a segment that was given up is seen as what it is: everything that had become durable in it is at or below
//! the bound and before the place where the next segment's link cuts it, and what lies behind that place was written
//! again elsewhere, or is stated as lost.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::{Absent, Cause};
use crate::finding::{Violation, What};
use crate::floor::Floor;
use crate::frame::{self, Frame, Kind, MAX_LEAF, Parsed};
use crate::outcome::ReadError;
use crate::segment::{self, Expect, Item, Next, SEGMENT_HEADER, SegmentHeader};
use crate::vfs::{self, Access, Vfs};
use crate::walk::{self, Head, Listing, Part, Walk};

/// Bytes read at a time: more than the largest frame.
const CHUNK: usize = 256 << 10;
/// How often something must be seen in the same way before it is taken for damage and not for a file that changes.
const LOOKS: u32 = 3;
/// Violations that are remembered, so that each is told once.
const MAX_TOLD: usize = 1000;

/// What the tail hands on, in the order of the log.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// A record, and the number of its segment.
    Record(&'a Frame<'a>, u64),
    /// Something durable is not as it was written. It is passed over.
    Damage(Violation),
}

/// Takes the pieces; breaks to stop behind the present one.
pub(crate) type Sink<'a> = dyn FnMut(Piece<'_>) -> ControlFlow<()> + 'a;

/// Why a poll ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Everything up to the bound was handed on.
    Bound,
    /// The sink stopped.
    Stopped,
    /// Something is not as it should be and has to be looked at again: it may be a file that changes.
    Odd,
}

/// How far a segment was read.
enum Read {
    Done(Reached),
    /// To its end, which is where the next segment says.
    Next,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    /// The segment of the last record handed on, and the byte behind it; 0 before the first.
    segment: u64,
    offset: u64,
    last_seq: u64,
    /// Everything up to this bound was looked at. Above `last_seq` only if what is there is damaged.
    settled: u64,
    /// How often in a row the reading ended at the present place.
    looks: u32,
    told: Vec<Violation>,
}

impl Tail {
    /// From the first record on, or from where a pruned log begins.
    pub(crate) fn new(vfs: Arc<dyn Vfs>, dir: &Path, floor: Option<&Floor>) -> Self {
        let dir = dir.to_owned();
        let (segment, last_seq) = floor.map_or((0, 0), |floor| (floor.segment, floor.last_seq));
        let offset = if segment > 0 { SEGMENT_HEADER as u64 } else { 0 };
        Self { vfs, dir, segment, offset, last_seq, settled: last_seq, looks: 0, told: Vec::new() }
    }

    /// Everything up to this number was handed on, or is damaged.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// Hands on the records behind the last one, up to the one with the number `bound`, which was durable before this
    /// call.
    pub(crate) fn poll(&mut self, bound: u64, sink: &mut Sink<'_>) -> Result<Reached, ReadError> {
        if self.settled >= bound {
            return Ok(Reached::Bound);
        }
        let before = (self.segment, self.offset);
        let reached = if self.looks < LOOKS { self.follow(bound, sink) } else { self.search(bound, sink) }?;
        self.settled = if reached == Reached::Bound { bound } else { self.settled.max(self.last_seq) };
        let stuck = reached == Reached::Odd && before == (self.segment, self.offset);
        self.looks = if stuck { self.looks.saturating_add(1) } else { 0 };
        Ok(reached)
    }

    /// The segments from the present one on, in the order of their links.
    fn walk(&self) -> Result<Walk, ReadError> {
        let io = |source| ReadError::Io { path: self.dir.clone(), source };
        let Listing { indices, floor, .. } = walk::list(&*self.vfs, &self.dir).map_err(io)?;
        let (earlier, later): (Vec<u64>, Vec<u64>) = indices.into_iter().partition(|&index| index < self.segment);
        let mut heads = Vec::with_capacity(later.len());
        for index in later {
            heads.push(match walk::head(&*self.vfs, &self.dir, index) {
                Err(ReadError::Io { source, .. }) if vfs::is_not_a_file(&source) => walk::unreadable(index),
                // Anything else may pass: it is tried again, and is no damage.
                other => other?,
            });
        }
        // A spare may say that an earlier segment was in use when it was made: that one is there, only not of interest.
        let mut named: Vec<u64> = heads.iter().filter_map(Head::live).filter(|live| earlier.contains(live)).collect();
        named.sort_unstable();
        named.dedup();
        let heads: Vec<Head> = named.into_iter().map(walk::unreadable).chain(heads).collect();
        Ok(Walk::of(&self.dir, &heads, floor))
    }

    /// The usual way: frame by frame, from where the last one ended.
    fn follow(&mut self, bound: u64, sink: &mut Sink<'_>) -> Result<Reached, ReadError> {
        let mut walk = self.walk()?;
        while let Some(part) = walk.next_part() {
            let (expect, path) = match part {
                // Segments before the present one were not looked at.
                Part::Missing(missing) if missing.segment < self.segment => continue,
                Part::Missing(_) => return Ok(Reached::Odd),
                Part::Segment(expect, _) if expect.index.unwrap_or(0) < self.segment => continue,
                Part::Segment(expect, path) => (expect, path),
            };
            match self.run(&expect, &path, bound, sink)? {
                Read::Next => {}
                Read::Done(reached) => return Ok(reached),
            }
        }
        Ok(Reached::Odd)
    }

    fn run(&mut self, expect: &Expect, path: &Path, bound: u64, sink: &mut Sink<'_>) -> Result<Read, ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let odd = Ok(Read::Done(Reached::Odd));
        let index = expect.index.unwrap_or(0);
        let end = match expect.next {
            Some(Next::Link(link)) if link.cause != Cause::Finding => Some((link.end, link.last_seq)),
            _ => None,
        };
        let file = self.vfs.open(path, Access::Read).map_err(io)?;
        let mut head = [0u8; SEGMENT_HEADER];
        vfs::read_full(&*file, &mut head, 0).map_err(io)?;
        let Some(header) = SegmentHeader::parse(&head).filter(|header| header.index == index) else { return odd };
        if expect.log_id.is_some_and(|id| id != header.log_id) {
            return odd;
        }
        let salt = header.salt();
        let mut offset = if index == self.segment { self.offset } else { SEGMENT_HEADER as u64 };
        let (mut buffer, mut from, mut all) = (Vec::new(), 0usize, false);
        loop {
            if let Some((end, last_seq)) = end
                && offset >= end
            {
                return if (offset, self.last_seq) == (end, last_seq) { Ok(Read::Next) } else { odd };
            }
            if !all && buffer.len().saturating_sub(from) < frame::padded(MAX_LEAF) {
                buffer.resize(CHUNK, 0);
                let n = vfs::read_full(&*file, &mut buffer, offset).map_err(io)?;
                buffer.truncate(n);
                (from, all) = (0, n < CHUNK);
            }
            let rest = buffer.get(from..).unwrap_or_default();
            let Parsed::Frame(found) = frame::parse(rest, salt) else { return odd };
            let first = offset == SEGMENT_HEADER as u64;
            from = from.saturating_add(found.size);
            offset = offset.saturating_add(found.size as u64);
            if found.kind == Kind::Link {
                if first && index > 1 && found.seq == self.last_seq {
                    continue;
                }
                return odd;
            }
            if found.seq > bound || found.durable >= found.seq || !follows(self.last_seq, &found) {
                return odd;
            }
            (self.segment, self.offset, self.last_seq) = (index, offset, found.seq);
            let flow = sink(Piece::Record(&found, index));
            if found.seq == bound {
                return Ok(Read::Done(Reached::Bound));
            }
            if flow.is_break() {
                return Ok(Read::Done(Reached::Stopped));
            }
        }
    }

    /// The slow way, through damage: every segment from the present one on is read as `verify` reads it.
    fn search(&mut self, bound: u64, sink: &mut Sink<'_>) -> Result<Reached, ReadError> {
        let mut walk = self.walk()?;
        while let Some(part) = walk.next_part() {
            let (mut expect, path) = match part {
                Part::Missing(missing) => {
                    if missing.segment >= self.segment && self.tell(missing, sink).is_break() {
                        return Ok(Reached::Stopped);
                    }
                    continue;
                }
                Part::Segment(expect, _) if expect.index.unwrap_or(0) < self.segment => continue,
                Part::Segment(expect, path) => (expect, path),
            };
            let index = expect.index.unwrap_or(0);
            let bytes = match walk::load(&*self.vfs, &path) {
                Ok(bytes) => bytes,
                Err(ReadError::Io { source, .. }) if vfs::is_not_a_file(&source) => {
                    let seq = self.last_seq.saturating_add(1);
                    let unread = Violation { segment: index, offset: 0, seq, what: What::Unreadable };
                    if self.tell(unread, sink).is_break() {
                        return Ok(Reached::Stopped);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            // What its own link says of the records before it; where they are damaged, that is told already.
            expect.previous = walk::head(&*self.vfs, &self.dir, index)?.link.map(|link| link.last_seq);
            let mut flow = ControlFlow::Continue(());
            segment::scan(&bytes, expect, &mut |item| {
                if flow.is_break() {
                    return;
                }
                flow = match item {
                    Item::Frame(at, found)
                        if found.kind != Kind::Link && found.seq > self.last_seq && found.seq <= bound =>
                    {
                        (self.segment, self.offset) = (index, at.saturating_add(found.size as u64));
                        self.last_seq = found.seq;
                        sink(Piece::Record(&found, index))
                    }
                    Item::Violation(violation) => self.tell(violation, sink),
                    Item::Frame(..) | Item::Torn { .. } => ControlFlow::Continue(()),
                };
            });
            if flow.is_break() && self.last_seq < bound {
                return Ok(Reached::Stopped);
            }
        }
        Ok(Reached::Bound)
    }

    /// Each violation once.
    fn tell(&mut self, violation: Violation, sink: &mut Sink<'_>) -> ControlFlow<()> {
        if self.told.contains(&violation) || self.told.len() >= MAX_TOLD {
            return ControlFlow::Continue(());
        }
        self.told.push(violation);
        sink(Piece::Damage(violation))
    }
}

/// Whether a record may follow the one with this number: the next one, or one that states what is absent in between.
fn follows(last_seq: u64, found: &Frame<'_>) -> bool {
    let next = last_seq.saturating_add(1);
    match found.kind {
        Kind::Gap | Kind::Recovered | Kind::Finding => {
            Absent::parse(found.leaf).is_some_and(|absent| absent.first == next && absent.next() == found.seq)
        }
        _ => found.seq == next,
    }
}
