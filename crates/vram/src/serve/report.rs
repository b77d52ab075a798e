//! What the daemon says about itself, in the shape in which it is sent. `openapi.json` describes the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vram_residency::device::{DeviceInfo, Protection, Residency};
use vram_residency::digest::Digest;
use vram_residency::scrub::ScrubStatus;
use vram_residency::{Fault, ShardId, ShardState};

/// Everything at one glance.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) version: &'static str,
    pub(crate) worker_id: String,
    pub(crate) ready: bool,
    /// Why not, where not.
    pub(crate) not_ready: Vec<String>,
    pub(crate) on_failure: &'static str,
    pub(crate) device: DeviceView,
    pub(crate) scrub: ScrubStatus,
    pub(crate) audit: AuditView,
    pub(crate) shards: Vec<ShardView>,
    pub(crate) unsealed: Vec<UnsealedView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    #[serde(flatten)]
    pub(crate) info: DeviceInfo,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) quarantined: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct AuditView {
    pub(crate) dir: PathBuf,
    pub(crate) health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    pub(crate) records: u64,
    pub(crate) queued: u64,
    pub(crate) lost: u64,
    pub(crate) late: u64,
    /// What of it is signed, copied and cosigned; none where it has no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) evidence: Option<EvidenceView>,
}

/// What of the audit log is signed, and where else it is known.
#[derive(Debug, Serialize)]
pub(crate) struct EvidenceView {
    pub(crate) origin: String,
    pub(crate) vkey: String,
    pub(crate) signed_records: u64,
    /// Why nothing more is signed, where that is so.
    pub(crate) refused: Option<String>,
    pub(crate) replicas: Vec<ElsewhereView>,
    pub(crate) witnesses: Vec<ElsewhereView>,
    /// Witnesses that have to cosign.
    pub(crate) quorum: usize,
    pub(crate) cosigned_records: u64,
}

/// A replica or a witness.
#[derive(Debug, Serialize)]
pub(crate) struct ElsewhereView {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    /// What it knows.
    pub(crate) records: u64,
    /// What it does not know yet.
    pub(crate) lag_records: u64,
    pub(crate) last_success: Option<String>,
    pub(crate) failures: u64,
    pub(crate) last_error: Option<String>,
    /// What was found out about a replica's store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<ProbeView>,
}

/// What a store really does.
#[derive(Debug, Serialize)]
pub(crate) struct ProbeView {
    /// Whether creating what exists is refused.
    pub(crate) conditional_create: bool,
    /// How many of 32 that created one object at once were told that they did.
    pub(crate) winners: u32,
    /// What became of deleting a version.
    pub(crate) object_lock: &'static str,
}

/// A sealed shard.
#[derive(Debug, Serialize)]
pub(crate) struct ShardView {
    pub(crate) shard_id: ShardId,
    pub(crate) model_ref: String,
    pub(crate) shard_index: u32,
    pub(crate) shard_count: u32,
    pub(crate) bytes: u64,
    pub(crate) digest: Digest,
    pub(crate) tensors: usize,
    pub(crate) state: ShardState,
    pub(crate) residency: Residency,
    pub(crate) protection: Protection,
    pub(crate) sealed_at: String,
    pub(crate) last_verified_at: String,
    pub(crate) oldest_age_seconds: f64,
    pub(crate) passes: u64,
    pub(crate) faults: u64,
    pub(crate) repairs: u64,
    pub(crate) has_source: bool,
    pub(crate) last_fault: Option<Fault>,
}

/// A shard whose seal was given up, and that waits to be sealed again.
#[derive(Debug, Serialize)]
pub(crate) struct UnsealedView {
    pub(crate) shard_id: ShardId,
    pub(crate) bytes: u64,
    pub(crate) reason: String,
}

/// What was given back.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Released {
    Sealed(Box<ShardView>),
    Unsealed(Box<UnsealedView>),
}

/// Whether the daemon is alive, or ready.
#[derive(Debug, Serialize)]
pub(crate) struct Health {
    pub(crate) ok: bool,
    pub(crate) reasons: Vec<String>,
}

/// `POST /v1/shards` on the control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadRequest {
    pub(crate) files: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest_key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest_hash: Option<String>,
}

/// `POST /v1/shards/{id}/unseal` on the control socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnsealRequest {
    pub(crate) reason: String,
}

/// `POST /v1/shards/{id}/reseal` on the control socket.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResealRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
}

/// `POST /v1/shards/{id}/drill` on the control socket.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrillRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) byte: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bit: Option<u8>,
}

/// Which bit was damaged.
#[derive(Debug, Serialize)]
pub(crate) struct Drilled {
    pub(crate) shard_id: ShardId,
    pub(crate) byte: u64,
    pub(crate) bit: u8,
    pub(crate) block: u64,
}
