//! A fault at every single call into the file system, once and for ever: typed outcomes, counters that add up, a gap
//! record, no panic, nothing both refused and accepted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use audit_logging::reader::{self, Report};
use audit_logging::{AuditLog, Failure, Kind, Observer, Options, Outcome, Severity};
use common::{FOREVER, Fault, MemVfs, Plan, Rng, dir, leaf, options};

const WAIT: Duration = Duration::from_secs(20);
const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EROFS: i32 = 30;
const EINTR: i32 = 4;
const EMFILE: i32 = 24;
const EDQUOT: i32 = 122;

#[derive(Debug, Default)]
struct Counts {
    emitted: AtomicU64,
    failed: AtomicU64,
    critical: AtomicU64,
    late: AtomicU64,
    durable: AtomicU64,
    last: Mutex<Option<Failure>>,
}

impl Observer for Counts {
    fn emitted(&self, _severity: Severity) {
        self.emitted.fetch_add(1, SeqCst);
    }

    fn failed(&self, severity: Severity, failure: &Failure) {
        self.failed.fetch_add(1, SeqCst);
        self.critical.fetch_add(u64::from(severity == Severity::Critical), SeqCst);
        *self.last.lock().unwrap() = Some(*failure);
    }

    fn late(&self) {
        self.late.fetch_add(1, SeqCst);
    }

    fn durable_after(&self, _latency: Duration) {
        self.durable.fetch_add(1, SeqCst);
    }
}

/// What one run came to.
#[derive(Default)]
struct Run {
    opened: bool,
    outcomes: Vec<(u64, Severity, Outcome)>,
    closed: bool,
    counts: Arc<Counts>,
    status_failures: u64,
    status_critical: u64,
}

fn run(vfs: &MemVfs, plan: Option<Plan>) -> Run {
    vfs.seed(plan.map_or(1, |plan| plan.at));
    vfs.plan(plan);
    let mut run = Run::default();
    let observer = Some(Arc::clone(&run.counts) as Arc<dyn Observer>);
    let Ok(log) = AuditLog::open(&dir(), Options { observer, ..options(vfs, 4096) }) else { return run };
    run.opened = true;
    for n in 0..24u64 {
        // Batches of one and of several, with a segment full now and then.
        let severity = if n % 3 == 2 { Severity::Critical } else { Severity::Routine };
        run.outcomes.push((n, severity, log.emit(severity, &leaf(n, 300))));
    }
    run.closed = log.close(WAIT).is_durable();
    let status = log.status();
    (run.status_failures, run.status_critical) = (status.failures, status.critical_failures);
    assert_eq!(status.emits, 24);
    run
}

fn leaves(vfs: &MemVfs) -> BTreeMap<Vec<u8>, u64> {
    reader::records_on(Arc::new(vfs.clone()), &dir())
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| record.kind == Kind::Event)
        .map(|record| (record.leaf, record.seq))
        .collect()
}

fn check(vfs: &MemVfs, run: &Run, name: &str) -> Option<Report> {
    vfs.plan(None);
    if !run.opened {
        return None;
    }
    let report = reader::verify_on(vfs, &dir()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(report.is_intact(), "{name}: {report:?}");
    let found = leaves(vfs);
    let mut lost = 0;
    for (n, severity, outcome) in &run.outcomes {
        let leaf = leaf(*n, 300);
        match outcome {
            Outcome::Durable { seq } => {
                assert_eq!(found.get(&leaf), Some(seq), "{name}: durable record {n} lost")
            }
            Outcome::Queued { seq } => {
                assert_eq!(*severity, Severity::Routine);
                if run.closed {
                    match found.get(&leaf) {
                        Some(found) => assert_eq!(found, seq),
                        None => lost += 1,
                    }
                }
            }
            Outcome::Failed(_) => {
                // While the log could not go on, bytes of a failed record may lie on the disk. Once it has, none count.
                if run.closed {
                    assert_eq!(found.get(&leaf), None, "{name}: record {n} was refused and is in the log");
                }
                lost += 1;
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let failed = run.counts.failed.load(SeqCst);
    assert_eq!(run.counts.emitted.load(SeqCst), 24, "{name}");
    assert_eq!(failed, run.status_failures, "{name}");
    assert_eq!(run.counts.critical.load(SeqCst), run.status_critical, "{name}");
    if run.closed {
        assert_eq!(failed, lost, "{name}: every lost record is counted once");
        if lost > 0 {
            let absent: u64 = report.gaps.iter().filter(|gap| gap.stated_by == Kind::Gap).map(|gap| gap.count).sum();
            assert!(absent >= lost, "{name}: {lost} lost, {:?}", report.gaps);
        }
        assert!(report.clean_close, "{name}");
    } else {
        let refused =
            run.outcomes.iter().filter(|(_, _, outcome)| matches!(outcome, Outcome::Failed(_))).count() as u64;
        assert!(failed >= refused, "{name}");
    }
    Some(report)
}

#[test]
fn a_fault_at_every_call() {
    let counted = MemVfs::default();
    let clean = run(&counted, None);
    assert!(clean.closed && clean.outcomes.iter().all(|(_, _, outcome)| !matches!(outcome, Outcome::Failed(_))));
    let calls = counted.calls() + 8;
    let faults = [
        Fault::Os(ENOSPC),
        Fault::Os(EIO),
        Fault::Os(EROFS),
        Fault::Os(EINTR),
        Fault::Os(EMFILE),
        Fault::Os(EDQUOT),
        Fault::Short,
    ];
    let (mut runs, mut refused, mut gaps, mut survived) = (0u64, 0u64, 0u64, 0u64);
    for fault in faults {
        for span in [1, 4, 20, FOREVER] {
            for at in 1..=calls {
                let name = format!("{fault:?} at call {at}, {span} in a row");
                let vfs = MemVfs::default();
                let run = run(&vfs, Some(Plan { at, fault, span, only: None }));
                let report = check(&vfs, &run, &name);
                runs += 1;
                refused += run.counts.failed.load(SeqCst);
                gaps += report.map_or(0, |report| report.gaps.len() as u64);
                survived += u64::from(run.closed);
                if span == 1 && run.opened {
                    assert_eq!(vfs.synced_after_failure(), 0, "{name}: synced again after a failed sync");
                    let failed = run.counts.failed.load(SeqCst);
                    assert!(failed == 0, "{name}: one fault must not lose a record, {failed} were lost");
                }
                if fault == Fault::Short {
                    assert!(run.closed, "{name}: short writes are no error");
                }
                // On a healthy disk everything goes on, with no false alarm.
                let log = AuditLog::open(&dir(), options(&vfs, 4096)).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(log.status().recovered.is_none_or(|recovery| recovery.finding.is_none()), "{name}");
                assert!(log.emit(Severity::Critical, b"healthy again").is_durable(), "{name}");
                assert!(log.close(WAIT).is_durable(), "{name}");
                let report = reader::verify_on(&vfs, &dir()).unwrap();
                assert!(report.is_intact() && report.clean_close, "{name}: {report:?}");
            }
        }
    }
    println!(
        "{calls} calls, {runs} runs: {survived} closed cleanly, {refused} records refused or lost, {gaps} gap records"
    );
    assert!(refused > 1000 && survived > 100 && gaps > 100);
}

#[test]
fn a_failed_sync_is_never_repeated_and_never_called_durable() {
    let counted = MemVfs::default();
    run(&counted, None);
    let syncs = counted.counted("sync");
    assert!(syncs > 10);
    for at in 1..=syncs {
        for code in [EIO, ENOSPC, EINTR] {
            let name = format!("sync {at} fails with {code}, then all succeed");
            let vfs = MemVfs::default();
            let run = run(&vfs, Some(Plan { at, fault: Fault::Os(code), span: 1, only: Some("sync") }));
            check(&vfs, &run, &name);
            assert_eq!(vfs.synced_after_failure(), 0, "{name}: the same file was synced again");
            // What was called durable survives the power cut that follows.
            let after = vfs.after_power_cut(at);
            let found = if run.opened { leaves(&after) } else { BTreeMap::new() };
            for (n, _, outcome) in &run.outcomes {
                if let Outcome::Durable { seq } = outcome {
                    assert_eq!(found.get(&leaf(*n, 300)), Some(seq), "{name}: record {n} was not on the disk");
                }
            }
        }
    }
}

/// Waits until the log writes again.
fn until_healthy(log: &AuditLog) {
    let start = Instant::now();
    while log.status().degraded.is_some() {
        assert!(start.elapsed() < WAIT, "{:?}", log.status());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_dead_disk_degrades_and_a_healed_one_resumes_with_the_gap_first() {
    for code in [ENOSPC, EIO, EROFS] {
        let vfs = MemVfs::default();
        let counts = Arc::new(Counts::default());
        let observer = Some(Arc::clone(&counts) as Arc<dyn Observer>);
        let log = AuditLog::open(&dir(), Options { observer, ..options(&vfs, 8192) }).unwrap();
        let before = log.emit(Severity::Critical, b"before").seq().unwrap();
        vfs.plan(Some(Plan { at: 1, fault: Fault::Os(code), span: FOREVER, only: None }));
        let outcome = log.emit(Severity::Critical, b"lost 1");
        let Outcome::Failed(Failure::Storage(fault)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(fault.os_error, Some(code));
        assert!(matches!(log.emit(Severity::Routine, b"lost 2"), Outcome::Failed(Failure::Storage(_))));
        assert!(matches!(log.emit(Severity::Critical, b"lost 3"), Outcome::Failed(Failure::Storage(_))));
        assert!(matches!(log.flush(WAIT), Outcome::Failed(Failure::Storage(_))));
        let status = log.status();
        assert!(status.degraded.is_some());
        assert_eq!((status.emits, status.failures, status.critical_failures), (4, 3, 2));
        vfs.plan(None);
        until_healthy(&log);
        let after = log.emit(Severity::Critical, b"after");
        assert!(after.is_durable(), "{after:?}");
        assert!(log.close(WAIT).is_durable());
        assert_eq!((counts.emitted.load(SeqCst), counts.failed.load(SeqCst)), (5, 3));
        let report = reader::verify_on(&vfs, &dir()).unwrap();
        assert!(report.is_intact(), "{report:?}");
        let gap = report.gaps[0];
        assert_eq!((gap.first, gap.count >= 3), (before + 1, true), "{gap:?}");
        let records: Vec<_> = reader::records_on(Arc::new(vfs.clone()), &dir())
            .unwrap()
            .map(Result::unwrap)
            .skip_while(|record| record.seq <= before)
            .collect();
        assert_eq!(records[0].kind, Kind::Gap, "the gap comes first");
        assert!(reader::gap_reason(&records[0]).is_some());
        assert!(leaves(&vfs).keys().all(|leaf| !leaf.starts_with(b"lost")));
    }
}

#[test]
fn a_record_that_is_too_large_is_refused_counted_and_stated() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), options(&vfs, 1 << 20)).unwrap();
    assert!(log.emit(Severity::Critical, &[7; 65_525]).is_durable());
    let outcome = log.emit(Severity::Critical, &[7; 65_526]);
    assert_eq!(outcome, Outcome::Failed(Failure::TooLarge { bytes: 65_526, limit: 65_525 }));
    assert!(log.emit(Severity::Critical, b"").is_durable(), "an empty record is a record");
    assert_eq!((log.status().failures, log.status().critical_failures), (1, 1));
    assert!(log.close(WAIT).is_durable());
    assert_eq!(log.emit(Severity::Routine, b"x"), Outcome::Failed(Failure::Closed));
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(report.is_intact());
    assert_eq!((report.gaps.len(), report.gaps[0].count), (1, 1));
}

#[test]
fn many_threads_and_a_disk_that_fails_again_and_again() {
    let (mut durable, mut failed) = (0u64, 0u64);
    for seed in 0..120u64 {
        let mut rng = Rng(seed);
        let vfs = MemVfs::default();
        let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
        vfs.seed(seed);
        let mut plans = Vec::new();
        for _ in 0..6 {
            let only = [None, Some("sync"), Some("write"), Some("rename")][rng.below(4) as usize];
            plans.push(Plan { at: 1 + rng.below(250), fault: Fault::Os(EIO), span: 1 + rng.below(12), only });
        }
        vfs.plan(plans);
        let outcomes = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (log, outcomes) = (log.clone(), &outcomes);
                scope.spawn(move || {
                    for n in 0..40 {
                        let tag = (seed << 32) | (thread << 16) | n;
                        let severity = if n % 4 == 3 { Severity::Routine } else { Severity::Critical };
                        let outcome = log.emit(severity, &leaf(tag, 200));
                        outcomes.lock().unwrap().push((tag, severity, outcome));
                        if matches!(outcome, Outcome::Failed(_)) {
                            std::thread::sleep(Duration::from_micros(500));
                        }
                    }
                });
            }
        });
        vfs.plan(None);
        until_healthy(&log);
        assert!(log.close(WAIT).is_durable());
        let report = reader::verify_on(&vfs, &dir()).unwrap();
        assert!(report.is_intact() && report.clean_close, "seed {seed}: {report:?}");
        let found = leaves(&vfs);
        let mut lost = 0;
        for (tag, severity, outcome) in outcomes.into_inner().unwrap() {
            let here = found.get(&leaf(tag, 200));
            match outcome {
                Outcome::Durable { seq } => {
                    assert_eq!(here, Some(&seq), "seed {seed}: durable record lost");
                    durable += 1;
                }
                Outcome::Queued { seq } => {
                    assert_eq!(severity, Severity::Routine);
                    assert!(here.is_none_or(|here| *here == seq));
                    lost += u64::from(here.is_none());
                }
                Outcome::Failed(_) => {
                    assert_eq!(here, None, "seed {seed}: refused and in the log");
                    lost += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(log.status().failures, lost, "seed {seed}");
        failed += lost;
    }
    println!("{durable} durable, {failed} refused or lost, all accounted for");
    assert!(failed > 50 && durable > 10_000);
}
