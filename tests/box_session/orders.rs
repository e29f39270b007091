//! What the operator orders: `innkeeper session restart` and `stop` end everything of the agent's first.

use super::rig::{BoxOptions, Rig, RunningBox};
use super::{attach, until};

/// Escaped from the session, and hears nothing that asks it to end.
const DAEMON: &str =
    "setsid nohup bash -c \"trap '' TERM HUP INT; while :; do sleep 1; done\" >/dev/null 2>&1 &";

fn session(guest: &RunningBox, state: &str) -> serde_json::Value {
    guest.await_status(state, |status| status["session"]["state"] == state)["session"].clone()
}

/// The agent's processes, zombies left out.
fn processes(guest: &RunningBox) -> String {
    guest.exec_root("ps -u 1000 -o stat=,pid=,args= | grep -v '^Z' || true").out
}

#[test]
fn a_restart_ends_what_escaped_and_the_session_goes_on() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before = session(&guest, "running")["claude_pid"].as_i64().unwrap();
    guest.as_session(DAEMON);
    until("the daemon", || processes(&guest).contains("trap '' TERM HUP INT"));
    // Not for the agent.
    let refused = guest.exec_agent("innkeeper session restart");
    assert_eq!(refused.code, Some(77), "{refused:?}");
    assert!(processes(&guest).contains("trap '' TERM HUP INT"));

    let done = guest.innkeeper(&["session", "restart", "--json"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let answer: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(answer["schema"], 1);
    assert!(answer["said"][0].as_str().unwrap().contains("begins anew"), "{answer}");
    assert!(!processes(&guest).contains("trap '' TERM HUP INT"), "{}", processes(&guest));
    let after = session(&guest, "running")["claude_pid"].as_i64().unwrap();
    assert_ne!(before, after);
    attach(&guest, 80, 24).keys("\x02d");
    assert_eq!(guest.innkeeper(&["status", "--check", "ready"]).code, Some(0));
}

#[test]
fn a_stopped_session_is_parked_and_goes_on_when_told() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    session(&guest, "running");
    guest.as_session(DAEMON);
    let done = guest.innkeeper(&["session", "stop"]);
    assert!(done.expect("stop").contains("go on with: innkeeper session restart"));
    assert_eq!(processes(&guest), "");
    let parked = session(&guest, "parked");
    assert!(parked["detail"].as_str().unwrap().contains("innkeeper session restart"), "{parked}");
    assert!(parked["claude_pid"].is_null());
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("Session: parked"), "{screen}");
    // Nothing comes back by itself, and a second order is as good as the first.
    guest.exec_root("sleep 3");
    assert_eq!(processes(&guest), "");
    guest.innkeeper(&["session", "stop"]).expect("stop again");
    session(&guest, "parked");
    guest.innkeeper(&["session", "restart"]).expect("restart");
    session(&guest, "running");
    attach(&guest, 80, 24).keys("\x02d");
    assert_eq!(guest.stop(), 143);
}

#[test]
fn a_session_that_became_a_shell_begins_anew() {
    let Some(rig) = Rig::new() else { return };
    let line = "test -e /workspace/second || { touch /workspace/second; exit 7; }; echo again; sleep 1000";
    let guest = rig.boot(
        &BoxOptions::new()
            .env("INNKEEPER_SESSION_COMMAND", &format!("/bin/sh\n-c\n{line}"))
            .env("INNKEEPER_SESSION_ON_EXIT", "shell"),
    );
    session(&guest, "exited");
    guest.innkeeper(&["session", "restart"]).expect("restart");
    session(&guest, "running");
    let mut terminal = attach(&guest, 100, 30);
    terminal.sees("again");
    terminal.keys("\x02d");
}

#[test]
fn a_fork_bomb_does_not_win() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&["--pids-limit", "400"]));
    session(&guest, "running");
    guest.as_session("bomb() { trap '' TERM; bomb | bomb & sleep 0.01; bomb; }; (bomb) >/dev/null 2>&1 &");
    until("many processes", || guest.host_pids().len() > 150);
    let done = guest.innkeeper(&["session", "stop"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.out.lines().count(), 1, "some did not end: {done:?}");
    assert_eq!(processes(&guest), "");
    guest.innkeeper(&["session", "restart"]).expect("restart");
    session(&guest, "running");
}

/// Root's places as root finds them: names, owners, modes, contents.
const OUTSIDE: &str = "find /run/innkeeper /run/user /etc/claude-code /opt/innkeeper -printf '%p %u %m %y %i %l\\n' | sort; \
                       sha256sum /run/innkeeper/etc/* /etc/passwd";

#[test]
fn t76_links_planted_before_a_restart_change_nothing_outside() {
    let Some(rig) = Rig::new() else { return };
    // A prompt so long that it goes through a file of the agent's.
    let guest = rig.boot(
        &BoxOptions::new()
            .env("INNKEEPER_SESSION_COMMAND", "/bin/sh\n-c\necho up; sleep 1000")
            .env("CLAUDE_PROMPT", &"x".repeat(100_000)),
    );
    session(&guest, "running");
    until("the prompt's file", || guest.exec_root("test -f /run/user/1000/prompt.md").ok());
    let outside = |guest: &RunningBox| {
        let seen = guest.exec_root(OUTSIDE).expect("outside");
        // What is the agent's own is the agent's.
        seen.lines().filter(|line| !line.starts_with("/run/user/1000")).collect::<Vec<_>>().join("\n")
    };
    let before = outside(&guest);
    assert!(before.contains("/run/innkeeper/etc/gitconfig root"), "{before}");
    for (place, target) in [
        ("tmux.sock", "/run/innkeeper/etc/gitconfig"),
        ("tmux.sock", "/run/innkeeper/control.sock"),
        ("tmux.sock", "/run/innkeeper/new"),
        ("prompt.md", "/run/innkeeper/etc/gitconfig"),
        ("prompt.md", "/run/innkeeper/new"),
    ] {
        let plant = format!("cd /run/user/1000 && rm -rf {place} && ln -s {target} {place}");
        guest.exec_agent(&plant).expect("link");
        guest.innkeeper(&["session", "restart"]).expect("restart");
        session(&guest, "running");
        until("a session to enter", || guest.tmux(&["has-session", "-t", "claude"]).ok());
        assert_eq!(outside(&guest), before, "{place} -> {target}");
    }
    attach(&guest, 80, 24).keys("\x02d");
}
