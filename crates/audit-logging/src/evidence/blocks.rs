//! Reading and hashing in threads: pieces of the log in their order.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use super::{EvidenceError, Question, bundle};
use crate::tlog::source::SourceError;
use crate::tlog::tree::{HASH_BYTES, Hash, Tile, TreeError, read_tile};

/// Bundles that a thread is ahead of whoever takes them, at most.
const AHEAD: usize = 8;

/// A bundle and its level-0 tile, as they were found.
pub(super) struct Piece {
    pub(super) tile: Tile,
    pub(super) entries: Tile,
    /// The hashes in the tile, if it is there and has the right length.
    pub(super) hashes: Option<Vec<Hash>>,
    /// Whether the tile is there with another length.
    pub(super) misshapen: bool,
    pub(super) bundle: Option<Vec<u8>>,
    /// The hashes of the bundle's entries; why there are none, if it is no bundle.
    pub(super) leaves: Result<Vec<Hash>, super::Violation>,
}

fn read(question: &Question<'_>, tile: Tile, entries: Tile) -> Result<Piece, SourceError> {
    let (hashes, misshapen) = match read_tile(question.source, tile) {
        Ok(bytes) if bytes.len() == usize::from(tile.width()).saturating_mul(HASH_BYTES) => {
            (Some(bundle::hashes(&bytes)), false)
        }
        Err(TreeError::Source(error)) => return Err(error),
        Err(TreeError::Missing { .. }) => (None, false),
        _ => (None, true),
    };
    let bytes = bundle::read(question.source, entries)?;
    let leaves = bytes.as_deref().map_or(Ok(Vec::new()), bundle::leaf_hashes);
    Ok(Piece { tile, entries, hashes, misshapen, bundle: bytes, leaves })
}

/// The pieces of a log of `size` entries, one after the other.
pub(super) struct Pieces {
    from: Vec<Receiver<Result<Piece, SourceError>>>,
    next: usize,
}

/// The tile and the bundle with this number in a log of `size` entries.
pub(super) fn place(size: u64, number: u64) -> Option<(Tile, Tile)> {
    let width = size.checked_sub(number.checked_mul(256)?)?.min(256);
    let width = u16::try_from(width).ok()?;
    Some((Tile::hashes(0, number, width)?, Tile::entries(number, width)?))
}

impl Pieces {
    /// Starts the threads. They end when `stop` is set, or nobody takes any more.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        question: &'scope Question<'scope>,
        size: u64,
        stop: &'scope AtomicBool,
    ) -> Result<Self, EvidenceError> {
        let threads = question.threads.clamp(1, 64);
        let mut from = Vec::with_capacity(threads);
        for thread in 0..threads as u64 {
            let (sender, receiver) = sync_channel(AHEAD);
            let work = move || {
                let mut number = thread;
                while let Some((tile, entries)) = place(size, number).filter(|_| !stop.load(Relaxed)) {
                    let piece = read(question, tile, entries);
                    let failed = piece.is_err();
                    if sender.send(piece).is_err() || failed {
                        return;
                    }
                    number = number.saturating_add(threads as u64);
                }
            };
            let builder = std::thread::Builder::new().name("audit-verify".to_owned());
            builder.spawn_scoped(scope, work).map_err(EvidenceError::Thread)?;
            from.push(receiver);
        }
        Ok(Self { from, next: 0 })
    }

    pub(super) fn take(&mut self) -> Option<Result<Piece, SourceError>> {
        let piece = self.from.get(self.next)?.recv().ok()?;
        self.next = self.next.saturating_add(1).checked_rem(self.from.len()).unwrap_or(0);
        Some(piece)
    }
}
