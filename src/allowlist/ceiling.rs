//! The ceiling: what no file, variable, repository or operator can go beyond. Same grammar as every rule.  (pure)
//!
//! An image without a ceiling bounds nothing; an image whose ceiling is empty permits nothing.

use std::sync::Arc;

use super::{Allowlist, DEFAULT_PORT, DomainName, DomainPattern, Origin, Rule, RuleOptions, Subject, Wire};

/// The outermost bound of the policy. Its copies share it.
#[derive(Debug, Clone, Default)]
pub struct Ceiling {
    /// By the index of an allowlist: what is asked about comes from the agent too.
    bounds: Option<Allowlist>,
}

impl Ceiling {
    /// No ceiling: every rule is permitted.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { bounds: None }
    }

    /// Only what these rules cover is permitted.
    #[must_use]
    pub fn new(bounds: Vec<Rule>) -> Self {
        Self { bounds: Some(Allowlist::new(bounds)) }
    }

    #[must_use]
    pub fn is_unbounded(&self) -> bool {
        self.bounds.is_none()
    }

    /// The rules of the ceiling; none if there is no ceiling.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        self.bounds.as_ref().map(Allowlist::rules).unwrap_or_default()
    }

    /// Whether the rule stays below the ceiling. A deny rule only narrows and is always permitted. One single rule
    /// of the ceiling has to cover the whole of an allowing rule: names, ports, private addresses, subject and what is spoken; and
    /// no name of it may be denied by the ceiling, so that a permitted rule needs no further look.
    #[must_use]
    pub fn permits(&self, rule: &Rule) -> bool {
        let Some(bounds) = &self.bounds else { return true };
        if rule.deny {
            return true;
        }
        match &rule.pattern {
            DomainPattern::Exact(name) => is_within(bounds.matching(name), rule),
            DomainPattern::Below(_) => {
                let all = bounds.rules().iter().map(|bound| &**bound);
                is_within(all.filter(|bound| overlap(&bound.pattern, &rule.pattern)), rule)
            }
        }
    }

    /// The rule if it is permitted; else, if it says nothing of it, the same names and ports with what the ceiling wants
    /// spoken there.
    #[must_use]
    pub fn below(&self, rule: Rule) -> Option<Rule> {
        if self.permits(&rule) {
            return Some(rule);
        }
        if rule.options.wire.is_some() {
            return None;
        }
        let with = |wire| Rule { options: RuleOptions { wire: Some(wire), ..rule.options }, ..rule.clone() };
        [Wire::Tls, Wire::Http].map(with).into_iter().find(|rule| self.permits(rule))
    }

    /// A rule for a name that is permitted: for the usual port, or else for what the ceiling has for that name.
    #[must_use]
    pub fn offer(&self, name: &DomainName) -> Option<Rule> {
        let rule = |ports, wire| Rule {
            deny: false,
            pattern: DomainPattern::Exact(name.clone()),
            ports,
            options: RuleOptions { wire, ..RuleOptions::default() },
            origin: Origin::Operator,
            why: None,
        };
        self.below(rule(vec![DEFAULT_PORT], None)).or_else(|| {
            let bounds = self.bounds.iter().flat_map(|bounds| bounds.matching(name));
            let rules = bounds.map(|bound| rule(bound.ports.clone(), bound.options.wire));
            rules.into_iter().find(|rule| self.permits(rule))
        })
    }
}

/// `about`: the bounds that share a name with it.
fn is_within<'a>(about: impl Iterator<Item = &'a Rule>, rule: &Rule) -> bool {
    let mut within = false;
    for bound in about {
        if bound.deny {
            return false;
        }
        within |= covers(bound, rule);
    }
    within
}

fn covers(bound: &Rule, rule: &Rule) -> bool {
    // What the ceiling grants to the broker alone is not the agent's.
    let subject = match bound.options.by {
        Subject::Agent => true,
        Subject::Broker | Subject::Boot => bound.options.by == rule.options.by,
    };
    !bound.deny
        && subject
        && bound.pattern.covers(&rule.pattern)
        && rule.ports.iter().all(|port| bound.ports.contains(port))
        && (!rule.options.private || bound.options.private)
        && (!rule.options.ech || bound.options.ech)
        // What the ceiling wants read at the gate may not be opened to anything else.
        && bound.options.wire.is_none_or(|wire| rule.ports.iter().all(|port| rule.wire_on(*port) == Some(wire)))
}

/// Patterns are single names or whole subtrees, so two of them share a name only if one covers the other.
fn overlap(one: &DomainPattern, other: &DomainPattern) -> bool {
    one.covers(other) || other.covers(one)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Origin, parse_rule, parse_rules};
    use super::*;

    pub(crate) fn ceiling(text: &str) -> Ceiling {
        let (rules, problems) = parse_rules(text, |line| Origin::File { path: "ceiling.conf".into(), line });
        assert_eq!(problems, []);
        Ceiling::new(rules)
    }

    fn permits(ceiling: &Ceiling, rule: &str) -> bool {
        ceiling.permits(&parse_rule(rule, Origin::Operator).unwrap())
    }

    #[test]
    fn no_ceiling_permits_everything_and_an_empty_one_nothing_but_denials() {
        assert!(permits(&Ceiling::unbounded(), "*.example.org:1,2 private"));
        assert!(Ceiling::unbounded().is_unbounded());
        assert!(!permits(&ceiling("# nothing\n"), "example.org"));
        assert!(permits(&ceiling(""), "!example.org"));
    }

    #[test]
    fn one_rule_of_the_ceiling_covers_names_ports_private_and_subject() {
        let bound = ceiling(
            "github.com:443,22\n*.example.org\ngit.corp.example private\nkeys.example.net by=broker\n",
        );
        for rule in [
            "github.com",
            "github.com:22",
            "github.com:22,443",
            "a.b.example.org",
            "*.a.example.org",
            "*.example.org",
            "git.corp.example private",
            "git.corp.example",
            "keys.example.net by=broker",
            "github.com by=broker",
        ] {
            assert!(permits(&bound, rule), "{rule} should be permitted");
        }
        for rule in [
            "github.com:80",
            "github.com:443,80",
            "github.com private",
            "example.org",
            "*.org",
            "*.github.com",
            "notexample.org",
            "a.example.org:8443",
            "keys.example.net",
            "keys.example.net by=boot",
            "evil.example",
        ] {
            assert!(!permits(&bound, rule), "{rule} should be refused");
        }
    }

    #[test]
    fn what_the_ceiling_wants_read_stays_read() {
        let bound = ceiling("a.example:443,8443 tls\nb.example\nc.example ech\n");
        for rule in ["a.example:8443 tls", "a.example", "b.example http", "c.example ech", "c.example"] {
            assert!(permits(&bound, rule), "{rule} should be permitted");
        }
        for rule in ["a.example:8443", "a.example:8443 http", "a.example tls ech", "b.example ech"] {
            assert!(!permits(&bound, rule), "{rule} should be refused");
        }
    }

    #[test]
    fn ports_are_not_gathered_from_several_rules_of_the_ceiling() {
        let bound = ceiling("a.example:443\na.example:80 private\n");
        assert!(permits(&bound, "a.example:443"));
        assert!(permits(&bound, "a.example:80 private"));
        assert!(!permits(&bound, "a.example:443 private"));
        assert!(!permits(&bound, "a.example:80,443"));
    }

    #[test]
    fn a_denial_of_the_ceiling_wins_even_where_it_only_overlaps() {
        let bound = ceiling("*.example.org\n!bad.example.org\n!*.deep.example.org\n");
        assert!(permits(&bound, "good.example.org"));
        assert!(!permits(&bound, "bad.example.org"));
        assert!(!permits(&bound, "*.example.org"), "it would allow bad.example.org");
        assert!(!permits(&bound, "x.deep.example.org"));
        assert!(permits(&bound, "deep.example.org"));
        assert_eq!(bound.rules().len(), 3);
    }

    /// The index is a short cut: every bound, looked at one after another, says the same.
    #[test]
    fn the_index_decides_as_all_bounds_do() {
        let texts =
            ["a.test", "*.a.test", "b.a.test:22", "*.b.a.test", "!b.a.test", "!*.b.a.test", "*.test:80,443"];
        let rules = texts.map(|text| parse_rule(text, Origin::Operator).unwrap());
        for chosen in 0..1_u32 << rules.len() {
            let is_in = |(at, _): &(usize, &Rule)| chosen >> at & 1 == 1;
            let bounds: Vec<Rule> =
                rules.iter().enumerate().filter(is_in).map(|(_, rule)| rule.clone()).collect();
            let bound = Ceiling::new(bounds.clone());
            for rule in [
                "test",
                "a.test",
                "b.a.test",
                "b.a.test:22",
                "c.b.a.test",
                "x.test:80",
                "*.a.test",
                "*.b.a.test",
            ] {
                let asked = parse_rule(rule, Origin::Operator).unwrap();
                let denied = bounds.iter().any(|bound| bound.deny && overlap(&bound.pattern, &asked.pattern));
                let covered = bounds.iter().any(|bound| covers(bound, &asked));
                assert_eq!(bound.permits(&asked), !denied && covered, "{rule} below {bounds:?}");
            }
        }
    }
}
