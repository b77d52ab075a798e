//! What GPUs there are, without taking any of them: for `auto`, and for people who wonder why there is none.

use super::driver::{Context, CudaError, DeviceAttribute, Driver};
use super::{Arc, DeviceUuid, Mig, Ordinal, Path, PathBuf, require_virtual_memory};

/// A driver and its devices.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Survey {
    /// The driver's library, with all links resolved.
    pub library: PathBuf,
    /// The release of CUDA that it is of.
    pub driver: String,
    /// The devices, in the driver's order.
    pub devices: Vec<Surveyed>,
}

/// A device.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Surveyed {
    /// Its number.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Which one it is; which instance, where it is one.
    pub uuid: DeviceUuid,
    /// Whether it is a MIG instance.
    pub mig: Mig,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// Bytes of it that are free now, or why it cannot be used.
    pub free_bytes: Result<u64, CudaError>,
    /// Whether it shares its memory with the processor.
    pub integrated: bool,
}

impl Survey {
    /// Asks the driver: the library at `library`, or else the one that the loader finds.
    ///
    /// # Errors
    /// Why there is no driver, or no device.
    pub fn take(library: Option<&Path>) -> Result<Self, CudaError> {
        let driver = Arc::new(Driver::load(library)?);
        let devices = (0..driver.device_count()?).map(|ordinal| Surveyed::of(&driver, ordinal));
        Ok(Self {
            library: driver.path().to_owned(),
            driver: driver.version().to_string(),
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// The device with most free memory among those that weights can become resident on.
    #[must_use]
    pub fn roomiest(&self) -> Option<&Surveyed> {
        let usable = self.devices.iter().filter(|device| !device.integrated);
        let usable = usable.filter_map(|device| Some((device.free_bytes.as_ref().ok()?, device)));
        // Of equal ones the first.
        usable.rev().max_by_key(|(free, _)| **free).map(|(_, device)| device)
    }
}

impl Surveyed {
    fn of(driver: &Arc<Driver>, ordinal: u32) -> Result<Self, CudaError> {
        let device = driver.device(ordinal)?;
        let attribute = |attribute| driver.attribute(attribute, device);
        let name = driver.device_name(device)?;
        Ok(Self {
            ordinal,
            uuid: DeviceUuid(driver.device_uuid(device)?),
            mig: driver.mig(device, &name)?,
            capability: (
                attribute(DeviceAttribute::ComputeCapabilityMajor)?,
                attribute(DeviceAttribute::ComputeCapabilityMinor)?,
            ),
            total_bytes: driver.total_memory(device)?,
            free_bytes: usable(driver, device, ordinal),
            integrated: attribute(DeviceAttribute::Integrated)? == 1,
            name,
        })
    }
}

/// Opens the device for a moment.
fn usable(driver: &Arc<Driver>, device: Ordinal, ordinal: u32) -> Result<u64, CudaError> {
    require_virtual_memory(driver, device, ordinal)?;
    Ok(Context::open(Arc::clone(driver), device)?.memory()?.0)
}
