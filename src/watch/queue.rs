//! The NFLOG sockets: PID 1 opens, binds and keeps them; the worker reads.
//!
//! The kernel checks CAP_NET_ADMIN for every request on such a socket (`netlink_net_capable`), so the worker that gets
//! one can read packets of its group and nothing else. Packets wait in the socket while no worker lives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{ErrorBuffer, NLMSG_ERROR, NetlinkBuffer};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigFlags, ConfigMode, ConfigNla, config_request};
use nix::sys::socket::NetlinkAddr;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

use crate::firewall::ruleset::SNAPLEN;

/// Room for some 4,000 packets (each takes about 1 KiB of kernel memory), a fraction of a second of a flood.
const QUEUE: usize = 4 << 20;
/// More than the kernel puts into one datagram (`NLMSG_GOODSIZE`, a page).
pub const DATAGRAM: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("cannot open a netfilter netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot bind NFLOG group {group}")]
    Bind { group: u16, source: io::Error },
}

/// The socket of one NFLOG group.
#[derive(Debug)]
pub struct Queue {
    socket: OwnedFd,
}

impl Queue {
    /// Opens a socket in this thread's network namespace and makes it the reader of `group`.
    pub fn open(group: u16) -> Result<Self, QueueError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(rustix::net::netlink::NETFILTER);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map_err(|error| QueueError::Open(error.into()))?;
        // Connected to the kernel: nobody else's messages reach it.
        nix::sys::socket::connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .map_err(|error| QueueError::Open(error.into()))?;
        // Beyond the host's limit where we may (CAP_NET_ADMIN of the host's own user namespace), else up to it.
        if set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
            set_socket_recv_buffer_size(&socket, QUEUE).map_err(|error| QueueError::Open(error.into()))?;
        }
        configure(&socket, group).map_err(|source| QueueError::Bind { group, source })?;
        Ok(Self { socket })
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One request: the group is ours, headers only, and packets are numbered. How many wait for each other in a datagram
/// is said by the rules. No protocol family is bound (`PF_BIND`): that would be for rules without a group, which are
/// others'.
fn configure(socket: &OwnedFd, group: u16) -> io::Result<()> {
    let request = config_request(
        NetfilterProtoFamily::Unspec,
        group,
        vec![
            ConfigNla::Cmd(ConfigCmd::Bind),
            ConfigNla::Mode(ConfigMode::new_packet(SNAPLEN)),
            ConfigNla::Flags(ConfigFlags::SEQ),
        ],
    );
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    send(socket, &bytes, SendFlags::empty())?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // nfnetlink answers inside the system call; packets of the group may come before the answer is read.
        let (_, length) = recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
        let answer = NetlinkBuffer::new_checked(buffer.get(..length).unwrap_or_default());
        let Ok(answer) = answer else { return Err(io::ErrorKind::InvalidData.into()) };
        if answer.message_type() == NLMSG_ERROR {
            let error = ErrorBuffer::new_checked(answer.payload()).map_err(io::Error::other)?;
            return error.code().map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(-code.get())));
        }
    }
}
