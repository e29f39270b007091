//! Refused clients on their way to PID 1: counted, bounded and metered. (pure)
//!
//! However fast the agent tries, PID 1 gets a few frames a second and the counts are right. Time is a parameter.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::time::{Duration, Instant};

use super::meter::Meter;
use super::protocol::ClientDenial;
use crate::socket_table::Owner;
use crate::time_share::TimeShare;

/// Different refused names that are remembered at a time; the rest share one line.
const MAX_NAMES: usize = 512;
/// Frames to PID 1: so many at once, then one for each interval.
const BURST: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(50);
/// What is reported for names beyond [`MAX_NAMES`].
pub const OTHERS: &str = "(other names)";

/// Seconds that look-ups of owners may take at once, and as a share of the time after that.
const MAX_LOOKING: Duration = Duration::from_millis(100);
const SHARE: f64 = 0.02;

/// Clients that are kept waiting until PID 1 has looked who they are: so many at once, then one for each interval, and
/// for the same name and uid not again before [`WAIT_AGAIN`].
const WAITS: u32 = 20;
const WAIT_INTERVAL: Duration = Duration::from_millis(100);
const WAIT_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Denials {
    /// By name, one entry for each uid. Looked up by a borrowed name: a flood allocates nothing.
    pending: HashMap<String, Vec<ClientDenial>>,
    order: VecDeque<(String, Option<u32>)>,
    frames: Meter,
    waits: Meter,
    waited: HashMap<(String, u32), Instant>,
    /// What may be spent on looking owners up.
    looking: TimeShare,
}

impl Denials {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            pending: HashMap::new(),
            order: VecDeque::new(),
            frames: Meter::new(BURST, INTERVAL, now),
            waits: Meter::new(WAITS, WAIT_INTERVAL, now),
            waited: HashMap::new(),
            looking: TimeShare::new(MAX_LOOKING, SHARE, now),
        }
    }

    /// Whether the owner of the client's socket may be looked up now. See [`Denials::attributed`].
    pub fn may_attribute(&mut self, what: &str, now: Instant) -> bool {
        if !self.looking.may(now) {
            return false;
        }
        if self.pending.contains_key(what) {
            // Most likely the same client again.
            return self.looking.is_ample();
        }
        // What shares a line with others has no owner to show.
        self.order.len() < MAX_NAMES
    }

    /// A look-up took `spent`. All of them together take a share of the time, so that neither a flood nor a box with very
    /// many sockets makes its DNS server busy with reading tables; an ordinary refusal always has its owner.
    pub fn attributed(&mut self, spent: Duration) {
        self.looking.spent(spent);
    }

    /// Whether this client may be kept waiting until PID 1 has looked who it is.
    pub fn may_wait(&mut self, what: &str, uid: u32, now: Instant) -> bool {
        let recent = |since: &Instant| now.saturating_duration_since(*since) < WAIT_AGAIN;
        let pair = (what.to_owned(), uid);
        if self.waited.get(&pair).is_some_and(recent) || !self.waits.take(now) {
            return false;
        }
        // Bounded by the meter: what it lets pass within the time, and the burst.
        self.waited.retain(|_, since| recent(since));
        self.waited.insert(pair, now);
        true
    }

    /// Counts one refusal. One without an owner is nobody's: whoever was refused the same before may be somebody else.
    pub fn add(&mut self, what: &str, reason: &impl Display, owner: Option<Owner>, rule: Option<String>) {
        let uid = owner.map(|owner| owner.uid);
        if let Some(known) = self.find(what, uid) {
            known.count += 1;
            return;
        }
        if self.order.len() < MAX_NAMES {
            self.list(what, reason, owner, rule);
        } else if let Some(others) = self.find(OTHERS, None) {
            others.count += 1;
        } else {
            self.list(OTHERS, &"refused; too many different names to list", None, None);
        }
    }

    /// Counts one refusal for which nobody looked: the name waits already, and this is most likely the same client again.
    pub fn add_without_a_look(&mut self, what: &str, reason: &impl Display) {
        match self.pending.get_mut(what).and_then(|of_name| of_name.last_mut()) {
            Some(known) => known.count += 1,
            None => self.add(what, reason, None, None),
        }
    }

    fn find(&mut self, what: &str, uid: Option<u32>) -> Option<&mut ClientDenial> {
        self.pending.get_mut(what)?.iter_mut().rev().find(|known| known.uid == uid)
    }

    fn list(&mut self, what: &str, reason: &impl Display, owner: Option<Owner>, rule: Option<String>) {
        let denial = ClientDenial::one(what, reason, owner, rule);
        self.order.push_back((what.to_owned(), denial.uid));
        self.pending.entry(what.to_owned()).or_default().push(denial);
    }

    /// The next frame that may be sent now: oldest first.
    pub fn take(&mut self, now: Instant) -> Option<ClientDenial> {
        if self.order.is_empty() || !self.frames.take(now) {
            return None;
        }
        let (what, uid) = self.order.pop_front()?;
        let of_name = self.pending.get_mut(&what)?;
        let at = of_name.iter().position(|denial| denial.uid == uid)?;
        let denial = of_name.swap_remove(at);
        if of_name.is_empty() {
            self.pending.remove(&what);
        }
        Some(denial)
    }

    /// Puts back what could not be sent.
    pub fn put_back(&mut self, denial: ClientDenial) {
        let of_name = self.pending.entry(denial.what.clone()).or_default();
        if let Some(newer) = of_name.iter_mut().find(|newer| newer.uid == denial.uid) {
            newer.count += denial.count;
            return;
        }
        self.order.push_front((denial.what.clone(), denial.uid));
        of_name.push(denial);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Option<Owner> = Some(Owner { uid: 1000, inode: Some(7) });

    #[test]
    fn the_same_name_of_the_same_uid_is_counted() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        for _ in 0..5 {
            denials.add("evil.test", &"not in the allowlist", OWNER, None);
        }
        denials.add_without_a_look("evil.test", &"not in the allowlist");
        denials.add("evil.test", &"not in the allowlist", Some(Owner { uid: 0, inode: Some(8) }), None);
        denials.add("evil.test", &"not in the allowlist", None, None);
        let first = denials.take(now).unwrap();
        assert_eq!(
            (first.what.as_str(), first.uid, first.inode, first.count),
            ("evil.test", Some(1000), Some(7), 6)
        );
        assert_eq!(denials.take(now).unwrap().uid, Some(0));
        let last = denials.take(now).unwrap();
        assert_eq!((last.uid, last.count), (None, 1), "who is not known is nobody of them");
        assert_eq!(denials.take(now), None);
    }

    #[test]
    fn frames_are_metered_and_no_count_is_lost() {
        let mut now = Instant::now();
        let mut denials = Denials::new(now);
        for i in 0..5000 {
            denials.add(&format!("n{i}.evil.test"), &"not in the allowlist", OWNER, None);
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
        denials.add("a.test", &"r", OWNER, None);
        denials.add("b.test", &"r", OWNER, None);
        let taken = denials.take(now).unwrap();
        denials.put_back(taken);
        assert_eq!(denials.take(now).unwrap().what, "a.test");
    }

    #[test]
    fn lookups_of_owners_pay_for_their_time() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        assert!(denials.may_attribute("a.test", now));
        for _ in 0..20 {
            assert!(denials.may_attribute("a.test", now), "ordinary refusals always have their owner");
            denials.attributed(Duration::from_millis(4));
        }
        denials.attributed(Duration::from_millis(40));
        let known = "known.test";
        denials.add(known, &"r", None, None);
        assert!(!denials.may_attribute("a.test", now + Duration::from_millis(900)), "a flood has to wait");
        assert!(denials.may_attribute("a.test", now + Duration::from_millis(1100)));
        assert!(!denials.may_attribute(known, now + Duration::from_millis(1200)), "not for the same again");
        assert!(denials.may_attribute(known, now + Duration::from_secs(9)));
    }

    #[test]
    fn names_that_share_a_line_are_not_looked_up() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        for i in 0..MAX_NAMES + 9 {
            denials.add(&format!("n{i}.evil.test"), &"r", None, None);
        }
        assert!(!denials.may_attribute("new.evil.test", now));
        assert!(denials.may_attribute("n1.evil.test", now));
    }

    #[test]
    fn waits_are_few() {
        let now = Instant::now();
        let mut denials = Denials::new(now);
        assert!(denials.may_wait("a.test", 1000, now));
        assert!(!denials.may_wait("a.test", 1000, now), "the same again");
        assert!(denials.may_wait("a.test", 0, now), "somebody else");
        let at_once = (0..100).filter(|i| denials.may_wait(&format!("n{i}.test"), 1000, now)).count();
        assert_eq!(at_once, 18);
        let later = now + Duration::from_secs(1);
        let then = (0..100).filter(|i| denials.may_wait(&format!("m{i}.test"), 1000, later)).count();
        assert_eq!(then, 10);
        assert!(denials.may_wait("a.test", 1000, now + WAIT_AGAIN + Duration::from_secs(2)));
    }
}
