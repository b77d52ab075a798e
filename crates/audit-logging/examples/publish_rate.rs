//! Measures what publishing costs the writer: `publish_rate DIR [seconds per round] [rounds] [threads]`.
//!
//! Rounds without and with a publisher take turns on the disk that holds the directory, all records critical, so that
//! whatever else the machine does hits both. Prints durable records per second of each round and the ratio.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use audit_logging::evidence::{self, Question};
use audit_logging::publish::{self, PublishOptions, Publisher};
use audit_logging::{AuditLog, Disk, Options, Severity};

/// Bytes of a record: the size of a seal event in JSON.
const LEAF: usize = 360;

type Failure = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let Some(base) = arguments.next().map(PathBuf::from) else {
        return Err("usage: publish_rate DIR [seconds per round] [rounds] [threads]".into());
    };
    let seconds: f64 = arguments.next().map_or(Ok(3.0), |text| text.parse())?;
    let rounds: u32 = arguments.next().map_or(Ok(6), |text| text.parse())?;
    let threads: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    std::fs::create_dir_all(&base)?;
    println!(
        "round   without        with  (durable records/s, {threads} threads)   behind at the end   caught up after"
    );
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Which comes first alternates as well.
        for publishing in [round % 2 == 0, round % 2 != 0] {
            let dir = base.join(format!("publish-{}-{round}-{publishing}", std::process::id()));
            let rate = one(&dir, publishing, threads, Duration::from_secs_f64(seconds), round)?;
            if publishing {
                with.push(rate)
            } else {
                without.push(rate)
            }
            std::fs::remove_dir_all(&dir)?;
        }
    }
    let mean = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len().max(1) as f64;
    let median = |rates: &[f64]| {
        let mut rates = rates.to_vec();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    };
    println!("mean   {:>9.0}   {:>9.0}   ratio {:.3}", mean(&without), mean(&with), mean(&with) / mean(&without));
    println!(
        "median {:>9.0}   {:>9.0}   ratio {:.3}",
        median(&without),
        median(&with),
        median(&with) / median(&without)
    );
    Ok(())
}

fn one(dir: &Path, publishing: bool, threads: usize, time: Duration, round: u32) -> Result<f64, Failure> {
    let log_dir = dir.join("log");
    let key_file = dir.join("audit.key");
    let vkey = publish::generate(&Disk, &key_file, "measured/vram-audit/1")?;
    let options = Options { critical_deadline: Duration::from_secs(30), ..Options::default() };
    let log = AuditLog::open(&log_dir, options)?;
    let publisher = publishing.then(|| Publisher::start(&log, PublishOptions::new(&key_file))).transpose()?;
    let rate = measure(&log, threads, time)?;
    let durable = log.status().records;
    let Some(publisher) = publisher else {
        let _ = log.close(Duration::from_secs(30));
        println!("{round:>5} {rate:>9.0}");
        return Ok(rate);
    };
    let behind = durable.saturating_sub(publisher.status().signed_size);
    let start = Instant::now();
    let _ = log.close(Duration::from_secs(30));
    let finished = publisher.finish(Duration::from_secs(60));
    let status = publisher.status();
    println!(
        "{round:>5}             {rate:>9.0}   {behind} of {durable}, {} checkpoints, {} failures   {:?}",
        status.checkpoints,
        status.failures,
        start.elapsed()
    );
    if !finished.caught_up {
        return Err(format!("the publisher did not catch up: {status:?}").into());
    }
    let keys = [vkey];
    let mut question = Question::new(publisher.source(), &keys);
    question.wal = Some((Arc::new(Disk), &log_dir));
    let report = evidence::verify(&question)?;
    if !report.is_intact() || report.compared != report.entries || report.entries != finished.size {
        return Err(format!("what was published is not what was written: {report:?}").into());
    }
    Ok(rate)
}

fn measure(log: &AuditLog, threads: usize, time: Duration) -> Result<f64, Failure> {
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let counts: Vec<Result<u64, String>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (stop, log) = (&stop, log.clone());
                scope.spawn(move || {
                    let mut count = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let outcome = log.emit(Severity::Critical, &[b'x'; LEAF]);
                        if !outcome.is_durable() {
                            return Err(format!("not durable: {outcome:?}"));
                        }
                        count = count.saturating_add(1);
                    }
                    Ok(count)
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
    let mut all = 0u64;
    for count in counts {
        all = all.saturating_add(count?);
    }
    Ok(all as f64 / elapsed)
}
