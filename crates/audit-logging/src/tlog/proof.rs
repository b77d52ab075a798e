//! Proofs to carry away: C2SP `tlog-proof`, one text that shows an entry to be in a log, checked without any network.

use std::fmt;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::checkpoint::{Checkpoint, CheckpointError};
use super::note::{NoteError, SignedNote, Verified, VerifierKey};
use super::source::{Source, SourceError};
use super::tree::{self, Hash, MAX_SIZE, TreeError};

/// The first line.
const MAGIC: &str = "c2sp.org/tlog-proof@v1";
/// Bytes of a proof, at most.
pub const MAX_PROOF: usize = 512 << 10;
/// Hashes of a proof in a tree of 2^40 entries.
const MAX_HASHES: usize = 40;

/// A proof that an entry is in a log. Its text is the content of a `.tlog-proof` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Data that nothing protects. Never trust it.
    pub extra: Option<Vec<u8>>,
    /// The entry's place in the log, from 0.
    pub index: u64,
    /// From the entry's sibling up to the root's child.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint, cosigned or not.
    pub checkpoint: SignedNote,
}

/// What a proof that holds shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The state of the log that the entry belongs to.
    pub checkpoint: Checkpoint,
    /// The witnesses that saw this state, and when.
    pub cosignatures: Vec<Verified>,
}

/// Why a proof was not made or does not hold.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The text is no proof.
    #[error("this is no tlog-proof: {what}; ask for the file again")]
    Malformed {
        /// What does not fit.
        what: &'static str,
    },
    /// The log has no checkpoint.
    #[error("the published log has no checkpoint: nothing in it can be proven yet; wait a second, or check the path")]
    NoCheckpoint,
    /// The checkpoint is not accepted.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Fewer witnesses than asked for saw the checkpoint.
    #[error("{found} of the known witnesses cosigned and {quorum} are asked for: wait for more, or ask for fewer")]
    Quorum {
        /// Valid cosignatures of known witnesses.
        found: usize,
        /// How many are asked for.
        quorum: usize,
    },
    /// The entry is not in the tree, or the tiles are not in order.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The log cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Proves that the entry with this index is in the published log: under the cosigned checkpoint if that covers it, else
/// under the newest.
///
/// # Errors
/// [`ProofError`]: there is no checkpoint, it is not signed by one of these keys, it does not cover the entry, or the
/// tiles do not fit it.
pub fn prove(source: &dyn Source, log_keys: &[VerifierKey], index: u64) -> Result<Proof, ProofError> {
    let mut chosen = None;
    for name in ["cosigned", "checkpoint"] {
        if let Some(bytes) = source.get(name)? {
            let (checkpoint, note) = Checkpoint::verify(&bytes, log_keys)?;
            let covers = index < checkpoint.size;
            chosen = Some((checkpoint, note));
            if covers {
                break;
            }
        }
    }
    let (checkpoint, note) = chosen.ok_or(ProofError::NoCheckpoint)?;
    let hashes = tree::prove_inclusion(source, checkpoint.size, checkpoint.root, index)?;
    Ok(Proof { extra: None, index, hashes, checkpoint: note })
}

impl Proof {
    /// Reads a proof of at most [`MAX_PROOF`] bytes. Nothing of it is verified yet.
    ///
    /// # Errors
    /// [`ProofError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofError> {
        let malformed = |what| ProofError::Malformed { what };
        if bytes.len() > MAX_PROOF {
            return Err(malformed("it is larger than any proof"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is no UTF-8"))?;
        let (head, note) = text.split_once("\n\n").ok_or(malformed("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(MAGIC) {
            return Err(malformed("its first line is not c2sp.org/tlog-proof@v1"));
        }
        let mut line = lines.next();
        let mut extra = None;
        if let Some(text) = line.and_then(|line| line.strip_prefix("extra ")) {
            extra = Some(BASE64_STANDARD.decode(text).map_err(|_| malformed("the extra line is no base64"))?);
            line = lines.next();
        }
        let digits = line.and_then(|line| line.strip_prefix("index ")).ok_or(malformed("the index line is missing"))?;
        let index: u64 = digits.parse().map_err(|_| malformed("the index is no number"))?;
        if index.to_string() != digits || index >= MAX_SIZE {
            return Err(malformed("the index is written in another way, or beyond any log"));
        }
        let mut hashes = Vec::new();
        for line in lines {
            if hashes.len() >= MAX_HASHES {
                return Err(malformed("it has more hashes than any proof"));
            }
            hashes.push(Hash::parse(line).ok_or(malformed("a line of the proof is no hash"))?);
        }
        let checkpoint = SignedNote::parse(note.as_bytes()).map_err(CheckpointError::from)?;
        Ok(Self { extra, index, hashes, checkpoint })
    }

    /// Checks that this entry, given as its bytes in the log, is in the log of one of these keys, and that at least
    /// `quorum` of these witnesses cosigned.
    ///
    /// # Errors
    /// [`ProofError`]: it does not show that.
    pub fn check(
        &self,
        entry: &[u8],
        log_keys: &[VerifierKey],
        witness_keys: &[VerifierKey],
        quorum: usize,
    ) -> Result<Proven, ProofError> {
        let (checkpoint, note) = Checkpoint::verify(&self.checkpoint.to_bytes(), log_keys)?;
        let cosignatures = note.cosignatures(witness_keys).map_err(CheckpointError::from)?;
        if cosignatures.len() < quorum {
            return Err(ProofError::Quorum { found: cosignatures.len(), quorum });
        }
        tree::check_inclusion(&self.hashes, checkpoint.size, checkpoint.root, self.index, tree::leaf_hash(entry))?;
        Ok(Proven { checkpoint, cosignatures })
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", BASE64_STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{hash}")?;
        }
        f.write_str("\n")?;
        f.write_str(&String::from_utf8_lossy(&self.checkpoint.to_bytes()))
    }
}

impl From<NoteError> for ProofError {
    fn from(error: NoteError) -> Self {
        ProofError::Checkpoint(CheckpointError::Note(error))
    }
}
