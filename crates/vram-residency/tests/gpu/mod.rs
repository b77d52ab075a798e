//! What the tests of the CUDA device share: the device on an emulated driver.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod faults;

use std::path::Path;
use std::sync::Arc;

use cuda_emulator::{Memory, Plan};
use vram_residency::audit::AuditTrail;
use vram_residency::device::{
    CudaDevice, CudaOptions, Device, DeviceError, DeviceUuid, HashVariant, Region, StagedRegion, Tested, WriteTest,
};
use vram_residency::digest::{BlockValue, block_count};
use vram_residency::{ManagerOptions, Policy, VramManager};

use super::support::{WORKER, key, small_log};

/// Few buffers and short launches, so that small regions show what large ones do.
pub fn options() -> CudaOptions {
    let mut options = CudaOptions::default();
    options.library = Some(cuda_emulator::library());
    options.threads = Some(2);
    options.launch_blocks = Some(2);
    options.variant = Some(HashVariant::Plain);
    // That the emulated GPU refuses it, and what comes of one that does not, is for tests/cuda_write_test.rs.
    let device = Some(DeviceUuid(Plan::default().devices[0].uuid));
    options.write_test = Tested { device, outcome: WriteTest::Refused("as the emulated GPU does".into()) };
    options
}

pub fn device() -> CudaDevice {
    CudaDevice::open(&options()).unwrap()
}

/// A manager on the emulated GPU, with its log in `dir`.
pub fn try_manager(dir: &Path, policy: Policy) -> Result<VramManager, vram_residency::Error> {
    try_manager_with(AuditTrail::open_with(dir, small_log()).unwrap(), policy)
}

/// The same with a log of the test's own.
pub fn try_manager_with(trail: AuditTrail, policy: Policy) -> Result<VramManager, vram_residency::Error> {
    let device: Arc<dyn Device> = Arc::new(CudaDevice::open(&options())?);
    VramManager::new(ManagerOptions { worker_id: WORKER.into(), device, key: key(), trail, policy })
}

pub fn manager(dir: &Path) -> VramManager {
    try_manager(dir, Policy::default()).unwrap()
}

/// Values for every block of a region.
pub fn values(bytes: u64) -> Vec<BlockValue> {
    vec![BlockValue::UNKNOWN; usize::try_from(block_count(bytes)).unwrap()]
}

/// A sealed region with these bytes, and the values of its blocks.
pub fn region(device: &CudaDevice, bytes: &[u8], lead: u8) -> Result<(Box<dyn Region>, Vec<BlockValue>), DeviceError> {
    let mut values = values(bytes.len() as u64);
    let mut staged: Box<dyn StagedRegion> = device.allocate(bytes.len() as u64, lead)?;
    staged.fill(&bytes, &mut values)?;
    Ok((staged.protect()?, values))
}

/// The memory of the `nth` region, from 1.
pub fn memory(nth: u64) -> Memory {
    Memory::created(nth)
}
