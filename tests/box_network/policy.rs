//! Live policy: what an operator allows opens at once, what is revoked closes with its flows, and nothing else changes.

use serde_json::Value;

use crate::common::{GET, gets_through, nothing_to, packets_to, refused_fast, until};
use crate::rig::{AGENT, BoxOptions, Done, PATIENCE, ROOT, Rig, RunningBox, host, must};

const RESOLVER: &str = "127.0.0.53";

fn resolves(guest: &RunningBox, name: &str) -> bool {
    guest.client(AGENT, &["dns", RESOLVER, name]).out.starts_with("NOERROR ")
}

fn generation(guest: &RunningBox) -> u64 {
    guest.status()["policy"]["generation"].as_u64().unwrap()
}

fn rules(guest: &RunningBox) -> Vec<String> {
    let status = guest.status();
    let rules = status["policy"]["rules"].as_array().unwrap();
    rules.iter().map(|one| one["rule"].as_str().unwrap().to_owned()).collect()
}

/// A box whose domains.conf is a file of the rig's.
fn with_file(rig: &Rig, text: &str) -> (RunningBox, std::path::PathBuf) {
    let file = rig.file("domains.conf", text);
    let mount = format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display());
    (rig.boot(&BoxOptions::new().without_env("INNKEEPER_NETWORK_ALLOW").volume(&mount)), file)
}

/// How a rule is taken away.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Reload,
    Hup,
    Revoke,
    Deny,
    TimeOver,
}

fn end(rig: &Rig, guest: &RunningBox, file: &std::path::Path, ending: Ending) {
    let _ = rig;
    match ending {
        Ending::Reload => {
            std::fs::write(file, "ok.test:443\nkept.wild.test:9999\n").unwrap();
            guest.innkeeper(&["reload"]).expect("reload");
        }
        Ending::Hup => {
            std::fs::write(file, "ok.test:443\nkept.wild.test:9999\n").unwrap();
            let before = generation(guest);
            guest.signal("HUP");
            guest.await_status("another policy", |status| {
                status["policy"]["generation"].as_u64() > Some(before)
            });
        }
        Ending::Revoke => {
            guest.innkeeper(&["revoke", "ok.test:9999"]).expect("revoke");
        }
        Ending::Deny => {
            guest.innkeeper(&["allow", "!ok.test"]).expect("a deny rule");
        }
        Ending::TimeOver => {
            guest.await_status("the end of the grant", |status| {
                !status["policy"]["rules"].to_string().contains("ok.test:9999")
            });
        }
    }
}

fn cut(ending: Ending) {
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["kept.wild.test"] = serde_json::json!([["A", host("ok3"), 60]]);
    }) else {
        return;
    };
    let file_has_it = !matches!(ending, Ending::TimeOver);
    let text = if file_has_it {
        "ok.test:443,9999\nkept.wild.test:9999\n"
    } else {
        "ok.test:443\nkept.wild.test:9999\n"
    };
    let (guest, file) = with_file(&rig, text);
    if !file_has_it {
        guest.innkeeper(&["allow", "ok.test:9999", "--for", "6s"]).expect("allow");
    }
    let address = host("ok");
    let mut flows: Vec<_> = [AGENT, ROOT].map(|user| guest.flow(user, &address, "9999")).into();
    let mut kept = guest.flow(AGENT, &host("ok3"), "9999");
    assert!(resolves(&guest, "kept.wild.test"));
    for flow in flows.iter_mut().chain([&mut kept]) {
        assert_eq!(flow.hear(), "connected", "{ending:?}");
        flow.say("before");
        assert!(flow.hear().contains("before"), "{ending:?}");
    }
    end(&rig, &guest, &file, ending);
    for flow in &mut flows {
        flow.say("leaked after");
        let answer = flow.hear();
        assert!(!answer.contains("leaked"), "{ending:?}: an open connection outlived its rule: {answer}");
    }
    assert!(!rig.world.saw("leaked after"), "{ending:?}");
    let mark = rig.world.sync();
    refused_fast(&guest, &["tcp", &address, "9999", "leak"]);
    // What the end of a flow still sends, and nothing of the new attempts.
    let opened = rig.world.packets_since(mark).into_iter().any(|one| {
        one["dport"] == 9999
            && one["dst"] == address.as_str()
            && one["flags"].as_str().is_some_and(|flags| flags == "S")
    });
    assert!(!opened, "{ending:?}");
    // Others go on undisturbed.
    kept.say("still here");
    assert!(kept.hear().contains("still here"), "{ending:?}");
    // Allowed again, it works again, on a new connection.
    if matches!(ending, Ending::Deny) {
        guest.innkeeper(&["revoke", "!ok.test"]).expect("the deny rule goes");
    } else {
        guest.innkeeper(&["allow", "ok.test:9999"]).expect("allow");
    }
    until("it works again", PATIENCE, || {
        resolves(&guest, "ok.test")
            && guest.client(AGENT, &["tcp", &address, "9999", "again"]).out.contains("again")
    });
}

#[test]
fn t36_an_open_flow_ends_with_its_rule_by_reload() {
    cut(Ending::Reload);
}

#[test]
fn t36_an_open_flow_ends_with_its_rule_by_hup() {
    cut(Ending::Hup);
}

#[test]
fn t36_an_open_flow_ends_with_its_rule_by_revoke() {
    cut(Ending::Revoke);
}

#[test]
fn t36_an_open_flow_ends_with_a_deny_rule() {
    cut(Ending::Deny);
}

#[test]
fn t36_an_open_flow_ends_when_the_grants_time_is_over() {
    cut(Ending::TimeOver);
}

#[test]
fn t36_a_flow_outlives_the_answer_and_the_address_that_others_still_have() {
    // TTL 5 below a wildcard: the address closes some 65 s after the answer.
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["*.wild.test"] = serde_json::json!([["A", "93.184.215.99", 5]]);
    }) else {
        return;
    };
    let guest = rig.boot(&BoxOptions::new().allow("*.wild.test:9999"));
    assert!(resolves(&guest, "a.wild.test"));
    let mut flow = guest.flow(AGENT, "93.184.215.99", "9999");
    assert_eq!(flow.hear(), "connected");
    until("the address closes", std::time::Duration::from_secs(150), || {
        !guest.client(AGENT, &["tcp", "93.184.215.99", "9999", "x"]).ok()
    });
    flow.say("a long download");
    assert!(flow.hear().contains("a long download"), "the end of an answer's life cuts nothing");
}

#[test]
fn allow_opens_at_once_and_survives_a_reload() {
    let Some(rig) = Rig::new() else { return };
    let (guest, file) = with_file(&rig, "ok.test:443,80\n");
    let evil = host("evil");
    let mark = rig.world.sync();
    refused_fast(&guest, &["tcp", &evil, "80", GET]);
    assert!(!resolves(&guest, "evil.test"));
    nothing_to(&rig, mark, &evil);
    let before = generation(&guest);
    let said = guest.innkeeper(&["allow", "evil.test:80", "many.test:80,443"]).expect("allow");
    assert!(said.contains("evil.test:80"), "{said}");
    // At once: the next thing that anybody does.
    let page = guest.exec_agent("curl -sS -m 5 -4 http://evil.test/");
    assert!(page.out.contains(&format!("token-{evil}")), "{page:?}");
    assert!(generation(&guest) > before);
    refused_fast(&guest, &["tcp", &evil, "443", "leak"]);
    std::fs::write(&file, "ok.test:443,80\ntwo.test:80\n").unwrap();
    guest.innkeeper(&["reload"]).expect("reload");
    assert!(resolves(&guest, "evil.test") && resolves(&guest, "many.test") && resolves(&guest, "two.test"));
    let origin = guest.status()["policy"]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["rule"] == "evil.test:80")
        .unwrap()["origin"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(origin.contains("operator"), "{origin}");
    // Revoked, it is as if it had never been.
    guest.innkeeper(&["revoke", "evil.test:80"]).expect("revoke");
    let mark = rig.world.sync();
    assert!(!resolves(&guest, "evil.test"));
    refused_fast(&guest, &["tcp", &evil, "80", GET]);
    assert!(packets_to(&rig, mark, &evil).iter().all(|one| !one.contains(r#""flags":"S""#)));
    assert!(resolves(&guest, "many.test"));
}

#[test]
fn allow_for_a_while_ends_by_itself() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.innkeeper(&["allow", "two.test:8080", "--for", "3s"]).expect("allow");
    assert!(guest.client(AGENT, &["tcp", &host("ok"), "8080", "x"]).ok() || resolves(&guest, "two.test"));
    let granted = guest.status()["policy"]["rules"].to_string();
    assert!(granted.contains("two.test:8080"), "{granted}");
    guest.await_status("the end", |status| !status["policy"]["rules"].to_string().contains("two.test:8080"));
    assert!(!resolves(&guest, "two.test"));
    refused_fast(&guest, &["tcp", &host("ok"), "8080", "leak"]);
    assert!(
        guest.exec_agent("curl -sS -m 5 http://ok.test/").out.contains("token-"),
        "its neighbour on the same address stays"
    );
}

#[test]
fn a_deny_rule_wins_over_every_other() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;*.wild.test:80"));
    assert!(resolves(&guest, "bad.wild.test") && resolves(&guest, "good.wild.test"));
    guest.innkeeper(&["allow", "!bad.wild.test", "!ok.test"]).expect("deny rules");
    for name in ["bad.wild.test", "ok.test"] {
        assert!(!resolves(&guest, name), "{name}");
    }
    assert!(resolves(&guest, "good.wild.test"));
    // To allow what a deny rule forbids is refused, and says which.
    let refused = guest.innkeeper(&["allow", "ok.test:443"]);
    assert!(!refused.ok() && refused.both().contains("!ok.test"), "{refused:?}");
    assert!(!resolves(&guest, "ok.test"));
}

#[test]
fn nothing_goes_beyond_the_ceiling() {
    let Some(rig) = Rig::new() else { return };
    let profiles = "*.anthropic.com:443\nclaude.ai:443\n*.claude.ai:443\nclaude.com:443\n*.claude.com:443\n";
    let ceiling = rig.file("ceiling.conf", &format!("{profiles}ok.test:443,80\n*.wild.test:80\n"));
    let options = BoxOptions::new()
        .allow("ok.test:80")
        .env("INNKEEPER_NETWORK_PROFILES", "")
        .volume(&format!("{}:/etc/innkeeper/ceiling.conf:ro", ceiling.display()));
    let guest = rig.boot(&options);
    gets_through_in(&guest, "ok.test");
    let (before, generation_before) = (rules(&guest), generation(&guest));
    let mark = rig.world.sync();
    for beyond in [
        &["evil.test:80"][..],
        &["ok.test:9999"],
        &["*.ok.test"],
        &["a.wild.test:443"],
        &["x.wild.test:80", "evil.test"],
        &["ok.test:80 private"],
    ] {
        let refused = guest.innkeeper(&[&["allow"], beyond].concat());
        assert_eq!(refused.code, Some(77), "{beyond:?}: {refused:?}");
        assert!(refused.both().contains("ceiling"), "{beyond:?}: {refused:?}");
    }
    assert_eq!(rules(&guest), before);
    assert_eq!(generation(&guest), generation_before);
    assert!(!resolves(&guest, "x.wild.test") && !resolves(&guest, "evil.test"));
    refused_fast(&guest, &["tcp", &host("evil"), "80", GET]);
    nothing_to(&rig, mark, &host("evil"));
    guest.innkeeper(&["allow", "x.wild.test:80"]).expect("what is below it");
    gets_through_in(&guest, "x.wild.test");
}

#[track_caller]
fn gets_through_in(guest: &RunningBox, name: &str) {
    let page = guest.exec_agent(&format!("curl -sS -m 10 http://{name}/"));
    assert!(page.out.contains("token-"), "{name}: {page:?}");
}

#[test]
fn broken_files_and_rules_change_nothing_and_say_where() {
    let Some(rig) = Rig::new() else { return };
    let (guest, file) = with_file(&rig, "ok.test:443,80\ntwo.test:9999\n");
    let (before, generation_before) = (rules(&guest), generation(&guest));
    let mut flow = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    let broken = [
        ("ok.test:443\nmany.test:80\nok.test:eighty\n", "domains.conf:3"),
        ("ok.test:443 sideways\n", "domains.conf:1"),
        ("\n\n10.0.0.1\n", "domains.conf:3"),
        ("ok.test\n*.*.test\n", "domains.conf:2"),
        ("ok.test:0\n", "domains.conf:1"),
        ("ok.test:53\n", "domains.conf:1"),
        ("https://ok.test/\n", "domains.conf:1"),
        ("\u{0}\u{1b}[31m\n", "domains.conf:1"),
    ];
    for (text, place) in broken {
        std::fs::write(&file, text).unwrap();
        let refused = guest.innkeeper(&["reload"]);
        assert_eq!(refused.code, Some(78), "{text:?}: {refused:?}");
        assert!(refused.both().contains(place), "{text:?}: {refused:?}");
        assert!(!refused.both().contains('\u{1b}'), "{refused:?}");
        guest.signal("HUP");
        guest.await_line("the old policy stays").expect("a word about it");
        assert_eq!(rules(&guest), before, "{text:?}");
    }
    for bad in ["ok.test:eighty", "https://x.test", "10.0.0.1", "ok.test sideways", "", "!", "x.test:53"] {
        let refused: Done = guest.innkeeper(&["allow", "many.test", bad]);
        assert_eq!(refused.code, Some(64), "{bad:?}: {refused:?}");
        let refused = guest.innkeeper(&["revoke", "two.test:9999", bad]);
        assert!(!refused.ok(), "{bad:?}: {refused:?}");
    }
    assert!(!guest.innkeeper(&["revoke", "two.test:9999", "nobody.test"]).ok(), "all or nothing");
    for time in ["0s", "-1s", "soon", "99999d"] {
        assert!(!guest.innkeeper(&["allow", "many.test", "--for", time]).ok(), "{time}");
    }
    assert_eq!((rules(&guest), generation(&guest)), (before, generation_before));
    assert!(resolves(&guest, "ok.test") && !resolves(&guest, "many.test"));
    flow.say("undisturbed");
    assert!(flow.hear().contains("undisturbed"));
}

#[test]
fn what_is_added_disturbs_no_open_flow() {
    let Some(rig) = Rig::new() else { return };
    let (guest, file) = with_file(&rig, "ok.test:443,9999\n");
    let mut flow = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    for number in 0..10 {
        guest.innkeeper(&["allow", &format!("n{number}.wild.test:80")]).expect("allow");
        flow.say(&format!("after {number}"));
        assert!(flow.hear().contains(&format!("after {number}")));
    }
    std::fs::write(&file, "two.test:80\nok.test:443,9999,80\n").unwrap();
    guest.innkeeper(&["reload"]).expect("reload");
    guest.innkeeper(&["revoke", "n3.wild.test:80"]).expect("another's end");
    // The same address under another name's rule, which goes: ours still claims it.
    guest.innkeeper(&["allow", "two.test:9999"]).expect("allow");
    assert!(resolves(&guest, "two.test"));
    guest.innkeeper(&["revoke", "two.test:9999"]).expect("revoke");
    flow.say("in the end");
    assert!(flow.hear().contains("in the end"));
}

#[test]
fn the_agent_may_neither_change_the_policy_nor_read_the_log() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before = rules(&guest);
    for command in [
        "allow evil.test",
        "revoke ok.test:443,80",
        "reload",
        "log",
        "log --denied --json",
        "allow evil.test --for 1h",
    ] {
        for done in [
            guest.as_session(&format!("innkeeper {command}")),
            guest.exec_agent(&format!("innkeeper {command}")),
        ] {
            assert_eq!(done.code, Some(77), "{command}: {done:?}");
        }
    }
    assert_eq!(rules(&guest), before);
    assert!(!resolves(&guest, "evil.test"));
    let operator = guest.innkeeper(&["allow", "evil.test:80"]);
    assert!(operator.ok() && resolves(&guest, "evil.test"), "{operator:?}");
    // What anybody may know is why.
    let why = guest.exec_agent("innkeeper check evil.test:80");
    assert!(why.out.contains("operator"), "{why:?}");
}

#[test]
fn check_agrees_with_what_happens() {
    // An address of its own: what shares one shares what is open, until there is a gate.
    let Some(rig) =
        Rig::with_zone(|zone| zone["records"]["*.wild.test"] = serde_json::json!([["A", host("ok2"), 60]]))
    else {
        return;
    };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:443,80;*.wild.test:9999;!bad.wild.test"));
    let cases = [
        ("ok.test", "80"),
        ("ok.test", "9999"),
        ("a.wild.test", "9999"),
        ("a.wild.test", "80"),
        ("bad.wild.test", "9999"),
        ("wild.test", "9999"),
        ("evil.test", "80"),
    ];
    for (name, port) in cases {
        let verdict = guest.innkeeper(&["check", &format!("{name}:{port}")]);
        let connects = guest.exec_agent(&format!(
            "python3 -c \"import socket; s = socket.create_connection(('{name}', {port}), 3); s.sendall(b'GET / HTTP/1.0\\r\\nHost: {name}\\r\\n\\r\\n'); print(s.recv(99999))\""
        ));
        // A connection to the gate says nothing; whose octets come back does.
        let reached = connects.out.contains("token-");
        assert_eq!(verdict.ok(), reached, "{name}:{port}: {verdict:?} {connects:?}");
        if !verdict.ok() {
            assert!(verdict.out.contains("innkeeper "), "the command that would allow it: {verdict:?}");
        }
    }
}

/// Stops PID 1 while the box is tampered with: it repairs faster than anybody could look.
fn while_nobody_looks<T>(guest: &RunningBox, act: impl FnOnce() -> T) -> T {
    let pid = guest.pid().to_string();
    must("kill", &["-STOP", &pid]);
    let done = act();
    must("kill", &["-CONT", &pid]);
    done
}

/// What somebody with the host's rights could do to our table.
const TAMPERINGS: &[&str] = &[
    "nft delete table inet innkeeper",
    "nft flush ruleset",
    "nft 'flush table inet innkeeper; add chain inet innkeeper output { policy accept; }; add chain inet innkeeper input { policy accept; }'",
    "nft 'insert rule inet innkeeper output ip daddr 45.33.32.66 accept; insert rule inet innkeeper input ip saddr 45.33.32.66 accept'",
    "nft 'add element inet innkeeper open4 { 45.33.32.66 . 9999 }; add element inet innkeeper held4 { 45.33.32.66 . 9999 }'",
    "nft 'add chain inet innkeeper early { type filter hook output priority -300; policy accept; }; \
     add rule inet innkeeper early ip daddr 45.33.32.66 meta mark set 1; insert rule inet innkeeper output meta mark 1 accept; \
     insert rule inet innkeeper input ip saddr 45.33.32.66 accept'",
    "nft 'delete chain inet innkeeper output; delete chain inet innkeeper input'",
];

#[test]
fn t46_what_root_does_to_the_rules_is_noticed_and_repaired() {
    let Some(rig) = Rig::new() else { return };
    let (evil, evil_v6) = (host("evil"), host("evil_v6"));
    for address in [&evil, &evil_v6] {
        gets_through(&rig, &["tcp", address, "9999", "leak"]);
    }
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999"));
    // On a port that is the filter's alone: the gate is a lock of its own.
    let attempt = ["tcp", &evil, "9999", "leak"];
    let rules = || rig.inside("nft -s list table inet innkeeper").out;
    for (number, tampering) in TAMPERINGS.iter().enumerate() {
        while_nobody_looks(&guest, || {
            rig.inside(tampering).expect(tampering);
            assert!(guest.client(AGENT, &attempt).ok(), "without its rule it gets through: {tampering}");
        });
        let begun = std::time::Instant::now();
        until(&format!("repaired: {tampering}\n{}", rules()), std::time::Duration::from_secs(30), || {
            !guest.client(AGENT, &attempt).ok()
        });
        // Ten seconds are the promise; what one try takes comes on top.
        assert!(begun.elapsed().as_secs() <= 12, "{tampering}: {:?}", begun.elapsed());
        let mark = rig.world.sync();
        refused_fast(&guest, &attempt);
        assert!(!guest.client(ROOT, &["tcp", &evil_v6, "9999", "leak"]).ok());
        nothing_to(&rig, mark, &evil);
        nothing_to(&rig, mark, &evil_v6);
        // What was allowed is allowed, without another question.
        assert!(guest.client(AGENT, &["tcp", &host("ok"), "80", GET]).ok(), "{tampering}");
        // Told at once; those that follow within a minute are counted.
        if number == 0 {
            guest.await_line("somebody changed").expect("a word about it");
        }
        guest.await_status("every protection", |status| {
            status["protections"].as_array().is_some_and(|all| all.iter().all(|one| one["held"] == true))
        });
    }
    let log = guest.innkeeper(&["log", "--json"]).expect("the log");
    assert!(log.contains("somebody changed"), "{log}");
}

#[test]
fn t46_a_flow_that_a_tampering_let_out_does_not_outlive_it() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999"));
    let mut good = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(good.hear(), "connected");
    let mut bad = while_nobody_looks(&guest, || {
        rig.inside(TAMPERINGS[3]).expect("a hole");
        let mut bad = guest.flow(AGENT, &host("evil"), "9999");
        assert_eq!(bad.hear(), "connected", "the hole is one");
        bad.say("before");
        assert!(bad.hear().contains("before"));
        bad
    });
    until("repaired", PATIENCE, || !guest.client(AGENT, &["tcp", &host("evil"), "9999", "x"]).ok());
    bad.say("leaked after");
    assert!(!bad.hear().contains("leaked"));
    assert!(!rig.world.saw("leaked after"));
    good.say("still here");
    assert!(good.hear().contains("still here"));
}

#[test]
fn f27_rules_of_others_survive_everything_that_changes_ours() {
    let Some(rig) = Rig::new() else { return };
    let others = "nft add table inet others; nft add chain inet others c '{ type filter hook output priority 0; }'; \
                  nft add rule inet others c tcp dport 4242 counter; nft add set inet others s '{ type ipv4_addr; }'; nft add element inet others s '{ 192.0.2.7 }'; \
                  iptables -t nat -N DOCKER_OUTPUT; iptables -t nat -A OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT; \
                  iptables -t nat -A DOCKER_OUTPUT -d 127.0.0.11 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:40123; iptables -A OUTPUT -p tcp --dport 4243 -j ACCEPT";
    rig.inside(others).expect("rules of others");
    let theirs = || {
        ["inet others", "ip nat", "ip filter"]
            .map(|table| rig.inside(&format!("nft -s list table {table}")).expect(table))
    };
    let before = theirs();
    let evil = ["tcp", &host("evil"), "443", "leak"];
    gets_through(&rig, &evil);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80"));
    assert_eq!(theirs(), before, "start");
    guest.innkeeper(&["reload"]).expect("reload");
    guest.innkeeper(&["allow", "two.test:8080"]).expect("allow");
    guest.innkeeper(&["revoke", "two.test:8080"]).expect("revoke");
    assert_eq!(theirs(), before, "policy");
    rig.inside("nft delete table inet innkeeper").expect("tampering");
    until("repaired", PATIENCE, || !guest.client(AGENT, &evil).ok());
    assert_eq!(theirs(), before, "repair");
    must("docker", &["stop", "-t", "20", &guest.name]);
    assert_eq!(theirs(), before, "stop");
    assert!(!rig.outside(&evil).ok(), "after the box the network is still closed");
}

fn worker(status: &Value, name: &str) -> Option<(i64, u64)> {
    let workers = status["workers"].as_array()?;
    let one = workers.iter().find(|worker| worker["name"] == name)?;
    Some((one["pid"].as_i64()?, one["restarts"].as_u64()?))
}

#[test]
fn t83_killed_workers_open_nothing_and_come_back() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999;*.wild.test:80"));
    let mut flow = guest.flow(AGENT, &host("ok"), "9999");
    assert_eq!(flow.hear(), "connected");
    let mark = rig.world.sync();
    for name in ["dns", "watch", "gate", "dns", "watch", "gate"] {
        let (pid, restarts) =
            worker(&guest.status(), name).unwrap_or_else(|| panic!("{name}: {}", guest.status()["workers"]));
        guest.exec_root(&format!("kill -KILL {pid}")).expect("killing it");
        refused_fast(&guest, &["tcp", &evil, "80", GET]);
        refused_fast(&guest, &["udp", &evil, "9999", "leak"]);
        assert!(guest.client(AGENT, &["tcp", &host("ok"), "9999", "hello"]).ok(), "what is open stays");
        flow.say(&format!("without {name}"));
        assert!(flow.hear().contains("without"));
        guest.await_status("another worker", |status| {
            worker(status, name).is_some_and(|(new, count)| new != pid && count > restarts)
        });
        assert!(resolves(&guest, "ok.test"), "{name}");
        assert!(resolves(&guest, &format!("{name}{pid}.wild.test")), "{name}");
        assert!(!resolves(&guest, "evil.test"));
    }
    nothing_to(&rig, mark, &evil);
    // The new ones do the old ones' work: a refusal is heard.
    guest.client(AGENT, &["tcp", &evil, "8443", "leak"]);
    guest.await_status("a refusal", |status| status["denials"].to_string().contains(&evil));
}

#[test]
fn t83_a_worker_that_hangs_is_replaced() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80"));
    let page = "curl -sS -m 10 http://ok.test/";
    assert!(guest.exec_agent(page).out.contains("token-"));
    for name in ["dns", "watch", "gate"] {
        let (pid, restarts) = worker(&guest.status(), name).expect(name);
        guest.exec_root(&format!("kill -STOP {pid}")).expect("stopping it");
        guest.await_status("another worker", |status| {
            worker(status, name).is_some_and(|(new, count)| new != pid && count == restarts + 1)
        });
        let line = |line: &&str| line.contains(name) && line.contains("has answered nothing for 15 s");
        assert_eq!(guest.logs().lines().filter(line).count(), 1, "{name}: {}", guest.logs());
        until("the page again", std::time::Duration::from_secs(60), || {
            guest.exec_agent(page).out.contains("token-")
        });
        assert!(resolves(&guest, "ok.test"), "{name}");
        assert!(!resolves(&guest, "evil.test"));
    }
    // The others were not touched.
    for name in ["dns", "watch", "gate"] {
        assert_eq!(worker(&guest.status(), name).map(|(_, restarts)| restarts), Some(1), "{name}");
    }
}

/// Kills the worker of this name as soon as it is there, again and again, until it is told to stop; says how often.
const KILLER: &str = r#"n=0; while [ ! -e /tmp/enough ] && [ $n -lt 100 ]; do
  pid=$(pgrep -o -x innkeeper-"$1") && kill -KILL "$pid" && n=$((n + 1)) && echo $n >/tmp/kills-"$1"; sleep 0.05; done"#;

#[test]
fn f22_workers_that_die_in_a_loop_are_started_ever_more_slowly_and_open_nothing() {
    let Some(rig) = Rig::new() else { return };
    let evil = host("evil");
    gets_through(&rig, &["tcp", &evil, "80", GET]);
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80,9999"));
    let mark = rig.world.sync();
    for name in ["dns", "watch"] {
        guest.exec_program(
            "0",
            &["bash", "-c", &format!("setsid bash -c '{KILLER}' killer {name} >/dev/null 2>&1 &")],
        );
    }
    let restarts = |name: &str| {
        let status = guest.status();
        let one = status["workers"].as_array().unwrap().iter().find(|worker| worker["name"] == name).cloned();
        one.unwrap()["restarts"].as_u64().unwrap()
    };
    until("many deaths", std::time::Duration::from_secs(120), || {
        restarts("dns") >= 6 && restarts("watch") >= 6
    });
    // PID 1 answers, nothing is open, and what was open before stays so.
    refused_fast(&guest, &["tcp", &evil, "80", GET]);
    refused_fast(&guest, &["udp", &evil, "9999", "leak"]);
    assert!(guest.client(AGENT, &["tcp", &host("ok"), "9999", "hello"]).ok(), "what is open stays");
    assert!(!resolves(&guest, "evil.test"));
    // Ever more slowly: as often as it was killed, and not hundreds of times in so short a time.
    let logs = guest.logs();
    assert!(restarts("dns") < 60 && restarts("watch") < 60, "{logs}");
    assert!(logs.lines().count() < 500, "the log is flooded");
    guest.exec_root("touch /tmp/enough").expect("enough");
    until("names again", std::time::Duration::from_secs(120), || resolves(&guest, "ok.test"));
    nothing_to(&rig, mark, &evil);
}

#[test]
fn f03_a_worker_that_died_while_the_upstream_is_down_still_knows_the_good_addresses() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().allow("ok.test:80"));
    rig.world.zone(|zone| zone["servers"] = serde_json::json!({"9.9.9.53": {"drop": true}, "*": {}}));
    let (pid, _) = worker(&guest.status(), "dns").unwrap();
    guest.exec_root(&format!("kill -KILL {pid}")).expect("killing it");
    guest.await_status("another worker", |status| worker(status, "dns").is_some_and(|(new, _)| new != pid));
    let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains("token-"), "{page:?}");
    assert!(!resolves(&guest, "evil.test"));
}

#[test]
fn f19_lost_time_makes_everything_new() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    rig.at_end(&["docker", "unpause", &guest.name]);
    let asked = || rig.world.asked().iter().filter(|name| *name == "ok.test").count();
    must("docker", &["pause", &guest.name]);
    let before = asked();
    must("sleep", &["10"]);
    must("docker", &["unpause", &guest.name]);
    // Its TTL is 60 s: nobody but lost time has a reason to ask again now.
    until("it is asked for again", std::time::Duration::from_secs(20), || asked() > before);
}
