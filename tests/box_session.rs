//! The session as operators and attackers meet it: attaching, what ends and comes back, stopping, and `status`.
//!
//! The operator's side is a real pseudo-terminal in the test ([`terminal::Terminal`]), whose every byte counts.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "box_session/attach.rs"]
mod attach;
#[path = "box_session/attacks.rs"]
mod attacks;
#[path = "box_session/control.rs"]
mod control;
#[path = "box_session/deadline.rs"]
mod deadline;
#[path = "box_session/life.rs"]
mod life;
#[path = "box_session/limits.rs"]
mod limits;
#[path = "box_session/orders.rs"]
mod orders;
#[path = "support/rig.rs"]
mod rig;
#[path = "box_session/status.rs"]
mod status;
#[path = "box_session/stop.rs"]
mod stop;
#[path = "box_session/terminal.rs"]
mod terminal;

use std::time::{Duration, Instant};

use rig::{PATIENCE, RunningBox};
use terminal::Terminal;

const SOCKET: &str = "/run/user/1000/tmux.sock";

/// An operator's `docker exec -it BOX …`.
fn enter(guest: &RunningBox, command: &[&str], cols: u16, rows: u16) -> Terminal {
    Terminal::run(&[&["docker", "exec", "-it", &guest.name], command].concat(), cols, rows)
}

/// An operator's `innkeeper attach`, with the session on the screen.
#[track_caller]
fn attach(guest: &RunningBox, cols: u16, rows: u16) -> Terminal {
    let mut terminal = enter(guest, &["innkeeper", "attach"], cols, rows);
    terminal.sees("Leave with Ctrl-b d");
    terminal
}

/// Asks until it is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    assert_eq!(late_until(is_so), None, "not so: {what}");
}

/// Asks until it is so; how long, if it did not become so.
fn late_until(is_so: impl Fn() -> bool) -> Option<Duration> {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > end {
            return Some(PATIENCE);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    None
}
