//! Shards that are handed to other processes, and the records of that.

use std::sync::PoisonError;
use std::time::Duration;

use super::{Recorded, VramManager, Worker};
use crate::audit::{AuditEvent, TrailError};
use crate::device::{Export, Protection};
use crate::digest::Digest;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::handout::ErrorCode;
use crate::shard::{SealedShard, Shard};
use crate::shard_id::ShardId;

/// Why a shard's protection is lowered.
const HANDED_OUT: &str = "its memory is handed to another process, which can write to it";
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
    /// the protection is what it was, unless the log says, or may come to say, that it is lowered: then it stays so.
    ///
    /// # Errors
    /// [`Error::Policy`] where the policy asks for read-only memory and the client could write, [`Error::Audit`] where a record
    /// is not kept, [`Error::Quarantined`], [`Error::Device`], [`Error::ForeignShard`].
    pub fn hand_out(&self, shard: &SealedShard, client: u64, lease: u64) -> Result<Export, Error> {
        self.own(shard)?;
        let export = shard.inner.export()?;
        let (shard_id, digest, writable) = (shard.shard_id(), shard.digest(), export.is_writable());
        let attached = AuditEvent::ShardAttached { shard_id, digest, client, lease, writable, held_ns: None };
        if writable {
            self.worker.record_writable(&shard.inner, &attached)?;
        } else {
            self.worker.record_first(&attached)?;
        }
        Ok(export)
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

impl Worker {
    /// Records that a shard's memory is handed to somebody who can write to it; the first time, that its protection is
    /// lowered by that. Whoever looks meanwhile is told the lower one.
    fn record_writable(&self, shard: &Shard, attached: &AuditEvent<'_>) -> Result<(), Error> {
        let (from, to, reason) = (shard.statement.protection, Protection::Advisory, HANDED_OUT);
        let mut handed = shard.writable.begin();
        if handed.left && (handed.lowered || from == to) {
            drop(handed);
            return self.record_on_disk(attached);
        }
        // An attestation that says otherwise is on record before.
        let unattested = self.lowering.write().unwrap_or_else(PoisonError::into_inner);
        shard.writable.note(self.trail.wall_ns());
        let mut recorded = Ok(());
        if from != to && !handed.lowered {
            let (shard_id, digest) = (&shard.statement.shard_id, shard.statement.digest);
            recorded = self.record_first(&AuditEvent::ProtectionLowered { shard_id, digest, from, to, reason });
            handed.lowered = recorded.is_ok();
        }
        let recorded = recorded.and_then(|()| self.record_first(attached));
        // Both have their place in the log, or will never have one.
        drop(unattested);
        let recorded = recorded.and_then(|()| self.on_disk());
        match &recorded {
            // What is late is perhaps on record soon.
            Ok(()) | Err(Error::Audit(TrailError::Late)) => handed.left = true,
            Err(_) if handed.left || handed.lowered => {}
            Err(_) => shard.writable.forget(),
        }
        recorded
    }

    /// Records an event without which the operation must not go on, and waits for the disk.
    fn record_on_disk(&self, event: &AuditEvent<'_>) -> Result<(), Error> {
        self.record_first(event)?;
        self.on_disk()
    }

    /// Waits until what was recorded is on disk, also where the policy does not require it.
    fn on_disk(&self) -> Result<(), Error> {
        self.trail.flush(ON_DISK).map_err(Error::Audit)
    }
}
