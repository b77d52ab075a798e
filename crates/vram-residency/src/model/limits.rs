//! How much a header may ask for, and the account of memory that keeps a small file from claiming a lot.

use std::collections::HashSet;

/// Longest safetensors header in bytes: the limit that the format states.
pub const MAX_SAFETENSORS_HEADER: u64 = 100_000_000;
/// Longest GGUF header in bytes. It is read through a small buffer, so this bounds time, not memory.
pub const MAX_GGUF_HEADER: u64 = 1 << 30;
/// Most tensors in one file.
pub const MAX_TENSORS: u64 = 1 << 18;
/// Most metadata entries in one file.
pub const MAX_METADATA: u64 = 1 << 16;
/// Longest name of a tensor, in bytes.
pub const MAX_NAME: u64 = 4096;
/// Longest GGUF metadata key, in bytes: the limit that the format states.
pub const MAX_KEY: u64 = 65_535;
/// Most dimensions of a tensor in a safetensors file.
pub const MAX_RANK: usize = 32;
/// Most dimensions of a tensor in a GGUF file.
pub const MAX_GGUF_RANK: u32 = 4;
/// Longest string and most elements of an array in GGUF metadata.
pub const MAX_GGUF_ITEMS: u64 = 1 << 30;
/// Arrays of arrays in GGUF metadata: how deep.
pub const MAX_NESTING: u32 = 64;
/// Largest `general.alignment` in a GGUF file.
pub const MAX_ALIGNMENT: u32 = 1 << 20;
/// Longest shard index (`*.safetensors.index.json`) in bytes.
pub const MAX_INDEX: u64 = 32 << 20;
/// Most tensors that a shard index lists.
pub const MAX_INDEX_ENTRIES: usize = 1 << 19;

/// Memory that any file may use while its header is read, whatever its size.
const FREE: u64 = 64 << 20;

/// What reading a header may allocate: 64 MiB, or four times the file if that is more.
///
/// A safetensors header of 100 MB is legal, and one made of the shortest possible entries would need several times
/// its own size as a table. Such a header is accepted only from a file that is large enough to deserve it.
pub(super) struct Budget {
    limit: u64,
    used: u64,
}

impl Budget {
    pub(super) fn for_file(len: u64) -> Self {
        Budget { limit: FREE.max(len.saturating_mul(4)), used: 0 }
    }

    /// Accounts for `bytes` before they are allocated; `Err` holds the limit that they would exceed.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), u64> {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.limit { Err(self.limit) } else { Ok(()) }
    }
}

/// The names met so far, 16 bytes each whatever their length.
///
/// It holds the first half of each name's BLAKE3 hash. Two different names that share it would be refused as a
/// duplicate, which nobody has the 2^64 hashes to arrange and which would harm nobody but the file's author.
#[derive(Default)]
pub(super) struct NameSet(HashSet<[u8; 16]>);

impl NameSet {
    /// Adds a name; false if it is there already.
    pub(super) fn insert(&mut self, name: &str) -> bool {
        let mut key = [0; 16];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut key);
        self.0.insert(key)
    }
}

/// Why a name is refused, if it is: two programs could read it differently, or it would disturb a terminal or a log.
pub(super) fn fault_in_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.chars().any(char::is_control) {
        Some("it holds a control character")
    } else {
        None
    }
}
