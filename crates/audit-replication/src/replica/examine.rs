//! What a replica already has, held against the node before anything is written.

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::source::Source;
use audit_logging::tlog::tree::{check_consistency, prove_consistency};
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::{Newest, Trouble, kept_at, object, within};
use crate::node::Node;
use crate::put::read;
use crate::store::Store;

/// The size up to which the replica has everything, or why nothing may be written there.
///
/// Both are looked at: `checkpoint`, and the checkpoints that are kept for good, because the first can be overwritten by
/// whoever may write to the store, and the others, where there is object lock, cannot.
pub(super) async fn examine(
    node: &dyn Node,
    source: &dyn Source,
    store: &Store,
    ours: &Newest,
) -> Result<u64, Trouble> {
    let limit = object(&kept_at(ours.checkpoint.size));
    let larger = within(async {
        let mut listed = store.inner.list_with_offset(Some(&object("checkpoints")), &limit);
        Ok(listed.try_next().await?)
    });
    if let Some(larger) = larger.await? {
        let bytes = within(async { Ok(read(&*store.inner, &larger.location).await?) }).await?.unwrap_or_default();
        judge(node, source, larger.location.as_ref(), &bytes, ours)?;
    }
    match within(async { Ok(read(&*store.inner, &object("checkpoint")).await?) }).await? {
        None => Ok(0),
        Some(bytes) => judge(node, source, "checkpoint", &bytes, ours),
    }
}

/// The size of a checkpoint that leads to ours. A consistency proof needs no signature; only what does not fit is asked
/// who signed it: this log's key means that the node was set back, anything else that somebody else writes there.
fn judge(node: &dyn Node, source: &dyn Source, name: &str, bytes: &Bytes, ours: &Newest) -> Result<u64, Trouble> {
    let ours = &ours.checkpoint;
    let conflict = || Trouble::Conflict { object: name.to_owned() };
    let note = audit_logging::tlog::note::SignedNote::parse(bytes).map_err(|_| conflict())?;
    let theirs = Checkpoint::parse(note.text()).map_err(|_| conflict())?;
    if theirs.origin != ours.origin {
        return Err(conflict());
    }
    if theirs.size <= ours.size {
        let proof = prove_consistency(source, theirs.size, ours.size, ours.root)
            .map_err(|error| Trouble::Missing(format!("what proves the replica's checkpoint ({error})")))?;
        if check_consistency(&proof, theirs.size, theirs.root, ours.size, ours.root).is_ok() {
            return Ok(theirs.size);
        }
    }
    match Checkpoint::verify(bytes, &node.log_keys()) {
        Ok(_) => {
            node.contradicted(bytes);
            Err(Trouble::Rollback { theirs: theirs.size, ours: ours.size })
        }
        Err(_) => Err(conflict()),
    }
}
