//! The protocol by which a daemon hands resident weights to other processes of its machine: frames and messages, no I/O.
//!
//! ```text
//! client                                   daemon
//!   hello, version 2          ─────▶
//!                             ◀─────       hello, or error
//!   attach, shard or digest   ─────▶
//!                             ◀─────       attached + a read-only descriptor (SCM_RIGHTS), then tensors; or error
//!   attach-cuda, the same     ─────▶
//!                             ◀─────       attached-cuda + a GPU's descriptor, then tensors; or error
//!   watch                     ─────▶
//!                             ◀─────       watching, then a state for each lease, again and again
//!   (the connection ends: so do its leases)
//! ```
//!
//! A frame is a length of four bytes, little-endian, and so many bytes of JSON. `docs/protocol.md` has every byte, with
//! vectors that a test holds against this code. The client is in [`crate::client`].

mod frame;
mod message;

use std::path::{Path, PathBuf};

pub use frame::{FrameError, Incoming, encode, encoded_length};
pub use message::{
    Answer, Attached, AttachedCuda, ErrorCode, Request, RequestError, ShardInfo, TensorInfo, hex, shown_state, unhex,
};

/// The protocol's version. Version 2 has `attach-cuda`, and is otherwise version 1.
pub const VERSION: u32 = 2;
/// The oldest version that a daemon speaks.
pub const OLDEST_VERSION: u32 = 1;
/// Most bytes of a frame's body that a daemon reads.
pub const MAX_REQUEST: usize = 4096;
/// Most bytes of a frame's body that a client should be ready to read.
pub const MAX_ANSWER: usize = 64 << 20;
/// A daemon repeats the state of watched leases this often, in milliseconds, also where nothing changes.
pub const HEARTBEAT_MS: u64 = 1000;
/// A client that has heard nothing for so long, in milliseconds, should say that nobody watches his shards any more.
pub const SILENCE_MS: u64 = 5000;

/// Where a daemon's attach socket is, unless it was told otherwise: beside the control socket, `-attach` behind the name.
///
/// ```
/// use std::path::Path;
/// use vram_residency::handout::socket_beside;
///
/// assert_eq!(socket_beside(Path::new("/run/vram/vram.sock")), Path::new("/run/vram/vram-attach.sock"));
/// ```
#[must_use]
pub fn socket_beside(control: &Path) -> PathBuf {
    let mut name = control.file_stem().unwrap_or_default().to_owned();
    name.push("-attach");
    if let Some(extension) = control.extension() {
        name.push(".");
        name.push(extension);
    }
    control.with_file_name(name)
}
