//! Which addresses of an answer are opened, for which ports and how long. (pure)

use std::net::IpAddr;
use std::time::Duration;

use crate::addresses::{AddressClass, class};
use crate::allowlist::{Allowed, Allowlist, DomainPattern, Verdict};
use crate::dns::protocol::Learned;

/// An address outlives its answer by this: a client may connect late in the answer's life, and the refresh timer
/// needs time to renew it.
pub const GRACE: Duration = Duration::from_secs(60);
/// Addresses open for one name; a name that rotates through more loses its oldest.
pub const MAX_PER_NAME: usize = 128;

/// How the reason ends where no rule would change it.
pub const NEVER: &str = "is never opened";

/// How a name came to be allowed. Names below a wildcard can be made up in any number; those that the policy spells out
/// can't, and must not suffer from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A rule names it.
    Exact,
    /// Only a wildcard covers it.
    Pattern,
}

impl Class {
    #[must_use]
    pub fn of(allowed: &Allowed<'_>) -> Self {
        let exact = allowed.rules.iter().any(|rule| matches!(rule.pattern, DomainPattern::Exact(_)));
        if exact { Self::Exact } else { Self::Pattern }
    }
}

/// What is to be done with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub class: Class,
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
        class: Class::of(&allowed),
        ports: allowed.ports,
        open: Vec::new(),
        refused: Vec::new(),
        lifetime: Duration::from_secs(u64::from(learned.ttl_s)) + GRACE,
    };
    for address in learned.addresses.iter().take(MAX_PER_NAME) {
        // One that is said twice is open once.
        if decision.open.contains(address) {
            continue;
        }
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

#[cfg(test)]
mod tests {
    use super::{Class, Decision, decide};
    use crate::allowlist::{Allowlist, DomainName, Origin, parse_rules};
    use crate::dns::protocol::Learned;
    use std::net::IpAddr;

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

    #[test]
    fn a_name_is_exact_when_any_rule_spells_it_out() {
        let text = "*.cdn.test\nwww.cdn.test:8443";
        assert_eq!(judged(text, "www.cdn.test", &[]).class, Class::Exact);
        assert_eq!(judged(text, "made-up.cdn.test", &[]).class, Class::Pattern);
    }

    #[test]
    fn an_address_that_is_said_twice_is_opened_once() {
        assert_eq!(judged("ok.test", "ok.test", &["192.0.43.7", "192.0.43.7"]).open.len(), 1);
    }
}
