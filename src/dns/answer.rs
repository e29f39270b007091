//! Which records of an upstream's answer may pass: addresses at the end of the CNAME chain of the asked name. (pure)
//!
//! Only shape and family are judged here. Whether an address may be reached is PID 1's to decide.

use std::net::IpAddr;

use hickory_server::proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// The longest CNAME chain that is followed; longer ones and loops are failures (RFC 1034 §3.6.2).
pub const MAX_HOPS: usize = 16;
/// The most addresses of one answer; the real ones have at most a few dozen.
pub const MAX_ADDRESSES: usize = 64;
/// A shorter TTL is lengthened to this, so that a name with TTL 0 isn't asked upstream for every connection.
pub const TTL_FLOOR_S: u32 = 5;
/// A longer TTL is shortened to this: how long an address may stay open that the name no longer has.
pub const TTL_CAP_S: u32 = 300;

/// Which of the two kinds of address is asked for; nothing else goes upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn record_type(self) -> RecordType {
        match self {
            Self::V4 => RecordType::A,
            Self::V6 => RecordType::AAAA,
        }
    }

    #[must_use]
    pub fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Where a chain of CNAMEs leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// To addresses, without repetition, with the smallest TTL on the way (not yet floored or capped).
    Addresses { addresses: Vec<IpAddr>, ttl_s: u32 },
    /// To a name that this answer says nothing about: it must be asked next.
    Continues { target: Name, ttl_s: u32, hops: usize },
    /// Nowhere: the name has no address of this family.
    Empty,
    /// Round in circles, or too far.
    TooLong,
}

/// Follows the chain from `start`. `hops` and `ttl_s` are those of the part that earlier answers gave.
#[must_use]
pub fn follow(start: &Name, family: Family, records: &[Record], hops: usize, ttl_s: u32) -> Chain {
    let mut name = start.clone();
    let mut ttl_s = ttl_s;
    for hop in hops..=MAX_HOPS {
        let here = records.iter().filter(|record| record.name == name && record.dns_class == DNSClass::IN);
        let mut addresses: Vec<IpAddr> = Vec::new();
        let mut alias = None;
        let mut lowest = ttl_s;
        for record in here {
            match address_of(&record.data) {
                Some(address) if family.holds(address) => {
                    lowest = lowest.min(sane_ttl(record.ttl));
                    if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                Some(_) => {}
                None => alias = alias.or_else(|| alias_of(record)),
            }
        }
        if !addresses.is_empty() {
            return Chain::Addresses { addresses, ttl_s: lowest };
        }
        let Some((target, ttl)) = alias else {
            return if hop == hops {
                Chain::Empty
            } else {
                Chain::Continues { target: name, ttl_s, hops: hop }
            };
        };
        name = target;
        ttl_s = ttl_s.min(ttl);
    }
    Chain::TooLong
}

/// The TTL that PID 1 and the client are told.
#[must_use]
pub fn bounded_ttl(ttl_s: u32) -> u32 {
    ttl_s.clamp(TTL_FLOOR_S, TTL_CAP_S)
}

/// RFC 2181 §8: a TTL with the highest bit set is zero.
fn sane_ttl(ttl: u32) -> u32 {
    if i32::try_from(ttl).is_ok() { ttl } else { 0 }
}

fn address_of(data: &RData) -> Option<IpAddr> {
    if let RData::A(address) = data {
        return Some(IpAddr::V4(address.0));
    }
    if let RData::AAAA(address) = data {
        return Some(IpAddr::V6(address.0));
    }
    None
}

fn alias_of(record: &Record) -> Option<(Name, u32)> {
    if let RData::CNAME(target) = &record.data {
        return Some((target.0.to_lowercase(), sane_ttl(record.ttl)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_server::proto::rr::rdata::{A, AAAA, CNAME};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, address: [u8; 4], ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
    }

    fn cname(owner: &str, target: &str, ttl: u32) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn from_start(records: &[Record]) -> Chain {
        follow(&name("ok.test."), Family::V4, records, 0, u32::MAX)
    }

    #[test]
    fn addresses_of_the_chain_pass_with_its_smallest_ttl() {
        let records = [
            cname("OK.test.", "t.evil.test.", 9),
            a("T.evil.test.", [192, 0, 2, 1], 60),
            a("x.test.", [1; 4], 1),
        ];
        let expected = Chain::Addresses { addresses: vec![[192, 0, 2, 1].into()], ttl_s: 9 };
        assert_eq!(from_start(&records), expected);
    }

    #[test]
    fn records_off_the_chain_do_not_pass() {
        assert_eq!(from_start(&[a("evil.test.", [1; 4], 60)]), Chain::Empty);
        let aaaa = Record::from_rdata(name("ok.test."), 9, RData::AAAA(AAAA("2001:db8::1".parse().unwrap())));
        assert_eq!(from_start(&[aaaa]), Chain::Empty);
    }

    #[test]
    fn a_chain_without_end_continues_elsewhere() {
        let expected = Chain::Continues { target: name("far.test."), ttl_s: 7, hops: 1 };
        assert_eq!(from_start(&[cname("ok.test.", "far.test.", 7)]), expected);
    }

    #[test]
    fn loops_and_long_chains_end() {
        assert_eq!(from_start(&[cname("ok.test.", "ok.test.", 1)]), Chain::TooLong);
        let pair = [cname("ok.test.", "b.test.", 1), cname("b.test.", "ok.test.", 1)];
        assert_eq!(from_start(&pair), Chain::TooLong);
        let chain = |length: usize| {
            let mut records = vec![cname("ok.test.", "n1.test.", 9)];
            records
                .extend((1..length).map(|i| cname(&format!("n{i}.test."), &format!("n{}.test.", i + 1), 9)));
            records.push(a(&format!("n{length}.test."), [192, 0, 2, 1], 9));
            records
        };
        assert!(matches!(from_start(&chain(16)), Chain::Addresses { .. }));
        assert_eq!(from_start(&chain(17)), Chain::TooLong);
    }

    #[test]
    fn repetitions_and_numbers_are_bounded() {
        let many: Vec<Record> = (0..200).map(|i| a("ok.test.", [192, 0, 2, i], 60)).collect();
        let Chain::Addresses { addresses, .. } = from_start(&many) else { panic!("no addresses") };
        assert_eq!(addresses.len(), MAX_ADDRESSES);
        let twice = [a("ok.test.", [1; 4], 60), a("ok.test.", [1; 4], 60)];
        let Chain::Addresses { addresses, .. } = from_start(&twice) else { panic!("no addresses") };
        assert_eq!(addresses.len(), 1);
    }

    #[test]
    fn ttls_are_sane() {
        let Chain::Addresses { ttl_s, .. } = from_start(&[a("ok.test.", [1; 4], u32::MAX)]) else { panic!() };
        assert_eq!(ttl_s, 0);
        assert_eq!(bounded_ttl(0), TTL_FLOOR_S);
        assert_eq!(bounded_ttl(86_400), TTL_CAP_S);
        assert_eq!(bounded_ttl(60), 60);
    }
}
