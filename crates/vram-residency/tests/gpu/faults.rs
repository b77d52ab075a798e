//! Every driver call of something failing, each in turn, on a GPU of its own.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::path::Path;

use cuda_emulator::{Emulator, Fault, Plan, Report};
use vram_residency::Error;

use crate::support::disk_dir;

/// Something that is done on a GPU from its opening to the end, with a log in a directory.
pub type Life = fn(&Emulator, &Path) -> Result<(), Error>;

/// Not every failure can be told from the driver saying so of something else: an answer of 1 means that a question has none.
const CODES: [u32; 3] = [1, 2, 304];

/// Nothing that was made is left, nothing was given back twice or used afterwards. What a fault kept from being released is
/// no leak.
pub fn leaves_nothing(report: &Report, what: &str) {
    assert!(report.leaks().is_empty(), "{what}: {:?}", report.leaks());
    assert!(report.double_frees.is_empty(), "{what}: {:?}", report.double_frees);
    assert!(report.uses_after_free.is_empty(), "{what}: {:?}", report.uses_after_free);
    assert!(report.violations.is_empty(), "{what}: {:?}", report.violations);
}

/// One life with one fault. Whether it made a difference.
pub fn with(fault: &Fault, life: Life) -> bool {
    let mut emulator = Emulator::lock(Plan::default().fault(fault.clone()));
    // Leaks are judged here.
    emulator.leaves();
    let dir = disk_dir();
    let lived = life(&emulator, dir.path());
    leaves_nothing(&emulator.report(), &format!("{fault:?}, {lived:?}"));
    let Err(error) = &lived else { return false };
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
    true
}

/// How many driver calls a life makes.
pub fn calls(life: Life) -> u64 {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    life(&emulator, dir.path()).unwrap();
    let report = emulator.report();
    assert_eq!(report.complaint(), None);
    report.calls.values().sum()
}

/// Has each `step`th of so many calls fail once, for ever, and with the GPU lost: one that falls off the bus, or finds a word of
/// its memory uncorrectable. `differs` says whether a fault made a difference; most have to.
pub fn every(calls: u64, step: usize, differs: &mut dyn FnMut(&Fault) -> bool) {
    let mut differed = 0;
    for nth in (1..=calls).step_by(step) {
        let code = CODES[(nth % 3) as usize];
        let lost = Fault::lost("*", nth, if nth % 2 == 0 { 999 } else { 214 });
        for fault in [Fault::fail_once("*", nth, code), Fault::fail_forever("*", nth, code), lost] {
            differed += u64::from(differs(&fault));
        }
    }
    let tried = calls.div_ceil(step as u64) * 3;
    println!("{calls} calls; {tried} faults, {differed} of which made a difference");
    assert!(differed * 2 > tried, "most faults are noticed");
}
