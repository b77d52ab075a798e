//! What a check of a GPU needs beyond the device: raw memory of every kind, attempts to write where nothing may write, and
//! the kernels by themselves with their times.
//!
//! Only with the feature `gpu-check`, which `crates/gpu-check` turns on and nothing that is shipped does. Every call waits
//! for its work, and every range is checked, so all of it is safe to call.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::driver::extra::Extra;
use super::driver::header;
use super::driver::{
    Access, Address, Context, CudaError, DeviceBuffer, Driver, Event, Mapped, PinnedBuffer, PointerAttribute, Stream,
    granularity,
};

use crate::device::child;

mod kernels;

pub use header::{Function as DeclaredFunction, Statement, Structure as DeclaredStructure};
pub use kernels::{Compiled, Foreground, Kernels, Kind, Sweep, TEXTS};

/// Runs a process and returns what it wrote to its standard output, if it ended with success. Nothing of it stays.
///
/// # Errors
/// Why there is no answer: it cannot be started, failed, took longer than `limit`, or said more than 64 KiB.
pub fn answer_of(command: &mut Command, limit: Duration) -> Result<String, String> {
    child::answer_of(command, limit)
}

/// The door of the service through which processes share GPUs (MPS), where it is there.
#[must_use]
pub fn shared_by() -> Option<PathBuf> {
    super::write_test::shared_by()
}

/// What the driver answered to a call: 0 is success.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[expect(clippy::exhaustive_structs, reason = "a number and its name")]
pub struct Answer {
    /// The result's number.
    pub code: i32,
    /// Its name, as the driver spells it.
    pub name: String,
}

/// An attempt to write to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempt {
    /// A kernel stores one word.
    KernelStore,
    /// `cuMemcpyHtoD`
    Copy,
    /// `cuMemsetD8Async`
    Fill,
    /// A graph of one copy from main memory.
    GraphCopy,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Tried {
    /// The answer to the call that writes.
    pub call: Answer,
    /// The answer of the wait for it.
    pub wait: Answer,
    /// The answer to an innocent question afterwards: no success means that the context is dead.
    pub after: Answer,
}

/// How memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// `cuMemCreate`, mapped: what regions are made of.
    Virtual,
    /// `cuMemAlloc`
    Plain,
    /// `cuMemAllocManaged`
    Managed,
    /// Memory of this process under `cuMemHostRegister`.
    Registered,
}

/// What a driver says of an address, attribute by attribute; `None` where the question has no answer.
pub type Statements = Vec<(&'static str, Option<u64>)>;

/// What a GPU and its driver say of themselves.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Facts {
    /// The card's name.
    pub name: String,
    /// The release of CUDA that the driver is of.
    pub driver: String,
    /// The driver's library, with all links resolved.
    pub library: String,
    /// Where the card is plugged in.
    pub pci: String,
    /// Its memory in bytes.
    pub total_bytes: u64,
    /// What is free of it, in bytes.
    pub free_bytes: u64,
    /// The size of which every region is a multiple, in bytes.
    pub granularity_bytes: u64,
    /// The lowest and the highest priority of a stream: the lower the number, the higher the priority, and 0 is the default.
    pub priorities: (i32, i32),
    /// Attributes by name: numbers of `cuda.h`.
    pub attributes: Vec<(&'static str, Option<i32>)>,
}

/// Attributes of a device that explain its figures: what they are called here, their numbers, and their names in `cuda.h`.
const ATTRIBUTES: [(&str, i32, &str); 15] = [
    ("compute_capability_major", 75, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR"),
    ("compute_capability_minor", 76, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"),
    ("multiprocessors", 16, "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
    ("threads_per_multiprocessor", 39, "CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR"),
    ("clock_khz", 13, "CU_DEVICE_ATTRIBUTE_CLOCK_RATE"),
    ("memory_clock_khz", 36, "CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE"),
    ("memory_bus_bits", 37, "CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH"),
    ("l2_cache_bytes", 38, "CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE"),
    ("copy_engines", 40, "CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT"),
    ("ecc", 32, "CU_DEVICE_ATTRIBUTE_ECC_ENABLED"),
    ("integrated", 18, "CU_DEVICE_ATTRIBUTE_INTEGRATED"),
    ("compute_mode", 20, "CU_DEVICE_ATTRIBUTE_COMPUTE_MODE"),
    ("virtual_memory_management", 102, "CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"),
    ("mps", 133, "CU_DEVICE_ATTRIBUTE_MPS_ENABLED"),
    ("posix_descriptors", 103, "CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED"),
];

/// What the driver module takes `cuda.h` to say, to be held against NVIDIA's own file.
#[must_use]
pub fn header_statement() -> Statement {
    let attributes = ATTRIBUTES.map(|(_, number, name)| (name, i64::from(number)));
    header::statement(&[&attributes, kernels::NUMBERS].concat())
}

/// An open GPU.
#[derive(Debug)]
pub struct Gpu {
    stream: Stream,
    began: Event,
    ended: Event,
    extra: Arc<Extra>,
}

/// Memory that the GPU can address. Given back when it is dropped.
#[derive(Debug)]
pub struct Memory {
    backing: Backing,
    bytes: u64,
}

#[derive(Debug)]
enum Backing {
    Virtual(Mapped),
    Plain(DeviceBuffer),
    Managed(Arc<Extra>, Address),
    Registered(Arc<Extra>, Vec<u8>),
}

impl Gpu {
    /// Loads the driver (the one at `library`, or else what the loader finds) and opens its device `ordinal`.
    ///
    /// # Errors
    /// There is no driver, or no such device, or it is not for this process.
    pub fn open(library: Option<&Path>, ordinal: u32) -> Result<Self, CudaError> {
        let driver = Arc::new(Driver::load(library)?);
        let device = driver.device(ordinal)?;
        let context = Context::open(driver, device)?;
        Ok(Self {
            stream: Stream::new(&context)?,
            began: Event::new(&context)?,
            ended: Event::new(&context)?,
            extra: Arc::new(Extra::new(&context)),
        })
    }

    fn context(&self) -> &Arc<Context> {
        &self.extra.context
    }

    /// What the GPU and its driver say of themselves.
    ///
    /// # Errors
    /// The driver does not say even its name.
    pub fn facts(&self) -> Result<Facts, CudaError> {
        let (driver, device) = (self.extra.driver(), self.context().device());
        let (free_bytes, total_bytes) = self.context().memory()?;
        let current = self.context().enter()?;
        let priorities = self.context().priorities()?;
        drop(current);
        let attribute = |(name, number, _)| (name, self.extra.device_attribute(number).ok());
        Ok(Facts {
            name: driver.device_name(device)?,
            driver: driver.version().to_string(),
            library: driver.path().to_string_lossy().into_owned(),
            pci: driver.pci_bus_id(device)?,
            total_bytes,
            free_bytes,
            granularity_bytes: granularity(self.context())?,
            priorities,
            attributes: ATTRIBUTES.map(attribute).to_vec(),
        })
    }

    /// Allocates memory; virtual memory is rounded up to whole granules.
    ///
    /// # Errors
    /// The driver refuses, or lacks the function.
    pub fn allocate(&self, kind: MemoryKind, bytes: u64) -> Result<Memory, CudaError> {
        let length = usize::try_from(bytes).map_err(|_| self.context().out_of_memory("allocate so much memory"))?;
        let extra = Arc::clone(&self.extra);
        let (backing, bytes) = match kind {
            MemoryKind::Virtual => {
                let whole = bytes.max(1).next_multiple_of(granularity(self.context())?);
                (Backing::Virtual(Mapped::create(self.context(), whole)?), whole)
            }
            MemoryKind::Plain => (Backing::Plain(DeviceBuffer::new(self.context(), length)?), bytes),
            MemoryKind::Managed => (Backing::Managed(Arc::clone(&extra), extra.managed(length)?), bytes),
            MemoryKind::Registered => {
                let mut memory = vec![0; length];
                extra.register(&mut memory)?;
                (Backing::Registered(extra, memory), bytes)
            }
        };
        Ok(Memory { backing, bytes })
    }

    /// Maps memory that another process exported, readable and writable at first.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn import(&self, descriptor: &impl AsRawFd, bytes: u64) -> Result<Memory, CudaError> {
        Ok(Memory {
            backing: Backing::Virtual(Mapped::import(self.context(), descriptor, bytes, Access::ReadWrite)?),
            bytes,
        })
    }

    /// What the driver says of a memory's first byte.
    ///
    /// # Errors
    /// The context is dead.
    pub fn statements(&self, memory: &Memory) -> Result<Statements, CudaError> {
        use PointerAttribute as A;
        let attributes = [
            ("memory_type", A::MemoryType),
            ("host_pointer", A::HostPointer),
            ("is_managed", A::IsManaged),
            ("device_ordinal", A::DeviceOrdinal),
            ("range_size", A::RangeSize),
            ("mapped", A::Mapped),
            ("access_flags", A::AccessFlags),
            ("memory_block_id", A::MemoryBlockId),
        ];
        let mut statements = Statements::new();
        for (name, attribute) in attributes {
            let said = known(self.context().ask(attribute, memory.start()))?;
            // Addresses and numbers of blocks are nobody's business; whether there is one is.
            let told = matches!(attribute, A::HostPointer | A::MemoryBlockId);
            statements.push((name, if told { said.map(|value| u64::from(value != 0)) } else { said }));
        }
        let allocation = known(self.context().allocation_at(memory.start()))?;
        let part = |number: i32| u64::try_from(number).ok();
        statements.push(("allocation_type", allocation.as_ref().and_then(|found| part(found.kind))));
        statements.push(("allocation_location", allocation.as_ref().and_then(|found| part(found.location.kind))));
        Ok(statements)
    }

    /// Fills the start of some memory with `pattern`, again and again up to `bytes` bytes: once from main memory, then on
    /// the device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn spread(&self, memory: &Memory, bytes: u64, pattern: &[u8]) -> Result<(), CudaError> {
        let bytes = bytes.min(memory.bytes);
        let first = pattern.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        let pattern = pattern.get(..first).unwrap_or_default();
        self.put(memory.start(), pattern)?;
        let _current = self.context().enter()?;
        let mut answer = 0;
        let mut done = first as u64;
        while answer == 0 && done > 0 && done < bytes {
            let next = done.min(bytes.saturating_sub(done));
            let length = usize::try_from(next).unwrap_or(0);
            // SAFETY: two parts of the memory that do not overlap; waited for below.
            answer =
                unsafe { self.extra.copy_on_device(memory.start().plus(done), memory.start(), length, &self.stream) };
            done = done.saturating_add(next);
        }
        let waited = self.stream.wait("fill memory");
        self.context().check("fill memory", answer)?;
        waited
    }

    /// Copies to an address at which there is so much memory, and waits.
    fn put(&self, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        let _current = self.context().enter()?;
        // SAFETY: the callers'; the copy is waited for.
        let asked = unsafe { self.extra.copy_now(to, bytes) };
        let arrived = self.extra.settle();
        self.context().check("copy to the GPU", asked)?;
        self.context().check("copy to the GPU", arrived)
    }

    /// Copies the first bytes of some memory to main memory.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn read(&self, memory: &Memory, to: &mut [u8]) -> Result<(), CudaError> {
        let length = to.len().min(usize::try_from(memory.bytes).unwrap_or(usize::MAX));
        let mut buffer = PinnedBuffer::new(self.context(), length)?;
        let _current = self.context().enter()?;
        // SAFETY: both are of that length, and the copy is waited for; where that is refused, the buffer's end is put off.
        let asked = unsafe { buffer.copy_from(memory.start(), length, &self.stream) };
        let waited = self.stream.wait("copy from the GPU");
        asked.and(waited)?;
        to.iter_mut().zip(buffer.bytes()).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Time of a copy of `bytes` bytes on the device.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn copy_time(&self, to: &Memory, from: &Memory, bytes: u64) -> Result<Duration, CudaError> {
        let length = usize::try_from(bytes.min(to.bytes).min(from.bytes)).unwrap_or(0);
        self.timed(&self.stream, "copy on the GPU", &|| {
            // SAFETY: inside both; `timed` waits.
            unsafe { self.extra.copy_on_device(to.start(), from.start(), length, &self.stream) }
        })
    }

    /// Time of copies to the device from one pinned buffer of `piece` bytes, until `bytes` bytes were copied.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn upload_time(&self, to: &Memory, bytes: u64, piece: u64) -> Result<Duration, CudaError> {
        let piece = piece.min(to.bytes).max(1);
        let length = usize::try_from(piece).unwrap_or(0);
        let buffer = PinnedBuffer::new(self.context(), length)?;
        let current = self.context().enter()?;
        let began = std::time::Instant::now();
        let (mut done, mut asked) = (0_u64, Ok(()));
        while asked.is_ok() && done.saturating_add(piece) <= bytes.min(to.bytes) {
            // SAFETY: inside the memory; the buffer only gets read, and lives until the wait below.
            asked = unsafe { buffer.copy_to(to.start().plus(done), length, &self.stream) };
            done = done.saturating_add(piece);
        }
        let waited = self.stream.wait("copy to the GPU");
        let took = began.elapsed();
        drop(current);
        asked.and(waited).map(|()| took)
    }

    /// Tries to write to the start of some memory. The bytes that it would write are all ones.
    ///
    /// # Errors
    /// The context was dead before.
    pub fn attempt(&self, kernels: &Kernels, memory: &Memory, attempt: Attempt) -> Result<Tried, CudaError> {
        let _current = self.context().enter()?;
        let (to, ones): (_, &'static [u8; 8]) = (memory.start(), &[0xff; 8]);
        let call = match attempt {
            Attempt::KernelStore => kernels.store(self, to),
            // SAFETY: the memory has a granule or 8 bytes at least; waited for below.
            Attempt::Copy => unsafe { self.extra.copy_now(to, ones) },
            // SAFETY: as above; waited for below.
            Attempt::Fill => unsafe { self.extra.set(to, 0xff, ones.len(), &self.stream) },
            // SAFETY: as above; the bytes are there for ever.
            Attempt::GraphCopy => unsafe { self.extra.graph_copy(to, ones, &self.stream) },
        };
        let settled = self.extra.settle();
        let wait = if settled == 0 { self.extra.wait(&self.stream) } else { settled };
        let after = self.extra.ask_something();
        let answer = |code| Answer { code, name: self.extra.driver().name_of(code).into() };
        // Remembered by the context, so that what follows is refused without asking.
        for code in [call, wait, after] {
            let _ = self.context().check("write where nothing may write", code);
        }
        Ok(Tried { call: answer(call), wait: answer(wait), after: answer(after) })
    }

    /// Time between two marks around what `ask` puts into a stream.
    fn timed(&self, stream: &Stream, step: &'static str, ask: &dyn Fn() -> i32) -> Result<Duration, CudaError> {
        let current = self.context().enter()?;
        self.began.record(stream)?;
        let answer = ask();
        let ended = self.ended.record(stream);
        let waited = stream.wait(step);
        self.context().check(step, answer)?;
        waited?;
        ended?;
        drop(current);
        let _current = self.context().enter()?;
        self.ended.since(&self.began)
    }
}

/// An answer, or none where the driver refuses the question in any words. Only a dead context is an error.
fn known<T>(said: Result<Option<T>, CudaError>) -> Result<Option<T>, CudaError> {
    said.or_else(|error| if error.is_lost() { Err(error) } else { Ok(None) })
}

impl Memory {
    fn start(&self) -> Address {
        match &self.backing {
            Backing::Virtual(mapped) => mapped.start(),
            Backing::Plain(buffer) => buffer.start(),
            Backing::Managed(_, start) => *start,
            // With unified addresses, which every 64-bit system has, the device addresses it as the process does.
            Backing::Registered(_, memory) => Address(memory.as_ptr().expose_provenance() as u64),
        }
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn mapped(&self) -> Result<&Mapped, CudaError> {
        match &self.backing {
            Backing::Virtual(mapped) => Ok(mapped),
            _ => Err(CudaError::Unsupported { device: "memory".into(), what: "mapping of memory of its kind" }),
        }
    }

    /// Says whether the device may write, where it is virtual memory.
    ///
    /// # Errors
    /// The driver refuses, or it is other memory.
    pub fn set_writable(&self, writable: bool) -> Result<(), CudaError> {
        let access = if writable { Access::ReadWrite } else { Access::Read };
        self.mapped()?.set_access(0, self.bytes, access)
    }

    /// What the driver says that the device may do, where it is virtual memory: 1 read, 3 read and write.
    ///
    /// # Errors
    /// The context is dead, or it is other memory.
    pub fn access(&self) -> Result<Option<u64>, CudaError> {
        self.mapped()?.access(0)
    }

    /// Another mapping of the same memory, readable and writable whatever this one is.
    ///
    /// # Errors
    /// The driver refuses, or it is other memory than virtual memory.
    pub fn again(&self) -> Result<Self, CudaError> {
        Ok(Self { backing: Backing::Virtual(self.mapped()?.again()?), bytes: self.bytes })
    }

    /// A descriptor of the memory for another process; none where the device exports none.
    ///
    /// # Errors
    /// The driver refuses, or it is other memory than virtual memory.
    pub fn export(&self) -> Result<Option<OwnedFd>, CudaError> {
        self.mapped()?.export()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match &mut self.backing {
            // SAFETY: this value's own, and every call waits for its work.
            Backing::Managed(extra, start) => unsafe { extra.free(*start) },
            Backing::Registered(extra, memory) => {
                extra.unregister(memory);
                if extra.context.is_unsettled() {
                    // Work that nobody could wait for may use it.
                    std::mem::forget(std::mem::take(memory));
                }
            }
            Backing::Virtual(_) | Backing::Plain(_) => {}
        }
    }
}

impl std::fmt::Debug for Extra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extra").finish_non_exhaustive()
    }
}
