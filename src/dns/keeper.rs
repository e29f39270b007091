//! PID 1's side of the worker `dns`: holds its sockets, starts it again when it dies, and answers its requests.
//!
//! The listening sockets belong to PID 1, so a question that arrives while no worker lives waits in the socket's
//! queue for the next one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::last_answers::LastAnswers;
use super::name_server::NameServer;
use super::protocol::{
    Admitted, DnsDenial, FromWorker, Health, MAX_FROM_WORKER, MAX_TO_WORKER, Policy, Setup, SocketKind,
    ToWorker,
};
use crate::allowlist::{Allowlist, DomainName};
use crate::attribution::Attributor;
use crate::channel::{self, ChannelError};
use crate::firewall::ruleset::Family;
use crate::firewall::{Admission, Firewall};
use crate::report::harmless;
use crate::status::Board;
use crate::status::report::{Denial, FailingName, Upstream};
use crate::supervisor::backoff::Backoff;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Child, Launch, Spawner, Stream};

/// Where the box's resolver listens. Not 127.0.0.1: that is the agent's to use.
pub const LISTEN_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
pub const PORT: u16 = 53;

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot make the worker's channel")]
    Channel(#[source] std::io::Error),
    #[error("cannot start the worker")]
    Spawn(#[source] crate::supervisor::SupervisorError),
    #[error("cannot hand the sockets to the worker")]
    Setup(#[source] ChannelError),
}

/// The sockets on which questions arrive.
#[derive(Debug)]
pub struct Sockets {
    kinds: Vec<SocketKind>,
    fds: Vec<OwnedFd>,
    /// Whether ::1 exists here.
    pub v6: bool,
}

impl Sockets {
    /// Opens 127.0.0.53 and, where the host has it, ::1; UDP and TCP.
    pub fn open() -> Result<Self, KeeperError> {
        let mut sockets = Self { kinds: Vec::new(), fds: Vec::new(), v6: false };
        sockets.listen(SocketAddr::from((LISTEN_V4, PORT)))?;
        match sockets.listen(SocketAddr::from((Ipv6Addr::LOCALHOST, PORT))) {
            Ok(()) => sockets.v6 = true,
            Err(KeeperError::Listen { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT)
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(sockets)
    }

    fn listen(&mut self, address: SocketAddr) -> Result<(), KeeperError> {
        let failed = |source| KeeperError::Listen { address, source };
        let udp = UdpSocket::bind(address).map_err(failed)?;
        let tcp = TcpListener::bind(address).map_err(failed)?;
        widen(&udp).map_err(failed)?;
        udp.set_nonblocking(true).and_then(|()| tcp.set_nonblocking(true)).map_err(failed)?;
        self.kinds.extend([SocketKind::Udp, SocketKind::Tcp]);
        self.fds.extend([OwnedFd::from(udp), OwnedFd::from(tcp)]);
        Ok(())
    }
}

/// Questions wait here while the worker has its turn elsewhere, or is away: so many that a flood of some ten thousand a
/// second meets a short queue and not a closed door. The kernel doubles it (socket(7)).
const RECEIVE_BUFFER: usize = 2 << 20;

/// Makes room for questions; without the right to go beyond `net.core.rmem_max` as much as that allows.
fn widen(socket: &UdpSocket) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER))
        .map_err(Into::into)
}

/// What the worker needs beside sockets and policy.
#[derive(Debug, Clone)]
pub struct Plan {
    pub identity: Identity,
    pub upstreams: Vec<NameServer>,
    /// Certificates of authorities (PEM), where an upstream is asked by TLS.
    pub roots: Option<String>,
    pub refresh: Duration,
    /// Whether names may have IPv6 addresses here.
    pub ipv6: bool,
    /// Whether names that the upstreams don't know are reached through a proxy.
    pub proxied: bool,
    /// Families that this host lets nobody open: names have no addresses of them, whatever the network brings.
    pub closed: Vec<Family>,
    /// Who looks whose a refused client is.
    pub attributor: Attributor,
}

/// The policy in force.
#[derive(Debug, Clone)]
pub struct Standing {
    pub generation: u64,
    pub allowlist: Allowlist,
    /// Whether the agent can ask for what is refused.
    pub requests: bool,
}

impl Standing {
    /// As text, which lives no longer than it takes to tell it.
    pub(crate) fn for_worker(&self) -> Policy {
        let rules = self.allowlist.rules().iter().map(ToString::to_string).collect();
        Policy { generation: self.generation, rules, requests: self.requests }
    }
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
    firewall: Firewall,
    policy: Mutex<Standing>,
    /// The living worker's channel; none while it is away.
    link: Mutex<Option<UnixStream>>,
    serving: Mutex<Option<Instant>>,
    ipv6: AtomicBool,
    closed: Vec<Family>,
    /// For the next worker, should this one die while the upstreams are down.
    answers: Mutex<LastAnswers>,
    /// Refusals whose client waits until somebody has looked who it is.
    waiting: SyncSender<DnsDenial>,
}

/// Refused clients that wait at a time; one more gets its answer without a look.
const MAX_WAITING: usize = 32;

/// PID 1 and the worker are on one machine: a worker that does not take its setup in this time is broken.
const SETUP_LIMIT: Duration = Duration::from_secs(5);
/// A worker that dies is back within a second; one that keeps dying is given up to half a minute.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));

impl Keeper {
    /// Starts the worker and keeps it. The receiver hears when all exact names have been answered once.
    pub fn start(
        plan: Plan,
        sockets: Sockets,
        policy: Standing,
        spawner: Spawner,
        board: Arc<Board>,
        firewall: Firewall,
    ) -> Result<(Self, Receiver<u64>), KeeperError> {
        let (waiting, waiters) = mpsc::sync_channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            ipv6: AtomicBool::new(plan.ipv6),
            closed: plan.closed.clone(),
            plan,
            sockets,
            spawner,
            board,
            firewall,
            policy: Mutex::new(policy),
            link: Mutex::new(None),
            serving: Mutex::new(None),
            answers: Mutex::default(),
            waiting,
        });
        let (primed, receiver) = mpsc::sync_channel(4);
        let first = shared.begin()?;
        let keep = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("dns-keeper".into())
            .spawn(move || keep.keep(first, &primed))
            .map_err(KeeperError::Channel)?;
        let look = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("dns-who".into())
            .spawn(move || look.attribute(&waiters))
            .map_err(KeeperError::Channel)?;
        Ok((Self { shared }, receiver))
    }

    /// Gives the worker another policy; one that is away gets it when it comes back.
    pub fn policy(&self, policy: Standing) {
        let frame = ToWorker::Policy(policy.for_worker());
        *lock(&self.shared.policy) = policy;
        self.shared.send(&frame);
    }

    /// Time was lost: every exact name is asked again now. A worker that is away does so when it comes back.
    /// `ipv6`: whether names may have IPv6 addresses from now on, where that is known anew.
    pub fn refresh(&self, ipv6: Option<bool>) {
        if let Some(ipv6) = ipv6 {
            self.shared.ipv6.store(ipv6, Ordering::Relaxed);
        }
        let ipv6 = self.shared.ipv6();
        self.shared.send(&ToWorker::Refresh { ipv6 });
    }

    /// Whether the worker serves now.
    pub fn verify(&self) -> Result<String, String> {
        match *lock(&self.shared.serving) {
            Some(since) => Ok(format!("worker up for {} s", since.elapsed().as_secs())),
            None => Err("the worker is away; names do not resolve and nothing is opened".to_owned()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Whether names may have IPv6 addresses now.
    fn ipv6(&self) -> bool {
        self.ipv6.load(Ordering::Relaxed) && !self.closed.contains(&Family::V6)
    }

    fn begin(&self) -> Result<(Child, UnixStream), KeeperError> {
        let (ours, theirs) = UnixStream::pair().map_err(KeeperError::Channel)?;
        let mut launch = Launch::own("dns", Some(self.plan.identity.clone()));
        launch.stdin = Stream::Fd(OwnedFd::from(theirs));
        launch.stderr = Stream::events("dns").map_err(KeeperError::Channel)?;
        let child = self.spawner.spawn(launch).map_err(KeeperError::Spawn)?;
        ours.set_write_timeout(Some(SETUP_LIMIT)).map_err(KeeperError::Channel)?;
        // Held until the link is there: a policy that comes meanwhile waits, and is sent after the setup.
        let mut link = lock(&self.link);
        let setup = Setup {
            sockets: self.sockets.kinds.clone(),
            upstreams: self.plan.upstreams.clone(),
            roots: self.plan.roots.clone(),
            policy: lock(&self.policy).for_worker(),
            refresh_s: self.plan.refresh.as_secs().max(1),
            ipv4: !self.closed.contains(&Family::V4),
            ipv6: self.ipv6(),
            proxied: self.plan.proxied,
            known: lock(&self.answers).list(Instant::now()),
        };
        let fds: Vec<BorrowedFd<'_>> = self.sockets.fds.iter().map(AsFd::as_fd).collect();
        channel::send_with_sockets(&ours, &ToWorker::Setup(setup), &fds, MAX_TO_WORKER)
            .map_err(KeeperError::Setup)?;
        *link = Some(ours.try_clone().map_err(KeeperError::Channel)?);
        drop(link);
        let pid = child.pid();
        self.board.worker("dns", |worker| worker.pid = Some(pid));
        Ok((child, ours))
    }

    fn keep(&self, first: (Child, UnixStream), primed: &SyncSender<u64>) {
        let mut backoff = BACKOFF;
        let mut life = Some(first);
        loop {
            let started = Instant::now();
            if let Some((mut child, stream)) = life.take() {
                self.converse(&stream, primed);
                *lock(&self.link) = None;
                *lock(&self.serving) = None;
                // Its channel is closed or broken: whatever it still does, it serves nobody.
                child.signal(nix::sys::signal::Signal::SIGKILL);
                let end = child.wait_for(SETUP_LIMIT);
                let how = end.map_or_else(|| "did not end".to_owned(), |exit| exit.to_string());
                crate::report::event("dns", &format!("the worker ended ({how}); starting it again"));
            }
            self.board.worker("dns", |worker| {
                worker.pid = None;
                worker.restarts += 1;
            });
            crate::supervisor::backoff::pause(backoff.after(started.elapsed()));
            match self.begin() {
                Ok(next) => life = Some(next),
                Err(KeeperError::Spawn(crate::supervisor::SupervisorError::Stopping)) => return,
                Err(error) => crate::report::event("dns", &crate::report::chain(&error)),
            }
        }
    }

    /// Serves one life of the worker; returns when its channel closes or it says something impossible.
    fn converse(&self, stream: &UnixStream, primed: &SyncSender<u64>) {
        loop {
            let message = match channel::receive(stream, MAX_FROM_WORKER) {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(error) => {
                    return crate::report::event("dns", &crate::report::chain(&error));
                }
            };
            match message {
                FromWorker::Serving => *lock(&self.serving) = Some(Instant::now()),
                FromWorker::Learned(learned) => {
                    self.resolved(&learned.name.to_string(), None);
                    let (id, name, ttl_s) = (learned.id, learned.name.clone(), learned.ttl_s);
                    let stale = learned.stale;
                    let Admission { open: addresses, forgotten } = self.firewall.admit(learned);
                    if !stale {
                        lock(&self.answers).note(name, &addresses, ttl_s, Instant::now());
                    }
                    // First what is closed: no moment in which the worker answers it.
                    if !forgotten.is_empty() {
                        self.send(&ToWorker::Forget { names: forgotten });
                    }
                    self.send(&ToWorker::Admitted(Admitted { id, addresses }));
                }
                FromWorker::Primed { generation } => drop(primed.try_send(generation)),
                FromWorker::Failed { name, cause } => self.resolved(&name.to_string(), Some(&cause)),
                FromWorker::Denied(denial) => self.denied(denial),
                FromWorker::Health(health) => self.health(&health),
            }
        }
    }

    fn send(&self, message: &ToWorker) {
        let mut link = lock(&self.link);
        if let Some(stream) = link.as_mut()
            && let Err(error) = channel::send(stream, message, MAX_TO_WORKER)
        {
            // It can't be told what is open, so it must not answer: a new one begins with the whole truth.
            crate::report::event("dns", &crate::report::chain(&error));
            drop(stream.shutdown(std::net::Shutdown::Both));
            *link = None;
        }
    }

    fn resolved(&self, name: &str, failure: Option<&str>) {
        self.board.update(|report| {
            report.dns.failing.retain(|failing| failing.name != name);
            if let Some(cause) = failure
                && report.dns.failing.len() < MAX_FAILING
            {
                let cause = harmless(cause, 200);
                report.dns.failing.push(FailingName { name: name.to_owned(), cause });
            }
        });
    }

    /// A refusal whose client waits is looked into by the thread for that: this one answers admissions.
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
        if denial.what.trim_end_matches('.') == crate::readiness::probe::DENIED_NAME {
            return;
        }
        let what = harmless(&denial.what, 260);
        self.board.deny(Denial {
            time: crate::report::time(SystemTime::now()),
            layer: "dns".to_owned(),
            allow: remedy(&denial.what),
            what,
            uid: denial.uid,
            process: process.map(|process| harmless(&process, 100)),
            reason: harmless(&denial.reason, 200),
            count: denial.count,
        });
    }

    fn health(&self, health: &Health) {
        self.board.update(|report| {
            (report.dns.queries, report.dns.allowed, report.dns.denied) =
                (health.queries, health.allowed, health.denied);
            report.dns.upstreams = health
                .upstreams
                .iter()
                .map(|upstream| Upstream {
                    address: upstream.server.to_string(),
                    healthy: upstream.healthy,
                    note: upstream.note.as_deref().map(|note| harmless(note, 200)),
                })
                .collect();
        });
    }
}

/// What would allow a name. A label can hold anything, `$(…)` too, and an operator may paste the line into a root shell:
/// only what is a host's name is part of a command.
fn remedy(what: &str) -> String {
    match DomainName::parse(what) {
        Ok(name) => format!("innkeeper allow {name}"),
        Err(_) if what == super::denials::OTHERS => String::new(),
        Err(_) => "nothing: this is no name of a host".to_owned(),
    }
}

/// Failing names kept for `status`.
const MAX_FAILING: usize = 200;

#[cfg(test)]
mod tests {
    use super::remedy;

    #[test]
    fn t78_no_name_of_the_agents_becomes_a_command_of_the_operators() {
        assert_eq!(remedy("Evil.example."), "innkeeper allow evil.example");
        for hostile in [
            "$(id).evil.example",
            "a;id",
            "`id`.test",
            "a b.test",
            "--for.test",
            "a'b.test",
            "\n",
            "a\u{202e}.test",
        ] {
            assert_eq!(remedy(hostile), "nothing: this is no name of a host", "{hostile}");
        }
        assert_eq!(remedy(crate::dns::denials::OTHERS), "");
    }
}
