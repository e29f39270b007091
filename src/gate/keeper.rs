//! PID 1's side of the worker `gate`: holds its sockets, starts it again when it dies, and writes down what it tells.
//!
//! The listening sockets belong to PID 1, so a connection that comes while no worker lives waits in the socket's queue for
//! the next one. Nobody else may open connections on these ports meanwhile: they are closed, not open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::protocol::{Door, FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, Setup, ToWorker, Totals, Used};
use super::upstream::Proxy;
use crate::allowlist::{DomainPattern, Origin, Subject, parse_rule};
use crate::attribution::Attributor;
use crate::audit::{self, Use};
use crate::channel::{self, ChannelError};
use crate::dns::keeper::{LISTEN_V4, PORT as DNS_PORT, Standing};
use crate::dns::protocol::DnsDenial;
use crate::report::harmless;
use crate::status::Board;
use crate::status::report::{Denial, Traffic};
use crate::supervisor::backoff::Backoff;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Child, Launch, Spawner, Stream, SupervisorError};
use crate::traffic::table::Table;

/// Where the gate listens: beside the resolver, on a port that no program of the agent's has in mind.
pub const LISTEN: SocketAddrV4 = SocketAddrV4::new(LISTEN_V4, PORT);
const PORT: u16 = 11_443;
/// Where it is a proxy, on hosts that can't redirect: the port that proxies have had since Squid.
pub const PROXY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3128);
/// Connections that wait for the worker; the kernel caps it (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot make the worker's channel")]
    Channel(#[source] std::io::Error),
    #[error("cannot start the worker")]
    Spawn(#[source] SupervisorError),
    #[error("cannot hand the sockets to the worker")]
    Setup(#[source] ChannelError),
}

/// The sockets on which redirected connections arrive.
#[derive(Debug)]
pub struct Sockets {
    doors: Vec<Door>,
    fds: Vec<OwnedFd>,
    pub v4: SocketAddrV4,
    /// None where the host has no ::1.
    pub v6: Option<SocketAddrV6>,
}

impl Sockets {
    /// Opens 127.0.0.53 and, where the host has it, ::1.
    pub fn open() -> Result<Self, KeeperError> {
        let v6 = SocketAddrV6::new(Ipv6Addr::LOCALHOST, PORT, 0, 0);
        let mut sockets = Self { doors: Vec::new(), fds: Vec::new(), v4: LISTEN, v6: None };
        sockets.listen(LISTEN.into(), Door::Redirected)?;
        match sockets.listen(v6.into(), Door::Redirected) {
            Ok(()) => sockets.v6 = Some(v6),
            Err(KeeperError::Listen { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT)
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(sockets)
    }

    /// Where nothing is redirected clients are told of this address instead, and there is no other: who comes to the
    /// sockets of before would be somebody whose connection nobody has redirected.
    pub fn open_proxy(&mut self) -> Result<(), KeeperError> {
        self.doors.clear();
        self.fds.clear();
        self.listen(PROXY.into(), Door::Explicit)
    }

    fn listen(&mut self, address: SocketAddr, door: Door) -> Result<(), KeeperError> {
        let listener = listener(address, door).map_err(|source| KeeperError::Listen { address, source })?;
        self.doors.push(door);
        self.fds.push(listener.into());
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
    pub identity: Identity,
    pub agent_uid: u32,
    pub proxy: Option<Proxy>,
    pub idle: Duration,
    pub lifetime: Duration,
    /// Who looks whose a refused client is.
    pub attributor: Attributor,
}

/// What PID 1 knows of names, for the log.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// The rule by which a name is allowed on a port, and where it is written.
    fn rule_for(&self, name: &str, port: u16) -> Option<String>;
}

/// The worker, kept alive.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    sockets: Sockets,
    spawner: Spawner,
    board: Arc<Board>,
    standing: Mutex<Standing>,
    rules: Arc<dyn Policy>,
    /// The living worker's channel; none while it is away.
    link: Mutex<Option<UnixStream>>,
    serving: Mutex<Option<Instant>>,
    counted: Mutex<Counted>,
    announced: Mutex<Announced>,
    /// Refusals whose client waits until somebody has looked who it is.
    waiting: SyncSender<DnsDenial>,
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

/// Refused clients that wait at a time; one more gets its answer without a look.
const MAX_WAITING: usize = 32;
/// A worker that does not take its setup in this time is broken.
const SETUP_LIMIT: Duration = Duration::from_secs(5);
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));

/// A worker and its channel.
type Life = (Child, UnixStream);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// Starts the worker and keeps it. The receiver hears when it serves.
    pub fn start(
        plan: Plan,
        sockets: Sockets,
        standing: Standing,
        rules: Arc<dyn Policy>,
        spawner: Spawner,
        board: Arc<Board>,
    ) -> Result<(Self, Receiver<()>), KeeperError> {
        let (waiting, waiters) = mpsc::sync_channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            plan,
            sockets,
            spawner,
            board,
            standing: Mutex::new(standing),
            rules,
            link: Mutex::new(None),
            serving: Mutex::new(None),
            counted: Mutex::default(),
            announced: Mutex::default(),
            waiting,
        });
        let (served, receiver) = mpsc::sync_channel(1);
        let first = shared.begin()?;
        let keep = Arc::clone(&shared);
        crate::supervisor::thread("gate-keeper", move || keep.keep(first, &served))
            .map_err(KeeperError::Channel)?;
        let look = Arc::clone(&shared);
        crate::supervisor::thread("gate-who", move || look.attribute(&waiters))
            .map_err(KeeperError::Channel)?;
        Ok((Self { shared }, receiver))
    }

    /// Gives the worker another policy; one that is away gets it when it comes back.
    pub fn policy(&self, standing: Standing) {
        let frame = ToWorker::Policy(standing.for_worker());
        *lock(&self.shared.standing) = standing;
        self.shared.send(&frame);
    }

    /// From now on one refusal of each of these is Innkeeper's own.
    pub fn announce(&self, whats: Vec<String>) {
        *lock(&self.shared.announced) = Announced { whats, at: Some(Instant::now()) };
    }

    /// Whether the worker serves now.
    pub fn verify(&self) -> Result<String, String> {
        match *lock(&self.shared.serving) {
            Some(since) => Ok(format!("worker up for {} s", since.elapsed().as_secs())),
            None => Err("the worker is away; gated ports are closed".to_owned()),
        }
    }

    /// What was carried so far, by name and port, the most first.
    #[must_use]
    pub fn traffic(&self) -> Vec<Traffic> {
        lock(&self.shared.counted).table.rows()
    }
}

impl Shared {
    fn begin(&self) -> Result<Life, KeeperError> {
        let (ours, theirs) = UnixStream::pair().map_err(KeeperError::Channel)?;
        let mut launch = Launch::own("gate", Some(self.plan.identity.clone()));
        launch.stdin = Stream::Fd(OwnedFd::from(theirs));
        launch.stderr = Stream::events("gate").map_err(KeeperError::Channel)?;
        let child = self.spawner.spawn(launch).map_err(KeeperError::Spawn)?;
        ours.set_write_timeout(Some(SETUP_LIMIT)).map_err(KeeperError::Channel)?;
        // Held until the link is there: a policy that comes meanwhile waits, and is sent after the setup.
        let mut link = lock(&self.link);
        let setup = Setup {
            sockets: self.sockets.doors.clone(),
            resolver: SocketAddr::new(IpAddr::V4(LISTEN_V4), DNS_PORT),
            policy: lock(&self.standing).for_worker(),
            agent_uid: self.plan.agent_uid,
            proxy: self.plan.proxy.clone(),
            idle_s: self.plan.idle.as_secs().max(1),
            lifetime_s: self.plan.lifetime.as_secs().max(1),
        };
        let fds: Vec<BorrowedFd<'_>> = self.sockets.fds.iter().map(AsFd::as_fd).collect();
        channel::send_with_sockets(&ours, &ToWorker::Setup(setup), &fds, MAX_TO_WORKER)
            .map_err(KeeperError::Setup)?;
        *link = Some(ours.try_clone().map_err(KeeperError::Channel)?);
        drop(link);
        let pid = child.pid();
        self.board.worker("gate", |worker| worker.pid = Some(pid));
        Ok((child, ours))
    }

    fn keep(&self, first: Life, served: &SyncSender<()>) {
        let mut backoff = BACKOFF;
        let mut life = Some(first);
        loop {
            let started = Instant::now();
            if let Some((mut child, stream)) = life.take() {
                self.converse(&stream, served);
                *lock(&self.link) = None;
                *lock(&self.serving) = None;
                lock(&self.counted).close();
                self.totals(Totals::default());
                // Its channel is closed or broken: nobody hears it any more, and two must not take the same connections.
                child.signal(nix::sys::signal::Signal::SIGKILL);
                let end = child.wait_for(SETUP_LIMIT);
                let how = end.map_or_else(|| "did not end".to_owned(), |exit| exit.to_string());
                let then = "its connections are lost, and its ports closed until it is back";
                crate::report::event("gate", &format!("the worker ended ({how}): {then}"));
            }
            self.board.worker("gate", |worker| {
                worker.pid = None;
                worker.restarts += 1;
            });
            crate::supervisor::backoff::pause(backoff.after(started.elapsed()));
            match self.begin() {
                Ok(next) => life = Some(next),
                Err(KeeperError::Spawn(SupervisorError::Stopping)) => return,
                Err(error) => crate::report::event("gate", &crate::report::chain(&error)),
            }
        }
    }

    /// Hears one life of the worker; returns when its channel closes or it says something impossible.
    fn converse(&self, stream: &UnixStream, served: &SyncSender<()>) {
        loop {
            let message = match channel::receive(stream, MAX_FROM_WORKER) {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(error) => return crate::report::event("gate", &crate::report::chain(&error)),
            };
            match message {
                FromWorker::Serving => {
                    *lock(&self.serving) = Some(Instant::now());
                    served.try_send(()).ok();
                }
                FromWorker::Denied(denial) => self.denied(denial),
                FromWorker::Totals(totals) => self.totals(totals),
                FromWorker::Used { uses } => uses.into_iter().for_each(|used| self.used(used)),
            }
        }
    }

    fn send(&self, message: &ToWorker) {
        let mut link = lock(&self.link);
        if let Some(stream) = link.as_mut()
            && let Err(error) = channel::send(stream, message, MAX_TO_WORKER)
        {
            // It can't be told what is allowed, so it must not judge: a new one begins with the whole truth.
            crate::report::event("gate", &crate::report::chain(&error));
            drop(stream.shutdown(std::net::Shutdown::Both));
            *link = None;
        }
    }

    fn totals(&self, totals: Totals) {
        let mut counted = lock(&self.counted);
        counted.now = totals;
        let sum = counted.sum();
        drop(counted);
        self.board.update(|report| {
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

    /// A refusal whose client waits is looked into by the thread for that.
    fn denied(&self, denial: DnsDenial) {
        let Some(id) = denial.id else { return self.note_denial(&denial, None) };
        if let Err(TrySendError::Full(denial) | TrySendError::Disconnected(denial)) =
            self.waiting.try_send(denial)
        {
            self.note_denial(&denial, None);
            self.send(&ToWorker::Attributed { id });
        }
    }

    /// Looks who waits, for ever.
    fn attribute(&self, waiters: &Receiver<DnsDenial>) {
        for denial in waiters {
            let process = denial.inode.and_then(|inode| self.plan.attributor.process(denial.uid, inode));
            self.note_denial(&denial, process);
            if let Some(id) = denial.id {
                self.send(&ToWorker::Attributed { id });
            }
        }
    }

    fn note_denial(&self, denial: &DnsDenial, process: Option<String>) {
        // Our own attack is no news to the operator.
        let count = lock(&self.announced).left(&denial.what, denial.count, Instant::now());
        if count == 0 {
            return;
        }
        self.board.deny(Denial {
            time: crate::report::time(SystemTime::now()),
            layer: "gate".to_owned(),
            what: harmless(&denial.what, 280),
            uid: denial.uid,
            process: process.map(|process| harmless(&process, 100)),
            reason: harmless(&denial.reason, 300),
            count,
            allow: remedy(denial.rule.as_deref()),
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
        Some(rule) if rule.deny => format!("innkeeper revoke '{rule}'"),
        Some(rule) => {
            let text = rule.to_string();
            if text.contains(' ') {
                format!("innkeeper allow '{text}'")
            } else {
                format!("innkeeper allow {text}")
            }
        }
        None => "nothing: a rule is about the name that a connection shows".to_owned(),
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
