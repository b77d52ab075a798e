//! The published log as it grows in memory: the right edge of the tree, and the bundle that is not full.

use crate::tlog::entry;
use crate::tlog::tree::{Hash, TILE_WIDTH, Tile, Tree, TreeError, leaf_hash, tiles_between};

/// A file of the tree, ready to be written.
pub(crate) type TileFile = (Tile, Vec<u8>);

#[derive(Debug, Default)]
pub(crate) struct Growth {
    tree: Tree,
    /// The entries behind the last full bundle.
    bundle: Vec<u8>,
}

impl Growth {
    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    pub(crate) fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Adds an entry of which only the hash was kept.
    pub(crate) fn push_hash(&mut self, hash: Hash) -> Result<(), TreeError> {
        self.tree.push(hash, &mut |_, _| {})
    }

    /// Adds an entry; hands out every file that became full.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut dyn FnMut(TileFile)) -> Result<(), TreeError> {
        self.tree.push(leaf_hash(bytes), &mut |tile, bytes| out((tile, bytes.to_vec())))?;
        entry::push(&mut self.bundle, bytes);
        if self.size().is_multiple_of(TILE_WIDTH) {
            let index = (self.size() / TILE_WIDTH).saturating_sub(1);
            let next = Vec::with_capacity(self.bundle.len());
            let bundle = std::mem::replace(&mut self.bundle, next);
            if let Some(tile) = Tile::entries(index, TILE_WIDTH as u16) {
                out((tile, bundle));
            }
        }
        Ok(())
    }

    /// The files at the right edge that a tree of `old` entries did not have.
    pub(crate) fn partial(&self, old: u64) -> Vec<TileFile> {
        let hashes: Vec<TileFile> = self.tree.partial_tiles().map(|(tile, bytes)| (tile, bytes.to_vec())).collect();
        tiles_between(old, self.size())
            .filter(|tile| !tile.is_full())
            .filter_map(|tile| match tile.is_entries() {
                true => Some((tile, self.bundle.clone())),
                false => hashes.iter().find(|(other, _)| *other == tile).cloned(),
            })
            .collect()
    }
}
