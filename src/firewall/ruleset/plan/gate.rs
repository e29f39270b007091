//! What the rules are that concern the egress gate (pure). Without a [`GatePlan`] there are none of them.
//!
//! A connection to a gated port meets the gate, whoever makes it and whatever address it has in mind; the gate alone opens
//! connections to gated ports, and to the addresses of allowed names. While nobody listens there those ports are closed.

use std::net::SocketAddr;

use super::{
    FLOWS, FirewallPlan, GATE, GATED, GateMode, GatePlan, PROXY4, PROXY6, UPSTREAM4, UPSTREAM6, accept,
    destinations, in_sets, refuse, rule,
};
use crate::firewall::ruleset::{Action, Chain, Family, Mark, Match, OPEN4, OPEN6, Rule, State, Transport};

impl GatePlan {
    fn sockets(&self) -> impl Iterator<Item = SocketAddr> {
        [Some(SocketAddr::V4(self.v4)), self.v6.map(SocketAddr::V6)].into_iter().flatten()
    }

    fn each_port(&self, rule: impl Fn(Match) -> Rule) -> Vec<Rule> {
        self.ports.iter().map(|port| rule(Match::DestinationPort(Transport::Tcp, *port))).collect()
    }
}

fn at(socket: SocketAddr) -> [Match; 2] {
    [Match::Destination(socket.ip()), Match::DestinationPort(Transport::Tcp, socket.port())]
}

/// Chains that the others lead to.
pub(super) fn chains(plan: &FirewallPlan) -> Vec<Chain> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    let opened =
        |family, set, comment| accept(vec![Match::DestinationIn(family, Transport::Tcp, set)], comment);
    let gated = vec![
        // Also of what is refused next: no flow comes of it that could be known by it.
        rule(vec![], Action::Mark(Mark::Gate), "what the gate begins on a gated port is known by it"),
        opened(Family::V4, OPEN4, "IPv4 addresses of allowlisted names, to the gate alone"),
        opened(Family::V6, OPEN6, "IPv6 addresses of allowlisted names, to the gate alone"),
        refuse(vec![], "the gate too dials the addresses of allowed names alone"),
    ];
    let to_gated = |port| rule(vec![port], Action::Goto(GATED), "a gated port: where the gate may go");
    let mut own = gate.each_port(to_gated);
    own.push(refuse(vec![], "the gate has no other business"));
    vec![
        Chain { name: FLOWS, base: None, rules: flows(plan, gate) },
        Chain { name: GATED, base: None, rules: gated },
        Chain { name: GATE, base: None, rules: own },
    ]
}

/// A port can become the gate's while somebody is connected to it directly: that ends. By the flow's mark and not by the
/// sender's uid, since the last packets of a connection have no socket.
fn flows(plan: &FirewallPlan, gate: &GatePlan) -> Vec<Rule> {
    let mut rules = vec![accept(vec![Match::Marked(Mark::Gate)], "the gate's own")];
    let upstreams = in_sets(plan, [UPSTREAM4, UPSTREAM6]).into_iter().filter(|to| match to {
        Match::DestinationIn(_, transport, _) => *transport == Transport::Tcp,
        _ => false,
    });
    rules.extend(upstreams.map(|to| accept(vec![to], "the DNS worker's, at an address that a name has too")));
    rules.extend(gate.each_port(|port| refuse(vec![port], "began before its port was the gate's")));
    rules.push(accept(vec![], "all others"));
    rules
}

/// `dnat`, not `redirect`, for the reason given at the resolver. What stays in the box is not looked at: a packet still has
/// the device of its own route here, which is `lo` for every address of the box.
pub(super) fn redirection(plan: &FirewallPlan) -> Vec<Rule> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    let mut rules = vec![
        accept(vec![Match::Uid(gate.uid)], "the gate dials itself"),
        accept(vec![Match::OutLoopback], "what the box says to itself is not looked at"),
    ];
    for socket in gate.sockets() {
        let family = Match::Family(Family::of(socket.ip()));
        rules.extend(gate.each_port(|port| {
            rule(vec![family, port], Action::Dnat(socket), "connections to gated ports meet the gate")
        }));
    }
    rules
}

/// Who asks the gate directly names no destination, or one of his own making.
pub(super) fn reached(plan: &FirewallPlan) -> Vec<Rule> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    let both = |socket| {
        let redirected = [&[Match::Redirected][..], &at(socket)].concat();
        [accept(redirected, "redirected connections to the gate"), direct(socket)]
    };
    gate.sockets().flat_map(both).collect()
}

fn direct(socket: SocketAddr) -> Rule {
    refuse(at(socket).into(), "the gate is met by redirection alone")
}

/// The proxy that the host needs, where it is no name's: to it, and to none else, the gate goes by address.
pub(super) fn through(plan: &FirewallPlan) -> Vec<Rule> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    let mut rules = Vec::new();
    for to in proxy_in(plan, Match::DestinationIn) {
        rules.push(accept(
            vec![to, Match::Uid(gate.uid)],
            "the gate goes through the proxy that the host needs",
        ));
        // The last packets of a connection have no socket, and are no denials.
        let flow = match gate.mode {
            GateMode::Redirect => vec![Match::State(State::Established), Match::NotSyn, to],
            GateMode::Proxy => vec![Match::NotSyn, to],
        };
        rules.push(accept(flow, "what begins nothing, to that proxy"));
        rules.push(refuse(vec![to], "nobody else does"));
    }
    rules
}

/// Both families of it, as they exist.
pub(super) fn proxy_in(
    plan: &FirewallPlan,
    matches: fn(Family, Transport, &'static str) -> Match,
) -> Vec<Match> {
    let found = destinations(plan, [PROXY4, PROXY6]).into_iter();
    found.map(|(family, set)| matches(family, Transport::Tcp, set)).collect()
}

/// In a family that can't be redirected.
pub(super) fn closed(plan: &FirewallPlan) -> Vec<Rule> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    let mut rules: Vec<Rule> = gate.sockets().map(direct).collect();
    rules.push(refuse(vec![Match::Uid(gate.uid)], "the gate has no business here"));
    rules
}

/// What the gate itself may do beside answering: before loopback, which is not its business either.
pub(super) fn own(plan: &FirewallPlan) -> Option<Rule> {
    let gate = plan.gate.as_ref()?;
    let comment = "the gate opens connections to gated ports and nothing else";
    Some(rule(vec![Match::Uid(gate.uid)], Action::Goto(GATE), comment))
}

/// What was not redirected, since its family has no gate or its socket is bound to `lo`: closed before anybody asks whether
/// the address is open.
pub(super) fn ports(plan: &FirewallPlan) -> Vec<Rule> {
    let Some(gate) = &plan.gate else { return Vec::new() };
    gate.each_port(|port| refuse(vec![port], "a gated port: connections begin at the gate alone"))
}
