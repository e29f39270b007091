//! What the box answers to those who speak of the session: Claude's hooks and status line, and the operator's orders.

use super::Innkeeper;
use crate::config::{Mode, Start};
use crate::control::protocol::{Gauge, Response, SessionOrder, Turn};

const NO_SESSION: &str = "there is no session yet";

impl Innkeeper {
    pub(super) fn hook(&self, turn: Turn, text: &str) -> Response {
        self.heard(|session| session.turn(turn, text))
    }

    pub(super) fn gauge(&self, gauge: Gauge) -> Response {
        self.heard(|session| session.gauge(gauge))
    }

    fn heard(&self, tell: impl FnOnce(&crate::session::Session) -> bool) -> Response {
        match self.session.get() {
            Some(session) if tell(session) => Response::Heard,
            Some(_) => Response::Failed { reason: "too many at a time".to_owned() },
            None => Response::Failed { reason: NO_SESSION.to_owned() },
        }
    }

    pub(super) fn order(&self, order: SessionOrder) -> Response {
        match self.session.get().map(|session| session.order(order)) {
            Some(Ok(said)) => Response::Done { said },
            Some(Err(reason)) => Response::Later { reason },
            None => self.without_session(),
        }
    }

    /// Why there is nothing to give orders to: for ever, until a task comes, or just not yet.
    fn without_session(&self) -> Response {
        if self.config.session.mode == Mode::Headless {
            let reason =
                "this box works headless (session.mode): its run begins and ends with the box; stop the box";
            return Response::Invalid { reason: reason.to_owned() };
        }
        if self.config.session.start == Start::Wait && !self.has_task() {
            let reason = "the session has no task yet, for which the box waits: innkeeper start";
            return Response::Invalid { reason: reason.to_owned() };
        }
        Response::Later { reason: format!("{NO_SESSION}: the box is still booting") }
    }
}
