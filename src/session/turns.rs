//! What Claude's hooks say of its turns: bounded, rate-limited, and believed of a Claude that runs only.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::hook::MAX_TEXT;
use super::host::Host;
use crate::control::protocol::Turn;
use crate::report::{bounded, inert};
use crate::status::report::{Session, SessionState};

/// News at once, and after that per second: Claude takes seconds for a turn.
const BURST: f64 = 20.0;
const PER_SECOND: f64 = 1.0;

/// What `status` says of a Claude that waits, and what notices know it by.
pub const NO_TASK: &str = "it has no task";
/// What the hook says of a turn that a usage limit ended.
const RATE_LIMIT: &str = "rate_limit";
pub const FINISHED: &str = "it has finished its turn";

/// How many more news are heard now.
#[derive(Debug)]
pub(super) struct Patience(Mutex<(f64, Instant)>);

impl Default for Patience {
    fn default() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }
}

impl Patience {
    pub(super) fn has_room(&self) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        left.0 = (left.0 + now.saturating_duration_since(left.1).as_secs_f64() * PER_SECOND).min(BURST);
        left.1 = now;
        if left.0 < 1.0 {
            return false;
        }
        left.0 -= 1.0;
        true
    }
}

/// Changes of the session's state by hooks that are written at once, and after that one per so long a time. A person's
/// turns are told as they come; an agent that flips its state all night fills no log.
const CHANGES: f64 = 4.0;
const PER_CHANGE: Duration = Duration::from_secs(60);

/// Whether a change of state by hearsay is written now.
#[derive(Debug)]
pub(super) struct Changes {
    left: f64,
    at: Instant,
}

impl Changes {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: CHANGES, at: now }
    }

    pub(super) fn may_write(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed / PER_CHANGE.as_secs_f64()).min(CHANGES);
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// The agent's words: their lines stay, all else that acts on a terminal does not.
pub(crate) fn words(text: &str) -> String {
    bounded(text, MAX_TEXT).lines().map(inert).collect::<Vec<_>>().join("\n")
}

impl Host {
    pub(super) fn turned(&mut self, turn: Turn, text: &str) {
        if !self.claude_runs() || self.stopping.is_some() || turn == Turn::Idle && self.prompted.is_some() {
            return;
        }
        self.prompted = None;
        if turn == Turn::Failed && text.starts_with(RATE_LIMIT) {
            return self.limit_reached();
        }
        let text = words(text);
        let first = text.lines().next().unwrap_or_default();
        let (state, detail) = match turn {
            Turn::Began => (SessionState::Running, String::new()),
            Turn::Idle => (SessionState::Waiting, NO_TASK.to_owned()),
            Turn::Asks => (SessionState::Waiting, format!("it asks: {first}")),
            Turn::Ended => (SessionState::Waiting, FINISHED.to_owned()),
            Turn::Failed => (SessionState::Waiting, format!("its turn failed: {first}")),
        };
        let was = self.board.update(|report| report.session.state);
        match was {
            SessionState::Running | SessionState::Waiting => {}
            // That nobody types says nothing of a session that waits for something else.
            SessionState::Limited if !matches!(turn, Turn::Asks | Turn::Idle) => {}
            _ => return,
        }
        if matches!(turn, Turn::Began | Turn::Ended) {
            self.limit.over();
        }
        if turn == Turn::Ended {
            self.limit.worked();
        }
        let change = |session: &mut Session| {
            (session.state, session.until) = (state, None);
            session.detail = bounded(&detail, 200);
            if turn == Turn::Ended && !text.is_empty() {
                session.last_message = Some(text.clone());
            }
        };
        self.board.hearsay(change, || self.changes.may_write(Instant::now()));
    }

    /// Writes the state that hooks have told by now, where that was put off.
    pub(super) fn catch_up(&mut self) {
        self.board.hearsay(|_| {}, || self.changes.may_write(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::{Changes, Patience, words};
    use crate::audit::{self, What};
    use crate::status::Board;
    use crate::status::report::{BoxIdentity, SessionState};
    use std::time::{Duration, Instant};

    #[test]
    fn an_hour_of_flips_is_a_line_a_minute_and_the_log_ends_with_what_is() {
        let (board, start) = (Board::new(BoxIdentity::default()), Instant::now());
        let mut changes = Changes::new(start);
        for second in 0..3600 {
            let state = if second % 2 == 0 { SessionState::Running } else { SessionState::Waiting };
            let now = start + Duration::from_secs(second);
            let change = |session: &mut crate::status::report::Session| {
                session.state = state;
                session.detail = "flip-flop".into();
            };
            board.hearsay(change, || changes.may_write(now));
            assert_eq!(board.report(None).session.state, state, "what is shown is never late");
        }
        let written = || {
            let entries = audit::page(0, false, usize::MAX).entries;
            let states = entries.into_iter().filter_map(|entry| match entry.what {
                What::Session(change) if change.detail == "flip-flop" => Some(change.state),
                _ => None,
            });
            states.collect::<Vec<_>>()
        };
        assert!((4..=64).contains(&written().len()), "{}", written().len());
        board.hearsay(|session| session.state = SessionState::Running, || true);
        board.hearsay(|session| session.state = SessionState::Waiting, || false);
        assert_eq!(written().last(), Some(&SessionState::Running));
        board.hearsay(|_| {}, || true);
        assert_eq!(written().last(), Some(&SessionState::Waiting), "it catches up");
        let count = written().len();
        board.hearsay(|_| {}, || true);
        assert_eq!(written().len(), count, "once");
    }

    #[test]
    fn a_flood_of_news_is_not_heard() {
        let patience = Patience::default();
        assert!((20..25).contains(&(0..10_000).filter(|_| patience.has_room()).count()));
    }

    #[test]
    fn the_agents_words_are_inert_and_keep_their_lines() {
        assert_eq!(words("a\x1b]0;t\x07b\r\n\u{202e}c"), "a\\u{1b}]0;t\\u{7}b\n\\u{202e}c");
        assert_eq!(words(&"x".repeat(9000)).chars().count(), 2001);
    }
}
