//! The steps that close the network and open what the policy allows: lockdown, dns, firewall.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv6Net;

use super::step::{Failure, Steps, Trouble, Verified};
use super::{DNS, FIREWALL, LOCKDOWN};
use super::{host, protections};
use crate::account::Account;
use crate::config::{self, ListenPort};
use crate::dns::keeper::{self, Keeper, Sockets};
use crate::dns::name_server::NameServer;
use crate::dns::resolv_conf::{self, EngineForwarding, Upstreams};
use crate::firewall::admission::NEVER;
use crate::firewall::backend::BackendError;
use crate::firewall::detect::{self, Scope};
use crate::firewall::ground::{Candidate, Offer};
use crate::firewall::nftables::NftablesError;
use crate::firewall::programs::{Programs, Supervised};
use crate::firewall::ruleset::{EngineDns, Family, FirewallPlan, GateMode, GatePlan, Transport};
use crate::firewall::{EgressLocked, Firewall, FirewallError, Notices};
use crate::gate;
use crate::gate::upstream::Proxy;
use crate::innkeeper::Innkeeper;
use crate::namespace::Network;
use crate::prerequisites::network::{self as needs, RESOLV_CONF};
use crate::report::{chain, event};
use crate::status::milliseconds;
use crate::status::report::Denial;
use crate::supervisor::run_as::Identity;
use crate::watch::keeper::Queues;
use crate::watch::{self, reporter::Reporter};
use crate::worker::keeper::Means;

/// NFLOG group of refused packets.
const NFLOG_GROUP: u16 = 100;
/// NFLOG group of connections that are let out.
const USES_GROUP: u16 = 101;

pub(super) fn lockdown(innkeeper: &Innkeeper, steps: &Steps) -> Result<Network, Failure> {
    let config = &innkeeper.config;
    let plan = || {
        let network = innkeeper.surroundings.network().map_err(|error| Trouble::internal(&error))?;
        let machine = host::fly_machine(innkeeper);
        if let Some(why) = needs::shared(&network, machine, config.boot.accepts("shared-network"))? {
            protections::give_up_network(innkeeper, why);
        }
        innkeeper.surroundings.take().map_err(needs::occupied)?;
        Ok(network)
    };
    let firewall = Firewall::start(notices(innkeeper))
        .map_err(|error| Failure { step: LOCKDOWN.name, trouble: Trouble::internal(&error) })?;
    // Nobody else sets it: the boot is one thread.
    drop(innkeeper.firewall.set(firewall.clone()));
    let network = steps.run(
        LOCKDOWN,
        plan,
        |_| {
            close(innkeeper, &firewall)?;
            // The kernel has acknowledged: from here on nothing passes. Looking at it comes after.
            let took = milliseconds(crate::init::since(innkeeper.began));
            innkeeper.board().update(|report| report.boot.lockdown_ms = Some(took));
            Ok(())
        },
        |network| {
            let detail = firewall.verify().map_err(|found| Trouble::unfit(found, host::NEXT_FIREWALL))?;
            Ok(Verified::new(network.clone(), format!("nothing passes; {detail}")))
        },
    )?;
    // Where it can't begin now, the step that needs it looks itself.
    innkeeper.surroundings.look_for_listeners().ok();
    Ok(network)
}

/// By netlink wherever the kernel has nf_tables, whichever backend follows; else by the legacy iptables, which is what
/// such a kernel can have.
fn close(innkeeper: &Innkeeper, firewall: &Firewall) -> Result<(), Trouble> {
    let trouble = |error: &FirewallError| host::firewall_trouble(error);
    let error = match firewall.lockdown() {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let lacking = matches!(
        error,
        FirewallError::Open(BackendError::Nftables(NftablesError::NoNfTables { .. }))
            | FirewallError::Load(BackendError::Nftables(NftablesError::Refused { .. }))
    );
    if !lacking || innkeeper.config.network.backend == config::Backend::Nftables {
        return Err(trouble(&error));
    }
    event("firewall", &format!("{}; closing by iptables", chain(&error)));
    firewall.choose(programs(innkeeper), detect::plainest()).map_err(|error| trouble(&error))?;
    firewall.lockdown().map_err(|error| trouble(&error))
}

/// Who runs the image's iptables, where it is needed.
fn programs(innkeeper: &Innkeeper) -> Arc<dyn Programs> {
    Arc::new(Supervised::new(innkeeper.spawner.clone()))
}

/// Loads the rules. Where nf_tables closed the box it gets them at once: only a kernel that refuses them is looked at part
/// by part, since that takes longer than loading.
fn load(innkeeper: &Innkeeper, firewall: &Firewall, plan: &FirewallPlan) -> Result<Loaded, Trouble> {
    let trouble = |error: FirewallError| host::firewall_trouble(&error);
    let wanted = innkeeper.config.network.gate;
    let first = if wanted == config::Gate::Proxy { GateMode::Proxy } else { GateMode::Redirect };
    let plan = &met(plan.clone(), first);
    let usual = firewall.backend() == Candidate::usual().backend.to_string()
        && innkeeper.config.network.backend != config::Backend::Iptables;
    if usual {
        let (plan, queues) = queues(innkeeper, plan.clone(), None);
        firewall.choose(programs(innkeeper), Candidate::usual()).map_err(trouble)?;
        match firewall.load(plan.clone(), innkeeper.allowlist()) {
            Ok(()) => {
                by_proxy(innkeeper, first)?;
                return Ok(Loaded { plan, queues });
            }
            Err(FirewallError::Load(BackendError::Nftables(NftablesError::Refused { .. }))) => {}
            Err(error) => return Err(trouble(error)),
        }
    }
    let (mode, ground) = ground(innkeeper, first)?;
    by_proxy(innkeeper, mode)?;
    let plan = met(FirewallPlan { closed: ground.closed(), ..plan.clone() }, mode);
    let (plan, queues) = queues(innkeeper, plan, ground.no_log.as_ref());
    firewall.choose(programs(innkeeper), ground).map_err(trouble)?;
    firewall.load(plan.clone(), innkeeper.allowlist()).map_err(trouble)?;
    Ok(Loaded { plan, queues })
}

/// The rules as they were loaded, and where their packets are heard.
struct Loaded {
    plan: FirewallPlan,
    queues: Option<Queues>,
}

/// Where clients find the gate.
fn met(plan: FirewallPlan, mode: GateMode) -> FirewallPlan {
    let plan = plan.by(mode);
    let gate = plan.gate.map(|gate| match mode {
        GateMode::Redirect => gate,
        GateMode::Proxy => GatePlan { v4: gate::keeper::PROXY, v6: None, ..gate },
    });
    FirewallPlan { gate, ..plan }
}

/// What the operator must know who wonders why a program reaches nothing.
const PROXY_ONLY: &str = "and programs that do not read HTTPS_PROXY reach nothing";

/// What a box needs whose only way out is to ask the gate.
fn by_proxy(innkeeper: &Innkeeper, mode: GateMode) -> Result<(), Trouble> {
    if mode == GateMode::Redirect {
        return Ok(());
    }
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    // What is parsed of a file of ours is whom it replaced.
    let first = text.lines().find_map(|line| line.strip_prefix("nameserver "));
    if first.map(str::trim) != Some(&keeper::LISTEN_V4.to_string()) {
        return Err(needs::resolver_unreachable().into());
    }
    if innkeeper.config.network.gate == config::Gate::Proxy {
        innkeeper.board().warn(format!("the gate is a proxy, {PROXY_ONLY} (network.gate)"));
    }
    if !innkeeper.config.network.inbound.is_empty() {
        let what = "network.inbound is not opened: where the gate is a proxy no connection is tracked, and answers could not \
                    be told from what the agent sends";
        innkeeper.board().warn(what);
    }
    Ok(())
}

/// How the kernel is to be programmed: by trying, in a box that is closed already. Where nothing can redirect, the gate is a
/// proxy, unless the operator said which it is.
fn ground(innkeeper: &Innkeeper, first: GateMode) -> Result<(GateMode, Candidate), Trouble> {
    let wanted = innkeeper.config.network.backend;
    let given_up = innkeeper.config.boot.accepts("egress-ipv6");
    let tried = |mode| {
        let found = detect::candidates(programs(innkeeper).as_ref(), Scope::First(wanted), mode);
        needs::filter(wanted, &found, given_up)
    };
    let (mode, (candidate, unfiltered)) = match tried(first) {
        Ok(found) => (first, found),
        Err(lack) if first == GateMode::Redirect && innkeeper.config.network.gate == config::Gate::Auto => {
            let Ok(found) = tried(GateMode::Proxy) else { return Err(lack.into()) };
            innkeeper.board().warn(format!("the gate is a proxy, {PROXY_ONLY}: {}", lack.what));
            (GateMode::Proxy, found)
        }
        Err(lack) => return Err(lack.into()),
    };
    if let Some(why) = unfiltered {
        // Shown as a protection that does not hold, for ever.
        drop(innkeeper.unfiltered_ipv6.set(why));
    }
    for (family, offer) in [(Family::V4, &candidate.ipv4), (Family::V6, &candidate.ipv6)] {
        if let Offer::Closed(why) = offer {
            innkeeper.board().warn(format!("{family} is closed, and no name has an address of it: {why}"));
            let closed = if family == Family::V4 { &innkeeper.closed_ipv4 } else { &innkeeper.closed_ipv6 };
            drop(closed.set(why.clone()));
        }
    }
    Ok((mode, candidate))
}

/// Where the firewall's thread says what it has to say.
fn notices(innkeeper: &Innkeeper) -> Notices {
    let board = Arc::clone(innkeeper.board());
    let refused = move |name: &crate::allowlist::DomainName, address: std::net::IpAddr, reason: &str| {
        board.deny(Denial {
            time: crate::report::now(),
            layer: "firewall".to_owned(),
            what: format!("{name} → {address}"),
            uid: None,
            process: None,
            reason: reason.to_owned(),
            count: 1,
            allow: if reason.ends_with(NEVER) {
                "nothing opens this address".to_owned()
            } else {
                format!("innkeeper allow '{name} private'")
            },
        });
    };
    let board = Arc::clone(innkeeper.board());
    let first = std::cell::Cell::new(true);
    // The first stays in `status`; an event tells of the others.
    let repaired = move |what: &str| {
        if first.replace(false) {
            board.warn(what);
        } else {
            event("firewall", what);
        }
    };
    Notices { refused: Box::new(refused), repaired: Box::new(repaired) }
}

/// Where `fly ssh` comes from: the organization's private network, and the platform's public one. On these machines
/// connection tracking has been seen not to work for IPv6.
const FLY_SSH: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, 0), 16),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2605, 0x4c40, 0, 0, 0, 0, 0, 0), 32),
];

/// What the firewall step needs of this one.
pub(super) struct Resolver {
    sockets: Sockets,
    doors: gate::keeper::Sockets,
    servers: Vec<NameServer>,
    plan: FirewallPlan,
    ipv6: bool,
}

/// A pod has a handful of sidecars; more listeners are closed all the same.
const MAX_NAMED_LISTENERS: usize = 16;

pub(super) fn dns(innkeeper: &Innkeeper, steps: &Steps, network: &Network) -> Result<Resolver, Failure> {
    let configured = &innkeeper.config.network.upstreams;
    let plan = || {
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let mut upstreams = resolv_conf::parse(&text);
        if !configured.is_empty() {
            upstreams.servers = configured.iter().map(|server| server.address).collect();
        }
        if upstreams.servers.is_empty() {
            innkeeper.board().warn(format!(
                "no upstream resolver: {RESOLV_CONF} names none and network.upstreams is empty; no name resolves"
            ));
        }
        // Looked at before our own listeners exist: whatever listened then is not the agent's.
        let listeners = innkeeper.surroundings.listeners().map_err(needs::unseen_listeners)?;
        Ok((upstreams, host::closed_listeners(&listeners, &innkeeper.config.network.loopback)))
    };
    let mut sockets = None;
    let mut doors = None;
    let resolver = steps.run(
        DNS,
        plan,
        |(upstreams, _)| {
            sockets = Some(Sockets::open().map_err(|error| {
                Trouble::unfit(chain(&error), "something else listens on port 53 of this network: stop it")
            })?);
            // Both before any agent exists, and before the rules that lead there.
            doors = Some(gate::keeper::Sockets::open().map_err(|error| {
                let next =
                    format!("something else listens on {} of this network: stop it", gate::keeper::LISTEN);
                Trouble::unfit(chain(&error), next)
            })?);
            host::write_resolv_conf(Path::new(RESOLV_CONF), upstreams, innkeeper);
            Ok(())
        },
        |(upstreams, closed)| {
            for listener in closed.iter().take(MAX_NAMED_LISTENERS) {
                innkeeper.board().warn(host::listener_warning(*listener));
            }
            let detail =
                format!("listening on {}, asking {}", keeper::LISTEN_V4, host::list(&upstreams.servers));
            Ok(Verified::new((upstreams.clone(), closed.clone()), detail))
        },
    )?;
    let (upstreams, closed) = resolver;
    let (Some(sockets), Some(doors)) = (sockets, doors) else {
        let trouble = Trouble::unfit("no socket was opened", "please report this");
        return Err(Failure { step: DNS.name, trouble });
    };
    let plan = rules(innkeeper, network, (&sockets, &doors), (&upstreams, closed));
    let servers = if configured.is_empty() {
        upstreams.servers.into_iter().map(NameServer::plain).collect()
    } else {
        configured.clone()
    };
    Ok(Resolver { sockets, doors, servers, plan, ipv6: network.ipv6_route })
}

/// The facts that the rules depend on.
fn rules(
    innkeeper: &Innkeeper,
    network: &Network,
    (sockets, doors): (&Sockets, &gate::keeper::Sockets),
    (upstreams, closed): (&Upstreams, Vec<SocketAddr>),
) -> FirewallPlan {
    let dns_v6 = sockets.v6.then(|| SocketAddrV6::new(Ipv6Addr::LOCALHOST, keeper::PORT, 0, 0));
    let ports = innkeeper.allowlist().gated_ports();
    // One that is given by its name has a rule.
    let gate = GatePlan {
        mode: GateMode::Redirect,
        uid: innkeeper.accounts.gate.uid,
        v4: doors.v4,
        v6: doors.v6,
        ports,
        proxy: innkeeper.config.network.proxy.as_ref().and_then(Proxy::address),
    };
    FirewallPlan {
        dns_uid: innkeeper.accounts.dns.uid,
        dns_v4: std::net::SocketAddrV4::new(keeper::LISTEN_V4, keeper::PORT),
        dns_v6,
        upstreams: upstreams.servers.clone(),
        engine_dns: engine(upstreams),
        inbound: innkeeper.config.network.inbound.iter().map(inbound).collect(),
        ssh_from: if host::fly_machine(innkeeper) { FLY_SSH.to_vec() } else { Vec::new() },
        closed_loopback: closed,
        nflog_group: NFLOG_GROUP,
        uses_group: USES_GROUP,
        vm: network.initial && network.initial_pids,
        closed: Vec::new(),
        gate: Some(gate),
    }
}

/// The certificates by which upstreams are judged that are asked by TLS, if there are such.
fn roots(innkeeper: &Innkeeper, servers: &[NameServer]) -> Option<String> {
    servers.iter().find(|server| server.tls.is_some())?;
    let more = innkeeper.config.tls.ca_certs.as_deref();
    let mut roots = String::new();
    for path in [Some(Path::new(crate::identity::SYSTEM_CA)), more].into_iter().flatten() {
        match std::fs::read_to_string(path) {
            Ok(text) => roots.push_str(&(text + "\n")),
            Err(error) => {
                innkeeper
                    .board()
                    .warn(format!("cannot read {}, by which upstreams are judged: {error}", path.display()));
            }
        }
    }
    Some(roots)
}

fn inbound(opened: &ListenPort) -> (Transport, u16) {
    let transport = match opened.transport {
        config::Transport::Tcp => Transport::Tcp,
        config::Transport::Udp => Transport::Udp,
    };
    (transport, opened.port)
}

/// Docker's server forwards from a uid-0 socket inside the box only to what it did not mark as `host(…)`.
pub(super) fn engine(upstreams: &Upstreams) -> Option<EngineDns> {
    match upstreams.engine.as_ref()? {
        EngineForwarding::To(servers) if servers.is_empty() => None,
        EngineForwarding::To(servers) => Some(EngineDns { forwards_to: servers.clone() }),
        EngineForwarding::Unknown => Some(EngineDns { forwards_to: Vec::new() }),
    }
}

/// Logged packets are for the operator's eyes, no protection: without them the box counts what it refuses.
fn queues(
    innkeeper: &Innkeeper,
    plan: FirewallPlan,
    no_log: Option<&String>,
) -> (FirewallPlan, Option<Queues>) {
    let opened = match no_log {
        Some(why) => Err(why.clone()),
        None => Queues::open(plan.nflog_group, plan.uses_group).map_err(|error| chain(&error)),
    };
    match opened {
        Ok(queues) => (plan, Some(queues)),
        Err(why) => {
            innkeeper.board().warn(format!("refused packets are counted, not listed: {why}"));
            (FirewallPlan { nflog_group: 0, uses_group: 0, ..plan }, None)
        }
    }
}

fn watch(innkeeper: &Arc<Innkeeper>, firewall: &Firewall, queues: Queues) {
    let (board, asked) = (Arc::clone(innkeeper.board()), Arc::clone(innkeeper));
    let rules = Arc::new(move |name: &str, port: u16| asked.rule_for(name, port));
    let reporter = Reporter::new(board, firewall.clone(), innkeeper.attributor.clone(), rules);
    match watch::keeper::Keeper::start(queues, reporter, means(innkeeper, &innkeeper.accounts.watch)) {
        Ok(keeper) => drop(innkeeper.watch.set(keeper)),
        Err(error) => {
            innkeeper.board().warn(format!("refused packets are counted, not listed: {}", chain(&error)));
        }
    }
}

/// With what a worker is started that has this account.
pub(super) fn means(innkeeper: &Innkeeper, account: &Account) -> Means {
    Means {
        identity: Identity::worker(account.uid, account.gid),
        spawner: innkeeper.spawner.clone(),
        board: Arc::clone(innkeeper.board()),
    }
}

pub(super) fn firewall(
    innkeeper: &Arc<Innkeeper>,
    steps: &Steps,
    resolver: Resolver,
) -> Result<(EgressLocked, gate::keeper::Sockets), Failure> {
    let Some(firewall) = innkeeper.firewall.get() else {
        let trouble = Trouble::unfit("the lockdown is gone", "please report this");
        return Err(Failure { step: FIREWALL.name, trouble });
    };
    let Resolver { sockets, mut doors, servers, plan, ipv6 } = resolver;
    if let Some(engine) = &plan.engine_dns {
        innkeeper.board().warn(host::engine_warning(engine));
    }
    let limit = innkeeper.config.network.boot_timeout;
    let locked = steps.run(
        FIREWALL,
        || Ok(plan),
        |plan| {
            let Loaded { plan, queues } = load(innkeeper, firewall, plan)?;
            if plan.gate.as_ref().is_some_and(|gate| gate.mode == GateMode::Proxy) {
                doors.open_proxy().map_err(|error| {
                    let next = "something else listens there in this network: stop it";
                    Trouble::unfit(chain(&error), next)
                })?;
                innkeeper.proxy.set(gate::keeper::PROXY).ok();
            }
            let worker = keeper::Plan {
                upstreams: servers.clone(),
                roots: roots(innkeeper, &servers),
                refresh: innkeeper.config.network.refresh,
                ipv6,
                proxied: innkeeper.config.network.proxy.is_some(),
                closed: plan.closed.clone(),
                attributor: innkeeper.attributor.clone(),
            };
            let means = means(innkeeper, &innkeeper.accounts.dns);
            let started = Keeper::start(worker, sockets, innkeeper.standing(), firewall.clone(), means);
            let (keeper, primed) = started.map_err(|error| Trouble::internal(&error))?;
            drop(innkeeper.keeper.set(keeper));
            // After the resolver's first life, so that the log always tells of them in this order.
            if let Some(queues) = queues {
                watch(innkeeper, firewall, queues);
            }
            drop(innkeeper.upstreams.set(plan.upstreams.clone()));
            if primed.recv_timeout(limit).is_err() {
                event("boot", "not every name was answered in time; it goes on in the background");
            }
            Ok(())
        },
        |_| {
            let locked =
                EgressLocked::verify(firewall).map_err(|found| Trouble::unfit(found, host::NEXT_FIREWALL))?;
            let open = firewall.report().addresses.len();
            let names = innkeeper.allowlist().exact_names().len();
            if open == 0 && names > 0 {
                let detail = "no name was answered yet; all are asked again in the background";
                return Ok(Verified::degraded(locked, detail));
            }
            let by = firewall.backend();
            Ok(Verified::new(locked, format!("{open} addresses open; the rest is refused ({by})")))
        },
    )?;
    Ok((locked, doors))
}
