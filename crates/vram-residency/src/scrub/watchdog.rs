//! Says when a shard has become late, and shows every gauge. Judges nothing itself: lateness follows from the blocks' times.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::core::Core;
use crate::audit::AuditEvent;
use crate::freshness::nanoseconds;
use crate::shard::{Home, Shard};

impl Core {
    /// Records who has become late or is so no longer, and shows every gauge.
    pub(super) fn look(&self) {
        let now = self.worker.now_ns();
        self.worker.mend_trail();
        let mut changed: Vec<(Arc<Shard>, Duration, bool)> = Vec::new();
        let mut shards = 0_u32;
        {
            let mut lanes = self.lanes();
            // Those whose shard is gone end first: another may have the same name by now.
            for gone in lanes.lanes.extract_if(.., |lane| lane.shard.strong_count() == 0) {
                gone.metrics.end();
            }
            for lane in &mut lanes.lanes {
                let Some(shard) = lane.shard.upgrade() else { continue };
                shards = shards.saturating_add(1);
                let oldest = shard.freshness.oldest_age(now);
                let (stands, protection) = (shard.stands(), shard.protection());
                lane.metrics.show(stands, protection, shard.statement.bytes, oldest, shard.spares.left());
                // Of one that is known to be damaged there is more to say than that.
                if shard.state().is_out() {
                    continue;
                }
                let late = shard.freshness.is_late(|| now);
                if late != lane.late {
                    lane.late = late;
                    changed.push((shard, oldest, late));
                }
            }
        }
        let period_ns = nanoseconds(self.options.period);
        for (shard, oldest, late) in changed {
            let (shard_id, oldest_age_ns) = (&shard.statement.shard_id, nanoseconds(oldest));
            if late {
                tracing::error!(%shard_id, ?oldest, "verification is late");
                let event = AuditEvent::VerificationLate { shard_id, oldest_age_ns, period_ns };
                self.worker.record_beside_failure(&event);
            } else {
                tracing::info!(%shard_id, ?oldest, "verification is in time again");
                self.worker.record_beside_failure(&AuditEvent::VerificationResumed { shard_id, oldest_age_ns });
            }
        }
        self.show(shards);
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
    fn show(&self, shards: u32) {
        self.worker.show_capacity();
        let metrics = &self.metrics;
        metrics.shards.set(f64::from(shards));
        metrics.period.set(self.options.period.as_secs_f64());
        metrics.alive.set(if self.has_moved() { 1.0 } else { 0.0 });
        metrics.throughput.set(self.throughput.load(Ordering::Relaxed) as f64);
        if let Some(log) = self.worker.trail.log_status() {
            metrics.audit_queue.set(log.queued as f64);
            metrics.audit_records.set(log.records as f64);
        }
    }
}
