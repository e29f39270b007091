//! Changes of the policy in a living box: tried on a copy, then put in force in firewall and resolver, then shown.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Innkeeper, lock};
use crate::allowlist::{Allowlist, Rule};
use crate::audit::{self, PolicyChange};
use crate::clock::boottime;
use crate::config;
use crate::control::protocol::Response;
use crate::policy::{LONGEST, LivePolicy, Refusal, SHORTEST};
use crate::report::{self, chain, event};
use crate::status::report::PolicyRule;

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let reason = refusal.to_string();
        match refusal {
            Refusal::Ceiling(_) => Self::Refused { reason },
            Refusal::Unreadable(_)
            | Refusal::DenyRule { .. }
            | Refusal::NothingToRevoke(_)
            | Refusal::TooMany => Self::Invalid { reason },
        }
    }
}

impl Innkeeper {
    /// Adds the operator's rules.
    pub(super) fn allow(&self, rules: &[String], for_s: Option<u64>) -> Response {
        let period = for_s.map(Duration::from_secs);
        if let Some(period) = period
            && !(SHORTEST..=LONGEST).contains(&period)
        {
            let reason = "--for takes from 1s to 30d".to_owned();
            return Response::Invalid { reason };
        }
        let until = period.map(|period| boottime() + period);
        self.changed("operator", |policy| policy.allow(rules, until).map(|said| with_end(said, period)))
    }

    /// Takes rules back.
    pub(super) fn revoke(&self, rules: &[String]) -> Response {
        self.changed("operator", |policy| policy.revoke(rules))
    }

    /// Reads every source of the policy again; all of it takes effect or nothing.
    pub(super) fn reload_policy(&self) -> Response {
        let config = match config::load(&self.sources) {
            Ok(config) => config,
            Err(problems) => {
                let reason = format!("the old policy stays: {problems}");
                event("policy", &reason);
                return Response::Failed { reason };
            }
        };
        self.changed("reload", |policy| Ok(policy.replace(config.network.rules, config.network.ceiling)))
    }

    /// Ends grants whose time is over. Called again and again.
    pub fn expire_grants(&self) {
        let due = |policy: &LivePolicy| policy.next_end().is_some_and(|end| end <= boottime());
        if !due(&lock(&self.policy)) {
            return;
        }
        let ended = |policy: &mut LivePolicy| {
            let over = policy.expire(boottime());
            Ok(over.iter().map(|rule| format!("{rule}: its time is over")).collect())
        };
        if let Response::Failed { reason } = self.changed("clock", ended) {
            event("policy", &reason);
        }
    }

    fn changed(
        &self,
        by: &str,
        change: impl FnOnce(&mut LivePolicy) -> Result<Vec<String>, Refusal>,
    ) -> Response {
        let _one = lock(&self.changing);
        let mut next = lock(&self.policy).clone();
        let before = next.generation;
        let said = match change(&mut next) {
            Ok(said) => said,
            Err(refusal) => {
                event("policy", &format!("{by}: refused: {}", refusal.to_string().replace('\n', "; ")));
                return refusal.into();
            }
        };
        if next.generation != before
            && let Err(reason) = self.put_in_force(next)
        {
            return Response::Failed { reason };
        }
        let (generation, rules) = self.show_policy();
        let change = if said.is_empty() { "read again".to_owned() } else { said.join("\n") };
        audit::policy(PolicyChange { generation, rules, by: by.to_owned(), change });
        Response::Changed { generation, rules, said }
    }

    fn put_in_force(&self, next: LivePolicy) -> Result<(), String> {
        let (Some(firewall), Some(keeper)) = (self.firewall.get(), self.keeper.get()) else {
            return Err("the box is still booting; try again when it is ready".to_owned());
        };
        let allowlist = Allowlist::new(next.rules());
        // The firewall first: what is no longer allowed is closed before a name could open it again.
        firewall.policy(allowlist.clone()).map_err(|error| chain(&error))?;
        *lock(&self.policy) = next;
        *lock(&self.allowlist) = allowlist;
        keeper.policy(self.standing());
        Ok(())
    }

    /// The rules as `status` shows them. Made when somebody asks: a copy of 10,000 rules would live for nobody.
    pub(super) fn shown_rules(&self) -> Vec<PolicyRule> {
        let policy = lock(&self.policy).clone();
        let (now, wall) = (boottime(), SystemTime::now());
        let shown = |(rule, until): (Arc<Rule>, Option<Duration>)| PolicyRule {
            rule: rule.to_string(),
            by: rule.options.by.to_string(),
            origin: rule.origin.to_string(),
            since: String::new(),
            reason: None,
            expires_at: until.map(|until| report::time(wall + until.saturating_sub(now))),
        };
        policy.entries().map(shown).collect()
    }

    /// Puts the policy's name on the board; returns its generation and size.
    pub(super) fn show_policy(&self) -> (u64, usize) {
        let policy = lock(&self.policy).clone();
        let mut text: Vec<String> = policy.entries().map(|(rule, _)| rule.to_string()).collect();
        text.sort_unstable();
        let digest = report::sha256(&text.join("\n"));
        let count = text.len();
        self.board.update(|report| {
            report.policy.generation = policy.generation;
            report.box_.policy_sha256 = digest;
        });
        (policy.generation, count)
    }
}

fn with_end(said: Vec<String>, period: Option<Duration>) -> Vec<String> {
    let Some(period) = period else { return said };
    let period = humantime::format_duration(period);
    let ending = |line: String| if line.contains("already") { line } else { format!("{line} for {period}") };
    said.into_iter().map(ending).collect()
}
