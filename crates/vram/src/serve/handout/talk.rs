//! One conversation.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use vram_residency::device::{DeviceKind, Export};
use vram_residency::digest::Digest;
use vram_residency::handout::{
    Answer, Attached, AttachedCuda, ErrorCode, HEARTBEAT_MS, OLDEST_VERSION, Request, ShardInfo, VERSION, encode, hex,
};
use vram_residency::{Error, SealedShard, ShardState};

use super::leases::Mark;
use super::rules::{Refusal, Which};
use super::wire::{Came, Wire};
use super::{Seat, Shared, TableFrame, count_attach};

/// A client introduces himself within this time.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// A client that holds nothing may be silent for so long.
const IDLE_TIME: Duration = Duration::from_secs(300);
/// How often states are looked at. What is late is noticed as often.
const LOOK: Duration = Duration::from_millis(200);
/// A little less than a heartbeat, so that the look that is due sends it.
const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_MS - 100);
/// How long a good-bye may take.
const BYE_TIME: Duration = Duration::from_secs(1);

/// A conversation with a client who may be here.
pub(super) struct Talk {
    shared: Arc<Shared>,
    wire: Wire,
    seat: Seat,
    /// The version that is spoken, once the client introduced himself.
    greeted: Option<u32>,
    /// What was last said of each lease, where the client wants to be told.
    told: Option<BTreeMap<u64, (Told, Instant)>>,
    /// A request that waits for its turn. Until it came nothing more is read.
    waiting: Option<Request>,
    /// When the client last asked for something.
    active: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// And how often it was not to be relied on so far.
    State(ShardState, u64),
    Ended,
}

/// How a conversation ends.
enum End {
    /// The client is gone, or does not read.
    Gone,
    /// The daemon has enough of it.
    Refused(Refusal),
    /// The daemon stops.
    Stopped,
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl Talk {
    pub(super) fn new(shared: Arc<Shared>, stream: UnixStream, seat: Seat) -> Self {
        Self { shared, wire: Wire::new(stream), seat, greeted: None, told: None, waiting: None, active: Instant::now() }
    }

    pub(super) async fn run(mut self, mut ended: watch::Receiver<bool>) {
        let answer = match self.converse(&mut ended).await {
            End::Gone => return,
            End::Refused(refusal) => refusal.answer(),
            End::Stopped => {
                self.seat.reason = "stopped";
                Answer::Bye { reason: "the daemon stops; what is mapped stays mapped, and nobody checks it".to_owned() }
            }
        };
        let _ = tokio::time::timeout(BYE_TIME, self.say(&answer)).await;
    }

    async fn converse(&mut self, ended: &mut watch::Receiver<bool>) -> End {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let turn = self.waiting.is_some().then(|| self.shared.requests.wait_for(self.seat.uid));
            let step = tokio::select! {
                () = stopping(ended) => return End::Stopped,
                () = tokio::time::sleep(turn.unwrap_or_default()), if turn.is_some() => {
                    // Others of the same user may have been quicker.
                    match self.shared.requests.is_due(self.seat.uid).then(|| self.waiting.take()).flatten() {
                        Some(request) => self.answer(request).await,
                        None => Ok(()),
                    }
                }
                came = self.wire.next(), if turn.is_none() => match came {
                    Came::Frame(body) => self.hear(&body).await,
                    Came::End => Err(End::Gone),
                    Came::Wrong(refusal) => Err(End::Refused(refusal)),
                },
                _ = look.tick() => match self.is_late() {
                    Some(refusal) => Err(End::Refused(refusal)),
                    // Whoever has a request waiting is not read, and may be gone.
                    None if self.waiting.is_some() && self.wire.is_hung_up() => Err(End::Gone),
                    None => self.tell().await,
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Whether the client takes too long.
    fn is_late(&self) -> Option<Refusal> {
        let late = |what: &str| Some(Refusal::new(ErrorCode::Timeout, what));
        let silent = self.active.elapsed();
        if self.wire.is_late() {
            late("a request was not complete in time")
        } else if self.greeted.is_none() && silent > HELLO_TIME {
            late("nothing was asked in time; begin with hello")
        } else if silent > IDLE_TIME && self.shared.registry.leases().stands(self.seat.client).is_empty() {
            late("nothing is held and nothing was asked for a long time; connect again")
        } else {
            None
        }
    }

    async fn say(&self, answer: &Answer) -> Result<(), End> {
        self.send(answer, None).await
    }

    async fn send(&self, answer: &Answer, file: Option<BorrowedFd<'_>>) -> Result<(), End> {
        let frame = encode(answer).map_err(|error| End::Refused(Refusal::new(ErrorCode::Device, error.to_string())))?;
        Ok(self.wire.send(&frame, file).await?)
    }

    /// Answers a request.
    async fn hear(&mut self, body: &[u8]) -> Result<(), End> {
        let malformed = |what: String| End::Refused(Refusal::new(ErrorCode::Malformed, what));
        let request = Request::parse(body).map_err(|error| malformed(error.to_string()))?;
        self.active = Instant::now();
        match request {
            Request::Hello { version } => return self.greet(version).await,
            _ if self.greeted.is_none() => return Err(malformed("a conversation begins with hello".to_owned())),
            Request::AttachCuda { .. } if self.greeted == Some(OLDEST_VERSION) => {
                return Err(malformed("attach-cuda is of version 2, and this conversation of version 1".to_owned()));
            }
            Request::Watch {} => {
                self.told.get_or_insert_default();
                self.say(&Answer::Watching {}).await?;
                return self.tell().await;
            }
            _ => {}
        }
        // What is recorded or makes work has its pace.
        self.waiting = Some(request);
        Ok(())
    }

    /// Answers a request whose turn has come.
    async fn answer(&mut self, request: Request) -> Result<(), End> {
        match request {
            Request::List {} => {
                let shards = self.shared.registry.lendable(&self.shared.rules);
                self.say(&Answer::Shards { shards: shards.iter().map(ShardInfo::of).collect() }).await
            }
            Request::Attach { shard, digest } => self.attach(shard, digest, DeviceKind::Host).await,
            Request::AttachCuda { shard, digest } => self.attach(shard, digest, DeviceKind::Cuda).await,
            Request::Release { lease } => self.release(lease).await,
            Request::Hello { .. } | Request::Watch {} => Ok(()),
        }
    }

    async fn greet(&mut self, version: u32) -> Result<(), End> {
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            let message = format!("version {version} is not spoken here; {OLDEST_VERSION} to {VERSION} are");
            return Err(End::Refused(Refusal::new(ErrorCode::Version, message)));
        }
        // The first one counts.
        let version = *self.greeted.get_or_insert(version);
        let (worker_id, period) = self.shared.registry.introduce();
        let period_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let software = env!("CARGO_PKG_VERSION").to_owned();
        self.say(&Answer::Hello { version, software, worker_id, period_ns }).await
    }

    /// Hands out a shard in this kind of memory.
    async fn attach(&mut self, shard: Option<String>, digest: Option<Digest>, memory: DeviceKind) -> Result<(), End> {
        let which = match (shard, digest) {
            (Some(name), None) => Which::Name(name),
            (None, Some(digest)) => Which::Digest(digest),
            _ => {
                let message = "attach takes either shard or digest";
                return Err(End::Refused(Refusal::new(ErrorCode::Malformed, message)));
            }
        };
        match self.lend(&which, memory) {
            Ok(lent) => {
                count_attach("attached");
                self.send(&lent.answer, Some(lent.file.as_fd())).await?;
                drop(lent.file);
                self.wire.send(&lent.table, None).await?;
                self.tell().await
            }
            Err(refusal) => {
                self.shared.refuse(&refusal, self.seat.uid);
                self.say(&refusal.answer()).await
            }
        }
    }

    /// Makes a lease, on record before anything leaves.
    fn lend(&self, which: &Which, memory: DeviceKind) -> Result<Lent, Refusal> {
        let (shared, client) = (&self.shared, self.seat.client);
        let (shard, lease, table) = shared.registry.lend(which, &shared.rules, client)?;
        let lent = self.hand_out(&shard, lease, &table, memory);
        lent.map_err(|refusal| {
            // Where the log may say that it was lent, the manager has it say that it was not.
            let _ = shared.registry.leases().remove(client, lease);
            refusal.of(*shard.shard_id())
        })
    }

    fn hand_out(
        &self,
        shard: &SealedShard,
        lease: u64,
        table: &TableFrame,
        memory: DeviceKind,
    ) -> Result<Lent, Refusal> {
        let registry = &self.shared.registry;
        self.shared.rules.check_memory(shard, memory)?;
        let table = table.frame(shard.table())?;
        let mark = Mark::before(registry.manager().trail());
        let handed = {
            let _acting = registry.acting_for(self.seat.uid);
            registry.hand_out(shard, self.seat.client, lease)
        };
        let refuse = |error: &Error| {
            let code = if matches!(error, Error::Audit(_)) { ErrorCode::NotRecorded } else { ErrorCode::Device };
            Refusal::new(code, error.to_string())
        };
        let export = handed.map_err(|error| refuse(&error))?;
        registry.leases().note_record(self.seat.client, lease, mark());
        // As it stands with what has just been handed out.
        let (info, seal) = (ShardInfo::of(shard), hex(&shard.seal_record()));
        let (answer, file) = match export {
            Export::MemoryFile { file, offset } => {
                (Answer::Attached(Box::new(Attached { lease, offset, shard: info, seal })), file)
            }
            Export::CudaAllocation { fd, bytes: allocation_bytes, offset, device } => {
                let device = device.to_string();
                let attached = AttachedCuda { lease, device, allocation_bytes, offset, shard: info, seal };
                (Answer::AttachedCuda(Box::new(attached)), fd)
            }
            _ => return Err(Refusal::new(ErrorCode::Device, "memory of this kind is not handed out")),
        };
        Ok(Lent { answer, file, table })
    }

    async fn release(&mut self, lease: u64) -> Result<(), End> {
        let registry = &self.shared.registry;
        let Some(gone) = registry.leases().remove(self.seat.client, lease) else {
            let message = format!("this connection has no lease {lease}");
            return self.say(&Refusal::new(ErrorCode::UnknownLease, message).answer()).await;
        };
        if let Some(gone) = gone {
            let _acting = registry.acting_for(self.seat.uid);
            registry.record_detached(&gone, "released");
        }
        self.say(&Answer::Released { lease }).await
    }

    /// Tells what is new of the leases, or was not said for long.
    async fn tell(&mut self) -> Result<(), End> {
        let Some(told) = &mut self.told else { return Ok(()) };
        let stands = self.shared.registry.leases().stands(self.seat.client);
        told.retain(|lease, _| stands.iter().any(|(number, _)| number == lease));
        let mut news = Vec::new();
        for (lease, stand) in stands {
            let now = stand.map_or(Told::Ended, |(state, _, lapses)| Told::State(state, lapses));
            let known = told.get(&lease);
            let is_news =
                known.is_none_or(|(before, at)| *before != now || (now != Told::Ended && at.elapsed() >= HEARTBEAT));
            if is_news {
                told.insert(lease, (now, Instant::now()));
                news.push(match stand {
                    Some((state, age, lapses)) => {
                        let oldest_age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
                        Answer::State { lease, state, oldest_age_ns, lapses }
                    }
                    None => Answer::Ended { lease, reason: "an operator gave the shard up".to_owned() },
                });
            }
        }
        for answer in &news {
            self.say(answer).await?;
        }
        Ok(())
    }
}

/// Waits until the daemon stops.
async fn stopping(ended: &mut watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
}

/// What is sent for an `attach`, with the descriptor beside the answer.
struct Lent {
    answer: Answer,
    file: OwnedFd,
    table: Arc<Vec<u8>>,
}
