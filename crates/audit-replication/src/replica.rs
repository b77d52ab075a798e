//! One replica: a copy of everything published, in an order in which every state of it can be verified.
//!
//! Entry bundles, then tiles, then `checkpoints/<size>`, each created and never overwritten, then `checkpoint`, the one
//! object that changes. Before anything is written, what is there is held against the node: a replica that knows more than
//! the node, or another past, means that the node was set back, and then its testimony must not be touched.

mod copy;
mod examine;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::Severity;
use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::SignedNote;
use audit_logging::tlog::source::{DirSource, Source, SourceError};
use bytes::Bytes;
use object_store::path::Path;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::ending::Ending;
use crate::probe::{Probe, ProbeError, probe};
use crate::put::Condition;
use crate::status::{Board, State};
use crate::store::{Location, Store, StoreError, StoreOptions};

/// How often the node is asked for news.
const LOOK: Duration = Duration::from_millis(200);
/// How long one operation on a store may take. The HTTP client gives up earlier; a directory on a dead server never does.
const PATIENCE: Duration = Duration::from_secs(30);

/// A replica to keep.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// Where.
    pub location: Location,
    /// How to get there.
    pub store: StoreOptions,
    /// Whether the store is said to keep versions from being deleted. It is tried out at the start.
    pub object_lock: bool,
    /// Whether a store without working conditional writes, or without the object lock that it is said to have, is refused
    /// instead of flagged.
    pub require_conditional_create: bool,
    /// The least time between two checkpoints. Each leaves an object, and in a store with object lock two.
    pub interval: Duration,
}

impl ReplicaOptions {
    /// A replica at this place, with nothing demanded of it and a checkpoint a second at most.
    #[must_use]
    pub fn new(location: Location) -> Self {
        Self {
            location,
            store: StoreOptions::default(),
            object_lock: false,
            require_conditional_create: false,
            interval: Duration::from_secs(1),
        }
    }
}

/// The newest checkpoint of the node, as it lies in its directory.
#[derive(Debug, Clone)]
struct Newest {
    checkpoint: Checkpoint,
    bytes: Bytes,
}

/// Why nothing goes on, for now or for good.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Open(#[from] StoreError),
    #[error("{0}")]
    Store(#[from] object_store::Error),
    #[error("{0}")]
    Probe(#[from] ProbeError),
    #[error("the store did not answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("{0}")]
    Local(#[from] SourceError),
    #[error("{0} is missing in the node's own published directory: run vram audit verify")]
    Missing(String),
    #[error("{0}")]
    Unsettled(String),
    /// What was to be copied has been replaced by something newer.
    #[error("overtaken by a newer checkpoint")]
    Overtaken,
    #[error("{0}")]
    Refused(String),
    #[error(
        "{object} on the replica is not what this node published: find out who else writes there, nothing was overwritten"
    )]
    Conflict { object: String },
    #[error(
        "the replica knows a checkpoint of {theirs} entries that does not lead to this node's {ours}: the node was set back, nothing was overwritten"
    )]
    Rollback { theirs: u64, ours: u64 },
}

impl Trouble {
    fn state(&self) -> State {
        match self {
            Self::Conflict { .. } => State::Conflict,
            Self::Rollback { .. } => State::Rollback,
            Self::Refused(_) => State::Refused,
            _ => State::Failing,
        }
    }

    fn leaf(&self, store: &str) -> Option<Value> {
        match self {
            Self::Conflict { object } => Some(json!({"log": "conflict", "replica": store, "object": object})),
            Self::Rollback { theirs, ours } => {
                Some(json!({"log": "rollback", "replica": store, "replica_size": theirs, "signed_size": ours}))
            }
            _ => None,
        }
    }
}

/// The task that keeps one replica.
pub(crate) struct Replica {
    number: usize,
    options: ReplicaOptions,
    board: Arc<Board>,
    ending: Ending,
    source: Arc<dyn Source>,
    dir: PathBuf,
    probed: Option<Probe>,
    /// Every tile that is full in a tree of so many entries is there.
    full: u64,
    /// Entries of the largest checkpoint that was there.
    known: u64,
}

impl Replica {
    pub(crate) fn new(number: usize, options: ReplicaOptions, board: Arc<Board>, ending: Ending) -> Self {
        let dir = board.node.dir().to_owned();
        let source = Arc::new(DirSource::new(&dir));
        Self { number, options, board, ending, source, dir, probed: None, full: 0, known: 0 }
    }

    /// Whether its operations may hold up the thread that they run in: a directory on a server that is gone does.
    pub(crate) fn may_block(&self) -> bool {
        self.options.location.is_directory()
    }

    /// Until the end, or until something is found that a person has to look at.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let Err(trouble) = self.session(&mut backoff).await else { return };
            if matches!(trouble, Trouble::Overtaken) {
                continue;
            }
            let state = trouble.state();
            self.board.replica(self.number, |status| {
                status.state = state;
                status.failures = status.failures.saturating_add(1);
                status.last_error = Some(trouble.to_string());
            });
            if let Some(leaf) = trouble.leaf(&self.options.location.to_string()) {
                self.board.record(Severity::Critical, leaf);
            }
            if state.is_stopped() || state == State::Refused {
                return;
            }
            self.ending.sleep(backoff.failed()).await;
            if self.ending.is_over() {
                return;
            }
        }
    }

    /// From an open store to the next trouble; `Ok` when everything is there and the end has come.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), Trouble> {
        let store = self.options.location.open(&self.options.store)?;
        let condition = self.try_out(&store).await?;
        let mut ours = match self.wait_for_checkpoint().await? {
            Some(newest) => newest,
            None => return Ok(()),
        };
        let mut size = examine::examine(&*self.board.node, &*self.source, &store, &ours).await?;
        self.notice_losses(&store, size).await?;
        let mut cosigned = Bytes::new();
        let mut last: Option<Instant> = None;
        loop {
            store.still_there()?;
            if ours.checkpoint.size > size {
                self.copy(&store, condition, size, &ours).await?;
                size = ours.checkpoint.size;
                self.known = size;
                last = Some(Instant::now());
            }
            let newest_cosigned = self.read("cosigned")?.unwrap_or_default();
            if newest_cosigned != cosigned {
                copy::overwrite(&store, "cosigned", newest_cosigned.clone()).await?;
                cosigned = newest_cosigned;
            }
            backoff.succeeded();
            let now = self.board.clock.wall();
            self.board.replica(self.number, |status| {
                status.state = State::Working;
                status.size = size;
                status.last_error = None;
                status.last_success = Some(now);
            });
            match self.news(size, &cosigned, last).await? {
                Some(newest) => ours = newest,
                None => return Ok(()),
            }
        }
    }

    /// A store may lose what it had, all or the newest of it. It is filled again, and the loss goes on record.
    async fn notice_losses(&mut self, store: &Store, size: u64) -> Result<(), Trouble> {
        if size < self.known {
            let shown = store.to_string();
            let leaf = json!({"log": "conflict", "replica": shown, "replica_size": size, "known_size": self.known,
                "what": "the replica lost a checkpoint that it had; it is filled again"});
            self.board.record(Severity::Critical, leaf);
        } else if self.full > size && copy::has_full(store, self.full).await? {
            return Ok(());
        }
        (self.full, self.known) = (size, size);
        Ok(())
    }

    /// Finds out, once, what the store can do, and says so.
    async fn try_out(&mut self, store: &Store) -> Result<Condition, Trouble> {
        if let Some(known) = self.probed {
            return Ok(known.condition());
        }
        let found = within(async { Ok(probe(store, self.options.object_lock).await?) }).await?;
        self.probed = Some(found);
        self.board.replica(self.number, |status| status.probe = Some(found));
        let severity = if found.is_good() { Severity::Routine } else { Severity::Critical };
        self.board.record(severity, found.leaf(&store.to_string()));
        if !found.is_good() && self.options.require_conditional_create {
            return Err(Trouble::Refused(format!(
                "the store {store} does not keep what is demanded of it ({} of {} won a race for one object, creating twice was {}, deleting a version: {}): use another store, or allow it with require_conditional_create = false",
                found.winners,
                crate::probe::RACERS,
                if found.conditional_create { "refused" } else { "allowed" },
                found.object_lock.as_str(),
            )));
        }
        Ok(found.condition())
    }

    /// The node's newest checkpoint, once there is one; `None` if the end comes first.
    async fn wait_for_checkpoint(&mut self) -> Result<Option<Newest>, Trouble> {
        loop {
            if let Some(newest) = self.newest()? {
                return Ok(Some(newest));
            }
            if self.ending.has_come() {
                return Ok(None);
            }
            self.ending.sleep(LOOK).await;
        }
    }

    /// Waits for a larger checkpoint or a newer cosigned one; `None` once the end has come and there is neither.
    async fn news(&mut self, size: u64, cosigned: &Bytes, last: Option<Instant>) -> Result<Option<Newest>, Trouble> {
        loop {
            let due = last.is_none_or(|last| last.elapsed() >= self.options.interval) || self.ending.has_come();
            if due
                && let Some(newest) = self.newest()?
                && (newest.checkpoint.size > size || self.read("cosigned")?.unwrap_or_default() != *cosigned)
            {
                return Ok(Some(newest));
            }
            if self.ending.has_come() {
                return Ok(None);
            }
            self.ending.sleep(LOOK).await;
        }
    }

    fn newest(&self) -> Result<Option<Newest>, Trouble> {
        let Some(bytes) = self.read("checkpoint")? else { return Ok(None) };
        let checkpoint = SignedNote::parse(&bytes).ok().and_then(|note| Checkpoint::parse(note.text()).ok());
        let checkpoint = checkpoint.ok_or_else(|| Trouble::Missing("a readable checkpoint".to_owned()))?;
        Ok(Some(Newest { checkpoint, bytes }))
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, Trouble> {
        Ok(self.source.get(path)?.map(Bytes::from))
    }
}

/// Where a checkpoint is kept for good. So many digits have all sizes, and sorted by name they are sorted by size.
pub(crate) fn kept_at(size: u64) -> String {
    format!("checkpoints/{size:013}")
}

/// Nothing that a store does may take for ever.
async fn within<T>(operation: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    tokio::time::timeout(PATIENCE, operation).await.unwrap_or(Err(Trouble::Slow))
}

fn object(path: &str) -> Path {
    Path::from(path)
}
