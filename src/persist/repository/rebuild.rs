//! A repository comes back: beside its place, and by one rename into it, so that a broken attempt is never taken for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Timespec, Timestamps};

use super::bundle;
use super::capture::{skeleton, write};
use super::status::{self, Staged};
use crate::persist::beneath::Directory;
use crate::persist::git::{Git, Input};
use crate::persist::manifest::{File, Link, Object, Repository};
use crate::persist::path::RelPath;
use crate::persist::store::{Store, remove_tree};
use crate::persist::{PersistError, at, config};

/// The list of an index.
const MOST_INDEX: u64 = 256 << 20;
const MOST_SMALL: u64 = 4 << 20;
/// How the attempt beside the place is called.
const BESIDE: &str = ".restoring";

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Came {
    Back(String),
    /// Something is there already.
    Kept,
}

/// Makes the repository again, unless something is there.
pub(crate) fn rebuild(
    store: &Store,
    workspace: &Path,
    repository: &Repository,
    until: Instant,
) -> Result<Came, PersistError> {
    let (directories, name) = repository.path.split();
    let top = Directory::open(workspace).map_err(at("open", workspace))?;
    let parent = top.make(&directories).map_err(at("make the directory of", repository.path.as_str()))?;
    match parent.look(name).map_err(at("look at", name))? {
        None => {}
        Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let there = parent.named(name).and_then(|there| there.entries(1)).map_err(at("look at", name))?;
            if !there.is_empty() {
                return Ok(Came::Kept);
            }
        }
        Some(_) => return Ok(Came::Kept),
    }
    let beside = format!(".{name}{BESIDE}");
    remove_tree(&parent, &beside);
    let tree = parent.make(&[&beside]).map_err(at("make", &beside))?;
    let location = workspace.join(directories.join("/")).join(&beside);
    let git = Git { work_tree: Some(location.clone()), index: None, ..Git::at(location.join(".git"), until) };
    let made = Rebuild { store, repository, tree, git }.make();
    let placed = made.and_then(|detail| {
        // An empty directory is replaced by the rename; anything else was seen above.
        parent.rename(&beside, &parent, name).map_err(at("put in place", repository.path.as_str()))?;
        Ok(Came::Back(detail))
    });
    if placed.is_err() {
        remove_tree(&parent, &beside);
    }
    placed
}

struct Rebuild<'a> {
    store: &'a Store,
    repository: &'a Repository,
    tree: Directory,
    git: Git,
}

impl Rebuild<'_> {
    fn make(&self) -> Result<String, PersistError> {
        let history = &self.repository.history;
        let own = self.tree.make(&[".git"]).map_err(at("make", ".git"))?;
        let settings = config::render(&self.repository.config);
        skeleton(&own, history.object_format, &history.head, &settings)?;
        self.small(&own, &["info"], "exclude", self.repository.exclude.as_ref())?;
        self.small(&own, &[], "shallow", history.shallow.as_ref())?;
        for bundle in &self.repository.bundles {
            bundle::unpack(&self.git, self.store.get(bundle)?)?;
        }
        self.refs()?;
        self.whole()?;
        self.index()?;
        self.work_tree()?;
        self.state(&own)?;
        // The first `git status` need not compare every file.
        drop(self.git.ask(&["update-index", "-q", "--refresh"], Input::Nothing));
        let (files, links) = (self.repository.files.len(), self.repository.links.len());
        let changed = files.saturating_add(links).saturating_add(self.repository.deleted.len());
        Ok(format!("restored: {} refs, {changed} files that are in no commit", history.refs.len()))
    }

    fn small(
        &self,
        own: &Directory,
        parts: &[&str],
        name: &str,
        object: Option<&Object>,
    ) -> Result<(), PersistError> {
        let Some(object) = object else { return Ok(()) };
        let bytes = self.store.get_whole(object, MOST_SMALL)?;
        write(&own.make(parts).map_err(at("make", name))?, name, &bytes)
    }

    fn refs(&self) -> Result<(), PersistError> {
        let history = &self.repository.history;
        let stash = |name: &str| name == "refs/stash" && !history.stashes.is_empty();
        let refs = history.refs.iter().filter(|known| !stash(known.name.as_str()));
        let input: String =
            refs.map(|known| format!("create {} {}\n", known.name.as_str(), known.id.as_str())).collect();
        self.git.ask(&["update-ref", "--stdin"], Input::Bytes(input.into_bytes()))?;
        for known in &history.symbolic {
            self.git.ask(&["symbolic-ref", known.name.as_str(), known.target.as_str()], Input::Nothing)?;
        }
        // The oldest first: each is put on top.
        for stash in history.stashes.iter().rev() {
            let message = format!("--message={}", stash.message);
            self.git.ask(&["stash", "store", &message, stash.id.as_str()], Input::Nothing)?;
        }
        Ok(())
    }

    /// Whether everything is there that the refs lead to: a save that lacks some would replace the ones that do not.
    fn whole(&self) -> Result<(), PersistError> {
        let tips: Vec<&str> = self.repository.history.tips().into_iter().map(|id| id.as_str()).collect();
        if tips.is_empty() {
            return Ok(());
        }
        let asked = Input::Bytes(format!("{}\n", tips.join("\n")).into_bytes());
        self.git.ask(&["rev-list", "--objects", "--quiet", "--stdin"], asked).map(drop)
    }

    /// The index from its list: every line is read by us and checked by git (update-index refuses paths that lead out, or
    /// into .git), which an index as a file would not be.
    fn index(&self) -> Result<(), PersistError> {
        let Some(object) = &self.repository.index else { return Ok(()) };
        let list = self.store.get_whole(object, MOST_INDEX)?;
        let records = list.split(|byte| *byte == 0).filter(|record| !record.is_empty());
        let lines: Option<Vec<Staged>> = records.map(status::staged).collect();
        let lines = lines.ok_or(PersistError::Unfit("lines in an index that are none"))?;
        let announced = |line: &&Staged| !self.repository.intended.contains(&line.path);
        let input: String = lines
            .iter()
            .filter(announced)
            .map(|line| {
                format!("{} {} {}\t{}\0", line.mode, line.id.as_str(), line.stage, line.path.as_str())
            })
            .collect();
        self.update_index(&["-z", "--index-info"], input)?;
        self.git.ask(&["checkout-index", "--all", "--force", "--quiet"], Input::Nothing)?;
        let marked = |mark: fn(&Staged) -> bool| -> String {
            lines.iter().filter(|line| mark(line)).map(|line| format!("{}\0", line.path.as_str())).collect()
        };
        self.update_index(&["-z", "--skip-worktree", "--stdin"], marked(|line| line.skip_worktree))?;
        self.update_index(&["-z", "--assume-unchanged", "--stdin"], marked(|line| line.assume_unchanged))
    }

    fn update_index(&self, args: &[&str], input: String) -> Result<(), PersistError> {
        if input.is_empty() {
            return Ok(());
        }
        self.git.ask(&[&["update-index"], args].concat(), Input::Bytes(input.into_bytes())).map(drop)
    }

    /// What the work tree has otherwise than the index.
    fn work_tree(&self) -> Result<(), PersistError> {
        for path in &self.repository.deleted {
            self.clear(path)?;
        }
        for file in &self.repository.files {
            put(self.store, &self.tree, file)?;
        }
        self.links()?;
        if !self.repository.intended.is_empty() {
            let paths: String =
                self.repository.intended.iter().map(|path| format!("{}\0", path.as_str())).collect();
            let args = [
                "add",
                "--intent-to-add",
                "--force",
                "--sparse",
                "--pathspec-from-file=-",
                "--pathspec-file-nul",
            ];
            self.git.ask(&args, Input::Bytes(paths.into_bytes()))?;
        }
        Ok(())
    }

    /// Removes a file, and the directories that are empty without it, as git does.
    fn clear(&self, path: &RelPath) -> Result<(), PersistError> {
        let (mut directories, name) = path.split();
        let parent = |parts: &[&str]| -> Option<Directory> {
            let mut at = self.tree.named(".").ok()?;
            for part in parts {
                at = at.named(part).ok()?;
            }
            Some(at)
        };
        // A parent that is a link or not there has nothing of ours in it.
        let Some(above) = parent(&directories) else { return Ok(()) };
        above.remove(name).map_err(at("remove", path.as_str()))?;
        while let Some(last) = directories.pop() {
            let Some(above) = parent(&directories) else { break };
            if above.remove_directory(last).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Links are made by git, which refuses to go through another one.
    fn links(&self) -> Result<(), PersistError> {
        let links = &self.repository.links;
        if links.is_empty() {
            return Ok(());
        }
        let targets: BTreeMap<&str, String> = self.targets(links)?;
        let line = |link: &Link| {
            let id = targets.get(link.target.as_str())?;
            Some(format!("120000 {id} 0\t{}\0", link.path.as_str()))
        };
        let input: String = links.iter().filter_map(line).collect();
        let index = self.store.work_path().join("links");
        let git = Git { index: Some(index), ..self.git.clone() };
        git.ask(&["update-index", "-z", "--index-info"], Input::Bytes(input.into_bytes()))?;
        git.ask(&["checkout-index", "--all", "--force", "--quiet"], Input::Nothing)?;
        self.store.work().remove("links").map_err(at("remove", "links"))
    }

    fn targets<'a>(&self, links: &'a [Link]) -> Result<BTreeMap<&'a str, String>, PersistError> {
        let mut targets = BTreeMap::new();
        for link in links {
            if !targets.contains_key(link.target.as_str()) {
                let target = Input::Bytes(link.target.clone().into_bytes());
                let id = self.git.text(&["hash-object", "-w", "--stdin"], target)?;
                targets.insert(link.target.as_str(), id.trim().to_owned());
            }
        }
        Ok(targets)
    }

    fn state(&self, own: &Directory) -> Result<(), PersistError> {
        for file in &self.repository.state {
            put(self.store, own, file)?;
        }
        Ok(())
    }
}

/// Writes a file below this directory. What is there under its name goes, unless it is a directory.
pub(crate) fn put(store: &Store, below: &Directory, file: &File) -> Result<(), PersistError> {
    let (directories, name) = file.path.split();
    let failed = || at("write", file.path.as_str());
    let parent = below.make(&directories).map_err(failed())?;
    parent.remove(name).map_err(failed())?;
    let mode = if file.executable { 0o755 } else { 0o644 };
    let mut written = parent.create(name, mode).map_err(failed())?;
    let copied = store.copy_to(&file.object, &mut written);
    if copied.is_err() {
        drop(parent.remove(name));
    }
    copied?;
    let time = std::time::UNIX_EPOCH + Duration::from_secs(file.modified.min(u64::from(u32::MAX)));
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or_default(), tv_nsec: 0 };
    rustix::fs::futimens(&written, &Timestamps { last_access: time, last_modification: time })
        .map_err(|error| failed()(error.into()))
}
