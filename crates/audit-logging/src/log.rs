//! The handle.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::control::Link;
use crate::frame::Kind;
use crate::options::Options;
use crate::outcome::{Failure, Fault, OpenError, Outcome, Severity};
use crate::queue::{Shared, Start};
use crate::recovery::{self, Recovery};
use crate::writer::Writer;

/// How long the last handle's drop waits for the writer.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// A log, open for writing. A cheap handle: clone it freely, use it from any thread.
///
/// Dropping the last handle closes the log: what is queued is written and synced, for at most 2 s. It needs no async
/// runtime and never panics. It does not run when the process aborts or is killed; everything already written survives
/// that too, and every record reported as durable survives a power cut.
#[derive(Debug, Clone)]
pub struct AuditLog {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// Where a log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The directory.
    pub dir: PathBuf,
    /// Durable records in the log, those it wrote itself and those of earlier runs included.
    pub records: u64,
    /// The number of the last durable record. Every number up to it is durable, or stated as absent by the log.
    pub durable: u64,
    /// Numbers given out whose records are not durable yet.
    pub queued: u64,
    /// Calls of `emit` on this log, whatever came of them.
    pub emits: u64,
    /// Records of those that are not in the log.
    pub failures: u64,
    /// Critical ones among the failures.
    pub critical_failures: u64,
    /// Critical records that were not on disk when their deadline passed.
    pub late: u64,
    /// Why the log cannot be written now, if it cannot. It tries again by itself.
    pub degraded: Option<Failure>,
    /// What was found when the log was opened, if it had not been closed cleanly.
    pub recovered: Option<Recovery>,
    /// Number of the segment in use.
    pub segment: u64,
    /// Whether the spare segment is ready. If it stays false, the disk is full or fails.
    pub spare_ready: bool,
    /// Whether the log was closed.
    pub closed: bool,
}

fn open_fault(dir: &Path, action: &'static str, fault: Fault) -> OpenError {
    let source = fault.os_error.map_or_else(|| fault.kind.into(), std::io::Error::from_raw_os_error);
    OpenError::Io { dir: dir.to_owned(), action, source }
}

impl AuditLog {
    /// Opens the log in `dir`, or begins one; makes the directory (for its owner only) if it is missing. Becomes its
    /// only writer, recovers what a crash left, and makes a record of how the log was found durable before it returns.
    ///
    /// # Errors
    /// [`OpenError`]: another writer has the directory, an option is out of bounds, or the file system refuses.
    pub fn open(dir: &Path, options: Options) -> Result<AuditLog, OpenError> {
        let options = options.checked()?;
        let opened = recovery::open(dir, &options)?;
        let (kind, leaf, seq) = opened.first;
        let shared = Arc::new(Shared::new(Start {
            last_seq: seq.saturating_sub(1),
            records: opened.anchor.records,
            dir: dir.to_owned(),
            recovered: opened.recovered,
            capacity: options.queue_bytes,
            max_leaf: options.max_leaf(),
            deadline: options.critical_deadline,
            vfs: Arc::clone(&options.vfs),
            clock: Arc::clone(&options.clock),
            observer: options.observer.clone(),
        }));
        let thread_error = |source| OpenError::Io { dir: dir.to_owned(), action: "starting its writer thread", source };
        let mut writer = Writer::new(Arc::clone(&shared), &options, opened).map_err(thread_error)?;
        writer.begin(kind, &leaf).map_err(|fault| open_fault(dir, "writing its first record", fault))?;
        writer.tend_spare();
        let guard = WriterGuard(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || {
                let _guard = guard;
                writer.run();
            })
            .map_err(thread_error)?;
        Ok(AuditLog { handle: Arc::new(Handle { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// Hands a record to the log. Allocates no memory.
    ///
    /// [`Severity::Routine`] returns at once. [`Severity::Critical`] returns when the record is on disk, or when
    /// [`Options::critical_deadline`] is over.
    pub fn emit(&self, severity: Severity, leaf: &[u8]) -> Outcome {
        self.handle.shared.emit(Kind::Event, severity, leaf)
    }

    /// As [`AuditLog::emit`], for what the log says of its own publication: the record gets the kind
    /// [`Kind::Publication`]. The leaf is one of the texts that `docs/audit-format.md` lists.
    pub fn emit_publication(&self, severity: Severity, leaf: &[u8]) -> Outcome {
        self.handle.shared.emit(Kind::Publication, severity, leaf)
    }

    /// Waits until everything that was accepted before this call is durable: `Durable` with the last number given out.
    /// `Late` if that takes longer than `timeout`; `Failed` if the log cannot be written.
    pub fn flush(&self, timeout: Duration) -> Outcome {
        self.handle.shared.flush(timeout)
    }

    /// Writes what is queued and a close record, syncs, ends the writer and gives the directory back. `Late` if that
    /// takes longer than `timeout`: it then goes on by itself. Closing again returns the same; emits afterwards are
    /// `Failed(Closed)`.
    pub fn close(&self, timeout: Duration) -> Outcome {
        self.handle.close(timeout)
    }

    /// Whether the log takes no records at present: it is degraded or closed. Waits for nobody and allocates nothing, so
    /// it may be asked on a hot path.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.handle.shared.is_failing()
    }

    /// Where the log stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle.shared.status()
    }
}

impl AuditLog {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Handle {
    fn close(&self, timeout: Duration) -> Outcome {
        let outcome = self.shared.close(timeout);
        if !matches!(outcome, Outcome::Late { .. }) {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The writer itself may drop the last handle, through an observer: a thread cannot wait for its own end.
            if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
                let _ = thread.join();
            }
        }
        outcome
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.close(DROP_TIMEOUT);
    }
}

/// If the writer ends in any other way than it should, nobody must wait for it.
struct WriterGuard(Arc<Shared>);

impl Drop for WriterGuard {
    fn drop(&mut self) {
        self.0.writer_gone();
    }
}

impl Shared {
    pub(crate) fn publish(&self, anchor: &Link) {
        self.durable.store(anchor.last_seq, SeqCst);
        self.records.store(anchor.records, SeqCst);
    }

    pub(crate) fn note_spare(&self, ready: bool, segment: u64) {
        self.spare_ready.store(ready, SeqCst);
        self.segment.store(segment, SeqCst);
    }

    pub(crate) fn flush(&self, timeout: Duration) -> Outcome {
        let start = self.clock.monotonic();
        let mut state = self.lock();
        if let Some(failure) = state.degraded {
            return Outcome::Failed(failure);
        }
        if let Some(outcome) = state.finished {
            return outcome;
        }
        let seq = state.next_seq.saturating_sub(1);
        let batch = state.batch;
        state.urgent = true;
        self.wake_writer(state);
        self.wait(seq, batch, start, timeout)
    }

    fn close(&self, timeout: Duration) -> Outcome {
        let mut state = self.lock();
        state.closing = true;
        self.show_health(&state);
        let seq = state.next_seq.saturating_sub(1);
        self.wake_writer(state);
        let state = self.lock();
        let (state, _) = self
            .ended
            .wait_timeout_while(state, timeout, |state| state.finished.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.finished.unwrap_or(Outcome::Late { seq })
    }

    pub(crate) fn end(&self, outcome: Outcome) {
        self.lock().finished = Some(outcome);
        self.ended.notify_all();
    }

    fn writer_gone(&self) {
        let mut state = self.lock();
        if state.finished.is_some() {
            return;
        }
        let failure = Failure::WriterGone;
        state.closing = true;
        state.degraded = Some(failure);
        self.show_health(&state);
        state.finished = Some(Outcome::Failed(failure));
        let last = state.next_seq.saturating_sub(1);
        self.note_loss(&mut state, self.settled().saturating_add(1), last, failure);
        let batch = state.batch;
        drop(state);
        self.settle(last, batch.saturating_sub(8)..batch.saturating_add(1));
        self.ended.notify_all();
    }

    fn status(&self) -> Status {
        let state = self.lock();
        Status {
            dir: self.dir.clone(),
            records: self.records.load(SeqCst),
            durable: self.durable.load(SeqCst),
            queued: state.next_seq.saturating_sub(1).saturating_sub(self.settled()),
            emits: self.emits.load(SeqCst),
            failures: self.failures.load(SeqCst),
            critical_failures: self.critical_failures.load(SeqCst),
            late: self.late.load(SeqCst),
            degraded: state.degraded,
            recovered: self.recovered,
            segment: self.segment.load(SeqCst),
            spare_ready: self.spare_ready.load(SeqCst),
            closed: state.closing,
        }
    }
}
