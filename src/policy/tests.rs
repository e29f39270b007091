use super::*;
use crate::allowlist::DomainName;

fn rules(text: &str) -> Vec<Rule> {
    let (rules, problems) =
        parse_rules(text, |line| Origin::File { path: "network/domains.conf".into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    rules
}

fn live(text: &str, ceiling: &str) -> LivePolicy {
    let ceiling = if ceiling.is_empty() { Ceiling::unbounded() } else { Ceiling::new(rules(ceiling)) };
    LivePolicy::new(rules(text), ceiling, Duration::ZERO)
}

fn texts(rules: &[&str]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

fn allows(policy: &LivePolicy, name: &str, port: u16) -> bool {
    let (allowlist, ceiling) = (Allowlist::new(policy.rules()), Ceiling::unbounded());
    let ground =
        check::Ground { ceiling: &ceiling, taken_back: &[], queue: false, told: check::Told::Everything };
    check::explain(&allowlist, &ground, &DomainName::parse(name).unwrap(), port, None).allowed
}

#[test]
fn a_grant_opens_and_its_end_closes() {
    let mut policy = live("ok.test", "");
    assert!(!allows(&policy, "new.test", 443));
    policy.allow(&texts(&["new.test", "git.test:22"]), Some(Duration::from_secs(100))).unwrap();
    assert!(
        allows(&policy, "new.test", 443)
            && allows(&policy, "git.test", 22)
            && allows(&policy, "ok.test", 443)
    );
    assert_eq!((policy.generation, policy.next_end()), (2, Some(Duration::from_secs(100))));
    assert!(policy.expire(Duration::from_secs(99)).is_empty());
    assert_eq!(policy.generation, 2, "nothing ended, nothing changed");
    assert_eq!(policy.expire(Duration::from_secs(100)).len(), 2);
    assert!(!allows(&policy, "new.test", 443) && allows(&policy, "ok.test", 443));
    assert_eq!((policy.generation, policy.next_end()), (3, None));
}

#[test]
fn allowing_again_replaces_the_end() {
    let mut policy = live("", "");
    policy.allow(&texts(&["new.test"]), Some(Duration::from_secs(100))).unwrap();
    policy.allow(&texts(&["new.test"]), None).unwrap();
    assert!(policy.expire(Duration::from_secs(1000)).is_empty());
    assert_eq!(policy.rules().len(), 1);
}

#[test]
fn one_bad_rule_refuses_them_all_and_every_bad_one_is_told() {
    let before = live("ok.test", "");
    let mut policy = before.clone();
    let refusal = policy.allow(&texts(&["good.test", "bad..test", "*", "also:bad"]), None).unwrap_err();
    let Refusal::Unreadable(problems) = &refusal else { panic!("{refusal:?}") };
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(policy.allow(&texts(&["", "#"]), None).is_err());
    assert!(policy.allow(&texts(&["ghp_abcdefghijklmnopqrstuvwxyz0123456789"]), None).is_err());
}

#[test]
fn nothing_goes_beyond_the_ceiling() {
    let mut policy = live("ok.test", "ok.test\n*.inside.test:443,22");
    let refusal = policy.clone().allow(&texts(&["a.inside.test:22", "outside.test"]), None).unwrap_err();
    assert_eq!(refusal, Refusal::Ceiling(vec!["outside.test".into()]));
    policy.allow(&texts(&["a.inside.test:22", "!outside.test"]), None).unwrap();
    assert!(allows(&policy, "a.inside.test", 22));
    // A lower ceiling takes what was granted below the old one.
    let said = policy.replace(rules("ok.test"), Ceiling::new(rules("ok.test")), Duration::ZERO);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(!allows(&policy, "a.inside.test", 22));
}

#[test]
fn deny_rules_win_and_say_so() {
    let mut policy = live("*.test", "");
    policy.allow(&texts(&["!evil.test"]), None).unwrap();
    assert!(!allows(&policy, "evil.test", 443) && allows(&policy, "a.test", 443));
    let refusal = policy.clone().allow(&texts(&["evil.test"]), None).unwrap_err();
    assert!(refusal.to_string().contains("innkeeper revoke '!evil.test'"), "{refusal}");
    policy.revoke(&texts(&["!evil.test"])).unwrap();
    assert!(allows(&policy, "evil.test", 443));
}

#[test]
fn revoking_takes_a_rule_or_some_of_its_ports() {
    let mut policy = live("github.com:443,22\n*.github.com", "");
    let said = policy.revoke(&texts(&["github.com:22"])).unwrap();
    assert!(said[0].contains("still allowed by github.com (network/domains.conf:1)"), "{said:?}");
    assert!(!allows(&policy, "github.com", 22) && allows(&policy, "github.com", 443));
    policy.revoke(&texts(&["github.com"])).unwrap();
    assert!(!allows(&policy, "github.com", 443));
    // What was taken back stays so over a reload, until it is allowed again.
    policy.replace(rules("github.com:443,22"), Ceiling::unbounded(), Duration::ZERO);
    assert!(!allows(&policy, "github.com", 443) && !allows(&policy, "github.com", 22));
    policy.allow(&texts(&["github.com:22"]), Some(Duration::from_secs(9))).unwrap();
    assert!(allows(&policy, "github.com", 22));
    policy.expire(Duration::from_secs(9));
    assert!(!allows(&policy, "github.com", 22), "for a while, although a file has it");
    let said = policy.allow(&texts(&["github.com:22"]), None).unwrap();
    assert!(!said[0].new && said[0].said.contains("already"), "{said:?}");
    assert!(allows(&policy, "github.com", 22) && !allows(&policy, "github.com", 443));
}

#[test]
fn revoking_what_is_not_there_says_what_is() {
    let mut policy = live("*.github.com\ngit.test:22", "");
    let said = |policy: &mut LivePolicy, rule: &str| policy.revoke(&texts(&[rule])).unwrap_err().to_string();
    assert!(said(&mut policy, "api.github.com").contains("innkeeper allow '!api.github.com'"));
    assert!(said(&mut policy, "git.test").contains("git.test:22 (network/domains.conf:2)"));
    assert!(said(&mut policy, "no.test").contains("there is no such rule"));
    assert_eq!(policy.generation, 1);
}

#[test]
fn grants_are_bounded() {
    let mut policy = live("", "");
    let many: Vec<String> = (0..=MAX_GRANTS).map(|i| format!("n{i}.test")).collect();
    assert_eq!(policy.allow(&many, None), Err(Refusal::TooMany));
}

fn rule_of(policy: &LivePolicy, name: &str) -> Vec<String> {
    let name = DomainName::parse(name).unwrap();
    match Allowlist::new(policy.rules()).verdict(&name) {
        Verdict::Allowed(allowed) => {
            allowed.rules.iter().map(|rule| format!("{rule} ({})", rule.origin)).collect()
        }
        Verdict::Denied(_) => Vec::new(),
    }
}

#[test]
fn granting_a_request_brings_back_no_more_than_was_asked() {
    let asked = Terms { origin: Origin::Request { id: 1 }, ..Terms::from(None) };
    let mut policy = live("git.corp:443 private\nplain.test", "");
    policy.revoke(&texts(&["git.corp", "plain.test"])).unwrap();
    let said = policy.allow(&texts(&["git.corp", "plain.test"]), asked).unwrap();
    assert_eq!(rule_of(&policy, "git.corp"), ["git.corp (request 1, operator)"], "{said:?}");
    // Also of what says the same: what a file has stays taken back, and ends with the grant.
    assert_eq!(rule_of(&policy, "plain.test"), ["plain.test (request 1, operator)"]);
    policy.revoke(&texts(&["git.corp", "plain.test"])).unwrap();
    assert!(rule_of(&policy, "git.corp").is_empty() && rule_of(&policy, "plain.test").is_empty());
}

#[test]
fn allowing_again_brings_a_rule_back_only_with_its_own_options() {
    let mut policy = live("git.corp:443,22 private\ngit.corp:22", "");
    policy.revoke(&texts(&["git.corp:443,22"])).unwrap();
    policy.allow(&texts(&["git.corp:443,22"]), None).unwrap();
    assert_eq!(rule_of(&policy, "git.corp"), ["git.corp:22,443 (operator)"]);
    policy.allow(&texts(&["git.corp private"]), None).unwrap();
    let private = "git.corp private (network/domains.conf:1)";
    assert_eq!(rule_of(&policy, "git.corp"), [private, "git.corp:22,443 (operator)"]);
}
