//! Which files of .git tell of a merge, rebase, cherry-pick or bisection that is not finished. (pure)

use super::path::RelPath;

/// One of them is a list of commits or a message; a larger one is left out.
pub const LARGEST: u64 = 1 << 20;
/// All of a repository's.
pub const MOST_FILES: usize = 2000;

const FILES: &[&str] = &[
    "AUTO_MERGE",
    "BISECT_ANCESTORS_OK",
    "BISECT_EXPECTED_REV",
    "BISECT_LOG",
    "BISECT_NAMES",
    "BISECT_START",
    "BISECT_TERMS",
    "CHERRY_PICK_HEAD",
    "MERGE_AUTOSTASH",
    "MERGE_HEAD",
    "MERGE_MODE",
    "MERGE_MSG",
    "MERGE_RR",
    "ORIG_HEAD",
    "REBASE_HEAD",
    "REVERT_HEAD",
    "SQUASH_MSG",
];

/// Their files, one level deep.
pub const DIRECTORIES: &[&str] = &["rebase-apply", "rebase-merge", "sequencer"];

/// The files directly below .git.
pub fn files() -> impl Iterator<Item = &'static str> {
    FILES.iter().copied()
}

#[must_use]
pub fn is_kept(path: &RelPath) -> bool {
    match path.split() {
        (directories, name) if directories.is_empty() => FILES.contains(&name),
        (directories, _) => matches!(directories.as_slice(), [one] if DIRECTORIES.contains(one)),
    }
}

/// The names of objects that such a file holds.
pub fn object_names(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let hex = |word: &&str| word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    words.filter(|word| matches!(word.len(), 40 | 64)).filter(hex)
}

#[cfg(test)]
mod tests {
    use super::{is_kept, object_names};
    use crate::persist::path::RelPath;

    #[test]
    fn t206_only_what_an_unfinished_merge_needs() {
        let kept = |text: &str| is_kept(&RelPath::try_from(text.to_owned()).unwrap());
        assert!(kept("MERGE_HEAD") && kept("rebase-merge/git-rebase-todo") && kept("sequencer/todo"));
        for text in [
            "config",
            "hooks/pre-commit",
            "HEAD",
            "index",
            "rebase-merge/a/b",
            "info/attributes",
            "config.worktree",
        ] {
            assert!(!kept(text), "{text}");
        }
    }

    #[test]
    fn names_of_objects_are_found_in_a_list_of_things_to_do() {
        let one = "a".repeat(40);
        let text = format!("pick {one} subject\nexec false {}z\n{}", "b".repeat(40), "c".repeat(64));
        assert_eq!(object_names(&text).collect::<Vec<_>>(), [one, "c".repeat(64)]);
    }
}
