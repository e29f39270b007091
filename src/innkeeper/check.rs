//! `innkeeper check`: what would become of a connection, explained by the code that decides.

use std::net::{IpAddr, SocketAddr};

use super::Innkeeper;
use crate::addresses::{AddressClass, class};
use crate::allowlist::DomainName;
use crate::control::protocol::Response;
use crate::policy::explain;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Name(DomainName, u16),
    Address(IpAddr, u16),
}

impl Target {
    /// Reads `NAME`, `NAME:PORT`, an address with or without a port, or a URL.
    fn parse(what: &str) -> Result<Self, String> {
        let (scheme, rest) = what.split_once("://").unwrap_or(("https", what));
        let default = match scheme {
            "http" => 80,
            "ssh" => 22,
            _ => 443,
        };
        // A backslash ends a host for browsers (WHATWG URL), so it must not hide one here.
        let authority = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
        let authority = authority.rsplit('@').next().unwrap_or_default();
        if let Ok(address) = authority.parse::<SocketAddr>() {
            return Ok(Self::Address(address.ip(), address.port()));
        }
        if let Ok(address) = authority.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self::Address(address, default));
        }
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => {
                (name, port.parse::<u16>().map_err(|_| format!("\"{port}\" is not a port"))?)
            }
            None => (authority, default),
        };
        let name =
            DomainName::parse(name).map_err(|error| format!("\"{name}\" is not a host name: {error}"))?;
        Ok(Self::Name(name, port))
    }
}

impl Innkeeper {
    pub(super) fn check(&self, what: &str) -> Response {
        match Target::parse(what) {
            Err(reason) => Response::Invalid { reason },
            Ok(Target::Name(name, port)) => {
                let explained = explain(&self.allowlist(), &name, port);
                Response::Verdict {
                    allowed: explained.allowed,
                    name: name.to_string(),
                    explanation: explained.text,
                }
            }
            Ok(Target::Address(address, port)) => self.check_address(address, port),
        }
    }

    /// An address is open while an allowlisted name answers with it, and never by itself.
    fn check_address(&self, address: IpAddr, port: u16) -> Response {
        let shown = SocketAddr::new(address, port);
        let open = self.firewall.get().map(|firewall| firewall.names_at(address)).unwrap_or_default();
        let open = open.iter().filter(|(_, ports)| ports.contains(&port));
        let names: Vec<String> = open.map(|(name, _)| name.to_string()).collect();
        let explanation = match class(address) {
            _ if !names.is_empty() => format!("{shown} is open now, as an address of {}", names.join(", ")),
            AddressClass::Never(range) => format!("{shown} is closed: {range}; nothing opens it"),
            AddressClass::Private(range) => {
                format!("{shown} is closed: {range}; only a name whose rule says `private` could open it")
            }
            AddressClass::Global => format!(
                "{shown} is closed: no allowlisted name answered with it; rules take names: innkeeper allow NAME"
            ),
        };
        Response::Verdict { allowed: !names.is_empty(), name: address.to_string(), explanation }
    }
}

#[cfg(test)]
mod tests {
    use super::Target;
    use crate::allowlist::{Allowlist, Origin, parse_rules};
    use crate::policy::explain;

    #[test]
    fn names_urls_and_addresses_are_taken_apart() {
        let target = |text: &str| match Target::parse(text) {
            Ok(Target::Name(name, port)) => format!("{name} {port}"),
            Ok(Target::Address(address, port)) => format!("address {address} {port}"),
            Err(reason) => reason,
        };
        assert_eq!(target("GitHub.com"), "github.com 443");
        assert_eq!(target("github.com:22"), "github.com 22");
        assert_eq!(target("https://user:pw@github.com/a/b?c"), "github.com 443");
        assert_eq!(target("https://evil.test\\@github.com/"), "evil.test 443");
        assert_eq!(target("http://archive.example.org/x"), "archive.example.org 80");
        assert_eq!(target("https://10.0.0.1/"), "address 10.0.0.1 443");
        assert_eq!(target("http://[2001:db8::1]/"), "address 2001:db8::1 80");
        assert_eq!(target("[2001:db8::1]:22"), "address 2001:db8::1 22");
        assert!(target("2852039166").contains("IP address"), "{}", target("2852039166"));
        assert!(target("github.com:99999").contains("not a port"));
    }

    #[test]
    fn a_verdict_names_the_rule_or_the_command() {
        let (rules, _) =
            parse_rules("github.com:443,22", |line| Origin::File { path: "d.conf".into(), line });
        let allowlist = Allowlist::new(rules);
        let verdict = |text: &str| match Target::parse(text) {
            Ok(Target::Name(name, port)) => explain(&allowlist, &name, port),
            other => panic!("{other:?}"),
        };
        assert_eq!(verdict("github.com:22").text, "github.com:22 is allowed by github.com:22,443 (d.conf:1)");
        assert!(verdict("github.com:80").text.ends_with("innkeeper allow github.com:80"));
        assert!(!verdict("evil.example").allowed);
    }
}
