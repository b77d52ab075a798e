//! Measures durable critical records on the disk that holds a directory: `durable_rate DIR [seconds]`.
//!
//! Prints records per second at 1, 16 and 64 threads, and the latency of a single thread. The deadline is out of the
//! way, so that every record counts with the time that it really took; what would have been late at 10 ms is counted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audit_logging::{AuditLog, Options, Severity, reader};

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
        return Err("usage: durable_rate DIR [seconds per point]".into());
    };
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |text| text.parse())?;
    std::fs::create_dir_all(&base)?;
    println!("threads  records/s      p50      p99    p99.9      max   late at 10 ms");
    for threads in [1usize, 4, 16, 64] {
        let dir = base.join(format!("rate-{threads}-{}", std::process::id()));
        let options = Options { critical_deadline: Duration::from_secs(30), ..Options::default() };
        let log = AuditLog::open(&dir, options)?;
        let (rate, mut latencies) = measure(&log, threads, Duration::from_secs_f64(seconds))?;
        if !log.close(Duration::from_secs(30)).is_durable() {
            return Err("the log could not be closed".into());
        }
        let report = reader::verify(&dir)?;
        if !report.is_intact() || report.records.checked_sub(2) != Some(latencies.len() as u64) {
            return Err(format!("the log is not what was written: {report:?}").into());
        }
        latencies.sort_unstable();
        let at = |part: f64| {
            let place = (latencies.len() as f64 * part) as usize;
            latencies.get(place.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        let late = latencies.iter().filter(|&&latency| latency > Duration::from_millis(10)).count();
        println!(
            "{threads:>7} {rate:>10.0} {:>5} us {:>5} us {:>5} us {:>5} us   {late} of {}",
            at(0.5).as_micros(),
            at(0.99).as_micros(),
            at(0.999).as_micros(),
            at(1.0).as_micros(),
            latencies.len(),
        );
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn measure(log: &AuditLog, threads: usize, time: Duration) -> Result<(f64, Vec<Duration>), Box<dyn std::error::Error>> {
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let results: Vec<Result<Vec<Duration>, String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let stop = &stop;
                let log = log.clone();
                scope.spawn(move || {
                    let leaf = [b'x'; LEAF];
                    let mut latencies = Vec::with_capacity(1 << 16);
                    while !stop.load(Ordering::Relaxed) {
                        let begin = Instant::now();
                        let outcome = log.emit(Severity::Critical, &leaf);
                        latencies.push(begin.elapsed());
                        if !outcome.is_durable() {
                            return Err(format!("not durable: {outcome:?}"));
                        }
                    }
                    Ok(latencies)
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect()
    });
    let elapsed = start.elapsed().as_secs_f64();
    let mut all = Vec::new();
    for result in results {
        all.extend(result?);
    }
    Ok((all.len() as f64 / elapsed, all))
}
