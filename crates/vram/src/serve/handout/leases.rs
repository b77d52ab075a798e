//! Who is connected, and who holds what. The connection is the holder: when it ends, so do its leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vram_residency::digest::Digest;
use vram_residency::handout::ErrorCode;
use vram_residency::metrics as names;
use vram_residency::{SealedShard, ShardId, ShardState};

use super::rules::Refusal;
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
    /// A place for a connection. Where there are too many, the oldest that holds nothing goes: first of the same user, who
    /// has half of the places, then of all.
    pub(super) fn admit(
        &self,
        uid: u32,
        pid: Option<i32>,
        most: usize,
    ) -> Result<(u64, oneshot::Receiver<()>), Refusal> {
        let mut table = self.lock();
        for (limit, own) in [(most / 2, true), (most, false)] {
            let counts = |client: &Client| !own || client.uid == uid;
            while table.clients.values().filter(|client| counts(client)).count() >= limit {
                let idle = table.clients.iter().find(|(_, client)| counts(client) && client.leases.is_empty());
                let Some(number) = idle.map(|(number, _)| *number) else {
                    let message = format!("{limit} connections are open, and each holds a shard; close one");
                    return Err(Refusal::new(ErrorCode::TooManyClients, message));
                };
                table.clients.remove(&number);
            }
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
        };
        client.leases.insert(number, lease);
        table.last_lease = number;
        Ok(number)
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
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
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
        }
    }
}
