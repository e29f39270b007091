//! From a client's question to the reply: what can be said at once, and what has to wait for others.
//!
//! No packet may end the worker: whatever can't be answered gets an error code or silence.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::ResponseCode;
use hickory_server::proto::rr::Name;
use hickory_server::server::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::answer::Family;
use super::cache::{Key, Known};
use super::link::Link;
use super::lookup::{Lookups, Outcome};
use super::policy::{Decision, Local, Query, Question, Why, decide};
use super::reply::{Parsed, Reply, parse};
use crate::allowlist::{Allowlist, Verdict};
use crate::policy::remedy::Remedies;
use crate::socket_table::{self, SocketTables};
use crate::worker::protocol::ClientDenial;
use crate::worker::unreported::{Unreported, wait};

/// Clients that wait for an answer at a time; the rest are told to come again.
const WAITING_CLIENTS: usize = 2048;

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
    link: Arc<Link>,
    pub(super) counters: Counters,
    pub(super) unreported: Unreported,
    tables: SocketTables,
    ipv4: bool,
    ipv6: Arc<AtomicBool>,
    proxied: bool,
    waiting: Arc<Semaphore>,
}

/// How far an answer is.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call; most are the large one, and a box would cost more"
)]
#[derive(Debug)]
pub enum Begun {
    Done(Reply),
    Waits(Waiting),
}

/// An answer that needs somebody else first.
#[derive(Debug)]
pub struct Waiting {
    for_what: Wait,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Wait {
    Lookup { owner: Name, key: Key },
    Attribution { reply: Box<Reply>, looked: oneshot::Receiver<()> },
}

impl Responder {
    #[must_use]
    pub fn new(
        lookups: Arc<Lookups>,
        link: Arc<Link>,
        tables: SocketTables,
        ipv4: bool,
        ipv6: Arc<AtomicBool>,
    ) -> Self {
        Self {
            lookups,
            link,
            counters: Counters::default(),
            unreported: Unreported::new(Instant::now()),
            tables,
            ipv4,
            ipv6,
            proxied: false,
            waiting: Arc::new(Semaphore::new(WAITING_CLIENTS)),
        }
    }

    /// Whether the world is reached through a proxy, which resolves names itself.
    #[must_use]
    pub fn proxied(self, proxied: bool) -> Self {
        Self { proxied, ..self }
    }

    /// The whole answer; empty if there is none to give.
    pub async fn answer(&self, request: &Request) -> Vec<u8> {
        let reply = match self.begin(request) {
            Begun::Done(reply) => reply,
            Begun::Waits(waiting) => self.finish(waiting).await,
        };
        let mut bytes = Vec::with_capacity(512);
        reply.encode(request, &mut bytes);
        bytes
    }

    /// Everything that needs nobody.
    pub fn begin(&self, request: &Request) -> Begun {
        self.counters.queries.fetch_add(1, Ordering::Relaxed);
        let mark = self.lookups.upstreams().mark();
        if request.edns.as_ref().is_some_and(|edns| mark.is_on(edns)) {
            return Begun::Done(Reply::new(ResponseCode::Refused));
        }
        let rules = self.lookups.rules();
        match judge(request, &rules.allowlist, &rules.remedies, self.ipv6.load(Ordering::Relaxed)) {
            Judged::Done(reply) => {
                self.counters.allowed.fetch_add(1, Ordering::Relaxed);
                Begun::Done(reply)
            }
            Judged::Refused { reply, why } => match self.note(&why, request) {
                Some((looked, place)) => {
                    let for_what = Wait::Attribution { reply: Box::new(reply), looked };
                    Begun::Waits(Waiting { for_what, _place: place })
                }
                None => Begun::Done(reply),
            },
            // A family that this host can't open safely has no names, as IPv6 has none where it leads nowhere.
            Judged::Resolve { owner, key } if key.family == Family::V4 && !self.ipv4 => {
                self.counters.allowed.fetch_add(1, Ordering::Relaxed);
                Begun::Done(Reply::local(owner, Local::Empty))
            }
            Judged::Resolve { owner, key } => {
                self.counters.allowed.fetch_add(1, Ordering::Relaxed);
                if let Some(outcome) = self.lookups.find_now(&key) {
                    return Begun::Done(self.resolved(owner, &key, &outcome));
                }
                match self.waiting.clone().try_acquire_owned() {
                    Ok(place) => {
                        let owner = owner.clone();
                        Begun::Waits(Waiting { for_what: Wait::Lookup { owner, key }, _place: place })
                    }
                    Err(_) => Begun::Done(Reply::new(ResponseCode::ServFail)),
                }
            }
        }
    }

    /// Waits for what [`Responder::begin`] could not say.
    pub async fn finish(&self, waiting: Waiting) -> Reply {
        match waiting.for_what {
            Wait::Lookup { owner, key } => {
                let outcome = self.lookups.find(key.clone()).await;
                self.resolved(&owner, &key, &outcome)
            }
            Wait::Attribution { reply, looked } => {
                wait(looked).await;
                *reply
            }
        }
    }

    /// What a look-up came to. Where the world is reached through a proxy, its names need not be known here: the client is
    /// sent to an address that leads to the gate and nowhere else, and the gate has the proxy find the name.
    fn resolved(&self, owner: &Name, key: &Key, outcome: &Outcome) -> Reply {
        let unknown = match outcome.known {
            Known::Empty | Known::NxDomain | Known::Failed(_) => self.proxied,
            Known::Addresses { .. } | Known::NoneAdmitted => false,
        };
        let rules = self.lookups.rules();
        match rules.allowlist.verdict(&key.name) {
            Verdict::Allowed(allowed) if unknown && !allowed.private => match key.family {
                Family::V4 => Reply::local(owner, Local::Gate),
                Family::V6 => Reply::local(owner, Local::Empty),
            },
            Verdict::Allowed(_) | Verdict::Denied(_) => Reply::resolved(owner, outcome),
        }
    }

    /// Counts a refusal, with its owner: while the client waits, since its socket may be gone afterwards. Where PID 1 is
    /// to look at the process too, the client waits for that.
    fn note(
        &self,
        why: &Why<'_>,
        request: &Request,
    ) -> Option<(oneshot::Receiver<()>, OwnedSemaphorePermit)> {
        let Why::Denied { what, cause } = why else { return None };
        self.counters.denied.fetch_add(1, Ordering::Relaxed);
        let mut denials = self.unreported.denials();
        let begin = Instant::now();
        if !denials.may_attribute(what, begin) {
            denials.add_without_a_look(what, cause);
            drop(denials);
            self.unreported.added();
            return None;
        }
        let owner = self.tables.owner(request.src(), transport(request.protocol()));
        denials.attributed(begin.elapsed());
        if let Some(owner) = owner
            && denials.may_wait(what, owner.uid, begin)
            && let Ok(place) = self.waiting.clone().try_acquire_owned()
            && let Some(looked) = self.link.attribute(ClientDenial::one(what, cause, Some(owner), None))
        {
            return Some((looked, place));
        }
        denials.add(what, cause, owner, None);
        drop(denials);
        self.unreported.added();
        None
    }
}

fn transport(protocol: Protocol) -> socket_table::Protocol {
    if protocol == Protocol::Udp { socket_table::Protocol::Udp } else { socket_table::Protocol::Tcp }
}

/// What the policy makes of a question. (pure)
enum Judged<'r, 'a> {
    Done(Reply),
    Refused { reply: Reply, why: Why<'a> },
    Resolve { owner: &'r Name, key: Key },
}

fn judge<'r, 'a>(
    request: &'r Request,
    allowlist: &'a Allowlist,
    remedies: &Remedies,
    ipv6: bool,
) -> Judged<'r, 'a> {
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Judged::Done(Reply::new(ResponseCode::BADVERS));
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
    let owner = question.map(|query| query.name());
    let root;
    let of = if let Some(name) = owner {
        name
    } else {
        root = Name::root();
        &root
    };
    match decide(query, allowlist, ipv6) {
        Decision::Answer(local) => Judged::Done(Reply::local(of, local)),
        Decision::Refuse(why) => Judged::Refused { reply: Reply::refused(of, &why, remedies), why },
        Decision::Resolve { name, family } => match owner {
            Some(owner) => Judged::Resolve { owner, key: Key { name, family } },
            None => Judged::Done(Reply::new(ResponseCode::FormErr)),
        },
    }
}

/// A client's message and the reply to it, with `find` for what would have to be looked up: the whole way of a question
/// but for sockets, PID 1 and upstreams, for who wants to feed it anything. (pure)
#[must_use]
pub fn answer_offline(
    message: &[u8],
    protocol: Protocol,
    allowlist: &Allowlist,
    find: impl FnOnce(&Key) -> Outcome,
) -> Option<Vec<u8>> {
    let request = match parse(message.to_vec(), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), protocol) {
        Parsed::Question(request) => request,
        Parsed::Broken(reply) => return Some(reply),
        Parsed::Ignored => return None,
    };
    let reply = match judge(&request, allowlist, &Remedies::default(), true) {
        Judged::Done(reply) | Judged::Refused { reply, .. } => reply,
        Judged::Resolve { owner, key } => Reply::resolved(owner, &find(&key)),
    };
    let mut bytes = Vec::new();
    reply.encode(&request, &mut bytes);
    Some(bytes)
}
