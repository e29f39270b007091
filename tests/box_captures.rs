//! What the documents show was really said: blocks after `<!-- capture: … -->` are run in a box and compared, numbers apart.
//!
//! `scripts/captures` (BLESS=1) writes them anew. In a block, `$ docker exec BOX …` is the operator's, `claude$ …` a command
//! line of the session's shell; what follows, up to the next of them, is what it said. A line with `…` alone stands for
//! what is left out. Each document has a box of its own; a block finds what the blocks before it did.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use crate::rig::{AGENT, BoxOptions, Rig, RunningBox};

    /// A marked block.
    struct Block {
        /// The lines between the fences.
        lines: std::ops::Range<usize>,
        /// What the log must hold first: `<!-- capture: NAME, after used -->`.
        after: Option<String>,
        /// `<!-- capture: NAME, roughly -->`: what line comes when is a matter of moments.
        roughly: bool,
    }

    fn blocks(lines: &[String]) -> Vec<Block> {
        let mut blocks = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            if !line.starts_with("<!-- capture") {
                continue;
            }
            assert!(
                lines[index + 1].starts_with("```"),
                "line {}: a marker stands before a block",
                index + 1
            );
            let first = index + 2;
            let length =
                lines[first..].iter().position(|line| line.starts_with("```")).expect("the block's end");
            let roughly = line.contains(", roughly");
            let after =
                line.split_once(", after ").map(|(_, rest)| rest.trim_end_matches("-->").trim().to_owned());
            blocks.push(Block { lines: first..first + length, after, roughly });
        }
        blocks
    }

    fn is_prompt(line: &str) -> bool {
        line.starts_with("$ ") || line.starts_with("claude$ ")
    }

    /// What is said to this line now.
    fn said(guest: &RunningBox, line: &str) -> Vec<String> {
        let done = if let Some(command) = line.strip_prefix("claude$ ") {
            guest.exec_agent(&format!("cd /workspace; {command}"))
        } else {
            let command = line.strip_prefix("$ ").unwrap();
            match command.strip_prefix("docker exec BOX ") {
                Some(command) => guest.exec_root(command),
                None if command == "docker logs BOX" => return text(&guest.logs()),
                None => panic!("how is this run: {line}"),
            }
        };
        text(&(done.out + &done.err))
    }

    fn text(said: &str) -> Vec<String> {
        said.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Numbers, times, hashes and the width of columns are not what is compared.
    fn normal(line: &str) -> String {
        let mut out = String::new();
        let mut rest = line.split_whitespace().collect::<Vec<_>>().join(" ");
        while let Some(first) = rest.chars().next() {
            let hash = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            let number = rest.find(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).unwrap_or(rest.len());
            let (length, shown) = match first {
                _ if hash >= 12 => (hash, "#".to_owned()),
                '0'..='9' => (number, "#".to_owned()),
                other => (other.len_utf8(), other.to_string()),
            };
            out.push_str(&shown);
            rest.drain(..length);
        }
        out
    }

    /// Whether the document's lines tell what was said; a line that either cut off at the screen's edge counts as far as it
    /// goes.
    fn tells(shown: &[String], said: &[String]) -> bool {
        match (shown.split_first(), said.split_first()) {
            (None, None) => true,
            (Some((line, rest)), _) if line.trim() == "…" => {
                (0..=said.len()).any(|left_out| tells(rest, &said[left_out..]))
            }
            (Some((one, shown)), Some((other, said))) => {
                same(&normal(one), &normal(other)) && tells(shown, said)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// Whether nearly every line has one that begins as it does, in whatever order: who was the process of a refusal, or
    /// whether a connection has been counted yet, is another matter each time.
    fn resembles(shown: &[String], said: &[String]) -> bool {
        let beginning = |line: &String| normal(line).chars().take(12).collect::<String>();
        let said: Vec<String> = said.iter().map(beginning).collect();
        let strange = shown.iter().map(beginning).filter(|line| line != "…" && !said.contains(line)).count();
        strange * 5 <= shown.len()
    }

    /// The document's choice of lines, as they were said now.
    fn renewed(shown: &[String], said: &[String]) -> Vec<String> {
        let Some((line, rest)) = shown.split_first() else { return Vec::new() };
        let skip = if line.trim() == "…" {
            (0..=said.len()).find(|&left_out| tells(rest, &said[left_out..])).unwrap_or_default()
        } else {
            1
        };
        let mut lines = vec![if line.trim() == "…" { line.clone() } else { said[0].clone() }];
        lines.extend(renewed(rest, &said[skip..]));
        lines
    }

    fn same(one: &str, other: &str) -> bool {
        match (one.strip_suffix('…'), other.strip_suffix('…')) {
            (None, None) => one == other,
            (cut, other_cut) => {
                let (one, other) = (cut.unwrap_or(one), other_cut.unwrap_or(other));
                // Numbers of other lengths move the edge.
                let length = one.chars().count().min(other.chars().count()).saturating_sub(12);
                one.chars().take(length).eq(other.chars().take(length))
            }
        }
    }

    /// Runs the blocks of a document, and writes or compares them.
    fn captures(name: &str, guest: &RunningBox) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let bless = std::env::var_os("BLESS").is_some();
        let mut wrong = Vec::new();
        for block in 0..blocks(&lines).len() {
            let Block { lines: range, after, roughly } = blocks(&lines).swap_remove(block);
            if let Some(event) = after {
                let event = format!(r#""event":"{event}""#);
                guest.await_status(&event, |_| guest.innkeeper(&["log", "--json"]).out.contains(&event));
            }
            let mut fresh = Vec::new();
            let shown: Vec<String> = lines[range.clone()].to_vec();
            for (index, line) in shown.iter().enumerate().filter(|(_, line)| is_prompt(line)) {
                let end = shown[index + 1..].iter().position(|line| is_prompt(line));
                let before = &shown[index + 1..end.map_or(shown.len(), |end| index + 1 + end)];
                let now = said(guest, line);
                if !(tells(before, &now) || roughly && !before.is_empty() && resembles(before, &now)) {
                    wrong.push(format!("{line}\n{}\n--- now ---\n{}", before.join("\n"), now.join("\n")));
                }
                // What is left out stays left out.
                fresh.push(line.clone());
                fresh.extend(if tells(before, &now) { renewed(before, &now) } else { now });
            }
            lines.splice(range, fresh);
        }
        if bless {
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        } else {
            assert!(
                wrong.is_empty(),
                "{name} shows something else (scripts/captures):\n{}",
                wrong.join("\n\n")
            );
        }
    }

    fn documents() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        pages
            .chain([root.join("README.md")])
            .filter(|path| path.extension().is_some_and(|ext| ext == "md"))
            .collect()
    }

    #[test]
    fn every_marked_document_is_checked() {
        for path in documents() {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                !text.contains("<!-- capture") || CHECKED.contains(&name),
                "{name} has captures that nobody runs"
            );
        }
    }

    /// Without what an engine of its own accord puts into the environment.
    fn plain() -> BoxOptions {
        BoxOptions::new().env("NODE_EXTRA_CA_CERTS", "/etc/innkeeper/ca.pem")
    }

    const CHECKED: [&str; 5] = ["README.md", "audit.md", "policy.md", "report.md", "status.md"];

    #[test]
    fn the_audit_page_tells_what_is_said() {
        let Some(rig) = Rig::new() else { return };
        let options = plain().docker(&["--tmpfs", "/audit:mode=0755"]);
        let guest = rig.boot(&options.env("INNKEEPER_LOG_FILE", "/audit/box.jsonl"));
        guest.await_status("the session", |status| status["session"]["state"] == "running");
        captures("docs/audit.md", &guest);
    }

    #[test]
    fn the_policy_page_tells_what_is_said() {
        let Some(rig) = Rig::new() else { return };
        let rules = "ok.test:443,80                      # the page of the project\n*.wild.test:80\ndocs.example.org\n\
                     stats.example.org telemetry\n*.github.io public-suffix\n!old.example.org\n";
        let file = rig.file("domains.conf", rules);
        let options = plain()
            .without_env("INNKEEPER_NETWORK_ALLOW")
            .env("INNKEEPER_NETWORK_PROFILES", "github")
            .env("INNKEEPER_NETWORK_REQUESTS", "queue")
            .volume(&format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display()));
        let guest = rig.boot(&options);
        guest.await_status("the session", |status| status["session"]["state"] == "running");
        captures("docs/policy.md", &guest);
    }

    #[test]
    fn the_readme_tells_what_is_said() {
        let Some(rig) = Rig::new() else { return };
        let options = plain().claude().env("REPO_URL", "https://github.com/acme/widgets");
        let options = options.env("INNKEEPER_NETWORK_PROFILES", "claude");
        let guest = rig.boot(&options.env("INNKEEPER_NETWORK_REQUESTS", "queue"));
        guest.await_status("the session and the clone", |status| {
            status["session"]["state"] == "running" && status["repositories"][0]["state"] == "cloned"
        });
        captures("README.md", &guest);
    }

    #[test]
    fn the_pages_of_status_and_report_tell_what_is_said() {
        let Some(rig) = Rig::new() else { return };
        let options = plain().claude().env("REPO_URL", "https://github.com/acme/widgets");
        let guest = rig.boot(&options.env("INNKEEPER_NETWORK_PROFILES", "claude"));
        guest.await_status("the clone", |status| status["repositories"][0]["state"] == "cloned");
        guest
            .exec_agent("cd /workspace/repo && echo x >new.txt && git add . && git commit -qm 'Add new.txt'; echo x >loose")
            .expect("a commit");
        guest.exec_agent("curl -sS -m 10 http://ok.test/; curl -sS -m 10 https://evil.test/");
        guest.client(AGENT, &["tcp", "8.8.8.8", "853", "x"]);
        guest.innkeeper(&["allow", "many.test:80", "--for", "1h"]).expect("allow");
        guest
            .await_status("refusals", |status| status["denials"].as_array().is_some_and(|all| all.len() > 1));
        guest.await_status("octets", |status| status["traffic"].as_array().is_some_and(|all| all.len() > 1));
        captures("docs/status.md", &guest);
        captures("docs/report.md", &guest);
    }

    #[test]
    fn numbers_apart_means_numbers() {
        let lines = |text: &str| super::tests::text(text);
        assert!(tells(&lines("a 12 ms\n…\nend"), &lines("a 3.5 ms\nb\nc\nend")));
        assert!(!tells(&lines("a 12 ms"), &lines("a 12 s")));
        assert!(!tells(&lines("a"), &lines("a\nb")) && !tells(&lines("a\n…\nend"), &lines("a\nb")));
        assert!(tells(&lines("at 08:00:01Z, 0123456789abcdef"), &lines("at 9:1:1Z, fedcba9876543210")));
        assert!(tells(
            &lines("a long line that was cut at 80…"),
            &lines("a long line that was cut at 80 columns")
        ));
        assert!(!tells(
            &lines("another line that was cut at 80…"),
            &lines("a long line that was cut at 80 columns")
        ));
    }
}
