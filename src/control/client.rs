//! Asks PID 1 a question on the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::protocol::{MAX_RESPONSE, Request, Response, SOCKET};
use crate::report::{self, exit};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no box answers at {SOCKET}")]
    Connect(#[source] std::io::Error),
    #[error("the box did not answer")]
    Exchange(#[source] std::io::Error),
    #[error("the box gave an answer that this client does not understand")]
    Answer(#[source] serde_json::Error),
}

/// Says why there is no answer to a command, and gives the exit status that it means.
#[must_use]
pub fn unanswered(what: &str, error: &ClientError) -> u8 {
    report::last_words(what, &report::chain(error));
    match error {
        ClientError::Connect(_) | ClientError::Exchange(_) => exit::NO_BOX,
        ClientError::Answer(_) => exit::INTERNAL,
    }
}

/// Says why the box did not do what was asked, and gives the exit status that it means.
#[must_use]
pub fn unserved(response: Response) -> u8 {
    let (source, status) = match &response {
        Response::Refused { .. } => ("refused", exit::CEILING),
        Response::Later { .. } => ("busy", exit::LATER),
        Response::Invalid { .. } => ("usage", exit::USAGE),
        Response::Failed { .. } => ("failed", exit::CONFIG),
        _ => ("control", exit::INTERNAL),
    };
    report::last_words(source, &reason(response));
    status
}

/// Why the box did not do what was asked, in its words.
#[must_use]
pub fn reason(response: Response) -> String {
    match response {
        Response::Refused { reason }
        | Response::Failed { reason }
        | Response::Invalid { reason }
        | Response::Later { reason } => reason,
        _ => "the box gave the answer to another question".to_owned(),
    }
}

/// PID 1 answers in milliseconds; a status that verifies everything again may take a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Connects; the stream is for one request, or for a pane's life.
pub fn connect() -> Result<UnixStream, ClientError> {
    let stream = UnixStream::connect(SOCKET).map_err(ClientError::Connect)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(ClientError::Exchange)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(ClientError::Exchange)?;
    Ok(stream)
}

pub fn send(stream: &mut UnixStream, request: &Request) -> Result<(), ClientError> {
    let mut line = serde_json::to_vec(request).map_err(ClientError::Answer)?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // Refused before it was read: the reason is in the answer.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(ClientError::Exchange),
    }
}

/// One question, one answer.
pub fn ask(request: &Request) -> Result<Response, ClientError> {
    ask_for(request, ANSWER_LIMIT)
}

/// The same of a question whose answer takes its time.
pub fn ask_for(request: &Request, limit: Duration) -> Result<Response, ClientError> {
    let mut stream = connect()?;
    stream.set_read_timeout(Some(limit)).map_err(ClientError::Exchange)?;
    send(&mut stream, request)?;
    let mut line = String::new();
    BufReader::new(stream).take(MAX_RESPONSE).read_line(&mut line).map_err(ClientError::Exchange)?;
    if line.is_empty() {
        return Err(ClientError::Exchange(std::io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_str(&line).map_err(ClientError::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_box_is_no_fault_of_ours() {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(unanswered("control", &ClientError::Connect(gone())), exit::NO_BOX);
        assert_eq!(unanswered("control", &ClientError::Exchange(gone())), exit::NO_BOX);
        let foreign = serde_json::from_str::<Response>("?").unwrap_err();
        assert_eq!(unanswered("control", &ClientError::Answer(foreign)), exit::INTERNAL);
    }
}
