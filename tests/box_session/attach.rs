//! Coming in, looking around and leaving.

use super::rig::{BoxOptions, Rig};
use super::terminal::Terminal;
use super::{attach, enter, late_until, until};

#[test]
fn leaving_gives_the_terminal_back_and_leaves_the_box_running() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut terminal = attach(&guest, 80, 24);
    assert!(!terminal.is_restored(), "it is in raw mode");
    terminal.forget();
    terminal.keys("\x02d");
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.saw("[the box keeps running]"), "{:?}", terminal.text());
    assert!(terminal.is_restored());
    for mode in ["\x1b[?1049l", "\x1b[?25h", "\x1b[?1000l", "\x1b[?2004l", "\x1b[0m"] {
        assert!(terminal.saw(mode), "{mode:?}: {:?}", terminal.text());
    }
    assert_eq!(guest.status()["session"]["state"], "running");
    assert_eq!(guest.tmux(&["list-clients"]).out, "");
    // And in again.
    attach(&guest, 80, 24).keys("\x02d");
}

#[test]
fn the_end_of_the_session_gives_the_terminal_back_and_says_so() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut terminal = attach(&guest, 80, 24);
    guest.tmux(&["kill-server"]);
    terminal.ends();
    assert!(terminal.is_restored());
    let said = |words: &str| terminal.saw(words);
    assert!(said("[the session ended]") || said("[the box keeps running]"), "{:?}", terminal.text());
    assert!(guest.running());
}

#[test]
fn the_shell_below_is_the_agents_and_keys_and_sizes_get_there() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets"));
    let mut terminal = attach(&guest, 100, 30);
    let sizes = || guest.tmux(&["list-clients", "-F", "#{client_width}x#{client_height}"]).out;
    assert_eq!(sizes(), "100x30\n");
    terminal.resize(120, 50);
    until("the new size", || sizes() == "120x50\n");
    // The path from the repository's root and the branch.
    terminal.sees("repo");
    terminal.sees("(main)");
    terminal.keys("\x02\x1b[B");
    terminal.forget();
    terminal.keys("echo is-$((40+2)) $(id -u) $PWD\r");
    terminal.sees("is-42 1000 /workspace/repo");
    terminal.keys("mkdir -p a/b; cd a/b; git switch -qc feature/x\r");
    terminal.sees("repo/a/b");
    terminal.sees("(feature/x)");
}

#[test]
fn before_the_session_it_shows_how_far_the_boot_is() {
    // No upstream answers, so that the firewall step waits for its names.
    let silent =
        |zone: &mut serde_json::Value| zone["servers"]["9.9.9.53"] = serde_json::json!({ "drop": true });
    let Some(rig) = Rig::with_zone(silent) else { return };
    let guest = rig.start(&BoxOptions::new().env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "300s"));
    assert!(guest.await_line("boot: dns ok").is_some());
    let mut terminal = enter(&guest, &["innkeeper", "attach"], 80, 24);
    for step in ["config", "lockdown", "mounts", "home", "dns"] {
        terminal.sees(step);
    }
    assert!(terminal.runs() && !terminal.saw("readiness"));
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.starts_with("BOOTING"), "{screen}");
    assert!(screen.contains("firewall …"), "{screen}");
    rig.world.zone(|zone| zone["servers"]["9.9.9.53"] = serde_json::json!({}));
    terminal.sees("readiness");
    terminal.sees("Leave with Ctrl-b d");
    terminal.keys("\x02d");
    assert_eq!(terminal.ends(), 0);
}

#[test]
fn attach_without_a_terminal_says_what_is_missing() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let tried = guest.innkeeper(&["attach"]);
    assert!(!tried.ok());
    assert!(tried.err.contains("standard input is not a terminal"), "{tried:?}");
    assert!(guest.exec("901", "innkeeper attach").both().contains("terminal"));
}

#[test]
fn docker_run_it_lands_in_the_session() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.start(&BoxOptions::new().tty());
    let mut terminal = Terminal::run(&["docker", "attach", &guest.name], 100, 30);
    let widths = || guest.tmux(&["list-clients", "-F", "#{client_width}"]).out;
    let inside = || {
        if let Some(late) = late_until(|| widths() == "100\n") {
            panic!("not in the session after {late:?}: {:?}\n{}", widths(), guest.logs());
        }
    };
    inside();
    terminal.resize(110, 31);
    until("the new size", || widths() == "110\n");
    terminal.resize(100, 30);
    terminal.keys("\x02\x1b[B");
    terminal.keys("cat\r");
    let below = ["display-message", "-p", "-t", "claude:0.1", "#{pane_current_command}"];
    until("cat in the foreground", || guest.tmux(&below).out == "cat\n");
    terminal.keys("\x03");
    // The keyboard's buffer is emptied by the signal.
    terminal.sees("^C");
    terminal.keys("echo back-$((40+2))\r");
    terminal.sees("back-42");
    assert!(guest.running(), "Ctrl-C belongs to the session");
    terminal.forget();
    terminal.keys("\x02d");
    terminal.sees("[the box keeps running. Enter: back to the session");
    assert!(guest.running());
    terminal.keys("x\r");
    inside();
    terminal.forget();
    guest.signal("TERM");
    assert_eq!(guest.exit_code(), 143);
    terminal.ends();
    assert!(terminal.saw("\x1b[?1049l") && terminal.saw("\x1b[?25h"), "{:?}", terminal.text());
    assert!(terminal.saw("stopped by SIGTERM (exit status 143)"), "{:?}", terminal.text());
}

#[test]
fn ctrl_c_after_detaching_stops_the_box_and_the_line_says_so() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.start(&BoxOptions::new().tty());
    let mut terminal = Terminal::run(&["docker", "attach", &guest.name], 100, 30);
    until("a client", || !guest.tmux(&["list-clients"]).out.is_empty());
    terminal.forget();
    terminal.keys("\x02d");
    terminal.sees("Enter: back to the session");
    terminal.sees("Ctrl-C");
    assert!(guest.running());
    terminal.keys("\x03");
    assert_eq!(guest.exit_code(), 130, "{}", guest.logs());
}

#[test]
fn roots_interactive_login_lands_in_the_session_unless_it_says_no() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for login in [&["bash"][..], &["bash", "-l"]] {
        let mut terminal = enter(&guest, login, 80, 24);
        terminal.sees("Leave with Ctrl-b d");
        terminal.keys("\x02d");
        assert_eq!(terminal.ends(), 0);
    }
    let mut terminal = enter(&guest, &["env", "INNKEEPER_NO_ATTACH=1", "bash"], 80, 24);
    terminal.keys("id -u; echo root-$((40+2)); exit\r");
    terminal.sees("root-42");
    terminal.ends();
    assert!(terminal.saw("0\r\nroot-42"), "{:?}", terminal.text());
    // The agent's shell has no such thing.
    assert_eq!(guest.exec_agent("bash -ic 'echo agents'").out, "agents\n");
}

#[test]
fn who_only_looks_can_not_type() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut operator = attach(&guest, 80, 24);
    operator.keys("\x02\x1b[B");
    operator.keys("echo typed-$((40+2))\r");
    operator.sees("typed-42");
    let mut visitor = enter(&guest, &["innkeeper", "attach", "--read-only"], 80, 24);
    visitor.sees("typed-42");
    visitor.keys("echo visitor-$((40+2))\r");
    operator.keys("echo again-$((40+2))\r");
    visitor.sees("again-42");
    assert!(!visitor.saw("visitor-42") && !operator.saw("visitor-42"));
    // The server is the agent's, and takes the flag back from its client: keys are dropped before they come to it.
    let clients = guest.tmux(&["list-clients", "-F", "#{client_tty} #{client_readonly}"]).out;
    let looking =
        clients.lines().find_map(|line| line.strip_suffix(" 1")).expect("a read-only client").to_owned();
    guest.tmux(&["switch-client", "-r", "-c", &looking]);
    until("a client that may type", || {
        !guest.tmux(&["list-clients", "-F", "#{client_readonly}"]).out.contains('1')
    });
    visitor.keys("echo visitor-$((40+2))\r");
    operator.keys("echo third-$((40+2))\r");
    visitor.sees("third-42");
    assert!(!visitor.saw("visitor-42") && !operator.saw("visitor-42"));
    visitor.keys("\x02d");
    assert_eq!(visitor.ends(), 0);
}

#[test]
fn an_attach_that_is_told_to_end_gives_the_terminal_back() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for signal in ["TERM", "HUP"] {
        let mut terminal = attach(&guest, 80, 24);
        terminal.forget();
        guest.exec_root(&format!("pkill -{signal} -f '^innkeeper attach'")).expect("pkill");
        terminal.ends();
        assert!(terminal.saw("\x1b[?1049l") && terminal.saw("\x1b[?25h"), "{signal}: {:?}", terminal.text());
        assert!(terminal.is_restored());
        // No client is left behind.
        until("no client", || guest.tmux(&["list-clients"]).out.is_empty());
    }
    assert_eq!(guest.status()["session"]["state"], "running");
}

#[test]
fn a_terminal_that_the_image_does_not_know_gets_in_all_the_same() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for term in ["no-such-terminal", "../../../etc/passwd", "dumb", "", "xterm-kitty", "xterm-ghostty"] {
        let given = format!("TERM={term}");
        let mut terminal = enter(&guest, &["env", &given, "innkeeper", "attach"], 80, 24);
        terminal.sees("Leave with Ctrl-b d");
        terminal.keys("\x02d");
        assert_eq!(terminal.ends(), 0, "{term}");
    }
}
