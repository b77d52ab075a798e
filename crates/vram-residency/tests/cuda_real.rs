//! The conformance suite on a GPU, where there is one. With `VRAM_REQUIRE_GPU=1` a machine without one fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::process::Command;
use std::time::Duration;

use vram_residency::device::{CudaDevice, CudaOptions, HashVariant, WriteTest, conformance};

#[test]
#[ignore = "a child process that the other test of this file starts: it makes the GPU stop it"]
fn child_that_writes() {
    // The test runner may have begun a line.
    println!("\n{}", WriteTest::here(None, 0).to_line());
}

#[test]
fn a_real_gpu_passes_the_suite_of_every_device() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_that_writes", "--ignored", "--nocapture"]);
    let write_test = WriteTest::in_child(&mut child, Duration::from_secs(60));
    for variant in HashVariant::ALL {
        let mut options = CudaOptions::default();
        options.variant = Some(variant);
        options.write_test = write_test.clone();
        let device = match CudaDevice::open(&options) {
            Ok(device) => device,
            Err(error) if std::env::var_os("VRAM_REQUIRE_GPU").is_some_and(|value| value == "1") => {
                panic!("a GPU is required: {error}")
            }
            Err(error) => return println!("skipped: {error}"),
        };
        let summary = conformance::check(&device).unwrap();
        println!("{} regions on {:?}", summary.regions, device.facts());
    }
}
