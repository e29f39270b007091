//! DNS over TCP (RFC 7766): accepts, frames by length, bounds the number and the idleness of connections.
//!
//! Not hickory's own listener: that one takes connections without end and spins when descriptors run out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::reply::{Parsed, parse};
use super::server::Responder;

/// Connections at a time; a further one ends the oldest, so that idle ones can't keep others out.
const MAX_CONNECTIONS: usize = 128;
/// For a whole question to arrive, and for a reply to leave.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept: no descriptors are left, and they don't come back by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` for ever.
pub async fn serve(listener: TcpListener, responder: Arc<Responder>) {
    let mut connections = JoinSet::new();
    let mut ages: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    ages.retain(|connection| !connection.is_finished());
                    while ages.len() >= MAX_CONNECTIONS && let Some(oldest) = ages.pop_front() {
                        oldest.abort();
                    }
                    let responder = responder.clone();
                    ages.push_back(connections.spawn(async move {
                        // A broken connection is the client's affair.
                        converse(stream, client, &responder).await.ok();
                    }));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn converse(mut stream: TcpStream, client: SocketAddr, responder: &Responder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let message = timeout(IDLE_TIMEOUT, read_message(&mut stream)).await??;
        let Some(reply) = reply_to(message, client, responder).await else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply);
        timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn reply_to(message: Vec<u8>, client: SocketAddr, responder: &Responder) -> Option<Vec<u8>> {
    let reply = match parse(message, client, Protocol::Tcp) {
        Parsed::Question(request) => responder.answer(&request).await,
        Parsed::Broken(reply) => reply,
        Parsed::Ignored => return None,
    };
    (!reply.is_empty()).then_some(reply)
}
