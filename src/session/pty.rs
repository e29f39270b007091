//! Claude's terminal: PID 1 holds the master and neither reads nor writes it. Whoever shows the terminal gets a duplicate;
//! while nobody does, what is written to it is thrown away.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{QueueSelector, Winsize, tcflush, tcgetwinsize, tcsetwinsize};

/// What a terminal has before anybody has looked at it.
pub(super) const SIZE: Winsize = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };

/// Of what nobody reads so many pieces are thrown away at a time; a piece is at most a line discipline's 4 KiB.
const PIECES: u8 = 64;
/// The kernel fills a piece meanwhile.
const NEXT_PIECE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// A new pseudo-terminal, master and slave. The master is non-blocking: whoever copies waits for neither side.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master).and_then(|()| unlockpt(&master))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok((master, slave))
}

/// A new terminal of the agent's: master and slave. O_NONBLOCK belongs to the open file, which the pane shares.
pub(super) fn open(uid: u32, size: Winsize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (master, slave) = pair()?;
    // As if the agent had opened it (pts(4)); the group is the mount's, tty.
    rustix::fs::fchmod(&slave, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    tcsetwinsize(&master, size)?;
    Ok((master, slave))
}

/// How large it is now.
pub(super) fn size(master: &OwnedFd) -> Winsize {
    tcgetwinsize(master).unwrap_or(SIZE)
}

/// Throws away what waits to be read; whether there was something. This is no read: O_NONBLOCK belongs to the open file,
/// so that a pane that we gave it to can take the flag away, and a read of ours would wait for as long as the agent likes.
pub(super) fn discard(master: &OwnedFd) -> bool {
    for piece in 0..PIECES {
        let mut fds = [PollFd::new(master, PollFlags::IN)];
        let waits = poll(&mut fds, Some(&NEXT_PIECE)).is_ok_and(|ready| ready > 0);
        let [ready] = &fds;
        // The other end is closed, or there is nothing (any more).
        if !waits
            || !ready.revents().contains(PollFlags::IN)
            || tcflush(master, QueueSelector::IFlush).is_err()
        {
            return piece > 0;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{SIZE, discard, open};
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn what_nobody_reads_holds_nobody_up_and_nothing_waits_for_it() {
        let uid = nix::unistd::getuid().as_raw();
        let (master, slave) = open(uid, SIZE).unwrap();
        // As a pane of the agent's can have it.
        rustix::fs::fcntl_setfl(&master, rustix::fs::OFlags::RDWR).unwrap();
        rustix::fs::fcntl_setfl(&slave, rustix::fs::OFlags::RDWR).unwrap();
        assert!(!discard(&master), "nothing was written");
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let kept = slave.try_clone().unwrap();
            scope.spawn(|| {
                std::fs::File::from(slave).write_all(&vec![b'x'; 1 << 20]).unwrap();
                written.store(true, Ordering::Release);
            });
            while !written.load(Ordering::Acquire) {
                discard(&master);
            }
            drop(kept);
        });
        while discard(&master) {}
    }
}
