//! What is known about the box, in one place: PID 1 writes it, `status` shows it.
//!
//! Protections are not remembered but verified: each is registered with the very function that the boot used, and
//! is looked at again when somebody asks and the last look is older than [`MAX_AGE`].

pub mod audience;
pub mod command;
pub mod report;
pub mod screen;
pub mod watch;
pub mod wording;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::allowlist::Ceiling;
use crate::audit::{self, SessionChange, WorkerChange};
use crate::policy::remedy;
use report::{
    Boot, BoxIdentity, Denial, Dns, Firewall, Gate, Phase, Policy, Protection, Report, Repository, SCHEMA,
    Session, SessionState, Step, StepState, Worker,
};

/// A proof older than this is made anew for an operator who asks.
pub const MAX_AGE: Duration = Duration::from_secs(10);

/// Denials kept for the screen; each is one name or address with a count.
const MAX_DENIALS: usize = 64;

/// What the workers write for refusals that are too many to list.
const SHARED: [&str; 2] = [crate::worker::denials::OTHERS, crate::watch::wording::OTHERS];

/// How a protection is held, said by the look that found it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub how: String,
    pub detail: String,
}

impl Held {
    #[must_use]
    pub fn by(how: impl Into<String>) -> Self {
        Self { how: how.into(), detail: String::new() }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

/// Looks whether a protection holds now; an error says what was found instead.
pub type Verify = Arc<dyn Fn() -> Result<Held, String> + Send + Sync>;

struct Check {
    name: &'static str,
    verify: Verify,
    /// The operator gave it up by `boot.accept`: shown for ever, stops nothing.
    accepted: bool,
    seen: Instant,
    last: Protection,
}

/// The shared state of the box.
pub struct Board {
    report: Mutex<Report>,
    checks: Mutex<Vec<Check>>,
    denials: Mutex<VecDeque<Denial>>,
    ceiling: Mutex<Ceiling>,
    /// When each living worker was started.
    started: Mutex<HashMap<String, Instant>>,
    /// The session's state as the audit log has it.
    logged: Mutex<SessionState>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while it held the lock left plain data behind; showing it beats dying.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    #[must_use]
    pub fn new(box_: BoxIdentity) -> Self {
        let session = Session {
            state: SessionState::Starting,
            since: crate::report::now(),
            until: None,
            claude_pid: None,
            restarts: 0,
            last_exit: None,
            detail: "the box is booting".to_owned(),
            last_message: None,
            deadline: None,
            cost_usd: None,
            context_percent: None,
            name: None,
            last_output: None,
            headless: false,
            result: None,
        };
        let report = Report {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: Phase::Booting,
            box_,
            boot: Boot::default(),
            protections: Vec::new(),
            policy: Policy::default(),
            dns: Dns::default(),
            firewall: Firewall::default(),
            gate: Gate::default(),
            denials: Vec::new(),
            workers: Vec::new(),
            session,
            secrets: Vec::new(),
            repositories: Vec::new(),
            warnings: Vec::new(),
            requests: Vec::new(),
            operators: Vec::new(),
            resources: report::Resources::default(),
            traffic: Vec::new(),
            traffic_note: None,
            audit: report::Audit::default(),
            persist: report::Persist::default(),
            telemetry: None,
            audience: report::Audience::Operator,
        };
        Self {
            logged: Mutex::new(report.session.state),
            report: Mutex::new(report),
            checks: Mutex::new(Vec::new()),
            denials: Mutex::new(VecDeque::new()),
            ceiling: Mutex::new(Ceiling::unbounded()),
            started: Mutex::new(HashMap::new()),
        }
    }

    /// Changes the report under the lock; `change` must be quick.
    pub fn update<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut lock(&self.report))
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        lock(&self.report).phase
    }

    pub fn warn(&self, warning: impl Into<String>) {
        let warning = warning.into();
        crate::report::event("warning", &warning);
        lock(&self.report).warnings.push(warning);
    }

    /// Looks whether a protection holds, and goes on looking whenever `status` is asked.
    pub fn protect(&self, name: &'static str, accepted: bool, verify: Verify) -> Result<(), String> {
        let result = verify();
        let last = judge(name, &result, accepted);
        let mut checks = lock(&self.checks);
        checks.retain(|check| check.name != name);
        checks.push(Check { name, verify, accepted, seen: Instant::now(), last });
        match result {
            Ok(_) => Ok(()),
            Err(_) if accepted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The whole report. With `max_age`, protections whose proof is older are verified again first.
    #[must_use]
    pub fn report(&self, max_age: Option<Duration>) -> Report {
        if let Some(max_age) = max_age {
            self.verify_again(max_age);
        }
        let protections = lock(&self.checks).iter().map(|check| check.last.clone()).collect();
        let denials = lock(&self.denials).iter().rev().cloned().collect();
        let mut report = lock(&self.report).clone();
        let started = lock(&self.started);
        for worker in &mut report.workers {
            let since = started.get(&worker.name).filter(|_| worker.pid.is_some());
            worker.uptime_s = since.map_or(0.0, |since| milliseconds(since.elapsed()) / 1e3);
        }
        Report { protections, denials, ..report }
    }

    fn verify_again(&self, max_age: Duration) {
        let due: Vec<(&'static str, bool, Verify)> = lock(&self.checks)
            .iter()
            .filter(|check| check.seen.elapsed() >= max_age)
            .map(|check| (check.name, check.accepted, Arc::clone(&check.verify)))
            .collect();
        // Not under the lock: a look may take its time, and `status` of others must not wait for it.
        for (name, accepted, result) in side_by_side(due) {
            let found = judge(name, &result, accepted);
            if let Some(check) = lock(&self.checks).iter_mut().find(|check| check.name == name) {
                if check.last.held && !found.held {
                    crate::report::event("protections", &format!("{name} no longer holds: {}", found.detail));
                }
                check.last = found;
                check.seen = Instant::now();
            }
        }
    }

    /// No denial proposes what is beyond this.
    pub fn bounded_by(&self, ceiling: Ceiling) {
        *lock(&self.ceiling) = ceiling;
    }

    /// Counts a refusal; the same one again raises its count.
    pub fn deny(&self, mut denial: Denial) {
        let ceiling = lock(&self.ceiling).clone();
        // Who asks for a name says nothing of a port.
        let any_port = denial.layer == "dns";
        if let Cow::Owned(allow) = remedy::below(&ceiling, &denial.allow, any_port) {
            denial.allow = allow;
        }
        audit::denied(&denial);
        let mut denials = lock(&self.denials);
        // Whoever could not be named is not taken for who was refused the same before.
        let same = |known: &Denial| {
            known.uid == denial.uid && known.layer == denial.layer && known.what == denial.what
        };
        let old = denials.iter().position(same).and_then(|at| denials.remove(at));
        let (count, process) = old.map_or((0, None), |old| (old.count, old.process));
        let count = denial.count.saturating_add(count);
        let process = denial.process.clone().or(process);
        denials.push_back(Denial { count, process, ..denial });
        while denials.len() > MAX_DENIALS {
            // A line that stands for many says more than any one of them: it stays. Whole words only: what is refused
            // is the agent's to choose.
            let single = denials.iter().position(|denial| !SHARED.contains(&denial.what.as_str()));
            drop(denials.remove(single.unwrap_or_default()));
        }
    }

    pub fn session(&self, change: impl FnOnce(&mut Session)) {
        self.update(|report| {
            if change_session(&mut report.session, change) {
                self.write_session(&report.session);
            }
        });
    }

    /// What the agent says of its own session: it is shown at once, and written into the log when `may_write` lets it.
    /// Until then the log is behind, and a call that changes nothing lets it catch up.
    pub fn hearsay(&self, change: impl FnOnce(&mut Session), may_write: impl FnOnce() -> bool) {
        self.update(|report| {
            change_session(&mut report.session, change);
            let behind = *lock(&self.logged) != report.session.state;
            if behind && may_write() {
                self.write_session(&report.session);
            }
        });
    }

    fn write_session(&self, session: &Session) {
        *lock(&self.logged) = session.state;
        audit::session(SessionChange {
            state: session.state,
            detail: session.detail.clone(),
            claude_pid: session.claude_pid,
        });
    }

    pub fn worker(&self, name: &str, change: impl FnOnce(&mut Worker)) {
        self.update(|report| {
            if !report.workers.iter().any(|worker| worker.name == name) {
                let worker = Worker { name: name.to_owned(), pid: None, uptime_s: 0.0, restarts: 0 };
                report.workers.push(worker);
            }
            if let Some(worker) = report.workers.iter_mut().find(|worker| worker.name == name) {
                let before = worker.pid;
                change(worker);
                if worker.pid != before {
                    let (name, pid, restarts) = (worker.name.clone(), worker.pid, worker.restarts);
                    audit::worker(WorkerChange { name, pid, restarts });
                }
                if worker.pid.is_some() && worker.pid != before {
                    lock(&self.started).insert(name.to_owned(), Instant::now());
                }
            }
        });
    }

    pub fn repository(&self, repository: Repository) {
        self.update(|report| {
            report.repositories.retain(|known| known.path != repository.path);
            report.repositories.push(repository);
        });
    }

    pub fn step(&self, name: &str, state: StepState, took: Option<Duration>, detail: String) {
        let ms = took.map(milliseconds);
        self.update(|report| {
            if let Some(step) = report.boot.steps.iter_mut().find(|step| step.name == name) {
                (step.state, step.ms, step.detail) = (state, ms, detail);
            } else {
                report.boot.steps.push(Step { name: name.to_owned(), state, ms, detail });
            }
        });
    }
}

/// Whether it is in another state than before.
fn change_session(session: &mut Session, change: impl FnOnce(&mut Session)) -> bool {
    let before = session.state;
    change(session);
    if session.state != before {
        session.since = crate::report::now();
    }
    session.state != before
}

/// All looks at once: most wait for the self-attack, which one of them makes, and the others need not wait for that.
fn side_by_side(due: Vec<(&'static str, bool, Verify)>) -> Vec<(&'static str, bool, Result<Held, String>)> {
    std::thread::scope(|scope| {
        let begun: Vec<_> = due
            .into_iter()
            .map(|(name, accepted, verify)| {
                let look = Arc::clone(&verify);
                let thread = std::thread::Builder::new().name("verify".to_owned());
                (name, accepted, verify, thread.spawn_scoped(scope, move || look()))
            })
            .collect();
        let end = |(name, accepted, verify, thread): (_, _, Verify, std::io::Result<_>)| {
            let result = match thread {
                Ok(thread) => {
                    let joined: std::thread::Result<_> = std::thread::ScopedJoinHandle::join(thread);
                    joined.unwrap_or_else(|_| Err("the look itself has failed".to_owned()))
                }
                // No thread to be had (the agent used them up): then one after the other.
                Err(_) => verify(),
            };
            (name, accepted, result)
        };
        begun.into_iter().map(end).collect()
    })
}

/// Milliseconds to the microsecond.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn judge(name: &str, result: &Result<Held, String>, accepted: bool) -> Protection {
    let verified_at = crate::report::now();
    let name = name.to_owned();
    match result {
        Ok(held) => Protection {
            name,
            held: true,
            how: held.how.clone(),
            verified_at,
            detail: crate::report::inert(&held.detail),
        },
        Err(found) => {
            let how = if accepted { "given up by the operator (boot.accept)" } else { "" };
            Protection {
                name,
                held: false,
                how: how.to_owned(),
                verified_at,
                detail: crate::report::inert(found),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Board, Held};
    use crate::status::report::{BoxIdentity, Denial};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn denial(what: &str) -> Denial {
        Denial {
            time: String::new(),
            layer: "dns".into(),
            what: what.into(),
            uid: Some(1000),
            process: None,
            reason: String::new(),
            count: 1,
            allow: String::new(),
        }
    }

    #[test]
    fn a_protection_is_looked_at_again_and_not_remembered() {
        let board = Board::new(BoxIdentity::default());
        let holds = Arc::new(AtomicBool::new(true));
        let look = Arc::clone(&holds);
        let verify = Arc::new(move || {
            if look.load(Ordering::Relaxed) { Ok(Held::by("test")) } else { Err("gone".to_owned()) }
        });
        board.protect("thing", false, verify).unwrap();
        assert!(board.report(Some(Duration::ZERO)).protections[0].held);
        holds.store(false, Ordering::Relaxed);
        assert!(
            board.report(None).protections[0].held,
            "without a look the last proof is shown, with its time"
        );
        let shown = board.report(Some(Duration::ZERO)).protections.remove(0);
        assert!(!shown.held);
        assert_eq!(shown.detail, "gone");
    }

    #[test]
    fn a_protection_that_was_given_up_stops_nothing_and_stays_visible() {
        let board = Board::new(BoxIdentity::default());
        assert!(board.protect("a", false, Arc::new(|| Err("no".into()))).is_err());
        assert!(board.protect("a", true, Arc::new(|| Err("no".into()))).is_ok());
        let shown = board.report(None).protections.remove(0);
        assert!(!shown.held && shown.how.contains("given up"));
    }

    #[test]
    fn denials_are_counted_and_bounded() {
        let board = Board::new(BoxIdentity::default());
        for i in 0..1000 {
            board.deny(denial(&format!("n{i}.example")));
        }
        for _ in 0..5 {
            board.deny(denial("again.example"));
        }
        let denials = board.report(None).denials;
        assert_eq!(denials.len(), 64);
        assert_eq!((denials[0].what.as_str(), denials[0].count), ("again.example", 5));
    }
}
