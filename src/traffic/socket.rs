//! The sockets on which the kernel tells of connections.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::NetlinkAddr;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use socket2::{SockFilter, SockRef};

use super::message::{self, Connection, DNS, IPV4, IPV6, Said};

/// `SKNLGRP_INET_TCP_DESTROY` (1) and `SKNLGRP_INET6_TCP_DESTROY` (3) of linux/sock_diag.h, as bits from the first on.
const GROUPS: u32 = 0b101;
/// Room for some 4,000 ends, each about 1 KiB of kernel memory: a lot's worth of a flood.
const QUEUE: usize = 4 << 20;
/// The kernel puts as much of a list into one datagram as is read at a time.
const DATAGRAM: usize = 32 << 10;
/// The kernel is the peer: what takes longer is no answer.
const LIST_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("cannot open a socket for the kernel's news of connections")]
    Open(#[source] io::Error),
    #[error("this kernel does not tell the ends of connections (CONFIG_INET_TCP_DIAG)")]
    Groups(#[source] io::Error),
    #[error("this kernel does not list connections (CONFIG_INET_TCP_DIAG)")]
    List(#[source] io::Error),
}

/// Tells the ends of TCP sockets of one network namespace.
#[derive(Debug)]
pub struct Ends {
    socket: OwnedFd,
}

/// Waits for news beside the reader.
#[derive(Debug)]
pub struct Waiting {
    socket: OwnedFd,
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    let protocol = Some(rustix::net::netlink::SOCK_DIAG);
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | flags, protocol)?)
}

impl Ends {
    /// In this thread's network namespace.
    pub fn open() -> Result<Self, SocketError> {
        let socket = open(SocketFlags::NONBLOCK).map_err(SocketError::Open)?;
        // Beyond the host's limit where we may (CAP_NET_ADMIN of the host's own user namespace), else up to it.
        if set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
            set_socket_recv_buffer_size(&socket, QUEUE).map_err(|error| SocketError::Open(error.into()))?;
        }
        // Before the groups: what stays inside the box never wakes us.
        SockRef::from(&socket).attach_filter(&filter()).map_err(SocketError::Open)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))
            .map_err(|error| SocketError::Groups(error.into()))?;
        Ok(Self { socket })
    }

    pub fn waiting(&self) -> io::Result<Waiting> {
        Ok(Waiting { socket: self.socket.try_clone()? })
    }

    /// What has ended since the last look, at most so many; and whether some were lost, at least how many times.
    pub fn read(&mut self, most: usize) -> (Vec<Connection>, u64) {
        let (mut ended, mut lost, mut buffer) = (Vec::new(), 0, vec![0; DATAGRAM]);
        while ended.len() < most {
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => {
                    let said = message::parse(buffer.get(..length).unwrap_or_default());
                    ended.extend(said.into_iter().filter_map(Said::connection));
                }
                // The queue was full (netlink(7)); how many did not fit is not said.
                Err(Errno::NOBUFS) => lost += 1,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        (ended, lost)
    }
}

impl Said {
    fn connection(self) -> Option<Connection> {
        match self {
            Self::Connection(connection) => Some(connection),
            Self::Done | Self::Failed(_) | Self::Other => None,
        }
    }
}

impl Waiting {
    /// Waits for news, at most so long; false when there can be no more.
    #[must_use]
    pub fn wait(&self, limit: std::time::Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        let limit = rustix::event::Timespec::try_from(limit).ok();
        match poll(&mut fds, limit.as_ref()) {
            // A full queue shows as an error, which the reader takes.
            Ok(_) => !fds.iter().any(|fd| fd.revents().intersects(PollFlags::NVAL)),
            Err(error) => error == Errno::INTR,
        }
    }
}

/// Every living connection of this thread's network namespace, at most so many.
pub fn living(most: usize) -> Result<Vec<Connection>, SocketError> {
    let mut living = Vec::new();
    for family in [IPV4, IPV6] {
        let listed = list(family, most.saturating_sub(living.len()));
        match listed {
            Ok(more) => living.extend(more),
            // A kernel without IPv6 has none to list.
            Err(_) if family == IPV6 => {}
            Err(error) => return Err(SocketError::List(error)),
        }
    }
    Ok(living)
}

fn list(family: u8, most: usize) -> io::Result<Vec<Connection>> {
    let socket = open(SocketFlags::empty())?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(LIST_LIMIT))?;
    // Connected to the kernel: nobody else's messages reach it.
    nix::sys::socket::connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(&socket, &message::list(family), SendFlags::empty())?;
    let (mut listed, mut buffer) = (Vec::new(), vec![0; DATAGRAM]);
    while listed.len() < most {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for said in message::parse(buffer.get(..length).unwrap_or_default()) {
            match said {
                Said::Connection(connection) => listed.push(connection),
                Said::Done => return Ok(listed),
                Said::Failed(code) => return Err(io::Error::from_raw_os_error(code)),
                Said::Other => {}
            }
        }
    }
    Ok(listed)
}

/// Offsets in a message: `struct nlmsghdr` has 16 octets, `struct inet_diag_msg` follows.
const FAMILY: u32 = 16;
const REMOTE_PORT: u32 = 22;
const LOCAL: u32 = 24;
const REMOTE: u32 = 40;

/// Socket filter (Documentation/networking/filter.rst) that lets pass what is connected to another machine: no
/// listeners, no loopback, no questions to the box's resolver. A flood on loopback costs PID 1 nothing.
fn filter() -> [SockFilter; 24] {
    // BPF_LD with BPF_W, BPF_H or BPF_B and BPF_ABS; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K.
    let load = |code: u16, at: u32| SockFilter::new(code, 0, 0, at);
    let (word, half, octet) = (0x20, 0x28, 0x30);
    let equal = |value: u32, yes: u8, no: u8| SockFilter::new(0x15, yes, no, value);
    let end = |length: u32| SockFilter::new(0x06, 0, 0, length);
    [
        /* 0 */ load(half, REMOTE_PORT),
        /* 1 */ equal(0, 21, 0),
        /* 2 */ equal(u32::from(DNS), 20, 0),
        /* 3 */ load(octet, FAMILY),
        /* 4 */ equal(u32::from(IPV6), 5, 0),
        // IPv4: 127.0.0.0/8 at either end.
        /* 5 */ load(octet, LOCAL),
        /* 6 */ equal(127, 16, 0),
        /* 7 */ load(octet, REMOTE),
        /* 8 */ equal(127, 14, 0),
        /* 9 */ end(u32::MAX),
        // IPv6: ::1, and 127.0.0.0/8 as ::ffff:127.0.0.0/104, at the other end.
        /* 10 */
        load(word, REMOTE),
        /* 11 */ equal(0, 0, 10),
        /* 12 */ load(word, REMOTE + 4),
        /* 13 */ equal(0, 0, 8),
        /* 14 */ load(word, REMOTE + 8),
        /* 15 */ equal(0, 2, 0),
        /* 16 */ equal(0xffff, 3, 0),
        /* 17 */ end(u32::MAX),
        /* 18 */ load(word, REMOTE + 12),
        /* 19 */ equal(1, 3, 2),
        /* 20 */ load(octet, REMOTE + 12),
        /* 21 */ equal(127, 1, 0),
        /* 22 */ end(u32::MAX),
        /* 23 */ end(0),
    ]
}
