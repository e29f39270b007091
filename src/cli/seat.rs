//! The commands of the session: the operator's ways in, and what runs in the session itself.

use clap::Subcommand;

use super::{done, failed};
use crate::report::exit;
use crate::session::{attach, hook, pane, shell};

const ATTACH_HELP: &str = "Examples:
  docker exec -it BOX innkeeper attach              Ctrl-b d leaves, the box keeps running
  docker exec -it BOX innkeeper attach --read-only
  docker exec -it BOX innkeeper attach --clipboard  what is copied in the session arrives in your clipboard

Ctrl-] four times within two seconds leaves too, whatever the session does.";

const SHELL_HELP: &str = "Examples:
  docker exec -it BOX innkeeper shell
  docker exec -it -e INNKEEPER_NO_ATTACH=1 BOX bash

The visit is in the audit log. Exit status: the shell's own.";

#[derive(Debug, Subcommand)]
pub(super) enum Entry {
    /// Enter the session; until it is there, boot progress
    #[command(after_help = ATTACH_HELP)]
    Attach(Attach),
    /// A root shell with a fixed PATH and nothing of the agent's in it
    #[command(after_help = SHELL_HELP)]
    Shell,
    #[command(hide = true)]
    RootShell,
    #[command(hide = true)]
    Pane,
    /// What Claude Code's hooks run
    #[command(hide = true)]
    Hook,
    /// A notice for a webhook, from standard input
    #[command(hide = true)]
    Post,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line with a name of its own"
)]
#[derive(Debug, clap::Args)]
pub(super) struct Attach {
    /// Look, but do not type
    #[arg(long)]
    read_only: bool,
    /// Let the session write your clipboard (OSC 52); it never reads it
    #[arg(long)]
    clipboard: bool,
    /// A root shell instead, as `innkeeper shell`
    #[arg(long, conflicts_with_all = ["read_only", "clipboard"])]
    no_attach: bool,
    #[arg(long, hide = true)]
    console: bool,
}

pub(super) fn run(entry: &Entry) -> u8 {
    match entry {
        Entry::Attach(Attach { no_attach: true, .. }) | Entry::Shell => {
            shell::run().unwrap_or_else(|error| failed("shell", &error))
        }
        Entry::Attach(Attach { read_only, clipboard, console, no_attach: false }) => {
            let (read_only, clipboard, console) = (*read_only, *clipboard, *console);
            done("attach", attach::run(attach::Attach { console, read_only, clipboard }))
        }
        Entry::RootShell => failed("shell", &shell::become_bash()),
        Entry::Pane => done("pane", pane::run()),
        Entry::Post => done("post", crate::notices::post::run()),
        Entry::Hook => {
            hook::run();
            exit::OK
        }
    }
}
