//! The hash kernels: their text, which of their variants is used, and how a launch is asked for.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest as _, Sha256};

use super::driver::{Address, Context, CudaError, DeviceBuffer, Function, Module, PinnedBuffer, Stream};
use crate::digest::hex;

/// The text that is compiled by the driver, with the digest of its own sources in its first lines.
const BLAKE3: &str = include_str!("../../../../../kernels/ptx/blake3.ptx");
/// The same of the fingerprint, compiled when it is first asked for.
pub(super) const FINGERPRINT: &str = include_str!("../../../../../kernels/ptx/fingerprint.ptx");

/// Bytes of scratch memory for each block of a launch: one 32-byte value for each of 1024 chunks.
pub(super) const SCRATCH_PER_BLOCK: usize = 1024 * 32;
/// Bytes of a value.
pub(super) const VALUE_BYTES: usize = 32;
/// Bytes of an entry in the table of segments.
pub(super) const SEGMENT_BYTES: usize = 32;

/// Groups of threads for each block in the first kernel, and threads in a group of the first and of the second.
const CHUNK_GROUPS: u32 = 4;
const CHUNK_THREADS: u32 = 256;
const PARENT_THREADS: u32 = 512;

/// The mode of keyed BLAKE3; 0 is that of BLAKE3 without a key.
const KEYED: u32 = 16;
/// The initial value of BLAKE3: the fractional parts of the square roots of the first eight primes, as in SHA-256.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Which of two kernels, whose results are the same, hashes chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HashVariant {
    /// As the compiler makes it.
    Plain,
    /// With its additions on the multipliers, which leaves more of the logic units to the rest.
    Mad,
}

impl HashVariant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Mad];

    /// The name as options and records spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Mad => "mad",
        }
    }

    const fn kernel(self) -> &'static CStr {
        match self {
            Self::Plain => c"vram_blake3_chunks_plain",
            Self::Mad => c"vram_blake3_chunks_mad",
        }
    }
}

impl fmt::Display for HashVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// SHA-256 of the kernels' text that is built in, BLAKE3's and then the fingerprint's, in hex.
pub(super) fn text_digest() -> String {
    hex(&Sha256::new().chain_update(BLAKE3).chain_update(FINGERPRINT).finalize())
}

/// Blocks of a region that a launch hashes, as the kernels read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Where the region's first byte is.
    pub(super) address: Address,
    /// The region's length.
    pub(super) region_bytes: u64,
    /// The first block to hash.
    pub(super) first_block: u64,
    /// Blocks of the launch up to the end of this segment.
    pub(super) end: u64,
}

impl Segment {
    pub(super) fn to_bytes(self) -> [u8; SEGMENT_BYTES] {
        let fields = [self.address.0, self.region_bytes, self.first_block, self.end];
        let mut bytes = [0; SEGMENT_BYTES];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// A word that no other call of this process is given, among 4 billion of them.
///
/// The memory that a launch writes is filled with it before. A kernel, or a part of one, that is silently not run leaves it
/// there; so what is computed from that is another each time, and two such faults do not hide each other.
pub(super) fn unlike_any_other() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    // An odd factor: different numbers give different words.
    COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b1)
}

/// The compiled kernels.
#[derive(Debug)]
pub(super) struct Kernels {
    chunks: [Function; 2],
    parents: Function,
    /// The initial value, on the device.
    initial: DeviceBuffer,
}

/// What a launch reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    /// The table of segments, and how many it has.
    pub(super) segments: Address,
    pub(super) segment_count: u32,
    /// Blocks in all of them.
    pub(super) blocks: u32,
    /// Scratch memory: [`SCRATCH_PER_BLOCK`] for each block.
    pub(super) scratch: Address,
    /// Where the values go: [`VALUE_BYTES`] for each block.
    pub(super) values: Address,
    /// Where the 32 bytes of a key are; none: unkeyed.
    pub(super) key: Option<Address>,
}

impl Kernels {
    /// Has the driver compile them.
    pub(super) fn load(context: &Arc<Context>) -> Result<Self, CudaError> {
        let module = Module::load(context, "blake3", BLAKE3)?;
        let [plain, mad] = HashVariant::ALL;
        let chunks = [module.function(plain.kernel())?, module.function(mad.kernel())?];
        let parents = module.function(c"vram_blake3_parents")?;
        let initial = DeviceBuffer::new(context, size_of_val(&INITIAL))?;
        let mut words = PinnedBuffer::new(context, initial.bytes())?;
        for (to, word) in words.bytes_mut().chunks_exact_mut(4).zip(INITIAL) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let stream = Stream::new(context)?;
        let _current = context.enter()?;
        // SAFETY: both are as long as the initial value, and the copy is waited for.
        let copied = unsafe { words.copy_to(initial.start(), initial.bytes(), &stream) };
        let waited = stream.wait("copy the initial value");
        copied.and(waited)?;
        Ok(Self { chunks, parents, initial })
    }

    /// Asks for the values of a launch's blocks, in the order of the stream. The context is entered.
    ///
    /// # Safety
    /// The segments lie in readable memory of the device, and so does the key; scratch and values are large enough, and all of it stays, and is
    /// not used otherwise, until the stream has done it.
    pub(super) unsafe fn hash(&self, variant: HashVariant, stream: &Stream, launch: Launch) -> Result<(), CudaError> {
        let [plain, mad] = &self.chunks;
        let chunks = if variant == HashVariant::Plain { plain } else { mad };
        let Launch { mut segments, mut segment_count, mut blocks, mut scratch, mut values, key } = launch;
        let mut mode = if key.is_some() { KEYED } else { 0 };
        let mut key = key.unwrap_or_else(|| self.initial.start());
        // The one that the compiler must not know.
        let mut one = 1_u32;
        let groups = blocks.saturating_mul(CHUNK_GROUPS);
        let mut parameters = [
            pointer(&mut segments),
            pointer(&mut segment_count),
            pointer(&mut blocks),
            pointer(&mut key),
            pointer(&mut mode),
            pointer(&mut one),
            pointer(&mut scratch),
        ];
        // SAFETY: the parameters are those of the kernel, in order; for the rest the caller answers.
        unsafe { chunks.launch(stream, groups, CHUNK_THREADS, &mut parameters) }?;
        let groups = blocks;
        let mut parameters = [
            pointer(&mut segments),
            pointer(&mut segment_count),
            pointer(&mut blocks),
            pointer(&mut key),
            pointer(&mut mode),
            pointer(&mut scratch),
            pointer(&mut values),
        ];
        // SAFETY: as above.
        unsafe { self.parents.launch(stream, groups, PARENT_THREADS, &mut parameters) }
    }
}

pub(super) fn pointer<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}
