//! Copying what the replica lacks.

use std::ops::Range;

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::SignedNote;
use audit_logging::tlog::tree::{TILE_WIDTH, Tile, tiles_between};
use bytes::Bytes;
use futures_util::stream::{self, TryStreamExt};
use object_store::{ObjectStoreExt, PutPayload};

use super::{Newest, Replica, Trouble, kept_at, object, within};
use crate::put::{Condition, Put, PutError, create};
use crate::store::Store;

/// Objects on their way at once: what bounds the memory, 4 bundles of at most 16 MiB and what they are compared with.
const AT_ONCE: usize = 4;
/// Entries after which full tiles are known to be there, should the store fail later.
const WINDOW: u64 = 1 << 16;

impl Replica {
    /// Everything that the checkpoint covers, and the checkpoint of `old` entries that is there does not, then the
    /// checkpoint.
    pub(super) async fn copy(
        &mut self,
        store: &Store,
        condition: Condition,
        old: u64,
        target: &Newest,
    ) -> Result<(), Trouble> {
        let size = target.checkpoint.size;
        let pruned = self.pruned()?;
        loop {
            let next = (self.full / WINDOW).saturating_add(1).saturating_mul(WINDOW);
            let next = next.min(size);
            self.copy_tiles(store, condition, self.full..next, true, pruned).await?;
            self.full = next;
            if next == size {
                break;
            }
        }
        // Which partial tiles are new depends on the last checkpoint and not on how far the full ones are.
        self.copy_tiles(store, condition, old..size, false, pruned).await?;
        if pruned > 0 {
            overwrite(store, "minimum-index", Bytes::from(format!("{pruned}\n"))).await?;
        }
        self.copy_rotations(store, condition, size).await?;
        self.keep_checkpoint(store, condition, target).await?;
        overwrite(store, "checkpoint", target.bytes.clone()).await
    }

    /// What a tree of the one size lacks and one of the other has. Bundles first, then tiles: never a tile before its entries.
    async fn copy_tiles(
        &self,
        store: &Store,
        condition: Condition,
        sizes: Range<u64>,
        full: bool,
        pruned: u64,
    ) -> Result<(), Trouble> {
        for entries in [true, false] {
            let chosen = tiles_between(sizes.start, sizes.end)
                .filter(|tile| tile.is_entries() == entries && tile.is_full() == full);
            stream::iter(chosen.map(Ok))
                .try_for_each_concurrent(AT_ONCE, |tile| self.copy_tile(store, condition, tile, pruned))
                .await?;
        }
        Ok(())
    }

    async fn copy_tile(&self, store: &Store, condition: Condition, tile: Tile, pruned: u64) -> Result<(), Trouble> {
        let path = tile.path();
        match self.read(&path)? {
            Some(bytes) => self.create(store, condition, &path, &bytes).await,
            // The full one replaced it: then there is a newer checkpoint too.
            None if !tile.is_full() && self.newest()?.is_some_and(|newest| newest.checkpoint.size > tile.end()) => {
                Err(Trouble::Overtaken)
            }
            None if tile.is_entries() && tile.end() <= pruned => Ok(()),
            None => Err(Trouble::Missing(path)),
        }
    }

    /// Entries before this one may be gone from the node.
    fn pruned(&self) -> Result<u64, Trouble> {
        let text = self.read("minimum-index")?.unwrap_or_default();
        Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }

    /// The notes that lead from one key to the next.
    async fn copy_rotations(&self, store: &Store, condition: Condition, size: u64) -> Result<(), Trouble> {
        let Ok(listed) = std::fs::read_dir(self.dir.join("rotation")) else { return Ok(()) };
        for entry in listed.filter_map(Result::ok) {
            let name = entry.file_name();
            let at: Option<u64> = name.to_str().and_then(|name| name.parse().ok());
            let Some(at) = at.filter(|at| *at <= size && *at > 0) else { continue };
            let path = format!("rotation/{at}");
            if let Some(bytes) = self.read(&path)? {
                self.create(store, condition, &path, &bytes).await?;
            }
        }
        Ok(())
    }

    /// The checkpoint that stays. One of the same size and root with other signatures says the same.
    async fn keep_checkpoint(&self, store: &Store, condition: Condition, target: &Newest) -> Result<(), Trouble> {
        let path = kept_at(target.checkpoint.size);
        match self.create_or_theirs(store, condition, &path, &target.bytes).await? {
            None => Ok(()),
            Some(theirs) => {
                let theirs = SignedNote::parse(&theirs).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
                match theirs == Some(target.checkpoint.clone()) {
                    true => Ok(()),
                    false => Err(Trouble::Conflict { object: path }),
                }
            }
        }
    }

    async fn create(&self, store: &Store, condition: Condition, path: &str, bytes: &Bytes) -> Result<(), Trouble> {
        match self.create_or_theirs(store, condition, path, bytes).await? {
            None => Ok(()),
            Some(_) => Err(Trouble::Conflict { object: path.to_owned() }),
        }
    }

    /// The other bytes that are there, if they are other ones.
    async fn create_or_theirs(
        &self,
        store: &Store,
        condition: Condition,
        path: &str,
        bytes: &Bytes,
    ) -> Result<Option<Bytes>, Trouble> {
        let path = object(path);
        let done = tokio::time::timeout(super::PATIENCE, create(&*store.inner, &path, bytes, condition));
        match done.await.map_err(|_| Trouble::Slow)? {
            Ok(Put::Same) => Ok(None),
            Ok(Put::Created) => {
                let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.board.replica(self.number, |status| {
                    status.objects = status.objects.saturating_add(1);
                    status.bytes = status.bytes.saturating_add(length);
                });
                Ok(None)
            }
            Err(PutError::Conflict { theirs, .. }) => Ok(Some(theirs)),
            Err(PutError::Store(error)) => Err(Trouble::Store(error)),
            Err(error @ PutError::Unsettled { .. }) => Err(Trouble::Unsettled(error.to_string())),
        }
    }
}

/// Whether the last full bundle of a tree of so many entries is there.
pub(super) async fn has_full(store: &Store, size: u64) -> Result<bool, Trouble> {
    let last = size.checked_div(TILE_WIDTH).and_then(|bundles| bundles.checked_sub(1));
    let Some(last) = last.and_then(|last| Tile::entries(last, 256)) else { return Ok(true) };
    within(async {
        match store.inner.head(&object(&last.path())).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// Writes one of the few objects that change.
pub(super) async fn overwrite(store: &Store, path: &str, bytes: Bytes) -> Result<(), Trouble> {
    within(async {
        store.inner.put(&object(path), PutPayload::from_bytes(bytes)).await?;
        Ok(())
    })
    .await
}
