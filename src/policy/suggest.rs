//! `innkeeper policy suggest`: the smallest allowlist that would have served this box, from what the audit log has of uses
//! and refusals. It is written in the grammar of `network/domains.conf`, and is a proposal: a person reads it.  (pure)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allowlist::{
    Allowlist, DEFAULT_PORT, Denied, DomainName, DomainPattern, Origin, Rule, Verdict, parse_rule,
};
use crate::audit::{Entry, Refused, Use, What};
use crate::report::{harmless, inert};
use crate::status::report::SCHEMA;

/// Used names below one wildcard; more of them are shorter as the wildcard that allowed them.
const MANY_BELOW: usize = 16;
/// Refused names that are listed, the most refused first.
const MAX_REFUSED: usize = 100;
/// Names at the same address that are listed.
const MAX_SHARED: usize = 3;

/// The proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestion {
    pub schema: u8,
    /// RFC 3339: since when was recorded, and until when.
    pub since: String,
    pub until: String,
    pub lines: Vec<Line>,
    /// What makes it less than the whole truth.
    pub notes: Vec<String>,
}

/// A line of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub rule: String,
    /// False: behind a `#`, for a person to decide.
    pub active: bool,
    pub uses: u64,
    pub refused: u64,
    pub comment: String,
}

/// Whose doing is looked at, and what was in force.
#[derive(Debug)]
pub struct Circumstances<'a> {
    pub allowlist: &'a Allowlist,
    /// The part of it that has no end.
    pub lasting: &'a Allowlist,
    /// What the operator took back of the configuration.
    pub taken_back: &'a [Arc<Rule>],
    pub agent: u32,
    pub since: String,
    pub until: String,
    /// Kinds of uses and refusals that the log had to forget.
    pub forgotten: u64,
}

#[derive(Debug, Clone, Default)]
struct Used {
    ports: BTreeSet<u16>,
    count: u64,
    first: String,
    last: String,
    also: BTreeSet<String>,
    unknown_uid: bool,
}

#[derive(Debug, Default)]
struct Turned {
    ports: BTreeSet<u16>,
    count: u64,
    processes: BTreeSet<String>,
    reason: String,
}

#[derive(Debug, Default)]
struct Gathered {
    /// By port, since rules are: what allows one may not allow another.
    used: BTreeMap<DomainName, BTreeMap<u16, Used>>,
    refused: BTreeMap<DomainName, Turned>,
    /// Names that only share an address with a used one.
    shared: BTreeMap<DomainName, BTreeSet<u16>>,
    /// Uses and refusals of others than the agent, of addresses without a name.
    others: u64,
    nameless: u64,
}

/// Makes the proposal.
#[must_use]
pub fn suggest(entries: &[Entry], circumstances: &Circumstances<'_>) -> Suggestion {
    let mut gathered = Gathered::default();
    for entry in entries {
        match &entry.what {
            What::Used(used) if is_agents(used.uid, circumstances.agent) => gathered.used(used),
            What::Denied(refused) if is_agents(refused.uid, circumstances.agent) => gathered.refused(refused),
            What::Used(_) | What::Denied(_) => gathered.others += 1,
            What::Note { .. }
            | What::Policy(_)
            | What::Session(_)
            | What::Worker(_)
            | What::Operator(_)
            | What::Request(_) => {}
        }
    }
    let mut lines = used_lines(&gathered, circumstances);
    let served = Allowlist::new(rules_of(lines.iter().filter(|line| line.active)));
    let mut undecided = shared_lines(&gathered, &served);
    undecided.extend(refused_lines(&gathered, &served));
    let listed = rules_of(lines.iter().chain(&undecided));
    lines.extend(denials(&listed, circumstances));
    lines.extend(undecided);
    let notes = notes(&gathered, circumstances);
    let (since, until) = (circumstances.since.clone(), circumstances.until.clone());
    Suggestion { schema: SCHEMA, since, until, lines, notes }
}

/// Whose a packet was is not always known; then it is taken for the agent's, and said.
fn is_agents(uid: Option<u32>, agent: u32) -> bool {
    uid.is_none_or(|uid| uid == agent)
}

impl Used {
    fn add(&mut self, other: &Self) {
        self.ports.extend(&other.ports);
        self.count = self.count.saturating_add(other.count);
        if self.first.is_empty() || other.first < self.first {
            self.first.clone_from(&other.first);
        }
        if other.last > self.last {
            self.last.clone_from(&other.last);
        }
        self.also.extend(other.also.iter().cloned());
        self.unknown_uid |= other.unknown_uid;
    }
}

impl Gathered {
    fn used(&mut self, used: &Use) {
        let Ok(name) = DomainName::parse(&used.name) else {
            self.nameless += 1;
            return;
        };
        for other in used.also.iter().filter_map(|other| DomainName::parse(other).ok()) {
            self.shared.entry(other).or_default().insert(used.port);
        }
        let known = self.used.entry(name).or_default().entry(used.port).or_default();
        known.add(&Used {
            ports: BTreeSet::from([used.port]),
            count: used.count,
            first: used.first.clone(),
            last: used.last.clone(),
            also: used.also.iter().cloned().collect(),
            unknown_uid: used.uid.is_none(),
        });
    }

    fn refused(&mut self, refused: &Refused) {
        let Some((name, port)) = wanted(refused) else {
            self.nameless += 1;
            return;
        };
        let known = self.refused.entry(name).or_default();
        known.ports.insert(port);
        known.count = known.count.saturating_add(refused.count);
        known.processes.extend(refused.process.as_deref().map(|process| harmless(process, 40)));
        known.reason.clone_from(&refused.reason);
    }
}

/// The name and port that would have had to be allowed.
fn wanted(refused: &Refused) -> Option<(DomainName, u16)> {
    if let Ok(name) = DomainName::parse(&refused.target) {
        return Some((name, DEFAULT_PORT));
    }
    // An address tells nothing; but where it is a name's, the command names that.
    let rule = parse_rule(refused.allow.strip_prefix("innkeeper allow ")?, Origin::Operator).ok()?;
    match (&rule.pattern, rule.ports.first()) {
        (DomainPattern::Exact(name), Some(port)) => Some((name.clone(), *port)),
        (DomainPattern::Exact(_) | DomainPattern::Below(_), _) => None,
    }
}

/// What the rules in force say now of a name and port that were used.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Lasting(Cover),
    ForAWhile(Cover),
    /// Nothing allows it any more, and why.
    Gone(String),
}

/// The narrowest pattern that allows a name on a port, and what its rules say beside that. Wider rules may say more,
/// but that is not what this name was allowed by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cover {
    /// Of a wildcard.
    apex: Option<DomainName>,
    words: String,
    /// The wildcard is on a public suffix, and says that this is meant.
    strangers: bool,
}

fn cover(name: &DomainName, port: u16, allowlist: &Allowlist) -> Option<Cover> {
    let Verdict::Allowed(allowed) = allowlist.verdict(name) else { return None };
    let opens = |rule: &&&Rule| rule.ports.contains(&port);
    // A verdict has its rules in this order: the exact ones, then wildcards, the nearest first.
    let narrowest = &allowed.rules.iter().find(opens)?.pattern;
    let rules: Vec<&Rule> =
        allowed.rules.iter().filter(opens).filter(|rule| rule.pattern == *narrowest).copied().collect();
    let mut words = String::new();
    if rules.iter().any(|rule| rule.options.private) {
        words.push_str(" private");
    }
    if rules.iter().any(|rule| rule.options.required) {
        words.push_str(" required");
    }
    if rules.iter().all(|rule| rule.options.telemetry) {
        words.push_str(" telemetry");
    }
    let mut wires = rules.iter().map(|rule| rule.options.wire);
    // Where they differ either may be spoken, which a rule says by saying nothing.
    if let Some(Some(wire)) = wires.next()
        && wires.all(|other| other == Some(wire))
    {
        words.push_str(&format!(" {wire}"));
    }
    if rules.iter().any(|rule| rule.options.ech) {
        words.push_str(" ech");
    }
    let apex = match narrowest {
        DomainPattern::Below(apex) => Some(apex.clone()),
        DomainPattern::Exact(_) => None,
    };
    Some(Cover { apex, words, strangers: rules.iter().any(|rule| rule.options.public_suffix) })
}

fn standing(name: &DomainName, port: u16, circumstances: &Circumstances<'_>) -> Standing {
    if let Verdict::Denied(Denied::DenyRule(rule)) = circumstances.allowlist.verdict(name) {
        return Standing::Gone(Denied::DenyRule(rule).to_string());
    }
    if let Some(cover) = cover(name, port, circumstances.lasting) {
        return Standing::Lasting(cover);
    }
    if let Some(cover) = cover(name, port, circumstances.allowlist) {
        return Standing::ForAWhile(cover);
    }
    let mut back = circumstances.taken_back.iter();
    if let Some(rule) = back.find(|rule| rule.pattern.matches(name) && rule.ports.contains(&port)) {
        return Standing::Gone(format!("the operator took back {rule} ({})", rule.origin));
    }
    Standing::Gone(match circumstances.allowlist.verdict(name) {
        Verdict::Allowed(_) => "it is allowed on other ports".to_owned(),
        Verdict::Denied(why) => why.to_string(),
    })
}

/// Names below one wildcard, each with its uses.
type Family<'a> = Vec<(&'a DomainName, Used)>;

fn used_lines(gathered: &Gathered, circumstances: &Circumstances<'_>) -> Vec<Line> {
    let mut below: BTreeMap<(DomainName, Cover), Family<'_>> = BTreeMap::new();
    let mut lines = Vec::new();
    for (name, ports) in &gathered.used {
        let mut standings: BTreeMap<Standing, Used> = BTreeMap::new();
        for (port, used) in ports {
            standings.entry(standing(name, *port, circumstances)).or_default().add(used);
        }
        for (standing, used) in standings {
            match standing {
                Standing::Lasting(cover) => match cover.apex.clone() {
                    Some(apex) => below.entry((apex, cover)).or_default().push((name, used)),
                    None => lines.push(used_line(name, &cover.words, &used)),
                },
                Standing::ForAWhile(cover) => {
                    let line = used_line(name, &cover.words, &used);
                    lines.push(line.behind_mark("allowed for a while only"));
                }
                Standing::Gone(why) => {
                    let line = used_line(name, "", &used);
                    lines.push(line.behind_mark(&format!("no longer allowed: {why}")));
                }
            }
        }
    }
    for ((apex, cover), names) in below {
        if names.len() > MANY_BELOW {
            lines.push(wildcard_line(&apex, &cover, &names));
        } else {
            lines.extend(names.iter().map(|(name, used)| used_line(name, &cover.words, used)));
        }
    }
    lines.sort_by_key(|line| key(&line.rule));
    lines
}

impl Line {
    fn behind_mark(mut self, why: &str) -> Self {
        self.active = false;
        self.comment = format!("{why}; {}", self.comment);
        self
    }
}

fn wildcard_line(apex: &DomainName, cover: &Cover, names: &Family<'_>) -> Line {
    let ports: BTreeSet<u16> = names.iter().flat_map(|(_, used)| used.ports.iter().copied()).collect();
    let uses = names.iter().map(|(_, used)| used.count).fold(0, u64::saturating_add);
    let strangers = if cover.strangers { " public-suffix" } else { "" };
    let rule = format!("*.{apex}{}{}{strangers}", ports_of(&ports), cover.words);
    let comment = format!("{} names below it were used, {uses} times", names.len());
    Line { rule, active: true, uses, refused: 0, comment }
}

/// Names of one owner stand together: sorted by their labels from the last on.
fn key(rule: &str) -> Vec<String> {
    let name = rule.split([':', ' ']).next().unwrap_or_default();
    name.rsplit('.').map(str::to_owned).collect()
}

fn used_line(name: &DomainName, words: &str, used: &Used) -> Line {
    let mut comment = format!("used {}×, {} to {}", used.count, minute(&used.first), minute(&used.last));
    if words.contains("telemetry") {
        comment.push_str("; statistics alone, safe to remove");
    }
    if used.unknown_uid {
        comment.push_str("; by whom is not known");
    }
    if !used.also.is_empty() {
        let mut also: Vec<&str> = used.also.iter().map(String::as_str).take(MAX_SHARED).collect();
        if used.also.len() > MAX_SHARED {
            also.push("…");
        }
        write!(comment, "; its address is also that of {}", also.join(", ")).ok();
    }
    let rule = format!("{name}{}{words}", ports_of(&used.ports));
    Line { rule, active: true, uses: used.count, refused: 0, comment }
}

/// "2026-11-21T08:00:00.000Z" without its seconds.
fn minute(time: &str) -> &str {
    time.get(..16).unwrap_or(time)
}

fn ports_of(ports: &BTreeSet<u16>) -> String {
    if ports.is_empty() || (ports.len() == 1 && ports.contains(&DEFAULT_PORT)) {
        return String::new();
    }
    format!(":{}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(","))
}

/// The rules of lines, also of those behind a mark.
fn rules_of<'a>(lines: impl Iterator<Item = &'a Line>) -> Vec<Rule> {
    lines.filter_map(|line| parse_rule(&line.rule, Origin::Operator).ok()).collect()
}

/// The denials in force that are about what is listed: those that narrow a wildcard, and those of a name behind a mark,
/// which stays denied if somebody takes the mark away.
fn denials(listed: &[Rule], circumstances: &Circumstances<'_>) -> Vec<Line> {
    let concerns = |deny: &Rule| {
        let mut listed = listed.iter().map(|rule| &rule.pattern);
        listed.any(|pattern| pattern.covers(&deny.pattern) || deny.pattern.covers(pattern))
    };
    let line = |deny: &Arc<Rule>| {
        let lasts = circumstances.lasting.rules().contains(deny);
        let comment = if lasts { "denied as before" } else { "denied as before, there for a while only" };
        Line { rule: deny.to_string(), active: true, uses: 0, refused: 0, comment: comment.to_owned() }
    };
    let mut known = BTreeSet::new();
    let denials = circumstances.allowlist.rules().iter().filter(|rule| rule.deny && concerns(rule));
    denials.filter(|rule| known.insert(&rule.pattern)).map(line).collect()
}

fn shared_lines(gathered: &Gathered, served: &Allowlist) -> Vec<Line> {
    let line = |(name, ports): (&DomainName, &BTreeSet<u16>)| Line {
        rule: format!("{name}{}", ports_of(ports)),
        active: false,
        uses: 0,
        refused: 0,
        comment: "shares the address of a name that was used; which was meant is not known".to_owned(),
    };
    let only = |(name, _): &(&DomainName, &BTreeSet<u16>)| matches!(served.verdict(name), Verdict::Denied(_));
    gathered.shared.iter().filter(only).map(line).collect()
}

fn refused_lines(gathered: &Gathered, served: &Allowlist) -> Vec<Line> {
    let missing = |(name, turned): &(&DomainName, &Turned)| match served.verdict(name) {
        Verdict::Allowed(allowed) => !turned.ports.iter().all(|port| allowed.ports.contains(port)),
        Verdict::Denied(_) => true,
    };
    let mut refused: Vec<(&DomainName, &Turned)> = gathered.refused.iter().filter(missing).collect();
    refused.sort_by_key(|(_, turned)| std::cmp::Reverse(turned.count));
    refused.truncate(MAX_REFUSED);
    refused.into_iter().map(|(name, turned)| refused_line(name, turned)).collect()
}

fn refused_line(name: &DomainName, turned: &Turned) -> Line {
    let processes: Vec<&str> = turned.processes.iter().map(String::as_str).take(MAX_SHARED).collect();
    let by = if processes.is_empty() { String::new() } else { format!(" ({})", processes.join(", ")) };
    let denied = if turned.reason.starts_with("denied by") {
        format!("; {}", harmless(&turned.reason, 120))
    } else {
        String::new()
    };
    Line {
        rule: format!("{name}{}", ports_of(&turned.ports)),
        active: false,
        uses: 0,
        refused: turned.count,
        comment: format!("refused {}×{by}{denied}: add only if wanted", turned.count),
    }
}

fn notes(gathered: &Gathered, circumstances: &Circumstances<'_>) -> Vec<String> {
    let mut notes = vec![
        "a use is a connection: on the gate's ports by the name that it showed, on others by the name whose answer \
         opened the address"
            .to_owned(),
    ];
    if circumstances.forgotten > 0 {
        let count = circumstances.forgotten;
        notes.push(format!("incomplete: the log had to forget {count} kinds of uses and refusals"));
    }
    if gathered.nameless > 0 {
        let count = gathered.nameless;
        notes.push(format!("left out: {count} kinds of uses and refusals of addresses without a name"));
    }
    if gathered.others > 0 {
        notes.push(format!("left out: {} of other users than the agent", gathered.others));
    }
    if gathered.refused.len() > MAX_REFUSED {
        let count = gathered.refused.len();
        notes.push(format!(
            "of {count} refused names only the {MAX_REFUSED} that were refused most are listed"
        ));
    }
    notes
}

/// As a file of rules. What is not a rule is behind a `#`, and nothing in a comment can end its line.
#[must_use]
pub fn render(suggestion: &Suggestion) -> String {
    let mut text = format!(
        "# By `innkeeper policy suggest`, from what the agent did in this box from {} to {} (UTC).\n\
         # The names that it used are in force; what is behind a # is for a person to decide, also what was used and is\n\
         # no longer allowed, or only for a while. But for that this file alone would have served: with it,\n\
         # network.profiles can be empty. Read it first.\n",
        minute(&suggestion.since),
        minute(&suggestion.until)
    );
    for note in &suggestion.notes {
        writeln!(text, "# - {}", inert(note)).ok();
    }
    text.push('\n');
    for line in &suggestion.lines {
        let mark = if line.active { "" } else { "# " };
        let rule = format!("{mark}{}", inert(&line.rule));
        writeln!(text, "{rule:<39} # {}", inert(&line.comment)).ok();
    }
    text
}

#[cfg(test)]
mod tests;
