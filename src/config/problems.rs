//! Everything that is wrong with the configuration, in one report.  (pure)

use std::fmt;

use crate::secrets::{redact, shape::mask_tokens};

/// One thing that is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A variable, or a file and its line.
    pub what: String,
    /// What was given and what is expected; never the value of a secret.
    pub message: String,
    /// What the operator can do next.
    pub next: String,
    pub cause: Cause,
}

/// Whose word stands against it: decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It can't be read, is missing, or contradicts itself.
    Invalid,
    /// It is well-formed, but the ceiling forbids it.
    Ceiling,
}

impl Problem {
    pub fn new(what: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), message: message.into(), next: next.into(), cause: Cause::Invalid }
    }

    #[must_use]
    pub fn with_cause(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.message)?;
        if self.next.is_empty() { Ok(()) } else { write!(f, "\n   next: {}", self.next) }
    }
}

/// All problems of a configuration; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The exit status that says why the box did not start: 77 if only the ceiling stands against it, else 78.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let refused = !self.0.is_empty() && self.0.iter().all(|problem| problem.cause == Cause::Ceiling);
        if refused { 77 } else { 78 }
    }

    /// The report with every value of a secret, and everything that looks like one, taken out.
    #[must_use]
    pub(crate) fn redacted(self, values: &[(String, zeroize::Zeroizing<String>)]) -> Self {
        // Something as short as a word would only make the report unreadable.
        let long = || values.iter().filter(|(_, value)| value.len() >= 6);
        let clean = |text: &str| {
            let pairs = long().map(|(name, value)| (name.as_str(), value.as_str()));
            mask_tokens(&redact(text, pairs))
        };
        let problems = self.0.iter().map(|problem| Problem {
            what: clean(&problem.what),
            message: clean(&problem.message),
            next: clean(&problem.next),
            cause: problem.cause,
        });
        Self(problems.collect())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 problem with the configuration:")?,
            count => write!(f, "{count} problems with the configuration:")?,
        }
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "\n{}. {problem}", index + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Text from outside as it may be printed: escaped, and cut where it gets long.
#[must_use]
pub fn shown(text: &str) -> String {
    const LIMIT: usize = 60;
    let mut out: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_77_only_if_the_ceiling_is_all_that_stands_against_it() {
        let invalid = Problem::new("X", "is bad", "mend it");
        let ceiling = invalid.clone().with_cause(Cause::Ceiling);
        assert_eq!(Problems(vec![ceiling.clone(), ceiling.clone()]).exit_code(), 77);
        assert_eq!(Problems(vec![ceiling, invalid.clone()]).exit_code(), 78);
        assert_eq!(Problems(vec![invalid]).exit_code(), 78);
        assert_eq!(Problems(vec![]).exit_code(), 78);
    }

    #[test]
    fn the_report_is_numbered() {
        let one = Problem::new("A", "is blank", "give it");
        let two = Problem::new("f:3", "unknown key", "");
        assert_eq!(
            Problems(vec![one.clone()]).to_string(),
            "1 problem with the configuration:\n1. A: is blank\n   next: give it"
        );
        assert_eq!(
            Problems(vec![one, two]).to_string(),
            "2 problems with the configuration:\n1. A: is blank\n   next: give it\n2. f:3: unknown key"
        );
    }

    #[test]
    fn text_from_outside_is_inert() {
        assert_eq!(shown("a\u{1b}[2J\n\u{202e}b"), "a\\u{1b}[2J\\n\\u{202e}b");
        assert_eq!(shown(&"x".repeat(61)), format!("{}…", "x".repeat(60)));
    }

    #[test]
    fn redaction_reaches_every_part() {
        let values = vec![("X".to_owned(), zeroize::Zeroizing::new("canary".to_owned()))];
        let problem = Problem::new("canary", "canary", "ghp_0123456789abcdef");
        let clean = Problems(vec![problem]).redacted(&values);
        assert_eq!(
            clean.to_string(),
            "1 problem with the configuration:\n1. [X]: [X]\n   next: ghp_[redacted]"
        );
    }
}
