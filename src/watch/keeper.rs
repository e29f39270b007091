//! PID 1's side of the worker `watch`: holds its sockets, and gives them to each life of it.
//!
//! The sockets belong to PID 1: packets that are logged while no worker lives wait in them. Nothing is opened or closed
//! here; a box whose worker stays away refuses as before, and tells less.

use std::os::fd::AsFd;
use std::sync::mpsc::SyncSender;

use super::protocol::{FromWorker, Setup, Target, ToWorker};
use super::queue::{Queue, QueueError};
use super::reporter::Reporter;
use crate::worker::keeper::{First, Keeper as Kept, KeeperError, Means, Work};

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

    /// What a worker begins with.
    #[must_use]
    pub fn first(&self, heard: Setup) -> First<'_, ToWorker> {
        let sockets = vec![self.refused.as_fd(), self.used.as_fd()];
        First { frame: ToWorker::Setup(heard), sockets }
    }
}

/// The worker, kept alive.
#[derive(Debug, Clone)]
pub struct Keeper {
    kept: Kept<Watching>,
}

#[derive(Debug)]
struct Watching {
    queues: Queues,
    reporter: Reporter,
}

impl Keeper {
    /// Starts the worker and keeps it. A worker that can't be started now is tried again: that is no reason not to boot.
    pub fn start(queues: Queues, reporter: Reporter, means: Means) -> Result<Self, KeeperError> {
        Ok(Self { kept: Kept::start_some_time(Watching { queues, reporter }, means)? })
    }

    /// From now on one refused packet to each of these is Innkeeper's own.
    pub fn announce(&self, targets: &[Target]) {
        self.kept.work().reporter.announce(targets);
    }
}

impl Work for Watching {
    type Order = ToWorker;
    type News = FromWorker;
    type Ready = ();

    fn first(&self) -> First<'_, ToWorker> {
        self.queues.first(self.reporter.heard())
    }

    fn hear(&self, news: FromWorker, _: &Kept<Self>, _: &SyncSender<()>) {
        self.reporter.hear(&news);
    }
}
