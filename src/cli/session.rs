//! The operator's orders to the session.

use clap::Subcommand;

use crate::control::client;
use crate::control::protocol::{Request, SessionOrder};

const RESTART_HELP: &str = "Example:
  docker exec BOX innkeeper session restart

Ends every process of the agent's first, those too that escaped from the session; the conversation is continued. Also the way
on from a session that was ended (`innkeeper session stop`) or has become a shell.

Exit status: 0 done; 1 no box answers; 64 not for this box (headless, or it waits for `innkeeper start`); 75 not now (another order
is being carried out, the box boots or stops); 77 for the operator only.";

const STOP_HELP: &str = "Example:
  docker exec BOX innkeeper session stop

Ends every process of the agent's. The box stays, with its files and its policy; go on with `innkeeper session restart`.

Exit status: 0 done; 1 no box answers; 64 not for this box (headless, or it waits for `innkeeper start`); 75 not now (another order
is being carried out, the box boots or stops); 77 for the operator only.";

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Begin the session anew: everything of the agent's ends, the conversation goes on
    #[command(after_help = RESTART_HELP)]
    Restart {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// End the session and everything of the agent's; the box stays
    #[command(after_help = STOP_HELP)]
    Stop {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &SessionCommand) -> u8 {
    let (order, json) = match *command {
        SessionCommand::Restart { json } => (SessionOrder::Restart, json),
        SessionCommand::Stop { json } => (SessionOrder::Stop, json),
    };
    match client::ask(&Request::Session { order }) {
        Ok(response) => super::answer(response, json),
        Err(error) => client::unanswered("session", &error),
    }
}
