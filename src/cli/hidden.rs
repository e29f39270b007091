//! Workers, trampolines and helpers: commands by which Innkeeper calls itself, and that no help lists.

use std::ffi::{CStr, OsStr, OsString};

use super::{call_ourselves, done, failed, print};
use crate::comforts::Comfort;
use crate::engine;
use crate::identity::{credential, home};
use crate::morning::work::Work;
use crate::persist::{restore, save};
use crate::readiness;
use crate::report::exit;
use crate::supervisor::processes;
use crate::supervisor::run_as::{self, Identity};
use crate::workspace::clone::{self, Clone};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Hidden {
    #[command(hide = true)]
    EngineInner(engine::embedded::inner::Inner),
    #[command(hide = true)]
    EngineConsole {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    CountProcesses,
    #[command(hide = true)]
    ForeignRules,
    /// A job for the image's iptables, from standard input
    #[command(hide = true)]
    Tables,
    #[command(hide = true)]
    Probe {
        #[arg(long)]
        attack: String,
        #[command(flatten)]
        identity: Identity,
    },
    /// Copies a headless run's output and reads along
    #[command(hide = true)]
    Stream {
        #[command(flatten)]
        identity: Identity,
    },
    /// Becomes Claude Code, on PID 1's word
    #[command(hide = true)]
    Claude {
        #[command(flatten)]
        identity: Identity,
    },
    #[command(hide = true)]
    Home(home::Home),
    /// What Claude Code runs by its managed settings
    #[command(hide = true)]
    Comfort {
        #[command(subcommand)]
        comfort: Comfort,
    },
    #[command(hide = true)]
    Clone(Clone),
    #[command(hide = true)]
    Work(Work),
    #[command(hide = true)]
    PersistSave(save::Save),
    #[command(hide = true)]
    PersistRestore(restore::Restore),
    /// Git's credential helper
    #[command(hide = true)]
    Credential { operation: String },
    #[command(hide = true)]
    RunAs {
        #[command(flatten)]
        identity: Identity,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Runs one; returns the exit status.
pub(super) fn run(hidden: Hidden) -> u8 {
    match hidden {
        Hidden::EngineInner(inner) => engine::embedded::inner::run(&inner),
        Hidden::EngineConsole { command } => failed("in", &engine::embedded::terminal::console(&command)),
        Hidden::CountProcesses => match processes::in_use() {
            Some(count) => print(&count.to_string()),
            None => exit::INTERNAL,
        },
        Hidden::ForeignRules => {
            print(&serde_json::to_string(&crate::firewall::foreign::look()).unwrap_or_default())
        }
        Hidden::Tables => match crate::firewall::programs::run() {
            Ok(answer) => print(&answer),
            Err(error) => failed("tables", &error),
        },
        Hidden::Probe { attack, identity } => probe(&attack, &identity),
        Hidden::Stream { identity } => match run_as::become_untouchable(&identity) {
            Ok(()) => {
                call_ourselves(c"innkeeper-out");
                crate::headless::stream::run();
                exit::OK
            }
            Err(error) => failed("stream", &error),
        },
        Hidden::Claude { identity } => {
            call_ourselves(c"launcher");
            // PID 1 has been told why; standard error is Claude's.
            drop(crate::session::launcher::run(&identity));
            exit::INTERNAL
        }
        Hidden::Comfort { comfort } => {
            // Claude takes another exit status for an order, and so would a broken pipe.
            print(&crate::comforts::run(comfort));
            exit::OK
        }
        Hidden::Home(home) => {
            let problems = home::run(&home);
            print(&problems.iter().map(|problem| format!("{problem}\n")).collect::<String>())
        }
        Hidden::Work(work) => {
            print(&serde_json::to_string(&crate::morning::work::run(&work)).unwrap_or_default())
        }
        Hidden::PersistSave(save) => print(&serde_json::to_string(&save::run(&save)).unwrap_or_default()),
        Hidden::PersistRestore(restore) => {
            print(&serde_json::to_string(&restore::run(&restore)).unwrap_or_default())
        }
        Hidden::Clone(clone) => {
            let outcome = clone::run(&clone);
            print(&format!("{}\n", outcome.line));
            u8::try_from(outcome.status).unwrap_or(exit::INTERNAL)
        }
        Hidden::Credential { operation } => answer_git(&operation),
        Hidden::RunAs { identity, command } => failed("run-as", &run_as::run(&identity, &command)),
    }
}

/// The workers, which live as long as the box: before the tables of the command line are built, whose stack and code would
/// stay theirs. None: it is none.
pub(super) fn worker(name: &OsStr) -> Option<u8> {
    let work = |name: &CStr, work: fn() -> u8| {
        call_ourselves(name);
        Some(work())
    };
    match name.to_str()? {
        "dns" => work(c"innkeeper-dns", || done("dns", crate::dns::run())),
        "gate" => work(c"innkeeper-gate", || done("gate", crate::gate::run())),
        // Fifteen octets are all that a name may have, and these are just as many.
        "watch" => work(c"innkeeper-watch", || done("watch", crate::watch::run())),
        _ => None,
    }
}

fn probe(attack: &str, identity: &Identity) -> u8 {
    if let Err(error) = run_as::become_untouchable(identity) {
        return failed("probe", &error);
    }
    match serde_json::from_str::<readiness::Attack>(attack) {
        Ok(attack) => {
            let attempts = readiness::probe::run(&attack);
            print(&serde_json::to_string(&attempts).unwrap_or_default())
        }
        Err(error) => failed("probe", &error),
    }
}

fn answer_git(operation: &str) -> u8 {
    match credential::helper(operation, std::io::stdin().lock()) {
        Ok(Some(answer)) => print(&answer),
        Ok(None) => exit::OK,
        Err(error) => failed("credential", &error),
    }
}
