//! The network policy of all sources: allowlist, profiles, settings, repositories, provider, and the ceiling over all.

use std::path::Path;
use std::sync::Arc;

use super::files::{CONFIG_LIMIT, read_text};
use super::problems::{Cause, Problem, shown};
use super::provider::{GatewayUrl, Model};
use super::raw::Place;
use super::repository::Repository;
use super::settings::nearest;
use super::values::Values;
use super::{Network, Sources};
use crate::allowlist::{
    Allowlist, Ceiling, Denied, DomainName, DomainPattern, Origin, Rule, RuleError, RuleOptions, RuleProblem,
    Verdict, check_gated, parse_rules,
};
use crate::policy::STRANGERS;
use crate::secrets::shape::mask_tokens;

/// The rules that are in force, each with its origin, and their bound.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub rules: Vec<Rule>,
    pub ceiling: Ceiling,
}

const RULE_FORM: &str = "a rule is NAME[:PORT[,PORT…]] [private] [tls|http] [ech], one a line";

/// Gathers the policy; what is wrong goes into `values.problems`.
#[must_use]
pub(super) fn gather(
    sources: &Sources,
    values: &mut Values,
    repositories: &[Repository],
    model: &Model,
    warnings: &mut Vec<String>,
) -> (Policy, Vec<String>) {
    let mut gathering = Gathering { sources, values, warnings, rules: Vec::new() };
    let profiles = gathering.profiles();
    gathering.allowlist(&profiles);
    gathering.settings();
    gathering.repositories(repositories);
    gathering.model(model);
    let ceiling = gathering.ceiling();
    gathering.refuse_beyond(&ceiling);
    if let Err(error) = check_gated(&gathering.rules) {
        let next = "leave tls and http out where the firewall's lock by address is enough";
        gathering.problem("the allowlist", error.to_string(), next);
    }
    let rules = gathering.rules;
    (Policy { rules, ceiling }, profiles)
}

struct Gathering<'a> {
    sources: &'a Sources,
    values: &'a mut Values,
    warnings: &'a mut Vec<String>,
    rules: Vec<Rule>,
}

/// What became of a file of rules.
enum RuleFile {
    Rules(Vec<Rule>),
    Missing,
    /// The boot ends with its problem.
    Unreadable,
}

impl Gathering<'_> {
    fn problem(&mut self, what: impl Into<String>, message: impl Into<String>, next: impl Into<String>) {
        self.values.problems.push(Problem::new(what, message, next));
    }

    /// The rules of a file. That it can't be read is reported.
    fn file(&mut self, path: &Path, origin: impl Fn(usize) -> Origin) -> RuleFile {
        let text = match read_text(path, CONFIG_LIMIT) {
            Ok(Some(text)) => text,
            Ok(None) => return RuleFile::Missing,
            Err(error) => {
                let what = path.display().to_string();
                self.problem(what, error.sentence(), "make it a readable text file");
                return RuleFile::Unreadable;
            }
        };
        let (rules, problems) = parse_rules(&text, origin);
        for RuleProblem { line, error } in problems {
            let what = format!("{}:{line}", path.display());
            self.problem(what, bad_rule(&error), RULE_FORM);
        }
        RuleFile::Rules(self.without_tokens(rules))
    }

    /// A wildcard on a public suffix allows whoever takes a name there, unless the rule says that this is meant.
    fn without_strangers(&mut self, rules: Vec<Rule>) -> Vec<Rule> {
        let (strangers, rules): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(Rule::is_for_strangers);
        for rule in strangers {
            let message = format!("\"{rule}\" {STRANGERS}");
            let next = format!("name what is needed below it; if strangers are meant: {rule} public-suffix");
            self.problem(rule.origin.to_string(), message, next);
        }
        rules
    }

    /// A token is a host name of one label, as far as the grammar goes. It must not be looked up: the query would
    /// carry it to the upstreams, in the clear.
    fn without_tokens(&mut self, rules: Vec<Rule>) -> Vec<Rule> {
        let (tokens, rules): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(|rule| {
            let text = rule.to_string();
            mask_tokens(&text) != text
        });
        for rule in tokens {
            let next = "remove it, and revoke the token if others could read this";
            self.problem(rule.origin.to_string(), "the name of a rule looks like a token", next);
        }
        rules
    }

    fn allowlist(&mut self, profiles: &[String]) {
        let path = &self.sources.allowlist_path;
        let shown: Arc<str> = display_path(path).into();
        match self.file(path, |line| Origin::File { path: shown.clone(), line }) {
            // First, as they are the operator's own.
            RuleFile::Rules(rules) => {
                let rules = self.without_strangers(rules);
                self.rules.splice(0..0, rules);
            }
            RuleFile::Unreadable => {}
            RuleFile::Missing if profiles.is_empty() => {
                let message = "is missing, and network.profiles is empty: nothing would be allowed";
                self.problem(path.display().to_string(), message, "write the allowlist, or name profiles");
            }
            RuleFile::Missing => self
                .warnings
                .push(format!("{} is missing: only profiles and settings allow names", path.display())),
        }
    }

    fn profiles(&mut self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for found in self.values.many("network.profiles") {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let name = found.text.clone();
            if name.is_empty() || name.starts_with('-') || !name.bytes().all(good) {
                self.values.refuse(&found, "it is not the name of a profile (small letters, digits, \"-\")");
                continue;
            }
            if names.contains(&name) {
                continue;
            }
            let path = self.sources.profiles_dir.join(format!("{name}.conf"));
            let shown: Arc<str> = name.as_str().into();
            match self.file(&path, |line| Origin::Profile { name: shown.clone(), line }) {
                RuleFile::Rules(rules) => {
                    let rules = self.without_strangers(rules);
                    self.rules.extend(rules);
                    names.push(name);
                }
                RuleFile::Unreadable => {}
                RuleFile::Missing => self.unknown_profile(&found.place, &name),
            }
        }
        names
    }

    fn unknown_profile(&mut self, place: &Place, name: &str) {
        let available = available_profiles(&self.sources.profiles_dir);
        let what = if *place == Place::Default { "network.profiles".to_owned() } else { place.to_string() };
        let message =
            format!("there is no profile \"{}\" in {}", shown(name), self.sources.profiles_dir.display());
        let next = match nearest(name, available.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near}? there are {}", available.join(", ")),
            None if available.is_empty() => {
                "there are none: set network.profiles to an empty list".to_owned()
            }
            None => format!("there are {}", available.join(", ")),
        };
        self.problem(what, message, next);
    }

    fn settings(&mut self) {
        for found in self.values.many("network.allow") {
            // A comment or several rules in one string are as good here as in a file.
            let what = found.place.to_string();
            let shown: Arc<str> = what.as_str().into();
            let origin = |_| Origin::Setting { name: shown.clone() };
            let (rules, problems) = parse_rules(&found.text, origin);
            let rules = self.without_tokens(rules);
            let rules = self.without_strangers(rules);
            self.rules.extend(rules);
            for RuleProblem { error, .. } in problems {
                self.problem(
                    what.clone(),
                    bad_rule(&error),
                    "a rule is NAME[:PORT[,PORT…]] [private] [tls|http] [ech]",
                );
            }
        }
    }

    fn repositories(&mut self, repositories: &[Repository]) {
        for repository in repositories {
            let Some(url) = repository.url() else { continue };
            let origin = Origin::Repository { url: url.to_string().into() };
            self.needed(url.host(), url.port(), origin, "the repository can't be cloned");
        }
    }

    fn model(&mut self, model: &Model) {
        let names = match model.names() {
            Ok(names) => names,
            Err(error) => return self.problem("model.provider", error.to_string(), "look at the region"),
        };
        for (name, port) in names {
            let listed = Allowlist::new(self.rules.clone());
            if let Verdict::Allowed(allowed) = listed.verdict(&name)
                && allowed.ports.contains(&port)
            {
                continue;
            }
            let origin = Origin::Setting { name: "model.provider".into() };
            self.needed(&name, port, origin, "the model can't be reached");
        }
    }

    /// Allows a name that something else in the configuration needs. A deny rule still wins: then it is said.
    fn needed(&mut self, name: &DomainName, port: u16, origin: Origin, otherwise: &str) {
        let options = RuleOptions { required: true, ..RuleOptions::default() };
        let pattern = DomainPattern::Exact(name.clone());
        self.rules.push(Rule { deny: false, pattern, ports: vec![port], options, origin, why: None });
        let listed = Allowlist::new(self.rules.clone());
        if let Verdict::Denied(Denied::DenyRule(rule)) = listed.verdict(name) {
            self.warnings.push(format!("{name} is denied by the rule {rule} ({}): {otherwise}", rule.origin));
        }
    }

    fn ceiling(&mut self) -> Ceiling {
        let path = &self.sources.ceiling_path;
        let shown: Arc<str> = display_path(path).into();
        match self.file(path, |line| Origin::File { path: shown.clone(), line }) {
            RuleFile::Rules(rules) => Ceiling::new(rules),
            // That it can't be read is the problem; which rules it would refuse is not known and not said.
            RuleFile::Unreadable | RuleFile::Missing => Ceiling::unbounded(),
        }
    }

    /// One problem for each place that holds refused rules: a profile may hold dozens.
    fn refuse_beyond(&mut self, ceiling: &Ceiling) {
        let ceiling_path = self.sources.ceiling_path.display().to_string();
        let mut refused: Vec<(String, Vec<String>, &'static str)> = Vec::new();
        for rule in self.rules.iter().filter(|rule| !ceiling.permits(rule)) {
            let (what, next) = match &rule.origin {
                Origin::Profile { name, .. } => (
                    format!("profile {name}"),
                    "leave it out of network.profiles, or have the ceiling raised",
                ),
                Origin::Setting { name } if **name == *"model.provider" => {
                    (name.to_string(), "have the ceiling raised: without it there is no model")
                }
                Origin::File { .. } | Origin::Setting { .. } | Origin::Operator | Origin::Request { .. } => {
                    (rule.origin.to_string(), "remove the rule, or have the ceiling raised")
                }
                Origin::Telemetry { .. } => (rule.origin.to_string(), "unset it, or have the ceiling raised"),
                Origin::Repository { .. } => {
                    (rule.origin.to_string(), "remove the repository, or have the ceiling raised")
                }
            };
            match refused.iter_mut().find(|(known, _, _)| *known == what) {
                Some((_, rules, _)) => rules.push(rule.to_string()),
                None => refused.push((what, vec![rule.to_string()], next)),
            }
        }
        for (what, rules, next) in refused {
            let more = rules.len().saturating_sub(3);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let names = rules.iter().take(3).map(|rule| format!("\"{rule}\"")).collect::<Vec<_>>().join(", ");
            let message = format!("{names}{more}: beyond the ceiling of {ceiling_path}");
            self.values.problems.push(Problem::new(what, message, next).with_cause(Cause::Ceiling));
        }
    }
}

/// Allows the host of telemetry, within the ceiling; whether there is telemetry is known after the policy was read.
pub(super) fn allow_telemetry(
    values: &mut Values,
    network: &mut Network,
    url: &GatewayUrl,
    name: Arc<str>,
    warnings: &mut Vec<String>,
) {
    let options = RuleOptions { telemetry: true, ..RuleOptions::default() };
    let pattern = DomainPattern::Exact(url.host.clone());
    let origin = Origin::Telemetry { name };
    let rule = Rule { deny: false, pattern, ports: vec![url.port], options, origin, why: None };
    if !network.ceiling.permits(&rule) {
        let message = format!("\"{rule}\": beyond the ceiling");
        let next = "unset it: there is no telemetry then; or have the ceiling raised";
        values.problems.push(Problem::new(rule.origin.to_string(), message, next).with_cause(Cause::Ceiling));
    }
    network.rules.push(rule);
    let listed = Allowlist::new(network.rules.clone());
    if let Verdict::Denied(Denied::DenyRule(rule)) = listed.verdict(&url.host) {
        let host = &url.host;
        warnings
            .push(format!("{host} is denied by the rule {rule} ({}): no telemetry gets there", rule.origin));
    }
}

fn bad_rule(error: &RuleError) -> String {
    let text = error.to_string();
    // The grammar's messages quote what was typed, which may be anything.
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .take(300)
        .collect()
}

/// Files of the usual place are shown as in the documentation; others by their path.
fn display_path(path: &Path) -> String {
    path.strip_prefix("/etc/innkeeper").unwrap_or(path).display().to_string()
}

fn available_profiles(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter_map(|name| name.strip_suffix(".conf").map(str::to_owned)).collect();
    names.sort();
    names
}
