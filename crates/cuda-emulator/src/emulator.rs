//! The test's side: find the library, set its plan, read its report.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::driver::control::Ask;
use crate::plan::{Fault, Memory, Plan};
use crate::report::Report;

/// File name of the library that Cargo builds.
const FILE: &str = "libcuda_emulator.so";

type AskCall = unsafe extern "C" fn(*const u8, usize, *mut u8, extern "C" fn(*mut u8, *const u8, usize)) -> c_int;

/// The library as one process has it loaded. Tests that run in one process share it: [`Emulator::lock`] lets one at a time.
#[derive(Debug)]
pub struct Emulator {
    ask: AskCall,
    guard: Option<MutexGuard<'static, ()>>,
    checks: bool,
}

/// Held by the test that uses the library of this process.
static TURN: Mutex<()> = Mutex::new(());

/// The library of this build, absolute.
///
/// Cargo builds it beside the test's own program whenever this crate is a dependency. Where it is not there (a program that
/// was copied away), Cargo is asked to build it.
///
/// # Panics
/// When there is none and Cargo does not build one: a test cannot go on.
#[must_use]
pub fn library() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            beside_this_program()
                .or_else(build)
                .unwrap_or_else(|| panic!("no {FILE}: run `cargo build -p cuda-emulator`"))
        })
        .clone()
}

fn beside_this_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    // Tests are in `deps`, programs one above, examples in a folder beside it.
    program
        .ancestors()
        .skip(1)
        .take(2)
        .flat_map(|folder| [folder.join("deps").join(FILE), folder.join(FILE)])
        .find(|path| path.is_file())
}

fn build() -> Option<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "cuda-emulator", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let artifact = |line: &str| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let files = message.get("filenames")?.as_array()?;
        files.iter().filter_map(|file| file.as_str()).map(PathBuf::from).find(|path| path.ends_with(FILE))
    };
    text.lines().find_map(artifact)
}

/// Makes `libcuda.so.1` in a folder, for `LD_LIBRARY_PATH`.
///
/// # Errors
/// What the file system says.
pub fn link_into(folder: &Path) -> io::Result<PathBuf> {
    let link = folder.join("libcuda.so.1");
    std::os::unix::fs::symlink(library(), &link)?;
    Ok(link)
}

/// A copy of the library in `folder` that lacks these driver calls, as an older driver does. It has a state of its own:
/// [`Emulator::attach`] to it.
///
/// # Errors
/// What the file system says, or that the library exports no such call.
pub fn library_without(folder: &Path, calls: &[&str]) -> io::Result<PathBuf> {
    let mut bytes = std::fs::read(library())?;
    for call in calls {
        // The name in the table of exported names: with another first letter the loader finds it no more.
        let wanted: Vec<u8> = [b"\0", call.as_bytes(), b"\0"].concat();
        let places: Vec<usize> = (0..bytes.len().saturating_sub(wanted.len()))
            .filter(|&at| bytes[at] == 0 && bytes[at..].starts_with(&wanted))
            .collect();
        if places.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("the library exports no {call}")));
        }
        for at in places {
            bytes[at + 1] = b'x';
        }
    }
    let path = folder.join(format!("without-{}.so", calls.join("-")));
    std::fs::write(&path, bytes)?;
    Ok(path)
}

extern "C" fn collect(into: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: `into` is the vector that `Emulator::ask` passed, and the library passes `bytes` bytes.
    unsafe { (*into.cast::<Vec<u8>>()).extend_from_slice(std::slice::from_raw_parts(from, bytes)) }
}

impl Emulator {
    /// The library of this process, configured, for this test alone until the guard goes. Then the library is reset, and a
    /// ledger that is not empty is a panic unless [`Emulator::leaves`] was called or the test panics already.
    ///
    /// # Panics
    /// When the library cannot be loaded.
    #[must_use]
    pub fn lock(plan: Plan) -> Self {
        let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut emulator = Self::attach(&library()).unwrap_or_else(|error| panic!("{error}"));
        emulator.guard = Some(guard);
        emulator.checks = true;
        emulator.configure(&plan);
        emulator
    }

    /// A library by path, loaded for the rest of the process. Nothing is configured, locked or checked.
    ///
    /// # Errors
    /// What the loader says.
    pub fn attach(path: &Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: a NUL-terminated path. The library's initializers are Rust's own.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(io::Error::other(format!("{} cannot be loaded", path.display())));
        }
        // SAFETY: an open library and a NUL-terminated name.
        let ask = unsafe { libc::dlsym(library, c"cuda_emulator_ask".as_ptr()) };
        if ask.is_null() {
            return Err(io::Error::other(format!("{} is no emulator", path.display())));
        }
        // SAFETY: the function of that name has this type in every build of this crate.
        let ask = unsafe { std::mem::transmute::<*mut c_void, AskCall>(ask) };
        Ok(Self { ask, guard: None, checks: false })
    }

    /// Forgets everything, memory and handles included, and takes this plan.
    pub fn configure(&self, plan: &Plan) {
        self.ask(&Ask::Configure(plan.clone()));
    }

    /// The ledger as it stands.
    #[must_use]
    pub fn report(&self) -> Report {
        serde_json::from_value(self.ask(&Ask::Report)).unwrap_or_default()
    }

    /// More faults; their calls are counted from now.
    pub fn add_faults(&self, faults: Vec<Fault>) {
        self.ask(&Ask::AddFaults(faults));
    }

    /// No more planned faults. What is lost, dead or flipped stays so.
    pub fn clear_faults(&self) {
        self.ask(&Ask::ClearFaults);
    }

    /// Flips one bit now. False when there is no such memory or byte.
    #[must_use]
    pub fn flip(&self, memory: &Memory, offset: u64, bit: u8) -> bool {
        self.ask(&Ask::Flip { memory: memory.clone(), offset, bit }) == serde_json::Value::Bool(true)
    }

    /// Bytes of a piece of memory, whoever has access to it; `None` when there is no such memory. For small pieces.
    #[must_use]
    pub fn read(&self, memory: &Memory, offset: u64, bytes: u64) -> Option<Vec<u8>> {
        serde_json::from_value(self.ask(&Ask::Read { memory: memory.clone(), offset, bytes })).ok()
    }

    /// The test leaves things behind on purpose: nothing is checked when the guard goes.
    pub fn leaves(&mut self) {
        self.checks = false;
    }

    fn ask(&self, ask: &Ask) -> serde_json::Value {
        let question = serde_json::to_vec(ask).unwrap_or_default();
        let mut answer: Vec<u8> = Vec::new();
        // SAFETY: the question's bytes, and a vector that `collect` fills during the call.
        let code = unsafe { (self.ask)(question.as_ptr(), question.len(), (&raw mut answer).cast(), collect) };
        assert_eq!(code, 0, "the emulator does not understand the question: another build of it is loaded");
        serde_json::from_slice(&answer).unwrap_or_default()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if self.guard.is_none() {
            return;
        }
        let report = self.report();
        self.configure(&Plan::default());
        if self.checks
            && !std::thread::panicking()
            && let Some(complaint) = report.complaint()
        {
            self.guard = None;
            panic!("the emulator's ledger is not empty:\n{complaint}");
        }
    }
}
