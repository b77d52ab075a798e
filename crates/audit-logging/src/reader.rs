//! Reading a log offline: verify it, or walk its records. Takes no lock, writes nothing, works beside a live writer.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::control::{self, Absent};
use crate::disk::Disk;
pub use crate::finding::{TornTail, Violation, What};
use crate::floor::Floor;
use crate::frame::{Frame, Kind};
use crate::outcome::{ReadError, Severity};
use crate::segment::{self, Expect, Item, Scanned};
use crate::vfs::Vfs;
use crate::walk::{self, Part, Walk};

/// What a [`Report`] lists at most, so that a ruined file cannot fill the memory; further ones are only counted.
const MAX_LISTED: usize = 1000;

/// Numbers that carry no record, as the log itself states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Which kind of record states it: records refused or lost ([`Kind::Gap`]), or numbers skipped when the log was
    /// opened after an unclean end ([`Kind::Recovered`], [`Kind::Finding`]).
    pub stated_by: Kind,
}

/// A record, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// How much depended on it.
    pub severity: Severity,
    /// What it is.
    pub kind: Kind,
    /// Every record up to this number was on disk when this one was written.
    pub durable: u64,
    /// The bytes, verbatim.
    pub leaf: Vec<u8>,
    /// Number of the segment file.
    pub segment: u64,
    /// Byte offset of its frame in that file.
    pub offset: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segment files found, the empty spare and unreadable ones included.
    pub segments: u64,
    /// Records before the first that is kept; they were pruned. 0 if none were.
    pub pruned: u64,
    /// Valid records, those that the log wrote itself included.
    pub records: u64,
    /// The last record's number; 0 if there is none.
    pub last_seq: u64,
    /// Every record up to this number was certainly on disk, as later frames witness. The records behind it are intact
    /// but nothing on the disk proves that they had been synced.
    pub durable: u64,
    /// Bytes at the end that never became durable. Not a violation. Beside a live writer it may be a record on its way.
    pub torn_tail: Option<TornTail>,
    /// What is not as it was written, in the order found; at most 1000 are listed.
    pub violations: Vec<Violation>,
    /// How many violations there are.
    pub violations_total: u64,
    /// Numbers without a record, as the log states itself; at most 1000 are listed.
    pub gaps: Vec<Gap>,
    /// How many gaps there are.
    pub gaps_total: u64,
    /// Segment files that were given up after a storage fault and count for nothing.
    pub void_segments: u64,
    /// The log ends with a close record.
    pub clean_close: bool,
}

impl Report {
    /// Whether everything is as it was written. A torn tail does not count against it.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.violations_total == 0
    }

    fn add(&mut self, segment: u64, item: &Item<'_>) {
        match *item {
            Item::Frame(_, Frame { kind: Kind::Link, .. }) => {}
            Item::Frame(_, frame) => {
                self.records = self.records.saturating_add(1);
                if let (Kind::Gap | Kind::Recovered | Kind::Finding, Some(absent)) =
                    (frame.kind, Absent::parse(frame.leaf))
                {
                    self.gaps_total = self.gaps_total.saturating_add(1);
                    if self.gaps.len() < MAX_LISTED {
                        let Absent { first, count } = absent;
                        self.gaps.push(Gap { first, count, stated_by: frame.kind });
                    }
                }
            }
            Item::Violation(violation) => self.violation(violation),
            Item::Torn { offset, bytes } => self.torn_tail = Some(TornTail { segment, offset, bytes }),
        }
    }

    fn violation(&mut self, violation: Violation) {
        self.violations_total = self.violations_total.saturating_add(1);
        if self.violations.len() < MAX_LISTED {
            self.violations.push(violation);
        }
    }

    fn finish(&mut self, scanned: &Scanned) {
        self.segments = self.segments.saturating_add(1);
        self.last_seq = self.last_seq.max(scanned.last_seq.unwrap_or(0));
        self.durable = self.durable.max(scanned.durable);
        if scanned.frames > 0 {
            self.clean_close = scanned.closed && scanned.torn.is_none();
        }
        if self.clean_close {
            self.durable = self.last_seq;
        }
    }
}

/// Verifies every byte of the log in `dir`.
///
/// What a clean report proves is bounded: the checksums are not keyed, so it proves that nothing was damaged, and that
/// nobody changed the log who did not rewrite the checksums too. Nothing here shows that records were cut off at the end.
///
/// # Errors
/// [`ReadError`] if there is no log or none of its files can be read. Violations are not errors: they are in the report.
pub fn verify(dir: &Path) -> Result<Report, ReadError> {
    verify_on(&Disk, dir)
}

/// [`verify`] on another file system.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(vfs: &dyn Vfs, dir: &Path) -> Result<Report, ReadError> {
    // Beside a live writer, a file is read while it changes. What is really wrong is still wrong, in the same way, when
    // it is read again afterwards.
    let mut report = verify_once(vfs, dir)?;
    for _ in 0..5 {
        if report.is_intact() {
            break;
        }
        let again = verify_once(vfs, dir)?;
        if again.violations == report.violations {
            return Ok(again);
        }
        report = again;
    }
    Ok(report)
}

fn verify_once(vfs: &dyn Vfs, dir: &Path) -> Result<Report, ReadError> {
    let mut report = Report::default();
    let mut walk = Walk::plan(vfs, dir)?;
    report.void_segments = walk.void;
    report.pruned = walk.floor().map_or(0, |floor| floor.index);
    while let Some(part) = walk.next_part() {
        match part {
            Part::Missing(violation) => report.violation(violation),
            Part::Segment(expect, path) => {
                let segment = expect.index.unwrap_or(0);
                let Ok(bytes) = walk::load(vfs, &path) else {
                    if walk::is_pruned(vfs, dir, segment) {
                        walk.skipped();
                        continue;
                    }
                    report.segments = report.segments.saturating_add(1);
                    report.violation(walk.unread(segment));
                    continue;
                };
                let scanned = segment::scan(&bytes, expect, &mut |item| {
                    if let Item::Frame(_, frame) = &item {
                        walk.saw(frame);
                    }
                    report.add(segment, &item);
                });
                report.finish(&scanned);
                walk.scanned(&scanned);
            }
        }
    }
    if let Some(violation) = walk.unannounced() {
        report.violation(violation);
    }
    Ok(report)
}

/// Verifies the bytes of one segment, without any file. For tests and fuzzing; bounded work for any input.
#[must_use]
pub fn scan(segment: &[u8]) -> Report {
    let mut report = Report::default();
    let scanned = segment::scan(segment, Expect::default(), &mut |item| report.add(0, &item));
    report.finish(&scanned);
    if let (Some(torn), Some(header)) = (report.torn_tail.as_mut(), scanned.header) {
        torn.segment = header.index;
    }
    report
}

/// Walks the records of the log in `dir`, oldest first. Violations come as errors at their place, and reading goes on.
///
/// On a live log the last records may be ones that are not durable yet: compare with
/// [`Status::durable`](crate::Status::durable).
///
/// # Errors
/// [`ReadError`] if there is no log or none of its files can be read.
pub fn records(dir: &Path) -> Result<Records, ReadError> {
    records_on(Arc::new(Disk), dir)
}

/// [`records`] on another file system.
///
/// # Errors
/// As [`records`].
pub fn records_on(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Records, ReadError> {
    let walk = Walk::plan(&*vfs, dir)?;
    Ok(Records { vfs, dir: dir.to_owned(), walk, ready: VecDeque::new() })
}

/// Walks the records of the last `segments` segment files that hold any, oldest first: the end of a log that may be long. What
/// comes before is not read and not judged.
///
/// # Errors
/// As [`records`].
pub fn tail(dir: &Path, segments: usize) -> Result<Records, ReadError> {
    let mut records = records(dir)?;
    records.walk.keep_last(segments);
    Ok(records)
}

/// The iterator behind [`records`]. Holds one segment's records in memory.
#[derive(Debug)]
pub struct Records {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    walk: Walk,
    ready: VecDeque<Result<Record, ReadError>>,
}

impl Records {
    /// Where the log begins, if it was pruned; before anything was read.
    pub(crate) fn floor(&self) -> Option<&Floor> {
        self.walk.floor()
    }

    /// Records before the first that is kept, because they were pruned: its place in the published log. 0 if none were.
    /// To be asked before anything is read.
    #[must_use]
    pub fn pruned(&self) -> u64 {
        self.floor().map_or(0, |floor| floor.index)
    }

    fn load(&mut self, expect: Expect, path: &Path) -> Result<(), ReadError> {
        let mut tries = 0u32;
        let mut before: Option<Scanned> = None;
        loop {
            let segment = expect.index.unwrap_or(0);
            let Ok(bytes) = walk::load(&*self.vfs, path) else {
                if walk::is_pruned(&*self.vfs, &self.dir, segment) {
                    self.walk.skipped();
                    return Ok(());
                }
                return Err(ReadError::Violation(self.walk.unread(segment)));
            };
            let (mut items, mut linked) = (VecDeque::new(), false);
            let walk = &mut self.walk;
            let scanned = segment::scan(&bytes, expect, &mut |item| match item {
                Item::Frame(_, Frame { kind: Kind::Link, .. }) => linked = true,
                Item::Torn { .. } => {}
                Item::Frame(offset, frame) => {
                    walk.saw(&frame);
                    let Frame { seq, severity, kind, durable, leaf, .. } = frame;
                    let leaf = leaf.to_vec();
                    items.push_back(Ok(Record { seq, severity, kind, durable, leaf, segment, offset }));
                }
                Item::Violation(violation) => items.push_back(Err(ReadError::Violation(violation))),
            });
            if linked && expect.fresh {
                // A live writer went on here since; the segment before may have been read before that.
                self.walk.end();
                return Ok(());
            }
            tries = tries.saturating_add(1);
            // As in `verify_on`: a file that changes while it is read is read again.
            let settled = scanned.violations == 0
                || before.is_some_and(|before| (before.violations, before.end) == (scanned.violations, scanned.end));
            if settled || tries > 5 {
                self.ready = items;
                self.walk.scanned(&scanned);
                return Ok(());
            }
            before = Some(scanned);
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            let Some(part) = self.walk.next_part() else {
                return self.walk.unannounced().map(|violation| Err(ReadError::Violation(violation)));
            };
            match part {
                Part::Missing(violation) => return Some(Err(ReadError::Violation(violation))),
                Part::Segment(expect, path) => {
                    if let Err(error) = self.load(expect, &path) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

/// The reason that a gap record gives, for people.
#[must_use]
pub fn gap_reason(record: &Record) -> Option<&str> {
    (record.kind == Kind::Gap).then(|| control::text(&record.leaf, "reason")).flatten()
}
