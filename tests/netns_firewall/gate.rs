//! What the rules do around the egress gate, which is played by listeners of the test. T47, T49, T52 and T62 rest on it:
//! nobody but the gate reaches a gated port, whatever address is open.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::time::Duration;

use innkeeper::firewall::backend::Edit;
use innkeeper::firewall::ground::Storage;
use innkeeper::firewall::ruleset::{Family, FirewallPlan, GateMode, GatePlan, skeleton};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::place::{
    AGENT, BOX4, BOX6, Confined, DNS, FIRST4, FIRST6, Flow, Guard, Kind, OUTSIDE4, PATIENCE, PRIVATE4, ROOT,
    SECOND4, World, open,
};
use super::{nothing_waits, plan, received};

const GATE: u32 = 902;
/// Somebody else whose processes the agent's code might run as.
const OTHER: u32 = 1001;
const SOCKET4: &str = "127.0.0.53:11443";
const SOCKET6: &str = "[::1]:11443";

pub(crate) fn gate() -> Option<GatePlan> {
    let (v4, v6) = (SOCKET4.parse().unwrap(), Some(SOCKET6.parse().unwrap()));
    Some(GatePlan { mode: GateMode::Redirect, uid: GATE, v4, v6, ports: vec![80, 443], proxy: None })
}

fn gated() -> FirewallPlan {
    FirewallPlan { gate: gate(), ..plan() }
}

fn loaded(world: &World) -> Confined<'_> {
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&gated()), &Edit::default()).unwrap();
    kernel
}

/// Where a redirected connection was going, as the gate will ask.
fn original(stream: &TcpStream) -> SocketAddr {
    match stream.local_addr().unwrap() {
        SocketAddr::V4(_) => {
            let found = getsockopt(stream, sockopt::OriginalDst).unwrap();
            let octets = found.sin_addr.s_addr.to_ne_bytes();
            SocketAddrV4::new(octets.into(), u16::from_be(found.sin_port)).into()
        }
        SocketAddr::V6(_) => {
            let found = getsockopt(stream, sockopt::Ip6tOriginalDst).unwrap();
            let octets = found.sin6_addr.s6_addr;
            SocketAddrV6::new(octets.into(), u16::from_be(found.sin6_port), 0, 0).into()
        }
    }
}

/// Bytes go both ways between these two ends.
fn talks<'a>(mut one: &'a TcpStream, mut other: &'a TcpStream) {
    for stream in [one, other] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    one.write_all(b"there").unwrap();
    other.write_all(b"back!").unwrap();
    for (stream, expected) in [(&mut other, b"there"), (&mut one, b"back!")] {
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, expected);
    }
}

fn refused(world: &World, uid: u32, to: &str) {
    let error = world.inside.connect(uid, to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to} as {uid}");
}

/// Both families, whether the address is open or not; other ports as ever.
fn connections_to_gated_ports_meet_the_gate(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let targets = [format!("{FIRST4}:443"), format!("{SECOND4}:80"), format!("[{FIRST6}]:443")];
    let far: Vec<TcpListener> = targets.iter().map(|to| world.outside.listen(to)).collect();
    for (to, listener) in targets.iter().zip(&far) {
        let client = world.inside.connect(AGENT, to).unwrap();
        talks(&client, &listener.accept().unwrap().0);
    }
    let mut kernel = loaded(&world);
    let (four, six) = (world.inside.listen(SOCKET4), world.inside.listen(SOCKET6));
    for is_open in [false, true] {
        for to in &targets {
            let target: SocketAddr = to.parse().unwrap();
            if is_open {
                kernel.admit(&[open(&target.ip().to_string(), target.port())]).unwrap();
            }
            for uid in [AGENT, ROOT] {
                let client = world.inside.connect(uid, to).unwrap();
                let (served, _) = if target.is_ipv4() { &four } else { &six }.accept().unwrap();
                assert_eq!(original(&served), target);
                talks(&client, &served);
            }
        }
    }
    assert!(far.iter().all(nothing_waits), "nothing arrived but what the gate would send");
    kernel.admit(&[open(FIRST4, 8443)]).unwrap();
    Flow::open(&world, &format!("{FIRST4}:8443"));
}

fn what_stays_in_the_box_is_not_redirected(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let _kernel = loaded(&world);
    let gates = [world.inside.listen(SOCKET4), world.inside.listen(SOCKET6)];
    for to in [
        "127.0.0.1:443".to_owned(),
        "127.0.0.1:80".to_owned(),
        "127.9.9.9:443".to_owned(),
        "[::1]:443".to_owned(),
        format!("{BOX4}:443"),
        format!("[{BOX6}]:80"),
    ] {
        let own = world.inside.listen(&to);
        let client = world.inside.connect(AGENT, &to).unwrap();
        assert!(gates.iter().all(nothing_waits), "{to}");
        talks(&client, &own.accept().unwrap().0);
    }
}

/// Closed, not open: with nobody at the gate's socket, and where the family has no gate at all.
fn without_the_gate_its_ports_are_closed(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let v4_alone = FirewallPlan { gate: gate().map(|gate| GatePlan { v6: None, ..gate }), ..plan() };
    for plan in [gated(), v4_alone] {
        let mut kernel = world.kernel();
        kernel.load(&skeleton(&plan), &Edit::default()).unwrap();
        kernel.admit(&[open(FIRST4, 443), open(FIRST6, 443), open(FIRST4, 80)]).unwrap();
        for to in [format!("{FIRST4}:443"), format!("[{FIRST6}]:443"), format!("{FIRST4}:80")] {
            let far = world.outside.listen(&to);
            for uid in [AGENT, ROOT, DNS] {
                refused(&world, uid, &to);
            }
            assert!(nothing_waits(&far));
            far.set_nonblocking(false).unwrap();
            // The same address is open to who may.
            let client = world.inside.connect(GATE, &to).unwrap();
            talks(&client, &far.accept().unwrap().0);
        }
    }
}

fn the_gate_goes_to_open_addresses_on_gated_ports_and_nowhere_else(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let all = [
        format!("{FIRST4}:443"),
        format!("{FIRST4}:8443"),
        format!("{SECOND4}:443"),
        format!("{OUTSIDE4}:53"),
    ];
    let far: Vec<TcpListener> = all.iter().map(|to| world.outside.listen(to)).collect();
    let own = ["127.0.0.1:8000".to_owned(), format!("{BOX4}:443")];
    let near: Vec<TcpListener> = own.iter().map(|to| world.inside.listen(to)).collect();
    for (to, listener) in all.iter().zip(&far).chain(own.iter().zip(&near)) {
        let client = world.inside.connect(GATE, to).unwrap();
        talks(&client, &listener.accept().unwrap().0);
    }
    let mut kernel = loaded(&world);
    kernel.admit(&[open(FIRST4, 443), open(FIRST4, 8443)]).unwrap();
    let client = world.inside.connect(GATE, &all[0]).unwrap();
    talks(&client, &far[0].accept().unwrap().0);
    for to in all.iter().skip(1).chain(&own) {
        refused(&world, GATE, to);
    }
    for to in [&all[0], &all[1], &own[0]] {
        world.inside.send(GATE, to, "must not arrive").unwrap_err();
    }
    refused(&world, GATE, SOCKET4);
    assert!(far.iter().chain(&near).all(nothing_waits));
    // It asks as everybody does.
    let worker = world.inside.udp(ROOT, "127.0.0.53:53");
    let question = world.inside.udp(GATE, "127.0.0.1:0");
    question.send_to(b"question", "127.0.0.53:53").unwrap();
    let (text, from) = received(&worker);
    assert_eq!(text, "question");
    worker.send_to(b"answer", from).unwrap();
    assert_eq!(received(&question).0, "answer");
    // The others go where the gate may not.
    let client = world.inside.connect(AGENT, &all[1]).unwrap();
    talks(&client, &far[1].accept_again());
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

trait AcceptAgain {
    fn accept_again(&self) -> TcpStream;
}

impl AcceptAgain for TcpListener {
    fn accept_again(&self) -> TcpStream {
        self.set_nonblocking(false).unwrap();
        self.accept().unwrap().0
    }
}

fn the_gate_is_met_by_redirection_alone(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let sockets = [(SOCKET4, format!("{FIRST4}:443")), (SOCKET6, format!("[{FIRST6}]:443"))];
    let gates: Vec<TcpListener> = sockets.iter().map(|(socket, _)| world.inside.listen(socket)).collect();
    for ((socket, _), listener) in sockets.iter().zip(&gates) {
        world.inside.connect(AGENT, socket).unwrap();
        listener.accept().unwrap();
    }
    let _kernel = loaded(&world);
    for ((socket, redirected), listener) in sockets.iter().zip(&gates) {
        for uid in [AGENT, ROOT, DNS, GATE] {
            refused(&world, uid, socket);
        }
        assert!(nothing_waits(listener));
        let client = world.inside.connect(AGENT, redirected).unwrap();
        talks(&client, &listener.accept_again());
    }
}

/// `SO_BINDTODEVICE` makes a redirected packet leave over the device that it names.
fn a_connection_bound_to_a_device_carries_nothing_out(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = loaded(&world);
    kernel.admit(&[open(FIRST4, 443)]).unwrap();
    let far = world.outside.listen(&format!("{FIRST4}:443"));
    let gate = world.inside.listen(SOCKET4);
    let connect = |device: &'static [u8]| {
        world.inside.run(AGENT, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind_device(Some(device)).unwrap();
            let to: SocketAddr = format!("{FIRST4}:443").parse().unwrap();
            socket.connect_timeout(&to.into(), Duration::from_millis(200))
        })
    };
    // The destination that a redirected packet has.
    let redirected = &[127, 0, 0, 53][..];
    for device in [&b"eth0"[..], b"lo"] {
        connect(device).unwrap_err();
    }
    assert!(nothing_waits(&far) && nothing_waits(&gate));
    assert!(!world.leaked(&mut kernel, redirected));
    // Without the guard it leaves: the test sees what it is for.
    world.empty("postrouting");
    connect(b"eth0").unwrap_err();
    assert!(world.leaked(&mut kernel, redirected));
}

/// A socket that is gone without a word, as of a process on a machine that lost its power.
fn vanish(world: &World, stream: TcpStream) {
    world.inside.run(ROOT, || setsockopt(&stream, sockopt::TcpRepair, &1).unwrap());
    drop(stream);
}

/// Somebody takes over the port that a connection began at.
fn take_over(world: &World, uid: u32, from: SocketAddr, to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    world.inside.run(uid, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).map(|()| socket.into())
    })
}

/// Connection tracking takes a SYN within a flow that it remembers for a part of it. It must be judged as what it is: the
/// beginning of a connection.
fn a_syn_within_a_remembered_flow_is_judged_anew(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    for address in [FIRST4.to_owned(), format!("[{FIRST6}]")] {
        let mut kernel = loaded(&world);
        let bare = address.trim_matches(['[', ']']);
        kernel.admit(&[open(bare, 8443), open(bare, 443)]).unwrap();

        // While it may, it does: the flow is remembered, and the SYN passes by the rule for beginnings.
        let to = format!("{address}:8443");
        let far = world.outside.listen(&to);
        let client = world.inside.connect(AGENT, &to).unwrap();
        let from = client.local_addr().unwrap();
        let mut ended = vec![far.accept().unwrap().0];
        vanish(&world, client);
        vanish_there(&world, ended.pop().unwrap());
        let client = take_over(&world, OTHER, from, &to).unwrap();
        let (served, _) = far.accept().unwrap();
        talks(&client, &served);
        vanish(&world, client);
        vanish_there(&world, served);
        kernel.withdraw(&[(bare.parse().unwrap(), 8443)]).unwrap();
        let error = take_over(&world, OTHER, from, &to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(nothing_waits(&far));

        // What the gate began is nobody else's, though the address is open: to the gate.
        let to = format!("{address}:443");
        let far = world.outside.listen(&to);
        let client = world.inside.connect(GATE, &to).unwrap();
        let from = client.local_addr().unwrap();
        let served = far.accept().unwrap().0;
        talks(&client, &served);
        vanish(&world, client);
        vanish_there(&world, served);
        let error = take_over(&world, AGENT, from, &to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(nothing_waits(&far));
        // The gate itself may take the port again.
        far.set_nonblocking(false).unwrap();
        let client = take_over(&world, GATE, from, &to).unwrap();
        talks(&client, &far.accept().unwrap().0);
    }
}

fn vanish_there(world: &World, stream: TcpStream) {
    world.outside.run(ROOT, || setsockopt(&stream, sockopt::TcpRepair, &1).unwrap());
    drop(stream);
}

/// The other way round: who is open for the box's connections begins none, though one to the same port was just tried.
fn a_syn_from_outside_is_no_part_of_a_flow(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = loaded(&world);
    kernel.admit(&[open(FIRST4, 8443)]).unwrap();
    // Nobody answers: what is outside drops it.
    world.outside.nft("add table inet mute");
    world.outside.nft("add chain inet mute input { type filter hook input priority 0 ; }");
    world.outside.nft("add rule inet mute input tcp dport 8443 tcp flags & (syn|ack) == syn drop");
    let from: SocketAddr = format!("{BOX4}:30300").parse().unwrap();
    let to: SocketAddr = format!("{FIRST4}:8443").parse().unwrap();
    let calls = |world: &World, patience: Duration| {
        let socket = world.outside.run(ROOT, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&to.into()).unwrap();
            socket
        });
        world.outside.run(ROOT, || socket.connect_timeout(&from.into(), patience))
    };
    let beginning = world.inside.run(AGENT, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&to.into()).unwrap_err();
        socket
    });
    world.inside.run(ROOT, || setsockopt(&beginning, sockopt::TcpRepair, &1).unwrap());
    drop(beginning);
    let listener = world.inside.listen(&format!("{BOX4}:30300"));
    assert!(calls(&world, Duration::from_millis(200)).is_err());
    assert!(nothing_waits(&listener));
    // It is what it looks like: without our rules it arrives.
    world.tear_down();
    calls(&world, PATIENCE).unwrap();
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
}

/// The last packets of the gate's connections have no socket, and are no denials.
fn ended_connections_of_the_gate_are_no_denials(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = loaded(&world);
    kernel.admit(&[open(FIRST4, 443), open(FIRST6, 443)]).unwrap();
    let gates = [world.inside.listen(SOCKET4), world.inside.listen(SOCKET6)];
    for (to, gate) in [format!("{FIRST4}:443"), format!("[{FIRST6}]:443")].iter().zip(&gates) {
        let far = world.outside.listen(to);
        for near_first in [true, false] {
            let agent = world.inside.connect(AGENT, to).unwrap();
            let (served, _) = gate.accept().unwrap();
            let client = world.inside.connect(GATE, to).unwrap();
            let (mut remote, _) = far.accept().unwrap();
            talks(&agent, &served);
            talks(&client, &remote);
            // In order, and each of them acknowledged by a socket that is gone.
            if near_first {
                drop((client, served, agent));
                assert_eq!(remote.read(&mut [0; 1]).unwrap(), 0);
                drop(remote);
            } else {
                drop(remote);
                (&client).read_exact(&mut [0; 1]).unwrap_err();
                drop((client, served, agent));
            }
        }
        // What comes for a socket that is gone is answered with a reset.
        let client = world.inside.connect(GATE, to).unwrap();
        let (mut remote, _) = far.accept().unwrap();
        vanish(&world, client);
        remote.write_all(b"too late").unwrap();
        let error = remote.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(kernel.denied().unwrap(), 0);
}

/// A port becomes the gate's and stops being so, while connections live.
fn ports_come_and_go_in_a_living_box(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, gated(), "a.test:443,22,8443;b.test:8443");
    guard.admit("a.test", &[FIRST4, FIRST6]);
    guard.admit("b.test", &[SECOND4]);
    let gates = [world.inside.listen(SOCKET4), world.inside.listen(SOCKET6)];
    let mut direct = Flow::open(&world, &format!("{FIRST4}:8443"));
    let mut six = Flow::open(&world, &format!("[{FIRST6}]:8443"));
    let mut other = Flow::open(&world, &format!("{FIRST4}:22"));
    assert!(!guard.firewall.rules().unwrap().contains("tcp dport 8443"));

    let marked = "a.test:443,22;a.test:8443 tls;b.test:8443";
    guard.policy(marked);
    assert!(guard.firewall.rules().unwrap().contains("tcp dport 8443 dnat ip to 127.0.0.53:11443"));
    assert_eq!(guard.firewall.verify(), Ok("rules as loaded".to_owned()));
    direct.is_cut();
    six.is_cut();
    other.works();
    for (to, gate) in [
        (format!("{FIRST4}:8443"), &gates[0]),
        (format!("{SECOND4}:8443"), &gates[0]),
        (format!("[{FIRST6}]:8443"), &gates[1]),
    ] {
        let far = world.outside.listen(&to);
        let client = world.inside.connect(AGENT, &to).unwrap();
        let (served, _) = gate.accept().unwrap();
        assert_eq!(original(&served), to.parse().unwrap());
        talks(&client, &served);
        let client = world.inside.connect(GATE, &to).unwrap();
        talks(&client, &far.accept().unwrap().0);
    }
    // A change that gates nothing else disturbs nothing.
    let to = format!("{FIRST4}:8443");
    let far = world.outside.listen(&to);
    let client = world.inside.connect(AGENT, &to).unwrap();
    let (served, _) = gates[0].accept().unwrap();
    let upward = world.inside.connect(GATE, &to).unwrap();
    let (remote, _) = far.accept().unwrap();
    guard.policy(&format!("{marked};c.test"));
    talks(&client, &served);
    talks(&upward, &remote);
    // No mark any more: direct again, and what goes through the gate goes on.
    guard.policy("a.test:443,22,8443;b.test:8443");
    talks(&client, &served);
    talks(&upward, &remote);
    drop(far);
    Flow::open(&world, &to);
    refused(&world, GATE, &to);
    other.works();
    // What the rules refused before they were replaced counts.
    assert!(guard.firewall.report().denied >= 2);
}

/// No packet passes while rules are replaced: neither to an address that is closed, nor around the gate.
fn a_change_of_ports_lets_nothing_through(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, gated(), "a.test:443,22");
    guard.admit("a.test", &[FIRST4]);
    let _gate = world.inside.listen(SOCKET4);
    let far =
        [world.outside.listen(&format!("{FIRST4}:443")), world.outside.listen(&format!("{SECOND4}:22"))];
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            world.inside.run(AGENT, || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for to in [format!("{FIRST4}:443"), format!("{SECOND4}:22")] {
                        drop(TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE));
                    }
                }
            });
        });
        for round in 0..20_u16 {
            guard.policy(&format!("a.test:443,22;a.test:{} tls", 7000 + round));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(far.iter().all(nothing_waits));
    Flow::open(&world, &format!("{FIRST4}:22"));
}

/// T46: an address that somebody took from the gate, or gave to it.
fn t46_the_gates_own_pairs_are_looked_after(kind: Kind) {
    let tampers: &[&str] = match kind.storage() {
        Storage::Sets => &["nft flush chain inet innkeeper gated", "nft flush chain inet innkeeper flows"],
        Storage::Ipset => &["iptables -F INNKEEPER-GATED", "iptables -t nat -F INNKEEPER-RESOLVER"],
        Storage::Rules => &[
            "iptables -D INNKEEPER-GATED-OPEN4 1",
            "iptables -I INNKEEPER-GATED-OPEN4 -d 9.9.9.9/32 -p tcp -m tcp --dport 443 -j RETURN",
            "iptables -I INNKEEPER-OUTPUT-OPEN4 -d 9.9.9.9/32 -p tcp -m tcp --dport 443 -g INNKEEPER-USED",
        ],
    };
    for tamper in tampers {
        let Some(world) = World::on(kind) else { return };
        let guard = Guard::start(&world, gated(), "a.test");
        guard.admit("a.test", &[FIRST4]);
        let sound = world.listing();
        world.tamper(tamper);
        let said = guard.said.recv_timeout(PATIENCE).unwrap();
        assert!(said.ends_with("; repaired"), "{said}");
        assert_eq!(sound, world.listing());
    }
}

/// Where a family can't be redirected, the gate has no business in it and is not to be met.
fn in_a_closed_family_there_is_no_gate(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let guard = Guard::start(&world, FirewallPlan { closed: vec![Family::V6], ..gated() }, "a.test");
    guard.admit("a.test", &[FIRST4]);
    let far = world.outside.listen(&format!("[{FIRST6}]:443"));
    let gates = [world.inside.listen(SOCKET4), world.inside.listen(SOCKET6)];
    for uid in [AGENT, GATE] {
        refused(&world, uid, &format!("[{FIRST6}]:443"));
        refused(&world, uid, SOCKET6);
    }
    assert!(nothing_waits(&far) && nothing_waits(&gates[1]));
    let client = world.inside.connect(AGENT, &format!("{FIRST4}:443")).unwrap();
    talks(&client, &gates[0].accept().unwrap().0);
    let own = world.inside.listen("[::1]:443");
    world.inside.connect(AGENT, "[::1]:443").unwrap();
    own.accept().unwrap();
}

/// A host that reaches the world through a proxy alone, given by its address.
fn the_proxy_that_the_host_needs_is_the_gates_alone(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let to = format!("{PRIVATE4}:3128");
    let far = world.outside.listen(&to);
    for mode in [GateMode::Redirect, GateMode::Proxy] {
        far.set_nonblocking(false).unwrap();
        talks(&world.inside.connect(AGENT, &to).unwrap(), &far.accept().unwrap().0);
        let without = FirewallPlan { gate: gate(), ..plan() }.by(mode);
        let mut kernel = world.kernel();
        kernel.load(&skeleton(&without), &Edit::default()).unwrap();
        refused(&world, GATE, &to);
        let gate = gate().map(|gate| GatePlan { proxy: Some(to.parse().unwrap()), ..gate });
        kernel.load(&skeleton(&FirewallPlan { gate, ..plan() }.by(mode)), &Edit::default()).unwrap();
        let client = world.inside.connect(GATE, &to).unwrap();
        let (mut remote, _) = far.accept().unwrap();
        talks(&client, &remote);
        for uid in [AGENT, ROOT, DNS] {
            refused(&world, uid, &to);
        }
        refused(&world, GATE, &format!("{PRIVATE4}:3129"));
        let denied = kernel.denied().unwrap();
        vanish(&world, client);
        remote.write_all(b"too late").unwrap();
        assert_eq!(remote.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(kernel.denied().unwrap(), denied);
        assert!(nothing_waits(&far));
        world.tear_down();
    }
}

on_every_backend! {
    the_proxy_that_the_host_needs_is_the_gates_alone,
    connections_to_gated_ports_meet_the_gate,
    what_stays_in_the_box_is_not_redirected,
    without_the_gate_its_ports_are_closed,
    the_gate_goes_to_open_addresses_on_gated_ports_and_nowhere_else,
    the_gate_is_met_by_redirection_alone,
    a_connection_bound_to_a_device_carries_nothing_out,
    a_syn_within_a_remembered_flow_is_judged_anew,
    a_syn_from_outside_is_no_part_of_a_flow,
    ended_connections_of_the_gate_are_no_denials,
    ports_come_and_go_in_a_living_box,
    a_change_of_ports_lets_nothing_through,
    t46_the_gates_own_pairs_are_looked_after,
    in_a_closed_family_there_is_no_gate,
}
