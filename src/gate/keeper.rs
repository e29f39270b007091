//! PID 1's side of the worker `gate`: holds its sockets, tells it the policy, and writes down what it tells.
//!
//! A connection that comes while no worker lives waits in the socket's queue for the next one. Nobody else may open connections on these ports meanwhile: they are closed, not open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::protocol::{Door, FromWorker, MAX_USES, Setup, ToWorker, Totals, Used};
use super::upstream::Proxy;
use crate::allowlist::{DomainPattern, Origin, Subject, parse_rule};
use crate::attribution::Attributor;
use crate::audit::{self, Use};
use crate::dns::keeper::{LISTEN_V4, PORT as DNS_PORT};
use crate::policy::remedy::command;
use crate::status::Board;
use crate::status::report::Traffic;
use crate::traffic::table::Table;
use crate::worker::keeper::{First, Keeper as Kept, KeeperError, Means, Work};
use crate::worker::lock;
use crate::worker::policy::Standing;
use crate::worker::protocol::ClientDenial;
use crate::worker::sockets::{Held, ListenError, if_there};
use crate::worker::who::{Refuses, Shown, Waiting};

/// Where the gate listens: beside the resolver, on a port that no program of the agent's has in mind.
pub const LISTEN: SocketAddrV4 = SocketAddrV4::new(LISTEN_V4, PORT);
const PORT: u16 = 11_443;
/// Where it is a proxy, on hosts that can't redirect: the port that proxies have had since Squid.
pub const PROXY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3128);
/// Connections that wait for the worker; the kernel caps it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// The sockets on which redirected connections arrive.
#[derive(Debug)]
pub struct Sockets {
    held: Held<Door>,
    pub v4: SocketAddrV4,
    /// None where the host has no ::1.
    pub v6: Option<SocketAddrV6>,
}

impl Sockets {
    /// Opens 127.0.0.53 and, where the host has it, ::1.
    pub fn open() -> Result<Self, ListenError> {
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, PORT, 0, 0);
        let mut sockets = Self { held: Held::default(), v4: LISTEN, v6: None };
        sockets.listen(LISTEN.into(), Door::Redirected)?;
        sockets.v6 = if_there(sockets.listen(v6.into(), Door::Redirected))?.then_some(v6);
        Ok(sockets)
    }

    /// Where nothing is redirected clients are told of this address instead, and there is no other: who comes to the
    /// sockets of before would be somebody whose connection nobody has redirected.
    pub fn open_proxy(&mut self) -> Result<(), ListenError> {
        self.held = Held::default();
        self.listen(PROXY.into(), Door::Explicit)
    }

    fn listen(&mut self, address: SocketAddr, door: Door) -> Result<(), ListenError> {
        let listener = listener(address, door).map_err(|source| ListenError { address, source })?;
        self.held.push(door, listener);
        Ok(())
    }
}

/// What is set here every accepted connection has from the start (tcp(7)).
fn listener(address: SocketAddr, door: Door) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    if door == Door::Redirected {
        // A hello is acknowledged by its answer: a packet less. Who has more to say first is told at once (gate::visit).
        socket.set_tcp_quickack(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What the worker needs beside sockets and policy.
#[derive(Debug, Clone)]
pub struct Plan {
    pub agent_uid: u32,
    pub proxy: Option<Proxy>,
    pub idle: Duration,
    pub lifetime: Duration,
    /// Who looks whose a refused client is.
    pub attributor: Attributor,
}

/// What PID 1 knows of names, for the log.
pub trait RuleBook: Send + Sync + std::fmt::Debug {
    /// The rule by which a name is allowed on a port, and where it is written.
    fn rule_for(&self, name: &str, port: u16) -> Option<String>;
}

/// The worker, kept alive.
#[derive(Debug, Clone)]
pub struct Keeper {
    kept: Kept<Gating>,
}

#[derive(Debug)]
struct Gating {
    plan: Plan,
    sockets: Sockets,
    standing: Mutex<Standing>,
    rules: Arc<dyn RuleBook>,
    counted: Mutex<Counted>,
    announced: Mutex<Announced>,
    waiting: Waiting,
}

/// Refusals that the self-attack is about to cause, each as often as it is tried.
#[derive(Debug, Default)]
struct Announced {
    whats: Vec<String>,
    at: Option<Instant>,
}

/// An attack is over by then.
const ATTACK_LIMIT: Duration = Duration::from_secs(10);

impl Announced {
    /// How many of these refusals are somebody else's.
    fn left(&mut self, what: &str, mut count: u64, now: Instant) -> u64 {
        let recent = self.at.is_some_and(|at| now.saturating_duration_since(at) < ATTACK_LIMIT);
        while count > 0
            && recent
            && let Some(at) = self.whats.iter().position(|known| known == what)
        {
            self.whats.swap_remove(at);
            count -= 1;
        }
        count
    }
}

/// Over all lives of the worker.
#[derive(Debug, Default)]
struct Counted {
    /// Of the lives that are over.
    before: Totals,
    now: Totals,
    table: Table,
}

impl Keeper {
    /// Starts the worker and keeps it. The receiver hears when it serves.
    pub fn start(
        plan: Plan,
        sockets: Sockets,
        standing: Standing,
        rules: Arc<dyn RuleBook>,
        means: Means,
    ) -> Result<(Self, Receiver<()>), KeeperError> {
        let (waiting, waiters) = Waiting::new();
        let attributor = plan.attributor.clone();
        let work = Gating {
            plan,
            sockets,
            standing: Mutex::new(standing),
            rules,
            counted: Mutex::default(),
            announced: Mutex::default(),
            waiting,
        };
        let (kept, served) = Kept::start(work, means)?;
        kept.look(waiters, attributor)?;
        Ok((Self { kept }, served))
    }

    /// Gives the worker another policy; one that is away gets it when it comes back.
    pub fn policy(&self, standing: Standing) {
        let frame = ToWorker::Policy(standing.for_worker());
        *lock(&self.kept.work().standing) = standing;
        self.kept.send(&frame);
    }

    /// From now on one refusal of each of these is Innkeeper's own.
    pub fn announce(&self, whats: Vec<String>) {
        *lock(&self.kept.work().announced) = Announced { whats, at: Some(Instant::now()) };
    }

    /// Whether the worker serves now.
    pub fn verify(&self) -> Result<String, String> {
        self.kept.verify("gated ports are closed")
    }

    /// What was carried so far, by name and port, the most first.
    #[must_use]
    pub fn traffic(&self) -> Vec<Traffic> {
        lock(&self.kept.work().counted).table.rows()
    }
}

impl Work for Gating {
    type Order = ToWorker;
    type News = FromWorker;
    type Ready = ();
    const AFTER: &'static str = ": its connections are lost, and its ports closed until it is back";

    fn first(&self) -> First<'_, ToWorker> {
        let setup = Setup {
            sockets: self.sockets.held.kinds(),
            resolver: SocketAddr::new(IpAddr::V4(LISTEN_V4), DNS_PORT),
            policy: lock(&self.standing).for_worker(),
            agent_uid: self.plan.agent_uid,
            proxy: self.plan.proxy.clone(),
            idle_s: self.plan.idle.as_secs().max(1),
            lifetime_s: self.plan.lifetime.as_secs().max(1),
        };
        First { frame: ToWorker::Setup(setup), sockets: self.sockets.held.fds() }
    }

    fn hear(&self, news: FromWorker, keeper: &Kept<Self>, served: &SyncSender<()>) {
        match news {
            FromWorker::Serving => {
                keeper.serves();
                served.try_send(()).ok();
            }
            FromWorker::Pong => {}
            FromWorker::Denied(denial) => keeper.denied(denial),
            FromWorker::Totals(totals) => self.totals(totals, keeper.board()),
            FromWorker::Used { uses } => uses.into_iter().take(MAX_USES).for_each(|used| self.used(used)),
        }
    }

    fn ended(&self, keeper: &Kept<Self>) {
        lock(&self.counted).close();
        self.totals(Totals::default(), keeper.board());
    }
}

impl Refuses for Gating {
    const LENGTHS: (usize, usize) = (280, 300);

    fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn shown(&self, denial: &ClientDenial) -> Option<Shown> {
        let count = lock(&self.announced).left(&denial.what, denial.count, Instant::now());
        (count > 0).then(|| Shown { count, allow: remedy(denial.rule.as_deref()) })
    }
}

impl Gating {
    fn totals(&self, totals: Totals, board: &Board) {
        let mut counted = lock(&self.counted);
        counted.now = totals;
        let sum = counted.sum();
        drop(counted);
        board.update(|report| {
            let gate = &mut report.gate;
            (gate.connections, gate.denied, gate.failed) = (sum.connections, sum.denied, sum.failed);
            (gate.open, gate.bytes_out, gate.bytes_in) = (sum.open, sum.bytes_out, sum.bytes_in);
        });
    }

    fn used(&self, used: Used) {
        let Used { name, address, port, uid, count, bytes_out, bytes_in } = used;
        lock(&self.counted).table.carried(name.as_str(), port, count, bytes_out, bytes_in);
        let now = crate::report::now();
        audit::used(&Use {
            rule: self.rules.rule_for(name.as_str(), port),
            name: name.to_string(),
            also: Vec::new(),
            address: address.to_string(),
            port,
            uid,
            first: now.clone(),
            last: now,
            count,
            bytes_out: Some(bytes_out),
            bytes_in: Some(bytes_in),
        });
    }
}

/// What would let it pass. The operator may paste the line into a root shell: it is what we read of the worker's word as
/// a rule, written by us.
fn remedy(rule: Option<&str>) -> String {
    let rule = rule.and_then(|rule| parse_rule(rule, Origin::Operator).ok());
    // What the gate can ask for is one name on one port, and what is spoken there.
    let rule = rule.filter(|rule| {
        let exact = matches!(rule.pattern, DomainPattern::Exact(_)) && rule.ports.len() == 1;
        rule.deny || (exact && !rule.options.private && rule.options.by == Subject::Agent)
    });
    match rule {
        Some(rule) => command(&rule),
        None => "nothing: no rule is missing, the reason says what is wrong".to_owned(),
    }
}

impl Counted {
    fn sum(&self) -> Totals {
        let Self { before, now, .. } = self;
        Totals {
            connections: before.connections.saturating_add(now.connections),
            denied: before.denied.saturating_add(now.denied),
            failed: before.failed.saturating_add(now.failed),
            open: now.open,
            bytes_out: before.bytes_out.saturating_add(now.bytes_out),
            bytes_in: before.bytes_in.saturating_add(now.bytes_in),
        }
    }

    /// A life of the worker is over.
    fn close(&mut self) {
        self.before = Totals { open: 0, ..self.sum() };
        self.now = Totals::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{ATTACK_LIMIT, Announced, remedy};
    use std::time::Instant;

    #[test]
    fn only_so_many_refusals_as_were_announced_are_our_own() {
        let now = Instant::now();
        let whats = vec!["a.test:443".to_owned(), "a.test:443".to_owned(), "192.0.2.1:80".to_owned()];
        let mut announced = Announced { whats, at: Some(now) };
        assert_eq!(announced.left("a.test:443", 5, now), 3);
        assert_eq!(announced.left("a.test:443", 1, now), 1);
        assert_eq!(announced.left("192.0.2.1:80", 1, now + ATTACK_LIMIT), 1, "too late");
        assert_eq!(announced.left("192.0.2.1:80", 1, now), 0);
    }

    #[test]
    fn t78_what_the_worker_says_becomes_a_command_only_as_a_rule() {
        assert_eq!(remedy(Some("evil.example:443")), "innkeeper allow evil.example");
        assert_eq!(remedy(Some("ok.test:443 ech")), "innkeeper allow 'ok.test ech'");
        for hostile in [
            "$(id).test:443",
            "ok.test; id",
            "a.test:443 '",
            "*.test",
            "a.test private",
            "a.test:1,2",
            "",
            "a.test\nb.test",
        ] {
            assert!(remedy(Some(hostile)).starts_with("nothing: "), "{hostile}");
        }
        assert_eq!(remedy(Some("!bad.test")), "innkeeper revoke '!bad.test'");
        assert!(remedy(None).starts_with("nothing: "));
    }
}
