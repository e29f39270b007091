//! `innkeeper in`: a command in a running box, as the box's root, with the box's environment and no right beyond its own.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use rustix::process::DumpableBehavior;

use super::EmbeddedError;
use super::inner;
use super::signals::Signals;
use super::state::Process;
use super::terminal::Terminal;
use crate::engine::SHORT;
use crate::engine::environment::PATH;

#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error("cannot open the box's {0} namespace")]
    Open(&'static str, #[source] io::Error),
    #[error("cannot enter the box's {0} namespace")]
    Enter(&'static str, #[source] nix::errno::Errno),
    #[error("the box has ended")]
    Ended,
    #[error("cannot {0}")]
    Become(&'static str, #[source] nix::errno::Errno),
    #[error(transparent)]
    Confine(#[from] inner::InnerError),
    #[error("cannot stay with the command")]
    Wait(#[source] EmbeddedError),
    #[error("cannot execute {program} in the box")]
    Exec { program: String, source: io::Error },
}

/// The user namespace last: until then the host's rights open the others' doors. A pid namespace is for children only.
const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("user", CloneFlags::CLONE_NEWUSER),
];

/// Runs the command to its end; returns its exit status.
pub fn run(guest: Process, command: &[String]) -> Result<i32, EnterError> {
    // Nobody in the box may look into this process while it is half inside.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| EnterError::Become("become unreadable", errno(error)))?;
    let mut doors = Vec::new();
    for (name, flag) in NAMESPACES {
        let file = File::open(format!("/proc/{}/ns/{name}", guest.pid))
            .map_err(|error| EnterError::Open(name, error))?;
        doors.push((name, flag, file));
    }
    // Opened by number: only now is it sure whose they are.
    if !guest.alive() {
        return Err(EnterError::Ended);
    }
    for (name, flag, door) in doors {
        setns(door, flag).map_err(|error| EnterError::Enter(name, error))?;
    }
    inner::become_root()?;
    inner::give_up()?;
    execute(command)
}

fn errno(error: rustix::io::Errno) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error())
}

fn execute(command: &[String]) -> Result<i32, EnterError> {
    let (first, rest) =
        command.split_first().map_or(("attach", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut words: Vec<&str> = if SHORT.contains(&first) { vec![OWN, first] } else { vec![first] };
    words.extend(rest.iter().map(String::as_str));
    let failed = |source| EnterError::Exec { program: first.to_owned(), source };
    let mut signals = Signals::register().map_err(EnterError::Wait)?;
    let terminal = Terminal::open().map_err(failed)?;
    if terminal.is_some() {
        words.splice(0..0, [OWN, "engine-console", "--"]);
    }
    let Some((program, arguments)) = words.split_first() else { return Err(EnterError::Ended) };
    // The path is looked up with the box's PATH, not with the operator's.
    let mut child = Command::new(program);
    if *program == OWN {
        child.arg0("innkeeper");
    }
    child
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("HOME", "/root")
        .current_dir("/");
    if let Ok(kind) = std::env::var("TERM") {
        child.env("TERM", kind);
    }
    if let Some(terminal) = &terminal {
        terminal.give(&mut child).map_err(failed)?;
    }
    let mut child = child.spawn().map_err(failed)?;
    signals.wait(&mut child, terminal).map_err(EnterError::Wait)
}

const OWN: &str = "/usr/local/bin/innkeeper";
