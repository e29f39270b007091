//! Claude Code as PID 1's own child: how it is started, how it ended and why, and what comes after it.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::host::{Course, Host};
use super::launcher::{self, Streams};
use super::limits::INTERRUPTED;
use super::{Event, NAME, OnExit, pty, socket, tmux};
use crate::control::protocol::{ClaudeStart, PaneOrder};
use crate::report::{bounded, event, inert};
use crate::status::report::SessionState;
use crate::supervisor::{Child, Ending, Exit, Launch, Remote, thread};

/// A life shorter than this never got to work: its prompt is given again, and nothing is continued.
const STILLBORN: Duration = Duration::from_secs(5);
/// The pane shows what Claude wrote last in this time, or it is not waited for.
const LAST_LOOK: Duration = Duration::from_millis(400);
/// The screen is taken down in this time, or not at all.
const CAPTURE: Duration = Duration::from_secs(1);
const MAX_SCREEN: u64 = 64 << 10;
/// Characters of the last screen in `status`.
const MAX_OUTPUT: usize = 2000;
/// The end waits so long for the operator to be told of it.
pub(crate) const LAST_NOTICE: Duration = Duration::from_secs(25);

/// A life of Claude's.
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) pid: i32,
    remote: Remote,
    started: Instant,
    /// We ended it, and why.
    ours: Option<&'static str>,
    told: bool,
}

impl Running {
    /// Tells it to end, once: a second signal would tell many a program to end without tidying up. One that was stopped
    /// has to run to hear that.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.remote.signal(Signal::SIGTERM);
        }
        self.remote.signal(Signal::SIGCONT);
    }

    pub(super) fn kill(&mut self, why: &'static str) {
        self.ours = Some(why);
        self.remote.signal(Signal::SIGKILL);
    }
}

/// A life that is over.
pub(super) struct Ended {
    how: String,
    exit: Option<Exit>,
    lived: Duration,
    /// What it wrote last is waited for so long.
    pub(super) until: Instant,
}

impl Course {
    /// A life is over.
    fn over(&mut self, lasted: bool, exit: Exit) {
        self.worked |= lasted;
        // "No conversation found to continue" ends at once: the next life begins a new one, which knows of no task.
        if self.resumed && !lasted && !exit.success() {
            self.worked = false;
        }
        self.resume_next = lasted || (self.resume_next && !self.resumed);
    }
}

impl Host {
    pub(super) fn start_claude(&mut self) {
        self.claude_due = None;
        if self.claude.is_some() || self.stopping.is_some() || self.ordered.is_some() || self.is_over() {
            return;
        }
        self.begun = true;
        self.board.session(|session| {
            session.state = SessionState::Starting;
            session.detail = String::new();
            (session.until, session.last_output) = (None, None);
        });
        if let Err(cause) = self.try_start_claude() {
            let how = format!("Claude Code can't be started: {cause}");
            self.claude_ended(how, None, Duration::ZERO);
        }
    }

    fn try_start_claude(&mut self) -> Result<(), String> {
        if !Path::new(&self.plan.start.program).exists() {
            return Err(format!("{} is missing in the image", self.plan.start.program));
        }
        let failed = |error: rustix::io::Errno| format!("it has no terminal: {error}");
        let (master, slave) = pty::open(self.plan.identity.uid, self.size).map_err(failed)?;
        let start = self.next_start();
        self.prompted = start.prompt.is_some().then(Instant::now);
        self.course.resumed = start.resume;
        self.oom_kills = self.plan.resources.oom_kills_now();
        let child = launcher::start(&self.spawner, &self.plan.identity, &start, Streams::Terminal(slave))
            .map_err(|error| bounded(&inert(&crate::report::chain(&error)), 400))?;
        if start.prompt.is_some() {
            self.next_prompt = None;
        }
        self.master = Some(master);
        self.show(false);
        self.watch_claude(child)
    }

    /// What this life is told: its first task until that has been worked on, and then the conversation's rest.
    fn next_start(&self) -> ClaudeStart {
        let first = if self.course.worked { None } else { self.plan.start.prompt.clone() };
        // Another program knows neither a conversation nor how to go on with one.
        let resume = self.course.resume_next && self.plan.is_claude;
        let prompt = self.next_prompt.clone().filter(|_| resume || !self.plan.is_claude).or(first);
        let mut start = ClaudeStart { resume, prompt, ..self.plan.start.clone() };
        if let Some(server) = &self.server {
            // As tmux itself sets them; the pane is the first of the first session.
            let place = format!("{},{},0", socket(self.plan.identity.uid), server.pid());
            start.env.push(("TMUX".to_owned(), place));
            start.env.push(("TMUX_PANE".to_owned(), "%0".to_owned()));
        }
        start
    }

    fn watch_claude(&mut self, mut child: Child) -> Result<(), String> {
        self.lives += 1;
        let (id, pid, remote) = (self.lives, child.pid(), child.remote());
        let (events, last) = (self.session.events.clone(), child.remote());
        let watching = thread("claude", move || {
            let exit = child.wait();
            drop(events.send(Event::ClaudeEnded(id, exit)));
        });
        if let Err(error) = watching {
            // One that nobody watches is none of ours.
            last.signal(Signal::SIGKILL);
            self.master = None;
            return Err(format!("nobody can watch it: {error}"));
        }
        self.claude = Some(Running { id, pid, remote, started: Instant::now(), ours: None, told: false });
        event("session", &format!("Claude Code is running (pid {pid})"));
        self.board.session(|session| {
            session.state = SessionState::Running;
            session.claude_pid = Some(pid);
        });
        Ok(())
    }

    pub(super) fn claude_runs(&self) -> bool {
        self.claude.is_some()
    }

    pub(super) fn claude_exited(&mut self, exit: Exit) {
        let Some(claude) = self.claude.take() else { return };
        let lived = claude.started.elapsed();
        let lasted = lived >= STILLBORN;
        self.course.over(lasted, exit);
        // In the middle of a turn, and not because somebody left it: it is told to go on.
        let working = self.board.update(|report| report.session.state) == SessionState::Running;
        if self.plan.is_claude && lasted && working && !exit.success() && self.next_prompt.is_none() {
            self.next_prompt = Some(INTERRUPTED.to_owned());
        }
        let why = self.plan.resources.who_killed(exit, self.oom_kills, claude.ours);
        self.claude_ended(format!("Claude Code ended ({exit}){why}"), Some(exit), lived);
    }

    fn claude_ended(&mut self, how: String, exit: Option<Exit>, lived: Duration) {
        if let Some(master) = self.master.take() {
            self.size = pty::size(&master);
        }
        self.board.session(|session| {
            session.state = SessionState::Exited;
            session.claude_pid = None;
            session.until = None;
            // What it said last, a question perhaps, is not how it is now.
            session.detail.clone_from(&how);
            session.last_exit = Some(how.clone());
        });
        if self.stopping.is_some() {
            event("session", &how);
            self.end_server();
            return self.stopped();
        }
        if self.ordered.is_some() {
            return event("session", &how);
        }
        self.order(&PaneOrder::Ended);
        self.ended = Some(Ended { how, exit, lived, until: Instant::now() + LAST_LOOK });
        if self.pane.is_none() {
            self.conclude();
        }
    }

    /// What Claude wrote last is on the screen: what comes now.
    pub(super) fn conclude(&mut self) {
        let Some(Ended { how, exit, lived, .. }) = self.ended.take() else { return };
        match self.plan.on_exit {
            OnExit::Restart => self.back_off_claude(&how, lived),
            OnExit::Shell => {
                self.take_down_screen();
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
                    notices.last(&how, LAST_NOTICE);
                }
                let status = exit.map_or(1, |exit| u8::try_from(exit.status() & 0xff).unwrap_or(1));
                self.spawner.stop(Ending { status, reason: how });
            }
        }
    }

    fn back_off_claude(&mut self, how: &str, lived: Duration) {
        self.take_down_screen();
        let pause = self.limit_pause().unwrap_or_else(|| self.claude_backoff.after(lived));
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
        self.claude_due = Some(Instant::now() + pause);
    }

    /// The last screen, for `status`: asked of the agent's tmux as the agent, bounded in time and size, and inert.
    fn take_down_screen(&self) {
        if self.server.is_none() || self.pane.is_none() {
            return;
        }
        let socket = socket(self.plan.identity.uid);
        let target = format!("{NAME}:{NAME}.0");
        let launch = Launch::program(tmux(), self.plan.identity.clone())
            .args(["-N", "-S", &socket, "capture-pane", "-p", "-t", &target])
            .env(self.plan.env.clone())
            .of_the_session("tmux");
        match self.spawner.listen(launch, CAPTURE, MAX_SCREEN) {
            Ok(said) if said.exit.success() => {
                let output = last_lines(&said.text);
                self.board.session(|session| session.last_output = output);
            }
            // The operator's screen is not worth more.
            Ok(_) | Err(_) => {}
        }
    }
}

/// The end of a screen, inert but for its line ends; none if there is nothing on it.
fn last_lines(screen: &str) -> Option<String> {
    let lines: Vec<String> = screen.lines().map(|line| inert(line.trim_end())).collect();
    let text = lines.join("\n");
    let text = text.trim_matches('\n');
    let excess = text.chars().count().saturating_sub(MAX_OUTPUT);
    let text: String = text.chars().skip(excess).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::{Course, MAX_OUTPUT, last_lines};
    use crate::supervisor::Exit;

    #[test]
    fn without_a_conversation_to_continue_the_first_prompt_is_given_again() {
        let (failed, left) = (Exit::Code(1), Exit::Code(0));
        let mut course = Course::default();
        // Slow, and dead before there was a conversation.
        course.over(true, failed);
        assert!(course.worked && course.resume_next);
        course.resumed = true;
        course.over(false, failed);
        assert!(!course.worked && !course.resume_next, "the next life begins anew, with its prompt");
        course.resumed = false;
        course.over(true, failed);
        assert!(course.worked && course.resume_next);
        // Who left it was there.
        course.resumed = true;
        course.over(false, left);
        assert!(course.worked);
    }

    #[test]
    fn the_last_screen_is_bounded_and_inert() {
        assert_eq!(last_lines("\n\n  \n"), None);
        assert_eq!(last_lines("\na \n\n b\u{1b}[2J\n\n\n").unwrap(), "a\n\n b\\u{1b}[2J");
        let long = last_lines(&"x\u{1b}y\n".repeat(9000)).unwrap();
        assert_eq!(long.chars().count(), MAX_OUTPUT);
        assert!(long.ends_with('y'));
    }
}
