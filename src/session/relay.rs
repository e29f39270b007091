//! The pty relay between the operator's terminal and the tmux client, which runs as the agent on a terminal of its own.
//! Bytes and window sizes are copied; what goes to the operator is filtered.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGTERM, SIGWINCH};

use super::attach::{Attach, AttachError, say};
use super::terminal::{Filter, RESET};
use super::{NAME, socket, tmux};
use crate::account::Account;
use crate::supervisor::backoff::pause;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, Stream};

/// The operator's terminal in raw mode; restored however this ends.
struct RawMode {
    saved: Termios,
}

impl RawMode {
    fn enter() -> Result<Self, AttachError> {
        let stdin = rustix::stdio::stdin();
        let saved = tcgetattr(stdin).map_err(AttachError::Mode)?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).map_err(AttachError::Mode)?;
        Ok(Self { saved })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Modes that a client which died could not take back: alternate screen, mouse, paste, key modes, cursor.
        say(RESET);
        // A terminal that is gone has no mode.
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.saved).ok();
    }
}

/// A signal as something to poll.
fn signal_pipe(signals: &[i32]) -> Result<UnixStream, AttachError> {
    let (reader, writer) = UnixStream::pair().map_err(AttachError::Wait)?;
    reader.set_nonblocking(true).map_err(AttachError::Wait)?;
    for signal in signals {
        let writer = writer.try_clone().map_err(AttachError::Wait)?;
        signal_hook::low_level::pipe::register(*signal, writer).map_err(AttachError::Wait)?;
    }
    Ok(reader)
}

pub(super) fn relay(agent: &Account, attach: Attach) -> Result<(), AttachError> {
    let master =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(AttachError::Pty)?;
    grantpt(&master).and_then(|()| unlockpt(&master)).map_err(AttachError::Pty)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(AttachError::Pty)?;
    copy_size(&master);
    let changed = signal_pipe(&[SIGWINCH, SIGCHLD])?;
    let leave = signal_pipe(&[SIGTERM, SIGHUP])?;
    let child = start_client(agent, &slave, attach)?;
    drop(slave);
    let raw = RawMode::enter()?;
    let result = copy(&master, &changed, &leave, child);
    drop(raw);
    // Closing the master hangs the client up if it still lives.
    drop(master);
    reap(child);
    result
}

/// The client ends with its terminal; one that does not is ended. It is the agent's, so it is not waited for long.
fn reap(child: Pid) {
    let deadline = Instant::now() + LAST_MOMENT;
    while Instant::now() < deadline {
        if waitpid(child, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive) {
            return;
        }
        pause(Duration::from_millis(10));
    }
    // Of another uid than ours only as root; where we are the agent ourselves it is our own process as well.
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).ok();
    waitpid(child, None).ok();
}

/// A tmux client whose terminal is gone ends at once.
const LAST_MOMENT: Duration = Duration::from_secs(1);

fn start_client(agent: &Account, slave: &OwnedFd, attach: Attach) -> Result<Pid, AttachError> {
    let identity = Identity { tty: true, confine: true, ..Identity::worker(agent.uid, agent.gid) };
    let mut env = crate::identity::environment(agent, false, |_| None);
    env.retain(|(name, _)| name != "TERM");
    env.push(("TERM".to_owned(), terminal_type(std::env::var("TERM").ok().as_deref())));
    let socket = socket(agent.uid);
    let target = format!("={NAME}");
    let mut args = vec!["-N", "-u", "-S", &socket, "attach-session", "-t", &target];
    if attach.read_only {
        args.push("-r");
    }
    args.extend([";", "display-message", "-d", "6000", HOW_TO_LEAVE]);
    let mut launch = Launch::program(tmux(), identity).args(args).env(env);
    let stream = || slave.try_clone().map(Stream::Fd).map_err(AttachError::Spawn);
    (launch.stdin, launch.stdout, launch.stderr) = (stream()?, stream()?, stream()?);
    let child = launch.command().spawn().map_err(AttachError::Spawn)?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(|_| AttachError::Spawn(std::io::Error::other("a pid beyond i32")))
}

/// Said once, on tmux's message line, when an operator comes in.
const HOW_TO_LEAVE: &str = "Leave with Ctrl-b d: the box keeps running. The shell is below (Ctrl-b Down).";

/// The operator's terminal type, where the image knows it; it is a word and never a path.
fn terminal_type(given: Option<&str>) -> String {
    let fallback = "xterm-256color".to_owned();
    let Some(name) = given else { return fallback };
    let word = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    let Some(first) = name.chars().next().filter(|_| name.len() <= 64 && name.chars().all(word)) else {
        return fallback;
    };
    let known = ["/lib/terminfo", "/usr/share/terminfo", "/etc/terminfo"]
        .iter()
        .any(|base| std::path::Path::new(base).join(first.to_string()).join(name).exists());
    if known && !name.contains("..") && name != "dumb" { name.to_owned() } else { fallback }
}

/// A size of 0×0 (no terminal knows better) is left at what tmux assumes.
fn copy_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
        && size.ws_col > 0
        && size.ws_row > 0
    {
        // The client goes on with its old size; the next change comes through here again.
        tcsetwinsize(master, size).ok();
    }
}

fn readable(fd: &PollFd<'_>) -> bool {
    fd.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
}

fn copy(master: &OwnedFd, changed: &UnixStream, leave: &UnixStream, child: Pid) -> Result<(), AttachError> {
    let mut filter = Filter::default();
    let mut buffer = vec![0; 64 << 10];
    let mut out = Vec::with_capacity(64 << 10);
    let mut stdin_open = true;
    loop {
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![
            PollFd::from_borrowed_fd(master.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(changed.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(leave.as_fd(), PollFlags::IN),
        ];
        if stdin_open {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(AttachError::Wait(error.into())),
        }
        let ready: Vec<bool> = fds.iter().map(readable).collect();
        if ready.get(1) == Some(&true) && signalled(master, changed, child) {
            drain(master, &mut filter, &mut buffer);
            return Ok(());
        }
        if ready.get(2) == Some(&true) {
            return Ok(());
        }
        if ready.get(3) == Some(&true) {
            stdin_open = forward(stdin, master.as_fd(), &mut buffer);
        }
        if ready.first() == Some(&true) {
            match rustix::io::read(master, &mut buffer) {
                Ok(0) | Err(rustix::io::Errno::IO) => return Ok(()),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(error) => return Err(AttachError::Wait(error.into())),
                Ok(count) => {
                    out.clear();
                    filter.pass(buffer.get(..count).unwrap_or_default(), &mut out);
                    if !write_all(rustix::stdio::stdout(), &out) {
                        return Ok(());
                    }
                }
            }
        }
        if !stdin_open {
            return Ok(());
        }
    }
}

/// Window sizes go on to the client; the end of the client, or of the terminal, ends the relay.
fn signalled(master: &OwnedFd, changed: &UnixStream, child: Pid) -> bool {
    let mut buffer = [0; 16];
    let mut stream = changed;
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
    copy_size(master);
    // Only looked at, not reaped: the caller wants the status.
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let state = nix::sys::wait::waitid(nix::sys::wait::Id::Pid(child), flags);
    !matches!(state, Ok(WaitStatus::StillAlive))
}

/// What the client wrote last.
fn drain(master: &OwnedFd, filter: &mut Filter, buffer: &mut [u8]) {
    let mut out = Vec::new();
    loop {
        let mut fds = [PollFd::from_borrowed_fd(master.as_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now)).unwrap_or(0) == 0 || out.len() > MAX_LAST_WORDS {
            break;
        }
        match rustix::io::read(master, &mut *buffer) {
            Ok(count) if count > 0 => filter.pass(buffer.get(..count).unwrap_or_default(), &mut out),
            Ok(_) | Err(_) => break,
        }
    }
    write_all(rustix::stdio::stdout(), &out);
}

/// What a client writes while it ends is a few sequences; somebody else may go on writing for ever.
const MAX_LAST_WORDS: usize = 256 << 10;

fn forward(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> bool {
    match rustix::io::read(from, &mut *buffer) {
        Ok(0) => false,
        Ok(count) => write_all(to, buffer.get(..count).unwrap_or_default()),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
        Err(_) => false,
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                poll(&mut fds, None).ok();
            }
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::terminal_type;

    #[test]
    fn f29_an_unknown_or_hostile_terminal_type_is_replaced() {
        for given in
            [None, Some(""), Some("../../etc/passwd"), Some("no-such-terminal"), Some("x\ny"), Some("dumb")]
        {
            assert_eq!(terminal_type(given), "xterm-256color", "{given:?}");
        }
    }
}
