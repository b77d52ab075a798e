//! The `vram` program.
#![forbid(unsafe_code)]

mod approve;
mod cli;
mod commands;
mod devices;
mod exit;
mod jobs;
mod machine;
mod output;
mod sample;
mod serve;
mod session;
mod small_file;
mod state;
mod write_test;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing_subscriber::EnvFilter;

use cli::Cli;
use exit::{Exit, Failure};
use output::{Out, printable};

fn main() -> ExitCode {
    keep_out_of_core_dumps();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let exit = match Cli::try_parse_from(&arguments) {
        Ok(cli) => {
            listen(cli.global.verbose);
            let out = Out::new(cli.global.json);
            let done = commands::run(&cli, &out);
            conclude(&out, done)
        }
        Err(refusal) => explain(refusal, &arguments),
    };
    ExitCode::from(exit as u8)
}

/// No core file and no debugger of the same user may see keys or weights. What the system refuses here is no reason
/// not to work.
fn keep_out_of_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Shows what the library tells, on stderr, where somebody asked for it.
fn listen(verbose: u8) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info")),
        _ => match verbose {
            0 => return,
            1 => EnvFilter::new("info"),
            _ => EnvFilter::new("trace"),
        },
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Somebody may close stderr: that is no reason to panic.
    let _ = subscriber.log_internal_errors(false).try_init();
}

fn conclude(out: &Out, done: Result<(), Failure>) -> Exit {
    match done.and_then(|()| out.finish()) {
        Ok(()) => Exit::Good,
        Err(failure) => {
            out.failure(&failure);
            failure.exit
        }
    }
}

/// Help and version on stdout; anything else is wrong usage.
fn explain(refusal: clap::Error, arguments: &[OsString]) -> Exit {
    if matches!(refusal.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = refusal.print();
        return Exit::Good;
    }
    // Asked once more with words that can be shown: the same refusal, and no line of it is made up by a word.
    let shown = arguments.iter().map(|argument| printable(&argument.to_string_lossy()));
    let refusal = Cli::try_parse_from(shown).err().filter(|again| again.kind() == refusal.kind()).unwrap_or(refusal);
    let text = refusal.render().to_string();
    let text = text.trim_start_matches("error: ").trim_end();
    let out = Out::new(cli::wants_json(arguments));
    let (first, hints) = text.split_once('\n').unwrap_or((text, ""));
    if out.json {
        out.failure(&Failure::usage(in_one_line(&refusal, text)));
    } else {
        out.warn(first);
        for line in hints.lines() {
            let _ = writeln!(io::stderr(), "{}", printable(line));
        }
    }
    Exit::Usage
}

/// The whole of a refusal but for the hints that follow it.
fn in_one_line(refusal: &clap::Error, text: &str) -> String {
    if refusal.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing; vram --help lists them".to_owned();
    }
    let told = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told: Vec<_> =
        told.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information")).collect();
    told.join(" ")
}
