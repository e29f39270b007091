//! The rules that are near a name that none allows: most refusals are a forgotten port, a wildcard that does not hold
//! its apex, or a typing error.  (pure)

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::check::{Cited, Ground};
use crate::allowlist::{DomainName, DomainPattern, Rule, Subject, is_public_suffix};

/// So many are told.
const MOST: usize = 3;
/// Shorter labels have too many neighbours.
const SHORTEST: usize = 4;

/// How a rule is near; the nearest kind first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The operator took it back.
    TakenBack,
    /// The same name, on other ports.
    OtherPort,
    /// The same name, for somebody else.
    OtherSubject,
    /// A wildcard, which does not hold the name above it.
    Apex,
    /// A name that differs by a typing error.
    Similar,
    /// A name above it, and that name alone.
    Above,
    /// A name below it.
    Below,
    /// Another name below the same one.
    Sibling,
}

/// A rule near what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Near {
    #[serde(flatten)]
    pub cited: Cited,
    pub relation: Relation,
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}), ", self.cited.rule, self.cited.origin)?;
        f.write_str(match self.relation {
            Relation::TakenBack => "which the operator took back",
            Relation::OtherPort => "on other ports",
            Relation::OtherSubject => "which is not the agent's",
            Relation::Apex => "which is for names below it",
            Relation::Similar => "if that is a typing error",
            Relation::Above => "which is for that name alone",
            Relation::Below => "a name below it",
            Relation::Sibling => "its neighbour",
        })
    }
}

/// The nearest rules, the best first.
#[must_use]
pub fn nearest(rules: &[Arc<Rule>], ground: &Ground<'_>, name: &DomainName, port: u16) -> Vec<Near> {
    let back =
        ground.taken_back.iter().filter(|rule| rule.pattern.matches(name) && rule.ports.contains(&port));
    let back = back.map(|rule| (Relation::TakenBack, rule));
    let family = family(name);
    let near = rules.iter().filter(|rule| !rule.deny);
    let near = near.filter_map(|rule| Some((relation(rule, name, port, family)?, rule)));
    let mut found: Vec<(Relation, &Arc<Rule>)> = back.chain(near).collect();
    // Stable: of two that are as near, the one that was written first.
    found.sort_by_key(|(relation, _)| *relation);
    let near =
        |(relation, rule): (Relation, &Arc<Rule>)| Near { cited: Cited::of(rule, ground.told), relation };
    found.into_iter().take(MOST).map(near).collect()
}

/// What neighbours share: the name above, unless strangers have names there. Looked up once, since that takes a while and
/// the agent may ask as often as it likes.
fn family(name: &DomainName) -> Option<&str> {
    let parent = name.parents().next()?;
    let strangers = DomainName::parse(parent).is_ok_and(|parent| is_public_suffix(&parent));
    (!strangers).then_some(parent)
}

fn relation(rule: &Rule, name: &DomainName, port: u16, family: Option<&str>) -> Option<Relation> {
    if rule.pattern.matches(name) {
        return Some(match rule.options.by {
            Subject::Agent if !rule.ports.contains(&port) => Relation::OtherPort,
            Subject::Agent => return None,
            Subject::Broker | Subject::Boot => Relation::OtherSubject,
        });
    }
    match &rule.pattern {
        DomainPattern::Below(apex) if apex == name => Some(Relation::Apex),
        DomainPattern::Below(apex) => {
            // Compared with the part of the name that is as long: a.exmaple.org with *.example.org.
            let parts = name.parents().filter(|parent| labels(parent) == labels(apex.as_str()));
            parts.into_iter().any(|part| similar(apex.as_str(), part)).then_some(Relation::Similar)
        }
        DomainPattern::Exact(other) => by_names(other, name, family),
    }
}

fn by_names(other: &DomainName, name: &DomainName, family: Option<&str>) -> Option<Relation> {
    if similar(other.as_str(), name.as_str()) {
        return Some(Relation::Similar);
    }
    if labels(other.as_str()) > 1 && name.parents().any(|parent| parent == other.as_str()) {
        return Some(Relation::Above);
    }
    if labels(name.as_str()) > 1 && other.parents().any(|parent| parent == name.as_str()) {
        return Some(Relation::Below);
    }
    (family.is_some() && other.parents().next() == family).then_some(Relation::Sibling)
}

fn labels(name: &str) -> usize {
    name.split('.').count()
}

/// Whether they differ in one character, or two neighbouring ones: what a slip of a finger makes. Looks at each
/// character once, since the agent may ask for this as often as it likes.
fn similar(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let (short, long) = (one.len().min(other.len()), one.len().max(other.len()));
    if long - short > 1 || one == other {
        return false;
    }
    let head = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let tail = one.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
    let before = one.get(..head).into_iter().flatten().rev().take_while(|octet| **octet != b'.').count();
    let after = one.get(head..).into_iter().flatten().take_while(|octet| **octet != b'.').count();
    if before + after < SHORTEST {
        return false;
    }
    let different = long.saturating_sub(head + tail);
    let swapped = || {
        let middle = |text: &[u8]| text.get(head..head + 2).map(<[u8]>::to_vec);
        middle(one).map(|mut pair| {
            pair.reverse();
            pair
        }) == middle(other)
    };
    different <= 1 || (different == 2 && one.len() == other.len() && swapped())
}

#[cfg(test)]
mod tests {
    use super::{Near, Relation, nearest, similar};
    use crate::allowlist::{Ceiling, DomainName, Origin, Rule, parse_rules};
    use crate::policy::check::{Ground, Told};
    use std::sync::Arc;

    fn rules(text: &str) -> Vec<Arc<Rule>> {
        let (rules, problems) = parse_rules(text, |line| Origin::File { path: "d.conf".into(), line });
        assert!(problems.is_empty(), "{problems:?}");
        rules.into_iter().map(Arc::new).collect()
    }

    fn near(all: &[Arc<Rule>], taken_back: &[Arc<Rule>], name: &str, port: u16) -> Vec<Near> {
        let ceiling = Ceiling::unbounded();
        let ground = Ground { ceiling: &ceiling, taken_back, queue: false, told: Told::Everything };
        nearest(all, &ground, &DomainName::parse(name).unwrap(), port)
    }

    fn found(text: &str, name: &str, port: u16) -> Vec<(String, Relation)> {
        near(&rules(text), &[], name, port).into_iter().map(|near| (near.cited.rule, near.relation)).collect()
    }

    fn first(text: &str, name: &str, port: u16) -> Option<Relation> {
        found(text, name, port).first().map(|(_, relation)| *relation)
    }

    #[test]
    fn what_is_near_is_told_by_kind() {
        for (text, name, port, relation) in [
            ("git.example.org:22", "git.example.org", 443, Relation::OtherPort),
            ("*.example.org:80", "a.example.org", 443, Relation::OtherPort),
            ("keys.example.org by=broker", "keys.example.org", 443, Relation::OtherSubject),
            ("*.example.org", "example.org", 443, Relation::Apex),
            ("docs.example.org", "dcos.example.org", 443, Relation::Similar),
            ("docs.example.org", "docs.exampl.org", 443, Relation::Similar),
            ("*.example.org", "a.b.exmaple.org", 443, Relation::Similar),
            ("example.org", "www.example.org", 443, Relation::Above),
            ("www.example.org", "example.org", 443, Relation::Below),
            ("static.example.org", "docs.example.org", 443, Relation::Sibling),
        ] {
            assert_eq!(first(text, name, port), Some(relation), "{text} and {name}");
        }
    }

    #[test]
    fn strangers_are_not_near() {
        for (text, name) in [
            ("one.github.io", "another.github.io"),
            ("example.org", "unrelated.org"),
            ("!docs.example.org", "dosc.example.org"),
            ("a.test", "b.test"),
            ("org.example", "x.org"),
        ] {
            assert_eq!(found(text, name, 443), [], "{text} and {name}");
        }
    }

    #[test]
    fn few_are_told_and_the_nearest_first() {
        let text = "a.example.org\nb.example.org\nc.example.org\n*.example.org:22\nexample.org";
        let found = found(text, "docs.example.org", 443);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], ("*.example.org:22".to_owned(), Relation::OtherPort));
        assert_eq!(found[1].1, Relation::Above);
    }

    #[test]
    fn what_was_taken_back_comes_first() {
        let (all, back) = (rules("git.example.org:22"), rules("*.example.org"));
        let near = near(&all, &back, "git.example.org", 443);
        assert_eq!(near[0].relation, Relation::TakenBack);
        assert_eq!(near[0].to_string(), "*.example.org (d.conf:1), which the operator took back");
    }

    #[test]
    fn slips_of_a_finger_are_similar_and_other_words_are_not() {
        assert!(similar("example.org", "exmaple.org") && similar("example.org", "examplee.org"));
        assert!(similar("example.org", "exampl.org") && similar("example.org", "exzmple.org"));
        assert!(!similar("example.org", "sample.org") && !similar("a.org", "b.org"));
        assert!(!similar("example.org", "example.org") && !similar("example.org", "exbbple.org"));
    }
}
