//! `kill -9` of a process that writes and publishes: what was acknowledged is published after the next start, what was
//! signed is never contradicted, nobody is accused.
//!
//! The child is this test binary again, started with an environment variable.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use audit_logging::evidence::{self, Held, Question, Report, What};
use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::tlog::entry::{self, Entry};
use audit_logging::tlog::note::VerifierKey;
use audit_logging::tlog::source::{DirSource, Source as _};
use audit_logging::tlog::tree::tiles_between;
use audit_logging::{AuditLog, Disk, Options, Outcome, Severity};
use common::{ORIGIN, Rng, disk_dir, leaf};

const DIR: &str = "AUDIT_LOGGING_PUBLISH_KILL_DIR";
const TAG: &str = "AUDIT_LOGGING_PUBLISH_KILL_TAG";

/// Kills in all; the environment may ask for more.
fn kills() -> u64 {
    std::env::var("AUDIT_LOGGING_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

fn open(dir: &Path) -> (AuditLog, Publisher) {
    let options = Options { segment_bytes: 64 << 10, critical_deadline: Duration::from_secs(10), ..Options::default() };
    let log = AuditLog::open(&dir.join("log"), options).unwrap();
    let quick = PublishOptions {
        interval: Duration::from_millis(3),
        least_interval: Duration::from_millis(1),
        ..PublishOptions::new(dir.join("audit.key"))
    };
    let publisher = Publisher::start(&log, quick).unwrap();
    (log, publisher)
}

/// Emits until it is killed, and tells of every durable record: `ack <number> <tag of its leaf>`.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let tag: u64 = std::env::var(TAG).unwrap().parse().unwrap();
    let (log, _publisher) = open(Path::new(&dir));
    for n in 0u64.. {
        let tag = (tag << 32) + n;
        let leaf = leaf(tag, 20 + (tag % 400) as usize);
        if n % 4 == 3 {
            let _ = log.emit(Severity::Routine, &leaf);
            continue;
        }
        match log.emit(Severity::Critical, &leaf) {
            Outcome::Durable { seq } => {
                std::io::stdout().lock().write_all(format!("ack {seq} {tag}\n").as_bytes()).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }
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

fn ask(dir: &Path, key: &VerifierKey, seen: &[Vec<u8>]) -> Report {
    let (source, wal) = (DirSource::new(&dir.join("log/tlog")), dir.join("log"));
    let held = seen.iter().map(|note| ("seen".to_owned(), Held::Checkpoint(note.clone()))).collect();
    let question =
        Question { wal: Some((Arc::new(Disk), &wal)), held, ..Question::new(&source, std::slice::from_ref(key)) };
    evidence::verify(&question).unwrap()
}

fn kill_one(dir: &Path, key: &VerifierKey, tag: u64, rng: &mut Rng, seen: &mut Vec<Vec<u8>>) -> usize {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(TAG, tag.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut output = String::new();
        let _ = pipe.read_to_string(&mut output);
        output
    });
    std::thread::sleep(Duration::from_micros(3000 + rng.below(60_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    let acknowledged = acknowledged(&reader.join().unwrap());
    let source = DirSource::new(&dir.join("log/tlog"));
    if !dir.join("log").exists() {
        return 0;
    }
    // What anybody could have copied by now.
    seen.extend(source.get("checkpoint").unwrap());
    if !dir.join("log/segment-000000000001.wal").exists() {
        assert!(acknowledged.is_empty());
        return 0;
    }
    let report = ask(dir, key, seen);
    let accused =
        report.violations.iter().filter(|violation| !(seen.is_empty() && violation.what == What::NoCheckpoint));
    assert_eq!(accused.count(), 0, "kill {tag}: {report:#?}");
    // The next start publishes it all.
    let (log, publisher) = open(dir);
    assert!(log.close(Duration::from_secs(10)).is_durable());
    let finished = publisher.finish(Duration::from_secs(20));
    assert!(finished.caught_up, "kill {tag}: {:?}", publisher.status());
    drop((log, publisher));
    seen.extend(source.get("checkpoint").unwrap());
    let report = ask(dir, key, seen);
    assert!(report.is_intact() && report.ranges.signed == report.ranges.unsigned, "kill {tag}: {report:#?}");
    let mut found = BTreeMap::new();
    for tile in tiles_between(0, finished.size).filter(|tile| tile.is_entries()) {
        let bytes = source.get(&tile.path()).unwrap().unwrap();
        for bytes in entry::split(&bytes).unwrap() {
            let entry = Entry::parse(bytes).unwrap();
            found.insert(entry.seq, entry.leaf.to_vec());
        }
    }
    for &(seq, tag) in &acknowledged {
        assert_eq!(
            found.get(&seq),
            Some(&leaf(tag, 20 + (tag % 400) as usize)),
            "kill {tag}: record {seq} is not published"
        );
    }
    acknowledged.len()
}

#[test]
fn kills_contradict_nothing_that_was_signed() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let mut rng = Rng(77);
    let (kills, mut records, mut checkpoints) = (kills(), 0, 0);
    let mut log = None;
    for kill in 0..kills {
        // A new log now and then, so that the first moments of one are hit as well.
        if kill % 10 == 0 {
            let scratch = disk_dir("publish-kill");
            let key = publish::generate(&Disk, &scratch.path().join("audit.key"), ORIGIN).unwrap();
            log = Some((scratch, key, Vec::new()));
        }
        if let Some((scratch, key, seen)) = &mut log {
            records += kill_one(scratch.path(), key, kill, &mut rng, seen);
            checkpoints += 1;
        }
    }
    println!("{kills} kills, {records} acknowledged records, all published; {checkpoints} starts");
    assert!(records > 100, "the children got to write: {records}");
}
