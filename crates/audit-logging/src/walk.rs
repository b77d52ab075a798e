//! The order in which the segments of a directory are to be read: which follow each other, which are void.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::control::{Cause, Link};
use crate::finding::{Violation, What};
use crate::floor::Floor;
use crate::frame::{self, Frame, Kind, Parsed};
use crate::outcome::ReadError;
use crate::segment::{self, Expect, LINK_ROOM, MAX_SEGMENT, Next, SEGMENT_HEADER, Scanned, SegmentHeader};
use crate::vfs::{self, Access, Vfs};

/// A step of the walk.
#[derive(Debug)]
pub(crate) enum Part {
    Missing(Violation),
    Segment(Expect, PathBuf),
}

/// What the first bytes of a segment tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) index: u64,
    pub(crate) header: Option<SegmentHeader>,
    /// Whether anything was written where the first frame belongs.
    pub(crate) begun: bool,
    pub(crate) link: Option<Link>,
    /// Whether it could be read.
    pub(crate) readable: bool,
}

impl Head {
    /// The segment that was in use when this one was made: its name was on disk before this one's.
    pub(crate) fn live(&self) -> Option<u64> {
        self.header.filter(|header| header.index == self.index).map(|header| header.live)
    }
}

/// The plan, and how far it is carried out.
#[derive(Debug)]
pub(crate) struct Walk {
    parts: VecDeque<Part>,
    log_id: Option<[u8; 16]>,
    last_seq: Option<u64>,
    /// Segments passed over because a later link declares them void.
    pub(crate) void: u64,
    /// Where the log begins, if it was pruned, until the record that announced it was seen.
    floor: Option<Floor>,
}

fn io(path: &Path, source: std::io::Error) -> ReadError {
    ReadError::Io { path: path.to_owned(), source }
}

/// The segment files of a log.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Their indices, ascending; without those that were pruned and are not removed yet.
    pub(crate) indices: Vec<u64>,
    /// Those.
    pub(crate) left: Vec<u64>,
    /// Where the log begins, if it was pruned.
    pub(crate) floor: Option<Floor>,
}

/// Looks up which segments there are. What is removed while this runs was stated before: the names are read first.
pub(crate) fn list(vfs: &dyn Vfs, dir: &Path) -> std::io::Result<Listing> {
    let names = vfs.list(dir)?;
    let mut indices: Vec<u64> = names.iter().filter_map(|name| name.to_str()).filter_map(segment::index_of).collect();
    indices.sort_unstable();
    indices.dedup();
    // The segment in which a log begins is never removed.
    let floor = Floor::read(vfs, dir)?.filter(|floor| indices.contains(&floor.segment));
    let first = floor.as_ref().map_or(0, |floor| floor.segment);
    let (left, indices) = indices.into_iter().partition(|&index| index < first);
    Ok(Listing { indices, left, floor })
}

/// Reads a whole segment file, at most [`MAX_SEGMENT`] bytes and one more, so that a longer file shows.
pub(crate) fn load(vfs: &dyn Vfs, path: &Path) -> Result<Vec<u8>, ReadError> {
    let file = vfs.open(path, Access::Read).map_err(|error| io(path, error))?;
    let length = file.length().map_err(|error| io(path, error))?.min(MAX_SEGMENT.saturating_add(1));
    let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(0)];
    let n = vfs::read_full(&*file, &mut bytes, 0).map_err(|error| io(path, error))?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Whether a segment that was there a moment ago was removed by a pruning.
pub(crate) fn is_pruned(vfs: &dyn Vfs, dir: &Path, index: u64) -> bool {
    list(vfs, dir).is_ok_and(|listing| listing.floor.is_some_and(|floor| index < floor.segment))
}

pub(crate) fn head(vfs: &dyn Vfs, dir: &Path, index: u64) -> Result<Head, ReadError> {
    let path = segment::path(dir, index);
    let file = vfs.open(&path, Access::Read).map_err(|error| io(&path, error))?;
    let mut bytes = [0u8; SEGMENT_HEADER.saturating_add(LINK_ROOM)];
    let n = vfs::read_full(&*file, &mut bytes, 0).map_err(|error| io(&path, error))?;
    let bytes = bytes.get(..n).unwrap_or_default();
    let header = SegmentHeader::parse(bytes);
    let first = bytes.get(SEGMENT_HEADER..).unwrap_or_default();
    let begun = first.iter().any(|&byte| byte != 0);
    let salt = header.map(|header| header.salt()).or(frame::u32_at(bytes, SEGMENT_HEADER.saturating_sub(4)));
    let link = match frame::parse(first, salt.unwrap_or(0)) {
        Parsed::Frame(found) if found.kind == Kind::Link => Link::parse(found.leaf),
        _ => None,
    };
    // A link can only name a segment before its own.
    let link = link.filter(|link| link.previous < index && link.previous > 0);
    Ok(Head { index, header, begun, link, readable: true })
}

/// What is known of a segment that cannot be read. It may have held records.
pub(crate) fn unreadable(index: u64) -> Head {
    Head { index, header: None, begun: true, link: None, readable: false }
}

impl Walk {
    pub(crate) fn plan(vfs: &dyn Vfs, dir: &Path) -> Result<Self, ReadError> {
        let Listing { indices, floor, .. } = list(vfs, dir).map_err(|error| io(dir, error))?;
        let mut heads = Vec::with_capacity(indices.len());
        let mut failed = None;
        for index in indices {
            match head(vfs, dir, index) {
                Ok(head) => heads.push(head),
                // Pruned since its name was read.
                Err(_) if is_pruned(vfs, dir, index) => return Self::plan(vfs, dir),
                Err(error) => {
                    heads.push(unreadable(index));
                    failed = Some(error);
                }
            }
        }
        if heads.iter().all(|head| !head.readable) {
            // Nothing at all can be read: that is no finding in a log.
            return Err(failed.unwrap_or(ReadError::NoLog { dir: dir.to_owned() }));
        }
        Ok(Self::of(dir, &heads, floor))
    }

    /// Follows the links from the last segment back to the first.
    pub(crate) fn of(dir: &Path, heads: &[Head], floor: Option<Floor>) -> Self {
        let first = floor.as_ref().map_or(1, |floor| floor.segment);
        let last_seq = floor.as_ref().map(|floor| floor.last_seq);
        let mut walk = Self { parts: VecDeque::new(), log_id: None, last_seq, void: 0, floor };
        walk.log_id = heads.iter().find_map(|head| head.header).map(|header| header.log_id);
        // The index that the segment seen last says comes before it, and what it says of it.
        let mut wanted: Option<u64> = None;
        let mut next: Option<Next> = None;
        for head in heads.iter().rev() {
            match wanted {
                Some(wanted) if head.index > wanted => {
                    walk.void = walk.void.saturating_add(1);
                    continue;
                }
                Some(wanted) if head.index < wanted => {
                    walk.missing(wanted);
                    next = Some(Next::Unknown);
                }
                _ => {}
            }
            let fresh = next.is_none() && !head.begun && head.header.is_some() && head.index > 1;
            let expect = Expect { index: Some(head.index), next, fresh, ..Expect::default() };
            walk.parts.push_front(Part::Segment(expect, segment::path(dir, head.index)));
            if head.index == first {
                wanted = None;
                break;
            }
            wanted = match (head.link, next) {
                (Some(link), _) => Some(link.previous),
                // A file that is no segment says nothing of what comes before it.
                (None, Some(next)) => {
                    let found_so = matches!(next, Next::Link(Link { cause: Cause::Finding, .. }));
                    let was_segment = head.begun && (head.readable || !found_so);
                    head.live().or_else(|| was_segment.then_some(head.index.saturating_sub(1)))
                }
                // A spare, or the last segment with a torn start: indices of segments that were never finished may lie
                // between it and the one before. But the one that was in use when it was made must be there.
                (None, None) => {
                    head.live().filter(|&live| live >= first && heads.iter().all(|head| head.index != live))
                }
            };
            next = match (head.link, head.begun) {
                (Some(link), _) => Some(Next::Link(link)),
                (None, true) if next.is_some() => Some(Next::Unknown),
                // A spare, or the torn start of the last segment: the one before may still end torn.
                (None, _) => next,
            };
        }
        let lowest = heads.first().map_or(0, |head| head.index);
        // Whatever the lowest segment says or does not say: every log has a first one.
        if let Some(wanted) = wanted.or((lowest > first).then_some(first)).filter(|&wanted| wanted > 0) {
            walk.missing(wanted);
        }
        walk
    }

    fn missing(&mut self, index: u64) {
        let violation = Violation { segment: index, offset: 0, seq: 0, what: What::SegmentMissing };
        self.parts.push_front(Part::Missing(violation));
    }

    /// The segment handed out last cannot be read.
    pub(crate) fn unread(&mut self, index: u64) -> Violation {
        let seq = self.last_seq.take().map_or(0, |seq| seq.saturating_add(1));
        Violation { segment: index, offset: 0, seq, what: What::Unreadable }
    }

    pub(crate) fn next_part(&mut self) -> Option<Part> {
        let part = self.parts.pop_front()?;
        Some(match part {
            Part::Missing(mut violation) => {
                violation.seq = self.last_seq.map_or(0, |seq| seq.saturating_add(1));
                self.last_seq = None;
                Part::Missing(violation)
            }
            Part::Segment(mut expect, path) => {
                expect.log_id = self.log_id;
                expect.previous = self.last_seq;
                Part::Segment(expect, path)
            }
        })
    }

    /// The segment handed out last was pruned meanwhile.
    pub(crate) fn skipped(&mut self) {
        (self.last_seq, self.floor) = (None, None);
    }

    /// What comes now was written after the walk was planned; a record that announced a pruning may be among it.
    pub(crate) fn end(&mut self) {
        self.parts.clear();
        self.floor = None;
    }

    /// Gives up all but the last so many segments that were begun, before anything was read.
    pub(crate) fn keep_last(&mut self, segments: usize) {
        let begun = |part: &Part| matches!(part, Part::Segment(expect, _) if !expect.fresh);
        let begun: Vec<usize> =
            self.parts.iter().enumerate().filter(|(_, part)| begun(part)).map(|(at, _)| at).collect();
        let first = begun.len().checked_sub(segments).and_then(|at| begun.get(at)).copied().unwrap_or(0);
        if first > 0 {
            self.parts.drain(..first);
            (self.last_seq, self.floor) = (None, None);
        }
    }

    /// Where the log begins, if it was pruned; before anything was read.
    pub(crate) fn floor(&self) -> Option<&Floor> {
        self.floor.as_ref()
    }

    /// A frame was read.
    pub(crate) fn saw(&mut self, frame: &Frame<'_>) {
        if self.floor.as_ref().is_some_and(|floor| floor.is_announced_by(frame)) {
            self.floor = None;
        }
    }

    /// When everything was read: the beginning is missing, and no record announces that it was to be removed.
    pub(crate) fn unannounced(&mut self) -> Option<Violation> {
        let Floor { segment, last_seq, .. } = self.floor.take()?;
        Some(Violation { segment, offset: 0, seq: last_seq.max(1), what: What::PruningUnannounced })
    }

    /// Tells the walk what the segment it handed out last came to.
    pub(crate) fn scanned(&mut self, scanned: &Scanned) {
        self.last_seq = scanned.last_seq;
        if scanned.violations > 0 {
            // After a finding the numbers go on behind the highest seen.
            self.last_seq = self.last_seq.max(Some(scanned.highest));
        }
    }
}
