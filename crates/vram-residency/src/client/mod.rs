//! Use weights that a daemon of this machine keeps resident and verified: mapped, not copied.
//!
//! ```no_run
//! # fn main() -> Result<(), vram_residency::client::ClientError> {
//! let model = vram_residency::client::connect()?.attach("llama.safetensors")?;
//! let norm = model.tensor("model.norm.weight").expect("every llama has one");
//! println!("{} {:?}, {} bytes in place", norm.dtype, norm.shape, norm.bytes.len());
//!
//! let watch = model.watch()?; // before each batch, say
//! if !watch.is_verified() {
//!     eprintln!("stop: {}", watch.standing());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What is attached is a shared, read-only mapping of the daemon's own memory: a second client costs no second copy, and
//! none of them can write to it. It stays valid for as long as the [`Attached`] lives, also when the daemon dies: then
//! [`Watch`] says that nobody checks it any more. A repair by the daemon is seen in place.
//!
//! A shard in a GPU's memory is had by [`Client::attach_cuda`], as an address on that GPU, where the daemon's operator allows
//! it: there the daemon cannot keep others whom it was handed to from writing, and finds what they change.
//!
//! The protocol is in `docs/protocol.md`, the engine developer's five minutes in `docs/attach.md`. One thread for each
//! connection reads what the daemon says; there is no runtime.

mod attached;
mod connection;
mod cuda;
mod handed;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::{CudaError, DeviceError};
use crate::digest::Digest;
use crate::handout::{Answer, ErrorCode, Request, ShardInfo, socket_beside};
use crate::seal::RecordError;
use connection::Connection;

pub use attached::{Attached, TensorView};
pub use cuda::{AttachedCuda, CudaTensorView};
pub use watch::{Standing, Watch};

/// A connection to a daemon. What it attaches keeps the connection open.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

/// Why weights could not be had, or are not what they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens, or not to this user.
    #[error(
        "no daemon hands out weights at {}: {source}; start one with vram serve, or set VRAM_ATTACH_SOCKET to where it listens",
        socket.display()
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// That is the socket over which a daemon is commanded.
    #[error(
        "{} is the daemon's control socket, which speaks HTTP; the attach socket is {} unless its [attach] section names another",
        socket.display(),
        socket_beside(socket).display()
    )]
    ControlSocket {
        /// The socket.
        socket: PathBuf,
    },
    /// The environment names no place in which the daemon's socket could be.
    #[error("where the daemon listens is not known: set VRAM_ATTACH_SOCKET, XDG_RUNTIME_DIR or HOME")]
    NoSocket,
    /// The daemon refused.
    #[error("the daemon refuses ({code}): {message}")]
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// The connection is over. What is mapped stays mapped; nobody watches it any more.
    #[error("the connection to the daemon is over: {reason}; connect again")]
    Lost {
        /// How it ended.
        reason: String,
    },
    /// The daemon does not keep to the protocol.
    #[error("the daemon does not keep to the protocol: {what}; are daemon and client of the same version?")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// What was handed out cannot be mapped.
    #[error("what the daemon handed out cannot be mapped: {source}")]
    Map {
        /// Why.
        source: io::Error,
    },
    /// The GPU's driver cannot map or read what was handed out.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The daemon knows nothing of memory of GPUs.
    #[error("this daemon hands out no GPU's memory, as it speaks version 1 of the protocol; update vram")]
    OldDaemon,
    /// The seal that came along is none.
    #[error("what the daemon says of the shard is no seal: {0}")]
    Seal(#[from] RecordError),
    /// The mapped bytes are not what was sealed.
    #[error("the mapped bytes are {actual} and {expected} was sealed: do not use them")]
    Mismatch {
        /// What was sealed.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
}

impl From<CudaError> for ClientError {
    fn from(error: CudaError) -> Self {
        Self::Device(error.into())
    }
}

/// Connects to the daemon of this user or of this machine: at `$VRAM_ATTACH_SOCKET`, else where `vram serve` listens
/// unless it was told otherwise.
///
/// # Errors
/// [`ClientError::Connect`] where nobody listens, [`ClientError::ControlSocket`] where it is the wrong socket of the two,
/// [`ClientError::Refused`] where this user may not attach.
pub fn connect() -> Result<Client, ClientError> {
    connect_to(&default_socket().ok_or(ClientError::NoSocket)?)
}

/// Connects to the daemon that listens on a socket.
///
/// # Errors
/// As [`connect`].
pub fn connect_to(socket: &Path) -> Result<Client, ClientError> {
    Ok(Client { connection: Arc::new(Connection::open(socket)?) })
}

/// Where [`connect`] looks: `$VRAM_ATTACH_SOCKET`, else `vram-attach.sock` in `$XDG_RUNTIME_DIR`, else in the state
/// directory.
#[must_use]
pub fn default_socket() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // What is meant for this alone may also be relative to the present directory.
    let own = std::env::var_os("VRAM_ATTACH_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
    own.or_else(|| {
        let dir = variable("XDG_RUNTIME_DIR")
            .or_else(|| variable("XDG_STATE_HOME").map(|state| state.join("vram")))
            .or_else(|| variable("HOME").map(|home| home.join(".local/state/vram")))?;
        Some(socket_beside(&dir.join("vram.sock")))
    })
}

impl Client {
    /// The shards that this client may have.
    ///
    /// # Errors
    /// [`ClientError::Lost`] and [`ClientError::Protocol`].
    pub fn list(&self) -> Result<Vec<ShardInfo>, ClientError> {
        match self.connection.ask(&Request::List {})?.answer {
            Answer::Shards { shards } => Ok(shards),
            other => Err(connection::unexpected(&other)),
        }
    }

    /// Maps a shard in main memory: by its id, by the name of a model that has one shard only, by the name of its file where only one
    /// shard has it, or by `blake3:` and its digest.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, [`ClientError::Map`], [`ClientError::Seal`],
    /// [`ClientError::Lost`] and [`ClientError::Protocol`].
    pub fn attach(&self, which: &str) -> Result<Attached, ClientError> {
        let digest = which.parse::<Digest>().ok();
        let shard = digest.is_none().then(|| which.to_owned());
        Attached::new(&self.connection, &Request::Attach { shard, digest })
    }

    /// Maps a shard in a GPU's memory for reading only, in the primary context of that GPU; named as for [`Client::attach`].
    /// The daemon hands out such a shard only where its operator trusts its clients: see `docs/cuda.md`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, [`ClientError::Device`] where this process has no driver, is not shown
    /// that GPU or cannot map for reading only, [`ClientError::OldDaemon`], [`ClientError::Seal`], [`ClientError::Lost`] and
    /// [`ClientError::Protocol`].
    pub fn attach_cuda(&self, which: &str) -> Result<AttachedCuda, ClientError> {
        let digest = which.parse::<Digest>().ok();
        let shard = digest.is_none().then(|| which.to_owned());
        AttachedCuda::new(&self.connection, &Request::AttachCuda { shard, digest })
    }

    /// Who the daemon says it is, and within which time it checks every block.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        self.connection.daemon()
    }
}

/// Who keeps the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Daemon {
    /// Its software's version.
    pub software: String,
    /// Its worker id: that of its seals and records.
    pub worker_id: String,
    /// Within this time every block is checked.
    pub period: std::time::Duration,
}
