//! Copies octets both ways until both sides are done. A side that stops sending may still receive (half-close); a side
//! that takes nothing stops the other (back-pressure).
//!
//! Everybody reads into one buffer of the worker's, and what is read is written at once: a connection holds memory only
//! while its receiver is slower than its sender.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

/// Why copying ended before both sides were done.
#[derive(Debug)]
enum Broken {
    /// Who sends is gone: nothing more will come from there, nor go there.
    Source,
    /// Who receives is gone; what it sent before may still be on its way.
    Sink,
}

#[derive(Debug, Default)]
struct Way {
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
        let (mut out, mut back) = (Way::default(), Way::default());
        poll_fn(|cx| {
            if !out.done {
                match out.poll(cx, &mut from_client, &mut to_server, |octets| passage.sent(octets)) {
                    Poll::Ready(Err(Broken::Source)) => return Poll::Ready(true),
                    // An answer may be there already, or on its way.
                    Poll::Ready(Ok(()) | Err(Broken::Sink)) => out.done = true,
                    Poll::Pending => {}
                }
            }
            if !back.done {
                match back.poll(cx, &mut from_server, &mut to_client, |octets| passage.received(octets)) {
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

/// The other end is to see a reset, not an orderly end.
pub fn reset(stream: &TcpStream) {
    // Too late is good enough.
    socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).ok();
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
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
        let written = match Pin::new(&mut *to).poll_write(cx, read) {
            Poll::Ready(Ok(octets)) => octets,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Sink)),
            Poll::Pending => 0,
        };
        self.held.extend_from_slice(read.get(written..).unwrap_or_default());
        Poll::Ready(Ok(read.len()))
    }
}

/// Writes all of it.
pub async fn write_all(stream: &TcpStream, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        match stream.try_write(octets) {
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
