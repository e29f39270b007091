//! `session.start=wait` and `innkeeper start`: the task that comes after the boot, and one more repository.

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

use serde_json::{Value, json};

use rig::{BoxOptions, Done, GH_TOKEN, OAUTH_TOKEN, Rig, RunningBox, run_with_input};

/// A box that knows neither its task nor a credential.
fn waits() -> BoxOptions {
    BoxOptions::new()
        .claude()
        .without_env("CLAUDE_CODE_OAUTH_TOKEN")
        .without_env("GH_TOKEN")
        .env("INNKEEPER_SESSION_START", "wait")
}

/// Brings it a task as an operator does: the prompt on standard input, the secrets in the command's environment.
fn bring(guest: &RunningBox, prompt: &str) -> Done {
    let env = |value: &str, name: &str| format!("{name}={value}");
    let (oauth, forge) = (env(OAUTH_TOKEN, "CLAUDE_CODE_OAUTH_TOKEN"), env(GH_TOKEN, "GH_TOKEN"));
    let exec = ["exec", "-i", "-e", &oauth, "-e", &forge, &guest.name, "innkeeper", "start"];
    let task = ["--repository", "https://github.com/acme/private", "--prompt-file", "-"];
    let secrets = ["--secret", "CLAUDE_CODE_OAUTH_TOKEN", "--secret", "GH_TOKEN"];
    run_with_input("docker", &[&exec[..], &task, &secrets].concat(), prompt)
}

/// Claude's first request that has a tool's result in it.
#[track_caller]
fn await_result(rig: &Rig, guest: &RunningBox) -> Value {
    let has_result = |line: &Value| {
        line["service"] == "anthropic" && line["main"] == true && line["tool_results"][0]["text"].is_string()
    };
    let until = std::time::Instant::now() + rig::PATIENCE;
    loop {
        if let Some(found) = rig.world.log("api").into_iter().find(has_result) {
            return found;
        }
        assert!(std::time::Instant::now() < until, "{}", guest.logs());
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_box_that_waits_gets_repository_prompt_and_secrets_and_works() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([{ "bash": "git -C /workspace/repo log --oneline", "description": "look" }, { "text": "Done." }]));
    let guest = rig.boot(&waits());
    let parked = guest.await_status("waiting", |status| status["session"]["state"] == "parked");
    assert!(
        parked["session"]["detail"].as_str().unwrap().contains("innkeeper start"),
        "{}",
        parked["session"]
    );
    assert!(parked["session"]["detail"].as_str().unwrap().contains("CLAUDE_CODE_OAUTH_TOKEN"));
    assert_eq!(parked["secrets"], json!([]));
    assert!(guest.innkeeper(&["status", "--check", "ready"]).ok());
    let early = guest.innkeeper(&["session", "restart"]);
    assert_eq!(early.code, Some(64), "{}", early.both());
    assert!(early.both().contains("innkeeper start"), "{}", early.both());

    // Nothing of it is done if anything is wrong, and everything that is wrong is said.
    let wrong =
        guest.innkeeper(&["start", "--repository", "http://github.com/acme/private", "--prompt", "Look"]);
    assert_eq!(wrong.code, Some(64), "{}", wrong.both());
    for words in ["only https is cloned", "CLAUDE_CODE_OAUTH_TOKEN"] {
        assert!(wrong.both().contains(words), "{}", wrong.both());
    }
    assert_eq!(guest.status()["session"]["state"], "parked");

    let start = bring(&guest, "Look at the log");
    let said = start.expect("start");
    assert!(said.contains("https://github.com/acme/private is cloned into /workspace/repo"), "{said}");
    let request = await_result(&rig, &guest);
    assert!(request["tool_results"][0]["text"].as_str().unwrap().contains("acme/private"), "{request}");
    assert!(request["prompt"].as_str().unwrap().contains("Look at the log"), "{request}");
    let status = guest.status();
    let names: Vec<&str> =
        status["secrets"].as_array().unwrap().iter().map(|secret| secret["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["CLAUDE_CODE_OAUTH_TOKEN", "GH_TOKEN"]);
    for secret in [OAUTH_TOKEN, GH_TOKEN] {
        assert!(!guest.logs().contains(secret));
    }
    // A second task is no task.
    let again = guest.innkeeper(&["start", "--prompt", "Something else"]);
    assert_eq!(again.code, Some(64));
    assert!(again.both().contains("innkeeper attach"), "{}", again.both());
}

#[test]
fn a_box_that_works_gets_one_more_repository_whose_host_is_allowed_with_it() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets"));
    guest.await_session();
    let url = "https://git.ok.test/acme/widgets";
    assert!(
        !guest.as_session("git ls-remote https://git.ok.test/acme/widgets").ok(),
        "its host is not allowed yet"
    );
    let refused = guest.exec_program("1000", &["innkeeper", "start", "--repository", url]);
    assert_eq!(refused.code, Some(77), "{}", refused.both());
    guest.innkeeper(&["start", "--repository", url, "--branch", "topic", "--depth", "1"]).expect("one more");
    let status = guest.await_status("the clone", |status| {
        status["repositories"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["path"] == "/workspace/widgets" && one["state"] == "cloned")
    });
    assert_eq!(status["session"]["restarts"], 0, "the session went on");
    assert_eq!(
        guest.exec_agent("git -C /workspace/widgets branch --show-current").expect("branch").trim(),
        "topic"
    );
    let shallow = guest.exec_agent(
        "git -C /workspace/widgets rev-list --count HEAD; git -C /workspace/repo rev-list --count HEAD",
    );
    assert_eq!(shallow.out, "1\n2\n", "{shallow:?}");
    let rules = status["policy"]["rules"].as_array().unwrap().clone();
    assert!(rules.iter().any(|rule| rule["origin"] == format!("repository {url}")), "{rules:?}");
    // What was brought outlives a reload of the policy.
    guest.innkeeper(&["reload"]).expect("reload");
    guest.as_session("git ls-remote https://git.ok.test/acme/widgets").expect("after the reload");
    // Taken already: named, and nothing happens.
    let taken = guest.innkeeper(&["start", "--repository", "https://git.ok.test/octo/widgets"]);
    assert_eq!(taken.code, Some(64), "{}", taken.both());
    assert!(taken.both().contains("two repositories have the path \"widgets\""), "{}", taken.both());
}

#[test]
fn f13_of_several_repositories_one_fails_alone() {
    let Some(rig) = Rig::new() else { return };
    let toml = "[[repository]]\nurl = \"https://github.com/acme/widgets\"\n\
                [[repository]]\nurl = \"https://github.com/acme/nowhere\"\n\
                [[repository]]\nurl = \"https://github.com/octo/widgets\"\npath = \"fork\"\n";
    let file = rig.file("innkeeper.toml", toml);
    let guest =
        rig.boot(&BoxOptions::new().volume(&format!("{}:/etc/innkeeper/innkeeper.toml:ro", file.display())));
    let state = |status: &Value, path: &str| {
        let all = status["repositories"].as_array().unwrap().clone();
        all.iter().find(|one| one["path"] == path).map(|one| one["state"].clone()).unwrap_or_default()
    };
    let status = guest.await_status("two clones", |status| {
        state(status, "/workspace/widgets") == "cloned" && state(status, "/workspace/fork") == "cloned"
    });
    assert_ne!(state(&status, "/workspace/nowhere"), "cloned");
    assert!(guest.exec_agent("test -d /workspace/widgets/.git && test -d /workspace/fork/.git").ok());
    let status =
        guest.await_status("the one that failed", |status| state(status, "/workspace/nowhere") == "failed");
    let failed = status["repositories"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["path"] == "/workspace/nowhere")
        .unwrap()
        .clone();
    assert!(failed["detail"].as_str().unwrap().contains("not found"), "{failed}");
    assert!(!guest.exec_agent("ls -A /workspace | grep nowhere").ok(), "nothing half-done is left");
    guest.await_session();
}

#[test]
fn a_bundle_brings_work_that_was_pushed_nowhere() {
    let Some(rig) = Rig::new() else { return };
    let directory = rig.file("beside", "").parent().unwrap().display().to_string();
    let made = rig::run(
        "sh",
        &[
            "-c",
            &format!(
                "cd {directory} && git init -q -b main r && cd r && git config user.email a@b.example && git config user.name A && \
         echo unpushed > f && git add f && git commit -qm local && git branch topic && git bundle create -q ../w.bundle HEAD --all && chmod 644 ../w.bundle"
            ),
        ],
    );
    made.expect("a bundle");
    let guest = rig.boot(
        &BoxOptions::new()
            .volume(&format!("{directory}/w.bundle:/mnt/w.bundle:ro"))
            .env("INNKEEPER_REPOSITORY_BUNDLE", "/mnt/w.bundle")
            .env("REPO_URL", "https://github.com/acme/widgets"),
    );
    guest.await_status("the clone", |status| status["repositories"][0]["state"] == "cloned");
    let seen = guest
        .exec_agent("cd /workspace/repo && cat f && git remote get-url origin && git branch -a")
        .expect("look");
    assert!(
        seen.starts_with("unpushed\nhttps://github.com/acme/widgets\n") && seen.contains("origin/topic"),
        "{seen}"
    );
}
