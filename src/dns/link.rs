//! The worker's end of the channel once its runtime runs: what is told first, and who waits for which admission.
//!
//! Nothing here decides. Denials and health have a queue of their own that drops when PID 1 is slow; questions to PID 1
//! wait for room in theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{Admitted, FromWorker, Learned, ToWorker};
use crate::allowlist::DomainName;
use crate::channel::ChannelError;
use crate::worker::link::{self, Attributions};
use crate::worker::lock;
use crate::worker::policy::Policy;
use crate::worker::protocol::ClientDenial;

/// How long PID 1 may take to open addresses. Its answer takes microseconds; this is for a stopped machine.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(2);
const QUESTIONS: usize = 256;
const REPORTS: usize = 32;

/// PID 1 did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the firewall did not confirm the addresses in time")]
pub struct NotAdmitted;

/// What the rest of the worker sees of PID 1.
#[derive(Debug)]
pub struct Link {
    questions: mpsc::Sender<FromWorker>,
    reports: mpsc::Sender<FromWorker>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Vec<IpAddr>>>>,
    attributions: Attributions,
    next_id: AtomicU64,
}

/// The queues' other ends, for [`write_frames`].
#[derive(Debug)]
pub struct Outbox {
    questions: mpsc::Receiver<FromWorker>,
    reports: mpsc::Receiver<FromWorker>,
}

impl Link {
    #[must_use]
    pub fn new() -> (Self, Outbox) {
        let (questions, question_queue) = mpsc::channel(QUESTIONS);
        let (reports, report_queue) = mpsc::channel(REPORTS);
        let (waiting, attributions) = (Mutex::default(), Attributions::default());
        let link = Self { questions, reports, waiting, attributions, next_id: AtomicU64::new(1) };
        (link, Outbox { questions: question_queue, reports: report_queue })
    }

    /// Asks PID 1 to open `addresses` for `name`, and waits until it says which of them are open.
    pub async fn admit(
        &self,
        name: &DomainName,
        addresses: Vec<IpAddr>,
        ttl_s: u32,
        stale: bool,
    ) -> Result<Vec<IpAddr>, NotAdmitted> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let _forget = Forget { link: self, id };
        self.waiting().insert(id, sender);
        let learned = Learned { id, name: name.clone(), addresses: addresses.clone(), ttl_s, stale };
        let exchange = async {
            self.questions.send(FromWorker::Learned(learned)).await.ok()?;
            answer.await.ok()
        };
        let admitted = timeout(ADMISSION_TIMEOUT, exchange).await.ok().flatten().ok_or(NotAdmitted)?;
        // Never more than was asked for, whatever comes back.
        Ok(addresses.into_iter().filter(|address| admitted.contains(address)).collect())
    }

    /// Tells PID 1 what it must know; waits for room.
    pub async fn tell(&self, frame: FromWorker) {
        // The writer is gone only when the worker ends.
        self.questions.send(frame).await.ok();
    }

    fn pong(&self) {
        // No room: PID 1 has other words of this worker's to hear, by which it lives too.
        self.questions.try_send(FromWorker::Pong).ok();
    }

    /// Tells PID 1 if there is room now; says whether there was.
    #[must_use]
    pub fn try_report(&self, frame: FromWorker) -> bool {
        self.reports.try_send(frame).is_ok()
    }

    /// Tells PID 1 of a refusal whose client waits until PID 1 has looked who it is; none if there is no room now.
    #[must_use]
    pub fn attribute(&self, denial: ClientDenial) -> Option<oneshot::Receiver<()>> {
        self.attributions.ask(denial, |denial| self.try_report(FromWorker::Denied(denial)))
    }

    /// Hands PID 1's answer to who waits for it.
    pub fn admitted(&self, admitted: Admitted) {
        if let Some(sender) = self.waiting().remove(&admitted.id) {
            // Who asked may have stopped waiting.
            sender.send(admitted.addresses).ok();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Vec<IpAddr>>>> {
        lock(&self.waiting)
    }
}

struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.waiting().remove(&self.id);
    }
}

/// What PID 1 wants to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Policy(Policy),
    Forget(Vec<DomainName>),
    Refresh { ipv6: bool },
}

/// Reads PID 1's frames until it closes the channel. Orders go to `on_order`, in their order and before anything after
/// them is read.
pub async fn read_frames(
    stream: OwnedReadHalf,
    link: &Link,
    on_order: impl Fn(Order),
) -> Result<(), ChannelError> {
    let follow = |frame| {
        match frame {
            ToWorker::Ping => link.pong(),
            ToWorker::Admitted(admitted) => link.admitted(admitted),
            ToWorker::Attributed { id } => link.attributions.looked(id),
            ToWorker::Policy(policy) => on_order(Order::Policy(policy)),
            ToWorker::Forget { names } => on_order(Order::Forget(names)),
            ToWorker::Refresh { ipv6 } => on_order(Order::Refresh { ipv6 }),
            // A second setup would bring sockets that nobody takes.
            ToWorker::Setup(_) => return Err(ChannelError::NotSetup),
        }
        Ok(())
    };
    link::read_frames(stream, follow).await
}

/// Writes frames to PID 1, those that somebody waits for first.
pub async fn write_frames(stream: OwnedWriteHalf, mut outbox: Outbox) -> Result<(), ChannelError> {
    let next = async || {
        tokio::select! {
            biased;
            Some(frame) = outbox.questions.recv() => Some(frame),
            Some(frame) = outbox.reports.recv() => Some(frame),
            else => None,
        }
    };
    link::write_frames(stream, next).await
}
