//! The block values of shards that were unsealed or released: what stale bytes are recognised by.

use std::collections::VecDeque;

use crate::damage::Known;
use crate::digest::BlockValue;
use crate::shard_id::ShardId;

/// Shards remembered. Their values take 0.003 % of what was resident.
const REMEMBERED: usize = 16;

#[derive(Debug)]
struct Old {
    shard_id: ShardId,
    region_bytes: u64,
    values: Box<[BlockValue]>,
}

/// The last few, the newest first.
#[derive(Debug, Default)]
pub(super) struct Past {
    shards: VecDeque<Old>,
}

impl Past {
    pub(super) fn remember(&mut self, shard_id: ShardId, region_bytes: u64, values: Box<[BlockValue]>) {
        self.shards.push_front(Old { shard_id, region_bytes, values });
        self.shards.truncate(REMEMBERED);
    }

    /// Whether the bytes were once this block of this shard.
    pub(super) fn had(&self, shard_id: &ShardId, block: u64, bytes: &[u8]) -> bool {
        self.shards.iter().filter(|old| old.shard_id == *shard_id).any(|old| old.known().has_at(block, bytes))
    }
}

impl Old {
    fn known(&self) -> Known<'_> {
        Known { region_bytes: self.region_bytes, values: &self.values }
    }
}
