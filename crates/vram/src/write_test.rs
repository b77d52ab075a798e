//! The write test of a GPU, in a process of this program's own: the GPU stops whoever writes to sealed memory.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use vram_residency::device::{Tested, WriteTest, disable_kernel_cache};

use crate::exit::Failure;

/// The hidden command.
pub(crate) const COMMAND: &str = "write-test";

/// Starting a driver on a machine with many GPUs takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// A test that is being made beside other work.
#[derive(Debug)]
pub(crate) struct Pending(Result<JoinHandle<Tested>, WriteTest>);

impl Pending {
    /// Begins the test of a GPU; where it is not wanted, that is its outcome.
    pub(crate) fn begin(ordinal: u32, wanted: bool) -> Self {
        let not_run = |reason: String| WriteTest::NotRun(reason.into());
        if !wanted {
            return Self(Err(not_run("--no-write-test was given; leave it off to have it tried".to_owned())));
        }
        // The thread that started it stays until it has ended: else it would be ended as well.
        let thread = std::thread::Builder::new().name("write-test".to_owned()).spawn(move || test(ordinal));
        Self(thread.map_err(|error| not_run(format!("no thread can be started: {error}; end other processes"))))
    }

    /// Waits for what came of it.
    pub(crate) fn outcome(self) -> Tested {
        match self.0 {
            Ok(thread) => thread.join().unwrap_or_else(|_| WriteTest::NotRun("it failed; report this".into()).into()),
            Err(outcome) => outcome.into(),
        }
    }
}

fn test(ordinal: u32) -> Tested {
    // This very program, also where its file has been replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("vram").args([COMMAND, &ordinal.to_string()]);
    WriteTest::in_child(&mut command, LIMIT)
}

/// The hidden command: tries it in this process and says in one line what came of it.
pub(crate) fn here(ordinal: u32) -> Result<(), Failure> {
    disable_kernel_cache();
    // It does not outlive who waits for it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let said = writeln!(io::stdout(), "{}", WriteTest::here(None, ordinal).to_line());
    said.map_err(|error| Failure::new("output", format!("what came of it cannot be written: {error}; try again")))
}
