//! What `status` says, to people, to programs and to probes, and the session as tmux shows it.

use serde_json::{Value, json};

use super::rig::{AGENT, BoxOptions, Rig, RunningBox};
use super::{attach, enter, until};

/// What DESIGN.md promises under "Interfaces", each key with an example of its type. `null` may be null.
fn contract() -> Value {
    json!({ "schema": 1, "version": "", "phase": "",
      "box": { "id": "", "name": "", "image_digest": null, "policy_sha256": "" },
      "boot": { "lockdown_ms": 0.9, "ready_ms": 88.0, "steps": [ { "name": "", "state": "", "ms": null, "detail": "" } ] },
      "protections": [ { "name": "", "held": true, "how": "", "verified_at": "", "detail": "" } ],
      "policy": { "generation": 1, "rules": [ { "rule": "", "by": "agent", "origin": "", "expires_at": null } ] },
      "dns": { "queries": 0, "allowed": 0, "denied": 0, "upstreams": [ { "address": "", "healthy": true } ] },
      "firewall": { "backend": "", "addresses": [ { "name": "", "address": "", "ports": [443], "expires_at": "" } ], "denied": 0 },
      "gate": { "connections": 0, "denied": 0, "bytes_out": 0, "bytes_in": 0 },
      "denials": [ { "time": "", "layer": "", "what": "", "uid": null, "process": null, "reason": "", "count": 3, "allow": "" } ],
      "workers": [ { "name": "", "pid": 12, "uptime_s": 3.2, "restarts": 0 } ],
      "session": { "state": "", "since": "", "until": null, "claude_pid": 40, "restarts": 0, "last_exit": null },
      "secrets": [ { "name": "", "source": "", "held_by": "" } ],
      "repositories": [ { "path": "", "url": "", "state": "", "detail": "" } ] })
}

/// Whether `found` has every key of `wanted` with a value of its type; a list has at least one such item.
fn differences(path: &str, wanted: &Value, found: &Value, wrong: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            for (key, value) in wanted {
                let path = format!("{path}.{key}");
                match found.get(key) {
                    Some(found) => differences(&path, value, found, wrong),
                    None => wrong.push(format!("{path} is missing")),
                }
            }
        }
        (Value::Array(wanted), Value::Array(found)) => {
            if found.is_empty() {
                wrong.push(format!("{path} is empty"));
            }
            for found in found {
                differences(path, &wanted[0], found, wrong);
            }
        }
        (Value::Null, _) | (Value::Bool(_), Value::Bool(_)) | (Value::Number(_), Value::Number(_)) => {}
        (Value::String(_), Value::String(_)) => {}
        (wanted, found) => wrong.push(format!("{path}: {found} is not like {wanted}")),
    }
}

fn is_rfc3339(text: &Value) -> bool {
    let text = text.as_str().unwrap_or_default();
    text.len() >= 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T'
}

/// The newest refusal of this name.
fn refused<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["denials"].as_array()?.iter().find(|denial| denial["what"] == name)
}

/// A box in which everything that `status` shows has happened.
fn eventful(rig: &Rig) -> RunningBox {
    let guest = rig.boot(&BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets"));
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    guest.exec_agent("getent hosts evil.test; getent hosts ok.test").expect("a name");
    guest
}

#[test]
fn the_json_has_every_key_of_the_contract() {
    let Some(rig) = Rig::new() else { return };
    let guest = eventful(&rig);
    let status = guest.await_status("the denial", |status| refused(status, "evil.test").is_some());
    let mut wrong = Vec::new();
    differences("", &contract(), &status, &mut wrong);
    assert_eq!(wrong, Vec::<String>::new(), "{status:#}");
    assert_eq!((&status["schema"], &status["phase"]), (&json!(1), &json!("ready")));
    let mut protections = status["protections"].as_array().unwrap().iter();
    assert!(protections.all(|shown| shown["held"] == true && is_rfc3339(&shown["verified_at"])));
    assert!(is_rfc3339(&status["session"]["since"]));
    let steps = status["boot"]["steps"].as_array().unwrap().iter();
    let steps: Vec<&str> = steps.map(|step| step["name"].as_str().unwrap()).collect();
    let order = "config lockdown mounts home dns firewall identity seal readiness repositories";
    let mut rest = steps.iter();
    assert!(order.split(' ').all(|name| rest.any(|step| *step == name)), "{steps:?}");
    let denial = refused(&status, "evil.test").unwrap();
    assert_eq!(denial["layer"], "dns");
    assert_eq!(denial["allow"], "innkeeper allow evil.test");
    assert!(is_rfc3339(&denial["time"]));
    assert!(!status.to_string().contains("canary"), "a secret in status");
    // The agent may ask too, and learns no more.
    let agents: Value =
        serde_json::from_str(&guest.exec_program(AGENT, &["status", "--json"]).expect("status")).unwrap();
    assert_eq!(agents["phase"], "ready");
    assert!(!agents.to_string().contains("canary"));
}

#[test]
fn a_refused_name_is_its_askers() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for i in 0..8 {
        guest.exec_agent(&format!("getent hosts n{i}.evil.test"));
    }
    let status = guest.await_status("the last", |status| refused(status, "n7.evil.test").is_some());
    let denials = status["denials"].as_array().unwrap().iter();
    let of_test: Vec<&Value> = denials.filter(|denial| denial["layer"] == "dns").collect();
    assert!(of_test.iter().all(|denial| denial["uid"] == 1000), "{of_test:#?}");
    assert_eq!(of_test.len(), 8, "a line a name: {of_test:#?}");
}

#[test]
fn the_uptime_of_a_worker_counts_from_its_start() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.exec_root("sleep 3");
    let workers = guest.status()["workers"].clone();
    assert!(workers[0]["uptime_s"].as_f64().unwrap() >= 3.0, "{workers}");
}

#[test]
fn the_screen_fits_80_by_24_and_says_the_most_important() {
    let Some(rig) = Rig::new() else { return };
    let guest = eventful(&rig);
    let long = "very-long-name-$i-$(printf 'x%.0s' $(seq 40))";
    guest.exec_agent(&format!(
        "for i in $(seq 70); do getent hosts {long}.evil.test; done; getent hosts n.evil.test"
    ));
    guest.await_status("the last denial", |status| {
        status["denials"].as_array().is_some_and(|denials| denials[0]["what"] == "n.evil.test")
    });
    let mut terminal = enter(&guest, &["innkeeper", "status"], 80, 24);
    assert_eq!(terminal.ends(), 0);
    let text = terminal.text().replace("\r\n", "\n");
    let plain = guest.innkeeper(&["status"]).expect("status");
    for screen in [&plain, &uncoloured(&text)] {
        assert!(screen.lines().count() <= 24, "{} lines:\n{screen}", screen.lines().count());
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        assert!(screen.starts_with("READY"), "{screen}");
        for word in [
            "Protections",
            "egress-ipv4",
            "egress-ipv6",
            "rootfs",
            "held",
            "running since",
            "Refused",
            "n.evil.test",
            "innkeeper allow",
        ] {
            assert!(screen.contains(word), "{word} is not on the screen:\n{screen}");
        }
    }
    assert!(!plain.contains('\x1b'), "no colour in a pipe");
    let red = text.lines().find(|line| line.contains("the agent can read")).unwrap();
    assert!(red.contains("\x1b[31m") && red.contains("GH_TOKEN"), "said in red: {red:?}");
    assert_eq!(
        guest.exec_root("status").out.lines().next(),
        plain.lines().next(),
        "`status` is a short form"
    );
}

fn uncoloured(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain + rest
}

#[test]
fn probes_learn_by_exit_status() {
    let silent = |zone: &mut Value| zone["servers"]["9.9.9.53"] = json!({ "drop": true });
    let Some(rig) = Rig::with_zone(silent) else { return };
    let check = |guest: &RunningBox, what: &str| guest.innkeeper(&["status", "--check", what]).code;
    let booting = rig.start(&BoxOptions::new().env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "300s"));
    assert!(booting.await_line("boot: dns ok").is_some());
    assert_eq!(["ready", "live", "idle"].map(|what| check(&booting, what)), [Some(1), Some(0), Some(1)]);
    rig.world.zone(|zone| zone["servers"]["9.9.9.53"] = json!({}));
    booting.await_status("a session", |status| status["session"]["state"] == "running");
    assert_eq!(["ready", "live", "idle"].map(|what| check(&booting, what)), [Some(0), Some(0), Some(1)]);
    assert_eq!(booting.exec_program(AGENT, &["status", "--check", "ready"]).both(), "", "it says nothing");
    assert_eq!(booting.innkeeper(&["status", "--check", "nonsense"]).code, Some(64));
    booting.stop();

    let ended = BoxOptions::new()
        .env("INNKEEPER_SESSION_COMMAND", "/bin/true")
        .env("INNKEEPER_SESSION_ON_EXIT", "shell");
    let ended = rig.boot(&ended);
    ended.await_status("the end", |status| status["session"]["state"] == "exited");
    assert_eq!(["ready", "live", "idle"].map(|what| check(&ended, what)), [Some(0), Some(0), Some(0)]);
}

#[test]
fn the_session_looks_as_the_contract_says() {
    let Some(rig) = Rig::new() else { return };
    let guest = eventful(&rig);
    let option =
        |scope: &str, name: &str| guest.tmux(&["show-options", scope, name]).expect(name).trim().to_owned();
    for (scope, name, value) in [
        ("-g", "status", "off"),
        ("-g", "remain-on-exit", "off"),
        ("-g", "mouse", "on"),
        ("-g", "history-limit", "250000"),
        ("-g", "allow-rename", "off"),
        ("-g", "default-shell", "/bin/bash"),
        ("-s", "default-terminal", "tmux-256color"),
        ("-s", "escape-time", "0"),
        ("-s", "extended-keys", "on"),
        ("-s", "focus-events", "on"),
    ] {
        assert_eq!(option(scope, name), format!("{name} {value}"));
    }
    let features = option("-s", "terminal-features");
    for feature in ["RGB", "extkeys", "usstyle", "focus", "sync"] {
        assert!(features.contains(feature), "{feature}: {features}");
    }
    assert_eq!(guest.tmux(&["list-sessions", "-F", "#{session_name}"]).out, "claude\n");
    let panes = |format: &str| guest.tmux(&["list-panes", "-t", "claude:0", "-F", format]).out;
    assert_eq!(panes("#{pane_index} #{pane_active}"), "0 1\n1 0\n", "the keys go to Claude");
    assert!(panes("#{pane_start_command}").lines().nth(1).unwrap().contains("bash --login -i"));
    assert_eq!(panes("#{pane_start_path}"), "/workspace/repo\n/workspace/repo\n");
    let environment = guest.tmux(&["show-environment", "-g"]).out;
    assert!(!environment.contains("canary") && environment.contains("COLORTERM=truecolor"), "{environment}");
}

#[test]
fn claude_has_four_fifths_of_every_screen() {
    let Some(rig) = Rig::new() else { return };
    let guest = eventful(&rig);
    let shares = || {
        let heights = guest.tmux(&["list-panes", "-t", "claude:0", "-F", "#{pane_height}"]).out;
        heights.lines().map(|line| line.parse::<f64>().unwrap()).collect::<Vec<_>>()
    };
    let is_80_20 = || {
        let heights = shares();
        let share = heights[1] / (heights[0] + heights[1]);
        (0.15..=0.25).contains(&share)
    };
    assert!(is_80_20(), "{:?}", shares());
    for (cols, rows) in [(80, 24), (200, 60), (120, 40)] {
        let mut terminal = attach(&guest, cols, rows);
        until("80/20", is_80_20);
        terminal.keys("\x02d");
        terminal.ends();
    }
}

#[test]
fn names_that_the_agent_chose_are_inert_wherever_they_are_shown() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let hostile = "a\x1b]0;evil-title\x07b\x1b[2J\u{9b}6nc";
    let answer = guest.client(AGENT, &["dns", "127.0.0.53", &format!("{hostile}.evil.test")]);
    assert!(!answer.out.contains("NOERROR"), "{answer:?}");
    guest.client(AGENT, &["dns", "127.0.0.53", "after.evil.test"]);
    guest.await_status("the denial", |status| refused(status, "after.evil.test").is_some());
    let mut terminal = enter(&guest, &["innkeeper", "status"], 200, 24);
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.saw("after.evil.test"), "{}", terminal.text());
    let json = guest.innkeeper(&["status", "--json"]).out;
    for shown in [&terminal.text(), &json, &guest.logs()] {
        for bytes in ["\x1b]", "\x1b[2J", "\x07", "\u{9b}"] {
            assert!(!shown.contains(bytes), "{bytes:?} in {shown:?}");
        }
    }
    let check = guest.innkeeper(&["check", hostile]);
    assert!(!check.ok() && !check.both().contains('\x1b'), "{check:?}");
}
