//! Rule sets as the text of `iptables-restore` (pure): the same value that nf_tables gets, for one family.
//!
//! *Accept* is `RETURN` to the built-in chain: as in nf_tables, rules of others still count. Words are in the order in
//! which `iptables -S` prints them, so that what is loaded can be compared with what is listed.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::pairs::PairChain;
use crate::firewall::backend::Edit;
use crate::firewall::ruleset::{
    Action, Base, Chain, Content, Direction, Family, Hook, Kind, Match, Policy, Protocol, Rule, Ruleset,
    SNAPLEN, State, Transport,
};

/// Every chain of ours begins with this, and nobody else's does.
pub const PREFIX: &str = "INNKEEPER-";
/// Every set of ours begins with this; a number follows, so that the sets of new rules stand beside those of the old.
pub const SET_PREFIX: &str = "innkeeper.";

/// How rules are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Sets of the kernel's ipset, by the number in their names; `None`: a rule for every pair.
    pub sets: Option<u32>,
    /// Whether the kernel takes comments.
    pub comments: bool,
}

/// Our part of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub table: String,
    /// Name and rules, without the `-A NAME`.
    pub chains: Vec<(String, Vec<String>)>,
    /// From a built-in chain, where it comes first, to one of ours.
    pub jumps: Vec<(String, String)>,
}

/// A rule set for one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// In the order in which they are loaded: what closes comes last, when what it relies on is there.
    pub bodies: Vec<Body>,
    /// Chains that are filled while the box lives, where there are no sets.
    pub pairs: Vec<PairChain>,
}

/// What a set is called in the kernel.
#[must_use]
pub fn set_name(number: u32, set: &str) -> String {
    format!("{SET_PREFIX}{number}.{set}")
}

/// What one of our chains is called.
fn chain_name(name: &str) -> String {
    format!("{PREFIX}{}", name.to_uppercase())
}

/// Renders everything of the rule set that concerns the family, with the pairs of `content` where rules hold them.
#[must_use]
pub fn render(ruleset: &Ruleset, family: Family, form: Form, content: &Edit) -> Rendered {
    let mut writer = Writer { ruleset, family, form, content, chains: Vec::new(), pairs: Vec::new() };
    let mut bodies: Vec<Body> =
        ["mangle", "nat", "filter"].into_iter().filter_map(|table| writer.table(table)).collect();
    if bodies.iter().all(|body| body.jumps.is_empty()) {
        bodies.clear();
    }
    Rendered { bodies, pairs: writer.pairs }
}

/// Which table and built-in chain a hook is.
fn place(base: &Base) -> (&'static str, &'static str) {
    match (base.kind, base.hook) {
        (Kind::Nat, Hook::Output | Hook::Input | Hook::Forward) => ("nat", "OUTPUT"),
        (Kind::Nat, Hook::Postrouting) => ("nat", "POSTROUTING"),
        (Kind::Filter, Hook::Input) => ("filter", "INPUT"),
        (Kind::Filter, Hook::Forward) => ("filter", "FORWARD"),
        (Kind::Filter, Hook::Output) => ("filter", "OUTPUT"),
        (Kind::Filter, Hook::Postrouting) => ("mangle", "POSTROUTING"),
    }
}

struct Writer<'a> {
    ruleset: &'a Ruleset,
    family: Family,
    form: Form,
    content: &'a Edit,
    chains: Vec<(String, Vec<String>)>,
    pairs: Vec<PairChain>,
}

impl Writer<'_> {
    fn table(&mut self, table: &str) -> Option<Body> {
        self.chains.clear();
        let mut jumps = Vec::new();
        for chain in &self.ruleset.chains {
            // Chains without a hook are reached from the filter's.
            let (own, hook) = chain.base.as_ref().map_or(("filter", None), |base| {
                let (table, hook) = place(base);
                (table, Some(hook))
            });
            if own != table {
                continue;
            }
            let live = self.live(chain);
            if chain.base.is_some_and(|base| base.policy == Policy::Accept) && passes(&live) {
                continue;
            }
            self.chain(chain, &live);
            jumps.extend(hook.map(|hook| (hook.to_owned(), chain_name(chain.name))));
        }
        let chains = std::mem::take(&mut self.chains);
        (!chains.is_empty()).then(|| Body { table: table.to_owned(), chains, jumps })
    }

    /// The rules that a packet of this family can come to: a part of the kernel that none of them needs isn't asked for.
    fn live(&self, chain: &Chain) -> Vec<(Vec<Match>, Rule)> {
        let mut live = Vec::new();
        for rule in &chain.rules {
            let Some(matches) = reduce(&rule.matches, self.family) else { continue };
            let ends = matches.is_empty() && ends(rule);
            live.push((matches, rule.clone()));
            if ends {
                break;
            }
        }
        live
    }

    fn chain(&mut self, chain: &Chain, live: &[(Vec<Match>, Rule)]) {
        let name = chain_name(chain.name);
        let mut parts = 0_usize;
        let (mut current, mut rules) = (name.clone(), Vec::new());
        for (matches, rule) in live {
            let Some((set, source)) = self.filled(matches) else {
                rules.extend(self.rule(matches, rule));
                continue;
            };
            if self.form.sets.is_some() {
                rules.extend(self.rule(matches, rule));
                continue;
            }
            // A chain with a rule a pair; what it does not know goes on with the rest of this one.
            parts = parts.saturating_add(1);
            let rest = format!("{name}-{parts}");
            let place = format!("{name}-{}", set.to_uppercase());
            let mut words = Words::new(self, matches);
            words.protocol = Some("tcp");
            rules.push(words.line(&format!("-g {place}"), self.comment(rule)));
            rules.push(format!("-g {rest}"));
            self.chains.push((current, std::mem::take(&mut rules)));
            let target = self.target(rule);
            let pairs = PairChain { chain: place, set, source, target, rest: rest.clone() };
            self.chains.push((pairs.chain.clone(), pairs.rules(self.family, self.content)));
            self.pairs.push(pairs);
            current = rest;
        }
        let drops = chain.base.is_some_and(|base| base.policy == Policy::Drop);
        if drops && !live.last().is_some_and(|(matches, rule)| matches.is_empty() && ends(rule)) {
            rules.push("-j DROP".to_owned());
        }
        self.chains.push((current, rules));
    }

    /// The set of a match whose content comes and goes, and whether it is about the source.
    fn filled(&self, matches: &[Match]) -> Option<(&'static str, bool)> {
        let (set, source) = matches.iter().find_map(|condition| match condition {
            Match::DestinationIn(_, _, set) => Some((*set, false)),
            Match::SourceIn(_, _, set) => Some((*set, true)),
            _ => None,
        })?;
        self.constant(set).is_none().then_some((set, source))
    }

    fn constant(&self, set: &str) -> Option<&[SocketAddr]> {
        self.ruleset.sets.iter().find(|one| one.name == set).and_then(|one| match &one.content {
            Content::Constant(pairs) => Some(&pairs[..]),
            Content::Timed | Content::Lasting => None,
        })
    }

    fn comment(&self, rule: &Rule) -> Option<&'static str> {
        self.form.comments.then_some(rule.comment)
    }

    /// One rule, or one for each pair of a constant set, or one for each action that goes on.
    fn rule(&mut self, matches: &[Match], rule: &Rule) -> Vec<String> {
        let fixed = matches.iter().enumerate().find_map(|(at, condition)| match condition {
            Match::DestinationIn(_, transport, set) => Some((at, false, *transport, self.constant(set)?)),
            Match::SourceIn(_, transport, set) => Some((at, true, *transport, self.constant(set)?)),
            _ => None,
        });
        let mut all = Vec::new();
        if let Some((at, source, transport, pairs)) = fixed {
            for pair in pairs {
                let mut words = Words::new(
                    self,
                    &[matches.get(..at).unwrap_or_default(), matches.get(at + 1..).unwrap_or_default()]
                        .concat(),
                );
                words.pair(source, transport, *pair);
                all.push(words);
            }
        } else {
            all.push(Words::new(self, matches));
        }
        let targets = self.targets(rule);
        all.iter()
            .flat_map(|words| targets.iter().map(|target| words.line(target, self.comment(rule))))
            .collect()
    }

    /// What a rule does, as targets of one rule each. Counting is what every rule does.
    fn targets(&mut self, rule: &Rule) -> Vec<String> {
        if matches!(rule.actions[..], [Action::Log { .. }, Action::Accept]) {
            return vec![self.target(rule)];
        }
        let targets: Vec<String> =
            rule.actions.iter().filter_map(|action| target(*action, self.family)).collect();
        if targets.is_empty() { vec![String::new()] } else { targets }
    }

    /// A single target. What is noted before it passes is noted in a chain of its own: a second look into the set could
    /// find the pair gone.
    fn target(&mut self, rule: &Rule) -> String {
        if let [log @ Action::Log { .. }, Action::Accept] = rule.actions[..] {
            let name = chain_name("used");
            if !self.chains.iter().any(|(known, _)| *known == name) {
                self.chains.push((name.clone(), target(log, self.family).into_iter().collect()));
            }
            return format!("-g {name}");
        }
        rule.actions.last().and_then(|action| target(*action, self.family)).unwrap_or_default()
    }
}

/// Whether everything passes such a chain.
fn passes(live: &[(Vec<Match>, Rule)]) -> bool {
    live.first().is_none_or(|(matches, rule)| matches.is_empty() && rule.actions == [Action::Accept])
}

/// Whether nothing comes behind a rule that matches.
fn ends(rule: &Rule) -> bool {
    rule.actions.iter().any(|action| match action {
        Action::Accept
        | Action::Drop
        | Action::Goto(_)
        | Action::Dnat(_)
        | Action::RejectReset
        | Action::RejectProhibited => true,
        Action::Count(_) | Action::Log { .. } | Action::Mark(_) => false,
    })
}

/// What is left of the conditions in one family's tables; `None` where they can't hold.
fn reduce(matches: &[Match], family: Family) -> Option<Vec<Match>> {
    let mut left = Vec::new();
    for condition in matches {
        let of = match condition {
            Match::Family(of) => {
                if *of != family {
                    return None;
                }
                continue;
            }
            Match::Destination(address) => Some(Family::of(*address)),
            Match::DestinationIn(of, ..) | Match::SourceIn(of, ..) => Some(*of),
            Match::DestinationLoopback4
            | Match::Options4
            | Match::Unreachable4
            | Match::Protocol(Protocol::Icmp) => Some(Family::V4),
            Match::SourceNet(_)
            | Match::DestinationNet(_)
            | Match::Icmp6(_)
            | Match::HopLimit(_)
            | Match::Routing6
            | Match::Protocol(Protocol::Icmp6) => Some(Family::V6),
            Match::InLoopback
            | Match::OutLoopback
            | Match::OutNotLoopback
            | Match::Uid(_)
            | Match::Protocol(Protocol::Tcp)
            | Match::SourcePort(..)
            | Match::DestinationPort(..)
            | Match::State(_)
            | Match::Direction(_)
            | Match::Redirected
            | Match::Marked(_)
            | Match::NotSyn => None,
        };
        if of.is_some_and(|of| of != family) {
            return None;
        }
        left.push(*condition);
    }
    Some(left)
}

fn target(action: Action, family: Family) -> Option<String> {
    Some(match action {
        Action::Accept => "-j RETURN".to_owned(),
        Action::Drop => "-j DROP".to_owned(),
        Action::Goto(chain) => format!("-g {}", chain_name(chain)),
        Action::Count(_) => return None,
        Action::Log { group, threshold } => {
            format!("-j NFLOG --nflog-group {group} --nflog-size {SNAPLEN} --nflog-threshold {threshold}")
        }
        Action::Dnat(to) => format!("-j DNAT --to-destination {to}"),
        Action::Mark(mark) => format!("-j CONNMARK --set-xmark {:#x}/0xffffffff", mark.number()),
        Action::RejectReset => "-j REJECT --reject-with tcp-reset".to_owned(),
        Action::RejectProhibited => match family {
            Family::V4 => "-j REJECT --reject-with icmp-admin-prohibited".to_owned(),
            Family::V6 => "-j REJECT --reject-with icmp6-adm-prohibited".to_owned(),
        },
    })
}

/// The conditions of one rule, sorted as `iptables -S` does: what the header says comes first.
#[derive(Debug, Clone, Default)]
struct Words {
    source: Option<String>,
    destination: Option<String>,
    interfaces: Vec<&'static str>,
    protocol: Option<&'static str>,
    ports: Option<(Option<u16>, Option<u16>)>,
    not_syn: bool,
    modules: Vec<String>,
}

impl Words {
    fn new(writer: &Writer<'_>, matches: &[Match]) -> Self {
        let mut words = Self::default();
        for condition in matches {
            words.condition(writer, *condition);
        }
        words
    }

    fn condition(&mut self, writer: &Writer<'_>, condition: Match) {
        match condition {
            Match::InLoopback => self.interfaces.push("-i lo"),
            Match::OutLoopback => self.interfaces.push("-o lo"),
            Match::OutNotLoopback => self.interfaces.push("! -o lo"),
            Match::Uid(uid) => self.module(format!("owner --uid-owner {uid}")),
            // Reduced away.
            Match::Family(_) => {}
            Match::Protocol(protocol) => {
                self.protocol = Some(match protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Icmp => "icmp",
                    Protocol::Icmp6 => "ipv6-icmp",
                });
            }
            Match::Destination(address) => self.destination = Some(network(address)),
            Match::SourceNet(net) => self.source = Some(net.to_string()),
            Match::DestinationNet(net) => self.destination = Some(net.to_string()),
            Match::DestinationLoopback4 => self.destination = Some("127.0.0.0/8".to_owned()),
            Match::SourcePort(transport, port) => self.port(transport, Some(port), None),
            Match::DestinationPort(transport, port) => self.port(transport, None, Some(port)),
            Match::DestinationIn(_, transport, set) => self.set(writer, transport, set, "dst,dst"),
            Match::SourceIn(_, transport, set) => self.set(writer, transport, set, "src,src"),
            Match::State(state) => {
                let state = match state {
                    State::New => "NEW",
                    State::Established => "ESTABLISHED",
                    State::Related => "RELATED",
                };
                self.module(format!("conntrack --ctstate {state}"));
            }
            Match::Direction(Direction::Original) => self.module("conntrack --ctdir ORIGINAL".to_owned()),
            Match::Direction(Direction::Reply) => self.module("conntrack --ctdir REPLY".to_owned()),
            Match::Redirected => self.module("conntrack --ctstate DNAT".to_owned()),
            Match::Marked(mark) => self.module(format!("connmark --mark {:#x}", mark.number())),
            Match::NotSyn => {
                self.protocol = Some("tcp");
                self.not_syn = true;
            }
            Match::Icmp6(kind) => {
                self.protocol = Some("ipv6-icmp");
                self.module(format!("icmp6 --icmpv6-type {}", kind.number()));
            }
            Match::Unreachable4 => {
                self.protocol = Some("icmp");
                self.module("icmp --icmp-type 3".to_owned());
            }
            Match::HopLimit(limit) => self.module(format!("hl --hl-eq {limit}")),
            // The header's length in words of four octets: six to fifteen.
            Match::Options4 => self.module("u32 --u32 \"0x0>>0x18&0xf=0x6:0xf\"".to_owned()),
            Match::Routing6 => self.module("rt".to_owned()),
        }
    }

    fn module(&mut self, text: String) {
        self.modules.push(text);
    }

    fn port(&mut self, transport: Transport, source: Option<u16>, destination: Option<u16>) {
        self.protocol = Some(protocol(transport));
        let (known_source, known_destination) = self.ports.unwrap_or_default();
        self.ports = Some((source.or(known_source), destination.or(known_destination)));
    }

    fn set(&mut self, writer: &Writer<'_>, transport: Transport, set: &str, side: &str) {
        self.protocol = Some(protocol(transport));
        if let Some(number) = writer.form.sets {
            self.module(format!("set --match-set {} {side}", set_name(number, set)));
        }
    }

    fn pair(&mut self, source: bool, transport: Transport, pair: SocketAddr) {
        if source {
            self.source = Some(network(pair.ip()));
            self.port(transport, Some(pair.port()), None);
        } else {
            self.destination = Some(network(pair.ip()));
            self.port(transport, None, Some(pair.port()));
        }
    }

    fn line(&self, target: &str, comment: Option<&str>) -> String {
        let mut words = Vec::new();
        words.extend(self.source.as_ref().map(|source| format!("-s {source}")));
        words.extend(self.destination.as_ref().map(|destination| format!("-d {destination}")));
        words.extend(self.interfaces.iter().map(|interface| (*interface).to_owned()));
        words.extend(self.protocol.map(|protocol| format!("-p {protocol}")));
        if let Some(protocol) = self.protocol.filter(|_| self.ports.is_some() || self.not_syn) {
            let (source, destination) = self.ports.unwrap_or_default();
            let source = source.map(|port| format!(" --sport {port}")).unwrap_or_default();
            let destination = destination.map(|port| format!(" --dport {port}")).unwrap_or_default();
            let flags = if self.not_syn { " ! --tcp-flags SYN,ACK SYN" } else { "" };
            words.push(format!("-m {protocol}{source}{destination}{flags}"));
        }
        words.extend(self.modules.iter().map(|module| format!("-m {module}")));
        words.extend(comment.map(|comment| format!("-m comment --comment \"{comment}\"")));
        words.extend((!target.is_empty()).then(|| target.to_owned()));
        words.join(" ")
    }
}

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// An address as `iptables -S` shows it.
pub(super) fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/32"),
        IpAddr::V6(address) => format!("{address}/128"),
    }
}
