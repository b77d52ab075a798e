//! Metrics as Prometheus reads them.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use vram_residency::metrics::{AUDIT_DURABLE, VERIFY_DURATION};

use crate::exit::Failure;

const BUILD_INFO: &str = "vram.build_info";
/// A gauge that nobody sets for so long ends: its shard was released. The watchdog sets every other each second.
const IDLE: Duration = Duration::from_secs(30);
/// Seconds: from a fast disk to one that is late (0.01).
const DURABLE: &[f64] = &[0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];
/// Seconds: from a small shard to hundreds of GiB.
const VERIFY: &[f64] = &[0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0];

/// Collects from here on what the library counts. Must come before the library's first metric.
pub(super) fn install() -> Result<PrometheusHandle, Failure> {
    let cannot =
        |error: &dyn std::fmt::Display| Failure::new("metrics", format!("metrics cannot be collected: {error}"));
    let handle = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .idle_timeout(MetricKindMask::GAUGE, Some(IDLE))
        .set_buckets_for_metric(Matcher::Prefix(prometheus(AUDIT_DURABLE)), DURABLE)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Prefix(prometheus(VERIFY_DURATION)), VERIFY))
        .map_err(|error| cannot(&error))?
        .install_recorder()
        .map_err(|error| cannot(&error))?;
    metrics::describe_gauge!(BUILD_INFO, "1, with the version as a label.");
    Ok(handle)
}

/// The text of `/metrics`.
pub(super) fn render(handle: &PrometheusHandle) -> String {
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    handle.run_upkeep();
    handle.render()
}

fn prometheus(name: &str) -> String {
    name.replace('.', "_")
}
