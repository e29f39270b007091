//! Refusals in a worker that PID 1 has not been told of: they wait, counted, until there is room and time to tell them.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::denials::Denials;
use super::lock;
use super::protocol::ClientDenial;

/// Denials that could not leave are tried again after this.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a refused client is kept waiting for PID 1 to see who it is.
const ATTRIBUTION_LIMIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Unreported {
    denials: Mutex<Denials>,
    added: Notify,
}

impl Unreported {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { denials: Mutex::new(Denials::new(now)), added: Notify::new() }
    }

    /// What waits. Who adds to it says so by [`Unreported::added`].
    pub fn denials(&self) -> MutexGuard<'_, Denials> {
        lock(&self.denials)
    }

    pub fn added(&self) {
        self.added.notify_one();
    }

    /// Tells them, for ever; `tell` says whether there was room.
    pub async fn report(&self, tell: impl Fn(ClientDenial) -> bool) {
        loop {
            self.added.notified().await;
            while !self.tell(&tell) {
                sleep(PAUSE).await;
            }
        }
    }

    /// Whether none is left.
    fn tell(&self, tell: impl Fn(ClientDenial) -> bool) -> bool {
        let mut denials = self.denials();
        while let Some(denial) = denials.take(Instant::now()) {
            if !tell(denial.clone()) {
                denials.put_back(denial);
                return false;
            }
        }
        denials.is_empty()
    }
}

/// The client waits until PID 1 has looked. Too late is no error: the refusal is told, only the process's name stays
/// unknown.
pub async fn wait(looked: oneshot::Receiver<()>) {
    drop(timeout(ATTRIBUTION_LIMIT, looked).await);
}
