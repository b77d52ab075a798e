//! The speed of a scan as evidence: memory that is paged in over a bus is read many times more slowly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// So many times slower than most others is suspicious.
const SLOW: u64 = 4;
/// So many launches are needed to know what is usual.
const FEWEST: usize = 4;

/// How long the device took for each whole launch of a region, the last time.
#[derive(Debug)]
pub(super) struct Speeds {
    /// Blocks of a launch.
    launch_blocks: u64,
    /// Nanoseconds; 0 where nothing was measured yet.
    took: Box<[AtomicU64]>,
    /// Room to sort them in, so that a check allocates nothing.
    sorted: Mutex<Box<[u64]>>,
}

impl Speeds {
    /// For a region of so many blocks; only whole launches are compared.
    pub(super) fn new(blocks: u64, launch_blocks: u64) -> Self {
        let launches = usize::try_from(blocks.checked_div(launch_blocks).unwrap_or(0)).unwrap_or(0);
        Self {
            launch_blocks,
            took: (0..launches).map(|_| AtomicU64::new(0)).collect(),
            sorted: Mutex::new(vec![0; launches].into()),
        }
    }

    /// A launch was measured.
    pub(super) fn note(&self, first_block: u64, blocks: u64, took: Duration) {
        let whole = blocks == self.launch_blocks && first_block.checked_rem(self.launch_blocks) == Some(0);
        let index = first_block.checked_div(self.launch_blocks).and_then(|index| usize::try_from(index).ok());
        if let (true, Some(launch)) = (whole, index.and_then(|index| self.took.get(index))) {
            launch.store(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        }
    }

    /// Calls `slow` with the first block of each launch that was much slower than most. Allocates nothing.
    pub(super) fn for_each_slow(&self, slow: &mut dyn FnMut(u64)) {
        let mut sorted = self.sorted.lock();
        for (to, took) in sorted.iter_mut().zip(&self.took) {
            *to = took.load(Ordering::Relaxed);
        }
        sorted.sort_unstable();
        let measured = sorted.partition_point(|took| *took == 0);
        let known = sorted.get(measured..).unwrap_or_default();
        let Some(usual) = known.get(known.len() / 2).filter(|_| known.len() >= FEWEST).copied() else { return };
        drop(sorted);
        for (index, took) in (0_u64..).zip(&self.took) {
            if took.load(Ordering::Relaxed) > usual.saturating_mul(SLOW) {
                slow(index.saturating_mul(self.launch_blocks));
            }
        }
    }

    /// Blocks of a launch.
    pub(super) fn launch_blocks(&self) -> u64 {
        self.launch_blocks
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn slow(speeds: &Speeds) -> Vec<u64> {
        let mut found = Vec::new();
        speeds.for_each_slow(&mut |block| found.push(block));
        found
    }

    #[test]
    fn launches_much_slower_than_most_are_named_and_no_others() {
        let speeds = Speeds::new(80, 8);
        assert_eq!(slow(&speeds), [0_u64; 0], "nothing is known yet");
        for launch in 0..10 {
            speeds.note(launch * 8, 8, Duration::from_micros(700 + launch));
        }
        assert_eq!(slow(&speeds), [0_u64; 0]);
        speeds.note(24, 8, Duration::from_micros(2700));
        assert_eq!(slow(&speeds), [0_u64; 0], "not even four times as slow");
        speeds.note(24, 8, Duration::from_micros(9000));
        speeds.note(72, 8, Duration::from_micros(90_000));
        speeds.note(40, 3, Duration::from_secs(1));
        speeds.note(41, 8, Duration::from_secs(1));
        assert_eq!(slow(&speeds), [24, 72], "parts of launches are not compared");
        speeds.note(24, 8, Duration::from_micros(700));
        assert_eq!(slow(&speeds), [72], "what was measured again counts");
    }

    #[test]
    fn too_few_launches_tell_nothing() {
        let speeds = Speeds::new(24, 8);
        for (launch, took) in [(0, 1), (1, 1), (2, 100)] {
            speeds.note(launch * 8, 8, Duration::from_millis(took));
        }
        assert_eq!(slow(&speeds), [0_u64; 0]);
        assert_eq!(slow(&Speeds::new(3, 8)), [0_u64; 0]);
    }
}
