//! Pairs of a file's two hashes that this worker computed in one pass, and recorded: with them, a SHA-256 that was approved
//! before needs no second pass.
//!
//! A pair counts where the log is intact and the pair's tag is this worker's: HMAC-SHA256 under the seal key over both
//! hashes and the length. So whoever can write into the log, and does not have the seal key, cannot have another
//! model taken for an approved one.

use std::collections::HashMap;
use std::path::Path;

use audit_logging::{Kind, reader};
use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use crate::digest::{Digest, Expected};
use crate::seal::SealKey;

/// Pairs from a log.
#[derive(Debug, Default)]
pub struct Remembered {
    pairs: HashMap<[u8; 32], Digest>,
}

/// The fields of a record that matter here.
#[derive(Deserialize)]
struct Leaf {
    event: String,
    worker_id: String,
    bytes: u64,
    digest: String,
    sha256: Option<String>,
    pair: Option<String>,
}

impl Remembered {
    /// Reads the pairs that a worker recorded. None where the log is not there or not intact: then everything is
    /// computed anew.
    #[must_use]
    pub fn read(dir: &Path, worker_id: &str, key: &SealKey) -> Self {
        if !reader::verify(dir).is_ok_and(|report| report.is_intact()) {
            tracing::warn!("the audit log is not there or not intact; what was approved before is hashed again");
            return Self::default();
        }
        let records = reader::records(dir).into_iter().flatten().map_while(Result::ok);
        let events = records.filter(|record| record.kind == Kind::Event);
        let pairs = events.filter_map(|record| pair(&record.leaf, worker_id, key));
        Self { pairs: pairs.collect() }
    }

    /// The digest that belongs to what is expected, where that is a SHA-256 that was computed before.
    #[must_use]
    pub fn digest_of(&self, expected: Expected) -> Option<Digest> {
        match expected {
            Expected::Sha256(sha256) => self.pairs.get(&sha256).copied(),
            Expected::Blake3(_) => None,
        }
    }
}

fn pair(leaf: &[u8], worker_id: &str, key: &SealKey) -> Option<([u8; 32], Digest)> {
    const NAME: &[u8] = b"\"ShardApproved\"";
    // Most records are of other events, and need not be taken apart.
    if !leaf.windows(NAME.len()).any(|part| part == NAME) {
        return None;
    }
    let leaf: Leaf = serde_json::from_slice(leaf).ok()?;
    if leaf.event != "ShardApproved" || leaf.worker_id != worker_id {
        return None;
    }
    let Ok(Expected::Sha256(sha256)) = leaf.sha256?.parse() else { return None };
    let digest: Digest = leaf.digest.parse().ok()?;
    let tag: Expected = format!("sha256:{}", leaf.pair?).parse().ok()?;
    let Expected::Sha256(tag) = tag else { return None };
    let ours = key.pair_tag(&sha256, &digest, leaf.bytes);
    bool::from(ours.ct_eq(&tag)).then_some((sha256, digest))
}
