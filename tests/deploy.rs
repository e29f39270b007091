//! The ways to start a box that we print: README, docs and deploy/ ask for the same privileges as the boot does.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use innkeeper::prerequisites::privileges::REQUIRED;

fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words in the brackets behind this key.
fn list(text: &str, key: &str) -> BTreeSet<String> {
    let line = text.lines().find(|line| line.trim_start().starts_with(key)).unwrap();
    let (_, rest) = line.split_once('[').unwrap();
    rest.split(']').next().unwrap().split(',').map(|word| word.trim().to_owned()).collect()
}

/// What every command line with `--cap-drop ALL` adds, by the line in which the command begins.
fn commands(text: &str) -> Vec<(String, BTreeSet<String>)> {
    let joined = text.replace("\\\n", " ");
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let added = words.windows(2).filter(|pair| matches!(pair, ["--cap-add", _]));
        added.map(|pair| (*pair.last().unwrap()).to_owned()).collect()
    };
    let least = joined.lines().filter(|line| line.contains("--cap-drop ALL"));
    least.map(|line| (line.to_owned(), of(line))).collect()
}

#[test]
fn every_printed_way_asks_for_the_same_least_privileges() {
    let wanted: BTreeSet<String> = REQUIRED.iter().map(|(_, name, _)| (*name).to_owned()).collect();
    assert_eq!(list(&text("deploy/compose.yaml"), "cap_add:"), wanted);
    assert_eq!(list(&text("deploy/kubernetes.yaml"), "add:"), wanted);
    for file in ["README.md", "docs/hosts.md"] {
        let commands = commands(&text(file));
        assert!(!commands.is_empty(), "{file} prints the line of least privileges");
        for (line, added) in commands {
            assert_eq!(added, wanted, "{file}: {line}");
            for mount in
                ["--read-only", "/run", "/tmp:exec,mode=1777", "/workspace:exec", "/home/claude:exec"]
            {
                assert!(line.contains(mount), "{file}: {mount} is missing: {line}");
            }
        }
    }
    for mount in ["/run", "/tmp", "/workspace", "/home/claude"] {
        assert!(text("deploy/kubernetes.yaml").contains(&format!("mountPath: {mount} ")), "{mount}");
        assert!(text("deploy/compose.yaml").contains(&format!("- {mount}")), "{mount}");
    }
}
