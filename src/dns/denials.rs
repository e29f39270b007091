//! Refused questions on their way to PID 1: counted, bounded and metered. (pure)
//!
//! However fast the agent asks, PID 1 gets a few frames a second and the counts are right. Time is a parameter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::protocol::DnsDenial;
use crate::socket_table::Owner;

/// Different refused names that are remembered at a time; the rest share one line.
const MAX_NAMES: usize = 512;
/// Frames to PID 1: so many at once, then one for each interval.
const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(50);
/// What is reported for names beyond [`MAX_NAMES`].
const OTHERS: &str = "(other names)";

/// Seconds that look-ups may take at once, and as a share of the time after that.
const MAX_CREDIT: f64 = 0.2;
const SHARE: f64 = 0.1;

#[derive(Debug)]
pub struct Denials {
    pending: HashMap<(String, Option<u32>), DnsDenial>,
    order: std::collections::VecDeque<(String, Option<u32>)>,
    tokens: u32,
    filled: Instant,
    /// Seconds that may be spent on looking owners up; below zero after an expensive look.
    credit: f64,
    credited: Instant,
}

impl Denials {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let order = std::collections::VecDeque::new();
        Self { pending: HashMap::new(), order, tokens: BURST, filled: now, credit: MAX_CREDIT, credited: now }
    }

    /// Whether the owner of the client's socket may be looked up now. See [`Denials::attributed`].
    pub fn may_attribute(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.credited).as_secs_f64();
        self.credited = now;
        self.credit = (self.credit + passed * SHARE).min(MAX_CREDIT);
        self.credit > 0.0
    }

    /// A look-up took `spent`. All of them together take a share of the time, so that neither a flood nor a box with very
    /// many sockets makes its DNS server busy with reading tables; an ordinary refusal always has its owner.
    pub fn attributed(&mut self, spent: Duration) {
        self.credit -= spent.as_secs_f64();
    }

    /// Counts one refused question. Without an owner it joins an earlier one of the same name, if there is one.
    pub fn add(&mut self, what: &str, reason: &str, owner: Option<Owner>) {
        let uid = owner.map(|owner| owner.uid);
        let known = self.order.iter().rev().find(|(name, of)| name == what && (uid.is_none() || *of == uid));
        if let Some(denial) = known.and_then(|key| self.pending.get_mut(key)) {
            denial.count += 1;
            return;
        }
        let (what, reason, uid, inode) = if self.pending.len() < MAX_NAMES {
            (what, reason, uid, owner.map(|owner| owner.inode))
        } else {
            (OTHERS, "refused; too many different names to list", None, None)
        };
        let key = (what.to_owned(), uid);
        if let Some(denial) = self.pending.get_mut(&key) {
            denial.count += 1;
            return;
        }
        let denial =
            DnsDenial { what: what.to_owned(), reason: reason.to_owned(), uid, inode, count: 1, id: None };
        self.pending.insert(key.clone(), denial);
        self.order.push_back(key);
    }

    /// The next frame that may be sent now: oldest first.
    pub fn take(&mut self, now: Instant) -> Option<DnsDenial> {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= INTERVAL {
            self.tokens += 1;
            self.filled += INTERVAL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        if self.tokens == 0 {
            return None;
        }
        let key = self.order.pop_front()?;
        self.tokens -= 1;
        self.pending.remove(&key)
    }

    /// Puts back what could not be sent.
    pub fn put_back(&mut self, denial: DnsDenial) {
        let key = (denial.what.clone(), denial.uid);
        if let Some(newer) = self.pending.get_mut(&key) {
            newer.count += denial.count;
            return;
        }
        self.pending.insert(key.clone(), denial);
        self.order.push_front(key);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Option<Owner> = Some(Owner { uid: 1000, inode: 7 });

    #[test]
    fn the_same_name_of_the_same_uid_is_counted() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        for _ in 0..5 {
            denials.add("evil.test", "not in the allowlist", OWNER);
        }
        denials.add("evil.test", "not in the allowlist", None);
        denials.add("evil.test", "not in the allowlist", Some(Owner { uid: 0, inode: 8 }));
        let first = denials.take(now).unwrap();
        assert_eq!(
            (first.what.as_str(), first.uid, first.inode, first.count),
            ("evil.test", Some(1000), Some(7), 6)
        );
        assert_eq!(denials.take(now).unwrap().uid, Some(0));
        assert_eq!(denials.take(now), None);
    }

    #[test]
    fn frames_are_metered_and_no_count_is_lost() {
        let mut now = Instant::now();
        let mut denials = Denials::new(now);
        for i in 0..5000 {
            denials.add(&format!("n{i}.evil.test"), "not in the allowlist", OWNER);
        }
        let mut counted = 0;
        let mut at_once = 0;
        while let Some(denial) = denials.take(now) {
            counted += denial.count;
            at_once += 1;
        }
        assert_eq!(at_once, BURST);
        let mut seconds = 0;
        while !denials.is_empty() {
            now += Duration::from_secs(1);
            seconds += 1;
            let mut frames = 0;
            while let Some(denial) = denials.take(now) {
                counted += denial.count;
                frames += 1;
            }
            assert!(frames <= 20, "{frames} frames in one second");
        }
        assert_eq!(counted, 5000);
        assert!(seconds >= 20, "{seconds}");
    }

    #[test]
    fn what_could_not_be_sent_comes_again_first() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        denials.add("a.test", "r", OWNER);
        denials.add("b.test", "r", OWNER);
        let taken = denials.take(now).unwrap();
        denials.put_back(taken);
        assert_eq!(denials.take(now).unwrap().what, "a.test");
    }

    #[test]
    fn lookups_of_owners_pay_for_their_time() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        assert!(denials.may_attribute(now));
        for _ in 0..40 {
            assert!(denials.may_attribute(now), "ordinary refusals always have their owner");
            denials.attributed(Duration::from_millis(4));
        }
        denials.attributed(Duration::from_millis(140));
        assert!(!denials.may_attribute(now + Duration::from_millis(900)), "a flood has to wait");
        assert!(denials.may_attribute(now + Duration::from_millis(1100)));
    }
}
