//! Durable records: how long one takes, and how many a second there are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit_logging::{AuditLog, Options, Outcome, Severity};
use serde::Serialize;

use crate::exit::Failure;
use crate::machine::quantile;

/// Bytes of a record, about those of a failed verification.
const RECORD: usize = 500;
/// How long each measurement runs.
const SPAN: Duration = Duration::from_millis(1500);
const THREADS: [u32; 3] = [1, 16, 64];

#[derive(Serialize)]
pub(super) struct Report {
    /// Of one thread that waits for each record.
    critical: Latency,
    /// Durable critical records per second, by number of threads.
    rates: BTreeMap<u32, f64>,
}

#[derive(Serialize)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

/// Measures on a fresh log in `dir`.
pub(super) fn measure(dir: &Path) -> Result<Report, Failure> {
    // The deadline is far away, so that slow records are measured instead of given up.
    let log = AuditLog::open(dir, Options { critical_deadline: Duration::from_secs(5), ..Options::default() })?;
    latencies(&log, Duration::from_millis(200))?;
    let mut sorted = latencies(&log, SPAN.saturating_mul(2))?;
    sorted.sort_unstable();
    let micros = |part| quantile(&sorted, part).as_secs_f64() * 1e6;
    let critical = Latency { p50_us: micros(0.5), p99_us: micros(0.99), p999_us: micros(0.999), max_us: micros(1.0) };
    let mut rates = BTreeMap::new();
    for threads in THREADS {
        rates.insert(threads, rate(&log, threads)?);
    }
    if log.close(Duration::from_secs(10)).is_durable() {
        Ok(Report { critical, rates })
    } else {
        Err(Failure::new("audit", format!("the log in {} was not durable at its end; check the disk", dir.display())))
    }
}

fn latencies(log: &AuditLog, span: Duration) -> Result<Vec<Duration>, Failure> {
    let leaf = [b'x'; RECORD];
    let mut latencies = Vec::with_capacity(1 << 16);
    let begun = Instant::now();
    while begun.elapsed() < span {
        let started = Instant::now();
        durable(log.emit(Severity::Critical, &leaf))?;
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}

fn rate(log: &AuditLog, threads: u32) -> Result<f64, Failure> {
    let leaf = [b'x'; RECORD];
    let records = AtomicU64::new(0);
    let begun = Instant::now();
    let worker = || -> Result<(), Failure> {
        let mut own = 0_u64;
        while begun.elapsed() < SPAN {
            durable(log.emit(Severity::Critical, &leaf))?;
            own = own.saturating_add(1);
        }
        records.fetch_add(own, Ordering::Relaxed);
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let lost = || Failure::new("audit", "a measuring thread ended early; report this defect");
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| lost())?)
    })?;
    Ok(records.into_inner() as f64 / begun.elapsed().as_secs_f64())
}

fn durable(outcome: Outcome) -> Result<(), Failure> {
    match outcome {
        Outcome::Durable { .. } => Ok(()),
        Outcome::Failed(failure) => Err(Failure::new("audit", failure.to_string())),
        _ => Err(Failure::new("audit", "a record was not on disk after 5 s; check the disk")),
    }
}

impl Report {
    /// The rows of the table.
    pub(super) fn show(&self, row: &dyn Fn(&str, String)) {
        let Latency { p50_us, p99_us, p999_us, max_us } = self.critical;
        row(
            "durable record",
            format!("{p50_us:.0} µs median, {p99_us:.0} p99, {p999_us:.0} p99.9, {max_us:.0} at worst"),
        );
        let rates: Vec<_> = self.rates.iter().map(|(threads, rate)| format!("{rate:.0}/s with {threads}")).collect();
        row("durable records", format!("{} threads", rates.join(", ")));
    }
}
