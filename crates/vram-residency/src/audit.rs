//! Audit events and how they become records of the log. The one place where events are built and written.
//!
//! A record is one line of JSON: an envelope (version, time, worker, device, severity), then the event's own fields.
//! `docs/format.md` lists them. Building and emitting one allocates nothing once a thread has emitted its first.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use audit_logging::{AuditLog, Clock, OpenError, Options, Outcome, Severity, Status};
use serde::Serialize;

use crate::actor::{self, Actor};
use crate::device::DeviceInfo;
use crate::metrics::AuditMetrics;

mod error;
mod event;

pub use error::TrailError;
pub use event::{AuditEvent, Text};

/// Version of the record's JSON.
const LEAF_VERSION: u32 = 1;

#[derive(Serialize)]
struct Leaf<'a> {
    v: u32,
    time: Text<'a>,
    time_ns: u64,
    monotonic_ns: u64,
    worker_id: &'a str,
    device: DeviceInfo,
    severity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor>,
    #[serde(flatten)]
    event: &'a AuditEvent<'a>,
}

/// Who emits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) worker_id: &'a str,
    pub(crate) device: DeviceInfo,
}

/// Where events go. A cheap clone; the log closes, flushed, when the last one is dropped.
#[derive(Clone)]
pub struct AuditTrail {
    inner: Arc<Inner>,
}

struct Inner {
    destination: Destination,
    metrics: Arc<AuditMetrics>,
    clock: Arc<dyn Clock>,
    tap: OnceLock<Arc<Tap>>,
}

/// Is shown each record as it is emitted: its number, where it has one yet, and its JSON. Must neither block nor panic.
pub type Tap = dyn Fn(Option<u64>, &[u8]) + Send + Sync;

enum Destination {
    Log(AuditLog),
    /// The log could not be opened when it should have been.
    Broken(Box<Broken>),
    Off,
}

/// A log that could not be opened. Until it can, every event is counted as lost.
struct Broken {
    dir: PathBuf,
    reason: OpenError,
    options: Options,
    again: Mutex<Again>,
    opened: OnceLock<AuditLog>,
}

/// When it is tried again, and how long to wait after that; times are on the monotonic clock.
struct Again {
    at: Duration,
    wait: Duration,
}

/// The longest time between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// How an audit trail is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrailHealth {
    /// Records are kept.
    Good,
    /// There is no log, by the caller's choice.
    Off,
    /// Records are being lost, for this reason. Nothing that depends on them may be called verified.
    Failing(String),
}

impl AuditTrail {
    /// Opens or creates the log in a directory.
    ///
    /// # Errors
    /// [`OpenError`]: another writer holds the directory, or the file system refuses.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, Options::default())
    }

    /// Opens or creates the log in a directory, with options. The options' observer is replaced by the metrics of
    /// [`crate::metrics`].
    ///
    /// # Errors
    /// As [`AuditTrail::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::try_open(dir, options).map_err(|(reason, ..)| reason)
    }

    /// Opens the log, or goes on without it when that fails: sealing and verifying work, every event counts as lost,
    /// and [`AuditTrail::health`] and every shard's state say so. It is tried again, at most every 5 s; when it works, the
    /// first record says how many are lost.
    #[must_use]
    pub fn open_or_degraded(dir: &Path, options: Options) -> Self {
        Self::try_open(dir, options.clone()).unwrap_or_else(|(reason, metrics, clock)| {
            tracing::error!(dir = %dir.display(), %reason, "the audit log cannot be opened; events are being lost");
            let options = Options { observer: Some(Arc::clone(&metrics) as _), ..options };
            let wait = options.retry_after;
            let again = Mutex::new(Again { at: clock.monotonic().saturating_add(wait), wait });
            let broken = Broken { dir: dir.to_owned(), reason, options, again, opened: OnceLock::new() };
            let destination = Destination::Broken(Box::new(broken));
            Self { inner: Arc::new(Inner { destination, metrics, clock, tap: OnceLock::new() }) }
        })
    }

    /// No log, by choice. Events are not counted.
    #[must_use]
    pub fn off() -> Self {
        let clock = Arc::new(audit_logging::SystemClock::new());
        let metrics = Arc::new(AuditMetrics::register());
        Self { inner: Arc::new(Inner { destination: Destination::Off, metrics, clock, tap: OnceLock::new() }) }
    }

    #[expect(clippy::type_complexity, reason = "the parts of a trail that is still to be made")]
    fn try_open(dir: &Path, mut options: Options) -> Result<Self, (OpenError, Arc<AuditMetrics>, Arc<dyn Clock>)> {
        let metrics = Arc::new(AuditMetrics::register());
        let clock = Arc::clone(&options.clock);
        options.observer = Some(Arc::clone(&metrics) as _);
        match AuditLog::open(dir, options) {
            Ok(log) => {
                let destination = Destination::Log(log);
                Ok(Self { inner: Arc::new(Inner { destination, metrics, clock, tap: OnceLock::new() }) })
            }
            Err(reason) => Err((reason, metrics, clock)),
        }
    }

    /// Waits until everything emitted before is on disk.
    ///
    /// # Errors
    /// [`TrailError`] where it is not, within `timeout`.
    pub fn flush(&self, timeout: Duration) -> Result<(), TrailError> {
        self.end_with(|log| log.flush(timeout))
    }

    /// As [`AuditTrail::flush`], for whoever counted what was [lost](Self::lost_records) before he emitted: the log may have lost
    /// a record and gone on behind it, and then only its last one is on disk. Any loss since then counts as one of his.
    pub(crate) fn flush_since(&self, lost: u64, timeout: Duration) -> Result<(), TrailError> {
        self.flush(timeout)?;
        if self.lost_records() == lost { Ok(()) } else { Err(TrailError::Lost) }
    }

    /// Flushes and closes the log. Later events count as lost.
    ///
    /// # Errors
    /// [`TrailError`] where not everything is on disk within `timeout`.
    pub fn close(&self, timeout: Duration) -> Result<(), TrailError> {
        self.end_with(|log| log.close(timeout))
    }

    fn end_with(&self, end: impl FnOnce(&AuditLog) -> Outcome) -> Result<(), TrailError> {
        match (self.log(), &self.inner.destination) {
            (Some(log), _) => TrailError::of_flush(end(log)),
            (None, Destination::Off) => Ok(()),
            (None, _) => Err(TrailError::NotOpen),
        }
    }

    /// The log itself, where it is open: to publish it.
    #[must_use]
    pub fn log(&self) -> Option<&AuditLog> {
        match &self.inner.destination {
            Destination::Log(log) => Some(log),
            Destination::Broken(broken) => broken.opened.get(),
            Destination::Off => None,
        }
    }

    /// Whether records are being kept.
    #[must_use]
    pub fn health(&self) -> TrailHealth {
        match (self.log().map(AuditLog::status), &self.inner.destination) {
            (Some(Status { degraded: Some(reason), .. }), _) => TrailHealth::Failing(reason.to_string()),
            (Some(Status { closed: true, .. }), _) => TrailHealth::Failing("the audit log was closed".to_owned()),
            (Some(_), _) => TrailHealth::Good,
            (None, Destination::Broken(broken)) => TrailHealth::Failing(broken.reason.to_string()),
            (None, _) => TrailHealth::Off,
        }
    }

    /// Whether records are being lost now. The same as [`AuditTrail::health`], without words: allocates nothing and waits
    /// for nobody.
    pub(crate) fn is_failing(&self) -> bool {
        match (self.log(), &self.inner.destination) {
            (Some(log), _) => log.is_failing(),
            (None, Destination::Broken(_)) => true,
            (None, _) => false,
        }
    }

    /// Whether the other is a clone of this one: whether both write to one place.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Records lost so far. Allocates nothing.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.inner.metrics.lost()
    }

    /// The log's own figures, where it is open.
    #[must_use]
    pub fn log_status(&self) -> Option<Status> {
        self.log().map(AuditLog::status)
    }

    /// Tries to open a log that could not be opened before, if it is time to. Its first record tells of the loss.
    pub(crate) fn mend(&self, origin: Origin<'_>) {
        let Destination::Broken(broken) = &self.inner.destination else { return };
        if broken.opened.get().is_some() {
            return;
        }
        let Ok(mut again) = broken.again.try_lock() else { return };
        let now = self.monotonic();
        if now < again.at {
            return;
        }
        again.wait = again.wait.saturating_mul(2).min(MAX_WAIT);
        again.at = now.saturating_add(again.wait);
        let Ok(log) = AuditLog::open(&broken.dir, broken.options.clone()) else { return };
        tracing::info!(dir = %broken.dir.display(), "the audit log could be opened at last");
        let lost = AuditEvent::RecordsLost { count: self.lost_records(), reason: Text(&broken.reason) };
        self.with_leaf(origin, &lost, |leaf| {
            let outcome = log.emit(lost.severity(), leaf);
            self.show(outcome.seq(), leaf);
        });
        let _ = broken.opened.set(log);
    }

    /// Nanoseconds since 1970-01-01 UTC by the wall clock; 0 before it.
    pub(crate) fn wall_ns(&self) -> u64 {
        let since = self.inner.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Time since some fixed moment.
    pub(crate) fn monotonic(&self) -> Duration {
        self.inner.clock.monotonic()
    }

    /// Writes an event down. Critical ones are on disk when this returns well.
    pub(crate) fn emit(&self, origin: Origin<'_>, event: &AuditEvent<'_>) -> Result<(), TrailError> {
        let severity = event.severity();
        self.mend(origin);
        let Some(log) = self.log() else {
            self.show_unkept(origin, event);
            if matches!(self.inner.destination, Destination::Off) {
                return Ok(());
            }
            self.inner.metrics.count_emit();
            self.inner.metrics.count_failure(severity);
            return Err(TrailError::NotOpen);
        };
        let outcome = self.with_leaf(origin, event, |leaf| {
            let outcome = log.emit(severity, leaf);
            self.show(outcome.seq(), leaf);
            outcome
        });
        let answer = match outcome {
            Outcome::Queued { .. } | Outcome::Durable { .. } => Ok(()),
            Outcome::Late { .. } => Err(TrailError::Late),
            Outcome::Failed(failure) => Err(TrailError::Failed(failure)),
            _ => Err(TrailError::Late),
        };
        if let Err(error) = answer {
            tracing::error!(%error, "an audit record was not kept in time");
        }
        answer
    }

    /// Has every record that is emitted from now on shown to `tap`, kept or not. The first tap stays.
    pub fn tap(&self, tap: Arc<Tap>) {
        let _ = self.inner.tap.set(tap);
    }

    fn show(&self, seq: Option<u64>, leaf: &[u8]) {
        if let Some(tap) = self.inner.tap.get() {
            tap(seq, leaf);
        }
    }

    /// Shows an event that no log takes.
    fn show_unkept(&self, origin: Origin<'_>, event: &AuditEvent<'_>) {
        if self.inner.tap.get().is_some() {
            self.with_leaf(origin, event, |leaf| self.show(None, leaf));
        }
    }

    /// Encodes the event into this thread's buffer and lends it out.
    fn with_leaf<T>(&self, origin: Origin<'_>, event: &AuditEvent<'_>, use_leaf: impl FnOnce(&[u8]) -> T) -> T {
        thread_local! {
            static LEAF: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let time_ns = self.wall_ns();
        let time = jiff::Timestamp::from_nanosecond(time_ns.into()).unwrap_or_default();
        let severity = match event.severity() {
            Severity::Routine => "routine",
            Severity::Critical => "critical",
        };
        let leaf = Leaf {
            v: LEAF_VERSION,
            time: Text(&time),
            time_ns,
            monotonic_ns: u64::try_from(self.monotonic().as_nanos()).unwrap_or(u64::MAX),
            worker_id: origin.worker_id,
            device: origin.device,
            severity,
            actor: actor::acting(),
            event,
        };
        // Taken out while in use. A thread that is ending has none any more, and a fresh one serves as well.
        let mut buffer = LEAF.try_with(RefCell::take).unwrap_or_default();
        buffer.clear();
        // Writing numbers and text into memory cannot fail.
        let _ = serde_json::to_writer(&mut buffer, &leaf);
        let value = use_leaf(&buffer);
        let _ = LEAF.try_with(|kept| kept.replace(buffer));
        value
    }
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.destination {
            Destination::Log(_) => f.write_str("AuditTrail(open)"),
            Destination::Broken(broken) => write!(f, "AuditTrail(not open at first: {})", broken.dir.display()),
            Destination::Off => f.write_str("AuditTrail(off)"),
        }
    }
}
