//! Shards that are handed to other processes, and the records of that.

use std::sync::PoisonError;
use std::time::Duration;

use super::{REQUIRED_FLUSH, Recorded, VramManager, Worker};
use crate::audit::{AuditEvent, TrailError};
use crate::device::{Export, Protection};
use crate::digest::Digest;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::handout::ErrorCode;
use crate::shard::{Lowered, SealedShard, Shard};
use crate::shard_id::ShardId;

/// Why a shard's protection is lowered.
const HANDED_OUT: &str = "its memory is handed to another process, which can write to it";
/// How a lease ended that came to nothing, for want of its record.
const NOT_LENT: &str = "not-lent";
/// How long memory that others can write to waits for the record of that to be on disk.
const ON_DISK: Duration = Duration::from_secs(1);

/// What a service that hands out shards has recorded. A client is named by its number, and by what
/// [`Acting`](crate::actor::Acting) says.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum HandoutEvent<'a> {
    /// A lease whose first record may be lost, told of once more.
    StillAttached {
        /// The shard's id.
        shard_id: &'a ShardId,
        /// And its digest.
        digest: Digest,
        /// Whose lease it is.
        client: u64,
        /// The lease's number.
        lease: u64,
        /// Whether the client could write to the memory.
        writable: bool,
        /// For how long it has been held.
        held: Duration,
    },
    /// A lease is over.
    Detached {
        /// The shard's id.
        shard_id: &'a ShardId,
        /// And its digest.
        digest: Digest,
        /// Whose lease it was.
        client: u64,
        /// The lease's number.
        lease: u64,
        /// For how long it was held.
        held: Duration,
        /// How it ended.
        reason: &'static str,
    },
    /// It is refused.
    Refused {
        /// The shard, where there is such a one.
        shard_id: Option<&'a ShardId>,
        /// Why.
        code: ErrorCode,
        /// Why, in words.
        reason: &'a str,
        /// How many others like it got no record since the last one that did.
        unrecorded: u64,
    },
}

impl VramManager {
    /// What a client needs to map a shard's memory: `client` and `lease` are numbers that are unique while the service runs.
    /// Recorded first; nothing may leave that the log does not take.
    ///
    /// What lets the client write is on disk before it leaves, within 1 s, whatever the policy says. Of what is for reading only
    /// the record is queued, unless the policy requires it: it may still be lost, and whoever keeps leases sees by
    /// [`AuditTrail::lost_records`](crate::audit::AuditTrail::lost_records) that it may be, and has it recorded again with
    /// [`HandoutEvent::StillAttached`].
    ///
    /// Whoever has the descriptor of a GPU's memory can write to it, and nobody can take it back. So the shard's protection is
    /// `advisory` from then on, wherever it is told of, until it is loaded anew; where it was more before, that has a critical
    /// record of its own. The seal goes on to say what was so when it was made. Where a record is lost, nothing leaves, and
    /// the protection is what it was, unless the log says, or may come to say, that it is lowered: then it stays so. Where the log
    /// may come to say that the shard was attached, it is told right after that, with the reason `not-lent`, that it is not.
    ///
    /// # Errors
    /// [`Error::Policy`] where the policy asks for read-only memory and the client could write, [`Error::Audit`] where a record
    /// is not kept, [`Error::Quarantined`], [`Error::Device`], [`Error::ForeignShard`].
    pub fn hand_out(&self, shard: &SealedShard, client: u64, lease: u64) -> Result<Export, Error> {
        self.own(shard)?;
        let export = shard.inner.export()?;
        let (shard_id, digest, writable) = (shard.shard_id(), shard.digest(), export.is_writable());
        let attached = AuditEvent::ShardAttached { shard_id, digest, client, lease, writable, held_ns: None };
        let recorded = if writable {
            self.worker.record_writable(&shard.inner, &attached)
        } else {
            self.worker.record_readable(&attached)
        };
        match recorded {
            Ok(()) => Ok(export),
            Err(Unrecorded::Refused(error)) => Err(error),
            Err(Unrecorded::Unsure(error)) => {
                // The log may say of it that it was lent. Nobody waits for this one, and a loss of it is counted.
                let (held_ns, reason) = (0, NOT_LENT);
                let detached = AuditEvent::ShardDetached { shard_id, digest, client, lease, held_ns, reason };
                let _ = self.worker.queue(&detached);
                Err(error)
            }
        }
    }

    /// Records what a service that hands out shards does, and says whether the log took it.
    ///
    /// # Errors
    /// [`Error::Audit`] where a record that the policy requires is not kept.
    pub fn record_handout(&self, event: HandoutEvent<'_>) -> Result<bool, Error> {
        let recorded = match event {
            HandoutEvent::StillAttached { shard_id, digest, client, lease, writable, held } => {
                let held_ns = Some(nanoseconds(held));
                self.worker.record(&AuditEvent::ShardAttached { shard_id, digest, client, lease, writable, held_ns })?
            }
            HandoutEvent::Detached { shard_id, digest, client, lease, held, reason } => {
                let held_ns = nanoseconds(held);
                let event = AuditEvent::ShardDetached { shard_id, digest, client, lease, held_ns, reason };
                self.worker.record(&event)?
            }
            HandoutEvent::Refused { shard_id, code, reason, unrecorded } => {
                let code = code.as_str();
                self.worker.record(&AuditEvent::AttachRefused { shard_id, code, reason, unrecorded })?
            }
        };
        Ok(recorded == Recorded::Kept)
    }
}

/// Why a hand-out is not on record, so that nothing leaves.
enum Unrecorded {
    /// The log did not take the record that it is attached.
    Refused(Error),
    /// It took that one, and nobody knows whether it is on disk or will be.
    Unsure(Error),
}

impl Worker {
    /// Records that a shard's memory is handed to somebody who can read it. The disk is waited for where the policy says so.
    fn record_readable(&self, attached: &AuditEvent<'_>) -> Result<(), Unrecorded> {
        let lost = self.trail.lost_records();
        self.queue(attached).map_err(Unrecorded::Refused)?;
        if self.policy.require_audit { self.on_disk(lost, REQUIRED_FLUSH) } else { Ok(()) }
    }

    /// Records that a shard's memory is handed to somebody who can write to it; until that is known to be on disk, also that its
    /// protection is lowered by that. Whoever looks meanwhile is told the lower one.
    fn record_writable(&self, shard: &Shard, attached: &AuditEvent<'_>) -> Result<(), Unrecorded> {
        let (from, to, reason) = (shard.statement.protection, Protection::Advisory, HANDED_OUT);
        let lost = self.trail.lost_records();
        let mut handed = shard.writable.begin();
        if handed.left && (handed.lowered == Lowered::OnDisk || from == to) {
            drop(handed);
            self.queue(attached).map_err(Unrecorded::Refused)?;
            return self.on_disk(lost, ON_DISK);
        }
        // An attestation that says otherwise is on record before.
        let unattested = self.lowering.write().unwrap_or_else(PoisonError::into_inner);
        shard.writable.note(self.trail.wall_ns());
        let mut queued = Ok(());
        if from != to && handed.lowered != Lowered::OnDisk {
            let (shard_id, digest) = (&shard.statement.shard_id, shard.statement.digest);
            queued = self.queue(&AuditEvent::ProtectionLowered { shard_id, digest, from, to, reason });
            if queued.is_ok() {
                handed.lowered = Lowered::Perhaps;
            }
        }
        let queued = queued.and_then(|()| self.queue(attached));
        // Both have their place in the log, or will never have one.
        drop(unattested);
        let recorded = queued.map_err(Unrecorded::Refused).and_then(|()| self.on_disk(lost, ON_DISK));
        match &recorded {
            Ok(()) => (handed.left, handed.lowered) = (true, Lowered::OnDisk),
            // What is late is perhaps on record soon.
            Err(Unrecorded::Unsure(Error::Audit(TrailError::Late))) => handed.left = true,
            Err(_) if handed.left || handed.lowered != Lowered::Unsaid => {}
            Err(_) => shard.writable.forget(),
        }
        recorded
    }

    /// Waits until what the log took is on disk, and that nothing was lost since so many records were.
    fn on_disk(&self, lost: u64, limit: Duration) -> Result<(), Unrecorded> {
        self.trail.flush_since(lost, limit).map_err(|error| Unrecorded::Unsure(Error::Audit(error)))
    }
}
