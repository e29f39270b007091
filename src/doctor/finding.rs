//! What `doctor` found, mechanism by mechanism, as text and as JSON. (pure)

use std::fmt::Write;

use serde::Serialize;

use crate::prerequisites::Lack;
use crate::prerequisites::runtime::Runtime;
use crate::report::inert;

/// The version of the JSON; a field may be added without a new one.
pub const SCHEMA: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    #[serde(rename = "ok")]
    Ok,
    /// A boot can't do without it.
    #[serde(rename = "missing")]
    Missing,
    /// A boot succeeds, and something is less than it could be.
    #[serde(rename = "weaker")]
    Weaker,
    /// Not needed here, or not to be had by nature.
    #[serde(rename = "n/a")]
    NotApplicable,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Weaker => "weaker",
            Self::NotApplicable => "n/a",
        }
    }
}

/// One mechanism.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub mechanism: String,
    pub verdict: Verdict,
    pub found: String,
    /// How it was found out.
    pub tried: String,
    /// The flag that would change it; empty where there is nothing to change.
    pub next: String,
}

impl Finding {
    fn new(mechanism: impl Into<String>, verdict: Verdict, found: impl Into<String>, tried: &str) -> Self {
        let (mechanism, found, tried) = (mechanism.into(), found.into(), tried.to_owned());
        Self { mechanism, verdict, found, tried, next: String::new() }
    }

    pub fn ok(mechanism: impl Into<String>, found: impl Into<String>, tried: &str) -> Self {
        Self::new(mechanism, Verdict::Ok, found, tried)
    }

    pub fn missing(mechanism: impl Into<String>, lack: &Lack, tried: &str) -> Self {
        Self::new(mechanism, Verdict::Missing, lack.what.clone(), tried).next(lack.next.clone())
    }

    pub fn weaker(mechanism: impl Into<String>, found: impl Into<String>, tried: &str) -> Self {
        Self::new(mechanism, Verdict::Weaker, found, tried)
    }

    pub fn not_applicable(mechanism: impl Into<String>, found: impl Into<String>, tried: &str) -> Self {
        Self::new(mechanism, Verdict::NotApplicable, found, tried)
    }

    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

/// Why a boot would be refused, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub what: String,
    pub next: String,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Examination {
    pub schema: u8,
    pub version: &'static str,
    pub runtime: Runtime,
    /// Whether a boot with these very flags would succeed.
    pub fit: bool,
    pub reasons: Vec<Reason>,
    pub findings: Vec<Finding>,
}

impl Examination {
    #[must_use]
    pub fn new(runtime: Runtime, findings: Vec<Finding>) -> Self {
        let missing = findings.iter().filter(|finding| finding.verdict == Verdict::Missing);
        let reason = |finding: &Finding| Reason { what: finding.found.clone(), next: finding.next.clone() };
        let reasons: Vec<Reason> = missing.map(reason).collect();
        let (schema, version, fit) = (SCHEMA, env!("CARGO_PKG_VERSION"), reasons.is_empty());
        Self { schema, version, runtime, fit, reasons, findings }
    }

    /// A line for each mechanism, and below what is not well the flag that would change it.
    #[must_use]
    pub fn text(&self) -> String {
        let width = self.findings.iter().map(|finding| finding.mechanism.chars().count()).max().unwrap_or(0);
        let mut text = format!("innkeeper {} in {}\n", self.version, self.runtime);
        for finding in &self.findings {
            let Finding { mechanism, verdict, found, tried, next } = finding;
            let word = verdict.word();
            let line = format!("  {mechanism:<width$}  {word:<7}  {} ({tried})", inert(found));
            writeln!(text, "{line}").ok();
            if !next.is_empty() {
                writeln!(text, "  {:<width$}  {:<7}  next: {}", "", "", inert(next)).ok();
            }
        }
        text.push_str(&self.verdict());
        text
    }

    fn verdict(&self) -> String {
        if self.fit {
            return "A boot would succeed.\n".to_owned();
        }
        let mut text = "A boot would be refused with exit status 78:\n".to_owned();
        for (number, reason) in (1..).zip(&self.reasons) {
            writeln!(text, "{number}. {}", reason.what).ok();
            if !reason.next.is_empty() {
                writeln!(text, "   next: {}", reason.next).ok();
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::{Examination, Finding, Lack, Runtime};

    #[test]
    fn one_missing_mechanism_makes_a_host_unfit_and_a_weaker_one_does_not() {
        let fine = Finding::ok("root", "uid 0", "geteuid(2)");
        let weak = Finding::weaker("memory", "no limit", "cgroup").next("--memory 4g");
        let fit = Examination::new(Runtime::Docker, vec![fine.clone(), weak]);
        assert!(fit.fit && fit.text().ends_with("A boot would succeed.\n"), "{}", fit.text());
        assert!(fit.text().contains("next: --memory 4g"));
        let lack = Lack::new("missing capabilities: KILL", "docker run --cap-add KILL …");
        let unfit = Examination::new(Runtime::Docker, vec![fine, Finding::missing("KILL", &lack, "capget")]);
        assert!(!unfit.fit);
        assert!(
            unfit.text().contains("1. missing capabilities: KILL\n   next: docker run --cap-add KILL …\n")
        );
        let json = serde_json::to_value(&unfit).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["findings"][1]["verdict"], "missing");
        assert_eq!(json["runtime"], "docker");
    }
}
