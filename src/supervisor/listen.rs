//! What a child says before it ends: heard on the thread that waits for it.
//!
//! Nobody else keeps a thread of PID 1's busy: whoever holds the pipe open after the child has ended (a grandchild, or the
//! agent, who may open `/proc/PID/fd/1` of a child that is its equal) is not listened to.

use std::io::Read;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::{Child, Exit};

/// How late an end is noticed while somebody else holds the pipe.
const TICK: Duration = Duration::from_millis(20);

/// The child's end and its words, of which `most` octets are kept; none where it did not end within `limit`.
pub(super) fn hear(
    mut reader: std::io::PipeReader,
    child: &mut Child,
    limit: Duration,
    most: u64,
) -> std::io::Result<Option<(Exit, String)>> {
    rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let mut open = true;
    loop {
        if open {
            let mut fds = [PollFd::new(&reader, PollFlags::IN)];
            let tick = Timespec::try_from(TICK).ok();
            // EINTR is a signal of somebody else's.
            poll(&mut fds, tick.as_ref()).ok();
            open = take(&mut reader, &mut bytes, most);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(exit) = child.wait_for(if open { Duration::ZERO } else { left }) {
            // What it wrote before it ended is in the pipe by now.
            take(&mut reader, &mut bytes, most);
            return Ok(Some((exit, String::from_utf8_lossy(&bytes).into_owned())));
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Reads what is there; says whether there may be more. What is beyond `most` is read and dropped.
fn take(reader: &mut std::io::PipeReader, bytes: &mut Vec<u8>, most: usize) -> bool {
    let mut buffer = [0; 8192];
    // A writer that is faster than this is waited for by nobody.
    for _ in 0..64 {
        match reader.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let room = most.saturating_sub(bytes.len()).min(count);
                bytes.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) => {
                return matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                );
            }
        }
    }
    true
}
