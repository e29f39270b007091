//! Finds out whether a clone is a fork, and gives it an `upstream`: by GitHub's word, as the agent.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::child;

/// GitHub answers in a moment; a clone does not wait longer to be reported.
const LIMIT: Duration = Duration::from_secs(10);
/// The link by which gh gets the box's token.
const GH: &str = "/usr/local/bin/gh";
const GIT: &str = "/usr/bin/git";

/// Looks after a clone from GitHub; what came of it, for the line about the clone. That it failed is a detail.
#[must_use]
pub fn detect(directory: &Path, url: &str) -> Option<String> {
    let slug = slug(url)?;
    let mut ask = Command::new(GH);
    ask.args(["api", &format!("repos/{slug}"), "--jq", ".parent.html_url // \"\""]);
    ask.env("GH_PROMPT_DISABLED", "1").current_dir("/");
    let said = child::run(&mut ask, LIMIT)?;
    let parent = said.trim();
    // It becomes a remote that people push to and fetch from: nothing but an address of that form.
    let parent = self::slug(parent).map(|slug| format!("https://github.com/{slug}"))?;
    let mut add = Command::new(GIT);
    add.arg("-C").arg(directory).args(["remote", "add", "upstream", &parent]);
    child::run(&mut add, LIMIT).map(|_| format!("a fork of {parent}"))
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
