//! Finds out whether a clone is a fork, and gives it an `upstream`: by GitHub's word, as the agent.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::child;
use crate::control::client;
use crate::control::protocol::{Request, Response};

/// GitHub answers in a moment; a clone does not wait longer to be reported.
const LIMIT: Duration = Duration::from_secs(10);
const API: &str = "https://api.github.com";
const CURL: &str = "/usr/bin/curl";
const GIT: &str = "/usr/bin/git";

/// Looks after a clone from GitHub; what came of it, for the line about the clone. That it failed is a detail.
#[must_use]
pub fn detect(directory: &Path, url: &str) -> Option<String> {
    let slug = slug(url)?;
    if !may_ask() {
        return None;
    }
    let said = child::run_with(
        Command::new(CURL).args([
            "--disable",
            "--silent",
            "--fail",
            "--config",
            "-",
            "--",
            &format!("{API}/repos/{slug}"),
        ]),
        &configuration()?,
        LIMIT,
    )?;
    let answer: serde_json::Value = serde_json::from_str(&said).ok()?;
    let parent = answer.get("parent")?.get("html_url")?.as_str()?;
    // It becomes a remote that people push to and fetch from: nothing but an address of that form.
    let parent = self::slug(parent).map(|slug| format!("https://github.com/{slug}"))?;
    let mut add = Command::new(GIT);
    add.arg("-C").arg(directory).args(["remote", "add", "upstream", &parent]);
    child::run(&mut add, LIMIT).map(|_| format!("a fork of {parent}"))
}

/// Asked first: a refusal that nobody's work has caused would only puzzle the operator.
fn may_ask() -> bool {
    let asked = client::ask(&Request::Check { what: API.to_owned() });
    matches!(asked, Ok(Response::Verdict(checked)) if checked.allowed)
}

/// What curl is told on standard input: the token stays out of arguments and environments (curl(1), `--config`).
fn configuration() -> Option<String> {
    let accept = "header = \"Accept: application/vnd.github+json\"\n".to_owned();
    let host = "github.com".to_owned();
    match client::ask(&Request::Credential { host }).ok()? {
        Response::Credential { password, .. }
            if password.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') =>
        {
            Some(format!("{accept}header = \"Authorization: Bearer {password}\"\n"))
        }
        // Public repositories are told to everybody.
        _ => Some(accept),
    }
}

/// OWNER/NAME of an address `https://github.com/OWNER/NAME`, and of nothing else.
#[must_use]
pub fn slug(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://github.com/")?;
    let (owner, name) = rest.split_once('/')?;
    let name = name.strip_suffix(".git").unwrap_or(name);
    let good = |part: &str, most: usize, more: &[u8]| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || more.contains(&b);
        let first = part.bytes().next().is_some_and(|b| b != b'-' && b != b'.');
        first && part.len() <= most && part.bytes().all(plain)
    };
    (good(owner, 39, b"-") && good(name, 100, b"-_.")).then(|| format!("{owner}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn only_addresses_of_githubs_repositories() {
        assert_eq!(slug("https://github.com/acme/widgets").as_deref(), Some("acme/widgets"));
        assert_eq!(slug("https://github.com/acme/widgets.js.git").as_deref(), Some("acme/widgets.js"));
        for bad in [
            "http://github.com/a/b",
            "https://github.com.evil.test/a/b",
            "https://github.com/a",
            "https://github.com/a/b/c",
            "https://github.com/a/..",
            "https://github.com/-a/b",
            "https://github.com/a/-b",
            "https://user@github.com/a/b",
            "https://github.com/a/b\nhttps://evil.test/x/y",
            "https://github.com/a/b?x",
            "https://github.com/a/",
            "https://github.com//b",
            "",
        ] {
            assert_eq!(slug(bad), None, "{bad}");
        }
    }
}
