//! The text of the rule sets, compared with `tests/golden/*.nft`. `BLESS=1` writes them anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

use std::path::Path;

use innkeeper::firewall::ruleset::{
    EngineDns, FirewallPlan, GateMode, GatePlan, Ruleset, Transport, lockdown, skeleton,
};

fn compare(name: &str, ruleset: &Ruleset) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = ruleset.to_string();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, text, "{name} differs; BLESS=1 writes it anew");
}

fn plan() -> FirewallPlan {
    FirewallPlan {
        dns_uid: 901,
        dns_v4: "127.0.0.53:53".parse().unwrap(),
        dns_v6: Some("[::1]:53".parse().unwrap()),
        upstreams: vec!["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()],
        engine_dns: None,
        inbound: vec![],
        ssh_from: vec![],
        closed_loopback: vec![],
        nflog_group: 5,
        uses_group: 6,
        vm: false,
        closed: vec![],
        gate: None,
    }
}

#[test]
fn lockdown_text() {
    compare("lockdown.nft", &lockdown());
}

#[test]
fn skeleton_text() {
    compare("skeleton.nft", &skeleton(&plan()));
}

/// Docker's user network: its resolver is the upstream and forwards from inside the box.
#[test]
fn skeleton_beside_an_engine_text() {
    let upstreams = vec!["127.0.0.11:53".parse().unwrap()];
    let known = EngineDns { forwards_to: vec!["192.0.2.1:53".parse().unwrap()] };
    let plan = FirewallPlan { upstreams, engine_dns: Some(known), ..plan() };
    compare("skeleton-engine.nft", &skeleton(&plan));
    let unknown = FirewallPlan { engine_dns: Some(EngineDns { forwards_to: vec![] }), ..plan };
    compare("skeleton-engine-unknown.nft", &skeleton(&unknown));
}

/// A virtual machine without IPv6 loopback, with listeners older than the box and an open port.
#[test]
fn skeleton_of_a_vm_text() {
    let plan = FirewallPlan {
        dns_v6: None,
        inbound: vec![(Transport::Tcp, 22)],
        ssh_from: vec!["fdaa::/16".parse().unwrap()],
        closed_loopback: vec!["127.0.0.1:15001".parse().unwrap(), "[::]:9000".parse().unwrap()],
        vm: true,
        ..plan()
    };
    compare("skeleton-vm.nft", &skeleton(&plan));
}

fn gate() -> Option<GatePlan> {
    let (v4, v6) = ("127.0.0.53:11443".parse().unwrap(), Some("[::1]:11443".parse().unwrap()));
    Some(GatePlan { mode: GateMode::Redirect, uid: 902, v4, v6, ports: vec![80, 443, 8443], proxy: None })
}

/// With the egress gate: on both families, on IPv4 alone, and where IPv6 is closed.
#[test]
fn skeleton_with_a_gate_text() {
    let gated = FirewallPlan { gate: gate(), ..plan() };
    compare("skeleton-gate.nft", &skeleton(&gated));
    let through = |gate| GatePlan { proxy: Some("192.0.2.8:3128".parse().unwrap()), ..gate };
    let through = FirewallPlan { gate: gate().map(through), ..plan() };
    compare("skeleton-gate-through.nft", &skeleton(&through));
    compare("skeleton-proxy-through.nft", &skeleton(&through.by(GateMode::Proxy)));
    let v4 = gate().map(|gate| GatePlan { v6: None, ..gate });
    compare("skeleton-gate-ipv4.nft", &skeleton(&FirewallPlan { gate: v4, dns_v6: None, ..gated.clone() }));
    let closed = vec![innkeeper::firewall::ruleset::Family::V6];
    compare("skeleton-gate-closed6.nft", &skeleton(&FirewallPlan { closed, ..gated }));
}

fn proxy() -> FirewallPlan {
    let v4 = "127.0.0.1:3128".parse().unwrap();
    let gate = GatePlan { mode: GateMode::Proxy, uid: 902, v4, v6: None, ports: vec![], proxy: None };
    FirewallPlan { gate: Some(gate), ..plan() }
}

/// The only way out is to ask the gate: nothing is redirected, no connection tracked.
#[test]
fn skeleton_with_a_proxy_text() {
    compare("skeleton-proxy.nft", &skeleton(&proxy()));
    let engine_dns = Some(EngineDns { forwards_to: vec!["192.0.2.1:53".parse().unwrap()] });
    let upstreams = vec!["127.0.0.11:53".parse().unwrap()];
    let ssh_from = vec!["fdaa::/16".parse().unwrap()];
    let full = FirewallPlan { engine_dns, upstreams, ssh_from, vm: true, ..proxy() };
    let text = skeleton(&full).to_string();
    for word in ["\tct ", " ct ", "nat ", "dnat"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
    compare("skeleton-proxy-full.nft", &skeleton(&full));
    compare_iptables("skeleton-proxy-ipset.iptables", &skeleton(&proxy()), Some(1));
    compare_iptables("skeleton-proxy-rules.iptables", &skeleton(&proxy()), None);
}

#[test]
fn every_rule_says_what_it_is_for() {
    let engine_dns = Some(EngineDns { forwards_to: vec![] });
    let plan = FirewallPlan { vm: true, engine_dns, gate: gate(), ..plan() };
    for chain in skeleton(&plan).chains {
        for rule in chain.rules {
            assert!(!rule.comment.is_empty() && rule.comment.len() < 128, "{rule}");
            assert!(!rule.comment.contains('"'), "{rule}");
        }
    }
}

/// The same values as text for iptables-restore, as it is loaded where nothing of ours is yet.
fn compare_iptables(name: &str, ruleset: &Ruleset, sets: Option<u32>) {
    use innkeeper::firewall::backend::{Edit, Element};
    use innkeeper::firewall::iptables::listing::compose;
    use innkeeper::firewall::iptables::render::{Form, render};
    use innkeeper::firewall::ruleset::Family;
    let pairs = [("192.0.2.1".parse().unwrap(), 443), ("2001:db8::1".parse().unwrap(), 22)];
    let timeout = std::time::Duration::from_secs(60);
    let open = pairs.iter().map(|&(address, port)| Element { address, port, timeout }).collect();
    let content = Edit { open, hold: pairs.into(), ..Edit::default() };
    let mut text = String::new();
    for family in [Family::V4, Family::V6] {
        let rendered = render(ruleset, family, Form { sets, comments: true }, &content);
        text.push_str(&format!("# {family}\n{}", compose(&rendered.bodies, &[])));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, text, "{name} differs; BLESS=1 writes it anew");
}

#[test]
fn iptables_texts() {
    compare_iptables("lockdown.iptables", &lockdown(), None);
    compare_iptables("skeleton-ipset.iptables", &skeleton(&plan()), Some(1));
    compare_iptables("skeleton-rules.iptables", &skeleton(&plan()), None);
    let gated = skeleton(&FirewallPlan { gate: gate(), ..plan() });
    compare_iptables("skeleton-gate-ipset.iptables", &gated, Some(1));
    compare_iptables("skeleton-gate-rules.iptables", &gated, None);
    let known = EngineDns { forwards_to: vec!["192.0.2.1:53".parse().unwrap()] };
    let full = FirewallPlan {
        engine_dns: Some(known),
        inbound: vec![(Transport::Tcp, 22)],
        closed_loopback: vec!["127.0.0.1:15001".parse().unwrap(), "[::]:9000".parse().unwrap()],
        vm: true,
        ..plan()
    };
    compare_iptables("skeleton-full.iptables", &skeleton(&full), Some(1));
}
