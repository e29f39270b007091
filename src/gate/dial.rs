//! Reaches a name: asks for its addresses and connects to one of them.
//!
//! Where the client was going itself comes first, if the name has that address: it chose, or fell back, for a reason.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::names::{Names, NamesError};
use super::through::ThroughError;
use crate::allowlist::DomainName;
use crate::dns::answer::Family;

/// RFC 8305 §5: the next address is tried too after this.
const STAGGER: Duration = Duration::from_millis(250);
/// All addresses together.
const LIMIT: Duration = Duration::from_secs(15);
/// Both families, with what is asked of the resolver.
const WHOLE: Duration = Duration::from_secs(45);
/// Addresses that are tried.
const MOST: usize = 8;
/// Sockets that race with the first one of their connection, in the whole worker: a name whose servers do not answer, asked
/// for often enough, would take all descriptors otherwise.
pub const SPARE: usize = 256;
static RACING: Semaphore = Semaphore::const_new(SPARE);
/// Whom the client's own keep-alive no longer reaches.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new().with_time(Duration::from_secs(60));

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{name} can't be resolved")]
    Names { name: DomainName, source: NamesError },
    #[error("{name}:{port} can't be reached")]
    Connect { name: DomainName, port: u16, source: io::Error },
    #[error("{address} can't be reached")]
    Address { address: SocketAddr, source: io::Error },
    #[error("{name}:{port} can't be reached within {} s", WHOLE.as_secs())]
    Late { name: DomainName, port: u16 },
    #[error("{name} can't be reached")]
    Through { name: DomainName, source: ThroughError },
}

/// Connects to `name`. `toward`: where the client was going, if that is known. Who has nothing to say to the server at once
/// has that said by [`super::relay::acknowledge`].
pub async fn dial(
    names: &Names,
    name: &DomainName,
    port: u16,
    toward: Option<IpAddr>,
) -> Result<(TcpStream, IpAddr), DialError> {
    let late = || DialError::Late { name: name.clone(), port };
    timeout(WHOLE, try_all(names, name, port, toward)).await.unwrap_or_else(|_| Err(late()))
}

async fn try_all(
    names: &Names,
    name: &DomainName,
    port: u16,
    toward: Option<IpAddr>,
) -> Result<(TcpStream, IpAddr), DialError> {
    let first = if toward.is_some_and(|address| address.is_ipv6()) { Family::V6 } else { Family::V4 };
    let other = if first == Family::V4 { Family::V6 } else { Family::V4 };
    // The client connected at once, since it was sent here: a family that leads nowhere is ours to notice (RFC 8305).
    let mut begun = pin!(try_family(names, name, (port, first), toward));
    match timeout(STAGGER, &mut begun).await {
        Ok(Ok(reached)) => return Ok(reached),
        Ok(Err(error)) => {
            // The first family's reason says more than that the other has no address.
            let also = Box::pin(try_family(names, name, (port, other), toward));
            return also.await.map_err(|other| other.instead_of(error));
        }
        Err(_) => {}
    }
    let failed = Notify::new();
    // On the heap, as is whatever few connections come to: what all of them wait in is small.
    let mut also = Box::pin(async {
        let _place = tokio::select! {
            place = RACING.acquire() => place.ok(),
            // The first family has left its own.
            () = failed.notified() => None,
        };
        try_family(names, name, (port, other), toward).await
    });
    tokio::select! {
        biased;
        reached = &mut begun => match reached {
            Ok(reached) => Ok(reached),
            Err(error) => {
                failed.notify_one();
                also.await.map_err(|other| other.instead_of(error))
            }
        },
        reached = &mut also => match reached {
            Ok(reached) => Ok(reached),
            Err(other) => begun.await.map_err(|error| other.instead_of(error)),
        },
    }
}

async fn try_family(
    names: &Names,
    name: &DomainName,
    (port, family): (u16, Family),
    toward: Option<IpAddr>,
) -> Result<(TcpStream, IpAddr), DialError> {
    let failed = |source| DialError::Connect { name: name.clone(), port, source };
    let mut tried = None;
    if let Some(addresses) = names.remembered(name, family) {
        match race(order(&addresses, toward), port).await {
            Ok(reached) => return Ok(reached),
            // What was remembered may be closed by now.
            Err(source) => {
                names.forget(name);
                tried = Some((addresses, source));
            }
        }
    }
    let asked = Box::pin(names.ask(name, family)).await;
    let addresses = asked.map_err(|source| DialError::Names { name: name.clone(), source })?;
    match tried {
        // Those that were tried just now are not tried again.
        Some((before, source)) if before == addresses => Err(failed(source)),
        Some(_) | None => race(order(&addresses, toward), port).await.map_err(failed),
    }
}

impl DialError {
    /// Of the reasons of both families the one that says more.
    fn instead_of(self, first: Self) -> Self {
        if matches!(self, Self::Connect { .. }) && matches!(first, Self::Names { .. }) { self } else { first }
    }
}

/// Connects to an address that the operator chose.
pub async fn dial_address(address: SocketAddr) -> Result<(TcpStream, IpAddr), DialError> {
    let failed = |source| DialError::Address { address, source };
    race(vec![address.ip()], address.port()).await.map_err(failed)
}

fn order(addresses: &[IpAddr], toward: Option<IpAddr>) -> Vec<IpAddr> {
    let own = addresses.iter().filter(|address| toward == Some(**address));
    let others = addresses.iter().filter(|address| toward != Some(**address));
    own.chain(others).take(MOST).copied().collect()
}

/// The first that answers.
async fn race(addresses: Vec<IpAddr>, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let mut waiting = addresses.into_iter();
    let Some(first) = waiting.next() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
    if waiting.len() == 0 {
        // Nothing to race with: the whole has a limit of its own.
        return connect(first, port).await;
    }
    Box::pin(race_all(first, waiting, port)).await
}

async fn race_all(
    first: IpAddr,
    mut waiting: std::vec::IntoIter<IpAddr>,
    port: u16,
) -> io::Result<(TcpStream, IpAddr)> {
    let mut running = JoinSet::new();
    running.spawn(connect_in(None, first, port));
    let mut worst = None;
    let all = async {
        loop {
            let next = sleep(STAGGER);
            tokio::select! {
                biased;
                Some(done) = running.join_next() => match done {
                    Ok(Ok(reached)) => return Ok(reached),
                    Ok(Err(error)) => worst = Some(error),
                    Err(_) => {}
                },
                () = next, if waiting.len() > 0 => {}
            }
            let place = RACING.try_acquire().ok();
            if place.is_none() && !running.is_empty() {
                continue;
            }
            match waiting.next() {
                Some(address) => {
                    running.spawn(connect_in(place, address, port));
                }
                None if running.is_empty() => {
                    return Err(worst.take().unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
                }
                None => {}
            }
        }
    };
    timeout(LIMIT, all).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Holds the place as long as it tries. None: that of the connection itself.
async fn connect_in(
    _place: Option<SemaphorePermit<'static>>,
    address: IpAddr,
    port: u16,
) -> io::Result<(TcpStream, IpAddr)> {
    connect(address, port).await
}

async fn connect(address: IpAddr, port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    options.set_tcp_keepalive(&KEEPALIVE)?;
    // What the client said follows at once, and carries the handshake's last acknowledgement: a packet less.
    options.set_tcp_quickack(false)?;
    Ok((socket.connect(SocketAddr::new(address, port)).await?, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    fn listener(address: &str, port: u16, backlog: i32) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address: IpAddr = address.parse().unwrap();
        socket.bind(&SocketAddr::new(address, port).into()).unwrap();
        socket.listen(backlog).unwrap();
        socket
    }

    #[tokio::test]
    async fn sockets_that_race_are_bounded_in_all() {
        let slow = listener("127.0.0.1", 0, 0);
        let at = slow.local_addr().unwrap().as_socket().unwrap();
        let _good = listener("127.0.0.2", at.port(), 16);
        // Its queue is full after one or two: the kernel drops what asks for a connection then.
        let fill = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&at.into()).ok();
            socket
        };
        let _queued: Vec<Socket> = (0..8).map(|_| fill()).collect();
        let addresses = || vec![at.ip(), "127.0.0.2".parse().unwrap()];
        let second: IpAddr = "127.0.0.2".parse().unwrap();
        assert_eq!(race(addresses(), at.port()).await.unwrap().1, second, "it takes part");

        let all = RACING.acquire_many(SPARE.try_into().unwrap()).await.unwrap();
        let mut racing = pin!(race(addresses(), at.port()));
        assert!(timeout(3 * STAGGER, &mut racing).await.is_err(), "there is no place for it");
        // One that failed leaves its place to the next, whatever others hold.
        let refused = ["127.0.0.3", "127.0.0.2"].map(|address| address.parse().unwrap()).to_vec();
        assert_eq!(race(refused, at.port()).await.unwrap().1, second);
        drop(all);
        assert_eq!(racing.await.unwrap().1, second, "now there is");
    }
}
