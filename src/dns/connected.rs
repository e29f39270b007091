//! Sockets to the upstreams: Tokio's, but the UDP ones are connected.
//!
//! The kernel then drops what comes from elsewhere, and a closed port is an error at once instead of a time-out. They
//! also see whether an answer repeats the question's letters as they were sent.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};

/// So many answers in a row with other letters than their question, and the upstream is taken for one that changes them.
const CHANGES: u32 = 3;

/// The runtime as hickory wants to have it described, for one upstream.
#[derive(Clone, Default)]
pub struct Connected {
    tokio: TokioRuntimeProvider,
    letters: Arc<Letters>,
}

/// Whether answers repeat the letters of their question (0x20).
#[derive(Debug, Default)]
pub struct Letters {
    changed: AtomicU32,
    in_a_row: AtomicU32,
}

impl Letters {
    fn note(&self, is_changed: bool) {
        if is_changed {
            self.changed.fetch_add(1, Ordering::Relaxed);
            self.in_a_row.fetch_add(1, Ordering::Relaxed);
        } else if !self.are_lost() {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// How many answers by UDP so far did not.
    #[must_use]
    pub fn changed(&self) -> u32 {
        self.changed.load(Ordering::Relaxed)
    }

    /// Whether this upstream is one that changes them. It stays so.
    #[must_use]
    pub fn are_lost(&self) -> bool {
        self.in_a_row.load(Ordering::Relaxed) >= CHANGES
    }
}

impl Connected {
    #[must_use]
    pub fn letters(&self) -> &Letters {
        &self.letters
    }
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connected")
    }
}

type Opening<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Connected {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = ConnectedUdp;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        self.tokio.connect_tcp(server, local, timeout)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        let letters = self.letters.clone();
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(ConnectedUdp::new(socket, letters))
        })
    }
}

/// A socket for one question. An ICMP error wakes nobody who waits for data only (epoll says EPOLLERR without EPOLLIN),
/// so it is waited for as well.
pub struct ConnectedUdp {
    socket: Arc<UdpSocket>,
    failure: Mutex<Pin<Box<dyn Future<Output = io::Error> + Send>>>,
    sent: Mutex<Vec<u8>>,
    letters: Arc<Letters>,
}

impl std::fmt::Debug for ConnectedUdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.socket.fmt(f)
    }
}

impl ConnectedUdp {
    fn new(socket: UdpSocket, letters: Arc<Letters>) -> Self {
        let socket = Arc::new(socket);
        let watched = socket.clone();
        let failure = Mutex::new(Box::pin(async move {
            match watched.ready(Interest::ERROR).await {
                Ok(_) => watched.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::Other.into()),
                Err(error) => error,
            }
        }) as Pin<Box<dyn Future<Output = io::Error> + Send>>);
        Self { socket, failure, sent: Mutex::default(), letters }
    }

    fn look_at(&self, answer: &[u8]) {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_changed) = is_changed(&sent, answer) {
            self.letters.note(is_changed);
        }
    }
}

/// Whether `answer` repeats the question of `sent` in other letters; none if that can't be told. (pure)
fn is_changed(sent: &[u8], answer: &[u8]) -> Option<bool> {
    /// RFC 1035 §4.1.1; the question follows.
    const HEADER: usize = 12;
    // A question ends with the empty label, type and class.
    let name = sent.get(HEADER..)?.iter().position(|octet| *octet == 0)?;
    let range = HEADER..HEADER + name + 5;
    let (question, repeated) = (sent.get(range.clone())?, answer.get(range)?);
    let is_ours = sent.get(..2) == answer.get(..2) && question.eq_ignore_ascii_case(repeated);
    // A question in lower case says nothing of who repeats it.
    let tells = question.iter().any(u8::is_ascii_uppercase);
    (is_ours && tells).then_some(question != repeated)
}

impl DnsUdpSocket for ConnectedUdp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        if let Poll::Ready(received) = DnsUdpSocket::poll_recv_from(&*self.socket, cx, buffer) {
            if let Ok((length, _)) = received {
                self.look_at(buffer.get(..length).unwrap_or_default());
            }
            return Poll::Ready(received);
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_mut().poll(cx).map(Err)
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buffer: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = buffer.to_vec();
        DnsUdpSocket::poll_send_to(&*self.socket, cx, buffer, target)
    }
}

#[cfg(test)]
mod tests {
    use super::{Letters, is_changed};

    const SENT: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02oK\x04tEsT\0\0\x01\0\x01rest";

    #[test]
    fn other_letters_are_noticed_and_nothing_else() {
        assert_eq!(is_changed(SENT, SENT), Some(false));
        assert_eq!(is_changed(SENT, &SENT.to_ascii_lowercase()), Some(true));
        assert_eq!(is_changed(&SENT.to_ascii_lowercase(), &SENT.to_ascii_lowercase()), None);
        let mut other_id = SENT.to_ascii_lowercase();
        other_id[0] ^= 1;
        assert_eq!(is_changed(SENT, &other_id), None);
        let mut other_name = SENT.to_ascii_lowercase();
        other_name[13] = b'x';
        assert_eq!(is_changed(SENT, &other_name), None);
        for cut in 0..25 {
            assert_eq!(is_changed(&SENT[..cut], SENT), None);
            assert_eq!(is_changed(SENT, &SENT[..cut]), None);
        }
    }

    #[test]
    fn one_forgery_does_not_make_an_upstream_odd() {
        let letters = Letters::default();
        for is_changed in [true, true, false, true, true, false] {
            letters.note(is_changed);
        }
        assert!(!letters.are_lost() && letters.changed() == 4);
        for is_changed in [true, true, true, false] {
            letters.note(is_changed);
        }
        assert!(letters.are_lost());
    }
}
