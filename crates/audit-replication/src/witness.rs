//! Witnesses: others who confirm that this log only ever grew.
//!
//! Each newest checkpoint is sent to every witness (C2SP `tlog-witness`, `add-checkpoint`), with a proof that it continues
//! the one that this witness saw last. A witness that agrees cosigns. Once enough did, for one and the same checkpoint,
//! the note with their signatures is handed to the node. A witness that is down or slow holds up nobody: each has a task,
//! timeouts and waits of its own, and a checkpoint that does not find its quorum in time gives way to a newer one.

mod exchange;
mod quorum;

use std::sync::Arc;
use std::time::Duration;

use audit_logging::Severity;
use audit_logging::tlog::note::{Algorithm, KeyError, SignatureLine, VerifierKey};
use reqwest::Url;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::backoff::Backoff;
use crate::ending::Ending;
use crate::status::{Board, State};
use crate::store::redacted;
pub(crate) use exchange::Exchange;
use exchange::Refusal;
pub(crate) use quorum::Quorum;
use quorum::Target;

/// The longest wait after a refusal that only a person can change.
const SELDOM: Duration = Duration::from_secs(600);

/// A witness to ask.
#[derive(Debug, Clone)]
pub struct Witness {
    key: VerifierKey,
    url: Url,
}

/// Why a witness cannot be asked.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// The URL is none.
    #[error("{url} is no witness: its submission prefix is expected, https://… or http://…")]
    Url {
        /// What was given.
        url: String,
    },
    /// The key is none.
    #[error("the key of the witness {url} cannot be used: {source}")]
    Key {
        /// The witness.
        url: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The key is not one that cosigns.
    #[error("the key {name} is that of a log, not of a witness: take the witness's own vkey (type 0x04)")]
    Kind {
        /// The key's name.
        name: String,
    },
}

impl Witness {
    /// A witness by the prefix of its URL and its verifier key.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub fn new(url: &str, vkey: &str) -> Result<Self, WitnessError> {
        let shown = redacted(url);
        let malformed = || WitnessError::Url { url: shown.clone() };
        let mut parsed = Url::parse(url).map_err(|_| malformed())?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(malformed());
        }
        let key = VerifierKey::parse(vkey).map_err(|source| WitnessError::Key { url: shown.clone(), source })?;
        if key.algorithm() != Algorithm::Cosignature {
            return Err(WitnessError::Kind { name: key.name().to_owned() });
        }
        parsed.path_segments_mut().map_err(|()| malformed())?.pop_if_empty().push("add-checkpoint");
        Ok(Self { key, url: parsed })
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// Where checkpoints are sent.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.as_str()
    }
}

/// What a witness said of a target.
#[derive(Debug)]
pub(crate) struct Cosigned {
    witness: usize,
    round: u64,
    lines: Vec<SignatureLine>,
}

/// The task that asks one witness.
pub(crate) struct Asking {
    pub(crate) number: usize,
    pub(crate) exchange: Exchange,
    pub(crate) board: Arc<Board>,
    pub(crate) ending: Ending,
    pub(crate) targets: watch::Receiver<Option<Arc<Target>>>,
    pub(crate) answers: mpsc::Sender<Cosigned>,
}

impl Asking {
    /// Until the end, or until the witness knows more than the node.
    pub(crate) async fn run(mut self) {
        let (mut patient, mut seldom) = (Backoff::new(), Backoff::with_cap(SELDOM));
        let mut done = None;
        let mut reported = false;
        loop {
            let Some(target) = self.next(done).await else { return };
            let refusal = match self.exchange.ask(&self.board, &target).await {
                Ok(lines) => {
                    patient.succeeded();
                    seldom.succeeded();
                    done = Some(target.round);
                    let now = self.board.clock.wall();
                    self.board.witness(self.number, |status| {
                        status.state = State::Working;
                        status.size = target.checkpoint.size;
                        status.last_error = None;
                        status.last_success = Some(now);
                    });
                    // The one who collects lives as long as we do.
                    let _ = self.answers.send(Cosigned { witness: self.number, round: target.round, lines }).await;
                    continue;
                }
                Err(refusal) => refusal,
            };
            let state = refusal.state();
            self.board.witness(self.number, |status| {
                status.state = state;
                status.failures = status.failures.saturating_add(1);
                status.last_error = Some(refusal.to_string());
            });
            // Once: it says the same every time.
            if refusal.is_evidence() && !reported {
                reported = true;
                self.board.record(Severity::Critical, self.leaf(&refusal, &target));
            }
            if state.is_stopped() {
                return;
            }
            let wait = if state == State::Refused { seldom.failed() } else { patient.failed() };
            self.ending.sleep(wait).await;
        }
    }

    /// The newest target, when there is one that was not answered yet.
    async fn next(&mut self, done: Option<u64>) -> Option<Arc<Target>> {
        loop {
            if self.ending.is_over() {
                return None;
            }
            let target = self.targets.borrow_and_update().clone();
            if let Some(target) = target.filter(|target| Some(target.round) != done) {
                return Some(target);
            }
            // The one who sets targets is gone: that is the end.
            self.targets.changed().await.ok()?;
        }
    }

    fn leaf(&self, refusal: &Refusal, target: &Target) -> serde_json::Value {
        let log = if refusal.state() == State::Rollback { "rollback" } else { "conflict" };
        json!({
            "log": log,
            "witness": self.exchange.witness.key.name(),
            "signed_size": target.checkpoint.size,
            "what": refusal.to_string(),
        })
    }
}
