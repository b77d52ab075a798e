//! How long the audit log is kept: once an hour, what is older is given up.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use vram_residency::metrics as names;

use super::evidence::Evidence;
use crate::commands::audit::first_younger;
use crate::exit::Failure;

/// How often it looks, and how long after the start it does so first.
const PACE: Duration = Duration::from_secs(3600);
const FIRST: Duration = Duration::from_secs(2);

/// Prunes until it is dropped.
pub(super) struct Retention {
    _end: Sender<()>,
}

impl Retention {
    pub(super) fn start(evidence: Arc<Evidence>, dir: PathBuf, keep: Duration) -> Result<Self, Failure> {
        let (end, ended) = channel();
        let work = move || {
            let mut wait = FIRST;
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = PACE;
                if prune(&evidence, &dir, keep).is_err() {
                    metrics::counter!(names::AUDIT_PRUNE_FAILURES).increment(1);
                }
            }
        };
        let thread = std::thread::Builder::new().name("vram-retention".to_owned()).spawn(work);
        thread.map_err(|error| Failure::new("system", format!("the log cannot be pruned: {error}")))?;
        Ok(Self { _end: end })
    }
}

/// The log itself tells of what was given up, and the status of why nothing was.
fn prune(evidence: &Evidence, dir: &std::path::Path, keep: Duration) -> Result<(), Failure> {
    let before = first_younger(dir, keep)?;
    let pruned = evidence.prune(before, keep);
    pruned.map(drop).map_err(|error| Failure::new("audit", error.to_string()))
}
