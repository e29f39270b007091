//! The worker's end of the channel once its runtime runs: how frames are read and written, and who waits until PID 1 has
//! looked who was refused. What a frame does, and which goes first, is for the worker to say.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use super::lock;
use super::protocol::{ClientDenial, Frame, Order};
use crate::channel::{ChannelError, announced_length, decode, encode};

/// Refused clients that wait until PID 1 has looked who they are.
#[derive(Debug)]
pub struct Attributions {
    looking: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    next_id: AtomicU64,
}

impl Default for Attributions {
    fn default() -> Self {
        Self { looking: Mutex::default(), next_id: AtomicU64::new(1) }
    }
}

impl Attributions {
    /// Tells PID 1 of a refusal whose client waits; none if `tell` says that there is no room now.
    #[must_use]
    pub fn ask(
        &self,
        denial: ClientDenial,
        tell: impl FnOnce(ClientDenial) -> bool,
    ) -> Option<oneshot::Receiver<()>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, looked) = oneshot::channel();
        let mut looking = lock(&self.looking);
        if !tell(ClientDenial { id: Some(id), ..denial }) {
            return None;
        }
        // Who waited too long is forgotten.
        looking.retain(|_, waiting| !waiting.is_closed());
        looking.insert(id, sender);
        Some(looked)
    }

    /// PID 1 has looked.
    pub fn looked(&self, id: u64) {
        if let Some(sender) = lock(&self.looking).remove(&id) {
            sender.send(()).ok();
        }
    }
}

/// Reads PID 1's frames until it closes the channel. Each is followed before anything after it is read.
pub async fn read_frames<O: Order>(
    mut stream: OwnedReadHalf,
    follow: impl Fn(O) -> Result<(), ChannelError>,
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
        let mut body = vec![0; announced_length(header, O::LIMIT)?];
        stream.read_exact(&mut body).await.map_err(ChannelError::Read)?;
        follow(decode(&body)?)?;
    }
}

/// Writes frames to PID 1, as long as there is a next one.
pub async fn write_frames<F: Frame>(
    mut stream: OwnedWriteHalf,
    mut next: impl AsyncFnMut() -> Option<F>,
) -> Result<(), ChannelError> {
    while let Some(frame) = next().await {
        match stream.write_all(&encode(&frame, F::LIMIT)?).await {
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
