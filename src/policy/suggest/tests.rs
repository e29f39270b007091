use proptest::prelude::*;

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
        bytes_out: None,
        bytes_in: None,
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
    proposed_of(&Live { lasting: policy, ..Live::default() }, entries)
}

/// The policy of a living box.
#[derive(Default)]
struct Live<'a> {
    lasting: &'a str,
    for_a_while: &'a str,
    taken_back: &'a str,
}

impl Live<'_> {
    fn allowlist(&self) -> Allowlist {
        let rules = |text: &str| allowlist(text).rules().to_vec();
        Allowlist::new(rules(self.lasting).into_iter().chain(rules(self.for_a_while)))
    }
}

fn proposed_of(live: &Live<'_>, entries: &[Entry]) -> (Suggestion, String) {
    let taken_back = allowlist(live.taken_back);
    let circumstances = Circumstances {
        allowlist: &live.allowlist(),
        lasting: &allowlist(live.lasting),
        taken_back: taken_back.rules(),
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

fn uses(names: &[(&str, u16)]) -> Vec<Entry> {
    names.iter().map(|(name, port)| used(name, *port, Some(1000), &[])).collect()
}

fn denies(text: &str, name: &str) -> bool {
    matches!(allowlist(text).verdict(&DomainName::parse(name).unwrap()), Verdict::Denied(_))
}

#[test]
fn what_was_used_and_is_denied_now_stays_denied() {
    let live = Live {
        lasting: "a.test\n*.w.test\n!a.test\n!x.w.test\n!*.deep.w.test\n!else.test\n!wish.test",
        taken_back: "git.corp private",
        ..Live::default()
    };
    let mut entries = uses(&[
        ("a.test", 443),
        ("x.w.test", 443),
        ("y.deep.w.test", 443),
        ("z.w.test", 443),
        ("git.corp", 443),
    ]);
    entries.push(refused("dns", "wish.test", "", 1, "curl"));
    let (_, text) = proposed_of(&live, &entries);
    assert_eq!(active(&text), ["z.w.test", "!a.test", "!x.w.test", "!*.deep.w.test", "!wish.test"], "{text}");
    assert!(
        text.contains("# a.test ") && text.contains("# no longer allowed: denied by the rule !a.test"),
        "{text}"
    );
    assert!(text.contains("no longer allowed: the operator took back git.corp private (d.conf:1)"), "{text}");
    // Also for who takes the marks away without reading.
    let careless = text.replace("\n# ", "\n").lines().skip(5).collect::<Vec<_>>().join("\n");
    for name in ["a.test", "x.w.test", "y.deep.w.test", "wish.test"] {
        assert!(denies(&careless, name), "{name}: {careless}");
    }
}

#[test]
fn what_is_allowed_for_a_while_is_not_proposed_for_good() {
    let live = Live {
        lasting: "a.test\n*.w.test",
        for_a_while: "b.test\na.test:22\n*.w.test:80 private\n!z.w.test",
        ..Live::default()
    };
    let entries = uses(&[
        ("a.test", 443),
        ("a.test", 22),
        ("b.test", 443),
        ("x.w.test", 443),
        ("x.w.test", 80),
        ("z.w.test", 443),
    ]);
    let (_, text) = proposed_of(&live, &entries);
    assert_eq!(active(&text), ["a.test", "x.w.test", "!z.w.test"], "{text}");
    for line in ["# a.test:22 ", "# b.test ", "# x.w.test:80 private "] {
        let line =
            text.lines().find(|known| known.starts_with(line)).unwrap_or_else(|| panic!("{line}: {text}"));
        assert!(line.contains("# allowed for a while only; used 2×"), "{line}");
    }
    assert!(text.contains("denied as before, there for a while only"), "{text}");
}

#[test]
fn a_name_has_what_its_narrowest_rule_says_and_no_more() {
    let policy = "*.w.test:443,80 private\nw.test\na.w.test:22\nb.w.test telemetry\n*.v.w.test";
    let names = [("w.test", 443), ("a.w.test", 22), ("b.w.test", 443), ("c.v.w.test", 443), ("d.w.test", 80)];
    let (_, text) = proposed(policy, &uses(&names));
    assert_eq!(
        active(&text),
        ["w.test", "a.w.test:22", "b.w.test", "d.w.test:80 private", "c.v.w.test"],
        "{text}"
    );
    assert!(text.contains("b.w.test telemetry"), "{text}");
    // A port that no rule had is not there, whatever the log says of it.
    let (_, text) = proposed(policy, &uses(&[("w.test", 8080), ("w.test", 443)]));
    assert_eq!(active(&text), ["w.test"], "{text}");
    assert!(text.contains("# w.test:8080 ") && text.contains("it is allowed on other ports"), "{text}");
}

const NAMES: [&str; 6] = ["w.test", "a.w.test", "b.w.test", "c.a.w.test", "d.test", "corp"];

fn some_rule() -> impl Strategy<Value = String> {
    let deny = prop::sample::select(NAMES.to_vec())
        .prop_flat_map(|name| prop::sample::select(vec![format!("!{name}"), format!("!*.{name}")]));
    let ports = prop::sample::select(vec!["", ":80", ":443,80", ":22"]);
    let options = prop::sample::select(vec!["", " private", " telemetry", " by=boot"]);
    let allow = (prop::sample::select(NAMES.to_vec()), any::<bool>(), ports, options).prop_map(
        |(name, wild, ports, options)| {
            let wild = if wild && name != "corp" { "*." } else { "" };
            format!("{wild}{name}{ports}{options}")
        },
    );
    prop_oneof![5 => allow, 1 => deny]
}

fn some_rules() -> impl Strategy<Value = String> {
    prop::collection::vec(some_rule(), 0..6).prop_map(|rules| rules.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// There and back: the proposal, read as a file, allows nothing that is not allowed for good now.
    #[test]
    fn never_more_than_what_is_allowed_for_good(
        lasting in some_rules(), for_a_while in some_rules(), many in any::<bool>(),
        uses in prop::collection::vec((prop::sample::select(NAMES.to_vec()), prop::sample::select(vec![22, 80, 443, 8080])), 0..9),
    ) {
        let live = Live { lasting: &lasting, for_a_while: &for_a_while, ..Live::default() };
        let mut entries: Vec<Entry> = uses.iter().map(|(name, port)| used(name, *port, Some(1000), &[])).collect();
        if many {
            entries.extend((0..20).map(|i| used(&format!("n{i}.w.test"), 80, Some(1000), &[])));
        }
        let (_, text) = proposed_of(&live, &entries);
        let (now, good, after) = (live.allowlist(), allowlist(&lasting), allowlist(&text));
        for name in NAMES.iter().copied().chain(["n1.w.test", "new.w.test", "e.d.test"]) {
            let name = DomainName::parse(name).unwrap();
            let Verdict::Allowed(later) = after.verdict(&name) else { continue };
            let Verdict::Allowed(before) = good.verdict(&name) else { panic!("{name}: {text}") };
            prop_assert!(matches!(now.verdict(&name), Verdict::Allowed(_)), "{name} is denied now: {text}");
            prop_assert!(later.ports.iter().all(|port| before.ports.contains(port)), "{name}: {text}");
            prop_assert!(before.private || !later.private, "{name}: {text}");
        }
    }
}
