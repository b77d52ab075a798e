//! The write test: what a store into sealed memory comes to on an emulated GPU, tried by a process of its own, and what
//! regions are called then.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod gpu;
mod support;

use std::process::Command;
use std::time::Duration;

use cuda_emulator::{Emulator, Fault, Plan};
use gpu::{options, region, try_manager};
use support::{disk_dir, events, id};
use vram_residency::device::{CudaDevice, CudaOptions, DeviceUuid, Protection, Tested, WriteTest};
use vram_residency::{Error, ManagerOptions, Policy, VramManager};

/// What may pass before a child of these tests is taken for hanging.
const LONG: Duration = Duration::from_secs(120);

#[test]
#[ignore = "a child process that other tests of this file start: cargo test -p vram-residency --test cuda_write_test"]
fn child_that_writes() {
    // The test runner may have begun a line.
    println!("\n{}", WriteTest::here(Some(&cuda_emulator::library()), 0).to_line());
}

/// The process that tries it, on a machine of this plan.
fn child(plan: &Plan) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_writes", "--ignored", "--nocapture"]);
    command.env("CUDA_EMULATOR_PLAN", serde_json::to_string(plan).unwrap());
    command.env("CUDA_MPS_PIPE_DIRECTORY", "/nowhere");
    command
}

fn tested(plan: &Plan) -> Tested {
    WriteTest::in_child(&mut child(plan), LONG)
}

fn outcome(plan: &Plan) -> WriteTest {
    tested(plan).outcome
}

/// As if it had been tried on the first GPU of a plan.
fn on_first(write_test: &WriteTest) -> Tested {
    Tested { device: Some(DeviceUuid(Plan::default().devices[0].uuid)), outcome: write_test.clone() }
}

/// What a region is called on such a machine, where the device is opened with this outcome.
fn protection(plan: &Plan, write_test: &WriteTest) -> Protection {
    let _emulator = Emulator::lock(plan.clone());
    let mut options: CudaOptions = options();
    options.write_test = on_first(write_test);
    let device = CudaDevice::open(&options).unwrap();
    assert_eq!(&device.facts().write_test, write_test);
    let (region, _) = region(&device, b"weights", 0).unwrap();
    assert_eq!(region.check_memory().unwrap().protection, region.protection());
    region.rewrite(0, b"W").unwrap();
    let protection = region.protection();
    assert!(region.export().unwrap().is_writable(), "who has it can write, whatever became of the test");
    protection
}

#[test]
fn a_driver_that_enforces_is_shown_to_and_one_that_says_so_and_reads_back_so_is_found_lying() {
    let honest = Plan::default();
    let refused = outcome(&honest);
    let WriteTest::Refused(how) = &refused else { panic!("{refused:?}") };
    assert!(how.contains("700"), "{how}");
    assert_eq!(protection(&honest, &refused), Protection::ReadOnly);

    // By its readings alone, nobody could tell it from the other.
    let lying = Plan::default().fault(Fault::SetAccessLies { readings_too: true });
    assert_eq!(protection(&lying, &refused), Protection::ReadOnly);
    let found = outcome(&lying);
    assert_eq!(found, WriteTest::WentThrough);
    assert_eq!(protection(&lying, &found), Protection::Advisory);

    // What was shown is half of it: the flag of this region has to be there too.
    let half = Plan::default().fault(Fault::SetAccessLies { readings_too: false });
    assert_eq!(protection(&half, &refused), Protection::Advisory);
}

/// The process that tried it was shown the GPUs in another order, or this one is another by now.
#[test]
fn what_was_shown_of_another_gpu_shows_nothing_of_this_one() {
    let two = Plan::with_devices(2);
    let mut swapped = two.clone();
    swapped.devices.swap(0, 1);
    let found = tested(&swapped);
    assert_eq!((found.device, found.outcome.is_refused()), (Some(DeviceUuid(two.devices[1].uuid)), true));
    let _emulator = Emulator::lock(two.clone());
    let mut options = options();
    options.write_test = found;
    let device = CudaDevice::open(&options).unwrap();
    let WriteTest::NotRun(why) = &device.facts().write_test else { panic!("it was of another GPU") };
    for uuid in [two.devices[0].uuid, two.devices[1].uuid] {
        assert!(why.contains(&DeviceUuid(uuid).to_string()) && why.contains("CUDA_DEVICE_ORDER"), "{why}");
    }
    assert_eq!(region(&device, b"weights", 0).unwrap().0.protection(), Protection::Advisory);
    // The one that it was tried on, whatever its number is.
    options.ordinal = 1;
    let device = CudaDevice::open(&options).unwrap();
    assert_eq!(region(&device, b"weights", 0).unwrap().0.protection(), Protection::ReadOnly);
    // And an outcome that says of which GPU it is not is none.
    options.write_test.device = None;
    let device = CudaDevice::open(&options).unwrap();
    assert_eq!(region(&device, b"weights", 0).unwrap().0.protection(), Protection::Advisory);
    // Of a MIG instance it is the instance that counts.
    let mut instance = Plan::with_mig_instances(1);
    instance.devices[0].uuid = [7; 16];
    assert_eq!(tested(&instance).device, Some(DeviceUuid([7; 16])));
}

#[test]
fn a_policy_that_requires_read_only_refuses_where_nothing_was_shown_and_the_record_says_why() {
    let _emulator = Emulator::lock(Plan::default());
    let mut policy = Policy::default();
    policy.require_read_only = true;
    let dir = disk_dir();
    let mut options = options();
    options.write_test = Tested::default();
    let manager = VramManager::new(ManagerOptions {
        worker_id: support::WORKER.into(),
        device: std::sync::Arc::new(CudaDevice::open(&options).unwrap()),
        key: support::key(),
        trail: vram_residency::audit::AuditTrail::open_with(dir.path(), support::small_log()).unwrap(),
        policy,
    })
    .unwrap();
    assert!(matches!(manager.seal_model(id("a"), "model", b"x"), Err(Error::Policy { .. })));
    drop(manager);
    let opened = &events(dir.path())[0];
    assert_eq!(opened["write_test"], "not-run");
    assert!(opened["write_test_detail"].as_str().unwrap().contains("WriteTest::here"), "{opened}");

    let dir = disk_dir();
    let manager = try_manager(dir.path(), policy).unwrap();
    assert_eq!(manager.seal_model(id("a"), "model", b"x").unwrap().protection(), Protection::ReadOnly);
    drop(manager);
    assert_eq!(events(dir.path())[0]["write_test"], "refused");
}

/// Of whatever else may happen nothing is concluded, and the reason is said.
#[test]
fn what_shows_nothing_is_called_not_run_with_the_reason() {
    let first = |code| Plan::default().fault(Fault::Asynchronous { nth: 1, code });
    let second = |code| Plan::default().fault(Fault::Asynchronous { nth: 2, code });
    assert_eq!(outcome(&second(719)), WriteTest::Refused("CUDA_ERROR_LAUNCH_FAILED, 719".into()));
    // A kernel that was silently not run is tried once more, and then the GPU says something.
    let WriteTest::Refused(how) = outcome(&second(0)) else { panic!("the word stayed") };
    assert!(how.contains("700"), "{how}");
    // Silent each time, while the same store beside it arrives.
    let omitting = |kernels: &[u64]| {
        kernels.iter().fold(Plan::default(), |plan, nth| plan.fault(Fault::Asynchronous { nth: *nth, code: 0 }))
    };
    let WriteTest::Refused(silent) = outcome(&omitting(&[2, 4, 6])) else { panic!("the word stayed") };
    assert!(silent.contains("without a word") && silent.contains("beside it arrived"), "{silent}");

    let mut none = Plan::default();
    none.devices[0].virtual_memory = false;
    let lies = Plan::default().fault(Fault::SetAccessLies { readings_too: true });
    let lost_afterwards = lies.fault(Fault::lost("cuMemcpyDtoHAsync_v2", 2, 999));
    let cases = [
        (first(0), "does not write where it may"),
        // Where no kernel runs any more, nothing was refused.
        (omitting(&[2, 3]), "did not arrive either"),
        (omitting(&[2, 4, 5]), "did not arrive either"),
        (first(719), "719"),
        // An uncorrectable error of the memory, and a launch that took too long, are no refusals.
        (second(214), "214"),
        (second(702), "702"),
        (Plan::default().fault(Fault::fail_forever("cuMemSetAccess", 3, 801)), "change what a mapping allows"),
        (lost_afterwards, "999"),
        (none, "virtual memory management"),
        (Plan { init_code: 34, ..Plan::default() }, "stub"),
    ];
    for (plan, words) in cases {
        let WriteTest::NotRun(reason) = outcome(&plan) else { panic!("{words}: something was concluded") };
        assert!(reason.contains(words) && !reason.contains('\n'), "{words}: {reason}");
    }
}

/// A fault of one process ends the others' work where they share the GPU by way of MPS.
#[test]
fn nothing_is_tried_where_gpus_are_shared_through_mps() {
    let folder = disk_dir();
    // A file that anybody could have put there is no sign of it.
    std::fs::write(folder.path().join("control"), "").unwrap();
    let mut command = child(&Plan::default());
    assert!(WriteTest::in_child(command.env("CUDA_MPS_PIPE_DIRECTORY", folder.path()), LONG).outcome.is_refused());
    std::fs::remove_file(folder.path().join("control")).unwrap();
    let _door = std::os::unix::net::UnixListener::bind(folder.path().join("control")).unwrap();
    let mut command = child(&Plan::default());
    let WriteTest::NotRun(reason) =
        WriteTest::in_child(command.env("CUDA_MPS_PIPE_DIRECTORY", folder.path()), LONG).outcome
    else {
        panic!("it was tried")
    };
    assert!(reason.contains("MPS"), "{reason}");
    // Wherever the door is: newer drivers say so themselves.
    let mut said = Plan::default();
    said.devices[0].attributes.insert(133, 1);
    let WriteTest::NotRun(reason) = outcome(&said) else { panic!("it was tried") };
    assert!(reason.contains("the driver says") && reason.contains("MPS"), "{reason}");
    said.devices[0].attributes.insert(133, 0);
    assert!(outcome(&said).is_refused());
}

/// A child that hangs, crashes, talks rubbish, or is not there.
#[test]
fn a_child_that_fails_leaves_a_reason_and_no_process() {
    let shell = |script: &str, limit| WriteTest::in_child(Command::new("sh").args(["-c", script]), limit).outcome;
    let short = Duration::from_millis(200);
    let cases = [
        (shell("exec sleep 60", short), "no answer within 0.2 s"),
        (shell("kill -ABRT $$", LONG), "signal: 6"),
        (shell("echo '{\"write_test\":\"refused\"}'", LONG), "without saying"),
        (shell("echo refused", LONG), "without saying"),
        (shell("echo '{\"write_test\":\"refused\",\"write_test_detail\":\"x\"}'; exit 1", LONG), "exit status: 1"),
        (shell("exec cat /dev/zero", LONG), "64 KiB"),
        (WriteTest::in_child(&mut Command::new("/nowhere/vram"), LONG).outcome, "cannot be started"),
    ];
    for (outcome, words) in cases {
        let WriteTest::NotRun(reason) = &outcome else { panic!("{words}: {outcome:?}") };
        assert!(reason.contains(words) && reason.contains("try again"), "{reason}");
        assert_eq!(protection(&Plan::default(), &outcome), Protection::Advisory);
    }
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    assert_eq!(children.trim(), "", "no child is left, not even a dead one");
}
