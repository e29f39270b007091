//! Claude's terminal: PID 1 holds the master and neither reads nor writes it. Whoever shows the terminal gets a duplicate.

use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

/// What a terminal has before anybody has looked at it.
pub(super) const SIZE: Winsize = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };

/// A new terminal of the agent's: master and slave.
pub(super) fn open(uid: u32, size: Winsize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master).and_then(|()| unlockpt(&master))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    // As if the agent had opened it (pts(4)); the group is the mount's, tty.
    rustix::fs::fchmod(&slave, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    // The flag belongs to the open file, which the pane shares: it waits for neither side.
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    tcsetwinsize(&master, size)?;
    Ok((master, slave))
}

/// How large it is now.
pub(super) fn size(master: &OwnedFd) -> Winsize {
    tcgetwinsize(master).unwrap_or(SIZE)
}
