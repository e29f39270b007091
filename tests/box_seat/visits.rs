//! PID 1 knows who is in the box, by a connection that ends with the visit.

use super::rig::{BoxOptions, Rig};
use super::{attach, clients, enter, log, until};

#[test]
fn operators_are_known_as_long_as_they_are_there_however_they_leave() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let operators = || guest.status()["operators"].as_array().unwrap().clone();
    assert!(operators().is_empty());
    let mut first = attach(&guest, &[]);
    let mut second = attach(&guest, &["--read-only"]);
    let mut third = enter(&guest, &["innkeeper", "shell"], 80, 24);
    third.keys("echo in-$((40+2))\r");
    third.sees("in-42");
    let there: Vec<_> = operators()
        .iter()
        .map(|one| (one["place"].as_str().unwrap().to_owned(), one["read_only"].as_bool().unwrap()))
        .collect();
    let place = |text: &str, read_only| (text.to_owned(), read_only);
    assert_eq!(there, [place("session", false), place("session", true), place("shell", false)]);
    // By the key, by being killed, and by the end of the shell.
    first.keys("\x02d");
    assert_eq!(first.ends(), 0);
    guest.exec_root("pkill -KILL -f '^innkeeper attach --read-only'").expect("pkill");
    second.ends();
    third.keys("exit 3\r");
    assert_eq!(third.ends(), 3, "the shell's own status");
    until("nobody is there", || operators().is_empty() && clients(&guest) == 0);
    let visits: Vec<(u64, String, String)> = log(&guest, "operator")
        .iter()
        .map(|one| {
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            (one["id"].as_u64().unwrap(), text("action"), text("place"))
        })
        .collect();
    for (id, place) in [(1, "session"), (2, "session"), (3, "shell")] {
        for action in ["entered", "left"] {
            let wanted = (id, action.to_owned(), place.to_owned());
            assert!(visits.contains(&wanted), "{wanted:?}: {visits:?}");
        }
    }
}

/// Says a line on the control socket; what comes back.
const SAY: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect('/run/innkeeper/control.sock'); s.settimeout(5)
s.sendall(sys.argv[1].encode() + b'\\n'); print(s.recv(4096).decode())";

#[test]
fn the_agent_takes_no_seat_and_the_operator_plays_no_hook() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let seat = r#"{"op":"seat","place":"session","read_only":true}"#;
    let hook = r#"{"op":"hook","turn":"ended","text":"x"}"#;
    let say = |user: &str, line: &str| guest.exec_program(user, &["python3", "-c", SAY, line]).expect("say");
    assert!(say("0", seat).contains("taken"));
    assert!(say("1000", seat).contains("refused"), "{}", say("1000", seat));
    assert!(say("901", seat).contains("refused") && say("905", hook).contains("refused"));
    assert!(say("0", hook).contains("refused"));
    assert!(say("1000", hook).contains("heard"));
    // Whoever runs as the agent can tell what Claude's hooks tell: inert words, and not many.
    let hook = r#"{"op":"hook","turn":"ended","text":"a\u001b]2;evil\u0007b"}"#;
    guest.await_session();
    assert!(say("1000", hook).contains("heard"));
    let status = guest.await_status("the words", |status| status["session"]["state"] == "waiting");
    assert_eq!(status["session"]["last_message"], "a\\u{1b}]2;evil\\u{7}b");
    let flood = format!("import sys\nfor _ in range(60):\n    {}", SAY.replace('\n', "\n    "));
    let heard = guest.exec_program("1000", &["python3", "-c", &flood, hook]).out;
    assert!(heard.contains("too many at a time"), "{heard}");
}

#[test]
fn t94_what_the_agent_makes_or_removes_says_nothing_about_readiness() {
    let Some(rig) = Rig::new() else { return };
    let silent =
        |zone: &mut serde_json::Value| zone["servers"]["9.9.9.53"] = serde_json::json!({ "drop": true });
    rig.world.zone(silent);
    // Not ready yet: nothing that somebody else than root writes makes it so.
    let guest = rig.start(&BoxOptions::new().env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "300s"));
    assert!(guest.await_line("boot: dns ok").is_some());
    let spoof = "for d in /tmp /run/innkeeper /run/user/1000 /workspace /home/claude; do for n in ready innkeeper-ready \
        codetainer-ready .ready lock control.sock start.lock; do echo ready > $d/$n; done; done 2>/dev/null; ls /tmp";
    let planted = guest.exec_agent(spoof);
    assert!(planted.out.contains("ready"), "{planted:?}");
    let ready = || guest.innkeeper(&["status", "--check", "ready"]);
    assert!(!ready().ok());
    rig.world.zone(|zone| zone["servers"]["9.9.9.53"] = serde_json::json!({}));
    assert!(guest.await_line("boot: ready after").is_some());
    assert!(ready().ok());
    // And ready: nothing that the agent takes away makes it less so.
    guest.await_session();
    guest.exec_agent("rm -rf /tmp/* /tmp/.[!.]* /run/innkeeper/* /run/innkeeper/*/* 2>/dev/null");
    assert!(ready().ok());
    attach(&guest, &[]).keys("\x02d");
}
