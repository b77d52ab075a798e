//! How often something may happen, for each of several keys.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::serve::lock::lock;

/// So many at once, and then one in so long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    pub(super) burst: u32,
    pub(super) every: Duration,
}

/// Keeps each key to a bucket. Keys that are at rest are forgotten.
#[derive(Debug)]
pub(super) struct Pace<K> {
    bucket: Bucket,
    /// When each key's last turn would have come without the burst.
    turns: Mutex<BTreeMap<K, Instant>>,
}

impl<K: Ord + Copy> Pace<K> {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self { bucket, turns: Mutex::default() }
    }

    /// How long it is until the next turn comes, which is not taken by that.
    pub(super) fn wait_for(&self, key: K) -> Duration {
        let turns = lock(&self.turns);
        turns.get(&key).map_or(Duration::ZERO, |turn| self.wait(*turn, Instant::now()))
    }

    /// Takes a turn if it has come.
    pub(super) fn is_due(&self, key: K) -> bool {
        let now = Instant::now();
        let turns = lock(&self.turns);
        let due = turns.get(&key).is_none_or(|turn| self.wait(*turn, now).is_zero());
        drop(turns);
        due && self.take_at(key, now).is_zero()
    }

    fn take_at(&self, key: K, now: Instant) -> Duration {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| *turn > now);
        let turn = turns.get(&key).copied().unwrap_or(now);
        turns.insert(key, turn.checked_add(self.bucket.every).unwrap_or(turn));
        self.wait(turn, now)
    }

    fn wait(&self, turn: Instant, now: Instant) -> Duration {
        let burst = self.bucket.every.saturating_mul(self.bucket.burst.saturating_sub(1));
        turn.saturating_duration_since(now).saturating_sub(burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_each_waits_for_its_turn_and_others_do_not() {
        let pace = Pace::new(Bucket { burst: 3, every: Duration::from_millis(10) });
        let now = Instant::now();
        let waits: Vec<u128> = (0..6).map(|_| pace.take_at(1, now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 10, 20, 30]);
        assert_eq!(pace.take_at(2, now), Duration::ZERO);
        let later = now + Duration::from_secs(1);
        assert_eq!(pace.take_at(1, later), Duration::ZERO);
        assert_eq!(pace.turns.lock().unwrap().len(), 1, "who is at rest is forgotten");
    }
}
