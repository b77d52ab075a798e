//! Where replicas and witnesses stand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use audit_logging::{Clock, Severity};
use serde_json::Value;

use crate::node::Node;
use crate::probe::Probe;

/// Where everything stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Entries of the node's newest checkpoint.
    pub signed_size: u64,
    /// Each replica, in the order of the configuration.
    pub replicas: Vec<ReplicaStatus>,
    /// Each witness, in the order of the configuration.
    pub witnesses: Vec<WitnessStatus>,
    /// Witnesses that have to cosign.
    pub quorum: usize,
    /// Entries of the newest checkpoint that so many cosigned and the node took.
    pub cosigned_size: u64,
    /// When a quorum was last reached, also at an unchanged size.
    pub last_cosigned: Option<SystemTime>,
}

/// How a replica or a witness is doing.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is known yet.
    Starting,
    /// The last attempt succeeded.
    Working,
    /// The last attempt failed; it is tried again.
    Failing,
    /// It does not keep what the configuration demands, or refuses us. Tried again seldom, or, for a replica, not at all.
    Refused,
    /// Something other than what this node published is there. Nothing was overwritten. Tried no more.
    Conflict,
    /// It has more than this node, or another past: the node was set back. Nothing was overwritten. Tried no more.
    Rollback,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Starting, Self::Working, Self::Failing, Self::Refused, Self::Conflict, Self::Rollback];

    /// In one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Working => "working",
            Self::Failing => "failing",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Rollback => "rollback",
        }
    }

    /// Whether somebody has to look at it before anything goes on.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        matches!(self, Self::Conflict | Self::Rollback)
    }
}

/// One replica.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaStatus {
    /// Its URL.
    pub url: String,
    /// How it is doing.
    pub state: State,
    /// Entries of the newest checkpoint that is there with everything it covers.
    pub size: u64,
    /// Entries of the node's newest checkpoint that are not covered there.
    pub lag: u64,
    /// When the replica was last known to have everything.
    pub last_success: Option<SystemTime>,
    /// Attempts that failed.
    pub failures: u64,
    /// Why the last one failed, if nothing succeeded since.
    pub last_error: Option<String>,
    /// Objects written.
    pub objects: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// What was found out about the store.
    pub probe: Option<Probe>,
}

/// One witness.
#[derive(Debug, Clone, PartialEq)]
pub struct WitnessStatus {
    /// Its key's name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// How it is doing.
    pub state: State,
    /// Entries of the newest checkpoint that it cosigned.
    pub size: u64,
    /// Entries of the node's newest checkpoint that it has not cosigned.
    pub lag: u64,
    /// When it last cosigned.
    pub last_success: Option<SystemTime>,
    /// Attempts that failed.
    pub failures: u64,
    /// Why the last one failed, if it has cosigned nothing since.
    pub last_error: Option<String>,
}

/// Told of every change. Called on the replication's own thread: it must not block.
pub trait Observer: Send + Sync {
    /// A replica's status changed.
    fn replica(&self, status: &ReplicaStatus);
    /// A witness's status changed.
    fn witness(&self, status: &WitnessStatus);
    /// Witnesses in sufficient number cosigned a checkpoint of so many entries.
    fn cosigned(&self, size: u64, at: SystemTime);
}

/// What all tasks share.
pub(crate) struct Board {
    pub(crate) node: Arc<dyn Node>,
    pub(crate) clock: Arc<dyn Clock>,
    observer: Option<Arc<dyn Observer>>,
    status: Mutex<Status>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Board {
    pub(crate) fn new(
        node: Arc<dyn Node>,
        clock: Arc<dyn Clock>,
        observer: Option<Arc<dyn Observer>>,
        status: Status,
    ) -> Self {
        let board = Self { node, clock, observer, status: Mutex::new(status) };
        board.refresh();
        board
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Changes a replica's status and tells of it.
    pub(crate) fn replica(&self, number: usize, change: impl FnOnce(&mut ReplicaStatus)) {
        let signed = self.node.signed_size();
        let mut status = self.lock();
        let Some(replica) = status.replicas.get_mut(number) else { return };
        change(replica);
        replica.lag = signed.saturating_sub(replica.size);
        if let Some(observer) = &self.observer {
            observer.replica(replica);
        }
    }

    /// Changes a witness's status and tells of it.
    pub(crate) fn witness(&self, number: usize, change: impl FnOnce(&mut WitnessStatus)) {
        let signed = self.node.signed_size();
        let mut status = self.lock();
        let Some(witness) = status.witnesses.get_mut(number) else { return };
        change(witness);
        witness.lag = signed.saturating_sub(witness.size);
        if let Some(observer) = &self.observer {
            observer.witness(witness);
        }
    }

    pub(crate) fn cosigned(&self, size: u64) {
        let now = self.clock.wall();
        let mut status = self.lock();
        status.cosigned_size = size;
        status.last_cosigned = Some(now);
        if let Some(observer) = &self.observer {
            observer.cosigned(size, now);
        }
    }

    /// The node did not take what this witness completed.
    pub(crate) fn refused_locally(&self, witness: usize, why: &str) {
        self.witness(witness, |status| {
            status.state = State::Failing;
            status.failures = status.failures.saturating_add(1);
            status.last_error = Some(format!("the node did not take the cosigned checkpoint: {why}"));
        });
    }

    /// The node goes on while a store is down: how far it is ahead is told all the same.
    pub(crate) fn refresh(&self) {
        let signed = self.node.signed_size();
        let (replicas, witnesses) = {
            let mut status = self.lock();
            status.signed_size = signed;
            (status.replicas.len(), status.witnesses.len())
        };
        (0..replicas).for_each(|number| self.replica(number, |_| {}));
        (0..witnesses).for_each(|number| self.witness(number, |_| {}));
    }

    /// Writes a record about the publication: `log`, which says what it is, first, and the time last.
    pub(crate) fn record(&self, severity: Severity, leaf: Value) {
        let now = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let Value::Object(mut fields) = leaf else { return };
        let mut text = format!("{{\"log\":{}", fields.remove("log").unwrap_or_default());
        for (name, value) in fields {
            text.push_str(&format!(",{}:{value}", Value::from(name)));
        }
        text.push_str(&format!(",\"time_unix_ms\":{}}}", now.as_millis()));
        self.node.record(severity, text.as_bytes());
    }
}
