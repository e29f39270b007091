//! A program that is run for a comfort: as the agent, with a time after which it is ended with all that it started.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is kept of its words.
const MAX_OUTPUT: u64 = 64 << 10;
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs it to its end; what it said on standard output if it ended well.
pub(super) fn run(command: &mut Command, limit: Duration) -> Option<String> {
    run_with(command, "", limit)
}

/// The same with a few lines on standard input: what is secret is neither an argument nor a variable.
pub(super) fn run_with(command: &mut Command, input: &str, limit: Duration) -> Option<String> {
    let until = Instant::now() + limit;
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds; who does not read it has no use for it.
        stdin.write_all(input.as_bytes()).ok();
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).ok()?);
    let stdout = child.stdout.take()?;
    let (sender, said) = std::sync::mpsc::channel();
    let reading = std::thread::Builder::new().name("words".into()).spawn(move || {
        let mut bytes = Vec::new();
        stdout.take(MAX_OUTPUT).read_to_end(&mut bytes).ok();
        // Nobody waits any more when it took too long.
        drop(sender.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    let ended = loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() < until => std::thread::park_timeout(LOOK),
            Ok(WaitStatus::Exited(_, code)) => break Some(code),
            Ok(WaitStatus::StillAlive) | Err(_) => break None,
            Ok(_) => break Some(-1),
        }
    };
    if ended.is_none() {
        // The whole group: a formatter is often a script around another program.
        killpg(pid, Signal::SIGKILL).ok();
        waitpid(pid, None).ok();
    }
    if ended != Some(0) || reading.is_err() {
        return None;
    }
    said.recv_timeout(until.saturating_duration_since(Instant::now()).max(LOOK)).ok()
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::process::Command;
    use std::time::{Duration, Instant};

    fn shell(line: &str, limit: Duration) -> Option<String> {
        run(Command::new("/bin/sh").args(["-c", line]), limit)
    }

    #[test]
    fn it_says_what_it_said_if_it_ended_well_and_in_time() {
        let long = Duration::from_secs(30);
        assert_eq!(shell("echo a; echo b >&2", long).as_deref(), Some("a\n"));
        assert_eq!(shell("echo a; exit 3", long), None);
        assert_eq!(shell("kill -9 $$", long), None);
        assert_eq!(run(&mut Command::new("/nonexistent"), long), None);
        let started = Instant::now();
        assert_eq!(shell("sleep 60 & sleep 60", Duration::from_millis(100)), None);
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
