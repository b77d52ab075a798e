//! Why a record is not known to be on disk.

use audit_logging::{Failure, Outcome};

/// A record is not known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrailError {
    /// The log could not be opened when the worker started.
    #[error("the audit log could not be opened, so nothing is recorded; mend what its first error says")]
    NotOpen,
    /// The disk did not answer in time; the record is queued and counted as late.
    #[error("the audit record was not on disk at its deadline; it is queued and counted as late")]
    Late,
    /// A record that must come first is lost, or one that was made at the same time, so the operation was not begun.
    #[error("the audit log did not take the record, so nothing was done; see the log's first error")]
    Lost,
    /// The record is lost, and counted.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl TrailError {
    pub(super) fn of_flush(outcome: Outcome) -> Result<(), Self> {
        match outcome {
            Outcome::Durable { .. } => Ok(()),
            Outcome::Failed(failure) => Err(Self::Failed(failure)),
            _ => Err(Self::Late),
        }
    }
}
