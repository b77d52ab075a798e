//! Pruning: records older than some number are given up, on purpose and announced; every hash of the tree stays.
//!
//! The order in which things become durable: the record that announces it; a checkpoint that covers that record; the file
//! `pruned` beside the segments; `minimum-index` beside the checkpoint; then bundles and segments are removed. After a
//! crash at any point the next start finds either nothing removed, or a file that says what may be missing, and goes on
//! removing.

use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::growth::Growth;
use super::replay::Trouble;
use super::store::{self, Store};
use super::tail::Tail;
use super::{Refusal, json};
use crate::control;
use crate::floor::{self, Floor};
use crate::frame::Frame;
use crate::segment;
use crate::tlog::entry::{self, Entry};
use crate::tlog::tree::{HASH_BYTES, Hash, TILE_WIDTH, Tile};
use crate::walk;

/// The file that tells other programs what may be missing.
const MINIMUM: &str = "minimum-index";

/// What is to be pruned. Whole bundles of 256 entries and whole segments go, so a few more records stay than are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneOptions {
    /// Records below this number may go.
    pub before: u64,
    /// Published entries from this place on stay, whatever their numbers. Default: no such place.
    pub limit: u64,
    /// How old records have to be for this, if that is why; for the record only.
    pub keep: Option<Duration>,
    /// Who asked for it, as a commitment; for the record only.
    pub actor: Option<String>,
    /// Only looks what would go.
    pub dry_run: bool,
}

impl PruneOptions {
    /// Everything below this number.
    #[must_use]
    pub fn before(seq: u64) -> Self {
        Self { before: seq, limit: u64::MAX, keep: None, actor: None, dry_run: false }
    }
}

/// What came of a pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Published entries below this place are given up by now, except those that are kept. All their hashes are there.
    pub minimum_index: u64,
    /// The number of the record at that place.
    pub first_seq: u64,
    /// Entries that this pruning removed; 0 if there was nothing to remove.
    pub entries: u64,
    /// Entries below that place that stay published, because a record in their bundle states a change of key.
    pub kept: u64,
    /// Records below that place that still stand in segments, because the segment has younger ones too.
    pub in_segments: u64,
    /// The number of the first segment file that is kept.
    pub first_segment: u64,
}

/// Why nothing was pruned.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PruneError {
    /// The log is not published any more.
    #[error("nothing is pruned in a log that is refused: {0}")]
    Refused(Refusal),
    /// The log is closed, or closing.
    #[error("the log is closed: nothing can be pruned without a record of it; open it and ask again")]
    Closed,
    /// The record that announces the pruning did not get into the log.
    #[error("the record that announces the pruning was lost, so nothing was removed: check the disk and ask again")]
    NotRecorded,
    /// It takes longer than the caller waits.
    #[error("the pruning is not done yet; it goes on by itself, and what is left is removed at the next start")]
    Pending,
    /// A file could not be read, written or removed.
    #[error("the pruning came to a halt: {0}; check the disk, it is taken up again")]
    Io(String),
}

/// Where a segment begins in the tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    segment: u64,
    index: u64,
}

/// A pruning in progress.
struct Announced {
    floor: Floor,
    pruned: Pruned,
    seq: u64,
    /// The size right behind its record, once that is in the tree.
    at: Option<u64>,
}

/// The part of the engine that prunes.
#[derive(Default)]
pub(super) struct Pruner {
    /// Where the log begins now.
    floor: Option<Floor>,
    /// Whether the record that announced it was seen.
    vouched: bool,
    /// Whether there may be files left of what was given up.
    dirty: bool,
    starts: Vec<Start>,
    announced: Option<Announced>,
}

impl Pruner {
    pub(super) fn new(floor: Option<Floor>) -> Self {
        let dirty = floor.is_some();
        Self { floor, dirty, ..Self::default() }
    }

    /// Everything is read anew.
    pub(super) fn begin_again(&mut self) {
        self.starts.clear();
        self.vouched = false;
        if let Some(announced) = &mut self.announced {
            announced.at = None;
        }
    }

    /// Bundles that end here or before may be missing.
    pub(super) fn minimum(&self) -> u64 {
        self.floor.as_ref().map_or(0, |floor| floor.minimum)
    }

    /// Records that the log has before the first that it still holds.
    pub(super) fn first_index(&self) -> u64 {
        self.floor.as_ref().map_or(0, |floor| floor.index)
    }

    /// Where the log begins.
    pub(super) fn floor(&self) -> Option<&Floor> {
        self.floor.as_ref()
    }

    /// A record is in the tree, as the last of `size`.
    /// `signed`: whether a signature covers it.
    pub(super) fn saw(&mut self, frame: &Frame<'_>, segment: u64, size: u64, signed: bool) {
        if self.starts.last().is_none_or(|start| start.segment != segment) {
            self.starts.push(Start { segment, index: size.saturating_sub(1) });
        }
        self.vouched |= signed && self.floor.as_ref().is_some_and(|floor| floor.is_announced_by(frame));
        if let Some(announced) = self.announced.as_mut().filter(|new| new.floor.is_announced_by(frame)) {
            announced.at = Some(size);
        }
    }

    /// Everything that was signed was read: the record must have been there.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        match &self.floor {
            Some(floor) if !self.vouched => Err(Trouble::Refuse(Refusal::Unannounced { segment: floor.segment })),
            _ => Ok(()),
        }
    }

    /// The tree as it was where the log begins, from the hashes that were kept.
    pub(super) fn base(&self, target: u64, store: &Store) -> Result<Growth, Trouble> {
        let mut growth = Growth::default();
        let Some(floor) = &self.floor else { return Ok(growth) };
        let lost = |file: String| Trouble::Refuse(Refusal::Irreplaceable { file });
        if target <= floor.minimum {
            return Err(lost("checkpoint".to_owned()));
        }
        for number in 0..floor.index.div_ceil(TILE_WIDTH) {
            let tile = Tile::hashes(0, number, TILE_WIDTH as u16);
            let tile = tile.ok_or_else(|| Trouble::Retry("the log is larger than any log".to_owned()))?;
            let bytes = store.read(&tile.path())?.filter(|bytes| bytes.len() == HASH_BYTES << 8);
            let bytes = bytes.ok_or_else(|| lost(tile.path()))?;
            let most = floor.index.saturating_sub(tile.start());
            for hash in bytes.chunks_exact(HASH_BYTES).take(usize::try_from(most).unwrap_or(usize::MAX)) {
                let hash = hash.try_into().map(Hash).map_err(|_| lost(tile.path()))?;
                growth.push_hash(hash).map_err(|error| Trouble::Retry(error.to_string()))?;
            }
        }
        Ok(growth)
    }
}

impl Engine {
    /// One step towards what is wished for; `None` while there is more to do.
    pub(crate) fn prune(&mut self, wish: &PruneOptions) -> Result<Option<Pruned>, PruneError> {
        if self.replay.is_some() {
            return Ok(None);
        }
        if self.pruner.announced.is_none() || wish.dry_run {
            let (floor, pruned) = self.plan(wish).map_err(|error| PruneError::Io(error.to_string()))?;
            if wish.dry_run || floor.minimum == self.pruner.minimum() {
                return Ok(Some(pruned));
            }
            self.announce(floor, pruned, wish)?;
        }
        let Some(announced) = &self.pruner.announced else { return Ok(None) };
        match announced.at {
            Some(at) if at <= self.visible => {}
            None if announced.seq < self.tail.settled() => {
                self.pruner.announced = None;
                return Err(PruneError::NotRecorded);
            }
            _ => return Ok(None),
        }
        let (floor, pruned) = (announced.floor.clone(), announced.pruned);
        let io = |error: std::io::Error| PruneError::Io(error.to_string());
        let path = self.shared.dir.join(floor::FILE);
        store::replace(&*self.shared.vfs, &path, &floor.leaf).map_err(io)?;
        self.pruner.starts.retain(|start| start.segment >= floor.segment);
        self.pruner = Pruner {
            floor: Some(floor),
            vouched: true,
            dirty: true,
            starts: std::mem::take(&mut self.pruner.starts),
            announced: None,
        };
        self.clean().map_err(io)?;
        Ok(Some(pruned))
    }

    fn announce(&mut self, floor: Floor, pruned: Pruned, wish: &PruneOptions) -> Result<(), PruneError> {
        let keep = wish.keep.map(|keep| format!(r#","keep_s":{}"#, keep.as_secs())).unwrap_or_default();
        let actor = wish.actor.as_deref().map(|actor| format!(r#","actor":"{}""#, json(actor))).unwrap_or_default();
        let text = format!("{}{keep}{actor}", floor.text(pruned.first_seq));
        let (seq, leaf) = self.tell(&text).ok_or(PruneError::Closed)?;
        let floor = Floor { leaf: leaf.into_bytes(), ..floor };
        self.pruner.announced = Some(Announced { floor, pruned, seq, at: None });
        Ok(())
    }

    /// Where the log would begin, and what that comes to.
    fn plan(&self, wish: &PruneOptions) -> std::io::Result<(Floor, Pruned)> {
        let before = self.pruner.minimum();
        // The last bundle stays, so that there is a record to say where the rest begins.
        let last = self.visible.saturating_sub(1) / TILE_WIDTH;
        let wanted = self.first_bundle(wish.before, before / TILE_WIDTH, last)?;
        let minimum = wanted.min(wish.limit / TILE_WIDTH).saturating_mul(TILE_WIDTH);
        let at = minimum.max(before);
        let first_seq = self.bundle(at / TILE_WIDTH)?.map_or(1, |(first, _)| first);
        let begun = Floor { segment: 1, last_seq: 0, index: 0, minimum: at, keys: 0, leaf: Vec::new() };
        let mut floor = self.pruner.floor().map_or(begun, |floor| Floor { minimum: at, ..floor.clone() });
        let (vfs, dir) = (&*self.shared.vfs, &self.shared.dir);
        for start in self.pruner.starts.iter().rev().filter(|start| at > before && start.index <= at) {
            // What stands before it, as the segment itself says.
            let head = walk::head(vfs, dir, start.segment).map_err(std::io::Error::other)?;
            if let Some(link) = head.link.filter(|_| start.segment > floor.segment) {
                floor = Floor { segment: start.segment, last_seq: link.last_seq, index: start.index, ..floor };
                break;
            }
        }
        let Below { gone, kept, keys } = self.below(at)?;
        let known = self.pruner.floor().map_or(0, |floor| floor.keys);
        if keys < known {
            let what = format!(
                "{known} changes of key were kept below entry {before} and {keys} are there: put their bundles back from a replica"
            );
            return Err(std::io::Error::other(what));
        }
        floor.keys = keys;
        let pruned = Pruned {
            minimum_index: at,
            first_seq,
            entries: (gone.len() as u64).saturating_mul(TILE_WIDTH),
            kept: kept.saturating_mul(TILE_WIDTH),
            in_segments: at.saturating_sub(floor.index),
            first_segment: floor.segment,
        };
        Ok((floor, pruned))
    }

    /// The bundles before this place: those that can go, and those that cannot, since whoever follows the keys needs them.
    fn below(&self, minimum: u64) -> std::io::Result<Below> {
        let mut below = Below::default();
        for tile in (0..minimum / TILE_WIDTH).filter_map(|number| Tile::entries(number, TILE_WIDTH as u16)) {
            let Some(bytes) = self.store.read(&tile.path())? else { continue };
            match changes_of_key(&bytes) {
                Some(0) => below.gone.push(tile),
                changes => {
                    below.kept = below.kept.saturating_add(1);
                    below.keys = below.keys.saturating_add(changes.unwrap_or(0));
                }
            }
        }
        Ok(below)
    }

    /// The bundle in which the first record with this number or a higher one lies, from bundle `low` to bundle `high`.
    fn first_bundle(&self, seq: u64, mut low: u64, mut high: u64) -> std::io::Result<u64> {
        while low < high {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            match self.bundle(middle)? {
                Some((_, last)) if last >= seq => high = middle,
                Some(_) => low = middle.saturating_add(1),
                None => return Ok(low),
            }
        }
        Ok(low)
    }

    /// The first and the last number in a bundle; `None` if it is not there, or no bundle.
    fn bundle(&self, number: u64) -> std::io::Result<Option<(u64, u64)>> {
        let width = self.visible.saturating_sub(number.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
        let tile = u16::try_from(width).ok().and_then(|width| Tile::entries(number, width));
        let bytes = tile.map_or(Ok(None), |tile| self.store.read(&tile.path()))?;
        let entries = bytes.as_deref().and_then(|bytes| entry::split(bytes).ok()).unwrap_or_default();
        let number = |bytes: &&[u8]| Entry::parse(bytes).ok().map(|entry| entry.seq);
        Ok(entries.first().and_then(number).zip(entries.last().and_then(number)))
    }

    /// Removes what was given up, if any of it is left.
    pub(super) fn clean(&mut self) -> std::io::Result<()> {
        let Some(minimum) = self.pruner.floor().map(|floor| floor.minimum).filter(|_| self.pruner.dirty) else {
            return Ok(());
        };
        let text = format!("{minimum}\n");
        if self.store.read(MINIMUM)?.as_deref() != Some(text.as_bytes()) {
            self.store.replace(MINIMUM, text.as_bytes())?;
        }
        let Below { gone, .. } = self.below(minimum)?;
        self.store.remove(&gone)?;
        let shared = Arc::clone(&self.shared);
        let left = walk::list(&*shared.vfs, &shared.dir)?.left;
        for index in &left {
            let path = segment::path(&shared.dir, *index);
            shared.vfs.remove(&path).map_err(|error| {
                std::io::Error::new(error.kind(), format!("{} cannot be removed: {error}", path.display()))
            })?;
        }
        if !left.is_empty() {
            shared.vfs.sync_dir(&shared.dir)?;
        }
        self.pruner.dirty = false;
        Ok(())
    }
}

/// Bundles before some place.
#[derive(Default)]
struct Below {
    gone: Vec<Tile>,
    /// How many have to stay, and how many changes of key their records state.
    kept: u64,
    keys: u64,
}

/// How many records of a bundle state a change of key; `None` for one that is not understood, and therefore kept.
fn changes_of_key(bundle: &[u8]) -> Option<u64> {
    let mut changes = 0u64;
    for bytes in entry::split(bundle).ok()? {
        let entry = Entry::parse(bytes).ok()?;
        changes = changes.saturating_add(u64::from(control::states_key(entry.kind, entry.leaf)));
    }
    Some(changes)
}

/// The tail of a log, from where it begins.
pub(super) fn tail(engine: &Engine) -> Tail {
    let shared = &engine.shared;
    Tail::new(Arc::clone(&shared.vfs), &shared.dir, engine.pruner.floor())
}
