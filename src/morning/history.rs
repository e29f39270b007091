//! Stretches of time, out of entries that say when something began. (pure)

use std::time::Duration;

use super::{SessionHistory, StateTime, Stay, Stretch};
use crate::audit::{Coming, Entry, What};
use crate::status::report::{Operator, Session};
use crate::status::wording::since;

/// Stretches that are told one by one; the sums are of all.
const STRETCHES: usize = 50;
const VISITS: usize = 50;

fn between(from: &str, to: &str) -> u64 {
    let to = humantime::parse_rfc3339(to).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    since(from, to).unwrap_or(Duration::ZERO).as_secs()
}

/// How the session went between two times.
pub(super) fn of(session: &Session, entries: &[Entry], from: &str, to: &str) -> SessionHistory {
    let mut stretches: Vec<Stretch> = Vec::new();
    for entry in entries {
        let What::Session(change) = &entry.what else { continue };
        let begun = entry.time.as_str().max(from).to_owned();
        if let Some(last) = stretches.last_mut() {
            last.to.clone_from(&begun);
        }
        let (state, detail) = (change.state, change.detail.clone());
        // Claude may tell something new in the same state.
        if stretches.last().is_some_and(|last| last.state == state && last.detail == detail) {
            continue;
        }
        stretches.push(Stretch { state, from: begun, to: to.to_owned(), seconds: 0, detail });
    }
    if let Some(last) = stretches.last_mut() {
        to.clone_into(&mut last.to);
    }
    for stretch in &mut stretches {
        stretch.seconds = between(&stretch.from, &stretch.to);
    }
    // What was over before the time that is asked about.
    stretches.retain(|stretch| stretch.to.as_str() > from);
    let mut times: Vec<StateTime> = Vec::new();
    for stretch in &stretches {
        match times.iter_mut().find(|time| time.state == stretch.state) {
            Some(time) => time.seconds += stretch.seconds,
            None => times.push(StateTime { state: stretch.state, seconds: stretch.seconds }),
        }
    }
    times.sort_by_key(|time| std::cmp::Reverse(time.seconds));
    stretches.drain(..stretches.len().saturating_sub(STRETCHES));
    SessionHistory {
        state: session.state,
        since: session.since.clone(),
        why: session.detail.clone(),
        last_exit: session.last_exit.clone(),
        last_message: session.last_message.clone(),
        times,
        stretches,
    }
}

/// Who came and left, and who is here now, however long ago they came.
pub(super) fn visits(entries: &[&Entry], here: &[Operator]) -> Vec<Stay> {
    let mut stays: Vec<Stay> = Vec::new();
    for entry in entries {
        let What::Operator(visit) = &entry.what else { continue };
        let time = Some(entry.time.clone());
        let known = stays.iter_mut().find(|stay| stay.id == visit.id);
        match (visit.action, known) {
            (Coming::Left, Some(stay)) => stay.to = time,
            (action, _) => stays.push(Stay {
                id: visit.id,
                place: visit.place.clone(),
                read_only: visit.read_only,
                from: time.clone().filter(|_| action == Coming::Entered),
                to: time.filter(|_| action == Coming::Left),
            }),
        }
    }
    stays.drain(..stays.len().saturating_sub(VISITS));
    let known: Vec<u64> = stays.iter().map(|stay| stay.id).collect();
    let long = here.iter().filter(|operator| !known.contains(&operator.id));
    stays.extend(long.map(|operator| Stay {
        id: operator.id,
        place: operator.place.clone(),
        read_only: operator.read_only,
        from: Some(operator.since.clone()),
        to: None,
    }));
    stays
}
