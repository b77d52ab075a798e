//! The GPU kernels compute what they should: their own sources, compiled for the CPU, against the `blake3` crate and a
//! readable reference of the fingerprint. `kernels/host/shim.hpp` says what this cannot find.
//!
//! `VRAM_REQUIRE_KERNELS=1` makes a missing `g++` a failure; `VRAM_KERNELS_CXXFLAGS` adds flags such as a sanitizer's.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod host;
mod nh;

use std::path::PathBuf;

use blake3::hazmat::HasherExt;
use host::{Kernels, Region, Variant};
use serde_json::{Value, json};
use vram_residency::digest::{BLOCK_BYTES, block_count, block_range};

const KEY: [u8; 32] = *b"the key of the kernels' own test";
const MISALIGNMENTS: [u64; 4] = [0, 8, 16, 24];

/// Numbers and bytes that are the same in every run.
struct Random(blake3::OutputReader);

impl Random {
    fn new(seed: &str) -> Self {
        Self(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill(&mut bytes);
        bytes
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        usize::try_from(u64::from_le_bytes(bytes) % limit as u64).unwrap()
    }
}

/// Lengths around every boundary that the kernels know, and random ones.
fn lengths() -> Vec<usize> {
    const MIB: usize = 1 << 20;
    let mut lengths: Vec<usize> = (0..=66).collect();
    lengths.extend([127, 128, 129, 200, 511, 512, 513, 640, 959, 960, 961]);
    lengths.extend(1015..=1033);
    for chunks in [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 127, 128, 255, 256, 257, 512, 1023, 1024, 1025] {
        lengths.extend([chunks * 1024 - 1, chunks * 1024, chunks * 1024 + 1, chunks * 1024 + 509]);
    }
    lengths.extend([2 * MIB - 1, 2 * MIB, 2 * MIB + 8, 2 * MIB + 1025, 3 * MIB + 7]);
    let mut random = Random::new("lengths");
    lengths.extend((0..40).map(|_| random.below(70_000)));
    lengths.extend((0..6).map(|_| random.below(3 * MIB)));
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

/// The value of a block, from the `blake3` crate alone.
fn official(key: Option<&[u8; 32]>, region: &[u8], block: u64) -> [u8; 32] {
    let mut hasher = key.map_or_else(blake3::Hasher::new, blake3::Hasher::new_keyed);
    let bytes = region.len() as u64;
    if bytes <= BLOCK_BYTES {
        return *hasher.update(region).finalize().as_bytes();
    }
    let range = block_range(bytes, block);
    hasher.set_input_offset(range.start);
    hasher.update(&region[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]);
    hasher.finalize_non_root()
}

fn whole(bytes: &[u8], misalignment: u64) -> Region<'_> {
    Region { bytes, absent: 0, first_block: 0, blocks: block_count(bytes.len() as u64), misalignment }
}

/// Every length at every alignment, some of them together in a launch.
fn all_regions(data: &[u8]) -> Vec<Region<'_>> {
    let mut random = Random::new("regions");
    let mut regions = Vec::new();
    for length in lengths() {
        for misalignment in MISALIGNMENTS {
            let from = random.below(data.len() - length);
            regions.push(whole(&data[from..from + length], misalignment));
        }
    }
    for at in (1..regions.len()).rev() {
        regions.swap(at, random.below(at + 1));
    }
    regions
}

#[test]
fn blake3_is_the_official_one_at_every_length_and_alignment_keyed_or_not() {
    let Some(mut kernels) = Kernels::start() else { return };
    assert!(lengths().len() >= 200, "{}", lengths().len());
    let data = Random::new("data").bytes(4 << 20);
    let regions = all_regions(&data);
    for (at, launch) in regions.chunks(7).enumerate() {
        for key in [None, Some(&KEY)] {
            let wanted: Vec<[u8; 32]> = launch
                .iter()
                .flat_map(|region| (0..region.blocks).map(|block| official(key, region.bytes, block)))
                .collect();
            for variant in [Variant::Plain, Variant::Multiplier] {
                let lengths: Vec<usize> = launch.iter().map(|region| region.bytes.len()).collect();
                let keyed = key.is_some();
                assert!(
                    kernels.blake3(variant, key, launch) == wanted,
                    "launch {at}, {variant:?}, keyed {keyed}: {lengths:?}"
                );
            }
        }
    }
    kernels.end();
}

#[test]
fn a_launch_hashes_just_the_blocks_that_its_table_names() {
    let Some(mut kernels) = Kernels::start() else { return };
    let data = Random::new("blocks").bytes((5 << 20) + 333);
    let key = nh::key_from("blocks");
    // Each line: first block and how many. The third entry is empty, as an entry of a table may be.
    let table = [(1, 2), (5, 1), (3, 0), (0, 1), (2, 4)];
    let regions: Vec<Region<'_>> = (0..)
        .zip(table)
        .map(|(at, (first_block, blocks))| Region {
            bytes: &data,
            absent: 0,
            first_block,
            blocks,
            misalignment: at % 3 * 8,
        })
        .collect();
    let blocks = table.iter().flat_map(|&(first, blocks)| first..first + blocks);
    let wanted: Vec<[u8; 32]> = blocks.clone().map(|block| official(None, &data, block)).collect();
    assert!(kernels.blake3(Variant::Plain, None, &regions) == wanted);
    let wanted: Vec<u8> = blocks.flat_map(|block| nh::tiles(&key, &data, block..block + 1)).collect();
    assert!(kernels.nh(&key, &regions) == wanted);
    kernels.end();
}

#[test]
fn nh_is_the_reference_at_every_length_and_alignment() {
    let Some(mut kernels) = Kernels::start() else { return };
    let data = Random::new("data").bytes(4 << 20);
    let key = nh::key_from("every length");
    for (at, launch) in all_regions(&data).chunks(7).enumerate() {
        let wanted: Vec<u8> =
            launch.iter().flat_map(|region| nh::tiles(&key, region.bytes, 0..region.blocks)).collect();
        let lengths: Vec<usize> = launch.iter().map(|region| region.bytes.len()).collect();
        assert!(kernels.nh(&key, launch) == wanted, "launch {at}: {lengths:?}");
    }
    kernels.end();
}

#[test]
fn a_chunk_behind_four_tebibytes_has_its_own_number() {
    let Some(mut kernels) = Kernels::start() else { return };
    let data = Random::new("far").bytes((1 << 20) + 100);
    // Chunk numbers from 2^32 on need the counter's upper half. The blocks in front are never touched.
    for absent in [(1 << 22) - 1, 1 << 22, (1 << 23) + 5] {
        let region = Region { bytes: &data, absent, first_block: absent, blocks: 2, misalignment: 8 };
        let wanted = data.chunks(1 << 20).zip(absent..).map(|(bytes, block)| {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(block * BLOCK_BYTES).update(bytes).finalize_non_root()
        });
        let wanted: Vec<[u8; 32]> = wanted.collect();
        for variant in [Variant::Plain, Variant::Multiplier] {
            assert!(kernels.blake3(variant, None, std::slice::from_ref(&region)) == wanted, "{absent} MiB");
        }
    }
    kernels.end();
}

/// The tile of the fingerprint that holds this byte of a region.
fn tile_of(byte: usize) -> usize {
    ((byte >> 17) << 5) | ((byte >> 4) & 31)
}

#[test]
fn three_thousand_flipped_bits_are_found_where_they_are() {
    let Some(mut kernels) = Kernels::start() else { return };
    let mut random = Random::new("flips");
    let mut data: Vec<Vec<u8>> = [65_541, 40_960, 1_500].iter().map(|&bytes| random.bytes(bytes)).collect();
    let key = nh::key_from("flips");
    fn regions(data: &[Vec<u8>]) -> Vec<Region<'_>> {
        data.iter().zip([8, 0, 16]).map(|(bytes, misalignment)| whole(bytes, misalignment)).collect()
    }
    let values = kernels.blake3(Variant::Plain, None, &regions(&data));
    let tiles = kernels.nh(&key, &regions(&data));
    let all: usize = data.iter().map(Vec::len).sum();
    for flip in 0..3_000 {
        let (mut region, mut byte) = (0, random.below(all));
        while byte >= data[region].len() {
            byte -= data[region].len();
            region += 1;
        }
        let bit = 1_u8 << random.below(8);
        data[region][byte] ^= bit;
        let variant = if flip % 2 == 0 { Variant::Plain } else { Variant::Multiplier };
        let now = kernels.blake3(variant, None, &regions(&data));
        let changed: Vec<usize> = (0..3).filter(|&at| now[at] != values[at]).collect();
        assert_eq!(changed, [region], "bit {bit} of byte {byte}, BLAKE3 {variant:?}");
        let now = kernels.nh(&key, &regions(&data));
        let pairs = now.chunks_exact(32).zip(tiles.chunks_exact(32)).enumerate();
        let changed: Vec<usize> = pairs.filter(|(_, (now, before))| now != before).map(|(at, _)| at).collect();
        assert_eq!(changed, [region * 256 + tile_of(byte)], "bit {bit} of byte {byte}, NH");
        data[region][byte] ^= bit;
    }
    kernels.end();
}

/// Those of docs/vectors/nh-tag.json, which came from a program that shares no line with this one.
#[test]
fn the_fingerprint_agrees_with_its_published_vectors() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/vectors/nh-tag.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let key = nh::key_from(vectors["key_seed"].as_str().unwrap());
    let tag_key = *blake3::hash(vectors["tag_key_seed"].as_str().unwrap().as_bytes()).as_bytes();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut kernels = Kernels::start();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() >= 12);
    for case in cases {
        let bytes = case["bytes"].as_u64().unwrap();
        let region: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        let tiles = nh::tiles(&key, &region, 0..block_count(bytes));
        if let Some(kernels) = &mut kernels {
            assert!(kernels.nh(&key, &[whole(&region, 8)]) == tiles, "{bytes} bytes");
        }
        assert_eq!(
            json!({"bytes": bytes, "tile_0": hex(&tiles[..32]), "tag": hex(&nh::tag(&key, &tag_key, &region))}),
            *case
        );
    }
}

#[test]
fn the_probes_do_what_they_say() {
    let Some(mut kernels) = Kernels::start() else { return };
    assert_eq!(kernels.store(0xdead_beef), 0xdead_beef);
    let data = Random::new("probes").bytes(300_000);
    for bytes in [0, 15, 16, 4096, 65_535, 300_000] {
        let words = data[..bytes / 16 * 16].chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        let wanted = words.fold(0, |sum, word| sum ^ word);
        for thread_blocks in [1, 3] {
            assert_eq!(kernels.read(thread_blocks, &data[..bytes]), wanted, "{bytes} bytes");
        }
    }
    let n = 64;
    // Small whole numbers: the product is exact in whatever order it is summed.
    let matrix = |of: &[u8]| -> Vec<f32> { of[..n * n].iter().map(|&byte| f32::from(byte % 16)).collect() };
    let (a, b) = (matrix(&data), matrix(&data[n * n..]));
    let product = kernels.matmul(u32::try_from(n).unwrap(), &a, &b);
    for (at, got) in product.iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let wanted: f32 = (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum();
        assert!((got - wanted).abs() < 0.5, "row {row}, column {column}: {got} and not {wanted}");
    }
    kernels.end();
}
