//! What is put before the witnesses, and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::tlog::checkpoint::Checkpoint;
use audit_logging::tlog::note::{SignatureLine, SignedNote};
use audit_logging::tlog::source::{DirSource, Source};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Cosigned;
use crate::ending::Ending;
use crate::status::Board;

/// How often the node is asked for news.
const LOOK: Duration = Duration::from_millis(200);

/// A checkpoint that is put before all witnesses.
#[derive(Debug)]
pub(crate) struct Target {
    /// Counts up; the same checkpoint put before them again is another round.
    pub(crate) round: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) note: SignedNote,
}

/// The task that chooses targets and collects cosignatures.
pub(crate) struct Quorum {
    pub(crate) needed: usize,
    /// The least time between two targets.
    pub(crate) interval: Duration,
    /// How long a target waits for its quorum before a newer checkpoint takes its place.
    pub(crate) patience: Duration,
    /// After so long the same checkpoint is cosigned anew: its time is the sign of life.
    pub(crate) heartbeat: Duration,
    pub(crate) board: Arc<Board>,
    pub(crate) source: Arc<DirSource>,
    pub(crate) ending: Ending,
    pub(crate) targets: watch::Sender<Option<Arc<Target>>>,
    pub(crate) answers: mpsc::Receiver<Cosigned>,
}

/// The target in work.
struct Round {
    target: Arc<Target>,
    begun: Instant,
    lines: BTreeMap<usize, Vec<SignatureLine>>,
    reached: bool,
}

impl Quorum {
    /// Until the end has come and the last checkpoint has its quorum, or the time is up.
    pub(crate) async fn run(mut self) {
        let mut round: Option<Round> = None;
        loop {
            let newest = self.newest();
            let last = self.ending.has_come();
            if let Some((checkpoint, note)) = newest.filter(|(newest, _)| self.is_due(round.as_ref(), newest, last)) {
                let number = round.as_ref().map_or(1, |round| round.target.round.saturating_add(1));
                let target = Arc::new(Target { round: number, checkpoint, note });
                self.targets.send_replace(Some(Arc::clone(&target)));
                round = Some(Round { target, begun: Instant::now(), lines: BTreeMap::new(), reached: false });
            }
            if last && (self.ending.is_over() || round.as_ref().is_none_or(|round| round.reached)) {
                return;
            }
            tokio::select! {
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.collect(round.as_mut(), answer),
                    // Every witness has given up.
                    None => return self.wait_out().await,
                },
                () = self.ending.sleep(LOOK) => {}
            }
        }
    }

    /// Without witnesses there is nothing to collect, but the others must not take that for the end.
    async fn wait_out(&mut self) {
        while !self.ending.has_come() {
            self.ending.sleep(LOOK).await;
        }
    }

    fn newest(&self) -> Option<(Checkpoint, SignedNote)> {
        // What cannot be read now is read at the next look; the publisher reports a damaged directory.
        let bytes = self.source.get("checkpoint").ok()??;
        let note = SignedNote::parse(&bytes).ok()?;
        Some((Checkpoint::parse(note.text()).ok()?, note))
    }

    fn is_due(&self, round: Option<&Round>, newest: &Checkpoint, last: bool) -> bool {
        let Some(round) = round else { return true };
        let age = round.begun.elapsed();
        if newest.size == round.target.checkpoint.size {
            return !last && age >= self.heartbeat;
        }
        let enough = if round.reached { self.interval } else { self.patience };
        last || age >= enough
    }

    fn collect(&self, round: Option<&mut Round>, answer: Cosigned) {
        let Some(round) = round.filter(|round| round.target.round == answer.round) else { return };
        round.lines.insert(answer.witness, answer.lines);
        // A witness that comes after the quorum adds its signature.
        if round.lines.len() < self.needed {
            return;
        }
        let note = round.target.note.with_signature_lines(round.lines.values().flatten().cloned());
        match self.board.node.accept_cosigned(&note) {
            Ok(()) => {
                round.reached = true;
                self.board.cosigned(round.target.checkpoint.size);
            }
            Err(why) => self.board.refused_locally(answer.witness, &why),
        }
    }
}
