//! `vram serve`: keeps models resident, checks them, repairs them, and tells the truth about them.
//!
//! ```text
//!  startup ─▶ [registry: shards] ─▶ scrubber (threads)       http ─▶ routes ─▶ registry
//!                    ▲                                       control socket ─▶ routes (+ control)
//!                    ▲                                       attach socket ─▶ handout: memory for other processes
//!                    └──────── main loop: signals, watchdog, what to tell people ────────▶ shutdown
//! ```

mod attest;
mod auth;
mod blocks;
mod changes;
mod config;
mod descriptors;
mod events;
mod evidence;
mod handout;
mod host;
mod http;
mod keepers;
mod lock;
mod openapi;
mod page;
mod published;
mod recent;
mod registry;
mod report;
mod retention;
mod routes;
mod since;
mod socket;
mod standing;
mod stay;
mod telemetry;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use vram_residency::actor::SubjectKey;
use vram_residency::scrub::ScrubOptions;
use vram_residency::{Policy, ServiceEvent, ShardId, VramManager};

use self::config::Settings;
use self::evidence::Evidence;
use self::handout::{Door, Handout};
use self::keepers::Keepers;
use self::registry::Registry;
use self::stay::{Asked, Why, listen_for_signals, stay, tell_manager};
use crate::approve;
use crate::cli::{Global, Serve};
use crate::devices;
use crate::exit::Failure;
use crate::jobs::{self, Target, count, progress_bar};
use crate::output::{Out, Style, printable, size};
use crate::session::{self, Trail};
use crate::state;

use self::report::StatusView;
pub(crate) use self::socket::default_path;

/// How long requests in progress get at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Where the daemon is, once it is ready.
#[derive(Serialize)]
struct Ready<'a> {
    listen: SocketAddr,
    socket: &'a PathBuf,
    attach: Option<&'a std::path::Path>,
    /// What is to be known about handing out a GPU's memory.
    attach_note: Option<&'static str>,
    pid: u32,
    #[serde(flatten)]
    status: StatusView,
}

/// Runs until it is told to stop.
pub(crate) fn run(serve: &Serve, global: &Global, out: &Out) -> Result<(), Failure> {
    let settings = Settings::load(serve, global)?;
    scrub_options(&settings).check()?;
    let mut chosen = devices::choose(&settings.device, settings.write_test)?;
    let Planned { mut jobs, parts, unreadable, unapproved } = plan(&settings)?;
    let clients = settings.attach.most_clients();
    if let Some(missing) = descriptors::allow(descriptors::needed(settings.max_connections.into(), clients, jobs.len()))
    {
        out.warn(format_args!("warning: {missing}"));
    }
    let attest_key = attest::KeyFile::find(settings.attest_key.as_deref())?;
    if let Some(wrong) = attest_key.problem() {
        out.warn(format_args!("warning: nothing can be attested: {wrong}"));
    }
    let token = settings.token_file.as_deref().map(auth::Token::read).transpose()?;
    let cannot_start = |error: std::io::Error| Failure::new("system", format!("the daemon cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("vram-serve")
        .enable_all()
        .build()
        .map_err(cannot_start)?;
    // All doors first: whoever cannot get them should not load for minutes before he hears of it.
    let control = socket::Control::bind(&settings.socket)?;
    let door = Door::bind(&settings.attach)?;
    let listener = runtime.block_on(TcpListener::bind(settings.listen)).map_err(|error| {
        let listen = settings.listen;
        Failure::new("listen", format!("{listen} cannot be listened on: {error}; choose another address with --listen"))
    })?;
    let listen = listener.local_addr().map_err(cannot_start)?;
    // Heard from here on, also while models are loaded, and by a process that is the first in its container.
    let asked = {
        let _entered = runtime.enter();
        listen_for_signals().map_err(cannot_start)?
    };
    if !listen.ip().is_loopback() {
        out.warn(format_args!(
            "warning: {listen} can be reached from other machines, without encryption; who may is for a firewall to say"
        ));
    }

    if let Some(hidden) = door.as_ref().and_then(Door::hidden) {
        out.warn(format_args!("warning: {hidden}"));
    }

    let exporter = telemetry::install()?;
    let opened = chosen.open(&settings.host, out)?;
    // All of it must fit before the first byte is read.
    jobs::places(&jobs, &Target::all(&opened))?;
    let secret = state::secret(&settings.global)?;
    let mut trail = Trail::open_witnessed(&settings.global, settings.evidence.cosigners(), out)?;
    let evidence = Evidence::start(&settings.evidence, &trail, out)?;
    let events = events::Events::new(settings.max_connections.into());
    events.recent().recall(recent::earlier(&trail.dir));
    trail.trail.tap(events.tap());
    let mut policy = Policy::from(settings.rules);
    policy.on_failure = settings.on_failure;
    let worker_id = session::worker_id(&settings.global);
    let manager = |device| {
        let manager = session::manager(worker_id.clone(), &secret, device, &trail, policy)?;
        manager.keep_recheck_keys(settings.recheck_keys)?;
        Ok(manager)
    };
    let managers = opened.iter().cloned().map(manager).collect::<Result<Vec<_>, Failure>>()?;
    drop(secret);
    // What is about no device in particular is the first one's.
    let [manager, ..] = managers.as_slice() else { return Err(Failure::usage("no device was named")) };
    manager.record_service(ServiceEvent::Started { version: env!("CARGO_PKG_VERSION") })?;
    if let Some(note) = chosen.note {
        out.line(out.styled(Style::Dim, note));
    }
    let approved = if unapproved { Err(approve::refuse_without(manager)) } else { Ok(()) };
    let approved = approved.and_then(|()| approve::refuse_unreadable(manager, unreadable));
    let approved = approved.and_then(|()| approve(&settings.models, &parts, &mut jobs, manager, &trail, out));
    let keepers = Keepers::start(opened.into_iter().zip(managers), &scrub_options(&settings))?;
    let subject_key = subject_key(out);
    let registry = Arc::new(Registry::new(keepers, &settings, &trail, subject_key, events.recent()));

    if let Some(evidence) = evidence {
        registry.sign(evidence, &settings.evidence)?;
    }
    let loaded = approved.and_then(|()| load_all(&registry, jobs, &asked, out));
    let stopped = *asked.borrow();
    if loaded.is_err() || stopped.is_some() {
        let why = stopped.unwrap_or("a model could not be loaded");
        out.line(format_args!("stopping: {why}"));
        let closed = close(&registry, trail, why, out);
        return loaded.and(closed);
    }
    warn_of_budget(&registry, out);

    let limits = http::Limits { connections: settings.max_connections.into() };
    let served = routes::Shared {
        registry: Arc::clone(&registry),
        events: events.clone(),
        exporter: exporter.clone(),
        token: token.map(Arc::new),
        attest_key,
        local: listen.ip().is_loopback(),
    };
    let (end, ended) = watch::channel(false);
    let open = routes::public(served.clone());
    let full = routes::control(served);
    let (http, unix) = runtime.block_on(async {
        let http = tokio::spawn(http::serve_tcp(listener, open, limits, ended.clone()));
        let unix = tokio::spawn(http::serve_unix(control.listener()?, full, limits, ended));
        Ok::<_, Failure>((http, unix))
    })?;
    let handout = door.map(|door| door.open(&registry)).transpose()?;
    announce(&registry, &settings, listen, handout.as_ref(), out);
    tell_manager(&[NotifyState::Ready, NotifyState::Status("watching")]);

    let why = runtime.block_on(stay(
        &registry,
        asked,
        &exporter,
        &mut || sign_late(&settings, &mut trail, &registry, out),
        out,
    ));
    tell_manager(&[NotifyState::Stopping]);
    out.line(format_args!("stopping: {}", why.reason()));
    registry.begin_to_stop();
    events.close();
    let _ = end.send(true);
    if let Some(handout) = handout {
        handout.stop();
    }
    runtime.block_on(async {
        let _ = tokio::time::timeout(DRAIN, async { tokio::join!(http, unix) }).await;
    });
    runtime.shutdown_timeout(DRAIN);
    drop(control);
    close(&registry, trail, why.reason(), out)?;
    match why {
        Why::Asked(_) => Ok(()),
        Why::StopWorker(reason) => {
            Err(Failure::integrity("stop-worker", format!("the policy stopped the worker: {reason}")))
        }
    }
}

/// What is to be loaded.
#[derive(Default)]
struct Planned {
    jobs: Vec<jobs::Job>,
    /// How many of them each group of files makes.
    parts: Vec<usize>,
    /// A file with a manifest that is no model.
    unreadable: Option<approve::Unreadable>,
    /// Files without a manifest where one is required.
    unapproved: bool,
}

fn plan(settings: &Settings) -> Result<Planned, Failure> {
    let mut planned = Planned::default();
    let is_unapproved = |models: &config::Models| !models.files.is_empty() && models.source.manifest.is_none();
    if settings.require_approval && settings.models.iter().any(is_unapproved) {
        return Ok(Planned { unapproved: true, ..planned });
    }
    for models in &settings.models {
        let taken: Vec<ShardId> = planned.jobs.iter().map(|job| job.shard_id).collect();
        let more = jobs::plan(&models.files, settings.format, None, None, &taken);
        let (more, unreadable) = approve::readable(more, &models.files, &models.source)?;
        planned.parts.push(more.len());
        planned.jobs.extend(more);
        planned.unreadable = planned.unreadable.or(unreadable);
    }
    Ok(planned)
}

/// Holds each group of files against its manifest, where it has one, before the first byte becomes resident.
fn approve(
    models: &[config::Models],
    parts: &[usize],
    jobs: &mut [jobs::Job],
    manager: &VramManager,
    trail: &Trail,
    out: &Out,
) -> Result<(), Failure> {
    let mut rest = jobs;
    for (models, part) in models.iter().zip(parts) {
        let (jobs, others) = rest.split_at_mut_checked(*part).unwrap_or_default();
        rest = others;
        if let Some(approver) = models.source.open(manager, &trail.dir)? {
            let unused = approver.approve(&models.files, jobs, manager)?;
            if let Some(told) = approve::told(&unused) {
                out.line(out.styled(Style::Dim, told));
            }
        }
    }
    Ok(())
}

/// Ends everything in order, and records it.
fn close(registry: &Registry, trail: Trail, reason: &str, out: &Out) -> Result<(), Failure> {
    let stopped = registry.close(reason);
    let audit = trail.close(out);
    // Last, so that the end of the log leaves the machine too.
    if let Some(evidence) = registry.evidence() {
        evidence.finish(out);
    }
    stopped?;
    let audit = audit?;
    out.line(format_args!(
        "stopped; {} in {}",
        count(audit.records, "record"),
        printable(&audit.dir.to_string_lossy())
    ));
    Ok(())
}

/// Makes every model resident, unless the daemon is asked to stop meanwhile: then those that are stay for the moment.
fn load_all(registry: &Registry, jobs: Vec<jobs::Job>, asked: &Asked, out: &Out) -> Result<(), Failure> {
    // Told to whoever asks whether to go on, and so before anything ends because of it.
    let stopped = AtomicBool::new(false);
    let is_asked = || {
        let is_asked = asked.borrow().is_some();
        stopped.fetch_or(is_asked, Ordering::AcqRel);
        is_asked
    };
    let bar = progress_bar(&jobs, out);
    let loaded = registry.load(jobs, &|bytes| bar.inc(bytes), &is_asked);
    bar.finish_and_clear();
    match loaded {
        Ok(shards) => {
            for shard in shards {
                if let Some(problem) = shard.not_attachable {
                    out.warn(format_args!("warning: '{}' cannot be handed out: {problem}", shard.shard_id));
                }
            }
            Ok(())
        }
        Err(_) if stopped.into_inner() => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Begins to sign a log that could only be opened after the start.
fn sign_late(settings: &Settings, trail: &mut Trail, registry: &Registry, out: &Out) {
    if !trail.publish_late(&settings.global, settings.evidence.cosigners(), out) {
        return;
    }
    let started = Evidence::start(&settings.evidence, trail, out);
    let signing =
        started.and_then(|evidence| evidence.map_or(Ok(()), |evidence| registry.sign(evidence, &settings.evidence)));
    if let Err(failure) = signing {
        out.warn(format_args!("warning: {}", failure.message));
    }
}

/// The key of the commitments to who gives orders. Without it work goes on, and nobody is named in any form.
fn subject_key(out: &Out) -> Option<SubjectKey> {
    let key = state::subject_key(true);
    key.inspect_err(|failure| {
        out.warn(format_args!("warning: who gives orders is not recorded: {}", failure.message));
    })
    .ok()
}

fn scrub_options(settings: &Settings) -> ScrubOptions {
    let mut options = ScrubOptions::default();
    options.period = settings.period;
    options.budget = settings.budget;
    options.recheck = settings.recheck;
    options.repeat_faults = settings.repeat_faults;
    options.repairs_per_day = settings.repairs_per_day;
    options
}

fn warn_of_budget(registry: &Registry, out: &Out) {
    for warning in registry.keepers().budget_warnings() {
        out.warn(format_args!("warning: {warning}"));
    }
}

fn announce(registry: &Registry, settings: &Settings, listen: SocketAddr, handout: Option<&Handout>, out: &Out) {
    let status = registry.status();
    let manager = registry.manager();
    let note = handout.and_then(|_| settings.attach.gpu_note(manager.device().kind, &manager.policy()));
    for shard in &status.shards {
        out.line(format_args!(
            "{}  {}  {}, {}, {}  {}",
            out.styled(Style::Bold, shard.shard_id),
            size(shard.bytes),
            shard.device,
            shard.residency,
            shard.protection,
            shard.digest
        ));
        if let Some(approval) = &shard.approval {
            out.line(format_args!("  approved    {} by the {}{}", approval.approved, approval.by(), approval.how()));
        }
    }
    out.line(format_args!(
        "{} {} resident; every block is checked within {:?} at a budget of {}; a failed check is answered by {}",
        out.styled(Style::Green, "ready"),
        count(status.shards.len(), "shard"),
        status.scrub.period,
        status.scrub.budget,
        status.on_failure
    ));
    if let Some(recheck) = status.scrub.recheck {
        out.line(format_args!(
            "  recheck     every shard's fingerprint within {recheck:?}, as far as the budget allows"
        ));
    }
    if status.require_approval {
        out.line("  approval    only what a manifest approves is loaded");
    }
    out.line(format_args!("  http        http://{listen}/"));
    out.line(format_args!("  socket      {}", printable(&settings.socket.to_string_lossy())));
    if let Some(handout) = handout {
        out.line(format_args!("  attach      {}", printable(&handout.socket().to_string_lossy())));
    }
    if let Some(note) = note {
        out.line(format_args!("              {note}"));
    }
    out.line(format_args!("  audit log   {}", printable(&status.audit.dir.to_string_lossy())));
    if let Some(evidence) = &status.audit.evidence {
        out.line(format_args!("              {}", evidence.sum_up()));
    }
    let attach = handout.map(Handout::socket);
    out.object(&Ready { listen, socket: &settings.socket, attach, attach_note: note, pid: std::process::id(), status });
}
