//! The agent's session: tmux with Claude Code above and a shell below, kept alive by PID 1.
//!
//! Root is never a client of the agent's tmux server: a client does what its server says, with the client's rights
//! (tmux PR 717, issue 3881). Every client here is a child that has become the agent first.

pub mod attach;
mod client;
mod escape;
pub mod hook;
mod host;
pub mod launcher;
pub mod pane;
mod relay;
mod server;
pub mod shell;
pub mod terminal;
pub(crate) mod tty;
pub mod turns;

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::Host;

use crate::control::protocol::{ClaudeStart, PaneNews, Turn};
use crate::firewall::EgressLocked;
use crate::notices::Notices;
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
    pub on_exit: OnExit,
    /// Tells the operator of the end, where the box ends with it.
    pub notices: Option<Notices>,
}

enum Event {
    Pane(UnixStream, i32),
    News(u64, PaneNews),
    PaneGone(u64),
    Turned(Turn, String),
    ServerEnded(u64, Exit),
    Stop(Sender<()>),
}

/// The way to the session's thread.
#[derive(Debug, Clone)]
pub struct Session {
    events: SyncSender<Event>,
    claude: Arc<Mutex<Option<i32>>>,
    patience: Arc<turns::Patience>,
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
        let session = Self { events, claude: Arc::default(), patience: Arc::default() };
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

    /// Tells Claude to end, then the server; returns when both have, or after `limit`.
    pub fn stop(&self, limit: Duration) {
        let (done, ended) = mpsc::channel();
        if self.events.send(Event::Stop(done)).is_ok() {
            ended.recv_timeout(limit).ok();
        }
    }
}
