//! The thread that all of it runs in.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::{SignedNote, VerifierKey};
use audit_logging::tlog::source::{DirSource, Source};
use audit_logging::{Clock, SystemClock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ending::Ending;
use crate::http::{HttpError, client};
use crate::node::Node;
use crate::replica::{Replica, ReplicaOptions};
use crate::status::{Board, Observer, ReplicaStatus, State, Status, WitnessStatus};
use crate::witness::{Asking, Exchange, Quorum, Witness};

/// How often it is told how far everything is behind.
const REFRESH: Duration = Duration::from_secs(1);
/// How long the last handle's drop waits.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// Who is to cosign, and how often they are asked.
#[derive(Debug, Clone)]
pub struct WitnessOptions {
    /// The witnesses.
    pub witnesses: Vec<Witness>,
    /// How many of them have to cosign one checkpoint.
    pub quorum: usize,
    /// The least time between two checkpoints that they are asked about.
    pub interval: Duration,
    /// How long a checkpoint waits for its quorum before a newer one takes its place.
    pub patience: Duration,
    /// After how long an unchanged checkpoint is cosigned anew.
    pub heartbeat: Duration,
    /// How long a witness has for an answer.
    pub timeout: Duration,
}

impl Default for WitnessOptions {
    fn default() -> Self {
        Self {
            witnesses: Vec::new(),
            quorum: 0,
            interval: Duration::from_secs(1),
            patience: Duration::from_secs(10),
            heartbeat: Duration::from_secs(3600),
            timeout: Duration::from_secs(10),
        }
    }
}

/// What leaves the node, and where to.
#[derive(Clone)]
pub struct Options {
    /// Replicas to keep.
    pub replicas: Vec<ReplicaOptions>,
    /// Witnesses to ask.
    pub witnesses: WitnessOptions,
    /// Who is told of changes.
    pub observer: Option<Arc<dyn Observer>>,
    /// Where the time of day comes from.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: Vec::new(),
            witnesses: WitnessOptions::default(),
            observer: None,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("replicas", &self.replicas)
            .field("witnesses", &self.witnesses)
            .finish_non_exhaustive()
    }
}

/// Why nothing was started.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There are too few witnesses, or no quorum is asked of those that there are.
    #[error("a quorum of {quorum} of {witnesses} witnesses can never be told: choose 1 to {witnesses}")]
    Quorum {
        /// What was asked for.
        quorum: usize,
        /// How many there are.
        witnesses: usize,
    },
    /// One would be counted twice.
    #[error("{name} is there twice, and a replica or witness counts once: remove one")]
    Twice {
        /// A URL or a witness's name.
        name: String,
    },
    /// The client for HTTP could not be made.
    #[error("there is no HTTP client: {why}; check the system's certificates")]
    Http {
        /// What was said.
        why: String,
    },
    /// The system gave no thread.
    #[error("the thread for replicas and witnesses cannot be started: {source}; check the limits on threads and files")]
    Thread {
        /// What was said.
        source: std::io::Error,
    },
}

impl From<HttpError> for StartError {
    fn from(error: HttpError) -> Self {
        Self::Http { why: error.to_string() }
    }
}

/// Copies and witnesses at work. Nobody ever waits for them but in [`Replication::finish`].
#[derive(Debug)]
pub struct Replication {
    board: Arc<Board>,
    end: watch::Sender<Option<Instant>>,
    ended: Mutex<Receiver<()>>,
}

impl Replication {
    /// Starts a thread for everything that leaves the node. Asks nothing of the network or the stores before it returns: a
    /// store that is down is no reason not to start.
    ///
    /// # Errors
    /// [`StartError`]: the options contradict each other, or the system refuses.
    pub fn start(node: Arc<dyn Node>, options: Options) -> Result<Self, StartError> {
        check(&options)?;
        let source = DirSource::new(node.dir());
        let cosigned = last_cosigned(&source);
        let clock = Arc::clone(&options.clock);
        let status = Status {
            signed_size: node.signed_size(),
            replicas: options.replicas.iter().map(replica_at_first).collect(),
            witnesses: options.witnesses.witnesses.iter().map(|witness| witness_at_first(witness, &cosigned)).collect(),
            quorum: options.witnesses.quorum,
            cosigned_size: cosigned.as_ref().map_or(0, |(checkpoint, _)| checkpoint.size),
            last_cosigned: None,
        };
        let board = Arc::new(Board::new(node, clock, options.observer.clone(), status));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(8)
            .thread_name("audit-replica-io")
            .build()
            .map_err(|source| StartError::Thread { source })?;
        let (end, ending) = Ending::pair();
        let tasks = Tasks::new(&board, &ending, options, source)?;
        let (over, ended) = channel();
        std::thread::Builder::new()
            .name("audit-replica".to_owned())
            .spawn(move || {
                runtime.block_on(tasks.run());
                runtime.shutdown_background();
                // Whoever waited may have given up.
                let _ = over.send(());
            })
            .map_err(|source| StartError::Thread { source })?;
        Ok(Self { board, end, ended: Mutex::new(ended) })
    }

    /// Where everything stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.board.status()
    }

    /// Ends it: copies what is published and not copied yet, and asks the witnesses a last time, for at most so long. To
    /// be called after the publisher has published its last checkpoint. What did not get away is copied at the next start.
    pub fn finish(&self, timeout: Duration) -> Status {
        self.stop(timeout);
        self.board.status()
    }

    fn stop(&self, timeout: Duration) {
        let deadline = Instant::now().checked_add(timeout).unwrap_or_else(Instant::now);
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            *end = Some(end.map_or(deadline, |already| already.min(deadline)));
            first
        });
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // It ends by itself where it takes longer, and an error means that it has ended.
        let _ = ended.recv_timeout(timeout.saturating_add(Duration::from_millis(500)));
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        if !self.end.is_closed() {
            self.stop(DROP_TIMEOUT);
        }
    }
}

fn check(options: &Options) -> Result<(), StartError> {
    let WitnessOptions { witnesses, quorum, .. } = &options.witnesses;
    if (*quorum == 0) != witnesses.is_empty() || *quorum > witnesses.len() {
        return Err(StartError::Quorum { quorum: *quorum, witnesses: witnesses.len() });
    }
    let replicas = options.replicas.iter().map(|replica| replica.location.to_string());
    // One name, one cosigner: a cosignature of this kind does not bind the name, so one key under two names is one too.
    let names = witnesses.iter().map(|witness| witness.key().name().to_owned());
    let keys = witnesses.iter().map(|witness| witness.key().to_string().rsplit('+').next().unwrap_or("").to_owned());
    for mut all in [replicas.collect::<Vec<_>>(), names.collect(), keys.collect()] {
        all.sort();
        if let Some([name, _]) = all.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(StartError::Twice { name: name.clone() });
        }
    }
    Ok(())
}

fn replica_at_first(options: &ReplicaOptions) -> ReplicaStatus {
    ReplicaStatus {
        url: options.location.to_string(),
        state: State::Starting,
        size: 0,
        lag: 0,
        last_success: None,
        failures: 0,
        last_error: None,
        objects: 0,
        bytes: 0,
        probe: None,
    }
}

fn witness_at_first(witness: &Witness, cosigned: &Option<(Checkpoint, SignedNote)>) -> WitnessStatus {
    WitnessStatus {
        name: witness.key().name().to_owned(),
        url: witness.url().to_owned(),
        state: State::Starting,
        size: seen_by(witness.key(), cosigned),
        lag: 0,
        last_success: None,
        failures: 0,
        last_error: None,
    }
}

/// The newest cosigned checkpoint of earlier runs.
fn last_cosigned(source: &DirSource) -> Option<(Checkpoint, SignedNote)> {
    let note = SignedNote::parse(&source.get("cosigned").ok()??).ok()?;
    Some((Checkpoint::parse(note.text()).ok()?, note))
}

/// The size that this witness cosigned in an earlier run: it saves a question. If it is wrong, the witness says so.
fn seen_by(key: &VerifierKey, cosigned: &Option<(Checkpoint, SignedNote)>) -> u64 {
    let Some((checkpoint, note)) = cosigned else { return 0 };
    match note.cosignatures(std::slice::from_ref(key)) {
        Ok(found) if !found.is_empty() => checkpoint.size,
        _ => 0,
    }
}

/// Keeps a replica in a thread of its own. It is not waited for by its handle: where a file system does not answer, nothing
/// can end the thread, and nothing else must hang with it.
fn in_a_thread(replica: Replica) -> Result<oneshot::Receiver<()>, StartError> {
    let failed = |source| StartError::Thread { source };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().max_blocking_threads(8).build().map_err(failed)?;
    let (over, ended) = oneshot::channel();
    let work = move || {
        runtime.block_on(replica.run());
        runtime.shutdown_background();
        // Nobody may be waiting any more.
        let _ = over.send(());
    };
    std::thread::Builder::new().name("audit-replica-dir".to_owned()).spawn(work).map_err(failed)?;
    Ok(ended)
}

/// Everything that runs in the thread.
struct Tasks {
    board: Arc<Board>,
    ending: Ending,
    replicas: Vec<Replica>,
    /// Replicas with a thread of their own: each says when it has ended.
    apart: Vec<oneshot::Receiver<()>>,
    asking: Vec<Asking>,
    quorum: Option<Quorum>,
}

impl Tasks {
    fn new(board: &Arc<Board>, ending: &Ending, options: Options, source: DirSource) -> Result<Self, StartError> {
        let (mut replicas, mut apart) = (Vec::new(), Vec::new());
        for (number, replica) in options.replicas.into_iter().enumerate() {
            let replica = Replica::new(number, replica, Arc::clone(board), ending.clone());
            match replica.may_block() {
                true => apart.push(in_a_thread(replica)?),
                false => replicas.push(replica),
            }
        }
        let WitnessOptions { witnesses, quorum, interval, patience, heartbeat, timeout } = options.witnesses;
        // Where there is no witness, nothing need be known of HTTP and the system's certificates.
        let http = if witnesses.is_empty() { None } else { Some(client(timeout)?) };
        let source = Arc::new(source);
        let cosigned = last_cosigned(&source);
        let (targets, target) = watch::channel(None);
        let (answer, answers) = mpsc::channel(witnesses.len().max(1));
        let asking = witnesses.into_iter().zip(http.iter().cycle()).enumerate();
        let asking = asking.map(|(number, (witness, http))| Asking {
            number,
            exchange: Exchange {
                seen: seen_by(witness.key(), &cosigned),
                witness,
                client: http.clone(),
                source: Arc::clone(&source),
            },
            board: Arc::clone(board),
            ending: ending.clone(),
            targets: target.clone(),
            answers: answer.clone(),
        });
        let asking = asking.collect();
        let quorum = (quorum > 0).then(|| Quorum {
            needed: quorum,
            interval,
            patience,
            heartbeat,
            board: Arc::clone(board),
            source: Arc::clone(&source),
            ending: ending.clone(),
            targets,
            answers,
        });
        Ok(Self { board: Arc::clone(board), ending: ending.clone(), replicas, apart, asking, quorum })
    }

    async fn run(self) {
        let Self { board, mut ending, replicas, apart, asking, quorum } = self;
        let mut replica_tasks = JoinSet::new();
        for replica in replicas {
            replica_tasks.spawn(replica.run());
        }
        for ended in apart {
            replica_tasks.spawn(async {
                // An error means that it has ended too.
                let _ = ended.await;
            });
        }
        let mut witness_tasks = JoinSet::new();
        for asking in asking {
            witness_tasks.spawn(asking.run());
        }
        let quorum = async {
            if let Some(quorum) = quorum {
                quorum.run().await;
            }
        };
        let refresh = async {
            while !ending.has_come() {
                ending.sleep(REFRESH).await;
                board.refresh();
            }
            let deadline = ending.deadline();
            // When the quorum is there, the witnesses' tasks have nothing left to do; replicas end by themselves.
            let _ =
                tokio::time::timeout_at(deadline, async { while replica_tasks.join_next().await.is_some() {} }).await;
        };
        tokio::join!(quorum, refresh);
        board.refresh();
    }
}
