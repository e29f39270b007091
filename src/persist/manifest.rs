//! What a save holds, and what of it is believed: everything in it was written by the agent. (pure)

use serde::{Deserialize, Serialize};

use super::path::RelPath;

/// The version of the manifest's form.
pub const SCHEMA: u8 = 1;
/// What is read of a manifest.
pub const MOST_BYTES: u64 = 32 << 20;
const MOST_REPOSITORIES: usize = 64;
/// Files, refs and the like of one save, all together.
const MOST_ENTRIES: usize = 200_000;
/// A chain longer than this was not made by us.
const MOST_BUNDLES: usize = 32;

/// The SHA-256 of an object, which is its name; nothing else gets to be a part of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        if is_hex(&text, 64) { Ok(Self(text)) } else { Err(Unfit("a name that is no SHA-256")) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of an object of git's: SHA-1 or SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId(String);

impl ObjectId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectId {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        let fits = is_hex(&text, 40) || is_hex(&text, 64);
        if fits { Ok(Self(text)) } else { Err(Unfit("a name that is no object of git's")) }
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        id.0
    }
}

/// The full name of a ref. Git checks it once more; here it is made sure that it can't be taken for anything else, an
/// option or a path out of the repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

impl RefName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn is_branch(&self) -> bool {
        self.0.starts_with("refs/heads/")
    }
}

impl TryFrom<String> for RefName {
    type Error = Unfit;

    /// git-check-ref-format(1).
    fn try_from(text: String) -> Result<Self, Unfit> {
        let rest = text.strip_prefix("refs/").unwrap_or_default();
        let bad = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
        let part = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock") && !part.ends_with('.')
        };
        let fits = text.len() <= 1024
            && !rest.is_empty()
            && !text.contains(bad)
            && !text.contains("..")
            && !text.contains("@{")
            && rest.split('/').all(part);
        if fits { Ok(Self(text)) } else { Err(Unfit("a name that is no ref")) }
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> Self {
        name.0
    }
}

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    pub sha256: Digest,
    pub size: u64,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: RelPath,
    pub object: Object,
    pub executable: bool,
    /// Seconds since 1970: the newest conversation is the one that goes on.
    pub modified: u64,
}

/// A symbolic link that the work tree has and the index has not. Git makes it again; nothing of ours follows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub path: RelPath,
    pub target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// On a branch, which may have no commit yet.
    Branch(RefName),
    Detached(ObjectId),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ref {
    pub name: RefName,
    pub id: ObjectId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymbolicRef {
    pub name: RefName,
    pub target: RefName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stash {
    pub id: ObjectId,
    pub message: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectFormat {
    #[default]
    Sha1,
    Sha256,
}

impl ObjectFormat {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }
}

/// What git knows: the same in two saves means that the bundles of the first serve the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    pub object_format: ObjectFormat,
    pub head: Head,
    /// Sorted by name.
    pub refs: Vec<Ref>,
    pub symbolic: Vec<SymbolicRef>,
    /// The newest first.
    pub stashes: Vec<Stash>,
    /// A commit of ours that holds what is only in the index.
    pub staged: Option<ObjectId>,
    /// What an unfinished merge or rebase needs.
    pub kept: Vec<ObjectId>,
    /// The list of commits where a shallow clone ends.
    pub shallow: Option<Object>,
}

impl History {
    /// Everything that must be reachable after a restore.
    #[must_use]
    pub fn tips(&self) -> Vec<&ObjectId> {
        let refs = self.refs.iter().map(|known| &known.id);
        let stashes = self.stashes.iter().map(|stash| &stash.id);
        let head = match &self.head {
            Head::Branch(_) => None,
            Head::Detached(id) => Some(id),
        };
        let mut tips: Vec<&ObjectId> =
            refs.chain(stashes).chain(head).chain(&self.staged).chain(&self.kept).collect();
        tips.sort();
        tips.dedup();
        tips
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Below /workspace.
    pub path: RelPath,
    pub history: History,
    /// The first is whole, each further one builds on those before it.
    pub bundles: Vec<Object>,
    /// Keys and values of .git/config: remotes and branches.
    pub config: Vec<(String, String)>,
    /// .git/info/exclude.
    pub exclude: Option<Object>,
    /// The index as `git ls-files --stage -v -z` lists it.
    pub index: Option<Object>,
    /// Announced by `git add --intent-to-add`.
    pub intended: Vec<RelPath>,
    /// In the index, and not in the work tree.
    pub deleted: Vec<RelPath>,
    /// In the work tree otherwise than in the index, or only there.
    pub files: Vec<File>,
    pub links: Vec<Link>,
    /// Below .git: an unfinished merge or rebase.
    pub state: Vec<File>,
}

/// A save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema: u8,
    /// Seconds since 1970.
    pub saved_at: u64,
    pub repositories: Vec<Repository>,
    /// Claude's, below the home.
    pub conversation: Vec<File>,
    /// What of .claude.json belongs to the conversations.
    pub claude: Option<Object>,
    /// Whether Claude was at work, and the SHA-256 of the prompt that its box was configured with.
    #[serde(default)]
    pub working: bool,
    #[serde(default)]
    pub prompt: Option<Digest>,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub &'static str);

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not understood")]
    Form(#[source] serde_json::Error),
    #[error("the manifest is of version {0}, and this is version {SCHEMA}")]
    Version(u8),
    #[error("the manifest has {0}")]
    Unfit(#[from] Unfit),
}

impl Manifest {
    /// Reads a manifest strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Form)?;
        if manifest.schema != SCHEMA {
            return Err(ManifestError::Version(manifest.schema));
        }
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Unfit> {
        if self.repositories.len() > MOST_REPOSITORIES {
            return Err(Unfit("too many repositories"));
        }
        if self.entries() > MOST_ENTRIES {
            return Err(Unfit("too many entries"));
        }
        distinct(self.repositories.iter().map(|repository| &repository.path))?;
        for repository in &self.repositories {
            repository.check()?;
        }
        distinct(self.conversation.iter().map(|file| &file.path))?;
        let conversations = self.conversation.iter().all(|file| super::conversation::is_kept(&file.path));
        if conversations { Ok(()) } else { Err(Unfit("a file that is no conversation's")) }
    }

    fn entries(&self) -> usize {
        let of = |repository: &Repository| {
            let history = &repository.history;
            let git =
                history.refs.len() + history.symbolic.len() + history.stashes.len() + history.kept.len();
            let tree = repository.files.len() + repository.links.len() + repository.deleted.len();
            git + tree + repository.intended.len() + repository.state.len() + repository.config.len()
        };
        self.conversation.len() + self.repositories.iter().map(of).sum::<usize>()
    }

    /// Every object that it names, each once.
    #[must_use]
    pub fn objects(&self) -> Vec<&Object> {
        let conversation = self.conversation.iter().map(|file| &file.object).chain(&self.claude);
        let repositories = self.repositories.iter().flat_map(Repository::objects);
        let mut objects: Vec<&Object> = conversation.chain(repositories).collect();
        objects.sort();
        objects.dedup();
        objects
    }

    /// What it takes in the store.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects().iter().fold(0, |sum: u64, object| sum.saturating_add(object.size))
    }

    /// Whether it says the same at another time.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Self { saved_at: 0, ..self.clone() } == Self { saved_at: 0, ..other.clone() }
    }
}

impl Repository {
    #[must_use]
    pub fn objects(&self) -> Vec<&Object> {
        let files = self.files.iter().chain(&self.state).map(|file| &file.object);
        let single = [&self.exclude, &self.index, &self.history.shallow].into_iter().flatten();
        self.bundles.iter().chain(files).chain(single).collect()
    }

    fn check(&self) -> Result<(), Unfit> {
        if self.bundles.len() > MOST_BUNDLES {
            return Err(Unfit("too many bundles"));
        }
        let tree = self.files.iter().map(|file| &file.path).chain(self.links.iter().map(|link| &link.path));
        distinct(tree.clone())?;
        let all = tree.chain(&self.deleted).chain(&self.intended);
        if !all.clone().all(RelPath::is_of_a_work_tree) || !self.path.is_of_a_work_tree() {
            return Err(Unfit("a path that git would not take"));
        }
        let links = self
            .links
            .iter()
            .all(|link| !link.target.is_empty() && link.target.len() < 4096 && !link.target.contains('\0'));
        if !links {
            return Err(Unfit("a link to nowhere"));
        }
        distinct(self.state.iter().map(|file| &file.path))?;
        if !self.state.iter().all(|file| super::unfinished::is_kept(&file.path)) {
            return Err(Unfit("a file of git's that is not of a merge or rebase"));
        }
        distinct(self.history.refs.iter().map(|known| &known.name))?;
        let branch = match &self.history.head {
            Head::Branch(name) => name.is_branch(),
            Head::Detached(_) => true,
        };
        let symbolic = self.history.symbolic.iter().all(|known| {
            let of_remotes = |name: &RefName| name.as_str().starts_with("refs/remotes/");
            of_remotes(&known.name) && of_remotes(&known.target)
        });
        if !branch || !symbolic {
            return Err(Unfit("a symbolic ref that leads astray"));
        }
        let config = self.config.iter().all(|(key, value)| super::config::is_kept(key, value));
        if config {
            Ok(())
        } else {
            Err(Unfit("a setting of git's that is neither a remote's nor a branch's"))
        }
    }
}

fn distinct<'a, T: Ord + 'a>(all: impl Iterator<Item = &'a T>) -> Result<(), Unfit> {
    let mut all: Vec<&T> = all.collect();
    all.sort();
    if all.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return Err(Unfit("the same name twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
