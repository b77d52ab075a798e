//! The keyed fingerprint as docs/kernels.md defines it, written to be read: the reference for the kernel.

use vram_residency::digest::{BLOCK_BYTES, block_count};

/// Words of the first key: 1024 for a tile's first pass, and two more for each of the three that begin a pair later.
pub const KEY_WORDS: usize = 1030;

/// The four sums of tile `tile` (0 to 255) of block `block`.
fn tile_sums(key: &[u32; KEY_WORDS], region: &[u8], block: u64, tile: u64) -> [u64; 4] {
    let mut sums = [0_u64; 4];
    let first = block * BLOCK_BYTES + tile / 32 * (128 << 10) + tile % 32 * 16;
    for piece in 0..256 {
        let start = usize::try_from(first).unwrap() + piece * 512;
        if start >= region.len() {
            break; // what is not there adds nothing
        }
        let mut bytes = [0; 16];
        let here = &region[start..region.len().min(start + 16)];
        bytes[..here.len()].copy_from_slice(here);
        for (pass, sum) in sums.iter_mut().enumerate() {
            for pair in 0..2 {
                let word = |at: usize| u32::from_le_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap());
                let at = piece * 4 + pair * 2 + pass * 2;
                let left = word(pair * 2).wrapping_add(key[at]);
                let right = word(pair * 2 + 1).wrapping_add(key[at + 1]);
                *sum = sum.wrapping_add(u64::from(left) * u64::from(right));
            }
        }
    }
    sums
}

/// The sums of all tiles of these blocks, as the kernel writes them.
pub fn tiles(key: &[u32; KEY_WORDS], region: &[u8], blocks: std::ops::Range<u64>) -> Vec<u8> {
    let sums = blocks.flat_map(|block| (0..256).flat_map(move |tile| tile_sums(key, region, block, tile)));
    sums.flat_map(u64::to_le_bytes).collect()
}

/// The region's fingerprint: keyed BLAKE3 of all its tiles and its length.
pub fn tag(key: &[u32; KEY_WORDS], tag_key: &[u8; 32], region: &[u8]) -> [u8; 32] {
    let length = region.len() as u64;
    let mut hasher = blake3::Hasher::new_keyed(tag_key);
    hasher.update(&tiles(key, region, 0..block_count(length)));
    hasher.update(&length.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// A first key from a seed: 4120 bytes of BLAKE3's output, as little-endian words.
pub fn key_from(seed: &str) -> [u32; KEY_WORDS] {
    let mut bytes = [0; KEY_WORDS * 4];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    std::array::from_fn(|at| u32::from_le_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap()))
}
