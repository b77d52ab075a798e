//! Which connections there are, how each stands, and which one goes when there is no place for another.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// Nothing was asked yet, or everything is answered.
const IDLE: u8 = 0;
/// The head of a request is there, and its answer has not left as a whole: its body is awaited, or the client reads.
const ANSWERING: u8 = 1;
/// A whole request is there and the daemon works on it.
const WORKING: u8 = 2;

/// What one connection is about.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing(Arc<AtomicU8>);

impl Standing {
    /// From now on a request is answered, until this is dropped.
    pub(super) fn answer(&self) -> Under {
        Under::new(self, ANSWERING, IDLE)
    }

    /// From now on there is work under way, until this is dropped.
    pub(super) fn work(&self) -> Under {
        Under::new(self, WORKING, ANSWERING)
    }
}

/// Something under way on a connection.
#[derive(Debug)]
pub(super) struct Under {
    standing: Standing,
    after: u8,
}

impl Under {
    fn new(standing: &Standing, now: u8, after: u8) -> Self {
        standing.0.store(now, Ordering::Relaxed);
        Self { standing: standing.clone(), after }
    }

    /// Lasts as long as an answer that is being sent.
    pub(super) fn until_sent(self, body: Body) -> Sent {
        Sent { body, _under: self }
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.standing.0.store(self.after, Ordering::Relaxed);
    }
}

/// An answer's body.
#[derive(Debug)]
pub(super) struct Sent {
    body: Body,
    _under: Under,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connections in progress, by their numbers: the oldest first. Dropping an entry's sender ends it.
#[derive(Debug, Default)]
pub(super) struct Open(BTreeMap<u64, (Standing, oneshot::Sender<()>)>);

impl Open {
    /// Takes a connection in. At the limit another one goes for it: the oldest that has asked for nothing, so a crowd that
    /// only connects shuts itself out; or else the oldest whose answer is on its way, which a client that does not read could
    /// hold. None goes while the daemon works on its request: where all places are taken so, the new one is not taken in.
    pub(super) fn admit(&mut self, number: u64, standing: Standing, alive: oneshot::Sender<()>, limit: usize) -> bool {
        while self.0.len() >= limit {
            let stands = self.0.iter().map(|(number, (standing, _))| (standing.0.load(Ordering::Relaxed), *number));
            match stands.min() {
                Some((stands, oldest)) if stands != WORKING => self.0.remove(&oldest),
                _ => return false,
            };
        }
        self.0.insert(number, (standing, alive));
        true
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.0.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_for_nothing_goes_first_and_who_is_worked_for_never() {
        let mut open = Open::default();
        let standings: Vec<_> = (0..4).map(|_| Standing::default()).collect();
        let mut ends = Vec::new();
        for (number, standing) in (0..).zip(&standings) {
            let (alive, ended) = oneshot::channel();
            assert!(open.admit(number, standing.clone(), alive, 4));
            ends.push(ended);
        }
        let mut newcomer = |number| {
            let standing = Standing::default();
            let (alive, _) = oneshot::channel();
            let admitted = open.admit(number, standing.clone(), alive, 4);
            let left = ends.iter_mut().map(|end| end.try_recv() == Err(oneshot::error::TryRecvError::Empty));
            (admitted, standing, left.collect::<Vec<_>>())
        };
        let answering = standings[0].answer();
        let working = (standings[1].work(), standings[2].work());
        // The idle one, though it is the youngest; and of two that are answered the older.
        let (admitted, fourth, left) = newcomer(4);
        assert_eq!((admitted, left), (true, vec![true, true, true, false]));
        let asked = fourth.answer();
        let (admitted, fifth, left) = newcomer(5);
        assert_eq!((admitted, left), (true, vec![false, true, true, false]));
        let all = (fourth.work(), fifth.work());
        assert_eq!((newcomer(6).0, newcomer(7).0), (false, false));
        drop((all, asked, answering));
        // What is done is not kept for ever.
        let (admitted, _, left) = newcomer(8);
        assert_eq!((admitted, left), (true, vec![false, true, true, false]));
        drop(working);
    }
}
