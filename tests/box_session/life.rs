//! What ends and comes back: F14 and F15.

use super::rig::{BoxOptions, Rig, RunningBox};
use super::{attach, until};

/// A session of one line of shell.
fn shell(line: &str) -> BoxOptions {
    BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/sh\n-c\n{line}"))
}

fn state(guest: &RunningBox) -> String {
    guest.status()["session"]["state"].as_str().unwrap().to_owned()
}

#[test]
fn f14_a_program_that_ends_at_once_is_started_again_ever_more_slowly() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&shell("exit 3"));
    for pause in ["1 s", "2 s", "4 s"] {
        let line = format!("Claude Code ended (exit status 3); again in {pause}");
        assert!(guest.await_line(&line).is_some());
    }
    let status = guest.await_status("back-off", |status| status["session"]["state"] == "backoff");
    assert!(status["session"]["restarts"].as_u64().unwrap() >= 3);
    assert_eq!(status["session"]["last_exit"], "Claude Code ended (exit status 3)");
    assert!(status["session"]["claude_pid"].is_null());
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("starting again since") && screen.contains("exit status 3"), "{screen}");
    assert_eq!(guest.innkeeper(&["status", "--check", "ready"]).code, Some(0), "the box itself is well");
    // The operator comes in, reads why, and has a shell.
    let mut terminal = attach(&guest, 120, 40);
    terminal.sees("the shell below is yours meanwhile");
    terminal.keys("\x02\x1b[B");
    terminal.keys("echo mine-$((40+2))\r");
    terminal.sees("mine-42");
}

#[test]
fn f14_without_its_program_the_session_says_why_and_the_shell_is_there() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", "/workspace/not-there"));
    let status = guest.await_status("back-off", |status| status["session"]["state"] == "backoff");
    let detail = status["session"]["detail"].as_str().unwrap();
    assert!(detail.contains("/workspace/not-there"), "{detail}");
    let mut terminal = attach(&guest, 120, 40);
    terminal.keys("\x02\x1b[B");
    terminal.keys("echo mine-$((40+2))\r");
    terminal.sees("mine-42");
    assert!(guest.running());
}

#[test]
fn f15_the_tmux_server_comes_back_however_it_was_ended() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let server = |guest: &RunningBox| {
        let status = guest.await_status("a session", |status| status["session"]["state"] == "running");
        let workers = status["workers"].as_array().unwrap().clone();
        workers.iter().find(|worker| worker["name"] == "tmux").unwrap()["pid"].as_i64().unwrap()
    };
    for (how, count) in [("kill -KILL", 1), ("kill -TERM", 2)] {
        let before = server(&guest);
        guest.exec_agent(&format!("{how} {before}")).expect(how);
        guest.await_status("another server", |status| {
            let running = status["session"]["state"] == "running";
            let tmux = |worker: &serde_json::Value| worker["name"] == "tmux" && worker["restarts"] == count;
            running && status["workers"].as_array().unwrap().iter().any(tmux)
        });
        assert_ne!(server(&guest), before);
        assert!(guest.tmux(&["has-session", "-t", "claude"]).ok());
    }
    guest.tmux(&["kill-server"]);
    assert!(guest.await_line("the tmux server ended (exit status 0); again in").is_some());
    server(&guest);
    attach(&guest, 80, 24).keys("\x02d");
}

#[test]
fn f15_a_socket_that_was_removed_is_made_again() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    guest.exec_agent("rm /run/user/1000/tmux.sock").expect("rm");
    assert!(!guest.tmux(&["has-session"]).ok(), "nobody comes in without it");
    assert!(guest.await_line("the tmux socket was removed").is_some());
    until("the socket", || guest.tmux(&["has-session", "-t", "claude"]).ok());
    assert_eq!(guest.status()["session"]["restarts"], 0, "nothing else was touched");
    attach(&guest, 80, 24).keys("\x02d");
}

#[test]
fn f15_what_the_agent_puts_in_the_sockets_place_does_not_keep_the_operator_out() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    for place in ["mkdir -p tmux.sock/in", "touch tmux.sock", "ln -s /dev/null tmux.sock", "mkfifo tmux.sock"]
    {
        guest.exec_agent(&format!("cd /run/user/1000 && rm -rf tmux.sock && {place}")).expect(place);
        assert!(!guest.tmux(&["has-session"]).ok(), "nobody comes in");
        until(place, || guest.tmux(&["has-session", "-t", "claude"]).ok());
        attach(&guest, 80, 24).keys("\x02d");
    }
    assert!(guest.running());
}

#[test]
fn with_on_exit_stop_the_exit_status_is_the_programs() {
    let Some(rig) = Rig::new() else { return };
    for (line, expected, word) in [
        ("exit 7", 7, "exit status 7"),
        ("exit 0", 0, "exit status 0"),
        ("kill -KILL $$", 137, "killed by SIGKILL"),
    ] {
        let guest = rig.start(&shell(line).env("INNKEEPER_SESSION_ON_EXIT", "stop"));
        assert_eq!(guest.exit_code(), expected, "{}", guest.logs());
        assert!(
            guest.logs().contains(&format!("Claude Code ended ({word}) (exit status {expected})")),
            "{}",
            guest.logs()
        );
    }
}

#[test]
fn with_on_exit_shell_the_pane_becomes_a_shell() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&shell("exit 7").env("INNKEEPER_SESSION_ON_EXIT", "shell"));
    let status = guest.await_status("the end", |status| status["session"]["state"] == "exited");
    assert_eq!(status["session"]["last_exit"], "Claude Code ended (exit status 7)");
    assert_eq!(status["session"]["restarts"], 0);
    let mut terminal = attach(&guest, 120, 40);
    terminal.sees("this is a shell");
    terminal.keys("echo upper-$((40+2))\r");
    terminal.sees("upper-42");
    assert_eq!(state(&guest), "exited");
}

#[test]
fn a_program_that_is_killed_comes_back_and_the_pane_stays() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before = guest.await_status("a session", |status| status["session"]["state"] == "running");
    let pid = before["session"]["claude_pid"].as_i64().unwrap();
    guest.exec_agent(&format!("kill -KILL {pid}")).expect("kill");
    assert!(guest.await_line("Claude Code ended (killed by SIGKILL); again in 1 s").is_some());
    let after = guest.await_status("another", |status| {
        status["session"]["state"] == "running" && status["session"]["claude_pid"].as_i64() != Some(pid)
    });
    assert_eq!(after["session"]["restarts"], 1);
    assert_eq!(after["session"]["last_exit"], "Claude Code ended (killed by SIGKILL)");
    let tmux = |status: &serde_json::Value| status["workers"].to_string();
    assert!(tmux(&after).contains("\"tmux\""));
    // The pane that is killed takes the session with it, which is made again.
    guest.exec_agent("pkill -KILL -f 'innkeeper pane'").expect("kill");
    assert!(guest.await_line("the session is made again").is_some());
    guest.await_status("a session again", |status| status["session"]["state"] == "running");
}
