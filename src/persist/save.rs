//! The child that saves, `innkeeper persist-save`: runs as the agent and says in one line how it went.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FileType;

use super::beneath::Directory;
use super::conversation::{self, DIRECTORIES, DIRECTORY, FILES, LARGEST_STATE, MOST_FILES, STATE};
use super::manifest::{Digest, File, Manifest, Object, Repository, SCHEMA};
use super::path::RelPath;
use super::repository::capture::{Before, Taken, capture, take_file};
use super::said::{self, Saved};
use super::store::Store;
use super::{PersistError, at};
use crate::report::chain;

#[derive(Debug, Clone, clap::Args)]
pub struct Save {
    #[arg(long)]
    pub volume: PathBuf,
    #[arg(long)]
    pub workspace: PathBuf,
    #[arg(long)]
    pub home: PathBuf,
    /// Further repositories, below the workspace
    #[arg(long)]
    pub repository: Vec<String>,
    /// Repositories that did not come back: what the saves have of them stays
    #[arg(long)]
    pub keep: Vec<String>,
    /// How each of them is called when something else is at its place
    #[arg(long)]
    pub spare: Vec<String>,
    /// Files of Claude's did not come back: what the last save has of them stays
    #[arg(long)]
    pub keep_conversation: bool,
    /// Claude is at work
    #[arg(long)]
    pub working: bool,
    /// The SHA-256 of the prompt that this box is configured with
    #[arg(long)]
    pub prompt: Option<String>,
    /// Octets that a save may have
    #[arg(long)]
    pub limit: u64,
    /// Milliseconds that it may take
    #[arg(long)]
    pub within: u64,
}

/// Entries of the workspace that are looked at.
const MOST_ENTRIES: usize = 1000;
const MOST_REPOSITORIES: usize = 64;

/// Saves; what went wrong is in the answer.
#[must_use]
pub fn run(save: &Save) -> Saved {
    let mut saved = Saved::default();
    let result = try_to(save, &mut saved);
    said::finish(result, &mut saved.left_out, &mut saved.trouble);
    saved
}

fn try_to(save: &Save, saved: &mut Saved) -> Result<(), PersistError> {
    let until = Instant::now() + Duration::from_millis(save.within);
    let mut store = Store::open(&save.volume, save.limit)?;
    let last = store.saves()?.iter().find_map(|known| store.read(known).ok());
    let mut notes = Vec::new();
    let mut repositories = repositories(save, &mut store, last.as_ref(), until, &mut notes)?;
    keep(save, &mut store, &mut repositories, &mut notes)?;
    let (mut conversation, claude) = conversation_of(&save.home, &mut store, last.as_ref(), &mut notes)?;
    if save.keep_conversation {
        keep_conversation(&mut store, last.as_ref(), &mut conversation, &mut notes)?;
    }
    let saved_at = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let prompt = save.prompt.clone().and_then(|digest| Digest::try_from(digest).ok());
    let working = save.working;
    let manifest = Manifest { schema: SCHEMA, saved_at, repositories, conversation, claude, working, prompt };
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    saved.repositories = count(manifest.repositories.len());
    saved.files = manifest
        .repositories
        .iter()
        .map(|one| count(one.files.len()).saturating_add(count(one.links.len())))
        .fold(0, u64::saturating_add);
    saved.conversation = count(manifest.conversation.len());
    saved.left_out = notes;
    saved.bytes = manifest.bytes();
    if last.is_some_and(|last| last.same_as(&manifest)) {
        return Ok(());
    }
    if Instant::now() >= until {
        return Err(PersistError::Late);
    }
    store.commit(&manifest)?;
    saved.written = store.fresh_bytes();
    saved.changed = true;
    Ok(())
}

/// Every repository; one that can't be saved now keeps what the last save has of it.
fn repositories(
    save: &Save,
    store: &mut Store,
    last: Option<&Manifest>,
    until: Instant,
    notes: &mut Vec<String>,
) -> Result<Vec<Repository>, PersistError> {
    let mut saved = Vec::new();
    for path in found(save, notes)? {
        let known = last.and_then(|last| last.repositories.iter().find(|known| known.path == path));
        let before = known.zip(last).map(|(repository, last)| Before { repository, saved_at: last.saved_at });
        match capture(store, &save.workspace, &path, before, until, notes) {
            Ok(repository) => saved.push(repository),
            // Nothing more can be written: it is no matter of this repository.
            Err(error) if error.is_of_the_volume() => return Err(error),
            Err(error) if Instant::now() >= until => {
                notes.push(format!("{}: {}", path.as_str(), chain(&error)));
                return Err(PersistError::Late);
            }
            Err(error) => {
                let kept = if known.is_some() { "; it stays as it was saved last" } else { "" };
                notes.push(format!("{}: {}{kept}", path.as_str(), chain(&error)));
                saved.extend(
                    known.filter(|known| known.objects().iter().all(|object| store.has(object))).cloned(),
                );
            }
        }
    }
    Ok(saved)
}

/// What did not come back stays as it was saved: at its place, or under its spare name if something else is there now.
fn keep(
    save: &Save,
    store: &mut Store,
    saved: &mut Vec<Repository>,
    notes: &mut Vec<String>,
) -> Result<(), PersistError> {
    if save.keep.is_empty() {
        return Ok(());
    }
    let known: Vec<Manifest> = store.saves()?.iter().filter_map(|save| store.read(save).ok()).collect();
    // The newest that has it whole.
    let find = |store: &Store, path: &RelPath| {
        let all = known.iter().flat_map(|manifest| &manifest.repositories);
        let whole = |one: &&Repository| one.objects().iter().all(|object| store.has(object));
        all.filter(|one| one.path == *path).find(whole).cloned()
    };
    for (path, spare) in save.keep.iter().zip(&save.spare).take(MOST_REPOSITORIES) {
        let (Ok(path), Ok(spare)) = (RelPath::try_from(path.clone()), RelPath::try_from(spare.clone()))
        else {
            continue;
        };
        let found = find(store, &spare).or_else(|| find(store, &path));
        let Some(mut repository) = found else {
            notes.push(format!("{}: it did not come back, and no save has it any more", path.as_str()));
            continue;
        };
        if saved.iter().any(|one| one.path == repository.path) {
            repository.path = spare;
        }
        if saved.iter().any(|one| one.path == repository.path) {
            continue;
        }
        for object in repository.objects() {
            store.reuse(object)?;
        }
        let name = repository.path.as_str();
        notes.push(format!("{}: it did not come back; it stays as it was saved, as {name}", path.as_str()));
        saved.push(repository);
    }
    saved.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(())
}

fn keep_conversation(
    store: &mut Store,
    last: Option<&Manifest>,
    saved: &mut Vec<File>,
    notes: &mut Vec<String>,
) -> Result<(), PersistError> {
    let there: HashSet<RelPath> = saved.iter().map(|file| file.path.clone()).collect();
    let gone = last.iter().flat_map(|last| &last.conversation).filter(|file| !there.contains(&file.path));
    let before = saved.len();
    for file in gone {
        if saved.len() < MOST_FILES && store.has(&file.object) {
            store.reuse(&file.object)?;
            saved.push(file.clone());
        }
    }
    if saved.len() > before {
        let number = saved.len() - before;
        notes
            .push(format!("{number} files of Claude's that did not come back; they stay as they were saved"));
    }
    Ok(())
}

/// Those that were named, and what lies directly below the workspace.
fn found(save: &Save, notes: &mut Vec<String>) -> Result<Vec<RelPath>, PersistError> {
    let top = Directory::open(&save.workspace).map_err(at("open", &save.workspace))?;
    let entries = top.entries(MOST_ENTRIES).map_err(at("list", &save.workspace))?;
    let below = entries.into_iter().filter(|entry| entry.kind == FileType::Directory).map(|entry| entry.name);
    let below = below.filter(|name| !(name.starts_with('.') && is_an_attempt(name)));
    let mut paths: Vec<RelPath> = save
        .repository
        .iter()
        .cloned()
        .chain(below)
        .filter_map(|name| RelPath::try_from(name).ok())
        .collect();
    paths.sort();
    paths.dedup();
    paths.retain(|path| {
        let git = path.join(".git").ok();
        let (parent, name) = (top.below(path).ok(), ".git");
        let kind = parent.and_then(|parent| parent.look(name).ok().flatten());
        match kind.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Directory) => git.is_some() && path.is_of_a_work_tree(),
            None => false,
            Some(_) => {
                notes.push(format!(
                    "{}: its .git is elsewhere (a linked work tree, a submodule)",
                    path.as_str()
                ));
                false
            }
        }
    });
    if paths.len() > MOST_REPOSITORIES {
        notes.push(format!("{} further repositories", paths.len() - MOST_REPOSITORIES));
        paths.truncate(MOST_REPOSITORIES);
    }
    Ok(paths)
}

/// A clone or a restore that is under way, or was cut off.
fn is_an_attempt(name: &str) -> bool {
    name.ends_with(".cloning") || name.ends_with(".restoring")
}

/// Claude's files, and what of its state belongs to them.
fn conversation_of(
    home: &Path,
    store: &mut Store,
    last: Option<&Manifest>,
    notes: &mut Vec<String>,
) -> Result<(Vec<File>, Option<Object>), PersistError> {
    let home = Directory::open(home).map_err(at("open", home))?;
    let mut paths = Vec::new();
    for name in FILES {
        paths.extend(RelPath::try_from(format!("{DIRECTORY}/{name}")));
    }
    for directory in DIRECTORIES {
        if let Ok(path) = RelPath::try_from(format!("{DIRECTORY}/{directory}")) {
            collect(&home, &path, &mut paths);
        }
    }
    if paths.len() >= MOST_FILES {
        notes.push(format!("Claude's files beyond {MOST_FILES}"));
    }
    let known: HashMap<&RelPath, &File> =
        last.iter().flat_map(|last| &last.conversation).map(|file| (&file.path, file)).collect();
    let saved_at = last.map_or(0, |last| last.saved_at);
    let mut files = Vec::new();
    for path in paths {
        match take_file(store, &home, &path, known.get(&path).copied(), saved_at)? {
            Taken::File(file) => files.push(file),
            Taken::Gone => {}
            Taken::Not(why) => notes.push(format!("{}: {why}", path.as_str())),
        }
    }
    Ok((files, state(&home, store)?))
}

/// Every regular file below it.
fn collect(home: &Directory, directory: &RelPath, paths: &mut Vec<RelPath>) {
    let left = MOST_FILES.saturating_sub(paths.len());
    let Ok(open) = home.below(directory) else { return };
    for entry in open.entries(left).unwrap_or_default() {
        let Ok(path) = directory.join(&entry.name) else { continue };
        match entry.kind {
            FileType::Directory => collect(home, &path, paths),
            FileType::RegularFile if paths.len() < MOST_FILES => paths.push(path),
            _ => {}
        }
    }
}

fn state(home: &Directory, store: &mut Store) -> Result<Option<Object>, PersistError> {
    let read = home.read_whole(STATE, LARGEST_STATE).ok();
    let Some(state) = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()) else { return Ok(None) };
    let kept = conversation::of_state(&state).to_string();
    store.put(kept.as_bytes()).map(Some)
}
