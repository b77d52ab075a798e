//! What a scan in the background costs the work in front: a matrix multiplication, which is limited by arithmetic, and a
//! plain read, which is limited by memory as the decoding of a language model is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vram_residency::device::cuda_measure::{Foreground, Kernels, MemoryKind};
use vram_residency::device::{Device, Region};
use vram_residency::digest::{BlockValue, block_count};

use super::{Bench, GIB, MIB, median};
use crate::pattern::{Tiled, random};
use crate::report::Bar;

/// Part of the time in which the scan works; the last one never rests.
const BUDGETS: [(f64, &str); 3] = [(0.01, "1 %"), (0.05, "5 %"), (1.0, "no limit")];

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let (kernels, _) = Kernels::compile(&bench.gpu)?;
    let device = bench.device()?;
    let bytes = bench.fits(4 * GIB, 2 * MIB, 2);
    let mut values = vec![BlockValue::UNKNOWN; block_count(bytes) as usize];
    let mut staged = device.allocate(bytes, 0)?;
    staged.fill(&Tiled::new(bytes, bench.size(64, 2), "scanned"), &mut values)?;
    let region = staged.protect()?;

    let n = bench.size(4096_u32, 32);
    let matrices = bench.gpu.allocate(MemoryKind::Virtual, u64::from(n) * u64::from(n) * 12)?;
    // Numbers between 1 and 2, so that sums stay finite.
    let numbers: Vec<u8> = random(bench.size(4 * MIB, 4096), "matrices")
        .chunks_exact(4)
        .flat_map(|bytes| [bytes[0], bytes[1], 0xa0, 0x3f])
        .collect();
    bench.gpu.spread(&matrices, matrices.bytes(), &numbers)?;
    let read = bench.gpu.allocate(MemoryKind::Virtual, bench.fits(GIB, MIB, 4))?;
    bench.gpu.spread(&read, read.bytes(), &numbers)?;
    bench.sink.table(
        "The work in front",
        &["work", "what it is"],
        vec![
            vec!["multiplication".to_owned(), format!("vram_probe_matmul, {n} x {n}, f32; cuBLAS is not used")],
            vec!["plain read".to_owned(), "vram_probe_read, again and again over one memory".to_owned()],
        ],
    );
    for (name, work) in
        [("multiplication", Foreground::Multiply(&matrices, n)), ("plain read", Foreground::Read(&read))]
    {
        beside(bench, &kernels, region.as_ref(), name, &work)?;
    }
    Ok(())
}

fn beside(bench: &Bench<'_>, kernels: &Kernels, region: &dyn Region, name: &str, work: &Foreground<'_>) -> Result<()> {
    let gpu = &bench.gpu;
    // As often as fills half a second.
    let once = kernels.foreground_time(gpu, work, 1)?.max(kernels.foreground_time(gpu, work, 1)?).as_secs_f64();
    let times = bench.size((0.5 / once.max(1e-6)).clamp(1.0, 5000.0) as u32, 1);
    let mut alone = Vec::new();
    let mut with: [Vec<f64>; BUDGETS.len()] = Default::default();
    let mut scanned = [0.0_f64; BUDGETS.len()];
    for _ in 0..bench.rounds() {
        // One round of each, so that a clock that changes meets all of them.
        alone.push(kernels.foreground_time(gpu, work, times)?.as_secs_f64());
        for (index, (budget, _)) in BUDGETS.iter().enumerate() {
            let began = Instant::now();
            let (took, bytes) =
                during(region, *budget, bench.size(64, 1), || kernels.foreground_time(gpu, work, times))?;
            with[index].push(took.as_secs_f64());
            scanned[index] += bytes as f64 / began.elapsed().as_secs_f64();
        }
    }
    let alone = median(alone);
    bench.sink.timed(&format!("{name} alone, {times} times"), "ms", alone * 1000.0, None);
    for (index, (budget, label)) in BUDGETS.iter().enumerate() {
        let slower = (median(with[index].clone()) / alone - 1.0) * 100.0;
        let bar = if *budget <= 0.01 && name == "multiplication" { Bar::at_most(1.0) } else { None };
        bench.sink.difference(&format!("{name} slowed down by a scan, {label}"), "%", slower, bar);
        let rate = scanned[index] / bench.rounds() as f64 / 1e9;
        bench.sink.timed(&format!("scanned beside the {name}, {label}"), "GB/s", rate, None);
    }
    Ok(())
}

/// Scans the region round and round while `work` runs; how many bytes.
fn during<T, E: Send>(
    region: &dyn Region,
    budget: f64,
    blocks: usize,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<(T, u64)>
where
    anyhow::Error: From<E>,
{
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let all = block_count(region.bytes());
    let scan = || {
        let mut values = vec![BlockValue::UNKNOWN; blocks.min(all as usize)];
        let mut first = 0;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            region.hash_blocks(first, &mut values)?;
            bytes.fetch_add(values.len() as u64 * MIB, Ordering::Relaxed);
            first = if first + 2 * values.len() as u64 <= all { first + values.len() as u64 } else { 0 };
            rest(began.elapsed().mul_f64(1.0 / budget - 1.0), &stop);
        }
        Ok::<_, anyhow::Error>(())
    };
    let (done, scanned) = std::thread::scope(|scope| {
        let scanner = scope.spawn(scan);
        let done = work();
        stop.store(true, Ordering::Relaxed);
        (done, scanner.join())
    });
    match scanned {
        Ok(outcome) => outcome?,
        Err(_) => bail!("the scanning thread failed"),
    }
    Ok((done?, bytes.load(Ordering::Relaxed)))
}

/// Sleeps, and looks up now and then.
fn rest(time: Duration, stop: &AtomicBool) {
    let until = Instant::now() + time;
    while !stop.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
}
