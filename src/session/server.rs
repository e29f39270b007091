//! The agent's tmux server: started as PID 1's child, watched, and made again. Every client of it is a child that has
//! become the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::host::{CLIENT_LIMIT, Host};
use super::{Event, NAME, TMUX_CONF, socket, tmux};
use crate::report::event;
use crate::status::report::SessionState;
use crate::supervisor::{Child, Exit, Launch, Stream, thread};

impl Host {
    pub(super) fn start_server(&mut self) {
        if self.stopping.is_some() || self.ordered.is_some() || self.server.is_some() {
            return;
        }
        self.server_started = Instant::now();
        if let Err(cause) = self.try_start_server() {
            self.back_off_server(cause);
        }
    }

    fn try_start_server(&mut self) -> Result<(), String> {
        for program in [tmux(), TMUX_CONF] {
            if !Path::new(program).exists() {
                return Err(format!("{program} is missing in the image"));
            }
        }
        let socket = socket(self.plan.identity.uid);
        let launch = Launch::program(tmux(), self.plan.identity.clone())
            .args(["-D", "-S", &socket, "-f", TMUX_CONF])
            .env(self.plan.env.clone())
            .of_the_session("tmux");
        let mut child = self.spawner.spawn(launch).map_err(|error| crate::report::chain(&error))?;
        self.server_id += 1;
        self.make_session(&mut child, &socket)?;
        // From now on an operator can come in.
        let pid = child.pid();
        self.board.worker("tmux", |worker| worker.pid = Some(pid));
        self.watch_server(child);
        Ok(())
    }

    /// The session is made by a second child, as the agent; `-N` because only our own server will do.
    fn make_session(&self, server: &mut Child, socket: &str) -> Result<(), String> {
        let deadline = Instant::now() + CLIENT_LIMIT;
        let workdir = self.plan.workdir.as_str();
        loop {
            let args = [
                "-N",
                "-S",
                socket,
                "new-session",
                "-d",
                "-s",
                NAME,
                "-n",
                NAME,
                "-x",
                "200",
                "-y",
                "50",
                "-c",
                workdir,
                "exec /usr/local/bin/innkeeper pane",
                ";",
                "split-window",
                "-v",
                "-l",
                "20%",
                "-c",
                workdir,
                "exec /bin/bash --login -i",
                ";",
                "select-pane",
                "-t",
                "0",
            ];
            let mut launch = Launch::program(tmux(), self.plan.identity.clone())
                .args(args)
                .env(self.plan.env.clone())
                .of_the_session("tmux");
            // Until the server listens it says so, on every try.
            launch.stderr = Stream::Null;
            let mut client = self.spawner.spawn(launch).map_err(|error| crate::report::chain(&error))?;
            match client.wait_for(CLIENT_LIMIT) {
                Some(exit) if exit.success() => return Ok(()),
                Some(_) | None => {}
            }
            if let Some(exit) = server.wait_for(Duration::from_millis(20)) {
                return Err(format!("the tmux server ended at once ({exit})"));
            }
            if Instant::now() > deadline {
                server.signal(Signal::SIGKILL);
                return Err("the tmux server does not answer".to_owned());
            }
        }
    }

    fn watch_server(&mut self, mut child: Child) {
        self.server = Some(child.remote());
        let (id, events) = (self.server_id, self.session.events.clone());
        let remote = child.remote();
        let watching = thread("tmux", move || {
            let exit = child.wait();
            drop(events.send(Event::ServerEnded(id, exit)));
        });
        if let Err(error) = watching {
            // A server that nobody watches is no server of ours.
            remote.signal(Signal::SIGKILL);
            self.server = None;
            self.back_off_server(format!("cannot watch the tmux server: {error}"));
        }
    }

    pub(super) fn server_ended(&mut self, exit: Exit) {
        self.server = None;
        self.pane = None;
        self.board.worker("tmux", |worker| {
            worker.pid = None;
            worker.restarts += 1;
        });
        if self.stopping.is_some() {
            return self.stopped();
        }
        if self.ordered.is_some() {
            return;
        }
        self.back_off_server(format!("the tmux server ended ({exit})"));
    }

    fn back_off_server(&mut self, cause: String) {
        let pause = self.server_backoff.after(self.server_started.elapsed());
        event("session", &format!("{cause}; again in {:.1} s", pause.as_secs_f64()));
        if self.claude.is_none() {
            self.board.session(|session| {
                session.state = SessionState::Backoff;
                session.detail = cause;
            });
        }
        self.server_due = Some(Instant::now() + pause);
    }

    /// A server whose socket was removed makes it again on SIGUSR1 (tmux(1)). The look is an O_PATH open that
    /// follows no link: it reads nothing of the agent's and can't be led elsewhere.
    pub(super) fn look_at_socket(&self) {
        let Some(server) = &self.server else { return };
        let socket = socket(self.plan.identity.uid);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found = rustix::fs::openat2(rustix::fs::CWD, socket.as_str(), flags, Mode::empty(), resolve)
            .and_then(|place| rustix::fs::fstat(&place));
        match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Socket) => {}
            Err(rustix::io::Errno::NOENT) => {
                event("session", "the tmux socket was removed; the server is told to make it again");
                server.signal(Signal::SIGUSR1);
            }
            Ok(_) | Err(_) => {
                event(
                    "session",
                    "something else is in the place of the tmux socket; the session is made again",
                );
                self.clear_socket();
                server.signal(Signal::SIGTERM);
            }
        }
    }

    /// Removes what is in the socket's place: as the agent, whose directory it is.
    pub(super) fn clear_socket(&self) {
        let launch = Launch::program("/bin/rm", self.plan.identity.clone())
            .args(["-rf", "--", &socket(self.plan.identity.uid)])
            .env(self.plan.env.clone());
        if let Ok(mut child) = self.spawner.spawn(launch) {
            child.wait_for(CLIENT_LIMIT);
        }
    }
}
