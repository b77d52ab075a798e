//! How a mapped shard stands, as its daemon says, or that nobody says it any more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ClientError;
use super::connection::{Connection, Heard, unexpected};
use crate::handout::{Answer, Request, SILENCE_MS};
use crate::shard::ShardState;

/// From then on silence is no health.
const SILENCE: Duration = Duration::from_millis(SILENCE_MS);

/// Tells how an attached shard stands. It keeps the connection open, and the lease is the [`Attached`](super::Attached)'s.
#[derive(Debug, Clone)]
pub struct Watch {
    connection: Arc<Connection>,
    lease: u64,
    /// Lapses up to here are dealt with.
    accepted: Arc<AtomicU64>,
}

/// How a shard stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// Sealed or verified, on record, every block checked in time.
    Verified {
        /// Time since the last check of the block that waits longest, as last heard.
        oldest_age: Duration,
    },
    /// The shard was not as sealed meanwhile, or nobody could tell, and is good again: what was made with it since its last
    /// check before that is suspect. It stays so until [`Watch::accept`] or [`Watch::wait_until_verified`].
    Lapsed {
        /// How often.
        times: u64,
    },
    /// The daemon lives and says that the shard is not to be relied on.
    NotVerified {
        /// Where it stands.
        state: ShardState,
    },
    /// Nobody checks these bytes any more, or nobody tells. They are still mapped.
    Unwatched {
        /// Why.
        reason: String,
    },
}

impl Standing {
    /// Whether the bytes may be relied on.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        matches!(self, Self::Verified { .. })
    }

    fn of(heard: Result<(Heard, Duration), String>, accepted: u64) -> Self {
        match heard {
            Err(reason) => Self::Unwatched { reason },
            Ok((_, silence)) if silence > SILENCE => {
                Self::Unwatched { reason: format!("the daemon has said nothing for {} s", silence.as_secs()) }
            }
            Ok((Heard { state: ShardState::Sealed | ShardState::Verified, oldest_age, lapses, .. }, _)) => {
                match lapses.saturating_sub(accepted) {
                    0 => Self::Verified { oldest_age },
                    times => Self::Lapsed { times },
                }
            }
            Ok((Heard { state, .. }, _)) => Self::NotVerified { state },
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified { oldest_age } => {
                write!(f, "verified, the oldest block {:.1} s ago", oldest_age.as_secs_f64())
            }
            Self::Lapsed { times } => {
                let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
                write!(
                    f,
                    "verified again; {times} it was not since this was last accepted: what was made meanwhile is suspect"
                )
            }
            Self::NotVerified { state } => write!(f, "{}: do not rely on the bytes", state.as_str()),
            Self::Unwatched { reason } => write!(f, "no longer watched: {reason}"),
        }
    }
}

impl Watch {
    /// `lapses`: those before the shard was attached.
    pub(super) fn new(connection: &Arc<Connection>, lease: u64, lapses: u64) -> Result<Self, ClientError> {
        match connection.ask(&Request::Watch {})?.answer {
            Answer::Watching {} => {
                let accepted = Arc::new(AtomicU64::new(lapses));
                Ok(Self { connection: Arc::clone(connection), lease, accepted })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// How the shard stands. Waits for nobody.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing::of(self.connection.heard(self.lease), self.accepted.load(Ordering::Acquire))
    }

    /// From now on, lapses so far no longer count: what was made meanwhile is dealt with. For this watch and its clones.
    pub fn accept(&self) {
        if let Ok((heard, _)) = self.connection.heard(self.lease) {
            self.accepted.fetch_max(heard.lapses, Ordering::AcqRel);
        }
    }

    /// Whether the bytes may be relied on. Waits for nobody.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.standing().is_verified()
    }

    /// Waits for as long as the shard is verified, `timeout` at most, and says how it stands then.
    #[must_use]
    pub fn wait_while_verified(&self, timeout: Duration) -> Standing {
        self.wait(timeout, |standing| !standing.is_verified())
    }

    /// Waits until the shard is verified again, `timeout` at most, accepts the lapses up to then, and says how it stands.
    /// Where nobody watches it any more, that will not be.
    #[must_use]
    pub fn wait_until_verified(&self, timeout: Duration) -> Standing {
        match self.wait(timeout, |standing| !matches!(standing, Standing::NotVerified { .. })) {
            Standing::Lapsed { .. } => {
                self.accept();
                self.standing()
            }
            other => other,
        }
    }

    fn wait(&self, timeout: Duration, is_over: impl Fn(&Standing) -> bool) -> Standing {
        let begun = Instant::now();
        loop {
            let standing = self.standing();
            let left = timeout.saturating_sub(begun.elapsed());
            if is_over(&standing) || left.is_zero() {
                return standing;
            }
            // Silence makes no noise.
            let step = left.min(Duration::from_millis(200));
            let accepted = self.accepted.load(Ordering::Acquire);
            self.connection.wait(step, |heard| is_over(&Standing::of(heard, accepted)), self.lease);
        }
    }
}
