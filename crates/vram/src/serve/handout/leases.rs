//! Who is connected, and who holds what. The connection is the holder: when it ends, so do its leases.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vram_residency::audit::AuditTrail;
use vram_residency::digest::Digest;
use vram_residency::handout::ErrorCode;
use vram_residency::metrics as names;
use vram_residency::{SealedShard, ShardId, ShardState};

use super::room::{Room, Verdict};
use super::rules::Refusal;
use crate::serve::lock::lock;
use crate::serve::report::{ClientView, HandoutView, LeaseView};

/// Leases on one connection, at most.
const LEASES: usize = 1024;

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Numbers of clients and of leases are never given twice.
    last_client: u64,
    last_lease: u64,
    clients: BTreeMap<u64, Client>,
}

#[derive(Debug)]
struct Client {
    uid: u32,
    pid: Option<i32>,
    since: Instant,
    leases: BTreeMap<u64, Lease>,
    /// Dropping it ends the conversation.
    _alive: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Lease {
    /// None where the shard was given up by force: the client may still have its memory, and nobody watches it.
    shard: Option<SealedShard>,
    shard_id: ShardId,
    digest: Digest,
    bytes: u64,
    sealed_at_ns: u64,
    since: Instant,
    /// Of its record, while that is not known to be on disk.
    mark: Option<Mark>,
    /// Its record may be lost, and none was made since that is on disk.
    unrecorded: bool,
}

/// Where the log stood when it took a record, of which it may still lose any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    /// Records that were lost before.
    lost: u64,
    /// The record's number, or a later one.
    upto: u64,
}

impl Mark {
    /// To be asked before a record is made: where it will stand.
    pub(super) fn before(trail: &AuditTrail) -> impl FnOnce() -> Self {
        let lost = trail.lost_records();
        move || {
            let upto = trail.log_status().map_or(0, |log| log.durable.saturating_add(log.queued));
            Self { lost, upto }
        }
    }
}

/// A lease whose record may be lost.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) shard_id: ShardId,
    pub(super) digest: Digest,
    pub(super) uid: u32,
    pub(super) client: u64,
    pub(super) lease: u64,
    /// Whether the client could write to the memory.
    pub(super) writable: bool,
    pub(super) held: Duration,
    /// Whether that is new.
    pub(super) is_new: bool,
}

/// A lease that is over.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) shard_id: ShardId,
    pub(crate) digest: Digest,
    pub(crate) client: u64,
    pub(crate) lease: u64,
    pub(crate) held: Duration,
}

/// How a lease's shard stands; none where it was given up.
pub(super) type Stand = (u64, Option<(ShardState, Duration, u64)>);

impl Leases {
    /// A place for a connection. Where there is none for this user, the oldest one goes that holds nothing and may go for
    /// him: first of his own, then of whoever has most.
    pub(super) fn admit(
        &self,
        uid: u32,
        pid: Option<i32>,
        room: &Room,
    ) -> Result<(u64, oneshot::Receiver<()>), Refusal> {
        let mut table = self.lock();
        loop {
            let taken = table.taken();
            let (verdict, others) = match room.check(uid, &taken) {
                Verdict::Free => break,
                Verdict::Own(share) => {
                    (format!("your user has {share} connections, and each holds a shard; close one"), false)
                }
                Verdict::Full(most) => {
                    (format!("the {most} places are taken or kept for other users; close a connection"), true)
                }
            };
            let idle = table.clients.iter().filter(|(_, client)| client.leases.is_empty());
            let his = |client: &Client| client.uid == uid;
            let may_go = idle
                .filter(|(_, client)| his(client) || (others && room.may_displace(uid, client.uid, &taken)))
                .max_by_key(|(number, client)| (his(client), taken.get(&client.uid), Reverse(**number)));
            let Some(number) = may_go.map(|(number, _)| *number) else {
                return Err(Refusal::new(ErrorCode::TooManyClients, verdict));
            };
            table.clients.remove(&number);
        }
        table.last_client = table.last_client.saturating_add(1);
        let number = table.last_client;
        let (alive, evicted) = oneshot::channel();
        let client = Client { uid, pid, since: Instant::now(), leases: BTreeMap::new(), _alive: alive };
        table.clients.insert(number, client);
        Ok((number, evicted))
    }

    /// A connection is over; gives the leases that end with it.
    pub(super) fn leave(&self, client: u64) -> Vec<Gone> {
        let left = self.lock().clients.remove(&client);
        let leases = left.into_iter().flat_map(|left| left.leases);
        leases.filter_map(|(number, lease)| lease.end(client, number)).collect()
    }

    /// A shard is lent.
    pub(crate) fn add(&self, client: u64, shard: &SealedShard) -> Result<u64, Refusal> {
        let mut table = self.lock();
        let number = table.last_lease.saturating_add(1);
        let Some(client) = table.clients.get_mut(&client) else {
            return Err(Refusal::new(ErrorCode::TooManyClients, "the connection was closed to make room"));
        };
        if client.leases.len() >= LEASES {
            let message = format!("this connection has {LEASES} leases; release one, or open another connection");
            return Err(Refusal::new(ErrorCode::TooManyLeases, message));
        }
        let lease = Lease {
            shard_id: *shard.shard_id(),
            digest: shard.digest(),
            bytes: shard.bytes(),
            sealed_at_ns: shard.sealed_at_ns(),
            since: Instant::now(),
            shard: Some(shard.clone()),
            mark: None,
            unrecorded: false,
        };
        client.leases.insert(number, lease);
        table.last_lease = number;
        Ok(number)
    }

    /// The log took a record of a lease, and may still lose it.
    pub(super) fn note_record(&self, client: u64, lease: u64, mark: Mark) {
        let mut table = self.lock();
        if let Some(lease) = table.clients.get_mut(&client).and_then(|client| client.leases.get_mut(&lease)) {
            lease.mark = Some(mark);
        }
    }

    /// Forgets the marks of what is on disk, and gives the leases whose record may be lost: those that the log had not on disk when
    /// it lost any.
    pub(super) fn settle(&self, trail: &AuditTrail) -> Vec<Doubt> {
        // In this order: what is lost is counted before the log goes on behind it.
        let durable = trail.log_status().map_or(u64::MAX, |log| log.durable);
        let lost = trail.lost_records();
        let mut doubts = Vec::new();
        let mut table = self.lock();
        for (client, entry) in &mut table.clients {
            for (number, lease) in &mut entry.leases {
                let (Some(shard), Some(mark)) = (&lease.shard, lease.mark) else { continue };
                if lost > mark.lost {
                    doubts.push(Doubt {
                        shard_id: lease.shard_id,
                        digest: lease.digest,
                        uid: entry.uid,
                        client: *client,
                        lease: *number,
                        writable: shard.writable_since_ns().is_some(),
                        held: lease.since.elapsed(),
                        is_new: !lease.unrecorded,
                    });
                    lease.unrecorded = true;
                } else if durable >= mark.upto {
                    (lease.mark, lease.unrecorded) = (None, false);
                }
            }
        }
        doubts
    }

    /// A lease is given back. The outer none: there is no such lease; the inner one: its end is on record already.
    pub(super) fn remove(&self, client: u64, lease: u64) -> Option<Option<Gone>> {
        let removed = self.lock().clients.get_mut(&client)?.leases.remove(&lease)?;
        Some(removed.end(client, lease))
    }

    /// How the shards of a client's leases stand.
    pub(super) fn stands(&self, client: u64) -> Vec<Stand> {
        let table = self.lock();
        let leases = table.clients.get(&client).into_iter().flat_map(|client| &client.leases);
        let stand =
            |lease: &Lease| lease.shard.as_ref().map(|shard| (shard.state(), shard.oldest_age(), shard.lapses()));
        leases.map(|(number, lease)| (*number, stand(lease))).collect()
    }

    /// A shard is to be given up: refused with the number of leases of it, unless by force. Then they end, and the clients
    /// keep memory that nobody watches.
    pub(crate) fn vacate(&self, shard_id: &ShardId, force: bool) -> Result<Vec<Gone>, usize> {
        let mut table = self.lock();
        let held = |lease: &Lease| lease.shard_id == *shard_id && lease.shard.is_some();
        let count =
            table.clients.values().flat_map(|client| client.leases.values()).filter(|lease| held(lease)).count();
        if count > 0 && !force {
            return Err(count);
        }
        let mut gone = Vec::new();
        for (client, entry) in &mut table.clients {
            for (number, lease) in entry.leases.iter_mut().filter(|(_, lease)| held(lease)) {
                gone.extend(lease.revoke(*client, *number));
            }
        }
        Ok(gone)
    }

    pub(crate) fn view(&self) -> HandoutView {
        let table = self.lock();
        let view = |(number, client): (&u64, &Client)| ClientView {
            client: *number,
            uid: Some(client.uid),
            pid: client.pid,
            connected_seconds: client.since.elapsed().as_secs_f64(),
            leases: client.leases.iter().map(|(number, lease)| lease.view(*number)).collect(),
        };
        HandoutView {
            clients: table.clients.iter().map(view).collect(),
            leases: table.leases(),
            unrecorded: table.all().filter(|lease| lease.unrecorded).count(),
            lingering_bytes: table.lingering(),
        }
    }

    /// Brings the gauges up to date.
    #[expect(clippy::cast_precision_loss, reason = "gauges are f64; 2^53 bytes are 8 PiB")]
    pub(super) fn show(&self) {
        let table = self.lock();
        metrics::gauge!(names::HANDOUT_CLIENTS).set(table.clients.len() as f64);
        metrics::gauge!(names::HANDOUT_LEASES).set(table.leases() as f64);
        metrics::gauge!(names::HANDOUT_LINGERING).set(table.lingering() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Table {
    /// How many connections each user has.
    fn taken(&self) -> BTreeMap<u32, usize> {
        let mut taken = BTreeMap::new();
        for client in self.clients.values() {
            let count: &mut usize = taken.entry(client.uid).or_default();
            *count = count.saturating_add(1);
        }
        taken
    }

    fn all(&self) -> impl Iterator<Item = &Lease> {
        self.clients.values().flat_map(|client| client.leases.values())
    }

    fn leases(&self) -> usize {
        self.all().filter(|lease| lease.shard.is_some()).count()
    }

    /// Bytes of shards that were given up and that somebody still holds, each counted once.
    fn lingering(&self) -> u64 {
        let left = self.all().filter(|lease| lease.shard.is_none());
        let regions: BTreeSet<_> = left.map(|lease| (lease.shard_id, lease.sealed_at_ns, lease.bytes)).collect();
        regions.into_iter().fold(0, |sum, (_, _, bytes)| sum.saturating_add(bytes))
    }
}

impl Lease {
    fn revoke(&mut self, client: u64, lease: u64) -> Option<Gone> {
        self.shard.take()?;
        // That record says for how long it was held.
        self.unrecorded = false;
        let held = self.since.elapsed();
        Some(Gone { shard_id: self.shard_id, digest: self.digest, client, lease, held })
    }

    fn end(mut self, client: u64, lease: u64) -> Option<Gone> {
        self.revoke(client, lease)
    }

    fn view(&self, lease: u64) -> LeaseView {
        LeaseView {
            lease,
            shard_id: self.shard_id,
            held_seconds: self.since.elapsed().as_secs_f64(),
            watched: self.shard.is_some(),
            recorded: !self.unrecorded,
        }
    }
}
