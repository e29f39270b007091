//! Git as the saves call it: for the same answer to the same work, and not for ever.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::PersistError;
use crate::report::harmless;
use crate::supervisor::thread;

/// The longest list that git may print.
const MOST: u64 = 64 << 20;
/// What is kept of its complaints.
const MOST_SAID: u64 = 16 << 10;

/// What would make the same work look, or be written, in another way.
const SETTINGS: &[&str] = &[
    "core.excludesFile=/dev/null",
    "core.splitIndex=false",
    "core.quotePath=false",
    "commit.gpgSign=false",
    "advice.detachedHead=false",
];

pub(super) const KILLED: &str = "it took too long, or was killed";

/// Names and times of the commits that we make: the same content is the same commit.
const NOBODY: &[(&str, &str)] = &[
    ("GIT_AUTHOR_NAME", "innkeeper"),
    ("GIT_AUTHOR_EMAIL", "innkeeper@localhost"),
    ("GIT_AUTHOR_DATE", "@100000000 +0000"),
    ("GIT_COMMITTER_NAME", "innkeeper"),
    ("GIT_COMMITTER_EMAIL", "innkeeper@localhost"),
    ("GIT_COMMITTER_DATE", "@100000000 +0000"),
];

/// A repository, and by when its questions must be answered.
#[derive(Debug, Clone)]
pub(super) struct Git {
    pub(super) directory: PathBuf,
    pub(super) work_tree: Option<PathBuf>,
    pub(super) index: Option<PathBuf>,
    pub(super) until: Instant,
}

/// What git reads.
#[derive(Debug)]
pub(super) enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(File),
}

/// A git that is running.
pub(super) struct Running {
    what: String,
    pid: Pid,
    said: mpsc::Receiver<Vec<u8>>,
    ended: mpsc::Sender<()>,
}

impl Git {
    #[must_use]
    pub(super) fn at(directory: impl Into<PathBuf>, until: Instant) -> Self {
        Self { directory: directory.into(), work_tree: None, index: None, until }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = crate::git::command(SETTINGS);
        command.arg("--literal-pathspecs").args(args);
        command.current_dir(self.work_tree.as_deref().unwrap_or(Path::new("/")));
        command.env("GIT_DIR", &self.directory);
        if let Some(work_tree) = &self.work_tree {
            command.env("GIT_WORK_TREE", work_tree);
        }
        if let Some(index) = &self.index {
            command.env("GIT_INDEX_FILE", index);
        }
        command.env("GIT_NO_REPLACE_OBJECTS", "1");
        command.envs(NOBODY.iter().copied());
        // A group of its own, so that all of it can be ended.
        command.process_group(0);
        command
    }

    /// Starts git; the caller reads what it prints, then asks how it ended.
    pub(super) fn start(
        &self,
        args: &[&str],
        input: Input,
    ) -> Result<(std::process::ChildStdout, Running), PersistError> {
        let what = args.first().copied().unwrap_or_default().to_owned();
        let failed =
            |source| PersistError::Git { what: what.clone(), said: String::new(), source: Some(source) };
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut bytes = None;
        match input {
            Input::Nothing => command.stdin(Stdio::null()),
            Input::File(file) => command.stdin(Stdio::from(file)),
            Input::Bytes(content) => {
                bytes = Some(content);
                command.stdin(Stdio::piped())
            }
        };
        let mut child = command.spawn().map_err(failed)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let (stdout, said) = serve(&mut child, bytes).map_err(failed)?;
        let ended = watch(pid, self.until).map_err(failed)?;
        Ok((stdout, Running { what, pid, said, ended }))
    }

    /// What git prints.
    pub(super) fn ask(&self, args: &[&str], input: Input) -> Result<Vec<u8>, PersistError> {
        let (stdout, running) = self.start(args, input)?;
        let mut bytes = Vec::new();
        let read = stdout.take(MOST).read_to_end(&mut bytes);
        let full = u64::try_from(bytes.len()).unwrap_or(u64::MAX) >= MOST;
        let what = running.what.clone();
        if full {
            running.kill();
        }
        running.end()?;
        read.map_err(|source| PersistError::Git { what, said: String::new(), source: Some(source) })?;
        Ok(bytes)
    }

    /// The same of a text of lines.
    pub(super) fn text(&self, args: &[&str], input: Input) -> Result<String, PersistError> {
        Ok(String::from_utf8_lossy(&self.ask(args, input)?).into_owned())
    }
}

impl Running {
    fn kill(&self) {
        // It may have ended by itself.
        killpg(self.pid, Signal::SIGKILL).ok();
    }

    /// Waits for its end. Here is no reaper but us.
    pub(super) fn end(self) -> Result<(), PersistError> {
        let ended = waitpid(self.pid, None);
        drop(self.ended);
        if matches!(ended, Ok(WaitStatus::Exited(_, 0))) {
            return Ok(());
        }
        let said = self.said.recv().unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let said = match ended {
            Ok(WaitStatus::Signaled(..)) => KILLED.to_owned(),
            _ => harmless(&lines.get(lines.len().saturating_sub(2)..).unwrap_or_default().join(" | "), 200),
        };
        Err(PersistError::Git { what: self.what, said, source: None })
    }
}

type Streams = (std::process::ChildStdout, mpsc::Receiver<Vec<u8>>);

/// Feeds it and listens to its complaints, so that it never waits for us.
fn serve(child: &mut Child, bytes: Option<Vec<u8>>) -> io::Result<Streams> {
    if let (Some(bytes), Some(mut stdin)) = (bytes, child.stdin.take()) {
        // A git that reads no further has ended, and its status says why.
        thread("git-in", move || drop(stdin.write_all(&bytes)))?;
    }
    let (tell, said) = mpsc::channel();
    let stderr = child.stderr.take().ok_or_else(|| io::Error::other("no standard error"))?;
    thread("git-err", move || {
        let mut stderr = stderr;
        let mut bytes = Vec::new();
        drop(stderr.by_ref().take(MOST_SAID).read_to_end(&mut bytes));
        drop(io::copy(&mut stderr, &mut io::sink()));
        drop(tell.send(bytes));
    })?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
    Ok((stdout, said))
}

/// Ends the group when its time is over, unless it has ended before.
fn watch(pid: Pid, until: Instant) -> io::Result<mpsc::Sender<()>> {
    let (ended, waits) = mpsc::channel::<()>();
    thread("git-end", move || {
        let left = until.saturating_duration_since(Instant::now());
        if waits.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
            killpg(pid, Signal::SIGKILL).ok();
        }
    })?;
    Ok(ended)
}
