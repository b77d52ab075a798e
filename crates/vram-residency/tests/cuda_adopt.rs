//! Memory that somebody else allocated, sealed in place by the CUDA device on an emulated driver.
#![allow(unsafe_code, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use cuda_emulator::{Emulator, Fault, Plan};
use support::{disk_dir, id};
use vram_residency::device::conformance::Pattern;
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::{BLOCK_BYTES, Digest};
use vram_residency::{Error, Policy, VerifyFailure};

/// Memory that somebody else allocated in the same process, as a framework would.
#[test]
fn memory_of_others_is_sealed_in_place() {
    let emulator = Emulator::lock(Plan::default());
    let dir = disk_dir();
    let device = std::sync::Arc::new(gpu::device());
    let weights = Pattern { seed: 3 }.bytes(BLOCK_BYTES + 4096);
    let foreign = Foreign::allocate(&weights);
    // SAFETY: the memory stays, and nobody writes to it, until the shard below is dropped.
    assert!(unsafe { device.adopt(foreign.pointer + 4, 8) }.is_err(), "not a multiple of 8");
    // SAFETY: as above.
    let region = unsafe { device.adopt(foreign.pointer, weights.len() as u64) }.unwrap();
    let trail = vram_residency::audit::AuditTrail::open_with(dir.path(), support::small_log()).unwrap();
    let manager = vram_residency::VramManager::new(vram_residency::ManagerOptions {
        worker_id: support::WORKER.into(),
        device,
        key: support::key(),
        trail,
        policy: Policy::default(),
    })
    .unwrap();
    let shard = manager.seal_region(id("adopted"), "model", region).unwrap();
    assert_eq!((shard.residency(), shard.protection()), (Residency::Vram, Protection::Advisory));
    assert_eq!(shard.digest(), Digest::of(&weights));
    manager.verify_sealed(&shard).unwrap();
    assert!(shard.export().is_err());
    assert!(emulator.flip(&foreign.memory(), BLOCK_BYTES + 9, 0));
    let failed = manager.verify_sealed(&shard).unwrap_err();
    assert!(matches!(
        failed,
        Error::SealVerificationFailed { cause: VerifyFailure::Damaged { first_block: 1, .. }, .. }
    ));
    manager.repair(&shard, &weights.as_slice()).unwrap();
    assert_eq!(manager.capacity().used_bytes, 0, "it counts against nothing");
    drop((shard, manager));
    drop(foreign);
}

/// Memory of `cuMemAlloc`: some drivers say of it that its handle is nobody's, instead of that there is none.
#[test]
fn memory_whose_handle_nobody_is_given_is_verified_too() {
    let emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let weights = Pattern { seed: 4 }.bytes(4096);
    let foreign = Foreign::allocate(&weights);
    // SAFETY: the memory stays, and nobody writes to it, until the region below is dropped.
    let region = unsafe { device.adopt(foreign.pointer, 4096) }.unwrap();
    emulator.add_faults(vec![Fault::fail_forever("cuMemRetainAllocationHandle", 1, 800)]);
    assert_eq!(region.check_memory().unwrap().foreign, None);
    drop((region, device, foreign));
}

/// Frameworks map several allocations behind each other and call it one piece of memory.
#[test]
fn several_allocations_behind_each_other_are_one_region_and_a_change_of_either_is_found() {
    let _emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let foreign = Foreign::allocate(&[0; 8]);
    let range = foreign.get("cuMemAddressReserve", &[2 * GRANULE, 0, 0, 0]);
    let mut handles = [0, GRANULE].map(|at| foreign.map(range + at));
    // SAFETY: the memory stays, and nobody writes to it, until the region below is dropped.
    let region = unsafe { device.adopt(range, 2 * GRANULE) }.unwrap();
    assert_eq!(region.check_memory().unwrap().foreign, None);
    for (index, at) in [(1, GRANULE), (0, 0)] {
        // Another allocation takes the place of this one.
        let old = std::mem::replace(&mut handles[index], 0);
        foreign.ok("cuMemUnmap", &[range + at, GRANULE]);
        handles[index] = foreign.map(range + at);
        foreign.ok("cuMemRelease", &[old]);
        let found = region.check_memory().unwrap().foreign;
        assert_eq!(found, Some(vram_residency::device::Foreign::BackingChanged), "part {index}");
    }
    drop((region, device));
    foreign.ok("cuMemUnmap", &[range, 2 * GRANULE]);
    handles.iter().for_each(|handle| foreign.ok("cuMemRelease", &[*handle]));
    foreign.ok("cuMemAddressFree", &[range, 2 * GRANULE]);
}

/// A framework's memory that its mapping makes read-only may be mapped elsewhere as well: where the driver's answers leave that
/// open, it is called advisory.
#[test]
fn memory_of_others_is_called_read_only_only_where_no_descriptor_of_it_can_be_made() {
    let _emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let foreign = Foreign::allocate(&[0; 8]);
    for (handle_types, expected) in [(0, Protection::ReadOnly), (1, Protection::Advisory)] {
        let at = foreign.get("cuMemAddressReserve", &[GRANULE, 0, 0, 0]);
        let handle = foreign.map_with(at, handle_types);
        let read = [1_u32, 0, 1];
        foreign.ok("cuMemSetAccess", &[at, GRANULE, read.as_ptr() as u64, 1]);
        // SAFETY: the memory stays, and nobody writes to it, until the region below is dropped.
        let region = unsafe { device.adopt(at, GRANULE) }.unwrap();
        assert_eq!(region.protection(), expected, "handle types {handle_types}");
        assert_eq!(region.check_memory().unwrap().protection, expected);
        assert!(region.rewrite(0, b"W").is_err(), "whatever it is called, it is not ours to open");
        drop(region);
        foreign.ok("cuMemUnmap", &[at, GRANULE]);
        foreign.ok("cuMemRelease", &[handle]);
        foreign.ok("cuMemAddressFree", &[at, GRANULE]);
    }
    drop((device, foreign));
}

/// Of several allocations behind each other the one in the middle counts as well, and none of them is called read-only that is not.
#[test]
fn a_middle_piece_that_can_be_written_or_shared_makes_the_whole_advisory() {
    let _emulator = Emulator::lock(Plan::default());
    let device = gpu::device();
    let foreign = Foreign::allocate(&[0; 8]);
    // What the piece in the middle is: which descriptors can be made of it, and what its mapping allows.
    for (handle_types, access, expected) in
        [(0, 1, Protection::ReadOnly), (1, 1, Protection::Advisory), (0, 3, Protection::Advisory)]
    {
        let range = foreign.get("cuMemAddressReserve", &[3 * GRANULE, 0, 0, 0]);
        let handles = [(0, 0, 1), (GRANULE, handle_types, access), (2 * GRANULE, 0, 1)].map(|(at, types, flags)| {
            let handle = foreign.map_with(range + at, types);
            let access = [1_u32, 0, flags];
            foreign.ok("cuMemSetAccess", &[range + at, GRANULE, access.as_ptr() as u64, 1]);
            handle
        });
        // It begins and ends inside of a piece, as a tensor of a framework's does.
        for (start, bytes) in [(0, 3 * GRANULE), (GRANULE - 8, GRANULE + 16), (8, 2 * GRANULE)] {
            // SAFETY: the memory stays, and nobody writes to it, until the region below is dropped.
            let region = unsafe { device.adopt(range + start, bytes) }.unwrap();
            assert_eq!(region.protection(), expected, "{handle_types} {access} {start}");
            let checked = region.check_memory().unwrap();
            assert_eq!((checked.foreign, checked.protection), (None, expected), "{handle_types} {access} {start}");
        }
        foreign.ok("cuMemUnmap", &[range, 3 * GRANULE]);
        handles.iter().for_each(|handle| foreign.ok("cuMemRelease", &[*handle]));
        foreign.ok("cuMemAddressFree", &[range, 3 * GRANULE]);
    }
    drop((device, foreign));
}

const GRANULE: u64 = 2 << 20;

/// Memory of `cuMemAlloc`, made with the driver's own calls.
struct Foreign {
    library: libloading::Library,
    pointer: u64,
    /// Which call made it.
    nth: u64,
}

impl Foreign {
    fn allocate(bytes: &[u8]) -> Self {
        type Retain = unsafe extern "C" fn(*mut *mut (), i32) -> i32;
        type Current = unsafe extern "C" fn(*mut ()) -> i32;
        type Alloc = unsafe extern "C" fn(*mut u64, usize) -> i32;
        type Copy = unsafe extern "C" fn(u64, *const u8, usize) -> i32;
        let (mut context, mut pointer) = (std::ptr::null_mut(), 0);
        // SAFETY: the emulator's library, and its functions as `cuda.h` has them.
        #[allow(clippy::multiple_unsafe_ops_per_block)]
        let library = unsafe {
            let library = libloading::Library::new(cuda_emulator::library()).unwrap();
            assert_eq!(library.get::<Retain>("cuDevicePrimaryCtxRetain").unwrap()(&raw mut context, 0), 0);
            assert_eq!(library.get::<Current>("cuCtxPushCurrent_v2").unwrap()(context), 0);
            assert_eq!(library.get::<Alloc>("cuMemAlloc_v2").unwrap()(&raw mut pointer, bytes.len()), 0);
            assert_eq!(library.get::<Copy>("cuMemcpyHtoD_v2").unwrap()(pointer, bytes.as_ptr(), bytes.len()), 0);
            library
        };
        let calls = Emulator::attach(&cuda_emulator::library()).unwrap().report();
        Self { library, pointer, nth: calls.calls_of("cuMemAlloc_v2") }
    }

    /// Any call whose arguments are words.
    fn ok(&self, name: &str, arguments: &[u64]) {
        type Call = unsafe extern "C" fn(u64, u64, u64, u64, u64) -> i32;
        let mut words = [0; 5];
        words[..arguments.len()].copy_from_slice(arguments);
        let [a, b, c, d, e] = words;
        // SAFETY: the emulator's library; a call ignores the registers that it takes no arguments from.
        #[allow(clippy::multiple_unsafe_ops_per_block)]
        let answer = unsafe { self.library.get::<Call>(name).unwrap()(a, b, c, d, e) };
        assert_eq!(answer, 0, "{name}");
    }

    /// What a call writes to where its first argument points.
    fn get(&self, name: &str, arguments: &[u64]) -> u64 {
        let mut value = 0_u64;
        self.ok(name, &[&[(&raw mut value) as u64], arguments].concat());
        value
    }

    /// A fresh allocation of one granule, mapped there, readable and writable.
    fn map(&self, at: u64) -> u64 {
        self.map_with(at, 0)
    }

    fn map_with(&self, at: u64, handle_types: u32) -> u64 {
        // Pinned, on device 0; readable and writable by device 0.
        let (properties, access) = ([1_u32, handle_types, 1, 0, 0, 0, 0, 0], [1_u32, 0, 3]);
        let handle = self.get("cuMemCreate", &[GRANULE, properties.as_ptr() as u64, 0]);
        self.ok("cuMemMap", &[at, GRANULE, 0, handle, 0]);
        self.ok("cuMemSetAccess", &[at, GRANULE, access.as_ptr() as u64, 1]);
        handle
    }

    fn memory(&self) -> cuda_emulator::Memory {
        cuda_emulator::Memory::allocated(self.nth)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        type Free = unsafe extern "C" fn(u64) -> i32;
        type Release = unsafe extern "C" fn(i32) -> i32;
        // SAFETY: as above; the region that used it is gone.
        #[allow(clippy::multiple_unsafe_ops_per_block)]
        unsafe {
            assert_eq!(self.library.get::<Free>("cuMemFree_v2").unwrap()(self.pointer), 0);
            assert_eq!(self.library.get::<Release>("cuDevicePrimaryCtxRelease_v2").unwrap()(0), 0);
        }
    }
}
