//! `innkeeper attach`: boot progress, then the session through a pty relay.
//!
//! The tmux client runs in a child that has its own terminal and session and has become the agent: what the server
//! makes it do, it does with the agent's rights and on a terminal that is not the operator's. The root side copies
//! bytes and window sizes, and filters what goes to the operator's terminal.

use std::io::Read;
use std::time::{Duration, Instant};

use rustix::termios::tcgetattr;

use super::relay::{Keys, Left, relay};
use super::terminal::Filter;
use super::tty::say;
use crate::account::{Account, Accounts};
use crate::control::client::{self, ClientError};
use crate::control::protocol::{Place, Request, Response};
use crate::seats::{Seat, SeatError};
use crate::status::report::{Phase, Step, StepState};
use crate::supervisor::backoff::pause;

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("standard input is not a terminal")]
    NoTerminal,
    #[error("cannot find the agent's user")]
    Account(#[from] crate::account::AccountError),
    #[error("cannot ask the box")]
    Ask(#[from] ClientError),
    #[error("the box has failed to boot: {0}")]
    BootFailed(String),
    #[error("the box is stopping")]
    Stopping,
    #[error("this box works headless and has no terminal; its standard output has what it does: docker logs")]
    Headless,
    #[error("the box ended while it booted; its log says why")]
    Gone,
    #[error("cannot take a seat in the box")]
    Seat(#[source] SeatError),
    #[error("only root has a root shell")]
    NotRoot,
    #[error("cannot make a pseudo-terminal")]
    Pty(#[source] rustix::io::Errno),
    #[error("cannot set the terminal's mode")]
    Mode(#[source] rustix::io::Errno),
    #[error("cannot start the tmux client")]
    Spawn(#[source] std::io::Error),
    #[error("cannot wait for the terminal")]
    Wait(#[source] std::io::Error),
}

/// How `attach` was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attach {
    /// On PID 1's own terminal (`docker run -it`): detaching leaves a line, not the box.
    pub console: bool,
    pub read_only: bool,
    /// The session may write the operator's clipboard.
    pub clipboard: bool,
}

/// Shows the boot, then the session, until the operator detaches or the session ends.
pub fn run(attach: Attach) -> Result<(), AttachError> {
    let stdin = rustix::stdio::stdin();
    tcgetattr(stdin).map_err(|_| AttachError::NoTerminal)?;
    let agent = Accounts::find()?.agent;
    loop {
        wait_for_session(attach.console)?;
        let left = visit(&agent, attach)?;
        let end = end();
        if !attach.console {
            say(match (left, end) {
                (Left::Stopped, _) => "[left: the session's client was stopped again and again]\n",
                (Left::Program | Left::Escape | Left::Told, End::Detached) => "[the box keeps running]\n",
                (Left::Program | Left::Escape | Left::Told, End::Session) => "[the session ended]\n",
                (Left::Program | Left::Escape | Left::Told, End::Box) => "[the box is stopping]\n",
            });
            return Ok(());
        }
        let line = match end {
            End::Detached => "[the box keeps running. Enter: back to the session, Ctrl-C: stop the box]\n",
            End::Session | End::Box => {
                "[the session ended. Enter: wait for the next one, Ctrl-C: stop the box]\n"
            }
        };
        say(line);
        if !wait_for_enter()? {
            return Ok(());
        }
    }
}

/// One stay in the session. Only root's are written down: the agent may look at its own session as it likes.
fn visit(agent: &Account, attach: Attach) -> Result<Left, AttachError> {
    let is_root = nix::unistd::geteuid().is_root();
    let seat = is_root.then(|| Seat::take(Place::Session, attach.read_only));
    let seat = seat.transpose().map_err(AttachError::Seat)?;
    let start = |slave: &_| super::client::start(agent, slave, attach);
    let keys = if attach.read_only { Keys::Dropped } else { Keys::Typed };
    relay(start, Filter::new(attach.clipboard), seat, keys).map(|end| end.left)
}

/// Whether Enter came; `false` when the terminal is gone.
fn wait_for_enter() -> Result<bool, AttachError> {
    let mut byte = [0; 1];
    loop {
        match std::io::stdin().lock().read(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) if byte == *b"\n" || byte == *b"\r" => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(AttachError::Wait(error)),
        }
    }
}

/// How often the boot's progress is asked.
const PROGRESS: Duration = Duration::from_millis(100);

/// A box that was just started has no control socket yet. PID 1's own console waits as long as PID 1 lives.
const NO_SOCKET: Duration = Duration::from_secs(2);

fn wait_for_session(console: bool) -> Result<(), AttachError> {
    let mut shown = 0;
    let mut last_state = String::new();
    let started = Instant::now();
    loop {
        let answer = match client::ask(&Request::Progress) {
            Err(ClientError::Connect(_)) if shown > 0 && !console => return Err(AttachError::Gone),
            Err(ClientError::Connect(_)) if console || started.elapsed() < NO_SOCKET => {
                pause(PROGRESS);
                continue;
            }
            answer => answer?,
        };
        let Response::Progress { phase, steps, session, open } = answer else {
            return Err(AttachError::BootFailed("it does not tell how far it is".to_owned()));
        };
        shown += show_steps(steps.get(shown..).unwrap_or_default());
        if session.headless {
            return Err(AttachError::Headless);
        }
        match phase {
            Phase::Failed => return Err(AttachError::BootFailed(failed_step(&steps))),
            Phase::Stopping => return Err(AttachError::Stopping),
            Phase::Ready if open => return Ok(()),
            Phase::Ready | Phase::Booting => {}
        }
        let state = session.detail.clone();
        if phase == Phase::Ready && state != last_state && !state.is_empty() {
            say(&format!("session: {}\n", crate::report::inert(&state)));
            last_state = state;
        }
        pause(PROGRESS);
    }
}

/// Prints the steps that are done; returns how many.
fn show_steps(steps: &[Step]) -> usize {
    let done = steps.iter().take_while(|step| !matches!(step.state, StepState::Pending | StepState::Running));
    let mut count = 0;
    for step in done {
        let ms = step.ms.map_or_else(String::new, |ms| format!("{ms:.1} ms"));
        let state = match step.state {
            StepState::Failed => "FAILED",
            StepState::Degraded => "degraded",
            StepState::Ok | StepState::Pending | StepState::Running => "ok",
        };
        say(&format!("{:<14} {state:<9} {ms:>10}  {}\n", step.name, crate::report::inert(&step.detail)));
        count += 1;
    }
    count
}

fn failed_step(steps: &[Step]) -> String {
    let failed = steps.iter().find(|step| step.state == StepState::Failed);
    failed.map_or_else(|| "see its log".to_owned(), |step| format!("{}: {}", step.name, step.detail))
}

#[derive(Clone, Copy)]
enum End {
    Detached,
    Session,
    Box,
}

/// Whether the operator left or the session ended. The client's exit status is the agent's to choose (`detach -E`), so
/// the box is asked.
fn end() -> End {
    match client::ask(&Request::Progress) {
        Ok(Response::Progress { open: true, phase: Phase::Ready, .. }) => End::Detached,
        Ok(Response::Progress { phase: Phase::Stopping, .. }) | Err(ClientError::Connect(_)) => End::Box,
        Ok(_) | Err(_) => End::Session,
    }
}
