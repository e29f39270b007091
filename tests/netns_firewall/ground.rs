//! What is found by trying, what is left of others, and how one way to program the kernel takes over from another: F05,
//! F07, F26, F27.

use std::io::ErrorKind;
use std::sync::Arc;

use innkeeper::config;
use innkeeper::firewall::backend::{BackendError, Edit};
use innkeeper::firewall::detect::{Scope, candidates, choose, plainest};
use innkeeper::firewall::ground::{Backend, Candidate, Offer, Storage};
use innkeeper::firewall::iptables::IptablesError;
use innkeeper::firewall::iptables::render::{Form, render};
use innkeeper::firewall::programs::{Answer, Direct, Failure, Job, Programs, ProgramsError};
use innkeeper::firewall::ruleset::{
    EngineDns, Family, FirewallPlan, GateMode, Transport, lockdown, skeleton,
};

use super::place::{
    AGENT, BOX4, BOX6, DNS, FIRST4, FIRST6, Flow, Guard, Kind, OUTSIDE4, OUTSIDE6, ROOT, SECOND4, UPSTREAM4,
    World, open,
};
use super::{plan, received};

const TOOLS: [&str; 4] = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

/// The names of the legacy variant's tables: looking at a table would make it.
fn legacy_tables(world: &World) -> String {
    let names = ["ip_tables_names", "ip6_tables_names"];
    let read = |name: &&str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
    world.inside.run(ROOT, || names.iter().map(read).collect())
}

#[test]
fn f07_everything_is_found_by_trying_and_nothing_is_left() {
    let Some(world) = World::new() else { return };
    let before = world.inside.nft("list ruleset");
    let try_it = |scope| world.inside.run(ROOT, move || candidates(&Direct, scope, GateMode::Redirect));
    let found = try_it(Scope::First(config::Backend::Auto));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0], Candidate::usual());
    assert_eq!(world.inside.nft("list ruleset"), before);
    assert_eq!(legacy_tables(&world), "", "nothing was looked at that is not there");
    let found = try_it(Scope::First(config::Backend::Iptables));
    assert_eq!(found, [Kind::NftIpset.candidate()]);
    assert_eq!(legacy_tables(&world), "");
    let found = try_it(Scope::All);
    let backends: Vec<Backend> = found.iter().map(|candidate| candidate.backend).collect();
    assert_eq!(backends, [Backend::Nftables, Backend::IptablesNft, Backend::IptablesLegacy]);
    assert!(found.iter().all(|candidate| candidate.fit() && candidate.no_log.is_none()), "{found:?}");
    assert_eq!(found[2], Kind::LegacyIpset.candidate());
    assert_eq!(world.inside.program("ipset", "list -n"), "");
    for program in TOOLS {
        for table in ["filter", "nat", "mangle"] {
            let listed = world.inside.program(program, &format!("-t {table} -S"));
            assert!(!listed.contains("INNKEEPER"), "{listed}");
        }
    }
}

/// A kernel or an image that lacks a part: the program says so, as the real one does.
#[derive(Debug)]
struct Lacking {
    what: &'static str,
    missing: bool,
}

impl Programs for Lacking {
    fn perform(&self, job: &Job) -> Result<Vec<Answer>, ProgramsError> {
        let Job::Restore(_, texts) = job else { return Direct.perform(job) };
        let answer = |(family, text): &(Family, String)| {
            let failure = text.contains(self.what).then(|| Failure {
                missing: self.missing,
                said: format!("iptables-restore: unknown {}", self.what),
            });
            Answer { family: *family, tables: Vec::new(), failure }
        };
        Ok(texts.iter().map(answer).collect())
    }
}

#[test]
fn f05_f07_what_is_missing_costs_what_needs_it_and_is_named() {
    let Some(world) = World::new() else { return };
    let found = |what, missing| {
        let lacking = Lacking { what, missing };
        world
            .inside
            .run(ROOT, || candidates(&lacking, Scope::First(config::Backend::Iptables), GateMode::Redirect))
            .remove(0)
    };
    assert_eq!(found("--match-set", false).storage, Storage::Rules);
    assert!(!found("--comment", false).comments);
    let quiet = found("NFLOG", false);
    assert!(quiet.fit() && quiet.no_log.unwrap().contains("CONFIG_NETFILTER_XT_TARGET_NFLOG"));
    let six = found("[::1]:53", false);
    assert!(
        six.ipv4.opens()
            && six.fit()
            && matches!(&six.ipv6, Offer::Closed(why) if why.contains("IP6_NF_NAT"))
    );
    assert_eq!(six.closed(), [Family::V6]);
    // Neither family can be redirected: nothing could be opened.
    let none = found("*nat", false);
    let why = choose(config::Backend::Iptables, &[none]).unwrap_err();
    assert!(why.contains("CONFIG_IP_NF_NAT") && why.contains("CONFIG_IP6_NF_NAT"), "{why}");
    let image = found("*filter", true);
    let why = choose(config::Backend::Iptables, &[image]).unwrap_err();
    assert!(why.contains("iptables"), "{why}");
}

/// What a program says, and about which line, reaches the operator.
#[test]
fn a_refused_line_is_named() {
    for kind in [Kind::NftIpset, Kind::LegacyIpset] {
        let Some(world) = World::on(kind) else { return };
        let mut kernel = world.kernel();
        kernel.load(&lockdown(), &Edit::default()).unwrap();
        let sound = world.listing();
        let mut broken = skeleton(&plan());
        broken.chains[2].rules[0].actions = vec![innkeeper::firewall::ruleset::Action::Goto("nowhere")];
        let refused = kernel.load(&broken, &Edit::default()).unwrap_err();
        let said = innkeeper::report::chain(&refused);
        assert!(matches!(refused, BackendError::Iptables(IptablesError::Failed { .. })), "{said}");
        if kind == Kind::NftIpset {
            assert!(said.contains("INNKEEPER-NOWHERE"), "{said}");
        }
        let filter = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| line.contains("FORWARD")).cloned().collect()
        };
        assert_eq!(filter(&sound), filter(&world.listing()), "still closed");
        world.inside.send(AGENT, &format!("{OUTSIDE4}:443"), "must not arrive").unwrap_err();
    }
}

/// The text that is loaded is what iptables lists, word for word, in both variants.
#[test]
fn the_text_is_what_iptables_lists() {
    let full = FirewallPlan {
        engine_dns: Some(EngineDns { forwards_to: vec!["192.0.2.1:53".parse().unwrap()] }),
        inbound: vec![(Transport::Tcp, 22), (Transport::Udp, 8080)],
        closed_loopback: vec!["127.0.0.1:15001".parse().unwrap(), "[::]:9000".parse().unwrap()],
        vm: true,
        gate: super::gate::gate(),
        ..plan()
    };
    for kind in [Kind::NftIpset, Kind::NftRules, Kind::LegacyIpset, Kind::LegacyRules] {
        let Some(world) = World::on(kind) else { return };
        let mut kernel = world.kernel();
        let sets = (kind.storage() == Storage::Ipset).then_some(1);
        let content = Edit { hold: vec![(FIRST4.parse().unwrap(), 443)], ..Edit::default() };
        kernel.load(&skeleton(&full), &content).unwrap();
        for (family, six) in [(Family::V4, ""), (Family::V6, "6")] {
            let rendered = render(&skeleton(&full), family, Form { sets, comments: true }, &content);
            for body in rendered.bodies {
                let program = kind.program().unwrap().replacen("ip", &format!("ip{six}"), 1);
                let listed = world.inside.program(&program, &format!("-t {} -S", body.table));
                for (chain, rules) in body.chains {
                    let start = format!("-A {chain} ");
                    let found = listed.lines().filter_map(|line| line.strip_prefix(&start));
                    let found: Vec<String> = found.map(|rule| rule.replace("\\'", "'")).collect();
                    assert_eq!(found, rules, "{chain} of {program}");
                }
            }
        }
    }
}

/// F27: chains, rules, policies and counters of others, in both variants and in nf_tables, through a whole life.
fn f27_others_rules_stay_as_they_were(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    for program in TOOLS {
        for line in [
            "-N DOCKER",
            "-A DOCKER -m mark --mark 0x7 -j RETURN",
            "-I OUTPUT -m mark --mark 0x9 -j ACCEPT",
            "-A FORWARD -j DOCKER",
            "-P FORWARD DROP",
            "-t nat -N DOCKER_OUTPUT",
            "-t nat -A OUTPUT -p udp -m udp --dport 9 -j DOCKER_OUTPUT",
        ] {
            world.inside.program(program, line);
        }
    }
    world.inside.nft("add table inet foreign");
    world.inside.nft("add chain inet foreign output { type filter hook output priority 10 ; }");
    world.inside.nft("add rule inet foreign output meta mark 7 counter accept");
    // Something that counts.
    world.inside.send(AGENT, &format!("{OUTSIDE4}:9"), "counted").unwrap();
    let others = || {
        let mut all = Vec::new();
        for program in TOOLS {
            for table in ["filter", "nat"] {
                let listed = world.inside.program(program, &format!("-t {table} -v -S"));
                // Policies count what our jump let come so far; the rest is as it was, octet for octet.
                let theirs = listed.lines().filter(|line| !line.contains("INNKEEPER"));
                all.extend(theirs.map(|line| match line.strip_prefix("-P ") {
                    Some(policy) => policy.split(" -c").next().unwrap().to_owned(),
                    None => line.to_owned(),
                }));
            }
        }
        all.push(world.inside.nft("list table inet foreign"));
        all
    };
    let before = others();
    let guard = Guard::start(&world, plan(), "a.test");
    assert_eq!(before, others());
    guard.admit("a.test", &[FIRST4]);
    Flow::open(&world, &format!("{FIRST4}:443"));
    guard.policy("b.test");
    guard.firewall.lockdown().unwrap();
    world.inside.send(AGENT, &format!("{FIRST4}:443"), "must not arrive").unwrap_err();
    assert_eq!(before, others());
}

/// What we let pass still meets the rules of others: an administrator's refusal, and Docker's own redirection of its
/// resolver, without which the DNS worker would not reach it.
fn f27_others_rules_still_count(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let program = kind.program().unwrap_or("iptables-nft");
    let docker = "-p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:41234";
    world.inside.program(program, &format!("-t nat -A OUTPUT -d 127.0.0.11/32 {docker}"));
    world.inside.program(program, &format!("-A OUTPUT -d {SECOND4}/32 -p tcp -j REJECT"));
    let upstreams = vec!["127.0.0.11:53".parse().unwrap()];
    let guard = Guard::start(&world, FirewallPlan { upstreams, ..plan() }, "a.test;b.test");
    guard.admit("a.test", &[FIRST4]);
    guard.admit("b.test", &[SECOND4]);
    Flow::open(&world, &format!("{FIRST4}:443"));
    let _listens = world.outside.listen(&format!("{SECOND4}:443"));
    let refused = world.inside.connect(AGENT, &format!("{SECOND4}:443")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let engine = world.inside.udp(ROOT, "127.0.0.11:41234");
    let worker = world.inside.udp(DNS, "127.0.0.1:0");
    worker.send_to(b"question", "127.0.0.11:53").unwrap();
    assert_eq!(received(&engine).0, "question");
}

/// F26: whatever closed the box before, by whatever way, is gone once the next way's rules are in, and nothing passed in
/// between; a second time changes nothing.
#[test]
fn f26_one_way_takes_over_from_another() {
    let kinds = [Kind::Nftables, Kind::NftIpset, Kind::LegacyRules];
    for (first, then) in kinds.iter().flat_map(|first| kinds.iter().map(move |then| (*first, *then))) {
        let Some(mut world) = World::on(first) else { return };
        let former = Guard::start(&world, plan(), "a.test");
        former.admit("a.test", &[FIRST4, FIRST6]);
        former.end();
        world.kind = then;
        for _ in 0..2 {
            let guard = Guard::start(&world, plan(), "a.test");
            world.inside.connect(AGENT, &format!("{FIRST4}:443")).unwrap_err();
            guard.admit("a.test", &[FIRST4]);
            Flow::open(&world, &format!("{FIRST4}:443"));
            assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
            guard.end();
        }
        for kind in kinds.into_iter().filter(|kind| *kind != then) {
            world.kind = kind;
            let left = match kind.program() {
                None => world.inside.nft("list tables").contains("innkeeper"),
                Some(_) => {
                    let listed = world.listing();
                    listed.iter().any(|line| line.contains("INNKEEPER"))
                }
            };
            assert!(!left, "{first:?} then {then:?}: {kind:?} is left");
        }
    }
}

/// The first lockdown is nf_tables' wherever the kernel has it, and goes once iptables' rules were read back.
#[test]
fn f26_the_lockdown_gives_way_to_iptables_rules_when_they_are_in() {
    for kind in [Kind::NftIpset, Kind::LegacyRules] {
        let Some(world) = World::on(kind) else { return };
        let guard = Guard::closed(&world);
        assert_eq!(guard.firewall.backend(), "nftables");
        world.inside.send(AGENT, &format!("{FIRST4}:443"), "must not arrive").unwrap_err();
        guard.firewall.choose(Arc::new(Direct), kind.candidate()).unwrap();
        assert!(world.inside.nft("list tables").contains("innkeeper"), "it stays until then");
        guard.load(plan(), "a.test");
        assert!(!world.inside.nft("list tables").contains("innkeeper"));
        assert!(guard.firewall.backend().starts_with("iptables ("), "{}", guard.firewall.backend());
        world.inside.connect(AGENT, &format!("{FIRST4}:443")).unwrap_err();
        guard.admit("a.test", &[FIRST4]);
        Flow::open(&world, &format!("{FIRST4}:443"));
    }
}

/// A kernel without nf_tables: the legacy variant closes the box with what needs least, and what was found by trying
/// takes over in the same tables.
#[test]
fn f05_without_nf_tables_legacy_rules_close_the_box() {
    let Some(world) = World::on(Kind::LegacyIpset) else { return };
    let guard = Guard::unloaded(&world);
    guard.firewall.choose(Arc::new(Direct), plainest()).unwrap();
    world.inside.send(AGENT, &format!("{FIRST4}:443"), "while open").unwrap();
    world.wire.wait_for(b"while open");
    guard.firewall.lockdown().unwrap();
    assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
    for to in [format!("{FIRST4}:443"), format!("[{FIRST6}]:443"), "127.0.0.1:7001".into()] {
        world.inside.send(AGENT, &to, "must not arrive").unwrap_err();
    }
    guard.firewall.choose(Arc::new(Direct), Kind::LegacyIpset.candidate()).unwrap();
    guard.load(plan(), "a.test");
    assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
    assert_eq!(guard.firewall.backend(), "iptables (legacy), ipset");
    world.inside.send(AGENT, &format!("{FIRST4}:443"), "must not arrive").unwrap_err();
    guard.admit("a.test", &[FIRST4]);
    Flow::open(&world, &format!("{FIRST4}:443"));
}

/// A family that can't be opened safely: nothing goes out or comes in, loopback works, the other family is as ever, and
/// its addresses are never opened.
fn t25_a_closed_family_is_closed(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    for (closed, other, address, other_address, inside) in
        [(Family::V6, Family::V4, OUTSIDE6, FIRST4, BOX6), (Family::V4, Family::V6, OUTSIDE4, FIRST6, BOX4)]
    {
        assert_ne!(closed, other);
        let at =
            |address: &str, port: u16| std::net::SocketAddr::new(address.parse().unwrap(), port).to_string();
        let target = at(address, 443);
        let _listens = world.outside.listen(&target);
        let own = world.inside.listen(&at(inside, 8080));
        let guard = Guard::start(
            &world,
            FirewallPlan { closed: vec![closed], inbound: vec![(Transport::Tcp, 8080)], ..plan() },
            "a.test",
        );
        let learned = guard.learn("a.test", &[address, other_address]);
        assert_eq!(learned, [other_address.parse::<std::net::IpAddr>().unwrap()], "{closed}");
        let refused = world.inside.connect(AGENT, &target).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        world.inside.send(AGENT, &target, "must not arrive").unwrap_err();
        world.inside.send(DNS, &at(address, 53), "must not arrive").unwrap_err();
        world.inside.connect(AGENT, &at(inside, 8080)).unwrap();
        own.accept().unwrap();
        Flow::open(&world, &at(other_address, 443));
        // Nobody gets in, not even where the operator opened a port: answers could not be told from questions.
        world.outside.send(ROOT, &at(inside, 8080), "must not come in").unwrap();
        let worker = if closed == Family::V4 { "127.0.0.53:53" } else { "[::1]:53" };
        // PID 1 opened it.
        let server = world.inside.udp(ROOT, worker);
        let client = world.inside.udp(AGENT, if closed == Family::V4 { "127.0.0.1:0" } else { "[::1]:0" });
        client.send_to(b"question", worker).unwrap();
        let (question, from) = received(&server);
        assert_eq!(question, "question");
        server.send_to(b"answer", from).unwrap();
        assert_eq!(received(&client).0, "answer");
        guard.end();
    }
    assert!(world.inside.send(DNS, &format!("{UPSTREAM4}:53"), "must not arrive").is_err());
    world.tear_down();
    world.inside.send(AGENT, &format!("{OUTSIDE4}:443"), "open again").unwrap();
    assert!(!world.wire.seen_until(b"must not arrive", b"open again"));
}

/// T203: a packet without a socket (a reset that the kernel sends for a port nobody has) meets the same verdict.
fn t203_rules_by_uid_are_positive(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    // Loopback is open to packets that nobody owns: the refusal of a closed port is one.
    let refused = world.inside.connect(AGENT, "127.0.0.1:8099").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    kernel.admit(&[open(OUTSIDE4, 443)]).unwrap();
    let flow = Flow::open(&world, &format!("{OUTSIDE4}:443"));
    drop(flow);
    // Its last packets belong to no socket any more, and another connection is not hurt.
    Flow::open(&world, &format!("{OUTSIDE4}:443"));
}

on_every_backend! {
    f27_others_rules_stay_as_they_were,
    f27_others_rules_still_count,
    t25_a_closed_family_is_closed,
    t203_rules_by_uid_are_positive,
}
