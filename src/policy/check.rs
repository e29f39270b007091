//! `innkeeper check`: what would become of a connection, said by the functions that decide on it.  (pure)
//!
//! The resolver decides by [`dns::policy::decide`](crate::dns::policy::decide), the firewall by
//! [`admission::decide`](crate::firewall::admission::decide), the gate by [`judge`](crate::gate::verdict::judge); all of
//! them ask [`Allowlist::verdict`]. So does this.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_server::proto::op::OpCode;
use hickory_server::proto::rr::{DNSClass, Name, RecordType};
use serde::{Deserialize, Serialize};

use super::nearest::{Near, nearest};
use super::remedy::{ask, command};
use crate::allowlist::{
    Allowlist, Ceiling, DEFAULT_PORT, Denied, DomainName, DomainPattern, Origin, Rule, RuleOptions, Verdict,
    Wire, parse_rule,
};
use crate::dns::policy::{Cause, Decision, Query, Question, Why, decide};
use crate::dns::protocol::Learned;
use crate::firewall::admission;
use crate::gate::verdict::{Shown, UNSEEN, judge};
use crate::report::harmless;
use crate::status::audience;
use crate::status::report::SCHEMA;

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// With what it is spoken, where a URL says so.
    Name(DomainName, u16, Option<Wire>),
    Address(IpAddr, u16),
}

impl Target {
    /// Reads `NAME`, `NAME:PORT`, an address with or without a port, a URL, or git's `USER@HOST:PATH`.
    pub fn parse(what: &str) -> Result<Self, String> {
        let (scheme, rest) =
            what.split_once("://").map_or((None, what), |(scheme, rest)| (Some(scheme), rest));
        let default = match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "ws") => 80,
            Some("ssh" | "git+ssh" | "sftp") => 22,
            Some("git") => 9418,
            Some("ftp") => 21,
            Some(_) | None => DEFAULT_PORT,
        };
        let wire = match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("https" | "wss") => Some(Wire::Tls),
            Some("http" | "ws") => Some(Wire::Http),
            Some(_) | None => None,
        };
        // A backslash ends a host for browsers (WHATWG URL), so it must not hide one here.
        let authority = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
        let (user, authority) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        if let Ok(address) = authority.parse::<SocketAddr>() {
            return Ok(Self::Address(address.ip(), port_of(address.port())?));
        }
        if let Ok(address) = authority.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Self::Address(address, default));
        }
        let (name, port) = match authority.rsplit_once(':') {
            // scp's form: what follows is a path, and the protocol is ssh.
            Some((name, path)) if scheme.is_none() && user.is_some() && !is_number(path) => (name, 22),
            // Digits alone: the standard library takes a sign too.
            Some((_, port)) if !is_number(port) => return Err(no_port(port)),
            Some((name, port)) => (name, port.parse().map_err(|_| no_port(port)).and_then(port_of)?),
            None => (authority, default),
        };
        let parsed = DomainName::parse(name);
        let name = parsed.map_err(|error| format!("\"{}\" is not a host name: {error}", shown(name)))?;
        Ok(Self::Name(name, port, wire))
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit())
}

fn port_of(port: u16) -> Result<u16, String> {
    if port == 0 { Err(no_port("0")) } else { Ok(port) }
}

fn no_port(text: &str) -> String {
    format!("\"{}\" is not a port", shown(text))
}

/// What was typed may be anything, and of any length.
fn shown(text: &str) -> String {
    harmless(text, 80)
}

/// How much of an origin is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Everything,
    /// Without the paths of host and image, as in the agent's own `status`.
    AsAgent,
}

/// A rule as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cited {
    pub rule: String,
    pub origin: String,
}

impl Cited {
    #[must_use]
    pub fn of(rule: &Rule, told: Told) -> Self {
        let origin = rule.origin.to_string();
        let origin = match told {
            Told::Everything => origin,
            Told::AsAgent => audience::origin(&origin),
        };
        Self { rule: rule.to_string(), origin }
    }
}

/// The answer to `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    pub schema: u8,
    pub allowed: bool,
    /// The name or address.
    pub name: String,
    pub port: u16,
    /// By which rules it is allowed, or the one that denies it.
    pub rules: Vec<Cited>,
    /// One line: the rule and where it is written, or why not and what would allow it.
    pub explanation: String,
    /// Rules that are near what was asked for.
    pub nearest: Vec<Near>,
    /// What would allow it for good, in network/domains.conf.
    pub line: Option<String>,
    /// What would allow it now.
    pub command: Option<String>,
    /// Why that command would be refused.
    pub obstacle: Option<String>,
    /// What the agent can do by itself.
    pub ask: Option<String>,
    /// What of an allowed connection nobody sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
}

impl Checked {
    /// What is known in one line, and no more.
    #[must_use]
    pub fn plain(allowed: bool, name: String, port: u16, explanation: String) -> Self {
        let (rules, nearest) = (Vec::new(), Vec::new());
        let (line, command, obstacle, ask, unseen) = (None, None, None, None, None);
        Self {
            schema: SCHEMA,
            allowed,
            name,
            port,
            rules,
            explanation,
            nearest,
            line,
            command,
            obstacle,
            ask,
            unseen,
        }
    }
}

/// What resolver and firewall make of a name and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage<'a> {
    /// It resolves, and what it resolves to is opened for this port, by these rules.
    Open(Vec<&'a Rule>),
    /// It resolves, and these are its ports.
    OtherPorts(Vec<u16>),
    /// It is the box itself.
    Loopback,
    /// It does not resolve.
    Denied(Denied<'a>),
    /// Reverse look-ups and the like: no rule changes that.
    Unserved,
}

/// Asks the resolver's decision, then the firewall's.
#[must_use]
pub fn passage<'a>(allowlist: &'a Allowlist, name: &DomainName, port: u16) -> Passage<'a> {
    let Ok(asked) = Name::from_labels(name.as_str().split('.').map(str::as_bytes)) else {
        return Passage::Unserved;
    };
    let question = Question { name: &asked, kind: RecordType::A, class: DNSClass::IN };
    let query = Query { opcode: OpCode::Query, questions: 1, question: Some(question) };
    match decide(query, allowlist, true) {
        Decision::Answer(_) => Passage::Loopback,
        Decision::Refuse(Why::Denied { cause: Cause::Policy(denied), .. }) => Passage::Denied(denied),
        Decision::Refuse(_) => Passage::Unserved,
        Decision::Resolve { name, .. } => admitted(allowlist, name, port),
    }
}

fn admitted(allowlist: &Allowlist, name: DomainName, port: u16) -> Passage<'_> {
    let learned = Learned { id: 0, name, addresses: Vec::new(), ttl_s: 0, stale: false };
    match (admission::decide(allowlist, &learned), allowlist.verdict(&learned.name)) {
        (Ok(decision), Verdict::Allowed(allowed)) if decision.ports.contains(&port) => {
            Passage::Open(allowed.rules.into_iter().filter(|rule| rule.ports.contains(&port)).collect())
        }
        (Ok(decision), _) => Passage::OtherPorts(decision.ports),
        (Err(_), Verdict::Denied(denied)) => Passage::Denied(denied),
        (Err(_), Verdict::Allowed(_)) => Passage::OtherPorts(Vec::new()),
    }
}

/// What is known beside the rules in force.
#[derive(Debug)]
pub struct Ground<'a> {
    pub ceiling: &'a Ceiling,
    /// What the operator took back of the configuration.
    pub taken_back: &'a [Arc<Rule>],
    /// Whether the agent may ask (`network.requests`).
    pub queue: bool,
    pub told: Told,
}

/// Explains by the very functions that decide.
#[must_use]
pub fn explain(
    allowlist: &Allowlist,
    ground: &Ground<'_>,
    name: &DomainName,
    port: u16,
    wire: Option<Wire>,
) -> Checked {
    let plain = |allowed, why: String| Checked::plain(allowed, name.to_string(), port, why);
    match passage(allowlist, name, port) {
        Passage::Open(rules) => {
            if let Some(refused) = at_gate(allowlist, ground, (name, port), wire) {
                return refused;
            }
            let unseen = unseen(&rules, allowlist, port).map(str::to_owned);
            let rules: Vec<Cited> = rules.into_iter().map(|rule| Cited::of(rule, ground.told)).collect();
            let by = rules.iter().map(|cited| format!("{} ({})", cited.rule, cited.origin));
            let by = by.collect::<Vec<_>>().join(", ");
            Checked { rules, unseen, ..plain(true, format!("{name}:{port} is allowed by {by}")) }
        }
        Passage::Loopback => plain(true, format!("{name}:{port} is this box itself; no rule is about it")),
        Passage::Unserved => {
            plain(false, format!("{name}:{port} is denied: such names are not served in the box, by no rule"))
        }
        Passage::OtherPorts(ports) => {
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let why = format!("{name} is allowed on {ports} only");
            missing(allowlist, ground, name, port, &why)
        }
        Passage::Denied(Denied::DenyRule(rule)) => {
            let command = format!("innkeeper revoke '{rule}'");
            let cited = Cited::of(rule, ground.told);
            let why = format!("denied by the rule {} ({})", cited.rule, cited.origin);
            let said = format!("{name}:{port} is {why}; operator: {command}");
            Checked { rules: vec![cited], command: Some(command), ..plain(false, said) }
        }
        Passage::Denied(Denied::NotListed) => {
            missing(allowlist, ground, name, port, &format!("{name}:{port} is denied: not in the allowlist"))
        }
        Passage::Denied(Denied::OtherSubject(rule)) => {
            let (by, origin) = (rule.options.by, Cited::of(rule, ground.told).origin);
            let why = format!("{name}:{port} is denied: only for {by} ({origin})");
            missing(allowlist, ground, name, port, &why)
        }
    }
}

/// What is accepted with a rule: how far those who judge a connection see into it (T48).
fn unseen(rules: &[&Rule], allowlist: &Allowlist, port: u16) -> Option<&'static str> {
    if !allowlist.gated_ports().contains(&port) {
        return Some(
            "by address: whatever else answers at this name's addresses on this port can be reached too",
        );
    }
    let tls = rules.iter().any(|rule| rule.wire_on(port) != Some(Wire::Http));
    tls.then_some(UNSEEN)
}

/// What the gate would refuse although the name is open on this port: what is spoken there.
fn at_gate(
    allowlist: &Allowlist,
    ground: &Ground<'_>,
    (name, port): (&DomainName, u16),
    wire: Option<Wire>,
) -> Option<Checked> {
    let wire = wire.filter(|_| allowlist.gated_ports().contains(&port))?;
    let why = judge(allowlist, Shown { name, port, wire, ech: false }).err()?;
    let said = format!("{name}:{port} is refused by the gate: {why}");
    if let Some(instead) = why.instead(port) {
        return Some(Checked::plain(false, name.to_string(), port, format!("{said}; {instead}")));
    }
    let rule = parse_rule(&format!("{name}:{port} {wire}"), Origin::Operator).ok();
    let offer = rule.and_then(|rule| ground.ceiling.below(rule)).ok_or(BEYOND);
    Some(refused(ground, name, port, &said, offer))
}

/// Why nothing does.
const BEYOND: &str = "it is beyond the ceiling of this image (/etc/innkeeper/ceiling.conf)";

/// What would allow it, or why nothing does.
fn missing(allowlist: &Allowlist, ground: &Ground<'_>, name: &DomainName, port: u16, why: &str) -> Checked {
    let pattern = DomainPattern::Exact(name.clone());
    let (options, origin) = (RuleOptions::default(), Origin::Operator);
    let rule = Rule { deny: false, pattern, ports: vec![port], options, origin, why: None };
    let offer = if port == 53 {
        Err("port 53 is the box's own resolver's: every question goes there")
    } else {
        ground.ceiling.below(rule).ok_or(BEYOND)
    };
    let nearest = nearest(allowlist.rules(), ground, name, port);
    Checked { nearest, ..refused(ground, name, port, why, offer) }
}

/// What is refused, with the rule that would allow it or why none does.
fn refused(
    ground: &Ground<'_>,
    name: &DomainName,
    port: u16,
    why: &str,
    offer: Result<Rule, &'static str>,
) -> Checked {
    let plain = |next: &str| Checked::plain(false, name.to_string(), port, format!("{why}; {next}"));
    match offer {
        Ok(rule) => {
            let said = plain(&format!("operator: {}", command(&rule)));
            Checked {
                ask: ground.queue.then(|| ask(&rule)).flatten(),
                command: Some(command(&rule)),
                line: Some(rule.to_string()),
                ..said
            }
        }
        Err(obstacle) => Checked { obstacle: Some(obstacle.to_owned()), ..plain(obstacle) },
    }
}

#[cfg(test)]
mod tests;
