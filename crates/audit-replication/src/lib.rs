//! Everything of a published audit log that leaves the node: replicas in object stores or directories, cosignatures of
//! witnesses, and the reading of a log that lies elsewhere.
//!
//! A log on one machine proves nothing against whoever owns the machine. A copy that he cannot change, or the word of
//! somebody who saw an earlier state, does. This crate sends both away, off the hot path: one thread with an async runtime
//! of its own (and one more for each replica in a directory, because a file system may not answer at all) that reads the
//! published directory and never the log, so that no store, however slow, can hold up a record.
//!
//! ```text
//!   published directory ──▶ replica (one task each) ──▶ s3://bucket/prefix, file:///directory
//!            │
//!            └───────────▶ witnesses (one task each) ──▶ quorum ──▶ the node's `cosigned`
//! ```
//!
//! # What it promises
//!
//! - A checkpoint is on a replica only after everything that it covers: entry bundles, tiles, notes of rotation, then
//!   `checkpoints/<size>`, then `checkpoint`. Whatever moment it stops at, what is there can be verified.
//! - Nothing that was published is ever overwritten: objects are created under the condition that they do not exist, and
//!   what exists is read and compared, byte for byte. Other bytes are a *conflict*. Only `checkpoint`, `cosigned` and
//!   `minimum-index` change.
//! - A replica or a witness that knows more than the node, or another past, is a *rollback*. Either finding is a critical
//!   record in the log, shows in the status, and ends that replica's or witness's part until a person has looked.
//! - What a store really does is tried out at the start ([`Probe`]) and goes on record.
//! - A store or witness that is down is asked again after waits that double to 30 s, each partly random. Nothing is queued
//!   meanwhile, because the directory is the queue: at most four objects per replica are in memory. It catches up.
//! - [`Replication::start`] asks nothing of the network; only [`Replication::finish`] waits, and for no longer than told.
//!
//! # What it does not
//!
//! - It does not make a store write-once. Object lock is the bucket's setting: a default retention. Where a store ignores
//!   conditional writes, objects are looked at before they are written, which a second writer can slip through.
//! - It does not delete. Partial tiles of earlier checkpoints stay on a replica; a lifecycle rule of the bucket is the
//!   place for that.
//! - It does not look again at what it once copied: that is what `vram audit verify URL` is for.
//! - A witness says that the log only grew, not that what it says is true.
#![forbid(unsafe_code)]

mod backoff;
mod ending;
mod http;
mod node;
mod probe;
mod put;
mod replica;
mod service;
mod source;
mod status;
mod store;
mod tls;
mod witness;

pub use node::{Node, Published};
pub use probe::{Lock, Probe, RACERS};
pub use replica::ReplicaOptions;
pub use service::{Options, Replication, StartError, WitnessOptions};
pub use source::{RemoteError, RemoteSource};
pub use status::{Observer, ReplicaStatus, State, Status, WitnessStatus};
pub use store::{Location, StoreError, StoreOptions};
pub use witness::{Witness, WitnessError};
