//! Which refusals are records. The first of a user and a kind at once; of many, some, and each says how many have none.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vram_residency::handout::ErrorCode;

use super::rules::Refusal;
use crate::serve::lock::lock;

/// So many records of one kind at once, and then one in so long.
const BURST: u32 = 5;
const EVERY: Duration = Duration::from_secs(10);
/// Of users on no list, who all count as one: it is anybody's to be one of them.
const STRANGERS_BURST: u32 = 10;
const STRANGERS_EVERY: Duration = Duration::from_secs(1);

/// A refusal to be recorded, of whom, and how many others like it have no record.
pub(super) type Due = (Refusal, u32, u64);

/// What was recorded lately, and what was not.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<Kind, Kept>>);

/// A user on the list, or any other, and why.
type Kind = (Option<u32>, &'static str);

#[derive(Debug)]
struct Kept {
    /// When the next record of this kind would be due without the burst.
    turn: Instant,
    /// The last refusal without a record, and how many there are.
    waiting: Option<(Refusal, u32)>,
    count: u64,
}

impl Refusals {
    /// Takes note of a refusal; gives it back where it is to be recorded now.
    pub(super) fn note(&self, refusal: &Refusal, uid: u32, now: Instant) -> Option<Due> {
        let mut kinds = lock(&self.0);
        let kind = Self::kind(refusal, uid);
        let kept = kinds.entry(kind).or_insert(Kept { turn: now, waiting: None, count: 0 });
        if kept.take(kind, now) {
            let unrecorded = std::mem::take(&mut kept.count);
            kept.waiting = None;
            return Some((refusal.clone(), uid, unrecorded));
        }
        kept.count = kept.count.saturating_add(1);
        kept.waiting = Some((refusal.clone(), uid));
        None
    }

    /// What is left to be recorded of kinds whose turn has come; at the end, of all.
    pub(super) fn due(&self, now: Instant, is_end: bool) -> Vec<Due> {
        let mut kinds = lock(&self.0);
        let mut due = Vec::new();
        for (kind, kept) in &mut *kinds {
            if (is_end || kept.is_due(*kind, now))
                && let Some((refusal, uid)) = kept.waiting.take()
            {
                let _ = kept.take(*kind, now);
                due.push((refusal, uid, std::mem::take(&mut kept.count).saturating_sub(1)));
            }
        }
        kinds.retain(|_, kept| kept.turn > now || kept.waiting.is_some());
        due
    }

    /// Counts a refusal again whose record was not kept, and those that it stood for: the next record of the kind does.
    pub(super) fn put_back(&self, (refusal, uid, unrecorded): Due, now: Instant) {
        let mut kinds = lock(&self.0);
        let kind = Self::kind(&refusal, uid);
        let kept = kinds.entry(kind).or_insert(Kept { turn: now, waiting: None, count: 0 });
        kept.count = kept.count.saturating_add(unrecorded).saturating_add(1);
        kept.waiting.get_or_insert((refusal, uid));
    }

    fn kind(refusal: &Refusal, uid: u32) -> Kind {
        let uid = (refusal.code != ErrorCode::ForbiddenUser).then_some(uid);
        (uid, refusal.code.as_str())
    }
}

impl Kept {
    fn is_due(&self, kind: Kind, now: Instant) -> bool {
        let (burst, every) = bounds(kind);
        self.turn.saturating_duration_since(now) <= every.saturating_mul(burst.saturating_sub(1))
    }

    /// Takes a turn if it has come.
    fn take(&mut self, kind: Kind, now: Instant) -> bool {
        let is_due = self.is_due(kind, now);
        if is_due {
            let turn = self.turn.max(now);
            self.turn = turn.checked_add(bounds(kind).1).unwrap_or(turn);
        }
        is_due
    }
}

const fn bounds((uid, _): Kind) -> (u32, Duration) {
    match uid {
        Some(_) => (BURST, EVERY),
        None => (STRANGERS_BURST, STRANGERS_EVERY),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_kind_is_recorded_at_once_and_none_is_forgotten() {
        let (refusals, begun) = (Refusals::default(), Instant::now());
        let unknown = Refusal::new(ErrorCode::UnknownShard, "no such shard");
        let (mut records, mut stood_for) = (0_u64, 0_u64);
        let mut count = |due: Option<Due>| {
            if let Some((_, _, unrecorded)) = due {
                records += 1;
                stood_for += 1 + unrecorded;
            }
        };
        // Five hundred a second for a minute.
        for number in 0..30_000_u64 {
            count(refusals.note(&unknown, 7, begun + Duration::from_millis(2 * number)));
        }
        // Another kind, and another user, meanwhile: at once.
        let now = begun + Duration::from_secs(60);
        assert!(refusals.note(&Refusal::new(ErrorCode::NotVerified, "late"), 7, now).is_some());
        assert!(refusals.note(&unknown, 8, now).is_some());
        // Nobody asks any more, and still the rest is on record.
        for second in 60..90 {
            refusals.due(begun + Duration::from_secs(second), false).into_iter().for_each(|due| count(Some(due)));
        }
        assert_eq!((records, stood_for), (5 + 6, 30_000));
        assert!(refusals.due(begun + Duration::from_secs(200), false).is_empty());
        assert!(refusals.0.lock().unwrap().is_empty(), "who is at rest is forgotten");
    }

    #[test]
    fn what_no_record_was_kept_of_is_in_the_next_one_that_is() {
        let (refusals, begun) = (Refusals::default(), Instant::now());
        let unknown = Refusal::new(ErrorCode::UnknownShard, "no such shard");
        let (mut asked, mut stood_for) = (0, 0);
        // A hundred a second for two minutes; in the second half of the first the disk is full.
        for number in 0..12_000_u64 {
            let now = begun + Duration::from_millis(10 * number);
            let is_full = (3000..6000).contains(&number);
            asked += 1;
            let noted = refusals.note(&unknown, 7, now);
            let later = if number % 100 == 0 { refusals.due(now, false) } else { Vec::new() };
            for due in noted.into_iter().chain(later) {
                match is_full {
                    true => refusals.put_back(due, now),
                    false => stood_for += 1 + due.2,
                }
            }
        }
        let end = begun + Duration::from_secs(120);
        // Also where it is the last one, and nobody asks any more.
        for due in refusals.due(end, true) {
            refusals.put_back(due, end);
        }
        stood_for += refusals.due(end + EVERY * BURST, false).into_iter().map(|due| 1 + due.2).sum::<u64>();
        assert_eq!((asked, stood_for), (12_000, 12_000));
    }

    #[test]
    fn strangers_count_as_one_and_the_end_leaves_nothing_out() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let stranger = Refusal::new(ErrorCode::ForbiddenUser, "who are you");
        let recorded = (0..50).filter(|uid| refusals.note(&stranger, 5000 + uid, now).is_some()).count();
        assert_eq!(recorded, 10);
        let due = refusals.due(now, true);
        assert_eq!(due.iter().map(|(_, uid, unrecorded)| (*uid, *unrecorded)).collect::<Vec<_>>(), [(5049, 39)]);
    }
}
