//! An operator's terminal: a real pseudo-terminal with a program on it, whose every byte the test sees.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// Nothing here takes so long; it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    before: Termios,
    child: Child,
    seen: Vec<u8>,
    /// Where [`Terminal::sees`] looks on: what was seen before the last [`Terminal::forget`] is not looked at again.
    mark: usize,
}

impl Terminal {
    /// A terminal of so many columns and rows, with `argv` in its foreground.
    pub(crate) fn run(argv: &[&str], cols: u16, rows: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        // Its own session and controlling terminal: SIGWINCH goes to the terminal's foreground.
        let child = Command::new("setsid")
            .arg("--ctty")
            .args(argv)
            .env("TERM", "xterm-256color")
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .unwrap();
        let before = tcgetattr(&slave).unwrap();
        Self { master, slave, before, child, seen: Vec::new(), mark: 0 }
    }

    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Types.
    pub(crate) fn keys(&mut self, keys: &str) {
        let mut bytes = keys.as_bytes();
        while !bytes.is_empty() {
            let written = rustix::io::write(&self.master, bytes).unwrap();
            bytes = &bytes[written..];
        }
    }

    /// Waits until the screen was told `text`, wherever the escapes that came with it end.
    pub(crate) fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !contains(&self.seen[self.mark..], text.as_bytes()) {
            assert!(self.read(deadline), "{text:?} did not appear; seen:\n{}", self.text());
        }
    }

    /// Waits for the end of the program; its exit status.
    pub(crate) fn ends(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                while self.read(Instant::now()) {}
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it does not end; seen:\n{}", self.text());
            self.read((Instant::now() + Duration::from_millis(50)).min(deadline));
        }
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What was seen so far counts no more.
    pub(crate) fn forget(&mut self) {
        while self.read(Instant::now()) {}
        self.mark = self.seen.len();
    }

    /// Every byte since the last [`Terminal::forget`].
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.seen[self.mark..]
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    pub(crate) fn saw(&self, text: &str) -> bool {
        contains(self.bytes(), text.as_bytes())
    }

    /// Whether the terminal has the modes that it had before the program.
    pub(crate) fn is_restored(&self) -> bool {
        format!("{:?}", tcgetattr(&self.slave).unwrap()) == format!("{:?}", self.before)
    }

    /// Reads what is there, waiting for it until `deadline`; false when nothing came.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::try_from(left).unwrap())) {
            Ok(0) => return false,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
        let mut buffer = vec![0; 1 << 16];
        let count = rustix::io::read(&self.master, &mut buffer).unwrap();
        self.seen.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.try_wait().ok();
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
