//! What `iptables -v -S` says of a table (pure), and from it the text that puts our rules in the place of what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::pairs::PairChain;
use super::render::{Body, PREFIX, SET_PREFIX};
use crate::firewall::backend::Part;
use crate::firewall::book::Pair;
use crate::firewall::ruleset::Family;

/// One table as it is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub table: String,
    /// Chains that somebody made, ours and others'.
    chains: BTreeSet<String>,
    rules: BTreeMap<String, Vec<Listed>>,
}

/// One rule, and how many packets met it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    text: String,
    packets: u64,
}

impl Listing {
    #[must_use]
    pub fn read(table: &str, text: &str) -> Self {
        let mut listing = Self { table: table.to_owned(), ..Self::default() };
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("-N ") {
                listing.chains.insert(name.trim().to_owned());
            } else if let Some((chain, rule)) =
                line.strip_prefix("-A ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
            {
                listing.rules.entry(chain.to_owned()).or_default().push(Listed::read(rule));
            }
        }
        listing
    }

    /// The rules of a chain, without their counters.
    fn texts(&self, chain: &str) -> Vec<&str> {
        self.rules.get(chain).into_iter().flatten().map(|rule| rule.text.as_str()).collect()
    }

    /// Whether anything of ours is there.
    #[must_use]
    pub fn ours(&self) -> bool {
        self.chains.iter().any(|chain| chain.starts_with(PREFIX)) || !self.jumps().is_empty()
    }

    /// The rules of others' chains that lead to ours: the chain, the rule's place, and the rule.
    fn jumps(&self) -> Vec<(&str, usize, &str)> {
        let mut found = Vec::new();
        for (chain, rules) in &self.rules {
            if chain.starts_with(PREFIX) {
                continue;
            }
            for (place, rule) in rules.iter().enumerate() {
                if leads_to_us(&rule.text) {
                    found.push((chain.as_str(), place.saturating_add(1), rule.text.as_str()));
                }
            }
        }
        found
    }

    /// How many packets our chains refused.
    #[must_use]
    pub fn denied(&self) -> u64 {
        let mut sum = 0_u64;
        for (chain, rules) in &self.rules {
            for rule in rules {
                let counts = match chain.strip_prefix(PREFIX) {
                    // The one rule there that only counts.
                    Some("DENY") => !rule.text.contains("-j ") && !rule.text.contains("-g "),
                    Some("POSTROUTING") => rule.text.ends_with("-j DROP"),
                    Some(_) | None => false,
                };
                if counts {
                    sum = sum.saturating_add(rule.packets);
                }
            }
        }
        sum
    }

    /// What is ours here, part by part; pairs are no part of it.
    #[must_use]
    pub(in crate::firewall) fn parts(&self, family: Family, pairs: &[PairChain]) -> Vec<Part> {
        let mut parts = Vec::new();
        for (chain, place, rule) in self.jumps() {
            parts.push(Part {
                name: format!("the jump from {chain} ({} of {family})", self.table),
                content: vec![place.to_string().into_bytes(), rule.as_bytes().to_vec()],
            });
        }
        for chain in self.chains.iter().filter(|chain| chain.starts_with(PREFIX)) {
            parts.push(Part { name: format!("chain {chain} ({family})"), content: Vec::new() });
            let filled = pairs.iter().find(|known| known.chain == **chain);
            let rules = self.texts(chain).into_iter();
            let rules = rules.filter(|rule| filled.and_then(|known| known.pair(rule)).is_none());
            for (place, rule) in (1..).zip(rules) {
                parts.push(Part {
                    name: format!("rule {place} of chain {chain} ({family})"),
                    content: vec![without_number(rule).into_bytes()],
                });
            }
        }
        parts
    }

    /// The pairs in one of our chains.
    #[must_use]
    pub fn pairs(&self, known: &PairChain) -> Vec<Pair> {
        self.texts(&known.chain).into_iter().filter_map(|rule| known.pair(rule)).collect()
    }

    /// How what is there differs from what should be there.
    pub fn check(&self, body: &Body) -> Result<(), String> {
        for (name, rules) in &body.chains {
            let found = self.texts(name);
            let ends = |rule: &str| rule.rsplit(' ').next().map(str::to_owned);
            let same = found.len() == rules.len()
                && found.iter().zip(rules).all(|(found, rule)| ends(found) == ends(rule));
            if !same {
                let (found, wanted) = (found.len(), rules.len());
                return Err(format!("chain {name} of table {} has {found} rules of {wanted}", self.table));
            }
        }
        for (from, to) in &body.jumps {
            if self.texts(from).first() != Some(&format!("-j {to}").as_str()) {
                return Err(format!("{from} of table {} does not begin with the jump to {to}", self.table));
            }
        }
        Ok(())
    }
}

/// The number in the names of sets differs from load to load.
fn without_number(rule: &str) -> String {
    rule.split(' ')
        .map(|word| match word.strip_prefix(SET_PREFIX).and_then(|rest| rest.split_once('.')) {
            Some((_, set)) => format!("{SET_PREFIX}{set}"),
            None => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn leads_to_us(rule: &str) -> bool {
    let words: Vec<&str> = rule.split(' ').collect();
    words.windows(2).any(|pair| matches!(pair, ["-j" | "-g", to] if to.starts_with(PREFIX)))
}

impl Listed {
    /// The counters stand before the target, as `-c PACKETS OCTETS`.
    fn read(rule: &str) -> Self {
        let words: Vec<&str> = rule.split(' ').collect();
        let at = words.iter().enumerate().rposition(|(at, word)| {
            let number = |next: usize| words.get(next).is_some_and(|word| word.parse::<u64>().is_ok());
            *word == "-c" && number(at.saturating_add(1)) && number(at.saturating_add(2))
        });
        // iptables escapes the apostrophe, which needs no escape.
        let text = |words: &[&str]| words.join(" ").replace("\\'", "'");
        let Some(at) = at else { return Self { text: text(&words), packets: 0 } };
        let packets = words.get(at.saturating_add(1)).and_then(|word| word.parse().ok()).unwrap_or_default();
        let before = words.get(..at).unwrap_or_default();
        let after = words.get(at.saturating_add(3)..).unwrap_or_default();
        Self { text: text(&[before, after].concat()), packets }
    }
}

/// The text for `iptables-restore --noflush` that brings in the bodies, each table in one commit, and then takes away
/// what else of ours is there. Nothing of others' is named in it.
#[must_use]
pub fn compose(bodies: &[Body], present: &[Listing]) -> String {
    let empty = Listing::default();
    let mut text = String::new();
    for body in bodies {
        let listing = present.iter().find(|listing| listing.table == body.table).unwrap_or(&empty);
        table(&mut text, body, listing);
    }
    for listing in present {
        let left = listing.ours() && !bodies.iter().any(|body| body.table == listing.table);
        if left {
            let none = Body { table: listing.table.clone(), chains: Vec::new(), jumps: Vec::new() };
            table(&mut text, &none, listing);
        }
    }
    text
}

/// `write!` to a string can't fail.
fn table(text: &mut String, body: &Body, listing: &Listing) {
    let mut line = |words: std::fmt::Arguments<'_>| {
        writeln!(text, "{words}").ok();
    };
    line(format_args!("*{}", body.table));
    let wanted: BTreeSet<&str> = body.chains.iter().map(|(name, _)| name.as_str()).collect();
    let left: Vec<&String> = listing
        .chains
        .iter()
        .filter(|chain| chain.starts_with(PREFIX) && !wanted.contains(chain.as_str()))
        .collect();
    // A chain that is there is emptied by this, also with --noflush.
    for name in wanted.iter().copied().chain(left.iter().map(|name| name.as_str())) {
        line(format_args!(":{name} - [0:0]"));
    }
    for (name, rules) in &body.chains {
        for rule in rules {
            line(format_args!("-A {name} {rule}"));
        }
    }
    let jumps = listing.jumps();
    let right = |from: &str, to: &str| {
        let found: Vec<_> = jumps.iter().filter(|(chain, _, _)| *chain == from).collect();
        matches!(found[..], [(_, 1, rule)] if *rule == format!("-j {to}"))
    };
    let kept: BTreeSet<&str> =
        body.jumps.iter().filter(|(from, to)| right(from, to)).map(|(from, _)| from.as_str()).collect();
    // By what they say and not by their place, which somebody else may change meanwhile.
    for (from, _, rule) in jumps.iter().filter(|(from, _, _)| !kept.contains(from)) {
        line(format_args!("-D {from} {rule}"));
    }
    for (from, to) in body.jumps.iter().filter(|(from, _)| !kept.contains(from.as_str())) {
        line(format_args!("-I {from} 1 -j {to}"));
    }
    for name in left {
        line(format_args!("-X {name}"));
    }
    line(format_args!("COMMIT"));
}

#[cfg(test)]
mod tests {
    use super::{Listing, compose};
    use crate::firewall::iptables::render::Body;

    const OTHERS: &str =
        "-P OUTPUT ACCEPT -c 5 300\n-N DOCKER\n-A OUTPUT -d 127.0.0.11/32 -c 1 2 -j DOCKER\n";

    fn body() -> Body {
        Body {
            table: "filter".into(),
            chains: vec![("INNKEEPER-OUTPUT".into(), vec!["-j DROP".into()])],
            jumps: vec![("OUTPUT".into(), "INNKEEPER-OUTPUT".into())],
        }
    }

    #[test]
    fn f27_nothing_of_others_is_named() {
        let text = compose(&[body()], &[Listing::read("filter", OTHERS)]);
        assert_eq!(
            text,
            "*filter\n:INNKEEPER-OUTPUT - [0:0]\n-A INNKEEPER-OUTPUT -j DROP\n-I OUTPUT 1 -j INNKEEPER-OUTPUT\nCOMMIT\n"
        );
    }

    #[test]
    fn f26_what_an_earlier_life_left_is_taken_over() {
        let left = format!(
            "{OTHERS}-N INNKEEPER-OUTPUT\n-N INNKEEPER-OLD\n-A OUTPUT -c 0 0 -j INNKEEPER-OUTPUT\n\
             -A INNKEEPER-OUTPUT -c 7 8 -g INNKEEPER-OLD\n"
        );
        let text = compose(&[body()], &[Listing::read("filter", &left)]);
        assert_eq!(
            text,
            "*filter\n:INNKEEPER-OUTPUT - [0:0]\n:INNKEEPER-OLD - [0:0]\n-A INNKEEPER-OUTPUT -j DROP\n\
             -D OUTPUT -j INNKEEPER-OUTPUT\n-I OUTPUT 1 -j INNKEEPER-OUTPUT\n-X INNKEEPER-OLD\nCOMMIT\n"
        );
        let mut first = left.replace("-A OUTPUT -d", "-A FORWARD -d");
        let text = compose(&[body()], &[Listing::read("filter", &first)]);
        assert!(!text.contains("-I OUTPUT") && !text.contains("-D OUTPUT"), "the jump stays: {text}");
        first = compose(&[], &[Listing::read("nat", &left)]);
        assert!(first.starts_with("*nat\n") && first.contains("-X INNKEEPER-OLD"), "{first}");
        assert_eq!(compose(&[], &[Listing::read("nat", OTHERS)]), "");
    }
}
