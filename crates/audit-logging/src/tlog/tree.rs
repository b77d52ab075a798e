//! The tree: RFC 6962 over SHA-256, kept in tiles of 256 hashes. The one place that knows of `tlog_tiles`.
//!
//! Sizes are bounded by [`MAX_SIZE`] everywhere: the crate below answers numbers that no log reaches with a panic.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tlog_tiles::HashReader;

use super::source::{Source, SourceError};
use super::tile::shift;
pub use super::tile::{TILE_WIDTH, Tile, tiles_between};

/// Entries that a tree can have.
pub const MAX_SIZE: u64 = 1 << 40;
/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// Bytes of a full tile.
pub const TILE_BYTES: usize = 256 * HASH_BYTES;
/// Levels of tiles that a tree below [`MAX_SIZE`] has.
const LEVELS: usize = 5;
/// More hashes than any proof in a tree below [`MAX_SIZE`] has.
const MAX_PROOF: usize = 64;

/// A SHA-256 hash in the tree. Its text is base64.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; HASH_BYTES]);

impl Hash {
    /// The root of the tree without entries.
    pub const EMPTY_TREE: Hash = Hash(tlog_tiles::EMPTY_HASH.0);

    /// Reads a hash in base64, exactly as it is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 44 {
            return None;
        }
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why something could not be computed from a tree or checked against it.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A size or index is outside the tree, or beyond what any tree reaches.
    #[error("entry {index} of a tree of {size} entries does not exist, or the size is beyond 2^40: check both numbers")]
    OutOfBounds {
        /// The index, or the size of the older tree.
        index: u64,
        /// The size of the tree.
        size: u64,
    },
    /// The proof does not lead to the root.
    #[error("the proof does not lead to the root hash: what it is to prove is not in that tree")]
    Proof,
    /// A tile does not fit the root.
    #[error(
        "the tiles do not lead to the root of the tree of {size} entries: they were changed, or belong to another log"
    )]
    Tiles {
        /// The size of the tree.
        size: u64,
    },
    /// A tile is not there.
    #[error("{tile} is missing: copy the log again, or take another copy")]
    Missing {
        /// The tile.
        tile: Tile,
    },
    /// A tile could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The hash of an entry as a leaf of the tree.
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Hash(tlog_tiles::record_hash(entry).0)
}

/// The hash over two subtrees.
#[must_use]
pub fn node_hash(left: Hash, right: Hash) -> Hash {
    Hash(tlog_tiles::node_hash(tlog_tiles::Hash(left.0), tlog_tiles::Hash(right.0)).0)
}

/// The hash over a full tile: one hash of the level above. `None` unless there are 256 hashes.
#[must_use]
pub fn tile_hash(bytes: &[u8]) -> Option<Hash> {
    (bytes.len() == TILE_BYTES).then(|| Hash(tlog_tiles::Tile::subtree_hash(bytes).0))
}

/// A tree that grows at its right edge. Holds only the tiles that are not full, 40 KiB at most.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    size: u64,
    /// Of each level, the hashes of the rightmost tile as long as it is not full.
    edges: [Vec<u8>; LEVELS],
}

impl Tree {
    /// The tree without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry by its [`leaf_hash`]; hands every tile of hashes that became full to `full`, with its bytes.
    ///
    /// # Errors
    /// [`TreeError::OutOfBounds`] at [`MAX_SIZE`].
    pub fn push(&mut self, leaf: Hash, full: &mut dyn FnMut(Tile, &[u8])) -> Result<(), TreeError> {
        if self.size >= MAX_SIZE {
            return Err(TreeError::OutOfBounds { index: self.size, size: self.size });
        }
        self.size = self.size.saturating_add(1);
        let mut hash = leaf;
        for (level, edge) in (0u8..).zip(&mut self.edges) {
            edge.extend_from_slice(&hash.0);
            let Some(up) = tile_hash(edge) else { break };
            let index = (self.size >> shift(level.saturating_add(1))).saturating_sub(1);
            if let Some(tile) = Tile::hashes(level, index, TILE_WIDTH as u16) {
                full(tile, edge);
            }
            edge.clear();
            hash = up;
        }
        Ok(())
    }

    /// The tiles of hashes at the right edge that are not full, with their bytes.
    pub fn partial_tiles(&self) -> impl Iterator<Item = (Tile, &[u8])> {
        (0u8..).zip(&self.edges).filter_map(|(level, edge)| {
            let width = u16::try_from(edge.len() / HASH_BYTES).ok()?;
            let index = self.size >> shift(level.saturating_add(1));
            Some((Tile::hashes(level, index, width)?, edge.as_slice()))
        })
    }

    /// The root hash.
    #[must_use]
    pub fn root(&self) -> Hash {
        // Every full subtree that the root is made of lies in one of the partial tiles.
        tlog_tiles::tree_hash(self.size, &Edges(self)).map_or(Hash::EMPTY_TREE, |hash| Hash(hash.0))
    }

    /// Takes up the tree of `size` entries whose tiles a source has, after checking them against its root.
    ///
    /// # Errors
    /// [`TreeError`]: a tile is missing or does not fit the root.
    pub fn resume(source: &dyn Source, size: u64, root: Hash) -> Result<Self, TreeError> {
        if size > MAX_SIZE {
            return Err(TreeError::OutOfBounds { index: size, size });
        }
        let mut tree = Self { size, ..Self::default() };
        for (level, edge) in (0u8..).zip(&mut tree.edges) {
            let width = (size >> shift(level) & 0xff) as u16;
            if let Some(tile) = Tile::hashes(level, size >> shift(level.saturating_add(1)), width) {
                *edge = read_tile(source, tile)?;
            }
        }
        if tree.root() == root { Ok(tree) } else { Err(TreeError::Tiles { size }) }
    }
}

struct Edges<'a>(&'a Tree);

impl HashReader for Edges<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        indexes
            .iter()
            .map(|&index| {
                let tile = tlog_tiles::Tile::from_index(8, index);
                let edge = self.0.edges.get(usize::from(tile.level())).map_or(&[][..], Vec::as_slice);
                let width = u32::try_from(edge.len() / HASH_BYTES).unwrap_or(0);
                if width < tile.width() {
                    return Err(tlog_tiles::Error::InvalidTile);
                }
                tlog_tiles::Tile::new(8, tile.level(), tile.level_index(), width, false).hash_at_index(edge, index)
            })
            .collect()
    }
}

/// Reads a tile of hashes. Where a partial tile is gone because the full one replaced it, its part of the full one.
///
/// # Errors
/// [`TreeError::Missing`], [`TreeError::Source`], and [`TreeError::Tiles`] if it has the wrong length.
pub fn read_tile(source: &dyn Source, tile: Tile) -> Result<Vec<u8>, TreeError> {
    let mut bytes = source.get(&tile.path())?;
    let mut expected = usize::from(tile.width()).saturating_mul(HASH_BYTES);
    if bytes.is_none() && !tile.is_full() {
        bytes = source.get(&tile.full().path())?;
        if let Some(bytes) = &mut bytes
            && bytes.len() == TILE_BYTES
        {
            bytes.truncate(expected);
        } else {
            expected = usize::MAX;
        }
    }
    let bytes = bytes.ok_or(TreeError::Missing { tile })?;
    if bytes.len() == expected { Ok(bytes) } else { Err(TreeError::Tiles { size: tile.end() }) }
}

/// Reads the hashes of a tree out of its tiles, each tile once, and keeps the real reason when that fails. Checks
/// nothing: whoever uses what it reads checks the result against the root. (The crate's own reader of tiles is not used:
/// it leaves some of them unchecked when the tree consists of more full subtrees than tiles.)
struct Hashes<'a> {
    source: &'a dyn Source,
    size: u64,
    tiles: RefCell<BTreeMap<Tile, Vec<u8>>>,
    failed: RefCell<Option<TreeError>>,
}

impl<'a> Hashes<'a> {
    fn new(source: &'a dyn Source, size: u64) -> Self {
        Self { source, size, tiles: RefCell::default(), failed: RefCell::default() }
    }

    fn hash(&self, index: u64) -> Result<tlog_tiles::Hash, tlog_tiles::Error> {
        let tile = tlog_tiles::Tile::from_index(8, index);
        let tile = tile.parent(0, self.size).ok_or(tlog_tiles::Error::IndexesNotInTree)?;
        let key =
            u16::try_from(tile.width()).ok().and_then(|width| Tile::hashes(tile.level(), tile.level_index(), width));
        let key = key.ok_or(tlog_tiles::Error::IndexesNotInTree)?;
        let mut tiles = self.tiles.borrow_mut();
        let bytes = match tiles.entry(key) {
            Entry::Occupied(bytes) => bytes.into_mut(),
            Entry::Vacant(place) => place.insert(read_tile(self.source, key).map_err(|error| {
                *self.failed.borrow_mut() = Some(error);
                tlog_tiles::Error::InvalidTile
            })?),
        };
        tile.hash_at_index(bytes, index)
    }

    fn or<T>(&self, result: Result<T, tlog_tiles::Error>) -> Result<T, TreeError> {
        result.map_err(|_| self.failed.take().unwrap_or(TreeError::Tiles { size: self.size }))
    }
}

impl HashReader for Hashes<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        indexes.iter().map(|&index| self.hash(index)).collect()
    }
}

fn ours(proof: Vec<tlog_tiles::Hash>) -> Vec<Hash> {
    proof.into_iter().map(|hash| Hash(hash.0)).collect()
}

fn theirs(proof: &[Hash]) -> Result<Vec<tlog_tiles::Hash>, TreeError> {
    if proof.len() > MAX_PROOF {
        return Err(TreeError::Proof);
    }
    Ok(proof.iter().map(|hash| tlog_tiles::Hash(hash.0)).collect())
}

/// The hashes that prove entry `index` to be in the tree of `size` entries with this root. A proof that is returned
/// leads from the entry's hash in the tiles to the root.
///
/// # Errors
/// [`TreeError`]: the index is not in the tree, or a tile is missing or does not fit the root.
pub fn prove_inclusion(source: &dyn Source, size: u64, root: Hash, index: u64) -> Result<Vec<Hash>, TreeError> {
    if index >= size || size > MAX_SIZE {
        return Err(TreeError::OutOfBounds { index, size });
    }
    let hashes = Hashes::new(source, size);
    let proof = ours(hashes.or(tlog_tiles::prove_record(size, index, &hashes))?);
    let leaf = Hash(hashes.or(hashes.hash(tlog_tiles::stored_hash_index(0, index)))?.0);
    check_inclusion(&proof, size, root, index, leaf).map_err(|_| TreeError::Tiles { size })?;
    Ok(proof)
}

/// The root of the tree of the first `size` entries, from the tiles of the tree of `within` entries. Nothing vouches for
/// the result.
///
/// # Errors
/// [`TreeError`]: `size` is larger than `within`, or a tile is missing.
pub fn root_of(source: &dyn Source, size: u64, within: u64) -> Result<Hash, TreeError> {
    if size > within || within > MAX_SIZE {
        return Err(TreeError::OutOfBounds { index: size, size: within });
    }
    let hashes = Hashes::new(source, within);
    Ok(Hash(hashes.or(tlog_tiles::tree_hash(size, &hashes))?.0))
}

/// The hashes that prove the tree of `old` entries to be the beginning of the one of `size` entries with this root. A
/// proof that is returned holds for the old tree as the tiles give it.
///
/// # Errors
/// [`TreeError`]: `old` is larger than `size`, or a tile is missing or does not fit the root.
pub fn prove_consistency(source: &dyn Source, old: u64, size: u64, root: Hash) -> Result<Vec<Hash>, TreeError> {
    if old > size || size > MAX_SIZE {
        return Err(TreeError::OutOfBounds { index: old, size });
    }
    if old == 0 || old == size {
        return Ok(Vec::new());
    }
    let hashes = Hashes::new(source, size);
    let proof = ours(hashes.or(tlog_tiles::prove_tree(size, old, &hashes))?);
    let old_root = Hash(hashes.or(tlog_tiles::tree_hash(old, &hashes))?.0);
    check_consistency(&proof, old, old_root, size, root).map_err(|_| TreeError::Tiles { size })?;
    Ok(proof)
}

/// Checks that the entry with this leaf hash has this index in the tree with this size and root.
///
/// # Errors
/// [`TreeError::Proof`] if it has not; [`TreeError::OutOfBounds`] for numbers of no tree.
pub fn check_inclusion(proof: &[Hash], size: u64, root: Hash, index: u64, leaf: Hash) -> Result<(), TreeError> {
    if index >= size || size > MAX_SIZE {
        return Err(TreeError::OutOfBounds { index, size });
    }
    let proof = theirs(proof)?;
    tlog_tiles::check_record(&proof, size, tlog_tiles::Hash(root.0), index, tlog_tiles::Hash(leaf.0))
        .map_err(|_| TreeError::Proof)
}

/// Checks that the tree of `old` entries is the beginning of the one of `size` entries.
///
/// # Errors
/// [`TreeError::Proof`] if it is not; [`TreeError::OutOfBounds`] for numbers of no tree.
pub fn check_consistency(proof: &[Hash], old: u64, old_root: Hash, size: u64, root: Hash) -> Result<(), TreeError> {
    if old > size || size > MAX_SIZE {
        return Err(TreeError::OutOfBounds { index: old, size });
    }
    if old == 0 || old == size {
        let same =
            if old == 0 { old_root == Hash::EMPTY_TREE && (size > 0 || root == old_root) } else { old_root == root };
        return if same && proof.is_empty() { Ok(()) } else { Err(TreeError::Proof) };
    }
    let proof = theirs(proof)?;
    tlog_tiles::check_tree(&proof, size, tlog_tiles::Hash(root.0), old, tlog_tiles::Hash(old_root.0))
        .map_err(|_| TreeError::Proof)
}
