//! What of the audit log is a notice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::Kind;
use crate::audit::{self, Entry, What};
use crate::session::turns;
use crate::status::report::SessionState;

/// Entries at a time.
const PAGE: usize = 512;
/// Refused names and addresses that are remembered; when there are more, that is said once, and after a while forgotten.
const MAX_SEEN: usize = 4096;
/// Not forgotten sooner.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// So many ends of one program in so short a time are a loop.
const ENDS: usize = 3;
const ENDS_WITHIN: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Reader {
    after: u64,
    refused: HashSet<String>,
    /// Since when they are counted from none, and whether it was said that there are more.
    counted_since: Option<Instant>,
    overflowed: bool,
    ends: HashMap<String, VecDeque<Instant>>,
}

impl Reader {
    /// What is in the log by now is known.
    pub(super) fn from_now() -> Self {
        let mut reader = Self::default();
        reader.read();
        reader.ends.clear();
        reader
    }

    /// What happened since the last time.
    pub(super) fn read(&mut self) -> Vec<(Kind, String)> {
        let mut found = Vec::new();
        loop {
            let page = audit::page(self.after, false, PAGE);
            self.after = page.last;
            found.extend(page.entries.iter().filter_map(|entry| self.judge(entry, Instant::now())));
            if page.entries.len() < PAGE {
                return found;
            }
        }
    }

    fn judge(&mut self, entry: &Entry, now: Instant) -> Option<(Kind, String)> {
        match &entry.what {
            What::Session(change) => match change.state {
                SessionState::Waiting => waiting(&change.detail),
                SessionState::Done => Some((Kind::Finished, "the session is over".to_owned())),
                SessionState::Backoff => self.ended("the session", now).map(|words| {
                    let detail = if change.detail.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", change.detail)
                    };
                    (Kind::CrashLoop, format!("{words}{detail}"))
                }),
                SessionState::Starting
                | SessionState::Running
                | SessionState::Limited
                | SessionState::Exited
                | SessionState::Parked => None,
            },
            What::Worker(change) if change.pid.is_none() => {
                self.ended(&change.name, now).map(|words| (Kind::CrashLoop, words))
            }
            What::Denied(refused) => {
                let key = format!("{} {}", refused.layer, refused.target);
                let news = || format!("{} was denied: {}", refused.target, refused.reason);
                self.refused(key, news, now).map(|words| (Kind::Denied, words))
            }
            What::Worker(_) | What::Note { .. } | What::Policy(_) | What::Used(_) => None,
            What::Operator(_) | What::Request(_) => None,
        }
    }

    /// What is to be said of a refusal, if it is a new one.
    fn refused(&mut self, key: String, news: impl FnOnce() -> String, now: Instant) -> Option<String> {
        if self.refused.contains(&key) {
            return None;
        }
        if self.refused.len() >= MAX_SEEN {
            let since = *self.counted_since.get_or_insert(now);
            if now.saturating_duration_since(since) < FORGET_AFTER {
                let is_first = !std::mem::replace(&mut self.overflowed, true);
                return is_first.then(|| MORE.to_owned());
            }
            self.refused.clear();
            (self.counted_since, self.overflowed) = (Some(now), false);
        }
        self.counted_since.get_or_insert(now);
        self.refused.insert(key);
        Some(news())
    }

    /// What is to be said of a program that ended too often; after that it may end as often again.
    fn ended(&mut self, name: &str, now: Instant) -> Option<String> {
        let ends = self.ends.entry(name.to_owned()).or_default();
        ends.push_back(now);
        while ends.front().is_some_and(|first| now.saturating_duration_since(*first) > ENDS_WITHIN) {
            ends.pop_front();
        }
        if ends.len() < ENDS {
            return None;
        }
        ends.clear();
        Some(format!("{name} ended {ENDS} times within ten minutes"))
    }
}

const MORE: &str = "more names were refused than are remembered: innkeeper log --denied";

fn waiting(detail: &str) -> Option<(Kind, String)> {
    match detail {
        turns::NO_TASK => None,
        turns::FINISHED => Some((Kind::Finished, "Claude has finished its turn and waits".to_owned())),
        detail => Some((Kind::Waiting, format!("Claude waits for a person: {detail}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use crate::audit::{Entry, SessionChange, What, WorkerChange};
    use crate::notices::Kind;
    use crate::status::report::SessionState;
    use std::time::{Duration, Instant};

    fn entry(what: What) -> Entry {
        Entry { schema: 1, seq: 1, time: String::new(), what }
    }

    fn session(state: SessionState, detail: &str) -> Entry {
        entry(What::Session(SessionChange { state, detail: detail.into(), claude_pid: None }))
    }

    #[test]
    fn turns_are_told_by_what_they_ended_with() {
        let mut reader = Reader::default();
        let mut kind =
            |state, detail: &str| reader.judge(&session(state, detail), Instant::now()).map(|(kind, _)| kind);
        assert_eq!(kind(SessionState::Waiting, "it has finished its turn"), Some(Kind::Finished));
        assert_eq!(kind(SessionState::Waiting, "it asks: may I?"), Some(Kind::Waiting));
        assert_eq!(kind(SessionState::Waiting, "it has no task"), None);
        assert_eq!(kind(SessionState::Running, ""), None);
    }

    #[test]
    fn a_flood_of_refused_names_is_told_and_does_not_silence_for_ever() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        let mut told = |name: usize, after: u64| {
            reader.refused(format!("dns n{name}.test"), || name.to_string(), now + Duration::from_secs(after))
        };
        assert!((0..super::MAX_SEEN).all(|name| told(name, 0) == Some(name.to_string())));
        assert_eq!(told(0, 1), None, "known");
        assert_eq!(told(5000, 1).as_deref(), Some(super::MORE));
        assert_eq!([told(5001, 2), told(5002, 3599)], [None, None], "said once");
        assert_eq!(told(5003, 3600).as_deref(), Some("5003"));
        assert_eq!(told(0, 3601).as_deref(), Some("0"));
    }

    #[test]
    fn the_third_end_in_ten_minutes_is_a_loop() {
        let (mut reader, now) = (Reader::default(), Instant::now());
        let worker = || entry(What::Worker(WorkerChange { name: "dns".into(), pid: None, restarts: 1 }));
        let mut ends = |after: u64| reader.judge(&worker(), now + Duration::from_secs(after)).is_some();
        assert_eq!([ends(0), ends(1), ends(2), ends(3)], [false, false, true, false]);
        assert_eq!([ends(700), ends(1400), ends(2100)], [false; 3]);
    }
}
