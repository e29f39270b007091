//! What Claude is told and shows: instructions, skills, plugins, notes, hints, the status line; formatters.

use serde_json::json;

use super::rig::{BoxOptions, Rig, RunningBox, must};
use super::{await_so, await_turn, bash, done, messages, results, screen, task, told};

const INSTRUCTIONS: &str = "CANARY-INSTRUCTIONS: speak of the weather first.\n";
const FORMATTERS: &str =
    "# a pattern is for the name\n*.skip /bin/false\n*.txt,*.md /bin/sed -i s/colour/color/\n";

/// The operator's files, mounted as the image would have them.
fn with_files(rig: &Rig, options: BoxOptions) -> BoxOptions {
    let skill = |name: &str, word: &str| format!("---\nname: {name}\ndescription: {word}\n---\nDo it.\n");
    let (instructions, formatters) =
        (rig.file("CLAUDE.md", INSTRUCTIONS), rig.file("formatters.conf", FORMATTERS));
    rig.file("skills/greet/SKILL.md", &skill("greet", "CANARY-SKILL"));
    rig.file(
        "plugins/demo/.claude-plugin/plugin.json",
        r#"{"name":"demo","version":"0.1.0","description":"d"}"#,
    );
    rig.file("plugins/demo/skills/wave/SKILL.md", &skill("wave", "CANARY-PLUGIN"));
    rig.file("plugins/broken/readme", "no plugin");
    must("chown", &["-R", "0:0", rig.dir.to_str().unwrap()]);
    let directory = |name: &str| format!("{}:/opt/innkeeper/{name}:ro", rig.dir.join(name).display());
    options
        .volume(&format!("{}:/opt/operator/CLAUDE.md:ro", instructions.display()))
        .volume(&format!("{}:/opt/innkeeper/formatters.conf:ro", formatters.display()))
        .volume(&directory("skills"))
        .volume(&directory("plugins"))
        .env("INNKEEPER_CLAUDE_INSTRUCTIONS", "/opt/operator/CLAUDE.md")
}

#[test]
fn claude_is_told_of_the_box_and_has_the_operators_files() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        bash("rm -f /etc/claude-code/CLAUDE.md; echo mine > /run/innkeeper/etc/CLAUDE.md; \
              cat /etc/claude-code/CLAUDE.md ~/.claude/skills/greet/SKILL.md; true"),
        { "tool": "Write", "input": { "file_path": "/workspace/repo/a.txt", "content": "the colour red\n" } },
        { "tool": "Write", "input": { "file_path": "/workspace/repo/b.py", "content": "colour = 1\n" } },
        bash("cat /workspace/repo/a.txt /workspace/repo/b.py"),
        done(),
    ]));
    let guest = rig.boot(&with_files(&rig, task().env("INNKEEPER_NETWORK_REQUESTS", "queue")));
    let last = await_turn(&guest, &rig.world, 4);
    let told = told(&last);
    for words in [
        INSTRUCTIONS.trim(),
        "CANARY-SKILL",
        "CANARY-PLUGIN",
        "You work in a box (Innkeeper",
        "innkeeper request NAME --reason",
        "lost with the box",
        "/workspace/repo: pushes go to https://github.com/acme/widgets",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let found = results(&last);
    assert!(
        found[0].contains("Read-only file system") && found[0].contains("CANARY-INSTRUCTIONS"),
        "{}",
        found[0]
    );
    assert!(found[0].contains("CANARY-SKILL"), "{}", found[0]);
    assert_eq!(
        found[3].trim(),
        "the color red\ncolour = 1",
        "the first is formatted, the second is for nobody"
    );
    assert!(guest.logs().contains("/opt/innkeeper/plugins/broken is no plugin"), "{}", guest.logs());
    // Nothing of a hook's is a mistake to Claude.
    assert!(!screen(&guest).contains("hook error"), "{}", screen(&guest));
}

#[test]
fn what_is_switched_off_is_not_there() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([bash("curl -sS -m 5 https://evil.test/ 2>&1"), done()]));
    let off = ["STATUS_LINE", "NOTES", "HINTS"];
    let options =
        off.iter().fold(task(), |options, key| options.env(&format!("INNKEEPER_CLAUDE_{key}"), "off"));
    let guest = rig.boot(&options);
    let last = await_turn(&guest, &rig.world, 1);
    let told = told(&last);
    assert!(!told.contains("You work in a box") && !told.contains("network policy refused"), "{told}");
    assert!(!screen(&guest).contains('░'), "{}", screen(&guest));
    // The line is off, and not what PID 1 learns by it.
    guest.await_status("the cost", |status| {
        status["session"]["cost_usd"].as_f64().is_some_and(|cost| cost > 0.0)
    });
}

#[test]
fn a_command_that_was_refused_something_gets_a_hint_and_others_do_not() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        bash("ls /nonexistent-canary"),
        bash("echo fine; curl -sS https://ok.test/allowed"),
        bash("curl -sS -m 10 https://evil.test/by-name"),
        bash("curl -sS -m 10 https://45.33.32.66/by-address"),
        bash("curl -sS -m 10 https://other.evil.test/ 2>&1 | tail -1; true"),
        // Some seconds lie between that refusal and the next command, which fails for a reason of its own.
        { "bash": "ls /nonexistent-later", "description": "later", "delay_ms": 6000 },
        done(),
    ]));
    let guest = rig.boot(&task().env("INNKEEPER_NETWORK_REQUESTS", "queue"));
    let last = await_turn(&guest, &rig.world, 6);
    let all = messages(&rig.world);
    let hints = |turn: u64| {
        let message = all.iter().find(|message| message["turn"] == turn).unwrap();
        told(message).matches("network policy refused something").count()
    };
    assert_eq!([1, 2, 3, 4, 5, 6].map(hints), [0, 0, 1, 2, 3, 3], "{}", told(&last));
    assert!(results(&last)[5].contains("nonexistent-later"), "{:?}", results(&last));
    let told = told(&last);
    assert!(results(&last)[1].contains("token-"), "the allowed one gets through");
    for words in [
        "denied evil.test",
        "ask with: innkeeper request evil.test --reason",
        "denied 45.33.32.66",
        "denied other.evil.test",
        "Do not work around it",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn a_box_that_takes_no_requests_says_so() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([bash("curl -sS -m 10 https://evil.test/by-name"), done()]));
    let guest = rig.boot(&task());
    let told = told(&await_turn(&guest, &rig.world, 1));
    assert!(told.contains("denied evil.test"), "{told}");
    assert!(
        told.contains("this box takes no requests") && told.contains("innkeeper allow evil.test"),
        "{told}"
    );
    assert!(!told.contains("innkeeper request"), "{told}");
}

#[test]
fn the_status_line_is_on_the_screen() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([done()]));
    let guest = rig.boot(&task().env("INNKEEPER_SESSION_ARGS", "--name\nfix-the-login"));
    await_turn(&guest, &rig.world, 0);
    await_so("a status line", || screen(&guest).contains('░') && screen(&guest).contains("· fix-the-login"));
    let shown = screen(&guest);
    let line = shown.lines().find(|line| line.contains('░')).unwrap();
    assert!(line.contains(" %") || line.matches('░').count() == 20, "{line}");
}

/// Small questions to the model beside Claude's own work.
fn asides(rig: &Rig) -> Vec<serde_json::Value> {
    let log = rig.world.log("api");
    log.into_iter().filter(|line| line["service"] == "anthropic" && line["main"] == false).collect()
}

#[test]
fn a_conversation_gets_its_name_once_and_only_where_that_is_switched_on() {
    let Some(rig) = Rig::new() else { return };
    let turns = json!([done(), { "text": "Second." }, { "text": "Third." }]);
    rig.world.script(
        &json!({ "conversations": [{ "match": "", "turns": turns }], "side": "Fix The Login!\n\u{1b}[2J" }),
    );
    let waits = |guest: &RunningBox| {
        guest.await_status("the end of the turn", |status| status["session"]["state"] == "waiting");
    };
    let guest = rig.boot(&task());
    await_turn(&guest, &rig.world, 0);
    waits(&guest);
    let before = asides(&rig).len();
    guest.stop();
    let guest = rig.boot(&task().env("INNKEEPER_CLAUDE_SESSION_NAMES", "on"));
    waits(&guest);
    assert!(guest.await_line("the conversation is called fix-the-login").is_some());
    guest.type_into_pane("0", "go on");
    await_so("the name on the screen", || screen(&guest).contains("· fix-the-login"));
    guest.type_into_pane("0", "and on");
    await_turn(&guest, &rig.world, 2);
    waits(&guest);
    let asked = asides(&rig).split_off(before);
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert!(asked[0]["model"].as_str().unwrap().contains("haiku"), "{}", asked[0]["model"]);
    assert!(
        asked[0]["prompt"].as_str().unwrap().contains("do the work of the test"),
        "{}",
        asked[0]["prompt"]
    );
    let status = guest.status();
    assert_eq!(status["session"]["name"], "fix-the-login");
    assert_eq!(status["session"]["restarts"], 0);
    assert_eq!(before, 0, "off unless it is switched on");
}

/// What may be thrown at a hook.
const HOSTILE: &str = r#"
cd /tmp
printf '' >a; printf '{' >b; printf '[1,2' >c; head -c 20000000 /dev/zero >d; head -c 9000000 /dev/urandom >e
printf '{"hook_event_name":"SessionStart","source":"\\u001b]52;c;eA==\\u0007"}' >f
printf '{"hook_event_name":"PostToolUse","tool_name":"Write","tool_input":{"file_path":"/etc/passwd"}}' >g
printf '{"hook_event_name":"PostToolUse","tool_name":"Write","tool_input":{"file_path":"/workspace/../etc/shadow"}}' >h
printf '{"hook_event_name":"PostToolUseFailure","tool_name":"Bash","duration_ms":18446744073709551615}' >i
printf '{"model":{"display_name":"\\u001b[2J\\u202e"},"context_window":{"used_percentage":-7}}' >j
python3 -c 'print("{\"a\":"*200000, end="")' >k
for what in status-line note hint name "format --patterns /opt/innkeeper/formatters.conf" "format --patterns /nonexistent" sync-fork; do
  for file in a b c d e f g h i j k; do
    timeout 20 innkeeper comfort $what <$file >out 2>err; code=$?
    [ $code = 0 ] && [ ! -s err ] && [ $(stat -c %s out) -lt 8192 ] && ! grep -q $'\x1b]' out || echo "BAD $what $file $code $(head -c 200 err)"
  done
  timeout 20 innkeeper comfort $what </dev/null >/dev/full 2>err || echo "BAD $what full $?"
  (timeout 20 innkeeper comfort $what < <(sleep 100) >/dev/null 2>&1 || echo "BAD $what silent $?") &
done
wait
echo ALL
"#;

#[track_caller]
fn all_well(guest: &RunningBox) {
    let said = guest.as_session(HOSTILE);
    assert!(said.out.ends_with("ALL\n") && !said.out.contains("BAD"), "{said:?}");
}

#[test]
fn hooks_end_well_whatever_they_are_given() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with_files(&rig, BoxOptions::new()));
    all_well(&guest);
}

#[test]
fn without_the_operators_instructions_no_agent_is_started() {
    let Some(rig) = Rig::new() else { return };
    let boots = |options: &BoxOptions| {
        let guest = rig.start(options);
        (guest.exit_code(), guest.logs())
    };
    let (code, logs) = boots(&task().env("INNKEEPER_CLAUDE_INSTRUCTIONS", "/opt/none.md"));
    assert_eq!(code, 78, "{logs}");
    assert!(
        logs.contains("INNKEEPER_CLAUDE_INSTRUCTIONS") && logs.contains("there is no such file"),
        "{logs}"
    );
    // One that the agent can write is not the operator's.
    let loose = rig.file("loose.md", INSTRUCTIONS);
    must("chown", &["1000:1000", loose.to_str().unwrap()]);
    let options = task()
        .volume(&format!("{}:/opt/loose.md", loose.display()))
        .env("INNKEEPER_CLAUDE_INSTRUCTIONS", "/opt/loose.md");
    let (code, logs) = boots(&options);
    assert_eq!(code, 78, "{logs}");
    assert!(logs.contains("others than root can change it"), "{logs}");
    // An image without the link.
    let fine = rig.file("fine.md", INSTRUCTIONS);
    let empty = rig.dir.join("no-links");
    std::fs::create_dir(&empty).unwrap();
    let options = task()
        .volume(&format!("{}:/opt/fine.md:ro", fine.display()))
        .volume(&format!("{}:/etc/claude-code:ro", empty.display()))
        .env("INNKEEPER_CLAUDE_INSTRUCTIONS", "/opt/fine.md");
    let (code, logs) = boots(&options);
    assert_eq!(code, 78, "{logs}");
    assert!(logs.contains("does not lead to"), "{logs}");
    assert!(messages(&rig.world).is_empty(), "no agent was started");
}

#[test]
fn formatters_are_checked_at_boot_line_by_line() {
    let Some(rig) = Rig::new() else { return };
    let bad = rig.file("bad.conf", "*.ts /bin/true\n*.js prettier --write\n*.md\n");
    must("chown", &["0:0", bad.to_str().unwrap()]);
    let guest = rig.start(&task().volume(&format!("{}:/opt/innkeeper/formatters.conf:ro", bad.display())));
    assert_eq!(guest.exit_code(), 78);
    let logs = guest.logs();
    assert!(
        logs.contains("/opt/innkeeper/formatters.conf:2") && logs.contains("not an absolute path"),
        "{logs}"
    );
    assert!(logs.contains("/opt/innkeeper/formatters.conf:3") && logs.contains("names no program"), "{logs}");
}
