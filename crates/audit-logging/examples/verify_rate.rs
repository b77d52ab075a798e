//! Measures how long it takes to verify a published log and to make a proof: `verify_rate DIR [records] [threads]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Question};
use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::tlog::proof;
use audit_logging::{AuditLog, Disk, Failure, Options, Outcome, Severity};

/// Bytes of a record: the size of a seal event in JSON.
const LEAF: usize = 360;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(base) = arguments.next().map(PathBuf::from) else {
        return Err("usage: verify_rate DIR [records] [threads]".into());
    };
    let records: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let threads: usize = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let dir = base.join(format!("verify-{}", std::process::id()));
    let (log_dir, key_file) = (dir.join("log"), dir.join("audit.key"));
    let keys = [publish::generate(&Disk, &key_file, "measured/vram-audit/1")?];
    let log = AuditLog::open(&log_dir, Options { queue_bytes: 8 << 20, ..Options::default() })?;
    let publisher = Publisher::start(&log, PublishOptions::new(&key_file))?;
    let start = Instant::now();
    let mut leaf = [b'x'; LEAF];
    for n in 0..records {
        leaf[..8].copy_from_slice(&n.to_le_bytes());
        while let Outcome::Failed(Failure::QueueFull { .. }) = log.emit(Severity::Routine, &leaf) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let _ = log.close(Duration::from_secs(60));
    println!("{records} records of {LEAF} bytes written in {:.2?}", start.elapsed());
    let finished = publisher.finish(Duration::from_secs(300));
    println!("published after {:.2?} in all, {finished:?}", start.elapsed());
    let source = publisher.source();
    for (name, wal) in [("published log alone", false), ("with the log's own segments", true)] {
        let mut question = Question::new(source, &keys);
        question.threads = threads;
        question.wal = wal.then_some((Arc::new(Disk), log_dir.as_path()));
        for _ in 0..3 {
            let start = Instant::now();
            let report = evidence::verify(&question)?;
            let took = start.elapsed();
            println!("{name}: {} entries verified in {took:.2?} with {threads} threads", report.entries);
            if !report.is_intact() {
                return Err(format!("{report:?}").into());
            }
        }
    }
    let (mut times, mut largest) = (Vec::new(), 0);
    for n in 0..1000 {
        let index = u64::wrapping_mul(n, 7_919).checked_rem(finished.size).unwrap_or(0);
        let start = Instant::now();
        let proof = proof::prove(source, &keys, index)?.to_string();
        times.push(start.elapsed());
        largest = largest.max(proof.len());
    }
    times.sort_unstable();
    let at = |place: usize| times.get(place).copied().unwrap_or_default();
    println!("1000 proofs: median {:.2?}, slowest {:.2?}, largest {largest} bytes", at(500), at(999));
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
