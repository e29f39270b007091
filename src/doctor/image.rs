//! What the image must have: users and programs.

use super::finding::Finding;
use super::trial;
use crate::account::{AccountError, Accounts};
use crate::config::Config;
use crate::prerequisites::Lack;
use crate::prerequisites::programs::{self, Needed};
use crate::report::chain;
use crate::session;

pub(super) fn users(accounts: &Result<Accounts, AccountError>) -> Finding {
    let (mechanism, tried) = ("users of the image", "/etc/passwd");
    match accounts {
        Ok(accounts) => {
            let (agent, dns, watch) = (accounts.agent.uid, accounts.dns.uid, accounts.watch.uid);
            Finding::ok(mechanism, format!("agent {agent}, dns {dns}, watch {watch}"), tried)
        }
        Err(error) => {
            let next = "build the image from innkeeper's Dockerfile, which makes these users";
            Finding::missing(mechanism, &Lack::new(chain(error), next), tried)
        }
    }
}

/// What this configuration needs, and what it does not.
pub(super) fn programs(config: Option<&Config>, home: &str) -> Vec<Finding> {
    let needed = config.map(|config| programs::needed(config, home)).unwrap_or_default();
    let mut findings: Vec<Finding> = needed.iter().map(program).collect();
    if std::path::Path::new(session::tmux()).exists() {
        findings.push(tmux());
    }
    for (name, purpose) in
        [("git", "no repository is to be cloned"), ("iptables", "only where nf_tables is not")]
    {
        let path = programs::found(name);
        if needed.iter().any(|needed| needed.path == path) {
            continue;
        }
        let there = if path.exists() { "there" } else { "not in the image" };
        findings.push(Finding::not_applicable(
            path.display().to_string(),
            format!("{there}; {purpose}"),
            "stat(2)",
        ));
    }
    findings
}

fn program(needed: &Needed) -> Finding {
    let mechanism = needed.path.display().to_string();
    match needed.lack() {
        None => Finding::ok(mechanism, needed.purpose, "stat(2)"),
        Some(lack) => Finding::missing(mechanism, &lack, "stat(2)"),
    }
}

fn tmux() -> Finding {
    let (mechanism, tried) = ("tmux 3.6 or newer", "tmux -V");
    let said = trial::said(session::tmux(), &["-V"]);
    match (programs::tmux_lack(&said), programs::tmux_flickers(&said)) {
        (Some(lack), _) => Finding::missing(mechanism, &lack, tried),
        (None, Some(lack)) => Finding::weaker(mechanism, lack.what, tried).next(lack.next),
        (None, None) => Finding::ok(mechanism, said.trim(), tried),
    }
}
