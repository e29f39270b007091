//! The child that restores, `innkeeper persist-restore`: runs as the agent, before the session, and says in one line how
//! it went. Whatever is there already stays as it is.

use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::beneath::Directory;
use super::conversation::{self, LARGEST_STATE, STATE};
use super::manifest::{File, Manifest, Object};
use super::path::RelPath;
use super::repository::rebuild::{self, put, rebuild};
use super::said::{self, Came, Restored, RestoredRepository};
use super::store::{Save, Store};
use super::{PersistError, at};
use crate::report::{chain, harmless};

#[derive(Debug, Clone, clap::Args)]
pub struct Restore {
    #[arg(long)]
    pub volume: PathBuf,
    #[arg(long)]
    pub workspace: PathBuf,
    #[arg(long)]
    pub home: PathBuf,
    /// Where Claude will work
    #[arg(long)]
    pub workdir: String,
    /// Octets that an object may have
    #[arg(long)]
    pub limit: u64,
    /// Milliseconds that it may take
    #[arg(long)]
    pub within: u64,
}

/// What is added to the name of a repository that did not come back.
const SPARE: &str = ".unrestored";
const SPARES: usize = 64;

/// Restores; what went wrong is in the answer.
#[must_use]
pub fn run(restore: &Restore) -> Restored {
    let mut restored = Restored::default();
    let result = try_to(restore, &mut restored);
    said::finish(result, &mut restored.left_out, &mut restored.trouble);
    restored
}

/// A save that can be read, and whether all of it was as it should be.
struct Known {
    save: Save,
    manifest: Manifest,
    good: bool,
}

fn try_to(restore: &Restore, restored: &mut Restored) -> Result<(), PersistError> {
    let until = Instant::now() + Duration::from_millis(restore.within);
    let store = Store::open(&restore.volume, restore.limit)?;
    let mut saves = Vec::new();
    for save in store.saves()? {
        match store.read(&save) {
            Ok(manifest) => saves.push(Known { save, manifest, good: true }),
            Err(error) => {
                restored.left_out.push(format!(
                    "the save {}: {}; it is set aside",
                    save.number,
                    chain(&error)
                ));
                store.set_aside(&save)?;
            }
        }
    }
    let Some(newest) = saves.first() else { return Ok(()) };
    restored.saved_at = Some(newest.manifest.saved_at);
    (restored.working, restored.prompt) = (newest.manifest.working, newest.manifest.prompt.clone());
    restored.repositories = failed(&saves, &newest.manifest);
    // Until the last of them is back.
    restored.lost = u64::try_from(newest.manifest.conversation.len()).unwrap_or(u64::MAX);
    for came in &mut restored.repositories {
        one(&store, restore, &mut saves, came, until);
    }
    conversations(&store, restore, &mut saves, restored)?;
    for known in saves.iter().filter(|known| !known.good) {
        let number = known.save.number;
        restored.left_out.push(format!("the save {number} is damaged; it is set aside"));
        store.set_aside(&known.save)?;
    }
    Ok(())
}

/// Every repository as one that did not come back, which is so until it has.
fn failed(saves: &[Known], newest: &Manifest) -> Vec<RestoredRepository> {
    let mut taken: HashSet<RelPath> = saves
        .iter()
        .flat_map(|known| &known.manifest.repositories)
        .map(|repository| repository.path.clone())
        .collect();
    let failed = |path: RelPath| {
        let names = (1..=SPARES).map(|number| match number {
            1 => format!("{}{SPARE}", path.as_str()),
            _ => format!("{}{SPARE}-{number}", path.as_str()),
        });
        // A name that no save has: what is there under it is there as the spare.
        let spare = names.filter_map(|name| RelPath::try_from(name).ok()).find(|name| !taken.contains(name));
        taken.extend(spare.clone());
        RestoredRepository { path, came: Came::Failed, detail: "it was not tried".to_owned(), spare }
    };
    newest.repositories.iter().map(|repository| repository.path.clone()).map(failed).collect()
}

/// One repository, from the newest save that has it whole.
fn one(store: &Store, restore: &Restore, saves: &mut [Known], came: &mut RestoredRepository, until: Instant) {
    let newest = saves.first().map_or(0, |known| known.save.number);
    for known in saves {
        let found = known.manifest.repositories.iter().find(|repository| repository.path == came.path);
        let Some(repository) = found else { continue };
        match rebuild(store, &restore.workspace, repository, until) {
            Ok(rebuild::Came::Back(detail)) => {
                let older = known.save.number != newest;
                let from = if older {
                    format!(" (from the older save {})", known.save.number)
                } else {
                    String::new()
                };
                (came.came, came.detail) = (Came::Restored, format!("{detail}{from}"));
                return;
            }
            Ok(rebuild::Came::Kept) if !is_repository(restore, came) => {
                came.detail = "something that is no repository is at its place".to_owned();
                return;
            }
            Ok(rebuild::Came::Kept) => {
                (came.came, came.detail) =
                    (Came::Kept, "something is there already; it is kept as it is".to_owned());
                return;
            }
            Err(error) => {
                // A full tmpfs or a lack of time is not the save's fault.
                known.good &= !error.is_of_the_save();
                came.detail = harmless(&chain(&error), 150);
            }
        }
    }
}

fn is_repository(restore: &Restore, came: &RestoredRepository) -> bool {
    let there = Directory::open(&restore.workspace).and_then(|top| top.below(&came.path));
    there.and_then(|there| there.look(".git")).is_ok_and(|git| git.is_some())
}

fn conversations(
    store: &Store,
    restore: &Restore,
    saves: &mut [Known],
    restored: &mut Restored,
) -> Result<(), PersistError> {
    let home = Directory::open(&restore.home).map_err(at("open", &restore.home))?;
    let Some(newest) = saves.first_mut() else { return Ok(()) };
    let (mut kept, mut lost) = (0_u64, 0_u64);
    for file in &newest.manifest.conversation {
        match bring(store, &home, file) {
            Ok(true) => restored.conversation = restored.conversation.saturating_add(1),
            Ok(false) => kept = kept.saturating_add(1),
            Err(error) => {
                newest.good &= !error.is_of_the_save();
                lost = lost.saturating_add(1);
                restored.left_out.push(format!("{}: {}", file.path.as_str(), chain(&error)));
                continue;
            }
        }
        restored.resume |= conversation::is_conversation_of(&file.path, &restore.workdir);
    }
    restored.lost = lost;
    if kept > 0 {
        restored.left_out.push(format!("{kept} files of Claude's that are there already; they are kept"));
    }
    if let Some(object) = &newest.manifest.claude
        && let Err(error) = state(store, &home, object)
    {
        newest.good &= !error.is_of_the_save();
        restored.left_out.push(format!("{STATE}: {}", chain(&error)));
    }
    Ok(())
}

/// Brings a file back; false if something is there.
fn bring(store: &Store, home: &Directory, file: &File) -> Result<bool, PersistError> {
    let (directories, name) = file.path.split();
    let parent = home.make(&directories).map_err(at("make the directory of", file.path.as_str()))?;
    if parent.look(name).map_err(at("look at", file.path.as_str()))?.is_some() {
        return Ok(false);
    }
    put(store, home, file).map(|()| true)
}

/// Adds to `.claude.json` what is not in it, by a rename.
fn state(store: &Store, home: &Directory, object: &Object) -> Result<(), PersistError> {
    let saved = store.get_whole(object, LARGEST_STATE)?;
    let failed = || at("read", STATE);
    let understood = |_| PersistError::Unfit("words in .claude.json that are none");
    let saved = serde_json::from_slice(&saved).map_err(understood)?;
    let there = home.read_whole(STATE, LARGEST_STATE).map_err(failed())?;
    let there = serde_json::from_slice(&there)
        .map_err(|_| PersistError::Unfit("words in .claude.json that are none"))?;
    let merged = conversation::merge(there, &saved);
    let beside = format!("{STATE}.innkeeper-{}", std::process::id());
    let mut file = home.create(&beside, 0o600).map_err(at("write", STATE))?;
    file.write_all(format!("{merged:#}\n").as_bytes()).map_err(at("write", STATE))?;
    home.rename(&beside, home, STATE).map_err(at("write", STATE))
}
