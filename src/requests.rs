//! What the agent asks to be allowed, and what became of it.  (pure)
//!
//! A request is a name with ports and some words, kept until somebody decides; nothing of it is resolved, opened or
//! executed before. Everything is bounded, since the agent asks as often as it likes. Time is a parameter: seconds that
//! go on while the machine sleeps (CLOCK_BOOTTIME).

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::allowlist::{
    Allowlist, Denied, DomainPattern, Origin, Rule, RuleOptions, Verdict, is_public_suffix, parse_rule,
};
use crate::audit::RequestChange;
use crate::policy::LivePolicy;
use crate::report::{self, bounded, harmless, inert};
use crate::secrets::shape::mask_tokens;
use crate::status::audience;
use crate::status::report::{AccessRequest, RequestState};

pub mod command;

/// Requests that wait at a time: more is no help to who has to read them.
const MAX_PENDING: usize = 32;
/// Requests that are remembered; the oldest that is decided goes first.
const MAX_KEPT: usize = 256;
/// Ports of one request.
const MAX_PORTS: usize = 8;
/// Characters of a reason.
pub const MAX_REASON: usize = 300;
/// One that nobody answers ends after this.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// A refusal stands for this long: who asks for the same again hears it again.
const REFUSED_FOR: Duration = Duration::from_secs(3600);
/// New requests at once, and then one for each interval.
const BURST: u32 = 10;
const INTERVAL: Duration = Duration::from_secs(6);

/// Why a text can't be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("{0}")]
    Rule(String),
    #[error(
        "only exact names can be asked for: what a wildcard opens can't be judged by its look; ask for the names"
    )]
    Wildcard,
    #[error("a request is for a name to be allowed; only the operator denies names")]
    Denial,
    #[error(
        "a request takes no options: private addresses and the like are the operator's to allow (innkeeper allow)"
    )]
    Options,
    #[error("\"{0}\" is a public suffix, not a host")]
    Suffix(String),
    #[error("at most {MAX_PORTS} ports can be asked for at once")]
    Ports,
    #[error("that looks like a token; it was not kept. Revoke it if others could read this")]
    Token,
    #[error("say what it is for: --reason TEXT")]
    NoReason,
    #[error("a reason has at most {MAX_REASON} characters")]
    LongReason,
}

/// Why a request is not taken now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("{MAX_PENDING} requests wait for the operator already")]
    Full,
    #[error("too many requests; the next one is taken in {} s", .0.as_secs().max(1))]
    Fast(Duration),
}

/// What a request asks for: one exact name, with ports, and nothing else. What the operator grants by a key has to be
/// what it looks like.
pub fn wanted(text: &str) -> Result<Rule, Unfit> {
    let text = text.trim();
    let unreadable = |why: &dyn std::fmt::Display| Unfit::Rule(harmless(&why.to_string(), 300));
    let rule = parse_rule(text, Origin::Operator).map_err(|error| unreadable(&error))?;
    if rule.deny {
        return Err(Unfit::Denial);
    }
    let DomainPattern::Exact(name) = &rule.pattern else { return Err(Unfit::Wildcard) };
    // Options that are their own default are words too.
    if rule.options != RuleOptions::default() || text.split_whitespace().count() > 1 {
        return Err(Unfit::Options);
    }
    if is_public_suffix(name) {
        return Err(Unfit::Suffix(name.to_string()));
    }
    if rule.ports.len() > MAX_PORTS {
        return Err(Unfit::Ports);
    }
    if mask_tokens(&rule.to_string()) == rule.to_string() { Ok(rule) } else { Err(Unfit::Token) }
}

/// How the agent asks for a rule that can be asked for: a whole command but for why.
#[must_use]
pub fn proposal(rule: &str) -> String {
    format!("{COMMAND}{rule} --reason WHY")
}

/// The beginning of every [`proposal`].
pub const COMMAND: &str = "innkeeper request ";

/// The agent's words, made harmless.
pub fn reason(text: &str) -> Result<String, Unfit> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Unfit::NoReason);
    }
    if text.chars().nth(MAX_REASON).is_some() {
        return Err(Unfit::LongReason);
    }
    Ok(inert(&mask_tokens(text)))
}

/// The operator's words on a decision: cut, not refused.
#[must_use]
pub fn remark(text: &str) -> String {
    inert(&mask_tokens(&bounded(text.trim(), MAX_REASON)))
}

#[derive(Debug, Clone)]
struct Entry {
    id: u64,
    rule: Rule,
    reason: String,
    state: RequestState,
    asked: Duration,
    decided: Option<Duration>,
    /// The end of the grant.
    until: Option<Duration>,
    detail: String,
    count: u64,
    /// Granted by a rule of its own, not by one that somebody wrote meanwhile.
    own: bool,
}

/// All of them.
#[derive(Debug)]
pub struct Book {
    last: u64,
    entries: VecDeque<Entry>,
    tokens: u32,
    filled: Duration,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub id: u64,
    /// Something to tell; none if it was known.
    pub change: Option<RequestChange>,
}

impl Book {
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self { last: 0, entries: VecDeque::new(), tokens: BURST, filled: now }
    }

    /// Takes a request, or counts it with the same one before. Its first words stay: what the operator read must not
    /// become something else.
    pub fn ask(&mut self, rule: Rule, reason: String, by: &str, now: Duration) -> Result<Asked, Busy> {
        let stands = |entry: &&mut Entry| {
            let refused = entry.decided.is_some_and(|at| now.saturating_sub(at) < REFUSED_FOR);
            entry.rule.says_the_same(&rule)
                && match entry.state {
                    RequestState::Pending => true,
                    RequestState::Refused => refused,
                    RequestState::Granted | RequestState::Expired => false,
                }
        };
        if let Some(known) = self.entries.iter_mut().find(stands) {
            known.count = known.count.saturating_add(1);
            return Ok(Asked { id: known.id, change: None });
        }
        if self.pending() >= MAX_PENDING {
            return Err(Busy::Full);
        }
        self.take_token(now)?;
        self.make_room();
        self.last += 1;
        let (id, state, detail) = (self.last, RequestState::Pending, String::new());
        let entry = Entry {
            id,
            rule,
            reason,
            state,
            asked: now,
            decided: None,
            until: None,
            detail,
            count: 1,
            own: false,
        };
        let change = Some(entry.change(by));
        self.entries.push_back(entry);
        Ok(Asked { id, change })
    }

    fn pending(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state == RequestState::Pending).count()
    }

    fn take_token(&mut self, now: Duration) -> Result<(), Busy> {
        while self.tokens < BURST && now.saturating_sub(self.filled) >= INTERVAL {
            self.tokens += 1;
            self.filled += INTERVAL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
        let left = INTERVAL.saturating_sub(now.saturating_sub(self.filled));
        self.tokens = self.tokens.checked_sub(1).ok_or(Busy::Fast(left))?;
        Ok(())
    }

    fn make_room(&mut self) {
        while self.entries.len() >= MAX_KEPT {
            let over = |state| move |entry: &Entry| entry.state == state;
            let oldest = [RequestState::Expired, RequestState::Refused, RequestState::Granted]
                .into_iter()
                .find_map(|state| self.entries.iter().position(over(state)));
            match oldest {
                Some(at) => drop(self.entries.remove(at)),
                None => return,
            }
        }
    }

    /// What a request wants and why, for who grants it.
    #[must_use]
    pub fn wish(&self, id: u64) -> Option<(Rule, String)> {
        self.find(id).map(|entry| (entry.rule.clone(), entry.reason.clone()))
    }

    fn find(&self, id: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// The operator's no.
    pub fn refuse(&mut self, id: u64, why: &str, now: Duration) -> Result<RequestChange, String> {
        let entry = self.entries.iter_mut().find(|entry| entry.id == id).ok_or_else(|| nothing_like(id))?;
        match entry.state {
            RequestState::Pending => {}
            RequestState::Granted => {
                let rule = &entry.rule;
                return Err(format!("request {id} is granted; take it back with: innkeeper revoke {rule}"));
            }
            RequestState::Refused | RequestState::Expired => {
                return Err(format!("request {id} is {} already", entry.state));
            }
        }
        Ok(entry.decide(RequestState::Refused, why.to_owned(), now, "operator"))
    }

    /// Requests that nobody answered end. Called again and again.
    pub fn expire(&mut self, now: Duration) -> Vec<RequestChange> {
        let due = |entry: &&mut Entry| {
            entry.state == RequestState::Pending && now.saturating_sub(entry.asked) >= PATIENCE
        };
        let nobody = || "nobody answered".to_owned();
        let due = self.entries.iter_mut().filter(due);
        due.map(|entry| entry.decide(RequestState::Expired, nobody(), now, "clock")).collect()
    }

    /// Follows the policy: who granted, took back, allowed or denied a name has answered the requests for it.
    pub fn settle(
        &mut self,
        policy: &LivePolicy,
        allowlist: &Allowlist,
        by: &str,
        now: Duration,
    ) -> Vec<RequestChange> {
        self.entries.iter_mut().filter_map(|entry| entry.settle(policy, allowlist, by, now)).collect()
    }

    /// All requests as `status` shows them, the newest last.
    #[must_use]
    pub fn shown(&self, now: Duration, wall: SystemTime) -> Vec<AccessRequest> {
        self.entries.iter().map(|entry| entry.shown(now, wall)).collect()
    }

    #[must_use]
    pub fn one(&self, id: u64, now: Duration, wall: SystemTime) -> Option<AccessRequest> {
        self.find(id).map(|entry| entry.shown(now, wall))
    }
}

#[must_use]
pub fn nothing_like(id: u64) -> String {
    format!("there is no request {id}; see them with: innkeeper requests")
}

impl Entry {
    fn settle(
        &mut self,
        policy: &LivePolicy,
        allowlist: &Allowlist,
        by: &str,
        now: Duration,
    ) -> Option<RequestChange> {
        if let Some(until) = policy.until_of_request(self.id) {
            let same = self.state == RequestState::Granted && self.own && self.until == until;
            (self.own, self.until) = (true, until);
            return (!same).then(|| self.decide(RequestState::Granted, String::new(), now, by));
        }
        let found = judge(&self.rule, allowlist);
        match (self.state, found) {
            (RequestState::Granted, Found::Allowed(_)) if !self.own => None,
            (RequestState::Granted, _) => {
                let why = if by == "clock" { "its time is over" } else { "it was taken back" };
                (self.own, self.until) = (false, None);
                Some(self.decide(RequestState::Expired, why.to_owned(), now, by))
            }
            (RequestState::Pending, Found::Allowed(why)) => {
                Some(self.decide(RequestState::Granted, why, now, by))
            }
            (RequestState::Pending, Found::Denied(why)) => {
                Some(self.decide(RequestState::Refused, why, now, by))
            }
            (RequestState::Pending, Found::Missing) if !policy.ceiling().permits(&self.rule) => {
                let why = "it is beyond the ceiling now".to_owned();
                Some(self.decide(RequestState::Refused, why, now, by))
            }
            (RequestState::Pending, Found::Missing) => None,
            (RequestState::Refused | RequestState::Expired, _) => None,
        }
    }

    fn decide(&mut self, state: RequestState, detail: String, now: Duration, by: &str) -> RequestChange {
        (self.state, self.detail, self.decided) = (state, detail, Some(now));
        self.change(by)
    }

    fn change(&self, by: &str) -> RequestChange {
        RequestChange {
            id: self.id,
            rule: self.rule.to_string(),
            state: self.state,
            by: by.to_owned(),
            reason: self.reason.clone(),
            detail: self.detail.clone(),
        }
    }

    fn shown(&self, now: Duration, wall: SystemTime) -> AccessRequest {
        AccessRequest {
            id: self.id,
            rule: self.rule.to_string(),
            reason: self.reason.clone(),
            state: self.state,
            time: report::moment(self.asked, now, wall),
            decided_at: self.decided.map(|at| report::moment(at, now, wall)),
            until: self.until.map(|at| report::moment(at, now, wall)),
            detail: self.detail.clone(),
            count: self.count,
        }
    }
}

/// What the policy says of a wish by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// On every port, by this.
    Allowed(String),
    /// By a deny rule.
    Denied(String),
    Missing,
}

/// The agent hears it too: without the paths of host and image.
fn cited(rule: &Rule) -> String {
    format!("{rule} ({})", audience::origin(&rule.origin.to_string()))
}

/// Asks the function that decides.
#[must_use]
pub fn judge(rule: &Rule, allowlist: &Allowlist) -> Found {
    let DomainPattern::Exact(name) = &rule.pattern else { return Found::Missing };
    match allowlist.verdict(name) {
        Verdict::Allowed(allowed) if rule.ports.iter().all(|port| allowed.ports.contains(port)) => {
            let by = allowed.rules.first().map(|rule| cited(rule));
            Found::Allowed(format!("allowed by {}", by.unwrap_or_default()))
        }
        Verdict::Denied(Denied::DenyRule(rule)) => {
            Found::Denied(format!("denied by the rule {}", cited(rule)))
        }
        Verdict::Allowed(_) | Verdict::Denied(Denied::NotListed | Denied::OtherSubject(_)) => Found::Missing,
    }
}

#[cfg(test)]
mod tests;
