//! What the network namespace is and what it offers, without a change to it.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::path::Path;

use super::finding::Finding;
use crate::config::{Backend, Config, Gate};
use crate::dns::resolv_conf::{self, ENGINE};
use crate::firewall::detect::{self, Scope};
use crate::firewall::ground::{Candidate, Offer};
use crate::firewall::programs::Direct;
use crate::firewall::ruleset::GateMode;
use crate::namespace::{self, Network, Surroundings};
use crate::prerequisites::network::{self as needs, RESOLV_CONF};
use crate::prerequisites::privileges::Privileges;
use crate::watch::queue::Queue;

/// A group that nobody reads (nfnetlink_log(4) has 16 bits of them).
const TRIAL_GROUP: u16 = 64_999;

pub(super) fn findings(
    network: &Network,
    config: Option<&Config>,
    machine: bool,
    given: &Privileges,
) -> Vec<Finding> {
    let accepted = config.is_some_and(|config| config.boot.accepts("shared-network"));
    let mut findings = vec![whose(network, machine, accepted), another_box()];
    findings.extend(packet_filter(given, config));
    findings.extend(addresses(network));
    findings.push(listeners());
    findings.push(resolvers(config));
    findings.push(resolv_conf());
    findings
}

fn whose(network: &Network, machine: bool, accepted: bool) -> Finding {
    let (mechanism, tried) = ("network namespace", "rtnetlink, /proc");
    match needs::shared(network, machine, accepted) {
        Ok(None) => {
            Finding::ok(mechanism, format!("the box's own: {}", network.interfaces.join(", ")), tried)
        }
        Ok(Some(why)) => Finding::weaker(mechanism, format!("given up by boot.accept: {why}"), tried),
        Err(lack) => Finding::missing(mechanism, &lack, tried),
    }
}

/// Asked, not taken: a box that boots at this moment must not meet us.
fn another_box() -> Finding {
    let (mechanism, tried) = ("another box", "its name in this network");
    if Surroundings::occupied() {
        Finding::missing(mechanism, &needs::occupied("its name is taken"), tried)
    } else {
        Finding::ok(mechanism, "none in this network", tried)
    }
}

/// What the boot would find, found in a network namespace that ends with its thread. Where none can be made only
/// nf_tables is asked, in batches that the kernel undoes: trying iptables would leave its tables here.
fn packet_filter(given: &Privileges, config: Option<&Config>) -> Vec<Finding> {
    let mechanism = "packet filter";
    if !given.has("NET_ADMIN") {
        return vec![Finding::not_applicable(mechanism, "NET_ADMIN is missing: see above", "capget(2)")];
    }
    let wanted = config.map_or(Backend::Auto, |config| config.network.backend);
    let apart = given.has("SYS_ADMIN");
    let gate = config.map_or(Gate::Auto, |config| config.network.gate);
    let mode = if gate == Gate::Proxy { GateMode::Proxy } else { GateMode::Redirect };
    let Some(mut candidates) = ways(apart, mode) else {
        return vec![Finding::weaker(mechanism, "could not be tried without effect", "unshare(2)")];
    };
    let tried =
        if apart { "loaded in a network namespace of its own" } else { "loaded in a batch that is undone" };
    let given_up = config.is_some_and(|config| config.boot.accepts("egress-ipv6"));
    let mut chosen = needs::filter(wanted, &candidates, given_up);
    let mut findings = Vec::new();
    // As the boot does: where nothing redirects, the gate is a proxy.
    if let Err(lack) = &chosen
        && gate == Gate::Auto
        && let Some(others) = ways(apart, GateMode::Proxy)
        && let Ok(found) = needs::filter(wanted, &others, given_up)
    {
        let what = format!("nothing redirects here, so it is a proxy and the only way out: {}", lack.what);
        findings.push(Finding::weaker("gate", what, tried));
        (candidates, chosen) = (others, Ok(found));
    }
    let used = chosen.as_ref().ok().map(|(chosen, _)| chosen.backend);
    findings.extend(candidates.iter().map(|one| backend(one, used == Some(one.backend), tried)));
    match chosen {
        Ok((chosen, unfiltered)) => {
            findings.push(log(&chosen, tried));
            findings.extend(unfiltered.map(|why| {
                Finding::weaker(
                    "IPv6",
                    format!("unfiltered, given up by boot.accept=egress-ipv6: {why}"),
                    tried,
                )
                .next("--sysctl net.ipv6.conf.all.disable_ipv6=1")
            }));
        }
        Err(lack) if !apart && wanted != Backend::Nftables => {
            let found =
                format!("{}; the boot tries iptables, which can't be tried here without effect", lack.what);
            findings.push(
                Finding::weaker(mechanism, found, tried).next("--cap-add SYS_ADMIN lets doctor try it"),
            );
        }
        Err(lack) => findings.push(Finding::missing(mechanism, &lack, tried)),
    }
    findings
}

/// What the kernel can do for a box whose gate works like this.
fn ways(apart: bool, mode: GateMode) -> Option<Vec<Candidate>> {
    if apart {
        in_a_namespace(move || detect::candidates(&Direct, Scope::All, mode))
    } else {
        Some(detect::candidates(&Direct, Scope::First(Backend::Nftables), mode))
    }
}

/// One way to program the kernel, family by family.
fn backend(candidate: &Candidate, chosen: bool, tried: &str) -> Finding {
    let mechanism = format!("packet filter {}", candidate.backend);
    let family = |name: &str, offer: &Offer| match offer {
        Offer::Whole => name.to_owned(),
        Offer::Closed(why) => format!("{name} closed, so no name has an address of it ({why})"),
        Offer::Absent(why) => format!("{name} is not here ({why})"),
        Offer::Unfit(why) => format!("{name} can't even be closed ({why})"),
    };
    let families = [family("IPv4", &candidate.ipv4), family("IPv6", &candidate.ipv6)].join(", ");
    let found = format!("{families}; addresses in {}", candidate.storage);
    let closed = !candidate.closed().is_empty();
    match (chosen, closed) {
        (true, false) => Finding::ok(mechanism, found, tried),
        (true, true) => {
            Finding::weaker(mechanism, found, tried).next("a kernel with connection tracking and NAT")
        }
        (false, _) => Finding::not_applicable(mechanism, format!("not used here: {found}"), tried),
    }
}

fn log(chosen: &Candidate, tried: &str) -> Finding {
    let mechanism = "packet log (NFLOG)";
    match &chosen.no_log {
        None => logging(),
        Some(why) => {
            Finding::weaker(mechanism, format!("refused packets are counted, not listed: {why}"), tried)
                .next("a kernel with CONFIG_NETFILTER_NETLINK_LOG")
        }
    }
}

/// Runs this on a thread in a network namespace of its own; `None` where none can be made.
fn in_a_namespace<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let apart = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
    std::thread::spawn(move || apart().then(run)).join().ok().flatten()
}

/// Bound for a moment; the group is nobody's.
fn logging() -> Finding {
    let (mechanism, tried) = ("packet log (NFLOG)", "a group of our own bound");
    match Queue::open(TRIAL_GROUP) {
        Ok(queue) => {
            drop(queue);
            Finding::ok(mechanism, "refused packets are listed", tried)
        }
        Err(error) => {
            let found = format!("refused packets are counted, not listed: {}", crate::report::chain(&error));
            Finding::weaker(mechanism, found, tried).next("a kernel with CONFIG_NETFILTER_NETLINK_LOG")
        }
    }
}

fn addresses(network: &Network) -> [Finding; 2] {
    let loopback = match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => Finding::ok("::1", "the resolver listens there too", "bind(2)"),
        Err(error) => Finding::not_applicable("::1", format!("not here: {error}"), "bind(2)")
            .next("--sysctl net.ipv6.conf.lo.disable_ipv6=0"),
    };
    let route = if network.ipv6_route {
        Finding::ok("way out by IPv6", "a default route", "rtnetlink")
    } else {
        Finding::not_applicable(
            "way out by IPv6",
            "no default route: attempts to get out by it are n/a",
            "rtnetlink",
        )
    };
    [loopback, route]
}

fn listeners() -> Finding {
    let (mechanism, tried) = ("listeners of others", "/proc/net");
    match namespace::older_listeners() {
        Err(error) => Finding::missing(mechanism, &needs::unseen_listeners(error), tried),
        Ok(listeners) => {
            let mut others: Vec<String> = listeners
                .iter()
                .filter(|listener| listener.address.ip() != IpAddr::V4(ENGINE))
                .map(|listener| listener.address.to_string())
                .collect();
            others.sort();
            others.dedup();
            if others.is_empty() {
                return Finding::ok(mechanism, "none", tried);
            }
            Finding::ok(mechanism, format!("closed to the agent: {}", others.join(", ")), tried)
                .next("INNKEEPER_NETWORK_LOOPBACK=PORT opens one")
        }
    }
}

fn resolvers(config: Option<&Config>) -> Finding {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let configured = config.map(|config| config.network.upstreams.as_slice()).unwrap_or_default();
    let mut servers: Vec<String> = configured.iter().map(|server| server.address.to_string()).collect();
    let (mut engine, tried) = (false, if servers.is_empty() { RESOLV_CONF } else { "network.upstreams" });
    if servers.is_empty() {
        let upstreams = resolv_conf::parse(&text);
        engine = upstreams.engine.is_some();
        servers = upstreams.servers.iter().map(ToString::to_string).collect();
    }
    let mechanism = "resolvers";
    if servers.is_empty() {
        return Finding::weaker(mechanism, "none is named: no name will resolve", tried)
            .next("--dns ADDRESS");
    }
    let servers = servers.join(", ");
    if engine {
        return Finding::weaker(
            mechanism,
            format!("{servers}: the engine asks for us, as uid 0 of this network"),
            tried,
        )
        .next("INNKEEPER_NETWORK_UPSTREAMS=ADDRESS names one that the box asks itself");
    }
    Finding::ok(mechanism, servers, tried)
}

fn resolv_conf() -> Finding {
    // Opening it writes nothing.
    let opened = crate::prerequisites::network::writable(Path::new(RESOLV_CONF));
    match opened {
        Ok(()) => Finding::ok(RESOLV_CONF, "can be written", "opened for writing"),
        Err(error) => {
            let found = format!("{error}: programs reach the box's resolver by redirection");
            Finding::not_applicable(RESOLV_CONF, found, "opened for writing")
        }
    }
}
