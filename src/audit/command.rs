//! `innkeeper log`: what the box decided, a line each, and on request what it goes on to decide.

use std::io::Write;
use std::time::Duration;

use super::{Entry, Page};
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit};

#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// Go on as it grows, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Refusals only, each with the command that would allow it
    #[arg(long)]
    pub denied: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// How often `--follow` asks: a flood is counted meanwhile, not shown line by line.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs the command; returns its exit status.
#[must_use]
pub fn run(args: &LogArgs) -> u8 {
    let mut after = 0;
    loop {
        let page = match ask(after, args.denied) {
            Ok(page) => page,
            Err(status) => return status,
        };
        let more = !page.entries.is_empty();
        after = page.last;
        if !print(&page.entries, args.json) {
            return exit::OK;
        }
        match (more, args.follow) {
            // A full page: there may be more behind it.
            (true, _) => {}
            (false, true) => crate::supervisor::backoff::pause(PAUSE),
            (false, false) => return exit::OK,
        }
    }
}

fn ask(after: u64, denied: bool) -> Result<Page, u8> {
    match client::ask(&Request::Log { after, denied }) {
        Ok(Response::Log { page }) => Ok(page),
        Ok(Response::Refused { reason }) => {
            report::last_words("refused", &reason);
            Err(exit::CEILING)
        }
        Ok(_) => {
            report::last_words("control", "the box gave the answer to another question");
            Err(exit::INTERNAL)
        }
        Err(error) => {
            report::last_words("log", &report::chain(&error));
            Err(1)
        }
    }
}

/// Whether somebody still reads.
fn print(entries: &[Entry], json: bool) -> bool {
    let mut text = String::new();
    for entry in entries {
        if json {
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
        } else {
            text.push_str(&entry.to_string());
        }
        text.push('\n');
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
