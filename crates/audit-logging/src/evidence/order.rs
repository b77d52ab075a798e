//! The numbers of the published records: rising by one, or the log says why not.

use super::{Report, Violation, What};
use crate::control::{self, Absent};
use crate::frame::Kind;
use crate::tlog::entry::Entry;
use crate::tlog::tree::Tile;

/// Follows the records in their order.
#[derive(Default)]
pub(super) struct Order {
    /// The number of the last record; `None` where the one before was pruned or is not readable.
    last: Option<u64>,
    started: bool,
    /// The log's identity, as its first `open` record states it.
    log_id: Option<String>,
}

impl Order {
    /// What came before is not known.
    pub(super) fn lose(&mut self) {
        self.last = None;
        self.started = true;
    }

    pub(super) fn entry(&mut self, entry: &Entry<'_>, index: u64, tile: Tile, report: &mut Report) {
        let seq = entry.seq;
        let last = if self.started { self.last } else { Some(0) };
        self.started = true;
        if let Some(last) = last {
            let next = last.saturating_add(1);
            let stated = match entry.kind {
                Kind::Gap | Kind::Recovered | Kind::Finding => {
                    Absent::parse(entry.leaf).filter(|absent| absent.next() == seq).map(|absent| absent.first)
                }
                _ => Some(seq),
            };
            let what = match stated {
                Some(first) if first == next => None,
                _ if seq == last => Some(What::NumberDoubled),
                _ if seq < last => Some(What::NumberOutOfOrder),
                _ => Some(What::NumberMissing),
            };
            if let Some(what) = what {
                let record = if what == What::NumberMissing { next } else { seq };
                let detail = format!("record {seq} follows record {last}");
                report.add(Violation { what, record: Some(record), index: Some(index), file: tile.path(), detail });
            }
        }
        self.last = Some(self.last.unwrap_or(0).max(seq));
        if entry.kind == Kind::Open
            && let Some(id) = control::text(entry.leaf, "log_id")
        {
            match &self.log_id {
                Some(log_id) if log_id != id => {
                    let detail = format!("it opens the log {id} in the log {log_id}");
                    let (record, index) = (Some(seq), Some(index));
                    report.add(Violation { what: What::Spliced, record, index, file: tile.path(), detail });
                }
                Some(_) => {}
                None => self.log_id = Some(id.to_owned()),
            }
        }
    }
}
