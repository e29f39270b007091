//! Claude's comforts and telemetry with the real Claude Code in the real box: what it is told, what it shows, what is
//! sent.
//!
//! What Claude was told is read from its requests to the Messages API (`told`, tests/world/README.md), what was sent
//! from what arrived at the sink.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "box_comforts/forks.rs"]
mod forks;
#[path = "box_comforts/repository.rs"]
mod repository;
#[path = "support/rig.rs"]
mod rig;
#[path = "box_comforts/telemetry.rs"]
mod telemetry;
#[path = "box_comforts/told.rs"]
mod told;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use rig::{BoxOptions, PATIENCE, RunningBox, World};

/// A turn in which Claude runs this in its Bash tool.
fn bash(command: &str) -> Value {
    json!({ "bash": command, "description": "as the test wants it" })
}

fn done() -> Value {
    json!({ "text": "All done." })
}

fn task() -> BoxOptions {
    BoxOptions::new()
        .claude()
        .env("REPO_URL", "https://github.com/acme/widgets")
        .env("CLAUDE_PROMPT", "do the work of the test")
}

/// Claude's own requests to the Messages API, the small ones on the side left out.
fn messages(world: &World) -> Vec<Value> {
    let of_claude = |line: &Value| line["service"] == "anthropic" && line["main"] == true;
    world.log("api").into_iter().filter(of_claude).collect()
}

/// Waits for Claude's request of this turn.
#[track_caller]
fn await_turn(guest: &RunningBox, world: &World, turn: u64) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = messages(world).into_iter().find(|message| message["turn"] == turn) {
            return message;
        }
        let (running, late) = (guest.running(), Instant::now() > until);
        assert!(running && !late, "turn {turn} did not come\n{}\n{}", screen(guest), guest.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// All that Claude was told up to this request, one text behind the other.
fn told(message: &Value) -> String {
    let texts = message["told"].as_array().unwrap().iter();
    texts.map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

/// What the tools brought so far.
fn results(message: &Value) -> Vec<String> {
    let results = message["tool_results"].as_array().unwrap().iter();
    results.map(|result| result["text"].as_str().unwrap().to_owned()).collect()
}

fn screen(guest: &RunningBox) -> String {
    guest.tmux(&["capture-pane", "-p", "-e", "-t", "claude:0.0"]).both()
}

/// Waits until it is so.
#[track_caller]
fn await_so(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
