//! Which names are public suffixes: below them anybody can have a name, so a wildcard on one allows strangers.  (pure)
//!
//! The list is searched as text. It is asked about wildcards alone, which are few, and so it costs no memory.

use super::DomainName;

const LIST: &str = include_str!("../../network/public-suffixes");

/// Whether anybody can register a name directly below this one. A top-level domain that nobody has heard of is one too
/// (the list's own default rule).
#[must_use]
pub fn is_public_suffix(name: &DomainName) -> bool {
    let Some((label, parent)) = name.as_str().split_once('.') else { return true };
    is_below(parent, label)
}

fn is_below(parent: &str, label: &str) -> bool {
    let mut children = children(parent);
    let mut any = false;
    let found = children.find(|child| {
        any |= *child == "*";
        child.strip_prefix('!').unwrap_or(child) == label
    });
    match found {
        Some(child) => !child.starts_with('!'),
        // Every child has been seen, and so the star if there is one.
        None => any,
    }
}

fn children(parent: &str) -> impl Iterator<Item = &'static str> {
    let line = LIST.lines().find_map(|line| {
        let (name, children) = line.split_once(' ')?;
        (name == parent).then_some(children)
    });
    line.unwrap_or_default().split(' ')
}

#[cfg(test)]
mod tests {
    use super::{LIST, is_public_suffix};
    use crate::allowlist::DomainName;

    fn is(name: &str) -> bool {
        is_public_suffix(&DomainName::parse(name).unwrap())
    }

    #[test]
    fn suffixes_are_known_and_their_neighbours_are_none() {
        for name in ["com", "co.uk", "test", "nosuch", "anything.ck", "x.kawasaki.jp", "xn--p1ai"] {
            assert!(is(name), "{name}");
        }
        for name in ["example.com", "example.co.uk", "www.ck", "city.kawasaki.jp", "a.b.ck", "wild.test"] {
            assert!(!is(name), "{name}");
        }
    }

    #[test]
    fn every_line_is_a_name_and_what_is_below_it() {
        let mut lines = LIST.lines().filter(|line| !line.starts_with('#'));
        let top = lines.next().unwrap();
        assert!(top.starts_with(". ") && top.split(' ').count() > 1_000);
        let mut count = 0;
        for line in lines {
            let (parent, children) = line.split_once(' ').unwrap();
            assert!(DomainName::parse(parent).is_ok(), "{parent}");
            for child in children.split(' ') {
                count += 1;
                let label = child.trim_start_matches('!');
                assert!(label == "*" || DomainName::parse(&format!("{label}.x")).is_ok(), "{child}");
            }
        }
        assert!(count > 7_000, "{count}");
    }
}
