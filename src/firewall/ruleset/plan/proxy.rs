//! The rules of a box whose only way out is to ask the gate (pure): nothing is redirected and no connection is tracked, so
//! every packet is judged by itself. For kernels that can do neither, and by `network.gate = "proxy"` on any.
//!
//! What begins a connection is known by its bare SYN and judged by the uid of its socket; a packet that begins nothing is let
//! through between the box and an address that an allowed name has or had: without a socket of ours that began there it can
//! only be answered by a reset, and nobody but root can send one.

use std::net::SocketAddr;

use super::{
    DENY, ENGINE4, ENGINE6, FirewallPlan, GatePlan, ROOT, SSH, TRANSPORTS, UPSTREAM4, UPSTREAM6, accept,
    closed_listeners, deny, dhcp_in, dhcp_out, filter, link_upkeep_in, link_upkeep_out, nothing, pairs_in,
    questions, refuse,
};
use crate::firewall::ruleset::{
    Action, Chain, Family, HELD4, HELD6, Hook, INBOUND, Icmp6, Match, OPEN4, OPEN6, Policy, Rule, Transport,
};

pub(super) fn chains(plan: &FirewallPlan, gate: &GatePlan) -> Vec<Chain> {
    vec![
        Chain { name: DENY, base: None, rules: deny(plan) },
        filter("output", Hook::Output, Policy::Drop, output(plan, gate)),
        filter("input", Hook::Input, Policy::Drop, input(plan)),
        filter("forward", Hook::Forward, Policy::Drop, vec![nothing()]),
    ]
}

fn output(plan: &FirewallPlan, gate: &GatePlan) -> Vec<Rule> {
    let held = |family, set| vec![Match::NotSyn, Match::DestinationIn(family, Transport::Tcp, set)];
    let mut rules = vec![
        refuse(vec![Match::Options4], "no source route, nor any other option: nobody here needs one"),
        refuse(vec![Match::Routing6], "no source route"),
        // Whoever sends it: the last packets of the gate's connections have no socket.
        accept(
            held(Family::V4, HELD4),
            "what begins nothing, to IPv4 addresses that allowed names have or had",
        ),
        accept(
            held(Family::V6, HELD6),
            "what begins nothing, to IPv6 addresses that allowed names have or had",
        ),
    ];
    rules.extend(workers(plan, gate));
    rules.extend(super::gate::through(plan));
    rules.extend(questions(plan));
    rules.extend(closed_listeners(plan));
    if plan.vm {
        rules.extend(dhcp_out());
    }
    rules.extend(plan.ssh_from.iter().map(|net| {
        let to = vec![Match::DestinationNet(*net), Match::SourcePort(Transport::Tcp, SSH), Match::Uid(ROOT)];
        accept(to, "answers of the platform's SSH server to its operators")
    }));
    let opens = |family, set| vec![Match::DestinationIn(family, Transport::Tcp, set), Match::Uid(gate.uid)];
    rules.extend([
        refuse(vec![Match::Uid(plan.dns_uid)], "the DNS worker has no other business"),
        accept(opens(Family::V4, OPEN4), "IPv4 addresses of allowlisted names, to the gate alone"),
        accept(opens(Family::V6, OPEN6), "IPv6 addresses of allowlisted names, to the gate alone"),
        refuse(vec![Match::Uid(gate.uid)], "the gate has no other business"),
        accept(vec![Match::OutLoopback], "the box talks to itself, the gate's proxy included"),
    ]);
    rules.extend(link_upkeep_out());
    rules.push(refuse(vec![], "everything else: the only way out is the gate's proxy"));
    rules
}

/// Questions to the DNS worker, and what both workers answer: they are known by their ports.
fn workers(plan: &FirewallPlan, gate: &GatePlan) -> Vec<Rule> {
    let mut rules = Vec::new();
    let v6 = plan.dns_v6.map(SocketAddr::V6);
    for worker in [Some(SocketAddr::V4(plan.dns_v4)), v6].into_iter().flatten() {
        for transport in TRANSPORTS {
            let to = vec![
                Match::OutLoopback,
                Match::Destination(worker.ip()),
                Match::DestinationPort(transport, worker.port()),
            ];
            rules.push(accept(to, "questions to the DNS worker"));
        }
    }
    let answers =
        |uid, transport, port| vec![Match::OutLoopback, Match::Uid(uid), Match::SourcePort(transport, port)];
    for transport in TRANSPORTS {
        rules.push(accept(answers(plan.dns_uid, transport, plan.dns_v4.port()), "answers of the DNS worker"));
    }
    rules.push(accept(answers(gate.uid, Transport::Tcp, gate.v4.port()), "answers of the gate's proxy"));
    rules
}

fn input(plan: &FirewallPlan) -> Vec<Rule> {
    let held = |family, set| vec![Match::NotSyn, Match::SourceIn(family, Transport::Tcp, set)];
    let mut rules = vec![
        accept(vec![Match::InLoopback], "the box talks to itself"),
        accept(held(Family::V4, HELD4), "answers of IPv4 addresses that allowed names have or had"),
        accept(held(Family::V6, HELD6), "answers of IPv6 addresses that allowed names have or had"),
    ];
    let upstreams = pairs_in(plan, [UPSTREAM4, UPSTREAM6], Match::SourceIn);
    rules.extend(upstreams.into_iter().map(|from| answer(from, "answers of the upstreams")));
    let proxy = super::gate::proxy_in(plan, Match::SourceIn).into_iter();
    rules.extend(proxy.map(|from| answer(from, "answers of the proxy that the host needs")));
    let engine = match &plan.engine_dns {
        None => Vec::new(),
        Some(known) if known.forwards_to.is_empty() => {
            TRANSPORTS.map(|transport| Match::SourcePort(transport, super::DNS)).into()
        }
        Some(_) => pairs_in(plan, [ENGINE4, ENGINE6], Match::SourceIn),
    };
    rules.extend(engine.into_iter().map(|from| answer(from, "answers to the engine's resolver")));
    // The kernel looks for the socket that they are about; nothing is answered.
    rules.extend(
        [Match::Unreachable4, Match::Icmp6(Icmp6::Unreachable), Match::Icmp6(Icmp6::PacketTooBig)]
            .map(|kind| accept(vec![kind], "errors on the way (path MTU)")),
    );
    rules.extend(link_upkeep_in());
    rules.extend(plan.ssh_from.iter().map(|net| {
        let from = vec![Match::SourceNet(*net), Match::DestinationPort(Transport::Tcp, SSH)];
        accept(from, "the platform's SSH server, for its operators")
    }));
    if plan.vm {
        rules.extend(dhcp_in());
    }
    rules.push(Rule {
        matches: vec![],
        actions: vec![Action::Count(INBOUND), Action::Drop],
        comment: "everything else from outside",
    });
    rules
}

/// By TCP only what begins nothing: else who is asked could connect to whoever listens.
fn answer(from: Match, comment: &'static str) -> Rule {
    let tcp = matches!(from, Match::SourceIn(_, Transport::Tcp, _) | Match::SourcePort(Transport::Tcp, _));
    accept(if tcp { vec![Match::NotSyn, from] } else { vec![from] }, comment)
}
