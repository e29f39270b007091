//! A terminal for what runs in a box: a pseudo-terminal of its own. The operator's is never handed in, since whoever has
//! a terminal open as its controlling one may type on it (TIOCSTI, ioctl_tty(2)), and the operator's shell is root's.

use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use signal_hook::consts::SIGWINCH;

/// The operator's terminal in raw mode, and the other one. Restored however this ends.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    slave: Option<OwnedFd>,
    resized: UnixStream,
    saved: Termios,
    raw: bool,
}

impl Terminal {
    /// `None` where the operator has none.
    pub fn open() -> io::Result<Option<Self>> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(None);
        }
        // Non-blocking: a box that does not read must not hold up its keeper.
        let (master, slave) = crate::session::pty::pair()?;
        let (resized, writer) = UnixStream::pair()?;
        resized.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGWINCH, writer)?;
        let saved = tcgetattr(rustix::stdio::stdin())?;
        let terminal = Self { master, slave: Some(slave), resized, saved, raw: false };
        terminal.copy_size();
        Ok(Some(terminal))
    }

    /// Gives the command the box's end; it must make it its controlling terminal itself.
    pub fn give(&self, command: &mut Command) -> io::Result<()> {
        let Some(slave) = &self.slave else { return Ok(()) };
        command.stdin(Stdio::from(slave.try_clone()?));
        command.stdout(Stdio::from(slave.try_clone()?));
        command.stderr(Stdio::from(slave.try_clone()?));
        Ok(())
    }

    /// The command has started: from here on the keys are the box's, Ctrl-C too.
    pub fn begin(&mut self) -> io::Result<()> {
        self.slave = None;
        let mut raw = self.saved.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        self.raw = true;
        Ok(())
    }

    /// What is to be polled beside others.
    pub fn polled(&self) -> [PollFd<'_>; 3] {
        [
            PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.resized.as_fd(), PollFlags::IN),
        ]
    }

    /// Copies what is there now. `false`: the operator's terminal is gone.
    pub fn copy(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while self.resized.read(&mut buffer).is_ok_and(|count| count > 0) {
            self.copy_size();
        }
        self.copy_out();
        let mut stdin = [PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN)];
        if poll(&mut stdin, Some(&NOW)).unwrap_or(0) == 0 {
            return true;
        }
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => false,
            // What does not fit is lost, as on any terminal whose program does not read.
            Ok(count) => {
                rustix::io::write(&self.master, buffer.get(..count).unwrap_or_default()).ok();
                true
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    fn copy_out(&self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..AT_ONCE {
            let Ok(count @ 1..) = rustix::io::read(&self.master, &mut buffer) else { return };
            let mut bytes = buffer.get(..count).unwrap_or_default();
            while !bytes.is_empty() {
                match rustix::io::write(rustix::stdio::stdout(), bytes) {
                    Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        }
    }

    fn copy_size(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            // The next change comes through here again.
            tcsetwinsize(&self.master, size).ok();
        }
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// So much is copied before signals are looked at again.
const AT_ONCE: usize = 16;

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.raw {
            // The last words of what ran.
            self.copy_out();
            // A terminal that is gone has no mode.
            tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.saved).ok();
        }
    }
}

/// Makes standard input the controlling terminal of a session of this process's own.
pub fn take() -> io::Result<()> {
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
}

/// `innkeeper engine-console`: takes the terminal, then executes. Returns only with an error.
pub fn console(command: &[String]) -> io::Error {
    use std::os::unix::process::CommandExt;
    let Some((program, arguments)) = command.split_first() else { return io::ErrorKind::InvalidInput.into() };
    match take() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}
