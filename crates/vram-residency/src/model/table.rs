//! The tensor table: which bytes of the file belong to which tensor.

use super::{Dtype, ModelError};

/// One tensor: its name, what it is made of, and its bytes in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The name, unique in the file.
    pub name: Box<str>,
    /// How elements are stored.
    pub dtype: Dtype,
    /// Dimensions in the order in which the file lists them: slowest first in safetensors, fastest first in GGUF.
    pub shape: Box<[u64]>,
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// First byte after it, counted from the start of the file.
    pub end: u64,
}

impl Tensor {
    /// Bytes of data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The tensors of one file in the order of their bytes. Ranges never overlap and names are unique.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TensorTable {
    tensors: Box<[Tensor]>,
    /// Positions in `tensors`, in the order of names.
    by_name: Box<[u32]>,
}

impl TensorTable {
    /// The domain of [`digest`](TensorTable::digest).
    pub const DIGEST_DOMAIN: &'static str = "vram-residency/tensor-table/v1";

    /// A table without tensors: that of a raw file.
    #[must_use]
    pub fn empty() -> Self {
        TensorTable::default()
    }

    /// Sorts the tensors and checks what every table promises.
    pub(crate) fn new(mut tensors: Vec<Tensor>) -> Result<Self, ModelError> {
        use super::error::shown;

        tensors.sort_unstable_by(|a, b| (a.start, a.end, &a.name).cmp(&(b.start, b.end, &b.name)));
        let mut previous_end = 0;
        for tensor in &tensors {
            if tensor.start < previous_end {
                let name = shown(&tensor.name);
                return Err(ModelError::Overlap { name, offset: tensor.start, previous_end });
            }
            previous_end = tensor.end.max(tensor.start);
        }

        let count = u32::try_from(tensors.len()).unwrap_or(u32::MAX);
        let mut by_name: Box<[u32]> = (0..count).collect();
        let name = |at: &u32| tensors.get(*at as usize).map(|tensor| &*tensor.name);
        by_name.sort_unstable_by(|a, b| name(a).cmp(&name(b)));
        for pair in by_name.windows(2) {
            if let [a, b] = pair
                && name(a) == name(b)
                && let Some(twice) = tensors.get(*b as usize)
            {
                let name = shown(&twice.name);
                return Err(ModelError::Duplicate { what: "tensor", name, offset: twice.start });
            }
        }
        Ok(TensorTable { tensors: tensors.into_boxed_slice(), by_name })
    }

    /// Every tensor, by position in the file.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none, as in a raw file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let at = |position: &u32| self.tensors.get(*position as usize);
        let found = self.by_name.binary_search_by(|position| at(position).map(|tensor| &*tensor.name).cmp(&Some(name)));
        found.ok().and_then(|found| self.by_name.get(found)).and_then(at)
    }

    /// The tensor that holds this byte of the file; `None` for the header, for padding and beyond the end.
    #[must_use]
    pub fn locate(&self, offset: u64) -> Option<&Tensor> {
        let at = self.tensors.partition_point(|tensor| tensor.end <= offset);
        self.tensors.get(at).filter(|tensor| tensor.start <= offset)
    }

    /// BLAKE3 over the table in one canonical form, so that a signature can bind names, types and places.
    ///
    /// The bytes that are hashed, numbers little-endian, text in UTF-8 without a terminator:
    ///
    /// | bytes | content |
    /// |---|---|
    /// | 4 | `u32`: length of the domain, 30 |
    /// | 30 | the domain, `vram-residency/tensor-table/v1` |
    /// | 8 | `u64`: number of tensors |
    ///
    /// then for each tensor, ordered by start, then end, then the bytes of the name:
    ///
    /// | bytes | content |
    /// |---|---|
    /// | 4 | `u32`: length of the name in bytes, *n* |
    /// | *n* | the name |
    /// | 4 | `u32`: length of the type's name in bytes, *t* |
    /// | *t* | the type's name as [`Dtype`] displays it, such as `BF16` |
    /// | 4 | `u32`: number of dimensions, *r* |
    /// | 8 · *r* | `u64` each: the dimensions in the order of [`Tensor::shape`] |
    /// | 8 | `u64`: start |
    /// | 8 | `u64`: end |
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        fn length(hasher: &mut blake3::Hasher, length: usize) {
            // Names and ranks are far below 4 GiB: the readers refuse longer ones.
            hasher.update(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        fn text(hasher: &mut blake3::Hasher, text: &str) {
            length(hasher, text.len());
            hasher.update(text.as_bytes());
        }

        let mut hasher = blake3::Hasher::new();
        text(&mut hasher, Self::DIGEST_DOMAIN);
        hasher.update(&u64::try_from(self.tensors.len()).unwrap_or(u64::MAX).to_le_bytes());
        for tensor in &self.tensors {
            text(&mut hasher, &tensor.name);
            text(&mut hasher, tensor.dtype.name());
            length(&mut hasher, tensor.shape.len());
            for dimension in &tensor.shape {
                hasher.update(&dimension.to_le_bytes());
            }
            hasher.update(&tensor.start.to_le_bytes());
            hasher.update(&tensor.end.to_le_bytes());
        }
        hasher.finalize().into()
    }
}
