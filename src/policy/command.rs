//! `innkeeper check` and `innkeeper policy suggest` on the client's side.

use std::fmt::Write;

use super::check::Checked;
use super::{lint, suggest};
use crate::cli::{answer, print};
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit, inert};

pub const CHECK_HELP: &str = "Examples:
  innkeeper check example.org https://example.org:8443/a git@example.org:you/repo.git
  docker exec BOX innkeeper check --all          what a person should know of the whole policy

Exit status: 0 all are allowed, 1 one is not; of --all 0 nothing to say, 1 something.";

#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// NAME, NAME:PORT, an address or a URL
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    what: Vec<String>,
    /// The whole policy: who takes writes, who serves what strangers put there, what is dead, unused or covered (operator)
    #[arg(long)]
    all: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Octets of a URL: more would be beyond what the box reads of an agent's request.
const LONGEST: usize = 3000;

/// `innkeeper check`. Each is a request of its own, so that the agent's may be as many as an operator's.
#[must_use]
pub fn check(args: &CheckArgs) -> u8 {
    if args.all {
        return all(args.json);
    }
    let mut worst = exit::OK;
    for what in &args.what {
        if what.len() > LONGEST {
            report::last_words(
                "usage",
                &format!("\"{}\" is longer than any name", report::bounded(what, 80)),
            );
            worst = worst.max(exit::USAGE);
            continue;
        }
        let status = match client::ask(&Request::Check { what: what.clone() }) {
            Ok(response) => answer(response, args.json),
            Err(error) => return client::unanswered("control", &error),
        };
        worst = worst.max(status);
    }
    worst
}

/// A verdict, and the exit status that it means.
#[must_use]
pub fn verdict(checked: &Checked, json: bool) -> u8 {
    let text = if json { one_line(checked) } else { page(checked) };
    print(&text).max(u8::from(!checked.allowed))
}

fn page(checked: &Checked) -> String {
    let mut text = format!("{}\n", inert(&checked.explanation));
    if let Some(unseen) = &checked.unseen {
        writeln!(text, "  not seen: {}", inert(unseen)).ok();
    }
    for near in &checked.nearest {
        writeln!(text, "  near: {}", inert(&near.to_string())).ok();
    }
    if let Some(line) = &checked.line {
        writeln!(
            text,
            "  for good: the line \"{}\" in network/domains.conf, then innkeeper reload",
            inert(line)
        )
        .ok();
    }
    if let Some(ask) = &checked.ask {
        writeln!(text, "  the agent may ask: {}", inert(ask)).ok();
    }
    text
}

fn one_line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

fn all(json: bool) -> u8 {
    match client::ask(&Request::Lint) {
        Ok(Response::Lint { findings }) => {
            let text = if json { findings.iter().map(one_line).collect() } else { lint::render(&findings) };
            print(&text).max(u8::from(!findings.is_empty()))
        }
        Ok(other) => answer(other, json),
        Err(error) => client::unanswered("control", &error),
    }
}

/// `innkeeper policy suggest`.
#[must_use]
pub fn suggest(json: bool) -> u8 {
    match client::ask(&Request::Suggest) {
        Ok(Response::Suggestion { suggestion }) if json => print(&one_line(&suggestion)),
        Ok(Response::Suggestion { suggestion }) => print(&suggest::render(&suggestion)),
        Ok(other) => answer(other, json),
        Err(error) => client::unanswered("control", &error),
    }
}
