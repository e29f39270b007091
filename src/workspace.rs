//! Repositories: cloned as the agent, through the firewall like everything else.
//!
//! PID 1 never opens a working tree. The hidden subcommand `clone` runs as the agent, decides what is there, runs
//! git, and tidies up what a broken attempt left.

pub mod clone;

use std::sync::Arc;
use std::time::Duration;

use crate::config::repository::{Repository, Source};
use crate::firewall::EgressLocked;
use crate::report::harmless;
use crate::status::Board;
use crate::status::report::{Repository as Shown, RepositoryState};
use crate::supervisor::backoff::Backoff;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, Spawner};

/// One attempt; a large repository over a slow line takes minutes, a hung one must not take the night.
const CLONE_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Attempts before the repository is given up until the next boot.
const ATTEMPTS: u32 = 6;
/// Attempts where the forge says no.
const ATTEMPTS_IN_VAIN: u32 = 2;
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), CLONE_LIMIT);
/// The session does not wait longer for a clone: Claude begins, the clone goes on behind it.
pub const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// What is kept of git's words.
const MAX_OUTPUT: u64 = 16 << 10;

/// What a clone needs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub repository: Repository,
    pub identity: Identity,
    pub env: Vec<(String, String)>,
}

impl Plan {
    #[must_use]
    pub fn directory(&self) -> String {
        format!("{}/{}", crate::filesystem::layout::WORKSPACE, self.repository.path)
    }

    fn arguments(&self) -> Vec<String> {
        let Repository { source, branch, depth, .. } = &self.repository;
        let mut args = vec!["--into".to_owned(), self.directory()];
        if let Some(url) = self.repository.url() {
            args.extend(["--url".to_owned(), url.to_string()]);
        }
        if let Source::Bundle { file, .. } = source {
            args.extend(["--bundle".to_owned(), file.display().to_string()]);
        }
        if let Some(branch) = branch {
            args.extend(["--branch".to_owned(), branch.to_string()]);
        }
        if *depth > 0 {
            args.extend(["--depth".to_owned(), depth.to_string()]);
        }
        args
    }
}

/// Clones until it worked or was tried often enough; every state is shown. The proof says that the firewall is in.
pub fn clone(plan: &Plan, spawner: &Spawner, board: &Arc<Board>, _: &EgressLocked) -> bool {
    let mut backoff = BACKOFF;
    let show = |state, detail: String| {
        let url = plan.repository.source.to_string();
        board.repository(Shown { path: plan.directory(), url, state, detail });
    };
    let (mut attempts, mut attempt) = (ATTEMPTS, 0);
    while attempt < attempts {
        attempt += 1;
        show(RepositoryState::Cloning, format!("attempt {attempt} of {attempts}"));
        let cause = match once(plan, spawner) {
            Ok(detail) => {
                crate::report::event("repositories", &format!("{}: {detail}", plan.directory()));
                show(RepositoryState::Cloned, detail);
                return true;
            }
            Err(Attempt::Final(cause)) => {
                crate::report::event("repositories", &format!("{}: {cause}", plan.directory()));
                show(RepositoryState::Failed, cause);
                return false;
            }
            Err(Attempt::Again(cause)) => cause,
            Err(Attempt::Once(cause)) => {
                attempts = attempts.min(ATTEMPTS_IN_VAIN);
                cause
            }
        };
        let pause = backoff.after(Duration::ZERO);
        crate::report::event("repositories", &format!("{}: {cause}", plan.directory()));
        if attempt >= attempts {
            show(RepositoryState::Failed, cause);
            break;
        }
        show(RepositoryState::Cloning, format!("{cause}; again in {} s", pause.as_secs()));
        crate::supervisor::backoff::pause(pause);
    }
    false
}

enum Attempt {
    /// Trying again may help.
    Again(String),
    /// The forge has decided; once more, since forges hiccup.
    Once(String),
    /// It would not.
    Final(String),
}

fn once(plan: &Plan, spawner: &Spawner) -> Result<String, Attempt> {
    let launch = Launch::own("clone", Some(plan.identity.clone()));
    let launch = launch.args(plan.arguments()).env(plan.env.clone());
    let said = match spawner.listen(launch, CLONE_LIMIT, MAX_OUTPUT) {
        Ok(said) => said,
        Err(error) => return Err(Attempt::Again(crate::report::chain(&error))),
    };
    // What git and the server said is shown as inert text.
    let output = harmless(said.text.trim(), 400);
    match said.exit.status() {
        0 => Ok(output),
        clone::OCCUPIED => Err(Attempt::Final(output)),
        clone::REFUSED => Err(Attempt::Once(output)),
        _ => Err(Attempt::Again(output)),
    }
}
