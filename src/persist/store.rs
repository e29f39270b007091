//! The volume: objects by their SHA-256, and saves that name them. A save is whole or it is not there.
//!
//! ```text
//! innkeeper/objects/ab/cdef…      what was saved, each once
//! innkeeper/saves/N-SHA256.json   manifests; the one with the highest number counts
//! innkeeper/aside/                saves that could not be restored, and what was wrong in them
//! innkeeper/work-PID/             a save in the making
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation};
use sha2::{Digest as _, Sha256};

use super::beneath::Directory;
use super::manifest::{Digest, MOST_BYTES, Manifest, Object};
use super::{PersistError, at};
use crate::report::hex;

/// Everything of ours on the volume.
const ROOT: &str = "innkeeper";
const OBJECTS: &str = "objects";
const SAVES: &str = "saves";
const ASIDE: &str = "aside";
const LOCK: &str = "lock";
const WORK: &str = "work-";
/// Saves that are kept.
const KEPT: usize = 3;
/// Directories have no more entries that we look at.
const MOST_ENTRIES: usize = 400_000;
/// Fewer new objects than these are synchronized one by one.
const FEW: usize = 32;
/// A number beyond it was not given by us, and leaves none for the next.
const MOST_SAVES: u64 = 1_000_000_000_000;
const CHUNK: usize = 128 << 10;

/// The open store; nobody else saves meanwhile.
#[derive(Debug)]
pub struct Store {
    root: Directory,
    objects: Directory,
    saves: Directory,
    aside: Directory,
    /// Where a save in the making puts its files.
    work: Directory,
    work_path: PathBuf,
    work_name: String,
    _lock: File,
    /// Octets that one save may have.
    limit: u64,
    written: u64,
    fresh: Vec<Digest>,
    /// Octets that were not there before.
    fresh_bytes: u64,
    count: u64,
}

/// A save on the volume, by the name of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Save {
    pub number: u64,
    pub name: String,
}

impl Store {
    /// Opens it, and waits for nobody: two boxes must not share a volume.
    pub fn open(volume: &Path, limit: u64) -> Result<Self, PersistError> {
        let top = Directory::open(volume).map_err(at("open the volume", volume))?;
        let failed = || at("make a directory on the volume", volume);
        let root = top.make(&[ROOT]).map_err(failed())?;
        let lock = lock(&root)?;
        remove_leftovers(&root);
        let make = |name: &str| root.make(&[name]).map_err(failed());
        let (objects, saves, aside) = (make(OBJECTS)?, make(SAVES)?, make(ASIDE)?);
        let work_name = format!("{WORK}{}", std::process::id());
        let work = make(&work_name)?;
        let work_path = volume.join(ROOT).join(&work_name);
        Ok(Self {
            root,
            objects,
            saves,
            aside,
            work,
            work_path,
            work_name,
            _lock: lock,
            limit,
            written: 0,
            fresh: Vec::new(),
            fresh_bytes: 0,
            count: 0,
        })
    }

    /// For programs that want a path.
    #[must_use]
    pub fn work_path(&self) -> &Path {
        &self.work_path
    }

    #[must_use]
    pub fn work(&self) -> &Directory {
        &self.work
    }

    /// Takes in what comes from there, and gives it its name.
    pub fn put(&mut self, from: impl Read) -> Result<Object, PersistError> {
        self.count += 1;
        let name = format!("new-{}", self.count);
        let mut file = self.work.create(&name, 0o600).map_err(at("make a file on the volume", ROOT))?;
        let left = self.limit.saturating_sub(self.written);
        let copied = copy(from, &mut file, left).and_then(|copied| {
            // Read-only from here on, so that nothing changes it by mistake.
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o400))?;
            Ok(copied)
        });
        let object = match copied {
            Ok(object) => object,
            Err(source) => {
                drop(self.work.remove(&name));
                return Err(if source.kind() == io::ErrorKind::FileTooLarge {
                    PersistError::TooLarge { limit: self.limit }
                } else {
                    at("write on the volume", ROOT)(source)
                });
            }
        };
        self.written = self.written.saturating_add(object.size);
        if self.has(&object) {
            self.work.remove(&name).map_err(at("remove a file on the volume", ROOT))?;
        } else {
            self.place(&name, &object)?;
        }
        Ok(object)
    }

    fn place(&mut self, name: &str, object: &Object) -> Result<(), PersistError> {
        let (directory, rest) = split(&object.sha256);
        let directory =
            self.objects.make(&[directory]).map_err(at("make a directory on the volume", OBJECTS))?;
        // Whatever is there under this name is not what it should be, or it would have been taken.
        self.work.rename(name, &directory, rest).map_err(at("put an object in place", rest))?;
        self.fresh.push(object.sha256.clone());
        self.fresh_bytes = self.fresh_bytes.saturating_add(object.size);
        Ok(())
    }

    /// What this save had to write.
    #[must_use]
    pub fn fresh_bytes(&self) -> u64 {
        self.fresh_bytes
    }

    /// Counts an object that was there already as part of this save.
    pub fn reuse(&mut self, object: &Object) -> Result<(), PersistError> {
        self.written = self.written.saturating_add(object.size);
        if self.written > self.limit { Err(PersistError::TooLarge { limit: self.limit }) } else { Ok(()) }
    }

    /// Whether there is a regular file of this size and name; what it holds is judged when it is read.
    #[must_use]
    pub fn has(&self, object: &Object) -> bool {
        let (directory, rest) = split(&object.sha256);
        self.objects
            .read(&format!("{directory}/{rest}"))
            .is_ok_and(|(_, stat)| u64::try_from(stat.st_size) == Ok(object.size))
    }

    /// Opens an object whose content has been compared with its name.
    pub fn get(&self, object: &Object) -> Result<File, PersistError> {
        let mut file = self.open_object(object)?;
        let found =
            copy(&file, io::sink(), object.size).map_err(at("read an object", object.sha256.as_str()))?;
        if found != *object {
            self.set_object_aside(object);
            return Err(PersistError::Damaged { name: object.sha256.as_str().to_owned() });
        }
        io::Seek::rewind(&mut file).map_err(at("read an object", object.sha256.as_str()))?;
        Ok(file)
    }

    fn open_object(&self, object: &Object) -> Result<File, PersistError> {
        let (directory, rest) = split(&object.sha256);
        let opened = self.objects.read(&format!("{directory}/{rest}"));
        // Gone, a link, a FIFO: whatever it is, it is not what was saved.
        let name = || object.sha256.as_str().to_owned();
        let (file, stat) = opened.map_err(|source| PersistError::Object { name: name(), source })?;
        if u64::try_from(stat.st_size) == Ok(object.size) && object.size <= self.limit {
            Ok(file)
        } else {
            Err(PersistError::Damaged { name: name() })
        }
    }

    /// A small object, whole.
    pub fn get_whole(&self, object: &Object, most: u64) -> Result<Vec<u8>, PersistError> {
        if object.size > most {
            return Err(PersistError::Damaged { name: object.sha256.as_str().to_owned() });
        }
        let mut bytes = Vec::new();
        let mut file = self.get(object)?.take(most);
        file.read_to_end(&mut bytes).map_err(at("read an object", object.sha256.as_str()))?;
        Ok(bytes)
    }

    /// Writes an object there, and compares it on the way.
    pub fn copy_to(&self, object: &Object, to: &mut File) -> Result<(), PersistError> {
        let file = self.open_object(object)?;
        let found = copy(&file, to, object.size).map_err(at("copy an object", object.sha256.as_str()))?;
        if found == *object {
            return Ok(());
        }
        self.set_object_aside(object);
        Err(PersistError::Damaged { name: object.sha256.as_str().to_owned() })
    }

    /// So that no later save counts on it. What it was stays to be looked at.
    fn set_object_aside(&self, object: &Object) {
        let (directory, rest) = split(&object.sha256);
        if let Ok(objects) = self.objects.named(directory) {
            // If it can't be moved, it is refused again.
            drop(objects.rename(rest, &self.aside, object.sha256.as_str()));
        }
    }

    /// The saves that are there, the newest first.
    pub fn saves(&self) -> Result<Vec<Save>, PersistError> {
        list(&self.saves)
    }

    pub fn read(&self, save: &Save) -> Result<Manifest, PersistError> {
        read(&self.saves, save)
    }

    /// Keeps it, but no longer as one that counts.
    pub fn set_aside(&self, save: &Save) -> Result<(), PersistError> {
        self.saves.rename(&save.name, &self.aside, &save.name).map_err(at("set a save aside", &save.name))
    }

    /// Makes the manifest the one that counts, then removes what no kept one names. Cut off at any point, what is there
    /// is the former save or this one.
    pub fn commit(&mut self, manifest: &Manifest) -> Result<(), PersistError> {
        let next = self.saves()?.first().map_or(0, |save| save.number).saturating_add(1);
        let bytes = serde_json::to_vec(manifest).unwrap_or_default();
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
            return Err(PersistError::Unfit("too many files for a manifest"));
        }
        // What was written must be understood when it is needed.
        Manifest::parse(&bytes).map_err(PersistError::Manifest)?;
        self.sync_objects()?;
        let failed = || at("write a manifest", SAVES);
        let mut file = self.work.create("manifest", 0o600).map_err(failed())?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed())?;
        let name = format!("{next:012}-{}.json", hex(&Sha256::digest(&bytes)));
        self.work.rename("manifest", &self.saves, &name).map_err(failed())?;
        self.saves.sync().map_err(failed())?;
        self.tidy(KEPT);
        Ok(())
    }

    /// The objects are on the disk before a manifest names them.
    fn sync_objects(&mut self) -> Result<(), PersistError> {
        let failed = || at("synchronize the volume", OBJECTS);
        if self.fresh.len() > FEW {
            self.fresh.clear();
            return self.root.sync_all().map_err(failed());
        }
        for digest in std::mem::take(&mut self.fresh) {
            let (directory, rest) = split(&digest);
            let directory = self.objects.named(directory).map_err(failed())?;
            let (file, _) = directory.read(rest).map_err(failed())?;
            file.sync_all().and_then(|()| directory.sync()).map_err(failed())?;
        }
        self.objects.sync().and_then(|()| self.root.sync()).map_err(failed())
    }

    /// Removes all saves but the newest, then the objects that none of them names, nor one that was set aside. An old save
    /// goes before its time where all of them together would take more than the limit.
    fn tidy(&self, kept: usize) {
        let (Ok(saves), Ok(aside)) = (self.saves(), list(&self.aside)) else { return };
        let mut named: HashSet<Digest> = HashSet::new();
        let mut bytes = 0_u64;
        for (place, save) in saves.iter().enumerate() {
            let manifest = if place < kept { self.read(save).ok() } else { None };
            let Some(manifest) = manifest else {
                if place > 0 {
                    drop(self.saves.remove(&save.name));
                }
                continue;
            };
            let more: Vec<&Object> =
                manifest.objects().into_iter().filter(|object| !named.contains(&object.sha256)).collect();
            let size = more.iter().fold(0_u64, |sum, object| sum.saturating_add(object.size));
            if place > 0 && bytes.saturating_add(size) > self.limit {
                drop(self.saves.remove(&save.name));
                continue;
            }
            bytes = bytes.saturating_add(size);
            named.extend(more.into_iter().map(|object| object.sha256.clone()));
        }
        for save in &aside {
            if let Ok(manifest) = read(&self.aside, save) {
                named.extend(manifest.objects().into_iter().map(|object| object.sha256.clone()));
            }
        }
        self.sweep(&named);
    }

    fn sweep(&self, named: &HashSet<Digest>) {
        for directory in self.objects.entries(MOST_ENTRIES).unwrap_or_default() {
            let Ok(objects) = self.objects.named(&directory.name) else { continue };
            for entry in objects.entries(MOST_ENTRIES).unwrap_or_default() {
                let digest = Digest::try_from(format!("{}{}", directory.name, entry.name));
                if !digest.is_ok_and(|digest| named.contains(&digest)) && entry.kind != FileType::Directory {
                    drop(objects.remove(&entry.name));
                }
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        remove_tree(&self.root, &self.work_name);
    }
}

/// One at a time; the lock ends with the process.
fn lock(root: &Directory) -> Result<File, PersistError> {
    let failed = || at("lock the volume", LOCK);
    if let Err(error) = root.create(LOCK, 0o600)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(failed()(error));
    }
    let (file, _) = root.read(LOCK).map_err(failed())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PersistError::Busy),
        Err(error) => Err(failed()(error.into())),
    }
}

/// What a save that was cut off left. Under the lock nobody else's is among it.
fn remove_leftovers(root: &Directory) {
    for entry in root.entries(MOST_ENTRIES).unwrap_or_default() {
        if entry.name.starts_with(WORK) {
            remove_tree(root, &entry.name);
        }
    }
}

/// Best effort: what can't be removed is in nobody's way.
pub(super) fn remove_tree(parent: &Directory, name: &str) {
    if parent.remove(name).is_ok() {
        return;
    }
    if let Ok(directory) = parent.named(name) {
        for entry in directory.entries(MOST_ENTRIES).unwrap_or_default() {
            remove_tree(&directory, &entry.name);
        }
    }
    drop(parent.remove_directory(name));
}

fn list(directory: &Directory) -> Result<Vec<Save>, PersistError> {
    let entries = directory.entries(MOST_ENTRIES).map_err(at("list the saves", SAVES))?;
    let save = |name: String| {
        let (number, rest) = name.split_once('-')?;
        let digest = rest.strip_suffix(".json")?;
        Digest::try_from(digest.to_owned()).ok()?;
        let number = number.parse().ok().filter(|number| *number < MOST_SAVES)?;
        Some(Save { number, name })
    };
    let mut saves: Vec<Save> = entries.into_iter().filter_map(|entry| save(entry.name)).collect();
    saves.sort_by_key(|save| std::cmp::Reverse(save.number));
    Ok(saves)
}

fn read(directory: &Directory, save: &Save) -> Result<Manifest, PersistError> {
    let bytes = directory.read_whole(&save.name, MOST_BYTES).map_err(at("read a manifest", &save.name))?;
    if !save.name.contains(&hex(&Sha256::digest(&bytes))) {
        return Err(PersistError::Damaged { name: save.name.clone() });
    }
    Manifest::parse(&bytes).map_err(PersistError::Manifest)
}

fn split(digest: &Digest) -> (&str, &str) {
    digest.as_str().split_at(2)
}

/// Copies at most so many octets, and says what they were.
fn copy(mut from: impl Read, mut to: impl Write, most: u64) -> io::Result<Object> {
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size = size.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if size > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let bytes = buffer.get(..read).unwrap_or_default();
        hash.update(bytes);
        to.write_all(bytes)?;
    }
    let sha256 = Digest::try_from(hex(&hash.finalize())).map_err(|unfit| io::Error::other(unfit.0))?;
    Ok(Object { sha256, size })
}

#[cfg(test)]
mod tests;
