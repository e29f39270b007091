//! A request's life: asked, seen, granted or refused, and ended with its rule.

use serde_json::Value;

use crate::common::{queueing, requests, until};
use crate::rig::{AGENT, BoxOptions, Rig, RunningBox, host};

/// What the box's resolver answers to a question for a name, octet by octet: with the Extended DNS Error's text.
fn explained(guest: &RunningBox, name: &str) -> String {
    let ask = r"import socket, sys
labels = [part.encode() for part in sys.argv[1].split('.')]
name = b''.join(bytes([len(part)]) + part for part in labels) + b'\0'
edns = b'\0\0\x29\x04\xd0\0\0\0\0\0\0'
query = b'\0\1\1\0\0\1\0\0\0\0\0\1' + name + b'\0\1\0\1' + edns
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
there.settimeout(10)
there.sendto(query, ('127.0.0.53', 53))
print(there.recv(4096))";
    guest.exec_program(AGENT, &["python3", "-c", ask, name]).expect("an answer")
}

fn opens(rig: &Rig, guest: &RunningBox) -> bool {
    let mark = rig.world.sync();
    let done =
        guest.client(AGENT, &["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\nHost: evil.test\r\n\r\n"]);
    let arrived = rig.world.packets_since(mark).iter().any(|one| one["dst"] == host("evil").as_str());
    assert_eq!(done.ok(), arrived, "{done:?}");
    arrived
}

#[test]
fn a_request_is_granted_for_a_while_and_its_end_cuts_what_it_opened() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let mark = rig.world.sync();
    assert!(!opens(&rig, &guest), "before");
    let explained = explained(&guest, "evil.test");
    assert!(explained.contains("ask for it: innkeeper request evil.test"), "{explained}");
    let check = guest.exec_program(AGENT, &["innkeeper", "check", "evil.test:80"]);
    assert!(check.code == Some(1) && check.out.contains("innkeeper request evil.test:80"), "{check:?}");

    let ask = [
        "innkeeper",
        "request",
        "Evil.test.:80",
        "--reason",
        "the page of the test",
        "--wait",
        "60s",
        "--json",
    ];
    let waiting = guest.spawn(AGENT, &ask);
    until("the request", || !requests(&guest).is_empty());
    let shown = requests(&guest).remove(0);
    assert_eq!(
        (&shown["id"], &shown["state"], &shown["rule"]),
        (&1.into(), &"pending".into(), &"evil.test:80".into())
    );
    assert_eq!(shown["reason"], "the page of the test");
    assert_eq!(guest.status()["requests"][0], shown, "status shows the same");
    assert!(!rig.world.asked().iter().any(|name| name.contains("evil")), "nothing of it was resolved");
    assert!(rig.world.packets_since(mark).iter().all(|one| one["dst"] != host("evil").as_str()));

    let granted = guest.innkeeper(&["grant", "1", "--for", "8s"]).expect("grant");
    assert!(granted.contains("evil.test:80: allowed for 8s"), "{granted}");
    let answer = waiting.end();
    assert!(answer.contains(r#""state":"granted""#), "{answer}");
    let mut flow = guest.flow(AGENT, &host("evil"), "80");
    let _ = flow.hear();
    let page = guest.exec_agent("curl -sS -m 5 -4 http://evil.test/");
    assert!(page.out.contains("token-"), "{page:?}");
    let rules = guest.status()["policy"]["rules"].clone();
    let rule = rules.as_array().unwrap().iter().find(|one| one["rule"] == "evil.test:80").unwrap().clone();
    assert_eq!(rule["origin"], "request 1, operator");
    assert_eq!(rule["reason"], "the agent: the page of the test");
    assert!(rule["expires_at"].is_string() && rule["since"].as_str().unwrap() > "2020", "{rule}");

    guest.await_status("the end", |status| status["requests"][0]["state"] == "expired");
    assert!(!opens(&rig, &guest), "after its end");
    flow.say("leaked after");
    assert!(!flow.hear().contains("leaked") && !rig.world.saw("leaked after"), "its flow ends with it");
    let log = guest.innkeeper(&["log", "--json"]).out;
    let states: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|entry| entry["event"] == "request")
        .map(|entry| format!("{} by {}", entry["state"].as_str().unwrap(), entry["by"].as_str().unwrap()))
        .collect();
    assert_eq!(states, ["pending by agent", "granted by operator", "expired by clock"]);
}

#[test]
fn a_refusal_is_told_to_who_waits_and_stands() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let asked = guest.exec_program(AGENT, &["innkeeper", "request", "evil.test", "--reason", "please"]);
    assert!(asked.code == Some(0) && asked.out.contains("pending"), "{asked:?}");
    let status = || guest.exec_program(AGENT, &["innkeeper", "request", "--status", "1"]);
    assert_eq!(status().code, Some(75));
    let late =
        guest.exec_program(AGENT, &["innkeeper", "request", "evil.test", "--reason", "x", "--wait", "1s"]);
    assert_eq!(late.code, Some(75), "nobody answered: {late:?}");
    guest.innkeeper(&["refuse", "1", "--reason", "use the mirror"]).expect("refuse");
    let told = status();
    assert!(told.code == Some(1) && told.out.contains("refused (use the mirror)"), "{told:?}");
    let again =
        guest.exec_program(AGENT, &["innkeeper", "request", "evil.test", "--reason", "now", "--wait"]);
    assert!(again.code == Some(1) && again.out.contains("use the mirror"), "at once: {again:?}");
    let all = requests(&guest);
    assert_eq!((all.len(), &all[0]["count"], &all[0]["reason"]), (1, &3.into(), &"please".into()));
    assert!(!guest.innkeeper(&["refuse", "1"]).ok() && !guest.innkeeper(&["grant", "7"]).ok());
    // The operator may think again, and take it back.
    guest.innkeeper(&["grant", "1"]).expect("grant");
    assert_eq!(status().code, Some(0));
    guest.innkeeper(&["revoke", "evil.test"]).expect("revoke");
    assert!(status().out.contains("expired (it was taken back)"), "{:?}", status());
}

#[test]
fn what_can_never_be_granted_is_answered_at_once() {
    let Some(rig) = Rig::new() else { return };
    let ceiling = rig.file("ceiling.conf", "ok.test:443,80\n*.wild.test\n");
    let options = BoxOptions::new()
        .env("INNKEEPER_NETWORK_REQUESTS", "queue")
        .env("INNKEEPER_NETWORK_PROFILES", "")
        .env("INNKEEPER_NETWORK_ALLOW", "ok.test:80;!bad.wild.test")
        .env("INNKEEPER_MODEL_PROVIDER", "gateway")
        .env("INNKEEPER_MODEL_BASE_URL", "https://ok.test")
        .env("ANTHROPIC_AUTH_TOKEN", "a-token-of-the-gateway")
        .volume(&format!("{}:/etc/innkeeper/ceiling.conf:ro", ceiling.display()));
    let guest = rig.boot(&options);
    let ask = |rule: &str| guest.exec_program(AGENT, &["innkeeper", "request", "--reason", "x", "--", rule]);
    for (rule, code, why) in [
        ("evil.test", 77, "ceiling"),
        ("a.wild.test:80", 77, "ceiling"),
        ("bad.wild.test", 77, "!bad.wild.test"),
        ("*.wild.test", 64, "exact names"),
        ("!ok.test", 64, "only the operator denies"),
        ("a.wild.test private", 64, "no options"),
        ("10.0.0.1", 64, "IP address"),
        ("a.wild.test:53", 64, "resolver"),
        ("co.uk", 64, "public suffix"),
        ("-x", 64, "host name"),
        ("", 64, "empty"),
        ("ok.test:80", 0, "already"),
    ] {
        let done = ask(rule);
        assert_eq!(done.code, Some(code), "{rule}: {done:?}");
        assert!(done.both().contains(why), "{rule}: {done:?}");
    }
    assert!(requests(&guest).is_empty());
    // What is below the ceiling is left to the operator, who stays below it too.
    assert_eq!(ask("a.wild.test").code, Some(0));
    guest.innkeeper(&["grant", "1"]).expect("grant");
    assert_eq!(guest.innkeeper(&["allow", "evil.test"]).code, Some(77));
    let check = guest.innkeeper(&["check", "evil.test"]);
    assert!(
        check.code == Some(1) && check.out.contains("ceiling") && !check.out.contains("innkeeper allow"),
        "{check:?}"
    );
    // Who is refused is not told of a command that would be refused.
    let page = |host: &str| guest.exec(AGENT, &format!("curl -sS -H 'Host: {host}' http://ok.test/"));
    assert!(page("evil.test").out.contains("next: nothing in this box: it is beyond the ceiling"));
    let beyond = explained(&guest, "b.test");
    assert!(beyond.contains("beyond the ceiling") && !beyond.contains("innkeeper allow"), "{beyond}");
    let below = explained(&guest, "b.wild.test");
    assert!(below.contains("ask for it: innkeeper request b.wild.test"), "{below}");
    let told = |status: &Value, layer: &str, name: &str| {
        let denials = status["denials"].as_array().cloned().unwrap_or_default();
        let of = denials.iter().find(|one| one["layer"] == layer && one["what"].to_string().contains(name));
        of.map(|one| one["allow"].as_str().unwrap_or_default().to_owned())
    };
    let status = guest.await_status("the refusals", |status| {
        told(status, "gate", "evil.test").is_some() && told(status, "dns", "b.wild.test").is_some()
    });
    for (layer, name) in [("gate", "evil.test"), ("dns", "b.test")] {
        let allow = told(&status, layer, name).unwrap_or_default();
        assert!(allow.starts_with("nothing in this box: it is beyond"), "{layer} {name}: {allow}");
    }
    assert_eq!(told(&status, "dns", "b.wild.test").as_deref(), Some("innkeeper allow b.wild.test"));
}

#[test]
fn a_box_that_takes_no_requests_says_so_at_once() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let done = guest.exec_program(AGENT, &["innkeeper", "request", "evil.test", "--reason", "x", "--wait"]);
    assert_eq!(done.code, Some(77), "{done:?}");
    assert!(
        done.err.contains("network.requests=deny") && done.err.contains("innkeeper allow evil.test"),
        "{done:?}"
    );
    assert!(requests(&guest).is_empty());
}

#[test]
fn the_policy_itself_answers_a_request() {
    let Some(rig) = Rig::new() else { return };
    let guest = queueing(&rig);
    let ask = ["innkeeper", "request", "many.test:80", "--reason", "x", "--wait", "60s"];
    let waiting = guest.spawn(AGENT, &ask);
    until("the request", || !requests(&guest).is_empty());
    guest.innkeeper(&["allow", "many.test:80", "--reason", "by hand"]).expect("allow");
    let told = waiting.end();
    assert!(told.contains("granted (allowed by many.test:80 (operator))"), "{told}");
    let rules = guest.status()["policy"]["rules"].clone();
    let rule = rules.as_array().unwrap().iter().find(|one| one["rule"] == "many.test:80").unwrap().clone();
    assert_eq!((&rule["origin"], &rule["reason"]), (&"operator".into(), &"by hand".into()));
}
