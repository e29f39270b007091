//! The log in memory, bounded: refusals and uses once a kind, and a place of its own for everything else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::event::{Entry, Page, Refused, Use, What};
use crate::report;
use crate::status::report::{Denial, SCHEMA};

/// Refusals and uses that are remembered, by name or address, port and uid.
const MAX_TRAFFIC: usize = 2048;
/// What is remembered of each class of everything else.
const MAX_EVENTS: usize = 1024;
/// A refusal or use that goes on is written again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// What counts as the same.
type Key = (&'static str, String, u16, Option<u32>);

/// The log as a value; the box has one, tests make their own.
#[derive(Debug, Default)]
pub(super) struct Log {
    seq: u64,
    /// By whose doing they are: what the agent can cause at will makes no room among what people did.
    events: [BTreeMap<u64, Entry>; CLASSES],
    traffic: BTreeMap<u64, Entry>,
    places: HashMap<Key, (u64, Instant)>,
    /// Refusals and uses that had to make room.
    forgotten: u64,
    /// Entries of the traffic that were counted up since they were written last.
    unwritten: BTreeSet<u64>,
}

const CLASSES: usize = 3;

/// 0: people's doing; 1: the box's own; 2: what the agent causes or says.
fn class(what: &What) -> usize {
    match what {
        What::Note { .. } | What::Worker(_) => 1,
        What::Session(_) | What::Denied(_) | What::Used(_) => 2,
        What::Policy(_) | What::Operator(_) | What::Request(_) => {
            if what.is_of_people() {
                0
            } else {
                2
            }
        }
    }
}

impl Log {
    /// How many entries there were.
    pub(super) fn written(&self) -> u64 {
        self.seq
    }

    /// How many refusals and uses are no longer known.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(super) fn event(&mut self, what: What) -> Entry {
        let seq = self.next();
        let entry = Entry { schema: SCHEMA, seq, time: report::now(), what };
        if let Some(class) = self.events.get_mut(class(&entry.what)) {
            class.insert(seq, entry.clone());
            if class.len() > MAX_EVENTS {
                class.pop_first();
            }
        }
        entry
    }

    pub(super) fn denied(&mut self, denial: &Denial, now: Instant) -> Option<Entry> {
        let key = ("denied", format!("{} {}", denial.layer, denial.what), 0, denial.uid);
        self.traffic(key, &denial.time, now, |old| {
            let (first, count, process) = match old {
                Some(What::Denied(old)) => (old.first, old.count, old.process),
                Some(_) | None => (denial.time.clone(), 0, None),
            };
            What::Denied(Refused {
                layer: denial.layer.clone(),
                target: denial.what.clone(),
                uid: denial.uid,
                process: denial.process.clone().or(process),
                reason: denial.reason.clone(),
                allow: denial.allow.clone(),
                first,
                last: denial.time.clone(),
                count: count.saturating_add(denial.count),
            })
        })
    }

    pub(super) fn used(&mut self, used: &Use, now: Instant) -> Option<Entry> {
        let key = ("used", used.name.clone(), used.port, used.uid);
        self.traffic(key, &used.last, now, |old| {
            let Some(What::Used(old)) = old else { return What::Used(used.clone()) };
            let sum =
                |old: Option<u64>, new: Option<u64>| old.zip(new).map(|(a, b)| a.saturating_add(b)).or(new);
            What::Used(Use {
                first: old.first,
                count: old.count.saturating_add(used.count),
                bytes_out: sum(old.bytes_out, used.bytes_out),
                bytes_in: sum(old.bytes_in, used.bytes_in),
                ..used.clone()
            })
        })
    }

    /// Counts up. Returns the entry if standard error should have it (again).
    fn traffic(
        &mut self,
        key: Key,
        time: &str,
        now: Instant,
        make: impl FnOnce(Option<What>) -> What,
    ) -> Option<Entry> {
        let place = self.places.get(&key).copied();
        let old = place.and_then(|(seq, _)| self.traffic.remove(&seq));
        if let Some(old) = &old {
            self.unwritten.remove(&old.seq);
        }
        let old = old.map(|entry| entry.what);
        let is_due = place.is_none_or(|(_, written)| now.saturating_duration_since(written) >= AGAIN);
        let written = place.filter(|_| !is_due).map_or(now, |(_, written)| written);
        let seq = self.next();
        let entry = Entry { schema: SCHEMA, seq, time: time.to_owned(), what: make(old) };
        self.traffic.insert(seq, entry.clone());
        self.places.insert(key, (seq, written));
        if self.traffic.len() > MAX_TRAFFIC
            && let Some((oldest, _)) = self.traffic.pop_first()
        {
            self.places.retain(|_, (seq, _)| *seq != oldest);
            self.forgotten += 1;
            self.unwritten.remove(&oldest);
        }
        if !is_due {
            self.unwritten.insert(seq);
        }
        is_due.then_some(entry)
    }

    /// It was due, and there was no room for it.
    pub(super) fn left_out(&mut self, seq: u64) {
        if self.traffic.contains_key(&seq) {
            self.unwritten.insert(seq);
        }
    }

    /// What goes on to be counted and was not written in its last state.
    pub(super) fn take_unwritten(&mut self) -> Vec<Entry> {
        let seqs = std::mem::take(&mut self.unwritten);
        seqs.iter().filter_map(|seq| self.traffic.get(seq).cloned()).collect()
    }

    pub(super) fn page(&self, after: u64, denied_only: bool, limit: usize) -> Page {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut entries: Vec<Entry> = self
            .traffic
            .range(from)
            .chain(self.events.iter().flat_map(|class| class.range(from)))
            .map(|(_, entry)| entry)
            .filter(|entry| !denied_only || matches!(entry.what, What::Denied(_)))
            .cloned()
            .collect();
        entries.sort_by_key(|entry| entry.seq);
        entries.truncate(limit);
        // Everything was seen, if the page is not full: what the filter left out is not asked for again.
        let last =
            if entries.len() < limit { self.seq } else { entries.last().map_or(after, |entry| entry.seq) };
        Page { box_: super::box_id().to_owned(), entries, last: last.max(after) }
    }
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, Log, MAX_EVENTS, MAX_TRAFFIC, Use, What};
    use crate::audit::{Coming, Entry, RequestChange, SessionChange, Visit};
    use crate::status::report::{Denial, RequestState, SessionState};
    use std::time::Instant;

    fn denial(what: &str, process: Option<&str>) -> Denial {
        Denial {
            time: "2026-11-21T08:00:00.000Z".into(),
            layer: "dns".into(),
            what: what.into(),
            uid: Some(1000),
            process: process.map(str::to_owned),
            reason: "not in the allowlist".into(),
            count: 2,
            allow: format!("innkeeper allow {what}"),
        }
    }

    #[test]
    fn refusals_of_a_kind_are_one_entry_that_moves_to_the_end() {
        let (mut log, now) = (Log::default(), Instant::now());
        assert!(log.denied(&denial("a.test", Some("curl")), now).is_some());
        assert!(log.denied(&denial("b.test", None), now).is_some());
        assert!(log.denied(&denial("a.test", None), now).is_none(), "standard error has it already");
        let page = log.page(0, true, 10);
        let seen: Vec<_> = page
            .entries
            .iter()
            .map(|entry| match &entry.what {
                What::Denied(refused) => (refused.target.as_str(), refused.count, refused.process.as_deref()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, [("b.test", 2, None), ("a.test", 4, Some("curl"))]);
        assert!(log.denied(&denial("a.test", None), now + AGAIN).is_some(), "it goes on");
        assert_eq!(log.page(page.last, true, 10).entries.len(), 1, "only what is new");
    }

    #[test]
    fn a_flood_of_refusals_leaves_what_people_did() {
        let (mut log, now) = (Log::default(), Instant::now());
        log.event(What::Note { source: "policy".into(), message: "the operator was here".into() });
        for i in 0..3 * MAX_TRAFFIC {
            log.denied(&denial(&format!("n{i}.test"), None), now);
        }
        assert_eq!((log.traffic.len(), log.places.len()), (MAX_TRAFFIC, MAX_TRAFFIC));
        assert!(matches!(log.page(0, false, 1).entries[0].what, What::Note { .. }));
        for i in 0..2 * MAX_EVENTS {
            log.event(What::Note { source: "test".into(), message: i.to_string() });
        }
        assert_eq!(log.events[1].len(), MAX_EVENTS);
    }

    /// The agent's hooks flip the session's state as often as it likes, and its requests are its own words.
    #[test]
    fn t97_what_the_agent_says_drives_out_nothing_that_people_did() {
        let mut log = Log::default();
        let visit = Visit { id: 1, action: Coming::Entered, place: "session".into(), read_only: false };
        log.event(What::Operator(visit));
        let request = |by: &str| RequestChange {
            id: 1,
            rule: "a.test".into(),
            state: RequestState::Pending,
            by: by.into(),
            reason: String::new(),
            detail: String::new(),
        };
        log.event(What::Request(request("operator")));
        for _ in 0..3 * MAX_EVENTS {
            let change =
                SessionChange { state: SessionState::Waiting, detail: String::new(), claude_pid: None };
            log.event(What::Session(change));
            log.event(What::Request(request("agent")));
            log.event(What::Note { source: "session".into(), message: "again".into() });
        }
        let first = log.page(0, false, 2).entries;
        assert!(matches!(first[0].what, What::Operator(_)), "{first:?}");
        assert!(matches!(&first[1].what, What::Request(change) if change.by == "operator"), "{first:?}");
    }

    #[test]
    fn what_was_only_counted_up_is_written_at_the_end() {
        let (mut log, now) = (Log::default(), Instant::now());
        assert!(log.denied(&denial("a.test", None), now).is_some());
        assert!(log.take_unwritten().is_empty(), "its first state was written");
        assert!(log.denied(&denial("a.test", None), now).is_none());
        assert!(log.denied(&denial("a.test", None), now).is_none());
        let entry = log.denied(&denial("b.test", None), now).unwrap();
        log.left_out(entry.seq);
        let last = log.take_unwritten();
        let count = |entry: &Entry| match &entry.what {
            What::Denied(refused) => refused.count,
            other => panic!("{other:?}"),
        };
        assert_eq!(last.iter().map(count).collect::<Vec<_>>(), [6, 2]);
        assert!(log.take_unwritten().is_empty());
    }

    #[test]
    fn pages_leave_nothing_out() {
        let (mut log, now) = (Log::default(), Instant::now());
        for i in 0..25 {
            log.denied(&denial(&format!("n{i}.test"), None), now);
            log.event(What::Note { source: "test".into(), message: i.to_string() });
        }
        let (mut after, mut seen) = (0, 0);
        loop {
            let page = log.page(after, true, 10);
            seen += page.entries.len();
            after = page.last;
            if page.entries.is_empty() {
                break;
            }
        }
        assert_eq!(seen, 25);
    }

    #[test]
    fn uses_are_counted_by_name_and_port() {
        let (mut log, now) = (Log::default(), Instant::now());
        let used = |address: &str, last: &str| Use {
            name: "cdn.test".into(),
            also: Vec::new(),
            address: address.into(),
            port: 443,
            rule: None,
            uid: Some(1000),
            first: last.into(),
            last: last.into(),
            count: 1,
            bytes_out: None,
            bytes_in: None,
        };
        log.used(&used("192.0.2.1", "2026-11-21T08:00:00Z"), now);
        log.used(&used("192.0.2.2", "2026-11-21T08:00:09Z"), now);
        let page = log.page(0, false, 10);
        let What::Used(seen) = &page.entries[0].what else { panic!("{page:?}") };
        assert_eq!(
            (seen.count, seen.first.as_str(), seen.last.as_str()),
            (2, "2026-11-21T08:00:00Z", "2026-11-21T08:00:09Z")
        );
        let text = serde_json::to_string(&page.entries[0]).unwrap();
        assert!(text.contains(r#""event":"used""#) && text.contains(r#""name":"cdn.test""#), "{text}");
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), page.entries[0]);
    }
}
