//! What `git status --porcelain=v2 -z` and `git ls-files --stage -v -z` say. (pure)

use crate::persist::manifest::ObjectId;
use crate::persist::path::RelPath;

/// What is in no commit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Objects that only the index names.
    pub(super) staged: Vec<ObjectId>,
    /// In the work tree otherwise than in the index, or only there.
    pub(super) changed: Vec<RelPath>,
    pub(super) deleted: Vec<RelPath>,
    pub(super) intended: Vec<RelPath>,
    /// Repositories in the repository.
    pub(super) nested: Vec<String>,
    /// Paths that are no text, or none that we would write.
    pub(super) odd: u64,
}

pub(super) fn parse(text: &[u8]) -> Changes {
    let mut changes = Changes::default();
    for record in text.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        match std::str::from_utf8(record).ok().and_then(|record| read(record, &mut changes)) {
            Some(()) => {}
            None => changes.odd += 1,
        }
    }
    changes
}

fn read(record: &str, changes: &mut Changes) -> Option<()> {
    let (kind, rest) = record.split_once(' ')?;
    match kind {
        "?" if rest.ends_with('/') => changes.nested.push(rest.trim_end_matches('/').to_owned()),
        "?" => changes.changed.push(path(rest)?),
        "1" => {
            let mut fields = rest.splitn(8, ' ');
            let (what, submodule) = (fields.next()?, fields.next()?);
            let (_, mode, _, _, staged) =
                (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            ordinary(what, submodule, mode, staged, path(fields.next()?)?, changes)?;
        }
        "u" => {
            let fields: Vec<&str> = rest.splitn(10, ' ').collect();
            let [_, _, one, two, three, work, first, second, third, name] = fields.as_slice() else {
                return None;
            };
            for (mode, id) in [(one, first), (two, second), (three, third)] {
                changes.staged.extend(blob(mode, id));
            }
            if !is_nothing(work) {
                changes.changed.push(path(name)?);
            }
        }
        _ => return None,
    }
    Some(())
}

fn ordinary(
    what: &str,
    submodule: &str,
    mode: &str,
    staged: &str,
    path: RelPath,
    changes: &mut Changes,
) -> Option<()> {
    let mut states = what.chars();
    let (index, work) = (states.next()?, states.next()?);
    if !matches!(index, '.' | 'D') {
        changes.staged.extend(blob(mode, staged));
    }
    if submodule.starts_with('S') {
        return Some(());
    }
    match (index, work) {
        ('.', 'A') => {
            changes.intended.push(path.clone());
            changes.changed.push(path);
        }
        (_, 'D') => changes.deleted.push(path),
        (_, '.') => {}
        (_, _) => changes.changed.push(path),
    }
    Some(())
}

fn is_nothing(zeros: &str) -> bool {
    zeros.bytes().all(|byte| byte == b'0')
}

/// A submodule's commit is no object of this repository.
fn blob(mode: &str, id: &str) -> Option<ObjectId> {
    if is_nothing(id) || mode == "160000" { None } else { ObjectId::try_from(id.to_owned()).ok() }
}

fn path(text: &str) -> Option<RelPath> {
    RelPath::try_from(text.to_owned()).ok().filter(RelPath::is_of_a_work_tree)
}

/// A line of the index.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Staged {
    pub(super) mode: String,
    pub(super) id: ObjectId,
    pub(super) stage: u8,
    pub(super) path: RelPath,
    pub(super) skip_worktree: bool,
    pub(super) assume_unchanged: bool,
}

/// Reads one; none where it is not what git prints.
pub(super) fn staged(record: &[u8]) -> Option<Staged> {
    let (head, name) = std::str::from_utf8(record).ok()?.split_once('\t')?;
    let mut fields = head.split(' ');
    let (tag, mode, id) = (fields.next()?, fields.next()?, fields.next()?);
    let stage = fields.next()?.parse().ok().filter(|stage| *stage <= 3)?;
    if fields.next().is_some() || !matches!(mode, "100644" | "100755" | "120000" | "160000") {
        return None;
    }
    Some(Staged {
        mode: mode.to_owned(),
        id: ObjectId::try_from(id.to_owned()).ok()?,
        stage,
        path: path(name)?,
        skip_worktree: tag.eq_ignore_ascii_case("s"),
        assume_unchanged: tag.chars().all(|c| c.is_ascii_lowercase()),
    })
}

#[cfg(test)]
mod tests {
    use super::{parse, staged};

    const ID: &str = "1111111111111111111111111111111111111111";
    const NONE: &str = "0000000000000000000000000000000000000000";

    #[test]
    fn index_and_work_tree_are_told_apart() {
        let text = [
            format!("1 .M N... 100644 100644 100644 {ID} {ID} changed file"),
            format!("1 M. N... 100644 100644 100644 {ID} {ID} staged"),
            format!("1 MM N... 100644 100644 100644 {ID} {ID} both"),
            format!("1 A. N... 000000 100644 100644 {NONE} {ID} added"),
            format!("1 .A N... 000000 000000 100644 {NONE} {NONE} intended"),
            format!("1 D. N... 100644 000000 000000 {ID} {NONE} removed"),
            format!("1 .D N... 100644 100644 000000 {ID} {ID} deleted"),
            format!("1 A. S... 000000 160000 160000 {NONE} {ID} module"),
            format!("u UU N... 100644 100644 100644 100644 {ID} {ID} {ID} conflict"),
            format!("u DU N... 100644 000000 100644 000000 {ID} {NONE} {ID} gone"),
            "? new".to_owned(),
            "? nested/".to_owned(),
            "? a/../b".to_owned(),
            "? .git/hooks/x".to_owned(),
            "x".to_owned(),
            String::new(),
        ]
        .join("\0");
        let found = parse(text.as_bytes());
        let names = |paths: &[crate::persist::path::RelPath]| {
            paths.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&found.changed), ["changed file", "both", "intended", "conflict", "new"]);
        assert_eq!(names(&found.deleted), ["deleted"]);
        assert_eq!(names(&found.intended), ["intended"]);
        assert_eq!((found.staged.len(), found.odd, found.nested), (8, 3, vec!["nested".to_owned()]));
    }

    #[test]
    fn t206_a_line_of_an_index_that_git_would_not_print_is_none() {
        let good = staged(format!("H 100644 {ID} 0\ta b").as_bytes()).unwrap();
        assert_eq!((good.path.as_str(), good.stage, good.skip_worktree), ("a b", 0, false));
        assert!(staged(format!("S 100644 {ID} 0\ta").as_bytes()).unwrap().skip_worktree);
        assert!(staged(format!("h 100644 {ID} 0\ta").as_bytes()).unwrap().assume_unchanged);
        for odd in [
            format!("H 100644 {ID} 0\t../a"),
            format!("H 100644 {ID} 0\t.git/config"),
            format!("H 100644 {ID} 0\t/etc/x"),
            format!("H 040000 {ID} 0\ta"),
            format!("H 100644 {ID} 9\ta"),
            "H 100644 x 0\ta".to_owned(),
            format!("H 100644 {ID} 0 a"),
            format!("H 100644 {ID} 0 extra\ta"),
        ] {
            assert!(staged(odd.as_bytes()).is_none(), "{odd}");
        }
    }
}
