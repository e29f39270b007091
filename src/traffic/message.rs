//! Messages of NETLINK_SOCK_DIAG by the fixed layouts of linux/inet_diag.h and linux/tcp.h: strict, bounded. (pure)
//!
//! netlink-packet-sock-diag wants a `tcp_info` as long as that of the newest kernel; it has grown with every second one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `SOCK_DIAG_BY_FAMILY`
pub const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR`, `NLMSG_DONE`
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;
/// `INET_DIAG_INFO`: a `struct tcp_info`.
const INFO: u16 = 2;
/// Port of the box's own resolver, to which every question is redirected: none of it leaves.
pub const DNS: u16 = 53;

pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;
/// IANA's number.
pub const TCP: u8 = 6;

/// One connection and what it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The kernel's name for the socket, never used twice.
    pub cookie: u64,
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// Octets of payload that were handed to the network, each once.
    pub sent: u64,
    pub received: u64,
}

impl Connection {
    /// Whether it carried anything out of the box.
    #[must_use]
    pub fn leaves(&self) -> bool {
        let inside = |(address, _): (IpAddr, u16)| address.is_loopback() || address.is_unspecified();
        let carried = self.sent > 0 || self.received > 0;
        carried
            && !inside(self.local)
            && !inside(self.remote)
            && self.local.0 != self.remote.0
            && self.remote.1 != DNS
    }
}

/// What the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Connection(Connection),
    /// The list is complete.
    Done,
    /// An error number, positive.
    Failed(i32),
    /// Nothing that matters here.
    Other,
}

/// The messages of one datagram; what is cut or odd ends it.
#[must_use]
pub fn parse(datagram: &[u8]) -> Vec<Said> {
    let (mut rest, mut said) = (datagram, Vec::new());
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER..length) else { break };
        said.push(match kind {
            BY_FAMILY => connection(body).map_or(Said::Other, Said::Connection),
            DONE => Said::Done,
            ERROR => Said::Failed(
                u32_at(body, 0).map_or(0, |code| i32::from_ne_bytes(code.to_ne_bytes()).saturating_neg()),
            ),
            _ => Said::Other,
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    said
}

/// `struct inet_diag_msg` and its attributes.
fn connection(body: &[u8]) -> Option<Connection> {
    let family = *body.first()?;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = body.get(at..at.checked_add(16)?)?.try_into().ok()?;
        match family {
            IPV4 => octets.first_chunk::<4>().map(|four| IpAddr::V4(Ipv4Addr::from(*four))),
            // An IPv6 socket may be connected to ::ffff:a.b.c.d.
            IPV6 => Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()),
            _ => None,
        }
    };
    let port = |at: usize| body.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_be_bytes);
    let local = (address(8)?, port(4)?);
    let remote = (address(24)?, port(6)?);
    let cookie = u64_at(body, 44)?;
    let (sent, received) = octets(attribute(body.get(MESSAGE..)?, INFO)?)?;
    Some(Connection { cookie, local, remote, sent, received })
}

/// The payload of the first attribute of this type.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let payload = rest.get(4..length)?;
        // The two highest bits say how the payload is coded.
        if kind & 0x3fff == wanted {
            return Some(payload);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// What `struct tcp_info` says of octets, sent and received.
fn octets(info: &[u8]) -> Option<(u64, u64)> {
    let received = u64_at(info, 128)?;
    let sent = match (u64_at(info, 200), u64_at(info, 208)) {
        (Some(sent), Some(again)) => sent.saturating_sub(again),
        // Before 4.19: what was acknowledged, and the SYN counts as one.
        _ => u64_at(info, 120)?.saturating_sub(1),
    };
    Some((sent, received))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
}

/// TCP_ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: the states in which something was carried and
/// the socket has not ended.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Asks for every living TCP connection of a family, with its `tcp_info`.
#[must_use]
pub fn list(family: u8) -> Vec<u8> {
    let mut request = Vec::with_capacity(72);
    request.extend(72_u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_DUMP
    request.extend(0x301_u16.to_ne_bytes());
    request.extend([0; 8]);
    // struct inet_diag_req_v2
    request.extend([family, TCP, 1 << (INFO - 1), 0]);
    request.extend(STATES.to_ne_bytes());
    request.resize(72, 0);
    request
}

#[cfg(test)]
mod tests {
    use super::{Connection, DONE, ERROR, IPV4, IPV6, Said, list, parse};

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn body(family: u8, remote: &[u8], port: u16, info: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 1, 0, 0];
        body.extend(40_000_u16.to_be_bytes());
        body.extend(port.to_be_bytes());
        let mut local = vec![0; 16];
        local[..4].copy_from_slice(&[10, 0, 0, 2]);
        body.extend(local);
        let mut place = remote.to_vec();
        place.resize(16, 0);
        body.extend(place);
        body.extend([0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        body.resize(72, 0);
        // INET_DIAG_PROTOCOL first, of one octet.
        body.extend([5, 0, 15, 0, 6, 0, 0, 0]);
        body.extend(u16::try_from(4 + info.len()).unwrap().to_ne_bytes());
        body.extend(2_u16.to_ne_bytes());
        body.extend(info);
        body
    }

    fn info(sent: u64, again: u64, received: u64, length: usize) -> Vec<u8> {
        let mut info = vec![0; 256];
        info[120..128].copy_from_slice(&(sent - again + 1).to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info[200..208].copy_from_slice(&sent.to_ne_bytes());
        info[208..216].copy_from_slice(&again.to_ne_bytes());
        info.truncate(length);
        info
    }

    #[test]
    fn what_was_sent_again_does_not_count_and_older_kernels_say_it_otherwise() {
        for length in [256, 216, 200, 136] {
            let datagram =
                message(20, &body(IPV4, &[93, 184, 215, 14], 443, &info(5000, 1000, 70_000, length)));
            let said = parse(&datagram);
            let [Said::Connection(seen)] = said.as_slice() else { panic!("{length}: {said:?}") };
            assert_eq!((seen.sent, seen.received), (4000, 70_000), "{length}");
            assert_eq!(seen.cookie.to_ne_bytes(), [7, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(seen.remote, ("93.184.215.14".parse().unwrap(), 443));
            assert_eq!(seen.local, ("10.0.0.2".parse().unwrap(), 40_000));
            assert!(seen.leaves());
        }
    }

    #[test]
    fn ipv6_and_ipv4_in_ipv6_are_read() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 93, 184, 215, 14];
        let said = parse(&message(20, &body(IPV6, &mapped, 80, &info(1, 0, 1, 256))));
        let [Said::Connection(seen)] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!(seen.remote.0.to_string(), "93.184.215.14");
    }

    #[test]
    fn a_list_has_several_messages_and_an_end() {
        let mut datagram = message(20, &body(IPV4, &[1, 2, 3, 4], 443, &info(1, 0, 1, 256)));
        datagram.extend(message(20, &body(9, &[1, 2, 3, 4], 443, &info(1, 0, 1, 256))));
        datagram.extend(message(DONE, &[0; 4]));
        let said = parse(&datagram);
        assert!(matches!(said.as_slice(), [Said::Connection(_), Said::Other, Said::Done]), "{said:?}");
        assert_eq!(parse(&message(ERROR, &(-2_i32).to_ne_bytes())), [Said::Failed(2)]);
        assert_eq!(list(IPV6).len(), 72);
    }

    #[test]
    fn every_cut_is_nothing_or_less() {
        let whole = message(20, &body(IPV4, &[1, 2, 3, 4], 443, &info(7, 0, 9, 256)));
        for cut in 0..whole.len() {
            let said = parse(&whole[..cut]);
            assert!(said.is_empty(), "{cut}: {said:?}");
            // A length that lies about what is there.
            let mut lying = whole[..cut].to_vec();
            if let Some(length) = lying.get_mut(..4) {
                length.copy_from_slice(&u32::try_from(cut).unwrap().to_ne_bytes());
            }
            for said in parse(&lying) {
                assert!(matches!(said, Said::Other | Said::Connection(_)), "{cut}: {said:?}");
            }
        }
        for garbage in [&[0xff; 64][..], &[0; 64], &[1, 0, 0, 0]] {
            assert!(parse(garbage).iter().all(|said| *said == Said::Other), "{:?}", parse(garbage));
        }
    }

    #[test]
    fn what_stays_inside_does_not_leave() {
        let connection = |local: &str, remote: &str, port| Connection {
            cookie: 1,
            local: (local.parse().unwrap(), 1),
            remote: (remote.parse().unwrap(), port),
            sent: 1,
            received: 0,
        };
        assert!(connection("10.0.0.2", "93.184.215.14", 443).leaves());
        for inside in [
            connection("127.0.0.1", "127.0.0.1", 443),
            connection("127.0.0.53", "10.0.0.2", 443),
            connection("10.0.0.2", "10.0.0.2", 443),
            connection("::1", "::1", 443),
            connection("10.0.0.2", "8.8.8.8", 53),
            Connection { sent: 0, ..connection("10.0.0.2", "93.184.215.14", 443) },
        ] {
            assert!(!inside.leaves(), "{inside:?}");
        }
    }
}
