//! The embedded engine: the keeper of one box. It makes sure that nothing is missing, starts the box's first process in
//! a new pid namespace, gives it ids and a link, waits for its end, and takes everything back.
//!
//! Isolation is weaker than an engine's: the host's programs are shared, there is no cgroup of its own and no profile of
//! an LSM. What holds it is a user namespace over a block of ids that nobody on the host has, all other namespaces,
//! and Innkeeper's own firewall and seal.

pub mod enter;
pub mod files;
pub mod ids;
pub mod inner;
mod leftovers;
pub mod legacy;
pub mod network;
pub mod plan;
mod preparation;
pub mod programs;
pub mod root;
mod signals;
pub mod state;
pub mod terminal;

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};

use preparation::prepare;
use signals::Signals;

use super::Run;
use crate::firewall::nftables::NftablesError;
use crate::firewall::nftables::passage::Passage;
use crate::report::{self, exit};
use network::LinkError;
use plan::Plan;
use programs::ProgramError;
use state::{Desk, Process, Record, StateError};
use terminal::Terminal;

use leftovers::{forward, take_back};
pub(super) use leftovers::{stop, sweep};

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("the embedded engine needs root, to make namespaces and a link: run it with sudo -E")]
    NotRoot,
    #[error("a box named {0} is running; enter it: innkeeper in {0}; another one: --name OTHER")]
    Taken(String),
    #[error("a program that the box needs is missing")]
    Program(#[from] ProgramError),
    #[error("the configuration is not fit for a box: {0}")]
    Config(String),
    #[error("cannot read {path}")]
    Given { path: PathBuf, source: io::Error },
    #[error("every resolver of this host listens on its loopback ({0}), which no box can reach")]
    Resolvers(String),
    #[error("cannot keep the record of the box")]
    State(#[from] StateError),
    #[error(
        "this kernel makes no user namespaces (user.max_user_namespaces is 0, or CONFIG_USER_NS is missing)"
    )]
    NoUserNamespaces,
    #[error("no block of 65536 ids is free on this host")]
    NoIds,
    #[error("cannot link the box to the host's network")]
    Link(#[from] LinkError),
    #[error("cannot set the host's rules for the box")]
    Rules(#[from] NftablesError),
    #[error("cannot change {path}")]
    Sysctl { path: &'static str, source: io::Error },
    #[error("cannot {what}")]
    Start { what: &'static str, source: io::Error },
    #[error("the box ended before it began (status {0})")]
    Stillborn(i32),
}

impl EmbeddedError {
    /// Who tries again unchanged gets the same answer.
    fn status(&self) -> u8 {
        match self {
            Self::Taken(_) => exit::USAGE,
            Self::Start { .. } => exit::INTERNAL,
            Self::Stillborn(status) => u8::try_from(*status).unwrap_or(exit::INTERNAL),
            Self::NotRoot
            | Self::Program(_)
            | Self::Config(_)
            | Self::Given { .. }
            | Self::Resolvers(_)
            | Self::State(_)
            | Self::NoIds
            | Self::NoUserNamespaces
            | Self::Link(_)
            | Self::Rules(_)
            | Self::Sysctl { .. } => exit::CONFIG,
        }
    }

    fn next(&self) -> Option<&'static str> {
        match self {
            Self::Program(ProgramError::NoTmux(_)) => {
                Some("install tmux 3.6 or newer, or run ./scripts/programs")
            }
            Self::Program(ProgramError::NoClaude(_)) => Some(
                "run ./scripts/programs, which fetches Claude Code by its name, or name the directory: --programs DIR",
            ),
            Self::Resolvers(_) => {
                Some("name resolvers that the box can reach: INNKEEPER_NETWORK_UPSTREAMS=192.0.2.53")
            }
            Self::NoUserNamespaces => Some("sysctl user.max_user_namespaces=1024"),
            Self::Rules(NftablesError::NoNfTables { .. }) => {
                Some("the embedded engine needs a kernel with nf_tables; Docker and Podman do without")
            }
            Self::NotRoot
            | Self::Taken(_)
            | Self::Program(_)
            | Self::Config(_)
            | Self::Given { .. }
            | Self::State(_)
            | Self::NoIds
            | Self::Link(_)
            | Self::Rules(_)
            | Self::Sysctl { .. }
            | Self::Start { .. }
            | Self::Stillborn(_) => None,
        }
    }
}

/// Runs a box to its end; returns its exit status.
pub(super) fn run(options: &Run) -> u8 {
    match keep(options) {
        Ok(status) => u8::try_from(status).unwrap_or(exit::INTERNAL),
        Err(error) => {
            if !matches!(error, EmbeddedError::Stillborn(_)) {
                report::last_words("run", &report::chain(&error));
            }
            if let Some(next) = error.next() {
                report::last_words("next", next);
            }
            error.status()
        }
    }
}

const EXPERIMENTAL: &str = "the embedded engine is experimental, and its isolation is weaker than an engine's: the box \
     shares this host's programs and kernel, and has no cgroup of its own";

fn keep(options: &Run) -> Result<i32, EmbeddedError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(EmbeddedError::NotRoot);
    }
    close_inherited();
    // Heard from the first moment on: what comes while the box is being made must not leave half of it.
    let mut signals = Signals::register()?;
    let desk = Desk::open()?;
    sweep(&desk)?;
    let others = desk.records()?;
    if others.iter().any(|other| other.name == options.name) {
        return Err(EmbeddedError::Taken(options.name.clone()));
    }
    let outcome = prepare(options, &others);
    let (plan, record, resolvers) = match outcome {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nothing but the directory of this name was made.
            desk.remove(&options.name)?;
            return Err(error);
        }
    };
    report::last_words("run", EXPERIMENTAL);
    desk.write(&record)?;
    let terminal =
        Terminal::open().map_err(|source| EmbeddedError::Start { what: "make a terminal", source });
    let started = terminal.and_then(|terminal| {
        start(&desk, &plan, record.clone(), &resolvers, terminal.as_ref()).map(|child| (child, terminal))
    });
    drop(desk);
    let status = started.and_then(|(mut child, terminal)| signals.wait(&mut child, terminal));
    let desk = Desk::open()?;
    let left = take_back(&desk, &record);
    let status = status?;
    left?;
    Ok(status)
}

/// What the operator's shell left open would lead out of the box. This process has opened nothing yet.
pub(super) fn close_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in numbers {
        // The one by which they were listed is closed already.
        nix::unistd::close(fd).ok();
    }
}

/// Starts the first process of the box and gives it what only the host can give.
fn start(
    desk: &Desk,
    plan: &Plan,
    mut record: Record,
    resolvers: &[IpAddr],
    terminal: Option<&Terminal>,
) -> Result<Child, EmbeddedError> {
    let failed = |what| move |source| EmbeddedError::Start { what, source };
    let (mut told, tell) = io::pipe().map_err(failed("make a pipe"))?;
    let (hear, mut say) = io::pipe().map_err(failed("make a pipe"))?;
    let mut child = spawn(plan, &tell, &hear, terminal)?;
    // Its ends are its alone: theirs is how each side learns of the other's death.
    drop((tell, hear));
    let pid = child.id();
    let mut byte = [0; 1];
    let begun = (|| {
        record.guest = i32::try_from(pid).ok().and_then(Process::of);
        desk.write(&record)?;
        told.read_exact(&mut byte).map_err(failed("hear from the box's first process"))?;
        for map in ["uid_map", "gid_map"] {
            let text = format!("0 {} {}", plan.base, plan::IDS);
            fs::write(format!("/proc/{pid}/{map}"), text).map_err(failed("map the box's ids"))?;
        }
        forward(desk)?;
        let passage = Passage {
            name: record.table.clone(),
            interface: record.interface.clone(),
            guest4: plan.link.guest,
            guest6: plan.link.v6.map(|v6| v6.guest),
            resolvers: resolvers.to_vec(),
        };
        // The rules before the link: there is no moment in which the box is connected and the host open.
        passage.open()?;
        for problem in legacy::open(&record.interface, &record.table) {
            report::last_words("run", &problem);
        }
        network::make(&record.interface, &plan.link, pid)?;
        say.write_all(b"g").map_err(failed("speak to the box's first process"))?;
        told.read_exact(&mut byte).map_err(failed("hear from the box's first process"))?;
        say.write_all(b"g").map_err(failed("speak to the box's first process"))
    })();
    match begun {
        Ok(()) => Ok(child),
        Err(error) => {
            drop((told, say));
            let ended = end(&mut child);
            // Its own message is the reason where it spoke last.
            Err(match (error, ended) {
                (EmbeddedError::Start { what, .. }, Some(status)) if what.starts_with("hear") => {
                    EmbeddedError::Stillborn(status)
                }
                (error, _) => error,
            })
        }
    }
}

/// Ends a box that did not begin; the status with which it ended by itself, if it did.
fn end(child: &mut Child) -> Option<i32> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
    // Its end of the pipe is closed, so it is about to end, or waits for us in vain.
    let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|count| count > 0);
    if !ended {
        // It may have ended in between.
        child.kill().ok();
    }
    let status = child.wait().ok()?;
    ended.then(|| super::status_of(status))
}

fn spawn(
    plan: &Plan,
    tell: &io::PipeWriter,
    hear: &io::PipeReader,
    terminal: Option<&Terminal>,
) -> Result<Child, EmbeddedError> {
    let failed = |what| move |source| EmbeddedError::Start { what, source };
    let text = serde_json::to_vec(plan).map(zeroize::Zeroizing::new);
    let text = text.map_err(|error| EmbeddedError::Start { what: "write the plan", source: error.into() })?;
    let plan = rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC);
    let mut plan = fs::File::from(plan.map_err(|error| failed("write the plan")(error.into()))?);
    plan.write_all(&text).map_err(failed("write the plan"))?;
    for fd in [plan.as_fd(), tell.as_fd(), hear.as_fd()] {
        fcntl_setfd(fd, FdFlags::empty()).map_err(|error| failed("hand a descriptor over")(error.into()))?;
    }
    let own = fs::File::open("/proc/self/ns/pid").map_err(failed("open the pid namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID)
        .map_err(|error| EmbeddedError::Start { what: "make a pid namespace", source: error.into() })?;
    let mut first = Command::new("/proc/self/exe");
    match terminal {
        Some(terminal) => terminal.give(first.arg0("innkeeper")).map_err(failed("hand the terminal over"))?,
        // Whoever signals our process group would reach the box twice: its own signal and the one that we pass on.
        None => drop(first.process_group(0)),
    }
    let child = first
        .arg0("innkeeper")
        .arg("engine-inner")
        .args(["--plan-fd", &plan.as_raw_fd().to_string()])
        .args(["--tell-fd", &tell.as_raw_fd().to_string()])
        .args(["--hear-fd", &hear.as_raw_fd().to_string()])
        .args(terminal.map(|_| "--terminal"))
        .env_clear()
        .current_dir("/")
        .spawn();
    // Only that child was to be in it.
    setns(own, CloneFlags::CLONE_NEWPID)
        .map_err(|error| EmbeddedError::Start { what: "leave the pid namespace", source: error.into() })?;
    child.map_err(failed("start the box's first process"))
}
