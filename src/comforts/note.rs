//! What Claude is told of the box when a session begins: what is allowed, what is writable, how to ask.

use std::time::Duration;

use super::{context, input};
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::harmless;
use crate::status::report::Report;

pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// Characters of it: it is in every conversation.
const MAX_NOTE: usize = 1500;
/// Repositories that are named.
const MAX_REPOSITORIES: usize = 4;

pub(super) fn run(requests: bool) -> String {
    let Some(hook) = input::hook().filter(|hook| hook.hook_event_name == "SessionStart") else {
        return String::new();
    };
    // A conversation that goes on has it already.
    if hook.source == "resume" {
        return String::new();
    }
    match client::ask(&Request::Status) {
        Ok(Response::Status { report }) => context("SessionStart", &note(&report, requests)),
        Ok(_) | Err(_) => String::new(),
    }
}

/// The note, from what the agent itself may know of the box.
fn note(report: &Report, requests: bool) -> String {
    let rules = report.policy.rules.len();
    let mut lines = vec![
        format!(
            "You work in a box (Innkeeper {}) whose network lets through {rules} allowed names and nothing else. What is \
             not allowed fails at once: its name does not resolve (NXDOMAIN), its address refuses. That is policy, not an \
             outage; trying again, another resolver, a proxy or a mirror does not help and is logged.",
            report.version
        ),
        "`innkeeper status` shows what is allowed and what was refused, `innkeeper check NAME` says why.".to_owned(),
        if requests {
            "To get a name that the task needs: `innkeeper request NAME --reason \"…\"`, then go on with other work; \
             a person decides."
                .to_owned()
        } else {
            "This box takes no requests: if the task needs a name, say so in your answer and go on without it.".to_owned()
        },
        "Writable are /workspace, /tmp and your home; the rest is read-only and there is no root: install tools below \
         your home or the project (npm, pip --user, cargo …), not by apt or sudo."
            .to_owned(),
        match &report.persist.path {
            Some(path) => format!(
                "These places are in memory; work in the repositories is saved to {} at times and when the box stops.",
                harmless(path, 60)
            ),
            None => "These places are in memory and lost with the box: commit and push what is to last.".to_owned(),
        },
    ];
    for repository in report.repositories.iter().take(MAX_REPOSITORIES) {
        lines.push(format!(
            "{}: pushes go to {}",
            harmless(&repository.path, 80),
            harmless(&repository.url, 120)
        ));
    }
    let mut note = String::new();
    for line in lines {
        if note.chars().count() + line.chars().count() < MAX_NOTE {
            note.push_str(&line);
            note.push('\n');
        }
    }
    note
}

#[cfg(test)]
mod tests {
    use super::{MAX_NOTE, note};
    use crate::status::report::{Repository, RepositoryState};

    #[test]
    fn it_says_what_is_so_and_stays_short() {
        let mut report = crate::status::audience::tests::full();
        report.repositories = (0..9)
            .map(|index| Repository {
                path: format!("/workspace/{index}\u{1b}[2J{}", "x".repeat(500)),
                url: "https://github.com/o/r".into(),
                state: RepositoryState::Cloned,
                detail: String::new(),
            })
            .collect();
        let text = note(&report, true);
        assert!(text.chars().count() <= MAX_NOTE, "{}", text.chars().count());
        assert!(text.contains("2 allowed names") && text.contains("innkeeper request NAME"), "{text}");
        assert!(
            text.contains("lost with the box") && text.contains("pushes go to https://github.com/o/r"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
        report.persist.path = Some("/persist".into());
        let text = note(&report, false);
        assert!(text.contains("saved to /persist") && !text.contains("innkeeper request"), "{text}");
    }
}
