//! Drives one HTTP/1 connection: every request on it is judged, one after the other.
//!
//! Where a request may go is the [`Porter`]'s decision; what is forwarded are the octets that were judged, unchanged.

use std::future::Future;
use std::time::Duration;

use tokio::net::TcpStream;

use super::refusal::Refused;
use crate::allowlist::DomainName;

/// What the driver asks of the worker.
pub trait Porter: Send {
    /// Judges name and port of the first request, resolves the name and dials. `port` is what the client wrote; `what` is
    /// the request in a few inert words, without its query.
    fn open(
        &mut self,
        host: &DomainName,
        port: Option<u16>,
        what: &str,
    ) -> impl Future<Output = Result<TcpStream, Refused>> + Send;

    /// The driver itself refuses (damaged, ambiguous, another host): called before the client hears of it.
    fn refused(&mut self, refused: &Refused) -> impl Future<Output = ()> + Send;

    /// Octets that went to the server.
    fn sent(&self, octets: u64);

    /// Octets that came from it.
    fn received(&self, octets: u64);
}

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A request's head, from its first octet.
    pub head: Duration,
    /// Between two requests.
    pub keep_alive: Duration,
    /// Without an octet either way while a request is under way.
    pub idle: Duration,
}

/// What is left to do when the driver is through.
#[derive(Debug)]
pub enum End {
    /// Nothing.
    Closed,
    /// The server agreed to another protocol (101): the rest is copied both ways, `unsent` first, to the server.
    Tunnel { client: TcpStream, server: TcpStream, unsent: Vec<u8> },
}

/// Stand-in until the driver is there.
pub async fn drive<P: Porter>(client: TcpStream, octets: Vec<u8>, porter: &mut P, limits: Limits) -> End {
    let refused = Refused {
        status: 503,
        what: format!("{} octets, {limits:?}", octets.len()),
        next: "wait".to_owned(),
    };
    porter.refused(&refused).await;
    super::visit::end(&client, &refused.render(super::refusal::Manner::default())).await;
    End::Closed
}
