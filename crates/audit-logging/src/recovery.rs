//! Opening a log: what state is it in, what may be cut off, where does writing go on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::unix_ms;
use crate::control::{self, Absent, Cause, Leaf, Link};
use crate::finding::{TornTail, Violation, What};
use crate::frame::{Kind, MAX_SEQ};
use crate::options::Options;
use crate::outcome::{OpenError, ReadError};
use crate::queue::MAX_OUTSTANDING;
use crate::segment::{self, Expect, Item, Next, SEGMENT_HEADER, Scanned};
use crate::spare::{Maker, Segment};
use crate::vfs::{self, Access, Lock, Locked, Vfs};
use crate::walk::{self, Head, Listing};

/// What opening a log that was not closed cleanly came to. The log's first new record says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The last record that was kept.
    pub last_seq: u64,
    /// Bytes at the end that never became durable and were set to zero.
    pub torn_tail: Option<TornTail>,
    /// The first thing found that is not as it was written. Its segment is left untouched, as evidence; the log goes on
    /// in a new one.
    pub finding: Option<Violation>,
}

/// The name of the lock file.
pub(crate) const LOCK: &str = "lock";

/// A log, ready to be written.
pub(crate) struct Opened {
    pub(crate) lock: Box<dyn Lock>,
    pub(crate) maker: Maker,
    pub(crate) current: Segment,
    pub(crate) spare: Option<Segment>,
    pub(crate) next_index: u64,
    pub(crate) anchor: Link,
    pub(crate) recovered: Option<Recovery>,
    /// The record that states how the log was found, and its number.
    pub(crate) first: (Kind, Leaf, u64),
}

struct Opening<'a> {
    vfs: &'a dyn Vfs,
    dir: &'a Path,
    heads: Vec<Head>,
    log_id: [u8; 16],
    /// The first segment that the log still has.
    first: u64,
}

/// Where the last live segment stands.
#[derive(Default)]
struct Tail {
    index: u64,
    length: u64,
    scanned: Scanned,
    /// Records before this segment.
    before: u64,
    torn: Option<TornTail>,
    finding: Option<Violation>,
    /// Where the records end, if a file that keeps none was found behind that segment. The end itself is as written.
    sound: Option<u64>,
}

fn io_error<'a>(dir: &'a Path, action: &'static str) -> impl Fn(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io { dir: dir.to_owned(), action, source }
}

fn read_error(dir: &Path, error: ReadError) -> OpenError {
    let source = match error {
        ReadError::Io { source, .. } => source,
        other => io::Error::other(other),
    };
    OpenError::Io { dir: dir.to_owned(), action: "reading its segments", source }
}

/// Makes the directory if it is missing, so that it survives a power cut, and becomes its only writer.
pub(crate) fn enter(vfs: &dyn Vfs, dir: &Path) -> Result<Box<dyn Lock>, OpenError> {
    vfs::make_dir(vfs, dir).map_err(io_error(dir, "making the directory"))?;
    match vfs.lock(&dir.join(LOCK)).map_err(io_error(dir, "taking the lock"))? {
        Locked::Ours(lock) => Ok(lock),
        Locked::Theirs { pid } => Err(OpenError::Locked { dir: dir.to_owned(), pid }),
    }
}

fn random_id(dir: &Path) -> Result<[u8; 16], OpenError> {
    let mut id = [0u8; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_error(dir, "drawing its identity")(error.into()))?;
    Ok(id)
}

pub(crate) fn open(dir: &Path, options: &Options) -> Result<Opened, OpenError> {
    let vfs = &*options.vfs;
    let lock = enter(vfs, dir)?;
    for name in vfs.list(dir).map_err(io_error(dir, "listing it"))? {
        let unfinished = name.to_str().is_some_and(|name| name.starts_with("segment-") && name.ends_with(".tmp"));
        if unfinished {
            vfs.remove(&dir.join(name)).map_err(io_error(dir, "removing an unfinished segment"))?;
        }
    }
    let Listing { indices, floor, .. } = walk::list(vfs, dir).map_err(io_error(dir, "listing it"))?;
    let mut heads = Vec::with_capacity(indices.len());
    for index in indices {
        heads.push(match walk::head(vfs, dir, index) {
            Err(ReadError::Io { source, .. }) if vfs::is_not_a_file(&source) => walk::unreadable(index),
            // Anything else may pass: no reason to accuse anybody.
            other => other.map_err(|error| read_error(dir, error))?,
        });
    }
    let log_id = match heads.iter().find_map(|head| head.header) {
        Some(header) => header.log_id,
        None => options.log_id.map_or_else(|| random_id(dir), Ok)?,
    };
    let maker = Maker { vfs: Arc::clone(&options.vfs), dir: dir.to_owned(), log_id, bytes: options.segment_bytes };
    let next_index = heads.last().map_or(1, |head| head.index.saturating_add(1));
    let ms = unix_ms(options.clock.wall());
    let first = floor.map_or(1, |floor| floor.segment);
    Opening { vfs, dir, heads, log_id, first }.run(lock, maker, next_index, ms)
}

impl Opening<'_> {
    fn run(mut self, lock: Box<dyn Lock>, maker: Maker, mut next_index: u64, ms: i64) -> Result<Opened, OpenError> {
        let make = |next_index: &mut u64, live: u64| {
            let index = *next_index;
            *next_index = index.saturating_add(1);
            maker.make(index, live, false).map_err(|fault| {
                let source = fault.os_error.map_or_else(|| fault.kind.into(), io::Error::from_raw_os_error);
                io_error(self.dir, "preparing a segment")(source)
            })
        };
        let mut spare = None;
        let tail = self.tail(&mut spare, maker.bytes)?;
        let Some(tail) = tail else {
            // Nothing was ever written here.
            let current = match spare {
                Some(first) => first,
                None => make(&mut next_index, 0)?,
            };
            let spare = make(&mut next_index, current.header.index).ok();
            let anchor = Link {
                previous: current.header.index,
                end: SEGMENT_HEADER as u64,
                last_seq: 0,
                records: 0,
                cause: Cause::Full,
            };
            let first = (Kind::Open, control::open(self.log_id, 0, ms), 1);
            return Ok(Opened { lock, maker, current, spare, next_index, anchor, recovered: None, first });
        };
        if spare.is_none() && tail.finding.is_none() {
            // If the disk is full, the log goes on without; the writer tries again.
            spare = make(&mut next_index, tail.index).ok();
        }
        let highest = tail.scanned.last_seq.unwrap_or(0).max(tail.scanned.highest);
        let last_seq = if tail.finding.is_some() { highest } else { tail.scanned.last_seq.unwrap_or(0) };
        if last_seq >= MAX_SEQ >> 1 {
            return Err(OpenError::Exhausted { dir: self.dir.to_owned(), seq: last_seq });
        }
        let absent = Absent { first: last_seq.saturating_add(1), count: MAX_OUTSTANDING };
        let mut anchor = Link {
            previous: tail.index,
            end: tail.scanned.end,
            last_seq,
            records: tail.before.saturating_add(tail.scanned.frames),
            cause: Cause::Full,
        };
        let recovery = Recovery { last_seq, torn_tail: tail.torn, finding: tail.finding };
        if let Some(finding) = tail.finding {
            anchor.cause = Cause::Finding;
            anchor.end = tail.length;
            if let Some(sound) = tail.sound {
                self.take_up(sound, &tail.scanned)?;
            }
            let current = match spare.take().filter(|spare| spare.header.index > tail.index) {
                Some(segment) => segment,
                None => make(&mut next_index, tail.index)?,
            };
            let spare = make(&mut next_index, current.header.index).ok();
            let first = (Kind::Finding, control::finding(&finding, absent, ms), absent.next());
            return Ok(Opened { lock, maker, current, spare, next_index, anchor, recovered: Some(recovery), first });
        }
        let current = self.take_up(tail.index, &tail.scanned)?;
        let (recovered, first) = if tail.scanned.closed && tail.torn.is_none() {
            let next = last_seq.saturating_add(1);
            (None, (Kind::Open, control::open(self.log_id, anchor.records, ms), next))
        } else {
            let (offset, lost) = tail.torn.map_or((tail.scanned.end, 0), |torn| (torn.offset, torn.bytes));
            let leaf = control::recovered(tail.index, offset, lost, absent, ms);
            (Some(recovery), (Kind::Recovered, leaf, absent.next()))
        };
        Ok(Opened { lock, maker, current, spare, next_index, anchor, recovered, first })
    }

    fn load(&self, index: u64) -> Result<Vec<u8>, OpenError> {
        walk::load(self.vfs, &segment::path(self.dir, index)).map_err(|error| read_error(self.dir, error))
    }

    fn file(&self, index: u64) -> Result<(Box<dyn vfs::VfsFile>, PathBuf), OpenError> {
        let path = segment::path(self.dir, index);
        let file = self.vfs.open(&path, Access::Write).map_err(io_error(self.dir, "opening a segment"))?;
        Ok((file, path))
    }

    /// The last segment with anything in it, after what is torn was cut off. Empty segments behind it are the spare. A
    /// file behind it that keeps no record and is no segment as it was made is a finding. The log goes on behind that
    /// file, but the records end where they ended.
    fn tail(&mut self, spare: &mut Option<Segment>, bytes: u64) -> Result<Option<Tail>, OpenError> {
        let mut stray: Option<(u64, u64, Violation)> = None;
        let tail = self.last_kept(spare, bytes, &mut stray)?;
        let Some((index, length, finding)) = stray else { return Ok(tail) };
        let stray = Tail { index, length, finding: Some(finding), ..Tail::default() };
        Ok(Some(match tail {
            None => stray,
            Some(tail) => {
                let sound = tail.finding.is_none().then_some(tail.index);
                Tail { index, length, finding: tail.finding.or(stray.finding), sound, ..tail }
            }
        }))
    }

    fn last_kept(
        &mut self,
        spare: &mut Option<Segment>,
        bytes: u64,
        stray: &mut Option<(u64, u64, Violation)>,
    ) -> Result<Option<Tail>, OpenError> {
        let mut torn: Option<TornTail> = None;
        let mut next: Option<Next> = None;
        while let Some(head) = self.heads.pop() {
            if let (None, Some(live)) = (head.link, head.live().filter(|&live| live >= self.first))
                && self.heads.iter().all(|head| head.index != live)
            {
                // The segment that was in use when this one was made was taken away.
                let (last_seq, before) = self.kept()?;
                let missing = last_seq.saturating_add(1);
                let finding = Some(Violation { segment: live, offset: 0, seq: missing, what: What::SegmentMissing });
                let scanned = Scanned { last_seq: Some(last_seq), ..Scanned::default() };
                return Ok(Some(Tail { index: live, scanned, before, torn, finding, ..Tail::default() }));
            }
            if !head.readable {
                let finding = Violation { segment: head.index, offset: 0, seq: 0, what: What::Unreadable };
                *stray = stray.or(Some((head.index, 0, finding)));
                next = Some(Next::Unknown);
                continue;
            }
            let data = self.load(head.index)?;
            let length = data.len() as u64;
            let log_id = Some(self.log_id);
            let previous = match head.link {
                Some(link) => Some(link.last_seq),
                None => self.last_before(&data)?,
            };
            let expect = Expect { index: Some(head.index), log_id, previous, next, fresh: false };
            let mut finding = None;
            let scanned = segment::scan(&data, expect, &mut |item| {
                if let Item::Violation(violation) = item {
                    finding = finding.or(Some(violation));
                }
            });
            if let (None, Some((offset, lost))) = (finding, scanned.torn) {
                self.cut(head.index, offset, lost)?;
                let before = torn.map_or(0, |torn| torn.bytes);
                torn = Some(TornTail { segment: head.index, offset, bytes: lost.saturating_add(before) });
            }
            let empty = finding.is_none() && scanned.end == SEGMENT_HEADER as u64;
            if empty && (head.index > 1 || torn.is_none()) {
                self.keep_spare(head, length == bytes, spare)?;
                continue;
            }
            if let (None, 0, Some(finding)) = (head.link, scanned.frames, finding) {
                // No record is kept here, so this is not where the numbers end.
                *stray = stray.or(Some((head.index, length, finding)));
                // It may have been a segment: then the one before was durable, and nothing of it may be cut off.
                next = next.or(head.begun.then_some(Next::Unknown));
                continue;
            }
            let before = match head.link {
                Some(link) => link.records,
                None => self.kept()?.1,
            };
            return Ok(Some(Tail { index: head.index, length, scanned, before, torn, finding, sound: None }));
        }
        Ok(None)
    }

    /// The last number before a segment whose link cannot be read, from the segment before it.
    fn last_before(&self, data: &[u8]) -> Result<Option<u64>, OpenError> {
        let unwritten = |data: &[u8]| data.get(SEGMENT_HEADER..).unwrap_or_default().iter().all(|&byte| byte == 0);
        if unwritten(data) {
            return Ok(None);
        }
        for head in self.heads.iter().rev().filter(|head| head.readable) {
            let data = self.load(head.index)?;
            let previous = head.link.map(|link| link.last_seq);
            // A spare that was never used, or another segment with a torn start, may lie between.
            if head.index > 1 && (unwritten(&data) || previous.is_none()) {
                continue;
            }
            let expect =
                Expect { index: Some(head.index), log_id: Some(self.log_id), previous, next: None, fresh: false };
            return Ok(segment::scan(&data, expect, &mut |_| {}).last_seq);
        }
        Ok(None)
    }

    /// The highest number that the remaining segments keep, and how many records they have.
    fn kept(&self) -> Result<(u64, u64), OpenError> {
        let (mut highest, mut records) = (0, 0u64);
        for head in self.heads.iter().rev().filter(|head| head.readable) {
            let data = self.load(head.index)?;
            let previous = head.link.map(|link| link.last_seq);
            let expect =
                Expect { index: Some(head.index), log_id: Some(self.log_id), previous, next: None, fresh: false };
            let scanned = segment::scan(&data, expect, &mut |_| {});
            highest = scanned.highest.max(previous.unwrap_or(0)).max(highest);
            records = records.saturating_add(scanned.frames);
            if let Some(link) = head.link {
                records = records.saturating_add(link.records);
                break;
            }
        }
        Ok((highest, records))
    }

    /// Takes an empty segment as the spare, or removes it if it has the wrong size. Not the first, and not one that the
    /// spare so far says was in use when it was made: its absence would be called a violation.
    fn keep_spare(&self, head: Head, fits: bool, spare: &mut Option<Segment>) -> Result<(), OpenError> {
        let (file, path) = self.file(head.index)?;
        let vouched = spare.as_ref().is_some_and(|spare| spare.header.live == head.index);
        let header = head.header.filter(|_| fits || vouched || head.index == 1);
        let Some(header) = header else {
            // Gone for good before a lower one is removed: it may say that the lower one must be there.
            return self
                .vfs
                .remove(&path)
                .and_then(|()| self.vfs.sync_dir(self.dir))
                .map_err(io_error(self.dir, "removing an unused segment"));
        };
        let start = SEGMENT_HEADER as u64;
        *spare = Some(Segment { file, path, header, offset: start, synced: start });
        Ok(())
    }

    /// Sets torn bytes to zero, durably, before anything new is written: else a later crash could mix old with new.
    fn cut(&self, index: u64, offset: u64, bytes: u64) -> Result<(), OpenError> {
        let (file, _) = self.file(index)?;
        let zeros = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
        vfs::write_full(&*file, &zeros, offset)
            .and_then(|()| file.sync_data())
            .map_err(io_error(self.dir, "cutting off the torn end"))
    }

    /// Opens the last segment for writing. What its frames do not prove durable is written once more and synced: it may
    /// never have left the page cache, and after a sync that failed the cache may call pages clean that are not.
    fn take_up(&self, index: u64, scanned: &Scanned) -> Result<Segment, OpenError> {
        let (file, path) = self.file(index)?;
        let data = self.load(index)?;
        let mut from = None;
        let log_id = Some(self.log_id);
        let expect = Expect { index: Some(index), log_id, previous: None, next: None, fresh: false };
        segment::scan(&data, expect, &mut |item| {
            if let Item::Frame(offset, frame) = item
                && frame.seq > scanned.durable
            {
                from = from.or(Some(offset));
            }
        });
        let error = io_error(self.dir, "making its last records durable");
        let end = scanned.end;
        if let Some(from) = from {
            let range = usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(0);
            vfs::write_full(&*file, data.get(range).unwrap_or_default(), from).map_err(&error)?;
        }
        file.sync_data().map_err(&error)?;
        let header = scanned.header.ok_or_else(|| error(io::ErrorKind::InvalidData.into()))?;
        Ok(Segment { file, path, header, offset: end, synced: end })
    }
}
