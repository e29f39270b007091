//! What was learned and for how long: answers until their TTL ends, last good addresses for RFC 8767. (pure)
//!
//! Bounded: names of patterns compete by age of use (LRU), exact names have a place of their own, so that no flood of
//! names below a pattern pushes them out. Time is a parameter.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Family;
use crate::allowlist::DomainName;

/// How long the last good addresses of an exact name may stand in when upstreams fail.
pub const STALE_EXACT: Duration = Duration::from_secs(24 * 3600);
/// The same for a name that only a pattern matches.
pub const STALE_PATTERN: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub name: DomainName,
    pub family: Family,
}

/// What is answered without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Open in the kernel, never empty.
    Addresses { addresses: Arc<[IpAddr]>, stale: bool },
    /// The name has no address of this family.
    Empty,
    /// The name does not exist.
    NxDomain,
    /// The name has addresses, but PID 1 admitted none of them.
    NoneAdmitted,
    /// Upstreams failed a moment ago (RFC 9520: failures are cached too, for a second).
    Failed(Box<Failure>),
}

/// A failure as the client is told: an Extended DNS Error (RFC 8914).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u16,
    pub text: String,
}

#[derive(Debug)]
struct Slot {
    known: Known,
    expires: Instant,
    good: Option<Good>,
    /// Place in the order of use; none for exact names, which aren't evicted.
    used: Option<u64>,
}

#[derive(Debug, Clone)]
struct Good {
    /// The same as those that are answered, mostly.
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

#[derive(Debug)]
pub struct Cache {
    slots: HashMap<Key, Slot>,
    order: BTreeMap<u64, Key>,
    clock: u64,
    capacity: usize,
}

impl Cache {
    /// `capacity`: of names that only patterns match.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { slots: HashMap::new(), order: BTreeMap::new(), clock: 0, capacity }
    }

    /// What is known and for how many whole seconds still; none when less than one is left.
    pub fn get(&mut self, key: &Key, now: Instant) -> Option<(Known, u32)> {
        let slot = self.slots.get_mut(key)?;
        let left = slot.expires.saturating_duration_since(now).as_secs();
        if left == 0 {
            return None;
        }
        let known = slot.known.clone();
        if let Some(used) = slot.used.as_mut() {
            self.order.remove(used);
            self.clock += 1;
            *used = self.clock;
            self.order.insert(self.clock, key.clone());
        }
        Some((known, u32::try_from(left).unwrap_or(u32::MAX)))
    }

    /// The addresses of the last good answer, if it is not too old to stand in.
    #[must_use]
    pub fn last_good(&self, key: &Key, now: Instant) -> Option<Arc<[IpAddr]>> {
        let good = self.slots.get(key)?.good.as_ref()?;
        (good.until > now).then(|| good.addresses.clone())
    }

    /// Keeps `known` for `ttl`. Fresh addresses replace the last good ones; anything else leaves those alone.
    pub fn put(&mut self, key: Key, known: Known, ttl: Duration, exact: bool, now: Instant) {
        let old = self.remove(&key);
        let good = match &known {
            Known::Addresses { addresses, stale: false } => {
                let until = now + ttl + if exact { STALE_EXACT } else { STALE_PATTERN };
                Some(Good { addresses: addresses.clone(), until })
            }
            Known::Addresses { stale: true, .. }
            | Known::Empty
            | Known::NxDomain
            | Known::NoneAdmitted
            | Known::Failed(_) => old.and_then(|slot| slot.good),
        };
        let used = (!exact).then(|| {
            self.clock += 1;
            self.order.insert(self.clock, key.clone());
            self.clock
        });
        self.slots.insert(key, Slot { known, expires: now + ttl, good, used });
        while self.order.len() > self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.slots.remove(&oldest);
        }
    }

    /// What a former worker knew: not to be answered as it is, but to stand in when upstreams fail. `ended`: how long ago
    /// the answer's own time was over.
    pub fn restore(&mut self, key: &Key, addresses: Vec<IpAddr>, ended: Duration, exact: bool, now: Instant) {
        let longest = if exact { STALE_EXACT } else { STALE_PATTERN };
        let Some(left) = longest.checked_sub(ended) else { return };
        self.put(key.clone(), Known::Empty, Duration::ZERO, exact, now);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.good = Some(Good { addresses: addresses.into(), until: now + left });
        }
    }

    /// Nothing of this name is answered any more without asking again.
    pub fn expire(&mut self, name: &DomainName, now: Instant) {
        for family in [Family::V4, Family::V6] {
            if let Some(slot) = self.slots.get_mut(&Key { name: name.clone(), family }) {
                slot.expires = now;
            }
        }
    }

    /// The same for every name.
    pub fn expire_all(&mut self, now: Instant) {
        self.slots.values_mut().for_each(|slot| slot.expires = now);
    }

    /// Forgets every name that `keep` doesn't want.
    pub fn retain(&mut self, keep: impl Fn(&DomainName) -> bool) {
        self.slots.retain(|key, _| keep(&key.name));
        self.order.retain(|_, key| self.slots.contains_key(key));
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn remove(&mut self, key: &Key) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        if let Some(used) = slot.used {
            self.order.remove(&used);
        }
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn key(name: &str) -> Key {
        Key { name: DomainName::parse(name).unwrap(), family: Family::V4 }
    }

    fn fresh(last: u8) -> Known {
        Known::Addresses { addresses: [[192, 0, 2, last].into()].into(), stale: false }
    }

    #[test]
    fn an_answer_lives_as_long_as_its_ttl() {
        let start = Instant::now();
        let mut cache = Cache::new(4);
        cache.put(key("ok.test"), fresh(1), TTL, true, start);
        assert_eq!(cache.get(&key("ok.test"), start), Some((fresh(1), 60)));
        assert_eq!(cache.get(&key("ok.test"), start + Duration::from_millis(1500)), Some((fresh(1), 58)));
        assert_eq!(cache.get(&key("ok.test"), start + Duration::from_millis(59_500)), None);
        let v6 = Key { family: Family::V6, ..key("ok.test") };
        assert_eq!(cache.get(&v6, start), None);
    }

    #[test]
    fn good_addresses_outlive_failures_but_not_their_time() {
        let start = Instant::now();
        let mut cache = Cache::new(4);
        cache.put(key("ok.test"), fresh(1), TTL, true, start);
        let later = start + Duration::from_secs(3600);
        cache.put(key("ok.test"), Known::NxDomain, TTL, true, later);
        cache.put(
            key("ok.test"),
            Known::Failed(Failure { code: 22, text: "down".into() }.into()),
            TTL,
            true,
            later,
        );
        let good: Arc<[IpAddr]> = [[192, 0, 2, 1].into()].into();
        assert_eq!(cache.last_good(&key("ok.test"), later), Some(good.clone()));
        let stale = Known::Addresses { addresses: good.clone(), stale: true };
        cache.put(key("ok.test"), stale, TTL, true, later);
        assert_eq!(cache.last_good(&key("ok.test"), start + STALE_EXACT), Some(good));
        assert_eq!(cache.last_good(&key("ok.test"), start + TTL + STALE_EXACT), None);
    }

    #[test]
    fn names_of_patterns_are_evicted_by_age_of_use_and_exact_names_never() {
        let now = Instant::now();
        let mut cache = Cache::new(2);
        cache.put(key("exact.test"), fresh(9), TTL, true, now);
        cache.put(key("a.test"), fresh(1), TTL, false, now);
        cache.put(key("b.test"), fresh(2), TTL, false, now);
        assert!(cache.get(&key("a.test"), now).is_some());
        cache.put(key("c.test"), fresh(3), TTL, false, now);
        assert!(cache.get(&key("b.test"), now).is_none());
        assert!(cache.get(&key("a.test"), now).is_some());
        assert!(cache.get(&key("exact.test"), now).is_some());
        for i in 0..1000 {
            cache.put(key(&format!("n{i}.test")), fresh(1), TTL, false, now);
        }
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn what_a_former_worker_knew_stands_in_for_the_rest_of_its_time() {
        let now = Instant::now();
        let mut cache = Cache::new(2);
        let good: Vec<IpAddr> = vec![[192, 0, 2, 1].into()];
        let hour = Duration::from_secs(3600);
        cache.restore(&key("a.test"), good.clone(), hour, true, now);
        cache.restore(&key("b.test"), good.clone(), hour * 2, false, now);
        assert_eq!(cache.get(&key("a.test"), now), None);
        assert_eq!(cache.last_good(&key("a.test"), now), Some(good.into()));
        assert_eq!(cache.last_good(&key("a.test"), now + hour * 23), None);
        assert_eq!(cache.last_good(&key("b.test"), now), None);
    }

    #[test]
    fn what_expires_is_asked_for_again_and_may_still_stand_in() {
        let now = Instant::now();
        let mut cache = Cache::new(2);
        for name in ["a.test", "b.test"] {
            cache.put(key(name), fresh(1), TTL, true, now);
        }
        cache.expire(&DomainName::parse("a.test").unwrap(), now);
        assert!(cache.get(&key("a.test"), now).is_none());
        assert!(cache.get(&key("b.test"), now).is_some());
        cache.expire_all(now);
        assert!(cache.get(&key("b.test"), now).is_none());
        assert!(cache.last_good(&key("b.test"), now).is_some());
    }

    #[test]
    fn revoked_names_are_forgotten() {
        let now = Instant::now();
        let mut cache = Cache::new(2);
        cache.put(key("a.test"), fresh(1), TTL, false, now);
        cache.put(key("b.test"), fresh(2), TTL, true, now);
        cache.retain(|name| name.as_str() == "b.test");
        assert!(cache.get(&key("a.test"), now).is_none());
        assert!(cache.last_good(&key("a.test"), now).is_none());
        assert!(cache.get(&key("b.test"), now).is_some());
    }
}
