//! The session's thread: what is to happen when Claude, its pane or the tmux server ends, and what the pane says.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;

use super::turns::Changes;
use super::{Event, OnExit, Plan, Session};
use crate::control::protocol::{ClaudeStart, PaneNews, PaneOrder};
use crate::report::event;
use crate::status::Board;
use crate::status::report::SessionState;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::{Ending, Exit, Remote, Spawner, thread};

/// Claude starts again after 1, 2, 4 … 60 s; a life of two minutes starts the count over.
const CLAUDE_BACKOFF: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(120));
/// The tmux server is back sooner: without it nobody sees anything.
const SERVER_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(250), Duration::from_secs(60), Duration::from_secs(30));
/// A life shorter than this never got to work: its prompt is given again, and nothing is continued.
const STILLBORN: Duration = Duration::from_secs(5);
/// How often the server's socket is looked at.
const SOCKET_CHECK: Duration = Duration::from_secs(1);
/// The pane reaps Claude and says so at once; what takes longer is not to be believed.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// The end waits so long for the operator to be told of it.
const LAST_NOTICE: Duration = Duration::from_secs(25);
/// A client of a healthy server answers at once.
pub(super) const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// What the session's thread waits for next, beside events.
pub(super) struct Timer {
    pub(super) at: Instant,
    pub(super) what: Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    StartServer,
    StartClaude,
}

pub(super) struct Pane {
    id: u64,
    pid: i32,
    stream: UnixStream,
    /// It has said what is not so: that is logged once, and it is not waited for again.
    doubted: bool,
}

pub(super) struct Host {
    pub(super) plan: Plan,
    pub(super) spawner: Spawner,
    pub(super) board: Arc<Board>,
    pub(super) session: Session,
    pub(super) server: Option<Remote>,
    pub(super) server_id: u64,
    pub(super) server_started: Instant,
    pub(super) server_backoff: Backoff,
    pub(super) pane: Option<Pane>,
    panes: u64,
    claude_started: Option<Instant>,
    /// Claude's process (pidfd_open(2)).
    process: Option<OwnedFd>,
    claude_backoff: Backoff,
    /// Whether a life of Claude has lasted: its prompt has been worked on.
    worked: bool,
    /// When this life of Claude was given its prompt, until its first turn: it is not idle then.
    pub(super) prompted: Option<Instant>,
    /// Whether the next life continues the conversation, and whether the present one was to.
    resume_next: bool,
    resumed: bool,
    pub(super) timer: Option<Timer>,
    looked: Instant,
    silent_since: Option<Instant>,
    pub(super) stopping: Option<Sender<()>>,
    pub(super) changes: Changes,
}

impl Host {
    pub(super) fn new(plan: Plan, spawner: Spawner, board: Arc<Board>, session: Session) -> Self {
        Self {
            // What was restored is gone on with.
            resume_next: plan.start.resume,
            plan,
            spawner,
            board,
            session,
            server: None,
            server_id: 0,
            server_started: Instant::now(),
            server_backoff: SERVER_BACKOFF,
            pane: None,
            panes: 0,
            claude_started: None,
            process: None,
            claude_backoff: CLAUDE_BACKOFF,
            worked: false,
            prompted: None,
            resumed: false,
            timer: Some(Timer { at: Instant::now(), what: Due::StartServer }),
            looked: Instant::now(),
            silent_since: None,
            stopping: None,
            changes: Changes::new(Instant::now()),
        }
    }

    pub(super) fn run(mut self, events: &Receiver<Event>) {
        loop {
            let wait = self.timer.as_ref().map_or(SOCKET_CHECK, |timer| {
                timer.at.saturating_duration_since(Instant::now()).min(SOCKET_CHECK)
            });
            match events.recv_timeout(wait) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.looked.elapsed() >= SOCKET_CHECK {
                self.looked = Instant::now();
                self.look_at_socket();
                self.look_at_claude();
                self.catch_up();
            }
            if let Some(timer) = self.timer.take_if(|timer| timer.at <= Instant::now()) {
                match timer.what {
                    Due::StartServer => self.start_server(),
                    Due::StartClaude => self.start_claude(),
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Pane(stream, pid) => self.pane_joined(stream, pid),
            Event::News(id, news) if self.is_pane(id) => self.hear(news),
            Event::PaneGone(id) if self.is_pane(id) => self.pane_gone(),
            Event::Turned(turn, text) => self.turned(turn, &text),
            Event::ServerEnded(id, exit) if id == self.server_id => self.server_ended(exit),
            // From a pane or a server that has been replaced.
            Event::News(..) | Event::PaneGone(_) | Event::ServerEnded(..) => {}
            Event::Stop(done) => self.stop(done),
        }
    }

    fn is_pane(&self, id: u64) -> bool {
        self.pane.as_ref().is_some_and(|pane| pane.id == id)
    }

    fn pane_joined(&mut self, stream: UnixStream, pid: i32) {
        if self.pane.is_some() || self.parent(pid) != self.server.as_ref().map(Remote::pid) {
            // One pane at a time, and a child of the server's: no other process takes its place by mistake.
            return;
        }
        self.panes += 1;
        let id = self.panes;
        let Ok(reader) = stream.try_clone() else { return };
        if stream.set_read_timeout(None).is_err() {
            return;
        }
        // Whoever runs as the agent can be first to say that it is the pane, and then learns the token: `status` says
        // so. It harms the agent's own session only.
        let events = self.session.events.clone();
        if let Err(error) = thread("pane", move || listen(id, reader, &events)) {
            // The pane's process ends with its connection, and the session is made anew.
            event("session", &format!("cannot listen to the pane: {error}"));
            return self.end_server();
        }
        self.pane = Some(Pane { id, pid, stream, doubted: false });
        if self.stopping.is_none() {
            self.start_claude();
        }
    }

    fn start_claude(&mut self) {
        if !Path::new(&self.plan.start.program).exists() {
            let cause = format!("{} is missing in the image", self.plan.start.program);
            return self.claude_ended(&cause, None);
        }
        let resume = self.resume_next;
        self.resumed = resume;
        let prompt = if self.worked { None } else { self.plan.start.prompt.clone() };
        self.prompted = prompt.is_some().then(Instant::now);
        let start = ClaudeStart { resume, prompt, ..self.plan.start.clone() };
        self.claude_started = Some(Instant::now());
        self.board.session(|session| {
            session.state = SessionState::Starting;
            session.detail = String::new();
        });
        self.order(&PaneOrder::Start(Box::new(start)));
    }

    fn order(&mut self, order: &PaneOrder) {
        let Some(pane) = &mut self.pane else { return };
        let mut line = serde_json::to_vec(order).unwrap_or_default();
        line.push(b'\n');
        // A pane that does not read is a pane that is gone; its reader tells.
        drop(pane.stream.write_all(&line));
    }

    fn hear(&mut self, news: PaneNews) {
        if self.claude_started.is_none() {
            // Each start has one outcome: a pane that goes on telling is none of ours, and must not fill the log.
            return;
        }
        let patience =
            if self.pane.as_ref().is_some_and(|pane| pane.doubted) { Duration::ZERO } else { LAST_MOMENT };
        match news {
            PaneNews::Started { .. } | PaneNews::Failed { .. } if self.process.is_some() => {}
            PaneNews::Started { pid } => {
                let Some(claude) = self.watch_claude(pid) else {
                    return self.doubt("the pane names a process that is not its own; it is not believed");
                };
                self.process = Some(claude);
                *self.session.claude.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
                event("session", &format!("Claude Code is running (pid {pid})"));
                self.board.session(|session| {
                    session.state = SessionState::Running;
                    session.claude_pid = Some(pid);
                });
            }
            PaneNews::Exited { .. } if self.alive(patience) => {
                self.doubt("the pane says that Claude Code has ended, but its process lives");
            }
            PaneNews::Exited { code, signal } => {
                let exit = match (code, signal) {
                    (_, Some(signal)) if (1..=64).contains(&signal) => Exit::Signal(signal),
                    (_, Some(_)) => Exit::Code(-1),
                    (code, None) => Exit::Code(code.unwrap_or(-1)),
                };
                self.claude_ended(&format!("Claude Code ended ({exit})"), Some(exit));
            }
            PaneNews::Failed { cause } => {
                let cause = crate::report::harmless(&cause, 200);
                self.claude_ended(&format!("Claude Code can't be started: {cause}"), None);
            }
        }
    }

    fn doubt(&mut self, what: &str) {
        if let Some(pane) = self.pane.as_mut().filter(|pane| !pane.doubted) {
            pane.doubted = true;
            event("session", what);
        }
    }

    /// The process that the pane started, by a descriptor that can't come to mean another one. It must be the pane's
    /// own child and of the agent's uid: the news is hearsay.
    fn watch_claude(&self, pid: i32) -> Option<OwnedFd> {
        let process = rustix::process::Pid::from_raw(pid)?;
        let claude = rustix::process::pidfd_open(process, PidfdFlags::empty()).ok()?;
        // Looked at after the descriptor was taken: what is seen now is what it means.
        let seen = procfs::process::Process::new(pid).ok()?;
        let own = seen.uid().ok()? == self.plan.identity.uid;
        (own && self.parent(pid) == self.pane.as_ref().map(|pane| pane.pid)).then_some(claude)
    }

    fn parent(&self, pid: i32) -> Option<i32> {
        procfs::process::Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.ppid).ok()
    }

    pub(super) fn claude_runs(&self) -> bool {
        self.process.is_some()
    }

    /// Whether Claude's process still lives after `patience`; the kernel says so, not the pane.
    fn alive(&self, patience: Duration) -> bool {
        let Some(process) = &self.process else { return false };
        let limit = Timespec::try_from(patience).ok();
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        poll(&mut fds, limit.as_ref()) == Ok(0)
    }

    /// Claude is gone and the pane did not say so: it is stopped, or not ours any more.
    fn look_at_claude(&mut self) {
        if self.process.is_some() && !self.alive(Duration::ZERO) {
            match self.silent_since {
                None => self.silent_since = Some(Instant::now()),
                Some(since) if since.elapsed() > LAST_MOMENT => self.pane_gone(),
                Some(_) => {}
            }
        } else {
            self.silent_since = None;
        }
    }

    pub(super) fn claude_gone(&mut self) {
        self.process = None;
        *self.session.claude.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let Some(started) = self.claude_started.take() else { return };
        let lasted = started.elapsed() >= STILLBORN;
        self.worked |= lasted;
        // "No conversation found to continue" ends at once: the next life begins a new one.
        self.resume_next = lasted || (self.resume_next && !self.resumed);
    }

    fn claude_ended(&mut self, how: &str, exit: Option<Exit>) {
        let lived = self.claude_started.map(|started| started.elapsed()).unwrap_or_default();
        self.claude_gone();
        self.board.session(|session| {
            session.state = SessionState::Exited;
            session.claude_pid = None;
            // What it said last, a question perhaps, is not how it is now.
            how.clone_into(&mut session.detail);
            session.last_exit = Some(how.to_owned());
        });
        if self.stopping.is_some() {
            return self.end_server();
        }
        match self.plan.on_exit {
            OnExit::Restart => self.back_off_claude(how, lived),
            OnExit::Shell => {
                event("session", &format!("{how}; the pane is a shell now (session.on_exit)"));
                self.order(&PaneOrder::Shell);
                self.pane = None;
                if let Some(notices) = &self.plan.notices {
                    notices.finished(&format!("the session is over: {how}"));
                }
            }
            OnExit::Stop => {
                event("session", &format!("{how}; the box ends (session.on_exit)"));
                if let Some(notices) = &self.plan.notices {
                    notices.last(how, LAST_NOTICE);
                }
                let status = exit.map_or(1, |exit| u8::try_from(exit.status() & 0xff).unwrap_or(1));
                self.spawner.finish(Ending { status, reason: how.to_owned() });
            }
        }
    }

    fn back_off_claude(&mut self, how: &str, lived: Duration) {
        let pause = self.claude_backoff.after(lived);
        event("session", &format!("{how}; again in {} s", pause.as_secs()));
        let text = format!(
            "innkeeper: {how}. It starts again in {} s; the shell below is yours meanwhile.",
            pause.as_secs()
        );
        self.order(&PaneOrder::Say { text });
        self.board.session(|session| {
            session.state = SessionState::Backoff;
            session.restarts += 1;
            how.clone_into(&mut session.detail);
        });
        self.timer = Some(Timer { at: Instant::now() + pause, what: Due::StartClaude });
    }

    /// The pane's process is gone although we did not end it: the whole session is made anew.
    fn pane_gone(&mut self) {
        self.pane = None;
        self.claude_gone();
        if self.stopping.is_none() {
            event("session", "the pane of Claude Code is gone; the session is made again");
        }
        self.end_server();
    }

    pub(super) fn end_server(&mut self) {
        if let Some(server) = &self.server {
            server.signal(Signal::SIGTERM);
        }
    }

    fn stop(&mut self, done: Sender<()>) {
        self.timer = None;
        let claude = *self.session.claude.lock().unwrap_or_else(PoisonError::into_inner);
        if self.server.is_none() {
            done.send(()).ok();
            return;
        }
        self.stopping = Some(done);
        if claude.is_some() && self.pane.is_some() {
            // The pane tells its child to end; its exit, or the pane's, ends the server.
            self.order(&PaneOrder::End);
        } else {
            self.end_server();
        }
    }
}

/// Reads what a pane says: short lines, and not many of them.
fn listen(id: u64, stream: UnixStream, events: &SyncSender<Event>) {
    let mut reader = BufReader::with_capacity(MAX_NEWS, stream);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_NEWS).unwrap_or(u64::MAX);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        let news = match read {
            Ok(1..) if line.ends_with(b"\n") => serde_json::from_slice::<PaneNews>(&line).ok(),
            Ok(_) | Err(_) => None,
        };
        let Some(news) = news else { break };
        if events.send(Event::News(id, news)).is_err() {
            return;
        }
        crate::supervisor::backoff::pause(NEWS_PAUSE);
    }
    drop(events.send(Event::PaneGone(id)));
}

/// A line of news is a number and a word.
const MAX_NEWS: usize = 1024;
/// News faster than this is no pane of ours; it must not flood the log.
const NEWS_PAUSE: Duration = Duration::from_millis(50);
