//! The agent's session: Claude Code as PID 1's own child on a terminal that tmux shows, and a shell below it.
//!
//! Root is never a client of the agent's tmux server: a client does what its server says, with the client's rights
//! (tmux PR 717, issue 3881). Every client here is a child that has become the agent first.

pub mod attach;
pub(crate) mod claude;
mod client;
pub(crate) mod deadline;
mod escape;
pub mod hook;
mod host;
pub mod launcher;
pub mod limits;
mod orders;
pub mod pane;
pub(crate) mod pty;
mod relay;
mod server;
pub mod shell;
pub mod terminal;
pub(crate) mod tty;
pub mod turns;
pub mod until;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::time::Duration;

use host::Host;
pub use limits::OnLimit;
pub use until::Until;

use crate::control::protocol::{ClaudeStart, Gauge, PaneNews, SessionOrder, Turn};
use crate::firewall::EgressLocked;
use crate::money::Microusd;
use crate::notices::Notices;
use crate::resources;
use crate::status::Board;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Exit, Spawner};

/// The distribution's tmux; one in /usr/local/bin comes before it, as it does in PATH.
const TMUX: [&str; 2] = ["/usr/local/bin/tmux", "/usr/bin/tmux"];
pub const TMUX_CONF: &str = "/opt/innkeeper/tmux.conf";
/// The session's name in tmux.
pub const NAME: &str = "claude";

/// The tmux of this box.
#[must_use]
pub fn tmux() -> &'static str {
    let [own, distribution] = TMUX;
    if std::path::Path::new(own).exists() { own } else { distribution }
}

/// Where the agent's tmux server listens: the agent's directory below /run.
#[must_use]
pub fn socket(uid: u32) -> String {
    format!("{}/tmux.sock", crate::filesystem::layout::runtime_directory(uid))
}

/// What happens when Claude ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    Restart,
    Shell,
    Stop,
}

/// Everything that a session needs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub identity: Identity,
    pub env: Vec<(String, String)>,
    pub workdir: String,
    pub start: ClaudeStart,
    /// Whether it is Claude, and no other program that the operator wants (`session.command`).
    pub is_claude: bool,
    pub goes_on: GoesOn,
    pub on_exit: OnExit,
    pub limits: Limits,
    /// Tells the operator of the end, where the box ends with it.
    pub notices: Option<Notices>,
    /// Knows what the kernel ended for want of memory.
    pub resources: resources::Watcher,
}

/// How a conversation that was restored goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GoesOn {
    /// The prompt is the one that it began with: it is not given again.
    pub worked: bool,
    /// It was at work when its box ended.
    pub interrupted: bool,
}

/// What ends or holds up a session from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub until: Option<Until>,
    pub max_time: Option<Duration>,
    pub max_cost: Option<Microusd>,
    pub on_limit: OnLimit,
}

enum Event {
    Pane(UnixStream, i32),
    News(u64, PaneNews),
    PaneGone(u64),
    Turned(Turn, String),
    Gauged(Gauge),
    ClaudeEnded(u64, Exit),
    ServerEnded(u64, Exit),
    Order(SessionOrder, Sender<orders::Outcome>),
    AllEnded(Result<usize, usize>),
    Stop(Sender<()>, Duration),
}

/// The way to the session's thread.
#[derive(Debug, Clone)]
pub struct Session {
    events: SyncSender<Event>,
    patience: Arc<turns::Patience>,
    gauges: Arc<turns::Patience>,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Event")
    }
}

impl Session {
    /// Starts the session's thread. The proof says that the firewall is in before the agent exists.
    pub fn start(plan: Plan, spawner: Spawner, board: Arc<Board>, _: &EgressLocked) -> std::io::Result<Self> {
        // Bounded: what the agent's pane says waits there, and not in our memory.
        let (events, receiver) = mpsc::sync_channel(64);
        let session = Self { events, patience: Arc::default(), gauges: Arc::default() };
        let host = Host::new(plan, spawner, board, session.clone());
        std::thread::Builder::new().name("session".into()).spawn(move || host.run(&receiver))?;
        Ok(session)
    }

    /// A process of the agent's says that it is the pane.
    pub fn pane(&self, stream: UnixStream, pid: i32) {
        // The session's thread ends only with the box.
        drop(self.events.send(Event::Pane(stream, pid)));
    }

    /// One of Claude's hooks speaks; false when that is not heard: they speak too much.
    #[must_use]
    pub fn turn(&self, turn: Turn, text: &str) -> bool {
        self.patience.has_room() && self.events.try_send(Event::Turned(turn, text.to_owned())).is_ok()
    }

    /// Claude's status line speaks; false when that is not heard: it speaks too much.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> bool {
        self.gauges.has_room() && self.events.try_send(Event::Gauged(gauge)).is_ok()
    }

    /// The operator's order; what came of it.
    pub fn order(&self, order: SessionOrder) -> Result<Vec<String>, String> {
        let (answer, outcome) = mpsc::channel();
        let gone = |_| "the session's thread is gone".to_owned();
        self.events.send(Event::Order(order, answer)).map_err(|_| gone(()))?;
        outcome.recv().map_err(|_| gone(()))?
    }

    /// Tells Claude to end, then the server; returns when both have, or after `limit`.
    pub fn stop(&self, limit: Duration) {
        let (done, ended) = mpsc::channel();
        if self.events.send(Event::Stop(done, limit)).is_ok() {
            ended.recv_timeout(limit).ok();
        }
    }
}
