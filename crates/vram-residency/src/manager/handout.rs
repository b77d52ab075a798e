//! Records of shards that are handed to other processes.

use std::time::Duration;

use super::{Recorded, VramManager};
use crate::audit::AuditEvent;
use crate::digest::Digest;
use crate::error::Error;
use crate::freshness::nanoseconds;
use crate::handout::ErrorCode;
use crate::shard::SealedShard;
use crate::shard_id::ShardId;

/// What a service that hands out shards has recorded. A client is named by its number, and by what
/// [`Acting`](crate::actor::Acting) says.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum HandoutEvent<'a> {
    /// A shard is handed out.
    Attached {
        /// Which.
        shard: &'a SealedShard,
        /// To whom: a number that is unique while the service runs.
        client: u64,
        /// The lease's number.
        lease: u64,
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
    /// Records what a service that hands out shards does, and says whether the log took it. Nothing may be handed out
    /// without its record.
    ///
    /// # Errors
    /// [`Error::Audit`] where the record of a shard that is handed out is not kept, or any other that the policy requires.
    pub fn record_handout(&self, event: HandoutEvent<'_>) -> Result<bool, Error> {
        let recorded = match event {
            HandoutEvent::Attached { shard, client, lease } => {
                let (shard_id, digest) = (shard.shard_id(), shard.digest());
                self.worker.record_first(&AuditEvent::ShardAttached { shard_id, digest, client, lease })?;
                Recorded::Kept
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
