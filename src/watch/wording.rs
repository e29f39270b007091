//! A refused packet in words (pure): what it was, why it was refused, and what would allow it.

use std::net::IpAddr;

use super::packet::protocol::{DCCP, ICMP, ICMP6, SCTP, TCP, UDP, UDP_LITE};
use super::protocol::Target;
use crate::addresses::{AddressClass, class};
use crate::allowlist::DomainName;

/// A name and the ports that are open for it at an address.
pub type Claim = (DomainName, Vec<u16>);

/// Why a packet was refused, and what would allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    pub reason: String,
    pub allow: String,
}

fn why(reason: impl Into<String>, allow: impl Into<String>) -> Why {
    Why { reason: reason.into(), allow: allow.into() }
}

const DNS: u16 = 53;
/// What stands for destinations that are too many to list.
pub const OTHERS: &str = "(other destinations)";
/// Of many names at one address so many are listed.
const NAMES: usize = 3;

/// "198.51.100.66:443 tcp", "[2001:db8::66]:53 udp", "198.51.100.66 icmp echo-request".
#[must_use]
pub fn what(target: Option<Target>) -> String {
    let Some(target) = target else { return OTHERS.to_owned() };
    let Some(address) = target.address else { return "(unreadable packets)".to_owned() };
    let place = match (address, target.port) {
        (_, None) => address.to_string(),
        (_, Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    };
    match (protocol(target.protocol), target.icmp.map(|kind| icmp(target.protocol, kind))) {
        (name, Some(kind)) => format!("{place} {name} {kind}"),
        (name, None) => format!("{place} {name}"),
    }
}

/// By the names of RFC 5237's registry where they are well known, else by number.
fn protocol(number: Option<u8>) -> String {
    let name = match number {
        None => "ip",
        Some(ICMP) => "icmp",
        Some(2) => "igmp",
        Some(4) => "ipip",
        Some(TCP) => "tcp",
        Some(UDP) => "udp",
        Some(DCCP) => "dccp",
        Some(41) => "ipv6",
        Some(47) => "gre",
        Some(50) => "esp",
        Some(ICMP6) => "icmpv6",
        Some(SCTP) => "sctp",
        Some(UDP_LITE) => "udplite",
        Some(number) => return format!("protocol {number}"),
    };
    name.to_owned()
}

fn icmp(protocol: Option<u8>, kind: u8) -> String {
    match (protocol, kind) {
        (Some(ICMP), 8) | (Some(ICMP6), 128) => "echo-request".to_owned(),
        (Some(ICMP), 0) | (Some(ICMP6), 129) => "echo-reply".to_owned(),
        _ => format!("type {kind}"),
    }
}

/// What is to be said of a refusal. `claims`: who has this address open, for which ports.
#[must_use]
pub fn explain(target: Option<Target>, claims: &[Claim]) -> Why {
    let Some(target) = target else {
        return why("refused; too many different destinations at a time to list each", "");
    };
    let Some(address) = target.address else {
        return why("refused; its headers could not be read", "");
    };
    if address.is_loopback() {
        return match address {
            IpAddr::V4(v4) if v4.octets() == [127, 0, 0, 11] => {
                why("the engine's resolver serves the box's own resolver alone", "nothing: ask 127.0.0.53")
            }
            _ => why(
                "what listened on loopback before the box was closed is not the agent's",
                "network.loopback, set by the operator",
            ),
        };
    }
    match class(address) {
        AddressClass::Never(range) => {
            return why(format!("{range} is never opened"), "nothing opens this address");
        }
        AddressClass::Private(range) if claims.is_empty() => {
            return why(
                format!("{range}: open only to a name whose rule says `private`"),
                "innkeeper allow 'NAME private', for a name that has this address",
            );
        }
        AddressClass::Private(_) | AddressClass::Global => {}
    }
    match (target.protocol, target.port) {
        (Some(TCP | UDP), Some(DNS)) if claims.is_empty() => {
            why("names are asked of the box's own resolver", "nothing: ask 127.0.0.53")
        }
        (Some(TCP), Some(port)) => explain_tcp(address, port, claims),
        (Some(UDP), Some(443)) => {
            why("UDP is not let out, and so no QUIC", "use TCP: most programs do so by themselves")
        }
        (Some(ICMP | ICMP6), _) => why("only TCP is let out, no ping", "nothing: try a TCP connection"),
        _ => why("only TCP is let out", "use TCP"),
    }
}

fn explain_tcp(address: IpAddr, port: u16, claims: &[Claim]) -> Why {
    if let Some((name, _)) = claims.iter().find(|(_, ports)| ports.contains(&port)) {
        return why(
            format!("{name} had not been resolved to {address} yet, or no longer: open by now"),
            "nothing: resolve the name and try again",
        );
    }
    let Some((name, ports)) = claims.first() else {
        let suffix = if port == 443 { String::new() } else { format!(":{port}") };
        return why(
            "no allowlisted name has this address",
            format!("allow a name, not an address: innkeeper allow NAME{suffix}"),
        );
    };
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let others: Vec<&str> = claims.iter().skip(1).take(NAMES - 1).map(|(name, _)| name.as_str()).collect();
    let also = if others.is_empty() { String::new() } else { format!(" (also {})", others.join(", ")) };
    why(
        format!("{name} ({address}) is allowed on {} only{also}", ports.join(" and ")),
        format!("innkeeper allow {name}:{port}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(address: &str, protocol: u8, port: Option<u16>, icmp: Option<u8>) -> Option<Target> {
        Some(Target { address: Some(address.parse().unwrap()), protocol: Some(protocol), port, icmp })
    }

    fn claim(name: &str, ports: &[u16]) -> Claim {
        (DomainName::parse(name).unwrap(), ports.to_vec())
    }

    #[test]
    fn packets_have_names() {
        for (target, expected) in [
            (to("198.51.100.66", 6, Some(443), None), "198.51.100.66:443 tcp"),
            (to("2001:db8::66", 17, Some(53), None), "[2001:db8::66]:53 udp"),
            (to("198.51.100.66", 1, None, Some(8)), "198.51.100.66 icmp echo-request"),
            (to("2001:db8::66", 58, None, Some(128)), "2001:db8::66 icmpv6 echo-request"),
            (to("198.51.100.66", 1, None, Some(13)), "198.51.100.66 icmp type 13"),
            (to("198.51.100.66", 132, Some(9), None), "198.51.100.66:9 sctp"),
            (to("198.51.100.66", 99, None, None), "198.51.100.66 protocol 99"),
            (Some(Target::default()), "(unreadable packets)"),
            (None, "(other destinations)"),
        ] {
            assert_eq!(what(target), expected);
        }
    }

    fn said(target: Option<Target>, claims: &[Claim]) -> (String, String) {
        let said = explain(target, claims);
        (said.reason, said.allow)
    }

    #[test]
    fn an_address_that_is_open_on_another_port_says_for_whom() {
        let claims = [claim("github.com", &[443]), claim("gist.github.com", &[443, 80])];
        assert_eq!(
            said(to("140.82.112.3", TCP, Some(22), None), &claims[..1]),
            (
                "github.com (140.82.112.3) is allowed on 443 only".into(),
                "innkeeper allow github.com:22".into()
            )
        );
        let (reason, _) = said(to("140.82.112.3", TCP, Some(22), None), &claims);
        assert!(reason.ends_with("443 only (also gist.github.com)"), "{reason}");
        let (reason, allow) = said(to("140.82.112.3", TCP, Some(80), None), &claims);
        assert!(reason.starts_with("gist.github.com had not been resolved") && allow.starts_with("nothing"));
    }

    #[test]
    fn every_refusal_says_what_would_help() {
        for (target, reason, allow) in [
            (to("140.82.112.3", TCP, Some(443), None), "no allowlisted name", "innkeeper allow NAME"),
            (to("140.82.112.3", TCP, Some(22), None), "no allowlisted name", "innkeeper allow NAME:22"),
            (to("10.0.0.5", TCP, Some(443), None), "private use (RFC 1918)", "NAME private"),
            (to("169.254.169.254", TCP, Some(80), None), "metadata service", "nothing opens"),
            (to("198.51.100.66", UDP, Some(9), None), "TEST-NET-2", "nothing opens"),
            (to("140.82.112.3", UDP, Some(443), None), "QUIC", "use TCP"),
            (to("140.82.112.3", UDP, Some(53), None), "own resolver", "127.0.0.53"),
            (to("140.82.112.3", UDP, Some(9), None), "only TCP", "use TCP"),
            (to("140.82.112.3", ICMP, None, Some(8)), "no ping", "TCP connection"),
            (to("140.82.112.3", SCTP, Some(443), None), "only TCP", "use TCP"),
            (to("127.0.0.11", UDP, Some(41234), None), "engine's resolver", "127.0.0.53"),
            (to("127.0.0.1", TCP, Some(15001), None), "listened on loopback", "network.loopback"),
            (None, "too many", ""),
        ] {
            let said = said(target, &[]);
            assert!(said.0.contains(reason) && said.1.contains(allow), "{target:?}: {said:?}");
        }
        let private = [claim("git.corp.example", &[443])];
        let (reason, allow) = said(to("10.0.0.5", TCP, Some(7999), None), &private);
        assert!(reason.starts_with("git.corp.example (10.0.0.5)"), "{reason}");
        assert_eq!(allow, "innkeeper allow git.corp.example:7999");
    }
}
