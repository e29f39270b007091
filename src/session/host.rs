//! The session's thread: what is to happen when Claude, its pane or the tmux server ends.
//!
//! Claude is PID 1's own child on a terminal of its own; tmux and the pane in it only show it. Each of them ends and comes
//! back alone.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::termios::Winsize;

use super::claude::{Ended, Running};
use super::deadline::Deadline;
use super::limits::Limit;
use super::orders::Ordered;
use super::turns::Changes;
use super::{Event, Plan, Session, pane, pty};
use crate::channel;
use crate::control::protocol::{PaneNews, PaneOrder};
use crate::report::event;
use crate::status::Board;
use crate::status::report::SessionState;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::{Remote, Spawner, thread};

/// Claude starts again after 1, 2, 4 … 60 s; a life of two minutes starts the count over.
pub(super) const CLAUDE_BACKOFF: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(120));
/// The tmux server is back sooner: without it nobody sees anything.
pub(super) const SERVER_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(250), Duration::from_secs(60), Duration::from_secs(30));
/// How often the server's socket, the clock and the memory are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Claude waits so long for a pane to show it, and then works unseen.
const UNSEEN: Duration = Duration::from_secs(10);
/// A pane is back sooner and shows what came meanwhile; after that nobody holds Claude up.
const BLIND: Duration = Duration::from_secs(2);
/// How often what nobody reads is thrown away: while there is something, and else.
const DISCARDS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];
/// A client of a healthy server answers at once.
pub(super) const CLIENT_LIMIT: Duration = Duration::from_secs(10);
/// Of the time that a stop may take, Claude has so much before it is killed.
const GRACE: f64 = 0.8;
/// A pane reads its orders at once.
const ORDER_LIMIT: Duration = Duration::from_millis(200);

pub(super) struct Pane {
    id: u64,
    stream: UnixStream,
}

/// The box stops: whom to tell, and when patience ends.
pub(super) struct Stopping {
    pub(super) done: Sender<()>,
    kill_at: Instant,
}

/// How far Claude's lives have come.
#[derive(Debug, Default)]
pub(super) struct Course {
    /// A life has lasted: its prompt has been worked on.
    pub(super) worked: bool,
    /// The next life continues the conversation.
    pub(super) resume_next: bool,
    /// The present one was to.
    pub(super) resumed: bool,
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
    pub(super) server_due: Option<Instant>,
    pub(super) pane: Option<Pane>,
    panes: u64,
    pub(super) claude: Option<Running>,
    pub(super) lives: u64,
    pub(super) claude_backoff: Backoff,
    pub(super) claude_due: Option<Instant>,
    /// Whether a Claude was started yet.
    pub(super) begun: bool,
    /// What Claude wrote last is being shown; then it is said what comes next.
    pub(super) ended: Option<Ended>,
    /// The master of Claude's terminal, and how large the last one was.
    pub(super) master: Option<OwnedFd>,
    pub(super) size: Winsize,
    /// When nobody reads Claude's terminal: when it is emptied next.
    discard_due: Option<Instant>,
    pub(super) course: Course,
    /// When this life of Claude was given its prompt, until its first turn: it is not idle then.
    pub(super) prompted: Option<Instant>,
    /// What the next life is told instead of the first prompt.
    pub(super) next_prompt: Option<String>,
    looked: Instant,
    pub(super) stopping: Option<Stopping>,
    pub(super) ordered: Option<Ordered>,
    pub(super) changes: Changes,
    pub(super) deadline: Deadline,
    pub(super) limit: Limit,
    /// Kills by the kernel that the box had counted at the last look.
    pub(super) oom_kills: u64,
}

impl Host {
    pub(super) fn new(plan: Plan, spawner: Spawner, board: Arc<Board>, session: Session) -> Self {
        let deadline = Deadline::new(&plan.limits);
        let oom_kills = plan.resources.oom_kills_now();
        Self {
            // What was restored is gone on with.
            course: Course {
                resume_next: plan.start.resume,
                worked: plan.goes_on.worked,
                ..Course::default()
            },
            next_prompt: plan.goes_on.interrupted.then(|| super::limits::INTERRUPTED.to_owned()),
            plan,
            spawner,
            board,
            session,
            server: None,
            server_id: 0,
            server_started: Instant::now(),
            server_backoff: SERVER_BACKOFF,
            server_due: None,
            pane: None,
            panes: 0,
            claude: None,
            lives: 0,
            claude_backoff: CLAUDE_BACKOFF,
            claude_due: None,
            begun: false,
            ended: None,
            master: None,
            size: pty::SIZE,
            discard_due: None,
            prompted: None,
            looked: Instant::now(),
            stopping: None,
            ordered: None,
            changes: Changes::new(Instant::now()),
            deadline,
            limit: Limit::default(),
            oom_kills,
        }
    }

    /// The server first; Claude when a pane can show it, or else unseen.
    pub(super) fn begin(&mut self) {
        self.begun = false;
        self.server_due = Some(Instant::now());
        self.claude_due = Some(Instant::now() + UNSEEN);
    }

    pub(super) fn run(mut self, events: &Receiver<Event>) {
        self.begin();
        let deadline = self.deadline.shown();
        self.board.session(|session| session.deadline = deadline);
        loop {
            match events.recv_timeout(self.wait()) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.looked.elapsed() >= LOOK {
                self.looked = Instant::now();
                self.look_at_socket();
                self.catch_up();
                self.look_at_deadline();
                self.look_at_limit();
                if self.claude.is_some() {
                    self.oom_kills = self.plan.resources.oom_kills_now();
                }
            }
            self.what_is_due();
        }
    }

    /// Until something is due, but never longer than to the next look.
    fn wait(&self) -> Duration {
        let dues = [
            self.server_due,
            self.claude_due,
            self.discard_due,
            self.ended.as_ref().map(|ended| ended.until),
            self.stopping.as_ref().map(|stopping| stopping.kill_at),
        ];
        let next = dues.into_iter().flatten().min();
        next.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK))
    }

    fn what_is_due(&mut self) {
        let now = Instant::now();
        if self.ended.as_ref().is_some_and(|ended| ended.until <= now) {
            self.conclude();
        }
        if self.server_due.take_if(|at| *at <= now).is_some() {
            self.start_server();
        }
        if self.claude_due.take_if(|at| *at <= now).is_some() {
            self.start_claude();
        }
        if self.stopping.as_ref().is_some_and(|stopping| stopping.kill_at <= now) {
            self.kill_the_rest();
        }
        self.discard_unseen();
    }

    /// Claude works without anybody who looks: a terminal that nobody reads would be full after 64 KiB, and Claude wait.
    fn discard_unseen(&mut self) {
        let Some(master) = self.master.as_ref().filter(|_| self.pane.is_none()) else {
            self.discard_due = None;
            return;
        };
        let now = Instant::now();
        let due = *self.discard_due.get_or_insert(now + BLIND);
        if due <= now {
            let [soon, later] = DISCARDS;
            let pause = if pty::discard(master) { soon } else { later };
            self.discard_due = Some(Instant::now() + pause);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Pane(stream, pid) => self.pane_joined(stream, pid),
            Event::News(id, news) if self.is_pane(id) => self.hear(&news),
            Event::PaneGone(id) if self.is_pane(id) => self.pane_gone(),
            Event::Turned(turn, text) => self.turned(turn, &text),
            Event::Gauged(gauge) => self.gauged(&gauge),
            Event::ClaudeEnded(id, exit) if self.is_claude(id) => self.claude_exited(exit),
            Event::ServerEnded(id, exit) if id == self.server_id => self.server_ended(exit),
            // From one that has been replaced.
            Event::News(..) | Event::PaneGone(_) | Event::ServerEnded(..) | Event::ClaudeEnded(..) => {}
            Event::Order(order, answer) => self.ordered(order, answer),
            Event::AllEnded(result) => self.all_ended(result),
            Event::Stop(done, limit) => self.stop(done, limit),
        }
    }

    fn is_pane(&self, id: u64) -> bool {
        self.pane.as_ref().is_some_and(|pane| pane.id == id)
    }

    fn is_claude(&self, id: u64) -> bool {
        self.claude.as_ref().is_some_and(|claude| claude.id == id)
    }

    /// One pane at a time, and a child of the server's: no other process takes its place by mistake. It learns nothing
    /// that the agent may not know, whoever it is.
    fn pane_joined(&mut self, stream: UnixStream, pid: i32) {
        if self.pane.is_some()
            || self.ordered.is_some()
            || parent(pid) != self.server.as_ref().map(Remote::pid)
        {
            return;
        }
        self.panes += 1;
        let id = self.panes;
        let Ok(reader) = stream.try_clone() else { return };
        let limits = stream.set_read_timeout(None).and(stream.set_write_timeout(Some(ORDER_LIMIT)));
        if limits.is_err() {
            return;
        }
        let events = self.session.events.clone();
        if let Err(error) = thread("pane", move || listen(id, reader, &events)) {
            // The pane's process ends with its connection, and the session is made anew.
            event("session", &format!("cannot listen to the pane: {error}"));
            return self.end_server();
        }
        self.pane = Some(Pane { id, stream });
        self.order(&PaneOrder::Join);
    }

    fn hear(&mut self, news: &PaneNews) {
        match *news {
            PaneNews::Joined { rows, columns } => {
                self.size = Winsize { ws_row: rows.max(1), ws_col: columns.max(1), ..pty::SIZE };
                if self.master.is_some() {
                    self.show(true);
                } else if !self.begun && self.stopping.is_none() {
                    self.start_claude();
                }
            }
            PaneNews::Drained if self.ended.is_some() => self.conclude(),
            PaneNews::Drained => {}
        }
    }

    /// Gives the pane the terminal of the Claude that lives.
    pub(super) fn show(&mut self, again: bool) {
        if let Some(master) = self.master.as_ref().and_then(|master| master.try_clone().ok()) {
            self.order_with(&PaneOrder::Show { again }, Some(&master));
        }
    }

    pub(super) fn order(&mut self, order: &PaneOrder) {
        self.order_with(order, None);
    }

    fn order_with(&mut self, order: &PaneOrder, master: Option<&OwnedFd>) {
        let Some(pane) = &self.pane else { return };
        let descriptors: Vec<_> = master.iter().map(|master| master.as_fd()).collect();
        if channel::send_with_sockets(&pane.stream, order, &descriptors, pane::MAX_ORDER).is_err() {
            // Who does not read is no pane; half an order can't be continued.
            pane.stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }

    /// The pane's process is gone although we did not end it: what shows Claude is made anew. Claude lives on.
    fn pane_gone(&mut self) {
        self.pane = None;
        if self.stopping.is_none() && self.ordered.is_none() {
            event("session", "the pane of Claude Code is gone; the session is made again");
        }
        self.end_server();
    }

    pub(super) fn end_server(&mut self) {
        if let Some(server) = &self.server {
            server.signal(Signal::SIGTERM);
            // A stopped one hears nothing.
            server.signal(Signal::SIGCONT);
        }
    }

    /// Claude is told first; what shows it stays until it has ended.
    fn stop(&mut self, done: Sender<()>, limit: Duration) {
        (self.server_due, self.claude_due, self.ended) = (None, None, None);
        self.stopping = Some(Stopping { done, kill_at: Instant::now() + limit.mul_f64(GRACE) });
        match &mut self.claude {
            Some(claude) => claude.end(),
            None => self.end_server(),
        }
        self.stopped();
    }

    fn kill_the_rest(&mut self) {
        if let Some(stopping) = &mut self.stopping {
            stopping.kill_at += LOOK;
        }
        if let Some(claude) = &mut self.claude {
            claude.kill("did not end when it was told to");
        } else if let Some(server) = &self.server {
            server.signal(Signal::SIGKILL);
        }
    }

    /// Says so when nothing is left to wait for.
    pub(super) fn stopped(&mut self) {
        if self.claude.is_none()
            && self.server.is_none()
            && let Some(stopping) = self.stopping.take_if(|_| true)
        {
            stopping.done.send(()).ok();
            self.board.session(|session| session.state = SessionState::Done);
        }
    }
}

fn parent(pid: i32) -> Option<i32> {
    procfs::process::Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.ppid).ok()
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
/// News faster than this is no pane of ours.
const NEWS_PAUSE: Duration = Duration::from_millis(50);
