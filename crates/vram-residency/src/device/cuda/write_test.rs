//! Whether memory that is sealed on a GPU can really not be written: a kernel stores a word into it.
//!
//! A refused store ends every use of the GPU by the process that tried it. So it is tried in a process of its own, and what
//! that found out is handed to [`super::CudaOptions::write_test`].

use std::ffi::{CStr, c_void};
use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::driver::{
    Address, Context, CudaError, DeviceAttribute, Driver, Function, Mapped, Module, PinnedBuffer, Stream, code,
    granularity,
};
use super::require_virtual_memory;
use crate::device::child::answer_of;

/// The kernels that try the machine out.
pub(super) const PROBE: &str = include_str!("../../../../../kernels/ptx/probe.ptx");
/// The one that stores a word.
pub(super) const STORE: &CStr = c"vram_probe_store";

/// What the word is before it is sealed, and what is stored then.
const BEFORE: u32 = 0x5a5a_5a5a;
const AFTER: u32 = !BEFORE;

/// What a driver answers where a kernel was stopped because of an address. Other results that end a context (a defect of
/// the memory, a time limit, a GPU that is gone) say nothing about what may be written.
const REFUSALS: [i32; 3] = [code::ILLEGAL_ADDRESS, code::INVALID_ADDRESS_SPACE, code::LAUNCH_FAILED];

/// Where the service listens through which processes share a GPU, unless a variable says otherwise.
const SHARED_BY: (&str, &str) = ("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps");

/// What came of a store into memory of a GPU that was sealed as a region is.
///
/// Its text is one sentence. As JSON: `write_test` (`refused`, `went-through` or `not-run`) and, but for the second,
/// `write_test_detail`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "write_test", content = "write_test_detail", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum WriteTest {
    /// The word was not written. How: the driver's result, or that it said nothing.
    Refused(Box<str>),
    /// The word was written.
    WentThrough,
    /// It was not tried, or nothing follows from what happened. Why, and what can be done.
    NotRun(Box<str>),
}

impl WriteTest {
    /// Tries it, in this process and on the driver's device `ordinal` (of the library at `library`, or else the one that
    /// the loader finds). **This process cannot use the GPU afterwards:** call this from a process that does nothing else,
    /// print [`Self::to_line`], and end.
    ///
    /// The driver logs the refused store: NVRM Xid 31 is what was reported of it. Nothing is tried where GPUs are shared
    /// through MPS, where the fault of one process ends the others' work too.
    #[must_use]
    pub fn here(library: Option<&Path>, ordinal: u32) -> Self {
        if let Some(control) = shared_by() {
            return shared(&format!("{} is there, so this GPU may be", control.display()));
        }
        try_out(library, ordinal).unwrap_or_else(|error| Self::NotRun(error.to_string().into()))
    }

    /// Runs the process that calls [`Self::here`], for at most `limit`, and takes what it says. No part of it is left
    /// running. Where it fails, hangs, or says something else, the outcome is [`Self::NotRun`] with the reason.
    #[must_use]
    pub fn in_child(command: &mut Command, limit: Duration) -> Self {
        let remedy = "see the kernel's log for NVRM, and try again";
        let found = answer_of(command, limit).map_err(|why| format!("{why}; {remedy}"));
        let found = found.and_then(|said| {
            let outcome = said.lines().find_map(|line| serde_json::from_str(line).ok());
            outcome.ok_or_else(|| format!("its process ended without saying what came of it; {remedy}"))
        });
        found.unwrap_or_else(|why| Self::NotRun(why.into()))
    }

    /// What [`Self::in_child`] reads: JSON in one line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether it showed that sealed memory cannot be written.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// Nobody has tried it.
impl Default for WriteTest {
    fn default() -> Self {
        Self::NotRun(
            "the program that opened the GPU did not have it tried; it can, with WriteTest::here in a process of its own"
                .into(),
        )
    }
}

impl fmt::Display for WriteTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(how) => write!(f, "a store into sealed memory was refused ({how})"),
            Self::WentThrough => f.write_str(
                "a store into sealed memory went through, so this driver's word about it is wrong; update the NVIDIA \
                 driver, and report this",
            ),
            Self::NotRun(reason) => write!(f, "no store into sealed memory was tried: {reason}"),
        }
    }
}

/// Nothing is tried on a GPU that others use through MPS.
fn shared(how: &str) -> WriteTest {
    let why =
        "shared through MPS, where a fault ends the work of other processes too; end MPS, or remove what is left of it";
    WriteTest::NotRun(format!("{how} {why}").into())
}

/// The door of the service that shares GPUs among processes, where it is there.
fn shared_by() -> Option<PathBuf> {
    let (variable, default) = SHARED_BY;
    let folder = std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from);
    Some(folder.join("control")).filter(|control| is_door(control))
}

/// Whether it is what that service makes: a pipe or a socket, of its own or the system's user. Anybody can put a file there.
fn is_door(control: &Path) -> bool {
    let Ok(found) = std::fs::metadata(control) else { return false };
    let (kind, owner) = (found.file_type(), found.uid());
    (kind.is_fifo() || kind.is_socket()) && (owner == 0 || owner == rustix::process::geteuid().as_raw())
}

fn try_out(library: Option<&Path>, ordinal: u32) -> Result<WriteTest, CudaError> {
    let driver = Arc::new(Driver::load(library)?);
    let device = driver.device(ordinal)?;
    require_virtual_memory(&driver, device, ordinal)?;
    // An older driver does not know the question.
    if driver.attribute(DeviceAttribute::MpsEnabled, device).is_ok_and(|enabled| enabled != 0) {
        return Ok(shared("the driver says that this GPU is"));
    }
    let context = Context::open(driver, device)?;
    let word = Word {
        store: Module::load(&context, "probe", PROBE)?.function(STORE)?,
        stream: Stream::new(&context)?,
        memory: Mapped::create(&context, granularity(&context)?)?,
        context,
    };
    // The same kernel has to be able to write where it may: else its not writing shows nothing.
    word.write(BEFORE)?;
    let found = word.read()?;
    if found != BEFORE {
        return Ok(WriteTest::NotRun("the kernel that tries it does not write where it may; report this".into()));
    }
    word.memory.seal()?;
    match word.write(AFTER) {
        Ok(()) => Ok(match word.read()? {
            BEFORE => WriteTest::Refused("without a word of the driver's".into()),
            AFTER => WriteTest::WentThrough,
            _ => WriteTest::NotRun("the memory then held something that nobody had stored; report this".into()),
        }),
        Err(error) => {
            let refused = match &error {
                CudaError::Lost { code, name, .. } if REFUSALS.contains(code) => {
                    Some(WriteTest::Refused(format!("{name}, {code}").into()))
                }
                _ => None,
            };
            // Nothing can be given back to a dead context; all of it ends with the process.
            std::mem::forget(word);
            refused.ok_or(error)
        }
    }
}

/// Memory of one page of the device, of whose first word this is.
struct Word {
    store: Function,
    stream: Stream,
    memory: Mapped,
    context: Arc<Context>,
}

impl Word {
    fn write(&self, word: u32) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: the memory has a word, which is nobody else's, and the store is waited for.
        let asked = unsafe { store(&self.store, &self.stream, self.memory.start(), word) };
        let waited = self.stream.wait("store a word");
        asked.and(waited)
    }

    fn read(&self) -> Result<u32, CudaError> {
        let mut word = PinnedBuffer::new(&self.context, size_of::<u32>())?;
        let _current = self.context.enter()?;
        // SAFETY: as long as the buffer, which is not looked at before the copy was waited for.
        let asked = unsafe { word.copy_from(self.memory.start(), size_of::<u32>(), &self.stream) };
        let waited = self.stream.wait("copy from the GPU");
        asked.and(waited)?;
        let bytes = word.bytes().first_chunk().copied().unwrap_or_default();
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Has one thread of the kernel [`STORE`] store a word, in the order of the stream. The context is entered.
///
/// # Safety
/// There is memory of the device for a word, whatever may be done with it, and it stays until the stream has done it.
pub(super) unsafe fn store(kernel: &Function, stream: &Stream, to: Address, word: u32) -> Result<(), CudaError> {
    let (mut to, mut word) = (to, word);
    let mut parameters: [*mut c_void; 2] = [std::ptr::from_mut(&mut to).cast(), std::ptr::from_mut(&mut word).cast()];
    // SAFETY: the parameters are those of the kernel, in order; for the rest the caller answers.
    unsafe { kernel.launch(stream, 1, 1, &mut parameters) }
}
