//! One connection, from its first octet to its last: who sent it where, what name it shows, and what becomes of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::Worker;
use super::dial::{DialError, dial};
use super::hello::retry::{Differs, Watch};
use super::hello::{self, Alert, Hello, alert};
use super::relay::{acknowledge, relay, reset, with_chunk, write_all};
use super::roll::{Key, Place};
use super::second::{Stop, follow};
use super::through::through;
use super::upstream::Proxy;
use super::verdict::{Shown, Why, judge};
use crate::allowlist::{ALWAYS_GATED, Denied, DomainName, Verdict, Wire};
use crate::socket_table::Owner;

/// From its first octet on a client has so long to say its name.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// A client that says nothing is given up after this, and told of.
const SILENCE: Duration = Duration::from_secs(25);
/// A client that was refused may go on sending so long and so much: a reset would take the reason from it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_OCTETS: usize = 256 << 10;
/// Read at a time while the name is not known.
const PIECE: usize = 16 << 10;

/// Who came, and where he was going.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Where he was going.
    pub to: SocketAddr,
    pub owner: Option<Owner>,
}

/// Sees a connection through.
pub async fn visit(worker: Arc<Worker>, stream: TcpStream, from: SocketAddr, place: Place) {
    // Nobody was redirected who came here himself, or who was sent here by a rule that is not ours.
    let Some(to) = original_destination(&stream).filter(|to| !worker.is_own(*to)) else {
        return reset(&stream);
    };
    let owner = worker.owners.of(from, to);
    place.belongs(owner.map(|owner| owner.uid));
    named(worker, stream, Client { to, owner }, Vec::new(), &place, None).await;
}

/// Reads the name that a connection shows, beginning with what was read of it already. `only`: no other name will do, since
/// it is what a tunnel was asked for.
pub(super) async fn named(
    worker: Arc<Worker>,
    stream: TcpStream,
    client: Client,
    mut octets: Vec<u8>,
    place: &Place,
    only: Option<DomainName>,
) {
    let mut reader = hello::Reader::default();
    // Before the roll ends who says nothing, and could not say why.
    let mut until = Instant::now() + SILENCE;
    let mut has_begun = false;
    let mut has_more = !octets.is_empty();
    loop {
        // What came with the request for a tunnel is looked at first.
        let read = if has_more { Ok(octets.len()) } else { piece(&stream, &mut octets, until).await };
        has_more = false;
        match read {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && octets.is_empty() => {
                return worker.silent(&client).await;
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return worker.refuse_tls(&stream, &client, None, &TOO_SLOW, Alert::AccessDenied).await;
            }
            Err(_) => return,
        }
        if !std::mem::replace(&mut has_begun, true) {
            until = Instant::now() + HELLO_LIMIT;
        }
        match reader.read(&octets) {
            Hello::Incomplete => acknowledge(&stream),
            // On the heap: the rest of them needs much less.
            Hello::NotTls => {
                acknowledge(&stream);
                return Box::pin(super::web::visit(worker, stream, client, octets, place, only)).await;
            }
            Hello::Damaged(why) => {
                return worker.refuse_tls(&stream, &client, None, &why, Alert::DecodeError).await;
            }
            Hello::Client(hello) => {
                match hello.name {
                    Ok(name) if only.as_ref().is_some_and(|only| *only != name) => {
                        let why = "the tunnel was asked for another name";
                        let shown = Some((&name, None));
                        worker.refuse_tls(&stream, &client, shown, &why, Alert::AccessDenied).await;
                    }
                    Ok(name) => {
                        let flight = Flight { hello: reader.length(), octets };
                        tls(&worker, (stream, client), flight, place, name, hello.ech).await;
                    }
                    Err(none) => {
                        worker.refuse_tls(&stream, &client, None, &none, Alert::UnrecognizedName).await;
                    }
                }
                return;
            }
        }
    }
}

const SAID_NOTHING: &str = "it said nothing for 25 seconds; the gate reads what the client says first, so a port where the server \
                            does (SMTP, IMAP, MySQL, FTP: STARTTLS) can't be one of a rule with tls or http";
const TOO_SLOW: &str = "it showed no name within 10 seconds";

/// What a client sent so far.
struct Flight {
    octets: Vec<u8>,
    /// So many of them are its hello.
    hello: usize,
}

/// A connection that shows a name by TLS.
async fn tls(
    worker: &Arc<Worker>,
    (mut stream, client): (TcpStream, Client),
    mut flight: Flight,
    place: &Place,
    name: DomainName,
    ech: bool,
) {
    let shown = Shown { name: &name, port: client.to.port(), wire: Wire::Tls, ech };
    let allowlist = worker.allowlist();
    if let Err(why) = judge(&allowlist, shown) {
        let rule = rule_for(shown, &why);
        return worker.refuse_tls(&stream, &client, Some((&name, rule)), &why, Alert::AccessDenied).await;
    }
    drop(allowlist);
    let (mut server, passage) = match worker.open(&client, place, &name, Wire::Tls, ech).await {
        Ok(opened) => opened,
        Err(Unopened::Denied { why, rule }) => {
            let shown = Some((&name, rule));
            return worker.refuse_tls(&stream, &client, shown, &why, Alert::AccessDenied).await;
        }
        Err(Unopened::Failed(error)) => {
            worker.failed(&error);
            return end(&stream, &alert(Alert::InternalError)).await;
        }
    };
    let behind = flight.octets.split_off(flight.hello.min(flight.octets.len()));
    if write_all(&server, &flight.octets).await.is_err() {
        return reset(&stream);
    }
    passage.sent(flight.octets.len());
    drop(flight);
    match follow(&stream, &server, behind, Watch::new(name.clone(), ech), &passage).await {
        Ok(()) => {}
        Err(Stop::Gone) => return,
        Err(Stop::Reset) => {
            reset(&server);
            return reset(&stream);
        }
        Err(Stop::Refused(differs)) => {
            reset(&server);
            drop(server);
            let rule = match &differs {
                Differs::Name(other) => Some(format!("{other}:{}", client.to.port())),
                Differs::NoName | Differs::Ech | Differs::Damaged(_) => None,
            };
            return worker
                .refuse_tls(&stream, &client, Some((&name, rule)), &differs, Alert::AccessDenied)
                .await;
        }
    }
    relay(&mut stream, &mut server, &passage).await;
}

/// Why a name that was judged does not get its connection.
#[derive(Debug)]
pub(super) enum Unopened {
    /// The policy says no after all.
    Denied {
        why: String,
        rule: Option<String>,
    },
    Failed(DialError),
}

impl From<DialError> for Unopened {
    fn from(error: DialError) -> Self {
        Self::Failed(error)
    }
}

const THE_PROXY: &str = "it is the proxy that leads out of this network, which the gate alone may ask";

impl Worker {
    /// Dials a name that was judged, and notes that it was let through.
    pub(super) async fn open(
        &self,
        client: &Client,
        place: &Place,
        name: &DomainName,
        wire: Wire,
        ech: bool,
    ) -> Result<(TcpStream, Arc<super::roll::Passage>), Unopened> {
        place.showed();
        let port = client.to.port();
        if self.proxy.as_ref().is_some_and(|proxy| proxy.is_at(name, port)) {
            return Err(Unopened::Denied { why: THE_PROXY.to_owned(), rule: None });
        }
        let (server, address) = match self.proxy_for(name) {
            Some(proxy) => Box::pin(through(&self.names, proxy, name, port))
                .await
                .map_err(|source| DialError::Through { name: name.clone(), source })?,
            None => dial(&self.names, name, port, Some(client.to.ip())).await?,
        };
        // Reaching it took a while, and the policy may be another.
        let shown = Shown { name, port, wire, ech };
        if let Err(why) = judge(&self.allowlist(), shown) {
            return Err(Unopened::Denied { why: why.to_string(), rule: rule_for(shown, &why) });
        }
        let uid = client.owner.map(|owner| owner.uid);
        let key = Key { name: name.clone(), address, port, uid };
        Ok((server, place.pass(key, wire, ech)))
    }

    /// The proxy that leads to a name, if one does. What may be private is where the box itself is.
    fn proxy_for(&self, name: &DomainName) -> Option<&Proxy> {
        let proxy = self.proxy.as_ref()?;
        match self.allowlist().verdict(name) {
            Verdict::Allowed(allowed) if allowed.private => None,
            // What is denied does not come here; if it did, it would not be dialled directly.
            Verdict::Allowed(_) | Verdict::Denied(_) => Some(proxy),
        }
    }

    /// A client that was silent. On the ports of a rule's mark that may be the operator's mistake; on the others it says
    /// nothing about the policy: programs connect in advance.
    async fn silent(&self, client: &Client) {
        if !ALWAYS_GATED.contains(&client.to.port()) {
            self.denied(client, None, &SAID_NOTHING, None).await;
        }
    }

    /// Tells the client by an alert, once it is known who it is.
    async fn refuse_tls(
        &self,
        stream: &TcpStream,
        client: &Client,
        shown: Option<(&DomainName, Option<String>)>,
        why: &(dyn std::fmt::Display + Sync),
        with: Alert,
    ) {
        let (name, rule) = shown.map_or((None, None), |(name, rule)| (Some(name), rule));
        Box::pin(self.denied(client, name, why, rule)).await;
        end(stream, &alert(with)).await;
    }
}

/// The rule that would let a connection pass, where the name alone would not do.
pub(super) fn rule_for(shown: Shown<'_>, why: &Why<'_>) -> Option<String> {
    let Shown { name, port, wire, .. } = shown;
    match why {
        Why::Name(Denied::NotListed | Denied::OtherSubject(_)) | Why::Port(_) => {
            Some(format!("{name}:{port}"))
        }
        // That one has to go first.
        Why::Name(Denied::DenyRule(rule)) => Some(rule.to_string()),
        Why::Wire(_) if why.instead(port).is_some() => None,
        Why::Wire(_) => Some(format!("{name}:{port} {wire}")),
        Why::Ech => Some(format!("{name}:{port} ech")),
    }
}

/// Reads what is there, waiting for it if need be.
async fn piece(stream: &TcpStream, octets: &mut Vec<u8>, until: Instant) -> io::Result<usize> {
    // Past the runtime at first, which has not heard of this socket yet: what a client says first is mostly there already.
    let mut known = false;
    loop {
        let read = with_chunk(|chunk| {
            let chunk = chunk.get_mut(..PIECE).unwrap_or_default();
            let read = if known {
                stream.try_read(chunk)?
            } else {
                recv(stream, &mut *chunk, RecvFlags::DONTWAIT)?.1
            };
            octets.extend_from_slice(chunk.get(..read).unwrap_or_default());
            Ok(read)
        });
        match read {
            Ok(read) => return Ok(read),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                known = true;
                timeout_at(until, stream.readable()).await.map_err(io::Error::from)??;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Says the last word, and hears the client out for a while.
pub(super) async fn end(stream: &TcpStream, word: &[u8]) {
    let said = async {
        write_all(stream, word).await?;
        socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write)?;
        let mut heard = 0;
        while heard < LINGER_OCTETS {
            match with_chunk(|chunk| stream.try_read(chunk)) {
                Ok(0) => break,
                Ok(read) => heard += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // Who does not listen misses it.
    drop(timeout(LINGER, said).await);
}

/// Where a redirected connection was going, as the kernel remembers it (netfilter's SO_ORIGINAL_DST).
pub(super) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    match getsockopt(stream, sockopt::OriginalDst) {
        Ok(to) => {
            let address = Ipv4Addr::from(u32::from_be(to.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(address), u16::from_be(to.sin_port)))
        }
        Err(_) => {
            let to = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
            let address = Ipv6Addr::from(to.sin6_addr.s6_addr);
            Some(SocketAddr::new(IpAddr::V6(address), u16::from_be(to.sin6_port)))
        }
    }
}
