//! Asks the upstreams: several of them, by UDP and TCP, within a bounded time; knows which of them answer.
//!
//! hickory-resolver's name server pools speak the protocol (retransmission, truncation to TCP). Everything that would
//! read this machine (resolv.conf, hosts, search domains) and hickory's own cache are out of the path.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::xfer::FirstAnswer;
use hickory_resolver::net::{DnsError, DnsHandle, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Edns, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use super::connected::Connected;
use super::loop_mark::LoopMark;
use super::name_server::NameServer;
use super::protocol::UpstreamHealth;

/// The whole of one question, with every retry and every upstream: glibc's resolver gives up after five seconds.
pub const BUDGET: Duration = Duration::from_secs(4);
/// When no answer came by then, the next upstream is asked as well.
const HEDGE: Duration = Duration::from_millis(250);
/// The same after an upstream that was silent or [`SLOW`] lately: the next one is likely to be sooner, and what it costs
/// is one question more.
const HEDGE_AFTER_TROUBLE: Duration = Duration::from_millis(100);
/// A usual time for an answer above which an upstream is slow: most answers come from its cache.
const SLOW: Duration = Duration::from_millis(150);
/// TCP is tried only after UDP had this long: for upstreams that speak TCP alone.
const TCP_AFTER: Duration = Duration::from_millis(1200);
/// So many questions in a row without an answer, and the upstream counts as down.
const FAILURES: u32 = 3;
/// What fits everywhere without fragments (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;
/// Questions on one connection at a time; with more hickory waits.
const ACTIVE: usize = 1024;
/// An upstream that is down is asked first again after this.
const RECHECK: Duration = Duration::from_secs(2);

/// What an upstream said, as far as it matters here.
#[derive(Debug, Clone)]
pub enum Response {
    Records(Vec<Record>),
    /// No such record, or no such name. The time is from the SOA (RFC 2308), if there was one.
    Nothing {
        nxdomain: bool,
        ttl_s: Option<u32>,
    },
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    #[error("no upstream DNS server is configured")]
    None,
    #[error("no upstream DNS server answered in time")]
    Timeout,
    #[error("no upstream DNS server can be reached")]
    Unreachable,
    #[error("the upstream DNS server's answer is unusable: {0}")]
    Unusable(String),
    #[error(
        "the upstream DNS server sends our own questions back to us: its traffic to port 53 is redirected here"
    )]
    Loop,
    #[error("the upstream DNS server answered {0}")]
    Code(ResponseCode),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
    Tls,
}

struct Endpoint {
    server: NameServer,
    transport: Transport,
    pool: NameServerPool<Connected>,
    sockets: Connected,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    down_since: Option<Instant>,
    answered: Option<Instant>,
    /// Why it is down, where that is more than silence.
    cause: Option<String>,
    /// Smoothed, as TCP does it (RFC 6298 §2).
    usual: Duration,
}

impl Endpoint {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, answered: Answered) {
        let mut state = self.state();
        match answered {
            Answered::After(time) => {
                (state.failures, state.down_since, state.answered) = (0, None, Some(Instant::now()));
                state.cause = None;
                state.usual = (state.usual * 7 + time) / 8;
            }
            Answered::No => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= FAILURES {
                    state.down_since = Some(Instant::now());
                }
            }
            Answered::Unreachable => state.down_since = Some(Instant::now()),
        }
    }

    /// TCP is asked seldom, so that only its success says something.
    fn is_healthy(&self) -> bool {
        let state = self.state();
        state.down_since.is_none() && (state.answered.is_some() || self.transport != Transport::Tcp)
    }

    fn is_due_for_recheck(&self) -> bool {
        let state = self.state();
        state.down_since.is_some_and(|since| since.elapsed() >= RECHECK)
    }

    /// How long the next upstream leaves this one alone with a question.
    fn hedge(&self) -> Duration {
        let state = self.state();
        if state.failures > 0 || state.usual > SLOW { HEDGE_AFTER_TROUBLE } else { HEDGE }
    }

    /// Whether questions go out in random letters, which an answer must repeat: some bits more for a forger to guess
    /// (draft-vixie-dnsext-dns0x20). TCP needs none of it.
    fn randomizes_case(&self) -> bool {
        self.transport == Transport::Udp && !self.sockets.letters().are_lost()
    }

    fn rank(&self) -> u8 {
        if self.is_healthy() || (self.transport != Transport::Tcp && self.is_due_for_recheck()) {
            0
        } else {
            1
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Answered {
    After(Duration),
    No,
    Unreachable,
}

const CASE_NOTE: &str = "changes the letters of questions; they are no longer sent in random case (0x20)";

/// The upstreams of the setup.
pub struct Upstreams {
    endpoints: Vec<Arc<Endpoint>>,
    mark: Arc<LoopMark>,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.health()).finish()
    }
}

impl Upstreams {
    /// `roots`: certificates of authorities (PEM), for servers that are asked by TLS.
    pub fn new(servers: &[NameServer], roots: Option<&str>) -> Result<Self, NetError> {
        let plain = Arc::new(PoolContext::new(options(), TlsConfig::new()?));
        let tls = match roots {
            Some(roots) => Arc::new(PoolContext::new(options(), trusting(roots)?)),
            None => plain.clone(),
        };
        let mut endpoints = Vec::new();
        for server in servers {
            let first = if server.tls.is_some() { (Transport::Tls, &tls) } else { (Transport::Udp, &plain) };
            endpoints.push(Arc::new(endpoint(server, first.0, first.1)));
        }
        // A server that is asked by TLS has no other way: never in the clear instead.
        for server in servers.iter().filter(|server| server.tls.is_none()) {
            endpoints.push(Arc::new(endpoint(server, Transport::Tcp, &plain)));
        }
        Ok(Self { endpoints, mark: Arc::default() })
    }

    #[must_use]
    pub fn health(&self) -> Vec<UpstreamHealth> {
        let first = self.endpoints.iter().filter(|endpoint| endpoint.transport != Transport::Tcp);
        first
            .map(|first| {
                let others = self.endpoints.iter().filter(|endpoint| endpoint.transport == Transport::Tcp);
                let mut by_tcp = others.filter(|endpoint| endpoint.server == first.server);
                // What TCP did before UDP went down says nothing of now.
                let down = first.state().down_since;
                let is_there = |tcp: &Arc<Endpoint>| tcp.is_healthy() && tcp.state().answered > down;
                let letters = first.sockets.letters().are_lost().then(|| CASE_NOTE.to_owned());
                UpstreamHealth {
                    server: first.server.clone(),
                    healthy: first.is_healthy() || by_tcp.any(is_there),
                    note: first.state().cause.clone().or(letters),
                }
            })
            .collect()
    }

    /// Whether asking now would only wait: nothing answered lately, by any transport.
    #[must_use]
    pub fn all_down(&self) -> bool {
        !self.endpoints.iter().any(|endpoint| endpoint.is_healthy() || endpoint.is_due_for_recheck())
    }

    /// What our questions to a resolver on loopback carry.
    #[must_use]
    pub fn mark(&self) -> &LoopMark {
        &self.mark
    }

    /// Asks until somebody answers or `budget` has passed. A failing or slow upstream brings in the next one.
    pub async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
        budget: Duration,
    ) -> Result<Response, UpstreamError> {
        let before = self.mark.seen();
        let result = self.race(name, kind, budget).await;
        // A question that came back explains every other failure.
        result.map_err(|error| if self.mark.seen() == before { error } else { UpstreamError::Loop })
    }

    async fn race(&self, name: &Name, kind: RecordType, budget: Duration) -> Result<Response, UpstreamError> {
        let start = tokio::time::Instant::now();
        let mut waiting = self.in_order();
        let mut asked: Vec<(tokio::time::Instant, Arc<Endpoint>)> = Vec::new();
        let mut running = JoinSet::new();
        let mut worst = UpstreamError::None;
        let mut next_at = start;
        loop {
            let due = waiting.last().map(|endpoint| match endpoint.transport {
                Transport::Udp | Transport::Tls => next_at,
                Transport::Tcp if asked.is_empty() || running.is_empty() => next_at,
                Transport::Tcp => next_at.max(start + TCP_AFTER),
            });
            if due.is_none() && running.is_empty() {
                return Err(worst);
            }
            let step = async {
                // A timer would round "now" up to the next millisecond.
                if due.is_some_and(|due| due <= tokio::time::Instant::now()) {
                    return Step::AskNext;
                }
                tokio::select! {
                    Some(done) = running.join_next() => Step::Done(done),
                    () = sleep_until(due.unwrap_or(start)), if due.is_some() => Step::AskNext,
                }
            };
            match timeout_at(start + budget, step).await {
                Ok(Step::AskNext) => {
                    if let Some(endpoint) = waiting.pop() {
                        asked.push((tokio::time::Instant::now(), endpoint.clone()));
                        next_at = tokio::time::Instant::now() + endpoint.hedge();
                        running.spawn(ask_one(endpoint, self.mark.clone(), name.clone(), kind));
                    }
                }
                Ok(Step::Done(Ok((endpoint, result)))) => {
                    asked.retain(|(_, other)| !Arc::ptr_eq(other, &endpoint));
                    match result {
                        Ok(response) => {
                            blame_silent(&asked);
                            return Ok(response);
                        }
                        Err(error) => worst = error,
                    }
                    next_at = tokio::time::Instant::now();
                }
                Ok(Step::Done(Err(_panicked_or_cancelled))) => next_at = tokio::time::Instant::now(),
                Err(_elapsed) => {
                    blame_silent(&asked);
                    return Err(UpstreamError::Timeout);
                }
            }
        }
    }

    /// Last is asked first: those that answer, UDP before TCP, in the configured order.
    fn in_order(&self) -> Vec<Arc<Endpoint>> {
        let mut endpoints = self.endpoints.clone();
        endpoints.sort_by_key(|endpoint| endpoint.rank());
        endpoints.reverse();
        endpoints
    }
}

/// Those that had their time and said nothing. A slow name alone doesn't make an upstream sick: it answers others.
fn blame_silent(asked: &[(tokio::time::Instant, Arc<Endpoint>)]) {
    let silent = asked.iter().filter(|(since, _)| since.elapsed() >= HEDGE);
    silent.for_each(|(_, endpoint)| endpoint.record(Answered::No));
}

enum Step<T> {
    Done(T),
    AskNext,
}

async fn ask_one(
    endpoint: Arc<Endpoint>,
    mark: Arc<LoopMark>,
    name: Name,
    kind: RecordType,
) -> (Arc<Endpoint>, Result<Response, UpstreamError>) {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_PAYLOAD);
    if LoopMark::concerns(endpoint.server.address.ip()) {
        mark.put_on(&mut edns);
    }
    let changed = endpoint.sockets.letters().changed();
    let random = endpoint.randomizes_case();
    let (mut answered, mut result) = exchange(&endpoint, &name, kind, Some(edns.clone()), random).await;
    if random && result.is_err() && endpoint.sockets.letters().changed() != changed {
        // The answer had other letters, and by TCP there was none: an upstream that changes them, or a forger. Who could
        // forge that far has gained nothing: he must guess port and id once more.
        (answered, result) = exchange(&endpoint, &name, kind, Some(edns), false).await;
    }
    // RFC 6891 §7: a server from before EDNS.
    if let Err(UpstreamError::Code(ResponseCode::FormErr | ResponseCode::NotImp)) = result {
        (answered, result) = exchange(&endpoint, &name, kind, None, endpoint.randomizes_case()).await;
    }
    endpoint.record(answered);
    if let (Some(name), Err(UpstreamError::Unreachable)) = (&endpoint.server.tls, &result) {
        // hickory doesn't say which of the two it was.
        let cause = format!("it does not speak TLS there, or has no valid certificate for {name}");
        endpoint.state().cause = Some(cause);
    }
    (endpoint, result)
}

async fn exchange(
    endpoint: &Endpoint,
    name: &Name,
    kind: RecordType,
    edns: Option<Edns>,
    random_case: bool,
) -> (Answered, Result<Response, UpstreamError>) {
    let mut options = DnsRequestOptions::default();
    options.use_edns = edns.is_some();
    options.recursion_desired = true;
    options.case_randomization = random_case;
    let mut request = DnsRequest::from_query(Query::query(name.clone(), kind), options);
    request.edns = edns;
    let begin = Instant::now();
    match endpoint.pool.send(request).first_answer().await {
        // hickory compares them for UDP alone.
        Ok(response) if !is_about(response.queries.as_slice(), name, kind) => {
            let text = "it answers another question".to_owned();
            (Answered::No, Err(UpstreamError::Unusable(text)))
        }
        Ok(response) => (Answered::After(begin.elapsed()), understood(response)),
        Err(error) => failure(error, name, kind, begin.elapsed()),
    }
}

/// Whether an answer is to the question that was asked.
fn is_about(queries: &[Query], name: &Name, kind: RecordType) -> bool {
    let [query] = queries else { return false };
    query.name() == name && query.query_type() == kind && query.query_class() == DNSClass::IN
}

fn understood(response: DnsResponse) -> Result<Response, UpstreamError> {
    let code = response.response_code;
    if code == ResponseCode::NXDomain {
        return Ok(Response::Nothing { nxdomain: true, ttl_s: response.negative_ttl() });
    }
    if code != ResponseCode::NoError {
        return Err(UpstreamError::Code(code));
    }
    Ok(Response::Records(response.into_message().answers))
}

/// What hickory reports as errors are also answers: "no such name" and SERVFAIL came from a living server.
fn failure(
    error: NetError,
    name: &Name,
    kind: RecordType,
    took: Duration,
) -> (Answered, Result<Response, UpstreamError>) {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { query, .. }))
            if !is_about(std::slice::from_ref(&*query), name, kind) =>
        {
            (Answered::No, Err(UpstreamError::Unusable("it answers another question".to_owned())))
        }
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, negative_ttl, .. })) => {
            let nxdomain = response_code == ResponseCode::NXDomain;
            (Answered::After(took), Ok(Response::Nothing { nxdomain, ttl_s: negative_ttl }))
        }
        NetError::Dns(DnsError::ResponseCode(code)) => {
            (Answered::After(took), Err(UpstreamError::Code(code)))
        }
        NetError::Timeout => (Answered::No, Err(UpstreamError::Timeout)),
        // The pool's word for every error of a socket, a refused connection among them.
        NetError::NoConnections => (Answered::Unreachable, Err(UpstreamError::Unreachable)),
        other => (Answered::No, Err(UpstreamError::Unusable(other.to_string()))),
    }
}

fn endpoint(server: &NameServer, transport: Transport, context: &Arc<PoolContext>) -> Endpoint {
    let address = server.address;
    let connection = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let connections = match (transport, &server.tls) {
        (Transport::Tls, Some(name)) => vec![connection(ConnectionConfig::tls(name.clone().into()))],
        // UDP's pool has TCP as well: a truncated answer is asked for again there.
        (Transport::Udp, _) => {
            vec![connection(ConnectionConfig::udp()), connection(ConnectionConfig::tcp())]
        }
        (Transport::Tcp, _) => vec![connection(ConnectionConfig::tcp())],
        // Never in the clear instead.
        (Transport::Tls, None) => Vec::new(),
    };
    let config = NameServerConfig::new(address.ip(), true, connections);
    let sockets = Connected::default();
    let pool = NameServerPool::from_config([config], context.clone(), sockets.clone());
    Endpoint { server: server.clone(), transport, pool, sockets, state: Mutex::default() }
}

/// Trusts these authorities and nobody else. What is no certificate is left out; without any, nobody is trusted.
fn trusting(roots: &str) -> Result<TlsConfig, NetError> {
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(roots.as_bytes()).filter_map(Result::ok);
    store.add_parsable_certificates(certificates);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut tls = TlsConfig::new()?;
    tls.config = config.with_root_certificates(store).with_no_client_auth();
    Ok(tls)
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = BUDGET;
    options.cache_size = 0;
    options.num_concurrent_reqs = 1;
    options.max_active_requests = ACTIVE;
    options
}
