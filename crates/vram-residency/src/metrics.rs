//! Every metric of the library, with its unit and help text.
//!
//! The names are those of the `metrics` facade. An exporter for Prometheus that follows its naming rules shows
//! `vram.audit.emit_failures` as `vram_audit_emit_failures_total`, and `vram.verify.duration` (seconds) as
//! `vram_verify_duration_seconds`. Handles are taken once, so counting costs no lookup and no allocation, and next to
//! nothing while no recorder is installed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use audit_logging::{Failure, Observer, Severity};
use metrics::{Counter, Gauge, Histogram, Unit};

use crate::device::{Protection, Residency};
use crate::shard::ShardState;
use crate::shard_id::ShardId;

/// Records given to the audit log, of any severity.
pub const AUDIT_EMITS: &str = "vram.audit.emits";
/// Records of any severity that the audit log could not keep.
pub const AUDIT_EMIT_FAILURES: &str = "vram.audit.emit_failures";
/// Critical records that the audit log could not keep.
pub const AUDIT_CRITICAL_EMIT_FAILURES: &str = "vram.audit.critical_emit_failures";
/// Critical records that were not yet durable at their deadline.
pub const AUDIT_LATE: &str = "vram.audit.late";
/// Time from a critical record's emission until it was durable.
pub const AUDIT_DURABLE: &str = "vram.audit.durable";
/// Shards sealed.
pub const SEALS: &str = "vram.seals";
/// Seals that were refused or failed.
pub const SEAL_FAILURES: &str = "vram.seal_failures";
/// Bytes hashed with SHA-256 while they were loaded, because an approval asked for it.
pub const SHA256_BYTES: &str = "vram.seal.sha256_bytes";
/// Attestations signed, recorded and handed out.
pub const ATTESTATIONS: &str = "vram.attestations";
/// Full verifications that found every byte as sealed.
pub const VERIFICATIONS: &str = "vram.verifications";
/// Full verifications that did not.
pub const VERIFICATION_FAILURES: &str = "vram.verification_failures";
/// Time of a full verification, or of the sweep that it was part of.
pub const VERIFY_DURATION: &str = "vram.verify.duration";
/// Blocks that a full verification read so slowly that they may not be in the device's memory.
pub const SUSPECTED_PAGED: &str = "vram.suspected_paged_blocks";
/// Decisions of the policy against an operation.
pub const POLICY_VIOLATIONS: &str = "vram.policy_violations";
/// Blocks repaired.
pub const BLOCKS_REPAIRED: &str = "vram.blocks_repaired";
/// Repairs that did not succeed.
pub const REPAIR_FAILURES: &str = "vram.repair_failures";
/// Bytes found as sealed by the continuous check.
pub const SCRUB_BYTES: &str = "vram.scrub.bytes";
/// Re-checks in which the fingerprint of a shard's bytes was as when they were trusted.
pub const RECHECKS: &str = "vram.rechecks";
/// Fingerprints that were others, while a full verification at once found nothing.
pub const RECHECKS_UNCONFIRMED: &str = "vram.rechecks.unconfirmed";
/// Blocks found as sealed by the continuous check.
pub const SCRUB_BLOCKS: &str = "vram.scrub.blocks";
/// Rounds in which every block of a shard was found as sealed.
pub const SCRUB_PASSES: &str = "vram.scrub.passes";
/// Damaged blocks that the continuous check found, each confirmed by a second reading.
pub const SCRUB_FAULTS: &str = "vram.scrub.faults";
/// Mismatches, of any check, that a second reading did not confirm.
pub const SCRUB_UNCONFIRMED: &str = "vram.scrub.unconfirmed";
/// Checks of a block that could not be carried out.
pub const SCRUB_ERRORS: &str = "vram.scrub.errors";
/// Times that the continuous check was started again after a panic.
pub const SCRUB_RESTARTS: &str = "vram.scrub.restarts";
/// Time within which every block is to be checked.
pub const SCRUB_PERIOD: &str = "vram.scrub.period";
/// Speed of the continuous check over the last seconds. Label: device.
pub const SCRUB_THROUGHPUT: &str = "vram.scrub.throughput_bytes_per_second";
/// Whether the continuous check is at work: 1 or 0. Label: device.
pub const SCRUB_ALIVE: &str = "vram.scrub.alive";
/// Age of a shard's oldest block, that is, time since the last check of it. Label: shard.
pub const SCRUB_OLDEST: &str = "vram.scrub.oldest";
/// Shards that are watched. Label: device.
pub const SHARDS: &str = "vram.shards";
/// Where a shard stands: 1 for its state and 0 for the others. Labels: shard, state.
pub const SHARD_STATE: &str = "vram.shard.state";
/// Keys that a shard has left for re-checks. Label: shard.
pub const SHARD_RECHECK_KEYS: &str = "vram.shard.recheck_keys";
/// Size of a shard. Label: shard.
pub const SHARD_SIZE: &str = "vram.shard";
/// 1 for where a shard's memory is. Labels: shard, residency.
pub const SHARD_RESIDENCY: &str = "vram.shard.residency";
/// 1 for what stops a write to a shard. Labels: shard, protection.
pub const SHARD_PROTECTION: &str = "vram.shard.protection";
/// Records that wait for the disk.
pub const AUDIT_QUEUE: &str = "vram.audit.queue_records";
/// Durable records in the log.
pub const AUDIT_RECORDS: &str = "vram.audit.records";
/// Records that the newest signed checkpoint of the log covers.
pub const AUDIT_SIGNED: &str = "vram.audit.signed_records";
/// When the newest checkpoint was signed: seconds since 1970, 0 before the first.
pub const AUDIT_SIGNED_AT: &str = "vram.audit.signed_timestamp";
/// Whether nothing of the log is signed any more, because it contradicts what was: 1 or 0.
pub const AUDIT_SIGNING_REFUSED: &str = "vram.audit.signing_refused";
/// Attempts to publish the log that failed.
pub const AUDIT_SIGN_FAILURES: &str = "vram.audit.sign_failures";
/// Published records that were given up, because they were older than they are to be kept.
pub const AUDIT_PRUNED: &str = "vram.audit.pruned_records";
/// Attempts to give up old records that failed.
pub const AUDIT_PRUNE_FAILURES: &str = "vram.audit.prune_failures";
/// Signed records that a replica of the log does not have. Label: replica, as on the four that follow.
pub const AUDIT_REPLICA_LAG: &str = "vram.audit.replica_lag_records";
/// When a replica last had everything: seconds since 1970, 0 if never.
pub const AUDIT_REPLICA_AT: &str = "vram.audit.replica_timestamp";
/// Attempts to write to a replica that failed.
pub const AUDIT_REPLICA_FAILURES: &str = "vram.audit.replica_failures";
/// Bytes written to a replica.
pub const AUDIT_REPLICA_BYTES: &str = "vram.audit.replica_bytes";
/// How a replica is doing: 1 for its state and 0 for the others. Labels: replica, state.
pub const AUDIT_REPLICA_STATE: &str = "vram.audit.replica_state";
/// Signed records that a witness has not cosigned. Label: witness, as on the three that follow.
pub const AUDIT_WITNESS_LAG: &str = "vram.audit.witness_lag_records";
/// When a witness last cosigned: seconds since 1970, 0 if never.
pub const AUDIT_WITNESS_AT: &str = "vram.audit.witness_timestamp";
/// Questions to a witness that were not answered with a cosignature.
pub const AUDIT_WITNESS_FAILURES: &str = "vram.audit.witness_failures";
/// How a witness is doing: 1 for its state and 0 for the others. Labels: witness, state.
pub const AUDIT_WITNESS_STATE: &str = "vram.audit.witness_state";
/// Records that the newest checkpoint covers which enough witnesses cosigned.
pub const AUDIT_COSIGNED: &str = "vram.audit.cosigned_records";
/// When enough witnesses last cosigned: seconds since 1970, 0 if never in this run.
pub const AUDIT_COSIGNED_AT: &str = "vram.audit.cosigned_timestamp";
/// Processes that are connected to have shards handed out.
pub const HANDOUT_CLIENTS: &str = "vram.handout.clients";
/// Leases that they hold, of shards that are still watched.
pub const HANDOUT_LEASES: &str = "vram.handout.leases";
/// Requests for a shard, and connections that were refused before. Label: result, `attached` or the code of the refusal.
pub const HANDOUT_ATTACHES: &str = "vram.handout.attaches";
/// Leases that ended. Label: reason.
pub const HANDOUT_DETACHES: &str = "vram.handout.detaches";
/// Leases whose first record may be lost; they are recorded again.
pub const HANDOUT_UNRECORDED: &str = "vram.handout.unrecorded";
/// Bytes of shards that were given up and that clients still hold in memory.
pub const HANDOUT_LINGERING: &str = "vram.handout.lingering";
/// Bytes that can still be reserved on the device. Label: device, as on the three that follow.
pub const DEVICE_AVAILABLE: &str = "vram.device.available";
/// Whether nothing on the device is trusted any more: 1 or 0.
pub const DEVICE_QUARANTINED: &str = "vram.device.quarantined";
/// 1 where this process cannot use the GPU any more: restart it.
pub const DEVICE_LOST: &str = "vram.device.lost";
/// Bytes that the device may hold.
pub const DEVICE_CAPACITY: &str = "vram.device.capacity";
/// Bytes reserved on the device.
pub const DEVICE_USED: &str = "vram.device.used";

/// Handles of the manager's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) seals: Counter,
    pub(crate) seal_failures: Counter,
    pub(crate) sha256_bytes: Counter,
    pub(crate) attestations: Counter,
    pub(crate) verifications: Counter,
    pub(crate) verification_failures: Counter,
    pub(crate) verify_duration: Histogram,
    pub(crate) suspected_paged: Counter,
    pub(crate) policy_violations: Counter,
    pub(crate) blocks_repaired: Counter,
    pub(crate) repair_failures: Counter,
    pub(crate) scrub_unconfirmed: Counter,
    pub(crate) rechecks: Counter,
    pub(crate) rechecks_unconfirmed: Counter,
    pub(crate) device_capacity: Gauge,
    pub(crate) device_used: Gauge,
    pub(crate) device_available: Gauge,
    pub(crate) device_quarantined: Gauge,
    pub(crate) device_lost: Gauge,
}

impl Metrics {
    pub(crate) fn register(device: &str) -> Self {
        let on_device = |name, unit, help| gauge_on(device, name, unit, help);
        Self {
            seals: counter(SEALS, "Shards sealed."),
            seal_failures: counter(SEAL_FAILURES, "Seals that were refused or failed."),
            sha256_bytes: counter_of(SHA256_BYTES, Unit::Bytes, "Bytes hashed with SHA-256 while they were loaded."),
            attestations: counter(ATTESTATIONS, "Attestations signed and recorded."),
            verifications: counter(VERIFICATIONS, "Full verifications that found every byte as sealed."),
            verification_failures: counter(VERIFICATION_FAILURES, "Checks that failed, or could not be carried out."),
            verify_duration: histogram(
                VERIFY_DURATION,
                "Time of a full verification, or of the sweep that it was part of.",
            ),
            suspected_paged: counter(SUSPECTED_PAGED, "Blocks read so slowly that they may have been paged out."),
            policy_violations: counter(POLICY_VIOLATIONS, "Decisions of the policy against an operation."),
            blocks_repaired: counter(BLOCKS_REPAIRED, "Blocks repaired from the source."),
            repair_failures: counter(REPAIR_FAILURES, "Repairs that did not succeed."),
            scrub_unconfirmed: counter(SCRUB_UNCONFIRMED, "Mismatches that a second reading did not confirm."),
            rechecks: counter(RECHECKS, "Fingerprints of shards that were as expected."),
            rechecks_unconfirmed: counter(RECHECKS_UNCONFIRMED, "Other fingerprints of shards that were as sealed."),
            device_capacity: on_device(DEVICE_CAPACITY, Unit::Bytes, "Bytes that the device may hold."),
            device_used: on_device(DEVICE_USED, Unit::Bytes, "Bytes reserved on the device."),
            device_available: on_device(DEVICE_AVAILABLE, Unit::Bytes, "Bytes that can still be reserved."),
            device_quarantined: on_device(
                DEVICE_QUARANTINED,
                Unit::Count,
                "1 where the device is not trusted any more.",
            ),
            device_lost: on_device(DEVICE_LOST, Unit::Count, "1 where only a restart can use the GPU again."),
        }
    }
}

/// Handles of the scrubber's metrics.
#[derive(Debug)]
pub(crate) struct ScrubMetrics {
    pub(crate) bytes: Counter,
    pub(crate) blocks: Counter,
    pub(crate) passes: Counter,
    pub(crate) faults: Counter,
    pub(crate) errors: Counter,
    pub(crate) restarts: Counter,
    pub(crate) period: Gauge,
    pub(crate) throughput: Gauge,
    pub(crate) alive: Gauge,
    pub(crate) shards: Gauge,
    pub(crate) audit_queue: Gauge,
    pub(crate) audit_records: Gauge,
}

impl ScrubMetrics {
    pub(crate) fn register(device: &str) -> Self {
        describe_shards();
        let on_device = |name, help| gauge_on(device, name, Unit::Count, help);
        Self {
            bytes: counter_of(SCRUB_BYTES, Unit::Bytes, "Bytes found as sealed by the continuous check."),
            blocks: counter(SCRUB_BLOCKS, "Blocks found as sealed by the continuous check."),
            passes: counter(SCRUB_PASSES, "Rounds in which every block of a shard was found as sealed."),
            faults: counter(SCRUB_FAULTS, "Damaged blocks that the continuous check found."),
            errors: counter(SCRUB_ERRORS, "Checks of a block that could not be carried out."),
            restarts: counter(SCRUB_RESTARTS, "Starts of the continuous check after a panic."),
            period: gauge_of(SCRUB_PERIOD, Unit::Seconds, "Time within which every block is to be checked."),
            throughput: on_device(SCRUB_THROUGHPUT, "Speed of the continuous check."),
            alive: on_device(SCRUB_ALIVE, "1 while the continuous check is at work."),
            shards: on_device(SHARDS, "Shards that are watched."),
            audit_queue: gauge_of(AUDIT_QUEUE, Unit::Count, "Records that wait for the disk."),
            audit_records: gauge_of(AUDIT_RECORDS, Unit::Count, "Durable records in the log."),
        }
    }
}

fn describe_shards() {
    metrics::describe_gauge!(SCRUB_OLDEST, Unit::Seconds, "Time since the last check of a shard's oldest block.");
    metrics::describe_gauge!(SHARD_STATE, Unit::Count, "1 for the state that a shard is in.");
    metrics::describe_gauge!(SHARD_RECHECK_KEYS, Unit::Count, "Keys that a shard has left for re-checks.");
    metrics::describe_gauge!(SHARD_SIZE, Unit::Bytes, "Size of a shard.");
    metrics::describe_gauge!(SHARD_RESIDENCY, Unit::Count, "1 for where a shard's memory is.");
    metrics::describe_gauge!(SHARD_PROTECTION, Unit::Count, "1 for what stops a write to a shard.");
}

/// Handles of one shard's metrics.
#[derive(Debug)]
pub(crate) struct ShardMetrics {
    oldest: Gauge,
    bytes: Gauge,
    recheck_keys: Gauge,
    states: [(ShardState, Gauge); ShardState::ALL.len()],
    residency: Gauge,
    protections: [(Protection, Gauge); Protection::ALL.len()],
}

impl ShardMetrics {
    pub(crate) fn register(shard_id: &ShardId, residency: Residency) -> Self {
        let shard = || shard_id.as_str().to_owned();
        Self {
            oldest: metrics::gauge!(SCRUB_OLDEST, "shard" => shard()),
            bytes: metrics::gauge!(SHARD_SIZE, "shard" => shard()),
            recheck_keys: metrics::gauge!(SHARD_RECHECK_KEYS, "shard" => shard()),
            states: ShardState::ALL
                .map(|state| (state, metrics::gauge!(SHARD_STATE, "shard" => shard(), "state" => state.as_str()))),
            residency: metrics::gauge!(SHARD_RESIDENCY, "shard" => shard(), "residency" => residency.as_str()),
            protections: Protection::ALL.map(|known| {
                (known, metrics::gauge!(SHARD_PROTECTION, "shard" => shard(), "protection" => known.as_str()))
            }),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are f64; 2^53 bytes are 8 PiB")]
    pub(crate) fn show(
        &self,
        state: ShardState,
        protection: Protection,
        bytes: u64,
        oldest: Duration,
        recheck_keys: u32,
    ) {
        self.oldest.set(oldest.as_secs_f64());
        self.bytes.set(bytes as f64);
        self.recheck_keys.set(f64::from(recheck_keys));
        for (known, gauge) in &self.states {
            gauge.set(if *known == state { 1.0 } else { 0.0 });
        }
        for (known, gauge) in &self.protections {
            gauge.set(if *known == protection { 1.0 } else { 0.0 });
        }
        self.residency.set(1.0);
    }

    /// The shard is gone: nothing of it may look as if it were there. An exporter that forgets idle gauges forgets these.
    pub(crate) fn end(&self) {
        let states = self.states.iter().map(|(_, gauge)| gauge);
        let protections = self.protections.iter().map(|(_, gauge)| gauge);
        let single = [&self.oldest, &self.bytes, &self.recheck_keys, &self.residency];
        for gauge in single.into_iter().chain(states).chain(protections) {
            gauge.set(0.0);
        }
    }
}

/// Handles of the audit trail's metrics, moved by the log itself, also for records that fail later.
#[derive(Debug)]
pub(crate) struct AuditMetrics {
    emits: Counter,
    failures: Counter,
    critical_failures: Counter,
    late: Counter,
    durable: Histogram,
    /// The same as `failures`, to be read back.
    lost: AtomicU64,
}

impl AuditMetrics {
    pub(crate) fn register() -> Self {
        Self {
            emits: counter(AUDIT_EMITS, "Records given to the audit log."),
            failures: counter(AUDIT_EMIT_FAILURES, "Records that the audit log could not keep."),
            critical_failures: counter(
                AUDIT_CRITICAL_EMIT_FAILURES,
                "Critical records that the audit log could not keep.",
            ),
            late: counter(AUDIT_LATE, "Critical records that were not yet durable at their deadline."),
            durable: histogram(AUDIT_DURABLE, "Time until a critical record was durable."),
            lost: AtomicU64::new(0),
        }
    }

    pub(crate) fn count_emit(&self) {
        self.emits.increment(1);
    }

    /// Records lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn count_failure(&self, severity: Severity) {
        self.lost.fetch_add(1, Ordering::AcqRel);
        self.failures.increment(1);
        if severity == Severity::Critical {
            self.critical_failures.increment(1);
        }
    }
}

impl Observer for AuditMetrics {
    fn emitted(&self, _severity: Severity) {
        self.count_emit();
    }

    fn failed(&self, severity: Severity, _failure: &Failure) {
        self.count_failure(severity);
    }

    fn late(&self) {
        self.late.increment(1);
    }

    fn durable_after(&self, latency: Duration) {
        self.durable.record(latency);
    }
}

fn counter(name: &'static str, help: &'static str) -> Counter {
    counter_of(name, Unit::Count, help)
}

fn counter_of(name: &'static str, unit: Unit, help: &'static str) -> Counter {
    metrics::describe_counter!(name, unit, help);
    metrics::counter!(name)
}

fn gauge_of(name: &'static str, unit: Unit, help: &'static str) -> Gauge {
    metrics::describe_gauge!(name, unit, help);
    metrics::gauge!(name)
}

fn gauge_on(device: &str, name: &'static str, unit: Unit, help: &'static str) -> Gauge {
    metrics::describe_gauge!(name, unit, help);
    metrics::gauge!(name, "device" => device.to_owned())
}

fn histogram(name: &'static str, help: &'static str) -> Histogram {
    metrics::describe_histogram!(name, Unit::Seconds, help);
    metrics::histogram!(name)
}
