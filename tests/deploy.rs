//! The ways to start a box that we print: README, docs and deploy/ ask for the same privileges as the boot does.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use innkeeper::prerequisites::privileges::REQUIRED;
use innkeeper::report::exit;

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
    for file in ["deploy/kubernetes.yaml", "deploy/job.yaml"] {
        assert_eq!(list(&text(file), "add:"), wanted, "{file}");
    }
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
        for file in ["deploy/kubernetes.yaml", "deploy/job.yaml"] {
            assert!(text(file).contains(&format!("mountPath: {mount} ")), "{file}: {mount}");
        }
        assert!(text("deploy/compose.yaml").contains(&format!("- {mount}")), "{mount}");
    }
}

#[test]
fn every_file_has_a_place_for_the_work_and_a_pod_what_closes_it() {
    for (file, mount) in [
        ("deploy/kubernetes.yaml", "{ name: work, mountPath: /persist }"),
        ("deploy/job.yaml", "{ name: work, mountPath: /persist }"),
        ("deploy/fly.toml", "destination = \"/persist\""),
        ("deploy/compose.yaml", "- work:/persist"),
    ] {
        assert!(text(file).contains(mount), "{file}: {mount}");
    }
    for file in ["deploy/kubernetes.yaml", "deploy/job.yaml"] {
        for line in [
            "automountServiceAccountToken: false",
            "enableServiceLinks: false",
            "readOnlyRootFilesystem: true",
            "allowPrivilegeEscalation: false",
            "drop: [ALL]",
            "claimName: innkeeper-work",
        ] {
            assert!(text(file).contains(line), "{file}: {line}");
        }
    }
}

/// What a Job does next is by the exit statuses of the code, and its variables are settings.
#[test]
fn the_job_tries_again_what_a_retry_may_help() {
    let job = text("deploy/job.yaml");
    assert_eq!(
        list(&job, "onExitCodes:"),
        [exit::UNAVAILABLE, exit::LATER].map(|status| status.to_string()).into()
    );
    assert!(job.contains("operator: NotIn") && job.contains("restartPolicy: Never"));
    let reference = text("docs/configuration.md");
    let variables: Vec<&str> =
        job.split("name: ").skip(1).filter(|rest| rest.starts_with("INNKEEPER_")).collect();
    assert!(job.contains("{ name: INNKEEPER_SESSION_MODE, value: headless }"));
    for rest in variables {
        let name = rest.split(',').next().unwrap();
        assert!(reference.contains(&format!("`{name}`")), "{name}");
    }
}
