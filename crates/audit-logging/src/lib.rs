//! A durable, damage-evident, append-only log of opaque records.
//!
//! A record is a *leaf* of at most 65,525 bytes, kept verbatim. Records get strictly increasing numbers, are framed with
//! checksums and appended to pre-allocated segment files by one writer thread. A critical record is on disk
//! (`fdatasync`) before [`AuditLog::emit`] returns, or the call says that it is [`Outcome::Late`] or
//! [`Outcome::Failed`]. Whatever is not in the log, the log says so itself: refused and lost records leave a gap record
//! with their numbers.
//!
//! ```
//! use std::time::Duration;
//! use audit_logging::{AuditLog, Kind, Options, Severity, reader};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path().join("audit");
//! let options = Options { critical_deadline: Duration::from_secs(5), ..Options::default() };
//! let log = AuditLog::open(&dir, options)?;
//! let _ = log.emit(Severity::Routine, b"started");
//! let outcome = log.emit(Severity::Critical, b"seal verification failed");
//! assert!(outcome.is_durable(), "not on disk: {outcome:?}");
//! assert!(log.close(Duration::from_secs(5)).is_durable());
//!
//! let report = reader::verify(&dir)?;
//! assert!(report.is_intact() && report.clean_close);
//! let leaves: Vec<Vec<u8>> = reader::records(&dir)?
//!     .filter_map(Result::ok)
//!     .filter(|record| record.kind == Kind::Event)
//!     .map(|record| record.leaf)
//!     .collect();
//! assert_eq!(leaves, [b"started".to_vec(), b"seal verification failed".to_vec()]);
//! # Ok(())
//! # }
//! ```
//!
//! # What it proves, and what not
//!
//! The checksums are CRC-32C without a key. They show damage, and careless edits: a flipped bit, a record deleted,
//! inserted, doubled or moved, a segment cut, removed or exchanged. They do not show the work of somebody who rewrites
//! the checksums as well, nor records cut off at the end, closed or not. That takes signed checkpoints kept
//! elsewhere.
//!
//! # Signed checkpoints
//!
//! [`publish`] makes them while the log is written: a Merkle tree over the records in static files, signed, in formats
//! that tools by others read. [`evidence`] verifies such a log, and [`tlog`] makes and checks proofs to carry away.
//! Published and signed, a log shows every change of what was signed to whoever has its public key. It still does not
//! show that records were cut off behind the last checkpoint that *somebody else* holds: a witness, a replica, an auditor.
//! Whoever has the signing key can sign another history; he cannot make the others forget the one they saw.
//!
//! # When the disk fails
//!
//! A failed sync is never repeated on the same file: the frames are written again from memory to a spare segment that is
//! always ready. If that fails too, the log is *degraded*: every emit fails and is counted, and the log tries to resume
//! by itself, with a gap record first. It never blocks and never panics because of the disk.
//!
//! The formats, byte by byte, and the order of system calls are in `docs/audit-log.md` and `docs/audit-format.md`.
#![forbid(unsafe_code)]

mod clock;
mod control;
mod disk;
pub mod evidence;
mod finding;
mod floor;
mod frame;
mod log;
mod options;
mod outcome;
pub mod publish;
mod queue;
pub mod reader;
mod recovery;
mod rescue;
mod segment;
mod spare;
pub mod tlog;
pub mod vfs;
mod walk;
mod writer;

pub use clock::{Clock, SystemClock};
pub use disk::Disk;
pub use frame::{Kind, MAX_LEAF};
pub use log::{AuditLog, Status};
pub use options::{Observer, Options};
pub use outcome::{Failure, Fault, OpenError, Operation, Outcome, ReadError, Severity};
pub use reader::Record;
pub use recovery::Recovery;
pub use vfs::Vfs;
