//! The two threads: one that checks, and one that watches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::core::Core;
use super::{Ending, Scrubber};
use crate::error::Error;

/// The longest that the thread that checks sleeps, so that new shards are seen and it is known to live.
const LONGEST_REST: Duration = Duration::from_millis(250);
/// Panics within this time that end the check for good.
const PATIENCE: (usize, Duration) = (3, Duration::from_secs(600));

pub(super) fn spawn(scrubber: &Scrubber) -> Result<(), Error> {
    for (name, run) in [("vram-scrub", check as fn(&Core, &Ending)), ("vram-watchdog", watch)] {
        let (core, ending) = (Arc::clone(&scrubber.core), Arc::clone(&scrubber.ending));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&core, &ending));
        let refused = |error: std::io::Error| Error::Scrub {
            setting: "thread",
            value: error.to_string().into(),
            limit: "granted by the system; raise its limit on threads",
        };
        scrubber.threads().push(thread.map_err(refused)?);
    }
    Ok(())
}

/// Checks until the end is wanted. A panic, which would be a defect of ours, costs one block's check and not the rest.
fn check(core: &Core, ending: &Ending) {
    let mut panics = Vec::new();
    while !ending.is_wanted() {
        match catch_unwind(AssertUnwindSafe(|| core.tick())) {
            Ok(Some(idle)) => ending.wait(idle.min(LONGEST_REST)),
            Ok(None) => {}
            Err(payload) => {
                // What was thrown may panic when it is dropped.
                std::mem::forget(payload);
                core.metrics.restarts.increment(1);
                panics.push(Instant::now());
                let (most, within) = PATIENCE;
                panics.retain(|at| at.elapsed() < within);
                if panics.len() >= most {
                    tracing::error!("the scrub panicked {most} times and ends");
                    core.record_stop("panicked too often");
                    return;
                }
            }
        }
    }
}

/// Looks until the end is wanted.
fn watch(core: &Core, ending: &Ending) {
    let pace =
        core.options.period.checked_div(8).unwrap_or_default().clamp(Duration::from_millis(20), Duration::from_secs(1));
    let mut measured = (Instant::now(), core.totals.bytes.load(Ordering::Relaxed));
    while !ending.is_wanted() {
        let passed = measured.0.elapsed();
        if passed >= Duration::from_secs(2) {
            let bytes = core.totals.bytes.load(Ordering::Relaxed);
            let speed = bytes.saturating_sub(measured.1) as f64 / passed.as_secs_f64();
            core.throughput.store(speed as u64, Ordering::Relaxed);
            measured = (Instant::now(), bytes);
        }
        // A watchdog that dies would be silence: the check goes on, and whoever asks for its health is told.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| core.look())) {
            std::mem::forget(payload);
            core.metrics.restarts.increment(1);
        }
        ending.wait(pace);
    }
}
