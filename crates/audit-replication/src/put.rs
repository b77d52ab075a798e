//! Writing to a store what must never change there.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

/// How often an object that "already exists" and is not there is tried again at once.
const ROUNDS: u32 = 3;
/// No published object is larger: 256 entries of 65,535 bytes, each with its length.
pub(crate) const LARGEST: u64 = 256 * (65_535 + 2);

/// How an immutable object got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It was written now.
    Created,
    /// It was there, with the same bytes.
    Same,
}

/// Why an immutable object is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// It is there, with other bytes. They were left as they are.
    #[error("{path} is there with other bytes, and what was published never changes")]
    Conflict { path: Path, theirs: Bytes },
    /// The store says in turn that it is there and that it is not.
    #[error("{path} could not be written: the store says that it exists and that it does not")]
    Unsettled { path: Path },
    /// The store did not do it.
    #[error("{0}")]
    Store(#[from] Error),
}

/// Whether a store's conditional writes can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It refuses to create what exists.
    Honoured,
    /// It overwrites: we look before we write, which is all that can be done there.
    Ignored,
}

/// Creates an object, or finds it there with the same bytes.
///
/// "Already exists" is never believed by itself: it may be our own write whose answer was lost, a race in which nothing
/// was stored, or other bytes.
pub(crate) async fn create(
    store: &dyn ObjectStore,
    path: &Path,
    bytes: &Bytes,
    condition: Condition,
) -> Result<Put, PutError> {
    for _ in 0..ROUNDS {
        if condition == Condition::Ignored
            && let Some(there) = read(store, path).await?
        {
            return compare(path, bytes, there);
        }
        let mode = match condition {
            Condition::Honoured => PutMode::Create,
            Condition::Ignored => PutMode::Overwrite,
        };
        match store.put_opts(path, PutPayload::from_bytes(bytes.clone()), PutOptions::from(mode)).await {
            Ok(_) => return Ok(Put::Created),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(there) = read(store, path).await? {
            return compare(path, bytes, there);
        }
    }
    Err(PutError::Unsettled { path: path.clone() })
}

fn compare(path: &Path, ours: &Bytes, theirs: Bytes) -> Result<Put, PutError> {
    if theirs == ours { Ok(Put::Same) } else { Err(PutError::Conflict { path: path.clone(), theirs }) }
}

/// The object's bytes, if it is there. Of one that is larger than anything published only an empty rest is read: memory
/// is not the store's to spend.
pub(crate) async fn read(store: &dyn ObjectStore, path: &Path) -> Result<Option<Bytes>, Error> {
    match store.get(path).await {
        Ok(found) if found.meta.size > LARGEST => Ok(Some(Bytes::new())),
        Ok(found) => Ok(Some(found.bytes().await?)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
