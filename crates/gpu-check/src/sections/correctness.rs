//! The suite of every device on this one, and digests at all boundary lengths, at random ones, and of regions as large as
//! memory allows, each held against the `blake3` crate on the processor.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use vram_residency::device::conformance::{self, BOUNDARY_LENGTHS};
use vram_residency::device::{CudaDevice, Device, HashVariant, Region};
use vram_residency::digest::{BLOCK_BYTES, BlockValue, Digest, block_count, merge};

use super::{Bench, GIB, MIB, shown};
use crate::pattern::{Tiled, random};

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let variants = bench.size(&HashVariant::ALL[..], &[HashVariant::Plain]);
    let mut regions = 0;
    for variant in variants {
        let mut options = bench.options();
        options.variant = Some(*variant);
        let device = CudaDevice::open(&options)?;
        regions += conformance::check(&device).with_context(|| format!("the conformance suite, {variant}"))?.regions;
    }
    bench.sink.counted("regions that pass the conformance suite", "regions", regions, None);
    let device = bench.device()?;
    lengths(bench, &device)?;
    large(bench, &device)
}

fn lengths(bench: &Bench<'_>, device: &CudaDevice) -> Result<()> {
    let mut lengths = BOUNDARY_LENGTHS.to_vec();
    for chunks in bench.size(&[1_u64, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 127, 128, 129, 255, 511, 512, 1023][..], &[3])
    {
        lengths.extend([chunks * 1024 - 1, chunks * 1024, chunks * 1024 + 1, chunks * 1024 + 64]);
    }
    let (count, most) = bench.size((200, 8 * MIB), (4, 64 << 10));
    // Random lengths from the same generator as the bytes: the same in every run.
    let seeds = random(count * 8, "lengths");
    lengths.extend(
        seeds.chunks_exact(8).map(|seed| seed.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) % most),
    );
    let mut compared = 0;
    for (index, length) in lengths.iter().enumerate() {
        let bytes = random(*length, &format!("region {index}"));
        let digest = Digest::of(&bytes);
        for lead in [0, 8, 248] {
            let mut values = vec![BlockValue::UNKNOWN; block_count(*length) as usize];
            let mut staged = device.allocate(*length, lead)?;
            staged.fill(&bytes.as_slice(), &mut values)?;
            let region = staged.protect()?;
            ensure!(
                merge(&values) == Some(digest),
                "{length} bytes, {lead} behind a boundary: wrong digest at the load"
            );
            ensure!(
                rehash(region.as_ref())?.0 == Some(digest),
                "{length} bytes, {lead} behind a boundary: wrong digest"
            );
            compared += 1;
        }
    }
    bench.sink.counted(
        "digests at boundary and random lengths, equal to the blake3 crate's",
        "digests",
        compared,
        None,
    );
    Ok(())
}

/// From small to large, so that something is said before the time is over.
fn large(bench: &Bench<'_>, device: &CudaDevice) -> Result<()> {
    let room = device.capacity().available_bytes().saturating_sub(GIB) / MIB * MIB;
    let wanted = bench.size(&[GIB, 16 * GIB, 64 * GIB][..], &[5 * MIB]);
    let mut sizes: Vec<u64> = wanted.iter().copied().filter(|size| *size <= room).collect();
    if sizes.len() < wanted.len() {
        sizes.push(room);
    }
    for bytes in sizes.into_iter().filter(|size| *size > 0) {
        let name = format!("blocks of a region of {}, equal to the blake3 crate's", shown(bytes));
        let began = Instant::now();
        // Not a whole number of blocks.
        let bytes = bytes - 3;
        let source = Tiled::new(bytes, bench.size(256, 2), "large").with_expected();
        let mut values = vec![BlockValue::UNKNOWN; block_count(bytes) as usize];
        let mut staged = device.allocate(bytes, 0)?;
        staged.fill(&source, &mut values)?;
        let region = staged.protect()?;
        let (_, hashed) = rehash(region.as_ref())?;
        let expected: Option<Vec<BlockValue>> = source.expected().into_iter().collect();
        let Some(expected) = expected else { bail!("a block was never asked for") };
        for found in [&values, &hashed] {
            if let Some(block) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
                bail!("block {block} of a region of {bytes} bytes (blocks of {BLOCK_BYTES}): wrong value");
            }
        }
        ensure!(merge(&hashed).is_some() && hashed.len() == expected.len(), "a region of {bytes} bytes has no digest");
        bench.sink.counted(&name, "blocks", expected.len() as u64, None);
        bench.sink.timed(
            &format!("time for that, {} on the processor too", shown(bytes + 3)),
            "s",
            began.elapsed().as_secs_f64(),
            None,
        );
    }
    Ok(())
}

fn rehash(region: &dyn Region) -> Result<(Option<Digest>, Vec<BlockValue>)> {
    let mut values = vec![BlockValue::UNKNOWN; block_count(region.bytes()) as usize];
    region.hash_blocks(0, &mut values)?;
    Ok((merge(&values), values))
}
