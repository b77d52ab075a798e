//! The node's side: what is published there, and where to say what happened elsewhere.

use std::path::Path;
use std::sync::Arc;

use audit_logging::publish::Publisher;
use audit_logging::tlog::note::{SignedNote, VerifierKey};
use audit_logging::{AuditLog, Severity};

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

    /// Is shown a checkpoint that was found elsewhere, is signed with this log's key and contradicts the node.
    fn contradicted(&self, note: &[u8]);
}

/// A log with its publisher.
#[derive(Debug, Clone)]
pub struct Published {
    log: AuditLog,
    publisher: Arc<Publisher>,
}

impl Published {
    /// This log, as this publisher publishes it.
    #[must_use]
    pub fn new(log: AuditLog, publisher: Arc<Publisher>) -> Self {
        Self { log, publisher }
    }
}

impl Node for Published {
    fn dir(&self) -> &Path {
        self.publisher.dir()
    }

    fn signed_size(&self) -> u64 {
        self.publisher.status().signed_size
    }

    fn log_keys(&self) -> Vec<VerifierKey> {
        self.publisher.keys()
    }

    fn record(&self, severity: Severity, leaf: &[u8]) {
        // The log counts what it cannot keep, and the status says it too.
        let _ = self.log.emit_publication(severity, leaf);
    }

    fn accept_cosigned(&self, note: &SignedNote) -> Result<(), String> {
        self.publisher.accept_cosigned(&note.to_bytes()).map(|_| ()).map_err(|error| error.to_string())
    }

    fn contradicted(&self, note: &[u8]) {
        // It refuses to publish any more and says so in the log.
        let _ = self.publisher.compare_seen(note);
    }
}
