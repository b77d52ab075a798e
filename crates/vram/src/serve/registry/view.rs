//! What the daemon says of the shards that it holds.

use std::path::PathBuf;

use axum::body::Bytes;
use vram_residency::audit::TrailHealth;
use vram_residency::scrub::ScrubStatus;
use vram_residency::{SealedShard, ShardId};

use super::{About, Held, Place, Registry, unsealed_view};
use crate::exit::Failure;
use crate::output::rfc3339;
use crate::serve::blocks;
use crate::serve::lock::lock;
use crate::serve::report::{AuditView, BlockView, Health, ShardView, StatusView, UnsealedView, now_ns};

impl Registry {
    pub(in crate::serve) fn shard(&self, shard_id: &ShardId) -> Result<ShardView, Failure> {
        Ok(self.view(&self.sealed(shard_id)?))
    }

    /// The map of a shard's blocks in JSON.
    pub(in crate::serve) fn blocks(&self, shard_id: &ShardId) -> Result<Bytes, Failure> {
        self.maps.get(&self.sealed(shard_id)?, &self.recent, self.period)
    }

    pub(in crate::serve) fn block(&self, shard_id: &ShardId, block: u64) -> Result<BlockView, Failure> {
        blocks::block(&self.sealed(shard_id)?, block, &self.recent)
    }

    /// Where the audit log is published, if it is.
    pub(in crate::serve) fn published(&self) -> PathBuf {
        // Without a key now, it may have had one before.
        self.evidence().map_or_else(|| self.audit_dir.join("tlog"), |evidence| evidence.dir().to_owned())
    }

    pub(in crate::serve) fn status(&self) -> StatusView {
        let (mut shards, mut unsealed) = (Vec::new(), Vec::new());
        for (shard_id, place) in &*lock(&self.places) {
            match &place.held {
                Held::Sealed(shard) => shards.push(self.view_with(shard, place.about())),
                Held::Unsealed(without) => unsealed.push(unsealed_view(without, &place.keeper)),
                Held::Busy => unsealed.push(UnsealedView {
                    shard_id: *shard_id,
                    device: place.keeper.name(),
                    bytes: 0,
                    reason: "busy".to_owned(),
                }),
            }
        }
        let health = self.readiness();
        let now = now_ns();
        self.since.keep(|shard_id| shards.iter().any(|shard| shard.shard_id == *shard_id));
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            worker_id: self.manager().worker_id().to_string(),
            time: rfc3339(now),
            ready: health.ok,
            ready_since: rfc3339(self.since.readiness(health.ok, now)),
            not_ready: health.reasons,
            on_failure: self.manager().policy().on_failure.as_str(),
            require_approval: self.require_approval,
            devices: self.keepers.iter().map(|keeper| keeper.view()).collect(),
            scrub: self.scrub_status(),
            audit: self.audit(),
            handout: self.leases.view(),
            shards,
            unsealed,
        }
    }

    /// Whether every shard is fresh: sealed or verified, on record, and every block checked within two periods.
    pub(in crate::serve) fn readiness(&self) -> Health {
        let places = lock(&self.places);
        let mut reasons: Vec<String> = Vec::new();
        if places.is_empty() {
            reasons.push("no shard is resident".to_owned());
        }
        for (shard_id, place) in &*places {
            match &place.held {
                Held::Sealed(shard) => {
                    if let Err(error) = shard.ensure_fresh(self.period.saturating_mul(2)) {
                        reasons.push(format!("{shard_id}: {error}"));
                    }
                }
                Held::Unsealed(_) | Held::Busy => reasons.push(format!("{shard_id}: it is not sealed")),
            }
        }
        drop(places);
        if let TrailHealth::Failing(reason) = self.manager().trail().health() {
            reasons.push(format!("nothing is recorded: {reason}"));
        }
        // First: nothing else can be mended before.
        reasons.splice(..0, self.keepers.lost());
        reasons.extend(self.keepers.quarantined());
        Health { ok: reasons.is_empty(), reasons }
    }

    /// Whether the daemon itself works.
    pub(in crate::serve) fn liveness(&self) -> Health {
        let mut reasons = Vec::new();
        if !self.is_watched() {
            reasons.push("the continuous check does not move; restart the daemon".to_owned());
        }
        Health { ok: reasons.is_empty(), reasons }
    }

    pub(in crate::serve) fn is_watched(&self) -> bool {
        self.keepers.iter().all(|keeper| keeper.scrubber.is_alive())
    }

    pub(in crate::serve) fn scrub_status(&self) -> ScrubStatus {
        self.keepers.scrub_status()
    }

    fn audit(&self) -> AuditView {
        let trail = self.manager().trail();
        let (health, reason) = match trail.health() {
            TrailHealth::Good => ("good", None),
            TrailHealth::Failing(reason) => ("failing", Some(reason)),
            _ => ("off", None),
        };
        let log = trail.log_status();
        let figure = |read: fn(&audit_logging::Status) -> u64| log.as_ref().map_or(0, read);
        AuditView {
            dir: self.audit_dir.clone(),
            health,
            reason,
            records: figure(|log| log.records),
            queued: figure(|log| log.queued),
            lost: trail.lost_records(),
            late: figure(|log| log.late),
            last_record_at: self.recent.last_at(),
            evidence: self.evidence().map(|evidence| evidence.view()),
        }
    }

    pub(super) fn view(&self, shard: &SealedShard) -> ShardView {
        let about = lock(&self.places).get(shard.shard_id()).map(Place::about).unwrap_or_default();
        self.view_with(shard, about)
    }

    /// The same, also where the places are locked.
    pub(super) fn view_with(&self, shard: &SealedShard, about: About) -> ShardView {
        let keeper = self.keepers.of(shard);
        let scrub = keeper.scrubber.shard_status(shard);
        let state = shard.state();
        ShardView {
            shard_id: *shard.shard_id(),
            model_ref: shard.model_ref().to_owned(),
            shard_index: shard.shard_index(),
            shard_count: shard.shard_count(),
            bytes: shard.bytes(),
            digest: shard.digest(),
            tensors: shard.table().len(),
            state,
            state_since: rfc3339(self.since.state(shard.shard_id(), state, now_ns())),
            device: keeper.name(),
            residency: shard.residency(),
            protection: shard.protection(),
            writable_since: shard.writable_since_ns().map(rfc3339),
            approval: about.approval,
            not_attachable: about.not_attachable,
            sealed_at: rfc3339(shard.sealed_at_ns()),
            last_verified_at: rfc3339(shard.last_verified_ns()),
            oldest_age_seconds: shard.oldest_age().as_secs_f64(),
            passes: scrub.as_ref().map_or(0, |scrub| scrub.passes),
            rechecks: scrub.as_ref().map_or(0, |scrub| scrub.rechecks),
            recheck_keys: shard.recheck_keys(),
            faults: scrub.as_ref().map_or(0, |scrub| scrub.faults),
            repairs: scrub.as_ref().map_or(0, |scrub| scrub.repairs),
            has_source: scrub.is_some_and(|scrub| scrub.has_source),
            last_fault: shard.last_fault(),
        }
    }
}
