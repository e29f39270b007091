//! The session's life with the real Claude Code: killed, hidden, held up by a limit.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::rig::{Rig, RunningBox};
use super::{PROMPT, await_log, await_message, await_screen, await_state, bash, messages, screen, task};

/// The prompt of the conversation that goes on.
fn goes_on(guest: &RunningBox, world: &super::World, turn: u64) -> Value {
    await_message(guest, world, "the conversation", |message| message["turn"].as_u64() >= Some(turn))
}

#[test]
fn killed_in_mid_turn_it_continues_its_conversation() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        bash("echo the-first-result"),
        bash("touch /tmp/in-mid-turn; tail -f /dev/null"),
        { "text": "Here I go on." },
        // That it was interrupted is a message of its own in the conversation.
        { "text": "Here I go on." },
    ]));
    let guest = rig.boot(&task());
    await_log("the middle of its turn", || guest.exec_root("test -e /tmp/in-mid-turn").ok());
    guest.exec_root("sleep 5");
    let before = guest.status()["session"]["claude_pid"].as_i64().unwrap();
    guest.exec_root(&format!("kill -KILL {before}"));
    assert!(
        guest
            .await_line(
                "killed by SIGKILL): by a process of the agent's own, or from outside the box; again in 1 s"
            )
            .is_some()
    );
    let after = guest.await_status("another", |status| {
        status["session"]["claude_pid"].as_i64().is_some_and(|pid| pid != before)
    });
    assert_eq!(after["session"]["restarts"], 1);
    // Nobody types anything: it goes on by itself.
    await_screen(&guest, "Here I go on.");
    let message = await_message(&guest, &rig.world, "what it is told", |message| {
        message["last_text"].as_str().is_some_and(|text| text.contains("You were interrupted. Go on"))
    });
    assert!(message["prompt"].as_str().unwrap().contains(PROMPT), "the conversation is another");
    assert!(message["turn"].as_u64() >= Some(2), "what it had done is forgotten: {}", message["turn"]);
    let results = message["tool_results"].to_string();
    assert!(results.contains("the-first-result"), "{results}");
}

#[test]
fn a_killed_tmux_server_changes_nothing_for_claude() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        { "text": "The answer before." },
        { "text": "The answer after." },
    ]));
    let guest = rig.boot(&task());
    await_screen(&guest, "The answer before.");
    let claude = guest.status()["session"]["claude_pid"].as_i64().unwrap();
    let starts = rig.world.log("api").len();
    for how in ["KILL", "TERM"] {
        guest.exec_agent(&format!("pkill -{how} -x -f '.*tmux -D .*'")).expect("kill");
        assert!(guest.await_line("the tmux server ended").is_some());
        // The same conversation, drawn again on a new terminal.
        await_screen(&guest, "The answer before.");
        await_screen(&guest, "bypass permissions on");
        assert_eq!(guest.status()["session"]["claude_pid"].as_i64(), Some(claude));
    }
    assert_eq!(rig.world.log("api").len(), starts, "Claude began anew");
    guest.type_into_pane("0", "and now?");
    await_screen(&guest, "The answer after.");
    let message = goes_on(&guest, &rig.world, 1);
    assert!(message["prompt"].as_str().unwrap().contains(PROMPT));
    assert_eq!(guest.status()["session"]["restarts"], 0);
    assert_eq!(guest.status()["session"]["claude_pid"].as_i64(), Some(claude));
}

/// A limit with its end in so many seconds, as the API tells it.
fn limit(text: &str, seconds: u64) -> Value {
    let reset = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
    let headers = json!({
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-reset": reset.to_string(),
        "anthropic-ratelimit-unified-representative-claim": "five_hour",
        "anthropic-ratelimit-unified-5h-status": "rejected",
        "anthropic-ratelimit-unified-5h-utilization": "1.0",
        "anthropic-ratelimit-unified-5h-reset": reset.to_string(),
    });
    let error = json!({ "status": 429, "type": "rate_limit_error", "message": "limit", "times": 1, "headers": headers });
    json!({ "text": text, "error": error })
}

#[test]
fn a_usage_limit_is_waited_for_and_the_work_goes_on() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([limit("The night is not lost.", 25)]));
    let guest = rig.boot(&task());
    let limited = await_state(&guest, "limited");
    let claude = limited["session"]["claude_pid"].as_i64();
    assert!(
        claude.is_some() && limited["session"]["detail"].as_str().unwrap().contains("limit"),
        "{limited}"
    );
    await_screen(&guest, "continuing automatically");
    assert!(!screen(&guest).contains("The night is not lost."));
    // Claude goes on a minute or so after the limit's end: by itself, and PID 1 lets it.
    for _ in 0..25 {
        if guest.status()["session"]["state"] != "limited" {
            break;
        }
        guest.exec_root("sleep 10");
    }
    await_screen(&guest, "The night is not lost.");
    let after = await_state(&guest, "waiting");
    assert_eq!(after["session"]["claude_pid"].as_i64(), claude, "it is the same");
    assert_eq!(after["session"]["restarts"], 0);
    assert_eq!(after["session"]["last_message"], "The night is not lost.");
    let prompts = messages(&rig.world);
    assert!(prompts.iter().all(|message| message["prompt"].as_str().unwrap().contains(PROMPT)));
}
