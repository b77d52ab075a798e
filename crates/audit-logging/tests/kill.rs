//! `kill -9` at a random moment, 500 times: no acknowledged record is lost, no false alarm, a quick and lock-free reopen.
//!
//! The child is this test binary again, started with an environment variable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use audit_logging::{AuditLog, Kind, OpenError, Options, Outcome, Severity, reader};
use common::{Rng, disk_dir, leaf};

const DIR: &str = "AUDIT_LOGGING_KILL_DIR";
const TAG: &str = "AUDIT_LOGGING_KILL_TAG";
/// Kills in all; the environment may ask for more.
fn kills() -> u64 {
    std::env::var("AUDIT_LOGGING_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

const THREADS: u64 = 4;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, critical_deadline: Duration::from_secs(10), ..Options::default() }
}

/// Emits until it is killed, and tells of every durable record: `ack <number> <tag of its leaf>`.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let tag: u64 = std::env::var(TAG).unwrap().parse().unwrap();
    let log = AuditLog::open(Path::new(&dir), options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = log.clone();
            scope.spawn(move || {
                for n in 0u64.. {
                    let tag = (tag << 32) + (n << 8) + thread;
                    let leaf = leaf(tag, 20 + (tag % 700) as usize);
                    if n % 4 == 3 {
                        let _ = log.emit(Severity::Routine, &leaf);
                        continue;
                    }
                    match log.emit(Severity::Critical, &leaf) {
                        Outcome::Durable { seq } => {
                            let line = format!("ack {seq} {tag}\n");
                            std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
}

fn acknowledged(output: &str) -> Vec<(u64, u64)> {
    // The last line may be cut short by the kill.
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    whole
        .lines()
        .filter_map(|line| {
            // The first line may follow a word of the test harness.
            let mut parts = line[line.find("ack ")?..].split(' ').skip(1);
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        })
        .collect()
}

fn records(dir: &Path) -> BTreeMap<u64, Vec<u8>> {
    reader::records(dir)
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| record.kind == Kind::Event)
        .map(|record| (record.seq, record.leaf))
        .collect()
}

struct Totals {
    acknowledged: usize,
    slowest: Duration,
    torn: u64,
    refused: u64,
}

fn kill_one(dir: &Path, tag: u64, rng: &mut Rng, totals: &mut Totals) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(TAG, tag.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let (writing, written) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut output = Vec::new();
        let mut chunk = [0u8; 4096];
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            output.extend_from_slice(&chunk[..n]);
            if output[output.len().saturating_sub(n + 4)..].windows(4).any(|word| word == b"ack ") {
                let _ = writing.send(());
            }
        }
        String::from_utf8_lossy(&output).into_owned()
    });
    if rng.chance(70) {
        // While it writes; else perhaps while it opens the log.
        let writing = written.recv_timeout(Duration::from_secs(10)).is_ok();
        if writing && rng.chance(10) {
            let locked = AuditLog::open(dir, options());
            assert!(matches!(locked, Err(OpenError::Locked { pid: Some(pid), .. }) if pid == child.id()), "{locked:?}");
            totals.refused += 1;
        }
    }
    std::thread::sleep(Duration::from_micros(rng.below(25_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    let acknowledged = acknowledged(&reader.join().unwrap());
    let check = |when: &str| {
        let Ok(report) = reader::verify(dir) else {
            assert!(acknowledged.is_empty(), "kill {tag}: the log is gone");
            return false;
        };
        assert!(report.is_intact(), "kill {tag} {when}: {report:?}");
        let found = records(dir);
        for &(seq, tag) in &acknowledged {
            let expected = leaf(tag, 20 + (tag % 700) as usize);
            assert_eq!(found.get(&seq), Some(&expected), "kill {tag} {when}: acknowledged record {seq} lost");
        }
        report.torn_tail.is_some()
    };
    totals.torn += u64::from(check("before the next open"));
    let start = Instant::now();
    let log = AuditLog::open(dir, options()).unwrap();
    totals.slowest = totals.slowest.max(start.elapsed());
    assert!(log.status().recovered.is_none_or(|recovery| recovery.finding.is_none()));
    drop(log);
    check("after recovery");
    totals.acknowledged += acknowledged.len();
}

#[test]
fn five_hundred_kills_lose_no_acknowledged_record() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let mut totals = Totals { acknowledged: 0, slowest: Duration::ZERO, torn: 0, refused: 0 };
    let mut rng = Rng(500);
    let mut keep: Option<(tempfile::TempDir, PathBuf)> = None;
    let kills = kills();
    for kill in 0..kills {
        // A new log now and then, so that the first moments of one are hit as well.
        if kill % 10 == 0 {
            let scratch = disk_dir("kill");
            let path = scratch.path().join("log");
            keep = Some((scratch, path));
        }
        if let Some((_, dir)) = &keep {
            kill_one(dir, kill, &mut rng, &mut totals);
        }
    }
    let Totals { acknowledged, slowest, torn, refused } = totals;
    println!(
        "{kills} kills, {acknowledged} acknowledged records, 0 lost, {torn} torn tails, slowest open {slowest:?}, {refused} second writers refused"
    );
    assert!(acknowledged > 1000, "the children got to write: {acknowledged}");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}
