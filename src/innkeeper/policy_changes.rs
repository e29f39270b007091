//! Changes of the policy in a living box: tried on a copy, then put in force in firewall and resolver, then shown.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::{Innkeeper, lock};
use crate::allowlist::{Allowlist, Origin, Rule, Wire, check_gated};
use crate::audit::{self, PolicyChange};
use crate::clock::boottime;
use crate::config;
use crate::control::protocol::Response;
use crate::policy::{InForce, LONGEST, LivePolicy, Outcome, Refusal, SHORTEST, Terms};
use crate::report::{self, chain, event};
use crate::requests::remark;
use crate::secrets::shape::mask_tokens;
use crate::status::report::PolicyRule;

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let reason = refusal.to_string();
        match refusal {
            Refusal::Ceiling(_) => Self::Refused { reason },
            Refusal::Unreadable(_)
            | Refusal::Strangers(_)
            | Refusal::DenyRule { .. }
            | Refusal::NothingToRevoke(_)
            | Refusal::TooMany
            | Refusal::Gated(_) => Self::Invalid { reason },
        }
    }
}

impl Innkeeper {
    /// Adds the operator's rules.
    pub(super) fn allow(&self, rules: &[String], for_s: Option<u64>, reason: Option<&str>) -> Response {
        let period = match granted_for(for_s) {
            Ok(period) => period,
            Err(reason) => return Response::Invalid { reason },
        };
        let since = boottime();
        let why = reason.map(remark).filter(|why| !why.is_empty());
        let (origin, until) = (Origin::Operator, period.map(|period| since + period));
        let terms = Terms { origin, since, why: why.as_deref().map(Into::into), until };
        self.changed("operator", |policy| {
            let mut said = with_end(policy.allow(rules, terms)?, period);
            said.extend(why.map(|why| format!("because: {why}")));
            Ok(said)
        })
    }

    /// Takes rules back.
    pub(super) fn revoke(&self, rules: &[String]) -> Response {
        self.changed("operator", |policy| policy.revoke(rules))
    }

    /// Reads every source of the policy again; all of it takes effect or nothing.
    pub(super) fn reload_policy(&self) -> Response {
        let config = match config::load(&self.sources_now()) {
            Ok(config) => config,
            Err(problems) => {
                let reason = format!("the old policy stays: {problems}");
                event("policy", &reason);
                return Response::Failed { reason };
            }
        };
        self.changed("reload", |policy| {
            Ok(policy.replace(config.network.rules, config.network.ceiling, boottime()))
        })
    }

    /// Ends grants whose time is over. Called again and again.
    pub fn expire_grants(&self) {
        self.expire_requests();
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

    pub(super) fn changed(
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
        self.settle_requests(by);
        self.lint_again();
        Response::Changed { generation, rules, said }
    }

    fn put_in_force(&self, next: LivePolicy) -> Result<(), String> {
        let (Some(firewall), Some(keeper)) = (self.firewall.get(), self.keeper.get()) else {
            return Err("the box is still booting; try again when it is ready".to_owned());
        };
        let allowlist = Allowlist::new(next.rules());
        // Files that were read again and what the operator granted, together.
        check_gated(next.rules().iter().map(|rule| &**rule)).map_err(|error| error.to_string())?;
        // The firewall first: what is no longer allowed is closed before a name could open it again.
        firewall.policy(allowlist.clone()).map_err(|error| chain(&error))?;
        self.board.bounded_by(next.ceiling().clone());
        *lock(&self.policy) = next;
        *lock(&self.allowlist) = allowlist;
        // The gate before the resolver: what lives by a rule that is gone ends.
        if let Some(gate) = self.gate.get() {
            gate.policy(self.standing());
        }
        keeper.policy(self.standing());
        Ok(())
    }

    /// The rules as `status` shows them. Made when somebody asks: a copy of 10,000 rules would live for nobody.
    pub(super) fn shown_rules(&self) -> Vec<PolicyRule> {
        let policy = lock(&self.policy).clone();
        let (now, wall) = (boottime(), SystemTime::now());
        let gated = self.allowlist().gated_ports();
        let shown = |entry: InForce| PolicyRule {
            judged_by: judged_by(&entry.rule, &gated),
            rule: entry.rule.to_string(),
            by: entry.rule.options.by.to_string(),
            origin: entry.rule.origin.to_string(),
            since: report::moment(entry.since, now, wall),
            reason: entry.rule.why.as_deref().map(|why| report::inert(&mask_tokens(why))),
            expires_at: entry.until.map(|until| report::moment(until, now, wall)),
        };
        policy.entries().map(shown).collect()
    }

    /// Puts the policy's name on the board; returns its generation and size.
    pub(super) fn show_policy(&self) -> (u64, usize) {
        let policy = lock(&self.policy).clone();
        let mut text: Vec<String> = policy.entries().map(|entry| entry.rule.to_string()).collect();
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

/// What decides about a rule's connections, for all its ports.
fn judged_by(rule: &Rule, gated: &[u16]) -> Vec<String> {
    let mut by = BTreeSet::new();
    for port in rule.ports.iter().filter(|_| !rule.deny) {
        match (gated.contains(port), rule.wire_on(*port)) {
            (false, _) => by.extend(["address"]),
            (true, Some(Wire::Tls)) => by.extend(["sni"]),
            (true, Some(Wire::Http)) => by.extend(["host"]),
            (true, None) => by.extend(["sni", "host"]),
        }
    }
    by.into_iter().map(str::to_owned).collect()
}

/// How long the operator grants something; none: until the box ends.
pub(super) fn granted_for(for_s: Option<u64>) -> Result<Option<Duration>, String> {
    match for_s.map(Duration::from_secs) {
        Some(period) if !(SHORTEST..=LONGEST).contains(&period) => {
            Err("--for takes from 1s to 30d".to_owned())
        }
        period => Ok(period),
    }
}

pub(super) fn with_end(outcomes: Vec<Outcome>, period: Option<Duration>) -> Vec<String> {
    let ending = |Outcome { said, new }| match period {
        Some(period) if new => format!("{said} for {}", humantime::format_duration(period)),
        Some(_) | None => said,
    };
    outcomes.into_iter().map(ending).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::{Ceiling, parse_rules};

    #[test]
    fn what_is_new_is_said_with_its_end_whatever_it_is_called() {
        let (rules, _) = parse_rules("known.test", |line| Origin::File { path: "d.conf".into(), line });
        let mut policy = LivePolicy::new(rules, Ceiling::unbounded(), Duration::ZERO);
        let hour = Some(Duration::from_secs(3600));
        let said = policy.allow(&["already.example".to_owned(), "known.test".to_owned()], hour).unwrap();
        assert_eq!(
            with_end(said.clone(), hour),
            ["already.example: allowed for 1h", "known.test: allowed already (d.conf:1)"]
        );
        assert_eq!(with_end(said, None)[0], "already.example: allowed");
    }
}
