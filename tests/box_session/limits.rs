//! Usage limits, told as Claude's hook and status line tell them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::deadline::gauge;
use super::rig::{BoxOptions, Rig, RunningBox};

/// Writes down what it is told to do and lives on.
const RECORDER: &str = "echo \"$@\" >>/workspace/lives; while :; do sleep 1000; done";

fn recorder() -> BoxOptions {
    BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/bash\n-c\n{RECORDER}\nclaude"))
}

fn hook(guest: &RunningBox, name: &str, error: &str) {
    let input = format!(r#"{{"hook_event_name":"{name}","error":"{error}"}}"#);
    guest.exec_agent(&format!("echo '{input}' | innkeeper hook")).expect("hook");
}

fn state(guest: &RunningBox, state: &str) -> serde_json::Value {
    guest.await_status(state, |status| status["session"]["state"] == state)["session"].clone()
}

fn seconds_from_now(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds
}

#[test]
fn a_limit_is_told_apart_from_working_and_waiting() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&recorder());
    state(&guest, "running");
    // Another failure is none.
    hook(&guest, "StopFailure", "server_error");
    assert_eq!(state(&guest, "waiting")["detail"], "its turn failed: server_error");
    hook(&guest, "UserPromptSubmit", "");
    state(&guest, "running");
    hook(&guest, "StopFailure", "rate_limit");
    let limited = state(&guest, "limited");
    assert!(limited["until"].is_null(), "{limited}");
    assert!(limited["detail"].as_str().unwrap().contains("nobody says until when"), "{limited}");
    // The end becomes known, and is no nonsense.
    gauge(&guest, r#"{"limited_until":1}"#);
    gauge(&guest, &format!(r#"{{"limited_until":{}}}"#, seconds_from_now(40 * 24 * 3600)));
    assert!(state(&guest, "limited")["until"].is_null());
    gauge(&guest, &format!(r#"{{"limited_until":{}}}"#, seconds_from_now(7200)));
    let status = guest.await_status("an end", |status| status["session"]["until"].is_string());
    assert!(status["session"]["detail"].as_str().unwrap().contains("goes on when that is over"), "{status}");
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("waiting for the usage limit") && screen.contains("until "), "{screen}");
    // That nobody types changes nothing; that it works again does.
    let idle = r#"{"hook_event_name":"Notification","notification_type":"idle_prompt","message":"waiting"}"#;
    guest.exec_agent(&format!("echo '{idle}' | innkeeper hook")).expect("hook");
    state(&guest, "limited");
    hook(&guest, "UserPromptSubmit", "");
    assert!(state(&guest, "running")["until"].is_null());
    assert!(guest.running());
}

#[test]
fn a_claude_that_does_not_go_on_by_itself_is_told_to() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&recorder());
    let before = state(&guest, "running")["claude_pid"].as_i64().unwrap();
    guest.exec_root("sleep 6");
    gauge(&guest, &format!(r#"{{"limited_until":{}}}"#, seconds_from_now(5)));
    hook(&guest, "StopFailure", "rate_limit");
    state(&guest, "limited");
    assert_eq!(state(&guest, "limited")["claude_pid"].as_i64(), Some(before), "it waits");
    let started = guest.await_line("does not go on by itself: it is started anew");
    assert!(started.is_some(), "{}", guest.logs());
    let after = guest.await_status("another life", |status| {
        status["session"]["state"] == "running" && status["session"]["claude_pid"].as_i64() != Some(before)
    });
    assert_eq!(after["session"]["restarts"], 1);
    let lives = guest.exec_root("cat /workspace/lives").out;
    assert!(lives.contains("The usage limit is over. Go on with the task"), "{lives}");
}

#[test]
fn with_on_limit_stop_the_box_ends_resumable() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&recorder().env("INNKEEPER_SESSION_ON_LIMIT", "stop"));
    state(&guest, "running");
    hook(&guest, "StopFailure", "rate_limit");
    assert_eq!(guest.exit_code(), 75, "{}", guest.logs());
    assert!(guest.logs().contains("a usage limit is reached (session.on_limit)"), "{}", guest.logs());
}
