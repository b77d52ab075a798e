//! In which order the blocks of a shard are checked, and when each is due.
//!
//! A pass visits every block once. Its order is the last pass's, with every block moved by chance, but forward by less than
//! half of the blocks. So nobody can tell when a block is next, and yet no block waits for longer than one and a half
//! passes: a pass takes two thirds of the period, and every block is checked within the period.

use crate::digest::Digest;

/// Bytes drawn as a stream from a seed. BLAKE3's output cannot be told from chance without the seed.
#[derive(Debug)]
pub(super) struct Chance {
    stream: blake3::OutputReader,
}

impl Chance {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { stream: blake3::Hasher::new_derive_key("vram-residency scrub order v1").update(&seed).finalize_xof() }
    }

    pub(super) fn of_number(seed: u64) -> Self {
        Self::new(*Digest::of(&seed.to_le_bytes()).as_bytes())
    }

    /// A number below `limit`; 0 where that is 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.stream.fill(&mut bytes);
        // The product's upper half: even enough, and no division.
        let product = u128::from(u64::from_le_bytes(bytes)).wrapping_mul(limit.into());
        u64::try_from(product >> 64).unwrap_or(0)
    }
}

/// The passes over one shard. Times are nanoseconds.
#[derive(Debug)]
pub(super) struct Schedule {
    order: Vec<u32>,
    /// How many blocks of this pass were handed out.
    next: usize,
    started_ns: u64,
    /// The last pass's order, and how many at its start were checked again.
    previous: Vec<u32>,
    again: usize,
    /// The pass in which each block was handed out last.
    seen: Vec<u32>,
    number: u32,
}

impl Schedule {
    /// For so many blocks, all of them checked at `now_ns`.
    pub(super) fn new(blocks: usize, now_ns: u64, chance: &mut Chance) -> Self {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let mut schedule = Self {
            order: (0..blocks).collect(),
            next: 0,
            started_ns: now_ns,
            previous: Vec::new(),
            again: 0,
            seen: (0..blocks).map(|_| 0).collect(),
            number: 0,
        };
        schedule.restart(now_ns, chance, |_| now_ns);
        schedule
    }

    /// Begins anew in any order, after all blocks were checked together or a check went wrong. `checked_ns` knows when a
    /// block was found as sealed.
    pub(super) fn restart(&mut self, now_ns: u64, chance: &mut Chance, checked_ns: impl Fn(u64) -> u64) {
        self.begin(now_ns, u64::MAX, chance);
        self.previous.sort_by_key(|block| checked_ns(u64::from(*block)));
    }

    /// Begins the next pass.
    pub(super) fn next_pass(&mut self, now_ns: u64, chance: &mut Chance) {
        let half = (self.order.len() as u64).div_ceil(2);
        self.begin(now_ns, half, chance);
    }

    fn begin(&mut self, now_ns: u64, reach: u64, chance: &mut Chance) {
        let reach = reach.min(1 << 40);
        let mut keyed: Vec<(u64, u32)> = (0_u64..)
            .zip(&self.order)
            .map(|(place, block)| (place.saturating_add(chance.below(reach)), *block))
            .collect();
        keyed.sort_unstable();
        self.previous = std::mem::replace(&mut self.order, keyed.into_iter().map(|(_, block)| block).collect());
        self.next = 0;
        self.again = 0;
        self.started_ns = now_ns;
        self.number = self.number.wrapping_add(1);
    }

    /// When this pass began.
    pub(super) const fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// The block to be checked next, and when it is due in a pass that takes `pass_ns`. None when the pass is through.
    pub(super) fn next(&self, pass_ns: u64) -> Option<(u64, u64)> {
        let block = self.order.get(self.next)?;
        let place = self.next.saturating_add(1) as u128;
        let share = u128::from(pass_ns).saturating_mul(place).checked_div(self.order.len() as u128).unwrap_or(0);
        let due = self.started_ns.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        Some((u64::from(*block), due))
    }

    /// The next block was not found as sealed: it waits for the next pass.
    pub(super) fn skip(&mut self) {
        self.next = self.next.saturating_add(1);
    }

    /// The next block was found as sealed. Returns the block that now waits longest.
    pub(super) fn checked(&mut self) -> Option<u64> {
        let block = self.order.get(self.next).copied();
        if let Some(seen) = block.and_then(|block| self.seen.get_mut(usize::try_from(block).ok()?)) {
            *seen = self.number;
        }
        self.next = self.next.saturating_add(1);
        // In the order in which they were checked last, the first that was not checked again waits longest.
        while let Some(block) = self.previous.get(self.again) {
            if usize::try_from(*block).ok().and_then(|block| self.seen.get(block)) != Some(&self.number) {
                return Some(u64::from(*block));
            }
            self.again = self.again.saturating_add(1);
        }
        self.order.first().copied().map(u64::from)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_pass_has_every_block_and_no_block_waits_for_longer_than_the_period() {
        for blocks in [1_u64, 2, 3, 7, 100, 1001] {
            let mut chance = Chance::of_number(blocks);
            let (period, pass) = (3_000_000_000_u64, 2_000_000_000_u64);
            let mut schedule = Schedule::new(blocks as usize, 0, &mut chance);
            let mut last: HashMap<u64, u64> = (0..blocks).map(|block| (block, 0)).collect();
            let mut orders = Vec::new();
            for _ in 0..20 {
                let mut order = Vec::new();
                let mut end = 0;
                while let Some((block, due)) = schedule.next(pass) {
                    let waited = due - last.insert(block, due).unwrap();
                    assert!(waited <= period, "{blocks} blocks: {block} waited for {waited}");
                    let oldest = schedule.checked().unwrap();
                    assert_eq!(last[&oldest], *last.values().min().unwrap(), "the oldest is known");
                    order.push(block);
                    end = due;
                }
                order.sort_unstable();
                assert!(order.iter().copied().eq(0..blocks));
                orders.push(schedule.order.clone());
                schedule.next_pass(end, &mut chance);
            }
            orders.dedup();
            assert!(blocks < 100 || orders.len() == 20, "no two passes have one order");
        }
    }

    #[test]
    fn a_restart_forgets_the_order_and_the_same_seed_gives_the_same() {
        let order = |seed| {
            let mut chance = Chance::of_number(seed);
            let mut schedule = Schedule::new(64, 5, &mut chance);
            schedule.checked();
            schedule.restart(9, &mut chance, |_| 5);
            assert_eq!(schedule.started_ns(), 9);
            schedule.order.clone()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn chance_is_even_and_below_its_limit() {
        let mut chance = Chance::of_number(3);
        assert_eq!(chance.below(0), 0);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[chance.below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
