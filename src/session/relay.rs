//! The pty relay between the operator's terminal and a program on a terminal of its own: the tmux client, which runs as
//! the agent, or root's shell. Bytes and window sizes are copied; what goes to the operator is filtered.
//!
//! Nothing here waits for one side only: a program that does not read its keys, and a terminal that does not read its
//! screen, are both left by the keys of [`super::escape`], by a signal, or by the end of the other side.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use signal_hook::SigId;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGTERM, SIGWINCH};

use super::attach::AttachError;
use super::escape::{Escape, Looking};
use super::terminal::Filter;
use super::tty::Tty;
use crate::seats::Seat;
use crate::supervisor::backoff::pause;

/// Why the relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The program on the other side ended.
    Program,
    /// The operator's keys, whatever the program does.
    Escape,
    /// The program was stopped again and again.
    Stopped,
    /// We were told to, or the terminal is gone.
    Told,
}

/// Whose keys they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Typed,
    /// Of who only looks. tmux's own `-r` is the server's and the client's to keep, and both are the agent's.
    Dropped,
}

/// Why it ended, and how the program did.
pub(super) struct End {
    pub(super) left: Left,
    pub(super) status: Option<WaitStatus>,
}

/// Signals as something to poll; heard until this is dropped.
struct Signals {
    pipe: UnixStream,
    ids: Vec<SigId>,
}

impl Signals {
    fn hear(signals: &[i32]) -> Result<Self, AttachError> {
        let (pipe, writer) = UnixStream::pair().map_err(AttachError::Wait)?;
        pipe.set_nonblocking(true).map_err(AttachError::Wait)?;
        let mut heard = Self { pipe, ids: Vec::new() };
        for signal in signals {
            let writer = writer.try_clone().map_err(AttachError::Wait)?;
            let id = signal_hook::low_level::pipe::register(*signal, writer).map_err(AttachError::Wait)?;
            heard.ids.push(id);
        }
        Ok(heard)
    }

    fn clear(&self) {
        let mut buffer = [0; 16];
        let mut stream = &self.pipe;
        while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

/// Runs what `start` puts on the terminal that it is given.
pub(super) fn relay(
    start: impl FnOnce(&OwnedFd) -> Result<Pid, AttachError>,
    filter: Filter,
    seat: Option<Seat>,
    keys: Keys,
) -> Result<End, AttachError> {
    let (master, slave) = super::pty::pair().map_err(AttachError::Pty)?;
    copy_size(&master);
    let changed = Signals::hear(&[SIGWINCH, SIGCHLD])?;
    let told = Signals::hear(&[SIGTERM, SIGHUP])?;
    let child = start(&slave)?;
    drop(slave);
    let tty = match Tty::enter() {
        Ok(tty) => tty,
        Err(error) => {
            drop(master);
            reap(child);
            return Err(error);
        }
    };
    let mut relay = Relay {
        master,
        tty,
        child,
        filter,
        seat,
        screen: Vec::with_capacity(SCREEN),
        shown: 0,
        unread_since: None,
        keyboard: Keyboard::new(keys),
        stops: Vec::new(),
    };
    let result = relay.copy(&changed, &told);
    relay.tty.farewell(relay.filter.farewell());
    let Relay { master, tty, .. } = relay;
    drop(tty);
    // Closing the master hangs the program up if it still lives.
    drop(master);
    let status = reap(child);
    result.map(|left| End { left, status })
}

/// Octets for the operator that wait for the terminal, before the program has to.
const SCREEN: usize = 256 << 10;
/// Times that the program's terminal is read before somebody else has a turn.
const READS: usize = 16;
/// A terminal that gives so much at a time has more.
const MORE_WAITS: usize = 2048;
/// Octets of the operator's that wait for the program.
const KEYS: usize = 64 << 10;
/// A program that reads no keys in this time hangs: further keys are looked at, and go nowhere.
const HANGS: Duration = Duration::from_secs(2);
/// Whoever stops the program so often in so short a time does not want the operator here.
const MAX_STOPS: usize = 5;
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// What a program writes while it ends is a few sequences; somebody else may go on writing for ever.
const MAX_LAST_WORDS: usize = 256 << 10;
/// A tmux client whose terminal is gone ends at once.
const LAST_MOMENT: Duration = Duration::from_secs(1);

struct Relay {
    /// Non-blocking, as is the terminal's output.
    master: OwnedFd,
    tty: Tty,
    child: Pid,
    filter: Filter,
    seat: Option<Seat>,
    /// Filtered, for the terminal; so much of it was written.
    screen: Vec<u8>,
    shown: usize,
    /// Since when the program has not read its keys.
    unread_since: Option<Instant>,
    keyboard: Keyboard,
    stops: Vec<Instant>,
}

/// The operator's keys that wait for the program, and those that leave.
#[derive(Debug)]
struct Keyboard {
    waiting: Vec<u8>,
    escape: Escape,
    /// Where nothing is typed into the program.
    looking: Option<Looking>,
}

impl Keyboard {
    fn new(keys: Keys) -> Self {
        let looking = (keys == Keys::Dropped).then(Looking::default);
        Self { waiting: Vec::new(), escape: Escape::default(), looking }
    }

    /// Whether these keys leave.
    fn typed(&mut self, keys: &[u8], now: Instant) -> bool {
        let leaves = match &mut self.looking {
            Some(looking) => looking.typed(keys),
            None => {
                if self.waiting.len() < KEYS {
                    self.waiting.extend_from_slice(keys);
                }
                false
            }
        };
        self.escape.typed(keys, now) || leaves
    }
}

/// What can be done now.
#[expect(clippy::struct_excessive_bools, reason = "one for each descriptor that poll(2) looks at")]
struct Ready {
    screen: bool,
    hung_up: bool,
    changed: bool,
    told: bool,
    keys: bool,
    seat: bool,
}

impl Relay {
    fn copy(&mut self, changed: &Signals, told: &Signals) -> Result<Left, AttachError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Some(ready) = self.wait(changed, told)? else { continue };
            if ready.changed {
                changed.clear();
                copy_size(&self.master);
                if let Some(left) = self.look_at_program() {
                    self.drain(&mut buffer);
                    return Ok(left);
                }
            }
            if ready.told {
                return Ok(Left::Told);
            }
            if ready.seat {
                self.hear();
            }
            if ready.keys
                && let Some(left) = self.take_keys(&mut buffer)
            {
                return Ok(left);
            }
            self.send_keys();
            if ready.screen
                && let Some(left) = self.take_screen(&mut buffer)
            {
                // What it wrote before its end is not shown yet.
                self.tty.last_words(self.screen.get(self.shown..).unwrap_or_default());
                return Ok(left);
            }
            if ready.hung_up {
                // What waits for the terminal is given a moment: the program's end is no reason to lose it.
                self.drain(&mut buffer);
                return Ok(Left::Told);
            }
            if !self.show() {
                return Ok(Left::Told);
            }
        }
    }

    /// Waits until there is something to do; none when a signal came between.
    fn wait(&self, changed: &Signals, told: &Signals) -> Result<Option<Ready>, AttachError> {
        let stdin = rustix::stdio::stdin();
        let want = |flag, wanted| if wanted { flag } else { PollFlags::empty() };
        let waiting = self.screen.len() - self.shown;
        let has_room = waiting < SCREEN;
        let patience = self.unread_since.filter(|_| self.keyboard.waiting.len() >= KEYS);
        let patience = patience.map(|since| HANGS.saturating_sub(since.elapsed()));
        let reads = patience.is_none_or(|left| left.is_zero());
        let program = want(PollFlags::IN, has_room) | want(PollFlags::OUT, !self.keyboard.waiting.is_empty());
        let seat = self.seat.as_ref().map_or(told.pipe.as_fd(), Seat::as_fd);
        let mut fds = [
            PollFd::from_borrowed_fd(self.master.as_fd(), program),
            PollFd::from_borrowed_fd(changed.pipe.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(told.pipe.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin, want(PollFlags::IN, reads)),
            PollFd::from_borrowed_fd(self.tty.out(), want(PollFlags::OUT, waiting > 0)),
            PollFd::from_borrowed_fd(seat, want(PollFlags::IN, self.seat.is_some())),
        ];
        let limit = patience.filter(|left| !left.is_zero()).and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(AttachError::Wait(error.into())),
        }
        let [master, changed, told, keys, out, seat] = fds.each_ref().map(PollFd::revents);
        let gone = PollFlags::HUP | PollFlags::ERR;
        Ok(Some(Ready {
            screen: has_room && master.intersects(PollFlags::IN | gone),
            // The program left its terminal while ours does not read; or ours is gone.
            hung_up: !has_room && master.intersects(gone) || out.intersects(gone),
            changed: !changed.is_empty(),
            told: !told.is_empty(),
            keys: keys.intersects(PollFlags::IN | gone),
            seat: self.seat.is_some() && !seat.is_empty(),
        }))
    }

    /// The end of the program ends the relay. One that was stopped (by the agent, or by tmux's own key) goes on.
    fn look_at_program(&mut self) -> Option<Left> {
        // Only looked at, not reaped: what it ended with is asked for later.
        let ended = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        if !matches!(waitid(Id::Pid(self.child), ended), Ok(WaitStatus::StillAlive)) {
            return Some(Left::Program);
        }
        let stopped = waitid(Id::Pid(self.child), WaitPidFlag::WNOHANG | WaitPidFlag::WSTOPPED);
        if !matches!(stopped, Ok(WaitStatus::Stopped(..))) {
            return None;
        }
        self.stops.retain(|stop| stop.elapsed() < STOPS_WITHIN);
        self.stops.push(Instant::now());
        if self.stops.len() > MAX_STOPS {
            return Some(Left::Stopped);
        }
        // It may have ended meanwhile, which the next look shows.
        kill(self.child, Signal::SIGCONT).ok();
        None
    }

    fn take_keys(&mut self, buffer: &mut [u8]) -> Option<Left> {
        let count = match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Ok(0) => return Some(Left::Told),
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return None,
            Err(_) => return Some(Left::Told),
        };
        let keys = buffer.get(..count).unwrap_or_default();
        self.keyboard.typed(keys, Instant::now()).then_some(Left::Escape)
    }

    fn send_keys(&mut self) {
        if self.keyboard.waiting.is_empty() {
            return;
        }
        match rustix::io::write(&self.master, &self.keyboard.waiting) {
            Ok(count) => {
                self.keyboard.waiting.drain(..count);
                self.unread_since = None;
            }
            Err(_) => {
                // Full, or gone: then reading says so.
                self.unread_since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// A terminal gives 4 KiB at a time (N_TTY_BUF_SIZE): what waits behind them is taken too, for one look and one write.
    fn take_screen(&mut self, buffer: &mut [u8]) -> Option<Left> {
        for _ in 0..READS {
            match rustix::io::read(&self.master, &mut *buffer) {
                Ok(0) | Err(Errno::IO) => return Some(Left::Program),
                Ok(count) => {
                    self.filter.pass(buffer.get(..count).unwrap_or_default(), &mut self.screen);
                    if count < MORE_WAITS {
                        return None;
                    }
                }
                Err(Errno::INTR | Errno::AGAIN) => return None,
                Err(_) => return Some(Left::Program),
            }
        }
        None
    }

    /// Writes what the terminal takes; false when it is gone.
    fn show(&mut self) -> bool {
        while let Some(waiting) = self.screen.get(self.shown..).filter(|waiting| !waiting.is_empty()) {
            match rustix::io::write(self.tty.out(), waiting) {
                Ok(count) => self.shown += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if self.shown >= SCREEN {
                        self.screen.drain(..self.shown);
                        self.shown = 0;
                    }
                    return true;
                }
                Err(_) => return false,
            }
        }
        self.screen.clear();
        self.shown = 0;
        true
    }

    /// PID 1 rings. What waits for the terminal ends between two sequences, so a bell may stand there.
    fn hear(&mut self) {
        let Some(seat) = &mut self.seat else { return };
        match seat.rings() {
            Some(bells) => self.screen.extend(std::iter::repeat_n(BEL, bells.min(1))),
            // The box is about to end.
            None => self.seat = None,
        }
    }

    /// What the program wrote last.
    fn drain(&mut self, buffer: &mut [u8]) {
        let mut octets = 0;
        while octets < MAX_LAST_WORDS && self.take_screen(buffer).is_none() {
            let mut fds = [PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if poll(&mut fds, Some(&now)).unwrap_or(0) == 0 {
                break;
            }
            octets += buffer.len().min(4096);
        }
        self.tty.last_words(self.screen.get(self.shown..).unwrap_or_default());
    }
}

const BEL: u8 = 0x07;

/// The program ends with its terminal; one that does not is ended. The tmux client is the agent's, so it is not waited for
/// long.
fn reap(child: Pid) -> Option<WaitStatus> {
    let deadline = Instant::now() + LAST_MOMENT;
    while Instant::now() < deadline {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => pause(Duration::from_millis(10)),
            Ok(status) => return Some(status),
            Err(_) => return None,
        }
    }
    // Of another uid than ours only as root; where we are the agent ourselves it is our own process as well.
    kill(child, Signal::SIGKILL).ok();
    waitpid(child, None).ok()
}

/// More columns and rows than any screen has: the session's server would make room for each of them.
const MAX_SIDE: u16 = 2000;

/// A size of 0×0 (no terminal knows better) is left at what tmux assumes.
fn copy_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
        && size.ws_col > 0
        && size.ws_row > 0
    {
        let size = Winsize { ws_col: size.ws_col.min(MAX_SIDE), ws_row: size.ws_row.min(MAX_SIDE), ..size };
        // The program goes on with its old size; the next change comes through here again.
        tcsetwinsize(master, size).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::{Keyboard, Keys};
    use std::time::Instant;

    #[test]
    fn nothing_of_who_only_looks_goes_to_the_program() {
        let (now, typed) =
            (Instant::now(), b"rm -rf /\r\x1b[<0;5;5M\x1b[200~pasted\x1b[201~\x02:new-window\r".as_slice());
        let mut operator = Keyboard::new(Keys::Typed);
        assert!(!operator.typed(typed, now));
        assert_eq!(operator.waiting, typed);
        let mut visitor = Keyboard::new(Keys::Dropped);
        assert!(!visitor.typed(typed, now));
        assert!(visitor.typed(b"\x02d", now), "tmux's way out");
        assert!(Keyboard::new(Keys::Dropped).typed(b"\x1d\x1d\x1d\x1d", now), "the relay's");
        assert_eq!(visitor.waiting, b"");
        assert!(!operator.typed(b"\x02d", now), "that is tmux's to understand");
    }
}
