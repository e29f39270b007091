//! Answers of the kernel, read attribute by attribute.
//!
//! The typed messages of `netlink-packet-netfilter` are for what we send. Reading with them would be quadratic, since
//! version 0.4 formats an error text with the whole list for each of its elements, needed or not; and they look into
//! short values without checking, which would end PID 1.

use netlink_packet_core::{NLA_ALIGNTO, NLA_HEADER_SIZE, NlaBuffer};

use super::NftablesError;

/// What a dump said about one object: its attributes, still encoded.
#[derive(Debug)]
pub(in crate::firewall) struct Entry {
    attributes: Vec<u8>,
}

impl Entry {
    /// From the payload of a netlink message, which begins with a `struct nfgenmsg`.
    pub(in crate::firewall) fn of(payload: &[u8]) -> Self {
        Self { attributes: payload.get(4..).unwrap_or_default().to_vec() }
    }

    pub(in crate::firewall) fn attributes(&self) -> Result<Vec<Attribute<'_>>, NftablesError> {
        attributes(&self.attributes)
    }
}

/// One attribute: its kind without flags, and its value.
pub(in crate::firewall) type Attribute<'a> = (u16, &'a [u8]);

/// The attributes in a message or in a nested attribute. A length that can't be is an
/// error, never a panic.
pub(in crate::firewall) fn attributes(mut bytes: &[u8]) -> Result<Vec<Attribute<'_>>, NftablesError> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (kind, length) = NlaBuffer::new_checked(bytes)
            .map(|a| (a.kind(), usize::from(a.length())))
            .map_err(NftablesError::decode)?;
        let value = bytes.get(NLA_HEADER_SIZE..length).unwrap_or_default();
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(NLA_ALIGNTO)..).unwrap_or_default();
    }
    Ok(found)
}

/// The first attribute of a kind; nothing where there is none.
pub(in crate::firewall) fn value<'a>(attributes: &[Attribute<'a>], wanted: u16) -> &'a [u8] {
    attributes.iter().find(|(kind, _)| *kind == wanted).map_or(&[], |(_, value)| value)
}

/// The same as text, without its final zero byte.
pub(in crate::firewall) fn text(attributes: &[Attribute<'_>], wanted: u16) -> String {
    let value = value(attributes, wanted);
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_in_order_and_nothing_panics() {
        let bytes = [6, 0, 1, 0, b'a', 0, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4];
        let found = attributes(&bytes).unwrap();
        assert_eq!(found, [(1, &b"a\0"[..]), (2, &[1, 2, 3, 4][..])]);
        assert_eq!(text(&found, 1), "a");
        assert_eq!(value(&found, 3), &[] as &[u8]);
        for end in 0..bytes.len() {
            assert_eq!(attributes(&bytes[..end]).is_ok(), [0, 6, 7, 8].contains(&end), "prefix of {end}");
        }
        assert!(attributes(&[3, 0, 1, 0]).is_err());
    }
}
