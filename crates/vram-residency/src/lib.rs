//! Keeps model weights resident, immutable and verifiable.
//!
//! A model's bytes are copied into a device's memory, hashed *there* with BLAKE3, made read-only and signed for: the
//! shard is then *sealed*. From then on it can be verified in place at any time, a damaged byte is named by block and
//! tensor, and a damaged block is replaced from the source after the source was held against the seal. Each of these
//! steps is a record in a durable log.
//!
//! ```text
//!        ModelFile ──▶ VramManager ──▶ SealedShard        seal_file, seal_model
//!                          │  ▲             │
//!          AuditTrail ◀────┘  └─────────────┘             verify_sealed, repair, release
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use vram_residency::audit::AuditTrail;
//! use vram_residency::device::{HostDevice, HostOptions};
//! use vram_residency::seal::SealKey;
//! use vram_residency::{ManagerOptions, Policy, ShardId, VramManager};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let secret = [7; 32]; // in earnest: 32 to 1024 bytes from a secret store
//! let manager = VramManager::new(ManagerOptions {
//!     worker_id: "worker-1".into(),
//!     device: Arc::new(HostDevice::open(HostOptions::default())?),
//!     key: SealKey::derive(&secret, "worker-1")?,
//!     trail: AuditTrail::open(&dir.path().join("audit"))?,
//!     policy: Policy::default(),
//! })?;
//!
//! let shard = manager.seal_model(ShardId::new("shard-0")?, "my/model", b"the weights")?;
//! let verified = manager.verify_sealed(&shard)?;
//! assert_eq!(verified.digest, shard.digest());
//! shard.with_bytes(0..11, |bytes| assert_eq!(bytes, b"the weights"))?;
//! # Ok(())
//! # }
//! ```
//!
//! What one process holds, others can map, read-only and without a copy: [`handout`] is the protocol, [`client`] the other
//! side of it.
//!
//! # What it refuses to do
//!
//! It never falls back silently: a device that was asked for and is not there is an error, memory that could not be
//! locked is called `host-pageable`, protection that was not shown to work is called `advisory`. It never writes to a
//! sealed region but in a repair, and then only bytes that match the sealed block value. A check whose record is lost
//! does not count as one: the shard's state is then [`ShardState::Unverified`].
//!
//! What a seal proves, and what it does not, is in `docs/what-a-seal-proves.md`; every byte of every format is in
//! `docs/format.md` and `docs/audit-log.md`.
//!
//! # Cost
//!
//! A successful verification allocates nothing, and a seal of bytes from memory and a verification together at most
//! four times (a test counts them in the whole process). `tracing` and `metrics` are facades: they cost next to
//! nothing while nobody listens. There are no Cargo features.

pub mod actor;
pub mod approval;
pub mod attest;
pub mod audit;
pub mod client;
mod damage;
pub mod device;
pub mod digest;
mod error;
pub mod fingerprint;
mod freshness;
pub mod handout;
pub mod json;
mod loader;
mod manager;
pub mod metrics;
pub mod model;
mod pem;
pub mod policy;
pub mod scrub;
pub mod seal;
mod shard;
mod shard_id;

pub use damage::{BlockDamage, DamageKind, Fault, TensorsInBlock};
pub use error::{Error, RepairFailure, VerifyFailure};
pub use freshness::NotFresh;
pub use loader::{Cancelled, Progress};
pub use manager::{
    HandoutEvent, MOST_RECHECK_KEYS, ManagerOptions, NotResealed, NotUnsealed, RECHECK_KEYS, Rechecked, RepairReport,
    SealRequest, ServiceEvent, Unsealed, Verified, VramManager,
};
pub use policy::Policy;
pub use shard::{SealedShard, ShardState};
pub use shard_id::{MAX_SHARD_ID, ShardId, ShardIdError};

/// The README's example is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// So is that of the engine developer's five minutes.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/attach.md")]
struct AttachInFiveMinutes;
