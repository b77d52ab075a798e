//! The main loop: signals, the watchdog, and what people are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use vram_residency::{ShardId, ShardState};

use super::registry::Registry;
use super::report::ShardView;
use crate::output::{Out, Style, printable};

/// How often samples are sorted into histograms.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the main loop looks around.
const PACE: Duration = Duration::from_millis(200);

/// Why the daemon ends.
pub(super) enum Why {
    Asked(&'static str),
    StopWorker(String),
}

impl Why {
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Asked(signal) => signal,
            Self::StopWorker(reason) => reason,
        }
    }
}

/// The signal that asks the daemon to stop, once it came.
pub(super) type Asked = watch::Receiver<Option<&'static str>>;

pub(super) fn listen_for_signals() -> std::io::Result<Asked> {
    let (told, asked) = watch::channel(None);
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        // The terminal is gone. There is nothing to reload: a restart proves everything anew.
        (SignalKind::hangup(), "SIGHUP"),
    ] {
        let (mut signal, told) = (signal(kind)?, told.clone());
        tokio::spawn(async move {
            if signal.recv().await.is_some() {
                told.send_replace(Some(name));
            }
        });
    }
    Ok(asked)
}

/// What was said of a shard.
#[derive(Clone, Copy, PartialEq)]
struct Told {
    state: ShardState,
    faults: u64,
    repairs: u64,
}

/// Looks around until there is a reason to stop: tells people what changes, and systemd that all is well.
pub(super) async fn stay(
    registry: &Arc<Registry>,
    mut asked: Asked,
    exporter: &PrometheusHandle,
    sign_late: &mut dyn FnMut(),
    out: &Out,
) -> Why {
    let mut told: BTreeMap<ShardId, Told> = BTreeMap::new();
    let mut pace = tokio::time::interval(PACE);
    let (mut kicked, mut swept) = (tokio::time::Instant::now(), tokio::time::Instant::now());
    let mut watchdog_usec = 0;
    let kick = sd_notify::watchdog_enabled(false, &mut watchdog_usec)
        .then(|| Duration::from_micros(watchdog_usec).checked_div(3).unwrap_or_default());
    loop {
        tokio::select! {
            asked = asked.wait_for(Option::is_some) => {
                return Why::Asked(asked.ok().and_then(|signal| *signal).unwrap_or("asked to"));
            }
            _ = pace.tick() => {}
        }
        // Samples of histograms pile up until somebody sorts them, and it may be that nobody scrapes.
        if swept.elapsed() >= SWEEP {
            swept = tokio::time::Instant::now();
            exporter.run_upkeep();
        }
        sign_late();
        registry.show_evidence();
        if let Some(reason) = registry.scrub_status().stop_requested {
            return Why::StopWorker(reason.into());
        }
        let shards = registry.status().shards;
        told.retain(|id, _| shards.iter().any(|shard| shard.shard_id == *id));
        for shard in shards {
            let now = Told { state: shard.state, faults: shard.faults, repairs: shard.repairs };
            let is_news = now.state.is_damaged() || now.faults > 0;
            let before = told.insert(shard.shard_id, now);
            if before.map_or(is_news, |before| before != now) {
                tell(&shard, out);
            }
        }
        if let Some(kick) = kick
            && registry.is_watched()
            && kicked.elapsed() >= kick
        {
            kicked = tokio::time::Instant::now();
            tell_manager(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(shard: &ShardView, out: &Out) {
    let style = if shard.state.is_damaged() { Style::Red } else { Style::Green };
    let state = out.styled(style, shard.state.as_str().to_uppercase());
    match shard.last_fault.as_ref() {
        Some(fault) => out.line(format_args!(
            "{}  {state}  block {}{}: {}, {}",
            shard.shard_id,
            fault.block,
            fault.tensor.as_deref().map(|name| format!(" in {}", printable(name))).unwrap_or_default(),
            fault.kind,
            fault.outcome
        )),
        None => out.line(format_args!("{}  {state}", shard.shard_id)),
    }
}

/// Tells systemd, where it listens.
pub(super) fn tell_manager(states: &[NotifyState<'_>]) {
    // Nobody there is the usual case, and no reason for anything.
    let _ = sd_notify::notify(false, states);
}
