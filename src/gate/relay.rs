//! Copies octets both ways until both sides are done. A side that stops sending may still receive (half-close); a side
//! that takes nothing stops the other (back-pressure).
//!
//! Everybody reads into one buffer of the worker's, and what is read is written at once: a connection holds memory only
//! while its receiver is slower than its sender.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::roll::Passage;

/// What one read takes at most.
const CHUNK: usize = 128 << 10;
/// Reads of one direction before it is the others' turn.
const TURN: usize = 8;

thread_local! {
    static CHUNKS: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Lends the buffer that everybody reads into.
pub fn with_chunk<T>(read: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    CHUNKS.with_borrow_mut(|chunk| read(chunk))
}

/// Why copying ended before both sides were done.
#[derive(Debug)]
enum Broken {
    /// Who sends is gone: nothing more will come from there, nor go there.
    Source,
    /// Who receives is gone; what it sent before may still be on its way.
    Sink,
}

#[derive(Debug, Default)]
struct Direction {
    /// Read and not written yet, and how much of it is.
    held: Vec<u8>,
    written: usize,
    ended: bool,
    done: bool,
}

/// Copies between a client and the server that was dialled for it. A connection that breaks on one side breaks on the
/// other.
pub async fn relay(client: &mut TcpStream, server: &mut TcpStream, passage: &Passage) {
    let broke = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let (mut out, mut back) = (Direction::default(), Direction::default());
        poll_fn(|cx| {
            if !out.done {
                let count = |octets| passage.sent(octets);
                match out.poll(cx, &mut from_client, &mut to_server, back.is_over(), count) {
                    Poll::Ready(Err(Broken::Source)) => return Poll::Ready(true),
                    // An answer may be there already, or on its way.
                    Poll::Ready(Ok(()) | Err(Broken::Sink)) => out.done = true,
                    Poll::Pending => {}
                }
            }
            if !back.done {
                let count = |octets| passage.received(octets);
                match back.poll(cx, &mut from_server, &mut to_client, out.is_over(), count) {
                    Poll::Ready(Err(_)) => return Poll::Ready(true),
                    Poll::Ready(Ok(())) => back.done = true,
                    Poll::Pending => {}
                }
            }
            if out.done && back.done { Poll::Ready(false) } else { Poll::Pending }
        })
        .await
    };
    if broke {
        reset(client);
        reset(server);
    }
}

/// The other end is to see a reset, not an orderly end. What was written before arrives before
/// it, as far as the other end has room for it.
pub fn reset(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    // What waits for an end that does not come now ([`write`]'s `last`) would be thrown away: this sends it (tcp(7)).
    socket.set_tcp_nodelay(true).ok();
    ends_by_reset(stream, true);
}

/// How it ends when nothing more is said of it.
pub fn ends_by_reset(stream: &TcpStream, is_so: bool) {
    socket2::SockRef::from(stream).set_linger(is_so.then_some(std::time::Duration::ZERO)).ok();
}

/// The other end is told now of what was received, where the next octets to it would have said so: it may wait for that.
pub fn acknowledge(stream: &TcpStream) {
    // Else the kernel does it after some 40 ms (delayed acknowledgement, RFC 9293 §3.8.6.3).
    socket2::SockRef::from(stream).set_tcp_quickack(true).ok();
}

impl Direction {
    /// Its end was heard and told: nothing of it is left to read. Closing what still holds octets is a reset, and would
    /// take the other direction's last word with it.
    fn is_over(&self) -> bool {
        self.done && self.ended
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        last: bool,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..TURN {
            while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
                match ready!(Pin::new(&mut *to).poll_write(cx, rest)) {
                    Ok(octets) => self.written += octets,
                    Err(_) => return Poll::Ready(Err(Broken::Sink)),
                }
            }
            (self.held, self.written) = (Vec::new(), 0);
            if self.ended && last {
                // Both sockets are closed next, which says the same.
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                    Ok(()) => Poll::Ready(Ok(())),
                    Err(_) => Poll::Ready(Err(Broken::Sink)),
                };
            }
            let octets = CHUNKS.with_borrow_mut(|chunk| self.step(cx, from, to, chunk));
            match ready!(octets) {
                Ok(0) => self.ended = true,
                Ok(octets) => count(octets),
                Err(broken) => return Poll::Ready(Err(broken)),
            }
        }
        // There may be more; others first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once, and writes what the receiver takes now; holds the rest.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        chunk: &mut [u8],
    ) -> Poll<Result<usize, Broken>> {
        let mut buffer = ReadBuf::new(chunk);
        match ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer)) {
            Ok(()) => {}
            Err(_) => return Poll::Ready(Err(Broken::Source)),
        }
        let read = buffer.filled();
        if read.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let is_last = pin!(from.ready(Interest::READABLE)).poll(cx);
        let is_last = matches!(is_last, Poll::Ready(Ok(ready)) if ready.is_read_closed());
        let written = match poll_write(cx, to.as_ref(), read, is_last) {
            Poll::Ready(Ok(octets)) => octets,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Sink)),
            Poll::Pending => 0,
        };
        self.held.extend_from_slice(read.get(written..).unwrap_or_default());
        Poll::Ready(Ok(read.len()))
    }
}

/// Writes what the receiver takes now. `last`: what fills no packet waits for the end, which follows at once (send(2),
/// MSG_MORE): one packet instead of two.
fn try_write(to: &TcpStream, octets: &[u8], last: bool) -> io::Result<usize> {
    let flags = if last { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    to.try_io(Interest::WRITABLE, || Ok(send(to, octets, flags)?))
}

fn poll_write(cx: &mut Context<'_>, to: &TcpStream, octets: &[u8], last: bool) -> Poll<io::Result<usize>> {
    loop {
        ready!(to.poll_write_ready(cx))?;
        match try_write(to, octets, last) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

/// Writes all of it.
pub async fn write_all(stream: &TcpStream, octets: &[u8]) -> io::Result<()> {
    write(stream, octets, false).await
}

/// Writes all of it; `last` as above.
pub async fn write(stream: &TcpStream, mut octets: &[u8], last: bool) -> io::Result<()> {
    while !octets.is_empty() {
        match try_write(stream, octets, last) {
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(in crate::gate) mod tests {
    use super::*;
    use crate::allowlist::{DomainName, Wire};
    use crate::gate::roll::{Key, Roll};
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    pub(in crate::gate) async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (far, listener.accept().await.unwrap().0)
    }

    fn passage() -> Arc<Passage> {
        let key = Key {
            name: DomainName::parse("a.test").unwrap(),
            address: "192.0.2.1".parse().unwrap(),
            port: 443,
            uid: None,
        };
        Arc::new(Roll::new(64)).enter().pass(key, Wire::Tls, false)
    }

    /// A client and a server with a relay between them.
    async fn joined() -> (TcpStream, TcpStream, tokio::task::JoinHandle<()>) {
        let ((client, mut left), (server, mut right)) = (pair().await, pair().await);
        let task = tokio::spawn(async move { relay(&mut left, &mut right, &passage()).await });
        (client, server, task)
    }

    #[tokio::test]
    async fn both_ways_at_once_and_a_half_close_closes_half() {
        let (mut client, mut server, task) = joined().await;
        let out: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let back: Vec<u8> = out.iter().rev().copied().collect();
        let expected = (out.clone(), back.clone());
        let at_server = tokio::spawn(async move {
            let (mut reader, mut writer) = server.split();
            let mut heard = Vec::new();
            // Its own words first: who waits for the other to begin would wait for ever.
            let (_, read) = tokio::join!(writer.write_all(&back), reader.read_to_end(&mut heard));
            read.unwrap();
            // The client has said that it is done; the server is not.
            writer.write_all(b"last").await.unwrap();
            heard
        });
        let (mut reader, mut writer) = client.split();
        let mut heard = Vec::new();
        let write = async {
            writer.write_all(&out).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(reader.read_to_end(&mut heard), write);
        read.unwrap();
        assert!(at_server.await.unwrap() == expected.0);
        assert!(heard.strip_suffix(b"last").unwrap() == expected.1);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_is_a_reset_on_the_other_side() {
        for from_client in [true, false] {
            let (client, server, task) = joined().await;
            let (gone, mut left) = if from_client { (client, server) } else { (server, client) };
            reset(&gone);
            drop(gone);
            let error = left.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            task.await.unwrap();
        }
    }

    /// As a server does that refuses a large upload: it answers, and closes what it has not read.
    #[tokio::test]
    async fn the_last_words_before_a_reset_arrive_before_it() {
        let (mut client, server, task) = joined().await;
        client.write_all(b"more than it reads").await.unwrap();
        server.readable().await.unwrap();
        // At once: when the relay looks, the words and the reset are both there.
        server.try_write(b"too large").unwrap();
        drop(server);
        let mut heard = [0; 9];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"too large");
        let error = client.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn who_takes_nothing_stops_the_sender_and_costs_one_chunk() {
        let (client, mut server, task) = joined().await;
        let mut sent = 0;
        // Until nothing moves any more: the buffers of four sockets and of one chunk are full.
        while let Ok(ready) =
            tokio::time::timeout(std::time::Duration::from_millis(300), client.writable()).await
        {
            ready.unwrap();
            match client.try_write(&[7; 65_536]) {
                Ok(octets) => sent += octets,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(sent < 64 << 20, "{sent}");
        drop(client);
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), sent, "and nothing of it is lost");
        drop(server);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_before_the_question_is_over_arrives() {
        let (mut client, mut server, task) = joined().await;
        client.write_all(&[1; 100_000]).await.unwrap();
        let mut first = [0; 10];
        server.read_exact(&mut first).await.unwrap();
        server.write_all(b"no more, please").await.unwrap();
        server.shutdown().await.unwrap();
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"no more, please");
        drop((client, server));
        task.await.unwrap();
    }
}
