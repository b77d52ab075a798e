//! What emitters and writer share: the queue, the numbers, the counters and the waiting.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::futex;

use crate::clock::{Clock, unix_ms};
use crate::control::{self, Absent, Leaf};
use crate::frame::{self, Kind};
use crate::options::Observer;
use crate::outcome::{Failure, Outcome, Severity};
use crate::recovery::Recovery;
use crate::vfs::Vfs;

/// Records that may be accepted and not settled at a time. After an unclean end as many numbers are skipped, so that no
/// number that a caller may have been told is ever given again.
pub(crate) const MAX_OUTSTANDING: u64 = 65_536;

/// Queue bytes kept free for the log's own records.
const RESERVE: usize = 4 << 10;

/// Words that waiting emitters sleep on: the batches' numbers modulo this choose one.
const WORDS: usize = 8;

/// Ranges of lost numbers that are remembered one by one, for emitters that are still waiting.
const LOSSES: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Loss {
    first: u64,
    last: u64,
    failure: Failure,
}

#[derive(Debug)]
pub(crate) struct State {
    /// Frames that the writer has not taken yet.
    pub(crate) queue: Vec<u8>,
    pub(crate) next_seq: u64,
    /// Number of the batch that `queue` will become.
    pub(crate) batch: u64,
    /// Somebody needs the records in `queue` synced at once.
    pub(crate) urgent: bool,
    /// The writer sleeps.
    pub(crate) idle: bool,
    /// Numbers used up by refused or lost records and not yet stated in the log.
    pub(crate) gap: Option<(Absent, Failure)>,
    pub(crate) degraded: Option<Failure>,
    pub(crate) closing: bool,
    pub(crate) finished: Option<Outcome>,
    losses: [Option<Loss>; LOSSES],
}

/// See the module.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) work: Condvar,
    /// Signalled once, when the writer has ended.
    pub(crate) ended: Condvar,
    words: [AtomicU32; WORDS],
    /// Emitters wait here for room in the queue.
    room: AtomicU32,
    room_wanted: AtomicBool,
    /// Every record up to this number is durable or lost.
    settled: AtomicU64,
    /// Whether any range was ever lost: else settled means durable.
    any_loss: AtomicBool,
    /// Every record up to this number is durable, or was refused or lost before and is stated in a gap record.
    pub(crate) durable: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) segment: AtomicU64,
    pub(crate) spare_ready: AtomicBool,
    pub(crate) emits: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) critical_failures: AtomicU64,
    pub(crate) late: AtomicU64,
    /// The same as [`State::takes_none`], to be asked without waiting for anybody.
    failing: AtomicBool,
    /// Changes when a batch that somebody waited for became durable. The publisher sleeps on it.
    news: AtomicU32,
    news_wanted: AtomicBool,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) deadline: Duration,
    pub(crate) max_leaf: usize,
    capacity: usize,
    pub(crate) dir: PathBuf,
    pub(crate) recovered: Option<Recovery>,
}

/// What a new [`Shared`] starts from.
pub(crate) struct Start {
    pub(crate) last_seq: u64,
    pub(crate) records: u64,
    pub(crate) dir: PathBuf,
    pub(crate) recovered: Option<Recovery>,
    pub(crate) capacity: usize,
    pub(crate) max_leaf: usize,
    pub(crate) deadline: Duration,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl State {
    /// Whether the log takes no records at present.
    fn takes_none(&self) -> bool {
        self.degraded.is_some() || self.closing
    }

    /// Appends a frame of the log itself; there is always room for it.
    pub(crate) fn push_control(&mut self, kind: Kind, leaf: &Leaf) -> u64 {
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        frame::push(&mut self.queue, kind, Severity::Critical, seq, leaf.bytes(), frame::leaf_crc(leaf.bytes()));
        seq
    }

    /// States the pending gap, if there is one, as the next record.
    pub(crate) fn push_gap(&mut self, ms: i64) {
        if let Some((absent, failure)) = self.gap.take() {
            self.push_control(Kind::Gap, &control::gap(absent, failure.reason(), ms));
        }
    }

    /// Uses up a number for a record that is refused.
    fn refuse(&mut self, failure: Failure) {
        let seq = self.next_seq;
        self.next_seq = seq.saturating_add(1);
        match &mut self.gap {
            Some((absent, _)) => absent.count = absent.count.saturating_add(1),
            None => self.gap = Some((Absent { first: seq, count: 1 }, failure)),
        }
    }

    /// Remembers that these numbers are lost, for those who still wait for them.
    pub(crate) fn remember_loss(&mut self, first: u64, last: u64, failure: Failure) {
        // When the list is full, the two oldest merge: a waiter may then hear of a failure too many, never of one too few.
        if let [Some(oldest), Some(second), ..] = self.losses
            && self.losses.iter().all(Option::is_some)
        {
            self.losses.rotate_left(1);
            if let Some(place) = self.losses.first_mut() {
                *place = Some(Loss { first: oldest.first, ..second });
            }
            if let Some(place) = self.losses.last_mut() {
                *place = None;
            }
        }
        if let Some(place) = self.losses.iter_mut().find(|place| place.is_none()) {
            *place = Some(Loss { first, last, failure });
        }
    }

    fn lost(&self, seq: u64) -> Option<Failure> {
        self.losses.iter().flatten().find(|loss| (loss.first..=loss.last).contains(&seq)).map(|loss| loss.failure)
    }
}

impl Shared {
    /// Shows a change of [`State::degraded`] or [`State::closing`] to those who ask without the lock.
    pub(crate) fn show_health(&self, state: &State) {
        self.failing.store(state.takes_none(), SeqCst);
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(SeqCst)
    }

    pub(crate) fn new(start: Start) -> Self {
        let Start { last_seq, records, dir, recovered, capacity, max_leaf, deadline, vfs, clock, observer } = start;
        Self {
            state: Mutex::new(State {
                queue: Vec::with_capacity(buffer_capacity(capacity)),
                next_seq: last_seq.saturating_add(1),
                batch: 1,
                urgent: false,
                idle: false,
                gap: None,
                degraded: None,
                closing: false,
                finished: None,
                losses: [None; LOSSES],
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
            words: Default::default(),
            room: AtomicU32::new(0),
            room_wanted: AtomicBool::new(false),
            settled: AtomicU64::new(last_seq),
            any_loss: AtomicBool::new(false),
            durable: AtomicU64::new(last_seq),
            records: AtomicU64::new(records),
            segment: AtomicU64::new(0),
            spare_ready: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            emits: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            critical_failures: AtomicU64::new(0),
            late: AtomicU64::new(0),
            news: AtomicU32::new(0),
            news_wanted: AtomicBool::new(false),
            vfs,
            observer,
            clock,
            deadline,
            max_leaf,
            capacity,
            dir,
            recovered,
        }
    }

    /// Bytes that each of the two buffers holds without allocating.
    pub(crate) fn buffer_capacity(&self) -> usize {
        buffer_capacity(self.capacity)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        unix_ms(self.clock.wall())
    }

    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(SeqCst)
    }

    /// See [`AuditLog::emit`](crate::AuditLog::emit).
    pub(crate) fn emit(&self, kind: Kind, severity: Severity, leaf: &[u8]) -> Outcome {
        self.emits.fetch_add(1, SeqCst);
        if let Some(observer) = &self.observer {
            observer.emitted(severity);
        }
        let start = match severity {
            Severity::Routine => Duration::ZERO,
            Severity::Critical => self.clock.monotonic(),
        };
        match (self.enqueue(kind, severity, leaf, start), severity) {
            (Err(failure), _) => {
                self.count_failure(severity, &failure);
                Outcome::Failed(failure)
            }
            (Ok((seq, _)), Severity::Routine) => Outcome::Queued { seq },
            (Ok((seq, batch)), Severity::Critical) => {
                let outcome = self.wait(seq, batch, start, self.deadline);
                match outcome {
                    Outcome::Durable { .. } => {
                        if let Some(observer) = &self.observer {
                            observer.durable_after(self.clock.monotonic().saturating_sub(start));
                        }
                    }
                    Outcome::Late { .. } => {
                        self.late.fetch_add(1, SeqCst);
                        if let Some(observer) = &self.observer {
                            observer.late();
                        }
                    }
                    // The writer has counted it.
                    _ => {}
                }
                outcome
            }
        }
    }

    fn enqueue(&self, kind: Kind, severity: Severity, leaf: &[u8], start: Duration) -> Result<(u64, u64), Failure> {
        let size = frame::padded(leaf.len());
        let crc = if leaf.len() <= self.max_leaf { frame::leaf_crc(leaf) } else { 0 };
        loop {
            let seen = self.room.load(SeqCst);
            let mut state = self.lock();
            if state.closing {
                return Err(Failure::Closed);
            }
            if let Some(failure) = state.degraded {
                state.refuse(failure);
                return Err(failure);
            }
            if leaf.len() > self.max_leaf {
                let failure = Failure::TooLarge { bytes: leaf.len(), limit: self.max_leaf };
                state.refuse(failure);
                self.wake_writer(state);
                return Err(failure);
            }
            let full = state.queue.len().saturating_add(size) > self.capacity
                || state.next_seq.saturating_sub(self.settled()) >= MAX_OUTSTANDING;
            if full {
                let failure = Failure::QueueFull { capacity: self.capacity };
                let waited = self.clock.monotonic().saturating_sub(start);
                if severity == Severity::Routine || waited >= self.deadline {
                    state.refuse(failure);
                    return Err(failure);
                }
                self.room_wanted.store(true, SeqCst);
                drop(state);
                if !sleep_on(&self.room, seen, self.deadline.saturating_sub(waited)) {
                    let mut state = self.lock();
                    state.refuse(failure);
                    return Err(failure);
                }
                continue;
            }
            if state.gap.is_some() {
                state.push_gap(unix_ms(self.clock.wall()));
            }
            let seq = state.next_seq;
            state.next_seq = seq.saturating_add(1);
            frame::push(&mut state.queue, kind, severity, seq, leaf, crc);
            let batch = state.batch;
            if severity == Severity::Critical {
                state.urgent = true;
            }
            self.wake_writer(state);
            return Ok((seq, batch));
        }
    }

    /// Wakes the writer if it sleeps, after the lock is given back.
    pub(crate) fn wake_writer(&self, mut state: MutexGuard<'_, State>) {
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        if idle {
            self.work.notify_one();
        }
    }

    /// Waits until the record is settled or the time is over.
    pub(crate) fn wait(&self, seq: u64, batch: u64, start: Duration, limit: Duration) -> Outcome {
        let Some(word) = self.word(batch) else { return Outcome::Failed(Failure::WriterGone) };
        let mut over = false;
        loop {
            let seen = word.load(SeqCst);
            if self.settled() >= seq {
                if !self.any_loss.load(SeqCst) {
                    return Outcome::Durable { seq };
                }
                return self.lock().lost(seq).map_or(Outcome::Durable { seq }, Outcome::Failed);
            }
            let waited = self.clock.monotonic().saturating_sub(start);
            if over || waited >= limit {
                return Outcome::Late { seq };
            }
            // A clock that stands still must not make a deadline endless: the sleep's own end counts too.
            over = !sleep_on(word, seen, limit.saturating_sub(waited));
        }
    }

    fn word(&self, batch: u64) -> Option<&AtomicU32> {
        self.words.get(usize::try_from(batch).unwrap_or(0) % WORDS)
    }

    /// Publishes that everything up to `seq` is settled, then wakes those who wait on these batches: one call for each
    /// batch, however many wait.
    pub(crate) fn settle(&self, seq: u64, batches: std::ops::Range<u64>) {
        self.settled.fetch_max(seq, SeqCst);
        let count = batches.end.saturating_sub(batches.start).min(WORDS as u64);
        for batch in batches.end.saturating_sub(count)..batches.end {
            if let Some(word) = self.word(batch) {
                wake(word);
            }
        }
        self.make_room();
    }

    /// Wakes the publisher, if it sleeps. One write to memory if it does not.
    pub(crate) fn tell_news(&self) {
        if self.news_wanted.swap(false, SeqCst) {
            wake(&self.news);
        }
    }

    /// Wakes the publisher, whether or not a batch became durable.
    pub(crate) fn wake_publisher(&self) {
        self.news_wanted.store(false, SeqCst);
        wake(&self.news);
    }

    /// What to sleep on, to be read before looking for work.
    pub(crate) fn news(&self) -> u32 {
        self.news_wanted.store(true, SeqCst);
        self.news.load(SeqCst)
    }

    /// Sleeps until there is news since `seen` was read, or the time is over.
    pub(crate) fn await_news(&self, seen: u32, limit: Duration) {
        if self.news.load(SeqCst) == seen {
            sleep_on(&self.news, seen, limit);
        }
    }

    /// Wakes those who wait for room in the queue.
    pub(crate) fn make_room(&self) {
        if self.room_wanted.swap(false, SeqCst) {
            wake(&self.room);
        }
    }

    pub(crate) fn note_loss(&self, state: &mut State, first: u64, last: u64, failure: Failure) {
        state.remember_loss(first, last, failure);
        self.any_loss.store(true, SeqCst);
    }

    pub(crate) fn count_failure(&self, severity: Severity, failure: &Failure) {
        self.failures.fetch_add(1, SeqCst);
        if severity == Severity::Critical {
            self.critical_failures.fetch_add(1, SeqCst);
        }
        if let Some(observer) = &self.observer {
            observer.failed(severity, failure);
        }
    }
}

/// A full queue on top of the half that may still be waiting for its sync.
fn buffer_capacity(queue: usize) -> usize {
    queue.saturating_add(queue >> 1).saturating_add(RESERVE)
}

fn wake(word: &AtomicU32) {
    word.fetch_add(1, SeqCst);
    let _ = futex::wake(word, futex::Flags::PRIVATE, u32::MAX >> 1);
}

/// Sleeps while the word has this value. False: the time is over.
fn sleep_on(word: &AtomicU32, seen: u32, limit: Duration) -> bool {
    let limit = futex::Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    !matches!(futex::wait(word, futex::Flags::PRIVATE, seen, Some(&limit)), Err(rustix::io::Errno::TIMEDOUT))
}
