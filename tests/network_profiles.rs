//! The allowlists that the image ships: every line parses, and no name is allowed twice.

#![expect(clippy::unwrap_used, reason = "a test that can't read the profiles has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use innkeeper::allowlist::{Origin, parse_rules};

fn conf_files() -> Vec<std::path::PathBuf> {
    let network = Path::new(env!("CARGO_MANIFEST_DIR")).join("network");
    let mut files = vec![network.join("domains.conf")];
    files.extend(std::fs::read_dir(network.join("profiles")).unwrap().map(|entry| entry.unwrap().path()));
    files
}

#[test]
fn every_rule_parses_and_none_is_there_twice() {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for file in conf_files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let path = file.display().to_string();
        let (rules, problems) = parse_rules(&text, |line| Origin::File { path: path.as_str().into(), line });
        assert!(problems.is_empty(), "{path}: {problems:?}");
        for rule in rules {
            let before = seen.insert(rule.pattern.to_string(), rule.origin.to_string());
            assert_eq!(before, None, "{} ({})", rule.pattern, rule.origin);
        }
    }
    assert!(seen.len() > 40, "only {} rules", seen.len());
}
