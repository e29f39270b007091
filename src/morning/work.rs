//! The child that looks at a repository, `innkeeper work`: runs as the agent, asks git, and says in JSON what it found.
//!
//! A repository is whatever the agent made of it. Root never opens it. Git runs here with the agent's rights and
//! confinement and with a configuration of ours where its own could execute something (hooks, fsmonitor, pager, external
//! diff and textconv); a filter of the repository may still run, as the agent could run it by itself. Every question has
//! a time limit and a bound, and so has the child.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::report::{bounded, harmless};

#[derive(Debug, Clone, clap::Args)]
pub struct Work {
    #[arg(long)]
    pub path: PathBuf,
    /// Seconds since 1970: commits after it are told.
    #[arg(long)]
    pub since: u64,
}

/// What was done in a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RepositoryWork {
    pub path: String,
    pub branch: Option<String>,
    /// The newest first, by their own clock; at most 50 are listed.
    pub commits: Vec<Commit>,
    /// All of them.
    pub commit_count: u64,
    /// Commits that no remote has, as far as the repository knows.
    pub unpushed: Option<u64>,
    /// Sums over the listed commits.
    pub files: u64,
    pub insertions: u64,
    pub deletions: u64,
    /// Files with changes that are in no commit, and files that git does not know.
    pub changed: u64,
    pub untracked: u64,
    /// What could not be found out.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub id: String,
    /// Seconds since 1970, as the commit says.
    pub time: u64,
    pub author: String,
    pub subject: String,
    pub files: u64,
    pub insertions: u64,
    pub deletions: u64,
}

/// Commits that are listed.
const COMMITS: usize = 50;
/// One question of git's. Several fit into the limit of the child.
const QUESTION: Duration = Duration::from_secs(3);
/// The child with all its questions.
pub const LIMIT: Duration = Duration::from_secs(10);
/// What is read of an answer of git's.
const ANSWER: u64 = 1 << 20;
/// What the child may say.
pub const MOST: u64 = 64 << 10;

/// Looks at the repository.
#[must_use]
pub fn run(work: &Work) -> RepositoryWork {
    let mut found = RepositoryWork { path: work.path.display().to_string(), ..RepositoryWork::default() };
    match look(work, &mut found) {
        Ok(()) => {}
        Err(trouble) => found.trouble = Some(clean(&trouble)),
    }
    found
}

fn look(work: &Work, found: &mut RepositoryWork) -> Result<(), String> {
    found.branch = git(work, &["rev-parse", "--abbrev-ref", "HEAD"]).ok().map(|name| clean(name.trim()));
    // A number of at most eight digits is a day or an hour to git (date.c), and what was before 1973 is not asked for.
    let since = format!("--since=@{}", work.since.max(100_000_000));
    // Commits are separated by a record separator, their fields by a unit separator: neither is in a line of text.
    let format = "--format=%x1e%h%x1f%ct%x1f%an%x1f%s";
    let most = format!("--max-count={COMMITS}");
    let common =
        ["log", "--all", "--no-merges", "--no-ext-diff", "--no-textconv", "--no-renames", "--shortstat"];
    let log = git(work, &[&common[..], &[&since, format, &most]].concat())?;
    found.commits = log.split('\x1e').skip(1).filter_map(commit).take(COMMITS).collect();
    for commit in &found.commits {
        found.files = found.files.saturating_add(commit.files);
        found.insertions = found.insertions.saturating_add(commit.insertions);
        found.deletions = found.deletions.saturating_add(commit.deletions);
    }
    found.commit_count = number(&git(work, &["rev-list", "--count", "--all", "--no-merges", &since])?);
    found.unpushed = git(work, &["rev-list", "--count", "--branches", "--not", "--remotes"])
        .ok()
        .map(|text| number(&text));
    let status = git(work, &["status", "--porcelain=v1", "-z", "--ignore-submodules=all", "--no-renames"])?;
    let (untracked, changed): (Vec<&str>, Vec<&str>) =
        status.split('\0').filter(|line| line.len() > 3).partition(|line| line.starts_with("??"));
    found.untracked = u64::try_from(untracked.len()).unwrap_or(u64::MAX);
    found.changed = u64::try_from(changed.len()).unwrap_or(u64::MAX);
    Ok(())
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn clean(text: &str) -> String {
    harmless(text, 120)
}

/// "ID UNIT TIME UNIT AUTHOR UNIT SUBJECT", and behind it the line of `--shortstat`.
fn commit(text: &str) -> Option<Commit> {
    let (head, rest) = text.split_once('\n').unwrap_or((text, ""));
    let mut fields = head.splitn(4, '\x1f');
    let (id, time, author) = (fields.next()?, fields.next()?, fields.next()?);
    let subject = fields.next().unwrap_or_default();
    let count = |word: &str| {
        let parts = rest.split([',', '\n']).map(str::trim);
        let part = parts.into_iter().find(|part| part.contains(word));
        part.and_then(|part| part.split(' ').next()).map_or(0, number)
    };
    Some(Commit {
        id: clean(id),
        time: number(time),
        author: bounded(&clean(author), 60),
        subject: clean(subject),
        files: count("changed"),
        insertions: count("insertion"),
        deletions: count("deletion"),
    })
}

fn git(work: &Work, args: &[&str]) -> Result<String, String> {
    let mut command = crate::git::command(&[]);
    command.arg("-C").arg(&work.path).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    answer(command, args.first().copied().unwrap_or_default())
}

/// Here is no reaper but us. What git starts may hold its standard output open: it is read on a thread, and left.
fn answer(mut command: Command, what: &str) -> Result<String, String> {
    let mut child = command.spawn().map_err(|error| format!("git {what}: {error}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(-1));
    let Some(stdout) = child.stdout.take() else { return Err(format!("git {what}: no output")) };
    let (tell, heard) = mpsc::channel();
    let reading = crate::supervisor::thread("git", move || {
        let mut bytes = Vec::new();
        let read = stdout.take(ANSWER).read_to_end(&mut bytes);
        drop(tell.send(read.map(|_| bytes)));
    });
    let text = match reading {
        Ok(()) => heard.recv_timeout(QUESTION).ok().and_then(Result::ok),
        Err(_) => None,
    };
    // It has ended, or its answer is too long or too late.
    let late = text.is_none();
    if late {
        kill(pid, Signal::SIGKILL).ok();
    }
    let ended = reap(pid);
    match text {
        None => Err(format!("git {what} took too long")),
        Some(bytes) if ended || bytes.len() >= usize::try_from(ANSWER).unwrap_or(usize::MAX) => {
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Some(_) => Err(format!("git {what} failed")),
    }
}

/// Whether it ended well. An answer that was cut at its bound ends git by SIGPIPE.
fn reap(pid: Pid) -> bool {
    matches!(waitpid(pid, None), Ok(nix::sys::wait::WaitStatus::Exited(_, 0)))
}

#[cfg(test)]
mod tests {
    use super::{Work, answer, commit, run};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn a_line_of_the_log_and_its_numbers() {
        let text = "abc123\x1f1700000000\x1fA \x1b[31mB\x1fFix: it, all of 3 files changed\n\n 2 files changed, 10 insertions(+), 3 deletions(-)\n";
        let seen = commit(text).unwrap();
        assert_eq!((seen.files, seen.insertions, seen.deletions, seen.time), (2, 10, 3, 1_700_000_000));
        assert_eq!(seen.author, "A \\u{1b}[31mB");
        let only = commit("abc\x1fx\x1fA\x1fs\n\n 1 file changed, 1 deletion(-)\n").unwrap();
        assert_eq!((only.files, only.insertions, only.deletions, only.time), (1, 0, 1, 0));
        assert!(commit("").is_none() && commit("a\x1fb").is_none());
        assert_eq!(commit("a\x1f1\x1fb").unwrap().subject, "");
    }

    fn sh(directory: &Path, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(directory).stdout(Stdio::piped());
        command.env("GIT_CONFIG_GLOBAL", "/dev/null");
        answer(command, script).unwrap();
    }

    /// T77: nothing of these runs where git is asked, and a filter that does can't hang it.
    #[test]
    fn t77_a_hostile_repository_is_asked_all_the_same() {
        let directory = std::env::temp_dir().join(format!("innkeeper-work-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        let ran = directory.join("ran");
        let identity =
            "git config user.name A; git config user.email a@a.test; git config commit.gpgsign false";
        sh(
            &directory,
            &format!("git init -qb main .; {identity}; echo one >f; git add f; git commit -qm first"),
        );
        sh(&directory, "echo two >>f; echo x >new; git commit -qam second");
        let work = Work { path: directory.clone(), since: 0 };
        let found = run(&work);
        assert_eq!(
            (found.commit_count, found.insertions, found.untracked, found.changed),
            (2, 2, 1, 0),
            "{found:?}"
        );
        assert_eq!((found.branch.as_deref(), found.unpushed), (Some("main"), Some(2)));
        assert_eq!(found.commits[0].subject, "second");
        let touch = format!("touch {}", ran.display());
        for setting in ["core.fsmonitor", "core.pager", "diff.external", "core.sshCommand", "diff.x.textconv"]
        {
            sh(&directory, &format!("git config {setting} '{touch}; false'"));
        }
        sh(
            &directory,
            &format!("printf '#!/bin/sh\\n{touch}' >.git/hooks/post-index-change; chmod +x .git/hooks/*"),
        );
        sh(&directory, "echo '* diff=x' >.gitattributes; echo three >>f");
        let found = run(&work);
        assert_eq!((found.commit_count, found.changed, found.untracked), (2, 1, 2), "{found:?}");
        assert!(!ran.exists(), "something of the repository was executed");
        // A filter is the one thing that git can't do without; it runs as the agent, and not for ever.
        sh(
            &directory,
            "git config filter.x.clean 'sleep 100'; echo '* filter=x' >.gitattributes; git checkout -q f; touch -d 2001-01-01 f",
        );
        let before = Instant::now();
        let found = run(&work);
        assert_eq!(found.trouble.as_deref(), Some("git status took too long"), "{found:?}");
        assert_eq!(found.commit_count, 2, "what was found before is kept: {found:?}");
        assert!(before.elapsed() < super::LIMIT);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(run(&work).trouble.is_some());
    }
}
