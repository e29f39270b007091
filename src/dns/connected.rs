//! Sockets to the upstreams: Tokio's, but the UDP ones are connected.
//!
//! The kernel then drops what comes from elsewhere, and a closed port is an error at once instead of a time-out.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};

/// The runtime as hickory wants to have it described.
#[derive(Clone, Default)]
pub struct Connected(TokioRuntimeProvider);

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
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        self.0.connect_tcp(server, local, timeout)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(ConnectedUdp::new(socket))
        })
    }
}

/// A socket for one question. An ICMP error wakes nobody who waits for data only (epoll says EPOLLERR without EPOLLIN),
/// so it is waited for as well.
pub struct ConnectedUdp {
    socket: Arc<UdpSocket>,
    failure: Mutex<Pin<Box<dyn Future<Output = io::Error> + Send>>>,
}

impl std::fmt::Debug for ConnectedUdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.socket.fmt(f)
    }
}

impl ConnectedUdp {
    fn new(socket: UdpSocket) -> Self {
        let socket = Arc::new(socket);
        let watched = socket.clone();
        let failure = Mutex::new(Box::pin(async move {
            match watched.ready(Interest::ERROR).await {
                Ok(_) => watched.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::Other.into()),
                Err(error) => error,
            }
        }) as Pin<Box<dyn Future<Output = io::Error> + Send>>);
        Self { socket, failure }
    }
}

impl DnsUdpSocket for ConnectedUdp {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        if let Poll::Ready(received) = DnsUdpSocket::poll_recv_from(&*self.socket, cx, buffer) {
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
        DnsUdpSocket::poll_send_to(&*self.socket, cx, buffer, target)
    }
}
