//! A log's life on a real disk: locks, deadlines, files taken away, clocks that jump, a full file system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

#[path = "../common/mod.rs"]
mod common;
mod disturbed;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audit_logging::reader::{self, Report, What};
use audit_logging::{AuditLog, Failure, Kind, OpenError, Options, Outcome, Record, Severity};
use common::{FOREVER, Fault, MemVfs, Plan, TestClock, dir, disk_dir, leaf};

const WAIT: Duration = Duration::from_secs(20);

fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        critical_deadline: WAIT,
        retry_after: Duration::from_millis(5),
        ..Options::default()
    }
}

fn records(dir: &Path) -> Vec<Record> {
    reader::records(dir).unwrap().map(Result::unwrap).collect()
}

fn intact(dir: &Path) -> Report {
    let report = reader::verify(dir).unwrap();
    assert!(report.is_intact(), "{report:?}");
    report
}

#[test]
fn records_come_back_verbatim_in_order_across_segments_and_runs() {
    let scratch = disk_dir("order");
    let dir = scratch.path().join("a/b/log");
    for round in 0..3u64 {
        let log = AuditLog::open(&dir, options()).unwrap();
        assert_eq!(log.status().recovered, None);
        let mut last = 0;
        for n in 0..300 {
            let severity = if n % 50 == 0 { Severity::Critical } else { Severity::Routine };
            let outcome = log.emit(severity, &leaf(round << 32 | n, 400));
            assert!(!matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
            assert!(outcome.seq().unwrap() > last);
            last = outcome.seq().unwrap();
        }
        let clone = log.clone();
        drop(log);
        assert_eq!(clone.flush(WAIT), Outcome::Durable { seq: last });
        assert_eq!(clone.status().durable, last);
        assert_eq!(clone.status().queued, 0);
        // The last handle's drop closes.
        drop(clone);
        let report = intact(&dir);
        assert!(report.clean_close);
        assert_eq!(report.records, (round + 1) * 302);
    }
    let events: Vec<Vec<u8>> =
        records(&dir).into_iter().filter(|record| record.kind == Kind::Event).map(|record| record.leaf).collect();
    let expected: Vec<Vec<u8>> =
        (0..3u64).flat_map(|round| (0..300).map(move |n| leaf(round << 32 | n, 400))).collect();
    assert_eq!(events, expected);
    let numbers: Vec<u64> = records(&dir).iter().map(|record| record.seq).collect();
    assert_eq!(numbers, (1..=906).collect::<Vec<u64>>(), "no number is missing");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_end_of_a_long_log_is_read_without_the_rest() {
    let scratch = disk_dir("tail");
    let dir = scratch.path().join("log");
    let log = AuditLog::open(&dir, options()).unwrap();
    for n in 0..900 {
        assert!(log.emit(Severity::Routine, &leaf(n, 400)).seq().is_some());
    }
    assert!(log.close(WAIT).seq().is_some());
    let all = records(&dir);
    let segments = all.last().unwrap().segment - all[0].segment + 1;
    assert!(segments > 4, "{segments}");
    // The first file is not even looked into: what is wrong there is not told.
    let first = dir.join(format!("segment-{:012}.wal", all[0].segment));
    let length = std::fs::metadata(&first).unwrap().len();
    std::fs::write(&first, vec![0xff; length as usize]).unwrap();
    for count in [1, 2, 3] {
        let tail: Vec<Record> = reader::tail(&dir, count as usize).unwrap().map(Result::unwrap).collect();
        let from = all.last().unwrap().segment + 1 - count;
        assert!(all.iter().filter(|record| record.segment >= from).eq(&tail), "the last {count} files");
    }
    assert!(reader::tail(&dir, 1000).unwrap().any(|record| record.is_err()), "more than there are: all");
    assert!(reader::tail(&scratch.path().join("nowhere"), 1).is_err());
}

#[test]
fn one_directory_has_one_writer() {
    let scratch = disk_dir("lock");
    let dir = scratch.path().join("log");
    let log = AuditLog::open(&dir, options()).unwrap();
    let error = AuditLog::open(&dir, options()).unwrap_err();
    let OpenError::Locked { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("choose another"), "{text}");
    // Reading needs no lock.
    assert!(log.emit(Severity::Critical, b"x").is_durable());
    intact(&dir);
    // Removing the lock file does not let a second writer in.
    std::fs::remove_file(dir.join("lock")).unwrap();
    assert!(matches!(AuditLog::open(&dir, options()), Err(OpenError::Locked { .. })));
    assert!(log.close(WAIT).is_durable());
    assert!(AuditLog::open(&dir, options()).is_ok());
}

#[test]
fn close_is_idempotent_and_ends_everything() {
    let scratch = disk_dir("close");
    let log = AuditLog::open(scratch.path(), options()).unwrap();
    let first = log.close(WAIT);
    assert!(first.is_durable());
    assert_eq!(log.close(Duration::ZERO), first);
    assert_eq!(log.emit(Severity::Critical, b"x"), Outcome::Failed(Failure::Closed));
    assert!(log.status().closed);
    assert_eq!(log.status().failures, 1);
}

/// A log on a file system in memory, with a short deadline.
fn hurried(vfs: &MemVfs) -> AuditLog {
    let options = Options {
        critical_deadline: Duration::from_millis(10),
        retry_after: Duration::from_millis(5),
        ..common::options(vfs, 1 << 20)
    };
    AuditLog::open(&dir(), options).unwrap()
}

#[test]
fn a_slow_disk_makes_it_late_and_then_durable() {
    let vfs = MemVfs::default();
    let log = hurried(&vfs);
    vfs.plan([Plan { at: 1, fault: Fault::Hang(150), span: 1, only: Some("sync") }]);
    let start = Instant::now();
    let outcome = log.emit(Severity::Critical, b"late");
    let Outcome::Late { seq } = outcome else { panic!("{outcome:?}") };
    assert!(start.elapsed() < Duration::from_millis(140), "{:?}", start.elapsed());
    assert_eq!((log.status().late, log.status().failures, log.status().queued), (1, 0, 1));
    assert!(log.flush(WAIT).is_durable());
    assert!(log.status().durable >= seq);
    drop(log);
    let found: Vec<Record> = reader::records_on(Arc::new(vfs), &dir()).unwrap().map(Result::unwrap).collect();
    assert!(found.iter().any(|record| record.seq == seq && record.leaf == b"late"));
}

#[test]
fn a_late_record_that_is_lost_afterwards_is_counted_once() {
    let vfs = MemVfs::default();
    let log = hurried(&vfs);
    vfs.plan([
        Plan { at: 1, fault: Fault::HangAndFail(60), span: 1, only: Some("sync") },
        Plan { at: 2, fault: Fault::Os(5), span: 200, only: None },
    ]);
    let outcome = log.emit(Severity::Critical, b"late and lost");
    assert!(matches!(outcome, Outcome::Late { .. } | Outcome::Failed(Failure::Storage(_))), "{outcome:?}");
    let start = Instant::now();
    while log.status().failures == 0 {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(1));
    }
    vfs.plan([]);
    while log.status().degraded.is_some() {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(log.flush(WAIT).is_durable());
    assert_eq!((log.status().failures, log.status().critical_failures, log.status().emits), (1, 1, 1));
    drop(log);
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(report.is_intact() && report.gaps.len() == 1, "{report:?}");
}

#[test]
fn a_full_queue_refuses_counts_and_leaves_a_gap() {
    let vfs = MemVfs::default();
    let log = hurried(&vfs);
    vfs.plan([Plan { at: 1, fault: Fault::Hang(300), span: 1, only: Some("write") }]);
    assert!(log.emit(Severity::Routine, b"the writer takes this one and hangs").seq().is_some());
    std::thread::sleep(Duration::from_millis(50));
    let mut refused = 0u64;
    for n in 0..400 {
        match log.emit(Severity::Routine, &leaf(n, 1000)) {
            Outcome::Queued { .. } => {}
            Outcome::Failed(Failure::QueueFull { capacity }) => {
                assert_eq!(capacity, 128 << 10);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 100, "{refused}");
    // A critical record waits for room, for as long as its deadline.
    let start = Instant::now();
    let outcome = log.emit(Severity::Critical, &leaf(1000, 1000));
    assert!(matches!(outcome, Outcome::Failed(Failure::QueueFull { .. })), "{outcome:?}");
    assert!(start.elapsed() >= Duration::from_millis(10), "{:?}", start.elapsed());
    assert_eq!((log.status().failures, log.status().critical_failures), (refused + 1, 1));
    assert!(log.flush(WAIT).is_durable());
    assert!(log.emit(Severity::Critical, b"room").seq().is_some());
    assert!(log.close(WAIT).is_durable());
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.gaps.iter().map(|gap| gap.count).sum::<u64>(), refused + 1);
    let found: Vec<Record> = reader::records_on(Arc::new(vfs), &dir()).unwrap().map(Result::unwrap).collect();
    let reason = found.iter().find_map(reader::gap_reason);
    assert_eq!(reason, Some("queue full"));
}

#[test]
fn routine_records_are_on_disk_within_the_linger_time() {
    let scratch = disk_dir("linger");
    let log = AuditLog::open(scratch.path(), Options { linger: Duration::from_millis(20), ..options() }).unwrap();
    let seq = log.emit(Severity::Routine, b"soon").seq().unwrap();
    let start = Instant::now();
    while log.status().durable < seq {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn clocks_that_jump_stop_or_lie_do_not_matter() {
    let vfs = MemVfs::default();
    let clock = TestClock::new(1_800_000_000);
    let log = AuditLog::open(&dir(), Options { clock: clock.clone(), ..common::options(&vfs, 1 << 20) }).unwrap();
    let mut last = 0;
    let jumps = [-1, -3600, 0, -10_000_000_000, 2_000_000_000 + 10 * 31_557_600, 5, i64::from(u32::MAX)];
    for jump in jumps {
        clock.set(jump);
        for _ in 0..3 {
            let outcome = log.emit(Severity::Critical, b"tick");
            assert!(outcome.is_durable(), "{outcome:?}");
            assert!(outcome.seq().unwrap() > last);
            last = outcome.seq().unwrap();
        }
    }
    assert!(log.close(WAIT).is_durable());
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert!(report.is_intact());
    let told = reader::records_on(Arc::new(vfs), &dir())
        .unwrap()
        .filter(|record| record.as_ref().unwrap().kind == Kind::Clock)
        .count();
    assert_eq!(told, jumps.len(), "every jump is recorded");
}

#[test]
fn a_deadline_ends_even_when_the_clock_stands_still_and_the_disk_hangs() {
    let vfs = MemVfs::default();
    let clock = TestClock::new(0);
    let options = Options {
        clock,
        critical_deadline: Duration::from_millis(30),
        retry_after: Duration::from_secs(60),
        ..common::options(&vfs, 1 << 20)
    };
    let log = AuditLog::open(&dir(), options).unwrap();
    vfs.plan([Plan { at: 1, fault: Fault::Os(5), span: common::FOREVER, only: None }]);
    let start = Instant::now();
    assert!(matches!(log.emit(Severity::Critical, b"x"), Outcome::Failed(_)));
    assert!(start.elapsed() < WAIT);
    drop(log);
}

#[test]
fn verifying_beside_a_busy_writer_raises_no_false_alarm() {
    let scratch = disk_dir("live");
    let log = AuditLog::open(scratch.path(), options()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when something below fails: nobody would end otherwise.
        let stopping = Stop(&stop);
        for thread in 0..3u64 {
            let (log, stop) = (log.clone(), &stop);
            scope.spawn(move || {
                let mut n = thread << 32;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    assert!(log.emit(Severity::Critical, &leaf(n, 300)).is_durable());
                }
            });
        }
        let start = Instant::now();
        let mut rounds = 0;
        while start.elapsed() < Duration::from_secs(2) {
            let durable = log.status().durable;
            let report = intact(scratch.path());
            assert!(report.last_seq >= durable);
            let walked = reader::records(scratch.path()).unwrap().map(Result::unwrap).last().unwrap().seq;
            assert!(walked >= durable);
            rounds += 1;
        }
        drop(stopping);
        assert!(rounds > 3, "{rounds}");
        println!("{rounds} rounds beside {} records", log.status().records);
    });
}

/// Says stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn gaps_are_counted_beyond_those_that_are_listed() {
    let vfs = MemVfs::default();
    let log = AuditLog::open(&dir(), common::options(&vfs, 1 << 20)).unwrap();
    // Too large: refused, and stated as a gap before the next record.
    let large = vec![0u8; 65_536];
    for _ in 0..1003 {
        assert!(matches!(log.emit(Severity::Routine, &large), Outcome::Failed(_)));
        assert!(log.emit(Severity::Critical, b"x").is_durable());
    }
    assert!(log.close(WAIT).is_durable());
    let report = reader::verify_on(&vfs, &dir()).unwrap();
    assert_eq!((report.gaps.len(), report.gaps_total), (1000, 1003));
}
