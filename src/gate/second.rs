//! Carries a connection whose first hello was let through until there can be no second one, which might show another name.
//!
//! What the server says goes on at once. What the client says after its hello is held until it is known to be harmless:
//! nearly always nothing, since a client waits for the server's first word, and that ends it.

use std::io;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::hello::retry::{Differs, Step, Watch};
use super::relay::{with_chunk, write, write_all};
use super::roll::Passage;

/// Why a connection does not go on.
#[derive(Debug)]
pub enum Stop {
    /// The second hello is not like the first.
    Refused(Differs),
    /// One of the two has ended.
    Gone,
    /// One of the two was reset: so is the other, who must not take that for an end.
    Reset,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}

/// Returns once both may be joined. `held`: what the client sent behind its hello.
pub async fn follow(
    client: &TcpStream,
    server: &TcpStream,
    mut held: Vec<u8>,
    mut watch: Watch,
    passage: &Passage,
) -> Result<(), Stop> {
    loop {
        match watch.client(&held) {
            Step::Refused(differs) => return Err(Stop::Refused(differs)),
            Step::Over => return pass(server, &mut held, usize::MAX, passage).await,
            Step::Pass(octets) => pass(server, &mut held, octets, passage).await?,
        }
        tokio::select! {
            ready = server.ready(Interest::READABLE) => {
                let is_last = ready?.is_read_closed();
                let Some(said) = read(server)? else { continue };
                if said.is_empty() {
                    return Err(Stop::Gone);
                }
                write(client, &said, is_last).await?;
                passage.received(said.len());
                if !watch.server(&said) {
                    return pass(server, &mut held, usize::MAX, passage).await;
                }
            }
            ready = client.readable() => {
                ready?;
                let Some(more) = read(client)? else { continue };
                if more.is_empty() {
                    // What is not complete can't be completed any more; whoever reads next finds the end again.
                    return pass(server, &mut held, usize::MAX, passage).await;
                }
                held.extend_from_slice(&more);
            }
        }
    }
}

/// None: there is nothing yet.
fn read(stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let read = with_chunk(|chunk| {
        let read = stream.try_read(chunk)?;
        Ok(chunk.get(..read).unwrap_or_default().to_vec())
    });
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// So many of the held octets go on.
async fn pass(server: &TcpStream, held: &mut Vec<u8>, octets: usize, passage: &Passage) -> Result<(), Stop> {
    let now: Vec<u8> = held.drain(..octets.min(held.len())).collect();
    write_all(server, &now).await?;
    passage.sent(now.len());
    Ok(())
}
