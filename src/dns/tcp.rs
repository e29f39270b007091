//! DNS over TCP (RFC 7766): accepts, frames by length, bounds the number and the idleness of connections.
//!
//! Not hickory's own listener: that one takes connections without end and spins when descriptors run out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::reply::{Parsed, parse};
use super::server::Responder;

/// Connections at a time; a further one ends an older one, so that idle ones can't keep others out.
const MAX_CONNECTIONS: usize = 128;
/// A client that has just connected is about to ask: so long it is not taken for an idle one.
const YOUTH: Duration = Duration::from_millis(100);
/// For a whole question to arrive, and for a reply to leave.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept: no descriptors are left, and they don't come back by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` for ever.
pub async fn serve(listener: TcpListener, responder: Arc<Responder>) {
    let mut connections = JoinSet::new();
    let mut living = Living::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    living.make_room().await;
                    let (responder, asks) = (responder.clone(), Arc::new(AtomicBool::new(false)));
                    let asking = asks.clone();
                    let task = connections.spawn(async move {
                        // A broken connection is the client's affair.
                        converse(stream, client, &responder, &asking).await.ok();
                    });
                    living.0.push_back(Connection { task, asks, began: Instant::now() });
                    // Its question may be there already, and is read before others are let in.
                    tokio::task::yield_now().await;
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    /// A whole question of its has come and is not answered yet.
    asks: Arc<AtomicBool>,
    began: Instant,
}

impl Connection {
    /// When it is idle, if it does not ask until then.
    fn is_idle_from(&self) -> Option<Instant> {
        (!self.asks.load(Ordering::Relaxed)).then(|| self.began + YOUTH)
    }

    fn is_idle(&self) -> bool {
        self.is_idle_from().is_some_and(|from| from <= Instant::now())
    }
}

/// The connections there are, the oldest first.
#[derive(Debug, Default)]
struct Living(VecDeque<Connection>);

impl Living {
    /// Ends the oldest idle one if there are too many. Where all are too young for that it waits for the first of them: the next
    /// ones queue in the kernel meanwhile. Where all wait for answers the oldest has had its time.
    async fn make_room(&mut self) {
        self.forget_the_ended();
        if self.0.len() < MAX_CONNECTIONS {
            return;
        }
        if let Some(from) = self.0.iter().filter_map(Connection::is_idle_from).min() {
            sleep_until(from).await;
            self.forget_the_ended();
        }
        while self.0.len() >= MAX_CONNECTIONS {
            let place = self.0.iter().position(Connection::is_idle).unwrap_or(0);
            if let Some(connection) = self.0.remove(place) {
                connection.task.abort();
            }
        }
    }

    fn forget_the_ended(&mut self) {
        self.0.retain(|connection| !connection.task.is_finished());
    }
}

async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    responder: &Responder,
    asks: &AtomicBool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let message = timeout(IDLE_TIMEOUT, read_message(&mut stream)).await??;
        asks.store(true, Ordering::Relaxed);
        let Some(reply) = reply_to(message, client, responder).await else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(reply);
        timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
        asks.store(false, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there may be, all of this age; `asks` says which of them wait for an answer.
    fn full(tasks: &mut JoinSet<()>, age: Duration, asks: impl Fn(usize) -> bool) -> Living {
        let began = Instant::now().checked_sub(age).unwrap();
        let connection = |place| {
            let task = tasks.spawn(std::future::pending());
            Connection { task, asks: Arc::new(AtomicBool::new(asks(place))), began }
        };
        Living((0..MAX_CONNECTIONS).map(connection).collect())
    }

    /// The places of those that had to go for one more.
    async fn gone(age: Duration, asks: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut tasks = JoinSet::new();
        let mut living = full(&mut tasks, age, asks);
        let before: Vec<_> = living.0.iter().map(|connection| connection.task.clone()).collect();
        living.make_room().await;
        assert_eq!(living.0.len(), MAX_CONNECTIONS - 1);
        assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
        (0..MAX_CONNECTIONS).filter(|place| before[*place].is_finished()).collect()
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_the_last_to_make_room() {
        let old = Duration::from_secs(1);
        assert_eq!(gone(old, |_| false).await, [0]);
        assert_eq!(gone(old, |place| place < 100).await, [100]);
        assert_eq!(gone(old, |_| true).await, [0], "somebody must");
        assert_eq!(gone(Duration::ZERO, |place| place == 0).await, [1], "the young have their time first");
    }
}
