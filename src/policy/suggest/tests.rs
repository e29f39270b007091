use super::*;
use crate::allowlist::parse_rules;

fn allowlist(text: &str) -> Allowlist {
    let (rules, problems) = parse_rules(text, |line| Origin::File { path: "d.conf".into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    Allowlist::new(rules)
}

fn entry(what: What) -> Entry {
    Entry { schema: 1, seq: 1, time: String::new(), what }
}

fn used(name: &str, port: u16, uid: Option<u32>, also: &[&str]) -> Entry {
    entry(What::Used(Use {
        rule: None,
        name: name.into(),
        also: also.iter().map(ToString::to_string).collect(),
        address: "192.0.2.1".into(),
        port,
        uid,
        first: "2026-11-21T08:00:01.000Z".into(),
        last: "2026-11-21T09:30:00.000Z".into(),
        count: 2,
    }))
}

fn refused(layer: &str, target: &str, allow: &str, count: u64, process: &str) -> Entry {
    entry(What::Denied(Refused {
        layer: layer.into(),
        target: target.into(),
        uid: Some(1000),
        process: Some(process.into()),
        reason: "not in the allowlist".into(),
        allow: allow.into(),
        first: String::new(),
        last: String::new(),
        count,
    }))
}

fn proposed(policy: &str, entries: &[Entry]) -> (Suggestion, String) {
    let allowlist = allowlist(policy);
    let circumstances = Circumstances {
        allowlist: &allowlist,
        agent: 1000,
        since: "2026-11-21T08:00:00.000Z".into(),
        until: "2026-11-21T10:00:00.000Z".into(),
        forgotten: 0,
    };
    let suggestion = suggest(entries, &circumstances);
    let text = render(&suggestion);
    (suggestion, text)
}

fn active(text: &str) -> Vec<String> {
    let (rules, problems) = parse_rules(text, |_| Origin::Operator);
    assert!(problems.is_empty(), "{problems:?}\n{text}");
    rules.iter().map(ToString::to_string).collect()
}

#[test]
fn what_was_used_is_in_force_and_the_rest_is_not() {
    let (suggestion, text) = proposed(
        "a.test:443,22\nb.test\nunused.test\nstats.test telemetry\ngit.corp.test private\n*.wild.test",
        &[
            used("b.test", 443, Some(1000), &["twin.test"]),
            used("a.test", 22, Some(1000), &[]),
            used("a.test", 443, Some(1000), &[]),
            used("stats.test", 443, Some(1000), &[]),
            used("git.corp.test", 443, None, &[]),
            used("x.wild.test", 443, Some(1000), &[]),
            used("root.test", 443, Some(0), &[]),
            used("192.0.2.9", 443, Some(1000), &[]),
            refused("dns", "wish.test", "innkeeper allow wish.test", 3, "curl"),
            refused("dns", "a.test", "", 1, "early"),
            refused("firewall", "192.0.2.1:8080 tcp", "innkeeper allow b.test:8080", 4, "curl"),
            refused(
                "firewall",
                "198.51.100.66:443 tcp",
                "allow a name, not an address: innkeeper allow NAME",
                9,
                "nc",
            ),
        ],
    );
    assert_eq!(
        active(&text),
        ["a.test:22,443", "b.test", "git.corp.test private", "stats.test", "x.wild.test"]
    );
    assert!(text.contains("stats.test telemetry"), "{text}");
    assert!(text.contains("# wish.test ") && text.contains("refused 3×"), "{text}");
    assert!(text.contains("# b.test:8080 ") && text.contains("# twin.test "), "{text}");
    assert!(text.contains("used 4×, 2026-11-21T08:00 to 2026-11-21T09:30"), "{text}");
    assert!(
        text.contains("its address is also that of twin.test") && text.contains("by whom is not known"),
        "{text}"
    );
    assert!(!text.contains("root.test") && !text.contains("unused.test"), "{text}");
    assert!(text.contains("left out: 2 kinds") && text.contains("left out: 1 of other users"), "{text}");
    assert_eq!(suggestion.lines.iter().filter(|line| !line.active).count(), 3);
}

#[test]
fn what_is_refused_stays_behind_a_mark_whatever_it_is_called() {
    let hostile = "a\nevil.test\r\n\x1b[2J";
    let (_, text) = proposed(
        "ok.test",
        &[
            refused("dns", "n.test", "", 1, hostile),
            refused("dns", hostile, "innkeeper allow evil.test\nevil.test", 1, hostile),
            refused("dns", "(other names)", "", 1, "x"),
        ],
    );
    assert_eq!(active(&text), [""; 0]);
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[test]
fn a_wildcard_stands_for_very_many_names_and_keeps_its_denials() {
    let few: Vec<Entry> =
        (0..MANY_BELOW).map(|i| used(&format!("n{i}.w.test"), 443, Some(1000), &[])).collect();
    let (_, text) = proposed("*.w.test:443,80\n!bad.w.test\n!else.test", &few);
    assert_eq!(active(&text).len(), MANY_BELOW);
    let many: Vec<Entry> =
        (0..=MANY_BELOW).map(|i| used(&format!("n{i}.w.test"), 443, Some(1000), &[])).collect();
    let (_, text) = proposed("*.w.test:443,80\n!bad.w.test\n!else.test", &many);
    assert_eq!(active(&text), ["*.w.test", "!bad.w.test"]);
}

#[test]
fn the_proposal_serves_what_was_used_by_the_function_that_decides() {
    let policy = "*.w.test:443,80\ngit.corp.test private\n!bad.w.test\nb.test:1,2,3";
    let mut entries: Vec<Entry> =
        (0..40).map(|i| used(&format!("n{i}.w.test"), 80, Some(1000), &[])).collect();
    entries.push(used("git.corp.test", 443, Some(1000), &[]));
    entries.push(used("b.test", 2, Some(1000), &[]));
    let (_, text) = proposed(policy, &entries);
    let (before, after) = (allowlist(policy), allowlist(&text));
    for entry in &entries {
        let What::Used(used) = &entry.what else { continue };
        let name = DomainName::parse(&used.name).unwrap();
        let Verdict::Allowed(now) = after.verdict(&name) else { panic!("{name}\n{text}") };
        let Verdict::Allowed(then) = before.verdict(&name) else { panic!("{name}") };
        assert!(now.ports.contains(&used.port) && now.private == then.private, "{name}");
        assert!(now.ports.iter().all(|port| then.ports.contains(port)), "never more than before");
    }
    let bad = DomainName::parse("bad.w.test").unwrap();
    assert!(matches!(after.verdict(&bad), Verdict::Denied(_)));
}
