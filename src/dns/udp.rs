//! DNS over UDP: takes questions in batches and answers what it can in the same turn.
//!
//! Not hickory's own loop: that one makes a task of every packet, so that a flood of refused names stands in the queue
//! before everything else. Here a turn is bounded, and the rest of the worker has its turn after each.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::reply::{Parsed, parse};
use super::server::{Begun, Responder, Waiting};

/// Questions of one turn: some 100 µs, which is what anybody else waits for.
const BATCH: usize = 32;
/// Room for a question. The longest name, EDNS and a cookie make some 350 octets; what is cut off is not understood.
const MAX_QUESTION: usize = 1280;
/// After an error that is not about one packet: it does not go away by trying at once.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `socket` for ever.
pub async fn serve(socket: UdpSocket, responder: Arc<Responder>) {
    let socket = Arc::new(socket);
    let mut batch = Batch::new();
    loop {
        if socket.readable().await.is_err() {
            sleep(PAUSE).await;
            continue;
        }
        match socket.try_io(Interest::READABLE, || batch.receive(&socket)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        }
        for (message, client) in batch.questions.drain(..) {
            match parse(message, client, Protocol::Udp) {
                Parsed::Question(request) => match responder.begin(&request) {
                    Begun::Done(reply) => {
                        batch.replies.add(client, |bytes| reply.encode(&request, bytes));
                    }
                    Begun::Waits(waiting) => {
                        tokio::spawn(answer_later(socket.clone(), responder.clone(), request, waiting));
                    }
                },
                Parsed::Broken(reply) => batch.replies.add(client, |bytes| bytes.extend(reply)),
                Parsed::Ignored => {}
            }
        }
        batch.replies.send(&socket);
        yield_now().await;
    }
}

async fn answer_later(
    socket: Arc<UdpSocket>,
    responder: Arc<Responder>,
    request: Box<Request>,
    waiting: Waiting,
) {
    let reply = responder.finish(waiting).await;
    let mut bytes = Vec::with_capacity(512);
    reply.encode(&request, &mut bytes);
    if !bytes.is_empty() {
        // Who can't be reached has gone.
        drop(socket.send_to(&bytes, request.src()).await);
    }
}

struct Batch {
    space: Vec<[u8; MAX_QUESTION]>,
    questions: Vec<(Vec<u8>, SocketAddr)>,
    replies: Replies,
}

impl Batch {
    fn new() -> Self {
        Self {
            space: vec![[0; MAX_QUESTION]; BATCH],
            questions: Vec::with_capacity(BATCH),
            replies: Replies::default(),
        }
    }

    /// Takes what has arrived, at most a batch.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.space.iter_mut().map(|space| [IoSliceMut::new(space)]).collect();
        // Not kept: it holds pointers, which don't go from thread to thread.
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None);
        let received = match received {
            Ok(received) => received,
            Err(Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for message in received {
            let Some(client) = message.address.as_ref().and_then(address) else { continue };
            let octets = message.iovs().next().unwrap_or_default();
            self.questions.push((octets.to_vec(), client));
        }
        Ok(())
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6))))
}

/// Replies of one turn. The octets' space is used again.
#[derive(Default)]
struct Replies {
    to: Vec<SocketAddrAny>,
    space: Vec<Vec<u8>>,
}

impl Replies {
    fn add(&mut self, client: SocketAddr, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.to.len();
        if at == self.space.len() {
            self.space.push(Vec::with_capacity(512));
        }
        let Some(bytes) = self.space.get_mut(at) else { return };
        bytes.clear();
        write(bytes);
        if !bytes.is_empty() {
            self.to.push(SocketAddrAny::from(client));
        }
    }

    /// Sends them all. One that can't leave is lost, as any datagram may be; its client asks again.
    fn send(&mut self, socket: &UdpSocket) {
        let slices: Vec<[IoSlice<'_>; 1]> =
            self.space.iter().take(self.to.len()).map(|bytes| [IoSlice::new(bytes)]).collect();
        let mut nothing: Vec<SendAncillaryBuffer<'_, '_, '_>> =
            self.to.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut headers: Vec<MMsgHdr<'_>> = (self.to.iter().zip(&slices).zip(&mut nothing))
            .map(|((to, slice), nothing)| MMsgHdr::new_with_addr(to, slice, nothing))
            .collect();
        let mut left = headers.as_mut_slice();
        while !left.is_empty() {
            let sent = sendmmsg(socket, left, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            // An error is about the first of them.
            let done = sent.unwrap_or(1).max(1);
            left = left.get_mut(done..).unwrap_or_default();
        }
        drop(headers);
        self.to.clear();
    }
}
