//! `vram-gpu-check`: conformance, correctness and speed of the CUDA device on the machine that has the GPU.
//!
//! The program calls itself for each section, so that a section that crashes, hangs or kills the GPU's context takes
//! nothing else with it. What each section does and how to read it: `docs/gpu-check.md`.
#![forbid(unsafe_code)]
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a measuring program: an overflow ends a section, which is reported as failed"
)]

mod children;
mod pattern;
mod report;
mod sections;
mod sink;

use std::alloc::System;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts the heap allocations of a verification, in all threads.
#[global_allocator]
pub(crate) static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Checks and measures a GPU with everything that vram-residency does on it.
#[derive(Debug, Clone, Parser)]
#[command(name = "vram-gpu-check", version)]
pub(crate) struct Cli {
    /// Where the results go: gpu-check.json and gpu-check.md.
    /// Otherwise the directory in the variable OUT, otherwise the working directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the file for the load from disk is written and removed again; about 4 GiB.
    #[arg(long, default_value = ".", value_name = "DIR")]
    disk: PathBuf,
    /// Which GPU.
    #[arg(long, default_value_t = 0, value_name = "N")]
    device: u32,
    /// The driver's library; otherwise the one that the loader finds.
    #[arg(long, value_name = "FILE")]
    library: Option<PathBuf>,
    /// Sizes for an emulated GPU: everything runs, and nothing is measured.
    #[arg(long)]
    small: bool,
    /// Seconds that all sections may take together.
    #[arg(long, default_value_t = 480, value_name = "N")]
    budget: u64,
    /// Makes the writes that the GPU must refuse also where it is shared through MPS: that ends the work of every client of
    /// MPS on it.
    #[arg(long)]
    writes_under_mps: bool,
    /// Only these sections.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Runs one section in this process (what the program calls itself with).
    #[arg(long, hide = true)]
    section: Option<String>,
    /// Runs one attempt to write in this process.
    #[arg(long, hide = true)]
    attempt: Option<String>,
    /// A descriptor of memory that the parent exported, and the memory's length in bytes.
    #[arg(long, hide = true, num_args = 2)]
    handed: Option<Vec<u64>>,
}

impl Cli {
    fn out(&self) -> PathBuf {
        let set = std::env::var_os("OUT").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        self.out.clone().or(set).unwrap_or_else(|| ".".into())
    }
}

fn main() -> ExitCode {
    // Before any thread is started: the driver reads it when it is loaded.
    vram_residency::device::disable_kernel_cache();
    let cli = Cli::parse();
    let done = match (&cli.section, &cli.attempt) {
        (Some(section), _) => sections::run(&cli, section),
        (None, Some(attempt)) => sections::writes::child(&cli, attempt),
        (None, None) => children::run(&cli),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vram-gpu-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}
