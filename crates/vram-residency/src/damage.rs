//! What happened to a block: which bytes differ, and what the difference looks like.

use std::fmt;
use std::ops::Range;

use crate::digest::{BlockValue, block_value};
use crate::model::Tensor;

/// How many other blocks a damaged one is compared with before it is called overwritten.
const CANDIDATES: usize = 512;

/// What the difference between a block and its sealed bytes looks like: a hint at the cause, never a proof of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DamageKind {
    /// One bit: radiation, Rowhammer, a drill.
    SingleBit,
    /// A few bits, at most 64, in different places or together.
    BitFlips,
    /// The differing bytes are all zero: freed, discarded or never written.
    Zeroed,
    /// A run of at least 64 differing bytes that all have one value other than zero.
    Stuck,
    /// The bytes that this block had before the shard was sealed again.
    Stale,
    /// The bytes of another block, of this shard or another.
    Foreign,
    /// Other bytes.
    Overwritten,
    /// There is nothing to compare with.
    Unknown,
}

impl DamageKind {
    /// The name as records and reports spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SingleBit => "single-bit",
            Self::BitFlips => "bit-flips",
            Self::Zeroed => "zeroed",
            Self::Stuck => "stuck",
            Self::Stale => "stale",
            Self::Foreign => "foreign",
            Self::Overwritten => "overwritten",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The tensors that have bytes in a block.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct TensorsInBlock {
    /// How many.
    pub count: u64,
    /// The one that comes first in the file.
    pub first: Box<str>,
    /// The one that comes last; the first again where there is one.
    pub last: Box<str>,
    /// Whether every byte of the block is the first one's.
    #[serde(skip)]
    whole: bool,
}

impl TensorsInBlock {
    /// Of a table in the file's order; none where there are no tensors in it: in a header, padding or a raw file.
    pub(crate) fn of(tensors: &[Tensor], block: &Range<u64>) -> Option<Self> {
        let after = tensors.partition_point(|tensor| tensor.end <= block.start);
        let behind = tensors.get(after..)?.iter().take_while(|tensor| tensor.start < block.end);
        let mut within = behind.filter(|tensor| tensor.start < tensor.end);
        let first = within.next()?;
        let (count, last) = within.fold((1_u64, first), |(count, _), tensor| (count.saturating_add(1), tensor));
        let whole = first.start <= block.start && block.end <= first.end;
        Some(Self { count, first: first.name.clone(), last: last.name.clone(), whole })
    }

    /// The tensor that is damaged if the block is: the one that the whole block belongs to. Otherwise that takes a source to say.
    #[must_use]
    pub fn only(&self) -> Option<&str> {
        self.whole.then_some(&*self.first)
    }
}

/// As in *block 3, which holds bytes of 2 tensors, 'a' and 'b'*.
impl fmt::Display for TensorsInBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, first, last, .. } = self;
        match count {
            0 | 1 => write!(f, "tensor '{first}'"),
            2 => write!(f, "2 tensors, '{first}' and '{last}'"),
            _ => write!(f, "{count} tensors, '{first}' to '{last}'"),
        }
    }
}

/// How one resident block differs from its source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct BlockDamage {
    /// The block's number, from 0.
    pub block: u64,
    /// The tensor that the first differing byte belongs to; none in a header or a raw file.
    pub tensor: Option<Box<str>>,
    /// The first differing byte, counted from the start of the shard.
    pub first_byte: u64,
    /// The lowest differing bit in that byte, 0 to 7.
    pub first_bit: u8,
    /// Bytes that differ.
    pub differing_bytes: u64,
    /// Bits that differ.
    pub differing_bits: u64,
    /// What it looks like.
    pub kind: DamageKind,
    /// Its suspect window begins: the last time at which this block was found as sealed, nanoseconds since 1970.
    pub suspect_from_ns: u64,
}

/// A confirmed fault of a shard, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Fault {
    /// The block's number, from 0.
    pub block: u64,
    /// Blocks that are known to be damaged, this one among them. A continuous check finds one at a time; a repair or a
    /// verification looks at all of them.
    pub blocks: u64,
    /// The tensor that the first differing byte belongs to. Without a source, the one that the whole block belongs to, if it
    /// does.
    pub tensor: Option<Box<str>>,
    /// The first differing byte, counted from the start of the shard; unknown without a source.
    pub first_byte: Option<u64>,
    /// Bytes that differ; unknown without a source.
    pub differing_bytes: Option<u64>,
    /// Bits that differ; unknown without a source.
    pub differing_bits: Option<u64>,
    /// What the difference looks like.
    pub kind: DamageKind,
    /// The suspect window begins: the last time at which all of these blocks were found as sealed, nanoseconds since 1970.
    pub suspect_from_ns: u64,
    /// The suspect window ends: when it was found, nanoseconds since 1970.
    pub found_ns: u64,
    /// What was done: `quarantined`, `logged`, `repaired` or `repair failed`.
    pub outcome: &'static str,
}

/// Where two blocks differ.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) first_byte: u64,
    pub(crate) first_bit: u8,
    pub(crate) bytes: u64,
    pub(crate) bits: u64,
    last_byte: u64,
    first_value: u8,
    /// Whether every differing byte has the value of the first.
    uniform: bool,
}

impl Difference {
    pub(crate) fn between(resident: &[u8], good: &[u8]) -> Self {
        let mut difference = Self { uniform: true, ..Self::default() };
        for (offset, (resident, good)) in (0_u64..).zip(resident.iter().zip(good)) {
            let bits = resident ^ good;
            if bits == 0 {
                continue;
            }
            if difference.bytes == 0 {
                difference.first_byte = offset;
                difference.first_bit = u8::try_from(bits.trailing_zeros()).unwrap_or(0);
                difference.first_value = *resident;
            }
            difference.last_byte = offset;
            difference.uniform &= *resident == difference.first_value;
            difference.bytes = difference.bytes.saturating_add(1);
            difference.bits = difference.bits.saturating_add(bits.count_ones().into());
        }
        difference
    }

    /// What the difference looks like, apart from where the bytes may have come from.
    pub(crate) fn kind(&self) -> DamageKind {
        match self {
            Self { bits: 1, .. } => DamageKind::SingleBit,
            Self { uniform: true, first_value: 0, bytes: 64.., .. } => DamageKind::Zeroed,
            Self { uniform: true, bytes: 64.., .. } => DamageKind::Stuck,
            Self { bits: 2..=64, .. } => DamageKind::BitFlips,
            Self { uniform: true, first_value: 0, bytes: 1.., .. } => DamageKind::Zeroed,
            _ => DamageKind::Overwritten,
        }
    }
}

/// What a block without a source looks like.
pub(crate) fn kind_alone(resident: &[u8]) -> DamageKind {
    match resident.split_first() {
        Some((0, rest)) if rest.iter().all(|byte| *byte == 0) => DamageKind::Zeroed,
        Some((first, rest)) if rest.len() > 64 && rest.iter().all(|byte| byte == first) => DamageKind::Stuck,
        _ => DamageKind::Unknown,
    }
}

/// The sealed values of a region that bytes may have come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) region_bytes: u64,
    pub(crate) values: &'a [BlockValue],
}

impl Known<'_> {
    /// Whether the bytes are those of one block.
    pub(crate) fn has_at(&self, index: u64, bytes: &[u8]) -> bool {
        let sealed = usize::try_from(index).ok().and_then(|index| self.values.get(index));
        sealed.is_some() && block_value(self.region_bytes, index, bytes) == sealed.copied()
    }

    /// Whether the bytes are those of any block, among the first so many and around `near`. Takes from what is left of
    /// `budget` for each comparison.
    pub(crate) fn has_any(&self, near: u64, bytes: &[u8], budget: &mut usize) -> bool {
        let blocks = self.values.len() as u64;
        let around = (0..blocks.saturating_mul(2)).filter_map(|distance| {
            let half = distance.div_ceil(2);
            if distance % 2 == 0 { near.checked_add(half) } else { near.checked_sub(half) }
        });
        for index in around.filter(|index| *index < blocks) {
            let Some(left) = budget.checked_sub(1) else { return false };
            *budget = left;
            if self.has_at(index, bytes) {
                return true;
            }
        }
        false
    }
}

/// How many comparisons a search may make.
pub(crate) const fn search_budget() -> usize {
    CANDIDATES
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::digest::{block_count, block_range};

    fn kind(change: impl Fn(&mut Vec<u8>)) -> DamageKind {
        let good: Vec<u8> = (0..4096_u32).map(|i| (i * 7 % 251) as u8 | 1).collect();
        let mut resident = good.clone();
        change(&mut resident);
        Difference::between(&resident, &good).kind()
    }

    #[test]
    fn differences_are_called_by_their_names() {
        assert_eq!(kind(|bytes| bytes[77] ^= 8), DamageKind::SingleBit);
        assert_eq!(kind(|bytes| (bytes[1], bytes[4000]) = (bytes[1] ^ 3, bytes[4000] ^ 128)), DamageKind::BitFlips);
        assert_eq!(kind(|bytes| bytes[100..900].fill(0)), DamageKind::Zeroed);
        assert_eq!(kind(|bytes| bytes[100..900].fill(0xfe)), DamageKind::Stuck);
        assert_eq!(kind(|bytes| bytes[100..900].iter_mut().for_each(|byte| *byte ^= 0x55)), DamageKind::Overwritten);
        assert_eq!(kind_alone(&[0; 99]), DamageKind::Zeroed);
        assert_eq!(kind_alone(&[255; 99]), DamageKind::Stuck);
        assert_eq!(kind_alone(&[1, 2]), DamageKind::Unknown);
    }

    #[test]
    fn bytes_of_other_blocks_are_recognised() {
        let bytes: Vec<u8> = (0..5_u32 << 20).map(|i| (i >> 3) as u8 ^ (i >> 20) as u8).collect();
        let region_bytes = bytes.len() as u64;
        let part = |index| {
            let range = block_range(region_bytes, index);
            &bytes[range.start as usize..range.end as usize]
        };
        let values: Vec<_> = (0..block_count(region_bytes))
            .map(|index| block_value(region_bytes, index, part(index)).unwrap())
            .collect();
        let known = Known { region_bytes, values: &values };
        for near in 0..5 {
            for index in 0..5 {
                assert!(known.has_any(near, part(index), &mut search_budget()), "{index} near {near}");
            }
        }
        assert!(!known.has_any(0, &[9; 1 << 20], &mut search_budget()));
        assert!(!known.has_any(0, part(4), &mut 1), "the search is bounded");
        assert!(known.has_at(3, part(3)) && !known.has_at(3, part(2)) && !known.has_at(9, part(2)));
    }
}
