//! The commands of the policy: asking it, changing it, and what the agent wishes of it.

use std::time::Duration;

use clap::Subcommand;

use super::print;
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::policy::command as asking;
use crate::report::{self, exit};
use crate::requests::command as requests;
use crate::status::report::SCHEMA;

const ALLOW_HELP: &str = "Examples:
  docker exec BOX innkeeper allow example.org --for 1h --reason 'the release notes'
  docker exec BOX innkeeper allow git.example.org:443,22 '!telemetry.example.org'";

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// The policy's verdict on names, URLs or addresses, and the rules that give it
    #[command(after_help = asking::CHECK_HELP)]
    Check(asking::CheckArgs),
    /// Allow names in this box until it ends, or for a while; `!NAME` denies one
    #[command(after_help = ALLOW_HELP)]
    Allow {
        /// NAME[:PORT[,PORT…]] [private] [tls|http] [ech], as in network/domains.conf; all of them or none
        #[arg(required = true)]
        rules: Vec<String>,
        /// For how long: 90s, 15m, 1h, 2days
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        period: Option<Duration>,
        /// Why; `status --json` shows it with the rule
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Take rules back, whoever wrote them; open connections that they allowed end
    #[command(after_help = "Example:\n  docker exec BOX innkeeper revoke example.org:22")]
    Revoke {
        /// The rule as `status --json` shows it; with some of its ports only these
        #[arg(required = true)]
        rules: Vec<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read the allowlist again: all of it takes effect, or nothing
    #[command(after_help = "Example:\n  docker exec BOX innkeeper reload")]
    Reload {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ask the operator to allow a name (for the agent)
    #[command(after_help = requests::ASK_HELP)]
    Request(requests::AskArgs),
    /// What the agent asked for
    #[command(after_help = "Example:\n  docker exec BOX innkeeper requests")]
    Requests {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Allow what the agent asked for, until the box ends or for a while
    #[command(after_help = "Example:\n  docker exec BOX innkeeper grant 3 --for 1h")]
    Grant {
        /// The request's number
        id: u64,
        /// For how long: 90s, 15m, 1h, 2days
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        period: Option<Duration>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Refuse what the agent asked for
    #[command(after_help = "Example:\n  docker exec BOX innkeeper refuse 3 --reason 'use the mirror'")]
    Refuse {
        /// The request's number
        id: u64,
        /// What the agent is told
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What can be learned from this box for the next one
    #[command(subcommand)]
    Policy(Learning),
}

#[derive(Debug, Subcommand)]
pub(super) enum Learning {
    /// The smallest allowlist that would have served this box, from its uses and refusals
    #[command(after_help = "Example:\n  docker exec BOX innkeeper policy suggest >network/domains.conf")]
    Suggest {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: PolicyCommand) -> u8 {
    let seconds = |period: Option<Duration>| period.map(|period| period.as_secs());
    match command {
        PolicyCommand::Check(args) => asking::check(&args),
        PolicyCommand::Allow { rules, period, reason, json } => {
            ask(&Request::Allow { rules, for_s: seconds(period), reason }, json)
        }
        PolicyCommand::Revoke { rules, json } => ask(&Request::Revoke { rules }, json),
        PolicyCommand::Reload { json } => ask(&Request::Reload, json),
        PolicyCommand::Request(args) => requests::ask(&args),
        PolicyCommand::Requests { json } => requests::list(json),
        PolicyCommand::Grant { id, period, json } => {
            ask(&Request::Grant { id, for_s: seconds(period) }, json)
        }
        PolicyCommand::Refuse { id, reason, json } => requests::refuse(id, reason, json),
        PolicyCommand::Policy(Learning::Suggest { json }) => asking::suggest(json),
    }
}

/// Asks the box and prints its answer in a line.
pub(super) fn ask(request: &Request, json: bool) -> u8 {
    match client::ask(request) {
        Ok(response) => answer(response, json),
        Err(error) => client::unanswered("control", &error),
    }
}

/// Prints an answer of the box's, and gives the exit status that it means.
pub(crate) fn answer(response: Response, json: bool) -> u8 {
    match response {
        Response::Verdict(checked) => asking::verdict(&checked, json),
        Response::Rules { text } => print(&text),
        Response::Changed { generation, rules, said } if json => {
            let changed = serde_json::json!({ "schema": SCHEMA, "generation": generation, "rules": rules, "said": said });
            print(&format!("{changed}\n"))
        }
        Response::Changed { generation, rules, said } => {
            let said: String = said.iter().map(|line| format!("{}\n", report::inert(line))).collect();
            print(&format!("{said}policy generation {generation}: {rules} rules\n"))
        }
        Response::Done { said } if json => {
            print(&format!("{}\n", serde_json::json!({ "schema": SCHEMA, "said": said })))
        }
        Response::Done { said } => {
            print(&said.iter().map(|line| format!("{}\n", report::inert(line))).collect::<String>())
        }
        Response::Heard => exit::OK,
        other => client::unserved(other),
    }
}
