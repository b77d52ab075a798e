//! A lane: a stream and the buffers that a scan needs, made once, so that a scan allocates nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use zeroize::Zeroize;

use super::driver::{Address, Context, CudaError, DeviceBuffer, Event, PinnedBuffer, Stream};
use super::kernels::{HashVariant, Kernels, Launch, SCRATCH_PER_BLOCK, SEGMENT_BYTES, Segment, VALUE_BYTES};
use crate::digest::{BLOCK_BYTES, BlockValue};

/// Blocks of the launches by which the variants are compared, one size after the other: the last one gives every part of a
/// data-centre GPU work. On a device so slow that a size took this long, the larger ones are left out.
const TRIAL_BLOCKS: [usize; 3] = [1, 16, 128];
const TRIAL_ROUNDS: usize = 3;
const TRIAL_ENOUGH: Duration = Duration::from_millis(10);

/// Most segments of a launch: those of a trial where the lane has scratch memory for a single block.
const MOST_SEGMENTS: usize = 128;

/// Bytes that are copied at once where a region is looked at or repaired.
const WINDOW_BYTES: usize = 1 << 20;
const TOO_MUCH: CudaError = CudaError::OutOfMemory { step: "copy so much at once" };

/// What one scan at a time uses.
#[derive(Debug)]
pub(super) struct Lane {
    context: Arc<Context>,
    stream: Stream,
    began: Event,
    ended: Event,
    scratch: DeviceBuffer,
    values: DeviceBuffer,
    segments: DeviceBuffer,
    /// The table on its way there, and the values on their way back.
    table: PinnedBuffer,
    results: PinnedBuffer,
    /// A region's bytes on their way. The driver would take others through memory of its own, which nobody wipes.
    window: PinnedBuffer,
    /// Most blocks of a launch.
    blocks: usize,
}

impl Lane {
    fn new(context: &Arc<Context>, blocks: usize) -> Result<Self, CudaError> {
        let bytes = |each: usize| blocks.saturating_mul(each);
        let table = SEGMENT_BYTES.saturating_mul(MOST_SEGMENTS);
        Ok(Self {
            stream: Stream::new(context)?,
            began: Event::new(context)?,
            ended: Event::new(context)?,
            scratch: DeviceBuffer::new(context, bytes(SCRATCH_PER_BLOCK))?,
            values: DeviceBuffer::new(context, bytes(VALUE_BYTES))?,
            segments: DeviceBuffer::new(context, table)?,
            table: PinnedBuffer::new(context, table)?,
            results: PinnedBuffer::new(context, bytes(VALUE_BYTES))?,
            window: PinnedBuffer::new(context, WINDOW_BYTES)?,
            context: Arc::clone(context),
            blocks,
        })
    }

    /// Hashes blocks of a region, as many as there are values: at most those of a launch. Says how long the device took.
    ///
    /// # Safety
    /// The region's bytes are readable, and stay, while this runs.
    pub(super) unsafe fn hash(
        &mut self,
        kernels: &Kernels,
        variant: HashVariant,
        region: (Address, u64),
        first_block: u64,
        values: &mut [BlockValue],
    ) -> Result<Duration, CudaError> {
        let blocks = values.len().min(self.blocks);
        let end = blocks as u64;
        let segment = Segment { address: region.0, region_bytes: region.1, first_block, end };
        // SAFETY: the segment is of the caller's region, and the lane has room for so many blocks.
        let took = unsafe { self.launch(kernels, variant, &[segment], blocks) }?;
        let (results, []) = self.results.bytes().as_chunks::<VALUE_BYTES>() else { return Ok(took) };
        for (value, result) in values.iter_mut().zip(results) {
            *value = BlockValue::from_bytes(*result);
        }
        Ok(took)
    }

    /// Hashes the blocks of some segments into `results`.
    ///
    /// # Safety
    /// The segments' bytes are readable and stay while this runs; there are at most `self.blocks` blocks to return, and
    /// scratch memory for all of them.
    unsafe fn launch(
        &mut self,
        kernels: &Kernels,
        variant: HashVariant,
        segments: &[Segment],
        blocks: usize,
    ) -> Result<Duration, CudaError> {
        let context = Arc::clone(&self.context);
        let _current = context.enter()?;
        for (to, segment) in self.table.bytes_mut().chunks_exact_mut(SEGMENT_BYTES).zip(segments) {
            to.copy_from_slice(&segment.to_bytes());
        }
        // SAFETY: the caller's; and the wait below ends every use of the buffers, whatever came of it.
        let asked = unsafe { self.ask(kernels, variant, segments.len(), blocks) };
        let waited = self.stream.wait("hash resident bytes");
        asked.and(waited)?;
        self.ended.since(&self.began)
    }

    /// Puts a whole scan into the stream.
    ///
    /// # Safety
    /// As for `launch`, until the stream has done it.
    unsafe fn ask(
        &mut self,
        kernels: &Kernels,
        variant: HashVariant,
        segments: usize,
        blocks: usize,
    ) -> Result<(), CudaError> {
        let bytes = segments.saturating_mul(SEGMENT_BYTES);
        // SAFETY: both buffers are of this size at least, and the caller waits.
        unsafe { self.table.copy_to(self.segments.start(), bytes, &self.stream) }?;
        self.began.record(&self.stream)?;
        let launch = Launch {
            segments: self.segments.start(),
            segment_count: u32::try_from(segments).unwrap_or(0),
            blocks: u32::try_from(blocks).unwrap_or(0),
            scratch: self.scratch.start(),
            values: self.values.start(),
            key: None,
        };
        // SAFETY: the caller's, and the lane's buffers are large enough for `blocks`.
        unsafe { kernels.hash(variant, &self.stream, launch) }?;
        self.ended.record(&self.stream)?;
        // SAFETY: both buffers are of this size at least, and the caller waits.
        unsafe { self.results.copy_from(self.values.start(), blocks.saturating_mul(VALUE_BYTES), &self.stream) }
    }

    /// Copies bytes from the device.
    ///
    /// # Safety
    /// `from` is readable memory of that size while this runs.
    pub(super) unsafe fn read(&mut self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        let context = Arc::clone(&self.context);
        let _current = context.enter()?;
        let window = Wiped(&mut self.window, to.len());
        let mut from = from;
        for piece in to.chunks_mut(WINDOW_BYTES) {
            // SAFETY: the caller's; and the copy is waited for.
            let asked = unsafe { window.0.copy_from(from, piece.len(), &self.stream) };
            let waited = self.stream.wait("copy from the GPU");
            asked.and(waited)?;
            let Some(arrived) = window.0.bytes().get(..piece.len()) else { return Err(TOO_MUCH) };
            piece.copy_from_slice(arrived);
            from = from.plus(piece.len() as u64);
        }
        Ok(())
    }

    /// Copies bytes to the device.
    ///
    /// # Safety
    /// `to` is writable memory of that size, which nobody else uses, while this runs.
    pub(super) unsafe fn write(&mut self, to: Address, from: &[u8]) -> Result<(), CudaError> {
        let context = Arc::clone(&self.context);
        let _current = context.enter()?;
        let window = Wiped(&mut self.window, from.len());
        let mut to = to;
        for piece in from.chunks(WINDOW_BYTES) {
            let Some(leaving) = window.0.bytes_mut().get_mut(..piece.len()) else { return Err(TOO_MUCH) };
            leaving.copy_from_slice(piece);
            // SAFETY: the caller's; and the copy is waited for.
            let asked = unsafe { window.0.copy_to(to, piece.len(), &self.stream) };
            let waited = self.stream.wait("copy to the GPU");
            asked.and(waited)?;
            to = to.plus(piece.len() as u64);
        }
        Ok(())
    }
}

/// A buffer of which so many bytes were used, or all: they are wiped at the end.
struct Wiped<'a>(&'a mut PinnedBuffer, usize);

impl Drop for Wiped<'_> {
    fn drop(&mut self) {
        let used = self.1.min(WINDOW_BYTES);
        self.0.bytes_mut().get_mut(..used).unwrap_or_default().zeroize();
    }
}

/// Two lanes: so that a scan and a check of single blocks do not wait for each other.
#[derive(Debug)]
pub(super) struct Lanes {
    first: Mutex<Lane>,
    second: Mutex<Lane>,
}

impl Lanes {
    /// Lanes for launches of at most `blocks` blocks.
    pub(super) fn new(context: &Arc<Context>, blocks: usize) -> Result<Self, CudaError> {
        let blocks = blocks.max(1);
        Ok(Self { first: Mutex::new(Lane::new(context, blocks)?), second: Mutex::new(Lane::new(context, blocks)?) })
    }

    /// One that is free, or else the first that becomes free.
    pub(super) fn take(&self) -> MutexGuard<'_, Lane> {
        self.first.try_lock().or_else(|| self.second.try_lock()).unwrap_or_else(|| self.first.lock())
    }

    /// Measures both variants on scratch memory and says which is faster on this device; the plain one where they are equal.
    pub(super) fn faster(&self, kernels: &Kernels) -> Result<HashVariant, CudaError> {
        let (mut lane, other) = (self.first.lock(), self.second.lock());
        let mut best = [Duration::MAX; 2];
        let most = lane.blocks;
        for blocks in TRIAL_BLOCKS.into_iter().filter(|blocks| *blocks <= most) {
            let began = Instant::now();
            let segments = trial(&other.scratch, blocks as u64);
            best = [Duration::MAX; 2];
            // The first round warms up.
            for round in 0..=TRIAL_ROUNDS {
                for (variant, best) in HashVariant::ALL.into_iter().zip(&mut best) {
                    // SAFETY: the other lane's scratch memory is readable, and locked; the lane has room for the blocks.
                    let took = unsafe { lane.launch(kernels, variant, &segments, blocks) }?;
                    if round > 0 {
                        *best = took.min(*best);
                    }
                }
            }
            if began.elapsed() > TRIAL_ENOUGH {
                break;
            }
        }
        let [plain, mad] = best;
        tracing::debug!(?plain, ?mad, "hash variants measured");
        Ok(if mad < plain { HashVariant::Mad } else { HashVariant::Plain })
    }
}

/// So many blocks of scratch memory, the same ones again and again.
fn trial(scratch: &DeviceBuffer, blocks: u64) -> Vec<Segment> {
    let (address, region_bytes) = (scratch.start(), scratch.bytes() as u64);
    let each = region_bytes.div_ceil(BLOCK_BYTES).max(1);
    let ends = (1..=blocks.div_ceil(each)).map(|number| number.saturating_mul(each).min(blocks));
    ends.map(|end| Segment { address, region_bytes, first_block: 0, end }).collect()
}
