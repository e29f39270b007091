//! What the rules are (pure): from the facts of this box to the complete table. Read it from top to bottom as a
//! packet does.

mod gate;
mod proxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use ipnet::Ipv6Net;

use super::{
    Action, Base, Chain, Content, DENIED4, DENIED6, Direction, Family, HELD4, HELD6, Hook, INBOUND, Icmp6,
    Kind, Mark, Match, OPEN4, OPEN6, Policy, Protocol, Rule, Ruleset, Set, State, Transport,
};
use crate::allowlist::Allowlist;

/// Docker's embedded resolver. It listens on a random port too (`/proc/net/udp` shows it), so every port counts.
const ENGINE_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// Before Docker's own nat hooks at -100 (`NF_IP_PRI_NAT_DST`), which rewrite 127.0.0.11:53 to its real port.
const BEFORE_DOCKER: i32 = -110;
const DNS: u16 = 53;
const ROOT: u32 = 0;
/// Of the SSH server that a platform runs beside the box, as root. Its rules ask nothing of connection tracking, which
/// such a machine may lack or which may have begun after the operator's session.
const SSH: u16 = 22;
const TRANSPORTS: [Transport; 2] = [Transport::Udp, Transport::Tcp];

const UPSTREAM4: &str = "upstream4";
const UPSTREAM6: &str = "upstream6";
const PROXY4: &str = "proxy4";
const PROXY6: &str = "proxy6";
const ENGINE4: &str = "engine4";
const ENGINE6: &str = "engine6";
/// Where every refused packet ends: counted, logged, answered.
const DENY: &str = "deny";
/// Whether a flow to an address that is held may go on.
const FLOWS: &str = "flows";
/// What the gate may open.
const GATE: &str = "gate";
/// The same, of a gated port.
const GATED: &str = "gated";

/// The facts of this box that the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallPlan {
    /// The uid of the DNS worker, shared with nobody.
    pub dns_uid: u32,
    /// Where the DNS worker listens.
    pub dns_v4: SocketAddrV4,
    /// Where it listens on IPv6; `None` where the host has no ::1.
    pub dns_v6: Option<SocketAddrV6>,
    /// The resolvers that the DNS worker alone may ask.
    pub upstreams: Vec<SocketAddr>,
    /// Set where Docker's embedded resolver works inside the box's network namespace.
    pub engine_dns: Option<EngineDns>,
    /// Ports that the operator opened to the outside.
    pub inbound: Vec<(Transport, u16)>,
    /// Where the platform's own SSH server has its operators (Fly Machines).
    pub ssh_from: Vec<Ipv6Net>,
    /// Listeners older than Innkeeper's own: a pod's sidecar, the engine. Closed to everybody.
    pub closed_loopback: Vec<SocketAddr>,
    /// The NFLOG group that the watch worker reads; 0 for a kernel without NFLOG, which would refuse the whole table.
    pub nflog_group: u16,
    /// The NFLOG group that gets the first packet of every connection that is let out; 0 as above.
    pub uses_group: u16,
    /// Innkeeper owns the kernel, so nobody else renews the DHCP lease.
    pub vm: bool,
    /// Families that this host lets us close but not open safely: loopback and what the link needs, nothing else.
    pub closed: Vec<Family>,
    /// The egress gate; `None`: every port is as open as the sets of addresses say.
    pub gate: Option<GatePlan>,
}

/// How connections come to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// The kernel sends them there, whatever the program had in mind.
    Redirect,
    /// Programs are told to ask it (`HTTPS_PROXY`), and there is no other way out: for a kernel that neither redirects nor
    /// tracks connections.
    Proxy,
}

/// Who checks the names in connections, and of which ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatePlan {
    pub mode: GateMode,
    /// The uid of the gate, shared with nobody.
    pub uid: u32,
    /// Where it listens.
    pub v4: SocketAddrV4,
    /// Where it listens on IPv6; `None` where the host has no ::1: then gated ports are closed there.
    pub v6: Option<SocketAddrV6>,
    /// The gated TCP ports ([`Allowlist::gated_ports`]): to them the gate alone opens connections. As a proxy it opens all.
    pub ports: Vec<u16>,
    /// The proxy through which the host reaches the world, where it is given by its address (`network.proxy`): the gate's alone.
    pub proxy: Option<SocketAddr>,
}

/// Docker's resolver forwards from a uid-0 socket inside the box's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineDns {
    /// Where it forwards to; empty where nobody could tell, and then uid 0 may ask any resolver.
    pub forwards_to: Vec<SocketAddr>,
}

/// Nothing in, nothing out, nothing through; not even loopback.
pub fn lockdown() -> Ruleset {
    Ruleset {
        counters: Vec::new(),
        sets: Vec::new(),
        chains: [("input", Hook::Input), ("output", Hook::Output), ("forward", Hook::Forward)]
            .map(|(name, hook)| filter(name, hook, Policy::Drop, vec![nothing()]))
            .into(),
    }
}

/// The end of a chain that drops, although its policy says so too. **[tried]** When a table is replaced, the kernel gives
/// a new chain its policy only after the old chains are gone (`nft_chain_commit_drop_policy`): without a rule some
/// packets of a busy sender passed in four of five reloads.
fn nothing() -> Rule {
    rule(vec![], Action::Drop, "nothing passes, also while the policy is not yet set")
}

/// The complete policy; open addresses come and go as elements of [`OPEN4`] and [`OPEN6`], and flows that may go on as
/// elements of [`HELD4`] and [`HELD6`].
pub fn skeleton(plan: &FirewallPlan) -> Ruleset {
    let plan = &plan.without_closed();
    if let Some(gate) = plan.gate.as_ref().filter(|gate| gate.mode == GateMode::Proxy) {
        return Ruleset {
            counters: vec![DENIED4, DENIED6, INBOUND],
            sets: sets(plan),
            chains: proxy::chains(plan, gate),
        };
    }
    Ruleset {
        counters: vec![DENIED4, DENIED6, INBOUND],
        sets: sets(plan),
        chains: [
            vec![Chain { name: DENY, base: None, rules: deny(plan) }],
            gate::chains(plan),
            vec![
                Chain {
                    name: "resolver",
                    base: Some(Base {
                        kind: Kind::Nat,
                        hook: Hook::Output,
                        priority: BEFORE_DOCKER,
                        policy: Policy::Accept,
                    }),
                    rules: resolver(plan),
                },
                filter("output", Hook::Output, Policy::Drop, output(plan)),
                filter("postrouting", Hook::Postrouting, Policy::Accept, postrouting(plan)),
                filter("input", Hook::Input, Policy::Drop, input(plan)),
                filter("forward", Hook::Forward, Policy::Drop, vec![nothing()]),
            ],
        ]
        .concat(),
    }
}

impl FirewallPlan {
    /// Nobody is asked by a family that is closed, but for who listens inside the box.
    fn without_closed(&self) -> Self {
        let reached = |server: &SocketAddr| server.ip().is_loopback() || self.open(Family::of(server.ip()));
        let kept = |servers: &[SocketAddr]| servers.iter().copied().filter(reached).collect::<Vec<_>>();
        // An empty list would mean that uid 0 may ask anybody: that is for an engine that doesn't say whom it asks.
        let engine_dns = self.engine_dns.as_ref().and_then(|engine| {
            let forwards_to = kept(&engine.forwards_to);
            let unknown = engine.forwards_to.is_empty() && self.open(Family::V4);
            (unknown || !forwards_to.is_empty()).then_some(EngineDns { forwards_to })
        });
        Self { upstreams: kept(&self.upstreams), engine_dns, ..self.clone() }
    }

    /// The same with the gate met in this way.
    #[must_use]
    pub fn by(self, mode: GateMode) -> Self {
        Self { gate: self.gate.map(|gate| GatePlan { mode, ..gate }), ..self }
    }

    /// The same under another policy, which says what ports are the gate's.
    #[must_use]
    pub fn with_ports(&self, allowlist: &Allowlist) -> Self {
        let gate = self.gate.clone().map(|gate| match gate.mode {
            GateMode::Redirect => GatePlan { ports: allowlist.gated_ports(), ..gate },
            // No rule asks for them.
            GateMode::Proxy => GatePlan { ports: Vec::new(), ..gate },
        });
        Self { gate, ..self.clone() }
    }

    fn open(&self, family: Family) -> bool {
        !self.closed.contains(&family)
    }

    /// A rule for each closed family.
    fn each_closed(&self, rule: impl Fn(Family) -> Vec<Rule>) -> Vec<Rule> {
        self.closed.iter().flat_map(|family| rule(*family)).collect()
    }
}

fn filter(name: &'static str, hook: Hook, policy: Policy, rules: Vec<Rule>) -> Chain {
    Chain { name, base: Some(Base { kind: Kind::Filter, hook, priority: 0, policy }), rules }
}

fn rule(matches: Vec<Match>, action: Action, comment: &'static str) -> Rule {
    Rule { matches, actions: vec![action], comment }
}

fn accept(matches: Vec<Match>, comment: &'static str) -> Rule {
    rule(matches, Action::Accept, comment)
}

fn refuse(matches: Vec<Match>, comment: &'static str) -> Rule {
    rule(matches, Action::Goto(DENY), comment)
}

fn sets(plan: &FirewallPlan) -> Vec<Set> {
    let mut sets = vec![
        Set { name: OPEN4, family: Family::V4, content: Content::Timed },
        Set { name: OPEN6, family: Family::V6, content: Content::Timed },
        Set { name: HELD4, family: Family::V4, content: Content::Lasting },
        Set { name: HELD6, family: Family::V6, content: Content::Lasting },
    ];
    let forwards_to = plan.engine_dns.as_ref().map_or(&[][..], |engine| &engine.forwards_to);
    let proxy = plan.gate.as_ref().map_or(&[][..], |gate| gate.proxy.as_slice());
    for (name, family, pairs) in [
        (PROXY4, Family::V4, proxy),
        (PROXY6, Family::V6, proxy),
        (UPSTREAM4, Family::V4, &plan.upstreams),
        (UPSTREAM6, Family::V6, &plan.upstreams),
        (ENGINE4, Family::V4, forwards_to),
        (ENGINE6, Family::V6, forwards_to),
    ] {
        let mut pairs: Vec<_> = pairs.iter().copied().filter(|p| Family::of(p.ip()) == family).collect();
        pairs.sort_unstable();
        pairs.dedup();
        if !pairs.is_empty() {
            sets.push(Set { name, family, content: Content::Constant(pairs) });
        }
    }
    sets
}

/// The constant sets of this kind that exist, with their families.
fn destinations(plan: &FirewallPlan, names: [&'static str; 2]) -> Vec<(Family, &'static str)> {
    sets(plan).iter().filter(|set| names.contains(&set.name)).map(|set| (set.family, set.name)).collect()
}

fn deny(plan: &FirewallPlan) -> Vec<Rule> {
    let count = |family, name, comment| rule(vec![Match::Family(family)], Action::Count(name), comment);
    let log = rule(
        vec![],
        Action::Log { group: plan.nflog_group, threshold: 1 },
        "headers for the watch worker, one by one",
    );
    let mut rules = vec![
        count(Family::V4, DENIED4, "refused IPv4 packets"),
        count(Family::V6, DENIED6, "refused IPv6 packets"),
    ];
    rules.extend((plan.nflog_group != 0).then_some(log));
    rules.extend([
        rule(
            vec![Match::Protocol(Protocol::Tcp)],
            Action::RejectReset,
            "a refused connection fails at once, not after a time-out",
        ),
        rule(vec![], Action::RejectProhibited, "so does everything else"),
    ]);
    rules
}

/// Every question about a name goes to the DNS worker, whatever resolver the program has in mind. `dnat`, since
/// `redirect` would go to 127.0.0.1, where the agent could listen.
fn resolver(plan: &FirewallPlan) -> Vec<Rule> {
    let mut rules = plan.each_closed(|family| {
        vec![accept(vec![Match::Family(family)], "closed: nothing can be redirected here")]
    });
    rules.push(accept(vec![Match::Uid(plan.dns_uid)], "the DNS worker asks its upstreams itself"));
    rules.extend(engine(plan, "the engine's resolver forwards from inside the box"));
    let workers =
        [(Family::V4, Some(SocketAddr::V4(plan.dns_v4))), (Family::V6, plan.dns_v6.map(SocketAddr::V6))];
    for (family, worker) in workers.into_iter().filter_map(|(f, w)| Some((f, w?))) {
        for transport in TRANSPORTS {
            rules.push(accept(
                vec![Match::Destination(worker.ip()), Match::DestinationPort(transport, worker.port())],
                "already on its way to the DNS worker",
            ));
            rules.push(rule(
                vec![Match::Family(family), Match::DestinationPort(transport, DNS)],
                Action::Dnat(worker),
                "hard-coded resolvers meet the DNS worker",
            ));
        }
    }
    rules.extend(gate::redirection(plan));
    rules
}

/// uid 0 may ask where the engine forwards to; only where there is such an engine.
fn engine(plan: &FirewallPlan, comment: &'static str) -> Vec<Rule> {
    let Some(engine) = &plan.engine_dns else { return Vec::new() };
    let root = |to| accept(vec![Match::Uid(ROOT), to], comment);
    if engine.forwards_to.is_empty() {
        return TRANSPORTS.map(|transport| root(Match::DestinationPort(transport, DNS))).into();
    }
    in_sets(plan, [ENGINE4, ENGINE6]).into_iter().map(root).collect()
}

fn in_sets(plan: &FirewallPlan, names: [&'static str; 2]) -> Vec<Match> {
    pairs_in(plan, names, Match::DestinationIn)
}

fn pairs_in(
    plan: &FirewallPlan,
    names: [&'static str; 2],
    matches: fn(Family, Transport, &'static str) -> Match,
) -> Vec<Match> {
    destinations(plan, names)
        .into_iter()
        .flat_map(|(family, set)| TRANSPORTS.map(|transport| matches(family, transport, set)))
        .collect()
}

fn output(plan: &FirewallPlan) -> Vec<Rule> {
    // Any uid may set them. A packet to an allowed address could name another as its next or last stop.
    let flow = |family, set, comment| {
        let to = Match::DestinationIn(family, Transport::Tcp, set);
        let verdict = plan.gate.as_ref().map_or(Action::Accept, |_| Action::Goto(FLOWS));
        rule(vec![Match::State(State::Established), Match::NotSyn, to], verdict, comment)
    };
    let mut rules = vec![
        refuse(vec![Match::Options4], "no source route, nor any other option: nobody here needs one"),
        refuse(vec![Match::Routing6], "no source route"),
    ];
    rules.extend(plan.each_closed(|family| closed_out(plan, family)));
    // Most packets by far, so first of what is let out: TCP only, and a flow began by the rules below.
    rules.extend([
        flow(Family::V4, HELD4, "flows to IPv4 addresses that allowed names have or had"),
        flow(Family::V6, HELD6, "flows to IPv6 addresses that allowed names have or had"),
    ]);
    rules.extend(to_worker(plan));
    rules.extend(gate::reached(plan));
    rules.extend(gate::through(plan));
    rules.extend(questions(plan));
    rules.extend(closed_listeners(plan));
    if plan.vm {
        rules.extend(dhcp_out());
    }
    rules.extend(plan.ssh_from.iter().map(|net| {
        let to = [Match::DestinationNet(*net), Match::SourcePort(Transport::Tcp, SSH)];
        accept(
            [&to[..], &[Match::Uid(ROOT)]].concat(),
            "answers of the platform's SSH server to its operators",
        )
    }));
    rules.push(accept(
        vec![Match::State(State::Established), Match::Direction(Direction::Reply), Match::OutLoopback],
        "answers inside the box, the DNS worker's too",
    ));
    rules.extend(plan.inbound.iter().map(|(transport, port)| {
        let from = Match::SourcePort(*transport, *port);
        let reply = Match::Direction(Direction::Reply);
        let matches = vec![Match::State(State::Established), reply, Match::Marked(Mark::Inbound), from];
        accept(matches, "answers of what the operator opened (network.inbound)")
    }));
    rules.push(refuse(vec![Match::Uid(plan.dns_uid)], "the DNS worker has no other business"));
    rules.extend(gate::own(plan));
    rules.extend([
        // ICMP errors too, to who is in the box; outside nobody is owed one. An error goes to the packet's source and quotes
        // it, and any uid may send from a foreign source (IPV6_FREEBIND): it would carry the agent's octets anywhere.
        accept(vec![Match::OutLoopback], "the box talks to itself, on its own addresses too"),
    ]);
    rules.extend(gate::ports(plan));
    rules.extend([
        used(plan, Family::V4, OPEN4, "IPv4 addresses of allowlisted names"),
        used(plan, Family::V6, OPEN6, "IPv6 addresses of allowlisted names"),
    ]);
    rules.extend(link_upkeep_out());
    rules.push(refuse(vec![], "everything else"));
    rules
}

/// A family of which this host can't tell an answer from a question, or can't redirect: what stays in the box passes, and
/// what the link needs. Without connection tracking the DNS worker's answers are known by their port.
fn closed_out(plan: &FirewallPlan, family: Family) -> Vec<Rule> {
    let of = |matches: &[Match]| [&[Match::Family(family)], matches].concat();
    let worker = match family {
        Family::V4 => Some(SocketAddr::V4(plan.dns_v4)),
        Family::V6 => plan.dns_v6.map(SocketAddr::V6),
    };
    let mut rules = Vec::new();
    if let Some(worker) = worker {
        for transport in TRANSPORTS {
            let to = [
                Match::OutLoopback,
                Match::Destination(worker.ip()),
                Match::DestinationPort(transport, worker.port()),
            ];
            rules.push(accept(to.into(), "direct questions to the DNS worker"));
            let answers =
                [Match::OutLoopback, Match::Uid(plan.dns_uid), Match::SourcePort(transport, worker.port())];
            rules.push(accept(of(&answers), "answers of the DNS worker"));
        }
    }
    let mine = |rule: &Rule| {
        rule.matches.iter().all(|condition| match condition {
            Match::Destination(address) => Family::of(*address) == family,
            Match::DestinationIn(of, ..) => *of == family,
            _ => true,
        })
    };
    let closed = gate::closed(plan);
    for rule in questions(plan).into_iter().chain(closed_listeners(plan)).chain(closed).filter(mine) {
        rules.push(Rule { matches: of(&rule.matches), ..rule });
    }
    rules.push(refuse(of(&[Match::Uid(plan.dns_uid)]), "the DNS worker has no other business"));
    rules.push(accept(of(&[Match::OutLoopback]), "the box talks to itself, on its own addresses too"));
    if family == Family::V6 {
        rules.extend(link_upkeep_out());
    }
    rules.push(refuse(of(&[]), "this family is closed on this host"));
    rules
}

/// Packets that begin a flow, or that conntrack can't place. Nobody waits for the note of it, so 16 go in one datagram,
/// which fills the page that the kernel collects them in, and what is left follows after a second.
fn used(plan: &FirewallPlan, family: Family, set: &'static str, comment: &'static str) -> Rule {
    let log = Action::Log { group: plan.uses_group, threshold: 16 };
    let log = (plan.uses_group != 0).then_some(log);
    Rule {
        matches: vec![Match::DestinationIn(family, Transport::Tcp, set)],
        actions: log.into_iter().chain([Action::Accept]).collect(),
        comment,
    }
}

/// A redirected packet meets this chain with its new destination but its *old* interface, so `oif lo` can't let it
/// pass; that it really leaves over loopback is seen to in `postrouting`.
fn to_worker(plan: &FirewallPlan) -> Vec<Rule> {
    let mut rules = Vec::new();
    let v6 = plan.dns_v6.map(SocketAddr::V6);
    for worker in [Some(SocketAddr::V4(plan.dns_v4)), v6].into_iter().flatten() {
        for transport in TRANSPORTS {
            let to = [Match::Destination(worker.ip()), Match::DestinationPort(transport, worker.port())];
            let with = |how| [&[how][..], &to].concat();
            rules.push(accept(with(Match::Redirected), "redirected questions to the DNS worker"));
            rules.push(accept(with(Match::OutLoopback), "direct questions to the DNS worker"));
        }
    }
    rules
}

/// Who may ask which resolver. All this comes *before* answers of flows are let out: for as long as conntrack remembers a
/// UDP exchange of the DNS worker, any process that binds the same source port would inherit its permission.
fn questions(plan: &FirewallPlan) -> Vec<Rule> {
    let upstreams = in_sets(plan, [UPSTREAM4, UPSTREAM6]);
    let mut rules = vec![
        accept(
            vec![Match::Destination(ENGINE_RESOLVER), Match::Uid(plan.dns_uid)],
            "the engine's resolver serves the DNS worker",
        ),
        refuse(
            vec![Match::Destination(ENGINE_RESOLVER)],
            "and nobody else, on any port: its real one is no secret",
        ),
    ];
    for to in &upstreams {
        rules.push(accept(vec![*to, Match::Uid(plan.dns_uid)], "upstreams serve the DNS worker"));
    }
    rules.extend(engine(plan, "the engine's resolver forwards from inside the box"));
    for to in upstreams {
        rules.push(refuse(vec![to], "upstreams serve nobody else, not even by a remembered flow"));
    }
    for transport in TRANSPORTS {
        rules.push(refuse(
            vec![Match::DestinationPort(transport, DNS)],
            "no other resolver, not even by a remembered flow",
        ));
    }
    rules
}

/// Listeners that were there before the box closed. One bound to a wildcard answers on every address of the box.
fn closed_listeners(plan: &FirewallPlan) -> Vec<Rule> {
    let mut rules = Vec::new();
    for listener in &plan.closed_loopback {
        let place = if listener.ip().is_unspecified() {
            Match::OutLoopback
        } else {
            Match::Destination(listener.ip())
        };
        for transport in TRANSPORTS {
            rules.push(refuse(
                vec![place, Match::DestinationPort(transport, listener.port())],
                "a listener older than the box: not the agent's",
            ));
        }
    }
    rules
}

/// What IPv6 needs on a link. Only the kernel can send these: they take a raw socket. No echo: its payload is free.
/// A listener report names the groups that the box joined, and joining takes no privilege: 112 bits a time for a
/// neighbour who listens. The agent's seccomp filter must refuse it the joining; rules can't tell whose group it is.
fn link_upkeep_out() -> Vec<Rule> {
    let discovery = [Icmp6::RouterSolicit, Icmp6::NeighbourSolicit, Icmp6::NeighbourAdvert];
    let groups = [Icmp6::ListenerReport, Icmp6::ListenerDone, Icmp6::ListenerReport2];
    let discovery = discovery.map(|kind| {
        let matches = vec![Match::HopLimit(255), Match::Icmp6(kind)];
        accept(matches, "neighbour discovery, from this link only (RFC 4861)")
    });
    let groups = groups.map(|kind| {
        let matches = vec![Match::HopLimit(1), Match::Icmp6(kind)];
        accept(matches, "multicast groups of this link (RFC 2710, RFC 9777)")
    });
    discovery.into_iter().chain(groups).collect()
}

/// Where nobody else renews the lease. Before `ct state established` for the reason given at [`questions`]: where
/// low ports are free, the agent could bind the client's port.
fn dhcp_out() -> Vec<Rule> {
    let ports =
        |from, to| [Match::SourcePort(Transport::Udp, from), Match::DestinationPort(Transport::Udp, to)];
    let root = |from, to| [&[Match::Uid(ROOT)][..], &ports(from, to)].concat();
    vec![
        accept(root(68, 67), "renewal of the DHCP lease"),
        accept(root(546, 547), "renewal of the DHCPv6 lease"),
        refuse(vec![Match::DestinationPort(Transport::Udp, 67)], "by root alone"),
        refuse(vec![Match::DestinationPort(Transport::Udp, 547)], "by root alone"),
    ]
}

/// A socket bound to a device (`SO_BINDTODEVICE` asks for no privilege) takes a redirected packet out over that
/// device, with a loopback destination and the agent's bytes: whoever listens on the link would get them.
fn postrouting(plan: &FirewallPlan) -> Vec<Rule> {
    let drop = |to, name| Rule {
        matches: vec![Match::OutNotLoopback, to],
        actions: vec![Action::Count(name), Action::Drop],
        comment: "loopback stays in the box, also from a socket bound to a device",
    };
    // Where nothing is redirected nothing leaves so.
    let mut rules = plan.each_closed(|family| {
        vec![accept(vec![Match::Family(family)], "closed: nothing is redirected here")]
    });
    rules.extend([
        drop(Match::DestinationLoopback4, DENIED4),
        drop(Match::Destination(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)), DENIED6),
    ]);
    rules
}

/// Flows go on by the address they go to and not by conntrack's word alone. What is no longer allowed ends in both
/// directions when it is taken out of the held sets, and so does what got out while somebody had changed our rules.
/// A list of what is to be cut would do less: it must end somewhere, while the far side can keep a flow in conntrack's
/// memory for ever, since packets count there before we drop them.
fn flows_in(plan: &FirewallPlan) -> Vec<Rule> {
    let established = |from| vec![Match::State(State::Established), from];
    // A SYN that comes in as part of a flow would reach who listens where the flow began.
    let flow = |from| vec![Match::State(State::Established), Match::NotSyn, from];
    let mut rules = vec![
        accept(
            flow(Match::SourceIn(Family::V4, Transport::Tcp, HELD4)),
            "answers of IPv4 addresses that allowed names have or had",
        ),
        accept(
            flow(Match::SourceIn(Family::V6, Transport::Tcp, HELD6)),
            "answers of IPv6 addresses that allowed names have or had",
        ),
    ];
    rules.extend(plan.inbound.iter().map(|(transport, port)| {
        let to = Match::DestinationPort(*transport, *port);
        let original = Match::Direction(Direction::Original);
        let matches = vec![Match::State(State::Established), original, Match::Marked(Mark::Inbound), to];
        accept(matches, "opened by the operator (network.inbound)")
    }));
    let upstreams = pairs_in(plan, [UPSTREAM4, UPSTREAM6], Match::SourceIn);
    rules.extend(upstreams.into_iter().map(|from| accept(established(from), "answers of the upstreams")));
    let proxy = gate::proxy_in(plan, Match::SourceIn).into_iter();
    rules.extend(proxy.map(|from| accept(flow(from), "answers of the proxy that the host needs")));
    let engine = match &plan.engine_dns {
        None => Vec::new(),
        Some(known) if known.forwards_to.is_empty() => {
            TRANSPORTS.map(|transport| Match::SourcePort(transport, DNS)).into()
        }
        Some(_) => pairs_in(plan, [ENGINE4, ENGINE6], Match::SourceIn),
    };
    let answers = "answers to the engine's resolver";
    rules.extend(engine.into_iter().map(|from| accept(established(from), answers)));
    rules
}

/// What the link's other ends have to say to IPv6.
fn link_upkeep_in() -> Vec<Rule> {
    let discovery = [Icmp6::RouterAdvert, Icmp6::NeighbourSolicit, Icmp6::NeighbourAdvert].map(|kind| {
        let matches = vec![Match::HopLimit(255), Match::Icmp6(kind)];
        accept(matches, "neighbour discovery, from this link only (RFC 4861)")
    });
    let groups = accept(
        vec![Match::HopLimit(1), Match::Icmp6(Icmp6::ListenerQuery)],
        "a router asks for multicast groups (RFC 2710, RFC 9777)",
    );
    discovery.into_iter().chain([groups]).collect()
}

fn dhcp_in() -> [Rule; 2] {
    [(67, 68, "answer about the DHCP lease"), (547, 546, "answer about the DHCPv6 lease")].map(
        |(from, to, comment)| {
            let ports = [Match::SourcePort(Transport::Udp, from), Match::DestinationPort(Transport::Udp, to)];
            accept(ports.into(), comment)
        },
    )
}

fn input(plan: &FirewallPlan) -> Vec<Rule> {
    let mut rules = vec![accept(vec![Match::InLoopback], "the box talks to itself")];
    rules.extend(plan.each_closed(|family| {
        let mut rules = if family == Family::V6 { link_upkeep_in() } else { Vec::new() };
        rules.push(Rule {
            matches: vec![Match::Family(family)],
            actions: vec![Action::Count(INBOUND), Action::Drop],
            comment: "this family is closed on this host",
        });
        rules
    }));
    rules.extend(flows_in(plan));
    rules.extend([
        accept(
            vec![Match::Protocol(Protocol::Icmp), Match::State(State::Related)],
            "ICMP errors about it (path MTU)",
        ),
        accept(
            vec![Match::Protocol(Protocol::Icmp6), Match::State(State::Related)],
            "ICMPv6 errors about it (path MTU)",
        ),
    ]);
    rules.extend(link_upkeep_in());
    for (transport, port) in &plan.inbound {
        rules.push(Rule {
            matches: vec![Match::DestinationPort(*transport, *port), Match::State(State::New)],
            actions: vec![Action::Mark(Mark::Inbound), Action::Accept],
            comment: "opened by the operator (network.inbound)",
        });
    }
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
