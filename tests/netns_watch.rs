//! The worker `innkeeper watch`, as the built binary, in a real network namespace behind the real rules; the test plays
//! PID 1 around it with PID 1's own parts.
//!
//! Needs root and `nft`.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "netns_watch/box_side.rs"]
mod box_side;
#[path = "netns_firewall/place.rs"]
#[expect(dead_code, reason = "shared with the tests of the firewall, which use all of it")]
mod place;

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use innkeeper::attribution::Attributor;
use innkeeper::firewall::nftables::Edit;
use innkeeper::firewall::ruleset::skeleton;
use innkeeper::watch::keeper::Queues;
use socket2::{Domain, Protocol, Socket, Type};

use box_side::{REFUSED, USED, Watched, agents_holder, holder, inode};
use place::{AGENT, OUTSIDE4, OUTSIDE6, RESOLVER4, ROOT, World, allow_ping, next_port, ping};

/// Every protocol and family: who, where to, how often; and why.
#[test]
fn refused_packets_arrive_as_denials() {
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "ok.test");
    let refuse = |to: &str| {
        let refused = world.inside.connect(AGENT, to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    };
    let (four, six) = (format!("{RESOLVER4}:443"), format!("[{OUTSIDE6}]:80"));
    for _ in 0..3 {
        refuse(&four);
    }
    refuse(&six);
    world.inside.send(ROOT, &format!("{RESOLVER4}:9"), "x").unwrap_err();
    world.inside.send(AGENT, &format!("[{OUTSIDE6}]:53"), "x").unwrap_err();
    watched.denial("8.8.8.8:443 tcp", AGENT, 3, "no allowlisted name", "innkeeper allow NAME");
    watched.denial("[2001:db8:1::1]:80 tcp", AGENT, 1, "documentation (RFC 3849)", "nothing opens");
    watched.denial("8.8.8.8:9 udp", ROOT, 1, "only TCP", "use TCP");
    watched.denial("[2001:db8:1::1]:53 udp", AGENT, 1, "documentation", "nothing opens");
}

/// Protocols without a socket of std's; SCTP and UDP-Lite only where the kernel has them, a raw socket has all.
#[test]
fn other_protocols_are_named() {
    let Some(world) = World::new() else { return };
    world.inside.run(ROOT, allow_ping);
    let watched = Watched::start(&world, "ok.test");
    for to in [RESOLVER4, OUTSIDE6] {
        // Whether a sender hears of the refusal depends on the kind of its socket.
        world.inside.run(AGENT, || ping(to, "x")).ok();
    }
    let raw = |protocol: i32, bytes: &[u8]| {
        let to: std::net::SocketAddr = format!("{RESOLVER4}:0").parse().unwrap();
        world.inside.run(ROOT, || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(protocol))).unwrap();
            socket.send_to(bytes, &to.into()).ok();
        });
    };
    // Source port, destination port 9, and what each protocol has next.
    raw(132, &[0x9c, 0x40, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    raw(136, &[0x9c, 0x40, 0, 9, 0, 8, 0, 0]);
    raw(47, &[0, 0, 8, 0]);
    watched.denial("8.8.8.8 icmp echo-request", AGENT, 1, "no ping", "TCP");
    watched.denial("2001:db8:1::1 icmpv6 echo-request", AGENT, 1, "documentation", "nothing opens");
    watched.denial("8.8.8.8:9 sctp", ROOT, 1, "only TCP", "use TCP");
    watched.denial("8.8.8.8:9 udplite", ROOT, 1, "only TCP", "use TCP");
    watched.denial("8.8.8.8 gre", ROOT, 1, "only TCP", "use TCP");
}

#[test]
fn a_udp_denial_names_the_process() {
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "ok.test");
    // A process of the agent's own, with a name that would change the operator's terminal.
    let (mut child, _) = world.inside.run(AGENT, || holder(&format!("udp {RESOLVER4} 9")));
    let denial = watched.denial("8.8.8.8:9 udp", AGENT, 1, "only TCP", "use TCP");
    child.kill().unwrap();
    assert_eq!(denial.process.as_deref(), Some("\\u{1b}]0;init\\u{7}"));
    // One that has gone has no name, but its uid all the same.
    world.inside.send(AGENT, &format!("{RESOLVER4}:10"), "x").unwrap_err();
    watched.denial("8.8.8.8:10 udp", AGENT, 1, "only TCP", "use TCP");
}

/// An address that is open for a name on another port: the denial says for which, and how to allow this one.
#[test]
fn a_denial_names_whose_address_it_is_and_a_use_by_what_name() {
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "github.test\n!evil.test\ngist.test:443,80");
    watched.admit("github.test", RESOLVER4);
    watched.admit("gist.test", RESOLVER4);
    let port = 443;
    let _listener = world.outside.listen(&format!("{RESOLVER4}:{port}"));
    world.inside.connect(AGENT, &format!("{RESOLVER4}:22")).unwrap_err();
    for _ in 0..4 {
        world.inside.connect(AGENT, &format!("{RESOLVER4}:{port}")).unwrap();
    }
    world.inside.connect(ROOT, &format!("{RESOLVER4}:{port}")).unwrap();
    let denial = watched.denial("8.8.8.8:22 tcp", AGENT, 1, "is allowed on", "innkeeper allow ");
    assert!(denial.allow.ends_with(".test:22"), "{}", denial.allow);
    let used = watched.used(RESOLVER4, port, AGENT, 4);
    let names: Vec<&str> = std::iter::once(&used.name).chain(&used.also).map(String::as_str).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"github.test") && names.contains(&"gist.test"), "{names:?}");
    watched.used(RESOLVER4, port, ROOT, 1);
    assert!(used.first <= used.last && used.last <= innkeeper::report::now());
}

/// A server that does not answer: the kernel sends the first packet again, which is no second connection.
#[test]
fn a_connection_that_begins_again_is_counted_once() {
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "ok.test");
    watched.admit("ok.test", RESOLVER4);
    world.outside.nft("add table ip silence");
    world.outside.nft("add chain ip silence in { type filter hook input priority 0 ; policy drop ; }");
    let to = format!("{RESOLVER4}:443").parse().unwrap();
    let patience = std::time::Duration::from_millis(1500);
    world.inside.run(AGENT, || std::net::TcpStream::connect_timeout(&to, patience).unwrap_err());
    watched.await_used_packets(2);
    watched.used(RESOLVER4, 443, AGENT, 1);
}

/// As fast as they can be sent, to ever other places: numbers add up with the kernel's, memory does not grow.
#[test]
fn a_flood_is_counted_to_the_last_packet() {
    const FLOOD: u32 = 100_000;
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "ok.test");
    world.inside.send(AGENT, &format!("{RESOLVER4}:9"), "x").unwrap_err();
    watched.denial("8.8.8.8:9 udp", AGENT, 1, "only TCP", "use TCP");
    let before = watched.worker_memory_kib();
    let socket = world.inside.udp(AGENT, "0.0.0.0:0");
    for i in 0..FLOOD {
        // Not 53, which would be redirected.
        let port = u16::try_from(i % 60_000 + 1000).unwrap();
        socket.send_to(b"x", (RESOLVER4, port)).ok();
    }
    // A use in the middle of it is not drowned.
    watched.admit("ok.test", RESOLVER4);
    let _listener = world.outside.listen(&format!("{RESOLVER4}:443"));
    world.inside.connect(AGENT, &format!("{RESOLVER4}:443")).unwrap();
    watched.used(RESOLVER4, 443, AGENT, 1);
    // The last of the losses shows with the next packet.
    world.inside.send(AGENT, &format!("{RESOLVER4}:9"), "x").unwrap_err();
    watched.await_accounted(u64::from(FLOOD) + 2);
    assert_eq!(watched.kernel_denied(), u64::from(FLOOD) + 2);
    let after = watched.worker_memory_kib();
    assert!(after < before + 2048, "{before} KiB before, {after} KiB after");
    assert!(watched.worker_lives());
}

/// Packets that come while no worker lives wait in the sockets, which are PID 1's.
#[test]
fn a_dead_worker_loses_nothing_that_had_room() {
    let Some(world) = World::new() else { return };
    let mut watched = Watched::start(&world, "ok.test");
    world.inside.send(AGENT, &format!("{RESOLVER4}:9"), "x").unwrap_err();
    watched.denial("8.8.8.8:9 udp", AGENT, 1, "only TCP", "use TCP");
    watched.kill_worker();
    for _ in 0..100 {
        world.inside.send(AGENT, &format!("{RESOLVER4}:9"), "x").unwrap_err();
    }
    // A worker that dies with packets in its hands, before it told of them.
    watched.read_and_forget(7);
    watched.start_worker();
    watched.await_accounted(101);
    watched.denial("8.8.8.8:9 udp", AGENT, 94, "only TCP", "use TCP");
    let report = watched.board.report(None);
    let lost: u64 = report.denials.iter().filter(|d| d.what.starts_with("(packets")).map(|d| d.count).sum();
    assert_eq!(lost, 7);
}

/// Our own attack wears the agent's uid; one packet to each of its places is not the agent's.
#[test]
fn the_self_attack_is_no_denial_of_the_agents() {
    let Some(world) = World::new() else { return };
    let watched = Watched::start(&world, "ok.test");
    let attack = innkeeper::readiness::Attack {
        supervisor: 1,
        resolver: "127.0.0.53".parse().unwrap(),
        upstreams: vec!["9.9.9.9:53".parse().unwrap()],
        gated: vec![80, 443],
        proxy: None,
        sealed: vec![],
        doors: vec![],
        userns: true,
    };
    watched.reporter.announce(&innkeeper::readiness::probe::refusals(&attack));
    let attempts = world.inside.run(AGENT, || innkeeper::readiness::probe::run(&attack));
    let network = attempts.iter().filter(|attempt| attempt.protection.starts_with("egress"));
    let refused = network.filter(|a| a.outcome == innkeeper::readiness::Outcome::Refused).count();
    assert_eq!(refused, 7, "{attempts:?}");
    world.inside.connect(AGENT, "169.254.169.254:80").unwrap_err();
    watched.denial("169.254.169.254:80 tcp", AGENT, 1, "metadata service", "nothing opens");
    // Without a gate the rules refuse what is meant for it.
    watched.await_accounted(12);
    let denials = watched.board.report(None).denials;
    assert_eq!(denials.len(), 1, "{denials:?}");
}

/// Where the group is somebody else's, the box is told so.
#[test]
fn a_group_that_is_taken_is_an_error_and_not_an_end() {
    let Some(world) = World::new() else { return };
    world.inside.run(ROOT, || {
        let first = Queues::open(REFUSED, USED).unwrap();
        let refused = Queues::open(REFUSED, USED).unwrap_err();
        assert!(innkeeper::report::chain(&refused).contains("NFLOG group 100"), "{refused}");
        drop(first);
        Queues::open(REFUSED, USED).unwrap();
    });
    // PID 1's way from there: a table without the rules that would need the logger.
    let plan =
        innkeeper::firewall::ruleset::FirewallPlan { nflog_group: 0, uses_group: 0, ..box_side::plan() };
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&plan), &Edit::default()).unwrap();
    assert!(!world.inside.nft("list table inet innkeeper").contains("log"));
    world.inside.connect(AGENT, &format!("{OUTSIDE4}:{}", next_port())).unwrap_err();
    assert_eq!(kernel.denied().unwrap(), 1);
}

/// The thread that looks has the agent's file-system uid, which is enough, and nobody else has.
#[test]
fn a_process_is_found_without_the_right_to_trace() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Bounding] {
        caps::drop(None, set, caps::Capability::CAP_SYS_PTRACE).unwrap();
    }
    let (mut child, socket) = agents_holder("bound 0");
    let descriptor = format!("/proc/{}/fd/0", child.id());
    assert_eq!(std::fs::read_link(&descriptor).unwrap_err().kind(), ErrorKind::PermissionDenied);

    let attributor = Attributor::new(AGENT, AGENT, |_| {});
    // Who asks does not wait long, and a busy machine's thread may not have its turn so soon.
    let named = |uid: Option<u32>, inode: u64| {
        let mut tries = std::iter::repeat_with(|| attributor.process(uid, inode)).take(200);
        tries.find_map(|found| found)
    };
    let found = named(Some(AGENT), socket);
    assert_eq!(found.as_deref(), Some("\\u{1b}]0;init\\u{7}"), "a name is inert, whatever it is");
    assert_eq!(named(None, socket), found, "also where the uid is not known");
    assert_eq!(attributor.process(Some(ROOT), socket), None);

    // Of all our threads one has that uid, and it has nothing else.
    let mut like_agent = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let ids: Vec<String> = field("Uid:").split_whitespace().skip(1).map(str::to_owned).collect();
        assert_eq!(ids[..3], ["0", "0", "0"], "{status}");
        if ids[3] == AGENT.to_string() {
            like_agent += 1;
            assert!(field("Name:").ends_with("attribution"), "{status}");
            for set in ["CapEff:", "CapPrm:", "CapInh:"] {
                assert!(field(set).ends_with("\t0000000000000000"), "{status}");
            }
        } else {
            assert_eq!(ids[3], "0", "{status}");
        }
    }
    assert_eq!(like_agent, 1);
    child.kill().unwrap();
    // Our own sockets are no secret to us, whoever we are.
    let own = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(own.as_raw_fd() > 2);
    assert!(named(Some(ROOT), inode(&own)).is_some());
}

/// However many descriptors and questions there are, looking takes a share of one processor and no more; who hides
/// behind them has no name, and who doesn't, still has.
#[test]
fn looking_costs_a_share_of_the_time() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Far more than one look gets through.
    let (mut crowd, hidden) = agents_holder("bound 200000");
    let attributor = Attributor::new(AGENT, AGENT, |_| {});
    let began = std::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(attributor.process(Some(AGENT), hidden + 1), None);
        // Faster than workers ask; as fast as can be, the asking would be what costs.
        innkeeper::supervisor::backoff::pause(std::time::Duration::from_millis(5));
    }
    let used = cpu_seconds("attribution");
    // 200 ms at once, 5 % of the time, and one look that began while there was a little left.
    let most = 0.2 + 0.05 * began.elapsed().as_secs_f64() + 0.05;
    assert!(used <= most, "{used} s of processor time, {most} at most");
    crowd.kill().unwrap();
}

/// What the thread of this name has used, in the kernel's ticks of 10 ms.
fn cpu_seconds(name: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap());
    let stat = stats.into_iter().find(|stat| stat.contains(&format!("({name})"))).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}
