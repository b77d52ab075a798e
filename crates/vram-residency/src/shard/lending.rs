//! What of a shard is handed to other processes, and what that does to its protection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{SealedShard, Shard};
use crate::device::{Export, Protection};
use crate::error::Error;
use crate::policy::Violation;

/// Since when somebody else may write to a shard's memory. Nobody can take a descriptor back, so it stays so for as long as
/// the memory does.
#[derive(Debug, Default)]
pub(crate) struct Writable {
    since_ns: AtomicU64,
    /// Held by whoever hands the memory out for the first time, until that is on record or came to nothing.
    handing: Mutex<Handed>,
}

/// What became of the memory so far.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    /// A descriptor that allows writing left, or the log may say that one did.
    pub(crate) left: bool,
    /// What the log says of the protection.
    pub(crate) lowered: Lowered,
}

/// Whether the log says that a shard's protection is lowered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Lowered {
    #[default]
    Unsaid,
    /// The log took a record of it, and perhaps lost it. It is made again; a second one does no harm.
    Perhaps,
    /// The record is on disk.
    OnDisk,
}

impl Writable {
    /// As it was before, where the same memory is sealed anew.
    pub(crate) fn carried(since_ns: Option<u64>) -> Self {
        let handed = Handed { left: since_ns.is_some(), lowered: Lowered::Unsaid };
        Self { since_ns: AtomicU64::new(since_ns.unwrap_or(0)), handing: Mutex::new(handed) }
    }

    /// Waits until nobody else hands the memory out.
    pub(crate) fn begin(&self) -> MutexGuard<'_, Handed> {
        self.handing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, unless it is so already. Times are nanoseconds since 1970. The caller has [begun](Self::begin).
    pub(crate) fn note(&self, now_ns: u64) {
        let _ = self.since_ns.compare_exchange(0, now_ns.max(1), Ordering::AcqRel, Ordering::Acquire);
    }

    /// It came to nothing: no descriptor left. The caller has [begun](Self::begin).
    pub(crate) fn forget(&self) {
        self.since_ns.store(0, Ordering::Release);
    }

    pub(crate) fn since_ns(&self) -> Option<u64> {
        Some(self.since_ns.load(Ordering::Acquire)).filter(|since| *since != 0)
    }

    /// What stops a write, where the device states so much of its own mapping.
    pub(crate) fn lowers(&self, stated: Protection) -> Protection {
        if self.since_ns().is_some() { Protection::Advisory } else { stated }
    }
}

impl Shard {
    /// What stops a write now: as sealed, unless the memory was handed to somebody who can write to it.
    pub(crate) fn protection(&self) -> Protection {
        self.writable.lowers(self.statement.protection)
    }

    /// What another process needs to map the bytes. What that means for the protection is for the caller to note.
    pub(crate) fn export(&self) -> Result<Export, Error> {
        if !self.lends() {
            return Err(Error::Quarantined { shard_id: Box::new(self.statement.shard_id) });
        }
        let export = self.region()?.export()?;
        if export.is_writable() && !self.home.lends_writable() {
            let violation = Violation::HandedOutWritable;
            return Err(Error::Policy { shard_id: Box::new(self.statement.shard_id), violation });
        }
        Ok(export)
    }
}

impl SealedShard {
    /// What stops a write: as it was sealed, and [`Protection::Advisory`] from the moment that its memory was handed to
    /// somebody who can write to it, for as long as it is resident.
    #[must_use]
    pub fn protection(&self) -> Protection {
        self.inner.protection()
    }

    /// What stopped a write when it was sealed: what the seal says.
    #[must_use]
    pub fn sealed_protection(&self) -> Protection {
        self.inner.statement.protection
    }

    /// Since when somebody else may be able to write to its memory, because its descriptor allows it and was handed out:
    /// nanoseconds since 1970-01-01 UTC. None where nobody can.
    #[must_use]
    pub fn writable_since_ns(&self) -> Option<u64> {
        self.inner.writable.since_ns()
    }

    /// What another process needs to map the shard's bytes, in place. Whoever is given it can read them for as long as he
    /// likes, also after a later check failed or the shard was dropped: tell him of that. A descriptor of a GPU's memory
    /// also allows writing, so the shard's protection is `advisory` from then on. Nothing of this is recorded:
    /// [`VramManager::hand_out`](crate::VramManager::hand_out) does that.
    ///
    /// # Errors
    /// [`Error::Policy`] where the policy asks for read-only memory and the descriptor allows writing,
    /// [`Error::Quarantined`] after a failed check, [`Error::Device`] where the memory cannot be handed out.
    pub fn export(&self) -> Result<Export, Error> {
        let export = self.inner.export()?;
        if export.is_writable() {
            let mut handed = self.inner.writable.begin();
            self.inner.writable.note(self.inner.home.wall_ns());
            handed.left = true;
        }
        Ok(export)
    }
}
