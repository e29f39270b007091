//! The real Claude Code in the real box on the fake internet: the proof of issue 2.
//!
//! A Messages API of the tests' own drives it (tests/world/README.md, "script.json"). What Claude saw is read from
//! the tool results that arrived at that API, and what leaked from what arrived at the sinks.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "box_claude/life.rs"]
mod life;
#[path = "support/rig.rs"]
mod rig;
#[path = "box_claude/token.rs"]
mod token;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use rig::{BoxOptions, GH_TOKEN, OAUTH_TOKEN, PATIENCE, Rig, RunningBox, World, host, must};

/// A prompt that no shell and no argument parser may take apart, and that nobody writes by chance.
const PROMPT: &str = "--canary-prompt 'Fix' \"it\" $(touch /tmp/pwned) `id`;\nsecond line \u{1f980}";

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A turn in which Claude runs this in its Bash tool.
fn bash(command: &str) -> Value {
    json!({ "bash": command, "description": "as the test wants it" })
}

fn done() -> Value {
    json!({ "text": "All done." })
}

/// Claude's own requests to the Messages API, the small ones on the side left out.
fn messages(world: &World) -> Vec<Value> {
    let of_claude = |line: &Value| line["service"] == "anthropic" && line["main"] == true;
    world.log("api").into_iter().filter(of_claude).collect()
}

/// Waits until it is so.
#[track_caller]
fn await_log(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Waits for a request that is so.
#[track_caller]
fn await_message(guest: &RunningBox, world: &World, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = messages(world).into_iter().find(|message| is_so(message)) {
            return message;
        }
        let (running, late) = (guest.running(), Instant::now() > until);
        assert!(running && !late, "{what} did not arrive\n{}\n{}", screen(guest), guest.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Waits until Claude has told the API what this many tools brought: their texts.
#[track_caller]
fn results(guest: &RunningBox, world: &World, count: usize) -> Vec<String> {
    let message = await_message(guest, world, &format!("{count} tool results"), |message| {
        message["tool_results"].as_array().is_some_and(|results| results.len() == count)
    });
    let results = message["tool_results"].as_array().unwrap().iter();
    results.map(|result| result["text"].as_str().unwrap().to_owned()).collect()
}

fn screen(guest: &RunningBox) -> String {
    guest.tmux(&["capture-pane", "-p", "-t", "claude:0.0"]).both()
}

#[track_caller]
fn await_screen(guest: &RunningBox, text: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let shown = screen(guest);
        if shown.contains(text) {
            return;
        }
        assert!(Instant::now() < until, "{text:?} is not on the screen:\n{shown}\n{}", guest.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// What Claude was asked with: the credential as the world logs it.
fn bearer(message: &Value) -> Option<String> {
    let headers = message["headers"].as_array().unwrap();
    let of =
        |header: &Value| header[0].as_str().is_some_and(|name| name.eq_ignore_ascii_case("authorization"));
    headers.iter().find(|header| of(header)).map(|header| header[1].as_str().unwrap().to_owned())
}

fn task() -> BoxOptions {
    BoxOptions::new()
        .claude()
        .env("REPO_URL", "https://github.com/acme/widgets")
        .env("CLAUDE_PROMPT", PROMPT)
        .env("GIT_USER_NAME", "Ada Agent")
        .env("GIT_USER_EMAIL", "ada@agent.example")
}

/// Nothing of the kinds that ask a person something, or that stand in the way of the work.
#[track_caller]
fn no_dialog(screen: &str) {
    for words in ["trust", "Do you", "theme", "log in", "/login", "Yes, I accept", "API key", "Welcome to"] {
        assert!(!screen.contains(words), "a dialog:\n{screen}");
    }
}

#[test]
fn claude_works_in_the_box_and_sees_its_walls() {
    let Some(rig) = Rig::new() else { return };
    // The same requests get through where there is no box.
    assert!(rig.outside(&["tcp", &host("evil"), "443"]).both().contains("token-"));
    rig.world.script(&json!([
        bash("cd /workspace && git clone https://github.com/acme/private p 2>&1; git -C p log --oneline; \
              git -C p remote -v; cat p/.git/config"),
        bash("gh api user"),
        bash("curl -sS https://ok.test/from-claude"),
        bash("curl -sS -m 10 https://evil.test/from-claude 2>&1; innkeeper check https://evil.test/from-claude; \
              curl -sS -m 10 --resolve evil.test:443:45.33.32.66 https://evil.test/by-address 2>&1; true"),
        bash("touch /owned /etc/owned /usr/local/bin/owned /run/owned 2>&1; mount -o remount,rw / 2>&1; id; \
              grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'"),
        bash("cd /workspace/p && git switch -qc work && echo x > f && git add f && \
              git commit -qm 'By Claude' && git push -q origin work 2>&1 && git log -1 --format='%an <%ae> %cn <%ce>'"),
        done(),
    ]));
    let guest = rig.boot(&task());
    let found = results(&guest, &rig.world, 6);

    assert!(found[0].contains("Commit 2 of acme/private"), "the clone: {}", found[0]);
    assert!(
        !found[0].contains("ghp_") && !found[0].contains('@'),
        "a credential in the remote: {}",
        found[0]
    );
    assert!(found[1].contains("\"login\""), "gh api user: {}", found[1]);
    assert!(found[2].contains(&format!("token-{}-ok.test", host("ok"))), "an allowed name: {}", found[2]);
    assert!(!found[3].contains("token-"), "a denied name: {}", found[3]);
    assert!(found[3].contains("evil.test:443 is denied"), "the explanation: {}", found[3]);
    assert!(found[3].contains("operator: innkeeper allow evil.test"), "the way out: {}", found[3]);
    assert_eq!(found[4].matches("Read-only file system").count(), 4, "writes: {}", found[4]);
    assert!(found[4].contains("uid=1000(claude) gid=1000(claude) groups=1000(claude)"), "{}", found[4]);
    for line in ["CapEff:0000000000000000", "CapBnd:0000000000000000", "NoNewPrivs:1", "Seccomp:2"] {
        assert!(found[4].contains(line), "{line}: {}", found[4]);
    }
    assert!(found[5].contains("Ada Agent <ada@agent.example> Ada Agent <ada@agent.example>"), "{}", found[5]);
    let forge = rig.world.dir.join("git/acme/private.git");
    let pushed = must("git", &["-C", forge.to_str().unwrap(), "log", "-1", "--format=%an %ae", "work"]);
    assert_eq!(pushed, "Ada Agent ada@agent.example\n");

    // What arrived: the model's requests with the right bearer, the forge's with the right token, nothing elsewhere.
    let expected = format!("Bearer sha256:{}", sha256(OAUTH_TOKEN));
    for message in messages(&rig.world) {
        assert_eq!(bearer(&message).as_deref(), Some(expected.as_str()));
        assert_eq!(message["prompt"].as_str().map(|prompt| prompt.contains(PROMPT)), Some(true));
        assert_eq!(message["sni"], "api.anthropic.com");
    }
    let git = rig.world.log("git");
    let private: Vec<&Value> = git.iter().filter(|line| line["repository"] == "acme/private").collect();
    let token = format!("sha256:{}", sha256(GH_TOKEN));
    assert!(private.iter().any(|line| line["credential"] == token.as_str()));
    assert!(private.iter().all(|line| line["credential"].is_null() || line["credential"] == token.as_str()));
    let evil = [host("evil"), host("evil_v6")];
    let of_evil = |packet: &Value| evil.iter().any(|address| packet["dst"] == address.as_str());
    let by_agent =
        rig.world.packets().into_iter().filter(|packet| of_evil(packet) && packet["flags"] != Value::Null);
    // The test's own connection from outside was the only one, before the box was there.
    let syns = by_agent.filter(|packet| packet["flags"].to_string().contains('S')).count();
    assert_eq!(syns, 1, "a connection to a denied address");
    assert!(
        !rig.world.saw("from-claude\r\nHost: evil") && !rig.world.asked().contains(&"evil.test".to_owned())
    );
    let denial = guest.status()["denials"].as_array().unwrap().clone();
    assert!(denial.iter().any(|denial| denial["what"] == "evil.test" && denial["uid"] == 1000), "{denial:?}");
    no_dialog(&screen(&guest));
}

#[test]
fn the_prompt_is_logged_by_its_sha256_alone() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([done()]));
    let guest = rig.boot(&task());
    await_message(&guest, &rig.world, "the prompt", |message| {
        message["prompt"].as_str().is_some_and(|prompt| prompt.contains(PROMPT))
    });
    let logs = guest.logs();
    assert!(logs.contains(&sha256(PROMPT)), "{logs}");
    let status = guest.status().to_string();
    for word in ["canary-prompt", "second line"] {
        assert!(!logs.contains(word) && !status.contains(word), "{logs}");
    }
    assert!(!guest.exec_root("test -e /tmp/pwned").ok(), "a shell has read the prompt");
    no_dialog(&screen(&guest));
    assert_eq!(guest.stop(), 143);
    assert!(!guest.logs().contains("canary-prompt"));
}

#[test]
fn a_restart_goes_on_with_the_conversation() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([{ "text": "First answer." }, { "text": "Second answer." }]));
    let guest = rig.boot(&task());
    await_screen(&guest, "First answer.");
    // Long enough that it counts as a life.
    guest.exec_root("sleep 6");
    guest.type_into_pane("0", "/exit");
    assert!(guest.await_line("Claude Code ended (exit status 0); again in 1 s").is_some());
    assert!(guest.await_line("Claude Code is running").is_some());
    await_screen(&guest, "bypass permissions on");
    assert!(guest.tmux(&["has-session"]).ok(), "the session is gone:\n{}", guest.logs());
    guest.type_into_pane("0", "and then?");
    let message = await_message(&guest, &rig.world, "the second prompt", |message| {
        message["last_text"].as_str().is_some_and(|text| text.contains("and then?"))
    });
    assert_eq!(message["turn"], 1, "the first answer is in the conversation");
    assert!(message["prompt"].as_str().unwrap().contains(PROMPT));
    let status = guest.status();
    assert_eq!(status["session"]["restarts"], 1);
    assert!(status["session"]["last_exit"].as_str().unwrap().contains("exit status 0"));
}

#[test]
fn a_restart_without_a_conversation_begins_anew() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([done()]));
    let guest = rig.boot(&task().without_env("CLAUDE_PROMPT"));
    await_screen(&guest, "bypass permissions on");
    guest.exec_root("sleep 6; pkill -KILL -x claude");
    assert!(guest.await_line("Claude Code ended (killed by SIGKILL)").is_some());
    await_screen(&guest, "bypass permissions on");
    guest.type_into_pane("0", "hello there");
    await_message(&guest, &rig.world, "a prompt", |message| {
        message["prompt"].as_str().is_some_and(|prompt| prompt.contains("hello there"))
    });
}

#[test]
fn claudes_exit_status_is_the_boxs_with_on_exit_stop() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([done()]));
    let guest = rig.boot(&task().env("INNKEEPER_SESSION_ON_EXIT", "stop"));
    await_screen(&guest, "All done.");
    guest.exec_root("pkill -TERM -x claude");
    assert_eq!(guest.exit_code(), 143);
    assert!(guest.logs().contains("Claude Code ended (exit status 143)"), "{}", guest.logs());
}

/// What Claude's hooks told: the state of the session.
#[track_caller]
fn await_state(guest: &RunningBox, state: &str) -> Value {
    guest.await_status(state, |status| status["session"]["state"] == state)
}

#[test]
fn a_claude_that_finishes_its_turn_waits_and_the_operator_is_told() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        { "bash": "sleep 3", "text": "Working." },
        { "text": "The tests are green.\nSecond line." },
        { "text": "And again." },
    ]));
    let guest = rig.boot(&task().env("NOTICES_WEBHOOK", "https://ok.test/services/notices"));
    await_state(&guest, "running");
    let status = await_state(&guest, "waiting");
    assert_eq!(messages(&rig.world).last().unwrap()["turn"], 1, "it waits after its task and not before");
    assert_eq!(status["session"]["last_message"], "The tests are green.\nSecond line.");
    assert_eq!(status["session"]["detail"], "it has finished its turn");
    let posts = || -> Vec<Value> {
        rig.world.log("http").into_iter().filter(|line| line["target"] == "/services/notices").collect()
    };
    await_log("a notice", || !posts().is_empty());
    let body: Value = serde_json::from_str(posts()[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (body["notice"].as_str(), body["last_message"].as_str()),
        (Some("finished"), Some("The tests are green.\nSecond line."))
    );
    // The next task: it works again, and waits again.
    guest.type_into_pane("0", "go on");
    let status =
        guest.await_status("the second turn", |status| status["session"]["last_message"] == "And again.");
    assert_eq!(status["session"]["state"], "waiting");
    assert!(status["session"]["claude_pid"].is_i64());
}
