//! A connection that shows its names by HTTP: what the driver may ask of the worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::Worker;
use super::explicit::nowhere;
use super::http::{self, End, Limits, Porter};
use super::refusal::Refused;
use super::relay::{relay, write_all};
use super::request::Way;
use super::roll::{Passage, Place};
use super::verdict::{Shown, judge};
use super::visit::{Client, Unopened, rule_for};
use crate::allowlist::{DomainName, Wire};

pub(super) const LIMITS: Limits = Limits {
    head: Duration::from_secs(10),
    keep_alive: Duration::from_secs(120),
    // The roll ends what is idle.
    idle: Duration::from_secs(24 * 3600),
};

/// Opens the way for one connection's requests.
pub(super) struct Opener<'a> {
    worker: &'a Worker,
    client: Client,
    place: &'a Place,
    passage: Option<Arc<Passage>>,
    /// The only host that it may be, which a tunnel was asked for.
    only: Option<DomainName>,
    way: Way,
}

impl<'a> Opener<'a> {
    /// For a client that says itself where each request goes.
    pub(super) fn proxy(worker: &'a Worker, client: Client, place: &'a Place) -> Self {
        Self { worker, client, place, passage: None, only: None, way: Way::Explicit }
    }

    pub(super) fn into_passage(self) -> Option<Arc<Passage>> {
        self.passage
    }
}

/// Sees a connection through that does not begin as TLS does.
pub(super) async fn visit(
    worker: Arc<Worker>,
    stream: TcpStream,
    client: Client,
    octets: Vec<u8>,
    place: &Place,
    only: Option<DomainName>,
) {
    let mut opener = Opener { worker: &worker, client, place, passage: None, only, way: Way::Redirected };
    if let End::Tunnel { mut client, mut server, unsent } =
        http::serve(stream, octets, &mut opener, LIMITS).await
        && let Some(passage) = opener.passage
        && write_all(&server, &unsent).await.is_ok()
    {
        passage.sent(unsent.len());
        relay(&mut client, &mut server, &passage).await;
    }
}

impl Porter for Opener<'_> {
    async fn open(&mut self, host: &DomainName, port: Option<u16>, what: &str) -> Result<TcpStream, Refused> {
        if self.way == Way::Explicit {
            self.client.to = nowhere(port.unwrap_or(80));
        }
        let to: SocketAddr = self.client.to;
        if let Some(only) = self.only.as_ref().filter(|only| *only != host) {
            let what = format!("{what} is for another host than {only}, which the tunnel was asked for");
            let next = format!("ask for a tunnel to {host}");
            let refused = Refused { status: 421, what, next };
            self.worker.denied(&self.client, None, &refused.what, None).await;
            return Err(refused);
        }
        // The port that the client went to counts; another one in its words would be somebody's guess.
        if let Some(port) = port.filter(|port| *port != to.port()) {
            let what = format!("{what} names port {port} and came to port {}", to.port());
            let next = "name the port that the connection goes to, or none".to_owned();
            let refused = Refused { status: 400, what, next };
            self.worker.denied(&self.client, None, &refused.what, None).await;
            return Err(refused);
        }
        let shown = Shown { name: host, port: to.port(), wire: Wire::Http, ech: false };
        let allowlist = self.worker.allowlist();
        let verdict = judge(&allowlist, shown)
            .map(|_| ())
            .map_err(|why| (why.to_string(), rule_for(shown, &why), why.instead(to.port())));
        if let Err((why, rule, instead)) = verdict {
            return Err(self.worker.forbid(&self.client, host, &why, rule, instead).await);
        }
        match self.worker.open(&self.client, self.place, host, Wire::Http, false).await {
            Ok((server, passage)) => {
                self.passage = Some(passage);
                Ok(server)
            }
            Err(unopened) => Err(self.worker.unopened(&self.client, host, unopened).await),
        }
    }

    async fn refused(&mut self, refused: &mut Refused) {
        if refused.status == 400 && self.way == Way::Redirected && self.client.to.port() == 443 {
            refused.next = "speak TLS there: 443 is for HTTPS, unless a rule says `http`".to_owned();
        }
        self.worker.denied(&self.client, None, &refused.what, None).await;
    }

    fn sent(&self, octets: u64) {
        if let Some(passage) = &self.passage {
            passage.sent(usize::try_from(octets).unwrap_or(usize::MAX));
        }
    }

    fn received(&self, octets: u64) {
        if let Some(passage) = &self.passage {
            passage.received(usize::try_from(octets).unwrap_or(usize::MAX));
        }
    }
}

impl Worker {
    /// Notes a refusal by the policy; how the client hears of it.
    pub(super) async fn forbid(
        &self,
        client: &Client,
        host: &DomainName,
        why: &str,
        rule: Option<String>,
        instead: Option<&'static str>,
    ) -> Refused {
        let next = instead.map_or_else(|| self.next(rule.as_deref()), str::to_owned);
        self.denied(client, Some(host), &why, rule).await;
        Refused { status: 403, what: format!("{host}:{} is refused: {why}", client.to.port()), next }
    }

    /// Notes why a name gets no connection; how the client hears of it.
    pub(super) async fn unopened(&self, client: &Client, host: &DomainName, why: Unopened) -> Refused {
        match why {
            Unopened::Denied { why, rule } => self.forbid(client, host, &why, rule, None).await,
            Unopened::Failed(error) => {
                self.failed(&error);
                let next = "it is allowed; try again later, or look at `innkeeper status`".to_owned();
                Refused { status: 502, what: crate::report::chain(&error), next }
            }
        }
    }

    /// What the client can do about a refusal.
    pub(super) fn next(&self, rule: Option<&str>) -> String {
        match rule {
            Some(rule) => self.remedy(rule),
            None => "a rule of the policy forbids it: ask the operator".to_owned(),
        }
    }
}
