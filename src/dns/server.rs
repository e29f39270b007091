//! From a client's message to the reply: hickory parses and frames, this decides by `policy.rs` and `lookup.rs`.
//!
//! No packet may end the worker: whatever can't be answered gets an error code or silence.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::opt::EdnsOption;
use hickory_server::proto::rr::rdata::{A, AAAA, SOA};
use hickory_server::proto::rr::{Name, RData, Record};
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::sync::{Notify, Semaphore};

use super::cache::{Key, Known};
use super::denials::Denials;
use super::lookup::{Lookups, Outcome};
use super::policy::{Decision, EDE_BLOCKED, Local, Query, Question, Why, decide};
use crate::socket_table::{self, SocketTables};

/// Clients that wait for an answer at a time; the rest are told to come again.
const WAITING_CLIENTS: usize = 2048;
/// What fits everywhere without fragments (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;
/// How long clients believe a "no": short, since the operator may allow the name any moment.
const NEGATIVE_TTL_S: u32 = 5;
const LOCALHOST_TTL_S: u32 = 300;
/// Longer explanations would not fit beside a long name into the smallest reply.
const MAX_EXPLANATION: usize = 200;
/// RFC 8914: 3 Stale Answer.
const EDE_STALE: u16 = 3;
/// RFC 8914 §2: the EDNS option.
const EDE_OPTION: u16 = 15;

/// Counted since the worker began.
#[derive(Debug, Default)]
pub struct Counters {
    pub queries: AtomicU64,
    pub allowed: AtomicU64,
    pub denied: AtomicU64,
}

/// Answers every question, from any transport.
#[derive(Debug)]
pub struct Responder {
    lookups: Arc<Lookups>,
    pub(super) counters: Counters,
    pub(super) denials: Mutex<Denials>,
    pub(super) denied: Notify,
    tables: SocketTables,
    ipv6: bool,
    waiting: Semaphore,
}

/// What goes back, without the client's own question.
#[derive(Debug)]
struct Reply {
    code: ResponseCode,
    answers: Vec<Record>,
    authority: Option<Record>,
    edns: Option<Edns>,
}

impl Responder {
    #[must_use]
    pub fn new(lookups: Arc<Lookups>, tables: SocketTables, ipv6: bool) -> Self {
        Self {
            lookups,
            counters: Counters::default(),
            denials: Mutex::new(Denials::new(Instant::now())),
            denied: Notify::new(),
            tables,
            ipv6,
            waiting: Semaphore::new(WAITING_CLIENTS),
        }
    }

    /// The reply as it goes over TCP, without the length; none if it can't be encoded.
    pub async fn answer_bytes(&self, request: &Request) -> Option<Vec<u8>> {
        let reply = self.reply(request).await;
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let builder = MessageResponseBuilder::new(&request.queries, reply.edns.as_ref());
        let response = builder.build(reply.metadata(request), &reply.answers, &reply.authority, [], []);
        response.destructive_emit(&mut encoder).ok()?;
        Some(bytes)
    }

    async fn reply(&self, request: &Request) -> Reply {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        if let Some(edns) = &request.edns
            && edns.version() > 0
        {
            return Reply::new(ResponseCode::BADVERS).with_edns(request, None);
        }
        if request.edns.as_ref().is_some_and(|edns| self.lookups.upstreams().mark().is_on(edns)) {
            return Reply::new(ResponseCode::Refused).with_edns(request, None);
        }
        let question = request.queries.queries().first().map(|query| query.original());
        let query = Query {
            opcode: request.metadata.op_code,
            questions: request.queries.len(),
            question: question.map(|query| Question {
                name: query.name(),
                kind: query.query_type(),
                class: query.query_class(),
            }),
        };
        let owner = question.map_or_else(Name::root, |query| query.name().clone());
        let rules = self.lookups.rules();
        match decide(query, &rules.allowlist, self.ipv6) {
            Decision::Answer(local) => {
                self.counters.allowed.fetch_add(1, Ordering::Relaxed);
                Reply::local(&owner, local).with_edns(request, None)
            }
            Decision::Refuse(why) => {
                self.note(&why, request);
                let reply = Reply::negative(&owner, why.response_code());
                reply.with_edns(request, why.explanation().map(|text| (EDE_BLOCKED, text)))
            }
            Decision::Resolve { name, family } => {
                self.counters.allowed.fetch_add(1, Ordering::Relaxed);
                drop(rules);
                let Ok(_place) = self.waiting.try_acquire() else {
                    return Reply::new(ResponseCode::ServFail).with_edns(request, None);
                };
                let outcome = self.lookups.find(Key { name, family }).await;
                Reply::resolved(&owner, outcome, request)
            }
        }
    }

    /// While the client waits, since its socket may be gone afterwards.
    fn note(&self, why: &Why, request: &Request) {
        let Why::Denied { what, reason, .. } = why else { return };
        self.counters.denied.fetch_add(1, Ordering::Relaxed);
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        let mut owner = None;
        if denials.may_attribute(begin) {
            owner = self.tables.owner(request.src(), transport(request.protocol()));
            denials.attributed(begin.elapsed());
        }
        denials.add(what, reason, owner);
        drop(denials);
        self.denied.notify_one();
    }
}

fn transport(protocol: Protocol) -> socket_table::Protocol {
    if protocol == Protocol::Udp { socket_table::Protocol::Udp } else { socket_table::Protocol::Tcp }
}

impl Reply {
    fn new(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: None, edns: None }
    }

    /// A "no" that may be remembered: with the SOA that RFC 2308 wants for it.
    fn negative(owner: &Name, code: ResponseCode) -> Self {
        let remembered = matches!(code, ResponseCode::NXDomain | ResponseCode::NoError);
        Self { authority: remembered.then(|| authority(owner)).flatten(), ..Self::new(code) }
    }

    fn addresses(owner: &Name, addresses: &[IpAddr], ttl_s: u32) -> Self {
        let record = |address: &IpAddr| {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            Record::from_rdata(owner.clone(), ttl_s, data)
        };
        Self { answers: addresses.iter().map(record).collect(), ..Self::new(ResponseCode::NoError) }
    }

    fn local(owner: &Name, local: Local) -> Self {
        match local {
            Local::Localhost(address) => Self::addresses(owner, &[address], LOCALHOST_TTL_S),
            Local::Empty => Self::negative(owner, ResponseCode::NoError),
        }
    }

    fn resolved(owner: &Name, outcome: Outcome, request: &Request) -> Self {
        let Outcome { known, ttl_s } = outcome;
        let (reply, error) = match known {
            Known::Addresses { addresses, stale } => {
                let note =
                    stale.then(|| (EDE_STALE, "upstreams fail; this is the last good answer".to_owned()));
                (Self::addresses(owner, &addresses, ttl_s), note)
            }
            Known::Empty => (Self::negative(owner, ResponseCode::NoError), None),
            Known::NxDomain => (Self::negative(owner, ResponseCode::NXDomain), None),
            Known::NoneAdmitted => {
                let name = owner.to_ascii().to_ascii_lowercase();
                let name = name.trim_end_matches('.');
                let text = format!(
                    "the address policy admits no address of {name}; operator: innkeeper log --denied"
                );
                (Self::negative(owner, ResponseCode::NXDomain), Some((EDE_BLOCKED, text)))
            }
            Known::Failed(failure) => (Self::new(ResponseCode::ServFail), Some((failure.code, failure.text))),
        };
        reply.with_edns(request, error)
    }

    /// RFC 6891 §6.1.1: an OPT record if, and only if, the client sent one.
    fn with_edns(mut self, request: &Request, error: Option<(u16, String)>) -> Self {
        let Some(asked) = &request.edns else { return self };
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP_PAYLOAD));
        edns.set_rcode_high(self.code.high());
        if let Some((code, mut text)) = error {
            if text.len() > MAX_EXPLANATION {
                text = "refused by policy; operator: innkeeper log --denied".to_owned();
            }
            let mut option = code.to_be_bytes().to_vec();
            option.extend(text.bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EDE_OPTION, option));
        }
        self.edns = Some(edns);
        self
    }

    fn metadata(&self, request: &Request) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = self.code;
        metadata
    }
}

fn authority(owner: &Name) -> Option<Record> {
    let mname = Name::from_ascii("innkeeper.invalid.").ok()?;
    let rname = Name::from_ascii("operator.innkeeper.invalid.").ok()?;
    let soa = SOA::new(mname, rname, 1, 3600, 600, 86_400, NEGATIVE_TTL_S);
    Some(Record::from_rdata(owner.clone(), NEGATIVE_TTL_S, RData::SOA(soa)))
}

/// For hickory's UDP server, which wants to own its handler.
#[derive(Debug, Clone)]
pub struct Handler(pub Arc<Responder>);

impl RequestHandler for Handler {
    // What the macro of the crate async-trait makes of an async function, by hand: it isn't worth a dependency.
    fn handle_request<'life0, 'life1, 'async_trait, R, T>(
        &'life0 self,
        request: &'life1 Request,
        mut response_handle: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'async_trait>>
    where
        R: ResponseHandler + 'async_trait,
        T: Time + 'async_trait,
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let reply = self.0.reply(request).await;
            let metadata = reply.metadata(request);
            let builder = MessageResponseBuilder::new(&request.queries, reply.edns.as_ref());
            let response = builder.build(metadata, &reply.answers, &reply.authority, [], []);
            match response_handle.send_response(response).await {
                Ok(info) => info,
                // The client asks again; there is nobody to tell.
                Err(_) => ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() }),
            }
        })
    }
}

/// A message that hickory can't parse, from a client that waits on TCP: what to answer, if it has a header at all.
#[must_use]
pub fn format_error(message: &[u8]) -> Option<Vec<u8>> {
    use hickory_server::proto::op::{Message, OpCode};
    let id = u16::from_be_bytes(*message.first_chunk()?);
    (message.len() >= 12)
        .then(|| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok())?
}

/// Parses what came over TCP. Messages that are answers themselves are nobody's question.
#[must_use]
pub fn parse(message: Vec<u8>, client: SocketAddr) -> Option<Request> {
    Request::from_bytes(message, client, Protocol::Tcp).ok()
}
