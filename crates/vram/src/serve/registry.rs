//! The shards that the daemon holds, and what can be done with them. Everything here may block; nothing here is HTTP.

mod lending;
mod loading;
mod verify;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use vram_residency::actor::{Acting, SubjectKey};
use vram_residency::digest::BLOCK_BYTES;
use vram_residency::model::{Format, ModelFile};
use vram_residency::{RepairReport, SealRequest, SealedShard, ServiceEvent, ShardId, Unsealed, VramManager};

use super::blocks::Maps;
use super::changes::Changes;
use super::config::Settings;
use super::evidence::{Evidence, Plan};
use super::handout::{Leases, TableFrame};
use super::keepers::{Keeper, Keepers};
use super::lock::lock;
use super::recent::Recent;
use super::report::{Drilled, Released, ShardView, UnsealedView};
use super::retention::Retention;
use super::since::Since;
use crate::approve::{ApprovalView, Approved};
use crate::exit::Failure;
use crate::jobs;
use crate::session::Trail;

/// One shard's place.
struct Place {
    /// Which device holds it.
    keeper: Arc<Keeper>,
    held: Held,
    path: PathBuf,
    format: Format,
    /// What a manifest says of it, where one does.
    approved: Option<Approved>,
    /// Bytes that were hashed with SHA-256 when it was loaded.
    sha256_bytes: u64,
    /// What clients are sent of its tensors.
    table: Arc<TableFrame>,
}

impl Place {
    fn approval(&self) -> Option<ApprovalView> {
        self.approved.as_ref().map(|approved| approved.view(self.sha256_bytes))
    }

    /// What is told of its shard beside what the shard itself says.
    fn about(&self) -> About {
        About { approval: self.approval(), not_attachable: self.table.problem() }
    }
}

/// See [`Place::about`].
#[derive(Default)]
struct About {
    approval: Option<ApprovalView>,
    not_attachable: Option<String>,
}

enum Held {
    Sealed(SealedShard),
    Unsealed(Box<Unsealed>),
    /// Somebody unseals or reseals it just now.
    Busy,
}

pub(crate) struct Registry {
    keepers: Keepers,
    places: Mutex<BTreeMap<ShardId, Place>>,
    changes: Changes,
    audit_dir: PathBuf,
    /// Who has which shards.
    leases: Leases,
    /// Where the log is signed, and what prunes it.
    evidence: OnceLock<(Arc<Evidence>, Option<Retention>)>,
    /// Without it nothing is recorded of who gives an order.
    subject_key: Option<SubjectKey>,
    allow_drill: bool,
    require_approval: bool,
    period: Duration,
    recent: Arc<Recent>,
    maps: Maps,
    since: Since,
}

impl Registry {
    pub(super) fn new(
        keepers: Keepers,
        settings: &Settings,
        trail: &Trail,
        subject_key: Option<SubjectKey>,
        recent: Arc<Recent>,
    ) -> Self {
        Self {
            keepers,
            places: Mutex::default(),
            changes: Changes::default(),
            audit_dir: trail.dir.clone(),
            leases: Leases::default(),
            evidence: OnceLock::new(),
            subject_key,
            allow_drill: settings.allow_drill,
            require_approval: settings.require_approval,
            period: settings.period,
            recent,
            maps: Maps::default(),
            since: Since::default(),
        }
    }

    /// Until this is dropped, what the thread records names the user as who ordered it, by commitment.
    pub(super) fn acting_for(&self, uid: u32) -> Acting {
        Acting::begin(self.subject_key.as_ref().map(|key| key.user(uid)))
    }

    pub(super) fn record_command(&self, command: &'static str, shard_id: Option<&ShardId>) -> Result<(), Failure> {
        Ok(self.keeper_of(shard_id).manager.record_command(command, shard_id)?)
    }

    /// Gives a shard back, sealed or not: one that clients hold only by force.
    pub(super) fn release(&self, shard_id: &ShardId, force: bool) -> Result<Released, Failure> {
        let _turn = self.changes.begin()?;
        let (place, revoked) = {
            let mut places = lock(&self.places);
            if !places.contains_key(shard_id) {
                return Err(unknown(shard_id));
            }
            let revoked = self.vacate(shard_id, force)?;
            (places.remove(shard_id).ok_or_else(|| unknown(shard_id))?, revoked)
        };
        self.record_revoked(&place.keeper, &revoked);
        let released = match &place.held {
            Held::Sealed(shard) => Released::Sealed(Box::new(self.view_with(shard, place.about()))),
            Held::Unsealed(unsealed) => Released::Unsealed(Box::new(unsealed_view(unsealed, &place.keeper))),
            Held::Busy => return Err(busy(shard_id)),
        };
        let keeper = Arc::clone(&place.keeper);
        drop(place);
        self.since.forget(shard_id);
        // The metrics follow at once.
        keeper.scrubber.look();
        Ok(released)
    }

    /// Gives a seal up: that of a shard that clients hold only by force.
    pub(super) fn unseal(&self, shard_id: &ShardId, reason: &str, force: bool) -> Result<UnsealedView, Failure> {
        let _turn = self.changes.begin()?;
        drop(self.sealed(shard_id)?);
        let (held, revoked, keeper) = {
            let mut places = lock(&self.places);
            let place = places.get_mut(shard_id).ok_or_else(|| unknown(shard_id))?;
            let revoked = self.vacate(shard_id, force)?;
            (std::mem::replace(&mut place.held, Held::Busy), revoked, Arc::clone(&place.keeper))
        };
        self.record_revoked(&keeper, &revoked);
        let Held::Sealed(shard) = held else { return Err(unknown(shard_id)) };
        match keeper.manager.unseal(shard, reason) {
            Ok(unsealed) => {
                let view = unsealed_view(&unsealed, &keeper);
                self.replace(shard_id, Held::Unsealed(Box::new(unsealed)))?;
                Ok(view)
            }
            Err(refused) => {
                self.replace(shard_id, Held::Sealed(refused.shard))?;
                Err(refused.error.into())
            }
        }
    }

    pub(super) fn reseal(&self, shard_id: &ShardId, file: Option<&Path>) -> Result<ShardView, Failure> {
        let _turn = self.changes.begin()?;
        let (keeper, path, format, approved) = {
            let places = lock(&self.places);
            let place = places.get(shard_id).ok_or_else(|| unknown(shard_id))?;
            if !matches!(place.held, Held::Unsealed(_)) {
                return Err(Failure::new("shard", format!("'{shard_id}' is sealed; unseal it first, with a reason")));
            }
            let path = file.map_or_else(|| place.path.clone(), Path::to_owned);
            (Arc::clone(&place.keeper), path, place.format, place.approved.clone())
        };
        // Read before anything is given up.
        let file = ModelFile::open(&path, (format == Format::Raw).then_some(Format::Raw))?;
        let Held::Unsealed(unsealed) = self.replace(shard_id, Held::Busy)? else { return Err(unknown(shard_id)) };
        let model_ref = jobs::name_of(&path);
        let stop = || self.changes.are_stopping();
        let mut request = SealRequest::new(*shard_id, &model_ref).unless(&stop);
        // What was approved was these bytes: others take a release, and a load with a manifest of their own.
        if let Some(approved) = &approved {
            request = request.approved(approved.approval());
        }
        let hashed = keeper.manager.sha256_bytes();
        match unsealed.reseal_file(&file, &request) {
            Ok(shard) => {
                let hashed = keeper.manager.sha256_bytes().saturating_sub(hashed);
                let view = self.keep(shard.clone(), &file, approved.clone(), hashed);
                keeper.manager.verify_sealed(&shard)?;
                Ok(ShardView { state: shard.state(), ..view })
            }
            Err(refused) => {
                self.replace(shard_id, Held::Unsealed(Box::new(refused.unsealed)))?;
                let failure = match &approved {
                    Some(approved) => {
                        let remedy = "for other weights, release it and load it with its new manifest";
                        approved.retell(refused.error, &path, remedy)
                    }
                    None => Failure::from(refused.error),
                };
                let message = format!("{}; '{shard_id}' is still unsealed: reseal it or release it", failure.message);
                Err(Failure { message, ..failure })
            }
        }
    }

    /// The names of everything that is held, sealed or not.
    pub(super) fn ids(&self) -> Vec<ShardId> {
        lock(&self.places).keys().copied().collect()
    }

    /// The manager for what is about no device in particular.
    pub(super) fn manager(&self) -> &VramManager {
        &self.keepers.first().manager
    }

    /// Through whom something is recorded: of a shard, the keeper that holds it.
    pub(super) fn keeper_of(&self, shard_id: Option<&ShardId>) -> Arc<Keeper> {
        let places = lock(&self.places);
        let place = shard_id.and_then(|shard_id| places.get(shard_id));
        Arc::clone(place.map_or(self.keepers.first(), |place| &place.keeper))
    }

    /// A failure with the device's name, where there are several and it does not say so itself.
    fn name(&self, failure: Failure, keeper: &Keeper) -> Failure {
        let name = keeper.name();
        match self.keepers.are_several() && !failure.message.contains(&name) {
            true => Failure { message: format!("{name}: {}", failure.message), ..failure },
            false => failure,
        }
    }

    /// What keeps the shards of each device.
    pub(super) fn keepers(&self) -> &Keepers {
        &self.keepers
    }

    pub(super) fn repair(&self, shard_id: &ShardId) -> Result<RepairReport, Failure> {
        let shard = self.sealed(shard_id)?;
        let keeper = self.keepers.of(&shard);
        let report = keeper.scrubber.repair_now(&shard)?;
        match keeper.manager.device_quarantined() {
            None => Ok(report),
            Some(reason) => {
                let blocks = jobs::count(report.repaired.len(), "block");
                let name = keeper.name();
                let message = format!("{blocks} of '{shard_id}' repaired, but {name} is quarantined: {reason}");
                Err(Failure::integrity("device-quarantined", message))
            }
        }
    }

    pub(super) fn drill(&self, shard_id: &ShardId, byte: Option<u64>, bit: Option<u8>) -> Result<Drilled, Failure> {
        if !self.allow_drill {
            let message = "this daemon damages nothing on purpose; start it with --allow-drill for a drill";
            return Err(Failure::new("forbidden", message));
        }
        let shard = self.sealed(shard_id)?;
        if let Some(byte) = byte.filter(|byte| *byte >= shard.bytes()) {
            let bytes = shard.bytes();
            return Err(Failure::usage(format!(
                "'{shard_id}' has no byte {byte}; its {bytes} bytes are counted from 0"
            )));
        }
        let mut random = [0; 9];
        getrandom::fill(&mut random).map_err(|error| Failure::new("system", format!("no random numbers: {error}")))?;
        let [at @ .., which] = random;
        let byte = byte.unwrap_or_else(|| u64::from_le_bytes(at).checked_rem(shard.bytes()).unwrap_or(0));
        let bit = bit.unwrap_or(which & 7);
        self.keepers.of(&shard).manager.inject_fault(&shard, byte, bit)?;
        Ok(Drilled { shard_id: *shard_id, byte, bit, block: byte / BLOCK_BYTES })
    }

    /// From now on no change begins, and what is under way ends.
    pub(super) fn begin_to_stop(&self) {
        self.changes.stop();
    }

    /// Ends the watch, releases every shard, and records that.
    pub(super) fn close(&self, reason: &str) -> Result<(), Failure> {
        // What is under way gives back what it has before the rest is given back.
        let _turn = self.changes.end();
        // All of them first: none is waited for while another goes on.
        self.keepers.iter().for_each(|keeper| keeper.scrubber.begin_to_stop());
        self.keepers.iter().for_each(|keeper| keeper.scrubber.stop());
        lock(&self.places).clear();
        Ok(self.manager().record_service(ServiceEvent::Stopped { reason })?)
    }

    /// From now on the log is signed.
    pub(super) fn sign(&self, evidence: Evidence, plan: &Plan) -> Result<(), Failure> {
        let evidence = Arc::new(evidence);
        let start = |keep| Retention::start(Arc::clone(&evidence), self.audit_dir.clone(), keep);
        let retention = plan.keep().map(start).transpose()?;
        // Only ever once: a log that is signed is not opened again.
        let _ = self.evidence.set((evidence, retention));
        Ok(())
    }

    pub(super) fn evidence(&self) -> Option<&Evidence> {
        self.evidence.get().map(|(evidence, _)| &**evidence)
    }

    /// Brings the metrics of what is signed up to date.
    pub(super) fn show_evidence(&self) {
        if let Some(evidence) = self.evidence() {
            evidence.show();
        }
    }

    /// A shard of which something is to be attested, and the path of its file. One that is not sealed is as bad as a
    /// damaged one here.
    pub(super) fn sealed_with_path(&self, shard_id: &ShardId) -> Result<(SealedShard, PathBuf), Failure> {
        let places = lock(&self.places);
        let place = places.get(shard_id).ok_or_else(|| unknown(shard_id))?;
        match &place.held {
            Held::Sealed(shard) => Ok((shard.clone(), place.path.clone())),
            Held::Unsealed(_) | Held::Busy => Err(Failure::integrity(
                "not-attested",
                format!("'{shard_id}' is not sealed and nothing is attested of it; reseal it or release it"),
            )),
        }
    }

    fn sealed(&self, shard_id: &ShardId) -> Result<SealedShard, Failure> {
        match lock(&self.places).get(shard_id).map(|place| &place.held) {
            Some(Held::Sealed(shard)) => Ok(shard.clone()),
            Some(Held::Unsealed(unsealed)) => Err(Failure::new(
                "shard",
                format!("'{shard_id}' is unsealed ({}); reseal it or release it", unsealed.reason()),
            )),
            Some(Held::Busy) => Err(busy(shard_id)),
            None => Err(unknown(shard_id)),
        }
    }

    fn replace(&self, shard_id: &ShardId, held: Held) -> Result<Held, Failure> {
        let mut places = lock(&self.places);
        let place = places.get_mut(shard_id).ok_or_else(|| unknown(shard_id))?;
        Ok(std::mem::replace(&mut place.held, held))
    }
}

fn unknown(shard_id: &ShardId) -> Failure {
    Failure::new("unknown-shard", format!("there is no shard '{shard_id}'; vram status lists them"))
}

fn busy(shard_id: &ShardId) -> Failure {
    Failure::new("busy", format!("'{shard_id}' is being unsealed or resealed; ask again when that is through"))
}

fn unsealed_view(unsealed: &Unsealed, keeper: &Keeper) -> UnsealedView {
    let (shard_id, bytes, reason) = (*unsealed.shard_id(), unsealed.bytes(), unsealed.reason().to_owned());
    UnsealedView { shard_id, device: keeper.name(), bytes, reason }
}
