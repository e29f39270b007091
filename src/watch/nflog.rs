//! Datagrams of an NFLOG socket: from netlink octets to logged packets. (pure)
//!
//! The kernel writes them, but what lies in them is the agent's; nothing here trusts a length. Total: what is cut,
//! wrong or unknown ends the walk or is left out.

/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET` (linux/netfilter/nfnetlink.h, nfnetlink_log.h).
const PACKET: u16 = 4 << 8;
/// `struct nlmsghdr`
const MESSAGE_HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;
/// `struct nlattr`
const ATTRIBUTE_HEADER: usize = 4;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

const NFULA_PAYLOAD: u16 = 9;
const NFULA_UID: u16 = 11;
const NFULA_SEQ: u16 = 12;

/// One packet, as the kernel logged it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Logged<'a> {
    /// Whose socket sent it; none for what the kernel sends by itself.
    pub uid: Option<u32>,
    /// Counts the packets of the group, those too that found no room in the socket's queue.
    pub sequence: Option<u32>,
    /// The packet from its IP header on, cut after the configured length.
    pub payload: &'a [u8],
}

/// The packets of one datagram.
pub fn packets(datagram: &[u8]) -> impl Iterator<Item = Logged<'_>> {
    messages(datagram).filter(|(kind, _)| *kind == PACKET).map(|(_, body)| logged(body))
}

fn logged(body: &[u8]) -> Logged<'_> {
    let mut found = Logged::default();
    for (kind, value) in attributes(body.get(FAMILY_HEADER..).unwrap_or_default()) {
        match kind {
            NFULA_PAYLOAD => found.payload = value,
            NFULA_UID => found.uid = number(value),
            NFULA_SEQ => found.sequence = number(value),
            _ => {}
        }
    }
    found
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Type and body of each message.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    walk(datagram, |rest| {
        let length = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        Some((length, kind, rest.get(MESSAGE_HEADER..length)?))
    })
}

/// Type and value of each attribute.
fn attributes(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    walk(body, |rest| {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        Some((length, kind & ATTRIBUTE_TYPE, rest.get(ATTRIBUTE_HEADER..length)?))
    })
}

/// Netlink's way to put things one after another: each says its length, header included, and the next begins at a
/// multiple of four. A length below the header's gives no body, so every step goes forward.
fn walk<'a>(
    octets: &'a [u8],
    next: impl Fn(&'a [u8]) -> Option<(usize, u16, &'a [u8])>,
) -> impl Iterator<Item = (u16, &'a [u8])> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        let (length, kind, body) = next(rest)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_netfilter::nflog::{PacketNla, ULogMessage};
    use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

    fn message(attributes: Vec<PacketNla>) -> Vec<u8> {
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 100);
        let inner = NetfilterMessage::new(header, ULogMessage::Packet(attributes));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(inner));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn full() -> Vec<u8> {
        message(vec![
            PacketNla::Mark(7),
            PacketNla::Payload(vec![0x45, 1, 2, 3, 4]),
            PacketNla::Uid(1000),
            PacketNla::Gid(1001),
            PacketNla::Seq(41),
        ])
    }

    #[test]
    fn what_another_hand_wrote_is_read() {
        let bytes = full();
        let found: Vec<_> = packets(&bytes).collect();
        let payload = &[0x45, 1, 2, 3, 4][..];
        assert_eq!(found, [Logged { uid: Some(1000), sequence: Some(41), payload }]);
    }

    #[test]
    fn a_datagram_may_hold_several_and_others_between() {
        let mut bytes = full();
        bytes.extend(20_u32.to_ne_bytes());
        bytes.extend(3_u16.to_ne_bytes());
        bytes.extend([0; 14]);
        bytes.extend(message(vec![PacketNla::Payload(vec![1])]));
        let found: Vec<_> = packets(&bytes).map(|logged| (logged.uid, logged.payload.len())).collect();
        assert_eq!(found, [(Some(1000), 5), (None, 1)]);
    }

    #[test]
    fn every_cut_and_every_wrong_length_is_survived() {
        let bytes = full();
        for cut in 0..bytes.len() {
            assert!(packets(&bytes[..cut]).count() <= 1);
        }
        for place in 0..bytes.len() {
            for value in [0, 1, 3, 4, 5, 0x7f, 0xff] {
                let mut wrong = bytes.clone();
                wrong[place] = value;
                assert!(packets(&wrong).count() <= wrong.len() / MESSAGE_HEADER);
            }
        }
        assert_eq!(packets(&[0; 4096]).count(), 0, "a length of zero ends the walk");
    }
}
