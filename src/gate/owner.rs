//! Whose connection it is: the client's socket, asked from the kernel by its two ends (sock_diag(7)).
//!
//! One question about one socket, a few microseconds however many there are: the tables of
//! [`socket_table`](crate::socket_table) would have to be read whole. For connected TCP sockets only, whose two ends are known.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::NetlinkAddr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::socket_table::{Owner, SocketTables};
use crate::time_share::TimeShare;
use crate::traffic::message::{BY_FAMILY, IPV4, IPV6, TCP};

/// The kernel is the peer, and answers within `send`.
const LIMIT: Duration = Duration::from_millis(100);
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `struct nlmsghdr`, and offsets in `struct inet_diag_msg` (linux/inet_diag.h) behind it.
const HEADER: usize = 16;
const UID: usize = HEADER + 64;
const INODE: usize = HEADER + 68;

/// Asks the kernel of this network namespace.
#[derive(Debug)]
pub struct Owners {
    socket: Mutex<Asked>,
    tables: SocketTables,
    agent: u32,
    /// What may be spent on reading them.
    looking: Mutex<TimeShare>,
}

/// Reading tables takes a millisecond and more, and clients can see to it that it is wanted: so much at once, and this share
/// of the time.
const MOST_LOOKING: Duration = Duration::from_millis(100);
const SHARE_LOOKING: f64 = 0.02;

#[derive(Debug)]
struct Asked {
    socket: OwnedFd,
    /// An answer came too late, and may be there now.
    owed: bool,
}

impl Owners {
    pub fn open(agent: u32) -> io::Result<Self> {
        let protocol = Some(rustix::net::netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
        // Connected to the kernel: nobody else's messages reach it.
        nix::sys::socket::connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket: Mutex::new(Asked { socket, owed: false }),
            tables: SocketTables::new("/proc/net"),
            agent,
            looking: Mutex::new(TimeShare::new(MOST_LOOKING, SHARE_LOOKING, Instant::now())),
        })
    }

    /// The owner of the socket that is connected from `local` to `remote`; none if it is gone.
    #[must_use]
    pub fn of(&self, local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
        self.exactly(local, remote).or_else(|| self.of_the_agent_towards(remote))
    }

    /// Two sockets of one port that go to different places are redirected to the same: conntrack gives the second another port
    /// then, under which nobody knows it. Who may have sent it is whoever else is connected to that place. Only the agent is
    /// taken for it: it could see to it that somebody else seems to be the one, by closing its own socket at once.
    fn of_the_agent_towards(&self, remote: SocketAddr) -> Option<Owner> {
        let now = Instant::now();
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        if !looking.may(now) {
            return None;
        }
        let found = self.tables.towards(remote, rustix::process::getuid().as_raw());
        looking.spent(now.elapsed());
        found.filter(|owner| owner.uid == self.agent)
    }

    fn exactly(&self, local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
        let mut asked = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = [0; 512];
        if std::mem::replace(&mut asked.owed, true) {
            while recv(&asked.socket, &mut answer[..], RecvFlags::DONTWAIT).is_ok() {}
        }
        send(&asked.socket, &question(local, remote), SendFlags::empty()).ok()?;
        let (_, length) = recv(&asked.socket, &mut answer[..], RecvFlags::empty()).ok()?;
        asked.owed = false;
        understand(answer.get(..length)?)
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2` about exactly one socket.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 72;
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    // Sequence and port: one question at a time, and the kernel is the only peer.
    bytes.extend([0; 8]);
    let family = if local.is_ipv4() { IPV4 } else { IPV6 };
    bytes.extend([family, TCP, 0, 0]);
    // Every state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        let mut place = [0; 16];
        match address {
            IpAddr::V4(v4) => place.iter_mut().zip(v4.octets()).for_each(|(to, from)| *to = from),
            IpAddr::V6(v6) => place = v6.octets(),
        }
        bytes.extend(place);
    }
    // Any interface; INET_DIAG_NOCOOKIE.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([u8::MAX; 8]);
    bytes
}

fn understand(answer: &[u8]) -> Option<Owner> {
    let number = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    if kind != BY_FAMILY {
        return None;
    }
    // A socket without an inode belongs to nobody any more.
    let (uid, inode) = (number(UID)?, number(INODE)?);
    (inode != 0).then_some(Owner { uid, inode: Some(u64::from(inode)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::MetadataExt;

    fn is_found(at: &str) {
        let Ok(listener) = TcpListener::bind(at) else { return assert!(at.contains("::1")) };
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let owners = Owners::open(u32::MAX).unwrap();
        let owner = owners.of(ours, theirs).unwrap();
        assert_eq!(owner.uid, nix::unistd::getuid().as_raw());
        let descriptor = format!("/proc/self/fd/{}", client.as_raw_fd());
        assert_eq!(owner.inode, Some(std::fs::metadata(descriptor).unwrap().ino()));
        // The other end is another socket, and a third does not exist.
        let (accepted, _) = listener.accept().unwrap();
        assert_ne!(owners.of(theirs, ours), Some(owner));
        assert_eq!(owners.of(ours, SocketAddr::new(theirs.ip(), 1)), None);
        drop(accepted);
        assert_eq!(owners.of(ours, theirs), Some(owner), "asked again");
    }

    #[test]
    fn the_kernel_knows_whose_a_connection_is() {
        is_found("127.0.0.1:0");
        is_found("[::1]:0");
    }
}
