//! The sections: a table, and what they share.

mod correctness;
mod facts;
mod interference;
mod kernels;
mod load;
mod verify;
pub(crate) mod writes;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use vram_residency::device::cuda_measure::{Facts, Gpu};
use vram_residency::device::{CudaDevice, CudaOptions, HashVariant};

use crate::Cli;
use crate::sink::{Line, Sink};

/// A section, and the most seconds that it may take.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) seconds: u64,
    run: fn(&Bench<'_>) -> Result<()>,
}

/// In the order in which they run: should the time end early, the last ones are the least missed.
pub(crate) const ALL: [Plan; 7] = [
    Plan { name: "facts", title: "What the card and its driver state", seconds: 40, run: facts::run },
    Plan { name: "kernels", title: "Speed of each kernel", seconds: 100, run: kernels::run },
    Plan { name: "verify", title: "A whole verification", seconds: 90, run: verify::run },
    Plan { name: "correctness", title: "Conformance and correctness", seconds: 150, run: correctness::run },
    Plan { name: "writes", title: "Attempts to write into a sealed region", seconds: 120, run: writes::run },
    Plan { name: "load", title: "Loading", seconds: 90, run: load::run },
    Plan { name: "interference", title: "A scan beside other work", seconds: 80, run: interference::run },
];

/// What a section works with.
pub(crate) struct Bench<'a> {
    pub(crate) cli: &'a Cli,
    pub(crate) gpu: Gpu,
    pub(crate) facts: Facts,
    pub(crate) sink: Sink,
}

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

impl Bench<'_> {
    /// One value for GPUs, another for emulated ones.
    pub(crate) fn size<T>(&self, full: T, small: T) -> T {
        if self.cli.small { small } else { full }
    }

    /// A size in whole blocks: what is wanted, or as much as fits `share` times into what is free, less a third of it or
    /// 2 GiB for the device's own buffers and headroom.
    pub(crate) fn fits(&self, full: u64, small: u64, share: u64) -> u64 {
        let free = self.facts.free_bytes;
        let room = (free - (free / 3).min(2 * GIB)) / share.max(1);
        self.size(full, small).min(room) / MIB * MIB
    }

    pub(crate) fn rounds(&self) -> usize {
        self.size(5, 1)
    }

    /// How the device is opened. On an emulated GPU launches are short and no variant is chosen by measurement.
    pub(crate) fn options(&self) -> CudaOptions {
        let mut options = CudaOptions::default();
        options.ordinal = self.cli.device;
        options.library.clone_from(&self.cli.library);
        if self.cli.small {
            options.launch_blocks = Some(2);
            options.threads = Some(2);
            options.variant = Some(HashVariant::Plain);
        }
        options
    }

    pub(crate) fn device(&self) -> Result<CudaDevice> {
        CudaDevice::open(&self.options()).context("the CUDA device cannot be opened")
    }
}

/// Opens a GPU for a section or an attempt. Its parent's end is the process's own.
pub(crate) fn open(cli: &Cli) -> Result<(Gpu, Facts)> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let gpu = Gpu::open(cli.library.as_deref(), cli.device)?;
    let facts = gpu.facts()?;
    Ok((gpu, facts))
}

/// Runs one section in this process.
pub(crate) fn run(cli: &Cli, name: &str) -> Result<bool> {
    let Some(plan) = ALL.iter().find(|plan| plan.name == name) else { bail!("there is no section `{name}`") };
    let mut sink = Sink { emulated: false };
    let outcome = open(cli).and_then(|(gpu, facts)| {
        // The emulator of this repository names its GPUs so.
        let emulated = facts.name.contains("Emulated");
        sink.emulated = emulated;
        sink.say(&Line::Device { facts: serde_json::to_value(&facts)?, emulated });
        (plan.run)(&Bench { cli, gpu, facts, sink: Sink { emulated } })
    });
    let good = outcome.is_ok();
    sink.say(&Line::End { error: outcome.err().map(|error| format!("{error:#}")) });
    Ok(good)
}

/// The middle one; of two middle ones the larger.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median over `rounds` rounds behind one that warms up.
pub(crate) fn rounds<E>(rounds: usize, mut one: impl FnMut() -> Result<Duration, E>) -> Result<f64, E> {
    one()?;
    let times = (0..rounds).map(|_| one().map(|took| took.as_secs_f64()));
    Ok(median(times.collect::<Result<_, E>>()?))
}

/// The size as a person says it.
pub(crate) fn shown(bytes: u64) -> String {
    if bytes.is_multiple_of(GIB) { format!("{} GiB", bytes / GIB) } else { format!("{} MiB", bytes / MIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_first_round_does_not_count() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        let mut times = [9, 1, 3, 2].into_iter();
        let median = rounds(3, || Ok::<_, ()>(Duration::from_secs(times.next().unwrap())));
        assert_eq!(median, Ok(2.0));
    }
}
