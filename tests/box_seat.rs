//! The operator's seat: who is in the box, root's shell, a relay that nothing holds up, and notices.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "box_seat/notices.rs"]
mod notices;
#[path = "box_seat/relay.rs"]
mod relay;
#[path = "support/rig.rs"]
mod rig;
#[path = "box_seat/shell.rs"]
mod shell;
#[path = "box_session/terminal.rs"]
mod terminal;
#[path = "box_seat/visits.rs"]
mod visits;

use std::time::{Duration, Instant};

use rig::{PATIENCE, RunningBox};
use serde_json::Value;
use terminal::Terminal;

/// An operator's `docker exec -it BOX …`.
fn enter(guest: &RunningBox, command: &[&str], cols: u16, rows: u16) -> Terminal {
    Terminal::run(&[&["docker", "exec", "-it", &guest.name], command].concat(), cols, rows)
}

/// An operator's `innkeeper attach`, with the session on the screen.
#[track_caller]
fn attach(guest: &RunningBox, flags: &[&str]) -> Terminal {
    let mut terminal = enter(guest, &[&["innkeeper", "attach"], flags].concat(), 90, 24);
    terminal.sees("Leave with Ctrl-b d");
    terminal
}

/// Asks until it is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn clients(guest: &RunningBox) -> usize {
    guest.tmux(&["list-clients"]).out.lines().count()
}

/// The entries of the audit log of this kind.
fn log(guest: &RunningBox, event: &str) -> Vec<Value> {
    let text = guest.innkeeper(&["log", "--json"]).expect("log");
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.filter(|entry| entry["event"] == event).collect()
}
