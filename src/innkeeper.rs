//! The box as a whole, as PID 1's threads share it: what was configured, what runs, and what requests and signals do.

mod check;
mod condition;
mod names;
mod persist;
mod policy_changes;
mod refusals;
mod requests;
mod session;
mod task;
mod work;

use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::account::Accounts;
use crate::allowlist::Allowlist;
use crate::attribution::Attributor;
use crate::audit;
use crate::clock::{self, Jump, boottime};
use crate::config::{Config, Requests, Sources};
use crate::control::protocol::{Asker, Place, Request, Response};
use crate::control::server::Desk;
use crate::dns::keeper::Keeper;
use crate::filesystem::Sealed;
use crate::firewall::{EgressLocked, Firewall};
use crate::gate;
use crate::headless::Headless;
use crate::namespace::{Surroundings, changes};
use crate::policy::LivePolicy;
use crate::policy::remedy::Remedies;
use crate::report::event;
use crate::requests::Book;
use crate::resources;
use crate::seats::Seats;
use crate::session::Session;
use crate::status::report::{Phase, Report, SessionState, Step, StepState};
use crate::status::{Board, MAX_AGE, audience};
use crate::supervisor::everybody::kill_all;
use crate::supervisor::{Conduct, Spawner};
use crate::traffic::Meter;
use crate::watch;
use crate::worker::policy::Standing;

/// The box.
#[derive(Debug)]
pub struct Innkeeper {
    pub config: Config,
    sources: Sources,
    pub accounts: Accounts,
    /// What was in the network namespace before us.
    pub surroundings: Surroundings,
    board: Arc<Board>,
    pub spawner: Spawner,
    pub began: u64,
    policy: Mutex<LivePolicy>,
    /// What of it decides.
    allowlist: Mutex<Allowlist>,
    pub firewall: OnceLock<Firewall>,
    pub keeper: OnceLock<Keeper>,
    pub gate: OnceLock<gate::keeper::Keeper>,
    /// Where programs ask the gate, if the kernel sends nothing there.
    pub proxy: OnceLock<SocketAddrV4>,
    /// None where the kernel can't log packets.
    pub watch: OnceLock<watch::keeper::Keeper>,
    /// Finds the processes behind refused packets and questions.
    pub attributor: Attributor,
    pub session: OnceLock<Session>,
    /// Instead of a session, where the agent works without a terminal.
    pub headless: OnceLock<Headless>,
    /// That the box is ready, with what the task needs of it.
    pub ready: OnceLock<Ready>,
    /// What the operator brought after the boot.
    late: Mutex<task::Late>,
    /// One task at a time.
    starting: Mutex<()>,
    /// Who is in the box.
    pub seats: Arc<Seats>,
    /// What of the box is used up.
    pub resources: resources::Watcher,
    /// Counts octets by name; why not, where this kernel does not tell.
    pub meter: OnceLock<Result<Meter, String>>,
    /// The agent's process limit, counted once.
    pub processes: OnceLock<Option<u64>>,
    /// Whom the DNS worker asks.
    pub upstreams: OnceLock<Vec<SocketAddr>>,
    /// Why a family is closed for good: it can't be opened safely here.
    pub closed_ipv4: OnceLock<String>,
    pub closed_ipv6: OnceLock<String>,
    /// Why nothing filters IPv6, which the operator gave up.
    pub unfiltered_ipv6: OnceLock<String>,
    /// What /etc/resolv.conf was before it became ours.
    pub resolv_conf: OnceLock<Vec<u8>>,
    /// One change of policy at a time.
    changing: Mutex<()>,
    /// What the agent asked for.
    requests: Mutex<Book>,
    /// What the lint says of the policy in force.
    lint: Mutex<Vec<String>>,
    /// What conversations are called.
    names: Mutex<names::Names>,
    /// The work is saved by one at a time.
    saving: persist::Saving,
    /// RFC 3339: since when is recorded what the box does.
    since: String,
}

/// The proofs that the task needs.
#[derive(Debug)]
pub struct Ready {
    pub locked: EgressLocked,
    pub sealed: Sealed,
    /// For the thread that begins a late task.
    innkeeper: Weak<Innkeeper>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Innkeeper {
    #[must_use]
    pub fn new(
        mut config: Config,
        sources: Sources,
        accounts: Accounts,
        surroundings: Surroundings,
        board: Arc<Board>,
        spawner: Spawner,
        began: u64,
    ) -> Self {
        // From here on the sources serve reloads of the policy.
        let sources = Sources { env: sources.env.with_credentials(&config.secrets), ..sources };
        let rules = std::mem::take(&mut config.network.rules);
        let policy = LivePolicy::new(rules, config.network.ceiling.clone(), boottime());
        board.bounded_by(policy.ceiling().clone());
        let told = Arc::clone(&board);
        let innkeeper = Self {
            allowlist: Mutex::new(Allowlist::new(policy.rules())),
            policy: Mutex::new(policy),
            attributor: Attributor::new(accounts.agent.uid, accounts.agent.gid, move |what| told.warn(what)),
            config,
            sources,
            accounts,
            surroundings,
            seats: Arc::new(Seats::new(Arc::clone(&board))),
            board,
            spawner,
            began,
            firewall: OnceLock::new(),
            keeper: OnceLock::new(),
            gate: OnceLock::new(),
            proxy: OnceLock::new(),
            watch: OnceLock::new(),
            session: OnceLock::new(),
            headless: OnceLock::new(),
            ready: OnceLock::new(),
            late: Mutex::default(),
            starting: Mutex::default(),
            resources: resources::Watcher::default(),
            meter: OnceLock::new(),
            closed_ipv4: OnceLock::new(),
            closed_ipv6: OnceLock::new(),
            unfiltered_ipv6: OnceLock::new(),
            resolv_conf: OnceLock::new(),
            upstreams: OnceLock::new(),
            processes: OnceLock::new(),
            changing: Mutex::new(()),
            requests: Mutex::new(Book::new(boottime())),
            lint: Mutex::default(),
            names: Mutex::default(),
            saving: persist::Saving::default(),
            since: crate::report::now(),
        };
        innkeeper.show_policy();
        innkeeper
    }

    /// The same box, for a thread that answers requests.
    #[must_use]
    pub fn shared(self: &Arc<Self>) -> Arc<dyn Desk> {
        Arc::<Self>::clone(self)
    }

    #[must_use]
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// A variable that the operator gave.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<&str> {
        self.sources.env.text(name)
    }

    #[must_use]
    pub fn allowlist(&self) -> Allowlist {
        lock(&self.allowlist).clone()
    }

    /// The policy in force, for the worker.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let requests = self.config.network.requests == Requests::Queue;
        let policy = lock(&self.policy);
        let (generation, ceiling) = (policy.generation, policy.ceiling().clone());
        drop(policy);
        Standing { generation, allowlist: self.allowlist(), remedies: Remedies { ceiling, requests } }
    }

    fn status(&self, asker: Asker) -> Response {
        if asker == Asker::Operator {
            self.look_at_risk_again();
        }
        // Looking again costs a few children; the agent gets the last look and can't make us busy.
        let max_age = (asker == Asker::Operator).then_some(MAX_AGE);
        let mut report = self.board.report(max_age);
        report.policy.rules = self.shown_rules();
        report.requests = self.all_requests();
        report.warnings.extend(lock(&self.lint).iter().cloned());
        report.audit = audit::state();
        if let Some(firewall) = self.firewall.get() {
            report.firewall = firewall.report();
            self.names_are_back(&mut report);
        }
        self.add_condition(&mut report);
        let report = if asker == Asker::Operator {
            report
        } else {
            if self.config.network.requests == Requests::Deny {
                audience::takes_no_requests(&mut report);
            }
            audience::for_agent(report, self.accounts.agent.uid)
        };
        Response::Status { report: Box::new(report) }
    }

    /// A boot that began without an answering upstream is no longer degraded once names are answered.
    fn names_are_back(&self, report: &mut Report) {
        let open = report.firewall.addresses.len();
        let degraded = |step: &&mut Step| step.name == "firewall" && step.state == StepState::Degraded;
        if let Some(step) = report.boot.steps.iter_mut().find(degraded).filter(|_| open > 0) {
            step.state = StepState::Ok;
            step.detail = format!("{open} addresses open; the rest is refused");
            let took = step.ms.map(|ms| Duration::from_secs_f64(ms / 1e3));
            self.board.step("firewall", StepState::Ok, took, step.detail.clone());
        }
    }

    /// Looks after what time does: grants that end, clocks that jump.
    pub fn watch_time(self: &Arc<Self>) -> std::io::Result<()> {
        let (ticking, jumping) = (Arc::clone(self), Arc::clone(self));
        clock::watch(move || ticking.expire_grants(), move |jump| jumping.time_jumped(jump))
    }

    /// Looks after the network: one that comes late is used at once.
    pub fn watch_network(self: &Arc<Self>) -> std::io::Result<()> {
        let innkeeper = Arc::clone(self);
        changes::watch(move |reach| {
            let families = match (reach.ipv4, reach.ipv6) {
                (true, true) => "IPv4 and IPv6",
                (true, false) => "IPv4",
                (false, true) => "IPv6",
                (false, false) => "no way out",
            };
            let count = reach.addresses.len();
            event(
                "network",
                &format!("it is another now: {count} addresses, {families}; names are asked again"),
            );
            if let Some(keeper) = innkeeper.keeper.get() {
                keeper.refresh(Some(reach.ipv6));
            }
        })
    }

    fn time_jumped(&self, jump: Jump) {
        event("clock", &format!("{jump}: everything is verified again"));
        if let Some(keeper) = self.keeper.get().filter(|_| jump.lost_time()) {
            keeper.refresh(None);
        }
        // Elements too, which a look at a known generation passes over; what it mends it tells itself.
        if let Some(Err(error)) = self.firewall.get().map(Firewall::again) {
            event("firewall", &error);
        }
        drop(self.board.report(Some(Duration::ZERO)));
    }

    fn credential(&self, host: &str) -> Response {
        let password = self.with_config(|config| {
            let secret = config.secrets.get("GH_TOKEN").filter(|_| CREDENTIAL_HOSTS.contains(&host));
            secret.map(|secret| secret.expose().to_owned())
        });
        match password {
            Some(password) => Response::Credential { username: "x-access-token".to_owned(), password },
            None => Response::Failed { reason: "the box holds no credential for this host".to_owned() },
        }
    }

    fn progress(&self, asker: Asker) -> Response {
        self.board.update(|report| progress_of(report, asker))
    }
}

/// How far the boot is, for this asker.
fn progress_of(report: &Report, asker: Asker) -> Response {
    let mut steps = report.boot.steps.clone();
    if asker != Asker::Operator {
        audience::hide_details(&mut steps);
    }
    Response::Progress {
        phase: report.phase,
        steps,
        session: report.session.clone(),
        open: report.workers.iter().any(|worker| worker.name == "tmux" && worker.pid.is_some()),
    }
}

/// Entries of the audit log in one answer.
const LOG_PAGE: usize = 512;

/// Where GH_TOKEN is a git credential.
pub const CREDENTIAL_HOSTS: &[&str] = &["github.com", "gist.github.com"];

impl Desk for Innkeeper {
    fn answer(&self, asker: Asker, request: Request) -> Response {
        match request {
            Request::Status => self.status(asker),
            Request::Progress => self.progress(asker),
            Request::Check { what } => self.check(asker, &what),
            Request::Reload => self.reload_policy(),
            Request::Allow { rules, for_s, reason } => self.allow(&rules, for_s, reason.as_deref()),
            Request::Revoke { rules } => self.revoke(&rules),
            Request::Ask { rule, reason } => self.ask(asker, &rule, &reason),
            Request::Wish { id } => self.wish(id),
            Request::Requests => Response::Requests { requests: self.all_requests() },
            Request::Grant { id, for_s } => self.grant(id, for_s),
            Request::Refuse { id, reason } => self.refuse(id, reason.as_deref()),
            Request::Lint => self.lint(),
            Request::Suggest => self.suggest(),
            Request::Log { after, denied } => Response::Log { page: audit::page(after, denied, LOG_PAGE) },
            Request::Work { since } => self.work(since),
            Request::Rules => match self.firewall.get().and_then(Firewall::rules) {
                Some(text) => Response::Rules { text },
                None => Response::Failed { reason: "the rule set is not loaded yet".to_owned() },
            },
            Request::Credential { host } => self.credential(&host),
            Request::Hook { turn, text } => self.hook(turn, &text),
            Request::Gauge { gauge } => self.gauge(gauge),
            Request::Start { task } => self.start(task),
            Request::Session { order } => self.order(order),
            Request::Save => self.save_now(),
            Request::Refusals { last_ms } => self.refusals(last_ms),
            Request::Name { conversation, text } => self.name(&conversation, &text),
            // Handled before: they keep their connection.
            Request::Pane | Request::Seat { .. } => {
                Response::Failed { reason: "no answer to who stays".to_owned() }
            }
        }
    }

    fn pane(&self, stream: UnixStream, pid: i32) {
        if let Some(session) = self.session.get() {
            session.pane(stream, pid);
        }
    }

    fn seat(&self, stream: UnixStream, place: Place, read_only: bool) {
        self.seats.sit(stream, place, read_only);
    }
}

impl Conduct for Innkeeper {
    fn stop(&self, limit: Duration) {
        let started = Instant::now();
        self.note_work();
        if let Some(session) = self.session.get() {
            session.stop(limit.mul_f64(0.75));
        }
        if let Some(run) = self.headless.get() {
            run.stop(limit.mul_f64(0.75));
        }
        // The session has ended and its last words are written; who escaped from it may go on meanwhile.
        self.save_at_the_end(limit.saturating_sub(started.elapsed()));
        // What escaped from the session (daemons, setsid): asked first, ended after.
        let agent = [self.accounts.agent.uid];
        if kill_all(&agent, Signal::SIGTERM) > 0 {
            while started.elapsed() < limit && kill_all(&agent, None) > 0 {
                crate::supervisor::backoff::pause(Duration::from_millis(20));
            }
            kill_all(&agent, Signal::SIGKILL);
        }
        self.board.session(|session| session.state = SessionState::Done);
    }

    fn reload(&self) {
        // What came of it is in the log.
        self.reload_policy();
    }

    fn stopping(&self, why: &str) {
        self.board.update(|report| report.phase = Phase::Stopping);
        event("stop", &format!("{why}: ending the session, then the workers"));
    }

    fn killed(&self, name: &str) {
        self.resources.killed(name);
    }
}

#[cfg(test)]
mod tests {
    use super::progress_of;
    use crate::control::protocol::Asker;
    use crate::status::audience;

    #[test]
    fn neither_status_nor_progress_tells_the_agent_what_the_boot_found() {
        let full = audience::tests::full();
        let text = |answer: &crate::control::protocol::Response| serde_json::to_string(answer).unwrap();
        assert!(text(&progress_of(&full, Asker::Operator)).contains("hidden-attempts"));
        for asker in [Asker::Agent, Asker::Other(4242)] {
            let told = text(&progress_of(&full, asker));
            assert!(!told.contains("hidden") && told.contains("self-attack"), "{told}");
        }
        let told = serde_json::to_string(&audience::for_agent(full, 1000)).unwrap();
        assert!(!told.contains("hidden") && told.contains("self-attack"), "{told}");
    }
}
