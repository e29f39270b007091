//! The worker `innkeeper gate`: lets a connection pass if the name that it shows is allowed, to where that name leads.
//!
//! The firewall sends every TCP connection to a gated port here. The gate reads the name (TLS SNI, HTTP Host), judges it,
//! resolves it itself and dials what *it* resolved: an address that many names share opens none but the allowed ones.
//! Nothing is decrypted and nothing rewritten. It has no capabilities and no files; its sockets and policy come over its
//! standard input, and it ends when that closes. No other uid may open connections on these ports: while it is away
//! they are closed.

pub mod body;
pub mod dial;
mod explicit;
mod head;
pub mod hello;
pub mod http;
pub mod keeper;
pub mod link;
pub mod names;
mod octets;
pub mod owner;
pub mod protocol;
pub mod refusal;
pub mod relay;
pub mod request;
pub mod response;
pub mod roll;
pub mod second;
pub mod through;
pub mod upstream;
pub mod verdict;
pub mod visit;
mod web;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::allowlist::{Allowlist, DomainName, RuleError};
use crate::channel::ChannelError;
use crate::policy::remedy::Remedies;
use crate::worker::link::write_frames;
use crate::worker::policy::Policy;
use crate::worker::protocol::{ClientDenial, Order as _};
use crate::worker::unreported::{Unreported, wait};
use crate::worker::{self, BeginError, Begun};
use dial::DialError;
use link::Link;
use names::Names;
use owner::Owners;
use protocol::{Door, FromWorker, MAX_USES, Setup, ToWorker, Totals};
use roll::{Roll, Room};
use verdict::{Shown, judge};
use visit::Client;

/// Totals and uses go to PID 1, and connections are looked over, at most this often.
const TICK: Duration = Duration::from_secs(1);
/// Connections at a time, where the descriptors suffice: each takes two.
const MOST_CONNECTIONS: u64 = 8192;
/// Descriptors that are not connections: 64, and what races to reach them ([`dial::SPARE`]).
const OTHER_DESCRIPTORS: u64 = 64 + 256;
/// Of names that can't be reached no more than one is told in this time; all are counted.
const FAILURES_TOLD: Duration = Duration::from_secs(5);
/// When the kernel has no more of what a connection takes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Why the worker ended. PID 1 starts another one.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error("gate: the channel to PID 1 failed")]
    Frame(#[from] ChannelError),
    #[error("gate: can't use a listening socket")]
    Socket(#[source] io::Error),
    #[error("gate: can't ask the kernel whose a connection is (CONFIG_INET_TCP_DIAG)")]
    Owners(#[source] io::Error),
    #[error("gate: can't ask the box's resolver")]
    Resolver(#[source] hickory_resolver::net::NetError),
    #[error("gate: a rule of the policy is not understood")]
    Policy(#[from] RuleError),
    #[error("gate: a part of the worker stopped")]
    Stopped,
}

/// What all connections share.
#[derive(Debug)]
pub struct Worker {
    allowlist: RwLock<Allowlist>,
    /// Whether the agent can ask for what is refused.
    remedies: RwLock<Remedies>,
    names: Names,
    owners: Owners,
    roll: Arc<Roll>,
    link: Link,
    unreported: Unreported,
    /// When somebody was last told of a name that can't be reached.
    told: Mutex<Option<Instant>>,
    /// Its own listening sockets: no connection leads there.
    own: Vec<SocketAddr>,
    agent_uid: u32,
    proxy: Option<upstream::Proxy>,
}

/// The command `innkeeper gate`, after privileges were dropped. Returns when PID 1 closes the channel.
pub fn run() -> Result<(), WorkerError> {
    serve(worker::take_over(ToWorker::WORKER)?)
}

/// Serves what comes over `channel` until PID 1 closes it.
pub fn serve(channel: UnixStream) -> Result<(), WorkerError> {
    worker::serve::<ToWorker, _>(channel, work)
}

async fn work(begun: Begun<Setup>) -> Result<(), WorkerError> {
    let Begun { setup, sockets, reader, writer } = begun;
    let (link, mut queue) = Link::new();
    let mut doors = Vec::new();
    for (door, socket) in setup.sockets.iter().zip(sockets) {
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true).map_err(WorkerError::Socket)?;
        doors.push((*door, TcpListener::from_std(socket).map_err(WorkerError::Socket)?));
    }
    let own: Result<Vec<SocketAddr>, _> = doors.iter().map(|(_, listener)| listener.local_addr()).collect();
    let worker = Arc::new(Worker {
        allowlist: RwLock::new(setup.policy.allowlist()?),
        remedies: RwLock::new(setup.policy.remedies()?),
        names: Names::new(setup.resolver).map_err(WorkerError::Resolver)?,
        owners: Owners::open(setup.agent_uid).map_err(WorkerError::Owners)?,
        roll: Arc::new(Roll::new(most_connections())),
        link,
        unreported: Unreported::new(Instant::now()),
        told: Mutex::default(),
        own: own.map_err(WorkerError::Socket)?,
        agent_uid: setup.agent_uid,
        proxy: setup.proxy,
    });
    let mut tasks = JoinSet::new();
    for (door, listener) in doors {
        tasks.spawn(Arc::clone(&worker).listen(listener, door));
    }
    tasks.spawn(Arc::clone(&worker).report_denials());
    let (idle, lifetime) = (Duration::from_secs(setup.idle_s), Duration::from_secs(setup.lifetime_s));
    tasks.spawn(Arc::clone(&worker).look_after(idle, lifetime));
    // The queue is empty: there is room.
    drop(worker.link.tell(FromWorker::Serving));

    let (bad_rule, mut bad_rules) = tokio::sync::mpsc::channel(1);
    let on_policy = |policy: Policy| {
        if let Err(error) = worker.follow(&policy) {
            // Full means that one is on its way already.
            drop(bad_rule.try_send(error));
        }
    };
    tokio::select! {
        read = link::read_frames(reader, &worker.link, on_policy) => Ok(read?),
        written = write_frames(writer, async || queue.recv().await) => Ok(written?),
        Some(error) = bad_rules.recv() => Err(error.into()),
        Some(_) = tasks.join_next() => Err(WorkerError::Stopped),
    }
}

/// As many as the descriptors suffice for that the host lets the worker have.
fn most_connections() -> usize {
    let has = worker::raise_descriptors(MOST_CONNECTIONS * 2 + OTHER_DESCRIPTORS);
    let most = (has.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(32, MOST_CONNECTIONS);
    usize::try_from(most).unwrap_or(32)
}

impl Worker {
    /// The policy in force.
    fn allowlist(&self) -> Allowlist {
        self.allowlist.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What can be done about a rule that is missing, or in the way.
    fn remedy(&self, rule: &str) -> String {
        self.remedies.read().unwrap_or_else(PoisonError::into_inner).next(rule)
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.own.contains(&address)
    }

    /// Another policy: what it does not let pass ends, also where another name keeps the address open.
    fn follow(&self, policy: &Policy) -> Result<(), RuleError> {
        let (allowlist, remedies) = (policy.allowlist()?, policy.remedies()?);
        *self.allowlist.write().unwrap_or_else(PoisonError::into_inner) = allowlist.clone();
        *self.remedies.write().unwrap_or_else(PoisonError::into_inner) = remedies;
        self.names.forget_all();
        self.roll.cut(|passage| {
            let (key, wire, ech) = (&passage.key, passage.wire, passage.ech);
            judge(&allowlist, Shown { name: &key.name, port: key.port, wire, ech }).is_ok()
        });
        Ok(())
    }

    async fn listen(self: Arc<Self>, listener: TcpListener, door: Door) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.receive(stream, from, door),
                // Out of descriptors or memory: what waits keeps its place in the queue.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn receive(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, door: Door) {
        match self.roll.room(self.agent_uid) {
            Room::Yes => {}
            // Only who is in a hurry looks whose it is: the rest is looked up once it is let in.
            Room::Little if !self.is_agents(&stream, from, door) => {}
            Room::Little | Room::No => {
                self.roll.count_denial();
                return relay::reset(&stream);
            }
        }
        let place = self.roll.enter();
        let id = place.id();
        let worker = Arc::clone(self);
        let task = match door {
            Door::Redirected => tokio::spawn(visit::visit(worker, stream, from, place)),
            Door::Explicit => tokio::spawn(explicit::visit(worker, stream, from, place)),
        };
        self.roll.carry(id, task.abort_handle());
    }

    fn is_agents(&self, stream: &TcpStream, from: SocketAddr, door: Door) -> bool {
        let to = match door {
            Door::Redirected => visit::original_destination(stream),
            Door::Explicit => stream.local_addr().ok(),
        };
        let owner = to.and_then(|to| self.owners.of(from, to));
        owner.is_none_or(|owner| owner.uid == self.agent_uid)
    }

    /// Notes a refusal with its owner, while the client waits: its socket may be gone afterwards. Where PID 1 is to look at
    /// the process too, the client waits for that.
    async fn denied(
        &self,
        client: &Client,
        name: Option<&DomainName>,
        why: &(dyn Display + Sync),
        rule: Option<String>,
    ) {
        self.roll.count_denial();
        let what = match name {
            Some(name) => format!("{name}:{}", client.to.port()),
            None => client.to.to_string(),
        };
        let looked = {
            let mut denials = self.unreported.denials();
            let looked = client.owner.filter(|owner| denials.may_wait(&what, owner.uid, Instant::now()));
            let looked = looked.and_then(|owner| {
                self.link.attribute(ClientDenial::one(&what, &why, Some(owner), rule.clone()))
            });
            if looked.is_none() {
                denials.add(&what, &why, client.owner, rule);
                self.unreported.added();
            }
            looked
        };
        if let Some(looked) = looked {
            wait(looked).await;
        }
    }

    /// An allowed name that could not be reached.
    fn failed(&self, error: &DialError) {
        self.roll.count_failure();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < FAILURES_TOLD) {
            return;
        }
        *told = Some(Instant::now());
        crate::report::event("gate", &crate::report::chain(error));
    }

    async fn report_denials(self: Arc<Self>) {
        let tell = |denial| self.link.tell(FromWorker::Denied(denial)).is_ok();
        self.unreported.report(tell).await;
    }

    async fn look_after(self: Arc<Self>, idle: Duration, lifetime: Duration) {
        let mut last = Totals::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.roll.sweep(idle, lifetime);
            loop {
                let uses = self.roll.take_uses(MAX_USES);
                let more = uses.len() == MAX_USES;
                if uses.is_empty() {
                    break;
                }
                if let Err(FromWorker::Used { uses }) = self.link.tell(FromWorker::Used { uses }) {
                    self.roll.put_back(uses);
                    break;
                }
                if !more {
                    break;
                }
            }
            let totals = self.roll.totals();
            if totals != last && self.link.tell(FromWorker::Totals(totals)).is_ok() {
                last = totals;
            }
        }
    }
}
