//! The section `[attach]` of the daemon's configuration.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use vram_residency::digest::Digest;

/// Who may have which shards handed out, and where.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AttachOptions {
    /// Whether anything is handed out at all [default: true].
    pub(crate) enabled: Option<bool>,
    /// The attach socket [default: beside the control socket, with `-attach` behind its name].
    pub(crate) socket: Option<PathBuf>,
    /// Users who may have shards, by number, besides the daemon's own and root.
    pub(crate) uids: Vec<u32>,
    /// Digests of the shards that are handed out [default: all].
    pub(crate) digests: Option<Vec<Digest>>,
    /// Most connections at one time, 4 or more: an eighth for the daemon's own user and root, of the others half for one user
    /// [default: 512].
    pub(crate) max_clients: Option<u16>,
    /// What is done where somebody asks for a shard in a GPU's memory: refuse or trust-clients [default: refuse].
    #[serde(deserialize_with = "super::daemon::text")]
    pub(crate) gpu: Option<GpuHandout>,
}

/// Whether a GPU's memory is handed out. Whoever has its descriptor can write to it, and nobody can take it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum GpuHandout {
    #[default]
    Refuse,
    /// To clients that are trusted not to write; the protection is `advisory` from then on.
    TrustClients,
}

impl GpuHandout {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::TrustClients => "trust-clients",
        }
    }
}

impl FromStr for GpuHandout {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = [Self::Refuse, Self::TrustClients].into_iter().find(|known| known.as_str() == text);
        known.ok_or("a GPU's memory is handed out by refuse (it is not) or trust-clients (who has it can write to it)")
    }
}
