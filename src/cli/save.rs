//! `innkeeper save`: the work goes to the volume now.

use std::time::Duration;

use super::print;
use crate::control::client;
use crate::control::protocol::{Request, Response};
use crate::report::inert;
use crate::status::report::SCHEMA;

pub(super) const HELP: &str = "Examples:
  docker exec BOX innkeeper save
  docker exec BOX innkeeper save --json | jq .saved_at

Exit status: 0 saved; 1 if no box answers; 75 not now (nothing is restored yet, another save is under way, the volume
is full: the save before it stays whole); 77 for others than the operator; 78 no volume is mounted at /persist.";

/// A large repository takes its time.
const LIMIT: Duration = Duration::from_secs(6 * 60);

#[derive(Debug, clap::Args)]
pub(super) struct Save {
    /// One JSON object: what `status --json` has as .persist, and what was said
    #[arg(long)]
    json: bool,
}

pub(super) fn run(save: &Save) -> u8 {
    match client::ask_for(&Request::Save, LIMIT) {
        Ok(Response::Done { said }) if save.json => {
            let persist = match client::ask(&Request::Status) {
                Ok(Response::Status { report }) => Some(report.persist),
                Ok(_) | Err(_) => None,
            };
            let mut answer = serde_json::to_value(persist).unwrap_or_default();
            if let Some(answer) = answer.as_object_mut() {
                answer.insert("schema".to_owned(), SCHEMA.into());
                answer.insert("said".to_owned(), said.into());
            }
            print(&format!("{answer}\n"))
        }
        Ok(Response::Done { said }) => {
            print(&said.iter().map(|line| format!("{}\n", inert(line))).collect::<String>())
        }
        Ok(other) => client::unserved(other),
        Err(error) => client::unanswered("save", &error),
    }
}
