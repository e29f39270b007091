//! Usage limits: the session waits for their end and goes on by itself, or the box ends and can be resumed.
//!
//! That a limit is reached, Claude's own hook says, and until when, its status line: hearsay, which can at most make the
//! agent's own session wait or end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::host::Host;
use super::turns::words;
use crate::control::protocol::Gauge;
use crate::money::Microusd;
use crate::report::{bounded, event, time};
use crate::status::report::{Session, SessionState};
use crate::supervisor::backoff::Backoff;

/// What happens at a usage limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnLimit {
    #[default]
    Wait,
    Stop,
}

/// What a Claude that was stopped by a limit is told when that is over.
pub(crate) const LIMIT_OVER: &str = "The usage limit is over. Go on with the task where you left off.";
/// What a Claude that was ended in the middle of a turn, or whose box was, is told in its next life: nobody may be there to
/// say it.
pub(crate) const INTERRUPTED: &str = "You were interrupted. Go on with the task where you left off.";
/// After the limit's end Claude goes on by itself, a minute or so later (seen); it is given so long to do so.
const OWN_ACCORD: Duration = Duration::from_secs(300);
/// Where nobody says when the limit ends, it is tried again after so long.
const UNKNOWN: Backoff =
    Backoff::new(Duration::from_secs(300), Duration::from_secs(3600), Duration::from_secs(3600));
/// The longest limit is a week's; what ends later is no limit of Claude's. A day more, as its clock and ours may differ.
pub(crate) const LONGEST: Duration = Duration::from_secs(8 * 24 * 3600);
/// A million dollars: what costs more is no true account.
const MOST: Microusd = Microusd(1_000_000_000_000);
/// Characters of the conversation's name.
const NAME: usize = 80;

/// What is known of a limit.
#[derive(Debug)]
pub(super) struct Limit {
    /// When the limit ends, as the status line says.
    told: Option<SystemTime>,
    /// Since when the session waits for its end.
    reached: Option<Instant>,
    /// When it is tried again where Claude does not do so itself.
    again: Option<Again>,
    pauses: Backoff,
    /// Claude was told to end because the limit should be over.
    restarts: bool,
    /// Which life was, and when: one that does not hear it is ended for good.
    told_to_end: Option<(i32, Instant)>,
}

/// Claude ends in a moment when it is told to (seen: 55 to 180 ms).
const DEAF: Duration = Duration::from_secs(20);

/// A moment on the wall's clock, or after a while.
#[derive(Debug, Clone, Copy)]
enum Again {
    At(SystemTime),
    After(Instant),
}

impl Default for Limit {
    fn default() -> Self {
        Self { told: None, reached: None, again: None, pauses: UNKNOWN, restarts: false, told_to_end: None }
    }
}

impl Limit {
    pub(super) fn over(&mut self) {
        (self.reached, self.again) = (None, None);
    }

    /// A turn went well: the next limit's pauses begin anew.
    pub(super) fn worked(&mut self) {
        *self = Self { told: self.told, ..Self::default() };
    }

    fn is_due(&self) -> bool {
        match self.again {
            Some(Again::At(at)) => at <= SystemTime::now(),
            Some(Again::After(at)) => at <= Instant::now(),
            None => false,
        }
    }
}

impl Host {
    /// Claude's turn failed at a usage limit.
    pub(super) fn limit_reached(&mut self) {
        let told = self.limit.told.filter(|told| *told > SystemTime::now());
        let first = self.limit.reached.is_none();
        self.limit.reached.get_or_insert_with(Instant::now);
        self.limit.again = Some(match told {
            Some(told) if self.plan.is_claude => Again::At(told + OWN_ACCORD),
            Some(told) => Again::At(told),
            None => Again::After(Instant::now() + self.limit.pauses.after(Duration::ZERO)),
        });
        let detail = match told {
            Some(_) => "a usage limit is reached; it goes on when that is over",
            None => "a usage limit is reached; nobody says until when, so it is tried again",
        };
        let change = |session: &mut Session| {
            session.state = SessionState::Limited;
            session.until = told.map(time);
            detail.clone_into(&mut session.detail);
        };
        self.board.hearsay(change, || self.changes.may_write(Instant::now()));
        if first {
            let until = told
                .map_or_else(|| "nobody says until when".to_owned(), |told| format!("until {}", time(told)));
            event("session", &format!("Claude Code says that a usage limit is reached, {until}"));
        }
        if self.plan.limits.on_limit == OnLimit::Stop {
            self.end_resumable("a usage limit is reached (session.on_limit)");
        }
    }

    /// Claude goes on by itself when the limit is over; one that does not is started anew and told so.
    pub(super) fn look_at_limit(&mut self) {
        self.end_the_deaf();
        if self.limit.reached.is_none() || !self.limit.is_due() || self.is_over() {
            return;
        }
        self.limit.over();
        let Some(claude) = &mut self.claude else { return };
        event(
            "session",
            "the usage limit should be over, and Claude Code does not go on by itself: it is started anew",
        );
        self.next_prompt = Some(LIMIT_OVER.to_owned());
        self.limit.restarts = true;
        self.limit.told_to_end = Some((claude.pid, Instant::now()));
        claude.end();
    }

    /// A Claude that was told to end for the limit's sake, and has not.
    fn end_the_deaf(&mut self) {
        let Some((pid, since)) = self.limit.told_to_end else { return };
        match &mut self.claude {
            Some(claude) if claude.pid == pid => {
                if since.elapsed() < DEAF {
                    return;
                }
                claude.kill("did not end when the usage limit was over");
            }
            Some(_) | None => {}
        }
        self.limit.told_to_end = None;
    }

    /// How long a Claude that has ended is not begun again because of a limit.
    pub(super) fn limit_pause(&mut self) -> Option<Duration> {
        if std::mem::take(&mut self.limit.restarts) {
            return Some(Duration::ZERO);
        }
        self.limit.reached?;
        let pause = match self.limit.again? {
            Again::At(at) => at.duration_since(SystemTime::now()).unwrap_or_default(),
            Again::After(at) => at.saturating_duration_since(Instant::now()),
        };
        self.limit.over();
        self.next_prompt = Some(LIMIT_OVER.to_owned());
        Some(pause)
    }

    /// What the status line tells.
    pub(super) fn gauged(&mut self, gauge: &Gauge) {
        if !self.claude_runs() || self.stopping.is_some() {
            return;
        }
        let cost = gauge.cost_microusd.filter(|cost| *cost <= MOST);
        let name = gauge.name.as_deref().map(|name| words(&bounded(name, NAME)).replace('\n', " "));
        let change = |session: &mut Session| {
            session.cost_usd = cost.map(Microusd::usd).or(session.cost_usd);
            session.context_percent =
                gauge.context_percent.map(|used| used.min(100)).or(session.context_percent);
            session.name = name.filter(|name| !name.is_empty()).or(session.name.take());
        };
        self.board.hearsay(change, || self.changes.may_write(Instant::now()));
        self.told_of_limit(gauge.limited_until);
        if let Some(cost) = cost {
            self.look_at_cost(cost);
        }
    }

    fn told_of_limit(&mut self, until: Option<u64>) {
        let now = SystemTime::now();
        let end = until.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let end = end.filter(|end| *end > now && end.duration_since(now).is_ok_and(|left| left < LONGEST));
        let news = end.is_some() && end != self.limit.told;
        self.limit.told = end.or(self.limit.told);
        // What the hook has said is put in order now that its end is known.
        if news && self.limit.reached.is_some() {
            self.limit_reached();
        }
    }
}
