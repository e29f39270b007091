//! The tmux client of an operator: a child that has become the agent, on a terminal of its own.

use std::os::fd::OwnedFd;

use nix::unistd::Pid;

use super::attach::{Attach, AttachError};
use super::{NAME, socket, tmux};
use crate::account::Account;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, Stream};

pub(super) fn start(agent: &Account, slave: &OwnedFd, attach: Attach) -> Result<Pid, AttachError> {
    let identity = Identity { tty: true, confine: true, ..Identity::worker(agent.uid, agent.gid) };
    let mut env = crate::identity::environment(agent, false, None, |_| None);
    env.retain(|(name, _)| name != "TERM");
    env.push(("TERM".to_owned(), terminal_type(std::env::var("TERM").ok().as_deref())));
    let socket = socket(agent.uid);
    let target = format!("={NAME}");
    let mut args = vec!["-N", "-u", "-S", &socket];
    if attach.clipboard {
        // tmux writes the clipboard of terminals only that it believes to have one; whether it arrives is the filter's say.
        args.extend(["-T", "clipboard"]);
    }
    args.extend(["attach-session", "-t", &target]);
    if attach.read_only {
        args.push("-r");
    }
    let hint = if attach.read_only { LOOKING } else { HOW_TO_LEAVE };
    args.extend([";", "display-message", "-d", "6000", hint]);
    let launch = Launch::program(tmux(), identity).args(args).env(env);
    spawn(launch, slave)
}

/// Starts what is to live on this terminal.
pub(super) fn spawn(mut launch: Launch, slave: &OwnedFd) -> Result<Pid, AttachError> {
    let stream = || slave.try_clone().map(Stream::Fd).map_err(AttachError::Spawn);
    (launch.stdin, launch.stdout, launch.stderr) = (stream()?, stream()?, stream()?);
    let child = launch.command().spawn().map_err(AttachError::Spawn)?;
    i32::try_from(child.id())
        .map(Pid::from_raw)
        .map_err(|_| AttachError::Spawn(std::io::Error::other("a pid beyond i32")))
}

/// Said once, on tmux's message line, when an operator comes in.
const HOW_TO_LEAVE: &str = "Leave with Ctrl-b d (it hangs? Ctrl-] 4 times). The shell is below: Ctrl-b Down";

/// The relay itself understands these keys, and drops all others.
const LOOKING: &str = "Leave with Ctrl-b d. You only look: no key goes further than here";

/// The operator's terminal type, where the image knows it; it is a word and never a path.
pub(super) fn terminal_type(given: Option<&str>) -> String {
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
