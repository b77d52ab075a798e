//! A whole verification through the library's public interface: its time, and what it allocates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use stats_alloc::Region as Counter;
use vram_residency::audit::AuditTrail;
use vram_residency::device::{CudaDevice, Device, Region};
use vram_residency::digest::{BlockValue, block_count};
use vram_residency::seal::SealKey;
use vram_residency::{ManagerOptions, Policy, Rechecked, ShardId, VramManager};

use super::{Bench, GIB, MIB, median, rounds as timed, shown};
use crate::ALLOCATOR;
use crate::pattern::Tiled;
use crate::report::Bar;

const WORKER: &str = "gpu-check";

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let device = Arc::new(bench.device()?);
    sweeps(bench, &device)?;
    let room = device.capacity().available_bytes().saturating_sub(GIB) / MIB * MIB;
    let bytes = bench.size(64 * GIB, 5 * MIB).min(room);
    let source = Tiled::new(bytes, bench.size(64, 2), "verify");
    let region = filled(&device, &source, bytes)?;

    let dir = tempfile::tempdir().context("there is no directory for the audit log")?;
    let secret = [7; 32];
    let manager = VramManager::new(ManagerOptions {
        worker_id: WORKER.into(),
        device,
        key: SealKey::derive(&secret, WORKER)?,
        trail: AuditTrail::open(dir.path())?,
        policy: Policy::default(),
    })?;
    let (warm, rounds) = (bench.size(3, 1), bench.size(10, 2));
    manager.keep_recheck_keys(u16::try_from(warm + rounds)?)?;
    let shard = manager.seal_region(ShardId::new("region")?, "gpu-check", region)?;
    let (mut times, mut allocations, mut suspected) = (Vec::new(), 0, 0);
    for round in 0..warm + rounds {
        manager.trail().flush(Duration::from_secs(10))?;
        let counter = Counter::new(ALLOCATOR);
        let verified = manager.verify_sealed(&shard)?;
        let change = counter.change();
        // The first rounds make buffers of the log's.
        if round >= warm {
            times.push(verified.duration.as_secs_f64());
            allocations += change.allocations + change.reallocations;
            suspected += verified.suspected_paged.map_or(0, |part| part.blocks);
        }
    }
    let (sink, seconds) = (&bench.sink, median(times));
    let bar = if bytes == 64 * GIB { Bar::at_most(50.0) } else { None };
    sink.timed(&format!("verification of {}", shown(bytes)), "ms", seconds * 1000.0, bar);
    sink.timed("the same as a rate", "TB/s", bytes as f64 / seconds / 1e12, None);
    let name = format!("heap allocations in {rounds} verifications");
    sink.counted(&name, "allocations", allocations as u64, Bar::everywhere(0.0));
    sink.counted("blocks suspected to be paged out", "blocks", suspected, None);

    // The fingerprint as the device takes it: key and table there, both halves, values back, all of it wiped.
    let (mut times, mut allocations) = (Vec::new(), 0);
    for round in 0..warm + rounds {
        manager.trail().flush(Duration::from_secs(10))?;
        let counter = Counter::new(ALLOCATOR);
        let rechecked = manager.recheck(&shard)?;
        let change = counter.change();
        let Rechecked::Matched { duration, .. } = rechecked else {
            bail!("a fingerprint did not match: {rechecked:?}")
        };
        if round >= warm {
            times.push(duration.as_secs_f64());
            allocations += change.allocations + change.reallocations;
        }
    }
    let seconds = median(times);
    sink.timed(&format!("re-check by fingerprint of {}", shown(bytes)), "ms", seconds * 1000.0, None);
    sink.timed("the same as a rate", "TB/s", bytes as f64 / seconds / 1e12, None);
    let name = format!("heap allocations in {rounds} re-checks");
    sink.counted(&name, "allocations", allocations as u64, Bar::everywhere(0.0));
    Ok(())
}

/// Many small regions in one sweep and one after the other, against a large one with as many bytes.
fn sweeps(bench: &Bench<'_>, device: &CudaDevice) -> Result<()> {
    let (count, each) = (bench.size(2048, 5), 2 * MIB);
    let bytes = count * each;
    let source = Tiled::new(bytes, bench.size(64, 2), "sweeps");
    let took = |name: &str, regions: &[&dyn Region], one_by_one: bool| -> Result<()> {
        let mut blocks = 0;
        let seconds = timed(bench.rounds(), || {
            let began = Instant::now();
            for regions in regions.chunks(if one_by_one { 1 } else { regions.len().max(1) }) {
                device.hash_regions(regions, &mut |_, _, values| blocks += values.len() as u64)?;
            }
            Ok::<_, anyhow::Error>(began.elapsed())
        })?;
        anyhow::ensure!(blocks == bytes / MIB * (bench.rounds() as u64 + 1), "{name}: {blocks} blocks were hashed");
        bench.sink.timed(name, "TB/s", bytes as f64 / seconds / 1e12, None);
        Ok(())
    };
    let one = filled(device, &source, bytes)?;
    took(&format!("sweep over one region of {}", shown(bytes)), &[&*one], false)?;
    drop(one);
    let small = (0..count).map(|_| filled(device, &source, each)).collect::<Result<Vec<_>>>()?;
    let small: Vec<&dyn Region> = small.iter().map(|region| &**region).collect();
    took(&format!("sweep over {count} regions of {}", shown(each)), &small, false)?;
    took("the same one after the other", &small, true)
}

/// A sealed region with bytes of a source.
fn filled(device: &CudaDevice, source: &Tiled, bytes: u64) -> Result<Box<dyn Region>> {
    let mut values = vec![BlockValue::UNKNOWN; block_count(bytes) as usize];
    let mut staged = device.allocate(bytes, 0)?;
    staged.fill(source, &mut values)?;
    Ok(staged.protect()?)
}
