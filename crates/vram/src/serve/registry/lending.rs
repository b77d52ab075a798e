//! Which shards are lent to other processes, and what keeps one from being given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use vram_residency::device::Export;
use vram_residency::handout::ErrorCode;
use vram_residency::{Error, SealedShard, ShardId};

use super::{Held, Place, Registry};
use crate::exit::Failure;
use crate::serve::handout::{Gone, Leases, Refusal, Rules, TableFrame, Which};
use crate::serve::keepers::Keeper;
use crate::serve::lock::lock;

/// Ids that a refusal names, at most.
const SHOWN: usize = 8;

impl Registry {
    pub(in crate::serve) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Who this is, and within which time every block is checked.
    pub(in crate::serve) fn introduce(&self) -> (String, Duration) {
        (self.manager().worker_id().to_string(), self.period)
    }

    /// Has a shard's device hand its memory out, on record.
    pub(in crate::serve) fn hand_out(&self, shard: &SealedShard, client: u64, lease: u64) -> Result<Export, Error> {
        self.keepers.of(shard).manager.hand_out(shard, client, lease)
    }

    /// The sealed shards that may be lent, however they stand.
    pub(in crate::serve) fn lendable(&self, rules: &Rules) -> Vec<SealedShard> {
        let places = lock(&self.places);
        let sealed = places.values().filter_map(|place| match &place.held {
            Held::Sealed(shard) if rules.allows(shard.digest()) => Some(shard.clone()),
            _ => None,
        });
        sealed.collect()
    }

    /// Lends a shard that is fresh: sealed or verified, on record, every block checked within two periods. The lease is
    /// made before anybody can give the shard up.
    pub(in crate::serve) fn lend(
        &self,
        which: &Which,
        rules: &Rules,
        client: u64,
    ) -> Result<(SealedShard, u64, Arc<TableFrame>), Refusal> {
        let places = lock(&self.places);
        let matching = match which {
            Which::Digest(digest) => {
                let is_it = |place: &Place| matches!(&place.held, Held::Sealed(shard) if shard.digest() == *digest);
                places.iter().filter(|(_, place)| is_it(place)).collect()
            }
            Which::Name(name) => {
                let called = called(&places, name);
                let sealed = |place: &Place| matches!(place.held, Held::Sealed(_));
                match &*called {
                    // One that is named as it is called, and is not for this client: he is told that much.
                    [(_, place)] if sealed(place) => called,
                    // Of what he may not have, nothing is told: neither that it is there nor that others are.
                    _ => called.into_iter().filter(|(_, place)| place.is_allowed(rules)).collect(),
                }
            }
        };
        if matches!(which, Which::Name(_)) && matching.len() > 1 {
            let message = format!("several shards are called so: {}; ask for one by its id", ids(&matching));
            return Err(Refusal::new(ErrorCode::Ambiguous, message));
        }
        let mut refused = None;
        for (shard_id, place) in matching {
            let refusal = match &place.held {
                Held::Sealed(shard) => match self.lend_this(shard, &place.table, rules, client) {
                    Ok(lease) => return Ok((shard.clone(), lease, Arc::clone(&place.table))),
                    Err(refusal) => refusal,
                },
                Held::Unsealed(_) | Held::Busy => {
                    let message = format!("'{shard_id}' is unsealed, to be changed; wait until it is sealed again");
                    Refusal::new(ErrorCode::Unsealed, message)
                }
            };
            refused = Some(refusal.of(*shard_id));
        }
        Err(refused.unwrap_or_else(|| {
            let sealed = |place: &Place| matches!(place.held, Held::Sealed(_)) && place.is_allowed(rules);
            let all: Vec<_> = places.iter().filter(|(_, place)| sealed(place)).collect();
            let message = match (which, ids(&all)) {
                (Which::Name(name), _) if name.starts_with("sha256:") => {
                    "shards are asked for by blake3:HEX, not by SHA-256; vram status shows their digests".to_owned()
                }
                (_, ids) if ids.is_empty() => "there is no such shard, nor any other that you may have".to_owned(),
                (_, ids) => format!("there is no such shard; there are: {ids}"),
            };
            Refusal::new(ErrorCode::UnknownShard, message)
        }))
    }

    fn lend_this(&self, shard: &SealedShard, table: &TableFrame, rules: &Rules, client: u64) -> Result<u64, Refusal> {
        rules.check_digest(shard.digest())?;
        if let Some(problem) = table.problem() {
            let message = format!("'{}' cannot be handed out: {problem}", shard.shard_id());
            return Err(Refusal::new(ErrorCode::Device, message));
        }
        let fresh = shard.ensure_fresh(self.period.saturating_mul(2));
        fresh.map_err(|error| {
            Refusal::new(ErrorCode::NotVerified, format!("'{}' is not handed out: {error}", shard.shard_id()))
        })?;
        self.leases.add(client, shard)
    }

    /// Sees that nobody holds a shard that is to be given up, or ends their leases by force. Called with the places
    /// locked, so that nobody takes one meanwhile.
    pub(super) fn vacate(&self, shard_id: &ShardId, force: bool) -> Result<Vec<Gone>, Failure> {
        self.leases.vacate(shard_id, force).map_err(|count| {
            let leases = crate::jobs::count(count, "lease");
            let message = format!(
                "'{shard_id}' is in use: clients hold {leases} of it; end them (vram status shows whose they are), or \
                 add --force: they keep the memory, and are told that nobody checks it any more"
            );
            Failure::new("leased", message)
        })
    }

    /// Records the leases that were ended by force.
    pub(super) fn record_revoked(&self, keeper: &Keeper, gone: &[Gone]) {
        for lease in gone {
            lease.record(&keeper.manager, "revoked");
        }
    }
}

/// The shards that are called so: the one with that id, else those of a model with that name, as a whole or by the last
/// part of its path, else those whose files have that name.
fn called<'a>(places: &'a BTreeMap<ShardId, Place>, name: &str) -> Vec<(&'a ShardId, &'a Place)> {
    let of_model = |place: &Place| match &place.held {
        Held::Sealed(shard) => shard.model_ref() == name || shard.model_ref().rsplit('/').next() == Some(name),
        Held::Unsealed(_) | Held::Busy => false,
    };
    let by_file = |place: &Place| place.path.file_name().is_some_and(|file| file == name);
    if let Some(exact) = places.iter().find(|(shard_id, _)| shard_id.as_str() == name) {
        return vec![exact];
    }
    let of_models: Vec<_> = places.iter().filter(|(_, place)| of_model(place)).collect();
    if of_models.is_empty() { places.iter().filter(|(_, place)| by_file(place)).collect() } else { of_models }
}

impl Place {
    /// Whether the clients may have it, or could while it was sealed.
    fn is_allowed(&self, rules: &Rules) -> bool {
        match &self.held {
            Held::Sealed(shard) => rules.allows(shard.digest()),
            Held::Unsealed(unsealed) => rules.allows(unsealed.previous()),
            Held::Busy => rules.allows_all(),
        }
    }
}

/// A few ids.
fn ids(places: &[(&ShardId, &Place)]) -> String {
    let shown: Vec<&str> = places.iter().take(SHOWN).map(|(shard_id, _)| shard_id.as_str()).collect();
    match places.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
