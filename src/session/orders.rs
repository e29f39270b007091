//! What the operator can have done with the session: begun anew, or ended. Everything of the agent's ends first, what
//! escaped from the session too.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::Event;
use super::host::{CLAUDE_BACKOFF, Host, SERVER_BACKOFF};
use crate::control::protocol::SessionOrder;
use crate::report::event;
use crate::status::report::SessionState;
use crate::supervisor::backoff::pause;
use crate::supervisor::everybody::end_all;
use crate::supervisor::thread;

/// Claude writes down its conversation in this time; then it is ended like everybody.
const GRACE: Duration = Duration::from_secs(3);

/// What is said of a session that the operator has ended.
const PARKED: &str = "ended by the operator; go on with: innkeeper session restart";

/// What came of an order: what there is to say of it, or why not now.
pub(super) type Outcome = Result<Vec<String>, String>;

/// An order that is being carried out.
pub(super) struct Ordered {
    order: SessionOrder,
    answer: Sender<Outcome>,
}

impl Host {
    pub(super) fn ordered(&mut self, order: SessionOrder, answer: Sender<Outcome>) {
        if self.stopping.is_some() || self.ordered.is_some() {
            let reason = if self.stopping.is_some() {
                "the box is stopping"
            } else {
                "another order is being carried out"
            };
            answer.send(Err(reason.to_owned())).ok();
            return;
        }
        (self.server_due, self.claude_due, self.ended) = (None, None, None);
        self.next_prompt = None;
        self.limit.over();
        let what = match order {
            SessionOrder::Restart => "the operator has the session begun anew",
            SessionOrder::Stop => "the operator ends the session",
        };
        event("session", &format!("{what}: everything of the agent's ends first"));
        self.ordered = Some(Ordered { order, answer });
        let claude = self.claude.as_mut().map(|claude| {
            claude.end();
            PathBuf::from(format!("/proc/{}", claude.pid))
        });
        let (uid, spawner, events) =
            (self.plan.identity.uid, self.spawner.clone(), self.session.events.clone());
        let here = spawner.clone();
        let ending = thread("ending", move || {
            let patience = Instant::now() + GRACE;
            while claude.as_ref().is_some_and(|claude| claude.exists()) && Instant::now() < patience {
                pause(Duration::from_millis(10));
            }
            drop(events.send(Event::AllEnded(end_all(uid, &spawner))));
        });
        if ending.is_err() {
            // The agent has used the processes up: without grace, and on this very thread.
            let ended = end_all(uid, &here);
            self.all_ended(ended);
        }
    }

    pub(super) fn all_ended(&mut self, result: Result<usize, usize>) {
        let Some(Ordered { order, answer }) = self.ordered.take() else { return };
        self.forget_everybody();
        let left = match result {
            Ok(_) => None,
            Err(left) => {
                Some(format!("{left} processes of the agent's did not end: they hang in the kernel"))
            }
        };
        if let Some(left) = &left {
            event("session", left);
        }
        let said = match order {
            SessionOrder::Restart => {
                self.begin_anew();
                "the session begins anew, with its conversation"
            }
            SessionOrder::Stop => {
                event("session", PARKED);
                self.board.session(|session| {
                    session.state = SessionState::Parked;
                    session.until = None;
                    PARKED.clone_into(&mut session.detail);
                });
                "the session is ended; go on with: innkeeper session restart"
            }
        };
        answer.send(Ok([Some(said.to_owned()), left].into_iter().flatten().collect())).ok();
    }

    /// Those whose end was not told yet are none of ours any more.
    fn forget_everybody(&mut self) {
        self.pane = None;
        self.master = None;
        if self.server.take().is_some() {
            self.server_id += 1;
            self.board.worker("tmux", |worker| worker.pid = None);
        }
        // One whose end was not told.
        if self.claude.take().is_some() {
            self.course.resume_next = true;
        }
        self.board.session(|session| session.claude_pid = None);
    }

    fn begin_anew(&mut self) {
        // The agent's own directory, emptied as the agent: whatever it left in the socket's place.
        self.clear_socket();
        (self.server_backoff, self.claude_backoff) = (SERVER_BACKOFF, CLAUDE_BACKOFF);
        self.board.session(|session| {
            session.state = SessionState::Starting;
            "begun anew by the operator".clone_into(&mut session.detail);
        });
        self.begin();
    }
}
