//! Which blocks were bad before. Faults that come back are the hardware's.

use std::collections::{HashMap, VecDeque};

use super::ScrubOptions;
use crate::shard_id::ShardId;

const DAY_NS: u64 = 86_400_000_000_000;
/// Blocks remembered at most; whoever has more bad ones is quarantined for their number.
const REMEMBERED: usize = 1 << 16;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// How often a block was found damaged, and whether it still is.
    faults: HashMap<(ShardId, u64), Faults>,
    /// When blocks were repaired within the last day, the oldest first.
    repairs: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Faults {
    count: u32,
    open: bool,
}

impl Ledger {
    /// A block was found damaged. One that was not as sealed in between has still the same fault. Says why the device
    /// should be given up, if so.
    pub(super) fn fault(&mut self, shard_id: ShardId, block: u64, options: &ScrubOptions) -> Option<String> {
        if self.faults.len() >= REMEMBERED && !self.faults.contains_key(&(shard_id, block)) {
            return None;
        }
        let faults = self.faults.entry((shard_id, block)).or_default();
        if std::mem::replace(&mut faults.open, true) {
            return None;
        }
        faults.count = faults.count.saturating_add(1);
        let count = faults.count;
        (options.repeat_faults > 0 && count >= options.repeat_faults).then(|| {
            format!("block {block} of '{shard_id}' was damaged {count} time{}", if count == 1 { "" } else { "s" })
        })
    }

    /// A block was found as sealed, or made so again.
    pub(super) fn well(&mut self, shard_id: ShardId, block: u64) {
        if let Some(faults) = self.faults.get_mut(&(shard_id, block)) {
            faults.open = false;
        }
    }

    /// So many blocks were repaired. Says why the device should be given up, if so.
    pub(super) fn repairs(&mut self, count: usize, now_ns: u64, options: &ScrubOptions) -> Option<String> {
        self.repairs.extend(std::iter::repeat_n(now_ns, count.min(REMEMBERED)));
        while self.repairs.front().is_some_and(|at| now_ns.saturating_sub(*at) > DAY_NS) {
            self.repairs.pop_front();
        }
        let limit = usize::try_from(options.repairs_per_day).unwrap_or(usize::MAX);
        let count = self.repairs.len();
        self.repairs.truncate(REMEMBERED);
        (limit > 0 && count >= limit)
            .then(|| format!("{count} block{} repaired within 24 hours", if count == 1 { " was" } else { "s were" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_faults_at_one_place_or_three_repairs_in_a_day_are_too_many() {
        let options = ScrubOptions::default();
        let id = |name| ShardId::new(name).unwrap();
        let mut ledger = Ledger::default();
        assert_eq!(ledger.fault(id("a"), 1, &options), None);
        assert_eq!(ledger.fault(id("a"), 2, &options), None);
        assert_eq!(ledger.fault(id("b"), 1, &options), None);
        assert_eq!(ledger.fault(id("a"), 1, &options), None, "nobody repaired it: the same fault, found again");
        ledger.well(id("a"), 1);
        assert!(ledger.fault(id("a"), 1, &options).unwrap().contains("block 1 of 'a'"));

        let hour = DAY_NS / 24;
        assert_eq!(ledger.repairs(1, 0, &options), None);
        assert_eq!(ledger.repairs(1, 20 * hour, &options), None);
        assert_eq!(ledger.repairs(1, 25 * hour, &options), None, "the first is a day old");
        assert!(ledger.repairs(1, 26 * hour, &options).is_some());

        let never = ScrubOptions { repeat_faults: 0, repairs_per_day: 0, ..options };
        for _ in 0..9 {
            ledger.well(id("a"), 1);
            assert_eq!((ledger.fault(id("a"), 1, &never), ledger.repairs(9, 30 * hour, &never)), (None, None));
        }
    }
}
