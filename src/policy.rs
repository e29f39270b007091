//! The policy that is in force, as it changes while the box lives: what the configuration says, what the operator
//! granted on top and for how long, and what the operator took back. (pure)
//!
//! Every change is all or nothing: it is tried on a copy, and the caller puts the copy in force once firewall and
//! resolver have taken it. Time is a parameter: seconds that go on while the machine sleeps and that nobody sets
//! (CLOCK_BOOTTIME), so that "for an hour" is an hour.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::allowlist::{
    Allowlist, Ceiling, DomainPattern, Origin, Rule, RuleError, TooManyGated, Verdict, check_gated,
    parse_rules,
};
use crate::secrets::shape::mask_tokens;

pub mod check;
pub mod command;
pub mod hosts;
pub mod lint;
pub mod nearest;
pub mod remedy;
pub mod suggest;

/// What is said of a wildcard on a public suffix.
pub const STRANGERS: &str = "allows names of strangers: anybody can have a name below this public suffix";

/// Rules that the operator may add in a living box: more belong into a file.
pub const MAX_GRANTS: usize = 1024;
/// The shortest and longest `--for`.
pub const SHORTEST: Duration = Duration::from_secs(1);
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// How rules are granted: who, when, why, until.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub origin: Origin,
    pub since: Duration,
    pub why: Option<Arc<str>>,
    pub until: Option<Duration>,
}

impl From<Option<Duration>> for Terms {
    fn from(until: Option<Duration>) -> Self {
        Self { origin: Origin::Operator, since: Duration::ZERO, why: None, until }
    }
}

/// A rule that is in force, since when and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    pub rule: Arc<Rule>,
    pub since: Duration,
    pub until: Option<Duration>,
}

/// What came of a rule that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub said: String,
    /// False: the configuration has it, and its end is not the one that was given.
    pub new: bool,
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
    #[error("{} {STRANGERS}; if that is meant: innkeeper allow '{} public-suffix'", are_quoted(.0), .0.first().map_or("", String::as_str))]
    Strangers(Vec<String>),
    #[error("{name} is denied by the rule {rule} ({origin}), which wins; first: innkeeper revoke '{rule}'")]
    DenyRule { name: String, rule: String, origin: String },
    #[error("{0}")]
    NothingToRevoke(String),
    #[error(
        "there are {MAX_GRANTS} rules of the operator's already; put rules into network/domains.conf and reload"
    )]
    TooMany,
    #[error(transparent)]
    Gated(#[from] TooManyGated),
}

/// Problems that are told at once.
const TOLD: usize = 20;

fn list(problems: &[String]) -> String {
    let more = problems.len().saturating_sub(TOLD);
    let more = (more > 0).then(|| format!("and {more} more"));
    problems.iter().take(TOLD).cloned().chain(more).collect::<Vec<_>>().join("\n")
}

fn are_quoted(rules: &[String]) -> String {
    rules.iter().map(|rule| format!("\"{rule}\"")).collect::<Vec<_>>().join(", ")
}

fn are(rules: &[String]) -> String {
    format!("{} {}", rules.join(", "), if rules.len() == 1 { "is" } else { "are" })
}

/// The whole policy with its history.
#[derive(Debug, Clone)]
pub struct LivePolicy {
    /// What the configuration says, each rule since when.
    configured: Vec<InForce>,
    ceiling: Ceiling,
    /// What the operator granted.
    grants: Vec<InForce>,
    revoked: Vec<Revocation>,
    /// Grows with every change.
    pub generation: u64,
}

impl LivePolicy {
    #[must_use]
    pub fn new(configured: Vec<Rule>, ceiling: Ceiling, now: Duration) -> Self {
        let configured = configured.into_iter().map(|rule| InForce::new(rule.into(), now)).collect();
        Self { configured, ceiling, grants: Vec::new(), revoked: Vec::new(), generation: 1 }
    }

    /// What is in force, the configuration's rules first.
    #[must_use]
    pub fn rules(&self) -> Vec<Arc<Rule>> {
        self.entries().map(|entry| entry.rule).collect()
    }

    /// The same, each with its beginning and end.
    pub fn entries(&self) -> impl Iterator<Item = InForce> {
        self.left().chain(self.grants.iter().cloned())
    }

    /// What the operator left of the configuration.
    fn left(&self) -> impl Iterator<Item = InForce> {
        self.configured.iter().filter_map(|known| {
            Some(InForce { rule: self.left_of(&known.rule)?, since: known.since, until: None })
        })
    }

    #[must_use]
    pub fn ceiling(&self) -> &Ceiling {
        &self.ceiling
    }

    /// Rules of the configuration of which the operator took something back, as they were written.
    pub fn taken_back(&self) -> impl Iterator<Item = &Arc<Rule>> {
        let touched =
            |known: &&InForce| self.revoked.iter().any(|revocation| touches(revocation, &known.rule));
        self.configured.iter().filter(touched).map(|known| &known.rule)
    }

    /// When what was granted on this request ends; none if nothing of it is in force.
    #[must_use]
    pub fn until_of_request(&self, id: u64) -> Option<Option<Duration>> {
        let grant = self.grants.iter().rev().find(|grant| grant.rule.origin == Origin::Request { id });
        grant.map(|grant| grant.until)
    }

    fn left_of(&self, rule: &Arc<Rule>) -> Option<Arc<Rule>> {
        let mut left = Arc::clone(rule);
        for revocation in self.revoked.iter().filter(|revocation| revocation.concerns(rule)) {
            Arc::make_mut(&mut left).ports.retain(|port| !revocation.ports.contains(port));
        }
        (!left.ports.is_empty()).then_some(left)
    }

    /// Adds rules of the operator's. Says what came of each.
    pub fn allow(&mut self, texts: &[String], terms: impl Into<Terms>) -> Result<Vec<Outcome>, Refusal> {
        let terms = terms.into();
        let rules = read(texts, &terms)?;
        let strangers = rules.iter().filter(|rule| rule.is_for_strangers());
        let strangers: Vec<String> = strangers.map(ToString::to_string).collect();
        if !strangers.is_empty() {
            return Err(Refusal::Strangers(strangers));
        }
        self.within_ceiling(&rules)?;
        let mut said = Vec::new();
        for rule in rules {
            // What is granted for a while must not stay because a file has it; and who says yes to a request has read
            // the request, not the file.
            if terms.until.is_none() && terms.origin == Origin::Operator {
                self.lift_revocation(&rule);
            }
            if !rule.deny {
                self.no_deny_rule_against(&rule)?;
            }
            said.push(self.grant(rule, &terms));
        }
        if self.grants.len() > MAX_GRANTS {
            return Err(Refusal::TooMany);
        }
        check_gated(self.rules().iter().map(|rule| &**rule))?;
        self.generation += 1;
        Ok(said)
    }

    fn within_ceiling(&self, rules: &[Rule]) -> Result<(), Refusal> {
        let beyond: Vec<String> =
            rules.iter().filter(|rule| !self.ceiling.permits(rule)).map(ToString::to_string).collect();
        if beyond.is_empty() { Ok(()) } else { Err(Refusal::Ceiling(beyond)) }
    }

    /// What the configuration has comes back where it says nothing else than this rule: its options would come with it.
    fn lift_revocation(&mut self, rule: &Rule) {
        let others = self.configured.iter().map(|known| &known.rule).filter(|known| {
            known.deny == rule.deny && known.pattern == rule.pattern && known.options != rule.options
        });
        let others: BTreeSet<u16> = others.flat_map(|known| known.ports.iter().copied()).collect();
        for revocation in self.revoked.iter_mut().filter(|revocation| revocation.concerns(rule)) {
            revocation.ports.retain(|port| !rule.ports.contains(port) || others.contains(port));
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

    fn grant(&mut self, rule: Rule, terms: &Terms) -> Outcome {
        let verb = if rule.deny { "denied" } else { "allowed" };
        let same = |known: &Rule| {
            known.deny == rule.deny
                && known.pattern == rule.pattern
                && known.options == rule.options
                && rule.ports.iter().all(|port| known.ports.contains(port))
        };
        if let Some(known) = self.left().find(|known| same(&known.rule)) {
            let said = format!("{rule}: {verb} already ({})", known.rule.origin);
            return Outcome { said, new: false };
        }
        // A new end replaces the old one.
        self.grants.retain(|grant| !(grant.rule.says_the_same(&rule) && grant.rule.origin == rule.origin));
        let said = format!("{rule}: {verb}");
        self.grants.push(InForce { rule: Arc::new(rule), since: terms.since, until: terms.until });
        Outcome { said, new: true }
    }

    /// Takes rules back, whoever wrote them. Says what came of each, and what still allows the name.
    pub fn revoke(&mut self, texts: &[String]) -> Result<Vec<String>, Refusal> {
        let rules = read(texts, &Terms::from(None))?;
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
        let of_configuration = self.left().any(|known| touches(&revocation, &known.rule));
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
    pub fn replace(&mut self, configured: Vec<Rule>, ceiling: Ceiling, now: Duration) -> Vec<String> {
        let mut known: HashMap<Arc<Rule>, Duration> =
            self.configured.drain(..).map(|known| (known.rule, known.since)).collect();
        let since = |rule: Arc<Rule>| {
            let since = known.remove(&rule).unwrap_or(now);
            InForce::new(rule, since)
        };
        self.configured = configured.into_iter().map(Arc::new).map(since).collect();
        self.ceiling = ceiling;
        let (kept, gone): (Vec<InForce>, Vec<InForce>) =
            std::mem::take(&mut self.grants).into_iter().partition(|grant| self.ceiling.permits(&grant.rule));
        self.grants = kept;
        self.generation += 1;
        gone.iter().map(|grant| format!("{}: dropped, the new ceiling forbids it", grant.rule)).collect()
    }

    /// Ends what was granted until now.
    pub fn expire(&mut self, now: Duration) -> Vec<Arc<Rule>> {
        let (over, kept): (Vec<InForce>, Vec<InForce>) = std::mem::take(&mut self.grants)
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

impl InForce {
    fn new(rule: Arc<Rule>, since: Duration) -> Self {
        Self { rule, since, until: None }
    }
}

fn touches(revocation: &Revocation, rule: &Rule) -> bool {
    revocation.concerns(rule) && rule.ports.iter().any(|port| revocation.ports.contains(port))
}

/// Reads the operator's rules: several in one string are as good as in a file. Every bad one is told.
fn read(texts: &[String], terms: &Terms) -> Result<Vec<Rule>, Refusal> {
    let (mut rules, mut problems) = (Vec::new(), Vec::new());
    for text in texts {
        let (read, bad) = parse_rules(text, |_| terms.origin.clone());
        if read.is_empty() && bad.is_empty() {
            let text = crate::report::harmless(text, 80);
            problems.push(format!("\"{text}\" is no rule"));
        }
        // A token is a host name of one label, as far as the grammar goes; it must not be looked up.
        for rule in read {
            if mask_tokens(&rule.to_string()) == rule.to_string() {
                let why = terms.why.clone().or(rule.why);
                rules.push(Rule { why, ..rule });
            } else {
                problems.push(
                    "the name of a rule looks like a token; revoke the token if others could read this"
                        .to_owned(),
                );
            }
        }
        problems.extend(bad.into_iter().map(|problem| unreadable(&problem.error)));
    }
    if !problems.is_empty() {
        return Err(Refusal::Unreadable(problems));
    }
    Ok(rules)
}

fn unreadable(error: &RuleError) -> String {
    crate::report::harmless(&error.to_string(), 300)
}

#[cfg(test)]
mod tests;
