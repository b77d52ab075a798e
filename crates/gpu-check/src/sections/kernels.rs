//! Each kernel over one large memory, beside a plain read and a copy of the same memory.

use anyhow::{Result, ensure};
use vram_residency::device::cuda_measure::{Kernels, Kind, Memory, MemoryKind, Sweep};
use vram_residency::digest::{BLOCK_BYTES, block_count, block_value};

use super::{Bench, GIB, MIB, median, rounds, shown};
use crate::pattern::random;
use crate::report::Bar;

/// The fingerprint's definition, as the library's tests have it.
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared with tests")]
#[path = "../../../vram-residency/tests/kernels/nh.rs"]
mod nh;

const KEY: [u8; 32] = *b"a key for measuring and no other";

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let (kernels, compiled) = Kernels::compile(&bench.gpu)?;
    let mut rows = Vec::new();
    for text in &compiled {
        let name = format!("compiling {}.ptx, without a cache", text.text);
        bench.sink.timed(&name, "ms", text.milliseconds, None);
        for (kernel, registers, local) in &text.kernels {
            let stated = |value: &Option<i32>| match value {
                Some(_) if bench.sink.emulated => String::from("- (emulated)"),
                Some(value) => value.to_string(),
                None => String::from("- (no answer)"),
            };
            rows.push(vec![kernel.clone(), stated(registers), stated(local)]);
        }
    }
    bench.sink.table("What the driver's compiler made", &["kernel", "registers", "bytes spilled"], rows);
    let key = nh::key_from("gpu-check");
    kernels.set_fingerprint_key(&bench.gpu, &key)?;

    // Another memory of the same size is copied to.
    let bytes = bench.fits(16 * GIB, 2 * MIB, 2);
    let memory = bench.gpu.allocate(MemoryKind::Virtual, bytes)?;
    let pattern = random(bench.size(64 * MIB, MIB), "sweep");
    bench.gpu.spread(&memory, bytes, &pattern)?;
    right(bench, &kernels, (&memory, bytes), &pattern, &key)?;

    let rate = |seconds: f64, times: f64| bytes as f64 * times / seconds / 1e12;
    let mut best_read = 0.0_f64;
    for groups in bench.size(&[1056_u32, 2112, 4224, 16_384][..], &[8]) {
        let seconds = rounds(bench.rounds(), || kernels.read_time(&bench.gpu, &memory, bytes, *groups))?;
        best_read = best_read.max(rate(seconds, 1.0));
    }
    bench.sink.timed(&format!("plain read of {}, best launch", shown(bytes)), "TB/s", best_read, None);
    let other = bench.gpu.allocate(MemoryKind::Virtual, bytes)?;
    let seconds = rounds(bench.rounds(), || bench.gpu.copy_time(&other, &memory, bytes))?;
    bench.sink.timed("copy on the device, read and written bytes together", "TB/s", rate(seconds, 2.0), None);
    drop(other);

    let bar = |limit, goal| if bytes >= 16 * GIB { Bar::at_least(limit, goal) } else { None };
    let mut best = 0.0_f64;
    for (name, kind, key) in [
        ("BLAKE3 plain", Kind::Plain, None),
        ("BLAKE3 mad", Kind::Mad, None),
        ("keyed BLAKE3 plain", Kind::Plain, Some(&KEY)),
        ("keyed BLAKE3 mad", Kind::Mad, Some(&KEY)),
    ] {
        let fastest = launches(bench, &kernels, &memory, name, Sweep { kind, key, bytes, launch_blocks: 0 })?;
        if key.is_none() {
            best = best.max(fastest);
        }
    }
    bench.sink.timed("BLAKE3, best variant and launch", "TB/s", best, bar(1.4, 2.0));
    let sweep = Sweep { kind: Kind::Fingerprint, key: None, bytes, launch_blocks: 0 };
    let fastest = launches(bench, &kernels, &memory, "fingerprint", sweep)?;
    bench.sink.timed("fingerprint, best launch", "TB/s", fastest, bar(3.5, 4.3));
    bench.sink.timed("BLAKE3, part of a plain read", "%", best / best_read * 100.0, None);
    bench.sink.timed("fingerprint, part of a plain read", "%", fastest / best_read * 100.0, None);
    Ok(())
}

/// One kernel at every size of launches; the best rate in TB/s.
fn launches(bench: &Bench<'_>, kernels: &Kernels, memory: &Memory, name: &str, sweep: Sweep<'_>) -> Result<f64> {
    let mut best = 0.0_f64;
    for launch_blocks in bench.size(&[64_u32, 128, 256, 512, 1024, 2048, 4096][..], &[2]) {
        let sweep = Sweep { launch_blocks: *launch_blocks, ..sweep };
        let mut times = Vec::new();
        for round in 0..=bench.rounds() {
            let (took, _) = kernels.sweep(&bench.gpu, memory, sweep)?;
            if round > 0 {
                times.push(took.as_secs_f64());
            }
        }
        let rate = sweep.bytes as f64 / median(times) / 1e12;
        best = best.max(rate);
        bench.sink.timed(&format!("{name}, launches of {launch_blocks} blocks"), "TB/s", rate, None);
    }
    Ok(best)
}

/// What is timed must be right: the first bytes as a region of their own, and the last launch of the whole sweep.
fn right(
    bench: &Bench<'_>,
    kernels: &Kernels,
    (memory, bytes): (&Memory, u64),
    pattern: &[u8],
    key: &[u32; nh::KEY_WORDS],
) -> Result<()> {
    let (gpu, mut compared) = (&bench.gpu, 0);
    let small = &pattern[..MIB as usize - 5];
    for kind in [Kind::Plain, Kind::Mad] {
        let sweep = Sweep { kind, key: Some(&KEY), bytes: small.len() as u64, launch_blocks: 1 };
        let (_, value) = kernels.sweep(gpu, memory, sweep)?;
        ensure!(value == blake3::keyed_hash(&KEY, small).as_bytes(), "{kind:?}: a keyed digest is wrong");
        compared += 1;
    }
    let sweep = Sweep { kind: Kind::Fingerprint, key: None, bytes: small.len() as u64, launch_blocks: 1 };
    let (_, tiles) = kernels.sweep(gpu, memory, sweep)?;
    ensure!(tiles == nh::tiles(key, small, 0..1), "the fingerprint's tiles are wrong");
    compared += 1;
    let launch_blocks = bench.size(4096, 2);
    let blocks = block_count(bytes);
    for kind in [Kind::Plain, Kind::Mad] {
        let (_, values) = kernels.sweep(gpu, memory, Sweep { kind, key: None, bytes, launch_blocks })?;
        let first = blocks - values.len() as u64 / 32;
        for (index, value) in (first..).zip(values.chunks_exact(32)).take(64) {
            let from = (index * BLOCK_BYTES) as usize % pattern.len();
            let expected = block_value(bytes, index, &pattern[from..from + BLOCK_BYTES as usize]);
            ensure!(expected.is_some_and(|expected| expected.as_bytes() == value), "{kind:?}: block {index} is wrong");
            compared += 1;
        }
    }
    bench.sink.counted("values held against the processor's before anything was timed", "values", compared, None);
    Ok(())
}
