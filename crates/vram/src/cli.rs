//! What can be typed.

mod attach;
mod attest;
mod audit;
mod daemon;
mod evidence;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand};
use vram_residency::ShardId;
use vram_residency::digest::Expected;
use vram_residency::model::Format;

use crate::approve::Source;

pub(crate) use attach::{AttachOptions, GpuHandout};
pub(crate) use attest::Attest;
pub(crate) use audit::{
    Audit, AuditCheckProof, AuditExport, AuditKeygen, AuditProve, AuditPrune, AuditShow, AuditSubject, AuditVerify,
    ExportFormat, Filter, Moment, SeverityChoice, Trusted,
};
pub(crate) use daemon::{Control, Period, Serve, ServeOptions, Socket};
pub(crate) use evidence::{EvidenceOptions, ReplicaSection, WitnessSection};

/// Keep model weights resident, and prove at any moment that they are the weights that were approved.
///
/// Exit codes: 0 good; 1 it could not be done; 2 wrong usage; 3 integrity failure (a digest, a seal or the log).
#[derive(Debug, Parser)]
#[command(name = "vram", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Print JSON for programs instead of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Directory of the audit log [default: $XDG_STATE_HOME/vram/audit, else ~/.local/state/vram/audit].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) audit_dir: Option<PathBuf>,
    /// Fail where a record cannot be kept, instead of going on and saying so.
    #[arg(long, global = true)]
    pub(crate) audit_required: bool,
    /// Who holds the shards; part of every seal and record [default: the host name].
    #[arg(long, global = true, value_name = "ID")]
    pub(crate) worker_id: Option<String>,
    /// File with the secret of the seal key, 32 to 1024 bytes [default: seal.key in the state directory, made on
    /// first use].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// File with the key that signs the audit log, as `vram audit keygen` makes it [default: the log's directory with
    /// .key behind its name].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) audit_key: Option<PathBuf>,
    /// Tell on stderr what happens; twice for more. RUST_LOG overrides.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a small model, seal it, flip one bit, find it, repair it, and check the record of it all.
    Demo(Demo),
    /// Load model files, seal them, verify them, report, and release them.
    Seal(Box<Seal>),
    /// Keep models resident, check them continuously, repair them, and answer HTTP.
    Serve(Box<Serve>),
    #[command(flatten)]
    Control(Control),
    /// Have the daemon verify now and sign for what it holds; check such a word offline; make the key.
    Attest(Box<Attest>),
    /// The audit log: read it, verify it, prove what it holds, sign it.
    #[command(subcommand)]
    Audit(Audit),
    /// What this machine can do, what is missing, and how to fix it.
    Doctor(Doctor),
    /// Measure this machine: seal against its floor, verify, durable records.
    Bench(Bench),
    /// What a store into sealed memory of a GPU comes to: run by this program for itself.
    #[command(name = crate::write_test::COMMAND, hide = true)]
    WriteTest {
        /// The GPU's number.
        ordinal: u32,
    },
}

/// `vram demo`
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Size of the model in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) size: u64,
    /// Where the temporary directory is made [default: $TMPDIR, else /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the model as this file, to play with; one that is there is not overwritten.
    #[arg(long, value_name = "FILE")]
    pub(crate) keep: Option<PathBuf>,
    /// Chooses the bit that is flipped [default: random, and printed].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) host: Host,
}

/// `vram seal`
#[derive(Debug, Args)]
pub(crate) struct Seal {
    /// A model file, a *.safetensors.index.json, or a directory of model files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Where the weights become resident: auto, host, cuda:N, or several GPUs that files are spread over: cuda:0,cuda:1.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Read the files as this format instead of what their content announces: safetensors, gguf or raw.
    #[arg(long)]
    pub(crate) format: Option<Format>,
    /// The hash that the publisher states: sha256:HEX or blake3:HEX. Exit 3 where it does not match.
    #[arg(long, value_name = "HASH")]
    pub(crate) expect: Option<Expected>,
    #[command(flatten)]
    pub(crate) approval: Source,
    /// What the model is called in seals and records [default: FILE as given].
    #[arg(long, value_name = "TEXT")]
    pub(crate) model_ref: Option<String>,
    /// The shard's name, where there is just one [default: made from the file's name].
    #[arg(long, value_name = "ID")]
    pub(crate) shard_id: Option<ShardId>,
    /// Refuse memory that the kernel may page out.
    #[arg(long)]
    pub(crate) require_locked: bool,
    /// Refuse memory that was not shown to be read-only.
    #[arg(long)]
    pub(crate) require_read_only: bool,
    /// Refuse everything but a GPU's own memory.
    #[arg(long)]
    pub(crate) require_vram: bool,
    /// Do not try whether the GPU refuses a store into sealed memory, which the driver logs; protection is then advisory.
    #[arg(long)]
    pub(crate) no_write_test: bool,
    #[command(flatten)]
    pub(crate) host: Host,
}

/// How the host device is opened.
#[derive(Debug, Args)]
pub(crate) struct Host {
    /// Most bytes that may become resident on each device, such as 8GiB [default: what there is free].
    #[arg(long, value_name = "BYTES")]
    pub(crate) capacity: Option<Bytes>,
    /// Threads that copy and hash [default: one for each processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) threads: Option<u16>,
}

/// `vram doctor`
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Do not try whether GPUs refuse a store into sealed memory, which the driver logs.
    #[arg(long)]
    pub(crate) no_write_test: bool,
    #[command(flatten)]
    pub(crate) host: Host,
}

/// `vram bench`
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Seal this file instead of one made for the purpose.
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    pub(crate) file: Option<PathBuf>,
    /// Size of the file that is made, in MiB [default: 2048, or less where memory is short].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) size: Option<u64>,
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,
    /// Where the file and the log are made; it should be on a disk [default: $TMPDIR, else /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) host: Host,
}

/// Where weights are to become resident.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    Auto,
    Host,
    /// One GPU, or several that files are spread over: numbers of the driver's, from 0, each named once.
    Cuda(Vec<u32>),
}

impl FromStr for DeviceChoice {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "host" => Ok(Self::Host),
            _ => {
                let number = |name: &str| name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                let numbers: Option<Vec<u32>> = text.split(',').map(number).collect();
                let numbers =
                    numbers.ok_or("a device is auto, host or cuda:N with a number N; GPUs are joined by commas")?;
                let twice =
                    (1..).zip(&numbers).any(|(next, number)| numbers.iter().skip(next).any(|other| other == number));
                if twice { Err("a GPU is named twice; name each once") } else { Ok(Self::Cuda(numbers)) }
            }
        }
    }
}

/// A number of bytes: `8GiB`, `500MB`, `1048576`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "a size is a whole number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB behind it";
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(SHAPE),
        };
        let number: u64 = number.parse().map_err(|_| SHAPE)?;
        match number.checked_mul(factor) {
            None => Err("that is more than any machine has; give fewer bytes"),
            Some(0) => Err("nothing fits into 0 bytes; give more"),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

/// Whether JSON was asked for, found out before the arguments are understood: their errors are JSON then too.
pub(crate) fn wants_json(arguments: &[OsString]) -> bool {
    arguments.iter().skip(1).take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let good = [("1", 1), ("8GiB", 8 << 30), ("8 gib", 8 << 30), ("500MB", 500_000_000), ("3k", 3072), ("7B", 7)];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GiB", "8 Gigs", "99999999999999999999", "99999999TiB", "0", "0GiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_named_exactly() {
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(vec![3])));
        assert_eq!("cuda:1,cuda:0".parse(), Ok(DeviceChoice::Cuda(vec![1, 0])));
        for bad in ["", "cuda:0,host", "cuda:0,", "cuda:0,cuda:0", "cuda", "cuda:", "cuda:x", "cuda:-1", "gpu", "HOST"]
        {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}
