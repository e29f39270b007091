//! PID 1's side of the control socket: bounded in threads, time and size, whoever knocks.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::protocol::{Asker, MAX_OPERATOR_REQUEST, MAX_REQUEST, Place, Request, Response};

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot make the control socket {path}")]
    Bind { path: String, source: std::io::Error },
}

/// Does what requests ask. `stream` is given up to `pane`, which lives as long as the pane.
pub trait Desk: Send + Sync + 'static {
    fn answer(&self, asker: Asker, request: Request) -> Response;
    /// `pid` is who connected, as the kernel says.
    fn pane(&self, stream: UnixStream, pid: i32);
    /// Returns when the operator has left.
    fn seat(&self, stream: UnixStream, place: Place, read_only: bool);
}

/// A request is one short line: who needs longer to write it is not a client of ours.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at a time: the agent's can't use up the operator's.
const MAX_CONNECTIONS: usize = 16;

/// Listens; every connection is served on a thread of its own.
pub fn serve(path: &Path, agent: u32, desk: Arc<dyn Desk>) -> Result<(), ServerError> {
    let failed = |source| ServerError::Bind { path: path.display().to_string(), source };
    match std::fs::remove_file(path) {
        // A socket of the box's former life, in a directory that is root's.
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || accept(&listener, agent, &desk))
        .map_err(failed)?;
    Ok(())
}

fn accept(listener: &UnixListener, agent: u32, desk: &Arc<dyn Desk>) {
    let operators = Arc::new(AtomicUsize::new(0));
    let others = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { continue };
        let asker = Asker::new(peer.uid.as_raw(), agent);
        let class = if asker == Asker::Operator { &operators } else { &others };
        let Some(slot) = Slot::take(class) else {
            put_off(stream, "too many connections; try again");
            continue;
        };
        let visit = Visit { stream, asker, pid: peer.pid.as_raw_nonzero().get(), slot };
        let waiting = Arc::new(Mutex::new(Some(visit)));
        let (comes, at) = (Arc::clone(&waiting), Arc::clone(desk));
        let serve = move || {
            if let Some(visit) = take(&comes) {
                visit.serve(at.as_ref());
            }
        };
        if std::thread::Builder::new().name("request".into()).spawn(serve).is_err()
            && let Some(visit) = take(&waiting)
        {
            // The agent has used the processes up: the operator must be heard all the same, one after the other.
            visit.serve_alone(desk.as_ref());
        }
    }
}

fn take(visit: &Mutex<Option<Visit>>) -> Option<Visit> {
    visit.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Somebody who has connected.
struct Visit {
    stream: UnixStream,
    asker: Asker,
    pid: i32,
    slot: Slot,
}

impl Visit {
    fn serve(self, desk: &dyn Desk) {
        let stays = converse(self.stream, self.asker, self.pid, desk, |_| false);
        // Who stays has a bound of his own: he takes no place of those who ask.
        drop(self.slot);
        if let Some((stream, place, read_only)) = stays {
            desk.seat(stream, place, read_only);
        }
    }

    /// On the thread that everybody waits for: an operator's question, and nobody's stay.
    fn serve_alone(self, desk: &dyn Desk) {
        if self.asker != Asker::Operator {
            return put_off(self.stream, "the box has no process left; try again");
        }
        let takes_long = |request: &Request| {
            matches!(request, Request::Save | Request::Work { .. } | Request::Start { .. })
        };
        if let Some((stream, ..)) = converse(self.stream, self.asker, self.pid, desk, takes_long) {
            put_off(stream, "the box has no process left; end some: innkeeper session restart");
        }
    }
}

/// One of a bounded number of places; given back when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn put_off(mut stream: UnixStream, reason: &str) {
    if stream.set_write_timeout(Some(PATIENCE)).is_ok() {
        write(&mut stream, &Response::Later { reason: reason.to_owned() });
    }
}

/// An operator who stays.
type Stay = (UnixStream, Place, bool);

/// Answers one request, unless its connection is for longer.
fn converse(
    mut stream: UnixStream,
    asker: Asker,
    pid: i32,
    desk: &dyn Desk,
    not_now: impl Fn(&Request) -> bool,
) -> Option<Stay> {
    let limits = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
    if limits.is_err() {
        return None;
    }
    let limit = if asker == Asker::Operator { MAX_OPERATOR_REQUEST } else { MAX_REQUEST };
    let line = read_line(&mut stream, limit)?;
    let response = match Request::parse(&line) {
        Err(error) => Response::Failed { reason: format!("no request of this version: {error}") },
        Ok(request) => match asker.may(&request) {
            Err(reason) => Response::Refused { reason },
            Ok(()) => match request {
                Request::Pane => {
                    desk.pane(stream, pid);
                    return None;
                }
                Request::Seat { place, read_only } => return Some((stream, place, read_only)),
                request if not_now(&request) => {
                    let reason = "the box has no process left; end some: innkeeper session restart";
                    Response::Later { reason: reason.to_owned() }
                }
                request => desk.answer(asker, request),
            },
        },
    };
    write(&mut stream, &response);
    None
}

/// A line within the limits of size and time, else nothing. The time limit is for the line as a whole.
fn read_line(stream: &mut UnixStream, limit: usize) -> Option<String> {
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let started = std::time::Instant::now();
    let mut line = Vec::new();
    let mut reader = BufReader::with_capacity(MAX_REQUEST, stream.take(limit));
    loop {
        let before = line.len();
        let chunk = reader.fill_buf().ok()?;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(chunk.get(..end.unwrap_or(chunk.len()))?);
        let used = line.len() - before + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return String::from_utf8(line).ok();
        }
        if used == 0 || started.elapsed() > PATIENCE {
            return None;
        }
    }
}

fn write(stream: &mut UnixStream, response: &Response) {
    let mut line = serde_json::to_vec(response).unwrap_or_default();
    line.push(b'\n');
    // A client that went away has no use for the answer.
    drop(stream.write_all(&line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_every_place_taken_is_put_off_and_not_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        put_off(ours, "too many connections; try again");
        let line = read_line(&mut { theirs }, MAX_REQUEST).unwrap();
        let answer: Response = serde_json::from_str(&line).unwrap();
        assert!(matches!(answer, Response::Later { .. }), "{line}");
        assert_eq!(crate::cli::answer(answer, false), crate::report::exit::LATER);
    }
}
