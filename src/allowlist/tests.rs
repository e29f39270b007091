//! Names, patterns, rules and verdicts, good and bad.

use super::*;

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn rule(text: &str) -> Rule {
    parse_rule(text, Origin::Operator).unwrap()
}

fn rule_error(text: &str) -> RuleError {
    parse_rule(text, Origin::Operator).unwrap_err()
}

fn file(line: usize) -> Origin {
    Origin::File { path: "f".into(), line }
}

fn list(text: &str) -> Allowlist {
    let (rules, problems) = parse_rules(text, file);
    assert_eq!(problems, []);
    Allowlist::new(rules)
}

#[test]
fn names_are_lower_case_without_the_final_dot() {
    for (text, expected) in [
        ("GitHub.com", "github.com"),
        ("example.org.", "example.org"),
        ("localhost", "localhost"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.example", "1.example"),
        ("4chan.example", "4chan.example"),
    ] {
        assert_eq!(name(text).as_str(), expected);
        assert_eq!(name(text).to_string(), expected);
    }
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    assert_eq!(longest.len(), 253);
    assert!(DomainName::parse(&longest).is_ok());
}

#[test]
fn what_is_not_a_name_says_why() {
    for (text, error) in [
        ("", NameError::Empty),
        (".", NameError::Empty),
        ("..", NameError::Label(String::new())),
        ("a..b", NameError::Label(String::new())),
        (".a", NameError::Label(String::new())),
        ("a b", NameError::Character(' ')),
        ("a*b.example", NameError::Character('*')),
        ("a\0b.example", NameError::Character('\0')),
        ("a@b.example", NameError::Character('@')),
        ("-a.example", NameError::Hyphen("-a".to_owned())),
        ("a-.example", NameError::Hyphen("a-".to_owned())),
        ("bücher.example", NameError::NotAscii),
        ("gıthub.com", NameError::NotAscii),
        ("192.0.2.1", NameError::Address),
        ("192.0.2.1.", NameError::Address),
        ("2130706433", NameError::Address),
        ("0x7f000001", NameError::Address),
        ("0X7F.1", NameError::Address),
        ("127.1", NameError::Address),
        ("example.0", NameError::Address),
        ("::1", NameError::Address),
        ("[::1]", NameError::Address),
        ("fe80::1%eth0", NameError::Address),
    ] {
        assert_eq!(DomainName::parse(text), Err(error), "{text:?}");
    }
    assert_eq!(DomainName::parse(&"a".repeat(64)), Err(NameError::Label("a".repeat(63))));
    assert_eq!(DomainName::parse(&["a"; 128].join(".")), Err(NameError::TooLong));
}

#[test]
fn names_travel_as_strings_and_are_checked_on_arrival() {
    assert_eq!(serde_json::to_string(&name("A.example")).unwrap(), "\"a.example\"");
    assert_eq!(serde_json::from_str::<DomainName>("\"A.example.\"").unwrap(), name("a.example"));
    assert!(serde_json::from_str::<DomainName>("\"192.0.2.1\"").is_err());
}

#[test]
fn patterns_match_at_the_borders_of_labels() {
    let below = rule("*.example.org").pattern;
    for (text, expected) in [
        ("a.example.org", true),
        ("a.b.c.example.org", true),
        ("example.org", false),
        ("aexample.org", false),
        ("example.org.evil.example", false),
        ("org", false),
    ] {
        assert_eq!(below.matches(&name(text)), expected, "{text}");
    }
    let exact = rule("example.org").pattern;
    assert!(exact.matches(&name("EXAMPLE.org.")));
    assert!(!exact.matches(&name("a.example.org")));
}

#[test]
fn a_pattern_covers_what_it_wholly_contains() {
    let covers = |one: &str, other: &str| rule(one).pattern.covers(&rule(other).pattern);
    for (one, other, expected) in [
        ("a.example", "a.example", true),
        ("a.example", "*.a.example", false),
        ("*.a.example", "a.example", false),
        ("*.a.example", "b.a.example", true),
        ("*.a.example", "*.a.example", true),
        ("*.a.example", "*.b.a.example", true),
        ("*.b.a.example", "*.a.example", false),
        ("*.a.example", "*.ba.example", false),
    ] {
        assert_eq!(covers(one, other), expected, "{one} {other}");
    }
}

#[test]
fn rules_are_read_with_ports_and_options() {
    let bare = rule("github.com");
    assert_eq!(
        (bare.deny, bare.ports.as_slice(), bare.options),
        (false, [443].as_slice(), RuleOptions::default())
    );
    let full = rule("*.Corp.example:7999,443,443 private required telemetry by=broker");
    assert_eq!(full.ports, [443, 7999]);
    assert!(full.options.private && full.options.required && full.options.telemetry);
    assert_eq!(full.options.by, Subject::Broker);
    assert!(rule("!*.evil.example").deny);
}

#[test]
fn marks_say_what_is_spoken_on_all_ports_of_a_rule() {
    for (text, wire, ech) in [
        ("a.example", None, false),
        ("a.example:8443 tls", Some(Wire::Tls), false),
        ("a.example:8080,80 http http", Some(Wire::Http), false),
        ("a.example ech tls", Some(Wire::Tls), true),
    ] {
        let options = rule(text).options;
        assert_eq!((options.wire, options.ech), (wire, ech), "{text}");
    }
    for (text, error) in [
        ("a.example tls http", RuleError::BothWires),
        ("a.example http ech", RuleError::EchWithoutTls),
        ("!a.example tls", RuleError::DenyWithDetails),
        ("!a.example ech", RuleError::DenyWithDetails),
        ("a.example TLS", RuleError::Option("TLS".to_owned())),
    ] {
        assert_eq!(rule_error(text), error, "{text}");
    }
    let same = |one: &str, other: &str| rule(one).says_the_same(&rule(other));
    assert!(same("a.example tls", "a.example tls") && !same("a.example tls", "a.example"));
    assert!(!same("a.example ech", "a.example"));
    let on = |text: &str, port| rule(text).wire_on(port);
    assert_eq!(
        (on("a.example:80,443", 443), on("a.example:80,443", 80)),
        (Some(Wire::Tls), Some(Wire::Http))
    );
    assert_eq!((on("a.example:443 http", 443), on("a.example:22", 22)), (Some(Wire::Http), None));
}

#[test]
fn gated_are_80_443_and_what_rules_mark() {
    assert_eq!(list("").gated_ports(), [80, 443]);
    let text = "a.example:22,8443 tls\nb.example:3000,443 http\nc.example:5000\n!d.example\ne.example:7000 tls by=broker";
    assert_eq!(
        list(text).gated_ports(),
        [22, 80, 443, 3000, 8443],
        "not those for somebody else than the agent"
    );
    let ports = |count: u16| {
        let ports: Vec<String> = (2000..2000 + count).map(|port| port.to_string()).collect();
        rule(&format!("a.example:{} tls", ports.join(",")))
    };
    assert_eq!(check_gated(&[ports(62)]), Ok(()));
    let refused = check_gated(&[ports(63), rule("b.example")]).unwrap_err();
    assert!(refused.to_string().starts_with("65 ports are the egress gate's"), "{refused}");
}

#[test]
fn what_is_shown_is_read_the_same() {
    for text in [
        "github.com",
        "github.com:22,443",
        "*.example.org",
        "git.corp.example:7999 private",
        "keys.example by=broker",
        "git.example:8443 tls",
        "cache.example:8080 private http",
        "hidden.example tls ech by=boot",
        "hidden.example ech",
        "boot.example private by=boot",
        "!evil.example",
        "!*.evil.example",
    ] {
        assert_eq!(rule(text).to_string(), text);
    }
}

#[test]
fn bad_rules_say_why() {
    let not_name = |name: &str, why| RuleError::Name { name: name.to_owned(), why };
    for (text, error) in [
        ("*", RuleError::Everything("*".to_owned())),
        ("*.", RuleError::Everything("*.".to_owned())),
        ("*.*", RuleError::Everything("*.*".to_owned())),
        ("!*", RuleError::Everything("*".to_owned())),
        ("*:443", RuleError::Everything("*".to_owned())),
        ("a.*.example", RuleError::Wildcard("a.*.example".to_owned())),
        ("*a.example", RuleError::Wildcard("*a.example".to_owned())),
        ("*.*.example", RuleError::Wildcard("*.*.example".to_owned())),
        ("**.example", RuleError::Wildcard("**.example".to_owned())),
        ("192.0.2.1", not_name("192.0.2.1", NameError::Address)),
        ("192.0.2.1:443", not_name("192.0.2.1", NameError::Address)),
        ("192.0.2.0/24", not_name("192.0.2.0/24", NameError::Address)),
        ("2001:db8::/32", not_name("2001:db8::/32", NameError::Address)),
        ("2001:db8::1", not_name("2001:db8::1", NameError::Address)),
        ("[2001:db8::1]:443", not_name("[2001:db8::1]:443", NameError::Address)),
        ("*.192.0.2.1", not_name("*.192.0.2.1", NameError::Address)),
        ("a:443:80", not_name("a:443:80", NameError::Address)),
        ("", not_name("", NameError::Empty)),
        ("!", not_name("", NameError::Empty)),
        ("! evil.example", not_name("", NameError::Empty)),
        ("!!evil.example", not_name("!evil.example", NameError::Character('!'))),
        (":443", not_name("", NameError::Empty)),
        ("a.example:", RuleError::Port(String::new())),
        ("a.example:0", RuleError::Port("0".to_owned())),
        ("a.example:65536", RuleError::Port("65536".to_owned())),
        ("a.example:+80", RuleError::Port("+80".to_owned())),
        ("a.example:80,", RuleError::Port(String::new())),
        ("a.example:80-90", RuleError::Port("80-90".to_owned())),
        ("a.example:https", RuleError::Port("https".to_owned())),
        ("a.example privat", RuleError::Option("privat".to_owned())),
        ("a.example by=root", RuleError::Option("by=root".to_owned())),
        ("a.example b.example", RuleError::Option("b.example".to_owned())),
        ("!a.example:80", RuleError::DenyWithDetails),
        ("!a.example private", RuleError::DenyWithDetails),
        ("https://a.example", RuleError::Url("https://a.example".to_owned())),
        ("a.example/path", RuleError::Url("a.example/path".to_owned())),
    ] {
        assert_eq!(rule_error(text), error, "{text:?}");
    }
}

#[test]
fn texts_tolerate_comments_crlf_and_a_byte_order_mark_and_report_every_line() {
    let text = "\u{feff}# head\r\n\r\na.example # why\r\nb.example;c.example:80 ; ;\r\n*\r\nd.example:x; e.example\r\n";
    let (rules, problems) = parse_rules(text, file);
    let shown: Vec<String> = rules.iter().map(|rule| format!("{rule} ({})", rule.origin)).collect();
    assert_eq!(shown, ["a.example (f:3)", "b.example (f:4)", "c.example:80 (f:4)", "e.example (f:6)"]);
    let lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [5, 6]);
    assert_eq!(parse_rules("", file), (vec![], vec![]));
}

#[test]
fn verdicts_gather_ports_and_carry_their_reason() {
    let list = list(
        "github.com\ngithub.com:22\n*.example.org:80\na.example.org private\n!bad.example.org\nkeys.example by=broker\n!*.dark.example\nx.dark.example\n",
    );
    let ports = |text: &str| match list.verdict(&name(text)) {
        Verdict::Allowed(allowed) => (allowed.ports, allowed.private),
        Verdict::Denied(denied) => panic!("{text}: {denied}"),
    };
    assert_eq!(ports("github.com"), (vec![22, 443], false));
    assert_eq!(ports("a.example.org"), (vec![80, 443], true));
    assert_eq!(ports("b.c.example.org"), (vec![80], false));
    let denied = |text: &str| match list.verdict(&name(text)) {
        Verdict::Denied(denied) => denied.to_string(),
        Verdict::Allowed(allowed) => panic!("{text}: {allowed:?}"),
    };
    assert_eq!(denied("example.org"), "not in the allowlist");
    assert_eq!(denied("api.github.com"), "not in the allowlist");
    assert_eq!(denied("bad.example.org"), "denied by the rule !bad.example.org (f:5)");
    assert_eq!(denied("x.dark.example"), "denied by the rule !*.dark.example (f:7)");
    assert_eq!(denied("keys.example"), "only for broker (f:6)");
}

#[test]
fn a_deny_rule_wins_wherever_it_stands() {
    for text in
        ["a.example\n!a.example", "!a.example\na.example", "*.example\n!a.example", "!*.example\na.example"]
    {
        assert!(
            matches!(list(text).verdict(&name("a.example")), Verdict::Denied(Denied::DenyRule(_))),
            "{text}"
        );
    }
}

#[test]
fn exact_names_are_those_the_agent_may_use() {
    let list =
        list("b.example\na.example:80\na.example\n*.c.example\n!d.example\nd.example\ne.example by=boot\n");
    assert_eq!(list.exact_names(), [name("a.example"), name("b.example")]);
    assert_eq!(list.rules().len(), 7);
}

#[test]
fn an_empty_list_denies() {
    assert_eq!(Allowlist::default().verdict(&name("a.example")), Verdict::Denied(Denied::NotListed));
}

#[test]
fn every_error_and_origin_is_shown() {
    let names = [
        NameError::Empty,
        NameError::TooLong,
        NameError::Label("x".to_owned()),
        NameError::Character('$'),
        NameError::Hyphen("-x".to_owned()),
        NameError::NotAscii,
        NameError::Address,
    ];
    assert!(names.iter().all(|error| error.to_string().len() > 10));
    let rules = [
        RuleError::Name { name: "x y".to_owned(), why: NameError::Character(' ') },
        RuleError::Everything("*".to_owned()),
        RuleError::Wildcard("a*".to_owned()),
        RuleError::Port("x".to_owned()),
        RuleError::Option("x".to_owned()),
        RuleError::DenyWithDetails,
        RuleError::Url("x/".to_owned()),
    ];
    assert!(rules.iter().all(|error| error.to_string().len() > 10));
    assert_eq!(rules[0].to_string(), "\"x y\" is not a host name: the character ' ' can't be in a host name");
    for (origin, text) in [
        (file(3), "f:3"),
        (Origin::Profile { name: "npm".into(), line: 2 }, "network/profiles/npm.conf:2"),
        (Origin::Setting { name: "X".into() }, "X"),
        (Origin::Repository { url: "u".into() }, "repository u"),
        (Origin::Operator, "operator"),
    ] {
        assert_eq!(origin.to_string(), text);
    }
    assert_eq!(
        [Subject::Agent, Subject::Broker, Subject::Boot].map(|s| s.to_string()),
        ["agent", "broker", "boot"]
    );
}
