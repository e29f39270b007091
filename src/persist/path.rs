//! A relative path that stays where it is: no step of it leads up, out, or to nowhere. (pure)

use serde::{Deserialize, Serialize};

use super::manifest::Unfit;

/// As the kernel has it (PATH_MAX, NAME_MAX).
const LONGEST: usize = 4095;
const LONGEST_NAME: usize = 255;
/// Deeper than any tree that somebody works in.
const DEEPEST: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

impl RelPath {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The directories above it, and its name.
    #[must_use]
    pub fn split(&self) -> (Vec<&str>, &str) {
        let mut parts: Vec<&str> = self.parts().collect();
        let name = parts.pop().unwrap_or_default();
        (parts, name)
    }

    pub fn join(&self, name: &str) -> Result<Self, Unfit> {
        Self::try_from(format!("{}/{name}", self.0))
    }

    /// Whether git would have it in a work tree: nothing of it is a repository's own directory, in any spelling that some
    /// file system takes for that (git's verify_path).
    #[must_use]
    pub fn is_of_a_work_tree(&self) -> bool {
        let own = |part: &str| {
            let part = part.trim_end_matches(['.', ' ']).to_ascii_lowercase();
            part == ".git" || part == "git~1"
        };
        !self.parts().any(own)
    }
}

impl TryFrom<String> for RelPath {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        let part = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= LONGEST_NAME;
        let fits = text.len() <= LONGEST
            && !text.contains('\0')
            && text.split('/').count() <= DEEPEST
            && text.split('/').all(part);
        if fits { Ok(Self(text)) } else { Err(Unfit("a path that leads elsewhere")) }
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::RelPath;

    #[test]
    fn t206_a_path_that_leads_elsewhere_is_none() {
        let long = "x/".repeat(200) + "x";
        let name = "x".repeat(256);
        for text in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            "a//b",
            "./a",
            "a/.",
            "a/",
            "a\0b",
            &long,
            &name,
        ] {
            assert!(RelPath::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        for text in ["a", "a/b", ".a", "..a", "a..", "a b", "ü/ß", "-rf", "a\nb"] {
            assert_eq!(RelPath::try_from(text.to_owned()).unwrap().as_str(), text);
        }
    }

    #[test]
    fn t206_gits_own_directory_is_not_of_a_work_tree() {
        for text in
            [".git", ".git/hooks/x", "a/.git/config", ".GIT/x", "a/.Git", ".git./x", ".git /x", "GIT~1"]
        {
            assert!(!RelPath::try_from(text.to_owned()).unwrap().is_of_a_work_tree(), "{text}");
        }
        for text in [".gitignore", "git", "a/.gitmodules", ".github/x"] {
            assert!(RelPath::try_from(text.to_owned()).unwrap().is_of_a_work_tree(), "{text}");
        }
    }
}
