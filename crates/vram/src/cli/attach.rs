//! The section `[attach]` of the daemon's configuration.

use std::path::PathBuf;

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
}
