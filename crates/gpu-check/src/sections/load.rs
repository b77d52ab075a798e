//! Loading a region: from memory, from a file on disk and from the page cache, beside a plain pinned copy.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{Advice, fadvise};
use vram_residency::device::cuda_measure::MemoryKind;
use vram_residency::device::{CudaDevice, Device, Fill};
use vram_residency::digest::{BlockValue, block_count};

use super::{Bench, GIB, MIB, rounds, shown};
use crate::pattern::{OnDisk, Tiled};
use crate::report::Bar;

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let bytes = bench.fits(8 * GIB, 3 * MIB, 1);
    let gigabytes = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e9;
    let memory = bench.gpu.allocate(MemoryKind::Virtual, bytes)?;
    let piece = bench.size(64 * MIB, MIB);
    let seconds = rounds(bench.rounds(), || bench.gpu.upload_time(&memory, bytes, piece))?;
    let pinned = gigabytes(bytes, seconds);
    bench.sink.timed(&format!("plain pinned copy of {}", shown(bytes)), "GB/s", pinned, None);
    drop(memory);

    let device = bench.device()?;
    let source = Tiled::new(bytes, bench.size(256, 2), "load");
    let seconds = rounds(bench.rounds(), || load(&device, bytes, &source))?;
    let name = format!("load of {} from memory, hashed on the device", shown(bytes));
    bench.sink.timed(&name, "GB/s", gigabytes(bytes, seconds), Bar::at_least(40.0, 40.0));
    bench.sink.timed("the same as a part of the plain copy", "%", gigabytes(bytes, seconds) / pinned * 100.0, None);
    drop(source);
    if let Err(error) = from_disk(bench, &device) {
        bench.sink.missing("load from disk", "GB/s", &format!("not measured: {error:#}"));
    }
    Ok(())
}

fn from_disk(bench: &Bench<'_>, device: &CudaDevice) -> Result<()> {
    let bytes = bench.fits(4 * GIB, 3 * MIB, 1);
    let dir = &bench.cli.disk;
    // A file without a name: it is gone whatever happens to this process.
    let mut file = tempfile::tempfile_in(dir).with_context(|| format!("{} takes no file", dir.display()))?;
    let source = Tiled::new(bytes, bench.size(64, 2), "disk");
    let mut piece = vec![0; MIB as usize];
    for offset in (0..bytes).step_by(MIB as usize) {
        source.fill(offset, &mut piece)?;
        file.write_all(&piece).with_context(|| format!("{} has no room for {}", dir.display(), shown(bytes)))?;
    }
    file.sync_all()?;
    // Once only: what is read is in the page cache afterwards.
    let cold = forget(&file).and_then(|()| load(device, bytes, &OnDisk(file.try_clone()?)));
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    let name = format!("load of {} from disk, page cache emptied", shown(bytes));
    match cold {
        Ok(took) => bench.sink.timed(&name, "GB/s", rate(took.as_secs_f64()), None),
        Err(error) => bench.sink.missing(&name, "GB/s", &format!("not measured: {error:#}")),
    }
    let source = OnDisk(file);
    let seconds = rounds(bench.rounds(), || load(device, bytes, &source))?;
    bench.sink.timed(&format!("load of {} from the page cache", shown(bytes)), "GB/s", rate(seconds), None);
    Ok(())
}

fn forget(file: &File) -> Result<()> {
    fadvise(file, 0, None, Advice::DontNeed).context("the page cache cannot be emptied")
}

/// Time from the first byte asked for to the last block hashed; neither making nor sealing the region counts.
fn load(device: &CudaDevice, bytes: u64, source: &dyn Fill) -> Result<Duration> {
    let mut values = vec![BlockValue::UNKNOWN; block_count(bytes) as usize];
    let mut staged = device.allocate(bytes, 0)?;
    let began = Instant::now();
    staged.fill(source, &mut values)?;
    Ok(began.elapsed())
}
