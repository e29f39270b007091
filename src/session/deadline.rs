//! When the session ends by itself: at a time, after a while, or when it has cost enough.

use std::time::{Duration, SystemTime};

use super::Limits;
use super::claude::LAST_NOTICE;
use super::host::Host;
use crate::clock::boottime;
use crate::money::Microusd;
use crate::report::{event, exit, time};
use crate::supervisor::{Ending, thread};

/// The earliest of the two, each by the clock that it is meant by: a time of day by the wall's, a length by the one that
/// nobody sets and that goes on while the machine sleeps.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    until: Option<SystemTime>,
    longest: Option<(Duration, Duration)>,
    /// It was said once.
    over: bool,
}

impl Deadline {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            until: limits.until.map(|until| until.after(SystemTime::now())),
            longest: limits.max_time.map(|length| (boottime() + length, length)),
            over: false,
        }
    }

    /// RFC 3339.
    pub(crate) fn shown(&self) -> Option<String> {
        let now = SystemTime::now();
        let left = self.longest.map(|(end, _)| end.saturating_sub(boottime()));
        let end = left.and_then(|left| now.checked_add(left));
        self.until.into_iter().chain(end).min().map(time)
    }

    pub(crate) fn reached(&self) -> Option<String> {
        if let Some(until) = self.until.filter(|until| *until <= SystemTime::now()) {
            return Some(format!("it is {} (session.until)", time(until)));
        }
        let (_, length) = self.longest.filter(|(end, _)| *end <= boottime())?;
        Some(format!("it has lasted {} (session.max_time)", humantime::format_duration(length)))
    }
}

impl Host {
    pub(super) fn look_at_deadline(&mut self) {
        if let Some(why) = self.deadline.reached() {
            self.end_resumable(&why);
        }
    }

    pub(super) fn look_at_cost(&mut self, cost: Microusd) {
        if let Some(most) = self.plan.limits.max_cost.filter(|most| cost > *most) {
            self.end_resumable(&format!("it has cost more than {most} (session.max_cost)"));
        }
    }

    /// Ends the box with the status that says: the same box again goes on where this one ended.
    pub(super) fn end_resumable(&mut self, why: &str) {
        if self.deadline.over || self.stopping.is_some() {
            return;
        }
        self.deadline.over = true;
        let reason = format!("the session ends: {why}; it can be resumed");
        event("session", &reason);
        let ending = Ending { status: exit::LATER, reason: reason.clone() };
        let (notices, spawner) = (self.plan.notices.clone(), self.spawner.clone());
        let last = (spawner.clone(), ending.clone());
        // What the operator is told may take a while; Claude is told to end meanwhile.
        let telling = thread("farewell", move || {
            if let Some(notices) = notices {
                notices.last(&reason, LAST_NOTICE);
            }
            spawner.stop(ending);
        });
        if telling.is_err() {
            let (spawner, ending) = last;
            spawner.stop(ending);
        }
        if let Some(claude) = &mut self.claude {
            claude.end();
        }
    }

    /// Whether the session ends by itself: nothing is begun any more.
    pub(super) fn is_over(&self) -> bool {
        self.deadline.over
    }
}
