//! What can be done about a refusal: by the agent, if it may ask, else by the operator, and by nobody in this box where the
//! rule would be beyond the ceiling. (pure)

use std::borrow::Cow;

use crate::allowlist::{Ceiling, DomainName, DomainPattern, Origin, Rule, parse_rule};
use crate::requests;

/// What an operator types before a rule.
pub const ALLOW: &str = "innkeeper allow ";

/// Said instead of a command that would be refused.
pub const BEYOND: &str =
    "nothing in this box: it is beyond the ceiling of its image (/etc/innkeeper/ceiling.conf)";

/// The command that puts the rule in force, for a shell; of a denial, which is in the way, the one that takes it back.
#[must_use]
pub fn command(rule: &Rule) -> String {
    if rule.deny {
        return format!("innkeeper revoke '{rule}'");
    }
    let rule = rule.to_string();
    if rule.contains([' ', '*']) { format!("{ALLOW}'{rule}'") } else { format!("{ALLOW}{rule}") }
}

/// How the agent asks for it, if that can be asked for.
#[must_use]
pub fn ask(rule: &Rule) -> Option<String> {
    let rule = rule.to_string();
    requests::wanted(&rule).is_ok().then(|| requests::proposal(&rule))
}

/// The command to the operator as it is, or what is possible of it below the ceiling: a line that is proposed and then
/// refused would be worse than none.
/// `any_port`: nobody knows yet on which port the name is wanted.
#[must_use]
pub fn below<'a>(ceiling: &Ceiling, proposed: &'a str, any_port: bool) -> Cow<'a, str> {
    if ceiling.is_unbounded() {
        return Cow::Borrowed(proposed);
    }
    let rule = proposed.strip_prefix(ALLOW).map(|rule| rule.trim_matches('\''));
    match rule.and_then(|rule| parse_rule(rule, Origin::Operator).ok()) {
        Some(rule) if !ceiling.permits(&rule) => {
            let offer = match &rule.pattern {
                DomainPattern::Exact(name) if any_port => ceiling.offer(name),
                DomainPattern::Exact(_) | DomainPattern::Below(_) => ceiling.below(rule),
            };
            Cow::Owned(offer.map_or_else(|| BEYOND.to_owned(), |rule| command(&rule)))
        }
        // Not a rule, but words.
        Some(_) | None => Cow::Borrowed(proposed),
    }
}

/// What a client is told that was refused.
#[derive(Debug, Clone, Default)]
pub struct Remedies {
    pub ceiling: Ceiling,
    /// Whether the agent can ask for what is refused (`network.requests`).
    pub requests: bool,
}

impl Remedies {
    /// What to do about a rule that is missing, or about the `!rule` that is in the way.
    #[must_use]
    pub fn next(&self, rule: &str) -> String {
        let Ok(rule) = parse_rule(rule, Origin::Operator) else {
            return "ask the operator".to_owned();
        };
        // A denial is below every ceiling, and nobody asks for one.
        self.ceiling.below(rule).map_or_else(|| BEYOND.to_owned(), |rule| self.granted_by(&rule))
    }

    /// The same for a name of which nobody knows yet on which port it is wanted; none if nothing in this box opens it.
    #[must_use]
    pub fn open(&self, name: &str) -> Option<String> {
        let next = self.granted_by(&self.ceiling.offer(&DomainName::parse(name).ok()?)?);
        Some(if next.starts_with(requests::COMMAND) { format!("ask for it: {next}") } else { next })
    }

    fn granted_by(&self, rule: &Rule) -> String {
        let asked = if self.requests { ask(rule) } else { None };
        asked.unwrap_or_else(|| format!("operator: {}", command(rule)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::ceiling_of as ceiling;

    #[test]
    fn what_is_proposed_is_what_would_be_granted() {
        let unbounded = Remedies::default();
        assert_eq!(unbounded.next("a.test:443"), "operator: innkeeper allow a.test");
        assert_eq!(unbounded.next("a.test:8080 http"), "operator: innkeeper allow 'a.test:8080 http'");
        assert_eq!(unbounded.next("!a.test"), "operator: innkeeper revoke '!a.test'");
        let asks = Remedies { requests: true, ..Remedies::default() };
        assert_eq!(asks.next("a.test:443"), "innkeeper request a.test --reason WHY");
        for not_asked_for in ["a.test:8080 http", "a.test ech"] {
            let next = asks.next(not_asked_for);
            assert_eq!(next, format!("operator: innkeeper allow '{not_asked_for}'"), "takes no options");
        }
        assert_eq!(asks.next("co.uk"), "operator: innkeeper allow co.uk", "nobody's name");
        assert_eq!(asks.next("!a.test"), "operator: innkeeper revoke '!a.test'");
    }

    #[test]
    fn nothing_beyond_the_ceiling_is_proposed() {
        let bounded = Remedies {
            ceiling: ceiling("a.test:443,8443\n*.git.test:22 private\nread.test:8443 tls\n!b.a.test\n"),
            requests: true,
        };
        assert_eq!(bounded.next("a.test"), "innkeeper request a.test --reason WHY");
        assert_eq!(bounded.next("evil.test"), BEYOND);
        assert_eq!(bounded.next("a.test:80"), BEYOND, "the port is what was wanted");
        assert_eq!(bounded.next("x.git.test:22"), "innkeeper request x.git.test:22 --reason WHY");
        assert_eq!(bounded.next("read.test:8443"), "operator: innkeeper allow 'read.test:8443 tls'");
        assert_eq!(bounded.next("read.test:8443 http"), BEYOND, "another wire would not help");
        for (name, open) in [
            ("a.test", Some("ask for it: innkeeper request a.test --reason WHY")),
            ("x.git.test", Some("ask for it: innkeeper request x.git.test:22 --reason WHY")),
            ("read.test", Some("operator: innkeeper allow 'read.test:8443 tls'")),
            ("b.a.test", None),
            ("c.test", None),
            ("no name", None),
        ] {
            assert_eq!(bounded.open(name).as_deref(), open, "{name}");
        }
    }

    #[test]
    fn a_command_of_the_operators_is_below_the_ceiling_too() {
        let bound = ceiling("a.test\nread.test:8443 tls\n");
        let said = |command| below(&bound, command, false).into_owned();
        assert_eq!(said("innkeeper allow a.test"), "innkeeper allow a.test");
        assert_eq!(said("innkeeper allow 'a.test:443 tls'"), "innkeeper allow 'a.test:443 tls'");
        assert_eq!(said("innkeeper allow read.test:8443"), "innkeeper allow 'read.test:8443 tls'");
        assert_eq!(said("innkeeper allow evil.test"), BEYOND);
        assert_eq!(said("innkeeper allow 'evil.test ech'"), BEYOND);
        let words = [
            "use TCP",
            "allow a name, not an address: innkeeper allow NAME",
            "innkeeper allow 'NAME private', so",
        ];
        for words in words {
            assert_eq!(said(words), words);
        }
        let of_a_name = |command| below(&bound, command, true).into_owned();
        assert_eq!(of_a_name("innkeeper allow a.test"), "innkeeper allow a.test");
        assert_eq!(of_a_name("innkeeper allow read.test"), "innkeeper allow 'read.test:8443 tls'");
        assert_eq!(said("innkeeper allow read.test"), BEYOND, "443 is what was wanted");
        assert_eq!(of_a_name("innkeeper allow evil.test"), BEYOND);
        let evil = "innkeeper allow evil.test";
        assert_eq!(below(&Ceiling::unbounded(), evil, true), evil);
    }
}
