//! The attach socket: shards are handed to other processes of this machine, by the protocol of
//! [`vram_residency::handout`].
//!
//! It has a thread and a runtime of its own, so that nobody who talks there takes time from HTTP or the scrubber's
//! threads; and bounds for everything that a stranger could pile up: connections, bytes, time, records.
//!
//! ```text
//! accept ─▶ rules (user) ─▶ leases (seat, eviction) ─▶ talk ─▶ registry.lend (digest, freshness) ─▶ descriptor
//! ```

mod leases;
mod pace;
mod refusals;
mod room;
mod rules;
mod table;
mod talk;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::Unit;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use vram_residency::audit::TrailHealth;
use vram_residency::handout::{ErrorCode, encode};
use vram_residency::metrics as names;
use vram_residency::{HandoutEvent, VramManager};

use self::leases::{Doubt, Mark};
use self::pace::{Bucket, Pace};
use self::refusals::{Due, Refusals};
use self::talk::Talk;
use super::registry::Registry;
use super::socket::Control;
use crate::exit::Failure;

pub(super) use self::leases::{Gone, Leases};
pub(super) use self::rules::{Refusal, Rules, Which};
pub(super) use self::table::TableFrame;

/// How long to wait after an accept that failed, for instance because descriptors ran out.
const BREATHER: Duration = Duration::from_millis(100);
/// How long the end of all conversations may take.
const GOOD_BYES: Duration = Duration::from_secs(3);
/// How often gauges are brought up to date, sooner than the exporter forgets them, and refusals without a record looked at.
const SHOW: Duration = Duration::from_secs(1);
/// What one user gets done and recorded: so many at once, and one in so long. More of it is answered later.
const REQUESTS: Bucket = Bucket { burst: 1000, every: Duration::from_millis(2) };

/// The socket, before anybody is answered on it.
#[derive(Debug)]
pub(super) struct Door {
    control: Control,
    rules: Rules,
}

/// A running hand-out.
#[derive(Debug)]
pub(super) struct Handout {
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    /// Removes the socket's file.
    _control: Control,
}

/// What every conversation is made from.
pub(super) struct Shared {
    registry: Arc<Registry>,
    rules: Rules,
    requests: Pace<u32>,
    refusals: Refusals,
}

impl Door {
    /// Binds the socket, unless nothing is to be handed out.
    pub(super) fn bind(rules: &Rules) -> Result<Option<Self>, Failure> {
        if !rules.enabled {
            return Ok(None);
        }
        // Users who are on no list cannot even connect, where there is no list.
        let mode = if rules.is_shared() { 0o666 } else { 0o600 };
        let control = Control::bind_with(&rules.socket, mode, "[attach] socket")?;
        Ok(Some(Self { control, rules: rules.clone() }))
    }

    /// What hides the socket from users who may have shards, if anything does.
    pub(super) fn hidden(&self) -> Option<String> {
        rules::hidden(&self.rules)
    }

    /// Begins to answer.
    pub(super) fn open(self, registry: &Arc<Registry>) -> Result<Handout, Failure> {
        describe();
        let cannot = |error: std::io::Error| Failure::new("system", format!("nothing can be handed out: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        let listener = {
            let _entered = runtime.enter();
            self.control.listener()?
        };
        let (end, ended) = watch::channel(false);
        let socket = self.rules.socket.clone();
        let shared = Arc::new(Shared {
            registry: Arc::clone(registry),
            rules: self.rules,
            requests: Pace::new(REQUESTS),
            refusals: Refusals::default(),
        });
        let thread = std::thread::Builder::new().name("vram-handout".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve(listener, shared, ended))).map_err(cannot)?;
        Ok(Handout { end, thread: Some(thread), socket, _control: self.control })
    }
}

impl Handout {
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says good-bye to every client; what they have mapped stays theirs.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.end.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Handout {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>, mut ended: watch::Receiver<bool>) {
    let mut talks = JoinSet::new();
    let mut show = tokio::time::interval(SHOW);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = talks.join_next() => continue,
            _ = show.tick() => {
                shared.registry.settle_leases();
                shared.registry.leases().show();
                shared.record(shared.refusals.due(Instant::now(), false));
                continue;
            }
            _ = ended.changed() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(BREATHER).await;
            continue;
        };
        match admit(&shared, &stream) {
            Ok((seat, evicted)) => {
                let (talk, ended) = (Talk::new(Arc::clone(&shared), stream, seat), ended.clone());
                talks.spawn(async move {
                    // The seat is given back wherever the conversation is cut.
                    tokio::select! {
                        () = talk.run(ended) => {}
                        _ = evicted => {}
                    }
                });
            }
            Err(refusal) => {
                if let Ok(frame) = encode(&refusal.answer()) {
                    let _ = stream.try_write(&frame);
                }
            }
        }
    }
    // Each says good-bye in a bounded time; whoever does not is cut.
    let _ = tokio::time::timeout(GOOD_BYES, async { while talks.join_next().await.is_some() {} }).await;
    talks.abort_all();
    while talks.join_next().await.is_some() {}
    shared.record(shared.refusals.due(Instant::now(), true));
    shared.registry.leases().show();
}

/// A client's place. Giving it up ends his leases, and that is on record.
pub(super) struct Seat {
    registry: Arc<Registry>,
    pub(super) client: u64,
    pub(super) uid: u32,
    pub(super) reason: &'static str,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let gone = self.registry.leases().leave(self.client);
        let _acting = self.registry.acting_for(self.uid);
        for lease in &gone {
            self.registry.record_detached(lease, self.reason);
        }
    }
}

/// Lets a connection in, as the kernel says whose it is.
fn admit(shared: &Arc<Shared>, stream: &UnixStream) -> Result<(Seat, oneshot::Receiver<()>), Refusal> {
    let peer = stream.peer_cred().map_err(|error| {
        Refusal::new(ErrorCode::ForbiddenUser, format!("the kernel does not say who you are: {error}"))
    })?;
    let (uid, pid) = (peer.uid(), peer.pid());
    shared.rules.check_user(uid).inspect_err(|refusal| shared.refuse(refusal, uid))?;
    let admitted = shared.registry.leases().admit(uid, pid, &shared.rules.room);
    let (client, evicted) = admitted.inspect_err(|refusal| shared.refuse(refusal, uid))?;
    Ok((Seat { registry: Arc::clone(&shared.registry), client, uid, reason: "gone" }, evicted))
}

impl Shared {
    /// Counts a refusal, and sees that it gets on record.
    fn refuse(&self, refusal: &Refusal, uid: u32) {
        count_attach(refusal.code.as_str());
        self.record(self.refusals.note(refusal, uid, Instant::now()));
    }

    fn record(&self, due: impl IntoIterator<Item = Due>) {
        for due in due {
            let _acting = self.registry.acting_for(due.1);
            if !self.registry.record_refused(&due.0, due.2) {
                self.refusals.put_back(due, Instant::now());
            }
        }
    }
}

pub(super) fn count_attach(result: &'static str) {
    metrics::counter!(names::HANDOUT_ATTACHES, "result" => result).increment(1);
}

impl Gone {
    /// Records the end, by the manager that held the shard.
    pub(crate) fn record(&self, manager: &VramManager, reason: &'static str) {
        metrics::counter!(names::HANDOUT_DETACHES, "reason" => reason).increment(1);
        let Self { shard_id, digest, client, lease, held } = self;
        let (digest, client, lease, held) = (*digest, *client, *lease, *held);
        // It is over whether that is recorded or not; the loss is counted.
        let _ = manager.record_handout(HandoutEvent::Detached { shard_id, digest, client, lease, held, reason });
    }
}

impl Registry {
    /// Records the end of a lease.
    pub(super) fn record_detached(&self, gone: &Gone, reason: &'static str) {
        gone.record(&self.keeper_of(Some(&gone.shard_id)).manager, reason);
    }

    /// Sees what became of the records of leases, and has those made again that may be lost, once the log takes records again.
    fn settle_leases(&self) {
        let trail = self.manager().trail();
        for Doubt { shard_id, digest, uid, client, lease, writable, held, is_new } in self.leases().settle(trail) {
            if is_new {
                metrics::counter!(names::HANDOUT_UNRECORDED).increment(1);
            }
            if trail.health() == TrailHealth::Good {
                let mark = Mark::before(trail);
                let _acting = self.acting_for(uid);
                let event = HandoutEvent::StillAttached { shard_id: &shard_id, digest, client, lease, writable, held };
                if self.keeper_of(Some(&shard_id)).manager.record_handout(event).unwrap_or(false) {
                    self.leases().note_record(client, lease, mark());
                }
            }
        }
    }

    /// Whether the log took the record.
    fn record_refused(&self, refusal: &Refusal, unrecorded: u64) -> bool {
        let (shard_id, code, reason) = (refusal.shard_id.as_deref(), refusal.code, refusal.message.as_str());
        let event = HandoutEvent::Refused { shard_id, code, reason, unrecorded };
        self.keeper_of(shard_id).manager.record_handout(event).unwrap_or(false)
    }
}

fn describe() {
    let gauge = |name, unit, help| metrics::describe_gauge!(name, unit, help);
    gauge(names::HANDOUT_CLIENTS, Unit::Count, "Processes that are connected to have shards handed out.");
    gauge(names::HANDOUT_LEASES, Unit::Count, "Leases of shards that are still watched.");
    gauge(names::HANDOUT_LINGERING, Unit::Bytes, "Shards that were given up and that clients still hold in memory.");
    let counter = |name, help| metrics::describe_counter!(name, Unit::Count, help);
    counter(names::HANDOUT_ATTACHES, "Requests for a shard, and connections that were refused, by result.");
    counter(names::HANDOUT_DETACHES, "Leases that ended, by reason.");
    counter(names::HANDOUT_UNRECORDED, "Leases whose first record may be lost; they are recorded again.");
    metrics::counter!(names::HANDOUT_ATTACHES, "result" => "attached").increment(0);
    metrics::counter!(names::HANDOUT_UNRECORDED).increment(0);
}
