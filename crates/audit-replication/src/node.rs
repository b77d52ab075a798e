//! The node's side: what is published there, and where to say what happened elsewhere.

use std::path::Path;

use audit_logging::Severity;
use audit_logging::tlog::note::{SignedNote, VerifierKey};

/// A log that is published on this node.
pub trait Node: Send + Sync {
    /// The directory with `checkpoint` and `tile/`.
    fn dir(&self) -> &Path;

    /// Entries of the largest checkpoint that the node ever signed. Cheap: it is asked several times a second.
    fn signed_size(&self) -> u64;

    /// The keys that sign, or once signed, this log's checkpoints.
    fn log_keys(&self) -> Vec<VerifierKey>;

    /// Writes a record about the publication into the log itself. What cannot be written there is counted by the log.
    fn record(&self, severity: Severity, leaf: &[u8]);

    /// Takes a checkpoint that enough witnesses cosigned, after checking it.
    ///
    /// # Errors
    /// In words, why it was not taken.
    fn accept_cosigned(&self, note: &SignedNote) -> Result<(), String>;
}
