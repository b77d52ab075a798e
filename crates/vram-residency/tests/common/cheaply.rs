//! Refusals that must cost little: the sum of all allocations is counted, so a test runs alone in its process.
#![allow(unreachable_pub, reason = "each test file includes it as a module")]

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use vram_residency::model::{Format, ModelError};

use crate::common::refused;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counter sees the whole process, so one test runs at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses the file, and proves that refusing it took little memory: all allocations together stay below 1 MiB.
#[track_caller]
pub fn refused_cheaply(file: &[u8], format: Format) -> ModelError {
    let region = Region::new(ALLOCATOR);
    let error = refused(file, format);
    let allocated = region.change().bytes_allocated;
    assert!(allocated < 1 << 20, "{allocated} bytes allocated to refuse {} bytes", file.len());
    error
}

/// The kind of fault and its place.
#[macro_export]
macro_rules! assert_fault {
    ($error:expr, $pattern:pat, $offset:expr) => {{
        let error = $error;
        assert!(matches!(error, $pattern), "another fault: {error}");
        assert_eq!(error.offset(), Some($offset), "another place: {error}");
    }};
}
