//! Set elements: the encoding of the few messages that are sent for every address, and what a dump says.
//!
//! The DNS answer waits for these messages, so they are written straight into one reused buffer; with the message
//! types of `netlink-packet-netfilter` each would take some 20 allocations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use netlink_packet_core::{NLA_F_NESTED, NLM_F_CREATE, NLM_F_REQUEST};

use super::attribute::{Attribute, Entry, attributes, value};
use super::{Element, NftablesError};
use crate::firewall::ruleset::TABLE;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM` and `… | NFT_MSG_DELSETELEM` (linux/netfilter/nf_tables.h).
const NEW: u16 = 0x0a0c;
const DELETE: u16 = 0x0a0e;
const NFPROTO_INET: u8 = 1;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_DATA_VALUE: u16 = 1;

/// A longer lifetime means nothing for a DNS answer, and the kernel refuses what doesn't fit its clock.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// Zero would mean the set's own, which is none: *for ever*.
const SHORTEST: Duration = Duration::from_millis(1);

/// No lifetime at all, as in the sets that have none.
pub(super) const FOR_EVER: Duration = Duration::MAX;

/// What one message does with its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Delete,
}

/// Appends one message, header included. The caller keeps the list short: an attribute is at most 64 KiB long.
pub(super) fn encode(
    out: &mut Vec<u8>,
    sequence: u32,
    operation: Operation,
    set: &str,
    elements: &[Element],
) {
    let start = out.len();
    let (kind, flags) = match operation {
        Operation::Add => (NEW, NLM_F_REQUEST | NLM_F_CREATE),
        Operation::Delete => (DELETE, NLM_F_REQUEST),
    };
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[NFPROTO_INET, 0, 0, 0]);
    string(out, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    string(out, NFTA_SET_ELEM_LIST_SET, set);
    nested(out, NFTA_SET_ELEM_LIST_ELEMENTS, |out| {
        for element in elements {
            nested(out, NFTA_LIST_ELEM, |out| {
                nested(out, NFTA_SET_ELEM_KEY, |out| key(out, element.address, element.port));
                if operation == Operation::Add && element.timeout != FOR_EVER {
                    let lifetime = element.timeout.clamp(SHORTEST, LONGEST).as_millis();
                    let lifetime = u64::try_from(lifetime).unwrap_or(u64::MAX);
                    attribute(out, NFTA_SET_ELEM_TIMEOUT, &[&lifetime.to_be_bytes()]);
                }
            });
        }
    });
    let length = u32::try_from(out.len().saturating_sub(start)).unwrap_or(u32::MAX);
    if let Some(slot) = out.get_mut(start..start.saturating_add(4)) {
        slot.copy_from_slice(&length.to_ne_bytes());
    }
}

/// A concatenation: each part fills whole registers of 4 bytes.
fn key(out: &mut Vec<u8>, address: IpAddr, port: u16) {
    let port = port.to_be_bytes();
    match address {
        IpAddr::V4(address) => attribute(out, NFTA_DATA_VALUE, &[&address.octets(), &port, &[0; 2]]),
        IpAddr::V6(address) => attribute(out, NFTA_DATA_VALUE, &[&address.octets(), &port, &[0; 2]]),
    }
}

fn string(out: &mut Vec<u8>, kind: u16, text: &str) {
    attribute(out, kind, &[text.as_bytes(), &[0]]);
}

fn attribute(out: &mut Vec<u8>, kind: u16, parts: &[&[u8]]) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&kind.to_ne_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    close(out, start);
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

fn nested(out: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    content(out);
    close(out, start);
}

/// Writes the length of the attribute that began at `start`.
fn close(out: &mut [u8], start: usize) {
    let length = u16::try_from(out.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(slot) = out.get_mut(start..start.saturating_add(2)) {
        slot.copy_from_slice(&length.to_ne_bytes());
    }
}

/// The elements of one message of a dump; what isn't a pair of ours is left out.
pub(super) fn decode(entry: &Entry) -> Result<Vec<Element>, NftablesError> {
    let mut found = Vec::new();
    for element in list(entry)? {
        let left = value(&element, NFTA_SET_ELEM_EXPIRATION).try_into().map(u64::from_be_bytes);
        let key = attributes(value(&element, NFTA_SET_ELEM_KEY))?;
        if let Some((address, port)) = split(value(&key, NFTA_DATA_VALUE)) {
            found.push(Element { address, port, timeout: left.map_or(FOR_EVER, Duration::from_millis) });
        }
    }
    Ok(found)
}

/// The keys as they are, of whatever set.
pub(super) fn keys(entry: &Entry) -> Result<Vec<Vec<u8>>, NftablesError> {
    Ok(list(entry)?.iter().map(|element| value(element, NFTA_SET_ELEM_KEY).to_vec()).collect())
}

fn list(entry: &Entry) -> Result<Vec<Vec<Attribute<'_>>>, NftablesError> {
    let message = entry.attributes()?;
    attributes(value(&message, NFTA_SET_ELEM_LIST_ELEMENTS))?
        .into_iter()
        .map(|(_, element)| attributes(element))
        .collect()
}

fn split(key: &[u8]) -> Option<(IpAddr, u16)> {
    let (rest, port) = key.split_last_chunk::<4>()?;
    let port = u16::from_be_bytes(*port.first_chunk()?);
    let address = match rest.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(rest).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?).into(),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that kernels before 6.12 need (F31): the lifetime is in the message, not in the set.
    #[test]
    fn one_element_is_these_bytes() {
        let element =
            Element { address: "203.0.113.20".parse().unwrap(), port: 443, timeout: Duration::from_secs(60) };
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, Operation::Add, "open4", &[element]);
        let length = u32::from_ne_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), bytes.len());
        let key = [203, 0, 113, 20, 1, 0xbb, 0, 0];
        assert!(bytes.windows(8).any(|w| w == key));
        assert!(bytes.windows(8).any(|w| w == 60_000u64.to_be_bytes()));
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn a_lifetime_of_zero_is_not_for_ever() {
        let element =
            Element { address: "203.0.113.20".parse().unwrap(), port: 443, timeout: Duration::ZERO };
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, Operation::Add, "open4", &[element]);
        assert!(bytes.windows(8).any(|w| w == 1u64.to_be_bytes()));
        bytes.clear();
        encode(&mut bytes, 7, Operation::Add, "held4", &[Element { timeout: FOR_EVER, ..element }]);
        assert!(!bytes.windows(2).any(|w| w == NFTA_SET_ELEM_TIMEOUT.to_ne_bytes()), "{bytes:?}");
    }

    /// F31: what a kernel before 6.12 needs to give a known element another lifetime, byte for byte: add (so that the
    /// next one finds it), delete, add with the new lifetime.
    #[test]
    fn f31_a_renewal_is_these_bytes() {
        let element =
            Element { address: "203.0.113.20".parse().unwrap(), port: 443, timeout: Duration::from_secs(60) };
        let mut bytes = Vec::new();
        for (sequence, step) in (7..).zip(crate::firewall::nftables::RENEW) {
            encode(&mut bytes, sequence, step, "open4", &[element]);
        }
        let add = |sequence: u8| {
            [
                // struct nlmsghdr: length, type, NLM_F_REQUEST | NLM_F_CREATE, sequence, port; struct nfgenmsg
                &[84, 0, 0, 0, 0x0c, 0x0a, 1, 4, sequence, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..],
                &[14, 0, 1, 0],
                b"innkeeper\0\0\0",
                &[10, 0, 2, 0],
                b"open4\0\0\0",
                // elements { element { key { value: 203.0.113.20 . 443 }, lifetime: 60,000 ms } }
                &[36, 0, 3, 0x80, 32, 0, 1, 0x80, 16, 0, 1, 0x80, 12, 0, 1, 0],
                &[203, 0, 113, 20, 1, 0xbb, 0, 0],
                &[12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0xea, 0x60],
            ]
            .concat()
        };
        let delete = [
            &[72, 0, 0, 0, 0x0e, 0x0a, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..],
            &[14, 0, 1, 0],
            b"innkeeper\0\0\0",
            &[10, 0, 2, 0],
            b"open4\0\0\0",
            &[24, 0, 3, 0x80, 20, 0, 1, 0x80, 16, 0, 1, 0x80, 12, 0, 1, 0],
            &[203, 0, 113, 20, 1, 0xbb, 0, 0],
        ]
        .concat();
        assert_eq!(bytes, [add(7), delete, add(9)].concat());
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        for address in ["203.0.113.20", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let mut bytes = Vec::new();
            key(&mut bytes, address, 8443);
            assert_eq!(split(&bytes[4..]), Some((address, 8443)));
        }
        assert_eq!(split(&[1, 2, 3]), None);
        assert_eq!(split(&[0; 9]), None);
    }
}
