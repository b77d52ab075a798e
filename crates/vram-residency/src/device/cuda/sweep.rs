//! Hashing regions launch by launch, of one or of many, with two launches under way: the device has the next one while the
//! host waits for the last and looks at its values. Allocates nothing.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use parking_lot::RwLockReadGuard;

use super::driver::CudaError;
use super::kernels::{Segment, VALUE_BYTES};
use super::lane::{Flight, Lane, Lanes};
use super::region::CudaRegion;
use super::{MOST_LAUNCH_BLOCKS, Shared};
use crate::device::{DeviceError, Region, one_by_one};
use crate::digest::{BlockValue, block_count};

/// Told of a region's number, the first of some of its blocks, and their values.
pub(super) type Found<'a> = dyn FnMut(usize, u64, &[BlockValue]) + 'a;

/// Hashes regions: those of this device together, any other one after the other.
pub(super) fn hash_regions(
    shared: &Arc<Shared>,
    regions: &[&dyn Region],
    found: &mut Found<'_>,
) -> Result<(), DeviceError> {
    sweep(shared, Targets::Whole { regions, shared }, found)?;
    let others = regions.iter().enumerate().filter(|(_, region)| own(shared, **region).is_none());
    one_by_one(others.map(|(index, region)| (index, *region)), found)
}

/// Hashes blocks of one region.
pub(super) fn hash_blocks(region: &CudaRegion, first: u64, values: &mut [BlockValue]) -> Result<(), CudaError> {
    let blocks = first..first.saturating_add(values.len() as u64);
    sweep(region.shared(), Targets::Part { region, blocks }, &mut |_, at, hashed| {
        let at = usize::try_from(at.saturating_sub(first)).ok();
        let to = at.and_then(|at| values.get_mut(at..)).unwrap_or_default();
        to.iter_mut().zip(hashed).for_each(|(to, value)| *to = *value);
    })
}

/// A region of this device, which is not wrapped in another one.
fn own<'a>(shared: &Arc<Shared>, region: &'a dyn Region) -> Option<&'a CudaRegion> {
    let region: &dyn Any = region;
    region.downcast_ref::<CudaRegion>().filter(|region| Arc::ptr_eq(region.shared(), shared))
}

/// What is to be hashed.
enum Targets<'a> {
    /// All of each region of the device.
    Whole { regions: &'a [&'a dyn Region], shared: &'a Arc<Shared> },
    /// Some blocks of one.
    Part { region: &'a CudaRegion, blocks: Range<u64> },
}

impl<'a> Targets<'a> {
    fn count(&self) -> usize {
        match self {
            Self::Whole { regions, .. } => regions.len(),
            Self::Part { .. } => 1,
        }
    }

    /// A region and its blocks; none where it is not of the device.
    fn get(&self, index: usize) -> Option<(&'a CudaRegion, Range<u64>)> {
        match self {
            Self::Whole { regions, shared } => {
                let region = own(shared, *regions.get(index)?)?;
                Some((region, 0..block_count(region.bytes())))
            }
            Self::Part { region, blocks } => (index == 0).then(|| (*region, blocks.clone())),
        }
    }
}

/// Some blocks of a region, in one launch.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    index: usize,
    region: &'a CudaRegion,
    first: u64,
    blocks: usize,
}

/// What is still to be hashed: first the whole launches of each region, each of which has a launch to itself, so that its
/// time says something; then what is left of all of them, as many as fit into a launch. There are as few launches as the
/// sum of all blocks needs.
struct Plan<'a> {
    targets: Targets<'a>,
    /// Blocks of a launch.
    launch: usize,
    rests: bool,
    index: usize,
    /// Blocks of the region that this half of the plan has dealt with.
    done: u64,
}

impl<'a> Plan<'a> {
    fn new(targets: Targets<'a>, launch: usize) -> Self {
        Self { targets, launch: launch.max(1), rests: false, index: 0, done: 0 }
    }

    /// The next part, cut where there is not so much room; none of a whole launch where it does not fit.
    fn peek(&mut self, room: usize) -> Option<Part<'a>> {
        let launch = self.launch as u64;
        loop {
            if self.index >= self.targets.count() {
                if std::mem::replace(&mut self.rests, true) {
                    return None;
                }
                self.index = 0;
                continue;
            }
            if let Some((region, blocks)) = self.targets.get(self.index) {
                let all = blocks.end.saturating_sub(blocks.start);
                let rest = all.checked_rem(launch).unwrap_or(0);
                let (begins, length) =
                    if self.rests { (all.saturating_sub(rest), rest) } else { (0, all.saturating_sub(rest)) };
                let left = length.saturating_sub(self.done);
                if left > 0 {
                    let first = blocks.start.saturating_add(begins).saturating_add(self.done);
                    let blocks = usize::try_from(left).unwrap_or(usize::MAX).min(self.launch);
                    let fits = self.rests || blocks <= room;
                    return fits.then(|| Part { index: self.index, region, first, blocks: blocks.min(room) });
                }
            }
            self.index = self.index.saturating_add(1);
            self.done = 0;
        }
    }

    fn take(&mut self, part: Part<'a>) {
        self.done = self.done.saturating_add(part.blocks as u64);
    }
}

/// The parts of a launch. No repair touches their regions until they are dropped.
#[derive(Default)]
struct Parts<'a> {
    parts: ArrayVec<Part<'a>, MOST_LAUNCH_BLOCKS>,
    guards: ArrayVec<RwLockReadGuard<'a, ()>, MOST_LAUNCH_BLOCKS>,
    blocks: usize,
}

impl<'a> Parts<'a> {
    fn clear(&mut self) {
        self.parts.clear();
        self.guards.clear();
        self.blocks = 0;
    }

    /// Takes as many parts as fit, up to a region that is being repaired. Whether there is any.
    fn fill(&mut self, plan: &mut Plan<'a>) -> bool {
        while let Some(room) = plan.launch.checked_sub(self.blocks).filter(|room| *room > 0) {
            let Some(part) = plan.peek(room) else { break };
            // Waiting for it here would be for ever: who repairs needs a lane.
            let Some(guard) = part.region.read_unless_repaired() else { break };
            if self.parts.try_push(part).is_err() || self.guards.try_push(guard).is_err() {
                break;
            }
            self.blocks = self.blocks.saturating_add(part.blocks);
            plan.take(part);
        }
        self.blocks > 0
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        self.parts.iter().scan(0_u64, |end, part| {
            *end = end.saturating_add(part.blocks as u64);
            let (address, region_bytes) = (part.region.start(), part.region.bytes());
            Some(Segment { address, region_bytes, first_block: part.first, end: *end })
        })
    }
}

fn sweep(shared: &Shared, targets: Targets<'_>, found: &mut Found<'_>) -> Result<(), CudaError> {
    // Nothing is hashed any more where it could not be waited for, but what waits for that is given back.
    shared.context.settle();
    let mut plan = Plan::new(targets, shared.launch_blocks);
    while let Some(part) = plan.peek(plan.launch) {
        // A repair that is under way is waited for here, without a lane.
        let _no_repair = part.region.read();
        let mut lane = shared.lanes.take();
        run(shared, &mut lane, &mut plan, found).map_err(|error| shared.context.told(error))?;
        Lanes::give_back(lane);
    }
    Ok(())
}

/// Launches until all is done, a region is being repaired, or somebody waits for the lane.
fn run<'a>(shared: &Shared, lane: &mut Lane, plan: &mut Plan<'a>, found: &mut Found<'_>) -> Result<(), CudaError> {
    let _current = shared.context.enter()?;
    let (mut first, mut second) = (Parts::<'a>::default(), Parts::<'a>::default());
    let (mut this, mut other) = (&mut first, &mut second);
    let mut values = [BlockValue::UNKNOWN; MOST_LAUNCH_BLOCKS];
    // Dropped before the guards of what is under way, and before the context is left.
    let mut flight = Flight::new(lane, &shared.kernels, shared.variant);
    let (mut slot, mut began) = (false, false);
    loop {
        let more = (!began || !shared.lanes.is_wanted()) && this.fill(plan);
        if more {
            // SAFETY: the segments are of regions that are mapped and readable for as long as they are borrowed; there are no
            // more of them, and of their blocks, than a launch has; the slot's last launch was finished.
            unsafe { flight.begin(slot, this.segments(), this.blocks) }?;
            began = true;
        }
        if other.blocks > 0 {
            let (results, took) = flight.finish(!slot)?;
            tell(other, results, took, &mut values, found);
            other.clear();
        }
        if !more {
            return Ok(());
        }
        std::mem::swap(&mut this, &mut other);
        slot = !slot;
    }
}

/// Notes how long a launch took, where it was of one region, and tells of its values.
fn tell(
    launch: &Parts<'_>,
    results: &[[u8; VALUE_BYTES]],
    took: Duration,
    values: &mut [BlockValue; MOST_LAUNCH_BLOCKS],
    found: &mut Found<'_>,
) {
    for (value, result) in values.iter_mut().zip(results) {
        *value = BlockValue::from_bytes(*result);
    }
    if let [part] = launch.parts.as_slice() {
        part.region.note_speed(part.first, part.blocks as u64, took);
    }
    let mut rest = values.as_slice();
    for part in &launch.parts {
        let Some((of_part, others)) = rest.split_at_checked(part.blocks) else { return };
        found(part.index, part.first, of_part);
        rest = others;
    }
}
