//! The audit log: every decision of the box, bounded in memory.
//!
//! Refusals and uses are kept once a kind, with a first and a last time and a count, so that no flood fills the log;
//! what people and workers did has a place of its own, which no flood of the agent's can reach. There is one log, as
//! there is one standard error, where the same lines go in JSON when `log.format=json`.

pub mod command;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::report;
use crate::status::report::{Denial, RequestState, SCHEMA, SessionState};

/// Refusals and uses that are remembered, by name or address, port and uid.
const MAX_TRAFFIC: usize = 2048;
/// Everything else that is remembered.
const MAX_EVENTS: usize = 1024;
/// Characters of an event that are remembered.
const MAX_MESSAGE: usize = 2000;
/// A refusal or use that goes on is written to standard error again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// One entry. `seq` grows; an entry that is counted up gets a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub schema: u8,
    pub seq: u64,
    /// RFC 3339: when it was written, or last counted up.
    pub time: String,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "event")]
pub enum What {
    /// Something happened in this room of the box.
    Note {
        source: String,
        message: String,
    },
    Policy(PolicyChange),
    Denied(Refused),
    Used(Use),
    /// The session became another, or Claude told something of it.
    Session(SessionChange),
    /// A worker started or ended.
    Worker(WorkerChange),
    /// A person came to the box, or left it.
    Operator(Visit),
    /// The agent asked for a name, or somebody decided on that.
    Request(RequestChange),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionChange {
    pub state: SessionState,
    /// What led to it.
    pub detail: String,
    pub claude_pid: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerChange {
    pub name: String,
    /// None: it has ended.
    pub pid: Option<i32>,
    pub restarts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coming {
    Entered,
    Left,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// The same number when the person leaves.
    pub id: u64,
    pub action: Coming,
    /// What was entered: `session`, or a root `shell`.
    pub place: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestChange {
    pub id: u64,
    pub rule: String,
    pub state: RequestState,
    /// Whose doing this is: the agent's, the operator's, the clock's, the policy's.
    pub by: String,
    /// The agent's words.
    pub reason: String,
    /// What became of it.
    pub detail: String,
}

/// The policy became another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    pub generation: u64,
    pub rules: usize,
    /// Who: the operator, a file that was read again, or the clock.
    pub by: String,
    /// What came of each rule, one a line.
    pub change: String,
}

/// What was refused, so often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub layer: String,
    #[serde(rename = "what")]
    pub target: String,
    pub uid: Option<u32>,
    pub process: Option<String>,
    pub reason: String,
    /// The command that would allow it.
    pub allow: String,
    /// RFC 3339.
    pub first: String,
    pub last: String,
    pub count: u64,
}

/// Connections that the policy let out, to one address and port by one uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The allowlisted name through which the address is open.
    pub name: String,
    /// Others that share the address: which of them was meant is not known to a packet filter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    pub address: String,
    pub port: u16,
    pub uid: Option<u32>,
    /// RFC 3339.
    pub first: String,
    pub last: String,
    pub count: u64,
}

/// What counts as the same.
type Key = (&'static str, String, u16, Option<u32>);

/// Entries after a given one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Ask for what comes after this next.
    pub last: u64,
}

/// The log as a value; the box has one, tests make their own.
#[derive(Debug, Default)]
struct Log {
    seq: u64,
    events: BTreeMap<u64, Entry>,
    traffic: BTreeMap<u64, Entry>,
    places: HashMap<Key, (u64, Instant)>,
    /// Refusals and uses that had to make room.
    forgotten: u64,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn with<T>(act: impl FnOnce(&mut Log) -> T) -> T {
    // Plain data: what a thread that panicked left behind is still a log.
    act(LOG.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// An event line. Returns the entry, for standard error.
pub fn note(source: &str, message: &str) -> Entry {
    let what = What::Note {
        source: source.to_owned(),
        message: report::inert(&report::bounded(message, MAX_MESSAGE)),
    };
    with(|log| log.event(what))
}

/// A change of policy.
pub fn policy(change: PolicyChange) {
    let text = format!(
        "generation {}, {} rules ({}): {}",
        change.generation, change.rules, change.by, change.change
    );
    let entry = with(|log| log.event(What::Policy(change)));
    report::entry("policy", &entry, Some(&text));
}

/// The session's state. It has its own line in the log beside what is said about it.
pub fn session(change: SessionChange) {
    let entry = with(|log| log.event(What::Session(change)));
    report::entry("session", &entry, None);
}

/// A worker's start or end.
pub fn worker(change: WorkerChange) {
    let entry = with(|log| log.event(What::Worker(change)));
    report::entry("worker", &entry, None);
}

/// A person who comes or leaves.
pub fn operator(visit: Visit) {
    let text = visit.to_string();
    let entry = with(|log| log.event(What::Operator(visit)));
    report::entry("operator", &entry, Some(&text));
}

/// A request of the agent's, or what became of it.
pub fn request(change: RequestChange) {
    let text = change.to_string();
    let entry = with(|log| log.event(What::Request(change)));
    report::entry("request", &entry, Some(&text));
}

/// A refusal, counted with those before it.
pub fn denied(denial: &Denial) {
    if let Some(entry) = with(|log| log.denied(denial, Instant::now())) {
        report::entry("denied", &entry, None);
    }
}

/// A use, counted with those before it.
pub fn used(used: &Use) {
    if let Some(entry) = with(|log| log.used(used, Instant::now())) {
        report::entry("used", &entry, None);
    }
}

/// What was written after `after`, at most `limit` entries, the oldest first.
#[must_use]
pub fn page(after: u64, denied_only: bool, limit: usize) -> Page {
    with(|log| log.page(after, denied_only, limit))
}

/// How many refusals and uses are no longer known.
#[must_use]
pub fn forgotten() -> u64 {
    with(|log| log.forgotten)
}

impl Log {
    fn next(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn event(&mut self, what: What) -> Entry {
        let seq = self.next();
        let entry = Entry { schema: SCHEMA, seq, time: report::now(), what };
        self.events.insert(seq, entry.clone());
        if self.events.len() > MAX_EVENTS {
            self.events.pop_first();
        }
        entry
    }

    fn denied(&mut self, denial: &Denial, now: Instant) -> Option<Entry> {
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

    fn used(&mut self, used: &Use, now: Instant) -> Option<Entry> {
        let key = ("used", used.name.clone(), used.port, used.uid);
        self.traffic(key, &used.last, now, |old| {
            let (first, count) = match old {
                Some(What::Used(old)) => (old.first, old.count),
                Some(_) | None => (used.first.clone(), 0),
            };
            What::Used(Use { first, count: count.saturating_add(used.count), ..used.clone() })
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
        let old = place.and_then(|(seq, _)| self.traffic.remove(&seq)).map(|entry| entry.what);
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
        }
        is_due.then_some(entry)
    }

    fn page(&self, after: u64, denied_only: bool, limit: usize) -> Page {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut entries: Vec<Entry> = self
            .traffic
            .range(from)
            .chain(self.events.range(from))
            .map(|(_, entry)| entry)
            .filter(|entry| !denied_only || matches!(entry.what, What::Denied(_)))
            .cloned()
            .collect();
        entries.sort_by_key(|entry| entry.seq);
        entries.truncate(limit);
        // Everything was seen, if the page is not full: what the filter left out is not asked for again.
        let last =
            if entries.len() < limit { self.seq } else { entries.last().map_or(after, |entry| entry.seq) };
        Page { entries, last: last.max(after) }
    }
}

impl std::fmt::Display for Entry {
    /// One line for a person. Everything from outside was made inert when it came in; it is once more here.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match &self.what {
            What::Note { source, message } => format!("{source:<9} {message}"),
            What::Policy(change) => format!(
                "policy    generation {}, {} rules ({}): {}",
                change.generation,
                change.rules,
                change.by,
                change.change.replace('\n', "; ")
            ),
            What::Session(change) => format!("session   {change}"),
            What::Worker(change) => format!("worker    {change}"),
            What::Operator(visit) => format!("operator  {visit}"),
            What::Request(change) => format!("request   {change}"),
            What::Denied(refused) => format!(
                "denied    {} {}, {}×, {}: {}; {}",
                refused.layer,
                refused.target,
                refused.count,
                who(refused.uid, refused.process.as_deref()),
                refused.reason,
                refused.allow
            ),
            What::Used(used) => {
                let also = match used.also.len() {
                    0 => String::new(),
                    others => format!(" or {others} more names of this address"),
                };
                let who = who(used.uid, None);
                format!(
                    "used      {}:{}{also} ({}), {}×, {who}",
                    used.name, used.port, used.address, used.count
                )
            }
        };
        write!(f, "{} {}", self.time, report::inert(&text))
    }
}

impl std::fmt::Display for SessionChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.state)?;
        if let Some(pid) = self.claude_pid {
            write!(f, ", pid {pid}")?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::fmt::Display for WorkerChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} runs, pid {pid}, {} restarts", self.name, self.restarts),
            None => write!(f, "{} has ended, {} restarts", self.name, self.restarts),
        }
    }
}

impl std::fmt::Display for Visit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let action = match self.action {
            Coming::Entered => "entered",
            Coming::Left => "left",
        };
        let how = if self.read_only { ", read-only" } else { "" };
        write!(f, "visitor {} {action} the {}{how}", self.id, self.place)
    }
}

impl std::fmt::Display for RequestChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for {}: {} by {}", self.id, self.rule, self.state, self.by)?;
        if !self.detail.is_empty() {
            write!(f, ", {}", self.detail)?;
        }
        if self.reason.is_empty() { Ok(()) } else { write!(f, "; the agent says: {}", self.reason) }
    }
}

fn who(uid: Option<u32>, process: Option<&str>) -> String {
    let uid = uid.map_or_else(|| "uid unknown".to_owned(), |uid| format!("uid {uid}"));
    process.map_or_else(|| uid.clone(), |process| format!("{uid} {process}"))
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, Log, MAX_EVENTS, MAX_TRAFFIC, Use, What};
    use crate::status::report::Denial;
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
        assert_eq!(log.events.len(), MAX_EVENTS);
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
            uid: Some(1000),
            first: last.into(),
            last: last.into(),
            count: 1,
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
        assert_eq!(serde_json::from_str::<super::Entry>(&text).unwrap(), page.entries[0]);
    }
}
