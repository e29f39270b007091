//! Brings a fork up to its upstream when a session begins: never forced, in the background, by the operator's addresses.
//!
//! Which repositories there are is read from root's list ([`SNAPSHOT`]), which is made of the configuration: what a
//! repository's own configuration says of its remotes is the agent's.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{child, fork};

/// Remotes as the operator configured them, a line each: the directory, a tab, the address.
pub const SNAPSHOT: &str = "/run/innkeeper/etc/remotes";
/// The hook starts the work and ends.
pub(super) const BEGIN_LIMIT: Duration = Duration::from_secs(2);
/// All of the work.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
const GH: &str = "/usr/local/bin/gh";
const GIT: &str = "/usr/bin/git";

/// Starts the work as a process of its own, which nobody waits for.
pub(super) fn begin() {
    let mut command = Command::new("/proc/self/exe");
    command.args(["comfort", "sync-fork", "--now"]).process_group(0).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Without it the fork stays as it is.
    drop(command.spawn());
}

pub(super) fn run() {
    let until = Instant::now() + LIMIT;
    let Ok(text) = std::fs::read_to_string(SNAPSHOT) else { return };
    for (directory, url) in remotes(&text) {
        if let Some(slug) = fork::slug(url) {
            sync(Path::new(directory), url, &slug, until);
        }
    }
}

fn remotes(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once('\t'))
}

/// Each part only after the one before it went well.
fn sync(directory: &Path, url: &str, slug: &str, until: Instant) -> Option<()> {
    let left = || until.saturating_duration_since(Instant::now());
    let gh = |args: &[&str]| {
        let mut command = Command::new(GH);
        command.args(args).env("GH_PROMPT_DISABLED", "1").current_dir("/");
        child::run(&mut command, left())
    };
    let git = |args: &[&str]| {
        let mut command = Command::new(GIT);
        command.env("GIT_TERMINAL_PROMPT", "0").arg("-C").arg(directory).args(args);
        child::run(&mut command, left())
    };
    let said = gh(&["api", &format!("repos/{slug}"), "--jq", "select(.fork) | .default_branch"])?;
    let branch = said.trim();
    git(&["check-ref-format", "--branch", branch]).filter(|_| !branch.is_empty())?;
    // What `gh repo sync` asks for without --force (docs.github.com, "Sync a fork branch with the upstream repository"):
    // a fork in conflict stays as it is.
    gh(&["api", "-X", "POST", &format!("repos/{slug}/merge-upstream"), "-f", &format!("branch={branch}")])?;
    let on = git(&["symbolic-ref", "--short", "HEAD"])?;
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty();
    git(&["fetch", "--quiet", "--no-tags", url, branch])?;
    if on.trim() == branch && clean {
        git(&["merge", "--quiet", "--ff-only", "FETCH_HEAD"])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::remotes;

    #[test]
    fn a_line_is_a_directory_and_an_address() {
        let text = "/workspace/repo\thttps://github.com/a/b\nnonsense\n/workspace/x\thttps://git.test/x\n";
        let found: Vec<_> = remotes(text).collect();
        assert_eq!(
            found,
            [("/workspace/repo", "https://github.com/a/b"), ("/workspace/x", "https://git.test/x")]
        );
    }
}
