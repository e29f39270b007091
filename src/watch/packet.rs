//! The first octets of an IP packet: from where, to where, what kind. (pure)
//!
//! The octets are the agent's and may be cut anywhere. Total: the value says what is known, and what is not is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers (IANA) that this file looks into.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ICMP6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDP_LITE: u8 = 136;
}

/// What is known of a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packet {
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    /// The transport protocol, behind IPv6's extension headers.
    pub protocol: Option<u8>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// TCP's sequence number: a segment that is sent again has it again.
    pub sequence: Option<u32>,
    /// Type of an ICMP or ICMPv6 message.
    pub icmp: Option<u8>,
    /// Identifier of an echo, which a socket has where others have a port.
    pub echo: Option<u16>,
    /// Not the first fragment: there is no transport header in it.
    pub fragment: bool,
}

/// Extension headers that are followed. The kernel sends no packet with more; a forged one stays unexplained.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// Offset in units of eight octets (RFC 791 §3.1).
const FRAGMENT_OFFSET4: u16 = 0x1fff;
/// The same above three bits of flags (RFC 8200 §4.5).
const FRAGMENT_OFFSET6: u16 = 0xfff8;

/// Looks at a packet from its IP header on.
#[must_use]
pub fn parse(octets: &[u8]) -> Packet {
    match octets.first().map(|first| first >> 4) {
        Some(4) => parse4(octets),
        Some(6) => parse6(octets),
        Some(_) | None => Packet::default(),
    }
}

fn parse4(octets: &[u8]) -> Packet {
    let address = |at| chunk::<4>(octets, at).map(|a| IpAddr::V4(Ipv4Addr::from(a)));
    let offset = short(octets, 6).map(|field| field & FRAGMENT_OFFSET4);
    let mut packet = Packet {
        source: address(12),
        destination: address(16),
        protocol: octets.get(9).copied(),
        fragment: offset.is_some_and(|offset| offset != 0),
        ..Packet::default()
    };
    // Length of the header in words of four octets; five is the least (RFC 791).
    let header = octets.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    if header >= 20 && !packet.fragment {
        transport(&mut packet, octets.get(header..).unwrap_or_default());
    }
    packet
}

fn parse6(octets: &[u8]) -> Packet {
    let address = |at| chunk::<16>(octets, at).map(|a| IpAddr::V6(Ipv6Addr::from(a)));
    let mut packet = Packet { source: address(8), destination: address(24), ..Packet::default() };
    let Some(mut next) = octets.get(6).copied() else { return packet };
    let mut rest = octets.get(40..).unwrap_or_default();
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                rest.get(1).map(|units| (usize::from(*units) + 1) * 8)
            }
            // In words of four octets, less two (RFC 4302 §2.2).
            AUTHENTICATION => rest.get(1).map(|units| (usize::from(*units) + 2) * 4),
            FRAGMENT => {
                packet.fragment |= short(rest, 2).is_some_and(|field| field & FRAGMENT_OFFSET6 != 0);
                Some(8)
            }
            protocol => {
                packet.protocol = Some(protocol);
                if !packet.fragment {
                    transport(&mut packet, rest);
                }
                return packet;
            }
        };
        let (Some(following), Some(length)) = (rest.first().copied(), length) else { return packet };
        next = following;
        rest = rest.get(length..).unwrap_or_default();
        if packet.fragment {
            // What follows is the middle of something; only the number of the first header in it is known.
            packet.protocol = Some(next);
            return packet;
        }
    }
    packet
}

fn transport(packet: &mut Packet, octets: &[u8]) {
    use protocol::{DCCP, ICMP, ICMP6, SCTP, TCP, UDP, UDP_LITE};
    match packet.protocol {
        Some(TCP | UDP | DCCP | SCTP | UDP_LITE) => {
            (packet.source_port, packet.destination_port) = (short(octets, 0), short(octets, 2));
            let number = chunk(octets, 4).map(u32::from_be_bytes);
            packet.sequence = number.filter(|_| packet.protocol == Some(TCP));
        }
        Some(ICMP | ICMP6) => {
            packet.icmp = octets.first().copied();
            packet.echo = match (packet.protocol, packet.icmp) {
                (Some(ICMP), Some(8)) | (Some(ICMP6), Some(128)) => short(octets, 4),
                _ => None,
            };
        }
        Some(_) | None => {}
    }
}

fn chunk<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..)?.first_chunk().copied()
}

fn short(octets: &[u8], at: usize) -> Option<u16> {
    chunk(octets, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8, options: &[u8], fragment: u16, body: &[u8]) -> Vec<u8> {
        let words = 0x45 + u8::try_from(options.len() / 4).unwrap();
        let mut packet = vec![words, 0, 0, 0, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 203, 0, 113, 2, 198, 51, 100, 66]);
        packet.extend(options);
        packet.extend(body);
        packet
    }

    fn v6(next: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend("2001:db8:1::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("2001:db8::66".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(body);
        packet
    }

    const PORTS: [u8; 8] = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 1, 2];

    fn ports(packet: &[u8]) -> (Option<u16>, Option<u16>) {
        let found = parse(packet);
        (found.source_port, found.destination_port)
    }

    #[test]
    fn ports_are_found_behind_options_and_extension_headers() {
        let found = parse(&v4(6, &[], 0x4000, &PORTS));
        assert_eq!(found.source, Some("203.0.113.2".parse().unwrap()));
        assert_eq!(found.destination, Some("198.51.100.66".parse().unwrap()));
        assert_eq!((found.protocol, found.fragment, found.sequence), (Some(6), false, Some(258)));
        assert_eq!(parse(&v4(17, &[], 0, &PORTS)).sequence, None);
        for protocol in [6, 17, 33, 132, 136] {
            let expected = (Some(40_000), Some(443));
            assert_eq!(ports(&v4(protocol, &[], 0, &PORTS)), expected);
            assert_eq!(ports(&v4(protocol, &[0x94, 4, 0, 0], 0, &PORTS)), expected);
            assert_eq!(ports(&v6(protocol, &PORTS)), expected);
            let mut extended = vec![60, 0, 0, 0, 0, 0, 0, 0];
            extended.extend([44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            extended.extend([51, 0, 0, 1, 0, 0, 0, 9]);
            extended.extend([protocol, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            extended.extend(PORTS);
            assert_eq!(ports(&v6(0, &extended)), expected, "{protocol}");
        }
        assert_eq!(ports(&v4(47, &[], 0, &PORTS)), (None, None), "GRE has no ports");
    }

    #[test]
    fn an_echo_has_its_type_and_identifier() {
        let four = parse(&v4(1, &[], 0, &[8, 0, 0, 0, 0, 7, 0, 1]));
        assert_eq!((four.icmp, four.echo), (Some(8), Some(7)));
        let six = parse(&v6(58, &[128, 0, 0, 0, 0, 7, 0, 1]));
        assert_eq!((six.icmp, six.echo), (Some(128), Some(7)));
        assert_eq!(parse(&v4(1, &[], 0, &[3, 0, 0, 0, 0, 7, 0, 1])).echo, None);
    }

    /// A later fragment's first octets are data: an agent could write any port there.
    #[test]
    fn a_later_fragment_has_no_ports() {
        let four = parse(&v4(17, &[], 0x2001, &PORTS));
        assert_eq!((four.protocol, four.fragment, four.destination_port), (Some(17), true, None));
        let six = parse(&v6(44, &[&[17, 0, 0, 8, 0, 0, 0, 9][..], &PORTS].concat()));
        assert_eq!((six.protocol, six.fragment, six.destination_port), (Some(17), true, None));
        let first = parse(&v6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &PORTS].concat()));
        assert_eq!((first.fragment, first.destination_port), (false, Some(443)));
    }

    #[test]
    fn a_chain_without_end_is_not_followed() {
        let endless: Vec<u8> = [0, 0, 0, 0, 0, 0, 0, 0].repeat(100);
        let found = parse(&v6(0, &endless));
        assert_eq!((found.protocol, found.destination_port), (None, None));
        assert!(found.destination.is_some());
    }

    #[test]
    fn cut_anywhere_it_says_what_is_known() {
        let whole = v6(0, &[&[6, 0, 0, 0, 0, 0, 0, 0][..], &PORTS].concat());
        for packet in [v4(6, &[1; 40], 0, &PORTS), whole] {
            let full = parse(&packet);
            for cut in 0..packet.len() {
                let found = parse(&packet[..cut]);
                assert!(found.destination.is_none() || found.destination == full.destination);
                assert!(found.destination_port.is_none() || found.destination_port == full.destination_port);
            }
        }
        for first in 0..=u8::MAX {
            assert_eq!(parse(&[first]), Packet::default());
            let found = parse(&[first; 128]);
            assert_eq!(found.destination.is_some(), matches!(first >> 4, 4 | 6));
        }
        assert_eq!(parse(&v4(6, &[], 0, &PORTS)[..3]).destination, None);
        assert_eq!(parse(&[0x41; 64]).destination_port, None, "a header shorter than its own fields");
    }
}
