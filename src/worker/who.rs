//! PID 1's side of a refused client: while its worker lets it wait, somebody looks which process it is.
//!
//! A thread of its own does that, so that nobody waits for `/proc` who waits for the worker's other news.

use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::SystemTime;

use super::keeper::{Keeper, KeeperError, Work};
use super::protocol::{Attributes, ClientDenial};
use crate::attribution::Attributor;
use crate::report::harmless;
use crate::status::report::Denial;

/// Refused clients that wait at a time; one more gets its answer without a look.
const MAX_WAITING: usize = 32;

/// Refusals whose client waits until somebody has looked who it is.
#[derive(Debug)]
pub struct Waiting(SyncSender<ClientDenial>);

impl Waiting {
    /// The queue, and its end for [`Keeper::look`].
    #[must_use]
    pub fn new() -> (Self, Receiver<ClientDenial>) {
        let (queue, waiters) = mpsc::sync_channel(MAX_WAITING);
        (Self(queue), waiters)
    }
}

/// What of a refusal is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub count: u64,
    /// What would allow it. The operator may paste it into a root shell.
    pub allow: String,
}

/// A worker that refuses clients.
pub trait Refuses: Work<Order: Attributes> {
    /// How long what was refused may be on the board, and why.
    const LENGTHS: (usize, usize);

    fn waiting(&self) -> &Waiting;

    /// None if it is no news: Innkeeper's own attack.
    fn shown(&self, denial: &ClientDenial) -> Option<Shown>;
}

impl<W: Refuses> Keeper<W> {
    /// Starts who looks who waits, for ever.
    pub fn look(&self, waiters: Receiver<ClientDenial>, attributor: Attributor) -> Result<(), KeeperError> {
        let keeper = self.clone();
        let look = move || {
            for denial in waiters {
                let process = denial.inode.and_then(|inode| attributor.process(denial.uid, inode));
                keeper.note(&denial, process);
                if let Some(id) = denial.id {
                    keeper.send(&W::Order::attributed(id));
                }
            }
        };
        crate::supervisor::thread(format!("{}-who", Self::NAME), look).map_err(KeeperError::Thread)
    }

    /// A refusal whose client waits is looked into by the thread for that: this one has other news to hear.
    pub fn denied(&self, denial: ClientDenial) {
        let Some(id) = denial.id else { return self.note(&denial, None) };
        if let Err(TrySendError::Full(denial) | TrySendError::Disconnected(denial)) =
            self.work().waiting().0.try_send(denial)
        {
            self.note(&denial, None);
            self.send(&W::Order::attributed(id));
        }
    }

    fn note(&self, denial: &ClientDenial, process: Option<String>) {
        let Some(Shown { count, allow }) = self.work().shown(denial) else { return };
        let (what, reason) = W::LENGTHS;
        self.board().deny(Denial {
            time: crate::report::time(SystemTime::now()),
            layer: Self::NAME.to_owned(),
            what: harmless(&denial.what, what),
            uid: denial.uid,
            process: process.map(|process| harmless(&process, 100)),
            reason: harmless(&denial.reason, reason),
            count,
            allow,
        });
    }
}
