//! What a person should know of a policy before trusting it: who can be written to, whose content comes in, and which
//! rules do nothing. Judges, changes nothing.  (pure)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::InForce;
use super::hosts::{Hosts, Trait};
use crate::allowlist::{ALWAYS_GATED, DomainName, DomainPattern, Rule, Subject, is_public_suffix};

/// What is wrong with a rule, or worth knowing; the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A wildcard on a public suffix, which the rule says is meant.
    PublicSuffix,
    /// Takes writes with anybody's key.
    Writes,
    /// Serves what strangers put there.
    UserContent,
    /// One host for many customers.
    Shared,
    Telemetry,
    /// May hide which name of a host is meant.
    Hidden,
    /// Names a port that another rule gave to the egress gate.
    Gated,
    /// The name does not resolve.
    Dead,
    /// Another rule allows all of it.
    Covered,
    /// A deny rule that takes nothing away.
    IdleDeny,
    /// Not used in this box so far.
    Unused,
}

impl Kind {
    /// Whether it is said at boot: what only time shows is not.
    fn is_lasting(self) -> bool {
        match self {
            Self::PublicSuffix
            | Self::Writes
            | Self::UserContent
            | Self::Shared
            | Self::Telemetry
            | Self::Hidden
            | Self::Gated
            | Self::Covered
            | Self::IdleDeny => true,
            Self::Dead | Self::Unused => false,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PublicSuffix => "wildcards that allow names of strangers",
            Self::Writes => "hosts that take writes",
            Self::UserContent => "hosts that serve what strangers put there",
            Self::Shared => "hosts that many customers share",
            Self::Telemetry => "statistics alone",
            Self::Hidden => "names whose connections may hide where they go",
            Self::Gated => "ports that are the gate's by another rule",
            Self::Dead => "names that do not resolve",
            Self::Covered => "covered by another rule",
            Self::IdleDeny => "denials of what nothing allows",
            Self::Unused => "not used in this box",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub kind: Kind,
    pub rule: String,
    pub origin: String,
    pub detail: String,
}

/// What the box has seen since its boot.
#[derive(Debug, Default)]
pub struct Seen {
    /// Names that were used, with the port.
    pub used: HashSet<(DomainName, u16)>,
    /// Names that did not resolve, and why.
    pub dead: BTreeMap<String, String>,
}

/// All findings, grouped by kind, in the order of the rules. Without `seen` only what the rules say by themselves.
#[must_use]
pub fn lint(rules: &[InForce], hosts: &Hosts, seen: Option<&Seen>) -> Vec<Finding> {
    let index = Index::new(rules);
    let mut findings: Vec<Finding> = Vec::new();
    for (place, entry) in rules.iter().enumerate() {
        let rule = &*entry.rule;
        let said = if rule.deny {
            index.denial(rule)
        } else {
            let mut said = by_itself(rule, hosts);
            said.extend(index.gated(rule).map(|detail| (Kind::Gated, detail)));
            said.extend(index.covering(place, entry).map(|other| {
                (Kind::Covered, format!("{} ({}) allows all of it", other.rule, other.rule.origin))
            }));
            said.extend(seen.map_or_else(Vec::new, |seen| by_time(rule, seen)));
            said
        };
        let found = |(kind, detail)| Finding {
            kind,
            rule: rule.to_string(),
            origin: rule.origin.to_string(),
            detail,
        };
        findings.extend(said.into_iter().map(found));
    }
    findings.sort_by_key(|finding| finding.kind);
    findings
}

fn by_itself(rule: &Rule, hosts: &Hosts) -> Vec<(Kind, String)> {
    let mut said: BTreeMap<Kind, String> = BTreeMap::new();
    if let DomainPattern::Below(apex) = &rule.pattern
        && is_public_suffix(apex)
    {
        said.insert(Kind::PublicSuffix, format!("anybody can have a name below {apex}"));
    }
    if rule.options.telemetry {
        said.insert(Kind::Telemetry, "the rule says so; safe to remove".to_owned());
    }
    if rule.options.ech {
        said.insert(Kind::Hidden, "an Encrypted ClientHello may name any site of the same host".to_owned());
    }
    for host in hosts.reached_by(&rule.pattern) {
        for kind in host.traits.iter().map(|found| kind_of(*found)) {
            // A wildcard may reach several; the first is as good an example as any.
            said.entry(kind).or_insert_with(|| host.what.clone());
        }
    }
    said.into_iter().collect()
}

fn kind_of(found: Trait) -> Kind {
    match found {
        Trait::Writes => Kind::Writes,
        Trait::UserContent => Kind::UserContent,
        Trait::Shared => Kind::Shared,
        Trait::Telemetry => Kind::Telemetry,
    }
}

fn by_time(rule: &Rule, seen: &Seen) -> Vec<(Kind, String)> {
    let mut said = Vec::new();
    if let DomainPattern::Exact(name) = &rule.pattern
        && let Some(cause) = seen.dead.get(name.as_str())
    {
        said.push((Kind::Dead, cause.clone()));
    }
    let used = seen.used.iter().any(|(name, port)| rule.pattern.matches(name) && rule.ports.contains(port));
    if rule.options.by == Subject::Agent && !used {
        said.push((Kind::Unused, "no connection by it was seen since the boot".to_owned()));
    }
    said
}

/// Allowing rules by the name that their pattern is made of.
struct Index<'a> {
    rules: &'a [InForce],
    exact: HashMap<&'a str, Vec<usize>>,
    below: HashMap<&'a str, Vec<usize>>,
    /// The first rule that marked a port which is not the gate's anyway.
    marked: BTreeMap<u16, &'a Rule>,
}

impl<'a> Index<'a> {
    fn new(rules: &'a [InForce]) -> Self {
        let mut index = Self { rules, exact: HashMap::new(), below: HashMap::new(), marked: BTreeMap::new() };
        for (place, entry) in rules.iter().enumerate().filter(|(_, entry)| !entry.rule.deny) {
            let rule = &*entry.rule;
            if rule.options.wire.is_some() && rule.options.by == Subject::Agent {
                for port in rule.ports.iter().filter(|port| !ALWAYS_GATED.contains(port)) {
                    index.marked.entry(*port).or_insert(rule);
                }
            }
            let (map, name) = match &entry.rule.pattern {
                DomainPattern::Exact(name) => (&mut index.exact, name),
                DomainPattern::Below(name) => (&mut index.below, name),
            };
            map.entry(name.as_str()).or_default().push(place);
        }
        index
    }

    fn denial(&self, rule: &Rule) -> Vec<(Kind, String)> {
        let meets = match &rule.pattern {
            DomainPattern::Exact(name) => {
                self.exact.contains_key(name.as_str())
                    || name.parents().any(|parent| self.below.contains_key(parent))
            }
            DomainPattern::Below(_) => self.rules.iter().map(|entry| &entry.rule).any(|other| {
                let (one, two) = (&other.pattern, &rule.pattern);
                !other.deny && (one.covers(two) || two.covers(one))
            }),
        };
        if meets {
            return Vec::new();
        }
        vec![(Kind::IdleDeny, "no rule allows what it denies; it is refused without it".to_owned())]
    }

    /// A rule that says nothing of what it speaks, on a port where another one does: it may not know.
    fn gated(&self, rule: &Rule) -> Option<String> {
        if rule.options.wire.is_some() || rule.options.by != Subject::Agent {
            return None;
        }
        let (port, by) = rule.ports.iter().find_map(|port| Some((port, self.marked.get(port)?)))?;
        Some(format!("{by} ({}) made port {port} the gate's: only TLS and HTTP pass there", by.origin))
    }

    /// A rule that allows all that this one does, for as long. Of two that are the same the second is covered.
    fn covering(&self, place: usize, entry: &InForce) -> Option<&'a InForce> {
        let (same, name) = match &entry.rule.pattern {
            DomainPattern::Exact(name) => (self.exact.get(name.as_str()), name),
            DomainPattern::Below(name) => (self.below.get(name.as_str()), name),
        };
        let above = name.parents().filter_map(|parent| self.below.get(parent));
        let others = same.into_iter().chain(above).flatten();
        let others = others.filter(|other| **other != place);
        others.filter_map(|other| Some((*other, self.rules.get(*other)?))).find_map(|(at, other)| {
            let twin = covers(entry, other);
            (covers(other, entry) && !(twin && at > place)).then_some(other)
        })
    }
}

fn covers(one: &InForce, other: &InForce) -> bool {
    let (wide, narrow) = (&one.rule, &other.rule);
    wide.pattern.covers(&narrow.pattern)
        && narrow.ports.iter().all(|port| wide.ports.contains(port))
        && (wide.options.private || !narrow.options.private)
        && (wide.options.ech || !narrow.options.ech)
        && narrow.ports.iter().all(|port| wide.wire_on(*port) == narrow.wire_on(*port))
        && wide.options.by == narrow.options.by
        && one.until.unwrap_or(Duration::MAX) >= other.until.unwrap_or(Duration::MAX)
}

/// The lasting findings in a line for each kind, for `status` and the boot's log.
#[must_use]
pub fn summary(findings: &[Finding]) -> Vec<String> {
    let mut kinds: BTreeMap<Kind, Vec<&str>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.kind.is_lasting()) {
        kinds.entry(finding.kind).or_default().push(&finding.rule);
    }
    kinds.iter().map(|(kind, rules)| line(*kind, rules)).collect()
}

/// Rules named in a line.
const NAMED: usize = 3;

fn line(kind: Kind, rules: &[&str]) -> String {
    let more = if rules.len() > NAMED { ", …" } else { "" };
    let named = rules.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    format!("check --all: {kind}: {} ({named}{more})", rules.len())
}

/// All findings for a person, by kind.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut kinds: BTreeMap<Kind, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        kinds.entry(finding.kind).or_default().push(finding);
    }
    for (kind, found) in kinds {
        text.push_str(&format!("{kind}: {}\n", found.len()));
        for finding in found {
            text.push_str(&format!("  {} ({}): {}\n", finding.rule, finding.origin, finding.detail));
        }
    }
    if text.is_empty() { "nothing to say of the policy\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Seen, lint, render, summary};
    use crate::allowlist::{Ceiling, DomainName, Origin, parse_rules};
    use crate::policy::hosts::{Hosts, parse};
    use crate::policy::{InForce, LivePolicy};
    use std::time::Duration;

    fn policy(text: &str) -> LivePolicy {
        let (rules, problems) = parse_rules(text, |line| Origin::File { path: "d.conf".into(), line });
        assert!(problems.is_empty(), "{problems:?}");
        LivePolicy::new(rules, Ceiling::unbounded(), Duration::ZERO)
    }

    fn hosts() -> Hosts {
        Hosts::new(
            parse("forge.test writes pushes\n*.cdn.test user-content,shared files of anybody\n").unwrap(),
        )
    }

    fn found(text: &str, seen: Option<&Seen>) -> Vec<(Kind, String)> {
        let entries: Vec<InForce> = policy(text).entries().collect();
        lint(&entries, &hosts(), seen).into_iter().map(|finding| (finding.kind, finding.rule)).collect()
    }

    #[test]
    fn hosts_are_known_by_name_and_through_wildcards() {
        assert_eq!(
            found("forge.test\na.cdn.test\nplain.test\n", None),
            [
                (Kind::Writes, "forge.test".into()),
                (Kind::UserContent, "a.cdn.test".into()),
                (Kind::Shared, "a.cdn.test".into())
            ]
        );
        assert_eq!(found("*.test public-suffix", None).len(), 4, "all of it, and strangers");
        assert_eq!(found("stats.x.test telemetry", None), [(Kind::Telemetry, "stats.x.test".into())]);
    }

    #[test]
    fn a_port_that_another_rule_gave_to_the_gate_is_told() {
        let text = "a.test:8443 tls\nb.test:22,8443\nc.test:22\nd.test:8443 http\ne.test:8443 by=boot\n";
        assert_eq!(found(text, None), [(Kind::Gated, "b.test:22,8443".into())]);
        assert_eq!(found("a.test http\nb.test\nc.test:8443 tls by=boot\nd.test:8443", None), []);
        let entries: Vec<InForce> = policy(text).entries().collect();
        assert_eq!(
            lint(&entries, &hosts(), None).first().unwrap().detail,
            "a.test:8443 tls (d.conf:1) made port 8443 the gate's: only TLS and HTTP pass there"
        );
        assert_eq!(found("a.test ech", None), [(Kind::Hidden, "a.test ech".into())]);
    }

    #[test]
    fn what_another_rule_allows_is_covered_and_of_twins_the_second() {
        let covered = |text: &str| {
            let all = found(text, None).into_iter().filter(|(kind, _)| *kind == Kind::Covered);
            all.map(|(_, rule)| rule).collect::<Vec<_>>()
        };
        assert_eq!(covered("*.x.test\na.x.test\n"), ["a.x.test"]);
        assert_eq!(covered("a.x.test:443,80\na.x.test\n"), ["a.x.test"]);
        assert_eq!(covered("b.x.test\nb.x.test\n"), ["b.x.test"]);
        assert_eq!(covered("*.x.test\na.x.test:22\n"), [""; 0]);
        assert_eq!(covered("*.x.test\na.x.test private\n"), [""; 0]);
        assert_eq!(covered("*.x.test by=broker\na.x.test\n"), [""; 0]);
        assert_eq!(covered("*.x.test:8443\na.x.test:8443 tls\n"), [""; 0]);
        assert_eq!(covered("*.x.test\na.x.test ech\n"), [""; 0]);
        assert_eq!(covered("*.x.test tls\na.x.test\n"), ["a.x.test"], "443 is TLS anyway");
        // What ends covers nothing that lasts.
        let mut policy = policy("a.x.test");
        policy.allow(&["*.x.test".to_owned()], Some(Duration::from_secs(9))).unwrap();
        let entries: Vec<InForce> = policy.entries().collect();
        assert_eq!(lint(&entries, &Hosts::default(), None), []);
    }

    #[test]
    fn denials_of_nothing_are_idle() {
        assert_eq!(found("a.x.test\n!b.x.test\n", None), [(Kind::IdleDeny, "!b.x.test".into())]);
        assert_eq!(found("*.x.test\n!b.x.test\n", None), []);
        assert_eq!(found("b.x.test\n!*.x.test\n", None), []);
    }

    #[test]
    fn use_and_death_are_known_by_time_alone() {
        let mut seen = Seen::default();
        seen.used.insert((DomainName::parse("a.x.test").unwrap(), 443));
        seen.dead.insert("gone.test".into(), "no such name".into());
        assert_eq!(
            found("*.x.test\ngone.test\na.x.test:22\nkeys.test by=broker", Some(&seen)),
            [
                (Kind::Dead, "gone.test".into()),
                (Kind::Unused, "gone.test".into()),
                (Kind::Unused, "a.x.test:22".into())
            ]
        );
        assert_eq!(found("*.x.test\ngone.test", None), []);
    }

    #[test]
    fn the_summary_has_a_line_for_each_kind_and_the_page_one_for_each_rule() {
        let entries: Vec<InForce> =
            policy("a.cdn.test\nb.cdn.test\nc.cdn.test\nd.cdn.test\nforge.test").entries().collect();
        let findings = lint(&entries, &hosts(), None);
        assert_eq!(
            summary(&findings),
            [
                "check --all: hosts that take writes: 1 (forge.test)",
                "check --all: hosts that serve what strangers put there: 4 (a.cdn.test, b.cdn.test, c.cdn.test, …)",
                "check --all: hosts that many customers share: 4 (a.cdn.test, b.cdn.test, c.cdn.test, …)",
            ]
        );
        let page = render(&findings);
        assert!(page.contains("hosts that take writes: 1\n  forge.test (d.conf:5): pushes\n"), "{page}");
        assert_eq!(render(&[]), "nothing to say of the policy\n");
    }
}
