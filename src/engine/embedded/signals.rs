//! What the keeper hears while the box runs: the end of the box, and requests to end it.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::process::Child;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::EmbeddedError;
use crate::engine::status_of;
use crate::engine::terminal::Terminal;

/// Signals as something to poll.
#[derive(Debug)]
pub(in crate::engine) struct Signals {
    ended: UnixStream,
    stop: Vec<(Signal, UnixStream)>,
    hangup: UnixStream,
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
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
            for (signal, pipe) in &mut self.stop {
                if drained(pipe) {
                    // Not reaped yet, so the number is still its own.
                    nix::sys::signal::kill(pid, *signal).ok();
                }
            }
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

    /// Until something comes from anywhere.
    fn listen(&self, terminal: Option<&Terminal>) -> Result<(), rustix::io::Errno> {
        let pipes = self.stop.iter().map(|(_, pipe)| pipe).chain([&self.ended, &self.hangup]);
        let mut polled: Vec<PollFd<'_>> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        polled.extend(terminal.into_iter().flat_map(Terminal::polled));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
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
