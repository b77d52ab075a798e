//! The conformance suite on a GPU, where there is one. With `VRAM_REQUIRE_GPU=1` a machine without one fails.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use vram_residency::device::{CudaDevice, CudaOptions, HashVariant, conformance};

#[test]
fn a_real_gpu_passes_the_suite_of_every_device() {
    for variant in HashVariant::ALL {
        let mut options = CudaOptions::default();
        options.variant = Some(variant);
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
