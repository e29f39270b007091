//! A box whose only way out is to ask the gate: nothing is redirected, and no connection is tracked.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use innkeeper::config;
use innkeeper::firewall::backend::Edit;
use innkeeper::firewall::detect::{Scope, candidates, choose};
use innkeeper::firewall::ground::Candidate;
use innkeeper::firewall::programs::{Answer, Direct, Failure, Job, Programs, ProgramsError};
use innkeeper::firewall::ruleset::{FirewallPlan, GateMode, GatePlan, skeleton};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::place::{
    AGENT, BOX4, DNS, FIRST4, FIRST6, Guard, Kind, OUTSIDE4, PATIENCE, RESOLVER4, ROOT, SECOND4, UPSTREAM4,
    World, open,
};
use super::{nothing_waits, plan, received};

const GATE: u32 = 902;
const PROXY: &str = "127.0.0.1:3128";

fn proxied() -> FirewallPlan {
    let v4 = PROXY.parse().unwrap();
    let gate = GatePlan { mode: GateMode::Proxy, uid: GATE, v4, v6: None, ports: vec![], proxy: None };
    FirewallPlan { gate: Some(gate), ..plan() }
}

fn talk(mut one: &TcpStream, mut other: &TcpStream) {
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    one.write_all(b"there").unwrap();
    other.read_exact(&mut [0; 5]).unwrap();
    other.write_all(b"back!").unwrap();
    one.read_exact(&mut [0; 5]).unwrap();
}

fn refused(world: &World, uid: u32, to: &str) {
    let error = world.inside.connect(uid, to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to} as {uid}");
}

fn the_gate_is_the_only_way_out(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let allowed = [format!("{FIRST4}:443"), format!("{FIRST4}:22"), format!("[{FIRST6}]:443")];
    let denied = [format!("{SECOND4}:443"), format!("{FIRST4}:8443")];
    let far: Vec<TcpListener> = allowed.iter().chain(&denied).map(|to| world.outside.listen(to)).collect();
    for (to, listener) in allowed.iter().chain(&denied).zip(&far) {
        talk(&world.inside.connect(AGENT, to).unwrap(), &listener.accept().unwrap().0);
    }
    let guard = Guard::start(&world, proxied(), "a.test:443,22");
    for to in &allowed {
        refused(&world, GATE, to);
    }
    guard.admit("a.test", &[FIRST4, FIRST6]);
    for (to, listener) in allowed.iter().zip(&far) {
        talk(&world.inside.connect(GATE, to).unwrap(), &listener.accept().unwrap().0);
        for uid in [AGENT, DNS, ROOT] {
            refused(&world, uid, to);
            world.inside.send(uid, to, "must not arrive").unwrap_err();
        }
    }
    for to in &denied {
        refused(&world, GATE, to);
    }
    world.inside.send(GATE, &allowed[0], "must not arrive").unwrap_err();
    assert!(far.iter().all(nothing_waits));
    // It is asked on loopback, which is open but for the resolver's rules.
    let proxy = world.inside.listen(PROXY);
    talk(&world.inside.connect(AGENT, PROXY).unwrap(), &proxy.accept().unwrap().0);
    let answering = world.inside.run(GATE, || proxy.try_clone().unwrap());
    let client = world.inside.connect(AGENT, PROXY).unwrap();
    talk(&client, &world.inside.run(GATE, || answering.accept().unwrap().0));
    let own = world.inside.listen(&format!("{BOX4}:8000"));
    talk(&world.inside.connect(AGENT, &format!("{BOX4}:8000")).unwrap(), &own.accept().unwrap().0);
    refused(&world, GATE, &format!("{BOX4}:8000"));
    guard.end();
    world.tear_down();
    world.inside.send(AGENT, &format!("{OUTSIDE4}:9"), "open again").unwrap();
    assert!(!world.wire.seen_until(b"must not arrive", b"open again"));
}

/// What removing a rule closes ends, and what an address rotated away from does not.
fn flows_of_the_gate_go_on_and_end(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, proxied(), "a.test;b.test");
    guard.admit("a.test", &[FIRST4]);
    guard.admit("b.test", &[SECOND4]);
    let dial = |to: &str| {
        let listener = world.outside.listen(to);
        let client = world.inside.connect(GATE, to).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let (mut client, mut remote) = dial(&format!("{FIRST4}:443"));
    let other = dial(&format!("{SECOND4}:443"));
    talk(&client, &remote);
    for i in 0..2_u8 {
        let rotated: Vec<String> = (0..100).map(|k| format!("12.0.{i}.{k}")).collect();
        guard.admit("a.test", &rotated.iter().map(String::as_str).collect::<Vec<_>>());
    }
    refused(&world, GATE, &format!("{FIRST4}:443"));
    talk(&client, &remote);
    guard.policy("b.test");
    drop(client.write_all(b"must not arrive"));
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    talk(&other.0, &other.1);
    super::place::nothing_came(&mut remote);
    assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
}

/// Nothing is known of a flow, so every beginning is judged by who makes it, also at a port where one was.
fn a_beginning_is_judged_by_its_uid(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&proxied()), &Edit::default()).unwrap();
    kernel.admit(&[open(FIRST4, 443)]).unwrap();
    let to: SocketAddr = format!("{FIRST4}:443").parse().unwrap();
    let far = world.outside.listen(&to.to_string());
    let client = world.inside.connect(GATE, &to.to_string()).unwrap();
    let from = client.local_addr().unwrap();
    let served = far.accept().unwrap().0;
    talk(&client, &served);
    for (place, stream) in [(&world.inside, client), (&world.outside, served)] {
        place.run(ROOT, || setsockopt(&stream, sockopt::TcpRepair, &1).unwrap());
    }
    let again = |uid| {
        world.inside.run(uid, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&from.into()).unwrap();
            socket.connect_timeout(&to.into(), PATIENCE).map(|()| TcpStream::from(socket))
        })
    };
    assert_eq!(again(AGENT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(nothing_waits(&far));
    far.set_nonblocking(false).unwrap();
    talk(&again(GATE).unwrap(), &far.accept().unwrap().0);
}

/// Nobody begins a connection from outside: not from an address that is open, nor an upstream.
fn nobody_comes_in(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let listener = world.inside.listen(&format!("{BOX4}:8080"));
    let inner = world.inside.udp(ROOT, &format!("{BOX4}:8080"));
    let calls = |from: &str, patience: Duration| {
        let (from, to): (SocketAddr, SocketAddr) =
            (from.parse().unwrap(), format!("{BOX4}:8080").parse().unwrap());
        world.outside.run(ROOT, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&from.into()).unwrap();
            socket.connect_timeout(&to.into(), patience).map(|()| TcpStream::from(socket))
        })
    };
    let from = [format!("{FIRST4}:443"), format!("{UPSTREAM4}:53"), format!("{OUTSIDE4}:0")];
    for from in &from {
        setsockopt(
            &calls(from, PATIENCE).unwrap(),
            sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .unwrap();
        listener.accept().unwrap();
    }
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&proxied()), &Edit::default()).unwrap();
    kernel.admit(&[open(FIRST4, 443)]).unwrap();
    for from in &from {
        calls(from, Duration::from_millis(200)).unwrap_err();
    }
    assert!(nothing_waits(&listener));
    world.outside.send(ROOT, &format!("{BOX4}:8080"), "must not come in").unwrap();
    world.tear_down();
    world.outside.send(ROOT, &format!("{BOX4}:8080"), "open again").unwrap();
    assert_eq!(received(&inner).0, "open again");
}

/// The resolver is asked where it is; no other one answers.
fn questions_go_to_the_worker_by_address(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&proxied()), &Edit::default()).unwrap();
    for (worker, any) in [("127.0.0.53:53", "127.0.0.1:0"), ("[::1]:53", "[::1]:0")] {
        for owner in [ROOT, DNS] {
            let server = world.inside.udp(ROOT, worker);
            let client = world.inside.udp(AGENT, any);
            client.send_to(b"question", worker).unwrap();
            let (question, from) = received(&server);
            assert_eq!(question, "question");
            world.inside.run(owner, || server.send_to(b"answer", from)).unwrap();
            assert_eq!(received(&client).0, "answer");
        }
    }
    let upstream = world.outside.udp(ROOT, &format!("{UPSTREAM4}:53"));
    let question = world.inside.udp(DNS, "0.0.0.0:0");
    question.send_to(b"question", upstream.local_addr().unwrap()).unwrap();
    let (_, from) = received(&upstream);
    upstream.send_to(b"answer", from).unwrap();
    assert_eq!(received(&question).0, "answer");
    for (uid, to) in [(AGENT, RESOLVER4), (AGENT, UPSTREAM4), (GATE, UPSTREAM4), (DNS, RESOLVER4)] {
        world.inside.send(uid, &format!("{to}:53"), "must not arrive").unwrap_err();
        refused(&world, uid, &format!("{to}:53"));
    }
    let port = super::next_port();
    let _far = world.outside.listen(&format!("{OUTSIDE4}:{port}"));
    kernel.admit(&[open(OUTSIDE4, port)]).unwrap();
    world.inside.connect(GATE, &format!("{OUTSIDE4}:{port}")).unwrap().write_all(b"last of all").unwrap();
    assert!(!world.wire.seen_until(b"must not arrive", b"last of all"));
}

/// A kernel without connection tracking and redirection, as the programs say it.
#[derive(Debug)]
struct Plain;

impl Programs for Plain {
    fn perform(&self, job: &Job) -> Result<Vec<Answer>, ProgramsError> {
        let (Job::Restore(_, texts), lacks) = (job, ["conntrack", "connmark", "CONNMARK", "*nat", "*mangle"])
        else {
            return Direct.perform(job);
        };
        let answer = |(family, text): &(innkeeper::firewall::ruleset::Family, String)| {
            let lack = lacks.iter().find(|lack| text.contains(**lack));
            let failure = lack
                .map(|lack| Failure { missing: false, said: format!("iptables-restore: unknown {lack}") });
            Answer { family: *family, tables: Vec::new(), failure }
        };
        Ok(texts.iter().map(answer).collect())
    }
}

#[test]
fn where_nothing_is_tracked_or_redirected_a_proxy_can_be_all_the_same() {
    let Some(world) = World::new() else { return };
    let wanted = config::Backend::Iptables;
    let look = |mode| {
        world.inside.run(ROOT, move || candidates(&Plain, Scope::First(config::Backend::Iptables), mode))
    };
    let why = choose(wanted, &look(GateMode::Redirect)).unwrap_err();
    assert!(why.contains("CONFIG_NETFILTER_XT_MATCH_CONNTRACK"), "{why}");
    let found = choose(wanted, &look(GateMode::Proxy)).unwrap();
    assert_eq!(found, Kind::NftIpset.candidate());
    let nft =
        world.inside.run(ROOT, || candidates(&Direct, Scope::First(config::Backend::Auto), GateMode::Proxy));
    assert_eq!(nft, [Candidate::usual()]);
}

/// Nothing of it asks for connection tracking: the kernel does none, not even beside it.
fn no_connection_is_tracked(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&proxied()), &Edit::default()).unwrap();
    kernel.admit(&[open(FIRST4, 443)]).unwrap();
    let to = format!("{FIRST4}:443");
    let far = world.outside.listen(&to);
    talk(&world.inside.connect(GATE, &to).unwrap(), &far.accept().unwrap().0);
    let tracked = || {
        let count = "/proc/sys/net/netfilter/nf_conntrack_count";
        world.inside.run(ROOT, || std::fs::read_to_string(count)).unwrap_or_default()
    };
    assert!(["", "0"].contains(&tracked().trim()), "{}", tracked());
    // The others do track.
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    kernel.admit(&[open(FIRST4, 443)]).unwrap();
    talk(&world.inside.connect(AGENT, &to).unwrap(), &far.accept().unwrap().0);
    assert_ne!(tracked().trim(), "0");
}

on_every_backend! {
    the_gate_is_the_only_way_out,
    flows_of_the_gate_go_on_and_end,
    a_beginning_is_judged_by_its_uid,
    nobody_comes_in,
    questions_go_to_the_worker_by_address,
    no_connection_is_tracked,
}
