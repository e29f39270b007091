//! Who owns a local port, by the kernel's tables in `/proc/net`. The parser is pure; reading is bounded.
//!
//! For clients of whom one end may be all that is known, by UDP, UDP-Lite and echo sockets too: the workers `dns` and `watch`.
//! Of a TCP connection with both ends the kernel is asked instead (`gate/owner.rs`). Best effort: a socket may be gone,
//! shared or reused by the time it is looked up.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// So much of a table is read: some 6,500 sockets. More would take milliseconds that other clients wait for.
const MAX_TABLE: u64 = 1 << 20;

/// Whom a socket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// None: which of several sockets of this user is not known.
    pub inode: Option<u64>,
}

/// Where the tables are: `/proc/net` outside tests.
#[derive(Debug, Clone)]
pub struct SocketTables {
    directory: PathBuf,
}

/// Which tables a client's socket is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
    UdpLite,
    /// Echo sockets (`icmp(7)`), whose port is the identifier.
    Icmp,
}

impl Protocol {
    /// The tables that may hold the sender of a packet from `address`: an IPv4 client may use an IPv6 socket
    /// (::ffff:a.b.c.d); the other way round there is nothing.
    fn tables(self, address: IpAddr) -> &'static [&'static str] {
        match (self, address) {
            (Self::Udp, IpAddr::V4(_)) => &["udp", "udp6"],
            (Self::Udp, IpAddr::V6(_)) => &["udp6"],
            (Self::Tcp, IpAddr::V4(_)) => &["tcp", "tcp6"],
            (Self::Tcp, IpAddr::V6(_)) => &["tcp6"],
            (Self::UdpLite, IpAddr::V4(_)) => &["udplite", "udplite6"],
            (Self::UdpLite, IpAddr::V6(_)) => &["udplite6"],
            (Self::Icmp, IpAddr::V4(_)) => &["icmp"],
            (Self::Icmp, IpAddr::V6(_)) => &["icmp6"],
        }
    }
}

impl SocketTables {
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The owner of the socket that sent from `client`.
    #[must_use]
    pub fn owner(&self, client: SocketAddr, protocol: Protocol) -> Option<Owner> {
        let mut tables = protocol.tables(client.ip()).iter();
        tables.find_map(|table| find_owner(&read(&self.directory.join(table)), client))
    }

    /// The owner of the socket that sent a packet from `local` to `remote`, where several may share the port.
    #[must_use]
    pub fn sender(&self, local: SocketAddr, remote: SocketAddr, protocol: Protocol) -> Option<Owner> {
        let mut tables = protocol.tables(local.ip()).iter();
        tables.find_map(|table| find_sender(&read(&self.directory.join(table)), local, remote))
    }
}

impl SocketTables {
    /// Who else than `own` is connected to `remote` by TCP, if that is one user. A table that is too long to be read tells
    /// nothing.
    #[must_use]
    pub fn towards(&self, remote: SocketAddr, own: u32) -> Option<Owner> {
        let mut owners = Vec::new();
        for table in Protocol::Tcp.tables(remote.ip()) {
            let text = read(&self.directory.join(table));
            if u64::try_from(text.len()).unwrap_or(u64::MAX) >= MAX_TABLE {
                return None;
            }
            owners.extend(find_towards(&text, remote));
        }
        only(owners.into_iter().filter(|owner| owner.uid != own))
    }
}

fn only(mut owners: impl Iterator<Item = Owner>) -> Option<Owner> {
    let mut found = owners.next()?;
    for other in owners {
        if other.uid != found.uid {
            return None;
        }
        found.inode = None;
    }
    Some(found)
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    // An unreadable table (no IPv6, hidepid) means: owner unknown. The cut may fall into a line; it doesn't parse then.
    if let Ok(file) = File::open(path) {
        file.take(MAX_TABLE).read_to_string(&mut text).ok();
    }
    text
}

/// Finds the line whose local address is `client`, or failing that the port on the unspecified address.
#[must_use]
pub fn find_owner(table: &str, client: SocketAddr) -> Option<Owner> {
    let mut unbound = None;
    for Line { local, owner, .. } in table.lines().skip(1).filter_map(parse_line) {
        if local.port() != client.port() {
            continue;
        }
        if local.ip().to_canonical() == client.ip().to_canonical() {
            return Some(owner);
        }
        if local.ip().to_canonical().is_unspecified() {
            unbound = unbound.or(Some(owner));
        }
    }
    unbound
}

/// Finds the line that fits best: bound to `local` or to the unspecified address, connected to `remote` or to nobody.
#[must_use]
pub fn find_sender(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
    let fit = |line: &Line| {
        let bound = fits(line.local, local.ip()).filter(|_| line.local.port() == local.port())?;
        let connected = fits(line.remote?, remote.ip())?;
        let port = line.remote?.port();
        // Connected sockets first: one of them owns the flow, whoever else is bound to the port.
        (port == 0 || port == remote.port()).then_some((connected, bound))
    };
    let fitting =
        table.lines().skip(1).filter_map(parse_line).filter_map(|line| Some((fit(&line)?, line.owner)));
    fitting.max_by_key(|(fit, _)| *fit).map(|(_, owner)| owner)
}

/// Finds the lines that are connected to `remote`.
#[must_use]
pub fn find_towards(table: &str, remote: SocketAddr) -> Vec<Owner> {
    let same =
        |of: SocketAddr| of.port() == remote.port() && of.ip().to_canonical() == remote.ip().to_canonical();
    let lines = table.lines().skip(1).filter_map(parse_line);
    lines.filter(|line| line.remote.is_some_and(same)).map(|line| line.owner).collect()
}

/// Whether a socket's address is this one (true) or any (false); none if it is another.
fn fits(of: SocketAddr, address: IpAddr) -> Option<bool> {
    let of = of.ip().to_canonical();
    let same = of == address.to_canonical();
    (same || of.is_unspecified()).then_some(same)
}

struct Line {
    local: SocketAddr,
    /// Unspecified where the socket is not connected.
    remote: Option<SocketAddr>,
    owner: Owner,
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn parse_line(line: &str) -> Option<Line> {
    let mut fields = line.split_ascii_whitespace();
    let local = parse_address(fields.nth(1)?)?;
    let remote = parse_address(fields.next()?);
    let uid = fields.nth(4)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    // Inode 0: the socket is in TIME_WAIT or not accepted yet, and its uid is that of nobody in particular.
    (inode != 0).then_some(Line { local, remote, owner: Owner { uid, inode: Some(inode) } })
}

/// Addresses are printed as 32-bit words in the machine's own order.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn find(lines: &str, client: &str) -> Option<Owner> {
        find_owner(&format!("{HEAD}{lines}"), client.parse().unwrap())
    }

    #[test]
    fn the_exact_address_wins_over_the_unspecified_one() {
        let lines = "  10: 00000000:A1B2 00000000:0000 07 00000000:00000000 00:00000000 00000000  1001        0 111 2 0 0\n\
                     \x20 11: 0100007F:A1B2 3500007F:0035 01 00000000:00000000 00:00000000 00000000  1000        0 222 2 0 0\n";
        assert_eq!(find(lines, "127.0.0.1:41394"), Some(Owner { uid: 1000, inode: Some(222) }));
        assert_eq!(find(lines, "127.0.0.2:41394"), Some(Owner { uid: 1001, inode: Some(111) }));
        assert_eq!(find(lines, "127.0.0.1:41395"), None);
    }

    #[test]
    fn mapped_and_real_ipv6_addresses_are_found() {
        let mapped = "  1: 0000000000000000FFFF00000100007F:0400 0:0 01 0:0 00:0 0  7 0 333 1\n";
        assert_eq!(find(mapped, "127.0.0.1:1024"), Some(Owner { uid: 7, inode: Some(333) }));
        let loopback = "  1: 00000000000000000000000001000000:0400 0:0 01 0:0 00:0 0  8 0 444 1\n";
        assert_eq!(find(loopback, "[::1]:1024"), Some(Owner { uid: 8, inode: Some(444) }));
    }

    #[test]
    fn of_several_sockets_with_one_port_the_one_with_the_right_peer_is_the_sender() {
        let line = |local: &str, remote: &str, inode: u32| {
            format!("  1: {local}:A1B2 {remote} 07 0:0 00:0 0  1000 0 {inode} 2\n")
        };
        let (any, here) = ("00000000", "0200CB0A");
        let table = [
            HEAD.to_owned(),
            line(any, "00000000:0000", 1),
            line(here, "00000000:0000", 2),
            line(here, "426433C6:01BB", 3),
            line(any, "436433C6:0000", 4),
        ]
        .concat();
        let from = "10.203.0.2:41394".parse().unwrap();
        for (to, inode) in [
            ("198.51.100.66:443", Some(3)),
            ("198.51.100.66:80", Some(2)),
            ("198.51.100.67:7", Some(4)),
            ("198.51.100.68:443", Some(2)),
        ] {
            let found = find_sender(&table, from, to.parse().unwrap()).and_then(|owner| owner.inode);
            assert_eq!(found, inode, "{to}");
        }
        let other = "10.203.0.3:41394".parse().unwrap();
        let found = find_sender(&table, other, "198.51.100.66:443".parse().unwrap());
        assert_eq!(found.and_then(|owner| owner.inode), Some(1));
    }

    #[test]
    fn who_is_connected_to_a_place_is_one_user_or_nobody() {
        let to = "198.51.100.66:443".parse().unwrap();
        let line = |remote: &str, uid: u32, inode: u64| {
            format!(
                "  1: 0200CB0A:9C40 {remote} 01 00000000:00000000 00:00000000 00000000  {uid}        0 {inode} 1 0 20\n"
            )
        };
        let (there, elsewhere) = ("426433C6:01BB", "426433C6:0050");
        let who = |lines: &[String], own: u32| {
            let found = find_towards(&[HEAD.to_owned(), lines.concat()].concat(), to);
            only(found.into_iter().filter(|owner| owner.uid != own))
        };
        let agents = [line(there, 1000, 5), line(elsewhere, 0, 6), line(there, 999, 7)];
        assert_eq!(who(&agents, 999), Some(Owner { uid: 1000, inode: Some(5) }));
        assert_eq!(who(&agents, 1), None, "it may be either");
        let both = [line(there, 1000, 5), line(there, 1000, 8)];
        assert_eq!(who(&both, 999), Some(Owner { uid: 1000, inode: None }), "which socket is not known");
        assert_eq!(who(&both, 1000), None);
    }

    #[test]
    fn odd_lines_and_sockets_without_inode_are_nobody() {
        let gone = "  1: 0100007F:0400 3500007F:0035 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0\n";
        assert_eq!(find(gone, "127.0.0.1:1024"), None);
        for odd in [
            "",
            "x",
            "1: zz:0400",
            "1: 0100007F 0",
            "1: 01:0400 0 0 0 0 0 1 0 1",
            "1: é:0400 0 0 0 0 0 1 0 1",
        ] {
            assert_eq!(find(odd, "127.0.0.1:1024"), None, "{odd}");
        }
    }

    #[test]
    fn our_own_socket_is_found_in_the_real_tables() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let owner = SocketTables::new("/proc/net").owner(socket.local_addr().unwrap(), Protocol::Udp);
        assert_eq!(owner.map(|owner| owner.uid), Some(rustix::process::getuid().as_raw()));
    }
}
