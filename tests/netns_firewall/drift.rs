//! T46, F26, F27: somebody who is root in the box's namespace changes our rules.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use innkeeper::firewall::backend::Edit;
use innkeeper::firewall::ruleset::lockdown;

use super::place::{
    AGENT, BOX4, FIRST4, Flow, Guard, Kind, OUTSIDE4, PATIENCE, ROOT, SECOND4, World, nothing_came,
};
use super::plan;

const DENIED: &str = "9.9.9.9:443";

/// Noticed without being asked, repaired, told; what is allowed goes on and the rest of the rules stays.
fn noticed(kind: Kind, tampers: &[&[&str]]) {
    for tamper in tampers {
        let Some(world) = World::on(kind) else { return };
        world.inside.nft("add table inet foreign");
        world.inside.nft("add chain inet foreign output { type filter hook output priority 10 ; }");
        world.inside.nft("add rule inet foreign output meta mark 7 accept");
        let foreign = world.inside.nft("list table inet foreign");
        let guard = Guard::start(&world, plan(), "a.test");
        guard.admit("a.test", &[FIRST4]);
        let _listens = world.outside.listen(DENIED);
        let mut flow = Flow::open(&world, &format!("{FIRST4}:443"));
        let sound = world.listing();
        for line in *tamper {
            world.tamper(line);
        }
        let said = guard.said.recv_timeout(PATIENCE).unwrap();
        let ours = if kind == Kind::Nftables { "the table inet innkeeper" } else { "the chains INNKEEPER-*" };
        assert!(said.starts_with(&format!("somebody changed {ours}: ")), "{said}");
        assert!(said.ends_with("; repaired"), "{said}");
        let refused = world.inside.connect(AGENT, DENIED).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "after {tamper:?}");
        flow.works();
        Flow::open(&world, &format!("{FIRST4}:443"));
        assert_eq!(sound, world.listing());
        assert_eq!(foreign, world.inside.nft("list table inet foreign"));
        assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
    }
}

/// Which of three lists is this kind's: of nf_tables, of iptables with sets, of iptables with rules.
fn by_kind<'a>(
    kind: Kind,
    nft: &'a [&'a [&'a str]],
    ipset: &'a [&'a [&'a str]],
    rules: &'a [&'a [&'a str]],
) -> &'a [&'a [&'a str]] {
    match kind {
        Kind::Nftables => nft,
        Kind::NftIpset | Kind::LegacyIpset => ipset,
        Kind::NftRules | Kind::LegacyRules => rules,
    }
}

fn t46_changed_rules_are_noticed_and_repaired(kind: Kind) {
    let iptables: &[&[&str]] = &[
        &["iptables -F INNKEEPER-OUTPUT"],
        &["iptables -I INNKEEPER-OUTPUT -j ACCEPT"],
        // A jump that is not the first rule any more.
        &["iptables -I OUTPUT -j ACCEPT"],
    ];
    let nft: &[&[&str]] =
        &[&["nft flush chain inet innkeeper output"], &["nft insert rule inet innkeeper output accept"]];
    noticed(kind, by_kind(kind, nft, iptables, iptables));
}

fn t46_a_lost_table_is_noticed_and_repaired(kind: Kind) {
    let iptables: &[&[&str]] =
        &[&["iptables -F"], &["iptables -t nat -F"], &["iptables -D OUTPUT -j INNKEEPER-OUTPUT"]];
    let nft: &[&[&str]] =
        &[&["nft delete table inet innkeeper"], &["nft add table inet innkeeper { flags dormant ; }"]];
    noticed(kind, by_kind(kind, nft, iptables, iptables));
}

fn t46_changed_elements_are_noticed_and_repaired(kind: Kind) {
    let nft: &[&[&str]] = &[
        &["nft add element inet innkeeper open4 { 9.9.9.9 . 443 }"],
        &["nft add element inet innkeeper open4 { 9.9.9.9 . 443 timeout 1h }"],
        &["nft flush set inet innkeeper open4"],
    ];
    let ipset: &[&[&str]] = &[
        &["ipset add SET-open4 9.9.9.9,tcp:443 timeout 0"],
        &["ipset add SET-open4 9.9.9.9,tcp:443 timeout 3600"],
        &["ipset flush SET-open4"],
    ];
    let rules: &[&[&str]] = &[
        &["iptables -I INNKEEPER-OUTPUT-OPEN4 -d 9.9.9.9/32 -p tcp -m tcp --dport 443 -g INNKEEPER-USED"],
        &["iptables -D INNKEEPER-OUTPUT-OPEN4 1"],
    ];
    noticed(kind, by_kind(kind, nft, ipset, rules));
}

fn t46_flows_that_were_let_on_or_ended_are_noticed_and_repaired(kind: Kind) {
    let nft: &[&[&str]] = &[
        &["nft add element inet innkeeper held4 { 9.9.9.9 . 443 }"],
        &["nft flush set inet innkeeper held4"],
    ];
    let ipset: &[&[&str]] = &[&["ipset add SET-held4 9.9.9.9,tcp:443"], &["ipset flush SET-held4"]];
    let rules: &[&[&str]] = &[
        &["iptables -I INNKEEPER-OUTPUT-HELD4 -d 9.9.9.9/32 -p tcp -m tcp --dport 443 -j RETURN"],
        &["iptables -D INNKEEPER-INPUT-HELD4 1"],
    ];
    noticed(kind, by_kind(kind, nft, ipset, rules));
}

#[test]
fn t46_a_deleted_rule_is_noticed_and_repaired() {
    let Some(world) = World::new() else { return };
    let guard = Guard::start(&world, plan(), "a.test");
    let listed = world.inside.nft("-a list chain inet innkeeper postrouting");
    let handle = listed.lines().find(|line| line.contains("comment")).unwrap().rsplit(' ').next().unwrap();
    world.inside.nft(&format!("delete rule inet innkeeper postrouting handle {handle}"));
    let said = guard.said.recv_timeout(PATIENCE).unwrap();
    assert!(said.contains("postrouting") && said.ends_with("; repaired"), "{said}");
    assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
    // Asked in between, it says what it found, and has repaired it.
    world.inside.nft("add rule inet innkeeper forward accept");
    let found = guard.firewall.verify().unwrap_err();
    assert!(found.contains("forward"), "{found}");
    guard.firewall.verify().unwrap();
    world.inside.nft("add element inet innkeeper open4 { 9.9.9.9 . 443 }");
    assert!(guard.firewall.again().unwrap().contains("9.9.9.9 port 443 was opened"));
    assert_eq!(guard.firewall.again(), Ok("rules as loaded".to_owned()));
}

/// What got out while the rules were gone does not go on once they are back.
fn t46_a_flow_from_a_gap_ends_with_it(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    // Somebody else's rule keeps connection tracking on while ours are gone: the flow will count as established.
    world.inside.nft("add table inet other");
    world.inside.nft("add chain inet other look { type filter hook output priority 0 ; }");
    world.inside.nft("add rule inet other look ct state established counter");
    let listener = world.outside.listen(DENIED);
    let mut tries = 0;
    let (guard, mut leaked, mut far) = loop {
        let guard = Guard::start(&world, plan(), "a.test");
        world.inside.connect(AGENT, DENIED).unwrap_err();
        world.tear_down();
        // The repair may be faster than we are.
        if let Ok(stream) = world.inside.connect(AGENT, DENIED) {
            break (guard, stream, listener.accept().unwrap().0);
        }
        guard.end();
        tries += 1;
        assert!(tries < 50, "there is never a gap");
    };
    guard.said.recv_timeout(PATIENCE).unwrap();
    guard.admit("a.test", &[FIRST4]);
    leaked.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(std::io::Write::write_all(&mut leaked, b"must not arrive"));
    let error = std::io::Read::read(&mut leaked, &mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut flow = Flow::open(&world, &format!("{FIRST4}:443"));
    flow.works();
    assert!(!world.wire.seen_until(b"must not arrive", b"there"));
    nothing_came(&mut far);
}

/// A second start finds what an earlier life left, with other content, and no packet passes while it takes over.
fn f26_takeovers_let_nothing_through(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let sink = world.outside.udp(ROOT, &format!("{OUTSIDE4}:9999"));
    let to = format!("{OUTSIDE4}:9999");
    world.inside.send(AGENT, &to, "open").unwrap();
    sink.recv(&mut [0; 8]).unwrap();
    // An earlier life's table: other chains, an element, and closed.
    world.kernel().load(&lockdown(), &Edit::default()).unwrap();
    world.leave_behind();
    let inner = world.inside.udp(ROOT, &format!("{BOX4}:7000"));
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = world.inside.udp(AGENT, "0.0.0.0:0");
            while !stop.load(Ordering::Relaxed) {
                drop(socket.send_to(b"must not arrive", &to));
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let socket = world.outside.udp(ROOT, "0.0.0.0:0");
            while !stop.load(Ordering::Relaxed) {
                drop(socket.send_to(b"must not come in", format!("{BOX4}:7000")));
            }
        });
        for life in 0..50 {
            let before = sent.load(Ordering::Relaxed);
            let guard = Guard::start(&world, plan(), "a.test");
            guard.admit("a.test", &[SECOND4]);
            if life % 2 == 0 {
                guard.firewall.lockdown().unwrap();
            }
            while sent.load(Ordering::Relaxed) < before + 20 {
                std::thread::yield_now();
            }
            guard.end();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!world.listing().iter().any(|line| line.contains(OUTSIDE4)));
    // What comes after it arrives, so what was let through would be there before.
    world.tear_down();
    world.inside.send(AGENT, &to, "gap").unwrap();
    world.outside.send(ROOT, &format!("{BOX4}:7000"), "gap").unwrap();
    for socket in [&sink, &inner] {
        let mut first = [0; 64];
        let length = socket.recv(&mut first).unwrap();
        assert_eq!(first.get(..length), Some(&b"gap"[..]));
    }
}

on_every_backend! {
    t46_changed_rules_are_noticed_and_repaired,
    t46_a_lost_table_is_noticed_and_repaired,
    t46_changed_elements_are_noticed_and_repaired,
    t46_flows_that_were_let_on_or_ended_are_noticed_and_repaired,
    t46_a_flow_from_a_gap_ends_with_it,
    f26_takeovers_let_nothing_through,
}
