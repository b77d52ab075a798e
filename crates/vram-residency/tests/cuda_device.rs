//! The CUDA device on an emulated driver that executes the shipped kernels: what it promises, and what it says when the
//! driver or the GPU is not as it should be.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use cuda_emulator::{After, Emulator, Fault, Plan};
use gpu::{manager, memory, options, region, try_manager, values};
use support::{disk_dir, events, id, names};
use vram_residency::device::conformance::{self, Pattern};
use vram_residency::device::{
    CudaDevice, CudaError, CudaOptions, Device, DeviceError, DeviceKind, Export, HashVariant, Protection, Residency,
    Survey,
};
use vram_residency::digest::{BLOCK_BYTES, BlockValue, Digest, merge};
use vram_residency::policy::Violation;
use vram_residency::{Error, Policy, ShardState, VerifyFailure};

#[test]
fn it_passes_the_suite_of_every_device() {
    let _emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let summary = conformance::check(&device).unwrap();
    assert_eq!(summary.regions, 88);
}

/// Around every boundary of chunks, of the tree's levels and of blocks, at each kind of alignment, by either kernel.
#[test]
fn digests_are_the_official_ones_at_every_length_and_alignment() {
    let _emulator = Emulator::lock(Plan::default());
    let mut lengths: Vec<u64> = (0..=70).collect();
    for chunks in [1_u64, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257] {
        lengths.extend([1, 63, 64, 65, 511].map(|over| chunks * 1024 + over));
        lengths.extend([chunks * 1024 - 1, chunks * 1024]);
    }
    lengths.extend([BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 1025]);
    assert!(lengths.len() >= 200);
    let pattern = Pattern { seed: 4 }.bytes(*lengths.iter().max().unwrap());
    let mut shown = 0;
    for variant in HashVariant::ALL {
        let mut options = options();
        options.variant = Some(variant);
        let device = CudaDevice::open(&options).unwrap();
        for (index, length) in lengths.iter().enumerate() {
            let bytes = &pattern[..*length as usize];
            let digest = Digest::of(bytes);
            // A multiple of 16, a multiple of 8 that is none of 16, and one more, past a boundary of 64.
            for lead in [0, 8, 248] {
                // Either kernel does half of the long ones.
                if *length > 70_000 && index % 2 == usize::from(variant == HashVariant::Plain) {
                    continue;
                }
                let (region, sealed) = region(&device, bytes, lead).unwrap();
                assert_eq!(merge(&sealed), Some(digest), "{length} bytes, {lead} behind, {variant}");
                let mut again = values(*length);
                region.hash_blocks(0, &mut again).unwrap();
                assert_eq!(again, sealed, "{length} bytes, {lead} behind, {variant}");
                shown += 1;
            }
        }
    }
    assert!(shown >= 600);
}

/// 64 KiB behind a whole block, so that the block that is named can be the wrong one.
const IMAGE: u64 = 64 << 10;

fn flip_and_find(emulator: &Emulator, bits: impl Iterator<Item = u64>) {
    let device = gpu::device();
    let bytes = Pattern { seed: 7 }.bytes(BLOCK_BYTES + IMAGE);
    let (region, sealed) = region(&device, &bytes, 8).unwrap();
    let mut value = [BlockValue::UNKNOWN];
    for bit in bits {
        let (byte, number) = (8 + BLOCK_BYTES + bit / 8, (bit % 8) as u8);
        assert!(emulator.flip(&memory(1), byte, number));
        region.hash_blocks(1, &mut value).unwrap();
        assert_ne!(value[0], sealed[1], "bit {bit}");
        assert!(emulator.flip(&memory(1), byte, number));
    }
    let mut all = values(bytes.len() as u64);
    region.hash_blocks(0, &mut all).unwrap();
    assert_eq!(all, sealed, "nothing else was changed");
}

#[test]
fn a_flipped_bit_is_found_in_its_block() {
    let emulator = Emulator::lock(Plan::default());
    // Every 4099th (a prime): each bit of a byte, each word of a compression, each chunk is met.
    flip_and_find(&emulator, (0..IMAGE * 8).step_by(4099).chain([0, IMAGE * 8 - 1]));
}

/// All 524,288 of them: `cargo xtask campaign cuda`.
#[test]
#[ignore = "ten minutes, as the kernels are interpreted: cargo xtask campaign cuda"]
fn every_bit_of_64_kib_is_found() {
    let emulator = Emulator::lock(Plan::default());
    flip_and_find(&emulator, 0..IMAGE * 8);
}

#[test]
fn a_shard_in_vram_is_sealed_verified_damaged_repaired_and_released() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    let weights = Pattern { seed: 1 }.bytes(3 * BLOCK_BYTES + 77);
    let shard = manager.seal_model(id("shard"), "model", &weights).unwrap();
    assert_eq!((shard.residency(), shard.protection()), (Residency::Vram, Protection::ReadOnly));
    assert_eq!((shard.device().kind, shard.digest()), (DeviceKind::Cuda, Digest::of(&weights)));
    assert_eq!(manager.verify_sealed(&shard).unwrap().suspected_paged, None);
    manager.verify_record(&shard, &shard.seal_record()).unwrap();
    shard.with_bytes(5..99, |bytes| assert_eq!(bytes, &weights[5..99])).unwrap();

    // A stray bit, and a drill.
    assert!(emulator.flip(&memory(1), 2 * BLOCK_BYTES + 5, 3));
    let Err(Error::SealVerificationFailed { cause, .. }) = manager.verify_sealed(&shard) else { panic!("not found") };
    assert!(matches!(cause, VerifyFailure::Damaged { damaged_blocks: 1, first_block: 2, .. }), "{cause}");
    assert!(matches!(shard.export(), Err(Error::Quarantined { .. })));
    let repaired = manager.repair(&shard, &weights.as_slice()).unwrap().repaired;
    assert_eq!((repaired[0].block, repaired[0].differing_bits), (2, 1));
    assert_eq!((shard.state(), shard.protection()), (ShardState::Verified, Protection::ReadOnly));
    manager.inject_fault(&shard, 9, 1).unwrap();
    assert!(manager.verify_sealed(&shard).is_err());
    manager.repair(&shard, &weights.as_slice()).unwrap();

    let Export::CudaAllocation { bytes, offset, device, .. } = shard.export().unwrap() else { panic!("another kind") };
    assert!(offset == 0 && bytes >= weights.len() as u64 && device == manager.device().uuid);
    manager.release(shard);
    assert_eq!(manager.capacity().used_bytes, 0);
    drop(manager);
    let events = events(dir.path());
    let (opened, library) = (&events[0], cuda_emulator::library().canonicalize().unwrap());
    assert_eq!((&opened["event"], &opened["library"]), (&"DeviceOpened".into(), &library.to_str().unwrap().into()));
    assert_eq!(opened["kernels_sha256"].as_str().unwrap().len(), 64);
    assert!(names(&events).contains(&"VramDeallocated"));
    let report = emulator.report();
    assert!(report.violations.is_empty(), "nothing wrote to read-only memory: {:?}", report.violations);
}

#[test]
fn fresh_memory_of_others_is_never_taken_for_weights_and_staging_is_wiped() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let secret = vec![0xa5; 5 * BLOCK_BYTES as usize];
    let (region, _) = region(&device, &secret, 0).unwrap();
    for nth in 1..100 {
        let staging = cuda_emulator::Memory { call: "cuMemHostAlloc".to_owned(), nth };
        if let Some(bytes) = emulator.read(&staging, 0, 64) {
            assert!(!bytes.starts_with(&[0xa5; 16]), "pinned buffer {nth} still has weights");
        }
    }
    drop(region);
}

#[test]
fn what_is_not_there_is_said_with_the_remedy() {
    let dir = disk_dir();
    let missing = |library: &str| {
        let mut options = options();
        options.library = Some(library.into());
        CudaDevice::open(&options).unwrap_err()
    };
    let none = missing("/nowhere/libcuda.so.1");
    assert!(matches!(none, DeviceError::Cuda(CudaError::NoLibrary { .. })), "{none}");
    let other = missing("libc.so.6");
    assert!(matches!(&other, DeviceError::Cuda(CudaError::MissingSymbol { symbol: "cuInit", .. })), "{other}");
    let older = cuda_emulator::library_without(dir.path(), &["cuMemSetAccess"]).unwrap();
    let old = missing(older.to_str().unwrap());
    let DeviceError::Cuda(CudaError::MissingSymbol { symbol, library }) = &old else { panic!("{old}") };
    assert_eq!((*symbol, library.contains("/")), ("cuMemSetAccess", true));
    for error in [&none, &other, &old] {
        let text = error.to_string();
        assert!(!text.contains('\n') && text.contains(';'), "one sentence, with a remedy: {text}");
    }
}

#[test]
fn a_machine_that_cannot_be_used_says_why() {
    let with = |change: &dyn Fn(&mut Plan), ordinal: u32| {
        let mut plan = Plan::default();
        change(&mut plan);
        let emulator = Emulator::lock(plan);
        let mut options = options();
        options.ordinal = ordinal;
        let answer = CudaDevice::open(&options);
        let Err(DeviceError::Cuda(error)) = answer else { panic!("opened") };
        drop(emulator);
        error
    };
    assert!(matches!(with(&|plan| plan.init_code = 34, 0), CudaError::StubLibrary { .. }));
    assert!(matches!(with(&|plan| plan.driver_version = 11_070, 0), CudaError::OldDriver { .. }));
    assert!(matches!(with(&|plan| plan.devices.clear(), 0), CudaError::NoDevice { .. }));
    assert!(matches!(with(&|_| (), 1), CudaError::NoSuchDevice { ordinal: 1, count: 1 }));
    let exclusive = |plan: &mut Plan| (plan.devices[0].compute_mode, plan.devices[0].occupied) = (3, true);
    assert!(matches!(with(&exclusive, 0), CudaError::ExclusiveProcess { ordinal: 0 }));
    assert!(matches!(with(&|plan| plan.devices[0].compute_mode = 2, 0), CudaError::Prohibited { ordinal: 0 }));
    assert!(matches!(with(&|plan| plan.devices[0].virtual_memory = false, 0), CudaError::Unsupported { .. }));
    for code in [802, 803, 999] {
        let refused = with(&|plan| plan.init_code = code, 0);
        let CudaError::NotStarted { name, .. } = &refused else { panic!("{refused}") };
        assert!(name.contains("CUDA_ERROR") && refused.to_string().contains("fabricmanager"), "{refused}");
        assert_eq!((refused.code(), refused.is_lost()), (i32::try_from(code).ok(), false));
    }
    // Which of the reasons that NVIDIA names for 46 it is, the mode tells.
    let unavailable = with(&|plan| plan.faults.push(Fault::fail_once("cuDevicePrimaryCtxRetain", 1, 46)), 0);
    assert!(matches!(&unavailable, CudaError::Refused { code: 46, .. }), "{unavailable}");
    let full = with(&|plan| plan.devices[0].taken = plan.devices[0].memory, 0);
    assert!(matches!(full, CudaError::OutOfMemory { .. }), "{full}");
}

#[test]
fn a_survey_names_the_devices_and_the_roomiest_of_them() {
    let mut plan = Plan::with_devices(3);
    plan.devices[0].taken = 3 << 30;
    plan.devices[1].name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned();
    plan.devices[2].integrated = true;
    let _emulator = Emulator::lock(plan);
    let survey = Survey::take(Some(&cuda_emulator::library())).unwrap();
    assert_eq!((survey.devices.len(), survey.driver.as_str()), (3, "12.2"));
    assert_eq!(survey.roomiest().map(|device| device.ordinal), Some(1));
    assert!(survey.devices[1].name.contains("MIG") && survey.devices[2].integrated);
}

/// What the driver states of sealed memory, and must not, is a broken rule: at the seal and at every full verification.
#[test]
fn memory_that_is_not_the_gpus_own_is_refused() {
    let attribute = |attribute, value, after: After| Fault::Attribute { memory: memory(1), attribute, value, after };
    let moved =
        |after| Fault::Properties { memory: memory(1), allocation_type: 2, location_type: 1, location: 0, after };
    let lies: [(&dyn Fn(After) -> Fault, &str); 6] = [
        (&|after| attribute(2, 1, after), "not a GPU's memory"),
        (&|after| attribute(8, 1, after), "managed"),
        (&|after| attribute(9, 1, after), "another GPU"),
        (&|after| attribute(4, 4096, after), "processor can address"),
        (&|after| attribute(13, 0, after), "not mapped"),
        (&moved, "not pinned"),
    ];
    for (lie, words) in lies {
        let emulator = Emulator::lock(Plan::default().fault(lie(After::now())));
        let dir = disk_dir();
        let manager = manager(dir.path());
        let refused = manager.seal_model(id("shard"), "model", b"weights").unwrap_err();
        assert!(matches!(&refused, Error::Policy { violation: Violation::NotResident { .. }, .. }), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
        assert_eq!((manager.list().len(), manager.capacity().used_bytes), (0, 0));
        drop(manager);
        assert!(names(&events(dir.path())).contains(&"PolicyViolation"));

        emulator.configure(&Plan::default());
        let dir = disk_dir();
        let manager = gpu::manager(dir.path());
        let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
        emulator.add_faults(vec![lie(After::now())]);
        let failed = manager.verify_sealed(&shard).unwrap_err();
        let foreign = matches!(&failed, Error::SealVerificationFailed { cause: VerifyFailure::Foreign { .. }, .. });
        assert!(foreign && failed.to_string().contains(words), "{failed}");
        assert_eq!(shard.state(), ShardState::Quarantined);
        drop((shard, manager));
        let events = events(dir.path());
        let violation = events.iter().find(|event| event["event"] == "PolicyViolation").unwrap();
        assert_eq!((&violation["policy"], &violation["action"]), (&"residency".into(), &"quarantined".into()));
    }
}

#[test]
fn backing_that_was_swapped_and_an_integrated_gpu_are_refused() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    let (memory, after) = (memory(1), After::now());
    emulator.add_faults(vec![Fault::Attribute { memory, attribute: 20, value: 1, after }]);
    let failed = manager.verify_sealed(&shard).unwrap_err();
    assert!(failed.to_string().contains("other memory than when it was sealed"), "{failed}");
    drop((shard, manager));

    let mut plan = Plan::default();
    plan.devices[0].integrated = true;
    emulator.configure(&plan);
    let dir = disk_dir();
    let manager = gpu::manager(dir.path());
    let refused = manager.seal_model(id("shard"), "model", b"weights").unwrap_err();
    assert!(refused.to_string().contains("shares the processor's memory"), "{refused}");
}

/// The driver says that it made memory read-only, and the flag does not read back: that is called advisory.
#[test]
fn protection_that_does_not_read_back_is_never_called_read_only() {
    let faults = [
        Fault::SetAccessLies { readings_too: false },
        Fault::fail_once("cuMemSetAccess", 2, 801),
        Fault::Attribute { memory: memory(1), attribute: 16, value: 3, after: After::now() },
    ];
    for fault in faults {
        let _emulator = Emulator::lock(Plan::default().fault(fault));
        let device = gpu::device();
        let (region, sealed) = region(&device, b"weights", 0).unwrap();
        assert_eq!(region.protection(), Protection::Advisory);
        assert_eq!(region.check_memory().unwrap().protection, Protection::Advisory);
        assert!(region.export().unwrap().is_writable(), "who has it can write, as with any other");
        region.rewrite(0, b"W").unwrap();
        region.rewrite(0, b"w").unwrap();
        let mut again = values(7);
        region.hash_blocks(0, &mut again).unwrap();
        assert_eq!(again, sealed);
        drop((region, device));
        let dir = disk_dir();
        let mut policy = Policy::default();
        policy.require_read_only = true;
        _emulator.add_faults(vec![Fault::SetAccessLies { readings_too: false }]);
        let manager = try_manager(dir.path(), policy).unwrap();
        assert!(matches!(manager.seal_model(id("a"), "model", b"x"), Err(Error::Policy { .. })));
    }
}

/// A repair opens the pages that it writes, or the whole region where the driver takes only that. Either way the bytes are
/// right, nothing stays open, and no byte passed through memory that nobody wipes.
#[test]
fn a_repair_writes_closes_and_leaves_no_copy_whatever_parts_the_driver_takes() {
    const GRANULE: u64 = 2 << 20;
    for (parts, calls) in [(true, 2), (false, 3)] {
        let mut plan = Plan::default();
        plan.devices[0].access_in_parts = parts;
        let emulator = Emulator::lock(plan);
        let device = gpu::device();
        let mut bytes = Pattern { seed: 8 }.bytes(3 * GRANULE - 4096);
        let (region, _) = region(&device, &bytes, 8).unwrap();
        let before = emulator.report();
        // Around the edge of a granule, and more than is copied at once.
        let (at, new) = (GRANULE - (1 << 20) - 100, Pattern { seed: 9 }.bytes((1 << 20) + 300));
        region.rewrite(at, &new).unwrap();
        let after = emulator.report();
        assert_eq!(after.calls_of("cuMemSetAccess") - before.calls_of("cuMemSetAccess"), calls, "parts: {parts}");
        assert_eq!(region.protection(), Protection::ReadOnly);
        let start = usize::try_from(at).unwrap();
        bytes[start..start + new.len()].copy_from_slice(&new);
        region.view(0..bytes.len() as u64, &mut |seen| assert!(seen == bytes, "not as written")).unwrap();
        assert_eq!(emulator.report().pageable_bytes, before.pageable_bytes);
        assert!(region.check_memory().unwrap().foreign.is_none());
        drop((region, device));
        assert_eq!(emulator.report().complaint(), None);
    }
}

/// Some sandboxes let a process have memory, and no descriptors of it.
#[test]
fn memory_that_cannot_be_handed_out_is_memory_all_the_same() {
    for code in [800, 801] {
        let fault = |call| Fault::fail_once(call, 1, code);
        let plan = Plan::default().fault(fault("cuMemGetAllocationGranularity")).fault(fault("cuMemCreate"));
        let _emulator = Emulator::lock(plan);
        let device = gpu::device();
        let (region, _) = region(&device, b"weights", 0).unwrap();
        assert_eq!(region.protection(), Protection::ReadOnly);
        assert!(region.check_memory().unwrap().foreign.is_none());
        let refused = region.export().unwrap_err();
        assert!(refused.to_string().contains("exports none"), "{refused}");
    }
}

#[test]
fn protection_that_was_lifted_fails_the_next_verification() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    let shard = manager.seal_model(id("shard"), "model", b"weights").unwrap();
    let (memory, after) = (memory(1), After::now());
    emulator.add_faults(vec![Fault::Attribute { memory, attribute: 16, value: 3, after }]);
    let failed = manager.verify_sealed(&shard).unwrap_err();
    assert!(matches!(failed, Error::SealVerificationFailed { cause: VerifyFailure::Memory, .. }), "{failed}");
}

/// The GPU is lost at some call of a verification: the shard is not called verified, then or later.
#[test]
fn after_a_lost_gpu_nothing_is_verified() {
    for (code, call) in
        [(214, "cuEventSynchronize"), (719, "cuLaunchKernel"), (999, "cuMemcpyDtoHAsync_v2"), (700, "*")]
    {
        let mut emulator = Emulator::lock(Plan::default());
        // What a dead device refuses to take back is the driver's.
        emulator.leaves();
        let dir = disk_dir();
        let manager = manager(dir.path());
        let shard = manager.seal_model(id("shard"), "model", &[5; 5 << 20]).unwrap();
        let beside = manager.seal_model(id("beside"), "model", &[6; 1 << 20]).unwrap();
        manager.verify_sealed(&shard).unwrap();
        assert_eq!((shard.state(), beside.state()), (ShardState::Verified, ShardState::Sealed));
        emulator.add_faults(vec![Fault::lost(call, 2, code)]);
        let lost = manager.verify_sealed(&shard).unwrap_err();
        let Error::Device(DeviceError::Cuda(error)) = &lost else { panic!("{lost}") };
        assert!(error.is_lost() && error.code() == Some(code as i32), "{error}");
        assert!(error.to_string().contains("Xid") && !lost.is_retriable());
        // Of what nobody looked at since, nothing more is known.
        assert_eq!(beside.state(), ShardState::Unverified);
        assert!(beside.ensure_fresh(std::time::Duration::MAX).is_err());
        for _ in 0..3 {
            assert_eq!(shard.state(), ShardState::Unverified);
            assert!(matches!(manager.verify_sealed(&shard), Err(Error::Device(DeviceError::Cuda(_)))));
        }
        let before = emulator.report();
        let (calls, launches) = (before.calls.values().sum::<u64>(), before.calls_of("cuLaunchKernel"));
        emulator.clear_faults();
        assert!(manager.verify_sealed(&shard).is_err(), "a dead context is not asked again");
        assert_eq!(emulator.report().calls_of("cuLaunchKernel"), launches);
        assert!(emulator.report().calls.values().sum::<u64>() <= calls + 8, "words for the error, and no work");
        assert!(manager.seal_model(id("other"), "model", b"x").is_err());
        drop((shard, beside, manager));
        assert!(emulator.report().leaks().is_empty(), "{:?}", emulator.report().leaks());
        let events = events(dir.path());
        let failed = events.iter().find(|event| event["event"] == "SealVerificationFailed").unwrap();
        assert_eq!(failed["action"], "unverified");
    }
}

/// A kernel that dies while it runs, seen only at the next wait.
#[test]
fn an_asynchronous_failure_is_found() {
    let mut emulator = Emulator::lock(Plan::default().fault(Fault::Asynchronous { nth: 5, code: 716 }));
    emulator.leaves();
    let dir = disk_dir();
    let manager = manager(dir.path());
    let answer = manager.seal_model(id("shard"), "model", &[5; 9 << 20]);
    assert!(matches!(&answer, Err(Error::Device(DeviceError::Cuda(error))) if error.is_lost()), "{answer:?}");
    assert_eq!((manager.list().len(), manager.capacity().used_bytes), (0, 0));
}

#[test]
fn launches_that_are_far_slower_than_the_others_are_suspected() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let manager = manager(dir.path());
    let shard = manager.seal_model(id("shard"), "model", &[1; 12 << 20]).unwrap();
    assert_eq!(manager.verify_sealed(&shard).unwrap().suspected_paged, None);
    // Launches have two blocks here: blocks 6 and 7, which the bus brings.
    let (from, to) = (6 * BLOCK_BYTES, 8 * BLOCK_BYTES);
    emulator.add_faults(vec![Fault::Slow { memory: memory(1), from, to, factor: 60.0 }]);
    let found = manager.verify_sealed(&shard).unwrap().suspected_paged.unwrap();
    assert_eq!((found.first_block, found.blocks), (6, 2));
    assert_eq!(shard.state(), ShardState::Verified, "a suspicion is no failure");
    emulator.clear_faults();
    assert_eq!(manager.verify_sealed(&shard).unwrap().suspected_paged, None, "what is fast again is not suspected");
    drop((shard, manager));
    let events = events(dir.path());
    let verified: Vec<_> = events.iter().filter(|event| event["event"] == "SealVerified").collect();
    assert_eq!(
        (&verified[1]["suspected_paged"]["first_block"], &verified[1]["suspected_paged"]["blocks"]),
        (&6.into(), &2.into())
    );
    assert!(verified[0].get("suspected_paged").is_none());
}

#[test]
fn reservations_leave_the_headroom_and_never_overlap() {
    let mut plan = Plan::default();
    plan.devices[0].memory = 64 << 20;
    let _emulator = Emulator::lock(plan);
    let mut options = options();
    options.headroom_bytes = Some(8 << 20);
    let device = CudaDevice::open(&options).unwrap();
    let total = device.capacity().total_bytes;
    assert!((40 << 20..=56 << 20).contains(&total), "{total}");
    let big = device.allocate(total - (8 << 20), 0).unwrap();
    let Err(DeviceError::InsufficientMemory { device: kind, available_bytes, .. }) = device.allocate(16 << 20, 0)
    else {
        panic!("more was promised than there is")
    };
    assert!(&*kind == "cuda:0" && available_bytes <= 8 << 20);
    drop(big);
    assert_eq!(device.capacity().used_bytes, 0);
    let taken = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| device.allocate(total / 2, 0).ok())).collect();
        asked.into_iter().filter_map(|thread| thread.join().unwrap()).count()
    });
    assert!(taken <= 2, "{taken} halves were promised at once");
}

/// The option that fixes the kernel decides; else either may be faster on the device.
#[test]
fn the_kernel_is_chosen_by_measurement_or_by_the_option() {
    let emulator = Emulator::lock(Plan::default());
    let mut options: CudaOptions = options();
    for variant in HashVariant::ALL {
        options.variant = Some(variant);
        assert_eq!(CudaDevice::open(&options).unwrap().facts().variant, variant);
        assert_eq!(emulator.report().launches.len(), 0, "nothing is measured");
    }
    options.variant = None;
    let device = CudaDevice::open(&options).unwrap();
    let launches = emulator.report().launches;
    assert_eq!(launches.get("vram_blake3_chunks_plain"), launches.get("vram_blake3_chunks_mad"));
    let (region, sealed) = region(&device, &[3; 5000], 0).unwrap();
    assert_eq!((region.bytes(), merge(&sealed)), (5000, Some(Digest::of(&[3; 5000]))));
}
