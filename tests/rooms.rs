//! The borders of the rooms: a file that says it is (pure) takes values and returns values.

#![expect(clippy::unwrap_used, reason = "a test that can't read the sources has failed")]

use std::path::{Path, PathBuf};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Effects that a pure room may not name; `nix::` at a word border, since `std::os::unix::` is none.
const EFFECTS: &[&str] =
    &["std::fs", "std::process", "std::net::Tcp", "std::net::Udp", "tokio", " nix::", "(nix::"];

#[test]
fn pure_rooms_have_no_effects() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let (mut pure, mut guilty) = (0, Vec::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        if !header.contains("(pure)") {
            continue;
        }
        pure += 1;
        let code = text.split("#[cfg(test)]").next().unwrap();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            if EFFECTS.iter().any(|effect| line.contains(effect)) {
                guilty.push(format!("{}: {line}", file.display()));
            }
        }
    }
    assert!(pure > 10, "only {pure} pure rooms were found: is the mark still the same?");
    assert!(guilty.is_empty(), "{guilty:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let tests = file.file_stem().is_some_and(|stem| stem == "tests");
        assert!(tests || text.starts_with("//! "), "{} has no header", file.display());
    }
}
