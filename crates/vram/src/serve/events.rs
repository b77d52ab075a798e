//! The live stream of records: what the audit log takes, as it takes it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;
use vram_residency::audit::Tap;

use super::recent::Recent;
use super::report::now_ns;

/// Records that a slow reader may lag behind.
const BACKLOG: usize = 1024;

#[derive(Debug, Clone)]
struct Record {
    seq: Option<u64>,
    leaf: Arc<str>,
}

/// Where records are shown.
#[derive(Debug, Clone)]
pub(super) struct Events {
    sender: broadcast::Sender<Record>,
    readers: usize,
    closing: Arc<watch::Sender<bool>>,
    recent: Arc<Recent>,
}

impl Events {
    /// Half of the connections may be streams: the rest is for those who ask how things are.
    pub(super) fn new(connections: usize) -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            readers: connections.div_ceil(2),
            closing: Arc::default(),
            recent: Arc::default(),
        }
    }

    /// What the audit trail shows its records to. Waits for nobody.
    pub(super) fn tap(&self) -> Arc<Tap> {
        let (sender, recent) = (self.sender.clone(), self.recent());
        Arc::new(move |seq, leaf| {
            // First, so that who hears of a record and asks finds it.
            recent.note(seq, leaf, now_ns());
            if sender.receiver_count() > 0 {
                let leaf = String::from_utf8_lossy(leaf).into();
                let _ = sender.send(Record { seq, leaf });
            }
        })
    }

    /// What the trail said last.
    pub(super) fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.recent)
    }

    /// Ends every stream: the daemon stops.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Every record from now on, as server-sent events. Who reads too slowly is told how many he missed. None where there
    /// are readers enough.
    pub(super) fn stream(&self) -> Option<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>> {
        if self.sender.receiver_count() >= self.readers {
            return None;
        }
        let receiver = self.sender.subscribe();
        let closing = self.closing.subscribe();
        let records = stream::unfold((receiver, closing), |(mut receiver, mut closing)| async move {
            let received = tokio::select! {
                received = receiver.recv() => received,
                _ = closing.wait_for(|closing| *closing) => return None,
            };
            let event = match received {
                Ok(record) => {
                    let event = Event::default().event("record").data(&*record.leaf);
                    match record.seq {
                        Some(seq) => event.id(seq.to_string()),
                        // Else a browser would take it for the one before.
                        None => event.id(""),
                    }
                }
                Err(RecvError::Lagged(missed)) => Event::default().event("lagged").data(missed.to_string()),
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(event), (receiver, closing)))
        });
        Some(Sse::new(records).keep_alive(KeepAlive::default()))
    }
}
