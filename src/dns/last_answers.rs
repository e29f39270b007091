//! What PID 1 remembers of the worker's answers, so that a new worker whose upstreams are down has something to serve.
//! (pure)
//!
//! Only what was admitted is remembered, and it is admitted anew before a client sees it. Time is a parameter.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::answer::Family;
use super::cache::{Key, STALE_EXACT};
use super::protocol::LastGood;
use crate::allowlist::DomainName;

/// Names, of one family each. The largest allowlists have 10,000; more is a flood below a pattern.
const MAX_NAMES: usize = 12_288;

#[derive(Debug, Default)]
pub struct LastAnswers {
    answers: HashMap<Key, Answer>,
}

#[derive(Debug)]
struct Answer {
    addresses: Box<[IpAddr]>,
    /// When the answer's own time is over.
    ends: Instant,
}

impl LastAnswers {
    /// The name was learned and these of its addresses were admitted.
    pub fn note(&mut self, name: DomainName, admitted: &[IpAddr], ttl_s: u32, now: Instant) {
        let Some(first) = admitted.first() else { return };
        let family = if first.is_ipv4() { Family::V4 } else { Family::V6 };
        if self.answers.len() >= MAX_NAMES {
            self.make_room(now);
        }
        let ends = now + Duration::from_secs(ttl_s.into());
        self.answers.insert(Key { name, family }, Answer { addresses: admitted.into(), ends });
    }

    /// An eighth of them, so that a flood pays for it seldom: the oldest.
    fn make_room(&mut self, now: Instant) {
        self.answers.retain(|_, answer| answer.ends + STALE_EXACT > now);
        let mut ends: Vec<Instant> = self.answers.values().map(|answer| answer.ends).collect();
        ends.sort_unstable();
        if let Some(border) = ends.get(MAX_NAMES / 8).copied().filter(|_| ends.len() >= MAX_NAMES) {
            self.answers.retain(|_, answer| answer.ends > border);
        }
    }

    /// What may still stand in.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<LastGood> {
        let listed = self.answers.iter().filter(|(_, answer)| answer.ends + STALE_EXACT > now);
        listed
            .map(|(key, answer)| LastGood {
                name: key.name.clone(),
                addresses: answer.addresses.to_vec(),
                ended_s: now.saturating_duration_since(answer.ends).as_secs(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DomainName {
        DomainName::parse(text).unwrap()
    }

    #[test]
    fn the_last_admitted_addresses_of_each_family_are_kept() {
        let (mut known, now) = (LastAnswers::default(), Instant::now());
        known.note(name("a.test"), &[[192, 0, 2, 1].into()], 60, now);
        known.note(name("a.test"), &[[192, 0, 2, 2].into()], 60, now);
        known.note(name("a.test"), &["2001:db8::1".parse().unwrap()], 60, now);
        known.note(name("a.test"), &[], 60, now);
        let mut listed = known.list(now + Duration::from_secs(90));
        listed.sort_by_key(|good| good.addresses[0]);
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[0].addresses[0], listed[0].ended_s), ([192, 0, 2, 2].into(), 30));
        assert!(known.list(now + STALE_EXACT + Duration::from_secs(61)).is_empty());
    }

    #[test]
    fn a_flood_of_names_stays_bounded_and_the_newest_stay() {
        let (mut known, now) = (LastAnswers::default(), Instant::now());
        for i in 0..20_000_u64 {
            let then = now + Duration::from_millis(i);
            known.note(name(&format!("n{i}.test")), &[[192, 0, 2, 1].into()], 60, then);
        }
        let listed = known.list(now);
        assert!((MAX_NAMES / 2..=MAX_NAMES).contains(&listed.len()), "{}", listed.len());
        assert!(listed.iter().any(|good| good.name.as_str() == "n19999.test"));
    }
}
