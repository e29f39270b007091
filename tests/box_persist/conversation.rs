//! The real Claude Code: stopped in the midst of its work, it goes on in the next box.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::rig::{BoxOptions, PATIENCE, Rig, RunningBox, World};

fn bash(command: &str) -> Value {
    json!({ "bash": command, "description": "as the test wants it" })
}

/// Claude's own requests to the Messages API.
fn messages(world: &World) -> Vec<Value> {
    let of_claude = |line: &Value| line["service"] == "anthropic" && line["main"] == true;
    world.log("api").into_iter().filter(of_claude).collect()
}

#[track_caller]
fn await_message(guest: &RunningBox, world: &World, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = messages(world).into_iter().find(|message| is_so(message)) {
            return message;
        }
        let late = Instant::now() > until;
        let screen = || guest.tmux(&["capture-pane", "-p", "-t", "claude:0.0"]).both();
        assert!(guest.running() && !late, "{what} did not arrive\n{}\n{}", screen(), guest.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

fn options(volume: &str) -> BoxOptions {
    let options = BoxOptions::new().claude().volume(&format!("{volume}:/persist"));
    options.env("REPO_URL", "https://github.com/acme/widgets").env("CLAUDE_PROMPT", "Fix the widgets")
}

#[test]
fn the_next_box_shows_the_same_conversation_and_the_same_files() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    rig.world.script(&json!([
        bash("echo edited >>README.md; git commit -qam 'By Claude'; echo stashed >>README.md; git stash -q; git stash list"),
        bash("echo uncommitted >>README.md; echo staged >staged; git add staged; echo untracked >untracked; echo token-seen-by-claude"),
        // In mid-turn: the tool runs when the box is stopped.
        bash("touch /tmp/in-the-midst; tail -f /dev/null"),
        { "text": "Gone on." },
    ]));
    let guest = rig.boot(&options(&volume));
    await_message(&guest, &rig.world, "two results", |message| {
        message["tool_results"].as_array().is_some_and(|results| results.len() == 2)
    });
    let midst =
        "for i in $(seq 300); do test -e /tmp/in-the-midst && exit; read -t 0.1 <> <(:); done; exit 1";
    guest.exec_agent(midst).expect("a tool that runs");
    let look = "cd /workspace/repo; git status --porcelain=v2 --branch; git stash list; git log --format='%H %s' -3; cat README.md staged untracked";
    let before = guest.exec_agent(look).expect("the repository");
    assert!(
        before.contains("By Claude") && before.contains("? untracked") && before.contains("stash@{0}"),
        "{before}"
    );
    assert_eq!(guest.stop(), 143);
    assert!(guest.logs().contains("persist: saved 1 repository"), "{}", guest.logs());
    let told = messages(&rig.world).len();

    let next = rig.boot(&options(&volume));
    let until = Instant::now() + PATIENCE;
    let message = loop {
        if let Some(message) = messages(&rig.world).get(told) {
            break message.clone();
        }
        assert!(next.running() && Instant::now() < until, "Claude asks nothing:\n{}", next.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    };
    assert!(message["turn"].as_u64().unwrap() >= 3, "the earlier answers are in it: {message}");
    assert!(message["prompt"].as_str().unwrap().contains("Fix the widgets"));
    // Nobody typed: it is told to go on, and its task is not given again.
    assert!(message["last_text"].as_str().unwrap().contains("You were interrupted"), "{message}");
    assert!(message["tool_results"].to_string().contains("token-seen-by-claude"), "{message}");
    assert_eq!(next.exec_agent(look).expect("the repository"), before, "{}", next.logs());
    let status = next.status();
    assert!(status["persist"]["restored"].as_str().unwrap().contains("the conversation goes on"), "{status}");
    assert!(status["repositories"][0]["detail"].as_str().unwrap().contains("already there"), "{status}");
}
