//! Upstream resolvers that are slow, lose, lie, are many, few or strange: names work as far as they can, nothing opens.

use serde_json::json;

use crate::common::{GET, gets_through, nothing_to, only_questions_to, python, refused_fast};
use crate::rig::{AGENT, BoxOptions, ROOT, Rig, RunningBox, host};

const RESOLVER: &str = "127.0.0.53";

fn resolve(guest: &RunningBox, name: &str) -> String {
    guest.client(AGENT, &["dns", RESOLVER, name]).both().trim().to_owned()
}

/// Looks slow names and good ones up at once, and prints them in the order in which they came.
const SLOW_AND_GOOD: &str = r#"
import socket, threading
lock, order = threading.Lock(), []
def one(name):
    try:
        socket.getaddrinfo(name, 80, socket.AF_INET)
        word = "found"
    except OSError as error:
        word = "failed"
    with lock:
        order.append(f"{name.split('.')[0]} {word}")
slow = [threading.Thread(target=one, args=(f"slow{i}.slow.test",)) for i in range(64)]
for thread in slow:
    thread.start()
good = [threading.Thread(target=one, args=(f"good{i}.wild.test",)) for i in range(20)]
for thread in good:
    thread.start()
for thread in slow + good:
    thread.join()
print("\n".join(order))
"#;

#[test]
fn f03_slow_names_hold_up_no_others() {
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["*.slow.test"] = json!([["A", host("ok"), 60]]);
        zone["names"]["*.slow.test"] = json!({"delay_ms": 3000});
    }) else {
        return;
    };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80;*.slow.test:80"));
    let said = python(&guest, AGENT, SLOW_AND_GOOD).expect("the look-ups");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("good") && line.ends_with("found")).count(),
        20,
        "{said}"
    );
    let first_slow = lines.iter().position(|line| line.starts_with("slow")).unwrap();
    assert!(lines.iter().skip(first_slow).all(|line| line.starts_with("slow")), "{said}");
    assert!(lines.iter().all(|line| line.ends_with("found")), "the slow ones come too: {said}");
}

#[test]
fn f03_lost_questions_are_asked_again() {
    let Some(rig) = Rig::with_zone(|zone| zone["names"]["*.wild.test"] = json!({"drop": 1})) else { return };
    assert!(!rig.outside(&["dns", "9.9.9.53", "control.wild.test"]).ok(), "the first one is lost");
    let guest = rig.boot(&BoxOptions::new().allow("*.wild.test:80"));
    for number in 0..8 {
        let page = guest.exec_agent(&format!("curl -sS -m 10 http://lost{number}.wild.test/"));
        assert!(page.out.contains("token-"), "{page:?}");
    }
}

#[test]
fn f03_another_upstream_answers_for_one_that_does_not() {
    let Some(rig) = Rig::with_resolver(
        |zone| zone["servers"]["9.9.9.53"] = json!({"drop": true}),
        &["--dns", "149.112.112.53"],
    ) else {
        return;
    };
    assert!(!rig.outside(&["dns", "9.9.9.53", "ok.test"]).ok());
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80"));
    for number in 0..5 {
        assert_eq!(resolve(&guest, &format!("n{number}.wild.test")), format!("NOERROR {}", host("ok")));
    }
    let upstreams = guest.await_status("the one that is down", |status| {
        status["dns"]["upstreams"].as_array().is_some_and(|all| all.iter().any(|one| one["healthy"] == false))
    });
    let healthy = |address: &str| {
        let all = upstreams["dns"]["upstreams"].as_array().unwrap();
        all.iter().find(|one| one["address"].as_str().unwrap().contains(address)).unwrap()["healthy"] == true
    };
    assert!(!healthy("9.9.9.53") && healthy("149.112.112.53"), "{}", upstreams["dns"]);
    // Each of the two is the worker's alone.
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        for server in ["9.9.9.53", "149.112.112.53"] {
            guest.client(user, &["dns", server, "leak.evil.test"]);
            guest.client(user, &["udp", server, "53", "leak"]);
        }
    }
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|one| one["dport"] == 53), "{packets:?}");
    assert!(!rig.world.asked().iter().any(|name| name.contains("leak")));
}

#[test]
fn f04_a_lying_upstream_opens_nothing_and_spoils_nothing_good() {
    let lies = ["id", "question", "short", "loop"];
    let Some(rig) = Rig::with_zone(|zone| {
        for lie in lies {
            zone["records"][format!("{lie}.wild.test")] = json!([["A", host("evil"), 60]]);
            zone["names"][format!("{lie}.wild.test")] = json!({"mangle": lie});
        }
        zone["names"]["spoof.wild.test"] = json!({"mangle": "spoof"});
        zone["names"]["twice.wild.test"] = json!({"mangle": "twice"});
        zone["records"]["ok.test"] = json!([["A", host("ok"), 5]]);
    }) else {
        return;
    };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80"));
    let mark = rig.world.sync();
    for lie in lies {
        let said = resolve(&guest, &format!("{lie}.wild.test"));
        assert!(!said.starts_with("NOERROR "), "{lie}: {said}");
    }
    refused_fast(&guest, &["tcp", &evil, "80", GET]);
    nothing_to(&rig, mark, &evil);
    // A forged packet before the right one, or the right one twice, keeps nobody from the answer.
    for name in ["spoof.wild.test", "twice.wild.test"] {
        let page = guest.exec_agent(&format!("curl -sS -m 10 http://{name}/"));
        assert!(page.out.contains("token-"), "{name}: {page:?}");
    }
    // A storm of failures: what was good stays so, and is marked once it is stale.
    for storm in
        [json!({"servfail": true}), json!({"mangle": "question"}), json!({"rcode": 5}), json!({"drop": true})]
    {
        rig.world.zone(|zone| zone["servers"] = json!({"9.9.9.53": storm, "*": {}}));
        guest.await_status("a stale address", |status| {
            // Asked for again and again, as programs do.
            let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
            assert!(page.out.contains("token-"), "{storm}: {page:?}");
            let addresses = status["firewall"]["addresses"].as_array().cloned().unwrap_or_default();
            addresses.iter().any(|one| one["name"] == "ok.test" && one["stale"] == true)
        });
        refused_fast(&guest, &["tcp", &evil, "80", GET]);
        rig.world.zone(|zone| zone["servers"] = json!({"*": {}}));
        guest.await_status("a fresh address", |status| {
            resolve(&guest, "ok.test");
            let addresses = status["firewall"]["addresses"].as_array().cloned().unwrap_or_default();
            addresses.iter().any(|one| one["name"] == "ok.test" && one["stale"] == false)
        });
    }
    only_evil_is_absent(&rig, &evil);
}

fn only_evil_is_absent(rig: &Rig, evil: &str) {
    let log = rig.world.log("http");
    assert!(log.iter().skip(1).all(|one| one["local"] != evil), "{log:?}");
}

#[test]
fn f04_a_storm_of_no_such_name_ends_with_it() {
    let Some(rig) = Rig::with_zone(|zone| zone["records"]["ok.test"] = json!([["A", host("ok"), 5]])) else {
        return;
    };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80,9999"));
    let ok = host("ok");
    let mut flow = guest.flow(AGENT, &ok, "9999");
    assert_eq!(flow.hear(), "connected");
    rig.world.zone(|zone| zone["servers"] = json!({"9.9.9.53": {"rcode": 3}, "*": {}}));
    crate::common::until("the lie is told", crate::rig::PATIENCE, || {
        resolve(&guest, "ok.test") == "NXDOMAIN"
    });
    // What is open stays so for the rest of its life, and so does what uses it.
    assert!(guest.client(AGENT, &["tcp", &ok, "9999", "hello"]).ok());
    flow.say("still here");
    assert!(flow.hear().contains("still here"));
    rig.world.zone(|zone| zone["servers"] = json!({"*": {}}));
    crate::common::until("the truth is told", crate::rig::PATIENCE, || {
        resolve(&guest, "ok.test").contains(&ok)
    });
}

#[test]
fn f12_an_upstream_by_tcp_alone() {
    for how in ["truncated", "lost"] {
        let Some(rig) = Rig::with_zone(|zone| {
            if how == "truncated" {
                zone["servers"]["9.9.9.53"] = json!({"truncate": true});
            }
        }) else {
            return;
        };
        if how == "lost" {
            let rule = "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c udp dport 53 drop'";
            rig.in_world(rule).expect("a world without UDP");
            assert!(!rig.outside(&["dns", "9.9.9.53", "ok.test"]).ok());
        }
        assert!(gets_through(&rig, &["dns", "9.9.9.53", "ok.test", "A", "tcp"]).contains(&host("ok")));
        let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80"));
        for name in ["ok.test", "a.wild.test", "b.wild.test"] {
            let page = guest.exec_agent(&format!("curl -sS -m 10 http://{name}/"));
            assert!(page.out.contains("token-"), "{how} {name}: {page:?}");
        }
        assert_eq!(resolve(&guest, "x.evil.test"), "NXDOMAIN");
        assert!(
            rig.world.log("dns").iter().any(|one| one["transport"] == "tcp" && one["peer"] == "172.31.77.2")
        );
        // The agent's TCP to it is still not the worker's.
        assert_eq!(guest.client(AGENT, &["dns", "9.9.9.53", "leak.evil.test", "A", "tcp"]).out, "NXDOMAIN\n");
        assert!(!rig.world.asked().iter().any(|name| name.contains("leak")));
    }
}

fn with_resolv_conf(rig: &Rig, text: &str) -> BoxOptions {
    let file = rig.file("resolv.conf", text);
    BoxOptions::new()
        .allow("ok.test:443,80;*.wild.test:80")
        .volume(&format!("{}:/etc/resolv.conf:ro", file.display()))
}

#[test]
fn f12_an_upstream_that_speaks_ipv6() {
    let Some(rig) = Rig::new() else { return };
    let upstream = &host("upstream_v6");
    assert!(gets_through(&rig, &["dns", upstream, "ok.test"]).contains(&host("ok")));
    let guest = rig.boot(&with_resolv_conf(&rig, &format!("nameserver {upstream}\n")));
    let mark = rig.world.sync();
    assert_eq!(resolve(&guest, "a.wild.test"), format!("NOERROR {}", host("ok")));
    for user in [AGENT, ROOT] {
        for transport in ["udp", "tcp"] {
            let said = guest.client(user, &["dns", upstream, "leak.evil.test", "A", transport]);
            assert_eq!(said.out, "NXDOMAIN\n", "{user} {transport}: {said:?}");
        }
        guest.client(user, &["udp", upstream, "53", "leak"]);
        guest.client(user, &["ping", upstream, "leak"]);
    }
    only_questions_to(&rig, mark, upstream);
    assert!(!rig.world.asked().iter().any(|name| name.contains("leak")) && !rig.world.saw("leak"));
}

#[test]
fn f12_search_domains_and_ndots_are_left_behind() {
    let Some(rig) = Rig::new() else { return };
    let text = "search ns.svc.cluster.local corp.test\noptions ndots:5 timeout:1 attempts:9 rotate use-vc\nnameserver 10.96.0.10\n";
    // A resolver on a private address, as Kubernetes has.
    assert!(gets_through(&rig, &["dns", "10.96.0.10", "ok.test"]).contains(&host("ok")));
    let guest = rig.boot(&with_resolv_conf(&rig, text));
    let mark = rig.world.sync();
    assert!(guest.exec_agent("curl -sS -m 10 http://a.wild.test/").out.contains("token-"));
    for user in [AGENT, ROOT] {
        guest.exec(user, "getent hosts leaksecret; getent hosts leak.evil.test");
        guest.client(user, &["tcp", "10.96.0.10", "80", GET]);
        guest.client(user, &["tcp", "10.96.0.1", "443", "leak"]);
    }
    let packets = rig.world.packets_since(mark);
    let strange: Vec<_> =
        packets.iter().filter(|one| one["dport"] != 53 && one["dst"] != host("ok").as_str()).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(!rig.world.asked().iter().any(|name| name.contains("leak")), "{:?}", rig.world.asked());
}

#[test]
fn f12_no_nameserver_at_all_is_said_and_stays_closed() {
    let Some(rig) = Rig::new() else { return };
    gets_through(&rig, &["tcp", &host("evil"), "80", GET]);
    let before = rig.world.asked().len();
    let guest = rig.boot(&with_resolv_conf(&rig, "# nobody\n").env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "2s"));
    assert!(
        guest.status()["warnings"].to_string().contains("no upstream resolver"),
        "{}",
        guest.status()["warnings"]
    );
    assert_eq!(resolve(&guest, "ok.test"), "SERVFAIL");
    assert_eq!(resolve(&guest, "x.evil.test"), "NXDOMAIN");
    refused_fast(&guest, &["tcp", &host("evil"), "80", GET]);
    refused_fast(&guest, &["tcp", &host("ok"), "80", GET]);
    assert_eq!(rig.world.asked().len(), before);
}

#[test]
fn f12_of_five_nameservers_the_last_one_is_enough() {
    let Some(rig) = Rig::with_zone(|zone| {
        for dead in ["9.9.9.1", "9.9.9.2"] {
            zone["servers"][dead] = json!({"drop": true});
        }
        zone["servers"]["9.9.9.3"] = json!({"servfail": true});
    }) else {
        return;
    };
    let text = "nameserver 9.9.9.1\nnameserver 45.33.32.99\nnameserver 9.9.9.2\nnameserver 9.9.9.3\nnameserver 9.9.9.53\n";
    assert!(!rig.outside(&["dns", "9.9.9.1", "ok.test"]).ok());
    let guest = rig.boot(&with_resolv_conf(&rig, text));
    for number in 0..6 {
        let page = guest.exec_agent(&format!("curl -sS -m 10 http://n{number}.wild.test/"));
        assert!(page.out.contains("token-"), "{page:?}");
    }
    assert_eq!(guest.status()["dns"]["upstreams"].as_array().unwrap().len(), 5);
}

/// A forwarder in the box's own network, as the engine's is, but with a uid that is not exempt; prints how often it forwarded.
const FORWARDER: &str = r#"
import os, socket, sys, threading
front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
front.bind(("127.0.0.1", 5353))
os.setgid(65534)
os.setuid(65534)
count = 0
def forward(data, client):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back:
        back.settimeout(3)
        try:
            back.sendto(data, ("9.9.9.53", 53))
            front.sendto(back.recv(4096), client)
        except OSError:
            pass
def serve():
    global count
    while True:
        data, client = front.recvfrom(4096)
        count += 1
        threading.Thread(target=forward, args=(data, client), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
print("forwarding", flush=True)
sys.stdin.read()
print(count, flush=True)
os._exit(0)
"#;

#[test]
fn t202_a_resolver_whose_questions_come_back_to_us_makes_no_storm() {
    let Some(rig) = Rig::new() else { return };
    let mut forwarder = rig.spawn_inside(&["python3", "-c", FORWARDER]);
    assert_eq!(forwarder.hear(), "forwarding");
    assert!(gets_through(&rig, &["dns", "127.0.0.1@5353", "ok.test"]).contains(&host("ok")));
    let before = rig.world.asked().len();
    let options = BoxOptions::new()
        .allow("ok.test:80;*.wild.test:80")
        .env("INNKEEPER_NETWORK_UPSTREAMS", "127.0.0.1:5353")
        .env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "3s");
    let guest = rig.boot(&options);
    for number in 0..10 {
        let said = resolve(&guest, &format!("n{number}.wild.test"));
        assert!(said == "SERVFAIL" || said.starts_with("error"), "{said}");
    }
    guest.await_status("a word about the loop", |status| {
        (status["dns"].to_string() + &status["warnings"].to_string()).contains("our own questions")
    });
    let count: u64 = forwarder.end().trim().parse().unwrap();
    assert!(count > 0 && count < 3000, "{count} questions for some sixty names");
    assert_eq!(rig.world.asked().len(), before, "nothing left");
    refused_fast(&guest, &["tcp", &host("evil"), "80", GET]);
}
