//! Open and held pairs as rules, for a kernel without ipset (pure): a chain that is searched from top to bottom.

use std::net::IpAddr;

use super::render::network;
use crate::firewall::backend::Edit;
use crate::firewall::book::Pair;
use crate::firewall::ruleset::{Family, HELD4, HELD6, OPEN4, OPEN6};

/// One chain with a rule a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairChain {
    pub chain: String,
    /// The set that it is.
    pub set: &'static str,
    /// Whether the pair is where a packet comes from.
    pub source: bool,
    /// What happens to a packet of a known pair.
    pub target: String,
    /// Where all others go on.
    pub rest: String,
}

impl PairChain {
    /// All of it, from what the sets hold.
    #[must_use]
    pub fn rules(&self, family: Family, content: &Edit) -> Vec<String> {
        let pairs: Vec<Pair> = if self.open() {
            content.open.iter().map(|element| (element.address, element.port)).collect()
        } else {
            content.hold.clone()
        };
        let ours = pairs.into_iter().filter(|(address, _)| Family::of(*address) == family);
        ours.map(|pair| self.rule(pair)).chain([format!("-g {}", self.rest)]).collect()
    }

    /// Whether it holds open pairs; else those to which flows may go on.
    #[must_use]
    pub fn open(&self) -> bool {
        [OPEN4, OPEN6].contains(&self.set)
    }

    /// Which family's pairs it holds.
    #[must_use]
    pub fn family(&self) -> Family {
        if [OPEN6, HELD6].contains(&self.set) { Family::V6 } else { Family::V4 }
    }

    /// The rule of one pair.
    #[must_use]
    pub fn rule(&self, (address, port): Pair) -> String {
        let (side, at) = if self.source { ("-s", "--sport") } else { ("-d", "--dport") };
        format!("{side} {} -p tcp -m tcp {at} {port} {}", network(address), self.target)
    }

    /// The pair of a rule that [`PairChain::rule`] wrote; nothing for any other.
    #[must_use]
    pub fn pair(&self, rule: &str) -> Option<Pair> {
        let words: Vec<&str> = rule.split(' ').collect();
        let address: IpAddr = words.get(1)?.split('/').next()?.parse().ok()?;
        let pair = (address, words.get(7)?.parse().ok()?);
        (self.rule(pair) == rule).then_some(pair)
    }
}

/// The names of the sets that are filled while the box lives.
pub const FILLED: [(&str, Family, bool); 4] = [
    (OPEN4, Family::V4, true),
    (OPEN6, Family::V6, true),
    (HELD4, Family::V4, false),
    (HELD6, Family::V6, false),
];

#[cfg(test)]
mod tests {
    use super::PairChain;

    #[test]
    fn a_rule_is_read_as_it_was_written_and_no_other_is() {
        let chain = PairChain {
            chain: "INNKEEPER-OUTPUT-OPEN4".into(),
            set: "open4",
            source: false,
            target: "-g INNKEEPER-USED".into(),
            rest: "INNKEEPER-OUTPUT-2".into(),
        };
        for pair in [("203.0.113.1", 443), ("2001:db8::1", 22)] {
            let pair = (pair.0.parse().unwrap(), pair.1);
            assert_eq!(chain.pair(&chain.rule(pair)), Some(pair));
        }
        for other in
            ["-g INNKEEPER-OUTPUT-2", "-d 203.0.113.0/24 -p tcp -m tcp --dport 443 -g INNKEEPER-USED", ""]
        {
            assert_eq!(chain.pair(other), None);
        }
    }
}
