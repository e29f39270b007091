//! What makes Claude Code comfortable in the box: status line, notes, hints, formatters, forks.
//!
//! Commands that Claude runs, as the agent, by the managed settings (identity/claude.rs). Each of them ends well, says
//! nothing but what it is for, and keeps within its time, whatever it is given: Claude would wait for it, and take its
//! words for more than they are. None of them decides anything: what they tell PID 1 is hearsay.

pub mod bar;
mod child;
pub mod fork;
pub mod format;
pub mod hint;
mod input;
pub mod names;
mod naming;
pub mod note;
pub mod patterns;
pub mod status_line;
pub mod sync;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

/// What Claude runs.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Comfort {
    StatusLine {
        /// Shows nothing, and tells PID 1 all the same.
        #[arg(long)]
        silent: bool,
    },
    Note {
        /// The box takes requests for names.
        #[arg(long)]
        requests: bool,
    },
    Hint,
    Name,
    Format {
        #[arg(long)]
        patterns: PathBuf,
    },
    SyncFork {
        /// Does it, where else it only begins it.
        #[arg(long)]
        now: bool,
    },
}

/// Runs one, for as long as it may take, and returns what it has to say.
#[must_use]
pub fn run(comfort: Comfort) -> String {
    if is_aside() {
        return String::new();
    }
    let limit = match comfort {
        Comfort::StatusLine { .. } => status_line::LIMIT,
        Comfort::Note { .. } => note::LIMIT,
        Comfort::Hint => hint::LIMIT,
        Comfort::Name => naming::LIMIT,
        Comfort::Format { .. } => format::LIMIT,
        Comfort::SyncFork { now: false } => sync::BEGIN_LIMIT,
        Comfort::SyncFork { now: true } => sync::LIMIT,
    };
    within(limit, move || match comfort {
        Comfort::StatusLine { silent } => status_line::run(silent),
        Comfort::Note { requests } => note::run(requests),
        Comfort::Hint => hint::run(),
        Comfort::Name => naming::run(),
        Comfort::Format { patterns } => {
            format::run(&patterns);
            String::new()
        }
        Comfort::SyncFork { now } => {
            if now {
                sync::run();
            } else {
                sync::begin();
            }
            String::new()
        }
    })
}

/// Set for a Claude that the box itself asks something, such as a name: its hooks are no news of the session, and a
/// name for that conversation would ask for the next. The value is that of [`ASIDE_FILE`], which a repository whose
/// settings would silence the hooks can't know beforehand.
pub const ASIDE: &str = "INNKEEPER_ASIDE";
/// Root's, made anew at each boot.
pub const ASIDE_FILE: &str = "/run/innkeeper/etc/aside";

#[must_use]
pub fn is_aside() -> bool {
    let given = std::env::var(ASIDE).unwrap_or_default();
    !given.is_empty() && std::fs::read_to_string(ASIDE_FILE).is_ok_and(|value| value == given)
}

/// What the work says, or nothing where it takes longer: its thread ends with the process.
fn within(limit: Duration, work: impl FnOnce() -> String + Send + 'static) -> String {
    let (sender, done) = mpsc::channel();
    let thread = std::thread::Builder::new().name("comfort".into());
    match thread.spawn(move || sender.send(work())) {
        Ok(_) => done.recv_timeout(limit).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// A hook's answer by which the model learns something (https://code.claude.com/docs/en/hooks).
fn context(event: &str, text: &str) -> String {
    serde_json::json!({
        "hookSpecificOutput": { "hookEventName": event, "additionalContext": text }
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::within;
    use std::time::{Duration, Instant};

    #[test]
    fn what_takes_longer_says_nothing() {
        let started = Instant::now();
        let slow = || {
            std::thread::park_timeout(Duration::from_secs(60));
            "late".to_owned()
        };
        assert_eq!(within(Duration::from_millis(20), slow), "");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(within(Duration::from_secs(60), || "said".to_owned()), "said");
    }
}
