//! Changes of what is resident: one at a time, few that wait, and none any more once the daemon stops.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::lock::lock;
use crate::exit::Failure;

/// Orders that wait for their turn, at most: each has one of the daemon's threads, and others need some.
const MOST_WAITING: usize = 8;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Changes {
    turn: Mutex<()>,
    waiting: AtomicUsize,
    stopping: AtomicBool,
}

impl Changes {
    /// Waits for its turn: nobody else changes anything until this is dropped.
    pub(super) fn begin(&self) -> Result<MutexGuard<'_, ()>, Failure> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= MOST_WAITING {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            let message =
                format!("{MOST_WAITING} orders wait for a change that is under way; ask again when it is through");
            return Err(Failure::new("busy", message));
        }
        let turn = lock(&self.turn);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        // Whoever waited until then is not begun.
        if self.are_stopping() { Err(stopping()) } else { Ok(turn) }
    }

    /// From now on nothing is begun, and what is under way ends at the next place where it can.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether what is under way is to end.
    pub(super) fn are_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The same as [`Changes::stop`], and waits until nothing is under way any more.
    pub(super) fn end(&self) -> MutexGuard<'_, ()> {
        self.stop();
        lock(&self.turn)
    }
}

fn stopping() -> Failure {
    Failure::new("stopped", "the daemon stops and begins nothing more; ask again when it is there again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait_and_nothing_begins_after_the_end() {
        let changes = Changes::default();
        std::thread::scope(|scope| {
            let under_way = changes.begin().unwrap();
            let waiting: Vec<_> = (0..MOST_WAITING).map(|_| scope.spawn(|| changes.begin().map(drop))).collect();
            while changes.waiting.load(Ordering::Acquire) < MOST_WAITING {
                std::thread::yield_now();
            }
            assert_eq!(changes.begin().unwrap_err().kind, "busy");
            changes.stop();
            drop(under_way);
            for one in waiting {
                assert_eq!(one.join().unwrap().unwrap_err().kind, "stopped");
            }
        });
        drop(changes.end());
        assert_eq!(changes.begin().unwrap_err().kind, "stopped");
    }
}
