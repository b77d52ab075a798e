//! The one thread that writes: drains the queue, writes frames at once, syncs in batches, copes with a failing disk.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::clock::unix_ms;
use crate::control::{self, Absent, Cause, Link};
use crate::frame::{self, Kind};
use crate::options::Options;
use crate::outcome::{Failure, Fault, Operation, Outcome, Severity};
use crate::queue::Shared;
use crate::recovery::Opened;
use crate::segment::{MAX_UNSYNCED, SEGMENT_HEADER};
use crate::spare::{Segment, Spare};
use crate::vfs::{self, Identity, Lock, Vfs};

/// The longest that a log that cannot be written waits before it tries again.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// A difference between the two clocks, in milliseconds, that counts as a jump.
const JUMP_MS: i64 = 1000;

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) dir_identity: Option<Identity>,
    pub(crate) lock: Box<dyn Lock>,
    pub(crate) current: Segment,
    pub(crate) spare: Spare,
    pub(crate) next_index: u64,
    /// Where the log stands as far as it is durable: what the next segment's link will say.
    pub(crate) anchor: Link,
    /// Frames taken from the queue and not yet durable. They are the source if they must be written again.
    inflight: Vec<u8>,
    /// Bytes of `inflight` that are in the current segment.
    written: usize,
    last_written: u64,
    records_written: u64,
    /// Batches taken and not yet settled.
    batches: std::ops::Range<u64>,
    urgent: bool,
    /// When the oldest record in `inflight` was taken.
    since: Duration,
    linger: Duration,
    half: usize,
    /// Time of day and monotonic time, in milliseconds, when last compared.
    clocks: (i64, i64),
    retry_after: Duration,
    retry: Duration,
    /// When the next attempt to make a lacking spare is due.
    spare_due: Duration,
}

fn mono_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, options: &Options, opened: Opened) -> std::io::Result<Self> {
        let Opened { lock, maker, current, spare, next_index, anchor, .. } = opened;
        let dir = shared.dir.clone();
        let dir_identity = options.vfs.identity(&dir).ok();
        let clocks = (shared.now_ms(), mono_ms(shared.clock.monotonic()));
        let buffer = shared.buffer_capacity();
        Ok(Self {
            spare: Spare::new(maker, spare, options.spare_thread)?,
            vfs: Arc::clone(&options.vfs),
            dir,
            dir_identity,
            lock,
            current,
            next_index,
            inflight: Vec::with_capacity(buffer),
            written: 0,
            last_written: anchor.last_seq,
            records_written: 0,
            anchor,
            batches: 1..1,
            urgent: false,
            since: Duration::ZERO,
            linger: options.linger,
            half: options.queue_bytes >> 1,
            clocks,
            retry_after: options.retry_after,
            retry: options.retry_after,
            spare_due: Duration::ZERO,
            shared,
        })
    }

    /// Writes the record that states how the log was found, and makes it durable, before anybody may emit.
    pub(crate) fn begin(&mut self, kind: Kind, leaf: &control::Leaf) -> Result<(), Fault> {
        self.shared.lock().push_control(kind, leaf);
        self.take();
        self.write_out()?;
        self.sync()
    }

    /// Until the log is closed.
    pub(crate) fn run(mut self) {
        loop {
            let (closing, linger_over) = self.await_work();
            if self.shared.lock().degraded.is_some() {
                if self.resume().is_err() && closing {
                    break;
                }
                if !closing {
                    continue;
                }
            }
            self.take();
            let full = self.inflight.len() >= self.half;
            let due = self.shared.clock.monotonic().saturating_sub(self.since) >= self.linger;
            let must_sync = self.urgent || closing || full || linger_over || due;
            if !self.inflight.is_empty() || self.urgent {
                let done = self.write_out().and_then(|()| if must_sync { self.sync() } else { Ok(()) });
                if let Err(fault) = done {
                    self.replant(fault);
                }
            }
            self.tend_spare();
            if closing && self.is_drained() {
                break;
            }
        }
        let outcome = self.finish();
        let shared = Arc::clone(&self.shared);
        // Files closed and lock given back before anybody hears of it.
        drop(self);
        shared.end(outcome);
    }

    /// Sleeps until there is something to do. Returns whether the log is closing, and whether the linger time is over.
    fn await_work(&mut self) -> (bool, bool) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if state.closing {
                return (true, false);
            }
            let limit = if state.degraded.is_some() {
                Some(self.retry)
            } else if !state.queue.is_empty() || state.gap.is_some() || state.urgent {
                return (false, false);
            } else if self.inflight.is_empty() {
                None
            } else {
                let waited = shared.clock.monotonic().saturating_sub(self.since);
                Some(self.linger.saturating_sub(waited))
            };
            state.idle = true;
            let Some(limit) = limit else {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle = false;
                continue;
            };
            let (back, over) = shared.work.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle = false;
            if over.timed_out() {
                return (state.closing, true);
            }
        }
    }

    /// Takes what is in the queue. Allocates nothing.
    fn take(&mut self) {
        let wall = self.shared.now_ms();
        let now = self.shared.clock.monotonic();
        let mono = mono_ms(now);
        let mut state = self.shared.lock();
        state.push_gap(wall);
        let expected = self.clocks.0.saturating_add(mono.saturating_sub(self.clocks.1));
        if wall.saturating_sub(expected).saturating_abs() > JUMP_MS && !state.closing {
            state.push_control(Kind::Clock, &control::clock(expected, wall));
        }
        self.clocks = (wall, mono);
        self.urgent |= std::mem::take(&mut state.urgent);
        if self.inflight.is_empty() {
            self.since = now;
            std::mem::swap(&mut self.inflight, &mut state.queue);
        } else {
            self.inflight.extend_from_slice(&state.queue);
            state.queue.clear();
        }
        state.batch = state.batch.saturating_add(1);
        self.batches.end = state.batch;
        drop(state);
        self.shared.make_room();
    }

    fn is_drained(&self) -> bool {
        let state = self.shared.lock();
        state.queue.is_empty() && state.gap.is_none() && self.inflight.is_empty()
    }

    /// Writes what is not in the current segment yet, frame by frame whole, going on in the spare when one is full.
    fn write_out(&mut self) -> Result<(), Fault> {
        while self.written < self.inflight.len() {
            if self.current.offset == SEGMENT_HEADER as u64 && self.current.header.index != 1 {
                self.write_link()?;
            }
            let salt = self.current.header.salt();
            let unsynced = self.current.offset.saturating_sub(self.current.synced);
            let room = self.current.room().min(MAX_UNSYNCED.saturating_sub(unsynced));
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let durable = self.anchor.last_seq;
            let (mut at, start) = (self.written, self.written);
            let (mut last, mut count) = (self.last_written, 0u64);
            while let Some(handed) = self.inflight.get(at..).and_then(frame::handed) {
                let end = at.saturating_add(handed.size);
                if end.saturating_sub(start) > room {
                    break;
                }
                if let Some(bytes) = self.inflight.get_mut(at..end) {
                    frame::stamp(bytes, durable, salt);
                }
                (at, last, count) = (end, handed.seq, count.saturating_add(1));
            }
            if at == start {
                let next = self.inflight.get(start..).and_then(frame::handed).map_or(0, |handed| handed.size as u64);
                if next <= self.current.room() && unsynced > 0 {
                    self.sync_current()?;
                } else {
                    self.rotate()?;
                }
                continue;
            }
            let bytes = self.inflight.get(start..at).unwrap_or_default();
            vfs::write_full(&*self.current.file, bytes, self.current.offset)
                .map_err(|error| Fault::new(Operation::Write, &error))?;
            self.current.offset = self.current.offset.saturating_add(bytes.len() as u64);
            self.written = at;
            self.last_written = last;
            self.records_written = self.records_written.saturating_add(count);
        }
        Ok(())
    }

    fn write_link(&mut self) -> Result<(), Fault> {
        let leaf = self.anchor.leaf();
        let seq = self.anchor.last_seq;
        let mut bytes = Vec::with_capacity(frame::padded(leaf.bytes().len()));
        let crc = frame::leaf_crc(leaf.bytes());
        frame::push(&mut bytes, Kind::Link, Severity::Critical, seq, leaf.bytes(), crc);
        frame::stamp(&mut bytes, seq, self.current.header.salt());
        vfs::write_full(&*self.current.file, &bytes, self.current.offset)
            .map_err(|error| Fault::new(Operation::Write, &error))?;
        self.current.offset = self.current.offset.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Makes everything written durable and checks that the file still has its name.
    fn sync_current(&mut self) -> Result<(), Fault> {
        self.current.file.sync_data().map_err(|error| Fault::new(Operation::Sync, &error))?;
        if let Some(operation) = self.current.disturbed(&*self.vfs) {
            let kind = std::io::ErrorKind::NotFound;
            return Err(Fault { operation, kind, os_error: None });
        }
        self.current.synced = self.current.offset;
        self.anchor = Link {
            previous: self.current.header.index,
            end: self.current.synced,
            last_seq: self.last_written,
            records: self.anchor.records.saturating_add(std::mem::take(&mut self.records_written)),
            cause: Cause::Full,
        };
        self.shared.publish(&self.anchor);
        if self.urgent {
            self.shared.tell_news();
        }
        self.inflight.drain(..self.written.min(self.inflight.len()));
        self.written = 0;
        self.shared.settle(self.anchor.last_seq, self.batches.clone());
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Fault> {
        self.sync_current()?;
        self.batches.start = self.batches.end;
        self.urgent = false;
        self.retry = self.retry_after;
        Ok(())
    }

    /// Goes on in the next segment. The full one is durable before the first byte goes into the next.
    fn rotate(&mut self) -> Result<(), Fault> {
        self.sync_current()?;
        self.current = self.next_segment()?;
        Ok(())
    }

    /// The spare if it is there and in place, else a segment made now. Orders a new spare.
    pub(crate) fn next_segment(&mut self) -> Result<Segment, Fault> {
        let segment = match self.spare.take().filter(|segment| segment.is_in_place(&*self.vfs)) {
            Some(segment) => segment,
            None => {
                let index = self.new_index();
                self.spare.make(index, self.current.header.index)?
            }
        };
        let index = self.new_index();
        self.spare.order(index, segment.header.index);
        Ok(segment)
    }

    fn new_index(&mut self) -> u64 {
        let index = self.next_index;
        self.next_index = index.saturating_add(1);
        index
    }

    /// Has a lacking spare made, now and then.
    pub(crate) fn tend_spare(&mut self) {
        let now = self.shared.clock.monotonic();
        if now >= self.spare_due && self.spare.is_lacking() {
            self.spare_due = now.saturating_add(self.retry_after);
            let index = self.new_index();
            self.spare.order(index, self.current.header.index);
        }
        self.shared.note_spare(self.spare.is_ready(), self.current.header.index);
    }

    /// The current segment can no longer be trusted: a sync that failed says nothing of what is on the disk, and is
    /// never tried again on the same file. All that is not durable is written again, from memory, to another segment.
    fn replant(&mut self, fault: Fault) {
        let given_up = self.current.header.index;
        // A fault that only hit the record of a fault is not recorded again: else a bad disk would keep itself busy.
        let worth = frame::all_handed(&self.inflight)
            .any(|handed| matches!(handed.kind, Kind::Event | Kind::Publication | Kind::Gap));
        match self.plant(fault.operation == Operation::Vanished) {
            Ok(()) if worth => {
                let ms = self.shared.now_ms();
                let mut state = self.shared.lock();
                state.push_control(Kind::Storage, &control::storage(fault, given_up, ms));
                state.urgent = true;
            }
            Ok(()) => {}
            Err(second) => self.degrade(second),
        }
    }

    fn plant(&mut self, vanished: bool) -> Result<(), Fault> {
        self.keep_directory()?;
        if vanished {
            self.rescue();
        }
        self.current = self.next_segment()?;
        self.anchor.cause = Cause::Fault;
        self.written = 0;
        self.last_written = self.anchor.last_seq;
        self.records_written = 0;
        self.write_out()?;
        self.sync()
    }

    /// Gives up for now: everything that is not durable is lost, counted, and will be stated as a gap.
    fn degrade(&mut self, fault: Fault) {
        let failure = Failure::Storage(fault);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut lost = [0u64; 2];
        for handed in frame::all_handed(&self.inflight).chain(frame::all_handed(&state.queue)) {
            if matches!(handed.kind, Kind::Event | Kind::Publication)
                && let Some(count) = lost.get_mut(handed.severity as usize)
            {
                *count = count.saturating_add(1);
            }
        }
        state.degraded = Some(failure);
        shared.show_health(&state);
        let last = self.set_gap(&mut state, failure);
        shared.note_loss(&mut state, self.anchor.last_seq.saturating_add(1), last, failure);
        state.queue.clear();
        state.urgent = false;
        state.batch = state.batch.saturating_add(1);
        self.batches.end = state.batch;
        drop(state);
        self.inflight.clear();
        self.written = 0;
        self.urgent = false;
        let [routine, critical] = lost;
        for (severity, count) in [(Severity::Routine, routine), (Severity::Critical, critical)] {
            for _ in 0..count {
                shared.count_failure(severity, &failure);
            }
        }
        shared.settle(last, self.batches.clone());
        self.batches.start = self.batches.end;
    }

    /// States as a gap every number given out since the last durable record. Returns the last of them.
    fn set_gap(&self, state: &mut crate::queue::State, failure: Failure) -> u64 {
        let first = self.anchor.last_seq.saturating_add(1);
        let count = state.next_seq.saturating_sub(first);
        state.gap = (count > 0).then_some((Absent { first, count }, failure));
        state.next_seq.saturating_sub(1)
    }

    /// Tries to go on in a fresh segment, with the gap as its first record.
    fn resume(&mut self) -> Result<(), Fault> {
        let shared = Arc::clone(&self.shared);
        let ms = shared.now_ms();
        let failure = {
            let mut state = shared.lock();
            let Some(failure) = state.degraded else { return Ok(()) };
            self.set_gap(&mut state, failure);
            if state.gap.is_some() {
                state.push_gap(ms);
            } else if let Failure::Storage(fault) = failure {
                state.push_control(Kind::Storage, &control::storage(fault, self.current.header.index, ms));
            }
            std::mem::swap(&mut self.inflight, &mut state.queue);
            failure
        };
        match self.plant(false) {
            Ok(()) => {
                let mut state = shared.lock();
                state.degraded = None;
                shared.show_health(&state);
                Ok(())
            }
            Err(fault) => {
                self.inflight.clear();
                self.written = 0;
                let mut state = shared.lock();
                state.queue.clear();
                state.degraded = Some(Failure::Storage(fault));
                shared.show_health(&state);
                self.set_gap(&mut state, failure);
                self.retry = self.retry.saturating_mul(2).min(MAX_RETRY);
                Err(fault)
            }
        }
    }

    /// Writes the close record. Everything before it is durable already, and its bound says so.
    fn finish(&mut self) -> Outcome {
        if let Some(failure) = self.shared.lock().degraded {
            return Outcome::Failed(failure);
        }
        let ms = unix_ms(self.shared.clock.wall());
        let seq = {
            let mut state = self.shared.lock();
            let leaf = control::close(self.anchor.records.saturating_add(1), ms);
            let seq = state.push_control(Kind::Close, &leaf);
            std::mem::swap(&mut self.inflight, &mut state.queue);
            seq
        };
        let done = self.write_out().and_then(|()| self.sync());
        match done.or_else(|_| self.plant(false)) {
            Ok(()) => Outcome::Durable { seq },
            Err(fault) => Outcome::Failed(Failure::Storage(fault)),
        }
    }
}
