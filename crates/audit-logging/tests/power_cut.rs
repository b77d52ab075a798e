//! Power cuts: of everything not synced, any subset of the 512-byte sectors survives. No acknowledged record may be
//! lost, and no honest power cut may look like tampering.
//!
//! Seeded: workload, moment of the cut and surviving sectors follow from the seed. (Where the writer thread draws the
//! line between two batches of routine records is left to the scheduler, so a seed names a family of runs.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use audit_logging::{AuditLog, Kind, Options, Outcome, Severity, reader};
use common::{FOREVER, Fault, MemVfs, Plan, Rng, dir, leaf, options};

/// Seeds in all; the environment may ask for more.
fn seeds() -> u64 {
    std::env::var("AUDIT_LOGGING_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
}

/// What was acknowledged as durable: number → leaf.
type Acknowledged = BTreeMap<u64, Vec<u8>>;

/// What the callers were told.
#[derive(Default)]
struct Told {
    acknowledged: Acknowledged,
    /// Every number that a caller heard, durable or not.
    numbers: BTreeSet<u64>,
}

/// Writes until the power goes; true if it went. With `faults`, the disk fails now and then before.
fn work(vfs: &MemVfs, rng: &mut Rng, tag: &mut u64, told: &mut Told, cut: u64, faults: bool) -> bool {
    vfs.seed(rng.next());
    let mut plans = vec![Plan { at: cut, fault: Fault::PowerCut, span: FOREVER, only: None }];
    if faults {
        for _ in 0..1 + rng.below(3) {
            let fault = Fault::Os([5, 28][rng.below(2) as usize]);
            let only = [None, Some("sync"), Some("write")][rng.below(3) as usize];
            plans.push(Plan { at: 1 + rng.below(cut), fault, span: 1 + rng.below(4), only });
        }
    }
    vfs.plan(plans);
    let segment_bytes = [4096, 8192, 16384][rng.below(3) as usize];
    let retry_after = if faults { Duration::from_micros(200) } else { Duration::from_secs(60) };
    let Ok(log) = AuditLog::open(&dir(), Options { retry_after, ..options(vfs, segment_bytes) }) else {
        return true;
    };
    for _ in 0..400 {
        *tag += 1;
        let length = [10, 100, 400, 1500, 3000][rng.below(5) as usize];
        let leaf = leaf(*tag, rng.below(length) as usize);
        let severity = if rng.chance(60) { Severity::Routine } else { Severity::Critical };
        let outcome = log.emit(severity, &leaf);
        if let Some(seq) = outcome.seq() {
            assert!(told.numbers.insert(seq), "number {seq} given twice");
        }
        match outcome {
            Outcome::Durable { seq } => {
                told.acknowledged.insert(seq, leaf);
            }
            Outcome::Queued { .. } => {}
            Outcome::Failed(_) if faults && !vfs.is_cut() => std::thread::sleep(Duration::from_micros(300)),
            Outcome::Failed(_) => return true,
            other => panic!("{other:?}"),
        }
    }
    false
}

fn check(vfs: &MemVfs, acknowledged: &Acknowledged, seed: u64) {
    let Ok(report) = reader::verify_on(vfs, &dir()) else {
        assert!(acknowledged.is_empty(), "seed {seed}: the log is gone");
        return;
    };
    assert!(report.is_intact(), "seed {seed}: false alarm {report:?}");
    let found: BTreeMap<u64, Vec<u8>> = reader::records_on(Arc::new(vfs.clone()), &dir())
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| record.kind == Kind::Event)
        .map(|record| (record.seq, record.leaf))
        .collect();
    for (seq, leaf) in acknowledged {
        assert_eq!(found.get(seq), Some(leaf), "seed {seed}: acknowledged record {seq} lost; {report:?}");
    }
}

#[test]
fn no_power_cut_loses_an_acknowledged_record_or_looks_like_tampering() {
    let mut cuts = 0u64;
    let mut torn = 0u64;
    let mut records = 0usize;
    let seeds = seeds();
    for seed in 0..seeds {
        let mut rng = Rng(seed);
        let mut vfs = MemVfs::default();
        let mut told = Told::default();
        let faults = seed % 3 == 2;
        let mut tag = seed << 20;
        // The power goes several times on the same log, now and then already while it is being opened.
        for _ in 0..3 {
            let cut = if rng.chance(30) { 1 + rng.below(30) } else { 1 + rng.below(300) };
            cuts += u64::from(work(&vfs, &mut rng, &mut tag, &mut told, cut, faults));
            // Now and then only the process dies, and what it wrote stays in the page cache, synced or not.
            vfs = if rng.chance(30) { vfs.copy() } else { vfs.after_power_cut(rng.next()) };
            check(&vfs, &told.acknowledged, seed);
            torn += u64::from(reader::verify_on(&vfs, &dir()).is_ok_and(|report| report.torn_tail.is_some()));
        }
        let log = AuditLog::open(&dir(), options(&vfs, 4096)).unwrap();
        assert!(log.status().recovered.is_none_or(|recovery| recovery.finding.is_none()), "seed {seed}");
        assert!(log.emit(Severity::Critical, b"at the end").is_durable());
        assert!(log.close(Duration::from_secs(20)).is_durable());
        check(&vfs, &told.acknowledged, seed);
        let report = reader::verify_on(&vfs, &dir()).unwrap();
        assert!(report.clean_close && report.torn_tail.is_none(), "seed {seed}: {report:?}");
        records += told.acknowledged.len();
    }
    println!("{cuts} deaths, {torn} torn tails, {records} acknowledged records, 0 lost, 0 false alarms");
    assert!(cuts > 2 * seeds && torn > seeds / 10, "the test must hit something: {cuts} deaths, {torn} torn");
}

#[test]
fn what_a_killed_process_left_in_the_page_cache_is_synced_before_a_frame_vouches_for_it() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 16384)).unwrap();
    vfs.plan([]);
    for tag in 0..6 {
        assert!(log.emit(Severity::Routine, &leaf(tag, 700)).seq().is_some());
    }
    // Written at once, not synced: the linger time is long.
    let start = std::time::Instant::now();
    while reader::verify_on(&vfs, &dir()).unwrap().records < 7 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(vfs.counted("sync"), 0);
    let killed = vfs.copy();
    let mut cuts = 0;
    for call in 1..60 {
        let reopened = killed.copy();
        reopened.plan([Plan { at: call, fault: Fault::PowerCut, span: FOREVER, only: None }]);
        let log = AuditLog::open(&dir(), options(&reopened, 16384));
        cuts += u32::from(reopened.is_cut());
        for seed in 0..60 {
            check(&reopened.after_power_cut(seed), &Acknowledged::new(), seed);
        }
        drop(log);
    }
    assert!((10..59).contains(&cuts), "{cuts}");
}
