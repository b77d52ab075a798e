//! What the daemon is told: flags over the configuration file over defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use vram_residency::model::Format;
use vram_residency::policy::OnFailure;
use vram_residency::scrub::{Budget, ScrubOptions};
use vram_residency::{MOST_RECHECK_KEYS, RECHECK_KEYS};

use super::evidence::Plan;
use super::handout::Rules as Handouts;
use super::socket;
use crate::approve::Source;
use crate::cli::{DeviceChoice, Global, Host, Period, Serve, ServeOptions};
use crate::exit::Failure;
use crate::jobs::Rules;
use crate::small_file;

/// Prometheus' registry of ports has no other exporter there.
const PORT: u16 = 9810;
const CONNECTIONS: u16 = 64;
/// Bytes of a configuration file, at most.
const LARGEST: u64 = 1 << 20;

/// Everything decided.
#[derive(Debug)]
pub(super) struct Settings {
    /// The files, in groups that have a manifest each, or none.
    pub(super) models: Vec<Models>,
    pub(super) require_approval: bool,
    pub(super) format: Option<Format>,
    pub(super) listen: SocketAddr,
    pub(super) socket: PathBuf,
    pub(super) token_file: Option<PathBuf>,
    pub(super) attest_key: Option<PathBuf>,
    pub(super) on_failure: OnFailure,
    pub(super) period: Duration,
    pub(super) budget: Budget,
    pub(super) recheck: Option<Duration>,
    /// 0 where nothing is re-checked.
    pub(super) recheck_keys: u16,
    pub(super) repeat_faults: u32,
    pub(super) repairs_per_day: u32,
    pub(super) max_connections: u16,
    pub(super) allow_drill: bool,
    pub(super) device: DeviceChoice,
    pub(super) write_test: bool,
    pub(super) host: Host,
    pub(super) rules: Rules,
    pub(super) evidence: Plan,
    pub(super) attach: Handouts,
    pub(super) global: Global,
}

/// Files and what approves them.
#[derive(Debug)]
pub(super) struct Models {
    pub(super) files: Vec<PathBuf>,
    pub(super) source: Source,
}

impl Models {
    fn of(options: &ServeOptions) -> Result<Vec<Self>, Failure> {
        let in_file = Source {
            manifest: options.manifest.clone(),
            manifest_key: options.manifest_key.clone(),
            manifest_hash: options.manifest_hash,
        };
        check_source(&in_file)?;
        // Another manifest by flag, and still the signature that the file demands of it.
        let flags = options.approval.clone();
        let source = Source {
            manifest: flags.manifest.or(in_file.manifest),
            manifest_key: flags.manifest_key.or(in_file.manifest_key),
            manifest_hash: flags.manifest_hash.or(in_file.manifest_hash),
        };
        let first = Self { files: options.files.clone(), source };
        let sections = options.models.iter().map(|section| Self {
            files: section.files.clone(),
            source: Source {
                manifest: section.manifest.clone(),
                manifest_key: section.manifest_key.clone(),
                manifest_hash: section.manifest_hash,
            },
        });
        let all: Vec<Self> = std::iter::once(first).chain(sections).collect();
        for Self { files, source } in &all {
            check_source(source)?;
            if source.manifest.is_some() && files.is_empty() {
                let message = "a manifest is given without files: name the files or the directory too";
                return Err(Failure::usage(message));
            }
        }
        Ok(all)
    }
}

/// What says something of a manifest, without one, would be believed to hold and does not.
pub(super) fn check_source(source: &Source) -> Result<(), Failure> {
    let what = match source {
        Source { manifest: None, manifest_key: Some(_), .. } => "manifest_key",
        Source { manifest: None, manifest_hash: Some(_), .. } => "manifest_hash",
        _ => return Ok(()),
    };
    Err(Failure::usage(format!("{what} is given without a manifest: name that too")))
}

impl Settings {
    pub(super) fn load(serve: &Serve, global: &Global) -> Result<Self, Failure> {
        let file = match &serve.config {
            Some(path) => read(path)?,
            None => ServeOptions::default(),
        };
        let flags = ServeOptions {
            audit_dir: global.audit_dir.clone(),
            audit_required: global.audit_required,
            worker_id: global.worker_id.clone(),
            key_file: global.key_file.clone(),
            ..serve.options.clone()
        };
        let chosen = flags.over(file);
        let defaults = ScrubOptions::default();
        let models = Models::of(&chosen)?;
        let evidence = Plan::of(&chosen.audit)?;
        let global = Global {
            audit_key: global.audit_key.clone().or(chosen.audit.key),
            audit_dir: chosen.audit_dir,
            audit_required: chosen.audit_required,
            worker_id: chosen.worker_id,
            key_file: chosen.key_file,
            ..global.clone()
        };
        let socket = chosen.socket.map_or_else(socket::default_path, Ok)?;
        let attach = Handouts::of(&chosen.attach, &socket)?;
        Ok(Self {
            models,
            require_approval: chosen.require_approval,
            format: chosen.format,
            listen: chosen.listen.map_or(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), |listen| listen.0),
            socket,
            token_file: chosen.token_file,
            attest_key: chosen.attest_key,
            on_failure: chosen.on_failure.unwrap_or_default(),
            period: chosen.period.map_or(defaults.period, |period| period.0),
            budget: chosen.budget.unwrap_or(defaults.budget),
            recheck: chosen.recheck.map(|recheck| recheck.0),
            recheck_keys: recheck_keys(chosen.recheck, chosen.recheck_keys)?,
            repeat_faults: chosen.repeat_faults.unwrap_or(defaults.repeat_faults),
            repairs_per_day: chosen.repairs_per_day.unwrap_or(defaults.repairs_per_day),
            max_connections: chosen.max_connections.unwrap_or(CONNECTIONS),
            allow_drill: chosen.allow_drill,
            device: chosen.device.unwrap_or(DeviceChoice::Auto),
            write_test: !chosen.no_write_test,
            host: Host { capacity: chosen.capacity, threads: chosen.threads },
            rules: Rules {
                locked: chosen.require_locked,
                read_only: chosen.require_read_only,
                vram: chosen.require_vram,
                audit: global.audit_required,
            },
            evidence,
            attach,
            global,
        })
    }
}

/// How many keys each shard gets.
fn recheck_keys(recheck: Option<Period>, keys: Option<u16>) -> Result<u16, Failure> {
    match (recheck, keys) {
        (Some(_), Some(0)) => Err(Failure::usage("recheck_keys is 0 and recheck is given: leave one of them out")),
        (Some(_), Some(keys)) if keys > MOST_RECHECK_KEYS => Err(Failure::usage(format!(
            "recheck_keys is {keys}; it must be at most {MOST_RECHECK_KEYS}, as each is a pass over every shard before it is \
             sealed: name fewer, or a longer time between re-checks"
        ))),
        (Some(_), keys) => Ok(keys.unwrap_or(RECHECK_KEYS)),
        (None, Some(_)) => Err(Failure::usage("recheck_keys is given without recheck: say how often too")),
        (None, None) => Ok(0),
    }
}

fn read(path: &std::path::Path) -> Result<ServeOptions, Failure> {
    let shown = path.display();
    let text = small_file::read_text(path, LARGEST).map_err(|error| {
        Failure::new("config", format!("the configuration {shown} cannot be read: {error}; name a file in TOML"))
    })?;
    toml::from_str(&text).map_err(|error| {
        let line =
            error.span().map_or(0, |span| text.get(..span.start).map_or(0, |before| before.matches('\n').count()));
        let line = line.saturating_add(1);
        let what = error.message().replace('\n', " ");
        Failure::usage(format!("{shown}:{line}: {what}; vram serve --help lists every key as a flag, with - for _"))
    })
}
