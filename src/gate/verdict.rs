//! What the policy says of a connection that shows a name. (pure)
//!
//! The gate judges by this, and so does `innkeeper check`: there is no second opinion.

use std::fmt;

use crate::allowlist::{Allowed, Allowlist, Denied, DomainName, Verdict, Wire};

/// T48: how far the gate sees into a connection, for who asks. Accepted, since seeing more would take a certificate
/// authority in the box.
pub const UNSEEN: &str =
    "inside TLS nobody looks: a server that has other names too may be asked for them there";
/// The same where there is a line for it and no more.
pub const UNSEEN_BRIEFLY: &str = "what is asked inside TLS (domain fronting, docs/gate.md)";

/// A connection as the gate sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// The name that the client shows: TLS SNI, HTTP Host.
    pub name: &'a DomainName,
    /// Where it was going.
    pub port: u16,
    pub wire: Wire,
    /// Whether another name may be hidden behind the one that is shown.
    pub ech: bool,
}

/// Why a connection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why<'a> {
    /// The name is denied on every port.
    Name(Denied<'a>),
    /// The name is allowed on these ports only.
    Port(Vec<u16>),
    /// The name is allowed here with the other protocol.
    Wire(Wire),
    /// An Encrypted ClientHello, or what can't be told from one.
    Ech,
}

/// Judges a connection by the name that it shows; the rules that let it pass, together.
pub fn judge<'a>(allowlist: &'a Allowlist, shown: Shown<'_>) -> Result<Allowed<'a>, Why<'a>> {
    let allowed = match allowlist.verdict(shown.name) {
        Verdict::Allowed(allowed) => allowed,
        Verdict::Denied(denied) => return Err(Why::Name(denied)),
    };
    let here = || allowed.rules.iter().filter(|rule| rule.ports.contains(&shown.port));
    if here().next().is_none() {
        return Err(Why::Port(allowed.ports));
    }
    // Where the rule does not say, and the port has no custom, whatever shows a name will do.
    if !here().any(|rule| rule.wire_on(shown.port).is_none_or(|wire| wire == shown.wire)) {
        return Err(Why::Wire(match shown.wire {
            Wire::Tls => Wire::Http,
            Wire::Http => Wire::Tls,
        }));
    }
    if shown.ech && !here().any(|rule| rule.options.ech) {
        return Err(Why::Ech);
    }
    Ok(allowed)
}

impl Why<'_> {
    /// What to do where the policy need not change for it: a port with a custom is asked in the wrong way.
    #[must_use]
    pub fn instead(&self, port: u16) -> Option<&'static str> {
        match (self, port) {
            (Self::Wire(Wire::Tls), 443) => Some("use https:// there"),
            (Self::Wire(Wire::Http), 80) => Some("use http:// there"),
            (Self::Wire(_) | Self::Name(_) | Self::Port(_) | Self::Ech, _) => None,
        }
    }
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(denied) => denied.fmt(f),
            Self::Port(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, "allowed on {} only", ports.join(", "))
            }
            Self::Wire(Wire::Tls) => f.write_str("this port is for TLS"),
            Self::Wire(Wire::Http) => f.write_str("this port is for HTTP without TLS"),
            Self::Ech => f.write_str(
                "an Encrypted ClientHello (RFC 9849) may hide another name; browsers always send one: switch it off there, \
                 or the rule would have to say `ech`",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::{Origin, parse_rules};

    fn judged(policy: &str, name: &str, port: u16, wire: Wire, ech: bool) -> Result<(), String> {
        let (rules, problems) = parse_rules(policy, |_| Origin::Operator);
        assert!(problems.is_empty(), "{problems:?}");
        let (list, name) = (Allowlist::new(rules), DomainName::parse(name).unwrap());
        judge(&list, Shown { name: &name, port, wire, ech }).map(|_| ()).map_err(|why| why.to_string())
    }

    fn tls(policy: &str, name: &str, port: u16) -> Result<(), String> {
        judged(policy, name, port, Wire::Tls, false)
    }

    #[test]
    fn t47_the_name_that_is_shown_decides() {
        assert_eq!(tls("ok.test", "ok.test", 443), Ok(()));
        assert_eq!(tls("ok.test", "evil-cdn.test", 443), Err("not in the allowlist".into()));
        assert_eq!(tls("*.ok.test", "a.b.ok.test", 443), Ok(()));
        assert!(tls("*.ok.test", "ok.test", 443).is_err());
        assert!(tls("*.ok.test\n!bad.ok.test", "bad.ok.test", 443).is_err());
        assert!(tls("keys.test by=broker", "keys.test", 443).is_err());
        assert_eq!(tls("ok.test", "ok.test", 80), Err("allowed on 443 only".into()));
    }

    #[test]
    fn t62_a_port_carries_what_it_is_for() {
        let policy = "ok.test:80,443\nmarked.test:8443 tls\nmarked.test:8080 http\nplain.test:8443";
        assert_eq!(judged(policy, "ok.test", 443, Wire::Http, false), Err("this port is for TLS".into()));
        assert!(judged(policy, "ok.test", 80, Wire::Tls, false).is_err());
        assert_eq!(judged(policy, "ok.test", 80, Wire::Http, false), Ok(()));
        assert_eq!(tls(policy, "marked.test", 8443), Ok(()));
        assert!(judged(policy, "marked.test", 8443, Wire::Http, false).is_err());
        assert!(tls(policy, "marked.test", 8080).is_err());
        for wire in [Wire::Tls, Wire::Http] {
            assert_eq!(judged(policy, "plain.test", 8443, wire, false), Ok(()), "not marked: either");
        }
        assert_eq!(judged("odd.test:443 http", "odd.test", 443, Wire::Http, false), Ok(()));
    }

    #[test]
    fn a_name_behind_the_name_takes_a_rule_that_says_so() {
        let ech = |policy| judged(policy, "ok.test", 443, Wire::Tls, true);
        assert!(ech("ok.test").is_err());
        assert_eq!(ech("ok.test ech"), Ok(()));
        assert!(ech("ok.test:8443 ech tls\nok.test").is_err(), "of another port");
    }
}
