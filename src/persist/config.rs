//! What of a repository's configuration is kept: where its remotes are, and what its branches follow. Whatever could
//! execute something is not among it. (pure)

/// A key or a value longer than this is left out.
const LONGEST: usize = 2048;

/// `section.subsection.variable`; the subsection may have dots.
fn split(key: &str) -> Option<(&str, &str, &str)> {
    let (section, rest) = key.split_once('.')?;
    let (subsection, variable) = rest.rsplit_once('.')?;
    Some((section, subsection, variable))
}

/// Whether this setting is saved and restored. Git gives section and variable in lower case.
#[must_use]
pub fn is_kept(key: &str, value: &str) -> bool {
    let Some((section, subsection, variable)) = split(key) else { return false };
    let text = |text: &str| !text.contains(char::is_control) && text.len() <= LONGEST;
    if subsection.is_empty() || subsection.starts_with('-') || !text(subsection) || !text(value) {
        return false;
    }
    match (section, variable) {
        ("remote", "url" | "pushurl") => is_address(value),
        ("remote", "fetch" | "push" | "tagopt" | "prune") => !value.starts_with("--") || variable == "tagopt",
        ("branch", "remote" | "pushremote" | "merge" | "rebase" | "description") => !value.starts_with('-'),
        _ => false,
    }
}

/// An address that git opens itself: none with a helper of its own (`ext::` executes what follows), and no option.
fn is_address(value: &str) -> bool {
    !value.is_empty() && !value.contains("::") && !value.starts_with('-')
}

/// The text of a configuration with these settings (git-config(1), SYNTAX).
#[must_use]
pub fn render(settings: &[(String, String)]) -> String {
    let mut text = String::new();
    for (key, value) in settings {
        let Some((section, subsection, variable)) = split(key).filter(|_| is_kept(key, value)) else {
            continue;
        };
        let (subsection, value) = (quoted(subsection), quoted(value));
        text.push_str(&format!("[{section} {subsection}]\n\t{variable} = {value}\n"));
    }
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::{is_kept, render};

    #[test]
    fn t206_nothing_that_executes_is_kept() {
        for (key, value) in [
            ("core.fsmonitor", "touch /tmp/x"),
            ("core.hookspath", "/tmp"),
            ("core.sshcommand", "sh"),
            ("include.path", "/etc/x"),
            ("includeif.gitdir:/.path", "/etc/x"),
            ("filter.x.clean", "sh"),
            ("alias.x.y", "!sh"),
            ("credential.https://github.com.helper", "!sh"),
            ("url.https://evil.insteadof", "https://github.com"),
            ("remote.origin.uploadpack", "sh"),
            ("remote.origin.vcs", "sh"),
            ("remote.origin.url", "ext::sh -c x"),
            ("remote.origin.url", "--upload-pack=sh"),
            ("remote.origin.url", "https://x\n[core]\nfsmonitor=x"),
            ("remote.-x.url", "https://x"),
            ("remote.a\nb.url", "https://x"),
            ("remote..url", "https://x"),
            ("branch.main.remote", "-x"),
            ("diff.x.command", "sh"),
            ("", ""),
        ] {
            assert!(!is_kept(key, value), "{key}");
        }
        for (key, value) in [
            ("remote.origin.url", "https://github.com/a/b"),
            ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
            ("branch.feature/a.b.merge", "refs/heads/feature/a.b"),
            ("branch.main.remote", "origin"),
        ] {
            assert!(is_kept(key, value), "{key}");
        }
    }

    #[test]
    fn a_value_can_not_end_its_line() {
        let settings = [
            ("branch.a\"b\\c.remote".to_owned(), "x\"; #y".to_owned()),
            ("core.pager".to_owned(), "sh".to_owned()),
        ];
        assert_eq!(render(&settings), "[branch \"a\\\"b\\\\c\"]\n\tremote = \"x\\\"; #y\"\n");
    }
}
