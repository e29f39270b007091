//! `innkeeper status --watch`: the box on a live terminal screen, with keys for what the operator decides.
//!
//! What is shown and what a key does is in `state` and `view`, which are pure; this reads keys, signals and the box's
//! answers, and leaves the terminal as it was, however it ends. Everything on the screen is inert text: the report is
//! rendered so, and the backend writes no control character of a cell.

mod keys;
mod screen;
mod state;
mod view;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use ratatui_core::terminal::Terminal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit};
use crate::status::report::Report;
use keys::Keys;
use screen::{Output, RawMode};
use state::{Action, Answer, State, Step};

#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error("standard input and output are not a terminal; `innkeeper status` works without one")]
    NoTerminal,
    #[error("cannot set the terminal's mode")]
    Mode(#[source] rustix::io::Errno),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot start the thread that asks the box")]
    Thread(#[source] std::io::Error),
    #[error("cannot write to the terminal")]
    Write(#[source] std::io::Error),
}

/// How often the box is asked: what changes is seen, and PID 1 hardly notices.
const INTERVAL: Duration = Duration::from_secs(1);
/// After an escape character the rest of a key's sequence comes at once.
const ESCAPE: Duration = Duration::from_millis(50);

/// Runs until `q`, a signal, or the end of the terminal; returns the exit status.
#[must_use]
pub fn run() -> u8 {
    match watch() {
        Ok(0) => exit::OK,
        Ok(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Err(error @ WatchError::NoTerminal) => {
            report::last_words("status", &error.to_string());
            exit::USAGE
        }
        Err(error) => {
            report::last_words("status", &report::chain(&error));
            exit::INTERNAL
        }
    }
}

/// What the loop waits for beside keys.
struct Sources {
    signals: UnixStream,
    answers: UnixStream,
    answered: Receiver<Answer>,
    ask: Sender<Question>,
}

enum Question {
    Report,
    Do(Action),
}

/// The signal that ended it, or zero.
fn watch() -> Result<i32, WatchError> {
    let raw = RawMode::enter()?;
    let sources = Sources::open()?;
    let result = follow(&sources);
    drop(raw);
    result
}

impl Sources {
    fn open() -> Result<Self, WatchError> {
        let (signals, told) = UnixStream::pair().map_err(WatchError::Signals)?;
        signals.set_nonblocking(true).map_err(WatchError::Signals)?;
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH] {
            // The number itself goes through: a pipe of its own for each is more to wait for.
            let number = u8::try_from(signal).unwrap_or_default();
            let told = told.try_clone().map_err(WatchError::Signals)?;
            told.set_nonblocking(true).map_err(WatchError::Signals)?;
            register(signal, number, told).map_err(WatchError::Signals)?;
        }
        let (answers, wake) = UnixStream::pair().map_err(WatchError::Thread)?;
        answers.set_nonblocking(true).map_err(WatchError::Thread)?;
        let (ask, questions) = mpsc::channel();
        let (answer, answered) = mpsc::channel();
        // A thread of its own: a box that hangs must not keep anybody from leaving.
        crate::supervisor::thread("ask", move || ask_box(&questions, &answer, wake))
            .map_err(WatchError::Thread)?;
        Ok(Self { signals, answers, answered, ask })
    }
}

/// One pipe for each signal, joined by a thread: a handler may only write one octet, which says nothing.
fn register(signal: i32, number: u8, mut told: UnixStream) -> std::io::Result<()> {
    let (mut heard, handler) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal, handler)?;
    crate::supervisor::thread("signal", move || {
        let mut octet = [0; 1];
        while heard.read_exact(&mut octet).is_ok() {
            // The loop reads them all; a full pipe holds the same signal already.
            drop(std::io::Write::write(&mut told, &[number]));
        }
    })
}

fn ask_box(questions: &Receiver<Question>, answer: &Sender<Answer>, mut wake: UnixStream) {
    while let Ok(question) = questions.recv() {
        let said = match question {
            Question::Report => Answer::Report(report_of_box()),
            Question::Do(action) => Answer::Done(done(&action)),
        };
        if answer.send(said).is_err() || std::io::Write::write(&mut wake, &[1]).is_err() {
            return;
        }
    }
}

fn report_of_box() -> Result<Box<Report>, String> {
    match client::ask(&Request::Status) {
        Ok(Response::Status { report }) => Ok(report),
        Ok(other) => Err(client::reason(other)),
        Err(error) => Err(report::chain(&error)),
    }
}

/// What came of what the operator decided.
fn done(action: &Action) -> Result<String, String> {
    let request = match action {
        Action::Allow { rule, for_s } => {
            Request::Allow { rules: vec![rule.clone()], for_s: *for_s, reason: None }
        }
        Action::Grant { id, for_s, .. } => Request::Grant { id: *id, for_s: *for_s },
        Action::Refuse { id } => Request::Refuse { id: *id, reason: None },
    };
    match client::ask(&request) {
        Ok(Response::Changed { said, .. }) => Ok(said.join("; ")),
        Ok(Response::Request { request }) => Ok(format!("{}: {}", request.rule, request.state)),
        Ok(other) => Err(client::reason(other)),
        Err(error) => Err(report::chain(&error)),
    }
}

fn follow(sources: &Sources) -> Result<i32, WatchError> {
    let mut terminal = Terminal::new(Output::default()).map_err(WatchError::Write)?;
    let (mut state, mut keys) = (State::default(), Keys::default());
    let mut next = Instant::now();
    let mut shown = std::mem::discriminant(&state.mode);
    let mut waiting = false;
    loop {
        if Instant::now() >= next && !waiting && state.asks() {
            // The thread lives as long as this.
            waiting = sources.ask.send(Question::Report).is_ok();
            next = Instant::now() + INTERVAL;
        }
        state.now = SystemTime::now();
        let scene = std::mem::discriminant(&state.mode);
        let lost = std::mem::take(&mut terminal.backend_mut().lost);
        if std::mem::replace(&mut shown, scene) != scene || lost {
            // A question stands on the screen whole, whatever a lossy line made of what was there before.
            terminal.clear().map_err(WatchError::Write)?;
        }
        terminal.draw(|frame| view::draw(frame, &state)).map_err(WatchError::Write)?;
        let ready = wait(sources, pause(&keys, waiting || !state.asks(), next))?;
        while let Ok(answer) = sources.answered.try_recv() {
            waiting &= !matches!(answer, Answer::Report(_));
            if matches!(answer, Answer::Done(_)) {
                next = Instant::now();
            }
            state.hear(answer);
        }
        drain(&sources.answers);
        for signal in drain(&sources.signals) {
            if i32::from(signal) != SIGWINCH {
                return Ok(i32::from(signal));
            }
        }
        let pressed = match ready {
            Ready::Keys => match read_keys() {
                Some(bytes) => keys.press(&bytes),
                None => return Ok(SIGHUP),
            },
            Ready::Other => keys.rest(),
        };
        for key in pressed {
            match state.press(key) {
                Step::Stay => {}
                Step::Leave => return Ok(0),
                Step::Do(action) => drop(sources.ask.send(Question::Do(action))),
            }
        }
    }
}

/// How long nothing is to be done; where the box is not to be asked, the time of the next question is over for long.
fn pause(keys: &Keys, idle: bool, next: Instant) -> Duration {
    let limit = match (keys.is_open(), idle) {
        (true, _) => ESCAPE,
        (false, true) => INTERVAL,
        (false, false) => next.saturating_duration_since(Instant::now()),
    };
    limit.max(Duration::from_millis(10))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Keys,
    Other,
}

fn wait(sources: &Sources, limit: Duration) -> Result<Ready, WatchError> {
    let stdin = rustix::stdio::stdin();
    let poll_for = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let fds: [BorrowedFd<'_>; 3] = [stdin, sources.signals.as_fd(), sources.answers.as_fd()];
    let mut fds = fds.map(poll_for);
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(WatchError::Signals(error.into())),
    }
    // A terminal that is gone shows as an error, which the reading tells.
    let typed = fds.first().is_some_and(|fd| !fd.revents().is_empty());
    Ok(if typed { Ready::Keys } else { Ready::Other })
}

/// None when the terminal is gone.
fn read_keys() -> Option<Vec<u8>> {
    let mut buffer = vec![0; 256];
    match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
        Ok(0) => None,
        Ok(count) => {
            buffer.truncate(count);
            Some(buffer)
        }
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Some(Vec::new()),
        Err(_) => None,
    }
}

fn drain(mut stream: &UnixStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 64]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    all
}
