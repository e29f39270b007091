//! Keeps the exact names fresh: all of them at once after a policy came, then each before its TTL ends.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::answer::Family;
use super::cache::{Key, Known};
use super::link::Link;
use super::lookup::{Lookups, Outcome};
use super::protocol::FromWorker;
use crate::allowlist::DomainName;

/// Names that are refreshed at a time, where descriptors allow: 2,000 names are four rounds.
const AT_ONCE: usize = 512;
const AT_LEAST: usize = 16;
/// Descriptors that a name may take while it is asked for: both families, two upstreams, three sockets for what gets
/// lost and one for TCP; and as much again for clients' questions.
const DESCRIPTORS: u64 = 32;
/// Names with a shorter TTL aren't refreshed more often: PID 1's grace bridges what is left, and a client that asks
/// gets a fresh answer anyway.
const SHORTEST: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(2);

/// When each exact name is due. (pure: time and chance are parameters)
#[derive(Debug, Default)]
pub struct Schedule {
    due: BTreeSet<(Instant, DomainName)>,
    entries: HashMap<DomainName, Entry>,
    unprimed: HashSet<DomainName>,
}

#[derive(Debug, Default)]
struct Entry {
    due: Option<Instant>,
    failures: u32,
    /// What is on its way was asked before time was lost.
    again: bool,
}

impl Schedule {
    /// The names of a new policy. Those that are not `fresh` are due now, and the policy is primed after them.
    pub fn replace(
        &mut self,
        names: &HashSet<DomainName>,
        fresh: impl Fn(&DomainName) -> bool,
        now: Instant,
    ) {
        let gone: Vec<DomainName> =
            self.entries.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.unschedule(&name);
            self.entries.remove(&name);
        }
        self.unprimed.clear();
        for name in names {
            let is_scheduled = self.entries.get(name).is_some_and(|entry| entry.due.is_some());
            if !(is_scheduled && fresh(name)) {
                self.schedule(name, now);
                self.unprimed.insert(name.clone());
            }
        }
    }

    #[must_use]
    pub fn is_primed(&self) -> bool {
        self.unprimed.is_empty()
    }

    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A name whose time has come. It is not due again before it is reported done.
    pub fn take_due(&mut self, now: Instant) -> Option<DomainName> {
        if self.next_due()? > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.due = None;
        }
        Some(name)
    }

    /// The name was asked for. `valid`: how long its answer holds, none if there was none. `chance` is in 0..=255.
    pub fn done(
        &mut self,
        name: &DomainName,
        valid: Option<Duration>,
        longest: Duration,
        chance: u8,
        now: Instant,
    ) {
        self.unprimed.remove(name);
        if self.unprimed.is_empty() {
            // Ten thousand names' room, for nothing.
            self.unprimed.shrink_to_fit();
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.failures = if valid.is_some() { 0 } else { entry.failures.saturating_add(1) };
        let wait = match valid {
            Some(valid) => valid.max(SHORTEST),
            None => FIRST_RETRY * 2u32.saturating_pow(entry.failures.saturating_sub(1).min(16)),
        };
        // 75 to 95 % of it: before the end, and not all names together.
        let share = 75 + u32::from(chance) * 20 / 255;
        let wait = wait.min(longest) * share / 100;
        let wait = if std::mem::take(&mut entry.again) { Duration::ZERO } else { wait };
        // A new policy may have made it due already.
        if entry.due.is_none() {
            self.schedule(name, now + wait);
        }
    }

    /// Every name is due now; those that are being asked for are due when they are done.
    pub fn all_due(&mut self, now: Instant) {
        self.entries.values_mut().filter(|entry| entry.due.is_none()).for_each(|entry| entry.again = true);
        let waiting = std::mem::take(&mut self.due);
        for (_, name) in waiting {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.due = Some(now);
            }
            self.due.insert((now, name));
        }
    }

    fn schedule(&mut self, name: &DomainName, due: Instant) {
        self.unschedule(name);
        self.entries.entry(name.clone()).or_default().due = Some(due);
        self.due.insert((due, name.clone()));
    }

    fn unschedule(&mut self, name: &DomainName) {
        if let Some(due) = self.entries.get_mut(name).and_then(|entry| entry.due.take()) {
            self.due.remove(&(due, name.clone()));
        }
    }
}

/// What keeps the names fresh.
#[derive(Debug)]
pub struct Fresh {
    pub lookups: Arc<Lookups>,
    pub link: Arc<Link>,
    /// No name waits longer for its next look.
    pub longest: Duration,
    /// Whether names may have IPv6 addresses here; a network may come late.
    pub ipv4: bool,
    pub ipv6: Arc<AtomicBool>,
    pub at_once: usize,
}

/// How many names may be asked for at a time with so many descriptors.
#[must_use]
pub fn at_once(descriptors: u64) -> usize {
    usize::try_from(descriptors / DESCRIPTORS).map_or(AT_ONCE, |names| names.clamp(AT_LEAST, AT_ONCE))
}

impl Fresh {
    /// Runs the schedule for ever. `policies` changes with every policy that is in force; `all_due` is told when time was
    /// lost.
    pub async fn keep(self, mut policies: watch::Receiver<u64>, all_due: Arc<Notify>) {
        let chances = RandomState::new();
        let mut schedule = Schedule::default();
        let mut running = JoinSet::new();
        let mut announced = None;
        policies.mark_changed();
        loop {
            while running.len() < self.at_once
                && let Some(name) = schedule.take_due(Instant::now())
            {
                running.spawn(refresh(self.lookups.clone(), self.link.clone(), name, self.families()));
            }
            let generation = *policies.borrow();
            if schedule.is_primed()
                && announced != Some(generation)
                && !policies.has_changed().unwrap_or(true)
            {
                self.link.tell(FromWorker::Primed { generation }).await;
                announced = Some(generation);
            }
            let next = schedule.next_due().filter(|_| running.len() < self.at_once);
            tokio::select! {
                changed = policies.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.replace(&mut schedule);
                }
                () = all_due.notified() => schedule.all_due(Instant::now()),
                Some(Ok(done)) = running.join_next() => {
                    let Done { generation, name, valid } = done;
                    let chance = chances.hash_one((&name, Instant::now())).to_le_bytes()[0];
                    if generation == *policies.borrow() {
                        schedule.done(&name, valid, self.longest, chance, Instant::now());
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            }
        }
    }

    fn families(&self) -> &'static [Family] {
        match (self.ipv4, self.ipv6.load(Ordering::Relaxed)) {
            (true, true) => &[Family::V4, Family::V6],
            (true, false) => &[Family::V4],
            (false, true) => &[Family::V6],
            (false, false) => &[],
        }
    }

    fn replace(&self, schedule: &mut Schedule) {
        let rules = self.lookups.rules();
        let is_fresh = |name: &DomainName| {
            let mut families = self.families().iter();
            families.all(|family| self.lookups.is_fresh(&Key { name: name.clone(), family: *family }))
        };
        schedule.replace(rules.exact_names(), is_fresh, Instant::now());
    }
}

struct Done {
    generation: u64,
    name: DomainName,
    valid: Option<Duration>,
}

async fn refresh(
    lookups: Arc<Lookups>,
    link: Arc<Link>,
    name: DomainName,
    families: &'static [Family],
) -> Done {
    let generation = lookups.rules().generation;
    let mut asked = JoinSet::new();
    for family in families {
        let (lookups, key) = (lookups.clone(), Key { name: name.clone(), family: *family });
        asked.spawn(async move { lookups.refresh(key).await });
    }
    let mut valid: Option<u32> = None;
    let mut cause = None;
    for Outcome { known, ttl_s } in asked.join_all().await {
        match known {
            Known::Addresses { stale: false, .. } => {
                valid = Some(valid.map_or(ttl_s, |least| least.min(ttl_s)));
            }
            Known::Addresses { stale: true, .. } => {
                cause = Some("the upstreams fail; the last good addresses stay in use".to_owned());
            }
            Known::Empty => cause = cause.or_else(|| Some("the name has no addresses".to_owned())),
            Known::NxDomain => cause = cause.or_else(|| Some("the name does not exist".to_owned())),
            Known::NoneAdmitted => cause = Some("the address policy admits none of its addresses".to_owned()),
            Known::Failed(failure) => cause = Some(failure.text),
        }
    }
    if let (None, Some(cause)) = (valid, cause) {
        link.tell(FromWorker::Failed { name: name.clone(), cause }).await;
    }
    Done { generation, name, valid: valid.map(|ttl_s| Duration::from_secs(ttl_s.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(300);

    fn names(list: &[&str]) -> HashSet<DomainName> {
        list.iter().map(|name| DomainName::parse(name).unwrap()).collect()
    }

    fn drain(schedule: &mut Schedule, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| schedule.take_due(now)).map(String::from).collect()
    }

    #[test]
    fn every_name_is_asked_once_and_then_the_policy_is_primed() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.replace(&names(&["a.test", "b.test"]), |_| false, now);
        assert_eq!(drain(&mut schedule, now), ["a.test", "b.test"]);
        assert!(!schedule.is_primed());
        let [a, b] = ["a.test", "b.test"].map(|name| DomainName::parse(name).unwrap());
        schedule.done(&a, Some(Duration::from_secs(60)), LONGEST, 255, now);
        assert!(!schedule.is_primed());
        schedule.done(&b, None, LONGEST, 0, now);
        assert!(schedule.is_primed());
        assert_eq!(drain(&mut schedule, now + Duration::from_secs(2)), ["b.test"]);
        assert_eq!(drain(&mut schedule, now + Duration::from_secs(57)), ["a.test"]);
    }

    #[test]
    fn waits_are_bounded_both_ways() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.replace(&names(&["a.test"]), |_| false, now);
        let a = DomainName::parse("a.test").unwrap();
        for (valid, chance, after) in [(0, 0, 22_500), (86_400, 255, 285_000)] {
            schedule.take_due(now + LONGEST);
            schedule.done(&a, Some(Duration::from_secs(valid)), LONGEST, chance, now);
            assert_eq!(schedule.next_due(), Some(now + Duration::from_millis(after)));
        }
        for _ in 0..40 {
            schedule.take_due(now + LONGEST);
            schedule.done(&a, None, LONGEST, 255, now);
        }
        assert_eq!(schedule.next_due(), Some(now + Duration::from_secs(285)));
    }

    #[test]
    fn a_new_policy_asks_for_what_is_new() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.replace(&names(&["a.test", "b.test"]), |_| false, now);
        for name in ["a.test", "b.test"] {
            let name = schedule.take_due(now).filter(|taken| taken.as_str() == name).unwrap();
            schedule.done(&name, Some(LONGEST), LONGEST, 0, now);
        }
        schedule.replace(&names(&["a.test", "c.test"]), |_| true, now);
        assert!(!schedule.is_primed());
        assert_eq!(drain(&mut schedule, now), ["c.test"]);
        assert_eq!(drain(&mut schedule, now + LONGEST), ["a.test"]);
    }

    #[test]
    fn lost_time_makes_everything_due() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.replace(&names(&["a.test", "b.test", "c.test"]), |_| false, now);
        for name in drain(&mut schedule, now).into_iter().filter(|name| name != "c.test") {
            let name = DomainName::parse(&name).unwrap();
            schedule.done(&name, Some(LONGEST), LONGEST, 0, now);
        }
        assert!(drain(&mut schedule, now).is_empty());
        schedule.all_due(now);
        assert_eq!(drain(&mut schedule, now), ["a.test", "b.test"]);
        schedule.done(&DomainName::parse("c.test").unwrap(), Some(LONGEST), LONGEST, 0, now);
        assert_eq!(drain(&mut schedule, now), ["c.test"], "what was on its way is asked again");
    }

    #[test]
    fn few_descriptors_make_small_rounds() {
        assert_eq!([0, 1024, 4096, 1 << 20, u64::MAX].map(at_once), [16, 32, 128, 512, 512]);
    }

    #[test]
    fn no_names_are_primed_at_once() {
        let mut schedule = Schedule::default();
        schedule.replace(&names(&[]), |_| false, Instant::now());
        assert!(schedule.is_primed());
        assert_eq!(schedule.next_due(), None);
    }
}
