//! PID 1's side of the worker `watch`: holds its sockets, starts it again when it dies.
//!
//! The sockets belong to PID 1: packets that are logged while no worker lives wait in them. Nothing is opened or closed
//! here; a box whose worker stays away refuses as before, and tells less.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::protocol::{MAX_FROM_WORKER, MAX_TO_WORKER, Setup, Target, ToWorker};
use super::queue::{Queue, QueueError};
use super::reporter::Reporter;
use crate::channel::{self, ChannelError};
use crate::supervisor::backoff::{Backoff, pause};
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Child, Launch, Spawner, Stream, SupervisorError};

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot make the worker's channel")]
    Channel(#[source] std::io::Error),
    #[error("cannot start the worker")]
    Spawn(#[source] SupervisorError),
    #[error("cannot hand the sockets to the worker")]
    Setup(#[source] ChannelError),
}

/// The sockets of refused packets and of connections that are let out. Two, so that a flood of the first does not take
/// the place of the second.
#[derive(Debug)]
pub struct Queues {
    refused: Queue,
    used: Queue,
}

impl Queues {
    /// Opens both in this thread's network namespace.
    pub fn open(refused: u16, used: u16) -> Result<Self, QueueError> {
        Ok(Self { refused: Queue::open(refused)?, used: Queue::open(used)? })
    }

    /// The first frame to a worker, with both sockets.
    pub fn hand_over(&self, channel: &UnixStream, heard: Setup) -> Result<(), ChannelError> {
        let sockets = [self.refused.as_fd(), self.used.as_fd()];
        channel::send_with_sockets(channel, &ToWorker::Setup(heard), &sockets, MAX_TO_WORKER)
    }
}

/// The worker, kept alive.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    queues: Queues,
    spawner: Spawner,
    reporter: Arc<Reporter>,
}

/// A worker that does not take its setup in this time is broken.
const SETUP_LIMIT: Duration = Duration::from_secs(5);
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));

/// A worker and its channel.
type Life = (Child, UnixStream);

impl Keeper {
    /// Starts the worker and keeps it. A worker that can't be started now is tried again: that is no reason not to boot.
    pub fn start(
        identity: Identity,
        queues: Queues,
        spawner: Spawner,
        reporter: Arc<Reporter>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { identity, queues, spawner, reporter });
        let keep = Arc::clone(&shared);
        crate::supervisor::thread("watch-keeper", move || keep.keep())?;
        Ok(Self { shared })
    }

    /// From now on one refused packet to each of these is Innkeeper's own.
    pub fn announce(&self, targets: &[Target]) {
        self.shared.reporter.announce(targets);
    }
}

impl Shared {
    fn keep(&self) {
        let mut backoff = BACKOFF;
        loop {
            let started = Instant::now();
            match self.begin() {
                Ok(life) => self.live(life),
                Err(KeeperError::Spawn(SupervisorError::Stopping)) => return,
                Err(error) => crate::report::event("watch", &crate::report::chain(&error)),
            }
            self.reporter.board().worker("watch", |worker| {
                worker.pid = None;
                worker.restarts += 1;
            });
            pause(backoff.after(started.elapsed()));
        }
    }

    fn begin(&self) -> Result<Life, KeeperError> {
        let (ours, theirs) = UnixStream::pair().map_err(KeeperError::Channel)?;
        let mut launch = Launch::own("watch", Some(self.identity.clone()));
        launch.stdin = Stream::Fd(OwnedFd::from(theirs));
        launch.stderr = Stream::events("watch").map_err(KeeperError::Channel)?;
        let child = self.spawner.spawn(launch).map_err(KeeperError::Spawn)?;
        ours.set_write_timeout(Some(SETUP_LIMIT)).map_err(KeeperError::Channel)?;
        self.queues.hand_over(&ours, self.reporter.heard()).map_err(KeeperError::Setup)?;
        let pid = child.pid();
        self.reporter.board().worker("watch", |worker| worker.pid = Some(pid));
        Ok((child, ours))
    }

    /// One life of the worker.
    fn live(&self, (mut child, stream): Life) {
        self.converse(&stream);
        // Its channel is closed or broken: nobody hears it any more, and two must not read the same sockets.
        child.signal(nix::sys::signal::Signal::SIGKILL);
        let end = child.wait_for(SETUP_LIMIT);
        let how = end.map_or_else(|| "did not end".to_owned(), |exit| exit.to_string());
        crate::report::event("watch", &format!("the worker ended ({how}); starting it again"));
    }

    fn converse(&self, stream: &UnixStream) {
        loop {
            match channel::receive(stream, MAX_FROM_WORKER) {
                Ok(Some(frame)) => self.reporter.hear(&frame),
                Ok(None) => return,
                Err(error) => return crate::report::event("watch", &crate::report::chain(&error)),
            }
        }
    }
}
