//! Since when things are as they are, as far as the daemon saw it: it looks several times a second.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use vram_residency::{ShardId, ShardState};

use super::lock::lock;

/// What was seen last, and when it was seen first. Times are nanoseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Since(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    ready: Option<(bool, u64)>,
    states: BTreeMap<ShardId, (ShardState, u64)>,
}

impl Since {
    /// Since when the daemon is ready, or is not.
    pub(super) fn readiness(&self, ready: bool, now_ns: u64) -> u64 {
        let mut seen = self.seen();
        let same = seen.ready.filter(|(before, _)| *before == ready);
        let (_, since) = *seen.ready.insert(same.unwrap_or((ready, now_ns)));
        since
    }

    /// Since when a shard is in this state.
    pub(super) fn state(&self, shard_id: &ShardId, state: ShardState, now_ns: u64) -> u64 {
        let mut seen = self.seen();
        let entry = seen.states.entry(*shard_id).or_insert((state, now_ns));
        if entry.0 != state {
            *entry = (state, now_ns);
        }
        entry.1
    }

    /// Forgets one that was given back: another may have its name before anybody looks.
    pub(super) fn forget(&self, shard_id: &ShardId) {
        self.seen().states.remove(shard_id);
    }

    /// Forgets the shards that are not there any more.
    pub(super) fn keep(&self, is_there: impl Fn(&ShardId) -> bool) {
        self.seen().states.retain(|shard_id, _| is_there(shard_id));
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stays_until_what_it_is_of_changes() {
        let (since, id) = (Since::default(), ShardId::new("a").unwrap());
        assert_eq!((since.readiness(true, 5), since.readiness(true, 9), since.readiness(false, 11)), (5, 5, 11));
        assert_eq!(since.state(&id, ShardState::Sealed, 1), 1);
        assert_eq!(since.state(&id, ShardState::Verified, 2), 2);
        assert_eq!(since.state(&id, ShardState::Verified, 7), 2);
        since.keep(|_| false);
        assert_eq!(since.state(&id, ShardState::Verified, 8), 8, "another shard of that name");
    }
}
