use super::*;
use crate::allowlist::{Ceiling, parse_rules};
use crate::policy::Terms;

const NOW: Duration = Duration::from_secs(1000);

fn live(text: &str) -> LivePolicy {
    let (rules, problems) = parse_rules(text, |line| Origin::File { path: "d.conf".into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    LivePolicy::new(rules, Ceiling::unbounded(), Duration::ZERO)
}

fn ask(book: &mut Book, rule: &str, now: Duration) -> Result<Asked, Busy> {
    book.ask(wanted(rule).unwrap(), "because".into(), "agent", now)
}

fn settle(book: &mut Book, policy: &LivePolicy, by: &str) -> Vec<RequestChange> {
    book.settle(policy, &Allowlist::new(policy.rules()), by, NOW)
}

fn grant(policy: &mut LivePolicy, id: u64, rule: &str, until: Option<Duration>) {
    let terms = Terms { origin: Origin::Request { id }, since: NOW, why: Some("the agent: x".into()), until };
    policy.allow(&[rule.to_owned()], terms).unwrap();
}

fn state(book: &Book, id: u64) -> (RequestState, String) {
    let shown = book.one(id, NOW, SystemTime::UNIX_EPOCH + NOW).unwrap();
    (shown.state, shown.detail)
}

#[test]
fn only_exact_names_with_ports_can_be_asked_for() {
    for (text, shown) in
        [("docs.example.org", "docs.example.org"), (" Git.Example.org.:22,443 ", "git.example.org:22,443")]
    {
        assert_eq!(wanted(text).unwrap().to_string(), shown);
    }
    let unfit = |text: &str| wanted(text).unwrap_err();
    assert_eq!(unfit("*.example.org"), Unfit::Wildcard);
    assert_eq!(unfit("!example.org"), Unfit::Denial);
    for text in [
        "a.example.org private",
        "a.example.org by=broker",
        "a.example.org by=agent",
        "a.example.org public-suffix",
    ] {
        assert_eq!(unfit(text), Unfit::Options, "{text}");
    }
    assert_eq!(unfit("co.uk"), Unfit::Suffix("co.uk".into()));
    assert_eq!(unfit("localhost"), Unfit::Suffix("localhost".into()));
    assert_eq!(unfit("a.example.org:1,2,3,4,5,6,7,8,9"), Unfit::Ports);
    assert_eq!(unfit("ghp_abcdefghijklmnopqrstuvwxyz0123456789.example.org"), Unfit::Token);
    for text in [
        "",
        "10.0.0.1",
        "[::1]:443",
        "a.example.org:53",
        "https://a.example.org/",
        "-x",
        "--wait",
        "a\0b.org",
        "a.org;b.org",
        "a.org\nb.org",
        "\x1b[2J",
    ] {
        let Unfit::Rule(why) = unfit(text) else { panic!("{text:?}") };
        assert!(why.chars().all(|c| !c.is_control()), "{why:?}");
    }
    assert!(matches!(unfit(&"a".repeat(2 << 20)), Unfit::Rule(why) if why.chars().count() < 400));
}

#[test]
fn t97_reasons_are_bounded_and_inert() {
    assert_eq!(reason(" the manual "), Ok("the manual".into()));
    assert_eq!(reason(" \n"), Err(Unfit::NoReason));
    assert_eq!(reason(&"x".repeat(301)), Err(Unfit::LongReason));
    let hostile = reason("a\x1b]52;c;aGk=\x07\0b\r\nc\u{202e}d\u{9b}2J").unwrap();
    assert!(hostile.chars().all(|c| !c.is_control()) && !hostile.contains('\u{202e}'), "{hostile:?}");
    assert!(!reason("ghp_abcdefghijklmnopqrstuvwxyz0123456789").unwrap().contains("ghp_abc"));
    assert_eq!(remark(&"x".repeat(999)).chars().count(), 301);
}

#[test]
fn the_same_again_is_counted_and_keeps_its_first_words() {
    let mut book = Book::new(NOW);
    let first = ask(&mut book, "a.test", NOW).unwrap();
    assert_eq!(first.change.unwrap().state, RequestState::Pending);
    let again = book.ask(wanted("a.test").unwrap(), "other words".into(), "agent", NOW).unwrap();
    assert_eq!(again, Asked { id: first.id, change: None });
    assert_ne!(ask(&mut book, "a.test:80", NOW).unwrap().id, first.id);
    let shown = book.shown(NOW, SystemTime::UNIX_EPOCH + NOW);
    assert_eq!((shown[0].count, shown[0].reason.as_str()), (2, "because"));
    assert_eq!(shown[0].time, "1970-01-01T00:16:40.000Z");
}

#[test]
fn a_flood_is_bounded_in_number_and_time() {
    let mut book = Book::new(NOW);
    let mut taken = 0;
    let mut busy = None;
    for i in 0..10_000 {
        match ask(&mut book, &format!("n{i}.test"), NOW) {
            Ok(_) => taken += 1,
            Err(why) => busy = Some(why),
        }
    }
    assert_eq!((taken, busy), (10, Some(Busy::Fast(INTERVAL))));
    for i in 0..10_000_u64 {
        ask(&mut book, &format!("m{i}.test"), NOW + INTERVAL * u32::try_from(i).unwrap()).ok();
    }
    assert_eq!(book.pending(), MAX_PENDING);
    assert_eq!(ask(&mut book, "z.test", NOW + INTERVAL * 99_999), Err(Busy::Full));
    // What is decided makes room, and the memory of it is bounded.
    let mut now = NOW + INTERVAL * 100_000;
    for i in 0..1000 {
        now += INTERVAL;
        for id in book.shown(now, SystemTime::now()).iter().filter(|one| one.state == RequestState::Pending) {
            book.refuse(id.id, "", now).unwrap();
        }
        ask(&mut book, &format!("x{i}.test"), now).unwrap();
    }
    assert_eq!(book.entries.len(), MAX_KEPT);
}

#[test]
fn a_refusal_stands_and_nobodys_answer_ends() {
    let mut book = Book::new(NOW);
    let id = ask(&mut book, "a.test", NOW).unwrap().id;
    let change = book.refuse(id, "use the mirror", NOW).unwrap();
    assert_eq!(
        (change.state, change.detail.as_str(), change.by.as_str()),
        (RequestState::Refused, "use the mirror", "operator")
    );
    assert!(book.refuse(id, "", NOW).is_err() && book.refuse(99, "", NOW).is_err());
    assert_eq!(ask(&mut book, "a.test", NOW).unwrap(), Asked { id, change: None });
    let later = ask(&mut book, "a.test", NOW + REFUSED_FOR).unwrap();
    assert_ne!(later.id, id, "after a while it may be asked again");
    assert_eq!(book.expire(NOW + REFUSED_FOR), []);
    let ended = book.expire(NOW + REFUSED_FOR + PATIENCE);
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].id, ended[0].state), (later.id, RequestState::Expired));
}

#[test]
fn a_grant_is_followed_to_its_end() {
    let (mut book, mut policy) = (Book::new(NOW), live("ok.test"));
    let id = ask(&mut book, "a.test:443,22", NOW).unwrap().id;
    assert_eq!(settle(&mut book, &policy, "operator"), []);
    let end = NOW + Duration::from_secs(60);
    grant(&mut policy, id, "a.test:443,22", Some(end));
    let changes = settle(&mut book, &policy, "operator");
    assert_eq!(
        (changes.len(), changes[0].state, changes[0].reason.as_str()),
        (1, RequestState::Granted, "because")
    );
    assert_eq!(settle(&mut book, &policy, "reload"), [], "said once");
    let shown = book.one(id, NOW, SystemTime::UNIX_EPOCH + NOW).unwrap();
    assert_eq!(shown.until.as_deref(), Some("1970-01-01T00:17:40.000Z"));
    assert!(book.refuse(id, "", NOW).unwrap_err().contains("innkeeper revoke a.test:22,443"));
    // For longer.
    grant(&mut policy, id, "a.test:443,22", None);
    assert_eq!(settle(&mut book, &policy, "operator").len(), 1);
    assert_eq!(book.one(id, NOW, SystemTime::now()).unwrap().until, None);
    policy.revoke(&["a.test:22".to_owned()]).unwrap();
    assert_eq!(settle(&mut book, &policy, "operator"), [], "some of it is left");
    policy.revoke(&["a.test".to_owned()]).unwrap();
    assert_eq!(settle(&mut book, &policy, "operator").len(), 1);
    assert_eq!(state(&book, id), (RequestState::Expired, "it was taken back".into()));
    // The operator may think again.
    grant(&mut policy, id, "a.test:443,22", Some(end));
    assert_eq!(settle(&mut book, &policy, "operator")[0].state, RequestState::Granted);
    policy.expire(end);
    settle(&mut book, &policy, "clock");
    assert_eq!(state(&book, id), (RequestState::Expired, "its time is over".into()));
}

#[test]
fn the_policy_answers_too() {
    let (mut book, mut policy) = (Book::new(NOW), live("ok.test"));
    let [a, b, c] = ["a.test", "b.test", "c.test"].map(|name| ask(&mut book, name, NOW).unwrap().id);
    policy.allow(&["a.test".to_owned(), "!b.test".to_owned()], None).unwrap();
    settle(&mut book, &policy, "operator");
    assert_eq!(state(&book, a), (RequestState::Granted, "allowed by a.test (operator)".into()));
    assert_eq!(state(&book, b), (RequestState::Refused, "denied by the rule !b.test (operator)".into()));
    policy.replace(Vec::new(), Ceiling::new(Vec::new()), NOW);
    settle(&mut book, &policy, "reload");
    assert_eq!(state(&book, c), (RequestState::Refused, "it is beyond the ceiling now".into()));
    assert_eq!(state(&book, a), (RequestState::Expired, "it was taken back".into()));
}
