//! The section `[audit]` of the daemon's configuration: what of the audit log leaves the machine.

use std::path::PathBuf;

use serde::Deserialize;

use super::audit::Age;
use super::daemon::{Period, text};

/// `[audit]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvidenceOptions {
    /// The key that signs the log, as the flag --audit-key.
    pub(crate) key: Option<PathBuf>,
    /// How long records are kept, such as 400d; the log prunes itself [default: for ever].
    #[serde(deserialize_with = "text")]
    pub(crate) keep: Option<Age>,
    /// How many of the witnesses have to cosign a checkpoint [default: all].
    pub(crate) quorum: Option<usize>,
    /// `[[audit.replicas]]`
    pub(crate) replicas: Vec<ReplicaSection>,
    /// `[[audit.witnesses]]`
    pub(crate) witnesses: Vec<WitnessSection>,
}

/// A copy of the published log. Credentials come from the usual `AWS_*` variables.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReplicaSection {
    /// `s3://bucket/prefix` or `file:///directory`.
    pub(crate) url: String,
    /// The address of a store that is not Amazon's.
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    /// Whether the endpoint may be spoken to without TLS.
    pub(crate) allow_http: bool,
    /// Whether the store is said to keep versions from being deleted.
    pub(crate) object_lock: bool,
    /// Whether a store is refused that does not keep this, or ignores conditional writes.
    pub(crate) require_conditional_create: bool,
    /// The least time between two checkpoints there [default: 1s].
    #[serde(deserialize_with = "text")]
    pub(crate) interval: Option<Period>,
}

/// Somebody who cosigns.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WitnessSection {
    /// The submission prefix.
    pub(crate) url: String,
    /// Its verifier key.
    pub(crate) vkey: String,
}
