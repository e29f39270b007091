//! `innkeeper pane`, in the session as the agent: starts Claude Code on PID 1's order and tells how it ended.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};

use crate::control::client;
use crate::control::protocol::{ClaudeStart, PaneNews, PaneOrder, Request};

#[derive(Debug, thiserror::Error)]
pub enum PaneError {
    #[error("cannot join the box")]
    Join(#[from] client::ClientError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("the box does not answer any more")]
    Channel(#[source] std::io::Error),
    #[error("an order that this pane does not understand")]
    Order(#[source] serde_json::Error),
    #[error("cannot become a shell")]
    Shell(#[source] std::io::Error),
}

/// Claude gets this long to end itself when the box stops.
const END_LIMIT: Duration = Duration::from_secs(5);
/// The prompt travels as an argument; the kernel takes 128 KiB at most (MAX_ARG_STRLEN, execve(2)).
const MAX_PROMPT_ARGUMENT: usize = 96 << 10;

/// The pane: a loop over orders and Claude's end.
struct Pane {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    child: Option<Pid>,
    wake: UnixStream,
    hangup: Arc<AtomicBool>,
    ending: Option<Instant>,
}

/// Runs until PID 1 says the end, or is gone.
pub fn run() -> Result<(), PaneError> {
    // The token passes through here: the agent's other processes must not read our memory or descriptors.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| PaneError::Signals(error.into()))?;
    let mut stream = client::connect()?;
    client::send(&mut stream, &Request::Pane)?;
    stream.set_read_timeout(None).map_err(PaneError::Channel)?;
    let reader = BufReader::new(stream.try_clone().map_err(PaneError::Channel)?);
    let (wake, waker) = UnixStream::pair().map_err(PaneError::Signals)?;
    wake.set_nonblocking(true).map_err(PaneError::Signals)?;
    signal_hook::low_level::pipe::register(SIGCHLD, waker).map_err(PaneError::Signals)?;
    // The keyboard's signals are Claude's; a handler (unlike SIG_IGN) is not inherited across exec.
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGQUIT, SIGTSTP] {
        signal_hook::flag::register(signal, Arc::clone(&ignored)).map_err(PaneError::Signals)?;
    }
    let hangup = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&hangup)).map_err(PaneError::Signals)?;
    }
    Pane { stream, reader, child: None, wake, hangup, ending: None }.live()
}

impl Pane {
    fn live(mut self) -> Result<(), PaneError> {
        loop {
            if self.reader.buffer().is_empty() && !self.wait()? {
                self.reap();
                self.check_end();
                if self.ending.is_some() && self.child.is_none() {
                    return Ok(());
                }
                continue;
            }
            let mut line = String::new();
            if self.reader.read_line(&mut line).map_err(PaneError::Channel)? == 0 {
                // PID 1 is gone or has replaced us: nothing here outlives it.
                self.begin_end();
                self.reap_until_end();
                return Ok(());
            }
            match serde_json::from_str(&line).map_err(PaneError::Order)? {
                PaneOrder::Start(start) => self.start(&start),
                PaneOrder::Say { text } => say(&text),
                PaneOrder::Shell => return Err(become_shell()),
                PaneOrder::End => self.begin_end(),
            }
        }
    }

    /// Waits for an order or for Claude's end; says whether an order can be read.
    fn wait(&mut self) -> Result<bool, PaneError> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(PaneError::Channel(error.into())),
        }
        let readable = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        let mut buffer = [0; 64];
        while std::io::Read::read(&mut self.wake, &mut buffer).is_ok_and(|read| read > 0) {}
        Ok(readable)
    }

    fn tell(&mut self, news: &PaneNews) {
        let mut line = serde_json::to_vec(news).unwrap_or_default();
        line.push(b'\n');
        // If PID 1 is gone, the next read says so.
        drop(self.stream.write_all(&line));
    }

    fn start(&mut self, start: &ClaudeStart) {
        if self.child.is_some() {
            return;
        }
        let news = match spawn(start) {
            Ok(pid) => {
                self.child = Some(pid);
                PaneNews::Started { pid: pid.as_raw() }
            }
            Err(error) => PaneNews::Failed { cause: error.to_string() },
        };
        self.tell(&news);
    }

    fn reap(&mut self) {
        let Some(child) = self.child else { return };
        let news = match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => PaneNews::Exited { code: Some(code), signal: None },
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                PaneNews::Exited { code: None, signal: Some(signal as i32) }
            }
            Ok(_) | Err(_) => return,
        };
        self.child = None;
        restore_terminal();
        self.tell(&news);
    }

    fn begin_end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now());
            self.signal(Signal::SIGTERM);
        }
    }

    fn check_end(&mut self) {
        if self.hangup.load(Ordering::Relaxed) {
            self.begin_end();
        }
        if self.ending.is_some_and(|since| since.elapsed() > END_LIMIT) {
            self.signal(Signal::SIGKILL);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child {
            // ESRCH: it has ended by itself.
            kill(child, signal).ok();
        }
    }

    fn reap_until_end(&mut self) {
        while self.child.is_some() {
            if self.wait().is_err() {
                return;
            }
            self.reap();
            self.check_end();
        }
    }
}

/// What a killed program leaves behind: alternate screen, hidden cursor, mouse reports, bracketed paste, raw mode.
fn restore_terminal() {
    let stdin = rustix::stdio::stdin();
    if let Ok(mut mode) = rustix::termios::tcgetattr(stdin) {
        use rustix::termios::{InputModes, LocalModes, OutputModes};
        mode.input_modes |= InputModes::ICRNL;
        mode.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        mode.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        rustix::termios::tcsetattr(stdin, rustix::termios::OptionalActions::Now, &mode).ok();
    }
    write_out(super::terminal::RESET);
}

fn say(text: &str) {
    write_out(&format!("\r\n{}\r\n", crate::report::inert(text)));
}

fn write_out(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody is looking when the terminal is gone.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

fn become_shell() -> PaneError {
    say("innkeeper: Claude Code has ended; this is a shell (session.on_exit = \"shell\").");
    PaneError::Shell(Command::new("/bin/bash").args(["--login", "-i"]).exec())
}

fn spawn(start: &ClaudeStart) -> std::io::Result<Pid> {
    let mut command = Command::new(&start.program);
    if start.resume {
        command.arg("--continue");
    }
    command.args(&start.args);
    if let Some(prompt) = &start.prompt {
        // After `--` a prompt that begins with a hyphen is no flag.
        command.arg("--").arg(prompt_argument(prompt)?);
    }
    // The whole environment is PID 1's list; the tmux server's own is the agent's to change, proxies included.
    command.env_clear().current_dir(&start.cwd).envs(start.env.iter().map(|(name, value)| (name, value)));
    for name in ["TERM", "TMUX", "TMUX_PANE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    for (name, content) in &start.files {
        command.env(name, agents_file(&name.to_lowercase(), content)?);
    }
    // The read end has no CLOEXEC on purpose and is closed here right after the spawn: Claude alone inherits it.
    let token = start.oauth_token.as_deref().map(token_pipe).transpose()?;
    if let Some(token) = &token {
        command.env("CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR", token.as_raw_fd().to_string());
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(std::io::Error::other)
}

/// The token in a pipe that is empty once it has been read: no file, no environment, no argument.
fn token_pipe(token: &str) -> std::io::Result<OwnedFd> {
    let (reader, writer) = std::io::pipe()?;
    let mut writer = writer;
    writer.write_all(token.as_bytes())?;
    let reader = OwnedFd::from(reader);
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty())?;
    Ok(reader)
}

/// A prompt that no argument can hold goes into a file of the agent's, and the argument says so.
fn prompt_argument(prompt: &str) -> std::io::Result<String> {
    if prompt.len() <= MAX_PROMPT_ARGUMENT {
        return Ok(prompt.to_owned());
    }
    let path = agents_file("prompt.md", prompt)?;
    Ok(format!("Your task is in the file {path}: read all of it, then do it."))
}

/// A file in the agent's runtime directory, which is a tmpfs and nobody else's; replaces the one of a former life.
fn agents_file(name: &str, content: &str) -> std::io::Result<String> {
    let directory = crate::filesystem::layout::runtime_directory(nix::unistd::getuid().as_raw());
    let path = format!("{directory}/{name}");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(content.as_bytes())?;
    Ok(path)
}
