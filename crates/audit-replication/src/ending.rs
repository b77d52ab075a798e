//! The end, as the tasks see it coming.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// By when everything has to be over, once the end has been announced.
#[derive(Debug, Clone)]
pub(crate) struct Ending(watch::Receiver<Option<Instant>>);

impl Ending {
    pub(crate) fn pair() -> (watch::Sender<Option<Instant>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// Whether it has been announced: what is done is finished, nothing new is begun.
    pub(crate) fn has_come(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Whether the time is up.
    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// When the time is up; now, if the end has not been announced.
    pub(crate) fn deadline(&self) -> Instant {
        self.0.borrow().unwrap_or_else(Instant::now)
    }

    /// Sleeps, shorter if the end is announced meanwhile: then one more attempt is worth it.
    pub(crate) async fn sleep(&mut self, time: Duration) {
        let deadline = *self.0.borrow_and_update();
        let until = Instant::now().checked_add(time).unwrap_or_else(Instant::now);
        match deadline {
            Some(deadline) => tokio::time::sleep_until(until.min(deadline)).await,
            None => tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                gone = self.0.changed() => if gone.is_err() { tokio::time::sleep_until(until).await },
            },
        }
    }
}
