//! The public formats: an RFC 6962 tree in tiles, signed notes, checkpoints, entries, proofs.
//!
//! Everything here is pure: bytes in, bytes out, nothing is written and no clock is read. All of it may be handed bytes
//! that somebody hostile wrote. The formats are those of C2SP (`tlog-tiles`, `signed-note`, `tlog-checkpoint`,
//! `tlog-cosignature`, `tlog-proof`), so that tools by others read them too; `docs/audit-format.md` explains every byte.

pub mod checkpoint;
pub mod entry;
pub mod note;
pub mod proof;
pub mod source;
mod tile;
pub mod tree;
