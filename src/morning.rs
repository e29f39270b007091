//! `innkeeper report`: the page for people who left an agent alone: what it did, why it stopped, what it was refused.
//! (pure)
//!
//! It is put together by the client from the status, the audit log, and what a child that runs as the agent says of the
//! repositories. Everything in it is bounded, and inert where it came from outside.

pub mod command;
mod history;
mod page;
pub mod work;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::audit::{Entry, What};
use crate::status::report::{AccessRequest, Phase, Report, SCHEMA, SessionState, Traffic};
use work::RepositoryWork;

/// The page as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Morning {
    pub schema: u8,
    pub version: String,
    /// The box's id and name.
    #[serde(rename = "box")]
    pub box_: String,
    pub name: String,
    /// What it is about. RFC 3339.
    pub from: String,
    pub to: String,
    pub phase: Phase,
    pub session: SessionHistory,
    pub repositories: Vec<RepositoryWork>,
    /// The most first.
    pub denied: Vec<DeniedName>,
    pub requests: Vec<AccessRequest>,
    pub changes: Vec<Change>,
    pub traffic: Vec<Traffic>,
    pub traffic_note: Option<String>,
    pub trouble: Trouble,
    pub visits: Vec<Stay>,
    /// What is not in it, and why.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionHistory {
    pub state: SessionState,
    pub since: String,
    /// Why it is in this state.
    pub why: String,
    pub last_exit: Option<String>,
    pub last_message: Option<String>,
    /// How long it was in each state.
    pub times: Vec<StateTime>,
    /// The latest, in order.
    pub stretches: Vec<Stretch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StateTime {
    pub state: SessionState,
    pub seconds: u64,
}

/// A time during which the session was in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stretch {
    pub state: SessionState,
    pub from: String,
    pub to: String,
    pub seconds: u64,
    pub detail: String,
}

/// What was refused, and what would allow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeniedName {
    pub what: String,
    pub layer: String,
    pub count: u64,
    pub last: String,
    pub reason: String,
    pub allow: String,
}

/// A change of the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Change {
    pub time: String,
    pub by: String,
    pub change: String,
}

/// What went wrong with the box itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Trouble {
    pub session_restarts: u64,
    /// Workers that were started again: name and how often.
    pub workers: Vec<Restarted>,
    pub oom_kills: u64,
    pub oom_victims: Vec<String>,
    /// Protections that do not hold now.
    pub not_held: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Restarted {
    pub name: String,
    pub restarts: u64,
}

/// A person's visit. Still there where it has no end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stay {
    pub id: u64,
    pub place: String,
    pub read_only: bool,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// Of each list so many.
const MOST: usize = 100;

/// Puts the page together. `entries` is the audit log, the oldest first; `from` and `to` are times of RFC 3339 in UTC,
/// which are in the order of their letters.
#[must_use]
pub fn tell(
    report: Report,
    entries: &[Entry],
    repositories: Vec<RepositoryWork>,
    from: Option<&str>,
    to: &str,
) -> Morning {
    let first = entries.first().map_or(to, |entry| entry.time.as_str());
    // Before the box there was nothing of it to tell.
    let from = from.unwrap_or(first).max(first).to_owned();
    let recent: Vec<&Entry> = entries.iter().filter(|entry| entry.time >= from).collect();
    let mut notes = Vec::new();
    // Entries are numbered from 1: the log keeps the latest of each kind.
    if entries.first().is_some_and(|entry| entry.seq > 1) {
        notes.push("the oldest entries of the log are no longer kept, or were counted up since".to_owned());
    }
    let session = history::of(&report.session, entries, &from, to);
    let trouble = Trouble {
        session_restarts: report.session.restarts,
        workers: restarted(&report),
        oom_kills: report.resources.oom_kills,
        oom_victims: report.resources.oom_victims.clone(),
        not_held: report.protections.iter().filter(|one| !one.held).map(|one| one.name.clone()).collect(),
        warnings: report.warnings.clone(),
    };
    let in_time = |request: &AccessRequest| {
        request.time >= from || request.decided_at.as_ref().is_some_and(|at| *at >= from)
    };
    let mut requests: Vec<AccessRequest> =
        report.requests.iter().filter(|one| in_time(one)).cloned().collect();
    requests.truncate(MOST);
    Morning {
        schema: SCHEMA,
        version: report.version.clone(),
        box_: report.box_.id.clone(),
        name: report.box_.name.clone(),
        to: to.to_owned(),
        phase: report.phase,
        session,
        repositories,
        denied: denied(&recent),
        requests,
        changes: changes(&recent),
        traffic: report.traffic.into_iter().take(MOST).collect(),
        traffic_note: report.traffic_note,
        trouble,
        visits: history::visits(&recent, &report.operators),
        notes,
        from,
    }
}

fn restarted(report: &Report) -> Vec<Restarted> {
    let again = report.workers.iter().filter(|worker| worker.restarts > 0);
    again.map(|worker| Restarted { name: worker.name.clone(), restarts: worker.restarts }).collect()
}

fn denied(entries: &[&Entry]) -> Vec<DeniedName> {
    // One that was counted up while the log was read is in it twice; the last has the whole count.
    let mut latest = BTreeMap::new();
    for entry in entries {
        if let What::Denied(refused) = &entry.what {
            latest.insert((&refused.layer, &refused.target, refused.uid), refused);
        }
    }
    let mut denied: Vec<DeniedName> = Vec::new();
    for refused in latest.into_values() {
        denied.push(DeniedName {
            what: refused.target.clone(),
            layer: refused.layer.clone(),
            count: refused.count,
            last: refused.last.clone(),
            reason: refused.reason.clone(),
            allow: refused.allow.clone(),
        });
    }
    denied.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| b.last.cmp(&a.last)));
    denied.truncate(MOST);
    denied
}

fn changes(entries: &[&Entry]) -> Vec<Change> {
    let mut changes = Vec::new();
    for entry in entries {
        if let What::Policy(change) = &entry.what {
            let text = change.change.replace('\n', "; ");
            changes.push(Change { time: entry.time.clone(), by: change.by.clone(), change: text });
        }
    }
    changes.drain(..changes.len().saturating_sub(MOST));
    changes
}

#[cfg(test)]
pub(crate) mod tests;
