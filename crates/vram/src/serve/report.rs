//! What the daemon says about itself, in the shape in which it is sent. `openapi.json` describes the same.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use audit_logging::{Clock as _, SystemClock};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use vram_residency::device::{Protection, Residency};
use vram_residency::digest::Digest;
use vram_residency::scrub::ScrubStatus;
use vram_residency::{Fault, ShardId, ShardState};

use crate::approve::ApprovalView;
use crate::devices::About;

/// Everything at one glance.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) version: &'static str,
    pub(crate) worker_id: String,
    /// The daemon's clock, so that nobody need trust his own.
    pub(crate) time: String,
    pub(crate) ready: bool,
    /// Since when it is ready, or is not.
    pub(crate) ready_since: String,
    /// Why not, where not.
    pub(crate) not_ready: Vec<String>,
    pub(crate) on_failure: &'static str,
    /// Whether only what a manifest approves is loaded.
    pub(crate) require_approval: bool,
    pub(crate) devices: Vec<DeviceView>,
    /// The checks of all devices, taken together.
    pub(crate) scrub: ScrubStatus,
    pub(crate) audit: AuditView,
    pub(crate) handout: HandoutView,
    pub(crate) shards: Vec<ShardView>,
    pub(crate) unsealed: Vec<UnsealedView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    #[serde(flatten)]
    pub(crate) about: About,
    pub(crate) total_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) quarantined: Option<String>,
    /// Why only a restart can use it again.
    pub(crate) lost: Option<String>,
    /// The check of its shards.
    pub(crate) scrub: ScrubStatus,
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
    /// When the daemon made its last record.
    pub(crate) last_record_at: Option<String>,
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
    /// Of these, how many were given up as too old.
    pub(crate) pruned_records: u64,
    /// Of those, how many still stand in the log's segments.
    pub(crate) pruned_in_segments: u64,
    /// How long records are kept; for ever without.
    pub(crate) keep_seconds: Option<u64>,
    /// When the daemon signed last; none where it has not yet.
    pub(crate) signed_at: Option<String>,
    /// Why nothing more is signed, where that is so.
    pub(crate) refused: Option<String>,
    /// What failed last, or what is wrong with the next key, until it is mended.
    pub(crate) last_failure: Option<String>,
    pub(crate) replicas: Vec<ElsewhereView>,
    pub(crate) witnesses: Vec<ElsewhereView>,
    /// Witnesses that have to cosign.
    pub(crate) quorum: usize,
    pub(crate) cosigned_records: u64,
    /// When enough witnesses cosigned last; none where the daemon has not seen it yet.
    pub(crate) cosigned_at: Option<String>,
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
    /// When the daemon first saw it so.
    pub(crate) state_since: String,
    /// Where it is, such as `cuda:1`.
    pub(crate) device: String,
    pub(crate) residency: Residency,
    /// What stops a write now.
    pub(crate) protection: Protection,
    /// Since when clients can write to it, because its memory was handed to them so; none where nobody can.
    pub(crate) writable_since: Option<String>,
    /// By which manifest it was approved, where it was.
    pub(crate) approval: Option<ApprovalView>,
    /// Why it cannot be handed out, however it stands, where that is so.
    pub(crate) not_attachable: Option<String>,
    pub(crate) sealed_at: String,
    pub(crate) last_verified_at: String,
    pub(crate) oldest_age_seconds: f64,
    pub(crate) passes: u64,
    pub(crate) rechecks: u64,
    pub(crate) recheck_keys: u32,
    pub(crate) faults: u64,
    pub(crate) repairs: u64,
    pub(crate) has_source: bool,
    pub(crate) last_fault: Option<Fault>,
}

/// Every block of a shard: when it was last found as sealed.
#[derive(Debug, Serialize)]
pub(crate) struct BlockMapView {
    pub(crate) shard_id: ShardId,
    pub(crate) state: ShardState,
    pub(crate) time: String,
    pub(crate) bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) blocks: u64,
    /// What ages are counted in.
    pub(crate) unit_seconds: f64,
    /// Base64; one byte a block, in order: whole units since its last check, 255 for 255 and more.
    pub(crate) ages: String,
    pub(crate) marks: Vec<MarkView>,
}

/// What the audit log said last of a block that was damaged.
#[derive(Debug, Serialize)]
pub(crate) struct MarkView {
    pub(crate) block: u64,
    pub(crate) state: MarkState,
    /// The record's number, where the log has taken it.
    pub(crate) seq: Option<u64>,
    pub(crate) time: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MarkState {
    Damaged,
    Repaired,
    /// Its repair failed.
    Failed,
}

/// One block.
#[derive(Debug, Serialize)]
pub(crate) struct BlockView {
    pub(crate) shard_id: ShardId,
    pub(crate) block: u64,
    /// Its bytes, counted from the start of the shard.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) age_seconds: f64,
    pub(crate) checked_at: String,
    /// The first tensors that have bytes in it.
    pub(crate) tensors: Vec<TensorView>,
    /// How many more have.
    pub(crate) more_tensors: usize,
    pub(crate) mark: Option<MarkView>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TensorView {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// A record of the audit log.
#[derive(Debug, Serialize)]
pub(crate) struct RecordView {
    /// Its number, where the log has taken it.
    pub(crate) seq: Option<u64>,
    /// As it stands in the log.
    pub(crate) record: Box<RawValue>,
}

/// Nanoseconds since 1970, by the clock of the day.
pub(crate) fn now_ns() -> u64 {
    let since = SystemClock::new().wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Who has which shards.
#[derive(Debug, Serialize)]
pub(crate) struct HandoutView {
    pub(crate) clients: Vec<ClientView>,
    /// Leases of shards that are still watched.
    pub(crate) leases: usize,
    /// Leases whose record may be lost, until they are recorded again.
    pub(crate) unrecorded: usize,
    /// Bytes of shards that were given up by force and that clients still have in memory.
    pub(crate) lingering_bytes: u64,
}

/// A process that is connected to the attach socket.
#[derive(Debug, Serialize)]
pub(crate) struct ClientView {
    pub(crate) client: u64,
    /// Whose it is; told over the control socket only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    /// Which process it was when it connected; told over the control socket only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    pub(crate) connected_seconds: f64,
    pub(crate) leases: Vec<LeaseView>,
}

/// A shard in the hands of a client.
#[derive(Debug, Serialize)]
pub(crate) struct LeaseView {
    pub(crate) lease: u64,
    pub(crate) shard_id: ShardId,
    pub(crate) held_seconds: f64,
    /// False where the shard was given up by force: the client may still have its memory.
    pub(crate) watched: bool,
    /// False where its record may be lost.
    pub(crate) recorded: bool,
}

impl StatusView {
    /// Without what is nobody's business but the operator's.
    pub(crate) fn for_everybody(mut self) -> Self {
        for client in &mut self.handout.clients {
            (client.uid, client.pid) = (None, None);
        }
        self
    }
}

/// A shard whose seal was given up, and that waits to be sealed again.
#[derive(Debug, Serialize)]
pub(crate) struct UnsealedView {
    pub(crate) shard_id: ShardId,
    /// Where it is, such as `cuda:1`.
    pub(crate) device: String,
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
    #[serde(default)]
    pub(crate) force: bool,
}

/// `DELETE /v1/shards/{id}` on the control socket.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseRequest {
    #[serde(default)]
    pub(crate) force: bool,
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
