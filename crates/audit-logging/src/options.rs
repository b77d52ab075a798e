//! How a log is opened.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::disk::Disk;
use crate::frame::{self, MAX_LEAF};
use crate::outcome::{Failure, OpenError, Severity};
use crate::segment::{LINK_ROOM, MAX_SEGMENT, SEGMENT_HEADER};
use crate::vfs::Vfs;

/// Smallest segment, in bytes.
const MIN_SEGMENT: u64 = 4096;
/// Smallest queue, in bytes: one record of the largest size and a gap record fit.
const MIN_QUEUE: usize = 128 << 10;
/// Largest queue, in bytes.
const MAX_QUEUE: usize = 1 << 30;

/// How a log is opened. `Options::default()` is right for a real disk.
#[derive(Clone)]
pub struct Options {
    /// Bytes of one segment file, 4 KiB to 256 MiB; rounded up to a multiple of 4096. Default 8 MiB. Two such files
    /// exist at least: the one in use and the spare.
    pub segment_bytes: u64,
    /// How long routine records may wait for the sync that makes them durable, at most. Default 50 ms.
    pub linger: Duration,
    /// How long an emit of a critical record waits for the disk. Default 10 ms.
    pub critical_deadline: Duration,
    /// Bytes of records that may wait in memory, 128 KiB to 1 GiB. Allocated twice when the log opens. Default 1 MiB.
    pub queue_bytes: usize,
    /// How long a log that cannot be written waits before it tries again; doubles up to 5 s. Default 250 ms.
    pub retry_after: Duration,
    /// Whether a thread of its own prepares the spare segment, off the path of the records. Default true; false makes the
    /// order of all file system calls repeatable, for tests.
    pub spare_thread: bool,
    /// The log's identity, stamped into every segment of a new log. Default: random.
    pub log_id: Option<[u8; 16]>,
    /// The file system. Default: the real one.
    pub vfs: Arc<dyn Vfs>,
    /// The clocks. Default: the real ones.
    pub clock: Arc<dyn Clock>,
    /// Who is told of every emit, failure and latency. Default: nobody.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 8 << 20,
            linger: Duration::from_millis(50),
            critical_deadline: Duration::from_millis(10),
            queue_bytes: 1 << 20,
            retry_after: Duration::from_millis(250),
            spare_thread: true,
            log_id: None,
            vfs: Arc::new(Disk),
            clock: Arc::new(SystemClock::new()),
            observer: None,
        }
    }
}

impl Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("segment_bytes", &self.segment_bytes)
            .field("linger", &self.linger)
            .field("critical_deadline", &self.critical_deadline)
            .field("queue_bytes", &self.queue_bytes)
            .field("vfs", &self.vfs)
            .finish_non_exhaustive()
    }
}

impl Options {
    pub(crate) fn checked(mut self) -> Result<Self, OpenError> {
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&self.segment_bytes) {
            return Err(OpenError::Option {
                option: "segment_bytes",
                value: self.segment_bytes,
                least: MIN_SEGMENT,
                most: MAX_SEGMENT,
            });
        }
        self.segment_bytes = self.segment_bytes.next_multiple_of(4096);
        if !(MIN_QUEUE..=MAX_QUEUE).contains(&self.queue_bytes) {
            return Err(OpenError::Option {
                option: "queue_bytes",
                value: self.queue_bytes as u64,
                least: MIN_QUEUE as u64,
                most: MAX_QUEUE as u64,
            });
        }
        Ok(self)
    }

    /// The largest leaf that fits one segment of this size.
    pub(crate) fn max_leaf(&self) -> usize {
        let segment = usize::try_from(self.segment_bytes).unwrap_or(usize::MAX);
        let taken = SEGMENT_HEADER.saturating_add(LINK_ROOM).saturating_add(frame::HEADER).saturating_add(8);
        segment.saturating_sub(taken).min(MAX_LEAF)
    }
}

/// Is told what happens, to count it. Called on the emitting thread or on the writer's, never under a lock. It must not
/// panic, block, or call back into the log.
pub trait Observer: Send + Sync {
    /// A record was handed to `emit`; called once for each, whatever becomes of it.
    fn emitted(&self, severity: Severity) {
        let _ = severity;
    }
    /// A record is not in the log; called at most once for each, also when that shows only later.
    fn failed(&self, severity: Severity, failure: &Failure) {
        let _ = (severity, failure);
    }
    /// A critical record was not on disk when its deadline passed.
    fn late(&self) {}
    /// A critical record was on disk so long after `emit` was called.
    fn durable_after(&self, latency: Duration) {
        let _ = latency;
    }
}
