//! A region of a GPU's memory that another process handed out, mapped in this one: for reading only, whatever its descriptor
//! would allow.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use super::driver::{Access, Address, Context, CudaError, Driver, Mapped, Ordinal};
use super::kernels::{HashVariant, Kernels};
use super::lane::Lanes;
use super::residency;
use crate::device::{DeviceError, DeviceUuid, check_range};
use crate::digest::{BlockValue, Digest, block_count, merge};

/// Blocks that one launch hashes: scratch memory of 2 MiB, twice, from the first time that bytes are read or hashed on.
const LAUNCH_BLOCKS: usize = 64;

/// What is to be mapped, as the other process says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    /// Which GPU it is on.
    pub(crate) device: DeviceUuid,
    /// The allocation's length.
    pub(crate) allocation_bytes: u64,
    /// Where the region's first byte is in it.
    pub(crate) offset: u64,
    /// The region's length.
    pub(crate) bytes: u64,
}

/// A driver of this process that shows GPUs: without one nothing is asked for.
#[derive(Debug)]
pub(crate) struct Importer {
    driver: Arc<Driver>,
}

impl Importer {
    /// Loads the driver.
    ///
    /// # Errors
    /// Why it cannot be, or that it shows no GPU.
    pub(crate) fn new() -> Result<Self, CudaError> {
        let driver = Arc::new(Driver::load(None)?);
        driver.device(0)?;
        Ok(Self { driver })
    }
}

/// A region of another process. Dropping it unmaps it.
#[derive(Debug)]
pub(crate) struct ImportedRegion {
    // Dropped in this order: the context last.
    mapped: Mapped,
    offered: Offered,
    /// Both made when they are first needed: most clients only want the address.
    lanes: OnceLock<Lanes>,
    kernels: OnceLock<Kernels>,
    context: Arc<Context>,
}

impl ImportedRegion {
    /// Maps a region in the primary context of its GPU, which this process may number otherwise. The descriptor is not needed
    /// afterwards.
    ///
    /// # Errors
    /// [`CudaError::NoSuchUuid`] where this process is shown no such GPU, [`CudaError::Offer`] where what is offered does not
    /// fit together, [`CudaError::NotReadOnly`] where the driver does not map it for reading only, and whatever the driver
    /// refuses. Nothing stays mapped then.
    pub(crate) fn open(importer: Importer, descriptor: &OwnedFd, offered: Offered) -> Result<Self, CudaError> {
        let end = offered.offset.checked_add(offered.bytes);
        if !offered.offset.is_multiple_of(8) || end.is_none_or(|end| end > offered.allocation_bytes) {
            return Err(CudaError::Offer);
        }
        let Importer { driver } = importer;
        let device = find(&driver, offered.device)?;
        let context = Context::open(driver, device)?;
        let mapped = Mapped::import(&context, descriptor, offered.allocation_bytes, Access::Read)?;
        let region = Self { mapped, offered, lanes: OnceLock::new(), kernels: OnceLock::new(), context };
        region.is_read_only()?;
        Ok(region)
    }

    /// Where the region's first byte is, in the primary context's address space.
    fn start(&self) -> Address {
        self.mapped.start().plus(self.offered.offset)
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.start().0
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.offered.bytes
    }

    /// The GPU's number in this process.
    pub(crate) fn ordinal(&self) -> i32 {
        self.context.device()
    }

    /// Copies bytes to main memory.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let range = check_range(offset, to.len(), self.bytes())?;
        // SAFETY: inside the region, which is mapped and readable for as long as `self` lives.
        Ok(unsafe { self.lanes()?.take().read(self.start().plus(range.start), to) }?)
    }

    /// BLAKE3 of the whole region, hashed where it is.
    pub(crate) fn digest(&self) -> Result<Digest, CudaError> {
        let (lanes, kernels) = (self.lanes()?, self.kernels()?);
        let mut values = vec![BlockValue::UNKNOWN; usize::try_from(block_count(self.bytes())).unwrap_or(usize::MAX)];
        let region = (self.start(), self.bytes());
        // SAFETY: as above.
        let hashed = unsafe { lanes.take().hash(kernels, HashVariant::Plain, region, &mut values) };
        hashed.map_err(|error| self.context.told(error))?;
        Ok(merge(&values).unwrap_or(Digest::from_bytes([0; 32])))
    }

    fn lanes(&self) -> Result<&Lanes, CudaError> {
        if let Some(lanes) = self.lanes.get() {
            return Ok(lanes);
        }
        let made = Lanes::new(&self.context, LAUNCH_BLOCKS)?;
        Ok(self.lanes.get_or_init(|| made))
    }

    fn kernels(&self) -> Result<&Kernels, CudaError> {
        if let Some(kernels) = self.kernels.get() {
            return Ok(kernels);
        }
        let compiled = Kernels::load(&self.context)?;
        Ok(self.kernels.get_or_init(|| compiled))
    }

    /// Whether the driver says so itself, by both ways of asking that there are.
    fn is_read_only(&self) -> Result<(), CudaError> {
        let last = self.start().plus(self.bytes().max(1).saturating_sub(1));
        let mut read_only = self.mapped.access(0)? == Some(Access::Read as u64);
        for address in [self.start(), last] {
            read_only &= residency::is_read_only(&self.context, address)?;
        }
        if read_only { Ok(()) } else { Err(CudaError::NotReadOnly) }
    }
}

/// The GPU with that UUID, as this process numbers it.
fn find(driver: &Driver, uuid: DeviceUuid) -> Result<Ordinal, CudaError> {
    let count = driver.device_count()?;
    for number in 0..count {
        // Another one may be somebody else's alone.
        let Ok(device) = driver.device(number) else { continue };
        if driver.device_uuid(device)? == uuid.0 {
            return Ok(device);
        }
    }
    Err(CudaError::NoSuchUuid { uuid, count })
}
