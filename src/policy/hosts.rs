//! What is known of public hosts, from `network/hosts.conf`: who takes writes, who serves what strangers put there.
//! Knowledge alone: it allows and denies nothing.  (pure)

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::allowlist::{DomainName, DomainPattern, Origin, parse_rule};

const FILE: &str = include_str!("../../network/hosts.conf");

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trait {
    Writes,
    UserContent,
    Shared,
    Telemetry,
}

impl Trait {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "writes" => Some(Self::Writes),
            "user-content" => Some(Self::UserContent),
            "shared" => Some(Self::Shared),
            "telemetry" => Some(Self::Telemetry),
            _ => None,
        }
    }
}

/// What is known of the names of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub pattern: DomainPattern,
    pub traits: Vec<Trait>,
    /// What is written there, or whose it is.
    pub what: String,
}

/// Hosts, found by the name that their pattern is made of: a policy may have ten thousand rules.
#[derive(Debug, Default)]
pub struct Hosts {
    list: Vec<Host>,
    exact: HashMap<DomainName, Vec<usize>>,
    below: HashMap<DomainName, Vec<usize>>,
}

impl Hosts {
    #[must_use]
    pub fn new(list: Vec<Host>) -> Self {
        let mut hosts = Self { list, ..Self::default() };
        for (place, host) in hosts.list.iter().enumerate() {
            let (map, name) = match &host.pattern {
                DomainPattern::Exact(name) => (&mut hosts.exact, name),
                DomainPattern::Below(name) => (&mut hosts.below, name),
            };
            map.entry(name.clone()).or_default().push(place);
        }
        hosts
    }

    /// Those of which a rule for these names reaches some.
    #[must_use]
    pub fn reached_by(&self, pattern: &DomainPattern) -> Vec<&Host> {
        let name = match pattern {
            DomainPattern::Exact(name) => name,
            DomainPattern::Below(_) => {
                let meets = |host: &&Host| host.pattern.covers(pattern) || pattern.covers(&host.pattern);
                return self.list.iter().filter(meets).collect();
            }
        };
        let above = name.parents().filter_map(|parent| self.below.get(parent));
        let places = self.exact.get(name).into_iter().chain(above).flatten();
        places.filter_map(|place| self.list.get(*place)).collect()
    }
}

/// A line that is not understood, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {0} is no NAME KIND[,KIND…] TEXT")]
pub struct BadLine(pub usize);

/// Reads lines of `NAME KIND[,KIND…] TEXT`.
pub fn parse(text: &str) -> Result<Vec<Host>, BadLine> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| host(line).ok_or(BadLine(number))).collect()
}

fn host(line: &str) -> Option<Host> {
    let (name, rest) = line.split_once(char::is_whitespace)?;
    let (kinds, what) = rest.trim_start().split_once(char::is_whitespace)?;
    let rule = parse_rule(name, Origin::Operator).ok().filter(|rule| !rule.deny && !name.contains(':'))?;
    let traits = kinds.split(',').map(Trait::parse).collect::<Option<Vec<_>>>()?;
    Some(Host { pattern: rule.pattern, traits, what: what.trim().to_owned() })
}

/// What this version knows.
#[must_use]
pub fn known() -> Hosts {
    Hosts::new(parse(FILE).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{BadLine, FILE, Hosts, Trait, parse};
    use crate::allowlist::{Origin, parse_rule};

    #[test]
    fn the_file_of_this_version_is_understood() {
        assert_eq!(parse(FILE).map(|hosts| hosts.len() > 40), Ok(true));
        let mut names: Vec<String> =
            parse(FILE).unwrap().iter().map(|host| host.pattern.to_string()).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "a name is there twice");
    }

    #[test]
    fn bad_lines_are_told_by_number() {
        for text in
            ["x.test", "x.test writes", "x.test reads all", "x.test:443 writes a", "10.0.0.1 writes a"]
        {
            assert_eq!(parse(&format!("# a comment\n\n{text}\n")), Err(BadLine(3)), "{text}");
        }
        let hosts = parse("*.x.test  writes,shared   what it is\n").unwrap();
        assert_eq!(hosts[0].traits, [Trait::Writes, Trait::Shared]);
        assert_eq!(hosts[0].what, "what it is");
    }

    #[test]
    fn rules_reach_hosts_by_name_and_by_wildcard() {
        let hosts = Hosts::new(parse("*.x.test writes a\nx.test shared b\n").unwrap());
        let reached = |rule: &str| {
            let rule = parse_rule(rule, Origin::Operator).unwrap();
            hosts.reached_by(&rule.pattern).iter().map(|host| host.what.clone()).collect::<String>()
        };
        assert_eq!(reached("a.x.test"), "a");
        assert_eq!(reached("x.test"), "b");
        assert_eq!(reached("*.test"), "ab");
        assert_eq!(reached("*.b.x.test"), "a");
        assert_eq!(reached("y.test"), "");
    }
}
