//! Memory that somebody else allocated, sealed in place by the CUDA device on an emulated driver.
#![allow(unsafe_code, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic, clippy::indexing_slicing)]

mod gpu;
mod support;

use cuda_emulator::{Emulator, Plan};
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
