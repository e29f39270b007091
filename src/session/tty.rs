//! The operator's terminal: raw mode that ends with us, and writing that never waits for a terminal that does not read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Once, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, QueueSelector, Termios, tcflush, tcgetattr, tcsetattr};

use super::attach::AttachError;

/// What is said at the end is a few lines: a terminal that does not take them in this time does not read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The operator's terminal in raw mode; restored however this ends.
pub(super) struct Tty {
    saved: Termios,
    out: OwnedFd,
    farewell: String,
}

impl Tty {
    pub(super) fn enter() -> Result<Self, AttachError> {
        let stdin = rustix::stdio::stdin();
        let saved = tcgetattr(stdin).map_err(AttachError::Mode)?;
        let out = output().map_err(AttachError::Mode)?;
        BEFORE.get_or_init(|| saved.clone());
        restore_after_panic(restore);
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).map_err(AttachError::Mode)?;
        Ok(Self { saved, out, farewell: super::terminal::RESET.to_owned() })
    }

    /// What takes back the modes that the session has set.
    pub(super) fn farewell(&mut self, farewell: String) {
        self.farewell = farewell;
    }

    pub(super) fn out(&self) -> BorrowedFd<'_> {
        self.out.as_fd()
    }

    /// Writes what the terminal takes in a moment.
    pub(super) fn last_words(&self, bytes: &[u8]) {
        write_within(self.out(), bytes, LAST_WORDS);
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        // Modes that a client which died could not take back.
        self.last_words(self.farewell.as_bytes());
        // What the terminal may have answered to the session is not typed into whatever reads next. A terminal that is
        // gone has neither queue nor mode.
        tcflush(rustix::stdio::stdin(), QueueSelector::IFlush).ok();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.saved).ok();
    }
}

/// Standard output opened anew: O_NONBLOCK belongs to the open file, which is shared with the shell that we came from.
fn output() -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/fd/1", flags, Mode::empty())
        // A socket can't be opened; then we wait for its reader.
        .or_else(|_| rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3))
}

/// A line for the operator; lost on a terminal that does not read.
pub(super) fn say(text: &str) {
    if let Ok(out) = output() {
        write_within(out.as_fd(), text.as_bytes(), LAST_WORDS);
    }
}

/// Writes to the terminal what it takes in a moment; whether that is all.
pub(crate) fn write(text: &str) -> bool {
    output().is_ok_and(|out| write_within(out.as_fd(), text.as_bytes(), LAST_WORDS))
}

/// The release build aborts on a panic, and nothing is dropped then: the hook comes before that.
pub(crate) fn restore_after_panic(restore: fn()) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            told(panic);
        }));
    });
}

/// What was before the first time; PID 1's console is entered again and again.
static BEFORE: OnceLock<Termios> = OnceLock::new();

fn restore() {
    if let Some(before) = BEFORE.get() {
        write(super::terminal::RESET);
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before).ok();
    }
}

/// Whether all of it was written.
fn write_within(to: BorrowedFd<'_>, mut bytes: &[u8], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
                match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                    Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                    Ok(0) | Err(_) => return false,
                }
            }
            // The terminal is gone.
            Err(_) => return false,
        }
    }
    true
}
