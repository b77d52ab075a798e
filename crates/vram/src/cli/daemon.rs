//! What can be typed about the daemon: `vram serve` and the commands that talk to it.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Deserialize, Deserializer};
use vram_residency::ShardId;
use vram_residency::approval::Algorithm;
use vram_residency::model::Format;
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{Budget, PERIODS};

use super::{AttachOptions, Bytes, DeviceChoice, EvidenceOptions, GpuHandout};
use crate::approve::Source;

/// `vram serve`
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Configuration file in TOML; every key is the name of a flag, with _ for -. Flags win.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: ServeOptions,
}

/// Each of these is a flag and a key of the configuration file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServeOptions {
    /// Model files, *.safetensors.index.json, or directories of model files. None: wait for `vram load`.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Read the files as this format instead of what their content announces: safetensors, gguf or raw.
    #[arg(long)]
    #[serde(deserialize_with = "text")]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) approval: Source,
    /// The configuration file's `manifest`, `manifest_key` and `manifest_hash`: as the flags.
    #[arg(skip)]
    pub(crate) manifest: Option<PathBuf>,
    #[arg(skip)]
    pub(crate) manifest_key: Option<PathBuf>,
    #[arg(skip)]
    #[serde(deserialize_with = "text")]
    pub(crate) manifest_hash: Option<Algorithm>,
    /// Refuse to load or reseal what no manifest approves.
    #[arg(long)]
    pub(crate) require_approval: bool,
    /// `[[models]]`: more files, each section with a manifest of its own; only the configuration file says it.
    #[arg(skip)]
    pub(crate) models: Vec<ModelSection>,
    /// Where HTTP is answered [default: 127.0.0.1:9810].
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text")]
    pub(crate) listen: Option<Listen>,
    /// The control socket [default: $XDG_RUNTIME_DIR/vram.sock, else vram.sock in the state directory].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// File with the bearer token for HTTP requests that cost work, 32 to 1024 bytes. Without it they are refused.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The key that signs attestations, as vram attest --keygen makes it [default: attest.key in the state directory].
    #[arg(long, value_name = "FILE")]
    pub(crate) attest_key: Option<PathBuf>,
    /// What a failed check is answered by: fail-closed, repair, log or stop-worker [default: fail-closed].
    #[arg(long, value_name = "POLICY")]
    #[serde(deserialize_with = "text")]
    pub(crate) on_failure: Option<OnFailure>,
    /// Every block is checked within this time, such as 60s, 500ms or 5m [default: 60s].
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "text")]
    pub(crate) period: Option<Period>,
    /// What checking may cost on each device: a share of one thread's time such as 25%, a speed such as 200MiB/s, or
    /// unlimited [default: 25%].
    #[arg(long, value_name = "BUDGET")]
    #[serde(deserialize_with = "text")]
    pub(crate) budget: Option<Budget>,
    /// Every shard's fingerprint is checked within this time as well, 100ms to the period; only on a GPU [default: never].
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "text")]
    pub(crate) recheck: Option<Period>,
    /// Keys for that which each shard gets, 1 to 1024, 64 bytes and one pass over the shard each; when they are used up, new
    /// ones follow, and a full verification [default: 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) recheck_keys: Option<u16>,
    /// So many faults in one block quarantine the device; 0: never [default: 2].
    #[arg(long, value_name = "N")]
    pub(crate) repeat_faults: Option<u32>,
    /// So many repaired blocks in 24 hours quarantine the device; 0: never [default: 3].
    #[arg(long, value_name = "N")]
    pub(crate) repairs_per_day: Option<u32>,
    /// Most connections at one time, on each of the two interfaces [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_connections: Option<u16>,
    /// Let `vram drill` damage resident bits on purpose.
    #[arg(long)]
    pub(crate) allow_drill: bool,
    /// Where the weights become resident: auto, host, cuda:N, or several GPUs that files are spread over: cuda:0,cuda:1
    /// [default: auto].
    #[arg(long)]
    #[serde(deserialize_with = "text")]
    pub(crate) device: Option<DeviceChoice>,
    /// Most bytes that may become resident on each device, such as 8GiB [default: what there is free].
    #[arg(long, value_name = "BYTES")]
    #[serde(deserialize_with = "text")]
    pub(crate) capacity: Option<Bytes>,
    /// Threads that copy and hash [default: one for each processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) threads: Option<u16>,
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
    /// Whether shards in a GPU's memory are handed out: refuse, or trust-clients, who can write to what they are given
    /// [default: refuse]. In the configuration file: `[attach] gpu`.
    #[arg(long, value_name = "POLICY")]
    #[serde(skip)]
    pub(crate) attach_gpu: Option<GpuHandout>,
    // The options of every command; as flags they are there already.
    #[arg(skip)]
    pub(crate) audit_dir: Option<PathBuf>,
    #[arg(skip)]
    pub(crate) audit_required: bool,
    #[arg(skip)]
    pub(crate) worker_id: Option<String>,
    #[arg(skip)]
    pub(crate) key_file: Option<PathBuf>,
    /// What of the audit log leaves the machine; only the configuration file says it.
    #[arg(skip)]
    pub(crate) audit: EvidenceOptions,
    /// Who may have shards handed out; but for `gpu` only the configuration file says it.
    #[arg(skip)]
    pub(crate) attach: AttachOptions,
}

impl ServeOptions {
    /// These, and where they are silent, those.
    pub(crate) fn over(self, below: Self) -> Self {
        Self {
            files: if self.files.is_empty() { below.files } else { self.files },
            format: self.format.or(below.format),
            approval: self.approval,
            manifest: below.manifest,
            manifest_key: below.manifest_key,
            manifest_hash: below.manifest_hash,
            require_approval: self.require_approval || below.require_approval,
            models: below.models,
            listen: self.listen.or(below.listen),
            socket: self.socket.or(below.socket),
            token_file: self.token_file.or(below.token_file),
            attest_key: self.attest_key.or(below.attest_key),
            on_failure: self.on_failure.or(below.on_failure),
            period: self.period.or(below.period),
            budget: self.budget.or(below.budget),
            recheck: self.recheck.or(below.recheck),
            recheck_keys: self.recheck_keys.or(below.recheck_keys),
            repeat_faults: self.repeat_faults.or(below.repeat_faults),
            repairs_per_day: self.repairs_per_day.or(below.repairs_per_day),
            max_connections: self.max_connections.or(below.max_connections),
            allow_drill: self.allow_drill || below.allow_drill,
            device: self.device.or(below.device),
            capacity: self.capacity.or(below.capacity),
            threads: self.threads.or(below.threads),
            require_locked: self.require_locked || below.require_locked,
            require_read_only: self.require_read_only || below.require_read_only,
            require_vram: self.require_vram || below.require_vram,
            no_write_test: self.no_write_test || below.no_write_test,
            audit_dir: self.audit_dir.or(below.audit_dir),
            audit_required: self.audit_required || below.audit_required,
            worker_id: self.worker_id.or(below.worker_id),
            key_file: self.key_file.or(below.key_file),
            audit: below.audit,
            attach: AttachOptions { gpu: self.attach_gpu.or(below.attach.gpu), ..below.attach },
            attach_gpu: None,
        }
    }
}

/// `[[models]]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelSection {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) manifest: Option<PathBuf>,
    pub(crate) manifest_key: Option<PathBuf>,
    #[serde(deserialize_with = "text")]
    pub(crate) manifest_hash: Option<Algorithm>,
}

/// A value that the configuration file has as text, in the form that the flag takes.
pub(super) fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// Where the daemon is.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The daemon's control socket [default: as for vram serve].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Commands that talk to a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Control {
    /// How the daemon's shards are doing. Exit 3 where one is damaged.
    Status {
        /// Only this shard.
        shard: Option<ShardId>,
        /// Again every second, until interrupted.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Have the daemon verify one shard, or all, now. Exit 3 where one is damaged.
    Verify {
        /// Only this shard.
        shard: Option<ShardId>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Have the daemon load and seal more files.
    Load {
        /// A model file, a *.safetensors.index.json, or a directory of model files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Read the files as this format: safetensors, gguf or raw.
        #[arg(long)]
        format: Option<Format>,
        #[command(flatten)]
        approval: Source,
        #[command(flatten)]
        socket: Socket,
    },
    /// Have the daemon repair a shard from its file.
    Repair {
        /// The shard.
        shard: ShardId,
        #[command(flatten)]
        socket: Socket,
    },
    /// Have the daemon release a shard.
    Release {
        /// The shard.
        shard: ShardId,
        /// Also where clients hold it: they keep the memory, and are told that nobody checks it any more.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Give up a shard's seal, so that its file may be changed. The reason is recorded.
    Unseal {
        /// The shard.
        shard: ShardId,
        /// Why: 1 to 4096 bytes.
        #[arg(long)]
        reason: String,
        /// Also where clients hold it: they keep the memory, and are told that nobody checks it any more.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Seal an unsealed shard again, from its file as it is now or from another.
    Reseal {
        /// The shard.
        shard: ShardId,
        /// The file [default: the one that it was sealed from].
        file: Option<PathBuf>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Damage one resident bit on purpose, to see that it is found. The daemon must run with --allow-drill.
    Drill {
        /// The shard.
        shard: ShardId,
        /// The byte, from 0 [default: random].
        #[arg(long, value_name = "N")]
        byte: Option<u64>,
        /// The bit, 0 to 7 [default: random].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=7))]
        bit: Option<u8>,
        #[command(flatten)]
        socket: Socket,
    },
}

/// Where to listen: `127.0.0.1:9810`, `[::1]:9810`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) SocketAddr);

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "an address is IP:PORT, such as 127.0.0.1:9810")
    }
}

/// A time: `60s`, `500ms`, `5m`, `1h`.
/// Within what the continuous check takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

impl FromStr for Period {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "a period is a whole number with ms, s, m or h behind it, from 100ms to 8784h";
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or(SHAPE)?;
        let factor = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(SHAPE),
        };
        let number: u64 = number.parse().map_err(|_| SHAPE)?;
        let period = number.checked_mul(factor).map(Duration::from_millis).filter(|period| PERIODS.contains(period));
        period.map(Self).ok_or(SHAPE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, ms) in [("60s", 60_000), ("500ms", 500), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(ms))), "{text}");
        }
        for text in ["0s", "99ms", "8785h", "", "5", "s", "-1s", "1.5s", "99999999999999999999s", "5 parsecs"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: ServeOptions =
            toml::from_str("listen = \"127.0.0.1:1\"\nperiod = \"5s\"\nallow_drill = true").unwrap();
        let flags = ServeOptions { period: Some(Period(Duration::from_secs(9))), ..ServeOptions::default() };
        let both = flags.over(file);
        assert_eq!(both.listen, Some(Listen("127.0.0.1:1".parse().unwrap())));
        assert_eq!((both.period, both.allow_drill), (Some(Period(Duration::from_secs(9))), true));
        assert!(toml::from_str::<ServeOptions>("perod = \"5s\"").is_err(), "an unknown key is refused");
        assert!(toml::from_str::<ServeOptions>("period = \"5 parsecs\"").is_err());
    }
}
