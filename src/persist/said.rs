//! What the children say of a save and of a restore, and what of that is believed: they run as the agent. (pure)

use serde::{Deserialize, Serialize};

use super::manifest::Digest;
use super::path::RelPath;
use crate::report::harmless;

/// What is read of a child's words.
pub const MOST: u64 = 32 << 10;
const LINES: usize = 16;
const LENGTH: usize = 200;

/// How a save went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Whether anything was new since the last one.
    pub changed: bool,
    /// Octets that the save takes, and those of them that had to be written.
    pub bytes: u64,
    pub written: u64,
    pub repositories: u64,
    /// Files that are in no commit.
    pub files: u64,
    /// Files of Claude's conversations.
    pub conversation: u64,
    /// What was not saved, and why.
    pub left_out: Vec<String>,
    /// Why there is no new save.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Came {
    Restored,
    /// Something was there already.
    Kept,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoredRepository {
    pub path: RelPath,
    pub came: Came,
    pub detail: String,
    /// Failed: how the saves call it as soon as something else is at its place.
    #[serde(default)]
    pub spare: Option<RelPath>,
}

/// How a restore went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// When what was restored was saved: seconds since 1970. None: there was nothing.
    pub saved_at: Option<u64>,
    pub repositories: Vec<RestoredRepository>,
    /// Files of Claude's conversations.
    pub conversation: u64,
    /// Those of them that did not come back.
    #[serde(default)]
    pub lost: u64,
    /// Whether there is one to go on with.
    pub resume: bool,
    /// Whether Claude was at work, and the SHA-256 of its prompt.
    #[serde(default)]
    pub working: bool,
    #[serde(default)]
    pub prompt: Option<Digest>,
    /// What did not come back, and why.
    pub left_out: Vec<String>,
    pub trouble: Option<String>,
}

fn lines(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().take(LINES).map(|line| harmless(&line, LENGTH)).collect()
}

/// What a child says of its way as a line can hold it: few notes, and a trouble that is inert.
pub(super) fn finish(
    result: Result<(), impl std::error::Error>,
    left_out: &mut Vec<String>,
    trouble: &mut Option<String>,
) {
    if let Err(error) = result {
        *trouble = Some(crate::report::chain(&error));
    }
    *left_out = short(std::mem::take(left_out));
    *trouble = trouble.take().map(|why| harmless(&why, LENGTH));
}

/// Puts a list of unknown length into a line that is read whole.
#[must_use]
fn short(mut all: Vec<String>) -> Vec<String> {
    if all.len() > LINES {
        let more = all.len() - LINES + 1;
        all.truncate(LINES - 1);
        all.push(format!("and {more} more"));
    }
    lines(all)
}

impl Saved {
    /// Of this shape, short, inert.
    #[must_use]
    pub fn hear(text: &str) -> Option<Self> {
        let said: Self = serde_json::from_str(text.trim()).ok()?;
        Some(Self {
            left_out: lines(said.left_out),
            trouble: said.trouble.map(|why| harmless(&why, LENGTH)),
            ..said
        })
    }
}

impl Restored {
    #[must_use]
    pub fn hear(text: &str) -> Option<Self> {
        let mut said: Self = serde_json::from_str(text.trim()).ok()?;
        said.repositories.truncate(64);
        for repository in &mut said.repositories {
            repository.detail = harmless(&repository.detail, LENGTH);
        }
        Some(Self {
            left_out: lines(said.left_out),
            trouble: said.trouble.map(|why| harmless(&why, LENGTH)),
            ..said
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Restored, Saved, short};

    #[test]
    fn t206_what_the_children_say_is_hearsay() {
        for text in ["", "[]", "null", "{}", r#"{"changed":1}"#, "\u{1b}[2J"] {
            assert!(Saved::hear(text).is_none() && Restored::hear(text).is_none(), "{text}");
        }
        let many = vec![r#""\u001b[2J\n""#; 500].join(",");
        let text = format!(
            r#"{{"changed":true,"bytes":18446744073709551615,"written":1,"repositories":1,"files":1,"conversation":1,
            "left_out":[{many}],"trouble":"\u001b]0;x"}}"#
        );
        let heard = Saved::hear(&text).unwrap();
        assert_eq!(heard.left_out.len(), 16);
        assert_eq!(heard.left_out[0], "\\u{1b}[2J\\u{a}");
        assert!(!heard.trouble.unwrap().contains('\u{1b}'));
        for path in ["../x", "/etc", "a/../b", ""] {
            let text = format!(
                r#"{{"saved_at":1,"repositories":[{{"path":"{path}","came":"restored","detail":""}}],"conversation":0,
                "resume":false,"left_out":[],"trouble":null}}"#
            );
            assert!(Restored::hear(&text).is_none(), "{path}");
        }
        assert_eq!(short(vec!["x".to_owned(); 100]).len(), 16);
    }
}
