//! Sessions that end by themselves: after a while, at a time, when they have cost enough. Exit status 75: resumable.

use super::rig::{BoxOptions, Rig, RunningBox, must};
use super::until;

/// Says on the volume when it is told to end.
const POLITE: &str = "trap 'echo told >>/workspace/order; exit 0' TERM; echo up >/workspace/up; \
                      while :; do sleep 1000 & wait; done";

fn polite(volume: &str) -> BoxOptions {
    BoxOptions::new()
        .env("INNKEEPER_SESSION_COMMAND", &format!("/bin/bash\n-c\n{POLITE}"))
        .volume(&format!("{volume}:/workspace"))
}

fn order(volume: &str) -> String {
    let point = must("docker", &["volume", "inspect", "-f", "{{.Mountpoint}}", volume]);
    std::fs::read_to_string(format!("{}/order", point.trim())).unwrap_or_default()
}

/// As Claude's status line does it.
pub(crate) fn gauge(guest: &RunningBox, gauge: &str) -> String {
    let line = format!(r#"{{"op":"gauge","gauge":{gauge}}}"#);
    guest.exec_agent(&format!("printf '%s\\n' '{line}' | timeout 10 socat - UNIX-CONNECT:/run/innkeeper/control.sock || \
        python3 -c \"import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/innkeeper/control.sock'); s.sendall(sys.argv[1].encode()+b'\\n'); print(s.recv(4096).decode())\" '{line}'")).both()
}

#[test]
fn after_max_time_the_session_is_told_to_end_and_the_box_is_resumable() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.start(&polite(&volume).env("INNKEEPER_SESSION_MAX_TIME", "20s"));
    until("the trap", || guest.exec_root("test -s /workspace/up").ok());
    let status = guest.await_status("a deadline", |status| status["session"]["deadline"].is_string());
    let deadline = status["session"]["deadline"].as_str().unwrap();
    assert!(deadline.starts_with("20") && deadline.ends_with('Z'), "{deadline}");
    assert_eq!(guest.exit_code(), 75, "{}", guest.logs());
    assert_eq!(order(&volume), "told\n");
    let logs = guest.logs();
    assert!(
        logs.contains(
            "exit: the session ends: it has lasted 20s (session.max_time); it can be resumed (exit status 75)"
        ),
        "{logs}"
    );
}

#[test]
fn a_time_that_is_past_ends_the_session_at_once() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.start(&BoxOptions::new().env("INNKEEPER_SESSION_UNTIL", "2020-01-31T07:00:00+01:00"));
    assert_eq!(guest.exit_code(), 75, "{}", guest.logs());
    assert!(guest.logs().contains("it is 2020-01-31T06:00:00.000Z (session.until)"), "{}", guest.logs());
}

#[test]
fn a_session_that_does_not_listen_to_its_deadline_is_ended_all_the_same() {
    let Some(rig) = Rig::new() else { return };
    let stubborn = "trap '' TERM INT HUP; while :; do sleep 1000; done";
    let guest = rig.start(
        &BoxOptions::new()
            .env("INNKEEPER_SESSION_COMMAND", &format!("/bin/bash\n-c\n{stubborn}"))
            .env("INNKEEPER_SESSION_STOP_TIMEOUT", "3s")
            .env("INNKEEPER_SESSION_MAX_TIME", "3s"),
    );
    assert_eq!(guest.exit_code(), 75, "{}", guest.logs());
}

#[test]
fn a_session_that_costs_more_than_it_may_is_ended() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&polite(&volume).env("INNKEEPER_SESSION_MAX_COST", "5.00"));
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    until("the trap", || guest.exec_root("test -s /workspace/up").ok());
    let heard = gauge(&guest, r#"{"cost_microusd":4990000,"context_percent":42,"name":"fix-\u001b[31m-it"}"#);
    assert!(heard.contains("heard"), "{heard}");
    let status = guest.await_status("the cost", |status| status["session"]["cost_usd"] == 4.99);
    assert_eq!(status["session"]["context_percent"], 42);
    assert_eq!(status["session"]["name"], "fix-\\u{1b}[31m-it", "inert");
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("$4.99") && screen.contains("context 42 %"), "{screen}");
    assert!(guest.running());
    gauge(&guest, r#"{"cost_microusd":5000001}"#);
    assert_eq!(guest.exit_code(), 75, "{}", guest.logs());
    assert_eq!(order(&volume), "told\n");
    assert!(guest.logs().contains("more than $5.00 (session.max_cost)"), "{}", guest.logs());
}

#[test]
fn a_flood_of_gauges_is_not_heard_and_fills_nothing() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    let flood = "import socket\nheard = 0\nfor n in range(300):\n  s = socket.socket(socket.AF_UNIX); s.connect('/run/innkeeper/control.sock')\n  s.sendall(b'{\"op\":\"gauge\",\"gauge\":{\"cost_microusd\":%d}}\\n' % n)\n  heard += b'heard' in s.recv(4096)\nprint(heard)";
    guest.write_as_agent("/tmp/flood.py", flood);
    let heard: u32 = guest.exec_agent("python3 /tmp/flood.py").expect("flood").trim().parse().unwrap();
    assert!((1..100).contains(&heard), "{heard}");
    let lines = guest.logs().lines().filter(|line| line.contains("session")).count();
    assert!(lines < 30, "{}", guest.logs());
    for wrong in [r#"{"cost_microusd":-1}"#, r#"{"cost_usd":1}"#, r#"{"context_percent":300}"#, "7"] {
        assert!(!gauge(&guest, wrong).contains("heard"), "{wrong}");
    }
}
