//! The only wait in PID 1.

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::Exit;

/// Collects every child that has ended, ours and those that were re-parented to us.
pub(super) fn drain() -> Vec<(i32, Exit)> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => ended.push((pid.as_raw(), Exit::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                ended.push((pid.as_raw(), Exit::Signal(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) => return ended,
            // Stops and continuations are not asked for; they would change nothing.
            Ok(
                WaitStatus::Stopped(..)
                | WaitStatus::Continued(_)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_),
            )
            | Err(nix::errno::Errno::EINTR) => {}
            // ECHILD: nobody is left.
            Err(_) => return ended,
        }
    }
}
