//! Which shards are lent to other processes, and what keeps one from being given up.

use std::time::Duration;

use vram_residency::handout::ErrorCode;
use vram_residency::{HandoutEvent, SealedShard, ShardId};

use super::{Held, Registry, lock};
use crate::exit::Failure;
use crate::serve::handout::{Gone, Leases, Refusal, Rules, Which};

impl Registry {
    pub(in crate::serve) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Who this is, and within which time every block is checked.
    pub(in crate::serve) fn introduce(&self) -> (String, Duration) {
        (self.manager.worker_id().to_string(), self.period)
    }

    pub(in crate::serve) fn record_handout(&self, event: HandoutEvent<'_>) -> Result<(), Failure> {
        Ok(self.manager.record_handout(event)?)
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
    ) -> Result<(SealedShard, u64), Refusal> {
        let places = lock(&self.places);
        let matching = places.iter().filter(|(shard_id, place)| match (which, &place.held) {
            (Which::Digest(digest), Held::Sealed(shard)) => shard.digest() == *digest,
            (Which::Digest(_), _) => false,
            (Which::Name(name), Held::Sealed(shard)) => shard_id.as_str() == name || is_called(shard, name),
            (Which::Name(name), _) => shard_id.as_str() == name,
        });
        let mut matching: Vec<_> = matching.collect();
        if let Which::Name(name) = which {
            // An id is one shard's alone; models may share a name.
            if let Some(exact) = matching.iter().position(|(shard_id, _)| shard_id.as_str() == name) {
                matching = vec![matching.swap_remove(exact)];
            }
            if matching.len() > 1 {
                let ids: Vec<_> = matching.iter().take(8).map(|(shard_id, _)| shard_id.as_str()).collect();
                let message =
                    format!("{} shards are called so: {}; ask for one by its id", matching.len(), ids.join(", "));
                return Err(Refusal::new(ErrorCode::Ambiguous, message));
            }
        }
        let mut refused = None;
        for (shard_id, place) in matching {
            let refusal = match &place.held {
                Held::Sealed(shard) => match self.lend_this(shard, rules, client) {
                    Ok(lease) => return Ok((shard.clone(), lease)),
                    Err(refusal) => refusal,
                },
                Held::Unsealed(_) | Held::Busy => {
                    let message = format!("'{shard_id}' is unsealed, to be changed; wait until it is sealed again");
                    Refusal::new(ErrorCode::Unsealed, message)
                }
            };
            refused = Some(refusal.of(*shard_id));
        }
        let message = "there is no such shard; ask for a list, or vram status";
        Err(refused.unwrap_or_else(|| Refusal::new(ErrorCode::UnknownShard, message)))
    }

    fn lend_this(&self, shard: &SealedShard, rules: &Rules, client: u64) -> Result<u64, Refusal> {
        rules.check_digest(shard.digest())?;
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
    pub(super) fn record_revoked(&self, gone: &[Gone]) {
        for lease in gone {
            self.record_detached(lease, "revoked");
        }
    }
}

/// Whether a shard's model is called so: as a whole, or by the last part of its path.
fn is_called(shard: &SealedShard, name: &str) -> bool {
    let model = shard.model_ref();
    model == name || model.rsplit('/').next() == Some(name)
}
