//! Loading: from a source through pinned buffers into a region, hashed on the device as it arrives.
//!
//! ```text
//! source ─▶ staging buffers (several threads) ─▶ copy stream ─▶ region ─▶ hash stream ─▶ block values
//! ```
//!
//! The values are of the bytes in the device's memory, after the copy. Staging is bounded and wiped at the end.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use zeroize::Zeroize;

use super::driver::{Address, Context, CudaError, DeviceBuffer, Event, PinnedBuffer, Stream};
use super::kernels::{
    HashVariant, Kernels, Launch, SCRATCH_PER_BLOCK, SEGMENT_BYTES, Segment, VALUE_BYTES, unlike_any_other,
};
use crate::device::crew::{Crew, Panicked};
use crate::device::{DeviceError, Fill};
use crate::digest::{BLOCK_BYTES, BlockValue, block_count, block_range};

/// Blocks of a staging buffer: large enough for a copy to run at the link's speed.
const PIECE_BLOCKS: u64 = 4;
/// Staging buffers: at least so many are in flight.
const FEWEST_BUFFERS: usize = 4;
/// Most bytes of all staging buffers together: 256 MiB.
pub(super) const MOST_STAGING_BYTES: usize = 256 << 20;

/// What one load at a time uses.
#[derive(Debug)]
pub(super) struct Loader {
    context: Arc<Context>,
    copy: Stream,
    hash: Stream,
    scratch: DeviceBuffer,
    /// Buffers that nobody fills, the one that was used longest ago first.
    free: Mutex<VecDeque<Staging>>,
    given_back: Condvar,
}

/// A buffer, and the mark behind the last copy out of it.
#[derive(Debug)]
struct Staging {
    buffer: PinnedBuffer,
    copied: Event,
    /// Most bytes that were in it since it was wiped.
    used: usize,
}

impl Loader {
    /// Buffers for `threads` threads that fill them, and as many again that are being copied.
    pub(super) fn new(context: &Arc<Context>, threads: usize) -> Result<Self, CudaError> {
        let bytes = usize::try_from(PIECE_BLOCKS.saturating_mul(BLOCK_BYTES)).unwrap_or(usize::MAX);
        let most = MOST_STAGING_BYTES.checked_div(bytes).unwrap_or(1);
        let count = threads.saturating_mul(2).clamp(FEWEST_BUFFERS, most);
        let staging = |_| {
            let (buffer, copied) = (PinnedBuffer::new(context, bytes)?, Event::new(context)?);
            Ok(Staging { buffer, copied, used: 0 })
        };
        let scratch = SCRATCH_PER_BLOCK.saturating_mul(usize::try_from(PIECE_BLOCKS).unwrap_or(1));
        Ok(Self {
            copy: Stream::new(context)?,
            hash: Stream::new(context)?,
            scratch: DeviceBuffer::new(context, scratch)?,
            free: Mutex::new((0..count).map(staging).collect::<Result<_, CudaError>>()?),
            given_back: Condvar::new(),
            context: Arc::clone(context),
        })
    }

    /// Fills a region and puts the value of every block into `values`.
    ///
    /// # Safety
    /// The region is writable, stays, and is nobody else's while this runs.
    pub(super) unsafe fn fill(
        &mut self,
        (kernels, variant): (&Kernels, HashVariant),
        crew: &Crew,
        (region, bytes): (Address, u64),
        source: &dyn Fill,
        values: &mut [BlockValue],
    ) -> Result<(), DeviceError> {
        let outcome = Filling::begin(self, kernels, variant, region, bytes, source).map_err(DeviceError::from);
        let outcome = outcome.and_then(|(filling, results)| {
            let pieces = usize::try_from(piece_count(bytes)).unwrap_or(usize::MAX);
            // SAFETY: the caller's, as `end` waits for all that was begun.
            let ran = crew.run(pieces, &|piece| unsafe { filling.piece(piece as u64) });
            filling.end(ran, results, values)
        });
        if outcome.is_err() {
            source.abandon();
        }
        self.wipe();
        outcome.map_err(|error| match error {
            DeviceError::Cuda(error) => self.context.told(error).into(),
            other => other,
        })
    }

    fn take(&self) -> Staging {
        let mut free = self.free.lock();
        loop {
            if let Some(staging) = free.pop_front() {
                return staging;
            }
            self.given_back.wait(&mut free);
        }
    }

    fn give_back(&self, staging: Staging) {
        self.free.lock().push_back(staging);
        self.given_back.notify_one();
    }

    /// Weights stay nowhere but in their region. Where a copy may still be under way, they are wiped with the buffer's end.
    fn wipe(&mut self) {
        if self.context.is_unsettled() {
            return;
        }
        for staging in self.free.get_mut() {
            let used = std::mem::take(&mut staging.used);
            staging.buffer.bytes_mut().get_mut(..used).unwrap_or_default().zeroize();
        }
    }
}

fn piece_count(bytes: u64) -> u64 {
    block_count(bytes).div_ceil(PIECE_BLOCKS)
}

/// One load.
struct Filling<'a> {
    loader: &'a Loader,
    kernels: &'a Kernels,
    variant: HashVariant,
    region: Address,
    bytes: u64,
    source: &'a dyn Fill,
    /// A segment for each piece, and a value for each block, on the device.
    segments: DeviceBuffer,
    values: DeviceBuffer,
    /// Held while a piece's copy and hash are put into the streams: both, in one order.
    order: Mutex<()>,
    failed: AtomicBool,
    failure: Mutex<Option<DeviceError>>,
}

impl<'a> Filling<'a> {
    /// Begins a load, and makes the buffer in which `end` gets the values.
    fn begin(
        loader: &'a Loader,
        kernels: &'a Kernels,
        variant: HashVariant,
        region: Address,
        bytes: u64,
        source: &'a dyn Fill,
    ) -> Result<(Self, PinnedBuffer), CudaError> {
        let context = &loader.context;
        let size = |count: u64, each: usize| usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(each);
        // Pinned: where a copy cannot be waited for, this stays as the device's memory does.
        let mut table = PinnedBuffer::new(context, size(piece_count(bytes), SEGMENT_BYTES))?;
        for (piece, entry) in (0_u64..).zip(table.bytes_mut().chunks_exact_mut(SEGMENT_BYTES)) {
            let blocks = blocks_of(bytes, piece);
            let end = blocks.end.saturating_sub(blocks.start);
            let segment = Segment { address: region, region_bytes: bytes, first_block: blocks.start, end };
            entry.copy_from_slice(&segment.to_bytes());
        }
        let results = PinnedBuffer::new(context, size(block_count(bytes), VALUE_BYTES))?;
        let segments = DeviceBuffer::new(context, table.bytes().len())?;
        let values = DeviceBuffer::new(context, results.bytes().len())?;
        let _current = context.enter()?;
        // SAFETY: as long as the table, whose end is put off until the copy was waited for.
        let asked = unsafe { table.copy_to(segments.start(), segments.bytes(), &loader.hash) };
        // SAFETY: the buffer is of that size, and the wait ends it; what is not hashed stays no value.
        let asked = asked.and(unsafe { loader.hash.wipe(values.start(), values.bytes()) });
        let waited = loader.hash.wait("copy to the GPU");
        asked.and(waited)?;
        let (order, failed, failure) = (Mutex::default(), AtomicBool::new(false), Mutex::new(None));
        let filling =
            Self { loader, kernels, variant, region, bytes, source, segments, values, order, failed, failure };
        Ok((filling, results))
    }

    /// Reads a piece and has it copied and hashed.
    ///
    /// # Safety
    /// As for `Loader::fill`, until `end`.
    unsafe fn piece(&self, piece: u64) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let mut borrowed = Borrowed { loader: self.loader, staging: Some(self.loader.take()) };
        let Some(staging) = &mut borrowed.staging else { return };
        // SAFETY: the caller's.
        if let Err(error) = unsafe { self.load(piece, staging) } {
            self.failed.store(true, Ordering::Relaxed);
            self.source.abandon();
            self.failure.lock().get_or_insert(error);
        }
    }

    /// # Safety
    /// As for `piece`.
    unsafe fn load(&self, piece: u64, staging: &mut Staging) -> Result<(), DeviceError> {
        let _current = self.loader.context.enter()?;
        // What was in it before must have left.
        staging.copied.wait("copy to the GPU")?;
        let blocks = blocks_of(self.bytes, piece);
        let start = block_range(self.bytes, blocks.start).start;
        let end = block_range(self.bytes, blocks.end.saturating_sub(1)).end;
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        staging.used = staging.used.max(length);
        // As a whole: a source on disk is read faster so.
        let filled = self.source.fill(start, staging.buffer.bytes_mut().get_mut(..length).unwrap_or_default());
        filled.map_err(|source| DeviceError::Source { offset: start, source: source.into() })?;
        let _in_order = self.order.lock();
        let to = self.region.plus(start);
        // SAFETY: inside the region, which is the caller's; the buffer is not used before its mark is reached.
        let asked = unsafe { staging.buffer.copy_to(to, length, &self.loader.copy) };
        // Set in any case: a mark behind a copy that may have begun.
        let marked = staging.copied.record(&self.loader.copy);
        asked.and(marked)?;
        self.loader.hash.wait_for(&staging.copied)?;
        let offset = |each: usize, index: u64| index.saturating_mul(each as u64);
        let launch = Launch {
            segments: self.segments.start().plus(offset(SEGMENT_BYTES, piece)),
            segment_count: 1,
            blocks: u32::try_from(blocks.end.saturating_sub(blocks.start)).unwrap_or(0),
            scratch: self.loader.scratch.start(),
            values: self.values.start().plus(offset(VALUE_BYTES, blocks.start)),
            key: None,
        };
        let scratch = &self.loader.scratch;
        // What a kernel that is never run would leave must not be the values of an earlier piece or load, nor the same as later.
        // SAFETY: the scratch memory is this stream's, in whose order it is used, and has room for a piece.
        unsafe { self.loader.hash.fill(scratch.start(), scratch.bytes(), unlike_any_other()) }?;
        // SAFETY: the segment is of the caller's region, whose bytes of these blocks are copied before; launches of one
        // stream use the scratch memory one after the other; there is a value for each block.
        unsafe { self.kernels.hash(self.variant, &self.loader.hash, launch) }?;
        Ok(())
    }

    /// Waits for everything that was begun, and takes the values by way of `results`.
    fn end(
        self,
        ran: Result<(), Panicked>,
        mut results: PinnedBuffer,
        values: &mut [BlockValue],
    ) -> Result<(), DeviceError> {
        let copied = self.finish(&mut results);
        ran.map_err(|Panicked| DeviceError::WorkerPanicked)?;
        if let Some(error) = self.failure.into_inner() {
            return Err(error);
        }
        copied?;
        let (results, _) = results.bytes().as_chunks::<VALUE_BYTES>();
        for ((block, value), result) in (0_u64..).zip(values).zip(results) {
            *value = BlockValue::from_bytes(*result);
            // What was wiped, and not hashed.
            if *value == BlockValue::UNKNOWN {
                return Err(DeviceError::Inconsistent { device: self.loader.context.name(), block });
            }
        }
        Ok(())
    }

    fn finish(&self, results: &mut PinnedBuffer) -> Result<(), CudaError> {
        // Whatever comes of that, what was begun is waited for.
        let entered = self.loader.context.enter();
        let copied = self.loader.copy.wait("copy to the GPU");
        // SAFETY: as long as the values, which are written by what is before it in the stream; it is waited for, and where that
        // is refused, nobody looks at it, and its end is put off.
        let asked = unsafe { results.copy_from(self.values.start(), self.values.bytes(), &self.loader.hash) };
        let hashed = self.loader.hash.wait("hash resident bytes");
        entered.map(drop).and(copied).and(asked).and(hashed)
    }
}

/// The blocks of a piece.
fn blocks_of(bytes: u64, piece: u64) -> Range<u64> {
    let start = piece.saturating_mul(PIECE_BLOCKS);
    start..start.saturating_add(PIECE_BLOCKS).min(block_count(bytes))
}

/// A buffer that is given back also where the source panics.
struct Borrowed<'a> {
    loader: &'a Loader,
    staging: Option<Staging>,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            self.loader.give_back(staging);
        }
    }
}
