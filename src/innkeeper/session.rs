//! What the box answers to those who speak of the session: Claude's hooks and status line, and the operator's orders.

use super::Innkeeper;
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
            Some(Err(reason)) => Response::Failed { reason },
            None => Response::Failed { reason: NO_SESSION.to_owned() },
        }
    }
}
