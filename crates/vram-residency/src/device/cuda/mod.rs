//! The `cuda` device: a GPU's own memory, pinned, mapped read-only once it is sealed, and hashed where it is.
//!
//! The driver is loaded at run time; where there is none, opening says so and nothing else happens. What was measured and
//! what was not is in `docs/cuda.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::crew::Crew;
use super::{Capacity, Device, DeviceError, DeviceInfo, DeviceKind, DeviceUuid, Mig, Region, StagedRegion};
use crate::attest::statement::Driver as DriverStatement;
use crate::digest::BlockValue;
use driver::{Address, Context, DeviceAttribute, Driver, Ordinal, granularity};
use fingerprint::Fingerprinter;
use kernels::Kernels;
use lane::Lanes;
use ledger::Ledger;
use load::Loader;
use region::CudaRegion;

mod driver;
mod fingerprint;
mod import;
mod kernels;
mod lane;
mod ledger;
mod load;
#[cfg(feature = "gpu-check")]
pub mod measure;
mod region;
mod residency;
mod speed;
mod survey;
mod sweep;
mod write_test;

pub use driver::{CudaError, MINIMUM_DRIVER, Version, Which, disable_kernel_cache};
pub(crate) use import::{ImportedRegion, Importer, Offered};
pub use kernels::HashVariant;
pub use survey::{Survey, Surveyed};
pub use write_test::{Tested, WriteTest};

/// Most blocks that one launch hashes: 1 GiB, which a data-centre GPU does in about a millisecond.
const MOST_LAUNCH_BLOCKS: usize = 1024;
/// Most threads that read and stage.
const MOST_THREADS: usize = 16;

/// How a [`CudaDevice`] is set up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CudaOptions {
    /// Which of the driver's devices, from 0.
    pub ordinal: u32,
    /// The driver's library; none: `libcuda.so.1` or `libcuda.so`, wherever the loader finds it.
    pub library: Option<PathBuf>,
    /// Most bytes that regions may take together; none: what is free when the device is opened, less the headroom.
    pub capacity_bytes: Option<u64>,
    /// Bytes of the device that are left to others; none: 1/64 of its memory, at most 1 GiB.
    pub headroom_bytes: Option<u64>,
    /// Threads that read and stage; none: one for each processor that this process may use, at most 16.
    pub threads: Option<usize>,
    /// Which of the hash kernels; none: the faster one, which is measured when the device is opened.
    pub variant: Option<HashVariant>,
    /// Blocks of a launch, at most 1024, which is also what none means. Each takes 32 KiB of scratch memory, twice.
    pub launch_blocks: Option<usize>,
    /// What a store into sealed memory of this GPU came to, which only another process can try: [`WriteTest::in_child`].
    /// Regions are called `read-only` where it was refused on the very GPU that is opened, and `advisory` else, which is what the
    /// default leads to.
    pub write_test: Tested,
}

/// What is known about a GPU and its driver, for people and for the record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CudaFacts {
    /// Its number with the driver.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// Whether it is a MIG instance.
    #[serde(flatten)]
    pub mig: Mig,
    /// Where it is plugged in.
    pub pci: String,
    /// The driver's library, with all links resolved.
    pub library: String,
    /// The release of CUDA that the driver is of.
    pub driver: String,
    /// SHA-256 of the kernels' text, in hex.
    pub kernels_sha256: String,
    /// Which of the hash kernels is used.
    pub variant: HashVariant,
    /// Whether the driver may keep compiled kernels in a file, where who can write that file can change them.
    pub kernel_cache: bool,
    /// Whether it shares its memory with the processor.
    pub integrated: bool,
    /// What a store into sealed memory came to.
    #[serde(flatten)]
    pub write_test: WriteTest,
}

/// A GPU's memory as a device.
#[derive(Debug)]
pub struct CudaDevice {
    shared: Arc<Shared>,
}

/// What the regions of a device share. Dropped in this order: the context last.
#[derive(Debug)]
struct Shared {
    info: DeviceInfo,
    facts: CudaFacts,
    ledger: Arc<Ledger>,
    granularity: u64,
    launch_blocks: usize,
    variant: HashVariant,
    crew: Crew,
    /// Made for the first load.
    loader: Mutex<Option<Loader>>,
    /// Made for the first fingerprint.
    fingerprinter: Mutex<Option<Fingerprinter>>,
    lanes: Lanes,
    kernels: Kernels,
    context: Arc<Context>,
}

impl CudaDevice {
    /// Opens a GPU: loads the driver, has it compile the kernels, and measures which of them is faster.
    ///
    /// # Errors
    /// [`DeviceError::Cuda`]: there is no driver, it is too old or a stub, there is no such device, another process has it
    /// for itself, or it lacks virtual memory management.
    pub fn open(options: &CudaOptions) -> Result<Self, DeviceError> {
        let driver = Arc::new(Driver::load(options.library.as_deref())?);
        let device = driver.device(options.ordinal)?;
        let attribute = |attribute| driver.attribute(attribute, device);
        let name = driver.device_name(device)?;
        require_virtual_memory(&driver, device, options.ordinal)?;
        let integrated = attribute(DeviceAttribute::Integrated)? == 1;
        let uuid = DeviceUuid(driver.device_uuid(device)?);
        let pci = driver.pci_bus_id(device)?;

        let context = Context::open(Arc::clone(&driver), device)?;
        let launch_blocks = options.launch_blocks.unwrap_or(MOST_LAUNCH_BLOCKS).clamp(1, MOST_LAUNCH_BLOCKS);
        let kernels = Kernels::load(&context)?;
        let lanes = Lanes::new(&context, launch_blocks)?;
        let variant = match options.variant {
            Some(variant) => variant,
            None => lanes.faster(&kernels)?,
        };
        let (free, total) = context.memory()?;
        let headroom = options.headroom_bytes.unwrap_or_else(|| (total >> 6).min(1 << 30));
        let capacity = options.capacity_bytes.unwrap_or_else(|| free.saturating_sub(headroom));
        let facts = CudaFacts {
            ordinal: options.ordinal,
            mig: driver.mig(device, &name)?,
            name,
            pci,
            library: driver.path().to_string_lossy().into_owned(),
            driver: driver.version().to_string(),
            kernels_sha256: kernels::text_digest(),
            variant,
            kernel_cache: driver::has_kernel_cache(),
            integrated,
            write_test: options.write_test.of(uuid),
        };
        tracing::debug!(?facts, capacity, headroom, "cuda device opened");
        if !facts.write_test.is_refused() {
            tracing::warn!(ordinal = facts.ordinal, write_test = %facts.write_test, "protection is advisory");
        }
        let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = options.threads.unwrap_or_else(processors).clamp(1, MOST_THREADS);
        Ok(Self {
            shared: Arc::new(Shared {
                info: DeviceInfo { kind: DeviceKind::Cuda, uuid },
                facts,
                ledger: Ledger::new(context.name(), capacity, headroom),
                granularity: granularity(&context)?,
                launch_blocks,
                variant,
                crew: Crew::new(threads),
                loader: Mutex::new(None),
                fingerprinter: Mutex::new(None),
                lanes,
                kernels,
                context,
            }),
        })
    }

    /// What is known about it.
    #[must_use]
    pub fn facts(&self) -> &CudaFacts {
        &self.shared.facts
    }

    /// Takes memory that somebody else allocated as a region, to be verified in place. Its protection is `advisory`, unless
    /// the driver states that the device cannot write to it, and that nobody can have been given a descriptor of it, with which
    /// it could be mapped once more. It counts against no capacity, and is not given back.
    ///
    /// # Errors
    /// [`DeviceError::Cuda`] where the address is no multiple of 8, or the driver cannot say what the memory is.
    ///
    /// # Safety
    /// `pointer` is memory of this device's primary context, of `bytes` bytes, that stays allocated and mapped, and that
    /// nobody writes to, until the region is dropped; and for ever where [`Device::lost`] says by then that the device cannot be
    /// waited for.
    ///
    /// *Nobody* includes whoever has the same memory mapped elsewhere, in this process or another, readable and writable: no
    /// driver tells of that. Where there is such a mapping, the region may be called `read-only` although it can be written to;
    /// only a verification finds what that changed.
    pub unsafe fn adopt(&self, pointer: u64, bytes: u64) -> Result<Box<dyn Region>, DeviceError> {
        if pointer == 0 || !pointer.is_multiple_of(8) || pointer.checked_add(bytes).is_none() {
            return Err(self.shared.refused("adopt memory that does not start on a multiple of 8 bytes"));
        }
        Ok(Box::new(CudaRegion::adopt(&self.shared, Address(pointer), bytes)?))
    }
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        self.shared.info
    }

    fn name(&self) -> String {
        self.shared.context.name().into()
    }

    fn capacity(&self) -> Capacity {
        self.shared.ledger.capacity()
    }

    fn room_bytes(&self) -> u64 {
        // Of a GPU that gives no answer nothing can be had.
        self.shared.ledger.room(&self.shared.context).unwrap_or(0)
    }

    fn needed_bytes(&self, bytes: u64, lead_bytes: u8) -> u64 {
        region::needed_bytes(bytes, lead_bytes, self.shared.granularity).unwrap_or(u64::MAX)
    }

    fn driver(&self) -> DriverStatement {
        let CudaFacts { name, driver, .. } = self.facts();
        DriverStatement { name: "NVIDIA CUDA".to_owned(), version: driver.clone(), machine: name.clone() }
    }

    fn cuda_facts(&self) -> Option<&CudaFacts> {
        Some(&self.shared.facts)
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn is_lost(&self) -> bool {
        self.shared.context.is_lost()
    }

    fn lost(&self) -> Option<String> {
        self.shared.context.lost().map(|error| error.to_string())
    }

    fn allocate(&self, bytes: u64, lead_bytes: u8) -> Result<Box<dyn StagedRegion>, DeviceError> {
        Ok(Box::new(CudaRegion::allocate(&self.shared, bytes, lead_bytes)?))
    }

    fn hashes_together(&self) -> bool {
        true
    }

    fn hash_regions(
        &self,
        regions: &[&dyn Region],
        found: &mut dyn FnMut(usize, u64, &[BlockValue]),
    ) -> Result<(), DeviceError> {
        sweep::hash_regions(&self.shared, regions, found)
    }
}

impl Shared {
    fn unexportable(&self) -> DeviceError {
        DeviceError::Unexportable { device: self.context.name() }
    }

    fn refused(&self, step: &'static str) -> DeviceError {
        self.system(step, std::io::ErrorKind::PermissionDenied)
    }

    fn system(&self, step: &'static str, kind: std::io::ErrorKind) -> DeviceError {
        DeviceError::System { device: self.context.name(), step, source: Arc::new(kind.into()) }
    }

    /// The loader, for one load at a time: the link to the device is what limits them.
    fn loader(&self) -> Result<MutexGuard<'_, Option<Loader>>, CudaError> {
        let mut loader = self.loader.lock();
        if loader.is_none() {
            *loader = Some(Loader::new(&self.context, self.crew.threads())?);
        }
        Ok(loader)
    }

    /// What takes fingerprints, for one at a time: the device's memory is what limits them.
    fn fingerprinter(&self) -> Result<MutexGuard<'_, Option<Fingerprinter>>, CudaError> {
        let mut fingerprinter = self.fingerprinter.lock();
        if fingerprinter.is_none() {
            let mut made = Fingerprinter::new(&self.context, self.launch_blocks)?;
            made.prove((&self.kernels, self.variant))?;
            *fingerprinter = Some(made);
        }
        Ok(fingerprinter)
    }
}

/// The device has what regions are made with.
fn require_virtual_memory(driver: &Driver, device: Ordinal, ordinal: u32) -> Result<(), CudaError> {
    let what = if driver.attribute(DeviceAttribute::ComputeCapabilityMajor, device)? < 7 {
        "compute capability 7.0 (Volta, 2017) or newer"
    } else if driver.attribute(DeviceAttribute::VirtualMemoryManagement, device)? != 1 {
        "virtual memory management"
    } else {
        return Ok(());
    };
    let device = format!("cuda:{ordinal} ({})", driver.device_name(device)?).into();
    Err(CudaError::Unsupported { device, what })
}
