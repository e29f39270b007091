//! The address policy (pure): which IP addresses an answer may bring, whatever name it is for.
//!
//! The tables follow the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, as of 2025) and add what
//! they don't hold: multicast, the broadcast address, withdrawn ranges, and the metadata services of clouds.
//! Whether a name is allowed is decided elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use self::Reach::{Closed, Embeds4, Open, Private};

/// What an address may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// Globally reachable unicast.
    Global,
    /// Somebody's own network: only for a rule that says `private`.
    Private(&'static str),
    /// Not even then; the text names the range and who says so.
    Never(&'static str),
}

/// The special-purpose range that an address is in, by its name; `None` for globally reachable unicast.
pub fn special_purpose(address: IpAddr) -> Option<&'static str> {
    match class(address) {
        AddressClass::Global => None,
        AddressClass::Private(range) | AddressClass::Never(range) => Some(range),
    }
}

/// Judges an address. An IPv6 address that carries an IPv4 address to a translator is judged by what it carries.
pub fn class(address: IpAddr) -> AddressClass {
    match address {
        IpAddr::V4(address) => class4(address),
        IpAddr::V6(address) => class6(address),
    }
}

/// What a range means for its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// An exception within a closed range.
    Open,
    Private,
    Closed,
    /// The last 32 bits are an IPv4 address, to which a translator sends the packet.
    Embeds4,
}

struct Range4 {
    first: Ipv4Addr,
    bits: u32,
    reach: Reach,
    name: &'static str,
}

struct Range6 {
    first: Ipv6Addr,
    bits: u32,
    reach: Reach,
    name: &'static str,
}

const fn v4(octets: [u8; 4], bits: u32, reach: Reach, name: &'static str) -> Range4 {
    let [a, b, c, d] = octets;
    Range4 { first: Ipv4Addr::new(a, b, c, d), bits, reach, name }
}

const fn v6(segments: [u16; 8], bits: u32, reach: Reach, name: &'static str) -> Range6 {
    let [a, b, c, d, e, f, g, h] = segments;
    Range6 { first: Ipv6Addr::new(a, b, c, d, e, f, g, h), bits, reach, name }
}

/// The first range that holds an address decides; single addresses and exceptions come first.
const RANGES4: &[Range4] = &[
    v4([169, 254, 169, 254], 32, Closed, "metadata service (AWS, Google, Azure and others)"),
    v4([168, 63, 129, 16], 32, Closed, "metadata service (Azure wire server)"),
    v4([100, 100, 100, 200], 32, Closed, "metadata service (Alibaba Cloud)"),
    v4([192, 0, 0, 192], 32, Closed, "metadata service (Oracle Cloud)"),
    v4([0, 0, 0, 0], 8, Closed, "this network (RFC 791)"),
    v4([10, 0, 0, 0], 8, Private, "private use (RFC 1918)"),
    v4([100, 64, 0, 0], 10, Private, "shared address space of carriers (RFC 6598)"),
    v4([127, 0, 0, 0], 8, Closed, "loopback (RFC 1122)"),
    v4([169, 254, 0, 0], 16, Closed, "link-local (RFC 3927)"),
    v4([172, 16, 0, 0], 12, Private, "private use (RFC 1918)"),
    v4([192, 0, 0, 9], 32, Open, "port control protocol anycast (RFC 7723)"),
    v4([192, 0, 0, 10], 32, Open, "TURN anycast (RFC 8155)"),
    v4([192, 0, 0, 0], 24, Closed, "IETF protocol assignments (RFC 6890)"),
    v4([192, 0, 2, 0], 24, Closed, "documentation, TEST-NET-1 (RFC 5737)"),
    v4([192, 88, 99, 0], 24, Closed, "6to4 relay anycast, withdrawn (RFC 7526)"),
    v4([192, 168, 0, 0], 16, Private, "private use (RFC 1918)"),
    v4([198, 18, 0, 0], 15, Closed, "benchmarking (RFC 2544)"),
    v4([198, 51, 100, 0], 24, Closed, "documentation, TEST-NET-2 (RFC 5737)"),
    v4([203, 0, 113, 0], 24, Closed, "documentation, TEST-NET-3 (RFC 5737)"),
    v4([224, 0, 0, 0], 4, Closed, "multicast (RFC 5771)"),
    v4([255, 255, 255, 255], 32, Closed, "limited broadcast (RFC 919)"),
    v4([240, 0, 0, 0], 4, Closed, "reserved (RFC 1112)"),
];

const RANGES6: &[Range6] = &[
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, Closed, "metadata service (AWS)"),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, Closed, "metadata service (Google)"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, Closed, "unspecified address (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, Closed, "loopback (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, Closed, "IPv4-mapped (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, Closed, "IPv4-compatible, deprecated (RFC 4291)"),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, Embeds4, "NAT64 (RFC 6052)"),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Closed, "NAT64 for local use (RFC 8215)"),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Closed, "discard only (RFC 6666)"),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Closed, "dummy prefix (RFC 9780)"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, Open, "port control protocol anycast (RFC 7723)"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, Open, "TURN anycast (RFC 8155)"),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, Open, "DNS-SD service registration anycast (RFC 9665)"),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, Open, "AMT (RFC 7450)"),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, Open, "AS112 (RFC 7535)"),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, Open, "drone remote identification (RFC 9374)"),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, Closed, "ORCHIDv2, no locators (RFC 7343)"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Closed, "Teredo (RFC 4380)"),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Closed, "IETF protocol assignments (RFC 2928)"),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Closed, "documentation (RFC 3849)"),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Closed, "6to4 (RFC 3056)"),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Closed, "documentation (RFC 9637)"),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Closed, "segment routing (RFC 9602)"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Private, "unique local (RFC 4193)"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Closed, "link-local (RFC 4291)"),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Closed, "site-local, deprecated (RFC 3879)"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Closed, "multicast (RFC 4291)"),
    v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, Open, "global unicast (RFC 4291)"),
];

fn class4(address: Ipv4Addr) -> AddressClass {
    let inside = |range: &&Range4| {
        let host = u32::MAX.checked_shr(range.bits).unwrap_or(0);
        address.to_bits() & !host == range.first.to_bits()
    };
    match RANGES4.iter().find(inside).map(|range| (range.reach, range.name)) {
        None | Some((Open, _)) => AddressClass::Global,
        Some((Private, name)) => AddressClass::Private(name),
        Some((Closed | Embeds4, name)) => AddressClass::Never(name),
    }
}

fn class6(address: Ipv6Addr) -> AddressClass {
    let inside = |range: &&Range6| {
        let host = u128::MAX.checked_shr(range.bits).unwrap_or(0);
        address.to_bits() & !host == range.first.to_bits()
    };
    match RANGES6.iter().find(inside).map(|range| (range.reach, range.name)) {
        Some((Open, _)) => AddressClass::Global,
        Some((Private, name)) => AddressClass::Private(name),
        Some((Closed, name)) => AddressClass::Never(name),
        Some((Embeds4, _)) => {
            let [.., a, b, c, d] = address.octets();
            class4(Ipv4Addr::new(a, b, c, d))
        }
        // Only 2000::/3 has ever been given out.
        None => AddressClass::Never("not allocated (RFC 4291)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> AddressClass {
        class(text.parse().unwrap())
    }

    #[test]
    fn ordinary_addresses_are_global() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "140.82.112.3",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.0.9",
            "192.0.1.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2a00::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert_eq!(of(text), AddressClass::Global, "{text}");
            assert_eq!(special_purpose(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn private_networks_open_for_rules_that_say_so() {
        for text in [
            "10.0.0.5",
            "10.255.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.1.5",
            "100.64.0.5",
            "100.127.255.255",
            "fc00::1",
            "fdaa::3",
            "64:ff9b::10.0.0.5",
        ] {
            assert!(matches!(of(text), AddressClass::Private(_)), "{text} is {:?}", of(text));
            assert!(special_purpose(text.parse().unwrap()).is_some());
        }
    }

    #[test]
    fn the_rest_never_opens() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.1",
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.66",
            "203.0.113.20",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::8.8.8.8",
            "::ffff:8.8.8.8",
            "::ffff:10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::66",
            "2002:0a00:0001::1",
            "3fff::1",
            "5f00::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "4000::1",
            "e000::1",
        ] {
            assert!(matches!(of(text), AddressClass::Never(_)), "{text} is {:?}", of(text));
        }
    }

    #[test]
    fn every_range_is_a_prefix_and_reached() {
        for range in RANGES4 {
            let host = u32::MAX.checked_shr(range.bits).unwrap_or(0);
            assert_eq!(range.first.to_bits() & host, 0, "{}", range.name);
        }
        for range in RANGES6 {
            let host = u128::MAX.checked_shr(range.bits).unwrap_or(0);
            assert_eq!(range.first.to_bits() & host, 0, "{}", range.name);
        }
    }
}
