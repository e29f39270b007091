//! `session.mode=headless` with the real Claude Code: standard output, exit statuses, limits, what Kubernetes is told.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "support/rig.rs"]
mod rig;

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use rig::{BoxOptions, Rig, RunningBox};

fn headless() -> BoxOptions {
    BoxOptions::new()
        .claude()
        .env("INNKEEPER_SESSION_MODE", "headless")
        .env("REPO_URL", "https://github.com/acme/widgets")
        .env("CLAUDE_PROMPT", "Say how many commits there are")
}

/// The lines of standard output alone, each of which must be JSON.
#[track_caller]
fn stream(guest: &RunningBox) -> Vec<Value> {
    let text = guest.stdout();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}\n{text}"))).collect()
}

#[track_caller]
fn result(guest: &RunningBox) -> Value {
    let lines = stream(guest);
    lines.last().filter(|line| line["type"] == "result").unwrap_or_else(|| panic!("{lines:?}")).clone()
}

#[test]
fn a_run_ends_with_its_result_and_standard_output_is_exactly_claudes() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        { "bash": "git rev-list --count HEAD; pwd", "description": "count" },
        { "text": "There are 2 commits." },
    ]));
    let log = rig.file("termination", "");
    let mount = format!("{}:/dev/termination-log", log.display());
    let guest = rig.start(&headless().volume(&mount));
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs());
    let lines = stream(&guest);
    let init = lines.iter().find(|line| line["subtype"] == "init").unwrap();
    assert_eq!(init["cwd"], "/workspace/repo");
    let result = result(&guest);
    assert_eq!(result["result"], "There are 2 commits.");
    // The last line of the log has what came of it, and so has what Kubernetes shows.
    let logs = guest.logs();
    assert!(logs.contains("the run ended well (2 turns, $"), "{logs}");
    let told: Value = serde_json::from_str(&std::fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!((&told["exit_status"], &told["result"]), (&json!(0), &json!("There are 2 commits.")));
    assert!(told["cost_usd"].as_f64().unwrap() > 0.0, "{told}");
}

#[test]
fn an_error_of_the_api_ends_the_box_with_a_status_that_says_whether_to_retry() {
    let Some(rig) = Rig::new() else { return };
    let refused = |status: u16, kind: &str| json!([{ "text": "never", "error": { "status": status, "type": kind, "times": 99 } }]);
    for (status, kind, expected, words) in [
        (401, "authentication_error", 78, "refused the credentials (401"),
        (400, "invalid_request_error", 1, "ended with an error"),
    ] {
        rig.world.script(&refused(status, kind));
        let guest = rig.start(&headless());
        assert_eq!(guest.exit_code(), expected, "{}", guest.logs());
        assert_eq!(result(&guest)["is_error"], true);
        assert!(guest.logs().contains(words), "{}", guest.logs());
    }
    // A server that is overloaded for good; Claude's own retries are cut short by its own variable.
    rig.world.script(&refused(529, "overloaded_error"));
    let guest = rig.start(
        &headless().env("INNKEEPER_SESSION_ARGS", "--max-turns\n3").env("CLAUDE_CODE_MAX_RETRIES", "1"),
    );
    assert_eq!(guest.exit_code(), 69, "{}", guest.logs());
    assert!(guest.logs().contains("the model's API did not serve the run (529"), "{}", guest.logs());
}

#[test]
fn f13_without_its_repository_a_run_does_not_begin() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([{ "text": "never" }]));
    let guest = rig.start(&headless().env("REPO_URL", "https://github.com/acme/nowhere"));
    assert_eq!(guest.exit_code(), 69, "{}", guest.logs());
    assert!(guest.logs().contains("a repository is missing (0 of 1 in place)"), "{}", guest.logs());
    assert_eq!(guest.stdout(), "");
}

#[test]
fn a_limit_is_waited_out_and_the_conversation_goes_on() {
    let Some(rig) = Rig::new() else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let limit = json!({ "status": 429, "type": "rate_limit_error", "times": 1, "headers": {
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": (now + 20).to_string(),
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
    } });
    rig.world.script(&json!([
        { "bash": "echo first-$((40+2))", "description": "first" },
        { "text": "All done.", "error": limit },
    ]));
    let guest = rig.boot(&headless());
    let limited = guest.await_status("the limit", |status| status["session"]["state"] == "limited");
    assert!(limited["session"]["until"].as_str().unwrap().starts_with("20"), "{}", limited["session"]);
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs());
    assert_eq!(result(&guest)["result"], "All done.");
    let main = |line: &Value| line["service"] == "anthropic" && line["main"] == true;
    let last = rig.world.log("api").into_iter().rfind(main).unwrap();
    assert!(last["tool_results"][0]["text"].as_str().unwrap().contains("first-42"), "{last}");
    assert!(last["last_text"].as_str().unwrap().contains("The usage limit is over"), "{last}");
}

#[test]
fn a_stop_ends_the_run_and_the_box_has_the_signals_status() {
    let Some(rig) = Rig::new() else { return };
    rig.world
        .script(&json!([{ "bash": "setsid tail -f /dev/null", "description": "hang" }, { "text": "never" }]));
    let guest = rig.boot(&headless());
    guest.await_status("a run", |status| status["session"]["state"] == "running");
    assert_eq!(guest.stop(), 143, "{}", guest.logs());
    assert!(guest.logs().contains("stopped by SIGTERM"), "{}", guest.logs());
}

#[test]
fn without_a_prompt_nobody_could_tell_it_what_to_do() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.start(&headless().without_env("CLAUDE_PROMPT"));
    assert_eq!(guest.exit_code(), 78, "{}", guest.logs());
    assert!(
        guest.logs().contains("session.prompt: is missing; session.mode = headless needs it"),
        "{}",
        guest.logs()
    );
}

#[test]
fn the_agent_can_neither_stop_nor_speak_for_the_copier_of_its_output() {
    let Some(rig) = Rig::new() else { return };
    let attack = "copier=$(pgrep -x innkeeper-out | head -n 1); kill -KILL $copier; \
                  echo '{\"type\":\"result\",\"result\":\"forged\"}' > /proc/$copier/fd/1; \
                  cat /proc/$copier/environ /proc/$copier/maps; true";
    let line = format!("{attack}\necho '{{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"own\"}}'");
    let guest = rig.start(
        &headless().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/sh\n-c\n{}", line.replace('\n', ";"))),
    );
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs());
    assert_eq!(guest.stdout().lines().count(), 1, "{}", guest.stdout());
    assert!(guest.stdout().contains("own") && !guest.stdout().contains("forged"));
    assert!(
        guest.logs().matches("ermission denied").count() >= 2 && guest.logs().contains("not permitted"),
        "{}",
        guest.logs()
    );
}

#[test]
fn what_a_run_has_worked_is_on_the_volume_when_it_has_ended() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        { "bash": "echo by-the-run > kept.txt", "description": "work" },
        { "text": "Done." },
    ]));
    let volume = format!("{}:/persist", rig.volume());
    let guest = rig.start(&headless().volume(&volume));
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs());
    // The next box has it before its clone, and is no run.
    let next =
        rig.boot(&BoxOptions::new().volume(&volume).env("REPO_URL", "https://github.com/acme/widgets"));
    next.await_session();
    assert_eq!(next.exec_agent("cat /workspace/repo/kept.txt").expect("the run's file"), "by-the-run\n");
}

#[test]
fn a_run_that_says_much_on_standard_error_lives_and_a_slow_reader_gets_all_of_it() {
    let Some(rig) = Rig::new() else { return };
    let line = "head -c 300000 /dev/zero | tr '\\0' x >&2; printf '\\377\\n' >&2; seq 1 400000; echo 'last'";
    let options = headless().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/sh\n-c\n{line}"));
    let guest = rig.start(&options);
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs().chars().take(3000).collect::<String>());
    let out = guest.stdout();
    assert!(out.ends_with("\n400000\nlast\n") && out.starts_with("1\n2\n"), "{} octets", out.len());
}
