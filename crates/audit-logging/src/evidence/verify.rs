//! The verification itself: everything once, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::blocks::{Piece, Pieces, place};
use super::order::Order;
use super::sieve::Sieve;
use super::signers::{Claims, KeyRecord, Keys};
use super::wal::Wal;
use super::{EvidenceError, Pruning, Question, Report, Violation, What, bundle};
use crate::control;
use crate::floor::Floor;
use crate::tlog::entry::{self, Entry};
use crate::tlog::source::SourceError;
use crate::tlog::tree::{Hash, MAX_SIZE, TILE_WIDTH, Tile, Tree, TreeError, read_tile, tile_hash};

/// Bundles and tiles missing one after the other, after which nobody looks for more.
const MAX_ABSENT: u64 = 1000;
/// Entries that are read on the word of a key that is not trusted yet: it may be one that the log changed to.
pub(super) const MAX_UNTRUSTED: u64 = 1 << 22;
/// How often a log that changes is read.
const MAX_TRIES: u32 = 3;
/// Changes of key that are followed.
const MAX_KEYS: usize = 1000;

/// Verifies a published log. What is wrong is in the report.
///
/// # Errors
/// [`EvidenceError`] if something cannot be read for another reason than that it is not there.
pub fn verify(question: &Question<'_>) -> Result<Report, EvidenceError> {
    let mut tries = 0u32;
    loop {
        let before = question.source.get("checkpoint")?;
        let report = verify_once(question)?;
        tries = tries.saturating_add(1);
        // Beside a live publisher files are removed that a record announces which this checkpoint does not cover yet.
        if report.is_intact() || tries >= MAX_TRIES || question.source.get("checkpoint")? == before {
            return Ok(report);
        }
    }
}

fn verify_once(question: &Question<'_>) -> Result<Report, EvidenceError> {
    let sieve = Sieve::new(question.source);
    let mut report = verify_sieved(&Question { source: &sieve, ..question.clone() })?;
    sieve.tell(&mut report);
    Ok(report)
}

fn verify_sieved(question: &Question<'_>) -> Result<Report, EvidenceError> {
    let mut report = Report::default();
    let claims = Claims::gather(question, &mut report)?;
    if let Some(size) = claims.too_large_to_believe(question.log_keys) {
        let detail = format!(
            "it speaks of {size} entries; a log of more than {MAX_UNTRUSTED} is followed only from the key that signs it now: \
             give that one"
        );
        report.violation(What::WrongKey, "checkpoint", detail);
        return Ok(report);
    }
    let newest = claims.newest().cloned();
    let (size, root) = newest.as_ref().map_or((0, Hash::EMPTY_TREE), |newest| (newest.size, newest.root));
    report.origin = newest.as_ref().map(|newest| newest.origin.clone());
    report.root = newest.as_ref().map(|newest| newest.root);
    // Opened after the checkpoint was read: the log's own segments then go at least as far.
    let wal = question.wal.as_ref().map(|(vfs, dir)| Wal::open(vfs, dir)).transpose()?;
    let mut flow = Flow {
        question,
        size: size.min(MAX_SIZE),
        root,
        gone: Vec::new(),
        announced: 0,
        keys_announced: 0,
        sizes: claims.sizes().collect(),
        tree: Tree::new(),
        roots: BTreeMap::from([(0, Hash::EMPTY_TREE)]),
        broken: false,
        suspect: None,
        absent: 0,
        parent: None,
        changed: Vec::new(),
        order: Order::default(),
        wal,
        keys: Vec::new(),
        report,
    };
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let done = Pieces::start(scope, question, flow.size, &stop).and_then(|pieces| flow.run(pieces));
        stop.store(true, Relaxed);
        done
    });
    done?;
    let Flow { roots, keys, wal, suspect, broken, tree, mut report, .. } = flow;
    let keys = Keys::follow(question, &keys, &mut report)?;
    claims.judge(question, &roots, &keys, suspect, &mut report);
    let tree = (!broken && tree.size() == size).then_some(tree);
    let behind = behind(question, size, tree, wal, &mut report);
    report.ranges.unsigned = report.ranges.signed.max(size.saturating_add(behind));
    Ok(report)
}

/// How many records the log's own segments have behind what was published, and whether they are those signed last.
fn behind(question: &Question<'_>, size: u64, tree: Option<Tree>, wal: Option<Wal>, report: &mut Report) -> u64 {
    let kept_last = question.last_signed.as_ref();
    let last = kept_last.map(|(file, last)| (file, &last.checkpoint)).filter(|(_, last)| last.size > size);
    let mut tree = tree.filter(|_| last.is_some());
    let mut kept = false;
    let behind = wal.map_or(0, |wal| {
        wal.end(size, report, &mut |entry| {
            let Some((tree, (_, last))) = tree.as_mut().zip(last).filter(|(tree, (_, last))| tree.size() < last.size)
            else {
                return;
            };
            let pushed = tree.push(entry.hash(), &mut |_, _| {});
            kept = pushed.is_ok() && (tree.size(), tree.root()) == (last.size, last.root);
        })
    });
    match last {
        Some((file, last)) if !kept => {
            let detail = format!("it says that so many entries were signed: {}", last.size);
            let (what, file) = (What::KeyAhead, file.clone());
            report.add(Violation { what, record: None, index: Some(size), file, detail });
        }
        // The process ended before its very first checkpoint.
        _ if size == 0 && kept_last.is_some_and(|(_, last)| !last.seen) => report.withdraw(What::NoCheckpoint),
        _ => {}
    }
    behind
}

struct Flow<'a> {
    question: &'a Question<'a>,
    size: u64,
    root: Hash,
    /// Entries whose bundles are missing: where each stretch begins and ends.
    gone: Vec<(u64, u64)>,
    /// Entries before this one may be missing, as records announce.
    announced: u64,
    /// Changes of key before that place, as the same record says.
    keys_announced: u64,
    /// Where a root is needed.
    sizes: BTreeSet<u64>,
    tree: Tree,
    roots: BTreeMap<u64, Hash>,
    /// Hashes are missing: no roots from here on.
    broken: bool,
    suspect: Option<u64>,
    absent: u64,
    /// The tile of level 1 read last.
    parent: Option<(u64, Option<Vec<Hash>>)>,
    /// Tiles above level 0 that do not fit, and whether they are there.
    changed: Vec<(Tile, bool)>,
    order: Order,
    wal: Option<Wal>,
    keys: Vec<KeyRecord>,
    report: Report,
}

impl Flow<'_> {
    fn run(&mut self, mut pieces: Pieces) -> Result<(), EvidenceError> {
        let ends_here = self.size > 0 && !self.last_is_there()?;
        while let Some(piece) = pieces.take() {
            let piece = piece?;
            if piece.hashes.is_none() && !piece.misshapen && piece.bundle.is_none() {
                let start = piece.tile.start();
                if ends_here {
                    let detail = format!("it says {}, and the files go to {start} at least", self.size);
                    let (what, file) = (What::FutureCheckpoint, "checkpoint".to_owned());
                    self.report.add(Violation { what, record: None, index: Some(start), file, detail });
                    return self.account_for_gone();
                }
                self.absent = self.absent.saturating_add(1);
                if self.absent > MAX_ABSENT {
                    return self.account_for_gone();
                }
            } else {
                self.absent = 0;
            }
            self.piece(&piece)?;
        }
        if !self.broken && self.tree.size() == self.size {
            let partial: Vec<(Tile, Vec<u8>)> =
                self.tree.partial_tiles().map(|(tile, bytes)| (tile, bytes.to_vec())).collect();
            for (tile, bytes) in partial {
                self.compare(tile, &bytes)?;
            }
        }
        // If the root is right, these tiles are wrong; if it is not, nobody can tell which.
        for (tile, there) in std::mem::take(&mut self.changed) {
            let what = if there { What::TileChanged } else { What::TileMissing };
            let (index, file) = (Some(tile.start()), tile.path());
            self.report.add(Violation { what, record: None, index, file, detail: String::new() });
        }
        self.account_for_gone()
    }

    /// Bundles that are missing: pruned, or just missing?
    fn account_for_gone(&mut self) -> Result<(), EvidenceError> {
        let announced = self.announced;
        for (start, end) in std::mem::take(&mut self.gone) {
            let pruned = end.min(announced).saturating_sub(start);
            self.report.pruned = self.report.pruned.saturating_add(pruned);
            for number in (start.max(announced) / TILE_WIDTH)..end.div_ceil(TILE_WIDTH) {
                let Some((_, entries)) = place(self.size, number).filter(|_| end > announced) else { break };
                let (what, index) = (What::BundleMissing, Some(entries.start()));
                let violation = Violation { what, record: None, index, file: entries.path(), detail: String::new() };
                self.report.add(violation);
            }
        }
        let keys = self.keys.iter().filter(|key| key.size <= announced).count() as u64;
        if keys < self.keys_announced {
            let detail = format!("{} before entry {announced} were kept, and {keys} are there", self.keys_announced);
            let (what, file) = (What::KeysMissing, "tile/entries".to_owned());
            self.report.add(Violation { what, record: None, index: None, file, detail });
        }
        let Some(minimum) = self.question.source.get("minimum-index")? else { return Ok(()) };
        let minimum: Option<u64> = std::str::from_utf8(&minimum).ok().and_then(|text| text.trim().parse().ok());
        if minimum.is_none_or(|minimum| minimum > announced) {
            let says = minimum.map_or_else(|| "something".to_owned(), |minimum| format!("entries before {minimum}"));
            let detail = format!("it says that {says} were, and records announce {announced}");
            let (what, file) = (What::PruningUnannounced, "minimum-index".to_owned());
            self.report.add(Violation { what, record: None, index: Some(announced), file, detail });
        }
        Ok(())
    }

    fn last_is_there(&self) -> Result<bool, EvidenceError> {
        let Some((tile, entries)) = place(self.size, self.size.saturating_sub(1) / 256) else { return Ok(false) };
        for path in [tile.path(), tile.full().path(), entries.path(), entries.full().path()] {
            if self.question.source.get(&path)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), EvidenceError> {
        let (tile, entries) = (piece.tile, piece.entries);
        let start = tile.start();
        let told =
            |what, file: String| Violation { what, record: None, index: Some(start), file, detail: String::new() };
        if piece.bundle.is_none() {
            match self.gone.last_mut() {
                Some((_, end)) if *end == start => *end = entries.end(),
                _ => self.gone.push((start, entries.end())),
            }
        }
        if piece.hashes.is_none() {
            let what = if piece.misshapen { What::TileChanged } else { What::TileMissing };
            self.report.add(told(what, tile.path()));
        }
        let whole = piece.leaves.as_ref().ok().filter(|leaves| leaves.len() == usize::from(tile.width()));
        if let Err(damaged) = &piece.leaves {
            self.report.add(Violation { file: entries.path(), index: Some(start), ..damaged.clone() });
        }
        // What the tree has here, and whether the bundle is that.
        let (hashes, fits) = match (&piece.hashes, &piece.bundle) {
            (Some(hashes), None) => (Some(hashes.clone()), false),
            (None, _) => (whole.cloned(), whole.is_some()),
            (Some(hashes), Some(_)) if whole == Some(hashes) => (Some(hashes.clone()), true),
            (Some(hashes), Some(bytes)) => {
                let (right, tile_is_right) = self.decide(tile, hashes, whole)?;
                if !tile_is_right {
                    self.report.add(told(What::TileChanged, tile.path()));
                }
                let fits = whole == Some(&right);
                if let (false, Ok(leaves)) = (fits, &piece.leaves) {
                    self.report.add(bundle::difference(entries, bytes, leaves, &right));
                }
                (Some(right), fits)
            }
        };
        let Some(hashes) = hashes else {
            self.broken = true;
            self.lose();
            if let Some(wal) = &mut self.wal {
                wal.skip(start, entries.end(), &mut self.report);
            }
            return Ok(());
        };
        if tile.is_full() && self.suspect.is_none() && self.parent_of(tile)?.is_some_and(|up| Some(up) != over(&hashes))
        {
            self.suspect = Some(start);
        }
        let raw = piece.bundle.as_deref().filter(|_| fits).and_then(|bytes| entry::split(bytes).ok());
        if raw.is_none() {
            self.lose();
        }
        for (at, hash) in hashes.iter().enumerate() {
            self.push(*hash)?;
            let index = start.saturating_add(at as u64);
            if let Some(bytes) = raw.as_ref().and_then(|raw| raw.get(at)) {
                self.entry(bytes, index, entries);
            } else if let Some(wal) = self.wal.as_mut().filter(|_| piece.bundle.is_none()) {
                wal.hash(*hash, index, &mut self.report);
            }
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.order.lose();
        if let Some(wal) = &mut self.wal {
            wal.lose();
        }
    }

    fn entry(&mut self, bytes: &[u8], index: u64, tile: Tile) {
        self.report.entries = self.report.entries.saturating_add(1);
        let Ok(entry) = Entry::parse(bytes) else {
            let (what, index) = (What::EntryMalformed, Some(index));
            self.report.add(Violation { what, record: None, index, file: tile.path(), detail: String::new() });
            self.lose();
            return;
        };
        self.order.entry(&entry, index, tile, &mut self.report);
        if let Some(wal) = &mut self.wal {
            wal.entry(bytes, &entry, index, &tile, &mut self.report);
        }
        if let Some(floor) = Floor::announced(entry.kind, entry.leaf).filter(|floor| floor.minimum <= index) {
            if floor.minimum >= self.announced {
                (self.announced, self.keys_announced) = (floor.minimum, floor.keys.max(self.keys_announced));
            }
            let number = |name| control::number(entry.leaf, name);
            if self.report.prunings.len() < super::MAX_LISTED {
                self.report.prunings.push(Pruning {
                    seq: entry.seq,
                    minimum_index: floor.minimum,
                    first_seq: number("before").unwrap_or(0),
                    time_unix_ms: number("time_unix_ms").unwrap_or(0),
                    keep_s: number("keep_s"),
                });
            }
        }
        let names_key = control::states_key(entry.kind, entry.leaf);
        if names_key && !self.broken && self.keys.len() < MAX_KEYS {
            let (size, root) = (self.tree.size(), self.tree.root());
            self.keys.push(KeyRecord { seq: entry.seq, size, root, leaf: entry.leaf.to_vec() });
        }
    }

    fn push(&mut self, hash: Hash) -> Result<(), EvidenceError> {
        if self.broken {
            return Ok(());
        }
        let mut full = Vec::new();
        let pushed = self.tree.push(hash, &mut |tile, bytes| {
            if tile.level() != Some(0) {
                full.push((tile, bytes.to_vec()));
            }
        });
        self.broken = pushed.is_err();
        let size = self.tree.size();
        if self.sizes.contains(&size) {
            self.roots.insert(size, self.tree.root());
        }
        full.into_iter().try_for_each(|(tile, bytes)| self.compare(tile, &bytes))
    }

    /// A tile above level 0 as the tree gives it, against the one that is there.
    fn compare(&mut self, tile: Tile, bytes: &[u8]) -> Result<(), EvidenceError> {
        if tile.level() == Some(0) {
            return Ok(());
        }
        match self.read(tile)? {
            Some(found) if found == bytes => {}
            found => self.changed.push((tile, found.is_some())),
        }
        Ok(())
    }

    /// The bytes of a tile; empty if it has the wrong length.
    fn read(&self, tile: Tile) -> Result<Option<Vec<u8>>, SourceError> {
        match read_tile(self.question.source, tile) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(TreeError::Source(error)) => Err(error),
            Err(TreeError::Missing { .. }) => Ok(None),
            Err(_) => Ok(Some(Vec::new())),
        }
    }

    /// What the tile of level 1 says of a full tile of level 0, if it is there.
    fn parent_of(&mut self, tile: Tile) -> Result<Option<Hash>, EvidenceError> {
        let number = tile.index() / 256;
        if self.parent.as_ref().is_none_or(|(parent, _)| *parent != number) {
            let width = (self.size >> 8).saturating_sub(number.saturating_mul(256)).min(256);
            let up = u16::try_from(width).ok().and_then(|width| Tile::hashes(1, number, width));
            let bytes = up.map_or(Ok(None), |up| self.read(up))?;
            self.parent = Some((number, bytes.map(|bytes| bundle::hashes(&bytes))));
        }
        let place = usize::try_from(tile.index() % 256).unwrap_or(0);
        let hashes = self.parent.as_ref().and_then(|(_, hashes)| hashes.as_ref());
        Ok(hashes.and_then(|hashes| hashes.get(place)).copied())
    }

    /// Tile and bundle disagree: which of them is the one that the tree is made of? The hashes that are, and whether the
    /// tile is right.
    fn decide(
        &mut self,
        tile: Tile,
        hashes: &[Hash],
        leaves: Option<&Vec<Hash>>,
    ) -> Result<(Vec<Hash>, bool), EvidenceError> {
        let Some(leaves) = leaves else { return Ok((hashes.to_vec(), true)) };
        let bundle_is_right = if tile.is_full() {
            let up = self.parent_of(tile)?;
            up.is_some() && up == over(leaves) && up != over(hashes)
        } else {
            let root = |hashes: &[Hash]| {
                let mut tree = self.tree.clone();
                let pushed = hashes.iter().try_for_each(|hash| tree.push(*hash, &mut |_, _| {}));
                pushed.map(|()| tree.root()).ok()
            };
            !self.broken && root(leaves) == Some(self.root) && root(hashes) != Some(self.root)
        };
        Ok(if bundle_is_right { (leaves.clone(), false) } else { (hashes.to_vec(), true) })
    }
}

/// The hash over a full tile.
fn over(hashes: &[Hash]) -> Option<Hash> {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    tile_hash(&bytes)
}
