//! Notices: what reaches the operator's program and the webhook, as whom, and what they can't hold up.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::attach;
use super::rig::{BoxOptions, Rig, RunningBox, image, must, run};
use super::until;

/// Writes each notice down, with who it is.
const WRITER: &str = "#!/bin/sh
{ cat; id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; env; } > /tmp/notice-$$.part
mv /tmp/notice-$$.part /tmp/notice-$$.txt\n";

fn with_program(rig: &Rig, text: &str) -> BoxOptions {
    let path = rig.file("notices/send", text);
    must("chmod", &["755", path.to_str().unwrap()]);
    BoxOptions::new()
        .volume(&format!("{}:/opt/notices:ro", path.parent().unwrap().display()))
        .env("INNKEEPER_NOTICES_COMMAND", "/opt/notices/send\nfirst argument")
}

fn written(guest: &RunningBox) -> String {
    guest.exec_root("cat /tmp/notice-*.txt 2>/dev/null").out
}

#[test]
fn a_new_refusal_is_told_to_a_program_that_has_no_rights() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with_program(&rig, WRITER));
    guest.as_session("getent hosts evil.test; getent hosts evil.test; getent hosts worse.test");
    until("a notice", || written(&guest).contains("evil.test"));
    let text = written(&guest);
    let notice: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((notice["schema"].as_u64(), notice["notice"].as_str()), (Some(1), Some("denied")));
    assert_eq!(notice["box_id"], guest.status()["box"]["id"]);
    assert!(
        notice["text"].as_str().unwrap().contains("evil.test was denied: not in the allowlist"),
        "{text}"
    );
    for line in ["905\n", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    for secret in ["ghp_", "sk-ant", "GH_TOKEN", "CLAUDE"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    // The same again is no news.
    let count = text.matches("\"schema\"").count();
    guest.as_session("getent hosts evil.test");
    guest.innkeeper(&["check", "evil.test"]);
    assert_eq!(written(&guest).matches("\"schema\"").count(), count);
}

#[test]
fn a_program_that_hangs_floods_or_fails_holds_up_nothing() {
    let Some(rig) = Rig::new() else { return };
    let hangs = "#!/bin/sh\nsetsid sleep 1000 &\nyes flood &\nsleep 1000\n";
    let guest = rig.boot(&with_program(&rig, hangs));
    guest.as_session("getent hosts evil.test");
    until("it runs", || guest.exec_root("pgrep -u 905").ok());
    let before = Instant::now();
    guest.status();
    assert!(guest.as_session("getent hosts ok.test").ok());
    assert!(before.elapsed() < Duration::from_secs(9), "while it hangs");
    assert!(guest.await_line("a notice was not delivered").is_some());
    until("nothing of it is left", || !guest.exec_root("pgrep -u 905").ok());
    let log = guest.logs();
    assert!(log.matches("flood").count() < 400, "its words are bounded");
}

#[test]
fn the_webhook_gets_a_post_and_nobody_in_the_box_sees_its_address() {
    let Some(rig) = Rig::new() else { return };
    let secret =
        rig.file("secrets/NOTICES_WEBHOOK", "https://ok.test/services/canary-webhook?key=canary-key\n");
    let guest = rig
        .boot(&BoxOptions::new().volume(&format!("{}:/run/secrets:ro", secret.parent().unwrap().display())));
    let looked = guest.as_session(
        "for i in $(seq 300); do cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -E 'canary-[w]ebhook'; \
         [ $i = 20 ] && getent hosts evil.test; sleep 0.01; done; cat /run/secrets/NOTICES_WEBHOOK 2>&1",
    );
    until("a POST", || rig.world.log("http").iter().any(|line| line["method"] == "POST"));
    let post = rig.world.log("http").into_iter().find(|line| line["method"] == "POST").unwrap();
    assert_eq!(
        (post["target"].as_str(), post["sni"].as_str()),
        (Some("/services/canary-webhook?key=canary-key"), Some("ok.test"))
    );
    assert!(post["body"].as_str().unwrap().contains("evil.test was denied"), "{post}");
    // The mount of this test is readable for everybody; what the box itself does with it is not.
    let shown = looked.out.replace("https://ok.test/services/canary-webhook?key=canary-key\n", "");
    assert!(!shown.contains("canary"), "{shown}");
    let status =
        guest.innkeeper(&["status", "--json"]).out + &guest.logs() + &guest.innkeeper(&["log", "--json"]).out;
    assert!(!status.contains("canary-webhook") && status.contains("NOTICES_WEBHOOK"), "{status}");
}

#[test]
fn a_webhook_that_answers_no_is_told_without_its_address() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("NOTICES_WEBHOOK", "https://ok.test/status/404?canary-key"));
    guest.as_session("getent hosts evil.test");
    let line = guest.await_line("a notice was not delivered").unwrap();
    assert!(line.contains("ok.test answered 404") && !line.contains("canary"), "{line}");
}

#[test]
fn a_webhook_that_the_policy_does_not_let_through_stops_the_boot_with_the_line_that_is_missing() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig
        .start(&BoxOptions::new().env("INNKEEPER_NOTICES_WEBHOOK", "https://hooks.example.org:8443/canary"));
    assert_eq!(guest.exit_code(), 78);
    let log = guest.logs();
    assert!(log.contains("hooks.example.org is not allowed: not in the allowlist"), "{log}");
    assert!(log.contains("add the line hooks.example.org:8443 to network/domains.conf"), "{log}");
    assert!(!log.contains("canary"), "{log}");
    // The agent's places hold no program of the operator's.
    let guest = rig.start(&BoxOptions::new().env("INNKEEPER_NOTICES_COMMAND", "/workspace/send"));
    assert_eq!(guest.exit_code(), 78);
    assert!(guest.logs().contains("is where the agent can write"), "{}", guest.logs());
}

#[test]
fn the_end_of_the_session_is_told_before_the_box_ends() {
    let Some(rig) = Rig::new() else { return };
    let options = BoxOptions::new()
        .env("NOTICES_WEBHOOK", "https://ok.test/end")
        .env("INNKEEPER_SESSION_ON_EXIT", "stop")
        .env("INNKEEPER_SESSION_COMMAND", "/bin/sh\n-c\nsleep 2; exit 5");
    let guest = rig.start(&options);
    assert_eq!(guest.exit_code(), 5);
    let posts = rig.world.log("http");
    let told = posts
        .iter()
        .any(|line| line["target"] == "/end" && line["body"].as_str().unwrap().contains("finished"));
    assert!(told, "{posts:?}\n{}", guest.logs());
}

#[test]
fn a_worker_that_ends_again_and_again_is_told_as_a_loop() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with_program(&rig, WRITER));
    for _ in 0..3 {
        let before = guest.status()["workers"].clone();
        let pid = |workers: &Value| {
            workers
                .as_array()
                .unwrap()
                .iter()
                .find(|one| one["name"] == "watch")
                .and_then(|one| one["pid"].as_i64())
        };
        let old = pid(&before).unwrap();
        run("docker", &["exec", &guest.name, "kill", "-KILL", &old.to_string()]);
        until("it is back", || pid(&guest.status()["workers"]).is_some_and(|now| now != old));
    }
    until("a notice", || written(&guest).contains("watch ended 3 times within ten minutes"));
    assert!(written(&guest).contains("\"notice\":\"crash-loop\""));
}

#[test]
fn who_is_attached_hears_a_bell_and_claude_is_never_held_up() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut terminal = attach(&guest, &[]);
    terminal.forget();
    let hook = |input: &str| guest.exec_agent(&format!("printf '%s' '{input}' | innkeeper hook"));
    let told = hook(r#"{"hook_event_name":"Stop","last_assistant_message":"x"}"#);
    assert!(told.ok() && told.both().is_empty(), "{told:?}");
    terminal.sees("\x07");
    assert!(terminal.text().ends_with('\x07') || !terminal.saw("\x1b[\x07"), "{:?}", terminal.text());
    for input in ["", "{", "[]", "null", r#"{"hook_event_name":7}"#, r#"{"hook_event_name":"Else"}"#] {
        let told = hook(input);
        assert!(told.ok() && told.both().is_empty(), "{input}: {told:?}");
    }
    // Where there is no box at all, and for somebody whom the box does not hear.
    let alone = run(
        "docker",
        &[
            "run",
            "--rm",
            "--entrypoint",
            "sh",
            &image(),
            "-c",
            "echo '{\"hook_event_name\":\"Stop\"}' | innkeeper hook",
        ],
    );
    assert!(alone.ok() && alone.both().is_empty(), "{alone:?}");
    assert!(guest.exec("901", "echo '{\"hook_event_name\":\"Stop\"}' | innkeeper hook").ok());
}
