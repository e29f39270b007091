//! The box as a whole, as PID 1's threads share it: what was configured, what runs, and what requests and signals do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account::Accounts;
use crate::allowlist::{Allowlist, DomainName, Rule, Verdict};
use crate::attribution::Attributor;
use crate::config::{self, Config, Sources};
use crate::control::protocol::{Asker, Request, Response};
use crate::control::server::Desk;
use crate::dns::keeper::Keeper;
use crate::dns::protocol::Policy;
use crate::firewall::Firewall;
use crate::namespace::Surroundings;
use crate::report::{self, chain, event};
use crate::session::Session;
use crate::status::report::{Phase, PolicyRule, Report, SessionState, Step, StepState};
use crate::status::{Board, MAX_AGE};
use crate::supervisor::{Conduct, Spawner};
use crate::watch;

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
    policy: Mutex<Arc<Allowlist>>,
    generation: AtomicU64,
    pub firewall: OnceLock<Firewall>,
    pub keeper: OnceLock<Keeper>,
    /// None where the kernel can't log packets.
    pub watch: OnceLock<watch::keeper::Keeper>,
    /// Finds the processes behind refused packets and questions.
    pub attributor: Attributor,
    pub session: OnceLock<Session>,
    /// The agent's process limit, counted once.
    pub processes: OnceLock<Option<u64>>,
    /// Whom the DNS worker asks.
    pub upstreams: OnceLock<Vec<SocketAddr>>,
    /// The rule set that was loaded, as text.
    pub rules: OnceLock<String>,
    /// One change of policy at a time.
    changing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Innkeeper {
    #[must_use]
    pub fn new(
        config: Config,
        sources: Sources,
        accounts: Accounts,
        surroundings: Surroundings,
        board: Arc<Board>,
        spawner: Spawner,
        began: u64,
    ) -> Self {
        // From here on the sources serve reloads of the policy.
        let sources = Sources { env: sources.env.with_credentials(&config.secrets), ..sources };
        let innkeeper = Self {
            policy: Mutex::new(Arc::new(Allowlist::new(config.network.rules.clone()))),
            attributor: Attributor::new(accounts.agent.uid, accounts.agent.gid),
            config,
            sources,
            accounts,
            surroundings,
            board,
            spawner,
            began,
            generation: AtomicU64::new(1),
            firewall: OnceLock::new(),
            keeper: OnceLock::new(),
            watch: OnceLock::new(),
            session: OnceLock::new(),
            rules: OnceLock::new(),
            upstreams: OnceLock::new(),
            processes: OnceLock::new(),
            changing: Mutex::new(()),
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
    pub fn allowlist(&self) -> Arc<Allowlist> {
        Arc::clone(&lock(&self.policy))
    }

    /// The policy as the worker reads it.
    #[must_use]
    pub fn worker_policy(&self) -> Policy {
        let rules = self.allowlist().rules().iter().map(ToString::to_string).collect();
        Policy { generation: self.generation.load(Ordering::Relaxed), rules }
    }

    fn show_policy(&self) {
        let allowlist = self.allowlist();
        let shown = |rule: &Rule| PolicyRule {
            rule: rule.to_string(),
            by: rule.options.by.to_string(),
            origin: rule.origin.to_string(),
            expires_at: None,
        };
        let rules: Vec<PolicyRule> = allowlist.rules().iter().map(shown).collect();
        let mut text: Vec<&str> = rules.iter().map(|rule| rule.rule.as_str()).collect();
        text.sort_unstable();
        let digest = report::sha256(&text.join("\n"));
        let generation = self.generation.load(Ordering::Relaxed);
        self.board.update(|report| {
            report.policy.generation = generation;
            report.policy.rules = rules;
            report.box_.policy_sha256 = digest;
        });
    }

    /// Reads every source of the policy again; all of it takes effect or nothing.
    fn reload_policy(&self) -> Result<(u64, usize), String> {
        let _one = lock(&self.changing);
        let config = config::load(&self.sources).map_err(|problems| problems.to_string())?;
        let allowlist = Allowlist::new(config.network.rules);
        let (Some(firewall), Some(keeper)) = (self.firewall.get(), self.keeper.get()) else {
            return Err("the box is still booting".to_owned());
        };
        let count = allowlist.rules().len();
        // The firewall first: what is no longer allowed is closed before a name could open it again.
        firewall.policy(allowlist.clone()).map_err(|error| chain(&error))?;
        *lock(&self.policy) = Arc::new(allowlist);
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        keeper.policy(&self.worker_policy());
        self.show_policy();
        event("policy", &format!("generation {generation}: {count} rules"));
        Ok((generation, count))
    }

    fn status(&self, asker: Asker) -> Response {
        // Looking again costs a few children; the agent gets the last look and can't make us busy.
        let max_age = (asker == Asker::Operator).then_some(MAX_AGE);
        let mut report = self.board.report(max_age);
        if let Some(firewall) = self.firewall.get() {
            report.firewall = firewall.report();
            self.names_are_back(&mut report);
        }
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

    fn check(&self, what: &str) -> Response {
        let (name, port) = match split_target(what) {
            Ok(target) => target,
            Err(reason) => return Response::Failed { reason },
        };
        let allowlist = self.allowlist();
        let (allowed, explanation) = explain(&allowlist, &name, port);
        Response::Verdict { allowed, name: name.to_string(), explanation }
    }

    fn credential(&self, host: &str) -> Response {
        let secret = self.config.secrets.get("GH_TOKEN").filter(|_| CREDENTIAL_HOSTS.contains(&host));
        match secret {
            Some(secret) => Response::Credential {
                username: "x-access-token".to_owned(),
                password: secret.expose().to_owned(),
            },
            None => Response::Failed { reason: "the box holds no credential for this host".to_owned() },
        }
    }

    fn progress(&self) -> Response {
        self.board.update(|report| Response::Progress {
            phase: report.phase,
            steps: report.boot.steps.clone(),
            session: report.session.clone(),
            open: report.workers.iter().any(|worker| worker.name == "tmux" && worker.pid.is_some()),
        })
    }
}

/// Where GH_TOKEN is a git credential.
pub const CREDENTIAL_HOSTS: &[&str] = &["github.com", "gist.github.com"];

/// The name and port of `NAME`, `NAME:PORT` or a URL.
fn split_target(what: &str) -> Result<(DomainName, u16), String> {
    let (scheme, rest) = what.split_once("://").unwrap_or(("https", what));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, port.parse::<u16>().map_err(|_| format!("\"{port}\" is not a port"))?),
        None => (
            authority,
            match scheme {
                "http" => 80,
                "ssh" => 22,
                _ => 443,
            },
        ),
    };
    let name = DomainName::parse(name).map_err(|error| format!("\"{name}\" is not a host name: {error}"))?;
    Ok((name, port))
}

fn explain(allowlist: &Allowlist, name: &DomainName, port: u16) -> (bool, String) {
    match allowlist.verdict(name) {
        Verdict::Allowed(allowed) if allowed.ports.contains(&port) => {
            let rules: Vec<String> =
                allowed.rules.iter().map(|rule| format!("{rule} ({})", rule.origin)).collect();
            (true, format!("{name}:{port} is allowed by {}", rules.join(", ")))
        }
        Verdict::Allowed(allowed) => {
            let ports: Vec<String> = allowed.ports.iter().map(u16::to_string).collect();
            (
                false,
                format!(
                    "{name} is allowed on {} only; a rule that would allow this: {name}:{port}",
                    ports.join(", ")
                ),
            )
        }
        Verdict::Denied(why) => {
            let suffix = if port == 443 { String::new() } else { format!(":{port}") };
            (false, format!("{name}:{port} is denied: {why}; a rule that would allow it: {name}{suffix}"))
        }
    }
}

impl Desk for Innkeeper {
    fn answer(&self, asker: Asker, request: Request) -> Response {
        match request {
            Request::Status => self.status(asker),
            Request::Progress => self.progress(),
            Request::Check { what } => self.check(&what),
            Request::Reload => match self.reload_policy() {
                Ok((generation, rules)) => Response::Reloaded { generation, rules },
                Err(reason) => Response::Failed { reason },
            },
            Request::Rules => match self.rules.get() {
                Some(text) => Response::Rules { text: text.clone() },
                None => Response::Failed { reason: "the rule set is not loaded yet".to_owned() },
            },
            Request::Credential { host } => self.credential(&host),
            // Handled before: it keeps its connection.
            Request::Pane => Response::Failed { reason: "no answer to a pane".to_owned() },
        }
    }

    fn pane(&self, stream: UnixStream, pid: i32) {
        if let Some(session) = self.session.get() {
            session.pane(stream, pid);
        }
    }
}

impl Conduct for Innkeeper {
    fn stop(&self, limit: Duration) {
        let started = Instant::now();
        if let Some(session) = self.session.get() {
            session.stop(limit.mul_f64(0.75));
        }
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
        if let Err(problems) = self.reload_policy() {
            event("policy", &format!("reload refused, the old policy stays: {problems}"));
        }
    }

    fn stopping(&self, signal: &str) {
        self.board.update(|report| report.phase = Phase::Stopping);
        event("stop", &format!("{signal}: ending the session, then the workers"));
    }
}

/// Signals the box's processes of these users; returns how many there were. As PID 1 that is everybody of them in this
/// pid namespace, `docker exec` included; elsewhere the namespace has others in it (a pod, a host), and only our own
/// descendants count: as child subreaper we are the parent of every orphan of theirs.
pub fn kill_all(uids: &[u32], signal: impl Into<Option<Signal>>) -> usize {
    let signal = signal.into();
    let Ok(processes) = procfs::process::all_processes() else { return 0 };
    let processes: Vec<Seen> = processes.flatten().filter_map(|process| Seen::of(&process)).collect();
    let parents: HashMap<i32, i32> = processes.iter().map(|seen| (seen.pid, seen.parent)).collect();
    let us = i32::try_from(std::process::id()).unwrap_or(1);
    let theirs = processes.iter().filter(|seen| uids.contains(&seen.uid) && !seen.zombie);
    theirs
        .filter(|seen| us == 1 || descends(&parents, seen.pid, us))
        .filter(|seen| kill(Pid::from_raw(seen.pid), signal).is_ok())
        .count()
}

struct Seen {
    pid: i32,
    parent: i32,
    uid: u32,
    zombie: bool,
}

impl Seen {
    /// A process that ends meanwhile is none.
    fn of(process: &procfs::process::Process) -> Option<Self> {
        let (stat, uid) = (process.stat().ok()?, process.uid().ok()?);
        Some(Self { pid: process.pid, parent: stat.ppid, uid, zombie: stat.state == 'Z' })
    }
}

fn descends(parents: &HashMap<i32, i32>, pid: i32, from: i32) -> bool {
    let mut at = pid;
    // A table read while processes come and go may hold a circle; no chain is longer than the table.
    for _ in 0..parents.len() {
        match parents.get(&at) {
            Some(parent) if *parent == from => return true,
            Some(parent) => at = *parent,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::{descends, explain, split_target};
    use crate::allowlist::{Allowlist, Origin, parse_rules};

    #[test]
    fn only_descendants_are_ours_where_we_are_not_pid_1() {
        let parents =
            [(10, 5), (11, 10), (12, 11), (20, 1), (5, 1), (30, 31), (31, 30)].into_iter().collect();
        assert!(descends(&parents, 12, 10) && descends(&parents, 11, 10));
        assert!(!descends(&parents, 20, 10) && !descends(&parents, 5, 10), "a neighbour, a parent");
        assert!(!descends(&parents, 30, 10), "a circle ends");
    }

    #[test]
    fn names_and_urls_are_taken_apart() {
        let target = |text: &str| split_target(text).map(|(name, port)| format!("{name}:{port}"));
        assert_eq!(target("GitHub.com").unwrap(), "github.com:443");
        assert_eq!(target("github.com:22").unwrap(), "github.com:22");
        assert_eq!(target("https://user:pw@github.com/a/b?c").unwrap(), "github.com:443");
        assert_eq!(target("http://archive.example.org/x").unwrap(), "archive.example.org:80");
        assert!(target("https://10.0.0.1/").is_err());
        assert!(target("github.com:99999").is_err());
    }

    #[test]
    fn a_verdict_names_the_rule_or_the_line_to_add() {
        let (rules, _) =
            parse_rules("github.com:443,22", |line| Origin::File { path: "d.conf".into(), line });
        let allowlist = Allowlist::new(rules);
        let verdict = |text: &str| {
            let (name, port) = split_target(text).unwrap();
            explain(&allowlist, &name, port)
        };
        assert_eq!(verdict("github.com:22").1, "github.com:22 is allowed by github.com:22,443 (d.conf:1)");
        assert!(verdict("github.com:80").1.ends_with("github.com:80"));
        assert!(!verdict("evil.example").0);
    }
}
