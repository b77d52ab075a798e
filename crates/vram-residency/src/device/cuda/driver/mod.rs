//! The NVIDIA driver: loaded at run time, every function looked up before the first call, every result typed.
//!
//! Nothing of CUDA is needed to build this or to start it. This module and those below it are the only ones that call the
//! driver.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::device::{DeviceUuid, Mig};

use table::Table;
use types::{COMPUTE_MODE_EXCLUSIVE_PROCESS, COMPUTE_MODE_PROHIBITED};

pub(super) use buffer::{DeviceBuffer, PinnedBuffer};
pub(super) use context::Context;
pub use error::{CudaError, MINIMUM_DRIVER, Version, Which};
pub(super) use module::{Function, Module};
pub(super) use stream::{Event, Stream};
pub(super) use types::{Access, Address, DeviceAttribute, Ordinal, PointerAttribute, code};
pub(super) use vmm::{Mapped, granularity};

mod buffer;
mod context;
mod error;
#[cfg(feature = "gpu-check")]
pub(super) mod extra;
#[cfg(feature = "gpu-check")]
pub(super) mod header;
mod kept;
mod module;
mod stream;
mod table;
pub(super) mod types;
mod vmm;

/// Names under which the driver's library is looked for.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// What the driver takes from the environment: 1 keeps it from caching compiled kernels.
const CACHE_DISABLE: &str = "CUDA_CACHE_DISABLE";

/// A driver that answers.
pub(super) struct Driver {
    table: Table,
    /// Never unloaded: the driver has threads of its own.
    _library: ManuallyDrop<Library>,
    path: PathBuf,
    version: Version,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("path", &self.path).field("version", &self.version).finish_non_exhaustive()
    }
}

impl Driver {
    /// Loads and starts the driver: the library at `path`, or else the one that the loader finds.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, CudaError> {
        let library = open(path)?;
        let shown = |table: Option<&Table>| {
            table.and_then(origin).unwrap_or_else(|| path.unwrap_or(Path::new(NAMES[0])).into())
        };
        let table = Table::probe(&library).map_err(|symbol| {
            let library = text(&origin_of(&library).unwrap_or_else(|| shown(None)));
            CudaError::MissingSymbol { library, symbol }
        })?;
        let path = shown(Some(&table));
        let mut driver = Self { table, _library: ManuallyDrop::new(library), path, version: Version(0) };
        driver.start()?;
        Ok(driver)
    }

    fn start(&mut self) -> Result<(), CudaError> {
        let library = || text(&self.path);
        // SAFETY: takes no pointers; 0 is the only flag that there is.
        let started = unsafe { (self.table.init)(0) };
        match started {
            code::STUB_LIBRARY => return Err(CudaError::StubLibrary { library: library() }),
            code::NO_DEVICE => return Err(CudaError::NoDevice { library: library() }),
            code::SUCCESS => {}
            // Nothing is lost that was never there, whatever the number says of a running context.
            other => {
                let (name, text) = self.words(other);
                return Err(CudaError::NotStarted { library: library(), code: other, name, text });
            }
        }
        let mut version = 0;
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (self.table.driver_version)(&raw mut version) };
        self.check("state its version", answer)?;
        let found = Version(version);
        if found < MINIMUM_DRIVER {
            return Err(CudaError::OldDriver { library: library(), found });
        }
        self.version = found;
        Ok(())
    }

    /// The library that answers.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The release of CUDA that it is of.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// How many devices there are: at least one.
    pub(super) fn device_count(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (self.table.device_count)(&raw mut count) };
        self.check("count its GPUs", answer)?;
        match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(CudaError::NoDevice { library: text(&self.path) }),
        }
    }

    /// The device of a number.
    pub(super) fn device(&self, ordinal: u32) -> Result<Ordinal, CudaError> {
        let count = self.device_count()?;
        let none = || CudaError::NoSuchDevice { ordinal, count };
        let number = c_int::try_from(ordinal).ok().filter(|_| ordinal < count).ok_or_else(none)?;
        let mut device = 0;
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (self.table.device_get)(&raw mut device, number) };
        match answer {
            code::INVALID_DEVICE => Err(none()),
            other => self.check("find a GPU", other).map(|()| device),
        }
    }

    /// What it is called.
    pub(super) fn device_name(&self, device: Ordinal) -> Result<String, CudaError> {
        let mut name = [0; 256];
        // SAFETY: writes at most as many bytes as it is told, its final zero among them.
        let answer = unsafe { (self.table.device_name)(name.as_mut_ptr(), 256, device) };
        self.check_on(device, "state a GPU's name", answer).map(|()| until_zero(&name))
    }

    /// Where it is plugged in.
    pub(super) fn pci_bus_id(&self, device: Ordinal) -> Result<String, CudaError> {
        let mut name = [0; 32];
        // SAFETY: as above.
        let answer = unsafe { (self.table.device_pci_bus_id)(name.as_mut_ptr(), 32, device) };
        self.check_on(device, "state where a GPU is plugged in", answer).map(|()| until_zero(&name))
    }

    /// Its 128 bits; those of the instance where the device is a MIG instance.
    pub(super) fn device_uuid(&self, device: Ordinal) -> Result<[u8; 16], CudaError> {
        let mut uuid = [0; 16];
        // SAFETY: writes 16 bytes to where the pointer points.
        let answer = unsafe { (self.table.device_uuid)(&raw mut uuid, device) };
        self.check_on(device, "state a GPU's UUID", answer).map(|()| uuid)
    }

    /// Whether it is an instance of a GPU. The older of two functions says which GPU it is on and the newer one which device it is;
    /// where only one of them is there, or they agree, its name decides.
    pub(super) fn mig(&self, device: Ordinal, name: &str) -> Result<Mig, CudaError> {
        let own = self.device_uuid(device)?;
        let mut whole = [0; 16];
        let asked = self.table.older_device_uuid.map(|ask| {
            // SAFETY: writes 16 bytes to where the pointer points.
            unsafe { ask(&raw mut whole, device) }
        });
        Ok(match asked {
            Some(code::SUCCESS) if whole != own && whole != [0; 16] => Mig::Of(DeviceUuid(whole)),
            _ if name.split_whitespace().any(|word| word == "MIG") => Mig::ByName,
            _ => Mig::No,
        })
    }

    /// Its memory in bytes.
    pub(super) fn total_memory(&self, device: Ordinal) -> Result<u64, CudaError> {
        let mut bytes = 0;
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (self.table.device_total_memory)(&raw mut bytes, device) };
        self.check_on(device, "state a GPU's memory", answer).map(|()| bytes as u64)
    }

    pub(super) fn attribute(&self, attribute: DeviceAttribute, device: Ordinal) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: writes one number to where the pointer points.
        let answer = unsafe { (self.table.device_attribute)(&raw mut value, attribute as c_int, device) };
        self.check_on(device, "state what a GPU can do", answer).map(|()| value)
    }

    /// Why a context of a device was refused.
    fn context_refused(&self, device: Ordinal, answer: types::Code) -> CudaError {
        let mode = self.attribute(DeviceAttribute::ComputeMode, device).unwrap_or(0);
        match (answer, mode) {
            (_, COMPUTE_MODE_PROHIBITED) => CudaError::Prohibited { ordinal: device },
            (code::DEVICE_UNAVAILABLE | code::INVALID_DEVICE, COMPUTE_MODE_EXCLUSIVE_PROCESS) => {
                CudaError::ExclusiveProcess { ordinal: device }
            }
            // No context is lost that was never there.
            (code::UNKNOWN, _) => {
                let (name, text) = self.words(answer);
                CudaError::Refused { gpu: Which(Some(device)), step: "open a GPU", code: answer, name, text }
            }
            (other, _) => self.error(Which(Some(device)), "open a GPU", other),
        }
    }

    /// An error for every result but success.
    fn check(&self, step: &'static str, answer: types::Code) -> Result<(), CudaError> {
        if answer == code::SUCCESS { Ok(()) } else { Err(self.error(Which(None), step, answer)) }
    }

    /// The same of a call that is about a device.
    fn check_on(&self, device: Ordinal, step: &'static str, answer: types::Code) -> Result<(), CudaError> {
        if answer == code::SUCCESS { Ok(()) } else { Err(self.error(Which(Some(device)), step, answer)) }
    }

    fn error(&self, gpu: Which, step: &'static str, found: types::Code) -> CudaError {
        let (name, text) = self.words(found);
        match found {
            code::OUT_OF_MEMORY => CudaError::OutOfMemory { gpu, step },
            _ if error::is_sticky(found) => CudaError::Lost { gpu, step, code: found, name, text },
            _ => CudaError::Refused { gpu, step, code: found, name, text },
        }
    }

    fn lost(&self, device: Ordinal, step: &'static str, found: types::Code) -> CudaError {
        let (name, text) = self.words(found);
        CudaError::Lost { gpu: Which(Some(device)), step, code: found, name, text }
    }

    /// Work of a device cannot be waited for.
    fn unsettled(&self, device: Ordinal, step: &'static str, found: types::Code) -> CudaError {
        let (name, text) = self.words(found);
        CudaError::Unsettled { gpu: Which(Some(device)), step, code: found, name, text }
    }

    /// A result's name and text.
    fn words(&self, found: types::Code) -> (Box<str>, Box<str>) {
        (self.describe(found, self.table.error_name), self.describe(found, self.table.error_text))
    }

    /// A result in the driver's words.
    fn describe(
        &self,
        found: types::Code,
        words: unsafe extern "C" fn(types::Code, *mut *const c_char) -> types::Code,
    ) -> Box<str> {
        let mut text = std::ptr::null();
        // SAFETY: both functions of this type write the address of a text that is there for ever, or null.
        let answer = unsafe { words(found, &raw mut text) };
        if answer != code::SUCCESS || text.is_null() {
            return "an error that the driver cannot name".into();
        }
        // SAFETY: the driver's texts end with a zero and are there for ever.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into()
    }
}

fn open(path: Option<&Path>) -> Result<Library, CudaError> {
    let names: Vec<&Path> = path.map_or_else(|| NAMES.iter().map(Path::new).collect(), |path| vec![path]);
    let mut reason = String::new();
    for name in &names {
        // SAFETY: loading runs the library's start code. It is the driver that the user's system or options name; whoever
        // can replace it can replace this program as well.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(error) => reason = error.to_string(),
        }
    }
    let tried: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    Err(CudaError::NoLibrary { tried: tried.join(", ").into(), reason: reason.into() })
}

/// The file that a table's functions are in.
fn origin(table: &Table) -> Option<PathBuf> {
    file_of(table.init as *const c_void)
}

/// The file of a library that has at least a start function.
fn origin_of(library: &Library) -> Option<PathBuf> {
    // SAFETY: the symbol is only looked at for its address.
    let init = unsafe { library.get::<*const c_void>("cuInit") }.ok()?;
    file_of(*init)
}

/// The file that holds an address of code, with all links resolved.
fn file_of(address: *const c_void) -> Option<PathBuf> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about; the answer is written to where the pointer points.
    let answer = unsafe { libc::dladdr(address, found.as_mut_ptr()) };
    // SAFETY: all zeros are a valid value, and a successful call has written one.
    let found = unsafe { found.assume_init() };
    if answer == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's names end with a zero and live as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(found.dli_fname) };
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    Some(path.canonicalize().unwrap_or(path))
}

fn text(path: &Path) -> Box<str> {
    path.to_string_lossy().into()
}

/// The text before the first zero.
fn until_zero(bytes: &[c_char]) -> String {
    let text: Vec<u8> = bytes.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
    String::from_utf8_lossy(&text).into_owned()
}

/// Has the driver keep no compiled kernels in a file, where who can write that file could change them: sets the variable
/// `CUDA_CACHE_DISABLE` that the driver reads when it starts. Works only as long as the process has no other thread, so at
/// the start of a program; whether it did is among a device's facts.
pub fn disable_kernel_cache() {
    const ALONE: usize = 1;
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads == ALONE {
        // SAFETY: nobody else can read or change the environment meanwhile: this is the only thread, and only a thread of
        // this process could start another one.
        unsafe { std::env::set_var(CACHE_DISABLE, "1") };
    }
}

/// Whether the driver may keep compiled kernels in a file.
pub(super) fn has_kernel_cache() -> bool {
    std::env::var_os(CACHE_DISABLE).is_none_or(|value| value != "1")
}
