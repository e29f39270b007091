//! The audit log: every decision of the box, bounded in memory.
//!
//! Refusals and uses are kept once a kind, with a first and a last time and a count, so that no flood fills the log;
//! what people and workers did has a place of its own, which no flood of the agent's can reach. There is one log, as
//! there is one standard error. The same entries go there in JSON when `log.format=json`, and into a file when
//! `log.file` names one; both are chains (`chain.rs`), and none of them is ever waited for.

pub mod chain;
pub mod command;
pub mod event;
pub mod file;
mod log;
pub mod verify;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

pub use event::{
    Coming, Entry, Page, PolicyChange, Refused, RequestChange, SessionChange, Use, Visit, What, WorkerChange,
};
use log::Log;

use crate::report;
use crate::status::report::{Audit, Denial};

/// Characters of an event that are remembered.
const MAX_MESSAGE: usize = 2000;

static BOX: OnceLock<String> = OnceLock::new();

/// Says whose log this is, before its first line.
pub fn identify(id: &str) {
    BOX.set(id.to_owned()).ok();
}

/// The box's id; blank in a process that is no box.
#[must_use]
pub fn box_id() -> &'static str {
    BOX.get().map_or("", String::as_str)
}

/// Writes into this file too from now on, what was logged before it included.
pub fn keep(file: file::LogFile) -> std::io::Result<()> {
    // Under the log's lock: no entry is in both parts, and none in neither.
    with(|log| file::begin(file, log.page(0, false, usize::MAX).entries, log.written()))
}

/// The last counts of what was only counted up, before the box ends.
pub fn close(deadline: Instant) {
    for entry in with(Log::take_unwritten) {
        report::last(&entry, deadline);
    }
}

/// For `status`.
#[must_use]
pub fn state() -> Audit {
    let entries = with(|log| log.written());
    Audit { entries, ..file::state() }
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn with<T>(act: impl FnOnce(&mut Log) -> T) -> T {
    // Plain data: what a thread that panicked left behind is still a log.
    act(LOG.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// An event line. Returns the entry, for standard error.
pub fn note(source: &str, message: &str) -> Entry {
    let what = What::Note { source: source.to_owned(), message: report::harmless(message, MAX_MESSAGE) };
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
    // A bound of its own: the agent's hooks must not use up that of what PID 1 says of the session.
    report::entry("turn", &entry, None);
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
    if let Some(entry) = with(|log| log.denied(denial, Instant::now()))
        && !report::entry("denied", &entry, None)
    {
        with(|log| log.left_out(entry.seq));
    }
}

/// A use, counted with those before it.
pub fn used(used: &Use) {
    if let Some(entry) = with(|log| log.used(used, Instant::now()))
        && !report::entry("used", &entry, None)
    {
        with(|log| log.left_out(entry.seq));
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
    with(|log| log.forgotten())
}
