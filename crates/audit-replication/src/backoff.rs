//! How long to wait after a failure.

use std::time::Duration;

/// The wait after the first failure, at most.
const FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from 250 ms up to a cap, each shortened by a random part of up to its half: a fleet whose store
/// comes back does not come back to it all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    cap: Duration,
    failures: u32,
    state: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::with_cap(LONGEST)
    }

    pub(crate) fn with_cap(cap: Duration) -> Self {
        let mut seed = [0; 8];
        // Without randomness the waits are merely the same on every node.
        let _ = getrandom::fill(&mut seed);
        Self { cap, failures: 0, state: u64::from_le_bytes(seed) }
    }

    /// Counts a failure and says how long to wait now.
    pub(crate) fn failed(&mut self) -> Duration {
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.failures.min(20)).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        let whole = doubled.min(self.cap);
        let half = whole.checked_div(2).unwrap_or(whole);
        let span = u64::try_from(half.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        half.saturating_add(Duration::from_millis(self.random().checked_rem(span).unwrap_or(0)))
    }

    /// All is well again: the next wait is short.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_never_leave_their_bounds() {
        for _ in 0..200 {
            let mut backoff = Backoff::new();
            for failure in 0..60_u32 {
                let most = FIRST.saturating_mul(1 << failure.min(12)).min(LONGEST);
                let wait = backoff.failed();
                assert!(wait >= most / 2 && wait <= most, "failure {failure}: {wait:?} of at most {most:?}");
            }
            backoff.succeeded();
            assert!(backoff.failed() <= FIRST);
        }
    }

    #[test]
    fn two_nodes_do_not_wait_alike() {
        let (mut one, mut other) = (Backoff::new(), Backoff::new());
        let waits = |backoff: &mut Backoff| (0..12).map(|_| backoff.failed()).collect::<Vec<_>>();
        assert_ne!(waits(&mut one), waits(&mut other));
    }
}
