//! Who is in the box: an operator's relay holds a connection to PID 1 as long as it lives, however it ends.
//!
//! PID 1 rings on it when the agent waits for a person. It never waits for a relay that does not read.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use crate::audit::{self, Coming, Visit};
use crate::control::client::{self, ClientError};
use crate::control::protocol::{Place, Request, Response};
use crate::status::Board;
use crate::status::report::Operator;

/// Operators at a time.
const MAX_SEATS: usize = 32;
/// A line of PID 1's on a seat.
const MAX_LINE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    #[error("cannot ask the box")]
    Ask(#[from] ClientError),
    #[error("the box did not answer")]
    Read(#[source] std::io::Error),
    #[error("the box lets nobody in: {0}")]
    Refused(String),
}

/// What PID 1 says on a seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "seat")]
pub enum SeatNews {
    /// The visit is recorded under this number.
    Taken { id: u64 },
    /// The agent waits for a person, or has finished.
    Bell { line: String },
}

/// All who are in the box.
#[derive(Debug)]
pub struct Seats {
    board: Arc<Board>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    streams: Vec<(u64, Arc<UnixStream>)>,
}

impl Seats {
    #[must_use]
    pub fn new(board: Arc<Board>) -> Self {
        Self { board, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the seat until the operator has left; the caller's thread is his as long.
    pub fn sit(&self, stream: UnixStream, place: Place, read_only: bool) {
        let stream = Arc::new(stream);
        let Some(id) = self.enter(&stream) else {
            let reason = format!("{MAX_SEATS} operators are in the box already");
            return tell(&stream, &Response::Refused { reason });
        };
        tell(&stream, &SeatNews::Taken { id });
        let operator = Operator { id, since: crate::report::now(), place: place.to_string(), read_only };
        self.board.update(|report| report.operators.push(operator));
        let visit = |action| Visit { id, action, place: place.to_string(), read_only };
        audit::operator(visit(Coming::Entered));
        wait_for_end(&stream);
        self.taken().streams.retain(|(other, _)| *other != id);
        self.board.update(|report| report.operators.retain(|operator| operator.id != id));
        audit::operator(visit(Coming::Left));
    }

    fn enter(&self, stream: &Arc<UnixStream>) -> Option<u64> {
        let mut taken = self.taken();
        if taken.streams.len() >= MAX_SEATS {
            return None;
        }
        taken.last += 1;
        let id = taken.last;
        taken.streams.push((id, Arc::clone(stream)));
        Some(id)
    }

    /// Rings at every operator's terminal. Who does not hear it now does not hear it at all.
    pub fn ring(&self, line: &str) {
        let streams: Vec<Arc<UnixStream>> =
            self.taken().streams.iter().map(|(_, stream)| Arc::clone(stream)).collect();
        let line = crate::report::harmless(line, 200);
        for stream in streams {
            tell(&stream, &SeatNews::Bell { line: line.clone() });
        }
    }
}

fn tell(stream: &UnixStream, news: &impl Serialize) {
    let mut line = serde_json::to_vec(news).unwrap_or_default();
    line.push(b'\n');
    // A relay that does not read is left out: PID 1 waits for nobody.
    send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).ok();
}

/// Until the other end is closed, which the kernel does for whoever is killed.
fn wait_for_end(stream: &UnixStream) {
    if stream.set_read_timeout(None).is_err() {
        return;
    }
    let (mut stream, mut buffer) = (stream, [0; 64]);
    loop {
        match stream.read(&mut buffer) {
            // A relay says nothing; what comes all the same means nothing.
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// The operator's end of a seat.
#[derive(Debug)]
pub struct Seat {
    reader: BufReader<UnixStream>,
}

impl Seat {
    /// Takes a seat; the visit lasts until this is dropped.
    pub fn take(place: Place, read_only: bool) -> Result<Self, SeatError> {
        let mut stream = client::connect()?;
        client::send(&mut stream, &Request::Seat { place, read_only })?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.by_ref().take(MAX_LINE).read_line(&mut line).map_err(SeatError::Read)?;
        if serde_json::from_str::<SeatNews>(&line).is_ok() {
            reader.get_ref().set_nonblocking(true).map_err(SeatError::Read)?;
            return Ok(Self { reader });
        }
        match serde_json::from_str(&line) {
            Ok(Response::Refused { reason } | Response::Failed { reason } | Response::Later { reason }) => {
                Err(SeatError::Refused(reason))
            }
            Ok(_) | Err(_) => Err(SeatError::Refused("its answer is not understood".to_owned())),
        }
    }

    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }

    /// How often PID 1 has rung; none when its end is closed.
    pub fn rings(&mut self) -> Option<usize> {
        let mut bells = 0;
        loop {
            let mut line = String::new();
            match self.reader.by_ref().take(MAX_LINE).read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {
                    let news = serde_json::from_str::<SeatNews>(&line);
                    bells += usize::from(matches!(news, Ok(SeatNews::Bell { .. })));
                }
                // The rest of a line that is cut here means nothing by itself.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some(bells),
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_SEATS, Seats};
    use crate::control::protocol::Place;
    use crate::status::Board;
    use crate::status::report::BoxIdentity;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    #[test]
    fn seats_are_counted_and_given_back_and_a_wedged_operator_blocks_nobody() {
        let board = Arc::new(Board::new(BoxIdentity::default()));
        let seats = Arc::new(Seats::new(Arc::clone(&board)));
        let operators = || board.report(None).operators;
        let mut guests = Vec::new();
        for _ in 0..MAX_SEATS {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let seats = Arc::clone(&seats);
            let thread = std::thread::spawn(move || seats.sit(ours, Place::Session, true));
            let mut reader = BufReader::new(theirs);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line.contains("taken"), "{line}");
            guests.push((thread, reader));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        seats.sit(ours, Place::Shell, false);
        let mut line = String::new();
        BufReader::new(theirs).read_line(&mut line).unwrap();
        assert!(line.contains("refused"), "{line}");
        // Nobody reads: what they have not room for is left out.
        for _ in 0..5000 {
            seats.ring("the agent waits");
        }
        for (thread, reader) in guests {
            drop(reader);
            thread.join().unwrap();
        }
        assert_eq!(operators(), []);
    }
}
