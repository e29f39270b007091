//! Drives one HTTP/1 connection: every request on it is judged, one after the other.
//!
//! Where a request may go is the [`Porter`]'s decision; what is forwarded are the octets that were judged, unchanged. The
//! next request is looked at when the last answer is over, so that a refusal always stands at a clean border.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::refusal::{Manner, Refused};
use super::request::{self, Kind, Read, Request, Way};
use crate::allowlist::DomainName;
use exchange::{After, Ends};
use inbox::Inbox;

mod exchange;
mod inbox;

/// A refusal that the client does not read is given up.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// How long we go on reading what is not wanted any more: a close with unread octets is a reset, which would take the answer
/// away from the client (RFC 9112 §9.6), and many a client sends all of its body before it reads. Servers take as long.
const LINGER: Duration = Duration::from_secs(30);
/// Who says nothing for so long has heard it, or will not.
const PAUSE: Duration = Duration::from_secs(2);
const LINGER_PIECE: usize = 16 << 10;

/// What the driver asks of the worker.
pub trait Porter: Send + Sync {
    /// Judges name and port of the first request, resolves the name and dials. `port` is what the client wrote; `what` is
    /// the request in a few inert words, without its query.
    fn open(
        &mut self,
        host: &DomainName,
        port: Option<u16>,
        what: &str,
    ) -> impl Future<Output = Result<TcpStream, Refused>> + Send;

    /// The driver itself refuses (damaged, ambiguous, another host): called before the client hears of it. The porter
    /// may know a better advice.
    fn refused(&mut self, refused: &mut Refused) -> impl Future<Output = ()> + Send;

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
    /// The client asked its proxy for a tunnel, and has no answer yet; `unsent` came after its request.
    Connect { client: TcpStream, asked: Box<Request>, unsent: Vec<u8> },
}

/// Serves the requests of a connection of which `read` was read already.
pub async fn serve<P: Porter>(client: TcpStream, read: Vec<u8>, porter: &mut P, limits: Limits) -> End {
    let (inbox, way) = (Inbox::new(read), Way::Redirected);
    Connection { client, inbox, server: None, porter, limits, way }.run().await
}

/// Serves a client that knows us as its proxy: a request may be for another host than the one before.
pub async fn serve_proxy<P: Porter>(client: TcpStream, porter: &mut P, limits: Limits) -> End {
    let (inbox, way) = (Inbox::new(Vec::new()), Way::Explicit);
    Connection { client, inbox, server: None, porter, limits, way }.run().await
}

struct Connection<'p, P> {
    client: TcpStream,
    inbox: Inbox,
    server: Option<Server>,
    porter: &'p mut P,
    limits: Limits,
    way: Way,
}

/// Whom the first request was for.
struct Server {
    stream: TcpStream,
    inbox: Inbox,
    host: DomainName,
    port: u16,
    /// Requests that it has answered.
    answered: u64,
}

enum Next {
    Request(Box<Request>),
    Refused(Refused, Manner),
    TooSlow,
    Closed,
}

/// Why a request goes nowhere.
enum Stop {
    /// The driver refuses it.
    Ours(Refused),
    /// The porter does.
    Theirs(Refused),
}

impl<P: Porter> Connection<'_, P> {
    async fn run(mut self) -> End {
        loop {
            let request = match self.next_request().await {
                Next::Request(request) => request,
                Next::Refused(refused, manner) => return self.refuse(refused, manner).await,
                Next::TooSlow => return self.refuse(too_slow(), Manner::default()).await,
                Next::Closed => return End::Closed,
            };
            if request.kind == Kind::Tunnel {
                self.inbox.consume(request.length);
                return End::Connect {
                    client: self.client,
                    asked: request,
                    unsent: self.inbox.into_unread(),
                };
            }
            match self.reach(&request).await {
                Ok(()) => {}
                Err(Stop::Ours(refused)) => return self.refuse(refused, request.manner).await,
                Err(Stop::Theirs(refused)) => return self.say(&refused, request.manner).await,
            }
            match self.exchange(&request).await {
                After::Next => {}
                After::Gone => return End::Closed,
                After::Broken => {
                    super::relay::reset(&self.client);
                    return End::Closed;
                }
                After::Close => return self.linger(PAUSE).await,
                After::Early => return self.linger(LINGER).await,
                After::Malformed(why) => {
                    self.server = None;
                    return self.refuse(request::bad(why), request.manner).await;
                }
                After::Failed { status, what } => {
                    self.server = None;
                    return self.say(&unanswered(&request.host, status, what), request.manner).await;
                }
                After::Tunnel => return self.into_tunnel(),
            }
        }
    }

    async fn next_request(&mut self) -> Next {
        if !self.has_octet().await {
            return Next::Closed;
        }
        let (client, inbox, limit) = (&mut self.client, &mut self.inbox, self.limits.head);
        let mut reader = request::Reader::new(self.way);
        let head = async {
            loop {
                match reader.read(inbox.unread()) {
                    Read::Head(request) => return Next::Request(request),
                    Read::Refused(refused) => return Next::Refused(refused, request::manner(inbox.unread())),
                    Read::Incomplete => {}
                }
                // A client that goes away in the middle hears nothing, whether it ended or was reset.
                if inbox.fill(client).await.unwrap_or(0) == 0 {
                    return Next::Closed;
                }
            }
        };
        timeout(limit, head).await.unwrap_or(Next::TooSlow)
    }

    /// Waits for the first octet of a request. Meanwhile the connection holds no buffer, and a server that closes it
    /// closes it for the client too, which would otherwise send its next request in vain.
    async fn has_octet(&mut self) -> bool {
        if !self.inbox.unread().is_empty() {
            return true;
        }
        self.inbox.release();
        let (client, inbox) = (&self.client, &mut self.inbox);
        let closed = async {
            match &mut self.server {
                Some(server) => {
                    server.inbox.release();
                    server.inbox.receive(&server.stream).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            octets = inbox.receive(client) => octets.is_ok_and(|octets| octets > 0),
            // The end, or octets that nobody asked for.
            _ = closed => false,
            () = sleep(self.limits.keep_alive) => false,
        }
    }

    async fn reach(&mut self, request: &Request) -> Result<(), Stop> {
        let port = request.port.unwrap_or(80);
        if let Some(server) = &self.server {
            if server.host == request.host && server.port == port {
                return Ok(());
            }
            match self.way {
                Way::Redirected => return Err(Stop::Ours(misdirected(server, request))),
                Way::Explicit => self.server = None,
            }
        }
        let opened = self.porter.open(&request.host, request.port, &request.what).await;
        let stream = opened.map_err(Stop::Theirs)?;
        let (inbox, host) = (Inbox::new(Vec::new()), request.host.clone());
        self.server = Some(Server { stream, inbox, host, port, answered: 0 });
        Ok(())
    }

    async fn exchange(&mut self, request: &Request) -> After {
        let Some(server) = &mut self.server else { return After::Gone };
        let is_first = server.answered == 0;
        let ends = Ends {
            client: &mut self.client,
            from_client: &mut self.inbox,
            server: &mut server.stream,
            from_server: &mut server.inbox,
        };
        // Not a part of this future, which waits between requests and should be small then.
        let after = Box::pin(ends.exchange(request, &*self.porter, self.limits.idle)).await;
        server.answered += 1;
        match after {
            // A server may end a connection between two requests; the client tries such a one again by itself.
            After::Failed { .. } if !is_first => After::Close,
            after => after,
        }
    }

    fn into_tunnel(self) -> End {
        let Some(server) = self.server else { return End::Closed };
        End::Tunnel { client: self.client, server: server.stream, unsent: self.inbox.into_unread() }
    }

    async fn refuse(self, mut refused: Refused, manner: Manner) -> End {
        self.porter.refused(&mut refused).await;
        self.say(&refused, manner).await
    }

    async fn say(mut self, refused: &Refused, manner: Manner) -> End {
        // A client that does not read its refusal has no other loss.
        let written = timeout(REFUSAL_LIMIT, self.client.write_all(&refused.render(manner))).await;
        if written.is_ok_and(|written| written.is_ok()) { self.linger(PAUSE).await } else { End::Closed }
    }

    /// Ends it so that what was written arrives: whatever the client still says is heard, until it pauses for so long.
    async fn linger(&mut self, pause: Duration) -> End {
        // That takes a while, and needs neither.
        self.server = None;
        self.inbox = Inbox::new(Vec::new());
        let client = &mut self.client;
        super::relay::ends_by_reset(client, false);
        if client.shutdown().await.is_err() {
            return End::Closed;
        }
        let hear = async {
            let mut octets = vec![0; LINGER_PIECE];
            while let Ok(Ok(1..)) = timeout(pause, client.read(&mut octets)).await {}
        };
        // However it ends.
        drop(timeout(LINGER, hear).await);
        End::Closed
    }
}

fn misdirected(server: &Server, request: &Request) -> Refused {
    let (host, port) = (&server.host, server.port);
    let (other, at) = (&request.host, request.port.unwrap_or(80));
    Refused {
        status: 421,
        what: format!(
            "a request for {other}:{at} is refused on a connection that was opened for {host}:{port}"
        ),
        next: format!("open a new connection for {other}"),
    }
}

fn too_slow() -> Refused {
    Refused {
        status: 408,
        what: "the request's head did not come in time".to_owned(),
        next: "send it again, at once".to_owned(),
    }
}

fn unanswered(host: &DomainName, status: u16, what: &str) -> Refused {
    Refused {
        status,
        what: format!("{host} may be reached, but {what}"),
        next: format!("try again later; the service at {host} has a fault, not the policy"),
    }
}

#[cfg(test)]
mod tests;
