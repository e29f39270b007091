//! `innkeeper claude`: what PID 1's child is before it is Claude Code.
//!
//! PID 1 starts Claude itself, so that its pid, its end and who killed it are facts and nobody's word. The child comes as
//! root, is told on its socketpair what to start, secrets included, and becomes the agent in this very process: the
//! kernel makes it undumpable in the same step as the agent's (commit_creds in kernel/cred.c), so that there is no moment
//! in which a process of the agent's could read its memory or take its descriptors. Then it executes Claude.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::{Deserialize, Serialize};

use crate::channel::{self, ChannelError};
use crate::control::protocol::ClaudeStart;
use crate::supervisor::run_as::{self, Identity};
use crate::supervisor::{Child, Launch, Spawner, Stream, SupervisorError};

/// The prompt travels as an argument; the kernel takes 128 KiB at most (MAX_ARG_STRLEN, execve(2)).
const MAX_PROMPT_ARGUMENT: usize = 96 << 10;
/// A prompt, the environment and a few secrets.
const MAX_START: usize = 16 << 20;
/// The steps up to the exec take milliseconds; a machine that is overwhelmed more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where Claude reads and writes.
#[derive(Debug)]
pub enum Streams {
    /// The slave of a pty: it becomes the controlling terminal.
    Terminal(OwnedFd),
    /// Headless: standard input is empty.
    Pipes { stdout: OwnedFd, stderr: OwnedFd },
}

#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    #[error("cannot make the channel to the new process")]
    Channel(#[source] std::io::Error),
    #[error("cannot start the new process")]
    Spawn(#[from] SupervisorError),
    #[error("cannot tell the new process what to start")]
    Tell(#[source] ChannelError),
    /// What the new process said of itself, in its words.
    #[error("{0}")]
    Refused(String),
    #[error("the new process did not come to its program within {PATIENCE:?}")]
    Silent,
}

/// What the new process is told first.
#[derive(Serialize, Deserialize)]
struct Setup {
    start: ClaudeStart,
    terminal: bool,
}

/// Starts Claude, or whatever `start` says; answers when the program runs, or why it does not.
pub fn start(
    spawner: &Spawner,
    identity: &Identity,
    start: &ClaudeStart,
    streams: Streams,
) -> Result<Child, LauncherError> {
    let (ours, theirs) = UnixStream::pair().map_err(LauncherError::Channel)?;
    ours.set_write_timeout(Some(PATIENCE)).map_err(LauncherError::Channel)?;
    ours.set_read_timeout(Some(PATIENCE)).map_err(LauncherError::Channel)?;
    let (terminal, descriptors) = match streams {
        Streams::Terminal(slave) => (true, vec![slave]),
        Streams::Pipes { stdout, stderr } => (false, vec![stdout, stderr]),
    };
    let identity = Identity { tty: terminal, ..identity.clone() };
    // No `run-as` before it: between an exec as the agent and the first instruction it would be readable.
    let mut launch = Launch::own("claude", None).args(identity.to_args()).of_the_session("Claude Code");
    launch.stdin = Stream::Fd(theirs.into());
    let child = spawner.spawn(launch)?;
    let setup = Setup { start: start.clone(), terminal };
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let told = channel::send_with_sockets(&ours, &setup, &borrowed, MAX_START);
    if let Err(error) = told {
        child.signal(Signal::SIGKILL);
        return Err(LauncherError::Tell(error));
    }
    // The channel closes with the exec (CLOEXEC); before it comes a reason.
    match channel::receive::<String>(&ours, MAX_WORDS) {
        Ok(None) => Ok(child),
        Ok(Some(cause)) => Err(LauncherError::Refused(cause)),
        Err(_) => {
            child.signal(Signal::SIGKILL);
            Err(LauncherError::Silent)
        }
    }
}

/// A reason is a line.
const MAX_WORDS: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot use the channel to PID 1")]
    Channel(#[source] std::io::Error),
    #[error("PID 1 did not say what to start")]
    Setup(#[source] ChannelError),
    #[error("PID 1 sent {0} descriptors, which is not what it said")]
    Descriptors(usize),
    #[error("cannot become unreadable")]
    Dumpable(#[source] rustix::io::Errno),
    #[error("cannot set up standard input and output")]
    Streams(#[source] std::io::Error),
    #[error(transparent)]
    Identity(run_as::RunAsError),
    #[error("cannot write {path}")]
    File { path: String, source: std::io::Error },
    #[error("cannot hand over the token")]
    Token(#[source] std::io::Error),
    #[error("cannot execute {program}")]
    Exec { program: String, source: std::io::Error },
}

/// The child's side. Returns only with an error, which PID 1 has been told.
pub fn run(identity: &Identity) -> LaunchError {
    let channel = match rustix::stdio::stdin().try_clone_to_owned() {
        Ok(channel) => UnixStream::from(channel),
        Err(error) => return LaunchError::Channel(error),
    };
    let error = match become_claude(&channel, identity) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Nobody listens any more if PID 1 is gone.
    let cause = crate::report::bounded(&crate::report::chain(&error), 500);
    drop(channel::send(&channel, &cause, MAX_WORDS));
    error
}

fn become_claude(channel: &UnixStream, identity: &Identity) -> Result<std::convert::Infallible, LaunchError> {
    // Before the secrets are in memory.
    undumpable()?;
    let (setup, descriptors) =
        channel::receive_with_sockets::<Setup>(channel, MAX_START).map_err(LaunchError::Setup)?;
    take_streams(setup.terminal, descriptors)?;
    run_as::become_agent(identity).map_err(LaunchError::Identity)?;
    // The change of uid has set it to fs.suid_dumpable, which a host may have set to 1.
    undumpable()?;
    Err(exec(&setup.start))
}

fn undumpable() -> Result<(), LaunchError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(LaunchError::Dumpable)
}

/// Puts the descriptors in the place of 0, 1 and 2; all others stay CLOEXEC.
fn take_streams(terminal: bool, descriptors: Vec<OwnedFd>) -> Result<(), LaunchError> {
    let count = descriptors.len();
    let failed = |error: rustix::io::Errno| LaunchError::Streams(error.into());
    let mut descriptors = descriptors.into_iter();
    let (stdin, stdout, stderr) = match (terminal, descriptors.next(), descriptors.next()) {
        (true, Some(slave), None) => {
            let again = || slave.try_clone().map_err(LaunchError::Streams);
            (again()?, again()?, slave)
        }
        (false, Some(stdout), Some(stderr)) => {
            let null = std::fs::File::open("/dev/null").map_err(LaunchError::Streams)?;
            (null.into(), stdout, stderr)
        }
        _ => return Err(LaunchError::Descriptors(count)),
    };
    rustix::stdio::dup2_stdin(stdin).map_err(failed)?;
    rustix::stdio::dup2_stdout(stdout).map_err(failed)?;
    rustix::stdio::dup2_stderr(stderr).map_err(failed)
}

fn exec(start: &ClaudeStart) -> LaunchError {
    let mut command = Command::new(&start.program);
    if start.resume {
        command.arg("--continue");
    }
    command.args(&start.args);
    if let Some(prompt) = &start.prompt {
        match prompt_argument(prompt) {
            // After `--` a prompt that begins with a hyphen is no flag.
            Ok(prompt) => command.arg("--").arg(prompt),
            Err(error) => return error,
        };
    }
    // The whole environment is PID 1's list.
    command.env_clear().current_dir(&start.cwd).envs(start.env.iter().map(|(name, value)| (name, value)));
    for (name, content) in &start.files {
        match agents_file(&name.to_lowercase(), content) {
            Ok(path) => command.env(name, path),
            Err(error) => return error,
        };
    }
    // The read end has no CLOEXEC on purpose: Claude inherits it, and nobody else is here to.
    let token = match start.oauth_token.as_deref().map(token_pipe).transpose() {
        Ok(token) => token,
        Err(error) => return LaunchError::Token(error),
    };
    if let Some(token) = &token {
        command.env("CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR", token.as_raw_fd().to_string());
    }
    LaunchError::Exec { program: start.program.clone(), source: command.exec() }
}

/// The token in a pipe that is empty once it has been read: no file, no environment, no argument.
fn token_pipe(token: &str) -> std::io::Result<OwnedFd> {
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(token.as_bytes())?;
    let reader = OwnedFd::from(reader);
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty())?;
    Ok(reader)
}

/// A prompt that no argument can hold goes into a file of the agent's, and the argument says so.
fn prompt_argument(prompt: &str) -> Result<String, LaunchError> {
    if prompt.len() <= MAX_PROMPT_ARGUMENT {
        return Ok(prompt.to_owned());
    }
    let path = agents_file("prompt.md", prompt)?;
    Ok(format!("Your task is in the file {path}: read all of it, then do it."))
}

/// A file in the agent's runtime directory, which is a tmpfs and nobody else's; replaces the one of a former life.
fn agents_file(name: &str, content: &str) -> Result<String, LaunchError> {
    let directory = crate::filesystem::layout::runtime_directory(nix::unistd::getuid().as_raw());
    let path = format!("{directory}/{name}");
    let written = || {
        // Whatever was put there; this is the agent by now.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => std::fs::remove_dir_all(&path)?,
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Two that start at a time write the same.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags);
        options.open(&path)?.write_all(content.as_bytes())
    };
    match written() {
        Ok(()) => Ok(path),
        Err(source) => Err(LaunchError::File { path, source }),
    }
}
