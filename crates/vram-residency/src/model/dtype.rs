//! Element types of both formats, with the size of one block of elements.

use std::fmt;
use std::str::FromStr;

/// How the elements of a tensor are stored.
///
/// Plain types hold one element per block. Sub-byte and quantized types hold several elements in a block that
/// cannot be split: a tensor's element count is a multiple of [`block_elements`](Dtype::block_elements).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(non_camel_case_types, missing_docs, reason = "the names are those of the two formats")]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

use Dtype::*;

/// One line per type: the type, its usual name, elements per block, bytes per block.
const TYPES: &[(Dtype, &str, u64, u64)] = &[
    (BOOL, "BOOL", 1, 1),
    (F4, "F4", 2, 1),
    (F6_E2M3, "F6_E2M3", 4, 3),
    (F6_E3M2, "F6_E3M2", 4, 3),
    (U8, "U8", 1, 1),
    (I8, "I8", 1, 1),
    (F8_E5M2, "F8_E5M2", 1, 1),
    (F8_E4M3, "F8_E4M3", 1, 1),
    (F8_E8M0, "F8_E8M0", 1, 1),
    (F8_E4M3FNUZ, "F8_E4M3FNUZ", 1, 1),
    (F8_E5M2FNUZ, "F8_E5M2FNUZ", 1, 1),
    (I16, "I16", 1, 2),
    (U16, "U16", 1, 2),
    (F16, "F16", 1, 2),
    (BF16, "BF16", 1, 2),
    (I32, "I32", 1, 4),
    (U32, "U32", 1, 4),
    (F32, "F32", 1, 4),
    (C64, "C64", 1, 8),
    (F64, "F64", 1, 8),
    (I64, "I64", 1, 8),
    (U64, "U64", 1, 8),
    (Q4_0, "Q4_0", 32, 18),
    (Q4_1, "Q4_1", 32, 20),
    (Q5_0, "Q5_0", 32, 22),
    (Q5_1, "Q5_1", 32, 24),
    (Q8_0, "Q8_0", 32, 34),
    (Q8_1, "Q8_1", 32, 36),
    (Q2_K, "Q2_K", 256, 84),
    (Q3_K, "Q3_K", 256, 110),
    (Q4_K, "Q4_K", 256, 144),
    (Q5_K, "Q5_K", 256, 176),
    (Q6_K, "Q6_K", 256, 210),
    (Q8_K, "Q8_K", 256, 292),
    (IQ2_XXS, "IQ2_XXS", 256, 66),
    (IQ2_XS, "IQ2_XS", 256, 74),
    (IQ3_XXS, "IQ3_XXS", 256, 98),
    (IQ1_S, "IQ1_S", 256, 50),
    (IQ4_NL, "IQ4_NL", 32, 18),
    (IQ3_S, "IQ3_S", 256, 110),
    (IQ2_S, "IQ2_S", 256, 82),
    (IQ4_XS, "IQ4_XS", 256, 136),
    (IQ1_M, "IQ1_M", 256, 56),
    (TQ1_0, "TQ1_0", 256, 54),
    (TQ2_0, "TQ2_0", 256, 66),
    (MXFP4, "MXFP4", 32, 17),
    (NVFP4, "NVFP4", 64, 36),
    (Q1_0, "Q1_0", 128, 18),
    (Q2_0, "Q2_0", 64, 18),
];

/// The numbers that GGUF files use. Numbers that the format has withdrawn are not here, hence refused.
const GGML: &[(u32, Dtype)] = &[
    (0, F32),
    (1, F16),
    (2, Q4_0),
    (3, Q4_1),
    (6, Q5_0),
    (7, Q5_1),
    (8, Q8_0),
    (9, Q8_1),
    (10, Q2_K),
    (11, Q3_K),
    (12, Q4_K),
    (13, Q5_K),
    (14, Q6_K),
    (15, Q8_K),
    (16, IQ2_XXS),
    (17, IQ2_XS),
    (18, IQ3_XXS),
    (19, IQ1_S),
    (20, IQ4_NL),
    (21, IQ3_S),
    (22, IQ2_S),
    (23, IQ4_XS),
    (24, I8),
    (25, I16),
    (26, I32),
    (27, I64),
    (28, F64),
    (29, IQ1_M),
    (30, BF16),
    (34, TQ1_0),
    (35, TQ2_0),
    (39, MXFP4),
    (40, NVFP4),
    (41, Q1_0),
    (42, Q2_0),
];

impl Dtype {
    /// Every type that either format can hold.
    pub fn all() -> impl Iterator<Item = Dtype> {
        TYPES.iter().map(|row| row.0)
    }

    fn row(self) -> (&'static str, u64, u64) {
        // Every variant has a row (`every_type_has_a_row` in the tests); the fallback can hold no tensor.
        TYPES.iter().find(|row| row.0 == self).map_or(("?", 1, 0), |row| (row.1, row.2, row.3))
    }

    /// The usual name, as in a safetensors header or in GGML.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// Elements in one block: 1 for plain types.
    #[must_use]
    pub fn block_elements(self) -> u64 {
        self.row().1
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        self.row().2
    }

    /// Bytes that `elements` elements take, or `None` if they do not fill whole blocks or the size overflows.
    #[must_use]
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (_, block_elements, block_bytes) = self.row();
        if elements.checked_rem(block_elements)? != 0 {
            return None;
        }
        elements.checked_div(block_elements)?.checked_mul(block_bytes)
    }

    /// What the first byte of such a tensor must be aligned to inside the data: the size of an element for plain
    /// types, 1 for packed and quantized ones.
    #[must_use]
    pub fn alignment(self) -> u64 {
        let (_, block_elements, block_bytes) = self.row();
        if block_elements == 1 { block_bytes.max(1) } else { 1 }
    }

    /// The type with this number in a GGUF file.
    #[must_use]
    pub fn from_ggml(number: u32) -> Option<Dtype> {
        GGML.binary_search_by_key(&number, |row| row.0).ok().and_then(|at| GGML.get(at)).map(|row| row.1)
    }

    /// The number of this type in a GGUF file, if it has one.
    #[must_use]
    pub fn to_ggml(self) -> Option<u32> {
        GGML.iter().find(|row| row.1 == self).map(|row| row.0)
    }

    /// The type with this name in a safetensors header.
    #[must_use]
    pub fn from_safetensors(name: &str) -> Option<Dtype> {
        name.parse().ok().filter(|dtype: &Dtype| dtype.to_safetensors().is_some())
    }

    /// The same type in the `safetensors` crate, if the format knows it.
    pub(super) fn to_safetensors(self) -> Option<safetensors::Dtype> {
        use safetensors::Dtype as S;
        Some(match self {
            BOOL => S::BOOL,
            F4 => S::F4,
            F6_E2M3 => S::F6_E2M3,
            F6_E3M2 => S::F6_E3M2,
            U8 => S::U8,
            I8 => S::I8,
            F8_E5M2 => S::F8_E5M2,
            F8_E4M3 => S::F8_E4M3,
            F8_E8M0 => S::F8_E8M0,
            F8_E4M3FNUZ => S::F8_E4M3FNUZ,
            F8_E5M2FNUZ => S::F8_E5M2FNUZ,
            I16 => S::I16,
            U16 => S::U16,
            F16 => S::F16,
            BF16 => S::BF16,
            I32 => S::I32,
            U32 => S::U32,
            F32 => S::F32,
            C64 => S::C64,
            F64 => S::F64,
            I64 => S::I64,
            U64 => S::U64,
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The text is not the name of an element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of an element type")]
pub struct UnknownDtype;

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        TYPES.iter().find(|row| row.1 == text).map(|row| row.0).ok_or(UnknownDtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_row() {
        for dtype in Dtype::all() {
            assert_eq!(format!("{dtype:?}"), dtype.name());
            assert_eq!(dtype.name().parse(), Ok(dtype));
            assert!(dtype.block_bytes() > 0);
            assert!(dtype.to_ggml().is_some() || dtype.to_safetensors().is_some(), "{dtype}");
        }
        // The last variant is the last row: nothing was added to the enum alone.
        assert_eq!(Dtype::all().count(), Dtype::Q2_0 as usize + 1);
    }

    #[test]
    fn sizes_agree_with_the_safetensors_crate() {
        for dtype in Dtype::all() {
            if let Some(theirs) = dtype.to_safetensors() {
                assert_eq!(u64::try_from(theirs.bitsize()).unwrap() * dtype.block_elements(), dtype.block_bytes() * 8);
                assert_eq!(theirs.to_string(), dtype.name());
            }
        }
    }

    #[test]
    fn numbers_are_sorted_and_go_both_ways() {
        assert!(GGML.is_sorted_by_key(|row| row.0));
        for &(number, dtype) in GGML {
            assert_eq!(Dtype::from_ggml(number), Some(dtype));
            assert_eq!(dtype.to_ggml(), Some(number));
        }
        for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 43, u32::MAX] {
            assert_eq!(Dtype::from_ggml(withdrawn), None);
        }
    }
}
