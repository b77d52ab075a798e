//! What can be typed about attestations.

use std::path::PathBuf;

use clap::Args;
use vram_residency::ShardId;
use vram_residency::attest::Nonce;

use super::Socket;

/// `vram attest`: one of three things, chosen by --nonce, --check or --keygen.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["nonce", "check", "keygen"])))]
pub(crate) struct Attest {
    /// Ask the daemon to verify now and to sign an answer to this number: 16 to 128 lower-case hex digits. With --check:
    /// the number that was asked.
    #[arg(long, value_name = "HEX", conflicts_with = "keygen")]
    pub(crate) nonce: Option<Nonce>,
    /// Only this shard; may be repeated [default: all].
    #[arg(long = "shard", value_name = "ID", conflicts_with_all = ["check", "keygen"])]
    pub(crate) shards: Vec<ShardId>,
    /// Write the attestation to this file instead of standard output.
    #[arg(short, long = "output", value_name = "FILE", conflicts_with_all = ["check", "keygen"])]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) socket: Socket,
    /// Check an attestation, offline. Exit 3 where it is not to be believed.
    #[arg(long, value_name = "FILE", requires = "policy", conflicts_with_all = ["keygen", "socket"])]
    pub(crate) check: Option<PathBuf>,
    /// What must hold of it, in TOML; docs/attestation.md has every key.
    #[arg(long, value_name = "FILE", requires = "check")]
    pub(crate) policy: Option<PathBuf>,
    /// Make the key that signs attestations. Nothing that exists is overwritten.
    #[arg(long, conflicts_with = "socket")]
    pub(crate) keygen: bool,
    /// Where --keygen puts the key [default: attest.key in the state directory].
    #[arg(long, value_name = "FILE", requires = "keygen")]
    pub(crate) attest_key: Option<PathBuf>,
}
