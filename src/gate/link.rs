//! The worker's end of the channel to PID 1: what is told, and who waits until PID 1 has looked who was refused.

use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{FromWorker, ToWorker};
use crate::channel::ChannelError;
use crate::worker::link::{self, Attributions};
use crate::worker::policy::Policy;
use crate::worker::protocol::ClientDenial;

/// Frames that wait for PID 1. What finds no room is told later, in sum.
const QUEUE: usize = 64;

/// What the rest of the worker sees of PID 1.
#[derive(Debug)]
pub struct Link {
    frames: mpsc::Sender<FromWorker>,
    attributions: Attributions,
}

impl Link {
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<FromWorker>) {
        let (frames, queue) = mpsc::channel(QUEUE);
        (Self { frames, attributions: Attributions::default() }, queue)
    }

    /// Tells PID 1 if there is room now; gives back what there is none for.
    pub fn tell(&self, frame: FromWorker) -> Result<(), FromWorker> {
        self.frames.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(frame) | mpsc::error::TrySendError::Closed(frame) => frame,
        })
    }

    /// Tells PID 1 of a refusal whose client waits until PID 1 has looked who it is; none if there is no room now.
    #[must_use]
    pub fn attribute(&self, denial: ClientDenial) -> Option<oneshot::Receiver<()>> {
        self.attributions.ask(denial, |denial| self.tell(FromWorker::Denied(denial)).is_ok())
    }
}

/// Reads PID 1's frames until it closes the channel.
pub async fn read_frames(
    stream: OwnedReadHalf,
    link: &Link,
    on_policy: impl Fn(Policy),
) -> Result<(), ChannelError> {
    let follow = |frame| {
        match frame {
            // No room: PID 1 has other words of this worker's to hear, by which it lives too.
            ToWorker::Ping => drop(link.tell(FromWorker::Pong)),
            ToWorker::Attributed { id } => link.attributions.looked(id),
            ToWorker::Policy(policy) => on_policy(policy),
            // A second setup would bring sockets that nobody takes.
            ToWorker::Setup(_) => return Err(ChannelError::NotSetup),
        }
        Ok(())
    };
    link::read_frames(stream, follow).await
}
