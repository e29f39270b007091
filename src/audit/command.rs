//! `innkeeper log`: what the box decided, a line each, and on request what it goes on to decide; or whether a file of
//! such lines is still what was written.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Entry, Page, verify};
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit};

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LogArgs {
    /// Go on as it grows, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Refusals only, each with the command that would allow it
    #[arg(long)]
    pub denied: bool,
    /// Only what happened, or went on, since then: 90s, 15m, 2h ago, or a time of RFC 3339
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<SystemTime>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Check the lines of a log.file instead, here or anywhere (the older file first): nothing was changed, put in or
    /// taken out
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["follow", "denied", "since", "json"])]
    pub verify: Vec<PathBuf>,
    /// With --verify: the hash that the last line must have, as `status --json` told it (audit.head)
    #[arg(long, value_name = "HASH", requires = "verify")]
    pub head: Option<String>,
}

const EXAMPLES: &str = "Examples:
  innkeeper log --denied --since 8h           what was refused tonight
  innkeeper log --follow --json               for a program
  innkeeper log --verify audit.jsonl.1 audit.jsonl

Exit status: 0; 1 if no box answers or the lines don't hang together; 77 for others than the operator.";

/// A time of RFC 3339, or one so long ago.
pub(crate) fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text.trim_end_matches(" ago"))
        .map_err(|_| "expected a time such as 90s, 15m, 2h or 2026-11-21T08:00:00Z".to_owned())?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "that is before all time".to_owned())
}

/// How often `--follow` asks: a flood is counted meanwhile, not shown line by line.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs the command; returns its exit status.
#[must_use]
pub fn run(args: &LogArgs) -> u8 {
    if !args.verify.is_empty() {
        return check(args);
    }
    // Times of RFC 3339 in UTC and of one length are in the order of their letters.
    let since = args.since.map(report::time);
    let mut after = 0;
    loop {
        let mut page = match ask(after, args.denied) {
            Ok(page) => page,
            Err(status) => return status,
        };
        let more = !page.entries.is_empty();
        after = page.last;
        page.entries.retain(|entry| since.as_ref().is_none_or(|since| entry.time >= *since));
        if !print(&page, args.json) {
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

fn check(args: &LogArgs) -> u8 {
    match verify::files(&args.verify, args.head.as_deref()) {
        Ok(verified) => {
            // The file may be anybody's, and this a terminal.
            let shown = |id: &String| report::harmless(id, 64);
            let boxes: Vec<String> = verified.boxes.iter().map(shown).collect();
            let beginning =
                if verified.is_whole { "from the first one on" } else { "the beginning is in older files" };
            let torn = match verified.torn {
                0 => String::new(),
                count => format!(", {count} of them torn by the end of a box"),
            };
            crate::cli::print(&format!(
                "{} lines hang together, {beginning}{torn}; boxes {}; head {}\n",
                verified.lines,
                boxes.join(", "),
                verified.head
            ))
        }
        Err(error) => {
            report::last_words("log", &report::chain(&error));
            1
        }
    }
}

pub(crate) fn ask(after: u64, denied: bool) -> Result<Page, u8> {
    match client::ask(&Request::Log { after, denied }) {
        Ok(Response::Log { page }) => Ok(page),
        Ok(other) => Err(client::unserved(other)),
        Err(error) => Err(client::unanswered("log", &error)),
    }
}

/// An entry, and whose it is.
#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    #[serde(rename = "box")]
    box_: &'a str,
}

/// Whether somebody still reads.
fn print(page: &Page, json: bool) -> bool {
    let mut text = String::new();
    for entry in &page.entries {
        if json {
            let line = Line { entry, box_: &page.box_ };
            text.push_str(&serde_json::to_string(&line).unwrap_or_default());
        } else {
            text.push_str(&entry.to_string());
        }
        text.push('\n');
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::since;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_time_is_said_by_its_age_or_its_date() {
        let ago = |text: &str| SystemTime::now().duration_since(since(text).unwrap()).unwrap().as_secs();
        assert!((3590..3700).contains(&ago("1h")) && (5390..5500).contains(&ago("1h 30m ago")));
        assert_eq!(
            since("2026-11-21T08:00:00Z").unwrap(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_248_000)
        );
        assert!(since("yesterday").is_err() && since("").is_err());
    }
}
