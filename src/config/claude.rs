//! `[claude]`: comforts, and the operator's files for them, which must be the operator's alone.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::files::{FileError, read_text};
use super::notices::AGENTS;
use super::problems::Problem;
use super::raw::Place;
use super::values::{Found, Values};
use super::{Claude, Comfort};
use crate::comforts::patterns::Patterns;

/// More is no note to an agent: all of it is in every conversation.
const INSTRUCTIONS_LIMIT: u64 = 256 << 10;
/// Longer ones would take their time at every file that is written.
const FORMATTERS_LIMIT: u64 = 64 << 10;

const SWITCHES: [(&str, Comfort); 5] = [
    ("claude.status_line", Comfort::StatusLine),
    ("claude.notes", Comfort::Notes),
    ("claude.hints", Comfort::Hints),
    ("claude.session_names", Comfort::SessionNames),
    ("claude.sync_fork", Comfort::SyncFork),
];

pub(super) fn claude(values: &mut Values, warnings: &mut Vec<String>) -> Claude {
    let on: Vec<Comfort> = SWITCHES
        .iter()
        .filter(|(key, _)| values.choice(key, false, &[("on", true), ("off", false)]))
        .map(|(_, comfort)| *comfort)
        .collect();
    Claude {
        on,
        formatters: formatters(values),
        instructions: instructions(values),
        skills: directory(values, "claude.skills", warnings),
        plugins: directory(values, "claude.plugins", warnings),
    }
}

/// A file that the agent can't have written: root would read the agent's words as the operator's.
fn operators(path: &Path) -> Option<&'static str> {
    if AGENTS.iter().any(|place| path.starts_with(place)) {
        return Some("it is where the agent can write");
    }
    let Ok(found) = std::fs::metadata(path) else { return None };
    let roots = found.uid() == 0 && found.permissions().mode() & 0o022 == 0;
    let fixed = || {
        let flags = rustix::fs::statvfs(path).map(|system| system.f_flag);
        flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    (!roots && !fixed())
        .then_some("others than root can change it: chown root, chmod go-w, or mount it read-only")
}

/// The text of the operator's file; a default that is not there is none.
fn text(values: &mut Values, found: &Found, path: &Path, limit: u64) -> Option<String> {
    if let Some(why) = operators(path) {
        values.refuse(found, why);
        return None;
    }
    match read_text(path, limit) {
        Ok(Some(text)) => Some(text.as_str().to_owned()),
        Ok(None) if found.place == Place::Default => None,
        Ok(None) => {
            values.refuse(found, "there is no such file");
            None
        }
        Err(error) => {
            values.refuse(found, FileError::sentence(&error));
            None
        }
    }
}

fn formatters(values: &mut Values) -> Option<PathBuf> {
    let (path, found) = (values.path("claude.formatters")?, values.one("claude.formatters")?);
    let text = text(values, &found, &path, FORMATTERS_LIMIT)?;
    let (_, problems) = Patterns::parse(&text);
    for (line, error) in problems {
        let what = format!("{}:{line}", path.display());
        let next =
            "a line is PATTERN[,PATTERN…] PROGRAM [ARGUMENT…], such as *.ts,*.tsx /usr/bin/prettier --write";
        values.problems.push(Problem::new(what, error.to_string(), next));
    }
    Some(path)
}

fn instructions(values: &mut Values) -> Option<String> {
    let (path, found) = (values.path("claude.instructions")?, values.one("claude.instructions")?);
    let text = text(values, &found, &path, INSTRUCTIONS_LIMIT)?;
    if text.trim().is_empty() {
        values.refuse(&found, "the file is blank");
        return None;
    }
    Some(text)
}

/// What is wrong with it is no reason not to start.
fn directory(values: &mut Values, key: &str, warnings: &mut Vec<String>) -> Option<PathBuf> {
    let (path, found) = (values.path(key)?, values.one(key)?);
    if AGENTS.iter().any(|place| path.starts_with(place)) {
        values.refuse(&found, "it is where the agent can write");
        return None;
    }
    if path.is_dir() {
        return Some(path);
    }
    if found.place != Place::Default {
        warnings.push(format!("{}: {} is no directory: {key} is not used", found.place, path.display()));
    }
    None
}
