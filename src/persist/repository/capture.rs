//! A repository becomes a part of a save.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{FileType, Stat};

use super::bundle;
use super::status::{self, Changes};
use crate::persist::beneath::Directory;
use crate::persist::git::{Git, Input};
use crate::persist::manifest::{
    File, Head, History, Link, Object, ObjectFormat, ObjectId, Ref, RefName, Repository, Stash, SymbolicRef,
};
use crate::persist::path::RelPath;
use crate::persist::store::{Store, remove_tree};
use crate::persist::{PersistError, at, config, unfinished};

/// The index of a very large repository.
const MOST_INDEX: u64 = 1 << 30;
const MOST_CONFIG: u64 = 4 << 20;
const MOST_STASHES: usize = 1000;
/// What we call what we add to the scratch repository.
const OURS: &str = "refs/innkeeper/";

/// What a save knows of the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) saved_at: u64,
}

struct Capture<'a> {
    store: &'a mut Store,
    path: &'a RelPath,
    /// The work tree.
    tree: Directory,
    /// Its .git.
    own: Directory,
    /// The agent's repository, asked for names and nothing else.
    theirs: Git,
    /// Ours, which borrows its objects.
    scratch: Git,
    scratch_directory: Directory,
    last: Option<Before<'a>>,
    notes: &'a mut Vec<String>,
}

/// Takes the repository as it is now. Whatever is left out becomes a note.
pub(crate) fn capture(
    store: &mut Store,
    workspace: &Path,
    path: &RelPath,
    last: Option<Before<'_>>,
    until: Instant,
    notes: &mut Vec<String>,
) -> Result<Repository, PersistError> {
    let top = Directory::open(workspace).map_err(at("open", workspace))?;
    let tree = top.below(path).map_err(at("open", path.as_str()))?;
    let own = tree.named(".git").map_err(at("open the .git of", path.as_str()))?;
    let scratch_name = "scratch";
    let scratch_directory = store.work().make(&[scratch_name]).map_err(at("make", scratch_name))?;
    let (location, scratch_path) = (workspace.join(path.as_str()), store.work_path().join(scratch_name));
    let theirs = Git::at(location.join(".git"), until);
    let scratch = Git {
        work_tree: Some(location.clone()),
        index: Some(scratch_path.join("index")),
        ..Git::at(&scratch_path, until)
    };
    let mut capture = Capture { store, path, tree, own, theirs, scratch, scratch_directory, last, notes };
    let captured = capture.take(&location);
    remove_tree(capture.store.work(), scratch_name);
    captured
}

impl Capture<'_> {
    fn take(&mut self, location: &Path) -> Result<Repository, PersistError> {
        let (settings, object_format) = self.configuration()?;
        // The refs before the index: a commit meanwhile shows as something staged that is in no commit, and is kept.
        let refs = self.refs()?;
        let head = self.head()?;
        let stashes = self.stashes(&refs.0)?;
        let shallow = self.optional("shallow", MOST_CONFIG)?;
        self.lay_out(location, object_format, &head, &refs.0, &stashes)?;
        let has_index = self.copy_index()?;
        let changes = self.changes(has_index)?;
        let staged = self.staged(&changes.staged)?;
        let (state, kept) = self.unfinished()?;
        let history =
            History { object_format, head, refs: refs.0, symbolic: refs.1, stashes, staged, kept, shallow };
        let last = self.last.map(|before| before.repository);
        let bundles = bundle::chain(self.store, &self.scratch, &history, last)?;
        let index = self.index(has_index)?;
        let exclude = self.optional("info/exclude", MOST_CONFIG)?;
        let (files, links) = self.files(&changes.changed)?;
        self.note(&changes);
        Ok(Repository {
            path: self.path.clone(),
            history,
            bundles,
            config: settings,
            exclude,
            index,
            intended: changes.intended,
            deleted: changes.deleted,
            files,
            links,
            state,
        })
    }

    fn note(&mut self, changes: &Changes) {
        for nested in &changes.nested {
            self.notes.push(format!("{}/{nested}: a repository in a repository", self.path.as_str()));
        }
        if changes.odd > 0 {
            let what = "files whose names are no text or git's own";
            self.notes.push(format!("{}: {} {what}", self.path.as_str(), changes.odd));
        }
    }

    /// Remotes and branches; read from a copy, without what it includes.
    fn configuration(&mut self) -> Result<(Vec<(String, String)>, ObjectFormat), PersistError> {
        let bytes = self
            .own
            .read_whole("config", MOST_CONFIG)
            .map_err(at("read the config of", self.path.as_str()))?;
        let name = "their-config";
        write(self.store.work(), name, &bytes)?;
        let copy = self.store.work_path().join(name).display().to_string();
        let listed = self
            .scratch_free()
            .text(&["config", "--file", &copy, "--no-includes", "-z", "--list"], Input::Nothing);
        self.store.work().remove(name).map_err(at("remove", name))?;
        let (mut kept, mut format) = (Vec::new(), ObjectFormat::Sha1);
        for setting in listed?.split('\0') {
            let Some((key, value)) = setting.split_once('\n') else { continue };
            if key == "extensions.objectformat" && value.eq_ignore_ascii_case("sha256") {
                format = ObjectFormat::Sha256;
            }
            if config::is_kept(key, value) {
                kept.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok((kept, format))
    }

    /// Git without any repository.
    fn scratch_free(&self) -> Git {
        Git { work_tree: None, index: None, ..self.scratch.clone() }
    }

    fn refs(&mut self) -> Result<(Vec<Ref>, Vec<SymbolicRef>), PersistError> {
        let format = "--format=%(objectname) %(refname) %(symref)";
        let text = self.theirs.text(&["for-each-ref", format], Input::Nothing)?;
        let (mut refs, mut symbolic, mut odd) = (Vec::new(), Vec::new(), 0_u64);
        for line in text.lines() {
            let mut fields = line.split(' ');
            let id = fields.next().and_then(|id| ObjectId::try_from(id.to_owned()).ok());
            let name = fields.next().and_then(|name| RefName::try_from(name.to_owned()).ok());
            let target = fields.next().unwrap_or_default();
            let (Some(id), Some(name)) = (id, name) else {
                odd += 1;
                continue;
            };
            if name.as_str().starts_with(OURS) {
                continue;
            }
            if target.is_empty() {
                refs.push(Ref { name, id });
            } else if let Ok(target) = RefName::try_from(target.to_owned())
                && [&name, &target].iter().all(|name| name.as_str().starts_with("refs/remotes/"))
            {
                symbolic.push(SymbolicRef { name, target });
            } else {
                odd += 1;
            }
        }
        if odd > 0 {
            self.notes.push(format!("{}: {odd} odd refs", self.path.as_str()));
        }
        refs.sort();
        Ok((refs, symbolic))
    }

    fn head(&self) -> Result<Head, PersistError> {
        let branch = self.theirs.text(&["symbolic-ref", "-q", "HEAD"], Input::Nothing);
        if let Ok(Ok(name)) = branch.map(|name| RefName::try_from(name.trim().to_owned()))
            && name.is_branch()
        {
            return Ok(Head::Branch(name));
        }
        let id = self.theirs.text(&["rev-parse", "-q", "--verify", "HEAD^{commit}"], Input::Nothing)?;
        let id = ObjectId::try_from(id.trim().to_owned()).map_err(|_| PersistError::Unfit("no HEAD"))?;
        Ok(Head::Detached(id))
    }

    fn stashes(&self, refs: &[Ref]) -> Result<Vec<Stash>, PersistError> {
        if !refs.iter().any(|known| known.name.as_str() == "refs/stash") {
            return Ok(Vec::new());
        }
        let format = "--format=%H %gs";
        let text = self.theirs.text(&["log", "-g", "--no-patch", format, "refs/stash"], Input::Nothing)?;
        let stash = |line: &str| {
            let (id, message) = line.split_once(' ')?;
            let message = message.replace(char::is_control, " ").chars().take(1000).collect();
            Some(Stash { id: ObjectId::try_from(id.to_owned()).ok()?, message })
        };
        Ok(text.lines().filter_map(stash).take(MOST_STASHES).collect())
    }

    /// The scratch repository: the same refs, and the objects of theirs.
    fn lay_out(
        &self,
        location: &Path,
        format: ObjectFormat,
        head: &Head,
        refs: &[Ref],
        stashes: &[Stash],
    ) -> Result<(), PersistError> {
        let location = location.to_str().filter(|path| !path.contains(['\n', '"', '#']));
        let location = location.ok_or(PersistError::Unfit("characters in a path that git can't be told"))?;
        skeleton(&self.scratch_directory, format, head, "")?;
        let objects = self.scratch_directory.make(&["objects", "info"]).map_err(at("make", "scratch"))?;
        write(&objects, "alternates", format!("{location}/.git/objects\n").as_bytes())?;
        if let Ok(bytes) = self.own.read_whole("info/exclude", MOST_CONFIG) {
            let info = self.scratch_directory.make(&["info"]).map_err(at("make", "scratch"))?;
            write(&info, "exclude", &bytes)?;
        }
        if let Ok(bytes) = self.own.read_whole("shallow", MOST_CONFIG) {
            write(&self.scratch_directory, "shallow", &bytes)?;
        }
        let mut input: String = refs
            .iter()
            .map(|known| format!("create {} {}\n", known.name.as_str(), known.id.as_str()))
            .collect();
        for (number, stash) in stashes.iter().enumerate() {
            input.push_str(&format!("create {OURS}stash/{number} {}\n", stash.id.as_str()));
        }
        self.scratch.ask(&["update-ref", "--stdin"], Input::Bytes(input.into_bytes())).map(drop)
    }

    /// Git replaces the index by a rename, so that what is read is whole. False where there is none.
    fn copy_index(&self) -> Result<bool, PersistError> {
        if self.own.look("index").map_err(at("look at", "index"))?.is_none() {
            return Ok(false);
        }
        let mut names = vec!["index".to_owned()];
        let entries = self.own.entries(10_000).map_err(at("list", ".git"))?;
        names.extend(
            entries.into_iter().map(|entry| entry.name).filter(|name| name.starts_with("sharedindex.")),
        );
        for name in names {
            let bytes = self.own.read_whole(&name, MOST_INDEX).map_err(at("read", &name))?;
            write(&self.scratch_directory, &name, &bytes)?;
        }
        Ok(true)
    }

    fn changes(&self, has_index: bool) -> Result<Changes, PersistError> {
        let args = [
            "status",
            "--porcelain=v2",
            "-z",
            "--untracked-files=all",
            "--ignore-submodules=all",
            "--no-renames",
        ];
        let mut changes = status::parse(&self.scratch.ask(&args, Input::Nothing)?);
        if !has_index {
            // Without an index nothing is checked out: what git calls deleted was never there.
            changes.deleted.clear();
        }
        Ok(changes)
    }

    /// A commit that holds what no other names.
    fn staged(&self, ids: &[ObjectId]) -> Result<Option<ObjectId>, PersistError> {
        let mut ids: Vec<&ObjectId> = ids.iter().collect();
        ids.sort();
        ids.dedup();
        if ids.is_empty() {
            return Ok(None);
        }
        let tree: String = ids.iter().map(|id| format!("100644 blob {}\t{0}\n", id.as_str())).collect();
        let tree = self.scratch.text(&["mktree"], Input::Bytes(tree.into_bytes()))?;
        let commit = self.scratch.text(&["commit-tree", "-m", "staged", tree.trim()], Input::Nothing)?;
        let id =
            ObjectId::try_from(commit.trim().to_owned()).map_err(|_| PersistError::Unfit("no commit"))?;
        self.keep("staged", &id)?;
        Ok(Some(id))
    }

    fn keep(&self, name: &str, id: &ObjectId) -> Result<(), PersistError> {
        let name = format!("{OURS}{name}");
        self.scratch.ask(&["update-ref", &name, id.as_str()], Input::Nothing).map(drop)
    }

    fn index(&mut self, has_index: bool) -> Result<Option<Object>, PersistError> {
        if !has_index {
            return Ok(None);
        }
        let list = self.scratch.ask(&["ls-files", "--stage", "-v", "-z"], Input::Nothing)?;
        self.store.put(list.as_slice()).map(Some)
    }

    fn optional(&mut self, name: &str, most: u64) -> Result<Option<Object>, PersistError> {
        match self.own.read_whole(name, most) {
            Ok(bytes) => self.store.put(bytes.as_slice()).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The files of an unfinished merge or rebase, and the objects that they name.
    fn unfinished(&mut self) -> Result<(Vec<File>, Vec<ObjectId>), PersistError> {
        let mut names: Vec<String> = unfinished::files().map(str::to_owned).collect();
        for directory in unfinished::DIRECTORIES {
            let Ok(open) = self.own.named(directory) else { continue };
            let entries = open.entries(unfinished::MOST_FILES).unwrap_or_default();
            names.extend(entries.into_iter().map(|entry| format!("{directory}/{}", entry.name)));
        }
        let (mut files, mut words) = (Vec::new(), Vec::new());
        for name in names {
            let Ok(path) = RelPath::try_from(name) else { continue };
            let Ok((_, stat)) = self.own.read(path.as_str()) else { continue };
            let Ok(bytes) = self.own.read_whole(path.as_str(), unfinished::LARGEST) else {
                self.notes.push(format!("{}/.git/{}: too large", self.path.as_str(), path.as_str()));
                continue;
            };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            words.extend(unfinished::object_names(&text).map(str::to_owned));
            let object = self.store.put(bytes.as_slice())?;
            files.push(File { path, object, executable: false, modified: modified(&stat) });
        }
        Ok((files, self.known(words)?))
    }

    /// Those of the names that are objects of this repository.
    fn known(&self, mut words: Vec<String>) -> Result<Vec<ObjectId>, PersistError> {
        words.sort();
        words.dedup();
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let asked = Input::Bytes(format!("{}\n", words.join("\n")).into_bytes());
        let answer = self.scratch.text(&["cat-file", "--batch-check=%(objectname) %(objecttype)"], asked)?;
        let mut kept = Vec::new();
        for line in answer.lines() {
            let Some((id, "commit" | "tree" | "blob" | "tag")) = line.split_once(' ') else { continue };
            let Ok(id) = ObjectId::try_from(id.to_owned()) else { continue };
            self.keep(&format!("kept/{}", id.as_str()), &id)?;
            kept.push(id);
        }
        Ok(kept)
    }

    fn files(&mut self, paths: &[RelPath]) -> Result<(Vec<File>, Vec<Link>), PersistError> {
        let (mut files, mut links) = (Vec::new(), Vec::new());
        let known: HashMap<&RelPath, &File> = self
            .last
            .iter()
            .flat_map(|before| &before.repository.files)
            .map(|file| (&file.path, file))
            .collect();
        let saved_at = self.last.map_or(0, |before| before.saved_at);
        for path in paths {
            match self.kind(path) {
                FileType::Symlink => match self.link(path) {
                    Some(link) => links.push(link),
                    None => self.notes.push(format!("{}/{}: a link", self.path.as_str(), path.as_str())),
                },
                FileType::RegularFile => {
                    let last = known.get(path).copied();
                    match take_file(self.store, &self.tree, path, last, saved_at)? {
                        Taken::File(file) => files.push(file),
                        Taken::Gone => {}
                        Taken::Not(why) => {
                            self.notes.push(format!("{}/{}: {why}", self.path.as_str(), path.as_str()));
                        }
                    }
                }
                _ => self.notes.push(format!("{}/{}: no file", self.path.as_str(), path.as_str())),
            }
        }
        Ok((files, links))
    }

    fn kind(&self, path: &RelPath) -> FileType {
        let (directories, name) = path.split();
        let parent = self.parent(&directories);
        let stat = parent.and_then(|parent| parent.look(name).ok().flatten());
        stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
    }

    fn parent(&self, directories: &[&str]) -> Option<Directory> {
        if directories.is_empty() {
            return self.tree.named(".").ok();
        }
        self.tree.below(&RelPath::try_from(directories.join("/")).ok()?).ok()
    }

    fn link(&self, path: &RelPath) -> Option<Link> {
        let (directories, name) = path.split();
        let target = self.parent(&directories)?.link_target(name).ok()?;
        let target = String::from_utf8(target).ok().filter(|target| !target.is_empty())?;
        Some(Link { path: path.clone(), target })
    }
}

/// What became of a file.
pub(crate) enum Taken {
    File(File),
    /// It is not there any more.
    Gone,
    Not(String),
}

/// Seconds within which a file may have changed without its time telling.
const TICK: u64 = 2;

/// Takes a file in; one that has not changed since the last save is not read again.
pub(crate) fn take_file(
    store: &mut Store,
    directory: &Directory,
    path: &RelPath,
    last: Option<&File>,
    saved_at: u64,
) -> Result<Taken, PersistError> {
    let (file, stat) = match directory.read(path.as_str()) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Taken::Gone),
        Err(error) => return Ok(Taken::Not(error.to_string())),
    };
    let (modified, executable) = (modified(&stat), stat.st_mode & 0o111 != 0);
    let same = last.filter(|last| {
        let size = u64::try_from(stat.st_size) == Ok(last.object.size);
        size && last.modified == modified
            && modified.saturating_add(TICK) < saved_at
            && store.has(&last.object)
    });
    if let Some(last) = same {
        return Ok(match store.reuse(&last.object) {
            Ok(()) => Taken::File(File { executable, ..last.clone() }),
            Err(error) => Taken::Not(error.to_string()),
        });
    }
    match store.put(file) {
        Ok(object) => Ok(Taken::File(File { path: path.clone(), object, executable, modified })),
        Err(error @ PersistError::TooLarge { .. }) => Ok(Taken::Not(error.to_string())),
        Err(error) => Err(error),
    }
}

fn modified(stat: &Stat) -> u64 {
    u64::try_from(stat.st_mtime).unwrap_or_default()
}

/// Writes a small file of ours.
pub(super) fn write(directory: &Directory, name: &str, bytes: &[u8]) -> Result<(), PersistError> {
    let file = directory.create(name, 0o644);
    file.and_then(|mut file| file.write_all(bytes)).map_err(at("write", name))
}

/// A repository without anything in it, and with a configuration of ours.
pub(super) fn skeleton(
    directory: &Directory,
    format: ObjectFormat,
    head: &Head,
    settings: &str,
) -> Result<(), PersistError> {
    for parts in [&["objects", "pack"], &["refs", "heads"]] {
        directory.make(parts).map_err(at("make", "a repository"))?;
    }
    let (version, extension) = match format {
        ObjectFormat::Sha1 => (0, ""),
        ObjectFormat::Sha256 => (1, "[extensions]\n\tobjectFormat = sha256\n"),
    };
    let core = format!("[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n");
    let core = format!("{core}\tlogallrefupdates = true\n{extension}{settings}");
    write(directory, "config", core.as_bytes())?;
    let head = match head {
        Head::Branch(name) => format!("ref: {}\n", name.as_str()),
        Head::Detached(id) => format!("{}\n", id.as_str()),
    };
    write(directory, "HEAD", head.as_bytes())
}
