//! What the keeper hears while the box runs: the end of the box, and requests to end it.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::process::Child;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::EmbeddedError;
use super::terminal::Terminal;
use crate::engine::status_of;

/// Signals as something to poll.
#[derive(Debug)]
pub(in crate::engine) struct Signals {
    ended: UnixStream,
    stop: Vec<(Signal, UnixStream)>,
    hangup: UnixStream,
    /// Come, and not yet given on.
    pending: Vec<Signal>,
}

impl Signals {
    pub(in crate::engine) fn register() -> Result<Self, EmbeddedError> {
        let pipe = |signal| {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, writer)?;
            Ok(reader)
        };
        let failed = |source| EmbeddedError::Start { what: "listen for signals", source };
        let stop = [(Signal::SIGTERM, SIGTERM), (Signal::SIGINT, SIGINT)];
        let stop = stop.map(|(signal, number)| Ok((signal, pipe(number)?)));
        Ok(Self {
            ended: pipe(SIGCHLD).map_err(failed)?,
            stop: stop.into_iter().collect::<io::Result<_>>().map_err(failed)?,
            hangup: pipe(SIGHUP).map_err(failed)?,
            pending: Vec::new(),
        })
    }

    /// Waits for the end of what was started, passes on what asks for it, and copies between the terminals.
    pub(in crate::engine) fn wait(
        &mut self,
        child: &mut Child,
        mut terminal: Option<Terminal>,
    ) -> Result<i32, EmbeddedError> {
        let failed = |source| EmbeddedError::Start { what: "wait for the box", source };
        if let Some(terminal) = &mut terminal {
            terminal.begin().map_err(failed)?;
        }
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(status_of(status));
            }
            self.pass_on(child.id());
            // A terminal that is gone ends the operator's view, not the box.
            let gone =
                drained(&mut self.hangup) || terminal.as_mut().is_some_and(|terminal| !terminal.copy());
            if gone {
                terminal = None;
            }
            self.listen(terminal.as_ref()).map_err(|error| failed(error.into()))?;
            drained(&mut self.ended);
        }
    }

    /// Gives the signals that have come to the child, each as soon as it can hear it.
    fn pass_on(&mut self, child: u32) {
        for (signal, pipe) in &mut self.stop {
            if drained(pipe) && !self.pending.contains(signal) {
                self.pending.push(*signal);
            }
        }
        let pid = Pid::from_raw(i32::try_from(child).unwrap_or(i32::MAX));
        self.pending.retain(|signal| {
            let heard = hears(child, *signal);
            if heard {
                // Not reaped yet, so the number is still its own.
                nix::sys::signal::kill(pid, *signal).ok();
            }
            !heard
        });
    }

    /// Until something comes from anywhere.
    fn listen(&self, terminal: Option<&Terminal>) -> Result<(), rustix::io::Errno> {
        let pipes = self.stop.iter().map(|(_, pipe)| pipe).chain([&self.ended, &self.hangup]);
        let mut polled: Vec<PollFd<'_>> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        polled.extend(terminal.into_iter().flat_map(Terminal::polled));
        let limit = (!self.pending.is_empty()).then_some(&AGAIN);
        match poll(&mut polled, limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// When to look again whether a child has its handlers.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The first process of a pid namespace does not even get a signal that it has no handler for (pid_namespaces(7)): one
/// that comes while Innkeeper is starting would be lost.
fn hears(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let first = field("NSpid:").split_whitespace().last() == Some("1");
    let caught = u64::from_str_radix(field("SigCgt:"), 16).unwrap_or(u64::MAX);
    !first || caught >> (signal as i32 - 1) & 1 == 1
}

/// Whether something was in it.
fn drained(pipe: &mut UnixStream) -> bool {
    let mut buffer = [0; 64];
    let mut found = false;
    while let Ok(1..) = pipe.read(&mut buffer) {
        found = true;
    }
    found
}
