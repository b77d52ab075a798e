//! Taking up a log that was published before: what the log gives must be what was signed, byte for byte.

use std::collections::BTreeMap;
use std::io;

use super::Refusal;
use super::growth::{Growth, TileFile};
use super::store::Store;
use crate::finding::Violation;
use crate::frame::Kind;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::entry::{self, Entry};
use crate::tlog::tree::{HASH_BYTES, Hash, TILE_WIDTH, Tile, tile_hash};

/// Why the work stops.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It may succeed later.
    Retry(String),
    Refuse(Refusal),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Trouble::Retry(error.to_string())
    }
}

/// A bundle as it was published.
struct Bundle {
    tile: Tile,
    /// `None` if the file is not there.
    entries: Option<Vec<Vec<u8>>>,
}

/// Compares the records of the log with what was published, up to the largest size that was signed.
#[derive(Default)]
pub(crate) struct Replay {
    /// The largest size that was signed.
    target: u64,
    /// Sizes that were signed, and the root of each.
    roots: BTreeMap<u64, Hash>,
    /// Bundles and tiles that end here or before were pruned on purpose.
    minimum: u64,
    bundle: Option<Bundle>,
    /// The segment in which the log is damaged, until a record from another one fits again. Only there may records be
    /// missing that were published.
    hole: Option<u64>,
    pub(crate) missing: u64,
    pub(crate) first_missing: u64,
}

impl Replay {
    pub(crate) fn new(signed: impl IntoIterator<Item = Checkpoint>, minimum: u64) -> Self {
        let roots: BTreeMap<u64, Hash> = signed.into_iter().map(|signed| (signed.size, signed.root)).collect();
        let target = roots.keys().next_back().copied().unwrap_or(0);
        Self { target, roots, minimum, ..Self::default() }
    }

    pub(crate) fn target(&self) -> u64 {
        self.target
    }

    /// The log is damaged here.
    pub(crate) fn damage(&mut self, violation: &Violation) {
        self.hole = Some(violation.segment);
    }

    /// A record of the log, in this segment. Adds what was published at its place, or the record itself behind that.
    /// `out` gets the files that are not there.
    pub(crate) fn record(
        &mut self,
        entry: &[u8],
        segment: u64,
        growth: &mut Growth,
        store: &Store,
        out: &mut Vec<TileFile>,
    ) -> Result<(), Trouble> {
        while growth.size() < self.target {
            match self.published(growth.size(), store)?.map(<[u8]>::to_vec) {
                Some(published) if published != entry => {
                    if let Some(refusal) = self.conflict(entry, &published, growth.size()) {
                        return Err(Trouble::Refuse(refusal));
                    }
                    self.take_published(growth, store, out)?;
                }
                _ => {
                    if self.hole.is_some_and(|hole| hole != segment) {
                        self.hole = None;
                    }
                    return self.push(entry, growth, store, out);
                }
            }
        }
        self.push(entry, growth, store, out)
    }

    /// The log has another record than was published at this place. `None` if it may: damage took what was published.
    fn conflict(&self, entry: &[u8], published: &[u8], found: u64) -> Option<Refusal> {
        let ours = Entry::parse(entry).ok()?;
        let seq = Entry::parse(published).map_or(ours.seq, |theirs| theirs.seq);
        if self.hole.is_some() && seq < ours.seq {
            return None;
        }
        // A log goes on with one of these after it was opened. Where something else was published, it ended too early.
        if matches!(ours.kind, Kind::Open | Kind::Recovered | Kind::Finding) {
            return Some(Refusal::Rollback { found, signed: self.target });
        }
        let file = self.bundle.as_ref().map_or_else(String::new, |bundle| bundle.tile.path());
        Some(Refusal::Record { seq: seq.min(ours.seq), file })
    }

    /// The log has no more records. What is still missing must be missing because of damage.
    pub(crate) fn end(&mut self, growth: &mut Growth, store: &Store, out: &mut Vec<TileFile>) -> Result<(), Trouble> {
        while growth.size() < self.target {
            if self.hole.is_none() || self.published(growth.size(), store)?.is_none() {
                return Err(Trouble::Refuse(Refusal::Rollback { found: growth.size(), signed: self.target }));
            }
            self.take_published(growth, store, out)?;
        }
        Ok(())
    }

    /// Adds the published entry for which the log has no record any more.
    fn take_published(&mut self, growth: &mut Growth, store: &Store, out: &mut Vec<TileFile>) -> Result<(), Trouble> {
        let Some(published) = self.published(growth.size(), store)?.map(<[u8]>::to_vec) else { return Ok(()) };
        if self.missing == 0 {
            self.first_missing = Entry::parse(&published).map_or(0, |entry| entry.seq);
        }
        self.missing = self.missing.saturating_add(1);
        self.push(&published, growth, store, out)
    }

    /// The entry published at a place; `None` if its bundle is not there.
    fn published(&mut self, index: u64, store: &Store) -> Result<Option<&[u8]>, Trouble> {
        let number = index / TILE_WIDTH;
        if self.bundle.as_ref().is_none_or(|bundle| bundle.tile.index() != number) {
            self.bundle = Some(self.read(number, store)?);
        }
        let entries = self.bundle.as_ref().and_then(|bundle| bundle.entries.as_ref());
        let place = usize::try_from(index % TILE_WIDTH).unwrap_or(0);
        Ok(entries.and_then(|entries| entries.get(place)).map(Vec::as_slice))
    }

    fn read(&self, number: u64, store: &Store) -> Result<Bundle, Trouble> {
        let width = self.target.saturating_sub(number.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
        let tile = u16::try_from(width).ok().and_then(|width| Tile::entries(number, width));
        let tile = tile.ok_or_else(|| Trouble::Retry("the log is larger than any log".to_owned()))?;
        let Some(bytes) = store.read(&tile.path())? else { return Ok(Bundle { tile, entries: None }) };
        let entries = entry::split(&bytes).ok().filter(|entries| entries.len() as u64 == width);
        let entries = entries.ok_or(Trouble::Refuse(Refusal::File { file: tile.path() }))?;
        Ok(Bundle { tile, entries: Some(entries.into_iter().map(<[u8]>::to_vec).collect()) })
    }

    fn push(
        &mut self,
        bytes: &[u8],
        growth: &mut Growth,
        store: &Store,
        out: &mut Vec<TileFile>,
    ) -> Result<(), Trouble> {
        let before = out.len();
        growth.push(bytes, &mut |file| out.push(file)).map_err(|error| Trouble::Retry(error.to_string()))?;
        let size = growth.size();
        if size > self.target {
            return Ok(());
        }
        if self.roots.get(&size).is_some_and(|root| *root != growth.root()) {
            return Err(Trouble::Refuse(Refusal::Root { size }));
        }
        if size == self.target {
            out.extend(growth.partial(0));
        }
        // What is there already is compared; only what is not there is written.
        let mut new = out.split_off(before);
        for file in new.drain(..) {
            if !self.is_there(&file, store)? {
                out.push(file);
            }
        }
        Ok(())
    }

    fn is_there(&self, (tile, bytes): &TileFile, store: &Store) -> Result<bool, Trouble> {
        // Where bundles were given up, the one at the beginning of the log is not even known as a whole.
        if tile.is_entries() && tile.end() <= self.minimum {
            return Ok(true);
        }
        match store.read(&tile.path())? {
            Some(found) if found == *bytes => Ok(true),
            Some(found) if is_right(*tile, &found, store)? => {
                Err(Trouble::Refuse(Refusal::Records { file: tile.path() }))
            }
            Some(_) => Err(Trouble::Refuse(Refusal::File { file: tile.path() })),
            None => Ok(false),
        }
    }
}

/// Whether a full tile of hashes is the one that the tile above it was made from.
fn is_right(tile: Tile, found: &[u8], store: &Store) -> Result<bool, Trouble> {
    let (Some(level), Some(hash)) = (tile.level().filter(|_| tile.is_full()), tile_hash(found)) else {
        return Ok(false);
    };
    let (number, place) = (tile.index() / TILE_WIDTH, usize::try_from(tile.index() % TILE_WIDTH).unwrap_or(0));
    // Full, or as wide as it happens to be: the longest one that is there says most.
    for width in (1..=TILE_WIDTH as u16).rev() {
        let Some(above) = Tile::hashes(level.saturating_add(1), number, width) else { continue };
        if let Some(bytes) = store.read(&above.path())? {
            return Ok(bytes.chunks_exact(HASH_BYTES).nth(place) == Some(&hash.0[..]));
        }
    }
    Ok(false)
}
