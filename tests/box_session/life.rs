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

/// A session that shows who it is whenever its terminal changes, and counts what is typed.
const TALKER: &str = "trap 'stty size; echo here-I-am-$$' WINCH; trap 'stty size; echo here-I-am-$$' CONT; \
                      echo here-I-am-$$; while :; do read -r line && echo \"heard $line\"; done";

fn talker() -> BoxOptions {
    BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/bash\n-c\n{TALKER}"))
}

fn claude_pid(guest: &RunningBox) -> i64 {
    let status = guest.await_status("a session", |status| status["session"]["state"] == "running");
    status["session"]["claude_pid"].as_i64().unwrap()
}

fn tmux_worker(status: &serde_json::Value) -> Option<&serde_json::Value> {
    status["workers"].as_array().unwrap().iter().find(|worker| worker["name"] == "tmux")
}

#[test]
fn f15_the_tmux_server_comes_back_however_it_was_ended_and_claude_lives_on() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&talker());
    let claude = claude_pid(&guest);
    let server = |count: u64| {
        let status = guest.await_status("a server", |status| {
            tmux_worker(status).is_some_and(|tmux| tmux["pid"].is_i64() && tmux["restarts"] == count)
        });
        tmux_worker(&status).unwrap()["pid"].as_i64().unwrap()
    };
    let looks = |how: &str| {
        let mut terminal = attach(&guest, 100, 30);
        // Bash runs its traps when a line has come: that the terminal changed it has heard before.
        terminal.keys(&format!("{how}-typed\r"));
        terminal.sees(&format!("here-I-am-{claude}"));
        terminal.sees(&format!("heard {how}-typed"));
        terminal.keys("\x02d");
    };
    looks("before");
    for (how, count) in [("KILL", 0), ("TERM", 1)] {
        let before = server(count);
        guest.exec_agent(&format!("kill -{how} {before}")).expect(how);
        assert_ne!(server(count + 1), before);
        looks(how);
        assert_eq!(claude_pid(&guest), claude);
    }
    guest.tmux(&["kill-server"]);
    assert!(guest.await_line("the tmux server ended (exit status 0); again in").is_some());
    server(3);
    looks("kill-server");
    assert_eq!(claude_pid(&guest), claude);
    assert_eq!(guest.status()["session"]["restarts"], 0);
}

#[test]
fn f15_without_anybody_to_show_it_claude_works_all_the_same() {
    let Some(rig) = Rig::new() else { return };
    // More than a terminal holds: nobody reads it while the server is stopped.
    let line = "echo up; for i in $(seq 1 20000); do echo \"line $i of many\"; done; \
                echo done >/workspace/done; while :; do sleep 1000; done";
    let guest = rig.boot(&shell(line));
    let claude = claude_pid(&guest);
    until("all is written", || guest.exec_agent("test -s /workspace/done").ok());
    let server = tmux_worker(&guest.status()).unwrap()["pid"].as_i64().unwrap();
    guest.exec_agent(&format!("kill -STOP {server}")).expect("stop");
    // PID 1 answers as ever, and stops as ever.
    assert_eq!(claude_pid(&guest), claude);
    guest.exec_agent(&format!("kill -KILL {server}")).expect("kill");
    let mut terminal = attach(&guest, 100, 30);
    terminal.keys("\x02d");
    assert_eq!(claude_pid(&guest), claude);
    assert_eq!(guest.stop(), 143);
}

#[test]
fn f15_without_any_tmux_a_terminal_full_of_output_holds_nobody_up() {
    let Some(rig) = Rig::new() else { return };
    // Far more than a terminal holds, and then on.
    let line =
        "head -c 1048576 /dev/zero | tr '\\0' x; echo done >/workspace/done; while :; do sleep 1000; done";
    let line = format!("until test -e /workspace/go; do sleep 0.1; done; {line}");
    // The operator's own tmux comes before the distribution's; this one starts only when it may.
    let script = "#!/bin/sh\ntest -e /workspace/no-tmux && exit 1\nexec /usr/bin/tmux \"$@\"\n";
    let tmux = rig.file("tmux", script);
    std::fs::set_permissions(&tmux, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let guest = rig.boot(&shell(&line).volume(&format!("{}:/usr/local/bin/tmux:ro", tmux.display())));
    let claude = claude_pid(&guest);
    guest.exec_agent("touch /workspace/no-tmux").expect("no tmux");
    let server = tmux_worker(&guest.status()).unwrap()["pid"].as_i64().unwrap();
    guest.exec_agent(&format!("kill -KILL {server}")).expect("kill");
    assert!(guest.await_line("the tmux server ended at once").is_some(), "{}", guest.logs());
    guest.exec_agent("touch /workspace/go").expect("go");
    until("all is written", || guest.exec_agent("test -s /workspace/done").ok());
    assert_eq!(claude_pid(&guest), claude);
    // The next tmux shows it again.
    guest.exec_agent("rm /workspace/no-tmux").expect("rm");
    attach(&guest, 80, 24).keys("\x02d");
    assert_eq!(claude_pid(&guest), claude);
    assert_eq!(guest.stop(), 143);
}

#[test]
fn what_an_ended_program_had_on_its_screen_is_in_status() {
    let Some(rig) = Rig::new() else { return };
    let line = "printf 'first \\033[31mred\\033[0m\\n'; echo 'fatal: the disk is full'; exit 3";
    let guest = rig.boot(&shell(line));
    let status = guest.await_status("its last words", |status| {
        status["session"]["state"] == "backoff" && status["session"]["last_output"].is_string()
    });
    let output = status["session"]["last_output"].as_str().unwrap();
    assert!(output.contains("first red\nfatal: the disk is full"), "{output}");
    assert!(output.chars().count() <= 2000);
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("| fatal: the disk is full") || screen.contains("Session: running"), "{screen}");
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
        ("kill -SEGV $$", 139, "killed by SIGSEGV"),
    ] {
        let guest = rig.start(&shell(line).env("INNKEEPER_SESSION_ON_EXIT", "stop"));
        assert_eq!(guest.exit_code(), expected, "{}", guest.logs());
        assert!(
            guest.logs().contains(&format!("exit: Claude Code ended ({word})"))
                && guest.logs().contains(&format!("(exit status {expected})")),
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
    let how =
        "Claude Code ended (killed by SIGKILL): by a process of the agent's own, or from outside the box";
    assert!(guest.await_line(&format!("{how}; again in 1 s")).is_some());
    let after = guest.await_status("another", |status| {
        status["session"]["state"] == "running" && status["session"]["claude_pid"].as_i64() != Some(pid)
    });
    assert_eq!(after["session"]["restarts"], 1);
    assert_eq!(after["session"]["last_exit"], how);
    let tmux = |status: &serde_json::Value| status["workers"].to_string();
    assert!(tmux(&after).contains("\"tmux\""));
    // The pane that is killed takes its tmux with it, which is made again; Claude lives on.
    let pid = claude_pid(&guest);
    guest.exec_agent("pkill -KILL -f 'innkeeper pane'").expect("kill");
    assert!(guest.await_line("the session is made again").is_some());
    let status = guest.await_status("a server again", |status| {
        tmux_worker(status).is_some_and(|tmux| tmux["pid"].is_i64() && tmux["restarts"] == 1)
    });
    assert_eq!(status["session"]["claude_pid"].as_i64(), Some(pid));
    assert_eq!(status["session"]["restarts"], 1);
}
