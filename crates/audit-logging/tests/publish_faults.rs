//! A publisher on a disk that fails, beside a writer on the same disk: whatever call fails, whenever the power goes, what
//! was signed and seen is never contradicted, and no honest fault looks like tampering.
//!
//! Seeded, but writer and publisher are two threads: which of them a planned call belongs to is left to the scheduler, so
//! a seed names a family of runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Held, Question, What};
use audit_logging::publish::{self, Publisher};
use audit_logging::tlog::entry::Entry;
use audit_logging::tlog::note::VerifierKey;
use audit_logging::tlog::source::Source as _;
use audit_logging::{AuditLog, Kind, Options, Outcome, Severity, Vfs};
use common::{FOREVER, Fault, MemVfs, ORIGIN, Plan, Rng, TestClock};
use common::{dir, key_file, leaf, make_key, options, publish_options, published, source, tlog_dir};

const WAIT: Duration = Duration::from_secs(20);
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Seeds in all; the environment may ask for more.
fn seeds() -> u64 {
    std::env::var("AUDIT_LOGGING_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

/// What the world outside has seen of a log.
#[derive(Default)]
struct Seen {
    /// Number → leaf of every record that was reported as durable.
    acknowledged: BTreeMap<u64, Vec<u8>>,
    /// Every checkpoint that somebody could have copied.
    checkpoints: BTreeSet<Vec<u8>>,
}

impl Seen {
    fn look(&mut self, vfs: &MemVfs) {
        let path = tlog_dir().join("checkpoint");
        if vfs.paths().contains(&path) {
            self.checkpoints.insert(vfs.bytes(&path));
        }
    }
}

/// Writes and publishes for a while. True if everything was published in the end.
fn work(vfs: &MemVfs, rng: &mut Rng, tag: &mut u64, count: u64, seen: &mut Seen) -> bool {
    let segment_bytes = [4096, 8192, 65536][rng.below(3) as usize];
    let retry_after = Duration::from_micros(300);
    let Ok(log) = AuditLog::open(&dir(), Options { retry_after, ..options(vfs, segment_bytes) }) else { return false };
    let publisher = Publisher::start(&log, publish_options());
    for n in 0..count {
        *tag += 1;
        let leaf = leaf(*tag, rng.below(400) as usize);
        let severity = if rng.chance(50) { Severity::Routine } else { Severity::Critical };
        match log.emit(severity, &leaf) {
            Outcome::Durable { seq } => drop(seen.acknowledged.insert(seq, leaf)),
            Outcome::Failed(_) if vfs.is_cut() => break,
            Outcome::Failed(_) => std::thread::sleep(Duration::from_micros(400)),
            _ => {}
        }
        if n % 16 == 7 {
            // The publisher gets its turn.
            std::thread::sleep(Duration::from_micros(rng.below(3000)));
        }
        seen.look(vfs);
    }
    let closed = if vfs.is_cut() { false } else { log.close(WAIT).is_durable() };
    let Ok(publisher) = publisher else { return false };
    let finished = publisher.finish(if vfs.is_cut() { Duration::ZERO } else { WAIT });
    seen.look(vfs);
    assert_eq!(publisher.status().refused, None, "an honest fault is no reason to refuse");
    closed && finished.caught_up
}

/// Nothing that was acknowledged is lost, nothing that was seen is contradicted, nobody is accused.
fn check(vfs: &MemVfs, key: &VerifierKey, seen: &Seen, published_all: bool, name: &str) {
    vfs.plan([]);
    let (source, dir, keys) = (source(vfs), dir(), std::slice::from_ref(key));
    if !vfs.paths().iter().any(|path| path.starts_with(&dir) && path.extension().is_some_and(|end| end == "wal")) {
        assert!(seen.acknowledged.is_empty() && seen.checkpoints.is_empty(), "{name}: the log is gone");
        return;
    }
    let wal: Option<(Arc<dyn Vfs>, &Path)> = Some((Arc::new(vfs.clone()), &dir));
    // A checkpoint that was seen and did not survive the power cut is made again by the next start, not before.
    let held = seen
        .checkpoints
        .iter()
        .filter(|_| published_all)
        .map(|note| ("seen".to_owned(), Held::Checkpoint(note.clone())));
    let question = Question { wal, held: held.collect(), threads: 1, ..Question::new(&source, keys) };
    let report = evidence::verify(&question).unwrap_or_else(|error| panic!("{name}: {error}"));
    let none_yet = !published_all && source.get("checkpoint").unwrap().is_none();
    let accused: Vec<_> =
        report.violations.iter().filter(|violation| !(none_yet && violation.what == What::NoCheckpoint)).collect();
    assert!(accused.is_empty(), "{name}: {accused:#?}");
    if published_all {
        let found: BTreeMap<u64, Vec<u8>> = published(vfs, report.ranges.signed)
            .iter()
            .map(|bytes| Entry::parse(bytes).unwrap())
            .filter(|entry| entry.kind == Kind::Event)
            .map(|entry| (entry.seq, entry.leaf.to_vec()))
            .collect();
        for (seq, leaf) in &seen.acknowledged {
            assert_eq!(found.get(seq), Some(leaf), "{name}: acknowledged record {seq} is not published");
        }
        assert_eq!(report.ranges.signed, report.ranges.unsigned, "{name}");
    }
}

/// On a healthy disk everything goes on, from wherever it was left.
fn heal(vfs: &MemVfs, key: &VerifierKey, seen: &mut Seen, tag: &mut u64, name: &str) {
    vfs.plan([]);
    let done = work(vfs, &mut Rng(*tag), tag, 5, seen);
    assert!(done, "{name}: not everything is published on a healthy disk");
    check(vfs, key, seen, true, name);
}

#[test]
fn a_fault_at_every_call_of_writer_and_publisher() {
    let start = Instant::now();
    let counted = MemVfs::default();
    make_key(&counted);
    counted.plan([]);
    assert!(work(&counted, &mut Rng(1), &mut 0, 40, &mut Seen::default()));
    let calls = counted.calls() + 40;
    let every = if std::env::var_os("AUDIT_LOGGING_SEEDS").is_some() { 1 } else { 3 };
    let plans: Vec<Plan> = (1..=calls)
        .flat_map(|at| {
            let span = [1, 3, 40][at as usize % 3];
            let faults =
                [(Fault::Os(EIO), 1), (Fault::Os(EIO), FOREVER), (Fault::Os(ENOSPC), span), (Fault::Short, FOREVER)];
            faults.map(|(fault, span)| Plan { at, fault, span, only: None })
        })
        .filter(|plan| plan.fault != Fault::Short || plan.at % 40 == 1)
        .enumerate()
        .filter(|(n, _)| n % every == 0)
        .map(|(_, plan)| plan)
        .collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(plan) = plans.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                    let name = format!("{plan:?}");
                    let vfs = MemVfs::default();
                    let key = make_key(&vfs);
                    let (mut seen, mut tag) = (Seen::default(), plan.at << 20);
                    vfs.seed(plan.at);
                    vfs.plan([*plan]);
                    let done = work(&vfs, &mut Rng(1), &mut tag, 40, &mut seen);
                    assert!(done || plan.fault != Fault::Short, "{name}: short writes are no error");
                    assert!(
                        plan.span != 1 || vfs.synced_after_failure() == 0,
                        "{name}: synced again after a failed sync"
                    );
                    check(&vfs, &key, &seen, false, &name);
                    heal(&vfs, &key, &mut seen, &mut tag, &name);
                }
            });
        }
    });
    println!("{calls} calls, {} runs in {:?}", plans.len(), start.elapsed());
    assert!(plans.len() > 100);
}

#[test]
fn no_power_cut_contradicts_what_was_signed_or_looks_like_tampering() {
    let start = Instant::now();
    let seeds = seeds();
    let next = std::sync::atomic::AtomicU64::new(0);
    let totals = std::sync::Mutex::new((0u64, 0usize, 0usize));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if seed >= seeds {
                        return;
                    }
                    let (cuts, acknowledged, checkpoints) = power(seed);
                    let mut totals = totals.lock().unwrap();
                    *totals = (totals.0 + cuts, totals.1 + acknowledged, totals.2 + checkpoints);
                }
            });
        }
    });
    let (cuts, acknowledged, checkpoints) = *totals.lock().unwrap();
    println!(
        "{seeds} seeds, {cuts} power cuts, {acknowledged} acknowledged records, {checkpoints} checkpoints seen, 0 contradicted, in {:?}",
        start.elapsed()
    );
    assert!(cuts > seeds && checkpoints as u64 > seeds);
}

fn power(seed: u64) -> (u64, usize, usize) {
    let mut rng = Rng(seed);
    let mut vfs = MemVfs::default();
    let key = make_key(&vfs);
    let (mut seen, mut tag, mut cuts) = (Seen::default(), seed << 20, 0);
    for round in 0..3 {
        let name = format!("seed {seed}, round {round}");
        let cut = if rng.chance(30) { 1 + rng.below(60) } else { 1 + rng.below(500) };
        vfs.seed(rng.next());
        let mut plans = vec![Plan { at: cut, fault: Fault::PowerCut, span: FOREVER, only: None }];
        if seed % 3 == 2 {
            for _ in 0..1 + rng.below(3) {
                let only = [None, Some("sync"), Some("write"), Some("rename"), Some("syncdir")][rng.below(5) as usize];
                let fault = Fault::Os([EIO, ENOSPC][rng.below(2) as usize]);
                plans.push(Plan { at: 1 + rng.below(cut), fault, span: 1 + rng.below(4), only });
            }
        }
        vfs.plan(plans);
        let count = 20 + rng.below(300);
        work(&vfs, &mut rng, &mut tag, count, &mut seen);
        cuts += u64::from(vfs.is_cut());
        // Now and then only the process dies, and what it wrote stays in the page cache, synced or not.
        vfs = if rng.chance(25) { vfs.copy() } else { vfs.after_power_cut(rng.next()) };
        check(&vfs, &key, &seen, false, &name);
        if rng.chance(30) {
            heal(&vfs, &key, &mut seen, &mut tag, &name);
        }
    }
    heal(&vfs, &key, &mut seen, &mut tag, &format!("seed {seed}, at the end"));
    (cuts, seen.acknowledged.len(), seen.checkpoints.len())
}

#[test]
fn a_change_of_key_survives_a_power_cut_and_a_fault_at_every_call() {
    let run = |vfs: &MemVfs| {
        let Ok(log) = AuditLog::open(&dir(), options(vfs, 8192)) else { return };
        let Ok(publisher) = Publisher::start(&log, publish_options()) else { return };
        let _ = log.emit(Severity::Critical, b"while the key changes");
        let start = Instant::now();
        // Until it changed, or cannot.
        while publisher.status().checkpoints < 3 && !vfs.is_cut() && start.elapsed() < Duration::from_millis(40) {
            let vfs = vfs.clone();
            if !vfs.paths().contains(&publish::next_file(&key_file())) && publisher.status().caught_up {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let _ = if vfs.is_cut() { Outcome::Queued { seq: 0 } } else { log.close(WAIT) };
        publisher.finish(if vfs.is_cut() { Duration::ZERO } else { WAIT });
        assert_eq!(publisher.status().refused, None);
    };
    let begin = || {
        let vfs = MemVfs::default();
        let old = make_key(&vfs);
        let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
        let publisher = Publisher::start(&log, publish_options()).unwrap();
        assert!(log.emit(Severity::Critical, b"before").is_durable());
        assert!(log.close(WAIT).is_durable() && publisher.finish(WAIT).caught_up);
        let new = publish::generate(&vfs, &publish::next_file(&key_file()), ORIGIN).unwrap();
        (vfs, old, new)
    };
    let (counted, ..) = begin();
    counted.plan([]);
    run(&counted);
    let calls = counted.calls();
    let mut turned = 0;
    for at in 1..=calls {
        for (fault, span) in [(Fault::PowerCut, FOREVER), (Fault::Os(EIO), 1)] {
            let (vfs, old, new) = begin();
            vfs.seed(at);
            vfs.plan([Plan { at, fault, span, only: None }]);
            run(&vfs);
            let vfs = if fault == Fault::PowerCut { vfs.after_power_cut(at) } else { vfs };
            vfs.plan([]);
            let key = publish::read_signer(&vfs, &key_file()).unwrap().verifier().clone();
            assert!(key == old || key == new, "call {at}: the key is gone");
            turned += u32::from(key == new);
            let name = format!("{fault:?} at call {at}");
            // It ends well: the next start changes the key, if it had not been changed.
            let log = AuditLog::open(&dir(), options(&vfs, 8192)).unwrap();
            let publisher = Publisher::start(&log, publish_options()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let start = Instant::now();
            while publisher.status().vkey != new.to_string() || !publisher.status().caught_up {
                assert!(start.elapsed() < WAIT, "{name}: {:?}", publisher.status());
                std::thread::sleep(Duration::from_micros(200));
            }
            assert!(log.close(WAIT).is_durable() && publisher.finish(WAIT).caught_up, "{name}");
            for trusted in [&old, &new] {
                let report = common::verify(&vfs, std::slice::from_ref(trusted));
                assert!(report.is_intact(), "{name}: {report:#?}");
            }
        }
    }
    println!("{calls} calls, twice each; the key had changed before the end in {turned}");
}

#[test]
fn clocks_that_jump_change_nothing() {
    let vfs = MemVfs::default();
    let key = make_key(&vfs);
    let clock = TestClock::new(1_795_000_000);
    let log = AuditLog::open(&dir(), Options { clock: clock.clone(), ..options(&vfs, 8192) }).unwrap();
    let publisher = Publisher::start(&log, publish_options()).unwrap();
    let mut size = publisher.wait_beyond(0, WAIT).unwrap();
    for unix in [1_794_996_400, 0, -86_400 * 365, 1_795_000_000 + 10 * 365 * 86_400, 1_795_000_000] {
        clock.set(unix);
        assert!(log.emit(Severity::Critical, b"at some time").is_durable());
        size = publisher.wait_beyond(size, WAIT).unwrap();
    }
    assert!(log.close(WAIT).is_durable() && publisher.finish(WAIT).caught_up);
    let report = common::verify(&vfs, &[key]);
    assert!(report.is_intact(), "{report:#?}");
    let clocks = published(&vfs, report.ranges.signed)
        .iter()
        .filter(|bytes| Entry::parse(bytes).unwrap().kind == Kind::Clock)
        .count();
    assert_eq!(clocks, 5);
}

/// A spare segment of an earlier start names a segment that is long published as the one in use.
#[test]
fn seeds_that_once_failed() {
    for seed in [3602; 20] {
        power(seed);
    }
}
