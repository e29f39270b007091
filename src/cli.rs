//! The commands and their flags; each is one call into its room.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::{CommandFactory, Parser, Subcommand};

use crate::audit::command::LogArgs;
use crate::control::protocol::Request;
use crate::doctor::DoctorArgs;
use crate::engine;
use crate::identity::credential;
use crate::init::Init;
use crate::morning::command::ReportArgs;
use crate::report::{self, exit};
use crate::status::command::StatusArgs;
use crate::task;

mod hidden;
mod manual;
mod policy;
mod save;
mod seat;
mod session;

pub(crate) use policy::answer;

/// PID 1 of a box in which an autonomous coding agent works behind an allowlist.
#[derive(Debug, Parser)]
#[command(name = "innkeeper", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "Examples:
  docker run -it --cap-add NET_ADMIN --cap-add SYS_ADMIN \\
      -e CLAUDE_CODE_OAUTH_TOKEN -e GH_TOKEN -e REPO_URL=https://github.com/you/repo innkeeper
  docker exec -it BOX innkeeper attach        enter the session; Ctrl-b d leaves it
  docker exec BOX innkeeper status            everything about the box on one screen
  docker exec BOX innkeeper check example.org may the agent reach this, and why
  docker exec BOX innkeeper allow example.org --for 1h

`innkeeper settings` prints every variable and key. Exit status: 0 as asked, 1 not so (check, status --check)
or no box answers, 64 usage, 69 what a headless run depends on is not there (retry), 70 a fault of innkeeper, 75 not
now; of a box: ended by a limit or deadline, it can be continued, 77 refused, 78 configuration or host unfit, 128+n
after a stop by signal n.";

const STATUS_HELP: &str = "Examples:
  docker exec BOX innkeeper status
  docker exec -it BOX innkeeper status --watch      live, with keys to allow, grant and refuse
  docker exec BOX innkeeper status --check ready    for a probe: says nothing
  docker exec BOX innkeeper status --json | jq .denials

Exit status: 0; 1 if no box answers, or --check finds that it is not so; 64 --watch without a terminal.";

const DOCTOR_HELP: &str = "Examples:
  docker run --rm --cap-add NET_ADMIN --cap-add SYS_ADMIN -e CLAUDE_CODE_OAUTH_TOKEN innkeeper doctor
  innkeeper doctor --json                           on a host without an engine, as root

Exit status: 0 a box would boot; 78 what is missing would stop it.";

const RUN_HELP: &str = "Examples:
  innkeeper run --name night-shift
  innkeeper run --demo                              a tour of the walls, without credentials
  innkeeper run --engine podman";

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot and supervise the box (what a bare `innkeeper` does as PID 1)
    Init(Init),
    /// Everything about the box on one screen
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    #[command(flatten)]
    Seat(seat::Entry),
    /// Bring a box that waits its task, or one that works another repository
    #[command(after_help = task::HELP)]
    Start(task::StartArgs),
    #[command(flatten)]
    Policy(policy::PolicyCommand),
    /// Every decision: what was refused, what was used, and who changed the policy
    Log(LogArgs),
    /// What the agent did while nobody looked: sessions, commits, refusals, octets
    Report(ReportArgs),
    /// Save the work to the volume at /persist now: repositories and Claude's conversations
    #[command(after_help = save::HELP)]
    Save(save::Save),
    /// Every setting: key, default, variable
    #[command(after_help = "Example:\n  innkeeper settings | grep -A3 network")]
    Settings,
    /// The agent's session: begin it anew, or end it
    #[command(subcommand)]
    Session(session::SessionCommand),
    #[command(flatten)]
    Manual(manual::Manual),
    /// What this host can and can't give, before a boot: run it with the flags that a boot would get
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// The firewall's rules in the syntax of nft, each with its purpose
    #[command(
        after_help = "Example:\n  docker exec BOX innkeeper rules | less\n\nExit status: 0; 1 if no box answers; 77 for others than the operator."
    )]
    Rules,
    /// Start a box on this host: by Docker or Podman where one answers, else by namespaces alone (root, Linux)
    #[command(after_help = RUN_HELP)]
    Run(engine::Run),
    /// The boxes of this host
    #[command(after_help = "Example:\n  innkeeper ls --json | jq -r .name")]
    Ls(engine::List),
    /// Stop a box of this host and remove what is left of it
    #[command(after_help = "Example:\n  innkeeper rm night-shift")]
    Rm(engine::Named),
    /// Run a command in a box of this host; without one, enter its session
    #[command(
        after_help = "Examples:\n  innkeeper in night-shift                enter its session\n  innkeeper in night-shift status --json"
    )]
    In(engine::In),
    /// What the box lets its agent do and what not, tried on the spot; the demo's program
    #[command(
        after_help = "Example:\n  ./scripts/run --demo                    a box whose session is the tour"
    )]
    Tour {
        /// A shell afterwards, on a terminal
        #[arg(long)]
        shell: bool,
    },
    #[command(flatten)]
    Hidden(hidden::Hidden),
}

/// Runs what argv says; returns the exit status.
#[must_use]
pub fn run(args: Vec<OsString>) -> u8 {
    // PID 1's first instructions: building the tables of the command line takes longer than the lockdown itself.
    if let Some(init) = Init::at_once(args.get(1..).unwrap_or_default()) {
        call_ourselves(c"innkeeper");
        return crate::init::run(&init);
    }
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default().to_os_string();
    match called.to_str() {
        // The image's links: gh asks the box for its token, the others are short forms.
        Some("gh") => failed("gh", &credential::gh(args.get(1..).unwrap_or_default())),
        Some(short @ ("status" | "attach")) => {
            let mut long = vec![OsString::from("innkeeper"), short.into()];
            long.extend(args.into_iter().skip(1));
            parse(&long)
        }
        Some(_) | None => match args.get(1..) {
            Some([worker]) => hidden::worker(worker).unwrap_or_else(|| parse(&args)),
            Some(_) | None => parse(&args),
        },
    }
}

fn parse(args: &[OsString]) -> u8 {
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Some(command) }) => dispatch(command),
        Ok(Cli { command: None }) => {
            report::last_words("usage", "what is to be done? See innkeeper --help");
            exit::USAGE
        }
        Err(error) => {
            // clap chooses the stream: help goes to standard output and is no error.
            drop(error.print());
            if error.use_stderr() { exit::USAGE } else { exit::OK }
        }
    }
}

fn dispatch(command: Command) -> u8 {
    match command {
        Command::Init(init) => {
            call_ourselves(c"innkeeper");
            crate::init::run(&init)
        }
        Command::Status(args) => crate::status::command::run(&args),
        Command::Seat(entry) => seat::run(&entry),
        Command::Policy(command) => policy::run(command),
        Command::Start(args) => task::run(args),
        Command::Log(args) => crate::audit::command::run(&args),
        Command::Report(args) => crate::morning::command::run(&args),
        Command::Session(command) => session::run(&command),
        Command::Manual(wanted) => manual::run(&wanted, Cli::command()),
        Command::Doctor(args) => crate::doctor::run(&args),
        Command::Save(save) => save::run(&save),
        Command::Settings => print(&crate::config::settings::help()),
        Command::Rules => policy::ask(&Request::Rules, false),
        Command::Run(options) => engine::run(&options),
        Command::Ls(list) => engine::ls(list),
        Command::Rm(named) => engine::rm(&named),
        Command::In(arguments) => engine::enter(&arguments),
        Command::Tour { shell } => crate::tour::run(shell),
        Command::Hidden(hidden) => hidden::run(hidden),
    }
}

/// What `ps` shows: executed by /proc/self/exe, a process is called "exe".
fn call_ourselves(name: &std::ffi::CStr) {
    // Only a name; nothing depends on it.
    rustix::thread::set_name(name).ok();
}

/// Standard output, whose reader may have gone.
pub(crate) fn print(text: &str) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => exit::OK,
        Err(_) => 1,
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> u8 {
    report::last_words(what, &report::chain(error));
    exit::INTERNAL
}

fn done<E: std::error::Error>(what: &str, result: Result<(), E>) -> u8 {
    result.map_or_else(|error| failed(what, &error), |()| exit::OK)
}
