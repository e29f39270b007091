use std::net::IpAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::allowlist::{parse_rule, parse_rules};
use crate::firewall::book::{Book, Limits, Open};

fn target(text: &str) -> String {
    match Target::parse(text) {
        Ok(Target::Name(name, port, _)) => format!("{name} {port}"),
        Ok(Target::Address(address, port)) => format!("address {address} {port}"),
        Err(reason) => reason,
    }
}

fn list(text: &str) -> Allowlist {
    list_at("d.conf", text)
}

fn list_at(path: &str, text: &str) -> Allowlist {
    let (rules, problems) = parse_rules(text, |line| Origin::File { path: path.into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    Allowlist::new(rules)
}

fn checked(rules: &str, ceiling: &Ceiling, what: &str) -> Checked {
    let ground = Ground { ceiling, taken_back: &[], queue: true, told: Told::Everything };
    match Target::parse(what) {
        Ok(Target::Name(name, port, wire)) => explain(&list(rules), &ground, &name, port, wire),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_urls_and_addresses_are_taken_apart() {
    assert_eq!(target("GitHub.com"), "github.com 443");
    assert_eq!(target("github.com.:22"), "github.com 22");
    assert_eq!(target("https://user:pw@github.com/a/b?c"), "github.com 443");
    assert_eq!(target("HTTPS://github.com:8443#x@y"), "github.com 8443");
    assert_eq!(target("https://evil.test\\@github.com/"), "evil.test 443");
    assert_eq!(target("http://archive.example.org/x"), "archive.example.org 80");
    assert_eq!(target("ssh://git@github.com/a/b"), "github.com 22");
    assert_eq!(target("git@github.com:you/repo.git"), "github.com 22");
    assert_eq!(target("you@github.com:8443"), "github.com 8443");
    assert_eq!(target("github.com/a:b@c"), "github.com 443");
    assert_eq!(target("https://10.0.0.1/"), "address 10.0.0.1 443");
    assert_eq!(target("http://[2001:db8::1]/"), "address 2001:db8::1 80");
    assert_eq!(target("[2001:db8::1]:22"), "address 2001:db8::1 22");
    assert!(target("2852039166").contains("IP address"), "{}", target("2852039166"));
    for text in
        ["github.com:99999", "github.com:0", "github.com:", "github.com:+1", "10.0.0.1:0", "github.com:a"]
    {
        assert!(target(text).contains("not a port"), "{text}: {}", target(text));
    }
}

#[test]
fn a_verdict_names_the_rule_or_what_would_allow_it() {
    let check =
        |what: &str| checked("github.com:443,22\n!no.test\nkeys.test by=broker", &Ceiling::unbounded(), what);
    assert_eq!(
        check("github.com:22").explanation,
        "github.com:22 is allowed by github.com:22,443 (d.conf:1)"
    );
    let port = check("github.com:80");
    assert_eq!(
        port.explanation,
        "github.com is allowed on 22, 443 only; operator: innkeeper allow github.com:80"
    );
    assert_eq!((port.line.as_deref(), port.allowed), (Some("github.com:80"), false));
    assert_eq!(port.ask.as_deref(), Some("innkeeper request github.com:80 --reason WHY"));
    let denied = check("no.test");
    assert_eq!(denied.command.as_deref(), Some("innkeeper revoke '!no.test'"));
    assert_eq!((denied.line, denied.ask), (None, None));
    assert!(check("keys.test").explanation.contains("only for broker"));
    let ground =
        Ground { ceiling: &Ceiling::unbounded(), taken_back: &[], queue: false, told: Told::AsAgent };
    for name in ["github.com", "no.test", "keys.test", "www.github.com"] {
        let rules = "github.com\n!no.test\nkeys.test by=broker";
        let told =
            explain(&list_at("/host/d.conf", rules), &ground, &DomainName::parse(name).unwrap(), 443, None);
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.contains("(file)") || text.contains(r#""file""#), "{text}");
        assert!(!text.contains("d.conf"), "where rules are written is not the agent's to know: {text}");
    }
    assert!(check("x.localhost").allowed && check("localhost:5432").allowed);
    assert!(!check("1.0.0.127.in-addr.arpa").allowed);
    assert!(check("github.com:53").obstacle.is_some_and(|why| why.contains("resolver")));
}

#[test]
fn beyond_the_ceiling_no_command_is_offered() {
    let ceiling = Ceiling::new(list("*.example.org").rules().iter().map(|rule| (**rule).clone()).collect());
    let beyond = checked("ok.example.org", &ceiling, "evil.test");
    assert_eq!((beyond.line, beyond.command, beyond.ask), (None, None, None));
    assert!(
        beyond.obstacle.is_some_and(|why| why.contains("ceiling")) && beyond.explanation.contains("ceiling")
    );
    assert!(checked("ok.example.org", &ceiling, "a.example.org").command.is_some());
}

// --- check and what decides never disagree ---

fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "cdn", "www", "x-y", "_z", "0x", "localhost", "arpa", "in-addr"])
}

fn name() -> impl Strategy<Value = String> {
    let top = prop::sample::select(vec!["test", "example", "arpa", "localhost", "com"]);
    (prop::collection::vec(label(), 0..4), top).prop_map(|(mut labels, top)| {
        labels.push(top);
        labels.join(".")
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![1, 22, 53, 80, 443, 8443, 65535])
}

fn rule() -> impl Strategy<Value = String> {
    let ports = prop::collection::vec(prop::sample::select(vec![1, 22, 80, 443, 8443, 65535]), 0..3);
    let options = prop::sample::select(vec![
        "",
        "",
        "",
        " private",
        " by=broker",
        " by=boot",
        " required",
        " telemetry",
    ]);
    let shape = prop::sample::select(vec!["", "", "*.", "*.", "!", "!*."]);
    (shape, name(), ports, options).prop_map(
        |(shape, name, ports, options): (&str, String, Vec<u16>, &str)| {
            if shape.starts_with('!') {
                return format!("{shape}{name}");
            }
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            let ports = if ports.is_empty() { String::new() } else { format!(":{}", ports.join(",")) };
            format!("{shape}{name}{ports}{options}")
        },
    )
}

/// The same name and port, in one of the ways in which people and programs write it.
fn written(name: &str, port: u16, form: usize, upper: u64) -> String {
    let cased: String = name
        .char_indices()
        .map(|(at, c)| if (upper >> (at % 64)) & 1 == 1 { c.to_ascii_uppercase() } else { c })
        .collect();
    match form {
        0 => format!("{cased}:{port}"),
        1 => format!("{cased}.:{port}"),
        2 => format!("https://{cased}:{port}/a/b?c=d#e"),
        3 => format!("http://user:p%40ss@{cased}.:{port}"),
        4 => format!("ssh://git@{cased}:{port}/x@y:1"),
        5 => format!("wss://{cased}:{port}\\@other.test/"),
        _ => format!("{cased}:{port}/other.test:1"),
    }
}

/// What the firewall would let out: the pairs that are open in the book once the resolver's answer is admitted.
fn opened(allowlist: &Allowlist, name: &DomainName, address: IpAddr) -> Vec<(IpAddr, u16)> {
    let learned = Learned { id: 1, name: name.clone(), addresses: vec![address], ttl_s: 60, stale: false };
    let mut book = Book::new(Limits::default());
    if let Ok(decision) = admission::decide(allowlist, &learned) {
        let until = Instant::now() + Duration::from_secs(60);
        let open = decision.open.iter().map(|address| Open {
            address: *address,
            ports: decision.ports.clone(),
            until,
            stale: false,
        });
        book.enter(name, decision.class, open.collect());
    }
    book.open_pairs().map(|(pair, _)| pair).collect()
}

/// Whether the resolver passes a name on: the worker's own copy of the rules, which it reads from their text.
fn resolves(rules: &Allowlist, name: &DomainName) -> Option<bool> {
    let text = rules.rules().iter().map(ToString::to_string);
    let copied = Allowlist::new(text.map(|text| parse_rule(&text, Origin::Operator).unwrap()));
    let asked = Name::from_ascii(format!("{name}.")).unwrap();
    let question = Question { name: &asked, kind: RecordType::A, class: DNSClass::IN };
    let query = Query { opcode: OpCode::Query, questions: 1, question: Some(question) };
    match decide(query, &copied, true) {
        Decision::Resolve { .. } => Some(true),
        Decision::Refuse(_) => Some(false),
        Decision::Answer(_) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn check_and_the_deciders_never_disagree(
        rules in prop::collection::vec(rule(), 0..8),
        name in name(),
        port in port(),
        form in 0_usize..7,
        upper: u64,
    ) {
        let allowlist = list(&rules.join("\n"));
        let Ok(Target::Name(asked, asked_port, _)) = Target::parse(&written(&name, port, form, upper)) else {
            return Err(TestCaseError::fail("not read as a name"));
        };
        prop_assert_eq!((asked.as_str(), asked_port), (name.as_str(), port));
        let ground = Ground { ceiling: &Ceiling::unbounded(), taken_back: &[], queue: false, told: Told::Everything };
        let said = explain(&allowlist, &ground, &asked, asked_port, None);
        let public: IpAddr = "93.184.215.14".parse().unwrap();
        let open = opened(&allowlist, &asked, public).contains(&(public, port));
        match resolves(&allowlist, &asked) {
            Some(resolves) => prop_assert_eq!(said.allowed, resolves && open, "{}", said.explanation),
            None => prop_assert!(said.allowed, "{}", said.explanation),
        }
        // A private address is open for the same ports, or for none.
        let private: IpAddr = "10.0.0.5".parse().unwrap();
        let pairs = opened(&allowlist, &asked, private);
        let may = matches!(allowlist.verdict(&asked), Verdict::Allowed(allowed) if allowed.private);
        prop_assert_eq!(pairs.contains(&(private, port)), open && may);
    }

    #[test]
    fn the_offered_command_and_line_do_allow_it(
        rules in prop::collection::vec(rule(), 0..8),
        name in name(),
        port in port(),
    ) {
        let allowlist = list(&rules.join("\n"));
        let ground = Ground { ceiling: &Ceiling::unbounded(), taken_back: &[], queue: true, told: Told::Everything };
        let name = DomainName::parse(&name).unwrap();
        let said = explain(&allowlist, &ground, &name, port, None);
        prop_assert!(said.nearest.len() <= 3);
        if let Some(line) = said.line {
            prop_assert_eq!(said.command, Some(format!("innkeeper allow {line}")));
            let more = allowlist.rules().iter().map(ToString::to_string).chain([line]).collect::<Vec<_>>();
            let after = explain(&list(&more.join("\n")), &ground, &name, port, None);
            prop_assert!(after.allowed, "{}", after.explanation);
        }
    }
}

#[test]
fn what_a_url_would_speak_is_judged_by_the_gates_own_code() {
    let rules = "ok.test:80,443\nmarked.test:8080 http\nfree.test:9000";
    for (url, refused) in [
        ("https://ok.test/x", None),
        ("http://ok.test/", None),
        (
            "http://ok.test:443/",
            Some("ok.test:443 is refused by the gate: this port is for TLS; use https:// there"),
        ),
        ("https://ok.test:80/", Some("this port is for HTTP without TLS; use http:// there")),
        ("http://marked.test:8080/", None),
        ("https://marked.test:8080/", Some("innkeeper allow 'marked.test:8080 tls'")),
        // Not the gate's.
        ("https://free.test:9000/", None),
        ("free.test:9000", None),
        ("ok.test:443", None),
    ] {
        let said = checked(rules, &Ceiling::unbounded(), url);
        assert_eq!(said.allowed, refused.is_none(), "{url}: {}", said.explanation);
        assert!(refused.is_none_or(|words| said.explanation.contains(words)), "{url}: {}", said.explanation);
    }
}
