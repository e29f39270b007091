//! The late task: what `innkeeper start` brings to a box that waits, and one more repository to a box that works.
//!
//! A task is configuration that comes later, and is read as such: with everything else, all of it or nothing, within the
//! ceiling, with every problem said at once.

use std::sync::Arc;

use super::{Innkeeper, Ready, lock};
use crate::boot;
use crate::clock::boottime;
use crate::config::provider::SECRETS;
use crate::config::repository::{ONLY, RepoUrl};
use crate::config::{self, Config, Problems, Repository, Sources, Start};
use crate::control::protocol::{Response, Task};
use crate::filesystem::Sealed;
use crate::firewall::EgressLocked;
use crate::identity;
use crate::report::{chain, event, exit};
use crate::supervisor::thread;

/// Repositories that a box takes after its boot.
const MOST: usize = 64;

/// What the operator brought, and everything before it.
#[derive(Debug, Default)]
pub(super) struct Late {
    task: Option<Task>,
    /// The configuration with the task in it.
    config: Option<Arc<Config>>,
}

impl Innkeeper {
    /// From now on a task can begin.
    pub fn become_ready(self: &Arc<Self>, locked: EgressLocked, sealed: Sealed) {
        drop(self.ready.set(Ready { locked, sealed, innkeeper: Arc::downgrade(self) }));
    }

    /// The configuration with what was brought since.
    pub fn with_config<T>(&self, look: impl FnOnce(&Config) -> T) -> T {
        let late = lock(&self.late).config.clone();
        look(late.as_deref().unwrap_or(&self.config))
    }

    /// Whether the operator has brought a task.
    pub(super) fn has_task(&self) -> bool {
        lock(&self.late).task.is_some()
    }

    /// Where the policy is read again: what was brought included.
    pub(super) fn sources_now(&self) -> Sources {
        match &lock(&self.late).task {
            Some(task) => self.sources.with_task(task),
            // Until the task is there something may be missing.
            None => Sources { task: None, ..self.sources.with_task(&Task::default()) },
        }
    }

    pub(super) fn start(&self, task: Task) -> Response {
        let Some(innkeeper) = self.ready.get().and_then(|ready| ready.innkeeper.upgrade()) else {
            let reason = "the box is still booting; try again when it is ready".to_owned();
            return Response::Later { reason };
        };
        // One at a time: the second sees what the first brought.
        let _one = lock(&self.starting);
        let before = lock(&self.late).task.clone();
        let begins = self.config.session.start == Start::Wait && before.is_none();
        let known: Vec<String> = self.with_config(|config| {
            config.repositories.iter().map(|repository| repository.path.to_string()).collect()
        });
        let all = match self.joined(before.unwrap_or_default(), task, &known, begins) {
            Ok(all) => all,
            Err(reason) => return Response::Invalid { reason },
        };
        let mut config = match config::load(&self.sources.with_task(&all)) {
            Ok(config) => config,
            Err(problems) => return refused(&problems),
        };
        let (rules, ceiling) = (std::mem::take(&mut config.network.rules), config.network.ceiling.clone());
        let changed = self.changed("start", |policy| Ok(policy.replace(rules, ceiling, boottime())));
        let Response::Changed { .. } = changed else { return changed };
        let is_new = |one: &&Repository| !known.iter().any(|path| path == one.path.as_str());
        let new: Vec<Repository> = config.repositories.iter().filter(is_new).cloned().collect();
        let said = said(&config, &new, begins);
        *lock(&self.late) = Late { task: Some(all), config: Some(Arc::new(config)) };
        if let Err(error) = self.with_config(|config| identity::write_remotes(&identity::remotes(config))) {
            event("task", &format!("forks are not synced: {}", chain(&error)));
        }
        boot::show_secrets(self);
        event("task", &format!("by the operator: {}", said.join("; ")));
        let running = thread("task", move || {
            if begins {
                boot::begin(&innkeeper);
            } else {
                boot::clone_late(&innkeeper, &new);
            }
        });
        match running {
            Ok(()) => Response::Done { said },
            Err(error) => Response::Failed { reason: format!("cannot begin: {error}") },
        }
    }

    /// Everything that was brought, with the directory of each repository settled: a later one must not move it.
    fn joined(&self, mut all: Task, task: Task, known: &[String], begins: bool) -> Result<Task, String> {
        if !begins && task.prompt.is_some() {
            return Err("the session has its task already; tell it there: innkeeper attach".to_owned());
        }
        if !begins && task.repositories.is_empty() && task.secrets.is_empty() {
            return Err("the task has begun; name a repository or a secret that it is to get too".to_owned());
        }
        if all.repositories.len() + task.repositories.len() > MOST {
            return Err(format!("a box takes {MOST} repositories at most after its boot"));
        }
        for (name, _) in &task.secrets {
            self.knows_secret(name)?;
        }
        let alone = known.is_empty() && task.repositories.len() == 1;
        for mut repository in task.repositories {
            if repository.path.is_none() {
                // What is no address is named by the reading of the configuration, with everything else that is wrong.
                let name = RepoUrl::parse(&repository.url).ok().and_then(|url| url.name());
                repository.path =
                    if alone { Some(ONLY.to_owned()) } else { name.map(|name| name.to_string()) };
            }
            all.repositories.push(repository);
        }
        all.secrets.retain(|(name, _)| task.secrets.iter().all(|(newer, _)| newer != name));
        all.secrets.extend(task.secrets);
        all.prompt = task.prompt.or(all.prompt);
        Ok(all)
    }

    /// A name that nobody reads would be a secret in the wrong place.
    fn knows_secret(&self, name: &str) -> Result<(), String> {
        let known = SECRETS.iter().any(|spec| spec.name == name || spec.aliases.contains(&name));
        if known || self.config.required_secrets.iter().any(|required| required.as_str() == name) {
            return Ok(());
        }
        let name = crate::report::harmless(name, 64);
        Err(format!("{name} is no secret of this box; further names go into secrets.required"))
    }
}

fn refused(problems: &Problems) -> Response {
    let reason = problems.to_string();
    if problems.exit_code() == exit::CEILING {
        Response::Refused { reason }
    } else {
        Response::Invalid { reason }
    }
}

/// A line for each thing that happens now.
fn said(config: &Config, new: &[Repository], begins: bool) -> Vec<String> {
    let mut said: Vec<String> = new
        .iter()
        .map(|one| {
            format!("{} is cloned into {}/{}", one.source, crate::filesystem::layout::WORKSPACE, one.path)
        })
        .collect();
    match (begins, &config.session.prompt) {
        (true, Some(prompt)) => {
            said.push(format!(
                "the task begins; its prompt has the SHA-256 {}",
                crate::report::sha256(prompt.as_str())
            ));
        }
        (true, None) => said.push("the session begins, without a prompt".to_owned()),
        (false, _) => said.push("the session goes on".to_owned()),
    }
    said
}
