//! The firewall in real network namespaces: what passes is judged where it arrives, never by the sender's error.
//!
//! The outside holds public addresses without being connected to anything. Needs root and `nft`.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[macro_use]
#[path = "netns_firewall/place.rs"]
mod place;

#[path = "netns_firewall/drift.rs"]
mod drift;
#[path = "netns_firewall/flows.rs"]
mod flows;
#[path = "netns_firewall/gate.rs"]
mod gate;
#[path = "netns_firewall/ground.rs"]
mod ground;
#[path = "netns_firewall/platform.rs"]
mod platform;
#[path = "netns_firewall/proxy.rs"]
mod proxy;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use innkeeper::firewall::backend::{Edit, Element};
use innkeeper::firewall::ground::Storage;
use innkeeper::firewall::nftables::{Nftables, NftablesError};
use innkeeper::firewall::ruleset::{
    Action, EngineDns, FirewallPlan, GateMode, Transport, lockdown, skeleton,
};

use place::{
    AGENT, BOX4, BOX6, DNS, Kind, OUTSIDE4, OUTSIDE6, RESOLVER4, RESOLVER6, ROOT, UPSTREAM4, World,
    allow_ping, next_port, open, ping,
};

fn plan() -> FirewallPlan {
    FirewallPlan {
        dns_uid: DNS,
        dns_v4: "127.0.0.53:53".parse().unwrap(),
        dns_v6: Some("[::1]:53".parse().unwrap()),
        upstreams: vec![format!("{UPSTREAM4}:53").parse().unwrap()],
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

fn received(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

fn nothing_waits(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn the_text_is_what_the_kernel_lists() {
    let Some(world) = World::on(Kind::Nftables) else { return };
    let mut kernel = world.nftables();
    let full = FirewallPlan {
        engine_dns: Some(EngineDns { forwards_to: vec!["192.0.2.1:53".parse().unwrap()] }),
        inbound: vec![(Transport::Tcp, 22), (Transport::Udp, 8080)],
        ssh_from: vec!["fdaa::/16".parse().unwrap(), "2001:db8:10::/45".parse().unwrap()],
        closed_loopback: vec!["127.0.0.1:15001".parse().unwrap(), "[::]:9000".parse().unwrap()],
        vm: true,
        ..plan()
    };
    let gated = FirewallPlan { gate: gate::gate(), ..full.clone() };
    let proxied = gated.clone().by(GateMode::Proxy);
    for ruleset in [lockdown(), skeleton(&plan()), skeleton(&full), skeleton(&gated), skeleton(&proxied)] {
        kernel.load(&ruleset, &Edit::default()).unwrap();
        let ours = world.inside.nft("list table inet innkeeper");
        world.inside.nft("delete table inet innkeeper");
        world.inside.nft_load(&ruleset.to_string());
        let theirs = world.inside.nft("list table inet innkeeper");
        assert_eq!(ours, theirs, "netlink and text differ");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&ours), words(&ruleset.to_string()));
    }
}

fn lockdown_lets_nothing_out_in_or_around(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let tries = [format!("{RESOLVER4}:53"), format!("[{RESOLVER6}]:53"), format!("{OUTSIDE4}:443")];
    for to in &tries {
        world.inside.send(AGENT, to, "arrives while open").unwrap();
        world.wire.wait_for(b"arrives while open");
    }
    let inside4 = world.inside.udp(ROOT, &format!("{BOX4}:7000"));
    let inside6 = world.inside.udp(ROOT, &format!("[{BOX6}]:7000"));
    let around = world.inside.udp(ROOT, "127.0.0.1:7001");
    for (socket, to, from) in [
        (&inside4, format!("{BOX4}:7000"), &world.outside),
        (&inside6, format!("[{BOX6}]:7000"), &world.outside),
        (&around, "127.0.0.1:7001".into(), &world.inside),
    ] {
        from.send(AGENT, &to, "open").unwrap();
        assert_eq!(received(socket).0, "open");
    }

    world.kernel().load(&lockdown(), &Edit::default()).unwrap();
    for uid in [AGENT, DNS, ROOT] {
        for to in &tries {
            world.inside.send(uid, to, "must not arrive").unwrap_err();
        }
        world.inside.send(uid, "127.0.0.1:7001", "must not arrive").unwrap_err();
    }
    world.outside.send(ROOT, &format!("{BOX4}:7000"), "must not come in").unwrap();
    world.outside.send(ROOT, &format!("[{BOX6}]:7000"), "must not come in").unwrap();

    world.tear_down();
    for (socket, to, from) in [
        (&inside4, format!("{BOX4}:7000"), &world.outside),
        (&inside6, format!("[{BOX6}]:7000"), &world.outside),
        (&around, "127.0.0.1:7001".into(), &world.inside),
    ] {
        from.send(AGENT, &to, "open again").unwrap();
        assert_eq!(received(socket).0, "open again");
    }
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

/// T03, T04, T25: hard-coded resolvers, both families and transports, and the answer seems to come from them.
fn every_question_goes_to_the_worker(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    for to in [format!("{RESOLVER4}:53"), format!("[{RESOLVER6}]:53")] {
        world.inside.send(AGENT, &to, "arrives while open").unwrap();
        world.wire.wait_for(b"arrives while open");
    }
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    let direct = [("127.0.0.53:53", "127.0.0.53:53", "127.0.0.1:0"), ("[::1]:53", "[::1]:53", "[::]:0")];
    let (four, six) = (format!("{RESOLVER4}:53"), format!("[{RESOLVER6}]:53"));
    let hard_coded = [
        ("127.0.0.53:53", &four[..], "0.0.0.0:0"),
        ("[::1]:53", &six[..], "[::]:0"),
        ("127.0.0.53:53", "127.0.0.1:53", "0.0.0.0:0"),
    ];
    for (worker, resolver, any) in direct.into_iter().chain(hard_coded) {
        let (udp, tcp) = (world.inside.udp(ROOT, worker), world.inside.listen(worker));
        let client = world.inside.udp(AGENT, any);
        client.send_to(b"question-token", resolver).unwrap();
        let (question, from) = received(&udp);
        assert_eq!(question, "question-token");
        udp.send_to(b"answer", from).unwrap();
        assert_eq!(received(&client), ("answer".into(), resolver.parse().unwrap()));

        let mut stream = world.inside.connect(AGENT, resolver).unwrap();
        let (mut served, _) = tcp.accept().unwrap();
        stream.write_all(b"question-token").unwrap();
        let mut bytes = [0; 14];
        served.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"question-token");
    }
    assert!(!world.leaked(&mut kernel, b"question-token"));
}

/// A host without ::1: questions over IPv6 are refused, not let out.
fn without_a_worker_on_ipv6_its_questions_are_refused(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&FirewallPlan { dns_v6: None, ..plan() }), &Edit::default()).unwrap();
    world.inside.send(AGENT, &format!("[{RESOLVER6}]:53"), "must not arrive").unwrap_err();
    let refused = world.inside.connect(AGENT, &format!("[{RESOLVER6}]:53")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

/// `SO_BINDTODEVICE` needs no privilege, and makes a redirected packet leave over the device that it names.
fn a_socket_bound_to_a_device_carries_nothing_out(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    let bound = |any: &str| {
        let socket = world.inside.udp(AGENT, any);
        world.inside.run(AGENT, || socket2::SockRef::from(&socket).bind_device(Some(b"eth0")).unwrap());
        socket
    };
    for (any, to) in [
        ("0.0.0.0:0", format!("{RESOLVER4}:53")),
        ("0.0.0.0:0", "127.0.0.53:53".into()),
        ("[::]:0", format!("[{RESOLVER6}]:53")),
    ] {
        bound(any).send_to(b"must not arrive", &to).unwrap_err();
    }
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
    // Without the guard it leaves: the test sees what it is for.
    world.empty("postrouting");
    bound("0.0.0.0:0").send_to(b"guard is out", format!("{RESOLVER4}:53")).unwrap();
    assert!(world.leaked(&mut kernel, b"guard is out"));
}

fn upstreams_serve_the_worker_alone(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    let upstream = world.outside.udp(ROOT, &format!("{UPSTREAM4}:53"));
    let question = world.inside.udp(DNS, "0.0.0.0:0");
    let port = question.local_addr().unwrap().port();
    question.send_to(b"from the worker", upstream.local_addr().unwrap()).unwrap();
    let (text, from) = received(&upstream);
    assert_eq!(text, "from the worker");
    upstream.send_to(b"answer", from).unwrap();
    assert_eq!(received(&question).0, "answer");
    // Another port, another resolver: not even the worker.
    for to in [format!("{UPSTREAM4}:5353"), format!("{RESOLVER4}:53"), format!("{OUTSIDE4}:443")] {
        world.inside.send(DNS, &to, "must not arrive").unwrap_err();
    }
    // Nor what is open to the agent.
    kernel.admit(&[open(OUTSIDE4, 443)]).unwrap();
    let (outside, inside) = (format!("{OUTSIDE4}:443"), "127.0.0.1:8000");
    let _listeners = (world.outside.listen(&outside), world.inside.listen(inside));
    for to in [&outside, inside] {
        world.inside.connect(AGENT, to).unwrap();
        let refused = world.inside.connect(DNS, to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    // Conntrack still remembers the worker's flow; whoever takes over its port must not inherit it.
    drop(question);
    let heir = world.inside.udp(AGENT, &format!("0.0.0.0:{port}"));
    heir.send_to(b"must not arrive", upstream.local_addr().unwrap()).unwrap_err();
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

/// T200, T202: Docker's resolver on any port, and its own forwarding as uid 0.
fn the_engines_resolver_belongs_to_the_worker(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let engine = world.inside.udp(ROOT, "127.0.0.11:41234");
    world.inside.send(AGENT, "127.0.0.11:41234", "open").unwrap();
    assert_eq!(received(&engine).0, "open");

    let mut kernel = world.kernel();
    let forwards_to = vec![format!("{UPSTREAM4}:53").parse().unwrap()];
    let engine_dns = Some(EngineDns { forwards_to });
    let upstreams = vec!["127.0.0.11:53".parse().unwrap()];
    kernel.load(&skeleton(&FirewallPlan { engine_dns, upstreams, ..plan() }), &Edit::default()).unwrap();
    for uid in [AGENT, ROOT] {
        world.inside.send(uid, "127.0.0.11:41234", "must not arrive").unwrap_err();
        let refused = world.inside.connect(uid, "127.0.0.11:41234").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    let worker = world.inside.udp(DNS, "127.0.0.1:0");
    worker.send_to(b"from the worker", "127.0.0.11:41234").unwrap();
    let (text, from) = received(&engine);
    assert_eq!(text, "from the worker");
    engine.send_to(b"answer", from).unwrap();
    assert_eq!(received(&worker).0, "answer");

    let upstream = world.outside.udp(ROOT, &format!("{UPSTREAM4}:53"));
    world.inside.send(ROOT, &format!("{UPSTREAM4}:53"), "forwarded").unwrap();
    assert_eq!(received(&upstream).0, "forwarded");
    let questions = world.inside.udp(ROOT, "127.0.0.53:53");
    world.inside.send(AGENT, &format!("{UPSTREAM4}:53"), "not forwarded").unwrap();
    assert_eq!(received(&questions).0, "not forwarded");
    assert!(!world.leaked(&mut kernel, b"not forwarded"));
}

/// T25, T27, T29, T34: only TCP, only the listed port, both families; the rest fails at once.
fn open_addresses_pass_on_their_port_alone(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    world.inside.run(ROOT, allow_ping);
    let listeners: Vec<_> = [OUTSIDE4.to_owned(), format!("[{OUTSIDE6}]")]
        .iter()
        .flat_map(|a| [443, 8443].map(|p| world.outside.listen(&format!("{a}:{p}"))))
        .collect();
    for listener in &listeners {
        world.inside.connect(AGENT, &listener.local_addr().unwrap().to_string()).unwrap();
        listener.accept().unwrap();
    }
    for to in [OUTSIDE4, OUTSIDE6] {
        world.inside.run(AGENT, || ping(to, "echo while open")).unwrap();
        world.wire.wait_for(b"echo while open");
    }
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    for listener in &listeners {
        let to = listener.local_addr().unwrap().to_string();
        let refused = world.inside.connect(AGENT, &to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    let before = kernel.denied().unwrap();
    assert!(before >= 4);
    kernel.admit(&[open(OUTSIDE4, 443), open(OUTSIDE6, 443)]).unwrap();
    for to in [OUTSIDE4, OUTSIDE6] {
        let at = |port: u16| SocketAddr::new(to.parse().unwrap(), port).to_string();
        let listener = listeners.iter().find(|l| l.local_addr().unwrap().to_string() == at(443)).unwrap();
        let mut stream = world.inside.connect(AGENT, &at(443)).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(world.inside.connect(AGENT, &at(8443)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        world.inside.send(AGENT, &at(443), "must not arrive").unwrap_err();
        // An ICMPv6 socket isn't told; the wire is.
        world.inside.run(AGENT, || ping(to, "must not arrive")).ok();
        // Not even root: policy is for the namespace, not for a process tree (T45).
        assert!(world.inside.connect(ROOT, &at(8443)).is_err());
    }
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
    assert!(kernel.denied().unwrap() >= before + 8);
}

/// Nobody knows a neighbour yet: the first packet needs discovery in both directions.
fn ipv6_finds_its_neighbours(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel
        .load(&skeleton(&FirewallPlan { inbound: vec![(Transport::Tcp, 2222)], ..plan() }), &Edit::default())
        .unwrap();
    kernel.admit(&[open(OUTSIDE6, 443)]).unwrap();
    let listener = world.outside.listen(&format!("[{OUTSIDE6}]:443"));
    world.inside.connect(AGENT, &format!("[{OUTSIDE6}]:443")).unwrap();
    listener.accept().unwrap();

    let Some(world) = World::on(kind) else { return };
    world
        .kernel()
        .load(&skeleton(&FirewallPlan { inbound: vec![(Transport::Tcp, 2222)], ..plan() }), &Edit::default())
        .unwrap();
    let opened = world.inside.listen(&format!("[{BOX6}]:2222"));
    world.outside.connect(AGENT, &format!("[{BOX6}]:2222")).unwrap();
    opened.accept().unwrap();
}

/// Where Innkeeper owns the kernel, root renews the lease, and the agent can't from the client's port.
fn a_lease_is_renewed_by_root_alone(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    let server = world.outside.udp(ROOT, &format!("{OUTSIDE4}:67"));
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    let client = world.inside.udp(ROOT, "0.0.0.0:68");
    client.send_to(b"must not arrive", format!("{OUTSIDE4}:67")).unwrap_err();
    kernel.load(&skeleton(&FirewallPlan { vm: true, ..plan() }), &Edit::default()).unwrap();
    client.send_to(b"renew", format!("{OUTSIDE4}:67")).unwrap();
    let (text, from) = received(&server);
    assert_eq!(text, "renew");
    server.send_to(b"lease", from).unwrap();
    assert_eq!(received(&client).0, "lease");
    drop(client);
    world.inside.run(ROOT, || std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap());
    let heir = world.inside.udp(AGENT, "0.0.0.0:68");
    heir.send_to(b"must not arrive", format!("{OUTSIDE4}:67")).unwrap_err();
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

/// The refusal of a datagram is the ICMP error that says so: `EHOSTUNREACH` in IPv4, `EACCES` in IPv6.
fn refused_datagrams_are_told_why(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    for (any, to, error) in [
        ("0.0.0.0:0", format!("{OUTSIDE4}:443"), nix::errno::Errno::EHOSTUNREACH),
        ("[::]:0", format!("[{OUTSIDE6}]:443"), nix::errno::Errno::EACCES),
    ] {
        let socket = world.inside.udp(AGENT, any);
        socket.connect(&to).unwrap();
        let _refused = socket.send(b"x");
        let told = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(error as i32), "{to}: {told}");
    }
}

fn inbound_is_closed_but_for_what_the_operator_opened(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let closed = world.inside.listen(&format!("{BOX4}:8080"));
    world.outside.connect(AGENT, &format!("{BOX4}:8080")).unwrap();
    closed.accept().unwrap();
    world
        .kernel()
        .load(
            &skeleton(&FirewallPlan {
                inbound: vec![(Transport::Tcp, 2222), (Transport::Udp, 2223)],
                ..plan()
            }),
            &Edit::default(),
        )
        .unwrap();
    let opened = world.inside.listen(&format!("{BOX4}:2222"));
    let udp = world.inside.udp(ROOT, &format!("{BOX4}:2222"));
    let attempt = socket2::Socket::from(std::os::fd::OwnedFd::from(world.outside.run(ROOT, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let to: SocketAddr = format!("{BOX4}:8080").parse().unwrap();
        assert!(socket.connect(&to.into()).is_err());
        socket
    })));
    world.outside.send(ROOT, &format!("{BOX4}:2222"), "must not arrive").unwrap();
    // What comes later on the same wire arrives: what came before was decided.
    let mut stream = world.outside.connect(AGENT, &format!("{BOX4}:2222")).unwrap();
    let (mut served, _) = opened.accept().unwrap();
    served.write_all(b"ok").unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    assert!(nothing_waits(&closed));
    udp.set_nonblocking(true).unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // T38: a port is opened for its transport alone, and is answered.
    let opened = world.inside.udp(ROOT, &format!("{BOX4}:2223"));
    let guest = world.outside.udp(ROOT, &format!("{OUTSIDE4}:0"));
    for (says, to) in [(&guest, &opened), (&opened, &guest)] {
        says.send_to(b"hello", to.local_addr().unwrap()).unwrap();
        assert_eq!(received(to).0, "hello");
    }
    drop(attempt);
}

/// T201: what listened before the box was closed, by address and by wildcard.
fn older_listeners_are_closed_and_the_rest_of_loopback_is_open(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let own = world.inside.listen("127.0.0.1:8000");
    let sidecars = [world.inside.listen("127.0.0.1:15001"), world.inside.listen("0.0.0.0:9000")];
    let ways = ["127.0.0.1:15001".to_owned(), "127.0.0.1:9000".into(), format!("{BOX4}:9000")];
    for way in &ways {
        world.inside.connect(AGENT, way).unwrap();
    }
    let closed_loopback = sidecars.iter().map(|s| s.local_addr().unwrap()).collect();
    world.kernel().load(&skeleton(&FirewallPlan { closed_loopback, ..plan() }), &Edit::default()).unwrap();
    for way in &ways {
        assert_eq!(
            world.inside.connect(AGENT, way).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{way}"
        );
    }
    world.inside.connect(AGENT, "127.0.0.1:8000").unwrap();
    own.accept().unwrap();
    let on_own_address = world.inside.listen(&format!("{BOX4}:8001"));
    world.inside.connect(AGENT, &format!("{BOX4}:8001")).unwrap();
    on_own_address.accept().unwrap();
}

/// Mere expiry ends nothing; taking the pair out of the held ones ends it (T36).
fn flows_outlive_their_element_and_new_ones_do_not(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    kernel.admit(&[open(OUTSIDE4, 443)]).unwrap();
    let listener = world.outside.listen(&format!("{OUTSIDE4}:443"));
    let mut stream = world.inside.connect(AGENT, &format!("{OUTSIDE4}:443")).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(place::PATIENCE)).unwrap();
    let short = Element { timeout: Duration::from_millis(50), ..open(OUTSIDE4, 443) };
    kernel.admit(&[short]).unwrap();
    while !kernel.elements().unwrap().is_empty() {
        std::thread::yield_now();
    }
    stream.write_all(b"still").unwrap();
    served.read_exact(&mut [0; 5]).unwrap();
    let refused = world.inside.connect(AGENT, &format!("{OUTSIDE4}:443")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    kernel.cut(&[(OUTSIDE4.parse().unwrap(), 443)]).unwrap();
    stream.write_all(b"must not arrive").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}

/// F31: renewal must change the expiry, longer and shorter, on every kernel.
fn renewal_changes_the_expiry(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    for address in [OUTSIDE4, OUTSIDE6] {
        for seconds in [60, 600, 30] {
            let timeout = Duration::from_secs(seconds);
            kernel.admit(&[Element { timeout, ..open(address, 443) }]).unwrap();
            let elements = kernel.elements().unwrap();
            let found = elements.iter().find(|e| e.address.to_string() == address).unwrap();
            assert!(found.timeout <= timeout && found.timeout > timeout / 2, "{found:?} for {timeout:?}");
            assert_eq!(found.port, 443);
        }
    }
    assert_eq!(kernel.elements().unwrap().len(), 2);
}

fn elements_come_and_go_in_any_number(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    kernel.admit(&[]).unwrap();
    kernel.withdraw(&[(OUTSIDE4.parse().unwrap(), 443)]).unwrap();
    let short = Element { timeout: Duration::from_secs(5), ..open(OUTSIDE4, 443) };
    kernel.admit(&[short, open(OUTSIDE6, 22), open(OUTSIDE4, 443), short]).unwrap();
    let found = kernel.elements().unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|e| e.timeout > Duration::from_secs(30)), "{found:?}");
    let (four, six) = if kind.storage() == Storage::Rules { (200_u32, 50_u128) } else { (10_000, 1_000) };
    let many: Vec<_> = (0..four)
        .map(|i| open(&std::net::Ipv4Addr::from(0x0b00_0000 + i).to_string(), 443))
        .chain((0..six).map(|i| open(&std::net::Ipv6Addr::from((0x2600 << 112) + i).to_string(), 443)))
        .collect();
    kernel.admit(&many).unwrap();
    kernel.admit(&many).unwrap();
    assert_eq!(kernel.elements().unwrap().len(), many.len() + 2);
    let pairs: Vec<_> = many.iter().chain(&found).map(|e| (e.address, e.port)).collect();
    kernel.withdraw(&pairs).unwrap();
    assert_eq!(kernel.elements().unwrap(), []);
}

#[test]
fn a_load_replaces_our_table_and_no_other() {
    let Some(world) = World::on(Kind::Nftables) else { return };
    world.inside.nft("add table inet foreign");
    world.inside.nft("add chain inet foreign output { type filter hook output priority 10 ; }");
    world.inside.nft("add table inet innkeeper");
    world.inside.nft("add chain inet innkeeper leftover");
    let foreign = world.inside.nft("list table inet foreign");
    let mut kernel = world.nftables();
    kernel.load(&lockdown(), &Edit::default()).unwrap();
    assert!(!world.inside.nft("list table inet innkeeper").contains("leftover"));
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    kernel.apply(&Edit { open: vec![open(OUTSIDE4, 443)], ..Edit::default() }).unwrap();
    // A rule set that the kernel refuses changes nothing, and the error says which rule it was.
    let mut broken = skeleton(&plan());
    broken.chains[2].rules[0].actions = vec![Action::Goto("nowhere")];
    let refused = kernel.load(&broken, &Edit::default()).unwrap_err();
    assert!(
        matches!(&refused, NftablesError::Refused { object, .. } if object.contains("nowhere")),
        "{refused}"
    );
    assert_eq!(kernel.elements().unwrap().len(), 1);
    kernel.load(&skeleton(&plan()), &Edit::default()).unwrap();
    assert_eq!(kernel.elements().unwrap(), []);
    assert_eq!(world.inside.nft("list table inet foreign"), foreign);
}

/// What somebody who is root may do to our rules, each of which lets something pass.
fn tampers(kind: Kind) -> Vec<(&'static str, &'static str)> {
    let nft = [
        "insert rule inet innkeeper output accept",
        "add rule inet innkeeper forward accept",
        "flush chain inet innkeeper input",
        "add chain inet innkeeper more",
        "add chain inet innkeeper output { policy accept ; }",
        "add set inet innkeeper extra { type ipv4_addr ; }",
        "add table inet innkeeper { flags dormant ; }",
        "delete table inet innkeeper",
    ];
    let iptables = [
        "-I INNKEEPER-OUTPUT -j ACCEPT",
        "-A INNKEEPER-FORWARD -j ACCEPT",
        "-F INNKEEPER-INPUT",
        "-N INNKEEPER-MORE",
        "-D OUTPUT -j INNKEEPER-OUTPUT",
        "-I OUTPUT -j ACCEPT",
        "-A OUTPUT -j INNKEEPER-OUTPUT",
        "-t nat -F",
        "-t nat -I OUTPUT -j ACCEPT",
        "-t mangle -F INNKEEPER-POSTROUTING",
        "-F",
    ];
    let Some(program) = kind.program() else { return nft.map(|line| ("nft", line)).into() };
    let six = if program == "iptables-nft" { "ip6tables-nft" } else { "ip6tables-legacy" };
    iptables.into_iter().flat_map(|line| [(program, line), (six, line)]).collect()
}

fn a_fingerprint_shows_drift_and_nothing_else(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    let mut kernel = world.kernel();
    assert!(kernel.fingerprint().unwrap().is_absent());
    let ruleset = skeleton(&plan());
    kernel.load(&ruleset, &Edit::default()).unwrap();
    let loaded = kernel.fingerprint().unwrap();
    kernel.admit(&[open(OUTSIDE4, 443)]).unwrap();
    assert!(world.inside.connect(AGENT, &format!("{OUTSIDE4}:{}", next_port())).is_err());
    assert!(kernel.denied().unwrap() > 0);
    assert_eq!(loaded.difference(&kernel.fingerprint().unwrap()), None);
    for (program, line) in tampers(kind) {
        kernel.load(&ruleset, &Edit::default()).unwrap();
        assert_eq!(loaded.difference(&kernel.fingerprint().unwrap()), None);
        world.inside.program(program, line);
        let now = kernel.fingerprint().unwrap();
        assert!(loaded.difference(&now).is_some(), "{program} {line} was not noticed");
        assert_ne!(loaded, now);
    }
}

/// F08: without the capability it says so, before anything is tried.
#[test]
fn without_the_capability_it_says_so() {
    let Some(world) = World::on(Kind::Nftables) else { return };
    let refused = world.inside.run(AGENT, || Nftables::open().unwrap_err());
    assert!(matches!(refused, NftablesError::NotPermitted { .. }), "{refused}");
}

on_every_backend! {
    lockdown_lets_nothing_out_in_or_around,
    every_question_goes_to_the_worker,
    without_a_worker_on_ipv6_its_questions_are_refused,
    a_socket_bound_to_a_device_carries_nothing_out,
    upstreams_serve_the_worker_alone,
    the_engines_resolver_belongs_to_the_worker,
    open_addresses_pass_on_their_port_alone,
    ipv6_finds_its_neighbours,
    a_lease_is_renewed_by_root_alone,
    refused_datagrams_are_told_why,
    inbound_is_closed_but_for_what_the_operator_opened,
    older_listeners_are_closed_and_the_rest_of_loopback_is_open,
    flows_outlive_their_element_and_new_ones_do_not,
    renewal_changes_the_expiry,
    elements_come_and_go_in_any_number,
    a_fingerprint_shows_drift_and_nothing_else,
}
