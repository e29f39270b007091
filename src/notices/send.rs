//! How a notice reaches the operator: children with a uid of their own, that hold nothing and have little time.

use std::fs::File;
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Notice;
use super::post::Letter;
use super::webhook::Webhook;
use crate::account::Account;
use crate::report::{bounded, chain, inert};
use crate::supervisor::everybody::kill_all;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, Spawner, Stream, SupervisorError};

/// What a program or a POST may take.
const LIMIT: Duration = Duration::from_secs(10);
/// What is read of its words.
const MAX_WORDS: u64 = 2048;
/// Processes at a time: a program of a few children.
const PROCESSES: u64 = 256;

/// Where notices go, and as whom. Without any, only the bell rings.
#[derive(Debug)]
pub struct Ways {
    /// Program and arguments.
    pub command: Vec<String>,
    pub webhook: Option<Webhook>,
    pub account: Option<Account>,
    pub spawner: Spawner,
    /// The certificates that the webhook is judged by, and further variables of the program's.
    pub roots: String,
    pub env: Vec<(String, String)>,
    /// The gate, where it is a proxy.
    pub proxy: Option<SocketAddr>,
}

impl Ways {
    pub(super) fn is_none(&self) -> bool {
        self.account.is_none() || self.command.is_empty() && self.webhook.is_none()
    }

    /// Sends it by every way; what went wrong, in words that hold no address.
    pub(super) fn send(&self, notice: &Notice) -> Vec<String> {
        let Some(account) = &self.account else { return Vec::new() };
        let identity = Identity {
            confine: true,
            processes: Some(PROCESSES),
            oom_score_adj: 500,
            ..Identity::worker(account.uid, account.gid)
        };
        let body = serde_json::to_string(notice).unwrap_or_default();
        let mut problems = Vec::new();
        if let Some((program, args)) = self.command.split_first() {
            let launch = Launch::program(program, identity.clone()).args(args).env(self.env.clone());
            problems.extend(self.run(launch, &format!("{body}\n"), account.uid).err());
        }
        if let Some(webhook) = &self.webhook {
            let letter = Letter {
                host: webhook.host.to_string(),
                port: webhook.port,
                path: webhook.expose_path().to_owned(),
                body,
                roots: self.roots.clone(),
                proxy: self.proxy,
            };
            let letter = serde_json::to_string(&letter).unwrap_or_default();
            problems.extend(self.run(Launch::own("post", Some(identity)), &letter, account.uid).err());
        }
        problems
    }

    fn run(&self, mut launch: Launch, input: &str, uid: u32) -> Result<(), String> {
        launch.stdin = Stream::Fd(letter(input).map_err(|error| format!("cannot write a notice: {error}"))?);
        let said = self.spawner.listen(launch, LIMIT, MAX_WORDS);
        // What it left behind: nobody else has this uid.
        kill_all(&[uid], Signal::SIGKILL);
        match said {
            Ok(said) if said.exit.success() => Ok(()),
            Ok(said) => {
                let words = said.text.trim();
                let words = if words.is_empty() { said.exit.to_string() } else { bounded(words, 300) };
                Err(format!("a notice was not delivered: {}", inert(&words)))
            }
            Err(SupervisorError::Stopping) => Ok(()),
            Err(error) => Err(format!("a notice was not delivered: {}", chain(&error))),
        }
    }
}

/// In memory, and not a pipe: whose user has many pipes gets small ones (pipe(7)), and filling them would wait for the
/// child to read.
fn letter(input: &str) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("notice", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(OwnedFd::from(file))
}
