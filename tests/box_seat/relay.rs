//! What happens at either end of the relay, and must not hold up or wreck the other.

use std::time::Instant;

use super::rig::{BoxOptions, PATIENCE, Rig};
use super::terminal::Terminal;
use super::{attach, clients, enter, until};

#[test]
fn f29_three_operators_with_any_size_of_terminal() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_session();
    let sizes = [(0, 0), (1, 1), (2, 60), (65_535, 65_535), (0, 24)];
    let mut terminals: Vec<Terminal> =
        sizes.iter().map(|(cols, rows)| enter(&guest, &["innkeeper", "attach"], *cols, *rows)).collect();
    until("all are in", || clients(&guest) == sizes.len());
    let widths = guest.tmux(&["list-clients", "-F", "#{client_width}x#{client_height}"]).out;
    assert!(
        widths.lines().all(|line| {
            line.split('x').all(|side| side.parse::<u32>().is_ok_and(|side| (1..=2000).contains(&side)))
        }),
        "{widths}"
    );
    // From nothing to something, and back.
    terminals[0].resize(100, 30);
    until("the size", || guest.tmux(&["list-clients", "-F", "#{client_width}"]).out.contains("100\n"));
    terminals[0].resize(0, 0);
    for terminal in &mut terminals {
        terminal.keys("\x1d\x1d\x1d\x1d");
        assert_eq!(terminal.ends(), 0);
        assert!(terminal.is_restored());
    }
    until("nobody is left behind", || clients(&guest) == 0);
    assert_eq!(guest.await_session()["session"]["restarts"], 0);
}

#[test]
fn f29_a_terminal_that_does_not_read_holds_up_nobody_and_is_left_all_the_same() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    // What is not asked for is not read here.
    let mut blocked = attach(&guest, &[]);
    let mut other = attach(&guest, &[]);
    other.keys("\x02\x1b[B");
    other.keys("seq 1 3000000; echo flood-$((40+2))\r");
    other.sees("flood-42");
    let relays = || guest.exec_root("pgrep -c -f '^innkeeper attach'").out.trim().parse::<u32>().unwrap();
    assert_eq!(relays(), 2);
    // It still hears a signal.
    guest.exec_root("pkill -TERM -o -f '^innkeeper attach'").expect("pkill");
    until("the relay has ended", || relays() == 1);
    blocked.ends();
    assert!(blocked.is_restored() && other.runs());
    other.keys("echo still-$((40+2))\r");
    other.sees("still-42");
}

#[test]
fn f29_a_client_that_is_stopped_goes_on_and_one_that_is_stopped_for_ever_is_left() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut operator = attach(&guest, &[]);
    operator.keys("\x02\x1b[B");
    let stop = "pkill -STOP -f '[t]mux.*attach-session'";
    guest.exec_agent(stop).expect("the agent stops the client");
    operator.keys("echo on-$((40+2))\r");
    operator.sees("on-42");
    // tmux's own key for it would leave a client that nobody wakes.
    operator.keys("\x02\x1a");
    operator.keys("echo awake-$((40+2))\r");
    operator.sees("awake-42");
    guest.exec_agent(&format!("for i in $(seq 400); do {stop} || break; sleep 0.02; done"));
    operator.ends();
    assert!(
        operator.saw("[left: the session's client was stopped again and again]"),
        "{:?}",
        operator.text()
    );
    assert!(operator.is_restored());
    until("no client", || clients(&guest) == 0);
}

#[test]
fn f29_the_keys_of_the_relay_leave_a_session_that_hangs() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut operator = attach(&guest, &[]);
    guest.exec_agent("pkill -STOP -f '[t]mux -D'").expect("the agent stops the server");
    // Its own way out leads nowhere now; a paste fills what it reads.
    operator.keys("\x02d");
    operator.keys(&"x".repeat(300_000));
    assert!(operator.runs());
    // After a paste that nobody reads it takes two seconds until keys are looked at again.
    let end = Instant::now() + PATIENCE;
    while guest.exec_root("pgrep -f '^innkeeper attach'").ok() {
        assert!(Instant::now() < end, "the keys lead nowhere");
        operator.keys("\x1d\x1d\x1d\x1d");
    }
    operator.ends();
    assert!(operator.is_restored());
    guest.exec_agent("pkill -CONT -f '[t]mux -D'").expect("it goes on");
    attach(&guest, &[]).keys("\x02d");
}

#[test]
fn f29_attaching_while_the_box_stops_ends_with_a_line() {
    let Some(rig) = Rig::new() else { return };
    let stubborn = "/bin/bash\n-c\ntrap '' TERM HUP; while :; do sleep 1; done";
    let options = BoxOptions::new()
        .env("INNKEEPER_SESSION_COMMAND", stubborn)
        .env("INNKEEPER_SESSION_STOP_TIMEOUT", "30s");
    let guest = rig.boot(&options);
    let mut inside = attach(&guest, &[]);
    guest.signal("TERM");
    assert!(guest.await_line("SIGTERM: ending the session").is_some());
    let mut late = enter(&guest, &["innkeeper", "attach"], 80, 24);
    let status = late.ends();
    // The box may be faster than the way in.
    let said = late.text();
    assert!(
        said.contains("the box is stopping") || said.contains("not running") || status == 137,
        "{status}: {said}"
    );
    assert!(late.is_restored());
    inside.ends();
    assert!(inside.is_restored());
    assert_eq!(guest.exit_code(), 143);
}

#[test]
fn f29_a_relay_that_is_killed_leaves_no_client_and_a_terminal_that_can_be_used() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut terminal = enter(&guest, &["bash", "--norc"], 80, 24);
    terminal.keys("innkeeper attach\r");
    terminal.sees("Leave with Ctrl-b d");
    guest.exec_root("pkill -KILL -f '^innkeeper attach'").expect("pkill");
    until("no client", || clients(&guest) == 0);
    terminal.keys("\rstty -a | grep -c ' icanon'; echo sane-$((40+2))\r");
    terminal.sees("sane-42");
}

#[test]
fn t91_the_clipboard_is_written_only_for_an_operator_who_asked_for_it() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut without = attach(&guest, &[]);
    let mut with = attach(&guest, &["--clipboard"]);
    with.forget();
    without.forget();
    // While tmux draws a client's screen anew it leaves out what else is to be written: then it is said again.
    for time in 0.. {
        let print =
            format!("printf '\\033]52;c;aW5ub2NlbnQ=\\007\\033]2;evil-title\\007shown-%s' after-{time}");
        guest.type_into_pane("1", &print);
        with.sees(&format!("shown-after-{time}"));
        without.sees(&format!("shown-after-{time}"));
        if with.saw("\x1b]52;") {
            break;
        }
        assert!(time < 10, "{:?}", with.text());
    }
    let osc = |terminal: &Terminal| terminal.text().matches("\x1b]").count();
    assert!(
        with.saw("\x1b]52;c;aW5ub2NlbnQ=\x07") || with.saw("\x1b]52;;aW5ub2NlbnQ=\x07"),
        "{:?}",
        with.text()
    );
    // Whatever tmux made of it, there is one thing of that kind and no question.
    assert_eq!((osc(&with), osc(&without)), (1, 0), "{:?}", with.text());
    assert!(!with.saw("?\x07") && !with.saw("evil-title\x07"));
}
