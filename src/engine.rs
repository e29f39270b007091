//! `innkeeper run`, `ls`, `rm` and `in`: what starts boxes, outside of them. Docker or Podman where one answers, else on
//! Linux the embedded engine. This part builds for macOS too.
#![allow(
    clippy::disallowed_methods,
    reason = "none of this runs in PID 1 of a box: children are waited for where they start"
)]

mod demo;
#[cfg(target_os = "linux")]
pub mod embedded;
pub mod environment;
mod vessel;

use std::path::PathBuf;
use std::process::ExitStatus;

use crate::report::{self, exit};

/// Who makes the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    Docker,
    Podman,
    Embedded,
}

/// How a box is started.
#[derive(Debug, Clone, clap::Args)]
pub struct Run {
    /// Who makes the box; without it Docker, else Podman, else (as root, on Linux) the embedded engine
    #[arg(long)]
    pub engine: Option<Engine>,
    /// The box's name, also its host name
    #[arg(long, default_value = "innkeeper", value_parser = name)]
    pub name: String,
    /// docker and podman: the image (INNKEEPER_IMAGE, else innkeeper)
    #[arg(long)]
    pub image: Option<String>,
    /// embedded: where tmux and Claude Code are (scripts/programs fills it)
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// embedded: allowlist and profiles, in place of those that came with this binary
    #[arg(long, value_name = "DIR")]
    pub network: Option<PathBuf>,
    /// embedded: the box's innkeeper.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A guided tour in place of Claude Code: needs no credentials, shows what is refused and by whom
    #[arg(long)]
    pub demo: bool,
    /// docker and podman: options of theirs
    #[arg(last = true)]
    pub options: Vec<String>,
}

/// A name that is a host's, a file's and a container's at once.
fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = (1..=40).contains(&text.len()) && text.chars().all(allowed);
    let edges = text.starts_with(edge) && text.ends_with(edge);
    if fits && edges {
        Ok(text.to_owned())
    } else {
        Err("a name has at most 40 of a-z, 0-9 and -, and begins and ends with one of the former".to_owned())
    }
}

/// A box by its name.
#[derive(Debug, Clone, clap::Args)]
pub struct Named {
    #[arg(value_parser = name)]
    pub name: String,
}

/// A command in a box.
#[derive(Debug, Clone, clap::Args)]
pub struct In {
    #[arg(value_parser = name)]
    pub name: String,
    /// A program of the box's, or one of innkeeper's commands without `innkeeper` (status, check, log …); without any, the
    /// session
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Commands of ours that are said without `innkeeper` before them.
const SHORT: &[&str] =
    &["allow", "attach", "check", "doctor", "log", "reload", "revoke", "rules", "settings", "status"];

/// The status as a shell would give it: 128 + n after a signal.
fn status_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| Some(status.signal()?.saturating_add(128))).unwrap_or(i32::from(exit::INTERNAL))
}

fn unfit(what: &str, next: &str) -> u8 {
    report::last_words("run", what);
    report::last_words("next", next);
    exit::CONFIG
}

/// Starts a box and stays with it.
pub fn run(options: &Run) -> u8 {
    if options.demo {
        return demo::run(options);
    }
    let engine = options.engine.or_else(|| vessel::answering().map(Engine::from));
    match engine {
        Some(Engine::Docker) => vessel::run(vessel::Vessel::Docker, options),
        Some(Engine::Podman) => vessel::run(vessel::Vessel::Podman, options),
        Some(Engine::Embedded) | None => embedded(options),
    }
}

#[cfg(target_os = "linux")]
impl Run {
    fn programs(&self) -> PathBuf {
        let named =
            self.programs.clone().or_else(|| std::env::var_os("INNKEEPER_PROGRAMS").map(PathBuf::from));
        named.unwrap_or_else(|| PathBuf::from(embedded::programs::DIRECTORY))
    }
}

#[cfg(target_os = "linux")]
fn embedded(options: &Run) -> u8 {
    embedded::run(options)
}

#[cfg(not(target_os = "linux"))]
fn embedded(_: &Run) -> u8 {
    unfit(
        "neither docker nor podman answers, and the embedded engine needs Linux",
        "start Docker Desktop, or run this in a Linux machine",
    )
}

/// How the boxes are listed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct List {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

const COLUMNS: [&str; 5] = ["NAME", "ENGINE", "PID", "STATE", "SINCE"];

/// Every box that this host knows of.
pub fn ls(list: List) -> u8 {
    let mut lines = Vec::new();
    #[cfg(target_os = "linux")]
    match embedded_boxes() {
        Ok(boxes) => lines.extend(boxes),
        Err(error) => report::last_words("ls", &report::chain(&error)),
    }
    lines.extend(vessel::boxes());
    if list.json {
        let object = |line: &[String; 5]| {
            let cells = COLUMNS.iter().zip(line).map(|(name, cell)| (name.to_lowercase(), cell.clone()));
            let object: std::collections::BTreeMap<String, String> = cells.collect();
            serde_json::to_string(&object).unwrap_or_default() + "\n"
        };
        return crate::cli::print(&lines.iter().map(object).collect::<String>());
    }
    lines.insert(0, COLUMNS.map(str::to_owned));
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let text: String = lines
        .iter()
        .map(|line| {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("{}\n", cells.join("  ").trim_end())
        })
        .collect();
    crate::cli::print(&text)
}

#[cfg(target_os = "linux")]
fn embedded_boxes() -> Result<Vec<[String; 5]>, embedded::EmbeddedError> {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new(embedded::state::DIRECTORY).exists() {
        return Ok(Vec::new());
    }
    let desk = embedded::state::Desk::open()?;
    embedded::sweep(&desk)?;
    let line = |record: embedded::state::Record| {
        let alive = record.guest.is_some_and(embedded::state::Process::alive);
        let pid = record.guest.map_or_else(|| "-".to_owned(), |guest| guest.pid.to_string());
        let state = if alive { "running" } else { "starting" };
        [record.name, "embedded".to_owned(), pid, state.to_owned(), record.since]
    };
    Ok(desk.records()?.into_iter().map(line).collect())
}

/// Stops a box and removes what is left of it.
pub fn rm(named: &Named) -> u8 {
    #[cfg(target_os = "linux")]
    if let Some(status) = stop_embedded(&named.name) {
        return status;
    }
    vessel::remove(&named.name)
}

#[cfg(target_os = "linux")]
fn stop_embedded(name: &str) -> Option<u8> {
    let found = find(name);
    match found {
        Ok(None) => None,
        Ok(Some(record)) => Some(match embedded::stop(&record) {
            Ok(()) => exit::OK,
            Err(error) => {
                report::last_words("rm", &report::chain(&error));
                exit::INTERNAL
            }
        }),
        Err(error) => {
            report::last_words("rm", &report::chain(&error));
            Some(exit::INTERNAL)
        }
    }
}

#[cfg(target_os = "linux")]
fn find(name: &str) -> Result<Option<embedded::state::Record>, embedded::EmbeddedError> {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new(embedded::state::DIRECTORY).exists() {
        return Ok(None);
    }
    let desk = embedded::state::Desk::open()?;
    embedded::sweep(&desk)?;
    Ok(desk.records()?.into_iter().find(|record| record.name == name))
}

/// Runs a command in a box.
pub fn enter(arguments: &In) -> u8 {
    #[cfg(target_os = "linux")]
    match find(&arguments.name) {
        Ok(None) => {}
        Ok(Some(record)) => {
            let Some(guest) = record.guest else {
                return unfit("the box is only being started", "try again in a moment");
            };
            embedded::close_inherited();
            return match embedded::enter::run(guest, &arguments.command) {
                Ok(status) => u8::try_from(status).unwrap_or(exit::INTERNAL),
                Err(error) => {
                    report::last_words("in", &report::chain(&error));
                    exit::INTERNAL
                }
            };
        }
        Err(error) => {
            report::last_words("in", &report::chain(&error));
            return exit::INTERNAL;
        }
    }
    vessel::enter(&arguments.name, &arguments.command)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names() {
        for good in ["a", "innkeeper", "box-2", "0"] {
            assert!(super::name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", &"x".repeat(41)] {
            assert!(super::name(bad).is_err(), "{bad}");
        }
    }
}
