//! `vram bench`: what this machine can do, each figure beside its floor and measured in the same run.

mod log;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use vram_residency::device::measure::{self, Floor};
use vram_residency::device::{HostDevice, HugePages, MemoryFacts};
use vram_residency::model::{Format, ModelFile};
use vram_residency::seal::{SealKey, parse_record};
use vram_residency::{Policy, SealRequest, SealedShard, ShardId, VramManager};

use crate::cli::{Bench, Global};
use crate::exit::Failure;
use crate::machine::ShmemHugePages;
use crate::output::{Out, Style, size};
use crate::sample::Scratch;
use crate::session::{self, Trail};
use crate::{machine, sample};

/// Of the file that is made where none is named.
const USUAL_MIB: u64 = 2048;
/// Not a secret: nothing that is sealed with it outlives the run.
const SECRET: [u8; 32] = [7; 32];

#[derive(Serialize)]
struct Report {
    verify: Verify,
    seal: Seal,
    huge_pages: HugePagesReport,
    audit: Option<log::Report>,
    compare_ns: Compare,
    threads: usize,
}

#[derive(Serialize)]
struct Verify {
    bytes: u64,
    seconds: Vec<f64>,
    gb_per_s: f64,
}

#[derive(Serialize)]
struct Seal {
    bytes: u64,
    seconds: Vec<f64>,
    floor_seconds: Vec<f64>,
    breakdown: Breakdown,
}

/// Medians, in seconds.
#[derive(Serialize)]
struct Breakdown {
    page_clearing: f64,
    copy: f64,
    hash: f64,
}

#[derive(Serialize)]
struct HugePagesReport {
    available: bool,
    seal_seconds: Option<Vec<f64>>,
}

#[derive(Serialize)]
struct Compare {
    digest: f64,
    signature: f64,
}

/// Measures everything.
pub(super) fn run(bench: &Bench, global: &Global, out: &Out) -> Result<(), Failure> {
    let scratch = Scratch::new(bench.dir.as_deref(), "bench")?;
    let device = session::host_device(&bench.host, HugePages::Never)?;
    let threads = device.threads();
    let file = open_model(bench, scratch.path(), &device)?;
    let trail = Trail::open_at(&scratch.path().join("audit"))?;
    let manager = session::manager(session::worker_id(global), &SECRET, Arc::new(device), &trail, Policy::default())?;
    let rounds = usize::from(bench.rounds);
    tell(out, &format!("sealing {} and measuring the floor beside it, rounds: {rounds}", size(file.len())));

    let mut floors = Vec::with_capacity(rounds);
    let mut seals = Vec::with_capacity(rounds);
    // The first round warms the page cache and memory that this machine never touched; it does not count.
    for round in 0..=rounds {
        let sealing = time_to_seal(&manager, &file)?.0;
        let floor = measure_floor(file.path(), threads)?;
        if round > 0 {
            seals.push(sealing);
            floors.push(floor);
        }
    }
    tell(out, "verifying in place");
    let shard = time_to_seal(&manager, &file)?.1;
    let verifying = (0..=rounds)
        .map(|_| manager.verify_sealed(&shard).map(|verified| verified.duration))
        .collect::<Result<Vec<_>, _>>()?;
    let verifying = verifying.get(1..).unwrap_or_default().to_vec();
    let compare_ns = compare(&shard, manager.worker_id())?;
    drop(shard);
    drop(manager);
    trail.close(out)?;

    let huge_pages = with_huge_pages(bench, global, &file, &scratch.path().join("audit-huge"), out)?;
    let audit = if machine::is_in_memory(scratch.path()).unwrap_or(false) {
        out.warn(format_args!(
            "warning: {} lies in memory, so durable records are not measured; name a directory on a disk with --dir",
            scratch.path().display()
        ));
        None
    } else {
        tell(out, "durable records, on the disk");
        Some(log::measure(&scratch.path().join("records"))?)
    };

    let bytes = file.len();
    let part = |of: fn(&Floor) -> Duration| median(&seconds(floors.iter().map(of)));
    let breakdown = Breakdown {
        page_clearing: part(|floor| floor.page_clearing),
        copy: part(|floor| floor.copy),
        hash: part(|floor| floor.hash),
    };
    let verify_seconds = seconds(verifying);
    let report = Report {
        verify: Verify { bytes, gb_per_s: bytes as f64 / median(&verify_seconds) / 1e9, seconds: verify_seconds },
        seal: Seal {
            bytes,
            seconds: seconds(seals),
            floor_seconds: seconds(floors.iter().map(|floor| floor.fill.saturating_add(floor.hash))),
            breakdown,
        },
        huge_pages,
        audit,
        compare_ns,
        threads,
    };
    show(&report, out);
    out.object(&report);
    Ok(())
}

/// The file that was named, or one made for the purpose that leaves room for itself and a region beside it.
fn open_model(bench: &Bench, scratch: &Path, device: &HostDevice) -> Result<ModelFile, Failure> {
    let Some(path) = &bench.file else {
        let path = scratch.join("model.safetensors");
        let third = (MemoryFacts::measure()?.usable_bytes() >> 20) / 3;
        let mib = bench.size.unwrap_or(USUAL_MIB.min(third.max(1)));
        sample::check_room(scratch, mib << 20, device)?;
        sample::write(&path, mib << 20, device.threads())?;
        return Ok(ModelFile::open(&path, Some(Format::Safetensors))?);
    };
    // Here only the bytes matter.
    Ok(ModelFile::open(path, None).or_else(|_| ModelFile::open(path, Some(Format::Raw)))?)
}

fn time_to_seal(manager: &VramManager, file: &ModelFile) -> Result<(Duration, SealedShard), Failure> {
    let request = SealRequest::new(ShardId::from_name("bench"), "vram bench");
    let started = Instant::now();
    let shard = manager.seal_file(file, &request)?;
    Ok((started.elapsed(), shard))
}

fn measure_floor(path: &Path, threads: usize) -> Result<Floor, Failure> {
    measure::floor(path, threads)
        .map_err(|error| Failure::new("io", format!("{} cannot be measured: {error}", path.display())))
}

fn with_huge_pages(
    bench: &Bench,
    global: &Global,
    file: &ModelFile,
    log: &Path,
    out: &Out,
) -> Result<HugePagesReport, Failure> {
    if !ShmemHugePages::read().is_some_and(|pages| pages.available) {
        return Ok(HugePagesReport { available: false, seal_seconds: None });
    }
    tell(out, "sealing with huge pages");
    let device = session::host_device(&bench.host, HugePages::Ask)?;
    let trail = Trail::open_at(log)?;
    let manager = session::manager(session::worker_id(global), &SECRET, Arc::new(device), &trail, Policy::default())?;
    let mut seals = Vec::new();
    for round in 0..=bench.rounds {
        let sealing = time_to_seal(&manager, file)?.0;
        if round > 0 {
            seals.push(sealing);
        }
    }
    drop(manager);
    trail.close(out)?;
    Ok(HugePagesReport { available: true, seal_seconds: Some(seconds(seals)) })
}

/// What one comparison takes, in nanoseconds.
fn compare(shard: &SealedShard, worker_id: &Arc<str>) -> Result<Compare, Failure> {
    let key = SealKey::derive(&SECRET, worker_id).map_err(|error| Failure::new("key", error.to_string()))?;
    let record = shard.seal_record();
    let (statement, signature) =
        parse_record(&record).map_err(|error| Failure::integrity("seal", error.to_string()))?;
    let (ours, other) = (shard.digest(), statement.digest);
    if !key.verify(&statement, &signature) || ours != other {
        return Err(Failure::integrity("seal", "the seal that was just made does not verify; report this defect"));
    }
    Ok(Compare {
        digest: nanoseconds(1_000_000, || {
            black_box(black_box(&ours) == black_box(&other));
        }),
        signature: nanoseconds(20_000, || {
            black_box(key.verify(black_box(&statement), black_box(&signature)));
        }),
    })
}

/// The best of five runs, for one call.
fn nanoseconds(calls: u32, mut call: impl FnMut()) -> f64 {
    let runs = (0..5).map(|_| {
        let started = Instant::now();
        (0..calls).for_each(|_| call());
        started.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
    });
    runs.fold(f64::INFINITY, f64::min)
}

fn seconds(times: impl IntoIterator<Item = Duration>) -> Vec<f64> {
    times.into_iter().map(|time| time.as_secs_f64()).collect()
}

/// The middle value; of two middle values, the mean.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) }
}

/// What is being measured, for whoever waits.
fn tell(out: &Out, what: &str) {
    out.line(out.styled(Style::Dim, format_args!("… {what}")));
}

fn show(report: &Report, out: &Out) {
    let bytes = report.seal.bytes as f64;
    let row = |name: &str, text: String| {
        out.line(format_args!("{}  {text}", out.styled(Style::Bold, format_args!("{name:<16}"))))
    };
    let (seal, floor) = (median(&report.seal.seconds), median(&report.seal.floor_seconds));
    let parts = &report.seal.breakdown;
    out.line(format_args!("\n{} with {} threads, medians:", size(report.seal.bytes), report.threads));
    row("seal", format!("{seal:.3} s  {:.2} GB/s  {:.2} × the floor", bytes / seal / 1e9, seal / floor));
    row("floor", format!("{floor:.3} s  {:.2} GB/s  filling fresh memory, then BLAKE3", bytes / floor / 1e9));
    row("  page clearing", format!("{:.3} s", parts.page_clearing));
    row("  copy", format!("{:.3} s  into pages that are there", parts.copy));
    row("  hash", format!("{:.3} s", parts.hash));
    match &report.huge_pages.seal_seconds {
        Some(times) => row("  huge pages", format!("{:.3} s  {:.2} × without", median(times), median(times) / seal)),
        None => row("  huge pages", "not available here; vram doctor says how to get them".to_owned()),
    }
    row("verify", format!("{:.3} s  {:.2} GB/s", median(&report.verify.seconds), report.verify.gb_per_s));
    if let Some(audit) = &report.audit {
        audit.show(&row);
    }
    row(
        "compare",
        format!(
            "{:.0} ns two digests, {:.0} ns a seal's signature",
            report.compare_ns.digest, report.compare_ns.signature
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
