//! The kernel's ipset over netlink: sets of (address, TCP port), with a lifetime each or without.
//!
//! No program is needed, so an admission costs microseconds. Numbers are those of linux/netfilter/ipset/ip_set.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::errno::Errno;

use super::IptablesError;
use crate::firewall::backend::Element;
use crate::firewall::nftables::attribute::{attributes, text, value};
use crate::firewall::nftables::channel::{Channel, Refusal};
use crate::firewall::ruleset::Family;

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DELETE: u16 = SUBSYSTEM | 10;

/// The protocol that every kernel since 2.6.39 speaks.
const PROTOCOL: u8 = 6;
const TYPE: &str = "hash:ip,port";
/// A set is never full: the book bounds what is open long before (see [`crate::firewall::book::Limits`]).
const MOST: u32 = 1 << 22;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_LINENO: u16 = 9;
const ATTR_IP: u16 = 1;
const ATTR_PORT: u16 = 4;
const ATTR_TIMEOUT: u16 = 6;
const ATTR_PROTO: u16 = 7;
const ATTR_MAXELEM: u16 = 19;
const ATTR_IPV4: u16 = 1;
const ATTR_IPV6: u16 = 2;
const FLAG_LIST_SETNAME: u32 = 2;
const NESTED: u16 = 0x8000;
const NET_ORDER: u16 = 0x4000;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// Elements in one message, which must stay below 64 KiB.
const CHUNK: usize = 512;
/// The kernel counts in seconds and ends at about 25 days (`IPSET_MAX_TIMEOUT`).
const LONGEST: u64 = 2_000_000;

/// The connection to ipset in the network namespace that this thread was in when it was opened.
#[derive(Debug)]
pub(super) struct Ipset {
    channel: Channel,
}

impl Ipset {
    /// Opens the connection and asks a first question.
    pub(super) fn open() -> Result<Self, IptablesError> {
        let channel = Channel::open().map_err(|source| IptablesError::IpsetChannel { source })?;
        let mut ipset = Self { channel };
        ipset.names()?;
        Ok(ipset)
    }

    /// The names of all sets of this namespace, whoever's they are.
    pub(super) fn names(&mut self) -> Result<Vec<String>, IptablesError> {
        let mut request = header(AF_INET);
        attribute(&mut request, ATTR_FLAGS | NET_ORDER, &FLAG_LIST_SETNAME.to_be_bytes());
        let mut names = Vec::new();
        for entry in self.dump(&request)? {
            let set = entry.attributes().map_err(|source| IptablesError::IpsetChannel { source })?;
            names.push(text(&set, ATTR_SETNAME));
        }
        Ok(names)
    }

    fn dump(
        &mut self,
        request: &[u8],
    ) -> Result<Vec<crate::firewall::nftables::attribute::Entry>, IptablesError> {
        match self.channel.dump_raw(LIST, request).map_err(|source| IptablesError::IpsetChannel { source })? {
            Ok(found) => Ok(found),
            Err(refusal) => Err(refused("a question", refusal)),
        }
    }

    /// A new set; `timed`: its elements have a lifetime each.
    pub(super) fn create(&mut self, name: &str, family: Family, timed: bool) -> Result<(), IptablesError> {
        let mut request = header(number(family));
        string(&mut request, ATTR_SETNAME, name);
        string(&mut request, ATTR_TYPENAME, TYPE);
        // The oldest that today's ipset(8) still lists; every kernel has it.
        attribute(&mut request, ATTR_REVISION, &[1]);
        attribute(&mut request, ATTR_FAMILY, &[number(family)]);
        nested(&mut request, ATTR_DATA, |request| {
            if timed {
                attribute(request, ATTR_TIMEOUT | NET_ORDER, &1_u32.to_be_bytes());
            }
            attribute(request, ATTR_MAXELEM | NET_ORDER, &MOST.to_be_bytes());
        });
        self.order(&[(CREATE, request)], name)
    }

    pub(super) fn destroy(&mut self, name: &str) -> Result<(), IptablesError> {
        let mut request = header(AF_INET);
        string(&mut request, ATTR_SETNAME, name);
        self.order(&[(DESTROY, request)], name)
    }

    /// Adds elements, or gives those that are there their lifetime anew.
    pub(super) fn add(
        &mut self,
        name: &str,
        family: Family,
        elements: &[Element],
        timed: bool,
    ) -> Result<(), IptablesError> {
        self.elements(ADD, name, family, elements, timed)
    }

    /// Takes elements out; one that isn't there is no error.
    pub(super) fn delete(
        &mut self,
        name: &str,
        family: Family,
        elements: &[Element],
    ) -> Result<(), IptablesError> {
        self.elements(DELETE, name, family, elements, false)
    }

    fn elements(
        &mut self,
        kind: u16,
        name: &str,
        family: Family,
        elements: &[Element],
        timed: bool,
    ) -> Result<(), IptablesError> {
        let requests = elements.chunks(CHUNK).map(|chunk| {
            let mut request = header(number(family));
            string(&mut request, ATTR_SETNAME, name);
            attribute(&mut request, ATTR_LINENO, &0_u32.to_ne_bytes());
            nested(&mut request, ATTR_ADT, |request| {
                for element in chunk {
                    nested(request, ATTR_DATA, |request| encode(request, element, timed));
                }
            });
            (kind, request)
        });
        self.order(&requests.collect::<Vec<_>>(), name)
    }

    fn order(&mut self, requests: &[(u16, Vec<u8>)], name: &str) -> Result<(), IptablesError> {
        let answer =
            self.channel.each_raw(requests).map_err(|source| IptablesError::IpsetChannel { source })?;
        answer.map_err(|refusal| refused(&format!("the set {name}"), refusal))
    }

    /// All elements of a set; for those without a lifetime `Duration::MAX`.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<Element>, IptablesError> {
        let mut request = header(AF_INET);
        string(&mut request, ATTR_SETNAME, name);
        let mut found = Vec::new();
        let channel = |source| IptablesError::IpsetChannel { source };
        for entry in self.dump(&request)? {
            let set = entry.attributes().map_err(channel)?;
            for (_, data) in attributes(value(&set, ATTR_ADT)).map_err(channel)? {
                found.extend(decode(data).map_err(channel)?);
            }
        }
        Ok(found)
    }
}

/// What ipset says beyond the numbers of errno.h.
fn refused(object: &str, refusal: Refusal) -> IptablesError {
    let source = match refusal.source.raw_os_error() {
        Some(4099) => io::Error::other("too many sets in this network namespace"),
        Some(4100 | 4108) => io::Error::other("rules still name it"),
        Some(4098) => io::Error::other("the kernel lacks this type of set (CONFIG_IP_SET_HASH_IPPORT)"),
        Some(4352) => io::Error::other("the set is full"),
        _ => refusal.source,
    };
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => IptablesError::NotPermitted { source },
        // nfnetlink's answer for a subsystem that isn't there.
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) if object == "a question" => {
            IptablesError::NoIpset { source }
        }
        _ => IptablesError::Ipset { object: object.to_owned(), source },
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// `struct nfgenmsg` and the protocol's version.
fn header(family: u8) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    attribute(&mut bytes, ATTR_PROTOCOL, &[PROTOCOL]);
    bytes
}

fn encode(out: &mut Vec<u8>, element: &Element, timed: bool) {
    nested(out, ATTR_IP, |out| match element.address {
        IpAddr::V4(address) => attribute(out, ATTR_IPV4 | NET_ORDER, &address.octets()),
        IpAddr::V6(address) => attribute(out, ATTR_IPV6 | NET_ORDER, &address.octets()),
    });
    attribute(out, ATTR_PORT | NET_ORDER, &element.port.to_be_bytes());
    attribute(out, ATTR_PROTO, &[IPPROTO_TCP]);
    if timed {
        // Up to the next second: what somebody was promised is open until then. Zero would mean for ever.
        let millis = u64::try_from(element.timeout.as_millis()).unwrap_or(u64::MAX);
        let seconds = millis.div_ceil(1000).clamp(1, LONGEST);
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        attribute(out, ATTR_TIMEOUT | NET_ORDER, &seconds.to_be_bytes());
    }
}

fn decode(data: &[u8]) -> Result<Option<Element>, crate::firewall::nftables::NftablesError> {
    let data = attributes(data)?;
    let ip = attributes(value(&data, ATTR_IP))?;
    let address = match (value(&ip, ATTR_IPV4), value(&ip, ATTR_IPV6)) {
        (four, []) => <[u8; 4]>::try_from(four).ok().map(|four| IpAddr::from(Ipv4Addr::from(four))),
        (_, six) => <[u8; 16]>::try_from(six).ok().map(|six| IpAddr::from(Ipv6Addr::from(six))),
    };
    let port = value(&data, ATTR_PORT).try_into().ok().map(u16::from_be_bytes);
    let seconds = value(&data, ATTR_TIMEOUT).try_into().ok().map_or(0, u32::from_be_bytes);
    let timeout = if seconds == 0 { Duration::MAX } else { Duration::from_secs(seconds.into()) };
    Ok(address.zip(port).map(|(address, port)| Element { address, port, timeout }))
}

fn string(out: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(out, kind, &[text.as_bytes(), &[0]].concat());
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

fn nested(out: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    attribute(out, kind | NESTED, &[]);
    content(out);
    let length = u16::try_from(out.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(slot) = out.get_mut(start..start.saturating_add(2)) {
        slot.copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use crate::firewall::backend::Element;
    use std::time::Duration;

    #[test]
    fn elements_are_read_as_they_were_written_and_no_lifetime_becomes_for_ever() {
        for address in ["203.0.113.20", "2001:db8::1"] {
            let element = |millis| Element {
                address: address.parse().unwrap(),
                port: 8443,
                timeout: Duration::from_millis(millis),
            };
            for (millis, read) in [(60_000, 60_000), (1, 1_000), (0, 1_000), (1_001, 2_000)] {
                let mut bytes = Vec::new();
                encode(&mut bytes, &element(millis), true);
                assert_eq!(decode(&bytes).unwrap(), Some(element(read)));
            }
            let mut bytes = Vec::new();
            encode(&mut bytes, &element(1), false);
            let for_ever = Element { timeout: Duration::MAX, ..element(1) };
            assert_eq!(decode(&bytes).unwrap(), Some(for_ever));
            for end in 0..bytes.len() {
                drop(decode(&bytes[..end]));
            }
        }
    }
}
