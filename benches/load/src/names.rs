//! What the names of the bench mean. Clients know it too, so that they can tell a wrong address.
//!
//! | name | its addresses |
//! | --- | --- |
//! | `*.pool.test` | one of 8,192, by the name: many names behind one provider |
//! | `*N.own.test` | one that no other name has |
//! | `nN.turn.test` | 4 of the name's own 64, the next 4 at each question |
//! | `nN.slot.test` | 4 of the name's own 64, drawn anew every second, TTL 1 |
//! | `nN.list.test` | 2 of the name's own: an allowlist's exact names |
//! | `*.none.test` | none |
//! | `nN.evil.test` | one of its own; the policy does not allow it |
//!
//! All are public addresses, since the product refuses the ranges for documentation and benches; they exist only in
//! the bench's namespaces.

use std::net::Ipv4Addr;

pub enum Known {
    Addresses { addresses: Vec<Ipv4Addr>, ttl_s: u32 },
    Empty,
    Unknown,
}

const TTL_S: u32 = 300;
/// The rotating names' addresses: 64 each.
const TURN: u32 = 0x6840_0000; // 104.64.0.0/10
const SLOT: u32 = 0x3400_0000; // 52.0.0.0
const OWN: u32 = 0x6820_0000; // 104.32.0.0/11
const POOL: u32 = 0x6810_0000; // 104.16.0.0
const LIST: u32 = 0x9765_0000; // 151.101.0.0
const EVIL: u32 = 0x2d21_0000; // 45.33.0.0/16

/// `questions` counts, `second` is the time: what rotation goes by.
pub fn resolve(name: &str, questions: u32, second: u32) -> Known {
    let mut labels = name.rsplit('.');
    let (Some("test"), Some(zone), Some(label)) = (labels.next(), labels.next(), labels.next()) else {
        return Known::Unknown;
    };
    let number = number(label);
    let mut ttl_s = TTL_S;
    let addresses = match zone {
        "pool" => vec![POOL + mix(label.bytes().fold(0, |sum, b| mix(sum ^ u32::from(b)))) % 8192],
        "own" => vec![OWN + number % (1 << 21)],
        "list" => vec![LIST + 2 * (number % 0x7fff), LIST + 2 * (number % 0x7fff) + 1],
        "evil" => vec![evil(number)],
        "turn" => {
            (0..4).map(|each| TURN + ((number & 0xffff) << 6) + ((questions * 4 + each) & 63)).collect()
        }
        "slot" => {
            ttl_s = 1;
            // Four different ones: an odd step through the 64.
            let (first, step) = (mix(second ^ mix(number)), mix(second.wrapping_add(number)) | 1);
            (0..4u32)
                .map(|i| SLOT + (number << 6) + (first.wrapping_add(step.wrapping_mul(i)) & 63))
                .collect()
        }
        "none" => return Known::Empty,
        _ => return Known::Unknown,
    };
    Known::Addresses { addresses: addresses.into_iter().map(Ipv4Addr::from).collect(), ttl_s }
}

fn evil(number: u32) -> u32 {
    EVIL + 1 + number % 0xfff0
}

/// The address of `nNUMBER.evil.test`.
pub fn evil_address(number: u32) -> Ipv4Addr {
    evil(number).into()
}

pub fn is_evil(address: Ipv4Addr) -> bool {
    u32::from(address) & 0xffff_0000 == EVIL
}

/// Where `nNUMBER.own.test` lives.
pub fn own_address(number: u32) -> Ipv4Addr {
    (OWN + number).into()
}

/// The first address of `nNUMBER.list.test`.
pub fn list_address(number: u32) -> Ipv4Addr {
    (LIST + 2 * (number % 0x7fff)).into()
}

fn number(label: &str) -> u32 {
    let digits = label.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A finalizer with good avalanche (the one of MurmurHash3, in the public domain).
fn mix(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}
