//! How long ago each block of a shard was found as sealed. Read on hot paths: plain numbers, no locks, no heap.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::shard::ShardState;

/// Why a shard is not as fresh as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotFresh {
    /// A check failed, could not be carried out, or is not on record.
    #[error("the shard is {}; {}", state.as_str(), remedy(*state))]
    State {
        /// Where the shard stands.
        state: ShardState,
    },
    /// Its oldest block was checked too long ago.
    #[error(
        "a block of the shard was last checked {age:?} ago and {max_age:?} is asked for; verify it or scrub more often"
    )]
    Stale {
        /// Time since the last check of the block that waits longest.
        age: Duration,
        /// What was asked for.
        max_age: Duration,
    },
}

fn remedy(state: ShardState) -> &'static str {
    match state {
        ShardState::Quarantined => "see its last fault, and repair it or release it",
        ShardState::Failed => "see its last fault, and release it and load it from a good file",
        ShardState::Repairing => "wait until its repair is through",
        ShardState::Suspect => "see its last fault",
        ShardState::Sealed | ShardState::Verified | ShardState::Unverified => {
            "see whether the continuous check and the audit log work, or verify it"
        }
    }
}

/// Times are nanoseconds on the monotonic clock of the shard's manager.
#[derive(Debug)]
pub(crate) struct Freshness {
    /// The last check of the block that was not checked for longest.
    oldest_ns: AtomicU64,
    /// Age of the oldest block from which on nothing can be said any more; `u64::MAX` while nobody checks continuously.
    limit_ns: AtomicU64,
    /// When the last check of all blocks together began.
    full_ns: AtomicU64,
    /// The last check of every block, from when somebody checks them one by one.
    blocks: OnceLock<Box<[AtomicU64]>>,
}

impl Freshness {
    /// All blocks were hashed at `now_ns`.
    pub(crate) const fn new(now_ns: u64) -> Self {
        Self {
            oldest_ns: AtomicU64::new(now_ns),
            limit_ns: AtomicU64::new(u64::MAX),
            full_ns: AtomicU64::new(now_ns),
            blocks: OnceLock::new(),
        }
    }

    /// Blocks are checked one by one from now on, and one that waits for longer than `limit` is late.
    pub(crate) fn watch(&self, blocks: usize, limit: Duration) {
        let known = self.full_ns();
        self.blocks.get_or_init(|| (0..blocks).map(|_| AtomicU64::new(known)).collect());
        self.limit_ns.store(nanoseconds(limit), Ordering::Release);
    }

    /// All blocks were found as sealed by a check that began at `began_ns`.
    pub(crate) fn all_checked(&self, began_ns: u64) {
        self.all_rechecked(began_ns);
        self.full_ns.fetch_max(began_ns, Ordering::AcqRel);
    }

    /// The same, where what was found says nothing of the seal: passes that check block by block go on as they were.
    pub(crate) fn all_rechecked(&self, began_ns: u64) {
        for block in self.blocks.get().into_iter().flatten() {
            block.fetch_max(began_ns, Ordering::AcqRel);
        }
        self.oldest_ns.fetch_max(began_ns, Ordering::AcqRel);
    }

    /// One block was found as sealed by a check that began at `began_ns`.
    pub(crate) fn checked(&self, block: u64, began_ns: u64) {
        if let Some(checked) = self.block(block) {
            checked.fetch_max(began_ns, Ordering::AcqRel);
        }
    }

    /// `oldest` is the block that now waits longest.
    pub(crate) fn set_oldest(&self, oldest: u64) {
        self.oldest_ns.fetch_max(self.block_ns(oldest), Ordering::AcqRel);
    }

    /// The last time at which a block was found as sealed.
    pub(crate) fn block_ns(&self, block: u64) -> u64 {
        self.block(block).map_or_else(|| self.full_ns(), |checked| checked.load(Ordering::Acquire))
    }

    /// When the last check of all blocks together began.
    pub(crate) fn full_ns(&self) -> u64 {
        self.full_ns.load(Ordering::Acquire)
    }

    /// Age of the block that was not checked for longest.
    pub(crate) fn oldest_age(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.oldest_ns.load(Ordering::Acquire)))
    }

    /// Whether the oldest block has waited for so long that nothing can be said any more.
    pub(crate) fn is_late(&self, now_ns: impl FnOnce() -> u64) -> bool {
        let limit = self.limit_ns.load(Ordering::Acquire);
        limit != u64::MAX && now_ns().saturating_sub(self.oldest_ns.load(Ordering::Acquire)) > limit
    }

    /// Age of every block, in order; empty while nobody checks them one by one.
    pub(crate) fn ages(&self, now_ns: u64) -> Vec<Duration> {
        let age = |checked: &AtomicU64| Duration::from_nanos(now_ns.saturating_sub(checked.load(Ordering::Acquire)));
        self.blocks.get().map(|blocks| blocks.iter().map(age).collect()).unwrap_or_default()
    }

    /// The same in whole units, one byte a block, in one allocation; 255 for so many and more.
    pub(crate) fn ages_in(&self, unit: Duration, now_ns: u64) -> Vec<u8> {
        let unit_ns = nanoseconds(unit).max(1);
        let age = |checked: &AtomicU64| {
            let age_ns = now_ns.saturating_sub(checked.load(Ordering::Acquire));
            u8::try_from(age_ns.checked_div(unit_ns).unwrap_or(0)).unwrap_or(u8::MAX)
        };
        self.blocks.get().map(|blocks| blocks.iter().map(age).collect()).unwrap_or_default()
    }

    fn block(&self, block: u64) -> Option<&AtomicU64> {
        self.blocks.get()?.get(usize::try_from(block).ok()?)
    }
}

/// A duration in nanoseconds; 584 years and more are as good as for ever.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn ages_for_a_map_are_whole_units_and_never_younger_than_they_are_told() {
        let freshness = Freshness::new(1_000);
        assert!(freshness.ages_in(Duration::from_nanos(1), 5_000).is_empty(), "nobody checks them one by one");
        freshness.watch(4, Duration::from_secs(1));
        let unit = Duration::from_micros(1);
        freshness.checked(1, 4_001);
        freshness.checked(2, 1_000_000);
        assert_eq!(freshness.ages_in(unit, 256_000), [255, 251, 0, 255]);
        assert_eq!(freshness.ages_in(unit, u64::MAX), [255; 4]);
        assert_eq!(freshness.ages_in(Duration::ZERO, 1_005), [5, 0, 0, 5], "no division by nothing");
    }
}
