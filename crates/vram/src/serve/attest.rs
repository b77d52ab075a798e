//! Attesting: verify now, and sign for what was found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use vram_residency::attest::statement::{LogPosition, Software};
use vram_residency::attest::{AttestRequest, Attestation, Fresh, Nonce};
use vram_residency::json::Object;
use vram_residency::{ShardId, VramManager};

use super::keepers::Keeper;
use super::registry::Registry;
use crate::exit::Failure;
use crate::state;

/// `POST /v1/attest`: an object with these fields, and nothing else.
pub(super) type AttestBody = Object<Asked>;

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    nonce: String,
    /// None: every shard.
    #[serde(default)]
    shards: Vec<String>,
}

/// The key that signs, read when it is needed: it is in memory no longer than that.
#[derive(Debug, Clone)]
pub(super) struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// Where the key is. One that was named must be usable now.
    pub(super) fn find(named: Option<&Path>) -> Result<Self, Failure> {
        let (path, _) = state::attest_key_path(named)?;
        if named.is_some() {
            state::attest_key(&path)?;
        }
        Ok(Self { path })
    }

    /// Why the key that is there cannot be used, if it cannot.
    pub(super) fn problem(&self) -> Option<String> {
        if state::is_absent(&self.path) {
            return None;
        }
        state::attest_key(&self.path).err().map(|failure| failure.message)
    }
}

impl Registry {
    /// Verifies shards now and signs for them. Nobody else verifies meanwhile.
    pub(super) fn attest(&self, key: &KeyFile, Object(body): &AttestBody) -> Result<Attestation, Failure> {
        let nonce: Nonce = body.nonce.parse().map_err(|error| Failure::usage(format!("{error}")))?;
        if state::is_absent(&key.path) {
            let make = state::make_attest_key(&key.path);
            let message = format!("this daemon has no key to attest with; make it with: {make}");
            return Err(Failure::new("no-key", message));
        }
        let key = state::attest_key(&key.path)?;
        let mut ids = Vec::new();
        for text in &body.shards {
            let id = ShardId::new(text).map_err(|error| Failure::usage(error.to_string()))?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if ids.is_empty() {
            ids = self.ids();
        }
        if ids.is_empty() {
            return Err(Failure::new(
                "no-shard",
                "no shard is resident, so there is nothing to attest; load one first",
            ));
        }
        let named = ids.iter().map(|id| self.sealed_with_path(id)).collect::<Result<Vec<_>, _>>()?;
        // Only those that hold what is asked for: what is wrong with others is of no concern.
        let holds_one = |keeper: &&Arc<Keeper>| named.iter().any(|(shard, _)| keeper.manager.holds(shard));
        let keepers: Vec<_> = self.keepers().iter().filter(holds_one).collect();
        let _turns = keepers.iter().map(|keeper| keeper.begin_verifying()).collect::<Result<Vec<_>, _>>()?;
        let mut shards = Vec::with_capacity(named.len());
        for (shard, path) in named {
            let verified = self.verify_shard(&shard)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().replace(char::is_control, "\u{fffd}");
            shards.push(Fresh { shard, verified, name });
        }
        let software = Software { name: "vram".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let request = AttestRequest { nonce: &nonce, software, shards: &shards };
        let managers: Vec<_> = keepers.iter().map(|keeper| &keeper.manager).collect();
        Ok(VramManager::attest_all(&managers, &request, &key, &|| self.position())?)
    }

    /// Where the audit log is, where there is one.
    fn position(&self) -> Option<LogPosition> {
        let status = self.manager().trail().log_status()?;
        let checkpoint = self.evidence().and_then(|evidence| evidence.checkpoint(status.records));
        Some(LogPosition { sequence: status.durable, checkpoint })
    }
}
