//! Requests as an agent would make them that wants to break who reads them, or to shut others out.

use crate::common::{inert, queueing, requests, until};
use crate::rig::{AGENT, ROOT, Rig, RunningBox, run_with_input};

/// Speaks to the socket itself, past the bounds of our own client.
const CLIENT: &str = r#"
import json, socket, sys
def ask(data):
    s = socket.socket(socket.AF_UNIX); s.settimeout(30)
    s.connect("/run/innkeeper/control.sock")
    answer = b""
    try:
        s.sendall(data + b"\n")
        while chunk := s.recv(65536): answer += chunk
    except ConnectionError: pass
    return answer.decode() or "closed"
def wish(rule, reason): return ask(json.dumps({"op": "ask", "rule": rule, "reason": reason}).encode())
"#;

fn python(guest: &RunningBox, user: &str, program: &str) -> String {
    let args = ["exec", "-i", "-u", user, &guest.name, "python3", "-"];
    run_with_input("docker", &args, &format!("{CLIENT}\n{program}")).expect("the client")
}

fn memory(guest: &RunningBox) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn t97_a_flood_of_requests_stays_small_and_shuts_nobody_out() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let before = memory(&guest);
    let program = "import collections\nseen = collections.Counter(json.loads(wish(f'n{i % 5000}.test', 'x' * 300))['is'] for i in range(10000))\nprint(dict(seen))";
    let mut flood =
        guest.spawn(AGENT, &["python3", "-c", &format!("{CLIENT}\nprint('begun', flush=True)\n{program}")]);
    assert_eq!(flood.hear(), "begun");
    // Meanwhile the operator is answered.
    until("something to grant", || !requests(&guest).is_empty());
    guest.innkeeper(&["allow", "two.test"]).expect("allow in a flood");
    guest.innkeeper(&["grant", "1", "--for", "1h"]).expect("grant in a flood");
    let seen = flood.end();
    assert!(seen.contains("'later'"), "most were turned away: {seen}");
    let all = requests(&guest);
    let pending = all.iter().filter(|one| one["state"] == "pending").count();
    assert!((1..=32).contains(&pending) && all.len() <= 256, "{pending} of {}", all.len());
    let grown = memory(&guest).saturating_sub(before);
    assert!(grown < 8 << 10, "PID 1 grew by {grown} KiB");
    let log = guest.innkeeper(&["log", "--json"]).out;
    assert!(log.lines().filter(|line| line.contains(r#""event":"request""#)).count() < 100);
}

#[test]
fn t97_those_who_wait_hold_no_place_at_the_socket() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let ask = ["innkeeper", "request", "evil.test", "--reason", "x", "--wait", "60s"];
    let waiting: Vec<_> = (0..24).map(|_| guest.spawn(AGENT, &ask)).collect();
    until("all of them", || requests(&guest).first().is_some_and(|one| one["count"].as_u64() >= Some(20)));
    for _ in 0..5 {
        assert!(
            guest.exec_program(AGENT, &["innkeeper", "status"]).ok(),
            "the agent's own questions are answered"
        );
    }
    guest.innkeeper(&["refuse", "1"]).expect("refuse");
    let told =
        waiting.into_iter().map(super::rig::Talking::end).filter(|text| text.contains("refused")).count();
    assert!(told >= 20, "{told} were told");
}

#[test]
fn t97_hostile_words_are_inert_wherever_they_are_shown() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let said = python(
        &guest,
        AGENT,
        r#"
bad = "\x1b]52;c;aGk=\x07\x1b[2J\x9b6n\0\r\n\u202eevil\n- 9  granted  x"
for n, reason in enumerate([bad, "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "$(id)`id`;'\"", "-rf --for 9h"]):
    print(wish(f"a{n}.test", reason))
for rule in ["\x1b[2J", "a\0b.test", "a.test\nb.test", "$(id).test", "a" * 3000, "-x", "a.test; b.test", "\u202e.test"]:
    print(wish(rule, "x"))
print(wish("b.test", "x" * 301))
print(wish("b.test", "y" * 3900))
print(wish("b.test", "y" * 5000))
print(wish("b.test", "y" * (2 << 20)))
print(ask(b'{"op":"ask","rule":"b.test","reason":"x","by":"operator"}'))
print(ask(b'{"op":"ask","rule":["b.test"],"reason":"x"}'))
"#,
    );
    inert(&said);
    let kinds = |kind: &str| said.lines().filter(|line| line.contains(&format!(r#""is":"{kind}""#))).count();
    assert_eq!((kinds("request"), kinds("invalid"), kinds("failed")), (4, 10, 2), "{said}");
    let all = requests(&guest);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|one| one["reason"].as_str().unwrap().chars().count() < 2000));
    let names: Vec<&str> = all.iter().map(|one| one["rule"].as_str().unwrap()).collect();
    assert_eq!(names, ["a0.test", "a1.test", "a2.test", "a3.test"]);
    for id in ["1", "2", "3", "4"] {
        guest.innkeeper(&["grant", id, "--for", "1h"]).expect("grant");
    }
    for (what, args) in [
        ("requests", &["requests"][..]),
        ("json", &["requests", "--json"]),
        ("status", &["status"]),
        ("status --json", &["status", "--json"]),
        ("log", &["log"]),
        ("log --json", &["log", "--json"]),
        ("check", &["check", "a0.test"]),
        ("suggest", &["policy", "suggest"]),
    ] {
        let shown = guest.innkeeper(args).out;
        inert(&shown);
        assert!(!shown.contains("ghp_abcdefgh"), "{what}: {shown}");
    }
    inert(&guest.logs());
    // One line a request, whatever its words: nobody can write a line of his own into the list.
    let list = guest.innkeeper(&["requests"]).out;
    assert_eq!(list.lines().count(), 4, "{list}");
}

#[test]
fn t97_the_operators_part_and_other_users() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    guest.exec_program(AGENT, &["innkeeper", "request", "evil.test", "--reason", "x"]).expect("asking");
    for args in [
        &["grant", "1"][..],
        &["grant", "1", "--for", "1h"],
        &["refuse", "1"],
        &["check", "--all"],
        &["policy", "suggest"],
        &["allow", "evil.test", "--reason", "x"],
    ] {
        for user in [AGENT, "901", "65534"] {
            let done = guest.exec_program(user, &[&["innkeeper"], args].concat());
            assert_eq!(done.code, Some(77), "{user} {args:?}: {done:?}");
        }
        let done = guest.as_session(&format!("innkeeper {}", args.join(" ")));
        assert_eq!(done.code, Some(77), "the session {args:?}: {done:?}");
    }
    for args in [&["request", "a.test", "--reason", "x"][..], &["requests"], &["request", "--status", "1"]] {
        let done = guest.exec_program("901", &[&["innkeeper"], args].concat());
        assert_eq!(done.code, Some(77), "901 {args:?}: {done:?}");
    }
    assert_eq!(requests(&guest)[0]["state"], "pending");
    assert!(
        guest.exec_program(AGENT, &["innkeeper", "requests"]).out.contains("evil.test"),
        "its own it sees"
    );
    // Arguments that are no arguments.
    for args in [
        &["request", "--reason", "--wait", "b.test"][..],
        &["request", "--", "--reason", "x"],
        &["request", "b.test"],
        &["request"],
        &["request", "--status", "-1"],
        &["request", "--status", "1", "b.test"],
        &["grant", "-1"],
        &["grant", "99999999999999999999"],
        &["grant", "1", "--for", "-1h"],
        &["grant", "1", "--for", "99999d"],
        &["grant", "1", "--for", "0s"],
        &["refuse", "--reason", "x"],
    ] {
        let done = guest.exec_program(ROOT, &[&["innkeeper"], args].concat());
        assert_eq!(done.code, Some(64), "{args:?}: {done:?}");
    }
    let long =
        guest.exec_agent("innkeeper request b.test --reason \"$(head -c 120000 /dev/zero | tr '\\0' x)\"");
    assert!(long.code == Some(64) && long.err.len() < 500, "{long:?}");
    let longer =
        guest.exec_agent("innkeeper request b.test --reason \"$(head -c 2000000 /dev/zero | tr '\\0' x)\"");
    assert!(!longer.ok(), "{:?}", longer.code);
    assert_eq!(requests(&guest).len(), 1);
}
