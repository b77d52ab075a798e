//! Which GPU it is: MIG instances among whole ones, and errors that name theirs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod gpu;
mod support;

use cuda_emulator::{Emulator, Fault, Plan};
use gpu::{region, values};
use support::disk_dir;
use vram_residency::device::{CudaDevice, Device, DeviceUuid, Mig, Survey};

/// A MIG instance has a UUID of its own, which is the one that is recorded, and the driver states of which GPU it is.
#[test]
fn a_mig_instance_is_known_by_the_drivers_two_uuids_and_else_by_its_name() {
    let plan = Plan::with_mig_instances(2);
    let parent = DeviceUuid(plan.devices[1].mig_of.unwrap());
    let own = DeviceUuid(plan.devices[1].uuid);
    let mut unnamed = plan.clone();
    unnamed.devices[1].name = "NVIDIA H100".to_owned();
    let mut named = plan.clone();
    named.devices[1].mig_of = None;
    let mut migrating = Plan::with_devices(2);
    migrating.devices[1].name = "MIGRATION 9000".to_owned();
    let cases = [(plan, Mig::Of(parent)), (unnamed, Mig::Of(parent)), (named, Mig::ByName), (migrating, Mig::No)];
    for (plan, mig) in cases {
        let _emulator = Emulator::lock(plan);
        let survey = Survey::take(Some(&cuda_emulator::library())).unwrap();
        assert_eq!((survey.devices[1].uuid, survey.devices[1].mig), (own, mig));
        let mut options = gpu::options();
        options.ordinal = 1;
        let device = CudaDevice::open(&options).unwrap();
        assert_eq!((device.info().uuid, device.facts().mig), (own, mig));
    }
    // A driver that has only the newer function.
    let dir = disk_dir();
    let library = cuda_emulator::library_without(dir.path(), &["cuDeviceGetUuid"]).unwrap();
    let emulator = Emulator::attach(&library).unwrap();
    emulator.configure(&Plan::with_mig_instances(2));
    assert_eq!(Survey::take(Some(&library)).unwrap().devices[1].mig, Mig::ByName);
}

/// Whatever the driver refuses on one of several GPUs: the error says on which.
#[test]
fn an_error_names_its_gpu() {
    let mut emulator = Emulator::lock(Plan::with_devices(2));
    // A lost device takes nothing back.
    emulator.leaves();
    let mut options = gpu::options();
    options.ordinal = 1;
    let device = CudaDevice::open(&options).unwrap();
    let calls = ["cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemGetInfo_v2"];
    let fails = |call: &str, code| {
        emulator.add_faults(vec![Fault::fail_forever(call, 1, code)]);
        let error = device.allocate(8, 0).map(drop).unwrap_err().to_string();
        emulator.clear_faults();
        error
    };
    for call in calls {
        assert!(fails(call, 304).contains("cuda:1"), "{call}");
    }
    assert!(fails("cuMemCreate", 2).starts_with("cuda:1 has "), "out of memory");
    assert!(device.allocate(1 << 60, 0).map(drop).unwrap_err().to_string().starts_with("cuda:1 has "));
    let (region, _) = region(&device, b"weights", 0).unwrap();
    emulator.add_faults(vec![Fault::fail_forever("cuMemExportToShareableHandle", 1, 304)]);
    assert!(region.export().unwrap_err().to_string().contains("cuda:1"));
    emulator.clear_faults();
    emulator.add_faults(vec![Fault::lost("cuLaunchKernel", 1, 719)]);
    let error = region.hash_blocks(0, &mut values(7)).unwrap_err().to_string();
    assert!(error.starts_with("cuda:1 was lost"), "{error}");
}
