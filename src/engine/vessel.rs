//! Docker and Podman: the command line of a box, as `scripts/run` builds it, and what `ls`, `rm` and `in` are there.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::environment::handed_over;
use super::{Engine, Run, status_of, unfit};
use crate::report::{self, exit};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vessel {
    Docker,
    Podman,
}

impl From<Vessel> for Engine {
    fn from(vessel: Vessel) -> Self {
        match vessel {
            Vessel::Docker => Self::Docker,
            Vessel::Podman => Self::Podman,
        }
    }
}

/// Marks the containers that are boxes, for `ls`.
const LABEL: &str = "innkeeper.box";

impl Vessel {
    fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// What the engine says to a question; `None` if it does not answer.
    fn ask(self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(self.program());
        let said = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    fn answers(self) -> bool {
        let format = match self {
            Self::Docker => "{{.Server.Version}}",
            Self::Podman => "{{.Client.Version}}",
        };
        self.ask(&["version", "--format", format]).is_some()
    }

    fn has(self, name: &str) -> bool {
        self.ask(&["container", "inspect", name]).is_some()
    }
}

/// The first engine that answers.
pub(super) fn answering() -> Option<Vessel> {
    [Vessel::Docker, Vessel::Podman].into_iter().find(|vessel| vessel.answers())
}

/// The whole command line. Credentials go by name: the engine reads their values from its own environment.
fn command_line(options: &Run, environment: &[String], terminal: bool, apparmor: bool) -> Vec<String> {
    let mut words: Vec<String> = vec!["run".to_owned()];
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
    if terminal {
        add(&["--interactive", "--tty", "--env", "TERM"]);
    } else {
        add(&["--detach"]);
    }
    add(&["--name", &options.name, "--hostname", &options.name, "--label", LABEL]);
    add(&["--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN"]);
    if apparmor {
        // Its default profile for containers denies mounts, which the box makes for itself.
        add(&["--security-opt", "apparmor=unconfined"]);
    }
    for name in environment {
        add(&["--env", name]);
    }
    words.extend(options.options.iter().cloned());
    let image = options
        .image
        .clone()
        .or_else(|| std::env::var("INNKEEPER_IMAGE").ok().filter(|image| !image.is_empty()));
    words.push(image.unwrap_or_else(|| "innkeeper".to_owned()));
    words
}

/// Executes the engine; returns only where that fails.
pub(super) fn run(vessel: Vessel, options: &Run) -> u8 {
    let program = vessel.program();
    if !vessel.answers() {
        let next = format!("install or start {program}, or leave out --engine to take what there is");
        return unfit(&format!("{program} does not answer"), &next);
    }
    match vessel.ask(&["container", "inspect", "--format", "{{.State.Running}}", &options.name]).as_deref() {
        Some("true") => {
            report::last_words(
                "run",
                &format!(
                    "a box named {0} is running; enter it: innkeeper in {0}; another one: --name OTHER",
                    options.name
                ),
            );
            return exit::USAGE;
        }
        Some(_) => drop(vessel.ask(&["rm", &options.name])),
        None => {}
    }
    let mut environment: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _): (OsString, OsString)| name.into_string().ok())
        .filter(|name| handed_over(name))
        .collect();
    environment.sort();
    let security = vessel.ask(&["info", "--format", "{{.SecurityOptions}}"]).unwrap_or_default();
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let words = command_line(options, &environment, terminal, security.contains("apparmor"));
    let error = Command::new(program).args(words).exec();
    report::last_words("run", &format!("cannot execute {program}: {error}"));
    exit::INTERNAL
}

/// The boxes of both engines, as lines of `ls`.
pub(super) fn boxes() -> Vec<[String; 5]> {
    let format = "{{.Names}}\t{{.State}}\t{{.CreatedAt}}";
    let mut lines = Vec::new();
    for vessel in [Vessel::Docker, Vessel::Podman] {
        let filter = format!("label={LABEL}");
        let listed =
            vessel.ask(&["ps", "--all", "--filter", &filter, "--format", format]).unwrap_or_default();
        for line in listed.lines() {
            let mut fields = line.split('\t').map(str::to_owned);
            let (name, state, since) = (fields.next(), fields.next(), fields.next());
            let name = name.unwrap_or_default();
            let pid = vessel.ask(&["container", "inspect", "--format", "{{.State.Pid}}", &name]);
            lines.push([
                name,
                vessel.program().to_owned(),
                pid.unwrap_or_else(|| "-".to_owned()),
                state.unwrap_or_default(),
                since.unwrap_or_default(),
            ]);
        }
    }
    lines
}

fn owner(name: &str) -> Option<Vessel> {
    [Vessel::Docker, Vessel::Podman].into_iter().find(|vessel| vessel.has(name))
}

fn unknown(name: &str) -> u8 {
    report::last_words("usage", &format!("there is no box named {name}; innkeeper ls shows all"));
    exit::USAGE
}

pub(super) fn remove(name: &str) -> u8 {
    let Some(vessel) = owner(name) else { return unknown(name) };
    // One that has ended already is stopped in no time.
    let stopped = vessel.ask(&["stop", "--time", "30", name]).is_some();
    let removed = vessel.ask(&["rm", name]).is_some();
    if stopped && removed { exit::OK } else { exit::INTERNAL }
}

pub(super) fn enter(name: &str, command: &[String]) -> u8 {
    let Some(vessel) = owner(name) else { return unknown(name) };
    let mut words = vec!["exec".to_owned()];
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        words.extend(["--interactive".to_owned(), "--tty".to_owned()]);
    }
    words.push(name.to_owned());
    match command.split_first() {
        None => words.extend(["innkeeper".to_owned(), "attach".to_owned()]),
        Some((first, _)) => {
            if super::SHORT.contains(&first.as_str()) {
                words.push("innkeeper".to_owned());
            }
            words.extend(command.iter().cloned());
        }
    }
    match Command::new(vessel.program()).args(words).status() {
        Ok(status) => u8::try_from(status_of(status)).unwrap_or(exit::INTERNAL),
        Err(error) => {
            report::last_words("in", &format!("cannot execute {}: {error}", vessel.program()));
            exit::INTERNAL
        }
    }
}
