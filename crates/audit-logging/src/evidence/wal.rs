//! The log's own segments against what was published, record by record.

use std::path::Path;
use std::sync::Arc;

use super::{EvidenceError, Report, Violation, What};
use crate::floor::{self, Floor};
use crate::frame::Kind;
use crate::outcome::ReadError;
use crate::reader::{self, Record, Records};
use crate::tlog::entry::Entry;
use crate::tlog::tree::{Hash, Tile};
use crate::vfs::Vfs;

/// Published records that the log does not have, one after the other.
#[derive(Clone)]
struct Missing {
    first: u64,
    last: u64,
    index: u64,
    count: u64,
    file: String,
}

/// Walks the segments beside the published entries.
pub(super) struct Wal {
    records: Records,
    /// The next record, not compared yet.
    ahead: Option<Record>,
    missing: Option<Missing>,
    ended: bool,
    /// Whether everything published so far was readable, so that a record without a counterpart means something.
    complete: bool,
    /// Whether any of it was not.
    lost: bool,
    /// Records read so far.
    total: u64,
    bytes: Vec<u8>,
    dir: String,
    /// Where the log begins, if it was pruned.
    floor: Option<Floor>,
    /// Whether a published record announced that.
    vouched: bool,
    /// Where entries are known by their hashes only: the records are not those any more.
    adrift: bool,
}

impl Wal {
    pub(super) fn open(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<Self, EvidenceError> {
        let records = reader::records_on(Arc::clone(vfs), dir)?;
        let floor = records.floor().cloned();
        Ok(Self {
            records,
            ahead: None,
            missing: None,
            ended: false,
            complete: true,
            lost: false,
            total: floor.as_ref().map_or(0, |floor| floor.index),
            bytes: Vec::new(),
            dir: dir.display().to_string(),
            vouched: floor.is_none(),
            floor,
            adrift: false,
        })
    }

    /// Entries in between could not be read.
    pub(super) fn lose(&mut self) {
        (self.complete, self.lost) = (false, true);
    }

    /// The next published entries, of which nothing is known.
    pub(super) fn skip(&mut self, start: u64, end: u64, report: &mut Report) {
        let first = self.floor.as_ref().map_or(0, |floor| floor.index).max(start);
        for _ in first..end {
            if self.adrift || self.peek(report).is_none() {
                return;
            }
            self.ahead = None;
        }
    }

    /// The next published entry, of which only the hash was kept.
    pub(super) fn hash(&mut self, hash: Hash, index: u64, report: &mut Report) {
        if self.adrift || self.floor.as_ref().is_some_and(|floor| index < floor.index) {
            return;
        }
        let Some(record) = self.peek(report) else { return };
        let (ours, seq, segment, offset) = (Entry::of(record).hash(), record.seq, record.segment, record.offset);
        if ours == hash {
            self.ahead = None;
            report.compared = report.compared.saturating_add(1);
            return;
        }
        self.adrift = true;
        if report.violations.iter().all(|violation| violation.what != What::LogDamaged) {
            let file = format!("segment-{segment:012}.wal");
            let detail = format!("at byte {offset}");
            report.add(Violation { what: What::RecordEdited, record: Some(seq), index: Some(index), file, detail });
        }
    }

    fn peek(&mut self, report: &mut Report) -> Option<&Record> {
        while self.ahead.is_none() && !self.ended {
            match self.records.next() {
                Some(Ok(record)) => {
                    self.ahead = Some(record);
                    self.total = self.total.saturating_add(1);
                }
                Some(Err(ReadError::Violation(violation))) => {
                    let record = (violation.seq > 0).then_some(violation.seq);
                    let file = format!("segment-{:012}.wal", violation.segment);
                    let detail = format!("{} at byte {}", violation.what.as_str(), violation.offset);
                    report.add(Violation { what: What::LogDamaged, record, index: None, file, detail });
                }
                Some(Err(error)) => {
                    report.violation(What::LogDamaged, self.dir.clone(), error.to_string());
                }
                None => self.ended = true,
            }
        }
        self.ahead.as_ref()
    }

    /// The next published entry.
    pub(super) fn entry(&mut self, bytes: &[u8], entry: &Entry<'_>, index: u64, tile: &Tile, report: &mut Report) {
        if let Some(floor) = &self.floor {
            self.vouched |= entry.kind == Kind::Publication && entry.leaf == floor.leaf;
            if entry.seq <= floor.last_seq {
                return;
            }
        }
        self.adrift = false;
        loop {
            let complete = std::mem::replace(&mut self.complete, true);
            let Some(record) = self.peek(report) else { break };
            if record.seq < entry.seq {
                let Some(record) = self.ahead.take() else { break };
                if complete {
                    let file = format!("segment-{:012}.wal", record.segment);
                    let detail = format!("at byte {}", record.offset);
                    report.add(Violation {
                        what: What::RecordInserted,
                        record: Some(record.seq),
                        index: None,
                        file,
                        detail,
                    });
                }
                self.complete = complete;
                continue;
            }
            if record.seq > entry.seq {
                break;
            }
            let Some(record) = self.ahead.take() else { break };
            report.compared = report.compared.saturating_add(1);
            self.bytes.clear();
            Entry::of(&record).write(&mut self.bytes);
            self.tell_missing(report);
            if self.bytes != bytes {
                let file = format!("segment-{:012}.wal", record.segment);
                let detail = format!("at byte {}", record.offset);
                let (what, index) = (What::RecordEdited, Some(index));
                report.add(Violation { what, record: Some(record.seq), index, file, detail });
            }
            return;
        }
        let missing =
            self.missing.get_or_insert(Missing { first: entry.seq, last: 0, index, count: 0, file: tile.path() });
        missing.count = missing.count.saturating_add(1);
        missing.last = entry.seq;
    }

    fn tell_missing(&mut self, report: &mut Report) {
        if let Some(missing) = self.missing.take() {
            report.add(missing.violation(What::RecordMissing));
        }
    }

    /// All `size` entries that were published have been seen. Returns how many records there are behind them, and gives
    /// each to `more`.
    pub(super) fn end(mut self, size: u64, report: &mut Report, more: &mut dyn FnMut(&Entry<'_>)) -> u64 {
        if let Some(floor) = self.floor.as_ref().filter(|_| !self.vouched) {
            let detail =
                format!("the log begins with segment {}, record {}", floor.segment, floor.last_seq.saturating_add(1));
            report.add(Violation {
                what: What::PruningUnannounced,
                record: None,
                index: Some(floor.index),
                file: floor::FILE.to_owned(),
                detail,
            });
        }
        let mut behind = 0u64;
        while let Some(record) = self.peek(report) {
            more(&Entry::of(record));
            self.ahead = None;
            behind = behind.saturating_add(1);
        }
        if let Some(missing) = self.missing.take() {
            let what = if behind > 0 { What::LogCutAndContinued } else { What::LogShorter };
            report.add(missing.violation(what));
        }
        // Records whose entries could not be read have no counterpart either, and are not behind.
        if self.lost { behind.min(self.total.saturating_sub(size)) } else { behind }
    }
}

impl Missing {
    fn violation(self, what: What) -> Violation {
        let Missing { first, last, index, count, file } = self;
        let detail = if count > 1 { format!("{count} records, up to record {last}") } else { String::new() };
        Violation { what, record: Some(first), index: Some(index), file, detail }
    }
}
