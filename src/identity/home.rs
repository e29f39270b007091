//! The child that furnishes the home, `innkeeper home`: runs as the agent and never overwrites what is there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
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
    /// Directories in which Claude Code is to work without asking whether it may.
    #[arg(long)]
    pub trust: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("cannot furnish {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not what Claude Code writes; it is left alone and Claude may ask its first questions")]
    State { path: PathBuf, source: serde_json::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError + '_ {
    move |source| HomeError::Io { path: path.to_owned(), source }
}

/// Copies the skeleton, makes the usual directories and links, and answers Claude's first questions beforehand.
pub fn run(home: &Home) -> Result<(), HomeError> {
    copy(&home.skeleton, &home.home)?;
    for directory in [".cache", ".config", ".local/bin", ".claude"] {
        let path = home.home.join(directory);
        fs::create_dir_all(&path).map_err(at(&path))?;
    }
    let shim = home.home.join(".local/bin/claude");
    match symlink("/usr/local/bin/claude", &shim) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&shim)(error)),
        Ok(()) | Err(_) => {}
    }
    claude_state(&home.home.join(".claude.json"), &home.trust)
}

fn copy(from: &Path, to: &Path) -> Result<(), HomeError> {
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(at(&source))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(at(&target))?;
            copy(&source, &target)?;
        } else if kind.is_file() && fs::symlink_metadata(&target).is_err() {
            let content = fs::read(&source).map_err(at(&source))?;
            let mode = entry.metadata().map_err(at(&source))?.permissions().mode() & 0o777;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode | 0o200)
                .open(&target)
                .map_err(at(&target))?;
            file.write_all(&content).map_err(at(&target))?;
        }
    }
    Ok(())
}

/// Claude's own state: onboarding done, the directories trusted. What it knows already stays.
fn claude_state(path: &Path, trust: &[String]) -> Result<(), HomeError> {
    let mut state: Map<String, Value> = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| HomeError::State { path: path.to_owned(), source })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(at(path)(error)),
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
        run(&Home { home: home.clone(), skeleton, trust }).unwrap();
        assert_eq!(fs::read_to_string(home.join(".bashrc")).unwrap(), "mine");
        assert!(home.join(".claude/settings.json").exists());
        let state: Value = serde_json::from_slice(&fs::read(home.join(".claude.json")).unwrap()).unwrap();
        assert_eq!((state["theme"].as_str(), state["userID"].as_str()), (Some("light"), Some("x")));
        assert_eq!(state["projects"]["/workspace/repo"]["hasTrustDialogAccepted"], true);
        fs::remove_dir_all(base).unwrap();
    }
}
