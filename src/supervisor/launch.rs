//! What is to be started: program, arguments, a complete environment, three descriptors and an identity.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::run_as::Identity;

/// Where a standard stream goes.
#[derive(Debug)]
pub enum Stream {
    Null,
    /// PID 1's own: the console.
    Inherit,
    Fd(OwnedFd),
}

/// What one child may say on a stream that becomes event lines.
const MAX_WORDS: u64 = 64 << 10;

impl Stream {
    /// A pipe whose lines become events of `source`: what a worker says of its end.
    pub fn events(source: &'static str) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        super::thread("words", move || {
            let mut reader = BufReader::new(reader);
            for line in reader.by_ref().take(MAX_WORDS).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                crate::report::event(source, &crate::report::bounded(line.trim_end(), 400));
            }
            // Who says more is not listened to, and not stopped by a pipe that is closed either.
            drop(io::copy(&mut reader, &mut io::sink()));
        })?;
        Ok(Self::Fd(OwnedFd::from(writer)))
    }
}

impl From<Stream> for Stdio {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Null => Self::null(),
            Stream::Inherit => Self::inherit(),
            Stream::Fd(fd) => Self::from(fd),
        }
    }
}

#[derive(Debug)]
pub enum Program {
    /// This very binary, whatever has become of its path.
    Own(&'static str),
    Path(PathBuf),
}

/// A child to start.
#[derive(Debug)]
pub struct Launch {
    pub program: Program,
    pub args: Vec<OsString>,
    /// The child's whole environment: built from a list, never inherited.
    pub env: Vec<(String, String)>,
    pub stdin: Stream,
    pub stdout: Stream,
    pub stderr: Stream,
    /// Whom it runs as; `None` is root, for children that hold the operator's terminal.
    pub identity: Option<Identity>,
    /// Started also while the box stops.
    pub last: bool,
    /// What it is called where it is a part of the session: it ends with everything of the agent's.
    pub session: Option<&'static str>,
}

impl Launch {
    /// A hidden subcommand of this binary. Its standard streams are null: a child that is not root's must never hold
    /// PID 1's own, which lead to the operator's terminal.
    #[must_use]
    pub fn own(subcommand: &'static str, identity: Option<Identity>) -> Self {
        Self {
            program: Program::Own(subcommand),
            args: Vec::new(),
            env: Vec::new(),
            stdin: Stream::Null,
            stdout: Stream::Null,
            stderr: Stream::Null,
            identity,
            last: false,
            session: None,
        }
    }

    /// A program of the image.
    #[must_use]
    pub fn program(path: impl Into<PathBuf>, identity: Identity) -> Self {
        Self { program: Program::Path(path.into()), ..Self::own("", Some(identity)) }
    }

    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn last(mut self, last: bool) -> Self {
        self.last = last;
        self
    }

    #[must_use]
    pub fn env(mut self, env: Vec<(String, String)>) -> Self {
        self.env = env;
        self
    }

    /// It is the agent's session, and called so.
    #[must_use]
    pub fn of_the_session(mut self, name: &'static str) -> Self {
        self.session = Some(name);
        self
    }

    pub(super) fn program_name(&self) -> String {
        if let Some(name) = self.session {
            return name.to_owned();
        }
        match &self.program {
            Program::Own(subcommand) => format!("innkeeper {subcommand}"),
            Program::Path(path) => path.display().to_string(),
        }
    }

    /// The command, not yet started. Also used by `attach`, which is no child of PID 1's.
    #[must_use]
    pub fn command(self) -> Command {
        // /proc/self/exe is this binary even if its path was replaced or hidden meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("innkeeper");
        if let Some(identity) = &self.identity {
            command.arg("run-as").args(identity.to_args()).arg("--");
        }
        match self.program {
            Program::Own(subcommand) if self.identity.is_some() => {
                command.args(["/proc/self/exe", subcommand]);
            }
            Program::Own(subcommand) => {
                command.arg(subcommand);
            }
            Program::Path(path) => {
                command.arg(path);
            }
        }
        command.args(self.args);
        command.env_clear().envs(self.env).current_dir("/");
        command.stdin(self.stdin).stdout(self.stdout).stderr(self.stderr);
        command
    }

    pub(super) fn start(self) -> io::Result<i32> {
        let child = self.command().spawn()?;
        i32::try_from(child.id()).map_err(|_| io::Error::other("a pid beyond i32"))
    }
}
