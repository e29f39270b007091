//! The worker's end of the channel to PID 1: what is told, and who waits until PID 1 has looked who was refused.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, ToWorker};
use crate::channel::{ChannelError, announced_length, decode, encode};
use crate::dns::protocol::{DnsDenial as Denial, Policy};

/// Frames that wait for PID 1. What finds no room is told later, in sum.
const QUEUE: usize = 64;

/// What the rest of the worker sees of PID 1.
#[derive(Debug)]
pub struct Link {
    frames: mpsc::Sender<FromWorker>,
    looking: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    next_id: AtomicU64,
}

impl Link {
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<FromWorker>) {
        let (frames, queue) = mpsc::channel(QUEUE);
        (Self { frames, looking: Mutex::default(), next_id: AtomicU64::new(1) }, queue)
    }

    fn looking(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells PID 1 if there is room now; gives back what there is none for.
    pub fn tell(&self, frame: FromWorker) -> Result<(), FromWorker> {
        self.frames.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(frame) | mpsc::error::TrySendError::Closed(frame) => frame,
        })
    }

    /// Tells PID 1 of a refusal whose client waits until PID 1 has looked who it is; none if there is no room now.
    #[must_use]
    pub fn attribute(&self, denial: Denial) -> Option<oneshot::Receiver<()>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, looked) = oneshot::channel();
        let mut looking = self.looking();
        self.tell(FromWorker::Denied(Denial { id: Some(id), ..denial })).ok()?;
        // Who waited too long is forgotten.
        looking.retain(|_, waiting| !waiting.is_closed());
        looking.insert(id, sender);
        Some(looked)
    }

    fn attributed(&self, id: u64) {
        if let Some(sender) = self.looking().remove(&id) {
            sender.send(()).ok();
        }
    }
}

/// Reads PID 1's frames until it closes the channel.
pub async fn read_frames(
    mut stream: OwnedReadHalf,
    link: &Link,
    on_policy: impl Fn(Policy),
) -> Result<(), ChannelError> {
    loop {
        let mut header = [0; 4];
        match stream.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(ChannelError::Read(error)),
        }
        let mut body = vec![0; announced_length(header, MAX_TO_WORKER)?];
        stream.read_exact(&mut body).await.map_err(ChannelError::Read)?;
        match decode(&body)? {
            ToWorker::Attributed { id } => link.attributed(id),
            ToWorker::Policy(policy) => on_policy(policy),
            // A second setup would bring sockets that nobody takes.
            ToWorker::Setup(_) => return Err(ChannelError::NotSetup),
        }
    }
}

/// Writes frames to PID 1.
pub async fn write_frames(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::Receiver<FromWorker>,
) -> Result<(), ChannelError> {
    while let Some(frame) = queue.recv().await {
        match stream.write_all(&encode(&frame, MAX_FROM_WORKER)?).await {
            Ok(()) => {}
            // PID 1 closed the channel: the end, as when reading says so.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(ChannelError::Write(error)),
        }
    }
    Ok(())
}
