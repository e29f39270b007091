//! T36: what becomes of a connection when its rule does not.

use std::io::{ErrorKind, Read, Write};

use innkeeper::allowlist::DomainName;
use innkeeper::firewall::ruleset::{FirewallPlan, Transport};

use super::place::{
    AGENT, BOX4, FIRST4, FIRST6, Flow, Guard, Kind, OUTSIDE4, PRIVATE4, ROOT, SECOND4, World, nothing_came,
};
use super::plan;

fn t36_removing_a_rule_ends_its_flows_and_no_others(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, plan(), "a.test;b.test");
    guard.admit("a.test", &[FIRST4, FIRST6]);
    guard.admit("b.test", &[SECOND4]);
    let (four, six) = (format!("{FIRST4}:443"), format!("[{FIRST6}]:443"));
    let mut talks = [Flow::open(&world, &four), Flow::open(&world, &six)];
    let mut listens = [Flow::open(&world, &four), Flow::open(&world, &six)];
    let mut other = Flow::open(&world, &format!("{SECOND4}:443"));
    let own = world.inside.listen(&format!("{BOX4}:8001"));
    let mut inner = world.inside.connect(AGENT, &format!("{BOX4}:8001")).unwrap();
    let (mut served, _) = own.accept().unwrap();

    guard.policy("b.test");
    // Outside in: what is sent after it on the same wire arrives, so it would be there.
    for flow in &mut listens {
        flow.far.write_all(b"must not come in").unwrap();
    }
    other.works();
    for flow in &mut listens {
        nothing_came(&mut flow.agent);
    }
    for flow in &mut talks {
        flow.is_cut();
    }
    other.agent.write_all(b"last of all").unwrap();
    assert!(!world.wire.seen_until(b"must not arrive", b"last of all"));
    other.far.read_exact(&mut [0; 11]).unwrap();
    other.works();
    inner.write_all(b"inside").unwrap();
    served.read_exact(&mut [0; 6]).unwrap();
    served.write_all(b"inside").unwrap();
    inner.read_exact(&mut [0; 6]).unwrap();
    for to in [&four, &six] {
        assert_eq!(world.inside.connect(AGENT, to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    // Allowed again, it is as before.
    guard.policy("a.test;b.test");
    guard.admit("a.test", &[FIRST4, FIRST6]);
    for to in [&four, &six] {
        Flow::open(&world, to);
    }
    other.works();
}

/// One port of a rule, one word of it, a name that shares its address.
fn t36_only_what_the_rule_lost_ends(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, plan(), "a.test:443,8443;git.test private;c.test");
    guard.admit("a.test", &[FIRST4]);
    guard.admit("c.test", &[SECOND4]);
    guard.admit("git.test", &[SECOND4, PRIVATE4]);
    let mut kept = Flow::open(&world, &format!("{FIRST4}:443"));
    let mut port = Flow::open(&world, &format!("{FIRST4}:8443"));
    let mut private = Flow::open(&world, &format!("{PRIVATE4}:443"));
    let mut shared = Flow::open(&world, &format!("{SECOND4}:443"));
    guard.policy("a.test:443;git.test;c.test");
    port.is_cut();
    private.is_cut();
    kept.works();
    shared.works();
    guard.policy("a.test:443;c.test");
    shared.works();
    guard.policy("a.test:443");
    shared.is_cut();
    kept.works();
    // Adding disturbs nothing, and is open at once for what is known.
    guard.policy("a.test:443,8443");
    kept.works();
    Flow::open(&world, &format!("{FIRST4}:8443"));
}

/// An address that the name lost by rotation is closed, but who is connected stays so, until the rule goes.
fn t36_flows_to_former_addresses_end_with_the_rule_and_not_before(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, plan(), "cdn.test;*.w.test");
    guard.admit("cdn.test", &[FIRST4]);
    guard.admit("x.w.test", &[SECOND4]);
    let mut former = Flow::open(&world, &format!("{FIRST4}:443"));
    for i in 0..2_u8 {
        let rotated: Vec<String> = (0..100).map(|k| format!("12.0.{i}.{k}")).collect();
        guard.admit("cdn.test", &rotated.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let refused = world.inside.connect(AGENT, &format!("{FIRST4}:443")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    former.works();
    let claims = guard.firewall.claims(vec![
        (FIRST4.parse().unwrap(), 443),
        (SECOND4.parse().unwrap(), 443),
        (OUTSIDE4.parse().unwrap(), 443),
    ]);
    let names = |text: &str| vec![DomainName::parse(text).unwrap()];
    assert_eq!(claims, [names("cdn.test"), names("x.w.test"), vec![]]);
    guard.policy("*.w.test");
    former.is_cut();
    Flow::open(&world, &format!("{SECOND4}:443"));
}

/// What was connected before the box closed is nobody's allowed work: neither outward nor inward. The operator's own
/// connections begin anew.
fn flows_that_are_older_than_the_box_end(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    // Connection tracking begins with the first rule that asks for it.
    world.inside.nft("add table inet other");
    world.inside.nft("add chain inet other look { type filter hook output priority 0 ; }");
    world.inside.nft("add rule inet other look ct state established counter");
    let mut outward = Flow::open(&world, &format!("{FIRST4}:443"));
    let (closed, opened) =
        (world.inside.listen(&format!("{BOX4}:8080")), world.inside.listen(&format!("{BOX4}:22")));
    let inward = |port: u16| world.outside.connect(ROOT, &format!("{BOX4}:{port}")).unwrap();
    let (mut guest, mut older) = (inward(8080), inward(22));
    let (mut inner, mut older_shell) = (closed.accept().unwrap().0, opened.accept().unwrap().0);
    for stream in [&mut guest, &mut older] {
        stream.write_all(b"hello").unwrap();
    }
    for stream in [&mut inner, &mut older_shell] {
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    let plan = FirewallPlan { inbound: vec![(Transport::Tcp, 22)], ..plan() };
    let _guard = Guard::start(&world, plan, "a.test");
    outward.is_cut();
    guest.write_all(b"must not come in").unwrap();
    let mut operator = inward(22);
    let mut shell = opened.accept().unwrap().0;
    operator.write_all(b"ls").unwrap();
    shell.read_exact(&mut [0; 2]).unwrap();
    shell.write_all(b"ok").unwrap();
    operator.read_exact(&mut [0; 2]).unwrap();
    nothing_came(&mut inner);
    inner.write_all(b"must not go out").unwrap();
    older_shell.write_all(b"nor must this").unwrap();
    shell.write_all(b"last of all").unwrap();
    operator.read_exact(&mut [0; 11]).unwrap();
    nothing_came(&mut guest);
    nothing_came(&mut older);
    assert!(!world.wire.seen_until(b"must not go out", b"last of all"));
}

on_every_backend! {
    t36_removing_a_rule_ends_its_flows_and_no_others,
    t36_only_what_the_rule_lost_ends,
    t36_flows_to_former_addresses_end_with_the_rule_and_not_before,
    flows_that_are_older_than_the_box_end,
}
