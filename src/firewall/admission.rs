//! Which addresses of an answer are opened, for which ports and how long; and the book of what is open. (pure)

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::addresses::{AddressClass, class};
use crate::allowlist::{Allowlist, DomainName, Verdict};
use crate::dns::protocol::Learned;

/// An address outlives its answer by this: a client may connect late in the answer's life, and the refresh timer
/// needs time to renew it.
pub const GRACE: Duration = Duration::from_secs(60);
/// Addresses open for one name; a name that rotates through more loses its oldest.
pub const MAX_PER_NAME: usize = 128;
/// Addresses open in all: bounds kernel memory against a flood below a wildcard.
pub const MAX_TOTAL: usize = 16_384;

/// How the reason ends where no rule would change it.
pub const NEVER: &str = "is never opened";

/// What is to be done with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub ports: Vec<u16>,
    pub open: Vec<IpAddr>,
    /// Addresses that the policy keeps closed, and why.
    pub refused: Vec<(IpAddr, String)>,
    pub lifetime: Duration,
}

/// Judges an answer by the policy. PID 1 does not trust the worker's own judgement of the name.
pub fn decide(allowlist: &Allowlist, learned: &Learned) -> Result<Decision, String> {
    let allowed = match allowlist.verdict(&learned.name) {
        Verdict::Allowed(allowed) => allowed,
        Verdict::Denied(why) => return Err(why.to_string()),
    };
    let mut decision = Decision {
        ports: allowed.ports,
        open: Vec::new(),
        refused: Vec::new(),
        lifetime: Duration::from_secs(u64::from(learned.ttl_s)) + GRACE,
    };
    for address in learned.addresses.iter().take(MAX_PER_NAME) {
        match class(*address) {
            AddressClass::Global => decision.open.push(*address),
            AddressClass::Private(_) if allowed.private => decision.open.push(*address),
            AddressClass::Private(range) => {
                let reason = format!("{range} is private; the rule would have to say `private`");
                decision.refused.push((*address, reason));
            }
            AddressClass::Never(range) => {
                decision.refused.push((*address, format!("{range} {NEVER}")));
            }
        }
    }
    Ok(decision)
}

/// One address that is open for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub address: IpAddr,
    pub ports: Vec<u16>,
    pub until: Instant,
    pub stale: bool,
}

/// What is open, for which name, until when. Mirrors the kernel's sets, which hold no names.
#[derive(Debug, Default)]
pub struct Book {
    names: HashMap<DomainName, Vec<Open>>,
}

impl Book {
    /// Writes an admission down. Returns what had to make room for it and is not open for another name either.
    pub fn enter(&mut self, name: &DomainName, opens: Vec<Open>) -> Vec<(IpAddr, u16)> {
        let entry = self.names.entry(name.clone()).or_default();
        for open in opens {
            entry.retain(|old| old.address != open.address);
            entry.push(open);
        }
        let surplus = entry.len().saturating_sub(MAX_PER_NAME);
        let mut evicted: Vec<Open> = entry.drain(..surplus).collect();
        while self.len() > MAX_TOTAL {
            let Some(oldest) = self.take_oldest() else { break };
            evicted.push(oldest);
        }
        self.unclaimed(evicted)
    }

    fn len(&self) -> usize {
        self.names.values().map(Vec::len).sum()
    }

    fn take_oldest(&mut self) -> Option<Open> {
        let (name, _) =
            self.names.iter().min_by_key(|(_, opens)| opens.iter().map(|open| open.until).min())?;
        let name = name.clone();
        let opens = self.names.remove(&name)?;
        let mut opens = opens.into_iter();
        let oldest = opens.next();
        let rest: Vec<Open> = opens.collect();
        if !rest.is_empty() {
            self.names.insert(name, rest);
        }
        oldest
    }

    /// Of these the pairs that no name claims any more.
    fn unclaimed(&self, gone: Vec<Open>) -> Vec<(IpAddr, u16)> {
        let pairs = gone.into_iter().flat_map(|open| {
            let address = open.address;
            open.ports.into_iter().map(move |port| (address, port))
        });
        pairs.filter(|(address, port)| self.open_until(*address, *port).is_none()).collect()
    }

    /// Until when this pair is open for any name. The kernel has one timeout for a pair, names may share it.
    #[must_use]
    pub fn open_until(&self, address: IpAddr, port: u16) -> Option<Instant> {
        let opens = self.names.values().flatten();
        opens
            .filter(|open| open.address == address && open.ports.contains(&port))
            .map(|open| open.until)
            .max()
    }

    /// Forgets what the kernel has let expire.
    pub fn expire(&mut self, now: Instant) {
        self.names.retain(|_, opens| {
            opens.retain(|open| open.until > now);
            !opens.is_empty()
        });
    }

    /// Takes out the names and ports that another policy does not allow; returns what is to be closed.
    pub fn restrict(&mut self, allowlist: &Allowlist) -> Vec<(IpAddr, u16)> {
        let mut gone = Vec::new();
        self.names.retain(|name, opens| {
            let ports = match allowlist.verdict(name) {
                Verdict::Allowed(allowed) => allowed.ports,
                Verdict::Denied(_) => Vec::new(),
            };
            for open in opens.iter_mut() {
                let (kept, closed) = open.ports.iter().partition(|port| ports.contains(port));
                open.ports = kept;
                if !Vec::is_empty(&closed) {
                    gone.push(Open { ports: closed, ..open.clone() });
                }
            }
            opens.retain(|open| !open.ports.is_empty());
            !opens.is_empty()
        });
        self.unclaimed(gone)
    }

    /// Everything that is open, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&DomainName, &Open)> {
        self.names.iter().flat_map(|(name, opens)| opens.iter().map(move |open| (name, open)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, Decision, MAX_PER_NAME, Open, decide};
    use crate::allowlist::{Allowlist, DomainName, Origin, parse_rules};
    use crate::dns::protocol::Learned;
    use std::net::IpAddr;
    use std::time::{Duration, Instant};

    fn policy(text: &str) -> Allowlist {
        let (rules, problems) = parse_rules(text, |line| Origin::File { path: "t".into(), line });
        assert!(problems.is_empty());
        Allowlist::new(rules)
    }

    fn learned(name: &str, addresses: &[&str]) -> Learned {
        Learned {
            id: 1,
            name: DomainName::parse(name).unwrap(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ttl_s: 30,
            stale: false,
        }
    }

    fn judged(text: &str, name: &str, addresses: &[&str]) -> Decision {
        decide(&policy(text), &learned(name, addresses)).unwrap()
    }

    #[test]
    fn t08_special_purpose_addresses_are_refused_with_the_reason() {
        let bad = [
            "10.0.0.5",
            "192.168.1.5",
            "172.19.0.5",
            "169.254.169.254",
            "0.0.0.0",
            "127.0.0.1",
            "100.64.0.5",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.5",
            "64:ff9b::a9fe:a9fe",
        ];
        let decision = judged("ok.test", "ok.test", &bad);
        assert!(decision.open.is_empty(), "{:?}", decision.open);
        assert_eq!(decision.refused.len(), bad.len());
        assert_eq!(judged("ok.test", "ok.test", &["93.184.215.14"]).open.len(), 1);
    }

    #[test]
    fn t32_private_opens_private_ranges_but_never_metadata_or_loopback() {
        let decision = judged(
            "git.corp.example private",
            "git.corp.example",
            &["10.0.0.5", "169.254.169.254", "127.0.0.1"],
        );
        assert_eq!(decision.open, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_name_that_is_not_allowed_opens_nothing() {
        assert!(decide(&policy("ok.test"), &learned("evil.test", &["93.184.215.14"])).is_err());
        assert!(decide(&policy("*.test\n!evil.test"), &learned("evil.test", &["1.1.1.1"])).is_err());
    }

    fn open(address: &str, ports: &[u16], now: Instant, seconds: u64) -> Open {
        Open {
            address: address.parse().unwrap(),
            ports: ports.to_vec(),
            until: now + Duration::from_secs(seconds),
            stale: false,
        }
    }

    #[test]
    fn a_rotating_name_stays_within_its_cap_and_the_oldest_goes() {
        let (mut book, now, name) = (Book::default(), Instant::now(), DomainName::parse("cdn.test").unwrap());
        let mut closed = Vec::new();
        for i in 0..400_u32 {
            let address = std::net::Ipv4Addr::from(0x0102_0000 + i).to_string();
            closed.extend(book.enter(&name, vec![open(&address, &[443], now, 60)]));
        }
        assert_eq!(book.iter().count(), MAX_PER_NAME);
        assert_eq!(closed.len(), 400 - MAX_PER_NAME);
        assert_eq!(closed[0].0, "1.2.0.0".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_shared_address_stays_open_while_one_name_claims_it() {
        let (mut book, now) = (Book::default(), Instant::now());
        let (a, b) = (DomainName::parse("a.test").unwrap(), DomainName::parse("b.test").unwrap());
        book.enter(&a, vec![open("1.2.3.4", &[22, 443], now, 60)]);
        book.enter(&b, vec![open("1.2.3.4", &[443], now, 600)]);
        assert_eq!(book.open_until("1.2.3.4".parse().unwrap(), 443), Some(now + Duration::from_secs(600)));
        let closed = book.restrict(&policy("b.test"));
        assert_eq!(closed, [("1.2.3.4".parse().unwrap(), 22)]);
        book.expire(now + Duration::from_secs(601));
        assert_eq!(book.iter().count(), 0);
    }
}
