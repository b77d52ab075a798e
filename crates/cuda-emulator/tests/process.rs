//! Whole processes: the library as `libcuda.so.1`, its plan from the environment, its report at exit, memory that is
//! handed to another process; and machines that are not as wished.
#![allow(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "calls of a C library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "test")]

mod common;

use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use common::Driver;
use cuda_emulator::{Device, Emulator, Fault, Kind, Plan, Report, library, link_into};

const PAGE: u64 = 2 << 20;

/// Runs a test of this program in a process of its own.
fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command
}

#[test]
#[ignore = "a child process that another test of this file starts: cargo test -p cuda-emulator --test process"]
fn child_that_leaks() {
    let driver = Driver::load(Path::new("libcuda.so.1"));
    driver.start();
    let mut memory = 0_u64;
    assert_eq!(driver.call("cuMemAlloc_v2", &[(&raw mut memory) as u64, 64]), 2, "planned");
    driver.ok("cuMemAlloc_v2", &[(&raw mut memory) as u64, 64]);
}

#[test]
fn a_process_takes_its_plan_from_the_environment_and_leaves_its_report() {
    let folder = tempfile::tempdir().unwrap();
    link_into(folder.path()).unwrap();
    let (plan, report) = (Plan::default().fault(Fault::fail_once("cuMemAlloc_v2", 1, 2)), folder.path().join("report"));
    let status = child("child_that_leaks")
        .env("LD_LIBRARY_PATH", folder.path())
        .env("CUDA_EMULATOR_PLAN", serde_json::to_string(&plan).unwrap())
        .env("CUDA_EMULATOR_REPORT", &report)
        .status()
        .unwrap();
    assert!(status.success());
    let report: Report = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(report.calls_of("cuMemAlloc_v2"), 2);
    assert_eq!(report.live_of(Kind::Allocation).len(), 1);
    let status = child("child_that_leaks")
        .env("LD_LIBRARY_PATH", folder.path())
        .env("CUDA_EMULATOR_PLAN", r#"{"fault": []}"#)
        .status()
        .unwrap();
    assert!(!status.success(), "a plan that cannot be read is no plan without faults");
}

#[test]
#[ignore = "a child process that another test of this file starts: cargo test -p cuda-emulator --test process"]
fn child_that_imports() {
    let driver = Driver::load(&library());
    driver.start();
    let imported = driver.get("cuMemImportFromShareableHandle", &[0, 1]);
    let address = driver.get("cuMemAddressReserve", &[PAGE, 0, 0, 0]);
    driver.ok("cuMemMap", &[address, PAGE, 0, imported, 0]);
    assert_eq!(driver.access(address, PAGE, 1), 0);
    assert_eq!(driver.download(address, 4), [77; 4]);
}

#[test]
#[ignore = "a child process that another test of this file starts: cargo test -p cuda-emulator --test process"]
fn child_that_numbers_the_devices_otherwise() {
    let driver = Driver::load(&library());
    driver.start();
    let imported = driver.get("cuMemImportFromShareableHandle", &[0, 1]);
    let address = driver.get("cuMemAddressReserve", &[PAGE, 0, 0, 0]);
    driver.ok("cuMemMap", &[address, PAGE, 0, imported, 0]);
    let mut ordinal = 9_u32;
    driver.ok("cuPointerGetAttribute", &[(&raw mut ordinal) as u64, 9, address]);
    assert_eq!(ordinal, 1, "the same device by the number that it has here");
}

#[test]
fn memory_is_handed_to_another_process() {
    let _emulator = Emulator::lock(Plan::default());
    let driver = Driver::load(&library());
    driver.start();
    let (handle, address) = driver.map(PAGE);
    assert_eq!(driver.access(address, PAGE, 3), 0);
    driver.ok("cuMemsetD8_v2", &[address, 77, PAGE]);
    let mut fd = 0_i32;
    driver.ok("cuMemExportToShareableHandle", &[(&raw mut fd) as u64, handle, 1, 0]);
    // SAFETY: the descriptor that the export made, owned by nobody else.
    let shared = unsafe { OwnedFd::from_raw_fd(fd) };
    let again = shared.try_clone().unwrap();
    assert!(child("child_that_imports").stdin(Stdio::from(shared)).status().unwrap().success());
    let mut plan = Plan::with_devices(2);
    plan.devices.reverse();
    let mut other = child("child_that_numbers_the_devices_otherwise");
    other.env("CUDA_EMULATOR_PLAN", serde_json::to_string(&plan).unwrap());
    assert!(other.stdin(Stdio::from(again)).status().unwrap().success());
    driver.unmap(handle, address, PAGE);
    driver.stop();
}

#[test]
fn machines_that_cannot_be_used_say_so() {
    let emulator = Emulator::lock(Plan { init_code: 34, ..Plan::default() });
    let driver = Driver::load(&library());
    assert_eq!(driver.call("cuInit", &[0]), 34, "a stub library");
    emulator.configure(&Plan { devices: Vec::new(), ..Plan::default() });
    assert_eq!(driver.call("cuInit", &[0]), 100, "no device");
    let mut context = 0_u64;
    for (device, code) in [
        (Device { compute_mode: 2, ..Device::default() }, 999),
        (Device { compute_mode: 3, occupied: true, ..Device::default() }, 46),
    ] {
        emulator.configure(&Plan { devices: vec![device], ..Plan::default() });
        driver.ok("cuInit", &[0]);
        assert_eq!(driver.call("cuDevicePrimaryCtxRetain", &[(&raw mut context) as u64, 0]), code);
    }
    emulator.configure(&Plan::with_devices(2));
    driver.ok("cuInit", &[0]);
    let mut name = [0_u8; 64];
    driver.ok("cuDeviceGetName", &[name.as_mut_ptr() as u64, 64, 1]);
    assert!(name.starts_with(b"Emulated GPU 1\0"));
    assert_eq!(driver.call("cuDeviceGet", &[(&raw mut context) as u64, 2]), 101);
}

#[test]
fn a_device_sees_the_memory_of_another_only_when_it_may() {
    let _emulator = Emulator::lock(Plan::with_devices(2));
    let driver = Driver::load(&library());
    driver.start();
    let (handle, address) = driver.map(PAGE);
    let other = driver.get("cuDevicePrimaryCtxRetain", &[1]);
    driver.ok("cuCtxPushCurrent_v2", &[other]);
    let desc = [1_u32, 1, 3];
    driver.ok("cuMemSetAccess", &[address, PAGE, desc.as_ptr() as u64, 1]);
    driver.ok("cuMemsetD8_v2", &[address, 5, PAGE]);
    let mut ordinal = 9_u32;
    driver.ok("cuPointerGetAttribute", &[(&raw mut ordinal) as u64, 9, address]);
    assert_eq!(ordinal, 0, "whose memory it is");
    driver.get("cuCtxPopCurrent_v2", &[]);
    driver.ok("cuDevicePrimaryCtxRelease_v2", &[1]);
    assert_eq!(driver.access(address, PAGE, 1), 0);
    assert_eq!(driver.download(address, 2), [5; 2]);
    driver.unmap(handle, address, PAGE);
    driver.stop();
}

#[test]
fn work_that_fails_is_told_by_the_next_call_that_waits() {
    let mut emulator = Emulator::lock(Plan::default().fault(Fault::Asynchronous { nth: 2, code: 719 }));
    emulator.leaves();
    let driver = Driver::load(&library());
    driver.start();
    let module = driver.module(&common::kernel("")).unwrap();
    let (function, stream) = (driver.function(module, "test"), driver.get("cuStreamCreateWithPriority", &[1, 0]));
    for _ in 0..2 {
        assert_eq!(driver.launch(function, 1, 1, stream, &[0, 0]), 0);
    }
    assert_eq!(driver.call("cuStreamSynchronize", &[stream]), 719);
    assert_eq!(driver.launch(function, 1, 1, stream, &[0, 0]), 719, "and by all after it");
}
