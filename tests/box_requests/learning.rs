//! What is said of the policy, and learned from what a box did.

use crate::rig::{AGENT, BoxOptions, ROOT, Rig, RunningBox, host};

fn fetch(guest: &RunningBox, user: &str, url: &str) -> bool {
    guest.exec(user, &format!("curl -sS -m 5 -4 {url}")).out.contains("token-")
}

fn active(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(|line| line.split(" # ").next().unwrap().trim()).collect()
}

#[test]
fn a_proposal_is_what_the_agent_used_and_serves_the_next_box() {
    let Some(rig) =
        Rig::with_zone(|zone| zone["records"]["*.wild.test"] = serde_json::json!([["A", host("ok2"), 60]]))
    else {
        return;
    };
    let rules = "ok.test:443,80\ntwo.test:80,9999\n*.wild.test:80\nmany.test\nstats.wild.test:80 telemetry\n";
    let file = rig.file("domains.conf", rules);
    let mount = format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display());
    let options = BoxOptions::new()
        .without_env("INNKEEPER_NETWORK_ALLOW")
        .env("INNKEEPER_NETWORK_PROFILES", "")
        .volume(&mount);
    let guest = rig.boot(&options);
    assert!(fetch(&guest, AGENT, "http://ok.test/") && fetch(&guest, AGENT, "http://a.wild.test/"));
    assert!(fetch(&guest, ROOT, "http://two.test/"), "the operator's own is none of the agent's");
    assert!(!fetch(&guest, AGENT, "http://evil.test/"));
    let used = |name: &str| {
        let log = guest.innkeeper(&["log", "--json"]).out;
        log.lines().any(|line| line.contains(r#""event":"used""#) && line.contains(name))
    };
    crate::common::until("the uses in the log", || used("ok.test") && used("wild.test"));
    guest.await_status("the refusal", |status| status["denials"].to_string().contains("evil.test"));
    let text = guest.innkeeper(&["policy", "suggest"]).expect("suggest");
    assert_eq!(active(&text), ["ok.test:80", "a.wild.test:80"], "{text}");
    assert!(text.lines().any(|line| line.starts_with("# evil.test ") && line.contains("refused")), "{text}");
    assert!(!text.contains("readiness"), "{text}");
    // Its address is ok.test's too: the name that was shown counts, and that was not the agent's doing.
    assert!(!text.contains("two.test"), "{text}");
    let json = guest.innkeeper(&["policy", "suggest", "--json"]).expect("suggest --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["lines"][0]["rule"]), (&1.into(), &"ok.test:80".into()));

    let findings = guest.innkeeper(&["check", "--all"]);
    assert_eq!(findings.code, Some(1), "{findings:?}");
    for line in [
        "not used in this box",
        "many.test (network/domains.conf:4)",
        "statistics alone: 1",
        "covered by another rule: 1",
    ] {
        assert!(findings.out.contains(line), "{line}: {}", findings.out);
    }
    let warned =
        guest.await_status("the lint", |status| status["warnings"].to_string().contains("check --all"));
    assert!(warned["warnings"].to_string().contains("statistics alone: 1 (stats.wild.test:80)"), "{warned}");
    assert!(!warned["warnings"].to_string().contains("not used"), "what only time shows is not said at boot");

    // Fed back it serves the same, and no more.
    std::fs::write(&file, &text).unwrap();
    guest.innkeeper(&["reload"]).expect("reload of the proposal");
    assert!(fetch(&guest, AGENT, "http://ok.test/") && fetch(&guest, AGENT, "http://a.wild.test/"));
    assert!(!fetch(&guest, AGENT, "http://two.test/") && !fetch(&guest, AGENT, "http://b.wild.test/"));
}

#[test]
fn wildcards_on_public_suffixes_need_the_word_for_it() {
    let Some(rig) = Rig::new() else { return };
    let file = rig.file("domains.conf", "ok.test:443,80\n");
    let mount = format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display());
    let guest = rig.boot(&BoxOptions::new().without_env("INNKEEPER_NETWORK_ALLOW").volume(&mount));
    for rule in ["*.test", "*.co.uk"] {
        let refused = guest.innkeeper(&["allow", rule]);
        assert_eq!(refused.code, Some(64), "{rule}: {refused:?}");
        assert!(refused.err.contains(&format!("innkeeper allow '{rule} public-suffix'")), "{refused:?}");
    }
    std::fs::write(&file, "ok.test:443,80\n*.test:80\n").unwrap();
    let refused = guest.innkeeper(&["reload"]);
    assert!(refused.code == Some(78) && refused.err.contains("domains.conf:2"), "{refused:?}");
    assert!(!fetch(&guest, AGENT, "http://evil.test/"));
    guest.innkeeper(&["allow", "*.test:80 public-suffix"]).expect("meant");
    assert!(fetch(&guest, AGENT, "http://evil.test/"), "the worker understands the word too");
    let findings = guest.innkeeper(&["check", "--all"]).out;
    assert!(findings.contains("wildcards that allow names of strangers: 1"), "{findings}");
    guest.innkeeper(&["revoke", "*.test:80"]).expect("without the word");
    assert!(!fetch(&guest, AGENT, "http://evil.test/"));
}

#[test]
fn check_tells_what_is_near_and_several_at_once() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;*.wild.test;docs.example.org"));
    for user in [ROOT, AGENT] {
        let check = |args: &[&str]| guest.exec_program(user, &[&["innkeeper", "check"], args].concat());
        let all = check(&["ok.test", "http://OK.test./x", "git@ok.test:you/repo"]);
        assert!(
            all.code == Some(1)
                && all.out.contains("ok.test:443 is allowed")
                && all.out.contains("ok.test:80 is allowed"),
            "{all:?}"
        );
        assert!(all.out.contains("innkeeper allow ok.test:22"), "{all:?}");
        assert_eq!(check(&["ok.test", "http://ok.test"]).code, Some(0));
        for (name, near) in
            [("wild.test", "which is for names below it"), ("dcos.example.org", "if that is a typing error")]
        {
            let done = check(&[name]);
            assert!(done.code == Some(1) && done.out.contains(near), "{done:?}");
        }
        let json = check(&["--json", "docs.example.org", "wild.test"]).out;
        let parsed: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&parsed[0]["allowed"], &parsed[0]["rules"][0]["rule"]),
            (&true.into(), &"docs.example.org".into())
        );
        assert_eq!(
            (&parsed[1]["allowed"], &parsed[1]["nearest"][0]["relation"]),
            (&false.into(), &"apex".into())
        );
        assert_eq!((&parsed[1]["line"], &parsed[1]["schema"]), (&"wild.test".into(), &1.into()));
        assert_eq!(check(&[]).code, Some(64));
    }
    guest.innkeeper(&["revoke", "ok.test:80"]).expect("revoke");
    let back = guest.innkeeper(&["check", "ok.test:80"]).out;
    assert!(back.contains("which the operator took back"), "{back}");
    for args in [&["revoke", "--json", "ok.test"][..], &["allow", "--json", "ok.test"], &["reload", "--json"]]
    {
        let json: serde_json::Value = serde_json::from_str(&guest.innkeeper(args).expect("json")).unwrap();
        assert!(json["generation"].is_u64() && json["said"].is_array(), "{args:?}: {json}");
    }
}
