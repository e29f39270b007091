//! The steps that decide where the agent may write and who it is there: mounts, home, identity, seal.

use std::cell::Cell;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::host;
use super::step::{Failure, Steps, Trouble, Verified};
use super::{HOME, IDENTITY, MOUNTS, SEAL};
use crate::config::Start;
use crate::control;
use crate::filesystem::layout::{self, Mount};
use crate::filesystem::seal::Writable;
use crate::filesystem::surfaces::{SECRETS, SurfaceError, readable_secrets};
use crate::filesystem::{self, Sealed};
use crate::headless::termination;
use crate::identity;
use crate::innkeeper::{CREDENTIAL_HOSTS, Innkeeper};
use crate::prerequisites::places::seal_lack;
use crate::prerequisites::privileges::Privileges;
use crate::prerequisites::{self, limits, programs, together};
use crate::report::{chain, event};
use crate::session;
use crate::supervisor::Launch;
use crate::supervisor::run_as::Identity;

/// The home, and the directories in which Claude Code works without asking whether it may.
pub(super) fn home_arguments(innkeeper: &Innkeeper) -> Vec<String> {
    let mut args = vec!["--home".to_owned(), innkeeper.accounts.agent.home.clone()];
    let mut trust = vec![layout::WORKSPACE.to_owned()];
    let paths = innkeeper.config.repositories.iter().map(|repository| &repository.path);
    trust.extend(paths.map(|path| format!("{}/{path}", layout::WORKSPACE)));
    if let Some(skills) = &innkeeper.config.claude.skills {
        args.extend(["--skills".to_owned(), skills.display().to_string()]);
    }
    args.extend(trust.into_iter().flat_map(|directory| ["--trust".to_owned(), directory]));
    args
}

/// Enough to see what is wrong with a home.
const HOME_PROBLEMS: usize = 5;
/// A child that furnishes the home copies a few small files.
const HOME_LIMIT: Duration = Duration::from_secs(15);
/// It prints a word and ends.
const TMUX_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn mounts(innkeeper: &Arc<Innkeeper>, steps: &Steps) -> Result<Vec<Mount>, Failure> {
    let agent = &innkeeper.accounts.agent;
    let config = &innkeeper.config;
    if let Some(warning) = layout::memory_warning(prerequisites::places::sizes(config), limits::memory()) {
        innkeeper.board().warn(warning);
    }
    let may_mount = Privileges::look().may_mount();
    let places = steps.run(
        MOUNTS,
        || Ok(prerequisites::places::layout(config, agent)),
        |places| {
            filesystem::apply(places).map_err(|errors| {
                let lacks = prerequisites::places::lacks(errors, places, may_mount);
                together(&lacks).map_or_else(|| Trouble::fault("no place failed".to_owned()), Trouble::from)
            })
        },
        |places| {
            let next = "let the runtime make it as README.md says, or chown the volume to the agent's uid";
            let found = filesystem::verify(places).map_err(|found| Trouble::unfit(found, next))?;
            if let Some(weaker) = found.weaker {
                innkeeper.board().warn(weaker);
            }
            Ok(Verified::new(places.clone(), found.detail))
        },
    )?;
    innkeeper.use_volume(&places);
    open_control(innkeeper)?;
    Ok(places)
}

/// As soon as /run/innkeeper is there: `attach` and `status` show the rest of the boot.
pub(super) fn open_control(innkeeper: &Arc<Innkeeper>) -> Result<(), Failure> {
    let failed = |trouble| Failure { step: MOUNTS.name, trouble };
    let private = filesystem::private_directory(Path::new(layout::STATE_PRIVATE), 0o700);
    private.map_err(|error| failed(Trouble::internal(&error)))?;
    let desk = innkeeper.shared();
    control::server::serve(Path::new(control::protocol::SOCKET), innkeeper.accounts.agent.uid, desk)
        .map_err(|error| failed(Trouble::internal(&error)))
}

/// Whom the agent's processes run as, wherever PID 1 starts them.
#[must_use]
pub(crate) fn agent_identity(innkeeper: &Innkeeper, cwd: &str) -> Identity {
    let agent = &innkeeper.accounts.agent;
    Identity {
        cwd: PathBuf::from(cwd),
        confine: true,
        allow_userns: innkeeper.config.agent.userns,
        allow_ptrace: innkeeper.config.agent.ptrace,
        processes: *innkeeper.processes.get_or_init(|| host::process_limit(innkeeper)),
        oom_score_adj: 500,
        ..Identity::worker(agent.uid, agent.gid)
    }
}

/// The agent's environment, without any secret.
#[must_use]
pub(super) fn agent_environment(innkeeper: &Innkeeper) -> Vec<(String, String)> {
    let extra_ca = innkeeper.config.tls.ca_certs.is_some();
    let proxy = innkeeper.proxy.get().copied();
    identity::environment(&innkeeper.accounts.agent, extra_ca, proxy, |name| innkeeper.given(name))
}

/// Runs a hidden subcommand of ours as the agent, to its end; returns what it said.
pub(super) fn as_agent(
    innkeeper: &Innkeeper,
    subcommand: &'static str,
    args: Vec<String>,
) -> Result<String, Trouble> {
    let identity = agent_identity(innkeeper, "/");
    let launch = Launch::own(subcommand, Some(identity)).args(args).env(agent_environment(innkeeper));
    let next = "look at the volume at the agent's home: is it reachable and writable for its uid?";
    let said = innkeeper.spawner.listen(launch, HOME_LIMIT, 4096);
    let said = said.map_err(|error| Trouble::unfit(chain(&error), next))?;
    if said.exit.success() {
        return Ok(said.text);
    }
    let words = crate::report::inert(said.text.trim());
    Err(Trouble::unfit(format!("`innkeeper {subcommand}` as the agent: {}: {words}", said.exit), next))
}

/// The session's tmux is there already; whether it is new enough, only it can say.
fn tmux(innkeeper: &Innkeeper) -> Result<(), Trouble> {
    let launch = Launch::program(session::tmux(), agent_identity(innkeeper, "/")).args(["-V"]);
    let said =
        innkeeper.spawner.listen(launch, TMUX_LIMIT, 256).map_err(|error| Trouble::internal(&error))?;
    if let Some(lack) = programs::tmux_lack(&said.text) {
        return Err(lack.into());
    }
    if let Some(lack) = programs::tmux_flickers(&said.text) {
        innkeeper.board().warn(format!("{}: {}", lack.what, lack.next));
    }
    Ok(())
}

pub(super) fn furnish(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let agent = &innkeeper.accounts.agent;
    let plan = || {
        tmux(innkeeper)?;
        Ok(home_arguments(innkeeper))
    };
    let mut problems = String::new();
    let apply = |args: &Vec<String>| {
        problems = as_agent(innkeeper, "home", args.clone())?;
        Ok(())
    };
    steps.run(HOME, plan, apply, |_| {
        // The link itself, not what it leads to: the home is the agent's.
        let claude = Path::new(&agent.home).join(".claude.json");
        std::fs::symlink_metadata(&claude).map_err(|error| {
            let next = "is the home, or the volume there, writable for the agent's uid?";
            Trouble::unfit(format!("{} was not made: {error}", claude.display()), next)
        })?;
        Ok(Verified::new((), agent.home.clone()))
    })?;
    // What a former agent left in a kept home is its own affair, but to be known.
    for problem in problems.lines().take(HOME_PROBLEMS) {
        innkeeper.board().warn(format!("home: {}", crate::report::inert(problem)));
    }
    Ok(())
}

pub(super) fn identity(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let config = &innkeeper.config;
    let plan = || {
        let extra_ca = match &config.tls.ca_certs {
            Some(path) => Some(identity::certificates(&path.display().to_string()).map_err(|error| {
                Trouble::unfit(chain(&error), "tls.ca_certs must name a PEM file that is in the box")
            })?),
            None => None,
        };
        // It may come with the task; until then the helper has nothing to give.
        let with_token = config.secrets.get("GH_TOKEN").is_some() || config.session.start == Start::Wait;
        let hosts = CREDENTIAL_HOSTS.iter().filter(|_| with_token).map(|host| (*host).to_owned()).collect();
        let (name, email) = (config.identity.name.clone(), config.identity.email.clone());
        let (mut claude, remotes) = (super::comforts::plan(config), identity::remotes(config));
        // Beside it they are empty there, so that no settings of a project lead elsewhere.
        claude.env.extend(innkeeper.proxy.get().into_iter().flat_map(|proxy| identity::proxied(*proxy)));
        Ok(identity::Plan { name, email, extra_ca, credential_hosts: hosts, claude, remotes })
    };
    steps.run(
        IDENTITY,
        plan,
        |plan| identity::apply(plan).map_err(|error| Trouble::internal(&error)),
        |plan| {
            let found = identity::verify(plan);
            let next =
                "the image must have the links of the Dockerfile below /etc that lead to /run/innkeeper/etc";
            found.map(|detail| Verified::new((), detail)).map_err(|found| Trouble::unfit(found, next))
        },
    )
}

pub(super) fn seal(innkeeper: &Innkeeper, steps: &Steps, places: &[Mount]) -> Result<Sealed, Failure> {
    let accepted = |name: &str| innkeeper.config.boot.accepts(name);
    let plan = || {
        let doors = filesystem::surfaces::find().map_err(|error| Trouble::internal(&error))?;
        let log = innkeeper.config.log.file.as_deref();
        Ok((
            Writable::new(places, innkeeper.accounts.agent.owner()).keeping(log).keeping(termination::held()),
            doors,
        ))
    };
    let uncovered = Cell::new(0);
    steps.run(
        SEAL,
        plan,
        |(writable, doors)| {
            // Both go on after a failure; what counts is what the verification, and then the self-attack, finds.
            let failed = filesystem::surfaces::cover(doors).map_err(|error| Trouble::internal(&error))?;
            uncovered.set(failed.len());
            for error in failed {
                uncovered_door(innkeeper, &error);
            }
            if let Err(error) = filesystem::seal::apply(writable) {
                event("seal", &chain(&error));
            }
            Ok(())
        },
        |(writable, doors)| match filesystem::seal::verify(writable) {
            Ok(left) => {
                let detail = sealed_detail(innkeeper, &left, doors.len(), uncovered.get());
                Ok(Verified::new(Sealed::new(writable.clone(), doors.clone()), detail))
            }
            Err(found) if accepted("rootfs") => {
                let detail = format!("given up by boot.accept=rootfs: {found}");
                Ok(Verified::degraded(Sealed::new(writable.clone(), doors.clone()), detail))
            }
            Err(found) => Err(seal_lack(found, Privileges::look().may_mount()).into()),
        },
    )
}

/// A door that stays open to whoever its modes let through: the self-attack judges the doors, and secrets are said here.
fn uncovered_door(innkeeper: &Innkeeper, error: &SurfaceError) {
    let how = "only its own modes keep the agent out, until --cap-add SYS_ADMIN lets innkeeper cover it";
    innkeeper.board().warn(format!("{}: {how}", chain(error)));
    let of_secrets = matches!(error, SurfaceError::Cover { path, .. } if path == Path::new(SECRETS));
    let readable = if of_secrets { readable_secrets(innkeeper.accounts.agent.owner()) } else { Vec::new() };
    if !readable.is_empty() {
        let list: Vec<String> = readable.iter().map(|path| path.display().to_string()).collect();
        let next = "give them mode 0400, or --cap-add SYS_ADMIN";
        innkeeper.board().warn(format!("the agent can read the mounted secrets {}: {next}", list.join(", ")));
    }
}

/// The line of the boot log; what is less than it could be becomes a warning.
fn sealed_detail(innkeeper: &Innkeeper, left: &[PathBuf], doors: usize, uncovered: usize) -> String {
    let mut detail = match filesystem::seal::left_to_root(left) {
        None => "read-only but for the agent's places".to_owned(),
        Some(left) => {
            innkeeper.board().warn(format!("{left}: --read-only, or --cap-add SYS_ADMIN, closes it"));
            "nothing is writable for the agent but its places".to_owned()
        }
    };
    if doors > 0 {
        let how = if uncovered == 0 { "covered" } else { "not all covered" };
        detail.push_str(&format!("; {doors} host doors {how}"));
    }
    detail
}

/// For the attack's plan: directories where nobody but root may make a file.
#[must_use]
pub(super) fn sealed_directories(writable: &Writable) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        ["/", "/etc", "/usr/local/bin", "/opt", "/var", "/run", "/root", "/dev", "/run/innkeeper"]
            .map(PathBuf::from)
            .to_vec();
    directories.extend(writable.sealed_mounts());
    directories.retain(|path| {
        std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && !m.file_type().is_socket())
    });
    directories.sort();
    directories.dedup();
    directories
}
