//! PID 1's one thread that spawns, reaps and hears signals. Everybody else asks it through a [`Spawner`].
//!
//! Spawning and reaping share a thread because a `waitpid(-1)` elsewhere would steal the child of a failed exec
//! from std, which panics then. What to start, when and how often is the business of those who ask.

pub mod backoff;
pub mod confinement;
pub mod everybody;
pub mod launch;
mod listen;
pub mod processes;
mod reaper;
pub mod run_as;

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

pub use launch::{Launch, Stream};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The status as a shell would give it: 128 + n after a signal.
    #[must_use]
    pub fn status(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }

    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("cannot start {program}")]
    Spawn { program: String, source: std::io::Error },
    #[error("cannot {what}")]
    Setup { what: &'static str, source: std::io::Error },
    #[error("the box is stopping; nothing new is started")]
    Stopping,
    #[error("{program} did not end within {limit:?}")]
    Overdue { program: String, limit: Duration },
}

/// A started child. Dropping it does not end the child: it is reaped all the same.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    exit: Receiver<Exit>,
    spawner: Spawner,
    ended: Option<Exit>,
}

impl Child {
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the child's end, at most so long.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Exit> {
        if self.ended.is_none() {
            self.ended = match self.exit.recv_timeout(limit) {
                Ok(exit) => Some(exit),
                Err(RecvTimeoutError::Timeout) => None,
                // The supervisor is gone: the process is about to end.
                Err(RecvTimeoutError::Disconnected) => Some(Exit::Signal(nix::libc::SIGKILL)),
            };
        }
        self.ended
    }

    /// Waits for the child's end, however long it takes.
    pub fn wait(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.wait_for(Duration::from_secs(3600)) {
                return exit;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        self.remote().signal(signal);
    }

    /// The part of a child that can be shared: signals, but not its end.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote { pid: self.pid, spawner: self.spawner.clone() }
    }
}

/// Sends signals to a child that somebody else waits for.
#[derive(Debug, Clone)]
pub struct Remote {
    pid: i32,
    spawner: Spawner,
}

impl Remote {
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. The supervisor does it, which knows whether the pid still is this child's.
    pub fn signal(&self, signal: Signal) {
        self.spawner.order(Order::Signal { pid: self.pid, signal });
    }
}

/// Starts a thread. Unlike `std::thread::spawn` it does not panic where the agent has used the processes up.
pub fn thread(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

/// What a child said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub exit: Exit,
    pub text: String,
}

enum Order {
    Launch { launch: Box<Launch>, reply: Sender<Result<(i32, Receiver<Exit>), SupervisorError>> },
    Signal { pid: i32, signal: Signal },
    Finish(Ending),
    Stop(Ending),
    Deadline(Option<Watch>),
}

/// Why and with which exit status the box ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub status: u8,
    pub reason: String,
}

/// What a boot step may take, before the supervisor ends the boot in its stead.
#[derive(Debug, Clone)]
pub struct Watch {
    pub until: Instant,
    pub overdue: Ending,
}

/// The way to the supervisor, for every other thread.
#[derive(Debug, Clone)]
pub struct Spawner {
    orders: Sender<Order>,
    wake: Arc<Mutex<UnixStream>>,
    /// Children that are not the session: what does something for the box, in whosever name.
    helpers: Arc<Mutex<BTreeSet<i32>>>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Launch { .. } => "Launch",
            Self::Signal { .. } => "Signal",
            Self::Finish(_) => "Finish",
            Self::Stop(_) => "Stop",
            Self::Deadline(_) => "Deadline",
        })
    }
}

impl Spawner {
    /// Starts a child; answers once the program is running or could not be started.
    pub fn spawn(&self, launch: Launch) -> Result<Child, SupervisorError> {
        let (reply, answer) = mpsc::channel();
        self.order(Order::Launch { launch: Box::new(launch), reply });
        let (pid, exit) = answer.recv().map_err(|_| SupervisorError::Stopping)??;
        Ok(Child { pid, exit, spawner: self.clone(), ended: None })
    }

    /// Starts a child and takes down what it says on standard output and error, to its end or to `limit`; then it is
    /// killed.
    pub fn listen(&self, mut launch: Launch, limit: Duration, most: u64) -> Result<Said, SupervisorError> {
        let setup = |source| SupervisorError::Setup { what: "make a pipe for a child", source };
        let (reader, writer) = std::io::pipe().map_err(setup)?;
        launch.stderr = Stream::Fd(writer.try_clone().map_err(setup)?.into());
        launch.stdout = Stream::Fd(writer.into());
        let program = launch.program_name();
        let mut child = self.spawn(launch)?;
        match listen::hear(reader, &mut child, limit, most).map_err(setup)? {
            Some((exit, text)) => Ok(Said { exit, text }),
            None => {
                child.signal(Signal::SIGKILL);
                Err(SupervisorError::Overdue { program, limit })
            }
        }
    }

    /// Children that live now and are not the session, whomever they run as.
    #[must_use]
    pub fn helpers(&self) -> BTreeSet<i32> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the box as a signal does: the session is told first. A signal that came before has its own status.
    pub fn stop(&self, ending: Ending) {
        self.order(Order::Stop(ending));
    }

    /// Ends the box at once.
    pub fn finish(&self, ending: Ending) {
        self.order(Order::Finish(ending));
    }

    /// Sets or clears the time by which the running boot step must be done.
    pub fn watch(&self, watch: Option<Watch>) {
        self.order(Order::Deadline(watch));
    }

    fn order(&self, order: Order) {
        // Both fail only when the supervisor has ended, and then there is nobody to tell.
        if self.orders.send(order).is_ok() {
            let mut wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
            drop(wake.write(&[1]));
        }
    }
}

/// What the box does when it is told to stop or to reload; called on threads of their own.
pub trait Conduct: Send + Sync + 'static {
    /// Ends the session, then the workers, within `limit`. The box ends after it.
    fn stop(&self, limit: Duration);
    /// Reads the policy again.
    fn reload(&self);
    /// The end has begun: by a signal, or for another reason.
    fn stopping(&self, why: &str);
    /// A child was ended by SIGKILL, which nobody here sent; called on the supervisor's thread.
    fn killed(&self, name: &str);
}

/// Which signals have come since they were asked about last.
struct Signals {
    pipes: Vec<(i32, UnixStream)>,
}

impl Signals {
    fn register() -> Result<Self, SupervisorError> {
        let mut pipes = Vec::new();
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGHUP] {
            let setup = |source| SupervisorError::Setup { what: "listen for signals", source };
            let (reader, writer) = UnixStream::pair().map_err(setup)?;
            reader.set_nonblocking(true).map_err(setup)?;
            signal_hook::low_level::pipe::register(signal, writer).map_err(setup)?;
            pipes.push((signal, reader));
        }
        Ok(Self { pipes })
    }

    /// The pending ones, each as often as it could be counted (signals of one kind may merge).
    fn take(&mut self) -> Vec<i32> {
        let mut pending = Vec::new();
        for (signal, pipe) in &mut self.pipes {
            pending.extend(std::iter::repeat_n(*signal, drain(pipe)));
        }
        pending
    }
}

fn drain(stream: &mut UnixStream) -> usize {
    let mut buffer = [0; 64];
    let mut count = 0;
    while let Ok(read) = stream.read(&mut buffer) {
        if read == 0 {
            break;
        }
        count += read;
    }
    count
}

/// The supervisor itself; [`Supervisor::run`] is PID 1's main loop.
#[derive(Debug)]
pub struct Supervisor {
    orders: Receiver<Order>,
    wake: UnixStream,
    spawner: Spawner,
    signals: Signals,
    children: HashMap<i32, Owned>,
    stop: Option<Stop>,
    watch: Option<Watch>,
    stop_timeout: Duration,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// A child of ours, and who waits for its end.
#[derive(Debug)]
struct Owned {
    name: String,
    exit: Sender<Exit>,
    /// We were told to kill it.
    killed: bool,
}

#[derive(Debug)]
struct Stop {
    until: Instant,
    ending: Ending,
}

/// Time left to the kernel and to the last log line after the session's own grace.
const STOP_MARGIN: Duration = Duration::from_millis(500);

impl Supervisor {
    /// From here on signals are heard; before it those with a default disposition end the process.
    pub fn new(stop_timeout: Duration) -> Result<Self, SupervisorError> {
        let setup = |source| SupervisorError::Setup { what: "make the supervisor's wake-up", source };
        let (wake, waker) = UnixStream::pair().map_err(setup)?;
        wake.set_nonblocking(true).map_err(setup)?;
        waker.set_nonblocking(true).map_err(setup)?;
        let (sender, orders) = mpsc::channel();
        let spawner = Spawner { orders: sender, wake: Arc::new(Mutex::new(waker)), helpers: Arc::default() };
        let signals = Signals::register()?;
        Ok(Self {
            orders,
            wake,
            spawner,
            signals,
            children: HashMap::new(),
            stop: None,
            watch: None,
            stop_timeout,
        })
    }

    #[must_use]
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Spawns, reaps and obeys signals until the box is to end.
    pub fn run(mut self, conduct: &Arc<dyn Conduct>) -> Ending {
        loop {
            self.sleep();
            drain(&mut self.wake);
            for signal in self.signals.take() {
                if let Some(ending) = self.hear(signal, conduct) {
                    return ending;
                }
            }
            self.reap(conduct);
            while let Ok(order) = self.orders.try_recv() {
                if let Some(ending) = self.obey(order, conduct) {
                    return ending;
                }
            }
            if let Some(ending) = self.overdue() {
                return ending;
            }
        }
    }

    fn sleep(&self) {
        let deadline =
            self.stop.as_ref().map(|stop| stop.until).into_iter().chain(self.watch.as_ref().map(|w| w.until));
        let timeout = deadline.min().map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        for (_, pipe) in &self.signals.pipes {
            fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        // EINTR is a signal, which the pipes show; anything else shows up again at once.
        poll(&mut fds, timeout.as_ref()).ok();
    }

    fn hear(&mut self, signal: i32, conduct: &Arc<dyn Conduct>) -> Option<Ending> {
        match signal {
            SIGTERM | SIGINT => {
                let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
                let status = u8::try_from(128 + signal).unwrap_or(u8::MAX);
                if self.stop.is_some() {
                    let reason = format!("{name} again: stopped at once");
                    return Some(Ending { status, reason });
                }
                self.begin_stop(Ending { status, reason: format!("stopped by {name}") }, conduct);
                conduct.stopping(name);
            }
            SIGHUP => {
                let conduct = Arc::clone(conduct);
                if let Err(error) = thread("reload", move || conduct.reload()) {
                    crate::report::event("policy", &format!("cannot reload now: {error}"));
                }
            }
            // SIGCHLD: reaping happens after every wake-up.
            _ => {}
        }
        None
    }

    fn begin_stop(&mut self, ending: Ending, conduct: &Arc<dyn Conduct>) {
        let limit = self.stop_timeout.saturating_sub(STOP_MARGIN);
        self.stop = Some(Stop { until: Instant::now() + self.stop_timeout, ending: ending.clone() });
        self.watch = None;
        let (conduct, spawner) = (Arc::clone(conduct), self.spawner());
        let last = ending.clone();
        let stopper = thread("stop", move || {
            conduct.stop(limit);
            spawner.finish(ending);
        });
        if stopper.is_err() {
            // No thread to be had (the agent used them up): then without grace.
            self.spawner.finish(last);
        }
    }

    fn reap(&mut self, conduct: &Arc<dyn Conduct>) {
        for (pid, exit) in reaper::drain() {
            // Orphans that were re-parented to us have no entry: reaped, and that is all.
            if let Some(child) = self.children.remove(&pid) {
                self.spawner.helpers.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
                if exit == Exit::Signal(nix::libc::SIGKILL) && !child.killed && self.stop.is_none() {
                    conduct.killed(&child.name);
                }
                child.exit.send(exit).ok();
            }
        }
    }

    fn obey(&mut self, order: Order, conduct: &Arc<dyn Conduct>) -> Option<Ending> {
        match order {
            Order::Launch { launch, reply } => {
                // Nothing new once the end has begun: a boot that goes on would start what is being ended. The last save
                // is a part of the end.
                let late = self.stop.is_some() && !launch.last;
                let started = if late { Err(SupervisorError::Stopping) } else { self.launch(*launch) };
                drop(reply.send(started));
                None
            }
            Order::Signal { pid, signal } => {
                if let Some(child) = self.children.get_mut(&pid) {
                    child.killed |= signal == Signal::SIGKILL;
                    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
                        // ESRCH: it is a zombie that the next round reaps.
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => {
                            crate::report::event("supervisor", &format!("cannot signal {pid}: {error}"));
                        }
                    }
                }
                None
            }
            Order::Finish(ending) => Some(self.stop.take().map_or(ending, |stop| stop.ending)),
            Order::Stop(ending) => {
                if self.stop.is_none() {
                    let why = ending.reason.clone();
                    self.begin_stop(ending, conduct);
                    conduct.stopping(&why);
                }
                None
            }
            Order::Deadline(watch) => {
                self.watch = watch;
                None
            }
        }
    }

    fn launch(&mut self, launch: Launch) -> Result<(i32, Receiver<Exit>), SupervisorError> {
        let program = launch.program_name();
        let helps = launch.session.is_none();
        let started = launch.start();
        let pid = started.map_err(|source| SupervisorError::Spawn { program: program.clone(), source })?;
        if helps {
            self.spawner.helpers.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        }
        let (sender, exit) = mpsc::channel();
        self.children.insert(pid, Owned { name: program, exit: sender, killed: false });
        Ok((pid, exit))
    }

    fn overdue(&mut self) -> Option<Ending> {
        let now = Instant::now();
        if let Some(stop) = self.stop.take_if(|stop| stop.until <= now) {
            let reason = format!("{}; not everything had ended within the stop time-out", stop.ending.reason);
            return Some(Ending { status: stop.ending.status, reason });
        }
        self.watch.take_if(|watch| watch.until <= now).map(|watch| watch.overdue)
    }
}
