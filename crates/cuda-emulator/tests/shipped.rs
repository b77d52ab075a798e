//! The PTX text that is shipped, executed: BLAKE3 against the `blake3` crate, the fingerprint and the probes against
//! plain Rust.
#![allow(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "calls of a C library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "test")]

mod common;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use common::Driver;
use cuda_emulator::{Cause, Emulator, Plan, library};

const BLAKE3: &str = include_str!("../../../kernels/ptx/blake3.ptx");
const FINGERPRINT: &str = include_str!("../../../kernels/ptx/fingerprint.ptx");
const PROBE: &str = include_str!("../../../kernels/ptx/probe.ptx");
const BLOCK: usize = 1 << 20;
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

fn painted(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i * 167) % 251) as u8).collect()
}

/// A part of device memory to hash: where it begins, how long it is, its first block.
struct Segment {
    address: u64,
    bytes: usize,
    first: usize,
    blocks: usize,
}

fn blocks_of(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK).max(1)
}

fn table(segments: &[Segment]) -> (Vec<u8>, usize) {
    let (mut bytes, mut end) = (Vec::new(), 0);
    for segment in segments {
        end += segment.blocks;
        for word in [segment.address, segment.bytes as u64, segment.first as u64, end as u64] {
            bytes.extend(word.to_le_bytes());
        }
    }
    (bytes, end)
}

/// The block values of all segments, as the kernels make them.
fn hash(driver: Driver, chunks: &str, segments: &[Segment], key: Option<&[u8; 32]>) -> Vec<[u8; 32]> {
    let module = driver.module(BLAKE3).unwrap_or_else(|error| panic!("{error:?}"));
    let (table, blocks) = table(segments);
    let key_bytes: Vec<u8> =
        key.map_or_else(|| IV.iter().flat_map(|word| word.to_le_bytes()).collect(), |key| key.to_vec());
    let mode = if key.is_some() { 16 } else { 0 };
    let (table, key) = (driver.upload(&table), driver.upload(&key_bytes));
    let cvs = driver.get("cuMemAlloc_v2", &[(blocks * 1024 * 32) as u64]);
    let values = driver.get("cuMemAlloc_v2", &[(blocks * 32) as u64]);
    let (count, all) = (segments.len() as u64, blocks as u64);
    let params = [table, count, all, key, mode, 1, cvs];
    assert_eq!(driver.launch(driver.function(module, chunks), blocks as u32 * 4, 256, 0, &params), 0);
    let params = [table, count, all, key, mode, cvs, values];
    assert_eq!(driver.launch(driver.function(module, "vram_blake3_parents"), blocks as u32, 512, 0, &params), 0);
    let out = driver.download(values, blocks * 32).chunks_exact(32).map(|value| value.try_into().unwrap()).collect();
    for memory in [table, key, cvs, values] {
        driver.ok("cuMemFree_v2", &[memory]);
    }
    driver.ok("cuModuleUnload", &[module]);
    out
}

fn expected(bytes: &[u8], block: usize, key: Option<&[u8; 32]>) -> [u8; 32] {
    let part = &bytes[(block * BLOCK).min(bytes.len())..((block + 1) * BLOCK).min(bytes.len())];
    let mut hasher = key.map_or_else(blake3::Hasher::new, blake3::Hasher::new_keyed);
    if bytes.len() <= BLOCK {
        return *hasher.update(part).finalize().as_bytes();
    }
    hasher.set_input_offset((block * BLOCK) as u64);
    hasher.update(part).finalize_non_root()
}

#[test]
fn every_length_alignment_and_key_gives_the_official_blake3() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = Driver::load(&library());
    driver.start();
    let key = [7_u8; 32];
    let lengths = [
        0,
        1,
        63,
        64,
        65,
        1023,
        1024,
        1025,
        2047,
        2048,
        2049,
        3072,
        3073,
        4096,
        5 * 1024,
        8191,
        31 * 1024 + 7,
        65_536,
        100_000,
        262_143,
        262_145,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        BLOCK + 1025,
        3 * BLOCK + 7,
    ];
    let bytes = painted(3 * BLOCK + 7);
    for (index, &length) in lengths.iter().enumerate() {
        let shift = [0, 8, 24][index % 3];
        let mut placed = vec![0xee; shift];
        placed.extend(&bytes[..length]);
        let memory = driver.upload(&[placed.as_slice(), &[0xee; 64]].concat());
        for (chunks, key) in [
            ("vram_blake3_chunks_plain", None),
            ("vram_blake3_chunks_mad", None),
            ("vram_blake3_chunks_mad", Some(&key)),
        ] {
            let address = memory + shift as u64;
            let blocks = blocks_of(length);
            let values = hash(driver, chunks, &[Segment { address, bytes: length, first: 0, blocks }], key);
            for (block, value) in values.iter().enumerate() {
                assert_eq!(*value, expected(&bytes[..length], block, key), "{chunks} {length} block {block}");
            }
        }
        driver.ok("cuMemFree_v2", &[memory]);
    }
    driver.stop();
}

#[test]
fn several_segments_in_one_launch_and_the_merged_root() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = Driver::load(&library());
    driver.start();
    let (first, second, third) = (painted(2 * BLOCK + 100), painted(5), painted(4 * BLOCK));
    let memory = [driver.upload(&first), driver.upload(&second), driver.upload(&third)];
    let segments = [
        Segment { address: memory[0], bytes: first.len(), first: 0, blocks: 3 },
        Segment { address: memory[1], bytes: 5, first: 0, blocks: 1 },
        // Only the blocks in the middle.
        Segment { address: memory[2], bytes: third.len(), first: 1, blocks: 2 },
    ];
    let values = hash(driver, "vram_blake3_chunks_plain", &segments, None);
    let wanted = [
        expected(&first, 0, None),
        expected(&first, 1, None),
        expected(&first, 2, None),
        expected(&second, 0, None),
        expected(&third, 1, None),
        expected(&third, 2, None),
    ];
    assert_eq!(values, wanted);
    let left = merge_subtrees_non_root(&values[0], &values[1], Mode::Hash);
    assert_eq!(merge_subtrees_root(&left, &values[2], Mode::Hash), blake3::hash(&first));
    for memory in memory {
        driver.ok("cuMemFree_v2", &[memory]);
    }
    driver.stop();
}

#[test]
fn a_mebibyte_is_hashed_in_well_under_a_second() {
    let emulator = Emulator::lock(Plan::default());
    let driver = Driver::load(&library());
    driver.start();
    let bytes = painted(BLOCK);
    let memory = driver.upload(&bytes);
    let started = std::time::Instant::now();
    for chunks in ["vram_blake3_chunks_plain", "vram_blake3_chunks_mad"] {
        let segment = Segment { address: memory, bytes: BLOCK, first: 0, blocks: 1 };
        let before = started.elapsed();
        assert_eq!(hash(driver, chunks, &[segment], None), [*blake3::hash(&bytes).as_bytes()]);
        println!("{chunks}: {:?}", started.elapsed().saturating_sub(before));
    }
    println!("{} instructions of warps", emulator.report().warp_instructions);
    // Twenty times of what it takes, for a machine under load.
    assert!(started.elapsed().as_secs() < 10);
    driver.ok("cuMemFree_v2", &[memory]);
    driver.stop();
}

/// The four sums of every tile of a block, by the definition: tile t of a group of 32 has every 32nd piece of 16 bytes.
fn tiles(block: &[u8], key: &[u32]) -> Vec<[u64; 4]> {
    let tile = |number: usize| {
        let (group, lane) = (number / 32, number % 32);
        let mut sums = [0_u64; 4];
        for piece in 0..256 {
            let start = group * 131_072 + piece * 512 + lane * 16;
            if start >= block.len() {
                break;
            }
            let mut bytes = [0_u8; 16];
            let part = &block[start..block.len().min(start + 16)];
            bytes[..part.len()].copy_from_slice(part);
            let word = |at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
            for (pass, sum) in sums.iter_mut().enumerate() {
                for pair in 0..2 {
                    let k = piece * 4 + 2 * (pass + pair);
                    let factors = [word(2 * pair).wrapping_add(key[k]), word(2 * pair + 1).wrapping_add(key[k + 1])];
                    *sum = sum.wrapping_add(u64::from(factors[0]) * u64::from(factors[1]));
                }
            }
        }
        sums
    };
    (0..256).map(tile).collect()
}

#[test]
fn fingerprints_of_tiles_are_those_of_the_definition() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = Driver::load(&library());
    driver.start();
    let module = driver.module(FINGERPRINT).unwrap_or_else(|error| panic!("{error:?}"));
    let key: Vec<u32> = (0..1030_u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ (i << 13)).collect();
    let key_bytes: Vec<u8> = key.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (mut at, mut size) = (0_u64, 0_u64);
    let name = c"vram_nh_key";
    driver.ok("cuModuleGetGlobal_v2", &[(&raw mut at) as u64, (&raw mut size) as u64, module, name.as_ptr() as u64]);
    assert_eq!(size as usize, key_bytes.len());
    driver.ok("cuMemcpyHtoD_v2", &[at, key_bytes.as_ptr() as u64, size]);
    for (length, shift) in [(BLOCK, 0), (BLOCK + 131_072 + 777, 8), (4095, 16), (17, 8)] {
        let bytes = painted(length);
        let memory = driver.upload(&[vec![0; shift], bytes.clone(), vec![0xee; 64]].concat());
        let blocks = blocks_of(length);
        let (table, _) = table(&[Segment { address: memory + shift as u64, bytes: length, first: 0, blocks }]);
        let table = driver.upload(&table);
        let out = driver.get("cuMemAlloc_v2", &[(blocks * 8192) as u64]);
        let params = [table, 1, blocks as u64, out];
        assert_eq!(driver.launch(driver.function(module, "vram_nh_tiles"), blocks as u32, 256, 0, &params), 0);
        let answer = driver.download(out, blocks * 8192);
        let sums: Vec<u64> = answer.chunks_exact(8).map(|sum| u64::from_le_bytes(sum.try_into().unwrap())).collect();
        let wanted: Vec<u64> = bytes.chunks(BLOCK).flat_map(|block| tiles(block, &key)).flatten().collect();
        assert!(sums == wanted, "{length} bytes");
        for memory in [memory, table, out] {
            driver.ok("cuMemFree_v2", &[memory]);
        }
    }
    driver.ok("cuModuleUnload", &[module]);
    driver.stop();
}

#[test]
fn the_probes_read_multiply_and_store() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = Driver::load(&library());
    driver.start();
    let module = driver.module(PROBE).unwrap_or_else(|error| panic!("{error:?}"));
    let bytes = painted(300_000);
    let (memory, sink) = (driver.upload(&bytes), driver.upload(&[0; 4]));
    let read = driver.function(module, "vram_probe_read");
    assert_eq!(driver.launch(read, 4, 256, 0, &[memory, 300_000, sink]), 0);
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    assert_eq!(driver.download(sink, 4), words.fold(0, |sum, word| sum ^ word).to_le_bytes());
    assert!(emulator.report().kernel_bytes >= 300_000);

    let n = 64_usize;
    let matrix = |seed: usize| -> Vec<f32> { (0..n * n).map(|i| ((i * seed) % 13) as f32 - 6.0).collect() };
    let raw = |matrix: &[f32]| -> Vec<u8> { matrix.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (a, b) = (matrix(7), matrix(11));
    let (left, right, product) = (driver.upload(&raw(&a)), driver.upload(&raw(&b)), driver.upload(&[0; 64 * 64 * 4]));
    let params = [left, right, product, n as u64];
    let pointers: Vec<u64> = params.iter().map(|param| std::ptr::from_ref(param) as u64).collect();
    let multiply = driver.function(module, "vram_probe_matmul");
    driver.ok("cuLaunchKernel", &[multiply, 2, 2, 1, 32, 32, 1, 0, 0, pointers.as_ptr() as u64, 0]);
    let mut wanted = vec![0.0_f32; n * n];
    for (index, value) in wanted.iter_mut().enumerate() {
        *value = (0..n).map(|k| a[index / n * n + k] * b[k * n + index % n]).sum();
    }
    assert!(driver.download(product, n * n * 4) == raw(&wanted), "small integers, so that order does not matter");

    let (handle, address) = driver.map(2 << 20);
    assert_eq!(driver.access(address, 2 << 20, 3), 0);
    let store = driver.function(module, "vram_probe_store");
    assert_eq!(driver.launch(store, 1, 1, 0, &[address + 4, 0xabcd]), 0);
    assert_eq!(driver.download(address + 4, 4), 0xabcd_u32.to_le_bytes());
    assert_eq!(driver.access(address, 2 << 20, 1), 0);
    assert_eq!(driver.launch(store, 1, 1, 0, &[address + 4, 1]), 700, "sealed");
    assert_eq!(emulator.report().violations[0].cause, Cause::ReadOnly);
    assert!(handle != 0);
}
