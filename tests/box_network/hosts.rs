//! What a host does to a network under a running box: late, renamed, narrow, without IPv4, paused; and large policies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{
    GET, gets_through, nothing_to, open_in_the_kernel, packets_to, python, refused_fast, until,
};
use crate::rig::{AGENT, BoxOptions, PATIENCE, ROOT, Rig, RunningBox, host, must};

fn reaches(guest: &RunningBox, name: &str) -> bool {
    guest.exec_agent(&format!("curl -sS -m 5 http://{name}/")).out.contains("token-")
}

#[track_caller]
fn comes_to_reach(guest: &RunningBox, name: &str) {
    until(&format!("{name} is reached"), PATIENCE, || reaches(guest, name));
}

#[track_caller]
fn evil_is_closed(rig: &Rig, guest: &RunningBox) {
    let mark = rig.world.sync();
    for (kind, target, port) in [("tcp", "evil", "80"), ("udp", "evil", "9999"), ("tcp", "evil_v6", "80")] {
        for user in [AGENT, ROOT] {
            let done = guest.client(user, &[kind, &host(target), port, GET]);
            assert!(!done.ok(), "{kind} {target} as {user}: {done:?}");
        }
        nothing_to(rig, mark, &host(target));
    }
}

#[test]
fn f19_a_box_that_was_paused_goes_on_and_nothing_opened() {
    let Some(rig) = Rig::with_zone(|zone| zone["records"]["ok.test"] = json!([["A", host("ok"), 5]])) else {
        return;
    };
    gets_through(&rig, &["tcp", &host("evil"), "80", GET]);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999;*.wild.test:80"));
    let mut flow = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    let before = guest.status();
    rig.at_end(&["docker", "unpause", &guest.name]);
    must("docker", &["pause", &guest.name]);
    // The name moves meanwhile.
    rig.world.zone(|zone| zone["records"]["ok.test"] = json!([["A", host("ok2"), 5]]));
    // Longer than a worker may be silent.
    must("sleep", &["20"]);
    must("docker", &["unpause", &guest.name]);
    flow.say("after the pause");
    assert!(flow.hear().contains("after the pause"), "a flow outlives a pause");
    let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains(&format!("token-{}", host("ok2"))), "{page:?}");
    comes_to_reach(&guest, "fresh.wild.test");
    evil_is_closed(&rig, &guest);
    let after = guest.status();
    assert_eq!(after["policy"]["rules"], before["policy"]["rules"]);
    let lives = |status: &Value| -> Vec<(Value, Value)> {
        let workers = status["workers"].as_array().unwrap().iter();
        workers.map(|worker| (worker["pid"].clone(), worker["restarts"].clone())).collect()
    };
    assert_eq!(lives(&after), lives(&before), "no worker is taken for one that hangs");
    for protection in after["protections"].as_array().unwrap() {
        let same = before["protections"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["name"] == protection["name"])
            .unwrap();
        assert_eq!(protection["held"], true, "{protection}");
        assert!(protection["verified_at"].as_str() > same["verified_at"].as_str(), "{protection}");
    }
}

#[test]
fn f20_ten_thousand_names_and_a_thousand_wildcards() {
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["*.bulk.test"] = json!([["A", host("ok"), 300]]);
        zone["records"]["*.many.test"] = json!([["A", host("ok2"), 300]]);
    }) else {
        return;
    };
    let names = (0..10_000).map(|number| format!("host{number}.group{}.bulk.test:80\n", number % 97));
    let wild = (0..1_000).map(|number| format!("*.zone{number}.many.test:80\n"));
    let file = rig.file("domains.conf", &names.chain(wild).collect::<String>());
    let mount = format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display());
    gets_through(&rig, &["tcp", &host("evil"), "80", GET]);
    let guest = rig.boot(&BoxOptions::new().without_env("INNKEEPER_NETWORK_ALLOW").volume(&mount));
    // While the rest is still being asked for, in the background or not.
    for name in
        ["host0.group0.bulk.test", "host9999.group8.bulk.test", "a.b.zone999.many.test", "x.zone0.many.test"]
    {
        let page = guest.exec_agent(&format!("curl -sS -m 20 http://{name}/"));
        assert!(page.out.contains("token-"), "{name}: {page:?}\n{}", guest.logs());
    }
    for denied in [
        "host0.group1.bulk.test",
        "host10000.group9.bulk.test",
        "zone5.many.test",
        "x.zone1000.many.test",
        "bulk.test",
    ] {
        let said = guest.client(AGENT, &["dns", "127.0.0.53", denied]);
        assert_eq!(said.out, "NXDOMAIN\n", "{denied}");
    }
    evil_is_closed(&rig, &guest);
    assert!(guest.status()["policy"]["rules"].as_array().unwrap().len() >= 11_000);
    let everything_asked = || {
        let asked = rig.world.asked();
        asked
            .iter()
            .filter(|name| name.contains(".bulk.test"))
            .collect::<std::collections::HashSet<_>>()
            .len()
            >= 10_000
    };
    until("every name is asked", PATIENCE * 3, everything_asked);
    let read = "awk '/^Pss:/ { sum += $2 } END { print sum }' $(for p in 1 $(pgrep innkeeper); do echo /proc/$p/smaps_rollup; done | sort -u)";
    let said = guest.exec_root(read);
    let kilobytes: u64 = said.out.trim().parse().unwrap_or_else(|_| panic!("{said:?}"));
    assert!(kilobytes < 50_000, "{kilobytes} KiB in all: {}", guest.exec_root("ps -eo pid,rss,args").out);
    // A reload of it all takes no more than a moment, and a change is a change.
    let more = std::fs::read_to_string(&file).unwrap() + "one-more.bulk.test:80\n";
    std::fs::write(&file, more).unwrap();
    guest.innkeeper(&["reload"]).expect("reload");
    // The world is still busy with the names of before.
    comes_to_reach(&guest, "one-more.bulk.test");
}

#[test]
fn f24_a_network_that_comes_late() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    rig.unplug();
    assert!(!rig.outside(&["tcp", &host("ok"), "80", GET]).ok());
    let guest = rig.boot(
        &BoxOptions::new().allow("ok.test:80;onlysix.test:80").env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "1s"),
    );
    assert!(!reaches(&guest, "ok.test"));
    let mark = rig.world.sync();
    rig.plug();
    comes_to_reach(&guest, "ok.test");
    comes_to_reach(&guest, "onlysix.test");
    evil_is_closed(&rig, &guest);
    assert_eq!(packets_to(&rig, mark, &evil), [] as [String; 0]);
    guest.await_status("every name", |status| {
        let failing = status["dns"]["failing"].as_array().cloned().unwrap_or_default();
        !failing.iter().any(|one| one["name"] == "ok.test" || one["name"] == "onlysix.test")
    });
}

#[test]
fn f24_a_renamed_interface_a_new_address_and_an_empty_neighbour_cache() {
    let Some(rig) = Rig::new() else { return };
    gets_through(&rig, &["tcp", &host("evil"), "80", GET]);
    gets_through(&rig, &["tcp", &host("evil_v6"), "80", GET]);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999;onlysix.test:80"));
    assert!(reaches(&guest, "ok.test") && reaches(&guest, "onlysix.test"));
    rig.inside("ip neigh flush all; ip -6 neigh flush all").expect("flushing");
    assert!(reaches(&guest, "ok.test") && reaches(&guest, "onlysix.test"));
    let mut flow = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    rig.inside("ip link set eth0 name wan7").expect("renaming");
    flow.say("renamed");
    assert!(flow.hear().contains("renamed"));
    assert!(reaches(&guest, "ok.test") && reaches(&guest, "onlysix.test"));
    evil_is_closed(&rig, &guest);
    let moved = "ip addr del 172.31.77.2/29 dev wan7; ip addr add 172.31.77.4/29 dev wan7; ip route replace default via 172.31.77.1; \
                 ip -6 addr add fd77::4/64 dev wan7 nodad; ip -6 addr del fd77::2/64 dev wan7; ip -6 route replace default via fd77::1";
    rig.inside(moved).expect("moving");
    comes_to_reach(&guest, "ok.test");
    comes_to_reach(&guest, "onlysix.test");
    evil_is_closed(&rig, &guest);
    // The new address is as closed from outside as the old one was.
    assert!(!rig.world_client(&["ping", "172.31.77.4", "hello"]).ok());
}

/// Sends so many octets and reads them all back.
const UPLOAD: &str = r#"
import socket, sys, threading
s = socket.create_connection(("ADDRESS", 9999), 10)
s.settimeout(10)
data = b"x" * 300_000
threading.Thread(target=s.sendall, args=(data,), daemon=True).start()
got = 0
while got < len(data):
    more = s.recv(65536)
    if not more:
        break
    got += len(more)
print(got >= len(data))
"#;

#[test]
fn f24_a_path_with_a_smaller_mtu() {
    let Some(rig) = Rig::new() else { return };
    rig.put_router(1280);
    let targets = ["ok", "ok_v6"].map(host);
    for target in &targets {
        gets_through(&rig, &["tcp", target, "80", GET]);
    }
    // Every first large segment meets the router, whose ICMP message must come in: paths are forgotten between the tries.
    let forget =
        || rig.inside("ip route flush cache; ip -6 route flush cache; ip tcp_metrics flush all").ok();
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999;onlysix.test:80,9999"));
    let told = || {
        let router = format!("{}-r", rig.name);
        let read = "awk '/^Icmp: [0-9]/ { print $16 }' /proc/net/snmp; awk '/Icmp6OutPktTooBigs/ { print $2 }' /proc/net/snmp6";
        let both = must("ip", &["netns", "exec", &router, "bash", "-c", read]);
        both.lines().map(|line| line.parse().unwrap()).collect::<Vec<u64>>()
    };
    let before = told();
    for user in [AGENT, ROOT] {
        for target in &targets {
            forget();
            let said = python(&guest, user, &UPLOAD.replace("ADDRESS", target));
            assert_eq!(said.out, "True\n", "{target} as {user}: {said:?}");
        }
    }
    assert!(
        told().iter().zip(&before).all(|(now, then)| now > then),
        "the router had to say nothing: {before:?}"
    );
    evil_is_closed(&rig, &guest);
}

#[test]
fn f24_a_host_with_ipv6_alone() {
    let Some(rig) = Rig::new() else { return };
    rig.inside("ip -4 addr flush dev eth0").expect("no IPv4");
    let upstream = host("upstream_v6");
    assert!(gets_through(&rig, &["dns", &upstream, "onlysix.test", "AAAA"]).contains(&host("ok_v6")));
    gets_through(&rig, &["tcp", &host("evil_v6"), "80", GET]);
    assert!(!rig.outside(&["tcp", &host("ok"), "80", GET]).ok());
    let file = rig.file("resolv.conf", &format!("nameserver {upstream}\n"));
    let options = BoxOptions::new()
        .allow("onlysix.test:80;six.test:80")
        .volume(&format!("{}:/etc/resolv.conf:ro", file.display()));
    let guest = rig.boot(&options);
    assert!(reaches(&guest, "onlysix.test"));
    // Both families are answered; the one that leads somewhere is used.
    assert!(reaches(&guest, "six.test"));
    let mark = rig.world.sync();
    for user in [AGENT, ROOT] {
        for kind in ["tcp", "udp"] {
            assert!(!guest.client(user, &[kind, &host("evil_v6"), "443", "leak"]).ok());
        }
        let said = guest.client(user, &["dns", "2001:4860:4860::8888", "leak.evil.test"]);
        assert_eq!(said.out, "NXDOMAIN\n", "{said:?}");
    }
    nothing_to(&rig, mark, &host("evil_v6"));
    nothing_to(&rig, mark, "2001:4860:4860::8888");
    assert!(guest.status()["protections"].as_array().unwrap().iter().all(|one| one["held"] == true));
}

#[test]
fn f26_a_second_box_in_the_same_network_takes_over_what_the_first_left() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let first = rig.boot(&BoxOptions::new().allow("ok.test:80,9999;two.test:8080"));
    assert!(reaches(&first, "ok.test"));
    assert!(first.client(AGENT, &["tcp", &host("ok"), "9999", "hello"]).ok());
    let tables = || {
        must("nsenter", &["-t", &rig.pause_pid, "-n", "nft", "list", "tables"]).matches("innkeeper").count()
    };
    assert_eq!(tables(), 1);
    first.signal("KILL");
    assert_eq!(first.exit_code(), 137);
    // Its table stays and holds without it.
    assert!(!rig.outside(&["tcp", &evil, "80", GET]).ok());
    let mark = rig.world.sync();
    // From now on, all the time until the second one is ready, somebody knocks.
    let mut knocking = rig.spawn_inside(&["python3", "-c", KNOCK, &evil, &host("ok2")]);
    assert_eq!(knocking.hear(), "knocking");
    let second = rig.boot(&BoxOptions::new().allow("ok.test:80"));
    let knocks = knocking.end();
    assert!(knocks.trim().parse::<u64>().unwrap() > 10, "{knocks}");
    nothing_to(&rig, mark, &evil);
    nothing_to(&rig, mark, &host("ok2"));
    assert_eq!(tables(), 1);
    assert!(reaches(&second, "ok.test"));
    // The first one's openings ended with it.
    refused_fast(&second, &["tcp", &host("ok"), "9999", "leak"]);
    refused_fast(&second, &["tcp", &host("ok"), "8080", "leak"]);
    assert!(second.status()["protections"].as_array().unwrap().iter().all(|one| one["held"] == true));
}

/// Tries to reach the addresses without a pause, until its standard input ends; prints how often.
const KNOCK: &str = r#"
import socket, sys, threading, os
count = 0
def knock():
    global count
    while True:
        for address in sys.argv[1:]:
            for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 9999)):
                with socket.socket(socket.AF_INET, kind) as s:
                    s.settimeout(0.2)
                    try:
                        s.connect((address, port))
                        s.send(b"leak")
                    except OSError:
                        pass
                    count += 1
threading.Thread(target=knock, daemon=True).start()
print("knocking", flush=True)
sys.stdin.read()
print(count, flush=True)
os._exit(0)
"#;

#[test]
fn f26_a_second_box_beside_a_living_one_opens_nothing_and_leaves_it_alone() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let first = rig.boot(&BoxOptions::new().allow("ok.test:80,9999"));
    let mut flow = first.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    let mark = rig.world.sync();
    let second = rig.start(&BoxOptions::new().allow("evil.test:80"));
    assert_eq!(second.exit_code(), 78, "{}", second.logs());
    assert!(second.logs().contains("another box runs in this network"), "{}", second.logs());
    nothing_to(&rig, mark, &evil);
    flow.say("still connected");
    assert!(flow.hear().contains("still connected"));
    assert!(reaches(&first, "ok.test"), "the first one works on");
    evil_is_closed(&rig, &first);
    assert!(first.status()["protections"].as_array().unwrap().iter().all(|one| one["held"] == true));
}

#[test]
fn f31_a_renewal_renews_in_the_kernel() {
    let Some(rig) = Rig::with_zone(|zone| zone["records"]["ok.test"] = json!([["A", host("ok"), 5]])) else {
        return;
    };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:9999"));
    let left = || {
        let open = open_in_the_kernel(&rig, "open4");
        open.iter().find(|(address, port, _)| *address == host("ok") && *port == 9999).map(|one| one.2)
    };
    // It falls, and rises again without ever having been away: the refresh timer alone, nobody asks.
    let first = left().expect("it is open");
    let (mut lowest, mut gone) = (first, 0);
    until("the kernel's own clock was set back", Duration::from_secs(150), || {
        let now = left();
        gone += u32::from(now.is_none());
        let risen = now.is_some_and(|now| now > lowest + 5);
        lowest = lowest.min(now.unwrap_or(lowest));
        risen
    });
    assert!(lowest < first, "it did fall: {lowest} of {first}");
    assert_eq!(gone, 0, "an address was closed while it was renewed");
    // The status says the same as the kernel.
    let status: Value = guest.status();
    let shown = status["firewall"]["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["address"] == host("ok"))
        .unwrap()
        .clone();
    let until_shown = crate::rig::run("date", &["-d", shown["expires_at"].as_str().unwrap(), "+%s"])
        .out
        .trim()
        .parse::<u64>()
        .unwrap();
    let now = crate::rig::run("date", &["+%s"]).out.trim().parse::<u64>().unwrap();
    let kernel = left().unwrap();
    assert!((until_shown - now).abs_diff(kernel) <= 3, "{shown} and {kernel} s");
}
