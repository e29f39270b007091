//! `innkeeper status`: asks PID 1 and shows the answer as a screen, as JSON, or as an exit status for probes.

use clap::ValueEnum;

use super::report::{Phase, Report, SessionState};
use super::screen::{self, Frame};
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::{self, exit};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// The boot has ended well and every protection holds
    Ready,
    /// PID 1 answers
    Live,
    /// The box is ready and Claude is not working
    Idle,
}

#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// The whole report, for programs
    #[arg(long)]
    pub json: bool,
    /// Say nothing: exit status 0 if it is so, 1 if not
    #[arg(long, value_enum)]
    pub check: Option<Check>,
    /// A live screen: scroll what was refused, allow it for a while, answer requests; q leaves
    #[arg(long, conflicts_with_all = ["json", "check"])]
    pub watch: bool,
}

/// Runs the command; returns its exit status.
#[must_use]
pub fn run(args: &StatusArgs) -> u8 {
    if args.check == Some(Check::Live) {
        // Asked every few seconds by the engine: no protection is verified for it.
        return match client::ask(&Request::Progress) {
            Ok(Response::Progress { phase, .. }) => u8::from(phase == Phase::Failed),
            Ok(_) | Err(_) => 1,
        };
    }
    if args.watch {
        return super::watch::run();
    }
    let report = match client::ask(&Request::Status) {
        Ok(Response::Status { report }) => report,
        Ok(Response::Refused { reason } | Response::Failed { reason }) => {
            report::last_words("status", &reason);
            return exit::CEILING;
        }
        Ok(later @ Response::Later { .. }) => return client::unserved(later),
        Ok(_) => return exit::INTERNAL,
        Err(error) => return client::unanswered("status", &error),
    };
    match args.check {
        Some(check) => u8::from(!is(check, &report)),
        None if args.json => {
            crate::cli::print(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"))
        }
        None => {
            let (frame, colour) = terminal();
            crate::cli::print(&screen::render(&report, frame, colour, std::time::SystemTime::now()))
        }
    }
}

/// A wider or higher terminal is used; whatever is not one gets what everybody has, without colour.
fn terminal() -> (Frame, bool) {
    let out = std::io::stdout();
    let standard = Frame::STANDARD;
    match rustix::termios::tcgetwinsize(&out) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            let frame = Frame {
                width: usize::from(size.ws_col),
                height: usize::from(size.ws_row).max(standard.height),
            };
            (frame, true)
        }
        Ok(_) => (standard, true),
        Err(_) => (standard, false),
    }
}

fn is(check: Check, report: &Report) -> bool {
    let ready = report.phase == Phase::Ready;
    match check {
        Check::Live => report.phase != Phase::Failed,
        // What the operator gave up by name is shown in red, but does not make the box unready.
        Check::Ready => ready && report.protections.iter().all(|p| p.held || p.how.starts_with("given up")),
        Check::Idle => {
            ready && !matches!(report.session.state, SessionState::Running | SessionState::Starting)
        }
    }
}
