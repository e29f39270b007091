//! `innkeeper shell`: a root shell with nothing of the agent's in it, beside the session.
//!
//! Its environment is a list, its PATH holds root's own directories only, it reads no file but bash's own program, and it
//! begins in `/`. It has a terminal of its own behind the relay: a file of the agent's that is shown there (`cat`) writes
//! no clipboard and makes the operator's terminal type nothing.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::attach::AttachError;
use super::client::{spawn, terminal_type};
use super::relay::{Keys, Left, relay};
use super::terminal::Filter;
use super::tty::say;
use crate::control::protocol::Place;
use crate::seats::{Seat, SeatError};
use crate::supervisor::Launch;

/// Root's own directories; the agent writes none of them.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const BASH: &str = "/bin/bash";

/// Runs the shell; its exit status.
pub fn run() -> Result<u8, AttachError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AttachError::NotRoot);
    }
    rustix::termios::tcgetattr(rustix::stdio::stdin()).map_err(|_| AttachError::NoTerminal)?;
    let seat = match Seat::take(Place::Shell, false) {
        Ok(seat) => Some(seat),
        // A box that does not answer is one that a root shell is needed in.
        Err(SeatError::Ask(_) | SeatError::Read(_)) => {
            say("[the box does not answer: this visit is not in its log]\n");
            None
        }
        Err(error @ SeatError::Refused(_)) => return Err(AttachError::Seat(error)),
    };
    let end = relay(start, Filter::default(), seat, Keys::Typed)?;
    say(match end.left {
        Left::Program => "[left the root shell]\n",
        Left::Escape | Left::Stopped | Left::Told => "[left the root shell; it was ended]\n",
    });
    Ok(match end.status {
        Some(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(1),
        Some(_) | None => 1,
    })
}

fn start(slave: &OwnedFd) -> Result<Pid, AttachError> {
    spawn(Launch::own("root-shell", None).env(environment(std::env::var("TERM").ok().as_deref())), slave)
}

fn environment(term: Option<&str>) -> Vec<(String, String)> {
    let term = terminal_type(term);
    [
        ("PATH", PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", BASH),
        ("LANG", "C.UTF-8"),
        ("TERM", term.as_str()),
        // No file of the place is read or written: neither key bindings nor history.
        ("INPUTRC", "/dev/null"),
        ("HISTFILE", ""),
        ("LESSHISTFILE", "-"),
        ("PS1", r"\[\e[31m\]root@\h\[\e[0m\]:\w\$ "),
        // A bash that is begun in it stays a shell.
        ("INNKEEPER_NO_ATTACH", "1"),
        ("INNKEEPER_SHELL", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// The hidden half, on the new terminal: makes it its own and becomes bash. Returns only with an error.
pub fn become_bash() -> AttachError {
    // Its own session, or the terminal can't become its controlling one.
    if let Err(error) = nix::unistd::setsid() {
        return AttachError::Spawn(error.into());
    }
    if let Err(error) = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) {
        return AttachError::Spawn(error.into());
    }
    AttachError::Spawn(Command::new(BASH).args(["--noprofile", "--norc", "-i"]).current_dir("/").exec())
}

#[cfg(test)]
mod tests {
    use super::environment;

    #[test]
    fn t78_roots_path_holds_nothing_that_the_agent_writes() {
        let env = environment(Some("../../etc"));
        let value = |wanted: &str| env.iter().find(|(name, _)| name == wanted).unwrap().1.as_str();
        assert!(
            value("PATH")
                .split(':')
                .all(|place| place.starts_with("/usr/") || matches!(place, "/sbin" | "/bin"))
        );
        assert_eq!((value("TERM"), value("INPUTRC")), ("xterm-256color", "/dev/null"));
        assert!(env.iter().all(|(name, _)| !name.starts_with("LD_") && name != "ENV" && name != "BASH_ENV"));
    }
}
