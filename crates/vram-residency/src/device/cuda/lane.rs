//! A lane: a stream and the buffers that a scan needs, made once, so that a scan allocates nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use zeroize::Zeroize;

use super::driver::{Address, Context, CudaError, DeviceBuffer, Event, PinnedBuffer, Stream};
use super::kernels::{
    HashVariant, Kernels, Launch, SCRATCH_PER_BLOCK, SEGMENT_BYTES, Segment, VALUE_BYTES, unlike_any_other,
};
use crate::digest::{BLOCK_BYTES, BlockValue};

/// Blocks of the launches by which the variants are compared, one size after the other: the last one gives every part of a
/// data-centre GPU work. On a device so slow that a size took this long, the larger ones are left out.
const TRIAL_BLOCKS: [usize; 3] = [1, 16, 128];
const TRIAL_ROUNDS: usize = 3;
const TRIAL_ENOUGH: Duration = Duration::from_millis(10);

const STEP: &str = "hash resident bytes";

/// Bytes that are copied at once where a region is looked at or repaired.
const WINDOW_BYTES: usize = 1 << 20;
const TOO_MUCH: &str = "copy so much at once";

/// What one scan at a time uses.
#[derive(Debug)]
pub(super) struct Lane {
    context: Arc<Context>,
    stream: Stream,
    /// The launches' scratch memory: the stream does one after the other.
    scratch: DeviceBuffer,
    /// For two launches, so that the device has the next one while the host looks at the values of the last.
    slots: [Slot; 2],
    /// Most blocks of a launch, and most segments.
    blocks: usize,
    /// A region's bytes on their way. The driver would take others through memory of its own, which nobody wipes.
    window: PinnedBuffer,
}

/// What a launch has of its own.
#[derive(Debug)]
struct Slot {
    began: Event,
    ended: Event,
    /// The values are there.
    arrived: Event,
    values: DeviceBuffer,
    segments: DeviceBuffer,
    /// The table on its way there, and the values on their way back.
    table: PinnedBuffer,
    results: PinnedBuffer,
}

impl Slot {
    fn new(context: &Arc<Context>, blocks: usize) -> Result<Self, CudaError> {
        let (table, values) = (blocks.saturating_mul(SEGMENT_BYTES), blocks.saturating_mul(VALUE_BYTES));
        Ok(Self {
            began: Event::new(context)?,
            ended: Event::new(context)?,
            arrived: Event::new(context)?,
            values: DeviceBuffer::new(context, values)?,
            segments: DeviceBuffer::new(context, table)?,
            table: PinnedBuffer::new(context, table)?,
            results: PinnedBuffer::new(context, values)?,
        })
    }
}

impl Lane {
    fn new(context: &Arc<Context>, blocks: usize) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(context)?,
            scratch: DeviceBuffer::new(context, blocks.saturating_mul(SCRATCH_PER_BLOCK))?,
            slots: [Slot::new(context, blocks)?, Slot::new(context, blocks)?],
            window: PinnedBuffer::new(context, WINDOW_BYTES)?,
            context: Arc::clone(context),
            blocks,
        })
    }

    /// Hashes a region from its start on, as many blocks as there are values.
    ///
    /// # Safety
    /// The region's bytes are readable, and stay, while this runs.
    pub(super) unsafe fn hash(
        &mut self,
        kernels: &Kernels,
        variant: HashVariant,
        (address, region_bytes): (Address, u64),
        values: &mut [BlockValue],
    ) -> Result<(), CudaError> {
        let (context, most) = (Arc::clone(&self.context), self.blocks);
        let _current = context.enter()?;
        let mut flight = Flight::new(self, kernels, variant);
        let (mut which, mut first_block) = (false, 0_u64);
        let mut under_way: Option<&mut [BlockValue]> = None;
        // At last nothing is begun, and what is under way is waited for.
        for next in values.chunks_mut(most).map(Some).chain([None]) {
            if let Some(values) = &next {
                let segment = Segment { address, region_bytes, first_block, end: values.len() as u64 };
                // SAFETY: the segment is of the caller's region, and a launch has so many blocks.
                unsafe { flight.begin(which, std::iter::once(segment), values.len()) }?;
                first_block = first_block.saturating_add(segment.end);
            }
            if let Some(values) = std::mem::replace(&mut under_way, next) {
                let (results, _) = flight.finish(!which)?;
                values.iter_mut().zip(results).for_each(|(to, value)| *to = BlockValue::from_bytes(*value));
            }
            which = !which;
        }
        Ok(())
    }

    /// Copies bytes from the device.
    ///
    /// # Safety
    /// `from` is readable memory of that size while this runs.
    pub(super) unsafe fn read(&mut self, from: Address, to: &mut [u8]) -> Result<(), CudaError> {
        let context = Arc::clone(&self.context);
        let _current = context.enter()?;
        let window = Wiped(&mut self.window, to.len(), &context);
        let mut from = from;
        for piece in to.chunks_mut(WINDOW_BYTES) {
            // SAFETY: the caller's; and the copy is waited for.
            let asked = unsafe { window.0.copy_from(from, piece.len(), &self.stream) };
            let waited = self.stream.wait("copy from the GPU");
            asked.and(waited)?;
            let Some(arrived) = window.0.bytes().get(..piece.len()) else {
                return Err(context.out_of_memory(TOO_MUCH));
            };
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
        let window = Wiped(&mut self.window, from.len(), &context);
        let mut to = to;
        for piece in from.chunks(WINDOW_BYTES) {
            let Some(leaving) = window.0.bytes_mut().get_mut(..piece.len()) else {
                return Err(context.out_of_memory(TOO_MUCH));
            };
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

/// A buffer of which so many bytes were used, or all: they are wiped at the end. Where a copy may still be under way, they are
/// wiped when the buffer is given back.
struct Wiped<'a>(&'a mut PinnedBuffer, usize, &'a Context);

impl Drop for Wiped<'_> {
    fn drop(&mut self) {
        if self.2.is_unsettled() {
            return;
        }
        let used = self.1.min(WINDOW_BYTES);
        self.0.bytes_mut().get_mut(..used).unwrap_or_default().zeroize();
    }
}

/// Launches of a lane that are under way, at most one in each slot. Whatever ends this early, a panic included, what was
/// begun is waited for: the context stays entered for as long.
pub(super) struct Flight<'a> {
    lane: &'a mut Lane,
    kernels: &'a Kernels,
    variant: HashVariant,
    under_way: [bool; 2],
}

impl<'a> Flight<'a> {
    pub(super) fn new(lane: &'a mut Lane, kernels: &'a Kernels, variant: HashVariant) -> Self {
        Self { lane, kernels, variant, under_way: [false; 2] }
    }

    /// Asks for the values of some segments' blocks. No launch is under way in the slot.
    ///
    /// # Safety
    /// The segments' bytes are readable and stay until this value is dropped. There are at most as many blocks as a lane's
    /// launch has, and no more segments.
    pub(super) unsafe fn begin(
        &mut self,
        which: bool,
        segments: impl Iterator<Item = Segment>,
        blocks: usize,
    ) -> Result<(), CudaError> {
        let Lane { stream, scratch, slots: [first, second], .. } = &mut *self.lane;
        let [first_under_way, second_under_way] = &mut self.under_way;
        let (slot, under_way) = if which { (second, second_under_way) } else { (first, first_under_way) };
        let mut count = 0_usize;
        for (to, segment) in slot.table.bytes_mut().chunks_exact_mut(SEGMENT_BYTES).zip(segments) {
            to.copy_from_slice(&segment.to_bytes());
            count = count.saturating_add(1);
        }
        // From here on something may be under way, also where a step is refused.
        *under_way = true;
        let bytes = count.saturating_mul(SEGMENT_BYTES);
        // SAFETY: both buffers are of this size at least, and stay alone until the launch is waited for.
        unsafe { slot.table.copy_to(slot.segments.start(), bytes, stream) }?;
        // What a kernel that is never run would leave must not be the right values of the last time, nor the same wrong ones.
        let scratch_bytes = blocks.saturating_mul(SCRATCH_PER_BLOCK);
        // SAFETY: both buffers have room for so many blocks, and the stream's order keeps the launch before this one out.
        unsafe { stream.fill(scratch.start(), scratch_bytes, unlike_any_other()) }?;
        // SAFETY: as above; they are this slot's, of which no launch is under way.
        unsafe { stream.wipe(slot.values.start(), blocks.saturating_mul(VALUE_BYTES)) }?;
        slot.began.record(stream)?;
        let launch = Launch {
            segments: slot.segments.start(),
            segment_count: u32::try_from(count).unwrap_or(0),
            blocks: u32::try_from(blocks).unwrap_or(0),
            scratch: scratch.start(),
            values: slot.values.start(),
            key: None,
        };
        // SAFETY: the caller's, and the lane's buffers are large enough for `blocks`; the stream's order keeps the launch
        // before this one out of the scratch memory.
        unsafe { self.kernels.hash(self.variant, stream, launch) }?;
        slot.ended.record(stream)?;
        // SAFETY: both buffers are of this size at least, and stay alone until the launch is waited for.
        unsafe { slot.results.copy_from(slot.values.start(), blocks.saturating_mul(VALUE_BYTES), stream) }?;
        slot.arrived.record(stream)
    }

    /// Waits for the launch of a slot: its values, in the order of its blocks, and how long the device took for it alone.
    pub(super) fn finish(&mut self, which: bool) -> Result<(&[[u8; VALUE_BYTES]], Duration), CudaError> {
        let [first, second] = &self.lane.slots;
        let [first_under_way, second_under_way] = &mut self.under_way;
        let (slot, under_way) = if which { (second, second_under_way) } else { (first, first_under_way) };
        slot.arrived.wait(STEP)?;
        *under_way = false;
        let took = slot.ended.since(&slot.began)?;
        let (values, _) = slot.results.bytes().as_chunks::<VALUE_BYTES>();
        Ok((values, took))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if self.under_way.contains(&true) {
            // Where even that fails, the context is given up, and nothing of it is given back. The error that led here is already
            // on its way.
            let _ = self.lane.stream.wait(STEP);
        }
    }
}

/// Two lanes: so that a scan and a check of single blocks do not wait for each other.
#[derive(Debug)]
pub(super) struct Lanes {
    first: Mutex<Lane>,
    second: Mutex<Lane>,
    /// How many wait for one.
    waiting: AtomicUsize,
}

impl Lanes {
    /// Lanes for launches of at most `blocks` blocks.
    pub(super) fn new(context: &Arc<Context>, blocks: usize) -> Result<Self, CudaError> {
        let blocks = blocks.max(1);
        let (first, second) = (Mutex::new(Lane::new(context, blocks)?), Mutex::new(Lane::new(context, blocks)?));
        Ok(Self { first, second, waiting: AtomicUsize::new(0) })
    }

    /// One that is free, or else the first, when it is. A region may be held for reading or for a repair meanwhile, so
    /// nobody who has a lane waits for a region.
    pub(super) fn take(&self) -> MutexGuard<'_, Lane> {
        self.first.try_lock().or_else(|| self.second.try_lock()).unwrap_or_else(|| {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let lane = self.first.lock();
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            lane
        })
    }

    /// Whether somebody waits for a lane: who has one for long gives it back between two launches.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Gives a lane to who waits for it, if somebody does.
    pub(super) fn give_back(lane: MutexGuard<'_, Lane>) {
        MutexGuard::unlock_fair(lane);
    }

    /// Measures both variants on scratch memory and says which is faster on this device; the plain one where they are equal.
    pub(super) fn faster(&self, kernels: &Kernels) -> Result<HashVariant, CudaError> {
        let (mut lane, other) = (self.first.lock(), self.second.lock());
        let context = Arc::clone(&lane.context);
        let _current = context.enter()?;
        let mut best = [Duration::MAX; 2];
        let most = lane.blocks;
        for blocks in TRIAL_BLOCKS.into_iter().filter(|blocks| *blocks <= most) {
            let began = Instant::now();
            let segments = trial(&other.scratch, blocks as u64);
            best = [Duration::MAX; 2];
            // The first round warms up.
            for round in 0..=TRIAL_ROUNDS {
                for (variant, best) in HashVariant::ALL.into_iter().zip(&mut best) {
                    let mut flight = Flight::new(&mut lane, kernels, variant);
                    // SAFETY: the other lane's scratch memory is readable, and locked; the lane has room for the blocks, and
                    // no segment is without one.
                    unsafe { flight.begin(false, segments.iter().copied(), blocks) }?;
                    let (_, took) = flight.finish(false)?;
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
