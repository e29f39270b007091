//! The commands where no box can run, on macOS: what starts boxes in an engine, and nothing of what is in them.

use std::ffi::OsString;
use std::io::Write;

use clap::{Parser, Subcommand};

use crate::engine;
use crate::report::exit;

/// Starts boxes in which an autonomous coding agent works behind an allowlist.
#[derive(Debug, Parser)]
#[command(name = "innkeeper", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a box on this host, by Docker or Podman
    Run(engine::Run),
    /// The boxes of this host
    Ls(engine::List),
    /// Stop a box of this host and remove what is left of it
    Rm(engine::Named),
    /// Run a command in a box of this host; without one, enter its session
    In(engine::In),
}

/// Runs what argv says; returns the exit status.
#[must_use]
pub fn run(args: Vec<OsString>) -> u8 {
    match Cli::try_parse_from(args) {
        Ok(cli) => match cli.command {
            Command::Run(options) => engine::run(&options),
            Command::Ls(list) => engine::ls(list),
            Command::Rm(named) => engine::rm(&named),
            Command::In(arguments) => engine::enter(&arguments),
        },
        Err(error) => {
            // clap chooses the stream: help goes to standard output and is no error.
            drop(error.print());
            if error.use_stderr() { exit::USAGE } else { exit::OK }
        }
    }
}

/// Standard output, whose reader may have gone.
pub(crate) fn print(text: &str) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => exit::OK,
        Err(_) => 1,
    }
}
