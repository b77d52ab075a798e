//! Bytes for regions of any size: random, made once, repeated, each block marked with its number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use vram_residency::device::Fill;
use vram_residency::digest::{BLOCK_BYTES, BlockValue, block_count, block_value};

/// Random bytes.
pub(crate) fn random(bytes: u64, seed: &str) -> Vec<u8> {
    let mut made = vec![0; bytes as usize];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut made);
    made
}

/// A source of `bytes` bytes that repeats whole random blocks. Every block begins with its number, so that no two are equal
/// and swapped ones show.
pub(crate) struct Tiled {
    tile: Vec<u8>,
    bytes: u64,
    /// The value that the `blake3` crate computes for each block, where that is asked for.
    expected: Option<Vec<OnceLock<Option<BlockValue>>>>,
}

impl Tiled {
    pub(crate) fn new(bytes: u64, tile_blocks: u64, seed: &str) -> Self {
        let tile = random(tile_blocks.min(block_count(bytes)).max(1) * BLOCK_BYTES, seed);
        Self { tile, bytes, expected: None }
    }

    /// Has the processor hash every block as it is handed out.
    pub(crate) fn with_expected(mut self) -> Self {
        self.expected = Some((0..block_count(self.bytes)).map(|_| OnceLock::new()).collect());
        self
    }

    /// Values that the processor computed; `None` for blocks that were never handed out.
    pub(crate) fn expected(&self) -> Vec<Option<BlockValue>> {
        let all = self.expected.as_deref().unwrap_or_default();
        all.iter().map(|value| value.get().copied().flatten()).collect()
    }
}

impl Fill for Tiled {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES) {
            return Err(io::Error::other("a part of a block was asked for"));
        }
        for (block, to) in (offset / BLOCK_BYTES..).zip(buffer.chunks_mut(BLOCK_BYTES as usize)) {
            let from = (block * BLOCK_BYTES) as usize % self.tile.len();
            to.copy_from_slice(&self.tile[from..from + to.len()]);
            let mark = block.to_le_bytes();
            let marked = mark.len().min(to.len());
            to[..marked].copy_from_slice(&mark[..marked]);
            if let Some(expected) = &self.expected {
                let _ = expected[block as usize].set(block_value(self.bytes, block, to));
            }
        }
        Ok(())
    }
}

/// A file, read with `pread`.
pub(crate) struct OnDisk(pub(crate) File);

impl Fill for OnDisk {
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}
