//! What the audit trail said last: a few records, also of before the daemon's start, and which blocks it called damaged or
//! repaired since. So whoever comes late sees what happened before.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use audit_logging::{Kind, reader};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::lock::lock;
use super::report::{MarkState, MarkView, RecordView};
use crate::output::rfc3339;

/// Critical records kept, and others: a pass that is through must not push a fault out.
const CRITICAL: usize = 64;
const ROUTINE: usize = 32;
/// Blocks remembered of one shard. Who has more of them has other worries than which is forgotten first.
const MARKS: usize = 256;
/// Shards of which that is done.
const SHARDS: usize = 1024;

/// How a record says that it is critical, and which event it is of. In no text inside a record can this stand: quotes are
/// escaped there.
const IS_CRITICAL: &[u8] = br#""severity":"critical""#;
const OF_WHOLE_SHARDS: [&[u8]; 4] = [
    br#""event":"VramSealed""#,
    br#""event":"VramDeallocated""#,
    br#""event":"ScrubPassed""#,
    br#""event":"SealVerified""#,
];

/// Of these there may be ten in a second: they are counted elsewhere, and would leave no room for anything else.
const FREQUENT: &[u8] = br#""event":"FingerprintMatched""#;

/// Files of the log that are looked into for records of before the start: the one in use, and the one before where that has
/// only begun. 8 MiB each.
const FILES: usize = 2;

/// The events at the end of a log, oldest first; none where it cannot be read, which is told elsewhere. What is damaged is
/// passed over.
pub(super) fn earlier(dir: &Path) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let records = reader::tail(dir, FILES).into_iter().flatten().flatten();
    records.filter(|record| record.kind == Kind::Event).map(|record| (record.seq, record.leaf))
}

/// The last records, and what they say of blocks. Bounded.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    kept: Mutex<Kept>,
    /// When the last record was made, nanoseconds since 1970; 0 for never.
    last_ns: AtomicU64,
    /// Counts the records that may have changed what is known of blocks.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    critical: VecDeque<Record>,
    routine: VecDeque<Record>,
    count: u64,
    marks: BTreeMap<Box<str>, BTreeMap<u64, Mark>>,
}

#[derive(Debug, Default)]
struct Record {
    /// Counts every record: the order of the two lists together.
    nth: u64,
    seq: Option<u64>,
    leaf: Vec<u8>,
}

/// What the trail said last of a block.
#[derive(Debug, Clone, Copy)]
struct Mark {
    state: MarkState,
    seq: Option<u64>,
    time_ns: u64,
}

/// As much of a record as says something of a block or of all blocks.
#[derive(Deserialize)]
struct Said<'a> {
    event: &'a str,
    time_ns: u64,
    shard_id: Option<&'a str>,
    block: Option<u64>,
    first_block: Option<u64>,
}

impl Recent {
    /// Takes note of a record. Waits for nobody but those who copy a few records; once the lists are full, their memory is
    /// used again.
    pub(super) fn note(&self, seq: Option<u64>, leaf: &[u8], now_ns: u64) {
        self.last_ns.store(now_ns, Ordering::Release);
        let critical = contains(leaf, IS_CRITICAL);
        let mut kept = self.kept();
        if critical || OF_WHOLE_SHARDS.iter().any(|event| contains(leaf, event)) {
            kept.mark(seq, leaf);
            if critical {
                self.changes.fetch_add(1, Ordering::AcqRel);
            }
        }
        kept.keep(critical, seq, leaf);
    }

    /// Takes note of records from before this daemon's start, oldest first: they are shown, and say nothing of the blocks of
    /// what is resident now.
    pub(super) fn recall(&self, records: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        let mut kept = self.kept();
        for (seq, leaf) in records {
            let critical = contains(&leaf, IS_CRITICAL);
            kept.keep(critical, Some(seq), &leaf);
        }
    }

    /// When the last record was made; none where there was none.
    pub(super) fn last_at(&self) -> Option<String> {
        Some(self.last_ns.load(Ordering::Acquire)).filter(|at| *at > 0).map(rfc3339)
    }

    /// A number that is another one where something new is known of blocks.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The last records, oldest first.
    pub(super) fn records(&self) -> Vec<RecordView> {
        let mut found: Vec<(u64, Option<u64>, Vec<u8>)> = {
            let kept = self.kept();
            let records = kept.critical.iter().chain(&kept.routine);
            records.map(|record| (record.nth, record.seq, record.leaf.clone())).collect()
        };
        found.sort_unstable_by_key(|(nth, ..)| *nth);
        let view = |(_, seq, leaf): (u64, Option<u64>, Vec<u8>)| {
            let record = RawValue::from_string(String::from_utf8(leaf).ok()?).ok()?;
            Some(RecordView { seq, record })
        };
        found.into_iter().filter_map(view).collect()
    }

    /// What is known of the blocks of a shard that were damaged.
    pub(super) fn marks(&self, shard_id: &str) -> Vec<MarkView> {
        let kept = self.kept();
        kept.marks.get(shard_id).into_iter().flatten().map(|(block, mark)| mark.view(*block)).collect()
    }

    /// The same of one block.
    pub(super) fn mark(&self, shard_id: &str, block: u64) -> Option<MarkView> {
        self.kept().marks.get(shard_id)?.get(&block).map(|mark| mark.view(block))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

impl Kept {
    fn keep(&mut self, critical: bool, seq: Option<u64>, leaf: &[u8]) {
        if !critical && contains(leaf, FREQUENT) {
            return;
        }
        self.count = self.count.saturating_add(1);
        let nth = self.count;
        let (list, most) = if critical { (&mut self.critical, CRITICAL) } else { (&mut self.routine, ROUTINE) };
        let mut record = if list.len() >= most { list.pop_front().unwrap_or_default() } else { Record::default() };
        record.leaf.clear();
        record.leaf.extend_from_slice(leaf);
        list.push_back(Record { nth, seq, leaf: record.leaf });
    }

    fn mark(&mut self, seq: Option<u64>, leaf: &[u8]) {
        let Ok(said) = serde_json::from_slice::<Said<'_>>(leaf) else { return };
        let Some(shard_id) = said.shard_id else { return };
        let state = match said.event {
            "SealVerificationFailed" | "DamageDescribed" | "RepairStarted" => MarkState::Damaged,
            "BlockRepaired" => MarkState::Repaired,
            "RepairFailed" => MarkState::Failed,
            // Another seal, or none: what was said of its blocks is over.
            "VramSealed" | "VramDeallocated" | "ShardUnsealed" | "ShardResealed" => {
                self.marks.remove(shard_id);
                return;
            }
            // Every block was found as sealed.
            "ScrubPassed" | "SealVerified" => {
                if let Some(marks) = self.marks.get_mut(shard_id) {
                    marks.retain(|_, mark| mark.state == MarkState::Repaired);
                }
                return;
            }
            _ => return,
        };
        let Some(block) = said.block.or(said.first_block) else { return };
        if !self.marks.contains_key(shard_id) {
            if self.marks.len() >= SHARDS {
                return;
            }
            self.marks.insert(shard_id.into(), BTreeMap::new());
        }
        let Some(marks) = self.marks.get_mut(shard_id) else { return };
        if marks.len() >= MARKS && !marks.contains_key(&block) {
            // The repaired ones first, the oldest of them first.
            let least = marks.iter().min_by_key(|(_, mark)| (mark.state != MarkState::Repaired, mark.time_ns));
            if let Some(least) = least.map(|(block, _)| *block) {
                marks.remove(&least);
            }
        }
        marks.insert(block, Mark { state, seq, time_ns: said.time_ns });
    }
}

impl Mark {
    fn view(&self, block: u64) -> MarkView {
        MarkView { block, state: self.state, seq: self.seq, time: rfc3339(self.time_ns) }
    }
}

fn contains(leaf: &[u8], part: &[u8]) -> bool {
    leaf.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: &str, severity: &str, rest: &str) -> Vec<u8> {
        format!(
            r#"{{"v":1,"time_ns":1764000000000000000,"severity":"{severity}","event":"{event}","shard_id":"a"{rest}}}"#
        )
        .into_bytes()
    }

    #[test]
    fn a_block_is_damaged_then_repaired_and_well_only_when_all_were_seen() {
        let recent = Recent::default();
        let state = |block| recent.mark("a", block).map(|mark| mark.state);
        recent.note(Some(1), &record("FaultInjected", "critical", r#","byte":7,"bit":1"#), 1);
        assert_eq!(state(0), None, "a drill is not given away before it is found");
        recent.note(Some(2), &record("SealVerificationFailed", "critical", r#","first_block":3"#), 1);
        recent.note(Some(3), &record("RepairFailed", "critical", r#","block":4"#), 1);
        assert_eq!((state(3), state(4)), (Some(MarkState::Damaged), Some(MarkState::Failed)));
        recent.note(Some(9), &record("BlockRepaired", "critical", r#","block":3"#), 1);
        let marks = recent.marks("a");
        assert_eq!((marks.len(), marks[0].block, marks[0].seq), (2, 3, Some(9)));
        assert_eq!(marks[0].time, "2025-11-24T16:00:00Z");
        recent.note(Some(10), &record("ScrubPassed", "routine", ""), 1);
        assert_eq!((state(3), state(4)), (Some(MarkState::Repaired), None));
        recent.note(Some(11), &record("VramSealed", "routine", ""), 1);
        assert_eq!(state(3), None, "another seal");
    }

    #[test]
    fn what_is_kept_is_bounded_and_faults_outlive_passes() {
        let recent = Recent::default();
        recent.note(Some(0), &record("SealVerificationFailed", "critical", r#","first_block":3"#), 1);
        for seq in 1..2000 {
            recent.note(Some(seq), &record("ScrubPassed", "routine", ""), seq);
        }
        for seq in 2000..3000 {
            recent.note(Some(seq), &record("FingerprintMatched", "routine", ""), seq);
        }
        let records = recent.records();
        assert_eq!((records.len(), records[0].seq, records[32].seq), (33, Some(0), Some(1999)));
        for block in 0..1000 {
            recent.note(None, &record("BlockRepaired", "critical", &format!(r#","block":{block}"#)), 1);
        }
        assert_eq!((recent.records().len(), recent.marks("a").len()), (CRITICAL + ROUTINE, MARKS));
    }

    #[test]
    fn what_was_before_the_start_is_shown_and_says_nothing_of_blocks() {
        let recent = Recent::default();
        let fault = record("SealVerificationFailed", "critical", r#","first_block":3"#);
        let passes = (2..500).map(|seq| (seq, record("ScrubPassed", "routine", "")));
        recent.recall(std::iter::once((1, fault)).chain(passes));
        let records = recent.records();
        assert_eq!((records.len(), records[0].seq, records[32].seq), (33, Some(1), Some(499)));
        assert_eq!((recent.marks("a").len(), recent.last_at(), recent.changes()), (0, None, 0));
    }

    #[test]
    fn a_name_cannot_pass_for_a_severity() {
        let recent = Recent::default();
        let name = serde_json::to_string(r#"x","severity":"critical","event":"BlockRepaired"#).unwrap();
        recent.note(Some(1), &record("VramAllocated", "routine", &format!(r#","block":1,"tensor":{name}"#)), 1);
        assert!(recent.kept().critical.is_empty() && recent.marks("a").is_empty());
    }
}
