//! The commands around requests: `request` for the agent, `requests`, `grant` and `refuse` for the operator.

use std::io::Write;
use std::time::{Duration, Instant};

use super::MAX_REASON;
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit, inert};
use crate::status::report::{AccessRequest, RequestState};

/// The wish was not granted.
const NO: u8 = 1;
/// EX_TEMPFAIL: nobody has answered yet.
const PENDING: u8 = exit::LATER;
/// How often a waiting command asks: a short request each time, so that those who wait hold no place at the socket.
const PAUSE: Duration = Duration::from_secs(1);

pub const ASK_HELP: &str = "Examples:
  innkeeper request docs.example.org --reason 'the manual of the parser'
  innkeeper request git.example.org:22 --reason 'clone the fork' --wait 10m
  innkeeper request --status 3

Exit status: 0 asked, granted or allowed already; 1 refused or expired; 64 can't be asked for; 75 not answered yet;
77 can't be granted in this box.";

#[derive(Debug, Clone, clap::Args)]
pub struct AskArgs {
    /// NAME[:PORT[,PORT…]]: one exact name
    #[arg(required_unless_present = "status", conflicts_with = "status")]
    rule: Option<String>,
    /// What it is needed for, in a line
    #[arg(long, value_name = "TEXT", required_unless_present = "status")]
    reason: Option<String>,
    /// Wait for the answer, at most so long
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "24h", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// What became of a request
    #[arg(long, value_name = "ID")]
    status: Option<u64>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `innkeeper request`.
#[must_use]
pub fn ask(args: &AskArgs) -> u8 {
    let request = match (args.status, &args.rule, &args.reason) {
        (Some(id), ..) => Request::Wish { id },
        (None, Some(rule), Some(reason)) => {
            // The box would say the same; a text of megabytes need not get there.
            if rule.len() > 300 || reason.chars().nth(MAX_REASON).is_some() {
                let what = format!("a name has at most 253 characters, a reason {MAX_REASON}");
                report::last_words("usage", &what);
                return exit::USAGE;
            }
            Request::Ask { rule: rule.clone(), reason: reason.clone() }
        }
        (None, ..) => return exit::USAGE,
    };
    match client::ask(&request) {
        Ok(Response::Request { request }) => answered(args, request),
        Ok(other) => otherwise(other, args.json),
        Err(error) => client::unanswered("control", &error),
    }
}

fn answered(args: &AskArgs, request: AccessRequest) -> u8 {
    let id = request.id;
    let Some(limit) = args.wait.filter(|_| request.state == RequestState::Pending) else {
        show(std::slice::from_ref(&request), args.json);
        // Having asked is what was asked for; who wants to know what became of it says so.
        return if args.status.is_none() && args.wait.is_none() && request.state == RequestState::Pending {
            exit::OK
        } else {
            status_of(&request)
        };
    };
    if !args.json {
        report::last_words(
            "request",
            &format!("{id} waits for the operator, up to {}", humantime::format_duration(limit)),
        );
    }
    let request = wait(request, limit);
    show(std::slice::from_ref(&request), args.json);
    status_of(&request)
}

/// Asks again and again. A box that is too busy to answer is asked again too.
fn wait(request: AccessRequest, limit: Duration) -> AccessRequest {
    let (started, id) = (Instant::now(), request.id);
    let mut last = request;
    while last.state == RequestState::Pending && started.elapsed() < limit {
        crate::supervisor::backoff::pause(PAUSE.min(limit.saturating_sub(started.elapsed())));
        if let Ok(Response::Request { request }) = client::ask(&Request::Wish { id }) {
            last = request;
        }
    }
    last
}

fn status_of(request: &AccessRequest) -> u8 {
    match request.state {
        RequestState::Pending => PENDING,
        RequestState::Granted => exit::OK,
        RequestState::Refused | RequestState::Expired => NO,
    }
}

/// `innkeeper requests`.
#[must_use]
pub fn list(json: bool) -> u8 {
    match client::ask(&Request::Requests) {
        Ok(Response::Requests { requests }) if requests.is_empty() && !json => {
            print("nothing was asked for\n");
            exit::OK
        }
        Ok(Response::Requests { requests }) => {
            show(&requests, json);
            exit::OK
        }
        Ok(other) => otherwise(other, json),
        Err(error) => client::unanswered("control", &error),
    }
}

/// `innkeeper refuse`.
#[must_use]
pub fn refuse(id: u64, reason: Option<String>, json: bool) -> u8 {
    match client::ask(&Request::Refuse { id, reason }) {
        Ok(Response::Request { request }) => {
            show(&[request], json);
            exit::OK
        }
        Ok(other) => otherwise(other, json),
        Err(error) => client::unanswered("control", &error),
    }
}

fn otherwise(response: Response, json: bool) -> u8 {
    match response {
        Response::Later { reason } => {
            report::last_words("request", &reason);
            PENDING
        }
        other => crate::cli::answer(other, json),
    }
}

fn show(requests: &[AccessRequest], json: bool) {
    let mut text = String::new();
    for request in requests {
        if json {
            text.push_str(&serde_json::to_string(request).unwrap_or_default());
        } else {
            text.push_str(&line(request));
        }
        text.push('\n');
    }
    print(&text);
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away has no use for the answer.
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// "3  pending  docs.example.org  08:00Z  3×  the manual". Everything from outside was made inert when it came in; it is
/// once more here.
fn line(request: &AccessRequest) -> String {
    let minute = |time: &str| time.get(11..16).map(|minute| format!("{minute}Z")).unwrap_or_default();
    let times = if request.count > 1 { format!("{}×  ", request.count) } else { String::new() };
    let until = request.until.as_deref().map(|until| format!(" until {}", minute(until))).unwrap_or_default();
    let detail = if request.detail.is_empty() { String::new() } else { format!(" ({})", request.detail) };
    inert(&format!(
        "{:>3}  {}{until}{detail}  {}  {}  {times}{}",
        request.id,
        request.state,
        request.rule,
        minute(&request.time),
        request.reason
    ))
}

#[cfg(test)]
mod tests {
    use super::line;
    use crate::status::report::{AccessRequest, RequestState};

    #[test]
    fn a_request_is_one_inert_line() {
        let mut request = AccessRequest {
            id: 3,
            rule: "docs.example.org".into(),
            reason: "the manual\n\x1b[2J".into(),
            state: RequestState::Pending,
            time: "2026-11-21T08:00:59.000Z".into(),
            decided_at: None,
            until: None,
            detail: String::new(),
            count: 1,
        };
        assert_eq!(line(&request), "  3  pending  docs.example.org  08:00Z  the manual\\u{a}\\u{1b}[2J");
        request.state = RequestState::Granted;
        request.until = Some("2026-11-21T09:00:00.000Z".into());
        request.count = 7;
        assert!(line(&request).starts_with("  3  granted until 09:00Z  docs.example.org  08:00Z  7×  the"));
    }
}
