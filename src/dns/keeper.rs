//! PID 1's side of the worker `dns`: holds its sockets, tells it the policy, and answers its requests.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use super::last_answers::LastAnswers;
use super::name_server::NameServer;
use super::protocol::{Admitted, FromWorker, Health, Learned, Setup, SocketKind, ToWorker};
use crate::allowlist::DomainName;
use crate::attribution::Attributor;
use crate::firewall::ruleset::Family;
use crate::firewall::{Admission, Firewall};
use crate::report::harmless;
use crate::status::Board;
use crate::status::report::{FailingName, Upstream};
use crate::worker::denials::OTHERS;
use crate::worker::keeper::{First, Keeper as Kept, KeeperError, Means, Work};
use crate::worker::lock;
use crate::worker::policy::Standing;
use crate::worker::protocol::ClientDenial;
use crate::worker::sockets::{Held, ListenError, if_there};
use crate::worker::who::{Refuses, Shown, Waiting};

/// Where the box's resolver listens. Not 127.0.0.1: that is the agent's to use.
pub const LISTEN_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
pub const PORT: u16 = 53;

/// The sockets on which questions arrive.
#[derive(Debug)]
pub struct Sockets {
    held: Held<SocketKind>,
    /// Whether ::1 exists here.
    pub v6: bool,
}

impl Sockets {
    /// Opens 127.0.0.53 and, where the host has it, ::1; UDP and TCP.
    pub fn open() -> Result<Self, ListenError> {
        let mut sockets = Self { held: Held::default(), v6: false };
        sockets.listen(SocketAddr::from((LISTEN_V4, PORT)))?;
        sockets.v6 = if_there(sockets.listen(SocketAddr::from((Ipv6Addr::LOCALHOST, PORT))))?;
        Ok(sockets)
    }

    fn listen(&mut self, address: SocketAddr) -> Result<(), ListenError> {
        let failed = |source| ListenError { address, source };
        let udp = UdpSocket::bind(address).map_err(failed)?;
        let tcp = TcpListener::bind(address).map_err(failed)?;
        widen(&udp).map_err(failed)?;
        udp.set_nonblocking(true).and_then(|()| tcp.set_nonblocking(true)).map_err(failed)?;
        self.held.push(SocketKind::Udp, udp);
        self.held.push(SocketKind::Tcp, tcp);
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

/// The worker, kept alive.
#[derive(Debug, Clone)]
pub struct Keeper {
    kept: Kept<Resolving>,
}

#[derive(Debug)]
struct Resolving {
    plan: Plan,
    sockets: Sockets,
    firewall: Firewall,
    policy: Mutex<Standing>,
    ipv6: AtomicBool,
    /// For the next worker, should this one die while the upstreams are down.
    answers: Mutex<LastAnswers>,
    waiting: Waiting,
}

impl Keeper {
    /// Starts the worker and keeps it. The receiver hears when all exact names have been answered once.
    pub fn start(
        plan: Plan,
        sockets: Sockets,
        policy: Standing,
        firewall: Firewall,
        means: Means,
    ) -> Result<(Self, Receiver<u64>), KeeperError> {
        let (waiting, waiters) = Waiting::new();
        let attributor = plan.attributor.clone();
        let work = Resolving {
            ipv6: AtomicBool::new(plan.ipv6),
            plan,
            sockets,
            firewall,
            policy: Mutex::new(policy),
            answers: Mutex::default(),
            waiting,
        };
        let (kept, primed) = Kept::start(work, means)?;
        kept.look(waiters, attributor)?;
        Ok((Self { kept }, primed))
    }

    /// Gives the worker another policy; one that is away gets it when it comes back.
    pub fn policy(&self, policy: Standing) {
        let frame = ToWorker::Policy(policy.for_worker());
        *lock(&self.kept.work().policy) = policy;
        self.kept.send(&frame);
    }

    /// Time was lost: every exact name is asked again now. A worker that is away does so when it comes back.
    /// `ipv6`: whether names may have IPv6 addresses from now on, where that is known anew.
    pub fn refresh(&self, ipv6: Option<bool>) {
        let work = self.kept.work();
        if let Some(ipv6) = ipv6 {
            work.ipv6.store(ipv6, Ordering::Relaxed);
        }
        self.kept.send(&ToWorker::Refresh { ipv6: work.ipv6() });
    }

    /// Whether the worker serves now.
    pub fn verify(&self) -> Result<String, String> {
        self.kept.verify("names do not resolve and nothing is opened")
    }
}

impl Work for Resolving {
    type Order = ToWorker;
    type News = FromWorker;
    /// A generation of the policy whose exact names were all answered once.
    type Ready = u64;

    fn first(&self) -> First<'_, ToWorker> {
        let setup = Setup {
            sockets: self.sockets.held.kinds(),
            upstreams: self.plan.upstreams.clone(),
            roots: self.plan.roots.clone(),
            policy: lock(&self.policy).for_worker(),
            refresh_s: self.plan.refresh.as_secs().max(1),
            ipv4: !self.plan.closed.contains(&Family::V4),
            ipv6: self.ipv6(),
            proxied: self.plan.proxied,
            known: lock(&self.answers).list(Instant::now()),
        };
        First { frame: ToWorker::Setup(setup), sockets: self.sockets.held.fds() }
    }

    fn hear(&self, news: FromWorker, keeper: &Kept<Self>, primed: &SyncSender<u64>) {
        let board = keeper.board();
        match news {
            FromWorker::Serving => keeper.serves(),
            FromWorker::Pong => {}
            FromWorker::Learned(learned) => self.learned(learned, keeper),
            FromWorker::Primed { generation } => drop(primed.try_send(generation)),
            FromWorker::Failed { name, cause } => resolved(board, &name.to_string(), Some(&cause)),
            FromWorker::Denied(denial) => keeper.denied(denial),
            FromWorker::Health(health) => show(board, &health),
        }
    }
}

impl Refuses for Resolving {
    const LENGTHS: (usize, usize) = (260, 200);

    fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn shown(&self, denial: &ClientDenial) -> Option<Shown> {
        let own = denial.what.trim_end_matches('.') == crate::readiness::probe::DENIED_NAME;
        (!own).then(|| Shown { count: denial.count, allow: remedy(&denial.what) })
    }
}

impl Resolving {
    /// Whether names may have IPv6 addresses now.
    fn ipv6(&self) -> bool {
        self.ipv6.load(Ordering::Relaxed) && !self.plan.closed.contains(&Family::V6)
    }

    fn learned(&self, learned: Learned, keeper: &Kept<Self>) {
        resolved(keeper.board(), &learned.name.to_string(), None);
        let (id, name, ttl_s) = (learned.id, learned.name.clone(), learned.ttl_s);
        let stale = learned.stale;
        let Admission { open: addresses, forgotten } = self.firewall.admit(learned);
        if !stale {
            lock(&self.answers).note(name, &addresses, ttl_s, Instant::now());
        }
        // First what is closed: no moment in which the worker answers it.
        if !forgotten.is_empty() {
            keeper.send(&ToWorker::Forget { names: forgotten });
        }
        keeper.send(&ToWorker::Admitted(Admitted { id, addresses }));
    }
}

fn resolved(board: &Board, name: &str, failure: Option<&str>) {
    board.update(|report| {
        report.dns.failing.retain(|failing| failing.name != name);
        if let Some(cause) = failure
            && report.dns.failing.len() < MAX_FAILING
        {
            let cause = harmless(cause, 200);
            report.dns.failing.push(FailingName { name: name.to_owned(), cause });
        }
    });
}

fn show(board: &Board, health: &Health) {
    board.update(|report| {
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

/// What would allow a name. A label can hold anything, `$(…)` too, and an operator may paste the line into a root shell:
/// only what is a host's name is part of a command.
fn remedy(what: &str) -> String {
    match DomainName::parse(what) {
        Ok(name) => format!("innkeeper allow {name}"),
        Err(_) if what == OTHERS => String::new(),
        Err(_) => "nothing: this is no name of a host".to_owned(),
    }
}

/// Failing names kept for `status`.
const MAX_FAILING: usize = 200;

#[cfg(test)]
mod tests {
    use super::{OTHERS, remedy};

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
        assert_eq!(remedy(OTHERS), "");
    }
}
