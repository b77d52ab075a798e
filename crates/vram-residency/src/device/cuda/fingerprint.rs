//! The keyed fingerprint of a region (`docs/kernels.md`, section 3), both halves of it on the device.
//!
//! A region is done in slices. Of each, one kernel computes the tiles, 8 KiB for a block of 1 MiB, into a buffer, and the
//! kernels of keyed BLAKE3 hash that. 128 blocks have 1 MiB of tiles, which is a whole subtree of BLAKE3's tree, and so a slice
//! is a multiple of 128 blocks. The values of these subtrees come to main memory, 32 bytes for 128 MiB, and are merged there.
//!
//! The keys are on the device for that time only. Whatever comes of it, keys, tiles and values are overwritten with zeros:
//! who knows a tile and the content it is of knows something of the key.

use std::sync::Arc;

use blake3::hazmat::Mode;
use zeroize::Zeroize;

use super::HashVariant;
use super::driver::{Address, Context, CudaError, DeviceBuffer, Function, Module, PinnedBuffer, Stream};
use super::kernels::{
    FINGERPRINT, Kernels, Launch, SCRATCH_PER_BLOCK, SEGMENT_BYTES, Segment, VALUE_BYTES, pointer, unlike_any_other,
};
use crate::digest::{BLOCK_BYTES, Merger, block_count};
use crate::fingerprint::{
    Fingerprint, FingerprintKey, KEYS_BYTES, TAG_KEY_BYTES, WORDS_BYTES, ZEROS, of_zeros, tag_key,
};

/// Bytes of the tiles of a block.
const TILES_BYTES: usize = 8192;
/// Blocks whose tiles are one block of what BLAKE3 hashes.
const SUBTREE_BLOCKS: usize = 128;
/// Launches of a slice: it is waited for once in so many.
const SLICE_LAUNCHES: usize = 4;
/// Bytes behind the tiles: the region's length.
const LENGTH_BYTES: usize = 8;
const TILE_THREADS: u32 = 256;

/// What one fingerprint at a time uses, made once, so that a fingerprint allocates nothing.
#[derive(Debug)]
pub(super) struct Fingerprinter {
    context: Arc<Context>,
    stream: Stream,
    kernel: Function,
    /// The module's variable for the first key.
    words: Address,
    tag_key: DeviceBuffer,
    tiles: DeviceBuffer,
    scratch: DeviceBuffer,
    values: DeviceBuffer,
    segments: DeviceBuffer,
    /// Both keys on their way there, and zeros at any other time.
    keys: PinnedBuffer,
    table: PinnedBuffer,
    length: PinnedBuffer,
    results: PinnedBuffer,
    /// Most blocks of a launch, and of a slice.
    launch_blocks: usize,
    slice_blocks: usize,
}

/// Blocks of a region whose tiles are in the buffer at one time.
#[derive(Debug, Clone, Copy)]
struct Slice {
    first_block: usize,
    blocks: usize,
    /// Whether the region's length follows behind its tiles.
    last: bool,
}

impl Slice {
    /// Blocks of 1 MiB of what BLAKE3 hashes: the tiles, and the length behind the last ones.
    fn hashed(self) -> usize {
        let bytes = self.blocks.saturating_mul(TILES_BYTES);
        bytes
            .saturating_add(if self.last { LENGTH_BYTES } else { 0 })
            .div_ceil(SUBTREE_BLOCKS.saturating_mul(TILES_BYTES))
    }
}

impl Fingerprinter {
    /// Has the driver compile the kernel, and makes the buffers: 33 MiB on the device with launches of 1024 blocks.
    pub(super) fn new(context: &Arc<Context>, launch_blocks: usize) -> Result<Self, CudaError> {
        let module = Module::load(context, "fingerprint", FINGERPRINT)?;
        let kernel = module.function(c"vram_nh_tiles")?;
        let (words, bytes) = module.global(c"vram_nh_key")?;
        if bytes != WORDS_BYTES {
            return Err(CudaError::Unsupported { device: "the kernels' text".into(), what: "a key of 1030 words" });
        }
        let launch_blocks = launch_blocks.max(1);
        let slice_blocks = launch_blocks.saturating_mul(SLICE_LAUNCHES).next_multiple_of(SUBTREE_BLOCKS);
        let hashed = Slice { first_block: 0, blocks: slice_blocks, last: true }.hashed();
        let launches = slice_blocks.div_ceil(launch_blocks).saturating_add(hashed.div_ceil(launch_blocks));
        let tiles = slice_blocks.saturating_mul(TILES_BYTES).saturating_add(LENGTH_BYTES);
        let values = hashed.saturating_mul(VALUE_BYTES);
        let table = launches.saturating_mul(SEGMENT_BYTES);
        Ok(Self {
            context: Arc::clone(context),
            stream: Stream::new(context)?,
            kernel,
            words,
            tag_key: DeviceBuffer::new(context, TAG_KEY_BYTES)?,
            tiles: DeviceBuffer::new(context, tiles)?,
            scratch: DeviceBuffer::new(context, hashed.min(launch_blocks).saturating_mul(SCRATCH_PER_BLOCK))?,
            values: DeviceBuffer::new(context, values)?,
            segments: DeviceBuffer::new(context, table)?,
            keys: PinnedBuffer::new(context, KEYS_BYTES)?,
            table: PinnedBuffer::new(context, table)?,
            length: PinnedBuffer::new(context, LENGTH_BYTES)?,
            results: PinnedBuffer::new(context, values)?,
            launch_blocks,
            slice_blocks,
        })
    }

    /// Shows that the device computes what it should under the key that it is given, by two questions whose answers are known.
    /// A key that does not arrive would be noticed by nobody else: without one, a fingerprint still matches.
    pub(super) fn prove(&mut self, kernels: (&Kernels, HashVariant)) -> Result<(), CudaError> {
        let context = Arc::clone(&self.context);
        {
            let _current = context.enter()?;
            self.wipe()?;
        }
        for secret in [0x2b, 0xd4] {
            let key = FingerprintKey::from_secret([secret; 32]);
            let zeros = (self.values.start(), ZEROS);
            // SAFETY: zeros of this value's own, which are read before anything is written there.
            let taken = unsafe { self.take(kernels, zeros, &key) }?;
            if taken != of_zeros(&key) {
                let (reason, log) = ("another answer to a known question", "do not use re-checks on this GPU");
                return Err(context.kernels_refused("fingerprint", reason, log));
            }
        }
        Ok(())
    }

    /// The fingerprint of a region: its first byte's address, and its length.
    ///
    /// An error says nothing of the region. The key may then have been seen, as with any use of it.
    ///
    /// # Safety
    /// The region's bytes are readable, and stay, while this runs.
    pub(super) unsafe fn take(
        &mut self,
        kernels: (&Kernels, HashVariant),
        region: (Address, u64),
        key: &FingerprintKey,
    ) -> Result<Fingerprint, CudaError> {
        let context = Arc::clone(&self.context);
        let _current = context.enter()?;
        let Some(keys) = self.keys.bytes_mut().first_chunk_mut() else {
            return Err(context.out_of_memory("expand a key"));
        };
        key.expand(keys);
        // SAFETY: the caller's; and the wait below ends every use of the buffers, whatever came of it.
        let taken = unsafe { self.sweep(kernels, region) };
        let waited = self.stream.wait("take a fingerprint");
        // Also where its copy may be under way: the device then gets a part of a key, and nobody takes what comes of that.
        self.keys.bytes_mut().zeroize();
        // Where values may still be on their way to it, this is wiped with its end.
        if !context.is_unsettled() {
            self.results.bytes_mut().zeroize();
        }
        // Once more where it was refused: of what then stays, the error is told.
        let wiped = self.wipe().or_else(|_| self.wipe());
        let taken = taken?;
        waited.and(wiped).map(|()| taken)
    }

    /// Does one slice after the other.
    ///
    /// # Safety
    /// As for `take`, until the stream has done it.
    unsafe fn sweep(
        &mut self,
        kernels: (&Kernels, HashVariant),
        region: (Address, u64),
    ) -> Result<Fingerprint, CudaError> {
        let context = Arc::clone(&self.context);
        let too_long = || context.out_of_memory("take a fingerprint of so many bytes");
        self.length.bytes_mut().copy_from_slice(&region.1.to_le_bytes());
        // SAFETY: the variable is as long as the words, which come first; what is copied stays until the stream is waited for.
        unsafe { self.keys.copy_to(self.words, WORDS_BYTES, &self.stream) }?;
        let second = self.keys.bytes().get(WORDS_BYTES..).map_or(std::ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the second key is as long as its buffer; as above.
        unsafe { self.stream.copy_to_device(self.tag_key.start(), second, TAG_KEY_BYTES) }?;

        let host_key = tag_key(self.keys.bytes());
        let mut merger = Merger::new(Mode::KeyedHash(&host_key));
        let blocks = usize::try_from(block_count(region.1)).map_err(|_| too_long())?;
        for first_block in (0..blocks).step_by(self.slice_blocks) {
            let left = blocks.saturating_sub(first_block);
            let slice = Slice { first_block, blocks: left.min(self.slice_blocks), last: left <= self.slice_blocks };
            // SAFETY: the caller's, and the buffers have room for a slice.
            unsafe { self.ask(kernels, region, slice) }?;
            self.stream.wait("take a fingerprint")?;
            let (values, []) = self.results.bytes().as_chunks::<VALUE_BYTES>() else { return Err(too_long()) };
            let values = values.iter().take(slice.hashed());
            values.copied().try_for_each(|value| merger.push(value)).ok_or_else(too_long)?;
        }
        merger.finish().map(Fingerprint::from_bytes).ok_or_else(too_long)
    }

    /// Puts a slice into the stream.
    ///
    /// # Safety
    /// As for `take`, until the stream has done it.
    unsafe fn ask(
        &mut self,
        (kernels, variant): (&Kernels, HashVariant),
        (address, region_bytes): (Address, u64),
        slice: Slice,
    ) -> Result<(), CudaError> {
        let region_blocks = block_count(region_bytes) as usize;
        let hashed_bytes = region_blocks.saturating_mul(TILES_BYTES).saturating_add(LENGTH_BYTES) as u64;
        // Where the tiles of the region's first block would be: the kernels add a place in what is hashed to it, and what
        // comes of that is inside the buffer. The sum wraps around, as it does on the device.
        let before = slice.first_block.saturating_mul(TILES_BYTES) as u64;
        let first_tile = Address(self.tiles.start().0.wrapping_sub(before));
        let first_hashed = slice.first_block.checked_div(SUBTREE_BLOCKS).unwrap_or(0);

        let mut entries = self.table.bytes_mut().chunks_exact_mut(SEGMENT_BYTES);
        let mut count = 0_usize;
        let mut enter = |segment: Segment| {
            if let Some(entry) = entries.next() {
                entry.copy_from_slice(&segment.to_bytes());
                count = count.saturating_add(1);
            }
        };
        for (first, blocks) in launches(slice.blocks, self.launch_blocks) {
            let first_block = slice.first_block.saturating_add(first) as u64;
            enter(Segment { address, region_bytes, first_block, end: blocks as u64 });
        }
        for (first, blocks) in launches(slice.hashed(), self.launch_blocks) {
            let first_block = first_hashed.saturating_add(first) as u64;
            enter(Segment { address: first_tile, region_bytes: hashed_bytes, first_block, end: blocks as u64 });
        }
        let bytes = count.saturating_mul(SEGMENT_BYTES);
        // SAFETY: both buffers are of this size at least, and the caller waits.
        unsafe { self.table.copy_to(self.segments.start(), bytes, &self.stream) }?;

        // A tile that is silently not computed leaves what was there before, and with that no two fingerprints are the same.
        let unlike = unlike_any_other();
        // SAFETY: this value's own memory, and the caller waits.
        unsafe { self.stream.fill(self.tiles.start(), slice.blocks.saturating_mul(TILES_BYTES), unlike) }?;
        let mut segment = self.segments.start();
        for (first, blocks) in launches(slice.blocks, self.launch_blocks) {
            let out = self.tiles.start().plus(first.saturating_mul(TILES_BYTES) as u64);
            // SAFETY: the caller's, and the buffer has room for the tiles of a slice.
            unsafe { self.tiles(segment, blocks, out) }?;
            segment = segment.plus(SEGMENT_BYTES as u64);
        }
        if slice.last {
            let end = self.tiles.start().plus(slice.blocks.saturating_mul(TILES_BYTES) as u64);
            // SAFETY: the buffer has room for it behind the tiles of a slice, and the caller waits.
            unsafe { self.length.copy_to(end, LENGTH_BYTES, &self.stream) }?;
        }
        // Only now: a known question is about zeros that lie there.
        // SAFETY: as above.
        unsafe { self.stream.fill(self.values.start(), slice.hashed().saturating_mul(VALUE_BYTES), unlike) }?;
        for (first, blocks) in launches(slice.hashed(), self.launch_blocks) {
            // SAFETY: as above; the launch before this one is done by then.
            unsafe { self.stream.fill(self.scratch.start(), self.scratch.bytes(), unlike) }?;
            let launch = Launch {
                segments: segment,
                segment_count: 1,
                blocks: u32::try_from(blocks).unwrap_or(0),
                scratch: self.scratch.start(),
                values: self.values.start().plus(first.saturating_mul(VALUE_BYTES) as u64),
                key: Some(self.tag_key.start()),
            };
            // SAFETY: what is hashed is in the buffer of the tiles, and the others have room for a launch of a slice.
            unsafe { kernels.hash(variant, &self.stream, launch) }?;
            segment = segment.plus(SEGMENT_BYTES as u64);
        }
        let bytes = slice.hashed().saturating_mul(VALUE_BYTES);
        // SAFETY: both buffers are of this size at least, and the caller waits.
        unsafe { self.results.copy_from(self.values.start(), bytes, &self.stream) }
    }

    /// Asks for the tiles of the blocks of one segment.
    ///
    /// # Safety
    /// The segment's bytes are readable, `out` has room for the tiles, and both stay until the stream has done it.
    unsafe fn tiles(&self, mut segment: Address, blocks: usize, mut out: Address) -> Result<(), CudaError> {
        let (mut count, mut blocks) = (1_u32, u32::try_from(blocks).unwrap_or(0));
        let groups = blocks;
        let mut parameters = [pointer(&mut segment), pointer(&mut count), pointer(&mut blocks), pointer(&mut out)];
        // SAFETY: the parameters are those of the kernel, in order; for the rest the caller answers.
        unsafe { self.kernel.launch(&self.stream, groups, TILE_THREADS, &mut parameters) }
    }

    /// Overwrites all that follows from a key on the device, and waits for that. All of it is tried. The context is entered,
    /// and the buffer of the keys holds zeros by now.
    fn wipe(&self) -> Result<(), CudaError> {
        let stream = &self.stream;
        // SAFETY: the variable is as long as that, nobody else uses it, and it is waited for below.
        let words = unsafe { self.keys.copy_to(self.words, WORDS_BYTES, stream) };
        let buffers = [&self.tag_key, &self.tiles, &self.scratch, &self.values];
        // SAFETY: this value's own memory, and it is waited for below.
        let asked = buffers.map(|buffer| unsafe { stream.wipe(buffer.start(), buffer.bytes()) });
        let waited = stream.wait("wipe a key");
        asked.into_iter().fold(words, Result::and).and(waited)
    }
}

/// So many blocks, in launches: the first block of each, and how many it has.
fn launches(blocks: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).step_by(most.max(1)).map(move |first| (first, blocks.saturating_sub(first).min(most)))
}

// A launch of a slice hashes from a whole block on.
const _: () = assert!(SUBTREE_BLOCKS as u64 * TILES_BYTES as u64 == BLOCK_BYTES);
