//! What a store really does, tried out before anything relies on it.
//!
//! Stores differ where it matters most: some ignore the condition of a conditional write and answer "done", some check
//! and then act, some accept a retention and delete all the same. So each start tries it: an object is created twice, one
//! is created by 32 at once, and, where the store is said to have object lock, one version is deleted. Two winners are
//! proof of a fault; one winner is no proof of the opposite.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde_json::{Value, json};

use crate::http::{HttpError, client, send};
use crate::put::{Condition, read};
use crate::store::Store;

/// How many write one object at once.
pub const RACERS: u32 = 32;
/// How long the deletion of a version may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a signed request is good for.
const SIGNED_FOR: Duration = Duration::from_secs(60);

/// What was found out about a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whether creating an object that exists was refused, and the first bytes stayed.
    pub conditional_create: bool,
    /// How many of [`RACERS`] that created one object at once were told that they did.
    pub winners: u32,
    /// What became of the attempt to delete a version.
    pub object_lock: Lock,
}

/// Whether a version can be deleted.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It was not tried: nobody said that the store has object lock.
    NotTried,
    /// Deleting the version was denied, and it can still be read.
    Denied,
    /// The version was deleted: there is no lock, or these credentials may pass it.
    Deleted,
    /// The store keeps no versions.
    NoVersions,
}

impl Lock {
    /// In one word, as in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotTried => "not-tried",
            Self::Denied => "denied",
            Self::Deleted => "deleted",
            Self::NoVersions => "no-versions",
        }
    }
}

impl Probe {
    /// Whether an object, once written, cannot be replaced by another conditional write, as far as was seen.
    #[must_use]
    pub fn writes_once(&self) -> bool {
        self.conditional_create && self.winners == 1
    }

    pub(crate) fn condition(&self) -> Condition {
        if self.writes_once() { Condition::Honoured } else { Condition::Ignored }
    }

    /// Whether the store keeps what the configuration says of it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.writes_once() && matches!(self.object_lock, Lock::NotTried | Lock::Denied)
    }

    /// The record of it.
    pub(crate) fn leaf(&self, store: &str) -> Value {
        json!({
            "log": "probe",
            "store": store,
            "conditional_create": if self.conditional_create { "honoured" } else { "ignored" },
            "racers": RACERS,
            "winners": self.winners,
            "object_lock": self.object_lock.as_str(),
        })
    }
}

/// Why a store could not be tried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("{0}")]
    Store(#[from] Error),
    #[error("what was just written cannot be read")]
    Lost,
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("the deletion of a version was answered with HTTP {0}")]
    Deletion(u16),
}

/// Tries a store out, in a place of its own below `probe/`, and clears that up as far as the store lets it.
pub(crate) async fn probe(store: &Store, lock: bool) -> Result<Probe, ProbeError> {
    let mut random = [0; 8];
    let _ = getrandom::fill(&mut random);
    let home = format!("probe/{:016x}", u64::from_le_bytes(random));
    let (twice, race) = (Path::from(format!("{home}/twice")), Path::from(format!("{home}/race")));
    let inner = &*store.inner;

    let first = put(inner, &twice, b"first").await?;
    let second = put(inner, &twice, b"second").await;
    let kept = read(inner, &twice).await?.ok_or(ProbeError::Lost)?;
    let conditional_create = match second {
        Ok(_) => false,
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => kept == "first",
        Err(error) => return Err(error.into()),
    };

    let racers = (0..RACERS).map(|racer| {
        let race = &race;
        async move { put(inner, race, racer.to_string().as_bytes()).await }
    });
    let mut winners = 0_u32;
    for outcome in join_all(racers).await {
        match outcome {
            Ok(_) => winners = winners.saturating_add(1),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }

    let object_lock = match lock {
        true => delete_version(store, &twice, first.version).await?,
        false => Lock::NotTried,
    };
    for path in [&twice, &race] {
        // Denied is what one hopes for, in a store with object lock.
        let _ = inner.delete(path).await;
    }
    Ok(Probe { conditional_create, winners, object_lock })
}

async fn put(store: &dyn ObjectStore, path: &Path, bytes: &[u8]) -> Result<object_store::PutResult, Error> {
    let payload = PutPayload::from_bytes(Bytes::copy_from_slice(bytes));
    store.put_opts(path, payload, PutOptions::from(PutMode::Create)).await
}

/// Deleting an object proves nothing where versions are kept: it only hides it. So one version is named.
async fn delete_version(store: &Store, path: &Path, version: Option<String>) -> Result<Lock, ProbeError> {
    let (Some(versions), Some(version)) = (&store.versions, version) else { return Ok(Lock::NoVersions) };
    let query = SignedUrlOptions::new().with_query([("versionId", version.clone())]);
    let url = versions.s3.signed_url_opts(Method::DELETE, &versions.whole(path), SIGNED_FOR, &query).await?;
    let status = send(&client(TIMEOUT)?, Method::DELETE, url, Vec::new()).await?.status;
    let options = object_store::GetOptions { version: Some(version), ..object_store::GetOptions::default() };
    let there = match store.inner.get_opts(path, options).await {
        Ok(_) => true,
        Err(Error::NotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    match status {
        _ if !there => Ok(Lock::Deleted),
        401 | 403 | 405 | 409 => Ok(Lock::Denied),
        200..=299 => Ok(Lock::Deleted),
        other => Err(ProbeError::Deletion(other)),
    }
}
