//! One question to one witness, and its answer.

use std::fmt::Write as _;
use std::sync::Arc;

use audit_logging::tlog::note::{SignatureLine, SignedNote};
use audit_logging::tlog::source::DirSource;
use audit_logging::tlog::tree::{TreeError, prove_consistency};
use reqwest::Method;

use super::Witness;
use super::quorum::Target;
use crate::http::{Answer, HttpError, send};
use crate::status::{Board, State};

/// Why a witness did not cosign.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the witness does not answer: {0}")]
    Silent(#[from] HttpError),
    #[error("HTTP {status} from the witness, {meaning}")]
    Status { status: u16, meaning: &'static str },
    #[error("the witness knows a tree of {theirs} entries, and this node signed {ours} at most: the node was set back")]
    Ahead { theirs: u64, ours: u64 },
    #[error("the witness holds another tree of {0} entries than this node: one of the two was exchanged")]
    Differs(u64),
    #[error("the witness sent no cosignature of its own that holds")]
    NoSignature,
    #[error("the witness names in turn different sizes as the last it saw")]
    Unsteady,
    #[error("no proof for the witness: {0}")]
    Proof(#[from] TreeError),
    #[error("the task that makes proofs ended")]
    Ended,
}

impl Refusal {
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Ahead { .. } => State::Rollback,
            Self::Differs(_) | Self::Status { status: 400 | 403 | 404, .. } => State::Refused,
            _ => State::Failing,
        }
    }

    /// Whether it belongs on record: it speaks of this log's past, not of the network.
    pub(crate) fn is_evidence(&self) -> bool {
        matches!(self, Self::Ahead { .. } | Self::Differs(_))
    }
}

/// Asks one witness, and remembers what it saw last.
pub(crate) struct Exchange {
    pub(crate) witness: Witness,
    pub(crate) client: reqwest::Client,
    pub(crate) source: Arc<DirSource>,
    /// Entries of the last checkpoint that the witness saw, as far as we know.
    pub(crate) seen: u64,
}

impl Exchange {
    /// The witness's cosignature lines for this checkpoint, verified.
    pub(crate) async fn ask(&mut self, board: &Board, target: &Target) -> Result<Vec<SignatureLine>, Refusal> {
        // Once from what we believe that it saw, once from what it says.
        for _ in 0..2 {
            let answer = self.send(target).await?;
            match answer.status {
                200 => {
                    let lines = self.verified(&answer.body, target).ok_or(Refusal::NoSignature)?;
                    self.seen = target.checkpoint.size;
                    return Ok(lines);
                }
                409 => {
                    let theirs = size_in(&answer.body)
                        .ok_or(Refusal::Status { status: 409, meaning: "without the size that belongs to it" })?;
                    let ours = board.node.signed_size().max(target.checkpoint.size);
                    if theirs > ours {
                        return Err(Refusal::Ahead { theirs, ours });
                    }
                    if theirs > target.checkpoint.size || theirs == self.seen {
                        return Err(Refusal::Unsteady);
                    }
                    self.seen = theirs;
                }
                // We proved it to ourselves before we sent it: what differs is the tree that the witness saw.
                422 => {
                    let seen = std::mem::take(&mut self.seen);
                    return Err(Refusal::Differs(seen));
                }
                status => return Err(Refusal::Status { status, meaning: meaning(status) }),
            }
        }
        Err(Refusal::Unsteady)
    }

    async fn send(&self, target: &Target) -> Result<Answer, Refusal> {
        let body = self.body(target).await?;
        Ok(send(&self.client, Method::POST, self.witness.url.clone(), body).await?)
    }

    async fn body(&self, target: &Target) -> Result<Vec<u8>, Refusal> {
        let (seen, size, root) = (self.seen, target.checkpoint.size, target.checkpoint.root);
        let mut body = format!("old {seen}\n");
        // From nothing and from the same size there is nothing to prove.
        if seen > 0 && seen < size {
            let source = Arc::clone(&self.source);
            let proof = tokio::task::spawn_blocking(move || prove_consistency(&*source, seen, size, root));
            for hash in proof.await.map_err(|_| Refusal::Ended)?? {
                // Writing into a string cannot fail.
                let _ = writeln!(body, "{hash}");
            }
        }
        body.push('\n');
        let mut body = body.into_bytes();
        body.extend_from_slice(&target.note.to_bytes());
        Ok(body)
    }

    /// The lines of this witness among those that came, if they hold. Lines of unknown keys are passed over.
    fn verified(&self, body: &[u8], target: &Target) -> Option<Vec<SignatureLine>> {
        let text = std::str::from_utf8(body).ok()?;
        let key = self.witness.key();
        let lines: Vec<SignatureLine> = text
            .lines()
            .filter_map(|line| SignatureLine::parse(line).ok())
            .filter(|line| (line.name.as_str(), line.id) == (key.name(), key.id()))
            .take(1)
            .collect();
        let note: SignedNote = target.note.with_signature_lines(lines.iter().cloned());
        let verified = note.cosignatures(std::slice::from_ref(key)).ok()?;
        let dated = verified.iter().any(|signature| signature.time.is_some_and(|time| time > 0));
        dated.then_some(lines)
    }
}

/// The size in the body of a 409: decimal digits and a newline.
fn size_in(body: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let digits = text.strip_suffix('\n').unwrap_or(text);
    digits.parse().ok().filter(|size: &u64| size.to_string() == digits)
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "it takes the question for malformed: check that the URL is a witness's submission prefix",
        403 => "it does not trust this log's key: give the witness the log's vkey",
        404 => "it does not know this log: register origin and vkey with the witness",
        429 => "it is asked too often",
        500..=599 => "it has trouble of its own",
        _ => "which no witness should say",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_in_a_conflict_is_read_strictly() {
        for (body, size) in [("0\n", Some(0)), ("17", Some(17)), ("18446744073709551615\n", Some(u64::MAX))] {
            assert_eq!(size_in(body.as_bytes()), size);
        }
        for body in ["", "\n", "017\n", "+1\n", "-1\n", "1 \n", "1\n\n", "18446744073709551616\n", "<html>"] {
            assert_eq!(size_in(body.as_bytes()), None, "{body:?}");
        }
    }
}
