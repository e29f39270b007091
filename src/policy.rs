//! The policy that is in force, as it changes while the box lives: what the configuration says, what the operator
//! granted on top and for how long, and what the operator took back. (pure)
//!
//! Every change is all or nothing: it is tried on a copy, and the caller puts the copy in force once firewall and
//! resolver have taken it. Time is a parameter: seconds that go on while the machine sleeps and that nobody sets
//! (CLOCK_BOOTTIME), so that "for an hour" is an hour.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::allowlist::{
    Allowlist, Ceiling, Denied, DomainPattern, Origin, Rule, RuleError, Verdict, parse_rules,
};
use crate::secrets::shape::mask_tokens;

/// Rules that the operator may add in a living box: more belong into a file.
pub const MAX_GRANTS: usize = 1024;
/// The shortest and longest `--for`.
pub const SHORTEST: Duration = Duration::from_secs(1);
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A rule of the operator's, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    rule: Arc<Rule>,
    until: Option<Duration>,
}

/// A rule, or some of its ports, that the operator took back although the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Revocation {
    deny: bool,
    pattern: DomainPattern,
    ports: Vec<u16>,
}

impl Revocation {
    fn of(rule: &Rule) -> Self {
        Self { deny: rule.deny, pattern: rule.pattern.clone(), ports: rule.ports.clone() }
    }

    fn concerns(&self, rule: &Rule) -> bool {
        self.deny == rule.deny && self.pattern == rule.pattern
    }
}

/// Why a change is not made. Nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{}", list(.0))]
    Unreadable(Vec<String>),
    #[error("{} beyond the ceiling of this image (/etc/innkeeper/ceiling.conf); only who builds the image can raise it", are(.0))]
    Ceiling(Vec<String>),
    #[error("{name} is denied by the rule {rule} ({origin}), which wins; first: innkeeper revoke '{rule}'")]
    DenyRule { name: String, rule: String, origin: String },
    #[error("{0}")]
    NothingToRevoke(String),
    #[error(
        "there are {MAX_GRANTS} rules of the operator's already; put rules into network/domains.conf and reload"
    )]
    TooMany,
}

fn list(problems: &[String]) -> String {
    problems.join("\n")
}

fn are(rules: &[String]) -> String {
    format!("{} {}", rules.join(", "), if rules.len() == 1 { "is" } else { "are" })
}

/// The whole policy with its history.
#[derive(Debug, Clone)]
pub struct LivePolicy {
    configured: Vec<Arc<Rule>>,
    ceiling: Ceiling,
    grants: Vec<Grant>,
    revoked: Vec<Revocation>,
    /// Grows with every change.
    pub generation: u64,
}

impl LivePolicy {
    #[must_use]
    pub fn new(configured: Vec<Rule>, ceiling: Ceiling) -> Self {
        let configured = configured.into_iter().map(Arc::new).collect();
        Self { configured, ceiling, grants: Vec::new(), revoked: Vec::new(), generation: 1 }
    }

    /// What is in force, the configuration's rules first.
    #[must_use]
    pub fn rules(&self) -> Vec<Arc<Rule>> {
        self.entries().map(|(rule, _)| rule).collect()
    }

    /// The same, each with its end.
    pub fn entries(&self) -> impl Iterator<Item = (Arc<Rule>, Option<Duration>)> {
        let configured = self.configured.iter().filter_map(|rule| Some((self.left_of(rule)?, None)));
        configured.chain(self.grants.iter().map(|grant| (grant.rule.clone(), grant.until)))
    }

    fn left_of(&self, rule: &Arc<Rule>) -> Option<Arc<Rule>> {
        let mut left = Arc::clone(rule);
        for revocation in self.revoked.iter().filter(|revocation| revocation.concerns(rule)) {
            Arc::make_mut(&mut left).ports.retain(|port| !revocation.ports.contains(port));
        }
        (!left.ports.is_empty()).then_some(left)
    }

    /// Adds rules of the operator's. Says what came of each.
    pub fn allow(&mut self, texts: &[String], until: Option<Duration>) -> Result<Vec<String>, Refusal> {
        let rules = read(texts)?;
        self.within_ceiling(&rules)?;
        let mut said = Vec::new();
        for rule in rules {
            // What is granted for a while must not stay because a file has it.
            if until.is_none() {
                self.lift_revocation(&rule);
            }
            if !rule.deny {
                self.no_deny_rule_against(&rule)?;
            }
            said.push(self.grant(rule, until));
        }
        if self.grants.len() > MAX_GRANTS {
            return Err(Refusal::TooMany);
        }
        self.generation += 1;
        Ok(said)
    }

    fn within_ceiling(&self, rules: &[Rule]) -> Result<(), Refusal> {
        let beyond: Vec<String> =
            rules.iter().filter(|rule| !self.ceiling.permits(rule)).map(ToString::to_string).collect();
        if beyond.is_empty() { Ok(()) } else { Err(Refusal::Ceiling(beyond)) }
    }

    fn lift_revocation(&mut self, rule: &Rule) {
        for revocation in self.revoked.iter_mut().filter(|revocation| revocation.concerns(rule)) {
            revocation.ports.retain(|port| !rule.ports.contains(port));
        }
        self.revoked.retain(|revocation| !revocation.ports.is_empty());
    }

    /// A rule that would change nothing is an error: the operator would believe that it did.
    fn no_deny_rule_against(&self, rule: &Rule) -> Result<(), Refusal> {
        let rules = self.rules();
        let against = rules.iter().find(|known| known.deny && known.pattern.covers(&rule.pattern));
        let Some(deny) = against else { return Ok(()) };
        Err(Refusal::DenyRule {
            name: rule.pattern.to_string(),
            rule: deny.to_string(),
            origin: deny.origin.to_string(),
        })
    }

    fn grant(&mut self, rule: Rule, until: Option<Duration>) -> String {
        let verb = if rule.deny { "denied" } else { "allowed" };
        let configured = self.configured.iter().filter_map(|known| self.left_of(known));
        let same = |known: &Rule| {
            known.deny == rule.deny
                && known.pattern == rule.pattern
                && known.options == rule.options
                && rule.ports.iter().all(|port| known.ports.contains(port))
        };
        if let Some(known) = configured.into_iter().find(|known| same(known)) {
            return format!("{rule}: {verb} already ({})", known.origin);
        }
        // A new end replaces the old one.
        self.grants.retain(|grant| *grant.rule != rule);
        let said = format!("{rule}: {verb}");
        self.grants.push(Grant { rule: Arc::new(rule), until });
        said
    }

    /// Takes rules back, whoever wrote them. Says what came of each, and what still allows the name.
    pub fn revoke(&mut self, texts: &[String]) -> Result<Vec<String>, Refusal> {
        let rules = read(texts)?;
        let mut missing = Vec::new();
        let mut said = Vec::new();
        for rule in &rules {
            match self.take_back(rule) {
                Ok(line) => said.push(line),
                Err(line) => missing.push(line),
            }
        }
        if !missing.is_empty() {
            return Err(Refusal::NothingToRevoke(missing.join("\n")));
        }
        self.generation += 1;
        Ok(said)
    }

    fn take_back(&mut self, rule: &Rule) -> Result<String, String> {
        let revocation = Revocation::of(rule);
        let of_grants = self.grants.iter().any(|grant| touches(&revocation, &grant.rule));
        let of_configuration = self
            .configured
            .iter()
            .filter_map(|known| self.left_of(known))
            .any(|known| touches(&revocation, &known));
        if !of_grants && !of_configuration {
            return Err(self.nothing_like(rule));
        }
        for grant in self.grants.iter_mut().filter(|grant| revocation.concerns(&grant.rule)) {
            Arc::make_mut(&mut grant.rule).ports.retain(|port| !revocation.ports.contains(port));
        }
        self.grants.retain(|grant| !grant.rule.ports.is_empty());
        if of_configuration {
            self.revoked.push(revocation);
        }
        Ok(self.after_revoking(rule, of_configuration))
    }

    fn after_revoking(&self, rule: &Rule, of_configuration: bool) -> String {
        let lasting = if of_configuration { " (until the box ends; a file still has it)" } else { "" };
        let still = match &rule.pattern {
            DomainPattern::Exact(name) if !rule.deny => {
                let list = Allowlist::new(self.rules());
                match list.verdict(name) {
                    Verdict::Allowed(allowed) => {
                        let by: BTreeSet<String> =
                            allowed.rules.iter().map(|rule| format!("{rule} ({})", rule.origin)).collect();
                        let by: Vec<String> = by.into_iter().collect();
                        format!("; still allowed by {}", by.join(", "))
                    }
                    Verdict::Denied(_) => String::new(),
                }
            }
            DomainPattern::Exact(_) | DomainPattern::Below(_) => String::new(),
        };
        format!("{rule}: revoked{lasting}{still}")
    }

    fn nothing_like(&self, rule: &Rule) -> String {
        let rules = self.rules();
        let same: Vec<String> = rules
            .iter()
            .filter(|known| known.deny == rule.deny && known.pattern == rule.pattern)
            .map(|known| format!("{known} ({})", known.origin))
            .collect();
        if !same.is_empty() {
            return format!("{rule}: there is no such rule, but {}", same.join(", "));
        }
        if let DomainPattern::Exact(name) = &rule.pattern
            && !rule.deny
            && let Verdict::Allowed(allowed) = Allowlist::new(rules).verdict(name)
        {
            let by = allowed.rules.iter().map(|rule| format!("{rule} ({})", rule.origin));
            return format!(
                "{rule}: no rule is for this name alone, {} allows it; deny it with: innkeeper allow '!{name}'",
                by.collect::<Vec<_>>().join(", ")
            );
        }
        format!("{rule}: there is no such rule; see them with: innkeeper status --json")
    }

    /// Other files were read: the operator's own changes stay on top, but nothing goes beyond a new ceiling.
    pub fn replace(&mut self, configured: Vec<Rule>, ceiling: Ceiling) -> Vec<String> {
        self.configured = configured.into_iter().map(Arc::new).collect();
        self.ceiling = ceiling;
        let (kept, gone): (Vec<Grant>, Vec<Grant>) =
            std::mem::take(&mut self.grants).into_iter().partition(|grant| self.ceiling.permits(&grant.rule));
        self.grants = kept;
        self.generation += 1;
        gone.iter().map(|grant| format!("{}: dropped, the new ceiling forbids it", grant.rule)).collect()
    }

    /// Ends what was granted until now.
    pub fn expire(&mut self, now: Duration) -> Vec<Arc<Rule>> {
        let (over, kept): (Vec<Grant>, Vec<Grant>) = std::mem::take(&mut self.grants)
            .into_iter()
            .partition(|grant| grant.until.is_some_and(|until| until <= now));
        self.grants = kept;
        if !over.is_empty() {
            self.generation += 1;
        }
        over.into_iter().map(|grant| grant.rule).collect()
    }

    /// When the next grant ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Duration> {
        self.grants.iter().filter_map(|grant| grant.until).min()
    }
}

fn touches(revocation: &Revocation, rule: &Rule) -> bool {
    revocation.concerns(rule) && rule.ports.iter().any(|port| revocation.ports.contains(port))
}

/// Reads the operator's rules: several in one string are as good as in a file. Every bad one is told.
fn read(texts: &[String]) -> Result<Vec<Rule>, Refusal> {
    let (mut rules, mut problems) = (Vec::new(), Vec::new());
    for text in texts {
        let (read, bad) = parse_rules(text, |_| Origin::Operator);
        if read.is_empty() && bad.is_empty() {
            problems.push(format!("\"{}\" is no rule", crate::report::inert(text)));
        }
        // A token is a host name of one label, as far as the grammar goes; it must not be looked up.
        for rule in read {
            if mask_tokens(&rule.to_string()) == rule.to_string() {
                rules.push(rule);
            } else {
                problems.push(
                    "the name of a rule looks like a token; revoke the token if others could read this"
                        .to_owned(),
                );
            }
        }
        problems.extend(bad.into_iter().map(|problem| unreadable(&problem.error)));
    }
    if problems.is_empty() { Ok(rules) } else { Err(Refusal::Unreadable(problems)) }
}

fn unreadable(error: &RuleError) -> String {
    crate::report::inert(&crate::report::bounded(&error.to_string(), 300))
}

/// What the policy says of a name and port, and by which rule; or what is nearest, and the rule that would allow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub allowed: bool,
    pub text: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Explains by the very function that decides.
#[must_use]
pub fn explain(allowlist: &Allowlist, name: &crate::allowlist::DomainName, port: u16) -> Explanation {
    let (allowed, text) = match allowlist.verdict(name) {
        Verdict::Allowed(allowed) if allowed.ports.contains(&port) => {
            let rules: Vec<String> = allowed
                .rules
                .iter()
                .filter(|rule| rule.ports.contains(&port))
                .map(|rule| format!("{rule} ({})", rule.origin))
                .collect();
            (true, format!("{name}:{port} is allowed by {}", rules.join(", ")))
        }
        Verdict::Allowed(allowed) => {
            let ports: Vec<String> = allowed.ports.iter().map(u16::to_string).collect();
            let ports = ports.join(", ");
            (false, format!("{name} is allowed on {ports} only; operator: innkeeper allow {name}:{port}"))
        }
        Verdict::Denied(why) => {
            let suffix =
                if port == crate::allowlist::DEFAULT_PORT { String::new() } else { format!(":{port}") };
            let advice = match &why {
                Denied::NotListed => format!("innkeeper allow {name}{suffix}"),
                Denied::DenyRule(rule) => format!("innkeeper revoke '{rule}'"),
                Denied::OtherSubject(_) => format!("innkeeper allow {name}{suffix}"),
            };
            (false, format!("{name}:{port} is denied: {why}; operator: {advice}"))
        }
    };
    Explanation { allowed, text }
}

#[cfg(test)]
mod tests;
