//! `innkeeper report`: asks PID 1 for everything that the page needs, and prints it.

use std::time::SystemTime;

use super::page::{self, Style};
use crate::audit::Entry;
use crate::audit::command as log;
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit};

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// Markdown, for a mail or an issue
    #[arg(long, conflicts_with = "json")]
    pub md: bool,
    /// What happened since then: 90s, 15m, 8h ago, or a time of RFC 3339; else since the box began
    #[arg(long, value_name = "TIME", value_parser = log::since)]
    pub since: Option<SystemTime>,
}

const EXAMPLES: &str = "Examples:
  innkeeper report --since 12h                what the agent did tonight
  innkeeper report --md | gh issue create --title 'Tonight' --body-file -

Exit status: 0; 1 if no box answers; 77 for others than the operator.";

/// Runs the command; returns its exit status.
#[must_use]
pub fn run(args: &ReportArgs) -> u8 {
    match gather(args) {
        Ok(text) => crate::cli::print(&text),
        Err(status) => status,
    }
}

fn gather(args: &ReportArgs) -> Result<String, u8> {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let repositories = match ask(&Request::Work { since: args.since.map(seconds) })? {
        Response::Work { repositories } => repositories,
        other => return Err(client::unserved(other)),
    };
    let report = match ask(&Request::Status)? {
        Response::Status { report } => report,
        other => return Err(client::unserved(other)),
    };
    let entries = everything()?;
    let since = args.since.map(report::time);
    let morning = super::tell(*report, &entries, repositories, since.as_deref(), &report::now());
    if args.json {
        return Ok(serde_json::to_string_pretty(&morning).unwrap_or_default() + "\n");
    }
    let style = if args.md { Style::Markdown } else { Style::Text { width: width() } };
    Ok(page::render(&morning, style))
}

/// The whole log, page by page. What is counted up meanwhile comes again, and the later one counts.
fn everything() -> Result<Vec<Entry>, u8> {
    let (mut entries, mut after) = (Vec::new(), 0);
    // The log is bounded; a flood that goes on meanwhile must not keep us here.
    for _ in 0..PAGES {
        let page = log::ask(after, false)?;
        if page.entries.is_empty() {
            break;
        }
        after = page.last;
        entries.extend(page.entries);
    }
    Ok(entries)
}

/// More than the log has at a time.
const PAGES: usize = 16;

fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width >= 20).unwrap_or(80)
}

fn ask(request: &Request) -> Result<Response, u8> {
    match client::ask(request) {
        Ok(response @ (Response::Refused { .. } | Response::Later { .. })) => Err(client::unserved(response)),
        Ok(Response::Failed { reason } | Response::Invalid { reason }) => {
            report::last_words("report", &reason);
            Err(exit::CONFIG)
        }
        Ok(response) => Ok(response),
        Err(error) => Err(client::unanswered("report", &error)),
    }
}
