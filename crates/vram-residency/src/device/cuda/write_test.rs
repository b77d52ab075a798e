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
use crate::device::DeviceUuid;
use crate::device::child::answer_of;

/// The kernels that try the machine out.
pub(super) const PROBE: &str = include_str!("../../../../../kernels/ptx/probe.ptx");
/// The one that stores a word.
pub(super) const STORE: &CStr = c"vram_probe_store";

/// What the word is before it is sealed, and what is stored then.
const BEFORE: u32 = 0x5a5a_5a5a;
const AFTER: [u32; 3] = [!BEFORE, 0x0f1e_2d3c, 0xc3d2_e1f0];
const SILENTLY: &str = "without a word of the driver's, three times, while the same store beside it arrived each time";

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
    /// The word was not written. How: the driver's result, or that it said nothing, while the same store into memory beside it
    /// went on to arrive.
    Refused(Box<str>),
    /// The word was written.
    WentThrough,
    /// It was not tried, or nothing follows from what happened. Why, and what can be done.
    NotRun(Box<str>),
}

/// An outcome, and of which GPU it is. Of another one it shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "an outcome and its GPU")]
pub struct Tested {
    /// The GPU that it was tried on, as the process that tried it found it; none where it was not tried on any.
    pub device: Option<DeviceUuid>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: WriteTest,
}

impl WriteTest {
    /// Tries it, in this process and on the driver's device `ordinal` (of the library at `library`, or else the one that
    /// the loader finds). **This process cannot use the GPU afterwards:** call this from a process that does nothing else,
    /// print [`Tested::to_line`], and end.
    ///
    /// The driver logs the refused store: NVRM Xid 31 is what was reported of it. Nothing is tried where GPUs are shared
    /// through MPS, where the fault of one process ends the others' work too.
    #[must_use]
    pub fn here(library: Option<&Path>, ordinal: u32) -> Tested {
        if let Some(control) = shared_by() {
            return shared(&format!("{} is there, so this GPU may be", control.display())).into();
        }
        let mut device = None;
        let tried = try_out(library, ordinal, &mut device);
        let outcome = tried.unwrap_or_else(|error| Self::NotRun(error.to_string().into()));
        Tested { device, outcome }
    }

    /// Runs the process that calls [`Self::here`], for at most `limit`, and takes what it says. No part of it is left
    /// running. Where it fails, hangs, or says something else, the outcome is [`Self::NotRun`] with the reason.
    #[must_use]
    pub fn in_child(command: &mut Command, limit: Duration) -> Tested {
        let remedy = "see the kernel's log for NVRM, and try again";
        let found = answer_of(command, limit).map_err(|why| format!("{why}; {remedy}"));
        let found = found.and_then(|said| {
            let outcome = said.lines().find_map(|line| serde_json::from_str(line).ok());
            outcome.ok_or_else(|| format!("its process ended without saying what came of it; {remedy}"))
        });
        found.unwrap_or_else(|why| Self::NotRun(why.into()).into())
    }

    /// Whether it showed that sealed memory cannot be written.
    #[must_use]
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl Tested {
    /// What [`WriteTest::in_child`] reads: JSON in one line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What it shows of a GPU.
    pub(super) fn of(&self, opened: DeviceUuid) -> WriteTest {
        match (&self.outcome, self.device) {
            (WriteTest::NotRun(_), _) => self.outcome.clone(),
            (_, Some(tried)) if tried == opened => self.outcome.clone(),
            (_, Some(tried)) => WriteTest::NotRun(
                format!(
                    "it was tried on {tried}, and the GPU that was opened is {opened}; see that CUDA_VISIBLE_DEVICES and \
                     CUDA_DEVICE_ORDER are the same for both, and start again"
                )
                .into(),
            ),
            (_, None) => {
                WriteTest::NotRun("its process did not say which GPU it was tried on; update the program, and try again".into())
            }
        }
    }
}

/// Of no GPU.
impl From<WriteTest> for Tested {
    fn from(outcome: WriteTest) -> Self {
        Self { device: None, outcome }
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
            Self::NotRun(reason) => write!(f, "nothing shows that a store into sealed memory is refused: {reason}"),
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
pub(super) fn shared_by() -> Option<PathBuf> {
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

/// Says in `which` what device it is, as soon as that is known.
fn try_out(library: Option<&Path>, ordinal: u32, which: &mut Option<DeviceUuid>) -> Result<WriteTest, CudaError> {
    let driver = Arc::new(Driver::load(library)?);
    let device = driver.device(ordinal)?;
    *which = Some(DeviceUuid(driver.device_uuid(device)?));
    require_virtual_memory(&driver, device, ordinal)?;
    // An older driver does not know the question.
    if driver.attribute(DeviceAttribute::MpsEnabled, device).is_ok_and(|enabled| enabled != 0) {
        return Ok(shared("the driver says that this GPU is"));
    }
    let context = Context::open(driver, device)?;
    let page = granularity(&context)?;
    let words = Words {
        store: Module::load(&context, "probe", PROBE)?.function(STORE)?,
        stream: Stream::new(&context)?,
        sealed: Mapped::create(&context, page)?,
        open: Mapped::create(&context, page)?,
        context,
    };
    words.clear(&words.open)?;
    // The same kernel has to be able to write where it may: else its not writing shows nothing.
    words.write(&words.sealed, BEFORE)?;
    if words.read(&words.sealed)? != BEFORE {
        return Ok(WriteTest::NotRun("the kernel that tries it does not write where it may; report this".into()));
    }
    words.sealed.seal()?;
    // Each time with another word. One kernel alone may be silently not run, whatever memory is like.
    for after in AFTER {
        match words.write(&words.sealed, after) {
            Ok(()) => {}
            Err(error) => {
                let refused = match &error {
                    CudaError::Lost { code, name, .. } if REFUSALS.contains(code) => {
                        Some(WriteTest::Refused(format!("{name}, {code}").into()))
                    }
                    _ => None,
                };
                // Nothing can be given back to a dead context; all of it ends with the process.
                std::mem::forget(words);
                return refused.ok_or(error);
            }
        }
        match words.read(&words.sealed)? {
            found if found == after => return Ok(WriteTest::WentThrough),
            BEFORE => {}
            _ => {
                let why = "the memory then held something that nobody had stored; report this";
                return Ok(WriteTest::NotRun(why.into()));
            }
        }
        words.write(&words.open, after)?;
        if words.read(&words.open)? != after {
            let why = "the store was not refused, and the same one into memory that is not sealed did not arrive either, so the \
                       kernel was silently not run; report this";
            return Ok(WriteTest::NotRun(why.into()));
        }
    }
    Ok(WriteTest::Refused(SILENTLY.into()))
}

/// Two pages of the device's memory, of each of which the first word is used.
struct Words {
    store: Function,
    stream: Stream,
    /// The one that is sealed.
    sealed: Mapped,
    /// The one that is not.
    open: Mapped,
    context: Arc<Context>,
}

impl Words {
    fn write(&self, memory: &Mapped, word: u32) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: the memory has a word, which is nobody else's, and the store is waited for.
        let asked = unsafe { store(&self.store, &self.stream, memory.start(), word) };
        let waited = self.stream.wait("store a word");
        asked.and(waited)
    }

    /// Makes the word zero, which is none of those that are stored.
    fn clear(&self, memory: &Mapped) -> Result<(), CudaError> {
        let _current = self.context.enter()?;
        // SAFETY: the memory has a word, which is nobody else's, and this is waited for.
        let asked = unsafe { self.stream.wipe(memory.start(), size_of::<u32>()) };
        let waited = self.stream.wait("wipe a word");
        asked.and(waited)
    }

    fn read(&self, memory: &Mapped) -> Result<u32, CudaError> {
        let mut word = PinnedBuffer::new(&self.context, size_of::<u32>())?;
        let _current = self.context.enter()?;
        // SAFETY: as long as the buffer, which is not looked at before the copy was waited for.
        let asked = unsafe { word.copy_from(memory.start(), size_of::<u32>(), &self.stream) };
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
