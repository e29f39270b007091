//! What a ready box does: clone its repositories, then start the session.

use std::sync::Arc;

use super::host;
use super::places::{agent_environment, agent_identity};
use crate::config::{Mode, Repository, Start};
use crate::filesystem::{Sealed, layout};
use crate::firewall::EgressLocked;
use crate::headless::{self, Headless};
use crate::identity;
use crate::innkeeper::{Innkeeper, Ready};
use crate::notices::{Notices, Ways};
use crate::report::{event, exit};
use crate::session::limits::INTERRUPTED;
use crate::session::{GoesOn, Session};
use crate::status::report::{SessionState, StepState};
use crate::supervisor::{Ending, thread};
use crate::workspace;

/// Begins the task, or waits for the operator to bring it.
pub(super) fn task(innkeeper: &Arc<Innkeeper>, locked: EgressLocked, sealed: Sealed) {
    let waits = innkeeper.config.session.start == Start::Wait;
    // Before the box says that it waits: whoever reads that may bring the task at once.
    innkeeper.become_ready(locked, sealed);
    if waits {
        wait(innkeeper);
    } else {
        begin(innkeeper);
    }
    look_around(innkeeper);
}

fn wait(innkeeper: &Innkeeper) {
    let missing = &innkeeper.config.missing;
    let lacks = if missing.is_empty() { String::new() } else { format!("; {}", missing.join("; ")) };
    innkeeper.board().step("repositories", StepState::Pending, None, String::new());
    innkeeper.board().session(|session| {
        session.state = SessionState::Parked;
        session.detail = format!("it waits for its task: innkeeper start{lacks}");
    });
    event("task", &format!("the box waits for its task: innkeeper start{lacks}"));
}

/// Clones, then starts the agent.
pub(crate) fn begin(innkeeper: &Arc<Innkeeper>) {
    let Some(ready) = innkeeper.ready.get() else { return };
    // Before the clones: what came back is there already.
    let resume = innkeeper.restore_work(&ready.sealed);
    let cloned =
        repositories(innkeeper, &innkeeper.with_config(|config| config.repositories.clone()), &ready.locked);
    innkeeper.board().step("repositories", StepState::Ok, None, cloned.detail.clone());
    if innkeeper.config.session.mode == Mode::Headless {
        return work_headless(innkeeper, ready, cloned, resume);
    }
    let mut plan = innkeeper.with_config(|config| host::session_plan(innkeeper, config, cloned.first));
    plan.notices = notices(innkeeper);
    plan.start.resume |= resume.is_some();
    plan.goes_on = resume.unwrap_or_default();
    if let Some(prompt) = &plan.start.prompt {
        event("session", &format!("the prompt has the SHA-256 {}", crate::report::sha256(prompt)));
    }
    let (spawner, board) = (innkeeper.spawner.clone(), Arc::clone(innkeeper.board()));
    match Session::start(plan, spawner, board, &ready.locked) {
        Ok(session) => drop(innkeeper.session.set(session)),
        Err(error) => {
            let why = format!("the session's thread can't be started: {error}");
            innkeeper.board().session(|session| session.detail = why.clone());
            innkeeper.board().warn(why);
        }
    }
    innkeeper.keep_work();
}

/// Without its repositories a run that nobody watches would do something else than it was told.
fn work_headless(innkeeper: &Arc<Innkeeper>, ready: &Ready, cloned: Cloned, resume: Option<GoesOn>) {
    if !cloned.all {
        let reason =
            format!("a repository is missing ({}); a headless run does not begin without", cloned.detail);
        return innkeeper.spawner.stop(Ending { status: exit::UNAVAILABLE, reason });
    }
    let notices = notices(innkeeper);
    let plan = innkeeper.with_config(|config| {
        let mut session = host::session_plan(innkeeper, config, cloned.first);
        session.start.resume |= resume.is_some();
        let first = session.start.prompt.clone();
        if resume.is_some_and(|goes_on| goes_on.worked) && first.is_some() {
            session.start.prompt = Some(INTERRUPTED.to_owned());
        }
        headless::Plan {
            identity: session.identity,
            start: session.start,
            first,
            limits: session.limits,
            is_claude: session.is_claude,
            notices,
            resources: session.resources,
        }
    });
    if let Some(prompt) = &plan.start.prompt {
        event("session", &format!("the prompt has the SHA-256 {}", crate::report::sha256(prompt)));
    }
    let (spawner, board) = (innkeeper.spawner.clone(), Arc::clone(innkeeper.board()));
    match Headless::start(plan, spawner, board, &ready.locked) {
        Ok(run) => {
            drop(innkeeper.headless.set(run));
            innkeeper.keep_work();
        }
        Err(error) => {
            let reason = format!("the run's thread can't be started: {error}");
            innkeeper.spawner.finish(Ending { status: exit::INTERNAL, reason });
        }
    }
}

/// One more repository, in a box that has its task.
pub(crate) fn clone_late(innkeeper: &Arc<Innkeeper>, late: &[Repository]) {
    if let Some(ready) = innkeeper.ready.get() {
        let cloned = repositories(innkeeper, late, &ready.locked);
        innkeeper.board().step("repositories", StepState::Ok, None, cloned.detail);
    }
}

/// What nobody waits for.
fn look_around(innkeeper: &Arc<Innkeeper>) {
    let looking = Arc::clone(innkeeper);
    let look = thread("look", move || {
        looking.lint_again();
        crate::image_audit::run(&looking);
        host::foreign_rules(&looking);
    });
    if let Err(error) = look {
        innkeeper.board().warn(format!("the image and the rules of others were not looked at: {error}"));
    }
}

/// The bell works without any way to send.
fn notices(innkeeper: &Innkeeper) -> Option<Notices> {
    let config = &innkeeper.config.notices;
    let has_ca = innkeeper.config.tls.ca_certs.is_some();
    let roots = if has_ca { identity::CA_BUNDLE } else { identity::SYSTEM_CA };
    let env = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/nonexistent"),
        ("LANG", "C.UTF-8"),
        ("INNKEEPER", env!("CARGO_PKG_VERSION")),
        ("SSL_CERT_FILE", roots),
        ("CURL_CA_BUNDLE", roots),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let ways = Ways {
        command: config.command.clone(),
        webhook: config.webhook.clone(),
        account: innkeeper.accounts.notify.clone(),
        spawner: innkeeper.spawner.clone(),
        roots: roots.to_owned(),
        env: env
            .chain(innkeeper.proxy.get().into_iter().flat_map(|proxy| identity::proxied(*proxy)))
            .collect(),
        proxy: innkeeper.proxy.get().map(|proxy| (*proxy).into()),
    };
    let (board, seats) = (Arc::clone(innkeeper.board()), Arc::clone(&innkeeper.seats));
    match Notices::start(config.on.clone(), ways, board, seats) {
        Ok(notices) => Some(notices),
        Err(error) => {
            innkeeper.board().warn(format!("no notices: their thread can't be started: {error}"));
            None
        }
    }
}

pub(super) struct Cloned {
    first: Option<String>,
    /// None is missing.
    all: bool,
    detail: String,
}

/// Every repository on a thread of its own; one that fails or takes long does not hold up the session for ever.
pub(super) fn repositories(
    innkeeper: &Arc<Innkeeper>,
    repositories: &[Repository],
    locked: &EgressLocked,
) -> Cloned {
    if repositories.is_empty() {
        return Cloned { first: None, all: true, detail: "none configured".to_owned() };
    }
    let board = innkeeper.board();
    board.step("repositories", StepState::Running, None, String::new());
    let (sender, done) = std::sync::mpsc::channel();
    for (index, repository) in repositories.iter().enumerate() {
        let plan = workspace::Plan {
            repository: repository.clone(),
            identity: agent_identity(innkeeper, layout::WORKSPACE),
            env: agent_environment(innkeeper),
        };
        let (sender, innkeeper, locked) = (sender.clone(), Arc::clone(innkeeper), locked.clone());
        let cloning = thread("clone", move || {
            let worked = workspace::clone(&plan, &innkeeper.spawner, innkeeper.board(), &locked);
            // Nobody listens any more when it took too long.
            drop(sender.send((index, worked.then(|| plan.directory()))));
        });
        if let Err(error) = cloning {
            event("repositories", &format!("cannot begin a clone: {error}"));
        }
    }
    drop(sender);
    let deadline = std::time::Instant::now() + workspace::PATIENCE;
    let mut cloned = Vec::new();
    while let Ok(result) = done.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
        cloned.push(result);
    }
    cloned.sort();
    let directories: Vec<String> = cloned.into_iter().filter_map(|(_, directory)| directory).collect();
    let detail = format!("{} of {} in place", directories.len(), repositories.len());
    let all = directories.len() == repositories.len();
    Cloned { first: directories.into_iter().next(), all, detail }
}
