//! The child that clones, `innkeeper clone`: runs as the agent and says in one line how it went.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Exit status when the directory holds something else: trying again would change nothing.
pub const OCCUPIED: i32 = 3;

#[derive(Debug, Clone, clap::Args)]
pub struct Clone {
    #[arg(long, required_unless_present = "bundle")]
    pub url: Option<String>,
    /// What is cloned in the address's place.
    #[arg(long)]
    pub bundle: Option<PathBuf>,
    #[arg(long)]
    pub into: PathBuf,
    #[arg(long)]
    pub branch: Option<String>,
    #[arg(long)]
    pub depth: Option<u32>,
}

/// Exit status when the forge says no: there is no such repository or branch, or not for this token.
pub const REFUSED: i32 = 4;

/// How it went: an exit status and a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub line: String,
}

impl Outcome {
    fn new(status: i32, line: impl Into<String>) -> Self {
        Self { status, line: line.into() }
    }
}

/// Clones into a directory beside the target and renames it, so that a broken attempt is never taken for a
/// repository, and what is there already (a volume) is kept.
#[must_use]
pub fn run(clone: &Clone) -> Outcome {
    if clone.into.join(".git").exists() {
        return Outcome::new(0, "already there; kept as it is");
    }
    if is_occupied(&clone.into) {
        let line = format!("{} holds something that is no repository; it is kept", clone.into.display());
        return Outcome::new(OCCUPIED, line);
    }
    let staging = staging(&clone.into);
    if let Err(error) = remove(&staging) {
        return Outcome::new(1, format!("cannot remove a broken attempt at {}: {error}", staging.display()));
    }
    let (status, said) = git(clone, &staging);
    if status != 0 {
        drop(remove(&staging));
        let outcome = if is_refusal(&said) { REFUSED } else { 1 };
        return Outcome::new(outcome, format!("git clone failed ({status}): {}", last_lines(&said)));
    }
    if clone.bundle.is_some()
        && let Err(said) = set_origin(clone, &staging)
    {
        drop(remove(&staging));
        return Outcome::new(1, format!("cannot set the origin of a bundle's clone: {}", last_lines(&said)));
    }
    // An empty directory at the target is replaced by the rename; anything else was refused above.
    match std::fs::rename(&staging, &clone.into) {
        Ok(()) => {
            let fork = clone.url.as_ref().and_then(|url| crate::comforts::fork::detect(&clone.into, url));
            let fork = fork.map_or_else(String::new, |fork| format!(", {fork}"));
            Outcome::new(0, format!("cloned {}{fork}", head(&clone.into)))
        }
        Err(error) => Outcome::new(1, format!("cannot put the clone in place: {error}")),
    }
}

fn is_occupied(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn staging(into: &Path) -> PathBuf {
    let name = into.file_name().unwrap_or_default().to_string_lossy();
    into.with_file_name(format!(".{name}.cloning"))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The submodules are left to the agent: their hosts may not be allowed.
fn git(clone: &Clone, staging: &Path) -> (i32, String) {
    let mut command = Command::new("/usr/bin/git");
    // A bundle is a local file to git; an address never is one.
    let allowed =
        if clone.bundle.is_some() { "protocol.file.allow=always" } else { "protocol.https.allow=always" };
    command.args(["-c", "protocol.allow=never", "-c", allowed]);
    command.args(["clone", "--quiet", "--origin", "origin"]);
    if let Some(branch) = &clone.branch {
        command.args(["--branch", branch]);
    }
    if let Some(depth) = clone.depth {
        command.args(["--depth", &depth.to_string()]);
    }
    match (&clone.bundle, &clone.url) {
        (Some(bundle), _) => command.arg("--").arg(bundle).arg(staging),
        (None, url) => command.arg("--").args(url).arg(staging),
    };
    command.env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    run_command(&mut command)
}

/// The bundle is no place to push to; the forge is, where there is one. What it has beyond the bundle is fetched by
/// whoever needs it.
fn set_origin(clone: &Clone, staging: &Path) -> Result<(), String> {
    let mut command = Command::new("/usr/bin/git");
    command.arg("-C").arg(staging).args(["-c", "core.hooksPath=/dev/null", "remote"]);
    match &clone.url {
        Some(url) => command.args(["set-url", "origin", url]),
        None => command.args(["remove", "origin"]),
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match run_command(&mut command) {
        (0, _) => Ok(()),
        (_, said) => Err(said),
    }
}

fn head(directory: &Path) -> String {
    let mut command = Command::new("/usr/bin/git");
    command.arg("-C").arg(directory).args(["log", "-1", "--format=%h %s"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    match run_command(&mut command) {
        (0, line) => format!("at {}", crate::report::harmless(line.trim(), 80)),
        // An empty repository has no commit yet.
        _ => "(no commit yet)".to_owned(),
    }
}

/// Runs a command of this process's own: here is no reaper but us.
fn run_command(command: &mut Command) -> (i32, String) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return (127, error.to_string()),
    };
    let mut said = Vec::new();
    let limit = 16 << 10;
    if let Some(stderr) = child.stderr.take() {
        drop(stderr.take(limit).read_to_end(&mut said));
    } else if let Some(stdout) = child.stdout.take() {
        drop(stdout.take(limit).read_to_end(&mut said));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(-1));
    let status = match waitpid(pid, None) {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        Ok(_) | Err(_) => 127,
    };
    (status, String::from_utf8_lossy(&said).into_owned())
}

/// Git's words for an answer, unlike those for none.
fn is_refusal(said: &str) -> bool {
    ["not found", "Authentication failed", "could not read Username", "returned error: 403"]
        .iter()
        .any(|words| said.contains(words))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::{Clone, OCCUPIED, last_lines, run, staging};
    use std::path::Path;

    #[test]
    fn what_is_there_is_kept() {
        let directory = std::env::temp_dir().join(format!("innkeeper-clone-{}", std::process::id()));
        let into = directory.join("repo");
        std::fs::create_dir_all(&into).unwrap();
        std::fs::write(into.join("work.txt"), "precious").unwrap();
        let clone = Clone {
            url: Some("https://github.com/a/b".into()),
            bundle: None,
            into: into.clone(),
            branch: None,
            depth: None,
        };
        assert_eq!(run(&clone).status, OCCUPIED);
        std::fs::create_dir(into.join(".git")).unwrap();
        assert_eq!(run(&clone).status, 0);
        assert_eq!(std::fs::read_to_string(into.join("work.txt")).unwrap(), "precious");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn attempts_happen_beside_the_target() {
        assert_eq!(staging(Path::new("/workspace/repo")), Path::new("/workspace/.repo.cloning"));
        assert_eq!(last_lines("a\n\nb\nc\nd\n"), "b | c | d");
    }
}
