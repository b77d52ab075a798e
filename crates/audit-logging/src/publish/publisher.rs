//! The handle on a running publisher, and its thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::engine::{Engine, Found, Round};
use super::keyfile;
use super::prune::{PruneError, PruneOptions, Pruned};
use super::replay::Trouble;
use super::store::Store;
use super::{AcceptError, Finished, PublishError, PublishOptions, PublishStatus, Refusal};
use crate::log::AuditLog;
use crate::outcome::OpenError;
use crate::queue::Shared;
use crate::recovery;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::note::{SigningKey, VerifierKey};
use crate::tlog::source::DirSource;
use crate::tlog::tree::{TreeError, root_of};
use crate::vfs::{Lock, Vfs};
use crate::walk;

/// The longest wait after failures.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// Failures of publishing after which whoever waits for a pruning hears of them.
const PATIENCE: u64 = 3;
/// How long dropping a publisher waits for its last checkpoint.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
/// More records than these since the last round, and the next checkpoint waits for the whole interval: each one costs the
/// disk a dozen syncs, and the disk is for the records first.
const FEW: u64 = 256;
/// How much the thread lets others go first, on the scale of `nice`.
const NICENESS: i32 = 10;

struct State {
    status: PublishStatus,
    keys: Vec<VerifierKey>,
    finishing: bool,
    ended: bool,
    /// What somebody else found, for the thread to state in the log.
    found: Option<Refusal>,
    /// What is to be pruned, until it is done.
    wish: Option<PruneOptions>,
    pruned: Option<Result<Pruned, PruneError>>,
}

struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is to finish, or something was found, or the time is over.
    fn rest(&self, limit: Duration) {
        let state = self.lock();
        let _ = self.changed.wait_timeout_while(state, limit, |state| !state.finishing && state.found.is_none());
    }
}

/// Publishes a log while it is written. Dropping it makes a last checkpoint, for at most 2 s.
pub struct Publisher {
    shared: Arc<Shared>,
    control: Arc<Control>,
    dir: PathBuf,
    source: DirSource,
    store: Mutex<Store>,
    options: PublishOptions,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn io_error<'a>(dir: &'a Path, action: &'static str) -> impl Fn(std::io::Error) -> PublishError + 'a {
    move |source| PublishError::Io { dir: dir.to_owned(), action, source }
}

/// What was signed before, by this key or the next.
fn found(vfs: &dyn Vfs, log: &Path, store: &Store, key_file: &Path) -> Result<Found, PublishError> {
    let key = keyfile::read_signer(vfs, key_file)?;
    let origin = key.verifier().name().to_owned();
    // A next key that cannot be used does not stop the publishing; the status tells of it.
    let next = keyfile::read_next(vfs, key_file, &origin).ok().flatten();
    let (mut signed, mut kept) = (Vec::new(), None);
    let foreign = |file: PathBuf, reason: String| PublishError::Foreign { file, reason };
    if let Some(state) = keyfile::read_signed(vfs, key_file)? {
        let theirs = &state.checkpoint.origin;
        if *theirs != origin {
            return Err(foreign(keyfile::state_file(key_file), format!("it is of the log {theirs:?}")));
        }
        signed.push(state.checkpoint.clone());
        kept = Some(state);
    }
    let read = |name: &str| store.read(name).map_err(io_error(store.dir(), "reading what was published"));
    let mut visible = None;
    if let Some(bytes) = read("checkpoint")? {
        let keys: Vec<VerifierKey> =
            [Some(&key), next.as_ref()].into_iter().flatten().map(|key: &SigningKey| key.verifier().clone()).collect();
        let checked = Checkpoint::verify(&bytes, &keys);
        let (checkpoint, _) = checked.map_err(|error| foreign(store.dir().join("checkpoint"), error.to_string()))?;
        visible = Some(checkpoint.clone());
        signed.push(checkpoint);
    }
    signed.sort_by_key(|signed| signed.size);
    let floor = walk::list(vfs, log).map_err(io_error(log, "listing the log"))?.floor;
    Ok(Found { key, signed, kept, visible, floor })
}

impl Publisher {
    /// Begins to publish this log, or takes up what was published before. Returns at once: the thread then reads the whole
    /// log and compares it with what was published and signed.
    ///
    /// # Errors
    /// [`PublishError`]: the key cannot be used, the directory belongs to another publisher, or what is published there
    /// was not signed with this key.
    pub fn start(log: &AuditLog, options: PublishOptions) -> Result<Publisher, PublishError> {
        let shared = Arc::clone(log.shared());
        let vfs = Arc::clone(&shared.vfs);
        let dir = options.dir.clone().unwrap_or_else(|| shared.dir.join("tlog"));
        let lock = recovery::enter(&*vfs, &dir).map_err(|error| match error {
            OpenError::Io { dir, action, source } => PublishError::Io { dir, action, source },
            _ => PublishError::Locked { dir: dir.clone() },
        })?;
        let store = Store::new(Arc::clone(&vfs), &dir);
        let found = found(&*vfs, &shared.dir, &store, &options.key_file)?;
        let engine = Engine::new(Arc::clone(&shared), store.clone(), options.key_file.clone(), found);
        let control = Arc::new(Control {
            state: Mutex::new(State {
                status: PublishStatus {
                    origin: engine.signed.origin.clone(),
                    vkey: engine.key().to_string(),
                    size: 0,
                    signed_size: engine.visible,
                    signed_root: engine.visible_root,
                    last_signed_at: None,
                    cosigned_size: 0,
                    checkpoints: 0,
                    failures: 0,
                    last_failure: None,
                    missing_in_log: 0,
                    minimum_index: engine.minimum(),
                    pruned_in_segments: engine.in_segments(),
                    refused: None,
                    caught_up: false,
                },
                keys: engine.keys.clone(),
                finishing: false,
                ended: false,
                found: None,
                wish: None,
                pruned: None,
            }),
            changed: Condvar::new(),
        });
        let worker = Worker {
            engine,
            control: Arc::clone(&control),
            shared: Arc::clone(&shared),
            options: options.clone(),
            _lock: lock,
        };
        let thread = std::thread::Builder::new()
            .name("audit-publish".to_owned())
            .spawn(move || worker.run())
            .map_err(io_error(&dir, "starting its thread"))?;
        let source = store.source().clone();
        Ok(Publisher {
            shared,
            control,
            dir,
            source,
            store: Mutex::new(store),
            options,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Where publishing stands.
    #[must_use]
    pub fn status(&self) -> PublishStatus {
        self.control.lock().status.clone()
    }

    /// The directory of the published log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The published log, to read from.
    #[must_use]
    pub fn source(&self) -> &DirSource {
        &self.source
    }

    /// The keys that signed for this log so far, the present one among them.
    #[must_use]
    pub fn keys(&self) -> Vec<VerifierKey> {
        self.control.lock().keys.clone()
    }

    /// Waits until a checkpoint with more than `size` entries can be seen, and gives its size; `None` when the time is
    /// over, or no further checkpoint will come.
    #[must_use]
    pub fn wait_beyond(&self, size: u64, timeout: Duration) -> Option<u64> {
        let state = self.control.lock();
        let waiting =
            |state: &mut State| state.status.signed_size <= size && !state.ended && state.status.refused.is_none();
        let (state, _) =
            self.control.changed.wait_timeout_while(state, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        Some(state.status.signed_size).filter(|&signed| signed > size)
    }

    /// Looks for news now, without waiting for the interval.
    pub fn publish_now(&self) {
        self.shared.wake_publisher();
    }

    /// Keeps a checkpoint that witnesses cosigned, as the file `cosigned`, if it is of this log, consistent with it,
    /// signed by a quorum of the known witnesses, and not older than the one that is there. Returns its size.
    ///
    /// # Errors
    /// [`AcceptError`]. If it contradicts this log, nothing is published any more, and the log says so.
    pub fn accept_cosigned(&self, note: &[u8]) -> Result<u64, AcceptError> {
        let keys = self.keys();
        let (checkpoint, signed) = Checkpoint::verify(note, &keys)?;
        let cosigned = signed.cosignatures(&self.options.witnesses);
        let found = cosigned.map_err(crate::tlog::checkpoint::CheckpointError::from)?.len();
        if found < self.options.quorum.max(1) {
            return Err(AcceptError::Quorum { found, quorum: self.options.quorum.max(1) });
        }
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.status().cosigned_size;
        if checkpoint.size < newest {
            return Err(AcceptError::Older { size: checkpoint.size, newest });
        }
        self.compare(&checkpoint)?;
        store.replace("cosigned", note).map_err(|error| AcceptError::Io(error.into()))?;
        self.control.lock().status.cosigned_size = checkpoint.size;
        Ok(checkpoint.size)
    }

    /// Compares a checkpoint that was seen elsewhere with this log: a witness or a replica may have one that this log
    /// cannot explain. Returns its size.
    ///
    /// # Errors
    /// [`AcceptError`]. If it is signed with this log's key and contradicts this log, nothing is published any more, and
    /// the log says so.
    pub fn compare_seen(&self, note: &[u8]) -> Result<u64, AcceptError> {
        let (checkpoint, _) = Checkpoint::verify(note, &self.keys())?;
        self.compare(&checkpoint)?;
        Ok(checkpoint.size)
    }

    fn compare(&self, checkpoint: &Checkpoint) -> Result<(), AcceptError> {
        let signed = self.status().signed_size;
        let refusal = if checkpoint.size > signed {
            Some(Refusal::Ahead { seen: checkpoint.size, signed })
        } else {
            match root_of(&self.source, checkpoint.size, signed) {
                Ok(root) if root == checkpoint.root => None,
                Ok(_) | Err(TreeError::Tiles { .. }) => Some(Refusal::Root { size: checkpoint.size }),
                Err(error) => return Err(AcceptError::Io(error.into())),
            }
        };
        let Some(refusal) = refusal else { return Ok(()) };
        self.control.lock().found = Some(refusal.clone());
        self.control.changed.notify_all();
        self.shared.wake_publisher();
        Err(AcceptError::Refused(refusal))
    }

    /// Gives up old records, and returns when that is done. A record announces it, a checkpoint covers that record, and only
    /// then whole bundles of 256 entries and whole segments are removed. All hashes stay, so every other record can be
    /// proven as before. Bundles with a record that states a change of key stay too. Waits until `timeout` is over; then it
    /// goes on by itself.
    ///
    /// # Errors
    /// [`PruneError`].
    pub fn prune(&self, options: PruneOptions, timeout: Duration) -> Result<Pruned, PruneError> {
        let mut state = self.control.lock();
        if let Some(refusal) = &state.status.refused {
            return Err(PruneError::Refused(refusal.clone()));
        }
        if state.ended || state.finishing {
            return Err(PruneError::Closed);
        }
        state.wish = Some(options);
        state.pruned = None;
        let before = state.status.failures;
        drop(state);
        self.shared.wake_publisher();
        let fails = |state: &State| state.status.failures.saturating_sub(before) >= PATIENCE;
        let waiting = |state: &mut State| {
            state.pruned.is_none() && !state.ended && state.status.refused.is_none() && !fails(state)
        };
        let state = self.control.lock();
        let (mut state, _) =
            self.control.changed.wait_timeout_while(state, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        match (state.pruned.take(), &state.status) {
            (Some(done), _) => done,
            (None, PublishStatus { refused: Some(refusal), .. }) => Err(PruneError::Refused(refusal.clone())),
            (None, PublishStatus { last_failure: Some(failure), .. }) if fails(&state) => {
                Err(PruneError::Io(failure.clone()))
            }
            (None, _) => Err(PruneError::Pending),
        }
    }

    /// Publishes everything that is durable by now, makes the last checkpoint, ends the thread and gives the directory
    /// back; to be called after [`AuditLog::close`], so that the close record is covered. If that takes longer than
    /// `timeout`, it goes on by itself.
    pub fn finish(&self, timeout: Duration) -> Finished {
        let mut state = self.control.lock();
        state.finishing = true;
        self.control.changed.notify_all();
        self.shared.wake_publisher();
        let (state, _) = self
            .control
            .changed
            .wait_timeout_while(state, timeout, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let finished = Finished { size: state.status.signed_size, caught_up: state.status.caught_up };
        let ended = state.ended;
        drop(state);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|_| ended) {
            let _ = thread.join();
        }
        finished
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.finish(DROP_TIMEOUT);
    }
}

struct Worker {
    engine: Engine,
    control: Arc<Control>,
    shared: Arc<Shared>,
    options: PublishOptions,
    _lock: Box<dyn Lock>,
}

/// When the worker ends in whatever way, nobody waits for it.
struct Ending(Arc<Control>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Worker {
    fn run(mut self) {
        let _ending = Ending(Arc::clone(&self.control));
        // The records go first. Where that is not allowed, it is done without.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
        let _ = self.engine.show_key();
        let mut retry = self.options.retry_after;
        let (mut attempts, mut before) = (0u32, 0u64);
        loop {
            let seen = self.shared.news();
            let (finishing, found) = {
                let mut state = self.control.lock();
                (state.finishing, state.found.take())
            };
            let refused = self.control.lock().status.refused.is_some();
            let result = match found {
                Some(refusal) => Err(Trouble::Refuse(refusal)),
                None if refused => Ok(Round { signed: false, more: false, odd: false }),
                None => self.engine.round(),
            };
            let failed = result.is_err();
            let round = self.note(result);
            self.prune();
            if finishing {
                // A failing disk is tried a few times more; what is signed then is what there is.
                attempts = attempts.saturating_add(u32::from(failed || round.odd));
                let done = self.control.lock().status.caught_up || refused || attempts > 5;
                if done || (!failed && !round.more && !round.odd) {
                    return;
                }
                if failed || round.odd {
                    std::thread::sleep(retry.min(Duration::from_millis(20)));
                }
                continue;
            }
            if failed {
                self.control.rest(retry);
                retry = retry.saturating_mul(2).min(MAX_RETRY);
                continue;
            }
            retry = self.options.retry_after;
            if round.odd {
                self.engine.nudge();
            }
            self.engine.heartbeat(self.options.heartbeat);
            let most = self.options.interval.max(self.options.least_interval);
            let records = self.shared.records.load(SeqCst);
            let busy = records.saturating_sub(std::mem::replace(&mut before, records)) > FEW;
            let least = self.options.least_interval.min(most);
            let rest = match round.signed || round.odd {
                true if busy => most,
                true => least,
                false => Duration::ZERO,
            };
            self.control.rest(rest);
            if !round.more {
                self.shared.await_news(seen, self.options.interval.saturating_sub(rest));
            }
        }
    }

    /// Does what was wished for, as far as it can be done now.
    fn prune(&mut self) {
        let Some(wish) = self.control.lock().wish.clone() else { return };
        let done = match self.engine.prune(&wish) {
            Ok(None) => return,
            Ok(Some(pruned)) => Ok(pruned),
            Err(error) => Err(error),
        };
        let mut state = self.control.lock();
        state.status.minimum_index = self.engine.minimum();
        state.status.pruned_in_segments = self.engine.in_segments();
        (state.wish, state.pruned) = (None, Some(done));
        drop(state);
        self.control.changed.notify_all();
    }

    /// Shows in the status what a round came to.
    fn note(&mut self, result: Result<Round, Trouble>) -> Round {
        let mut round = Round { signed: false, more: false, odd: false };
        let mut refusal = None;
        let caught_up = self.engine.is_caught_up();
        let now = self.shared.clock.wall();
        let mut state = self.control.lock();
        let status = &mut state.status;
        match result {
            Ok(done) => {
                round = done;
                status.last_failure = self.engine.key_trouble.clone();
            }
            Err(Trouble::Retry(failure)) => {
                status.failures = status.failures.saturating_add(1);
                status.last_failure = Some(failure);
            }
            Err(Trouble::Refuse(reason)) => {
                refusal = Some(reason.clone());
                status.refused = Some(reason);
            }
        }
        if round.signed {
            status.checkpoints = status.checkpoints.saturating_add(1);
            status.last_signed_at = Some(now);
        }
        status.size = self.engine.size();
        status.signed_size = self.engine.visible;
        status.signed_root = self.engine.visible_root;
        status.cosigned_size = status.cosigned_size.max(self.engine.cosigned);
        status.missing_in_log = self.engine.missing;
        status.minimum_index = self.engine.minimum();
        status.pruned_in_segments = self.engine.in_segments();
        status.caught_up = caught_up && status.refused.is_none();
        status.vkey = self.engine.key().to_string();
        state.keys.clone_from(&self.engine.keys);
        drop(state);
        self.control.changed.notify_all();
        if let Some(refusal) = refusal {
            self.engine.refused(&refusal);
        }
        round
    }
}
