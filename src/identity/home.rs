//! The child that furnishes the home, `innkeeper home`: runs as the agent and never overwrites what is there.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The skeleton in the image.
pub const SKELETON: &str = "/opt/innkeeper/home";

#[derive(Debug, Clone, clap::Args)]
pub struct Home {
    #[arg(long)]
    pub home: PathBuf,
    #[arg(long, default_value = SKELETON)]
    pub skeleton: PathBuf,
    /// Skills of the operator's, for `.claude/skills`.
    #[arg(long)]
    pub skills: Option<PathBuf>,
    /// Directories in which Claude Code is to work without asking whether it may.
    #[arg(long)]
    pub trust: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot furnish {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is no file that Claude Code writes")]
    Kind { path: PathBuf },
    #[error("{path} is not what Claude Code writes")]
    State { path: PathBuf, source: serde_json::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError + '_ {
    move |source| HomeError::Io { path: path.to_owned(), source }
}

/// Copies the skeleton, makes the usual directories and links, and answers Claude's first questions beforehand.
///
/// The home may be a volume that a former agent left, with anything in it: whatever can't be furnished is a line for
/// the operator, and never a reason not to boot.
#[must_use]
pub fn run(home: &Home) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |result: Result<(), HomeError>| {
        if let Err(error) = result {
            problems.push(crate::report::chain(&error));
        }
    };
    copy(&home.skeleton, &home.home, &mut note);
    for directory in [".cache", ".config", ".local/bin", ".claude"] {
        let path = home.home.join(directory);
        note(fs::create_dir_all(&path).map_err(at(&path)));
    }
    if let Some(skills) = &home.skills {
        give_skills(skills, &home.home.join(".claude/skills"), &mut note);
    }
    let shim = home.home.join(".local/bin/claude");
    note(match symlink("/usr/local/bin/claude", &shim) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(&shim)(error)),
        Ok(()) | Err(_) => Ok(()),
    });
    let state = home.home.join(".claude.json");
    note(claude_state(&state, &home.trust).or_else(|error| set_aside(&state, &home.trust, error)));
    problems
}

/// Each skill whole or not at all: one of that name that is there already is another one, and stays.
fn give_skills(from: &Path, to: &Path, note: &mut impl FnMut(Result<(), HomeError>)) {
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) => return note(Err(at(from)(error))),
    };
    // A home that was kept may have anything there; through a link it would be written elsewhere.
    if let Err(error) = fs::create_dir_all(to) {
        return note(Err(at(to)(error)));
    }
    if fs::symlink_metadata(to).is_ok_and(|found| !found.is_dir()) {
        return note(Err(HomeError::Kind { path: to.to_owned() }));
    }
    for entry in entries.flatten() {
        let target = to.join(entry.file_name());
        let is_skill = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_skill || fs::symlink_metadata(&target).is_ok() {
            continue;
        }
        match fs::create_dir(&target) {
            Ok(()) => copy(&entry.path(), &target, note),
            Err(error) => note(Err(at(&target)(error))),
        }
    }
}

fn copy(from: &Path, to: &Path, note: &mut impl FnMut(Result<(), HomeError>)) {
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) => return note(Err(at(from)(error))),
    };
    for entry in entries.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            match fs::create_dir_all(&target) {
                Ok(()) => copy(&source, &target, note),
                Err(error) => note(Err(at(&target)(error))),
            }
        } else if kind.is_file() && fs::symlink_metadata(&target).is_err() {
            note(copy_file(&source, &target));
        }
    }
}

fn copy_file(source: &Path, target: &Path) -> Result<(), HomeError> {
    let content = fs::read(source).map_err(at(source))?;
    let mode = fs::metadata(source).map_err(at(source))?.permissions().mode() & 0o777;
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode | 0o200).open(target);
    file.and_then(|mut file| file.write_all(&content)).map_err(at(target))
}

/// The state of a long life is a few megabytes; more is no state.
const MAX_STATE: u64 = 64 << 20;

/// Reads a regular file and nothing else: a FIFO would wait for ever, a device could have effects.
fn read_state(path: &Path) -> Result<Option<Vec<u8>>, HomeError> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    let metadata = file.metadata().map_err(at(path))?;
    if !metadata.is_file() || metadata.len() > MAX_STATE {
        return Err(HomeError::Kind { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut bytes).map_err(at(path))?;
    Ok(Some(bytes))
}

/// What can't be read is kept under another name, and Claude gets a fresh state: with its first questions unanswered
/// an unattended box would wait for ever.
fn set_aside(path: &Path, trust: &[String], error: HomeError) -> Result<(), HomeError> {
    let seconds = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let aside = path.with_extension(format!("json.broken-{seconds}"));
    fs::rename(path, &aside).map_err(at(path))?;
    claude_state(path, trust)?;
    // Done, but it is to be known.
    Err(error)
}

/// Claude's own state: onboarding done, the directories trusted. What it knows already stays.
fn claude_state(path: &Path, trust: &[String]) -> Result<(), HomeError> {
    let mut state: Map<String, Value> = match read_state(path)? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| HomeError::State { path: path.to_owned(), source })?,
        None => Map::new(),
    };
    for (key, value) in [
        ("hasCompletedOnboarding", json!(true)),
        ("bypassPermissionsModeAccepted", json!(true)),
        ("hasSeenAutoDefaultNudge", json!(true)),
        ("theme", json!("dark")),
    ] {
        state.entry(key).or_insert(value);
    }
    let projects = state.entry("projects").or_insert_with(|| json!({}));
    if let Value::Object(projects) = projects {
        for directory in trust {
            let project = projects.entry(directory).or_insert_with(|| json!({}));
            if let Value::Object(project) = project {
                project.insert("hasTrustDialogAccepted".into(), json!(true));
                project.insert("hasCompletedProjectOnboarding".into(), json!(true));
            }
        }
    }
    replace(path, &Value::Object(state))
}

/// Atomically, so that a Claude that reads at the same time sees the old or the new.
fn replace(path: &Path, state: &Value) -> Result<(), HomeError> {
    let temporary = path.with_extension(format!("innkeeper-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(at(&temporary))?;
    file.write_all(format!("{state:#}\n").as_bytes()).map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::{Home, run};
    use serde_json::Value;
    use std::fs;

    #[test]
    fn a_kept_home_stays_as_it_was_and_claude_asks_nothing() {
        let base = std::env::temp_dir().join(format!("innkeeper-home-{}", std::process::id()));
        let (skeleton, home) = (base.join("skeleton"), base.join("home"));
        fs::create_dir_all(skeleton.join(".claude")).unwrap();
        fs::create_dir_all(&home).unwrap();
        fs::write(skeleton.join(".bashrc"), "new").unwrap();
        fs::write(skeleton.join(".claude/settings.json"), "{}").unwrap();
        fs::write(home.join(".bashrc"), "mine").unwrap();
        fs::write(home.join(".claude.json"), r#"{"theme":"light","userID":"x"}"#).unwrap();
        let trust = vec!["/workspace/repo".to_owned()];
        assert!(run(&Home { home: home.clone(), skeleton, skills: None, trust }).is_empty());
        assert_eq!(fs::read_to_string(home.join(".bashrc")).unwrap(), "mine");
        assert!(home.join(".claude/settings.json").exists());
        let state: Value = serde_json::from_slice(&fs::read(home.join(".claude.json")).unwrap()).unwrap();
        assert_eq!((state["theme"].as_str(), state["userID"].as_str()), (Some("light"), Some("x")));
        assert_eq!(state["projects"]["/workspace/repo"]["hasTrustDialogAccepted"], true);
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn t76_what_a_former_agent_left_is_set_aside_and_nothing_is_followed() {
        let base = std::env::temp_dir().join(format!("innkeeper-home-left-{}", std::process::id()));
        let (skeleton, home, target) = (base.join("skeleton"), base.join("home"), base.join("target"));
        for directory in [&skeleton, &home] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(&target, "precious").unwrap();
        let furnish =
            || run(&Home { home: home.clone(), skeleton: skeleton.clone(), skills: None, trust: Vec::new() });
        let state = home.join(".claude.json");
        let fresh = || fs::read_to_string(&state).unwrap().contains("hasCompletedOnboarding");
        std::os::unix::fs::symlink(&target, &state).unwrap();
        assert_eq!(furnish().len(), 1, "a link is named");
        assert!(fresh());
        nix::unistd::unlink(&state).unwrap();
        nix::unistd::mkfifo(&state, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(furnish().len(), 1, "a FIFO does not hang us");
        assert!(fresh());
        fs::write(&state, "half a {").unwrap();
        assert_eq!(furnish().len(), 1, "a torn file is named");
        assert!(fresh());
        fs::remove_dir_all(home.join(".claude")).unwrap();
        fs::write(home.join(".claude"), "").unwrap();
        assert_eq!(furnish().len(), 1, "a file in a directory's place is named");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn skills_are_given_once_and_never_through_a_link() {
        let top = std::env::temp_dir().join(format!("innkeeper-skills-{}", std::process::id()));
        let (skills, home) = (top.join("skills"), top.join("home"));
        fs::create_dir_all(skills.join("review/more")).unwrap();
        fs::create_dir_all(skills.join("mine")).unwrap();
        fs::create_dir_all(home.join(".claude/skills/mine")).unwrap();
        fs::write(skills.join("review/SKILL.md"), "review").unwrap();
        fs::write(skills.join("review/more/a.md"), "a").unwrap();
        fs::write(skills.join("mine/SKILL.md"), "the operator's").unwrap();
        fs::write(home.join(".claude/skills/mine/SKILL.md"), "the agent's").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", skills.join("review/link")).unwrap();
        let mut problems = Vec::new();
        super::give_skills(&skills, &home.join(".claude/skills"), &mut |result| {
            problems.extend(result.err());
        });
        let read = |path: &str| fs::read_to_string(home.join(".claude/skills").join(path)).ok();
        assert_eq!(read("review/SKILL.md").as_deref(), Some("review"));
        assert_eq!(read("review/more/a.md").as_deref(), Some("a"));
        assert_eq!(read("mine/SKILL.md").as_deref(), Some("the agent's"), "never overwritten");
        assert_eq!(read("review/link"), None, "a link is not followed");
        assert!(problems.is_empty(), "{problems:?}");
        // A kept home whose skills lead elsewhere.
        fs::remove_dir_all(home.join(".claude/skills")).unwrap();
        fs::create_dir(top.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(top.join("elsewhere"), home.join(".claude/skills")).unwrap();
        super::give_skills(&skills, &home.join(".claude/skills"), &mut |result| {
            problems.extend(result.err());
        });
        assert_eq!((problems.len(), top.join("elsewhere/review").exists()), (1, false));
        fs::remove_dir_all(top).unwrap();
    }
}
