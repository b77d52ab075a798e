//! The blocks of a shard for a map of them: when each was last found as sealed, and which were damaged.
//!
//! However many look, a map is made at most once in a while and then given to all of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use vram_residency::digest::{BLOCK_BYTES, block_count, block_range};
use vram_residency::{SealedShard, ShardId, ShardState};

use super::lock::lock;
use super::recent::Recent;
use super::report::{BlockMapView, BlockView, TensorView, now_ns};
use crate::exit::Failure;
use crate::jobs::count;
use crate::output::rfc3339;

/// Ages are told in hundredths of the period.
const UNITS: u32 = 100;
/// How long one map serves everybody, at least and at most: a quarter of the period in between.
const SERVES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// And at most where a record told of damage or repair since: whoever heard of it wants to see it, and many may come at
/// once.
const CHANGED: Duration = Duration::from_millis(50);
/// A map that nobody asked for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Tensors named of one block.
const TENSORS: usize = 16;

/// The maps that were made last, as they are sent.
#[derive(Debug, Default)]
pub(super) struct Maps(Mutex<BTreeMap<ShardId, Made>>);

/// A map, when it was made, and what was known then.
#[derive(Debug)]
struct Made {
    at: Instant,
    changes: u64,
    standing: Standing,
    map: Bytes,
}

/// What is told of the shard as a whole: its state, and when all of it was found as sealed. A map of before is not served
/// beside another one of these.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    state: ShardState,
    verified_ns: u64,
}

impl Standing {
    fn of(shard: &SealedShard) -> Self {
        Self { state: shard.state(), verified_ns: shard.last_verified_ns() }
    }
}

impl Maps {
    /// The map of a shard in JSON.
    pub(super) fn get(&self, shard: &SealedShard, recent: &Recent, period: Duration) -> Result<Bytes, Failure> {
        let serves = period.checked_div(4).unwrap_or_default().clamp(SERVES.0, SERVES.1);
        // Held while it is made: those who ask at the same time wait for the same one.
        let mut maps = lock(&self.0);
        maps.retain(|_, made| made.at.elapsed() < FORGOTTEN);
        // Read before the map is made: what changes meanwhile makes the next one.
        let (changes, standing) = (recent.changes(), Standing::of(shard));
        let serves = |made: &&Made| {
            made.standing == standing && made.at.elapsed() < if made.changes == changes { serves } else { CHANGED }
        };
        if let Some(made) = maps.get(shard.shard_id()).filter(serves) {
            return Ok(made.map.clone());
        }
        let map = serde_json::to_vec(&view(shard, recent, period));
        let map = Bytes::from(map.map_err(|error| Failure::new("defect", error.to_string()))?);
        maps.insert(*shard.shard_id(), Made { at: Instant::now(), changes, standing, map: map.clone() });
        Ok(map)
    }
}

fn view(shard: &SealedShard, recent: &Recent, period: Duration) -> BlockMapView {
    let unit = period.checked_div(UNITS).unwrap_or_default();
    BlockMapView {
        shard_id: *shard.shard_id(),
        state: shard.state(),
        time: rfc3339(now_ns()),
        bytes: shard.bytes(),
        block_bytes: BLOCK_BYTES,
        blocks: block_count(shard.bytes()),
        unit_seconds: unit.as_secs_f64(),
        ages: BASE64_STANDARD.encode(shard.block_ages_in(unit)),
        marks: recent.marks(shard.shard_id().as_str()),
    }
}

/// One block: its bytes, its age, what lies in it.
pub(super) fn block(shard: &SealedShard, block: u64, recent: &Recent) -> Result<BlockView, Failure> {
    let shard_id = shard.shard_id();
    let age = shard.block_age(block).ok_or_else(|| {
        let blocks = count(block_count(shard.bytes()), "block");
        Failure::usage(format!("'{shard_id}' has no block {block}; it has {blocks}, counted from 0"))
    })?;
    let range = block_range(shard.bytes(), block);
    let tensors = shard.table().tensors();
    let inside = tensors.get(tensors.partition_point(|tensor| tensor.end <= range.start)..).unwrap_or_default();
    let inside = inside.get(..inside.partition_point(|tensor| tensor.start < range.end)).unwrap_or_default();
    let named = inside.iter().take(TENSORS).map(|tensor| TensorView {
        name: tensor.name.to_string(),
        dtype: tensor.dtype.name(),
        start: tensor.start,
        end: tensor.end,
    });
    let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    Ok(BlockView {
        shard_id: *shard_id,
        block,
        start: range.start,
        end: range.end,
        age_seconds: age.as_secs_f64(),
        checked_at: rfc3339(now_ns().saturating_sub(age_ns)),
        tensors: named.collect(),
        more_tensors: inside.len().saturating_sub(TENSORS),
        mark: recent.mark(shard_id.as_str(), block),
    })
}
