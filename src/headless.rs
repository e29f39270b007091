//! Headless: the agent works without a terminal and to an end (`session.mode=headless`), for CI and Kubernetes Jobs.
//!
//! Standard output is exactly Claude's stream-json, and the box's exit status is what came of the run. There is no tmux;
//! nobody comes in. A usage limit is waited out, and the run goes on.

pub mod outcome;
pub mod stream;
pub mod termination;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use crate::control::protocol::ClaudeStart;
use crate::firewall::EgressLocked;
use crate::money::Microusd;
use crate::notices::Notices;
use crate::report::{chain, event, exit};
use crate::resources;
use crate::session::claude::LAST_NOTICE;
use crate::session::deadline::Deadline;
use crate::session::launcher::{self, Streams};
use crate::session::limits::{LIMIT_OVER, LONGEST};
use crate::session::{Limits, OnLimit};
use crate::status::Board;
use crate::status::report::{Session, SessionState};
use crate::supervisor::backoff::Backoff;
use crate::supervisor::everybody;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Child, Ending, Exit, Launch, Spawner, Stream, thread};
use outcome::{Outcome, judge};
use stream::{Fact, MAX_FACT, RunResult};

/// What a headless run needs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub identity: Identity,
    pub start: ClaudeStart,
    /// The task itself, where `start` says to go on with it.
    pub first: Option<String>,
    pub limits: Limits,
    /// Whether it is Claude that works, and no program in its place.
    pub is_claude: bool,
    /// Tells the operator of the end.
    pub notices: Option<Notices>,
    /// Knows what the kernel ended for want of memory.
    pub resources: resources::Watcher,
}

/// The run, for who ends it.
#[derive(Debug, Clone)]
pub struct Headless {
    state: Arc<Mutex<State>>,
    over: Arc<Mutex<Option<Receiver<()>>>>,
}

#[derive(Debug, Default)]
struct State {
    claude: Option<crate::supervisor::Remote>,
    stopping: bool,
    /// Wakes a run that waits for a limit to end.
    wake: Option<Sender<()>>,
}

/// After a limit's end, as its clock and ours may differ.
const AFTER_LIMIT: Duration = Duration::from_secs(5);
/// Pauses where nobody said when the limit ends.
const UNKNOWN_LIMIT: Backoff =
    Backoff::new(Duration::from_secs(300), Duration::from_secs(3600), Duration::from_secs(1800));
/// The least pauses: a limit whose end is said to be over, again and again, is no reason to ask all the time.
const KNOWN_LIMIT: Backoff =
    Backoff::new(Duration::from_secs(5), Duration::from_secs(900), Duration::from_secs(1800));
/// A life that ends so soon found nothing to go on with.
const STILLBORN: Duration = Duration::from_secs(15);
/// A reader of the box's output that is slower than this at the end loses the rest.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// A result is a line now and then; who tells more is none of ours.
const FACT_PAUSE: Duration = Duration::from_millis(20);

impl Headless {
    /// Starts the run's thread. The proof says that the firewall is in before the agent exists.
    pub fn start(plan: Plan, spawner: Spawner, board: Arc<Board>, _: &EgressLocked) -> std::io::Result<Self> {
        let (done, over) = mpsc::channel();
        let headless = Self { state: Arc::default(), over: Arc::new(Mutex::new(Some(over))) };
        watch_deadline(Deadline::new(&plan.limits), &spawner, &board)?;
        let run = Run {
            plan,
            spawner,
            board,
            headless: headless.clone(),
            agent_over: done,
            spent: Microusd::default(),
        };
        thread("headless", move || run.run())?;
        Ok(headless)
    }

    /// Tells Claude to end; returns when it has, or after `limit`.
    pub fn stop(&self, limit: Duration) {
        let claude = {
            let mut state = self.state();
            state.stopping = true;
            if let Some(wake) = state.wake.take() {
                wake.send(()).ok();
            }
            state.claude.clone()
        };
        if let Some(claude) = claude {
            claude.signal(Signal::SIGTERM);
        }
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(over) = over {
            over.recv_timeout(limit).ok();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Run {
    plan: Plan,
    spawner: Spawner,
    board: Arc<Board>,
    headless: Headless,
    agent_over: Sender<()>,
    /// What all lives together cost.
    spent: Microusd,
}

/// What one life of Claude came to.
struct Life {
    exit: Exit,
    /// Who ended it, where its end does not say.
    why: String,
    lasted: Duration,
    result: Option<RunResult>,
    /// A limit that it told of, and until when that holds.
    limit: Option<Option<u64>>,
}

impl Life {
    /// Too short to have worked.
    fn is_stillborn(&self) -> bool {
        !self.exit.success() && self.limit.is_none() && self.lasted < STILLBORN
    }
}

impl Run {
    fn run(mut self) {
        let ending = self.lives();
        self.board.session(|session| {
            session.state = SessionState::Done;
            session.claude_pid = None;
            session.until = None;
        });
        if let Some(ending) = &ending {
            event("session", &ending.reason);
            if let Some(notices) = &self.plan.notices {
                notices.last(&ending.reason, LAST_NOTICE);
            }
        }
        // Whoever stops the box waits for this, and gives the reason.
        self.agent_over.send(()).ok();
        if let Some(ending) = ending {
            // As a signal would end it: what was worked is saved.
            self.spawner.stop(ending);
        }
    }

    /// Life after life, as long as limits interrupt; none when somebody stops the box.
    fn lives(&mut self) -> Option<Ending> {
        let (mut unknown, mut known) = (UNKNOWN_LIMIT, KNOWN_LIMIT);
        loop {
            let life = match self.live() {
                Ok(life) => life,
                Err(ending) => return Some(ending),
            };
            self.spent = self.spent.saturating_add(
                life.result.as_ref().map_or_else(Microusd::default, |told| told.cost_microusd),
            );
            self.board.session(|session| show_result(session, &life, self.spent));
            if self.headless.state().stopping {
                return None;
            }
            if self.plan.start.resume && life.result.is_none() && life.is_stillborn() {
                // "No conversation found to continue": the limit came before there was one.
                self.plan.start.resume = false;
                self.plan.start.prompt.clone_from(&self.plan.first);
                continue;
            }
            match judge(life.exit, life.result.as_ref(), life.limit.is_some()) {
                // Claude ends with a result; without one nobody knows what came of the run.
                Outcome::End(ending)
                    if self.plan.is_claude && life.result.is_none() && ending.status == exit::OK =>
                {
                    return Some(Ending { status: exit::UNAVAILABLE, reason: ending.reason });
                }
                Outcome::End(ending) => {
                    return Some(Ending { reason: format!("{}{}", ending.reason, life.why), ..ending });
                }
                Outcome::Limited if self.plan.limits.on_limit == OnLimit::Stop => {
                    let reason =
                        "a usage limit was reached (session.on_limit=stop); the run can be continued";
                    return Some(Ending { status: exit::LATER, reason: reason.to_owned() });
                }
                Outcome::Limited => {
                    let pause = match life.limit.flatten() {
                        Some(until) => left_until(until).max(known.after(life.lasted)),
                        None => unknown.after(life.lasted),
                    };
                    if !self.wait_for_limit(pause) {
                        return None;
                    }
                    if self.plan.is_claude {
                        self.plan.start.resume = true;
                        self.plan.start.prompt = Some(LIMIT_OVER.to_owned());
                    }
                }
            }
        }
    }

    /// What is to be started, with what is left of the budget; none left is an end.
    fn next_start(&self) -> Result<ClaudeStart, Ending> {
        let mut start = self.plan.start.clone();
        if let Some(most) = self.plan.limits.max_cost.filter(|_| self.plan.is_claude) {
            let left = most.saturating_sub(self.spent);
            if left == Microusd::default() {
                let reason =
                    "the run has cost what it may (session.max_cost); it can be continued".to_owned();
                return Err(Ending { status: exit::LATER, reason });
            }
            // Before what the operator added: the last of two counts.
            start.args.splice(0..0, ["--max-budget-usd".to_owned(), left.digits()]);
        }
        Ok(start)
    }

    /// One life of Claude, to its end and to the end of its output.
    fn live(&self) -> Result<Life, Ending> {
        let failed = |cause: String| Ending {
            status: exit::CONFIG,
            reason: format!("Claude Code can't be started: {cause}"),
        };
        let start = self.next_start()?;
        let (facts, mut copier, streams) = self.output().map_err(|error| failed(error.to_string()))?;
        self.board.session(|session| session.state = SessionState::Starting);
        let kills = self.plan.resources.oom_kills_now();
        let mut claude = launcher::start(&self.spawner, &self.plan.identity, &start, streams)
            .map_err(|error| failed(chain(&error)))?;
        self.begins(&claude);
        let began = Instant::now();
        let exit = claude.wait();
        let lasted = began.elapsed();
        self.headless.state().claude = None;
        let ours = self.headless.state().stopping.then_some("stops the box");
        let why = self.plan.resources.who_killed(exit, kills, ours);
        // Who escaped from the run may hold its output open: the run is over, and so are they. What copies the output
        // goes on until whoever reads it has all of it.
        let kept = BTreeSet::from([copier.pid()]);
        if let Err(left) = everybody::end_all_but(self.plan.identity.uid, &self.spawner, &kept) {
            event("session", &format!("{left} processes of the agent's can't be ended"));
        }
        if copier.wait_for(LAST_WORDS).is_none() {
            event("session", "nobody takes the rest of the run's output; it is lost");
            copier.signal(Signal::SIGKILL);
        }
        let mut life = Life { exit, why, lasted, result: None, limit: None };
        while let Ok(fact) = facts.recv_timeout(Duration::from_secs(1)) {
            match fact {
                Fact::Result(result) => life.result = Some(result),
                Fact::Limited { until } => life.limit = Some(until),
            }
        }
        Ok(life)
    }

    fn begins(&self, claude: &Child) {
        let pid = claude.pid();
        let stopping = {
            let mut state = self.headless.state();
            state.claude = Some(claude.remote());
            state.stopping
        };
        if stopping {
            claude.signal(Signal::SIGTERM);
        }
        event("session", &format!("Claude Code is running (pid {pid})"));
        self.board.session(|session| {
            session.state = SessionState::Running;
            session.claude_pid = Some(pid);
            session.until = None;
            session.detail = "headless: its output is the box's standard output".to_owned();
        });
    }

    /// The way of Claude's output: a pipe to the child that copies it to ours, and what that child reads out of it.
    fn output(&self) -> std::io::Result<(Receiver<Fact>, Child, Streams)> {
        let (reader, writer) = std::io::pipe()?;
        let (said, telling) = std::io::pipe()?;
        let mut launch = Launch::own("stream", None).args(self.plan.identity.to_args());
        launch.stdin = Stream::Fd(reader.into());
        launch.stdout = Stream::Inherit;
        launch.stderr = Stream::Fd(telling.into());
        let copier = self.spawner.spawn(launch).map_err(std::io::Error::other)?;
        let (sender, facts) = mpsc::channel();
        thread("facts", move || listen(said.into(), &sender))?;
        let Stream::Fd(stderr) = Stream::events("claude")? else {
            return Err(std::io::Error::other("no pipe for standard error"));
        };
        Ok((facts, copier, Streams::Pipes { stdout: writer.into(), stderr }))
    }

    /// Waits until the limit is over; false when the box stops meanwhile.
    fn wait_for_limit(&self, pause: Duration) -> bool {
        let now = SystemTime::now();
        let shown = crate::report::time(now + pause);
        event("session", &format!("a usage limit was reached; the run goes on at {shown}"));
        self.board.session(|session| {
            session.state = SessionState::Limited;
            session.claude_pid = None;
            session.until = Some(shown.clone());
            session.detail = format!("a usage limit was reached; it goes on at {shown}");
        });
        let (wake, woken) = mpsc::channel();
        {
            let mut state = self.headless.state();
            if state.stopping {
                return false;
            }
            state.wake = Some(wake);
        }
        // By the clock of the wall, which a limit means: a machine that slept must not sleep on.
        let goal = now + pause;
        loop {
            let left = goal.duration_since(SystemTime::now()).unwrap_or_default();
            if left.is_zero() {
                return true;
            }
            match woken.recv_timeout(left.min(Duration::from_secs(30))) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

/// How long a limit still lasts: not longer than one does, since what is said is hearsay.
fn left_until(seconds: u64) -> Duration {
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    left.min(LONGEST) + AFTER_LIMIT
}

/// Ends the box with the status that says: the same box again goes on where this one ended.
fn watch_deadline(deadline: Deadline, spawner: &Spawner, board: &Board) -> std::io::Result<()> {
    let Some(shown) = deadline.shown() else { return Ok(()) };
    board.session(|session| session.deadline = Some(shown));
    let spawner = spawner.clone();
    thread("deadline", move || {
        loop {
            if let Some(why) = deadline.reached() {
                let reason = format!("the run ends: {why}; it can be continued");
                event("session", &reason);
                return spawner.stop(Ending { status: exit::LATER, reason });
            }
            crate::supervisor::backoff::pause(Duration::from_secs(1));
        }
    })
}

/// Facts by the line, bounded in size and speed.
fn listen(said: OwnedFd, facts: &Sender<Fact>) {
    let mut reader = BufReader::new(std::fs::File::from(said));
    let limit = u64::try_from(MAX_FACT).unwrap_or(u64::MAX);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(1..) if line.ends_with(b"\n") => {}
            Ok(_) | Err(_) => return,
        }
        let Ok(fact) = serde_json::from_slice(&line) else { return };
        if facts.send(fact).is_err() {
            return;
        }
        crate::supervisor::backoff::pause(FACT_PAUSE);
    }
}

fn show_result(session: &mut Session, life: &Life, spent: Microusd) {
    session.claude_pid = None;
    session.last_exit = Some(format!("Claude Code ended ({}){}", life.exit, life.why));
    if let Some(result) = &life.result {
        session.result = Some(crate::session::turns::words(&result.text));
        session.cost_usd = Some(spent.usd());
    }
}

/// The arguments with which Claude works headless.
#[must_use]
pub fn arguments() -> Vec<String> {
    ["--print", "--output-format", "stream-json", "--verbose"].map(str::to_owned).to_vec()
}
