//! The BLAKE3 block tree: hash blocks, merge them into the digest, name the damaged block.
//!
//! A region of `n` bytes is cut into blocks of [`BLOCK_BYTES`]. Each block is a whole subtree of the official BLAKE3
//! tree (1024 chunks of 1024 bytes), so its 32-byte *block value* is that subtree's chaining value, and merging the
//! values gives the official root: the digest that `b3sum` prints. Nothing here is a variant of BLAKE3.
//!
//! A region of at most one block has a single value, and that value is the digest itself, because BLAKE3 treats the
//! root of the tree differently from every other node.
//!
//! Source for the tree shape: the BLAKE3 paper, section 2.1, and the `hazmat` module of the `blake3` crate.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use subtle::ConstantTimeEq;

/// Bytes in a block: 1 MiB, the unit of locating, scrubbing and repair.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Levels that the tree over blocks can have: `u64::MAX` bytes are fewer than 2^44 blocks.
const MAX_LEVELS: usize = 45;

/// The official BLAKE3 hash (256 bits) of a region's bytes: what `b3sum` prints for the file.
///
/// `==` takes the same time whatever the bytes are.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, in the order in which `b3sum` prints them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of bytes in ordinary memory. For tests and small inputs; regions are hashed by their device.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for Digest {}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("blake3:")?;
        fmt_hex(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDigestError {
    /// No known algorithm before the colon.
    #[error("a digest starts with 'blake3:' or 'sha256:'; name the algorithm in front of the hex digits")]
    Algorithm,
    /// Not 64 hex digits behind it.
    #[error("a digest has 64 hex digits after the colon; this text does not")]
    Hex,
}

impl FromStr for Digest {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text.strip_prefix("blake3:").ok_or(ParseDigestError::Algorithm)?).map(Self)
    }
}

/// What a publisher said the file's hash is, to be checked while the file is loaded.
///
/// `==` takes the same time whatever the bytes are.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    /// The digest itself.
    Blake3(Digest),
    /// SHA-256, computed beside the digest while the bytes stream in.
    Sha256([u8; 32]),
}

impl PartialEq for Expected {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Blake3(ours), Self::Blake3(theirs)) => ours == theirs,
            (Self::Sha256(ours), Self::Sha256(theirs)) => ours.ct_eq(theirs).into(),
            (Self::Blake3(_) | Self::Sha256(_), _) => false,
        }
    }
}
impl Eq for Expected {}

impl FromStr for Expected {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("sha256:") {
            Some(hex) => parse_hex(hex).map(Self::Sha256),
            None => text.parse().map(Self::Blake3),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blake3(digest) => digest.fmt(f),
            Self::Sha256(bytes) => {
                f.write_str("sha256:")?;
                fmt_hex(bytes, f)
            }
        }
    }
}

/// One block's chaining value in the BLAKE3 tree (32 bytes). `==` takes constant time.
#[derive(Clone, Copy)]
pub struct BlockValue([u8; 32]);

impl BlockValue {
    /// A value that is not yet known: all zeros.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// The value with these bytes.
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for BlockValue {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}
impl Eq for BlockValue {}

impl fmt::Debug for BlockValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

/// How many blocks a region of `bytes` bytes has: at least one, also when it is empty.
#[must_use]
pub const fn block_count(bytes: u64) -> u64 {
    let blocks = bytes.div_ceil(BLOCK_BYTES);
    if blocks == 0 { 1 } else { blocks }
}

/// The byte range of block `index` in a region of `bytes` bytes: empty when there is no such block.
#[must_use]
pub const fn block_range(bytes: u64, index: u64) -> Range<u64> {
    let start = index.saturating_mul(BLOCK_BYTES);
    let end = start.saturating_add(BLOCK_BYTES);
    let end = if end < bytes { end } else { bytes };
    if start < end { start..end } else { end..end }
}

/// The value of block `index` of a region of `region_bytes` bytes, from the block's own bytes. None where there is no
/// such block, or it has another length.
#[must_use]
pub fn block_value(region_bytes: u64, index: u64, block: &[u8]) -> Option<BlockValue> {
    let range = block_range(region_bytes, index);
    if index >= block_count(region_bytes) || range.end.saturating_sub(range.start) != block.len() as u64 {
        return None;
    }
    if region_bytes <= BLOCK_BYTES {
        return Some(BlockValue(*blake3::hash(block).as_bytes()));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(range.start);
    hasher.update(block);
    Some(BlockValue(hasher.finalize_non_root()))
}

/// Merges the values of all blocks, in order, into the region's digest. Allocates nothing.
///
/// An empty slice has no digest; it gives [`None`].
#[must_use]
pub fn merge(values: &[BlockValue]) -> Option<Digest> {
    let mut merger = Merger::new(Mode::Hash);
    values.iter().try_for_each(|value| merger.push(value.0))?;
    merger.finish().map(Digest)
}

/// Merges the values of blocks, given one after the other, into the root of their tree. Allocates nothing.
pub(crate) struct Merger<'a> {
    mode: Mode<'a>,
    /// The roots of complete subtrees, largest first: one for each set bit of `merged`.
    left: arrayvec::ArrayVec<[u8; 32], MAX_LEVELS>,
    /// Values in them.
    merged: u64,
    /// The newest value: whether it is the tree's last one is not known yet.
    last: Option<[u8; 32]>,
}

impl<'a> Merger<'a> {
    pub(crate) const fn new(mode: Mode<'a>) -> Self {
        Self { mode, left: arrayvec::ArrayVec::new_const(), merged: 0, last: None }
    }

    /// The next value. None where there are more of them than any region has.
    pub(crate) fn push(&mut self, value: [u8; 32]) -> Option<()> {
        let Some(mut subtree) = self.last.replace(value) else { return Some(()) };
        self.merged = self.merged.checked_add(1)?;
        for _ in 0..self.merged.trailing_zeros() {
            let sibling = self.left.pop()?;
            subtree = merge_subtrees_non_root(&sibling, &subtree, self.mode);
        }
        self.left.try_push(subtree).ok()
    }

    /// The root. None where there was no value.
    pub(crate) fn finish(mut self) -> Option<[u8; 32]> {
        let mut right = self.last?;
        while let Some(sibling) = self.left.pop() {
            if self.left.is_empty() {
                return Some(*merge_subtrees_root(&sibling, &right, self.mode).as_bytes());
            }
            right = merge_subtrees_non_root(&sibling, &right, self.mode);
        }
        Some(right)
    }
}

/// Writes bytes as lower-case hex digits without allocating.
pub(crate) fn fmt_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt_hex(self.0, f)
        }
    }
    Hex(bytes).to_string()
}

fn parse_hex(text: &str) -> Result<[u8; 32], ParseDigestError> {
    let mut bytes = [0; 32];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(ParseDigestError::Hex) };
    if pairs.len() != bytes.len() {
        return Err(ParseDigestError::Hex);
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(ParseDigestError::Hex);
        let value = (nibble(*high)? << 4) | nibble(*low)?;
        *byte = u8::try_from(value).map_err(|_| ParseDigestError::Hex)?;
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn digest_by_blocks(bytes: &[u8]) -> Digest {
        let len = bytes.len() as u64;
        let values: Vec<_> = (0..block_count(len))
            .map(|index| {
                let range = block_range(len, index);
                block_value(len, index, &bytes[range.start as usize..range.end as usize]).unwrap()
            })
            .collect();
        merge(&values).unwrap()
    }

    #[test]
    fn merged_blocks_equal_the_official_hash_at_every_tree_shape() {
        let block = BLOCK_BYTES as usize;
        let bytes: Vec<u8> = (0..block * 9 + 5).map(|i| (i % 251) as u8).collect();
        let mut lengths = vec![0, 1, 63, 64, 65, 1023, 1024, 1025, 2048];
        for blocks in 1..=9 {
            lengths.extend([blocks * block - 1, blocks * block, blocks * block + 1]);
        }
        lengths.push(bytes.len());
        for len in lengths {
            assert_eq!(digest_by_blocks(&bytes[..len]), Digest::of(&bytes[..len]), "{len} bytes");
        }
    }

    #[test]
    fn text_forms_round_trip_and_bad_ones_are_refused() {
        let digest = Digest::of(b"weights");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.to_string().parse::<Expected>().unwrap(), Expected::Blake3(digest));
        let sha: Expected = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        assert_eq!(sha, Expected::Sha256([0xab; 32]));
        assert_eq!("md5:00".parse::<Expected>().unwrap_err(), ParseDigestError::Algorithm);
        for bad in ["sha256:", "sha256:+1", "blake3:zz", &format!("blake3:{}", "0".repeat(66))] {
            assert_eq!(bad.parse::<Expected>().unwrap_err(), ParseDigestError::Hex, "{bad}");
        }
    }

    #[test]
    fn a_block_of_the_wrong_place_or_length_has_no_value() {
        let block = vec![0; BLOCK_BYTES as usize + 1];
        let wrong = [(3, 0, 2), (3, 1, 3), (0, 1, 0), (2 * BLOCK_BYTES, 2, 0), (2 * BLOCK_BYTES, u64::MAX, 5)];
        for (region, index, length) in wrong {
            assert_eq!(block_value(region, index, &block[..length]), None);
        }
        assert_eq!(block_value(2 * BLOCK_BYTES, 0, &block), None);
    }

    #[test]
    fn ranges_cover_a_region_exactly_once() {
        for len in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES] {
            let mut next = 0;
            for index in 0..block_count(len) {
                let range = block_range(len, index);
                assert_eq!(range.start, next.min(len));
                next = range.end;
            }
            assert_eq!(next, len);
            assert!(block_range(len, block_count(len)).is_empty());
        }
    }
}
