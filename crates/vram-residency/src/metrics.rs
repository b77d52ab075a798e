//! Every metric of the library, with its unit and help text.
//!
//! The names are those of the `metrics` facade. An exporter for Prometheus that follows its naming rules shows
//! `vram.audit.emit_failures` as `vram_audit_emit_failures_total`, and `vram.verify.duration` (seconds) as
//! `vram_verify_duration_seconds`. Handles are taken once, so counting costs no lookup and no allocation, and next to
//! nothing while no recorder is installed.

use std::sync::atomic::{AtomicU64, Ordering};

use audit_logging::{Failure, Observer, Severity};
use metrics::{Counter, Gauge, Histogram, Unit};

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
/// Full verifications that found every byte as sealed.
pub const VERIFICATIONS: &str = "vram.verifications";
/// Full verifications that did not.
pub const VERIFICATION_FAILURES: &str = "vram.verification_failures";
/// Time of a full verification.
pub const VERIFY_DURATION: &str = "vram.verify.duration";
/// Decisions of the policy against an operation.
pub const POLICY_VIOLATIONS: &str = "vram.policy_violations";
/// Blocks repaired.
pub const BLOCKS_REPAIRED: &str = "vram.blocks_repaired";
/// Bytes that the device may hold.
pub const DEVICE_CAPACITY: &str = "vram.device.capacity";
/// Bytes reserved on the device.
pub const DEVICE_USED: &str = "vram.device.used";

/// Handles of the manager's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) seals: Counter,
    pub(crate) seal_failures: Counter,
    pub(crate) verifications: Counter,
    pub(crate) verification_failures: Counter,
    pub(crate) verify_duration: Histogram,
    pub(crate) policy_violations: Counter,
    pub(crate) blocks_repaired: Counter,
    pub(crate) device_capacity: Gauge,
    pub(crate) device_used: Gauge,
}

impl Metrics {
    pub(crate) fn register() -> Self {
        Self {
            seals: counter(SEALS, "Shards sealed."),
            seal_failures: counter(SEAL_FAILURES, "Seals that were refused or failed."),
            verifications: counter(VERIFICATIONS, "Full verifications that found every byte as sealed."),
            verification_failures: counter(VERIFICATION_FAILURES, "Full verifications that failed."),
            verify_duration: histogram(VERIFY_DURATION, "Time of a full verification."),
            policy_violations: counter(POLICY_VIOLATIONS, "Decisions of the policy against an operation."),
            blocks_repaired: counter(BLOCKS_REPAIRED, "Blocks repaired from the source."),
            device_capacity: gauge(DEVICE_CAPACITY, "Bytes that the device may hold."),
            device_used: gauge(DEVICE_USED, "Bytes reserved on the device."),
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

    fn durable_after(&self, latency: std::time::Duration) {
        self.durable.record(latency);
    }
}

fn counter(name: &'static str, help: &'static str) -> Counter {
    metrics::describe_counter!(name, Unit::Count, help);
    metrics::counter!(name)
}

fn gauge(name: &'static str, help: &'static str) -> Gauge {
    metrics::describe_gauge!(name, Unit::Bytes, help);
    metrics::gauge!(name)
}

fn histogram(name: &'static str, help: &'static str) -> Histogram {
    metrics::describe_histogram!(name, Unit::Seconds, help);
    metrics::histogram!(name)
}
