//! Clients that know the gate as their proxy (`HTTPS_PROXY`), on hosts that can't redirect: the same names pass by the same
//! judgement.
//!
//! A tunnel says its name twice, in the CONNECT and in what goes through it, and both must agree.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Worker;
use super::http::{self, End};
use super::refusal::Refused;
use super::relay::{acknowledge, relay, write_all};
use super::request::Request;
use super::roll::Place;
use super::verdict::{Shown, judge};
use super::visit::{self, Client, end, rule_for};
use super::web::{LIMITS, Opener};
use crate::allowlist::Wire;

/// A client that does not take its answer to CONNECT is gone.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const AGREED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Sees a connection through that came to the proxy's own address.
pub(super) async fn visit(worker: Arc<Worker>, stream: TcpStream, from: SocketAddr, place: Place) {
    let Ok(own) = stream.local_addr() else { return };
    let owner = worker.owners.of(from, own);
    // Where to comes with each request; what names nobody is told of by the proxy's own address.
    let client = Client { to: own, owner };
    let mut opener = Opener::proxy(&worker, client, &place);
    match http::serve_proxy(stream, &mut opener, LIMITS).await {
        End::Closed => {}
        End::Tunnel { mut client, mut server, unsent } => {
            if let Some(passage) = opener.into_passage()
                && write_all(&server, &unsent).await.is_ok()
            {
                passage.sent(unsent.len());
                relay(&mut client, &mut server, &passage).await;
            }
        }
        End::Connect { client: stream, asked, unsent } => {
            tunnel(&worker, (stream, client), &asked, unsent, &place).await;
        }
    }
}

/// No address: what the gate resolves itself is dialled, whatever comes first.
pub(super) const fn nowhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// A CONNECT. On a port that the gate reads, what is said in the tunnel is judged like a redirected connection; on
/// another one (22, say) the name and the port are all that a rule is about.
async fn tunnel(
    worker: &Arc<Worker>,
    (stream, client): (TcpStream, Client),
    asked: &Request,
    unsent: Vec<u8>,
    place: &Place,
) {
    let port = asked.port.unwrap_or(443);
    let client = Client { to: nowhere(port), ..client };
    if let Err(refused) = admit(worker, &client, asked, port).await {
        return end(&stream, &refused.render(asked.manner)).await;
    }
    if worker.allowlist().gated_ports().contains(&port) {
        let answered = timeout(ANSWER_LIMIT, write_all(&stream, AGREED)).await;
        if answered.is_ok_and(|answered| answered.is_ok()) {
            visit::named(Arc::clone(worker), stream, client, unsent, place, Some(asked.host.clone())).await;
        }
        return;
    }
    let mut stream = stream;
    match worker.open(&client, place, &asked.host, Wire::Tls, false).await {
        Ok((mut server, passage)) => {
            // The server may have the first word.
            acknowledge(&server);
            let sent = async {
                write_all(&stream, AGREED).await?;
                write_all(&server, &unsent).await
            };
            if timeout(ANSWER_LIMIT, sent).await.is_ok_and(|sent| sent.is_ok()) {
                passage.sent(unsent.len());
                relay(&mut stream, &mut server, &passage).await;
            }
        }
        Err(unopened) => {
            let refused = worker.unopened(&client, &asked.host, unopened).await;
            end(&stream, &refused.render(asked.manner)).await;
        }
    }
}

/// Whether name and port are allowed to speak anything at all. What they speak is judged when it is said.
async fn admit(worker: &Worker, client: &Client, asked: &Request, port: u16) -> Result<(), Refused> {
    let allowlist = worker.allowlist();
    let shown = |wire| Shown { name: &asked.host, port, wire, ech: false };
    let verdict = judge(&allowlist, shown(Wire::Tls)).or_else(|why| {
        // The reason that is told is the one for TLS, which most tunnels are for.
        judge(&allowlist, shown(Wire::Http)).map_err(|_| why)
    });
    let (why, rule) = match verdict {
        Ok(_) => return Ok(()),
        Err(why) => (why.to_string(), rule_for(shown(Wire::Tls), &why)),
    };
    Err(worker.forbid(client, &asked.host, &why, rule, None).await)
}

#[cfg(test)]
mod tests;
