//! The conformance suite and the fingerprint on a GPU, where there is one. With `VRAM_REQUIRE_GPU=1` a machine without one
//! fails.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

#[path = "kernels/nh.rs"]
mod nh;

use std::process::Command;
use std::time::Duration;

use vram_residency::device::conformance::{self, Pattern};
use vram_residency::device::{CudaDevice, CudaOptions, Device, HashVariant, Tested, WriteTest};
use vram_residency::digest::{BLOCK_BYTES, BlockValue, block_count};
use vram_residency::fingerprint::{FingerprintKey, KEYS_BYTES, WORDS_BYTES};

#[test]
#[ignore = "a child process that another test of this file starts, which the GPU stops: cargo test -p vram-residency --test cuda_real"]
fn child_that_writes() {
    // The test runner may have begun a line.
    println!("\n{}", WriteTest::here(None, 0).to_line());
}

fn write_test() -> Tested {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_that_writes", "--ignored", "--nocapture"]);
    WriteTest::in_child(&mut child, Duration::from_secs(60))
}

fn open(variant: HashVariant, write_test: Tested) -> Option<CudaDevice> {
    let mut options = CudaOptions::default();
    options.variant = Some(variant);
    options.write_test = write_test;
    match CudaDevice::open(&options) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("VRAM_REQUIRE_GPU").is_some_and(|value| value == "1") => {
            panic!("a GPU is required: {error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

#[test]
fn a_real_gpu_passes_the_suite_of_every_device() {
    let write_test = write_test();
    for device in HashVariant::ALL.into_iter().filter_map(|variant| open(variant, write_test.clone())) {
        let summary = conformance::check(&device).unwrap();
        println!("{} regions on {:?}", summary.regions, device.facts());
    }
}

/// Also of more than 128 MiB, whose tiles are one block of BLAKE3, and of more than the 4 GiB that are in the buffer at one time.
#[test]
fn fingerprints_of_a_real_gpu_are_those_of_the_definition() {
    let Some(device) = open(HashVariant::Plain, Tested::default()) else { return };
    let mut keys = [0; KEYS_BYTES];
    let key = FingerprintKey::from_secret([0x5c; 32]);
    key.expand(&mut keys);
    let words = std::array::from_fn(|at| u32::from_le_bytes(keys[at * 4..at * 4 + 4].try_into().unwrap()));
    let tag_key: &[u8; 32] = keys[WORDS_BYTES..].try_into().unwrap();
    let piece = Pattern { seed: 3 }.bytes(131 * BLOCK_BYTES + 5);
    for bytes in [0, 1, 15, 16, 17, BLOCK_BYTES - 1, BLOCK_BYTES, 127 * BLOCK_BYTES, 131 * BLOCK_BYTES + 5, 4099 << 20]
    {
        let content: Vec<u8> = piece.iter().copied().cycle().take(usize::try_from(bytes).unwrap()).collect();
        let mut staged = device.allocate(bytes, 8).unwrap();
        let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(bytes)).unwrap()];
        staged.fill(&content.as_slice(), &mut values).unwrap();
        let taken = staged.protect().unwrap().fingerprint(&key).unwrap().unwrap();
        assert!(*taken.as_bytes() == nh::tag(&words, tag_key, &content), "{bytes} bytes");
    }
}
