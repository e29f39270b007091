//! The box's mounts: tmpfs where the agent may write, everything else read-only, host doors covered.
//!
//! Looks at mountinfo, never at who mounted: a tmpfs or a read-only root that the runtime made is as good as ours.

pub mod layout;
pub mod mountinfo;
pub mod seal;
pub mod surfaces;

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use layout::{Mount, Owner};
use mountinfo::{MountEntry, MountTable};

#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    #[error("cannot read the mount table")]
    Table(#[source] mountinfo::MountTableError),
    #[error("cannot make the directory {path}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot mount a tmpfs on {path}")]
    Mount { path: PathBuf, source: nix::errno::Errno },
    #[error("{path} is mounted noexec: builds and scripts can't run there")]
    Noexec { path: PathBuf },
    #[error("{path} allows {what}, and a remount to forbid it is refused")]
    Flags { path: PathBuf, what: &'static str, source: nix::errno::Errno },
    #[error("{path} is not a file system of its own, and none could be mounted")]
    NotMounted { path: PathBuf },
    #[error("cannot give {path} to its owner")]
    Owner { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

/// The proof that the box was sealed: what is writable, and which doors of the host were covered.
#[derive(Debug, Clone)]
pub struct Sealed {
    writable: seal::Writable,
    doors: Vec<PathBuf>,
}

impl Sealed {
    /// Only the boot makes it, from what the verification found.
    #[must_use]
    pub(crate) fn new(writable: seal::Writable, doors: Vec<PathBuf>) -> Self {
        Self { writable, doors }
    }

    #[must_use]
    pub fn writable(&self) -> &seal::Writable {
        &self.writable
    }

    #[must_use]
    pub fn doors(&self) -> &[PathBuf] {
        &self.doors
    }
}

/// Makes every place of the layout that is not there yet. Goes on after a failure, so that all of them are told at once.
pub fn apply(layout: &[Mount]) -> Result<(), Vec<FilesystemError>> {
    let mut failed: Vec<FilesystemError> = close_run().err().into_iter().collect();
    failed.extend(layout.iter().filter_map(|place| make(place).err()));
    if failed.is_empty() { Ok(()) } else { Err(failed) }
}

fn make(place: &Mount) -> Result<(), FilesystemError> {
    let table = MountTable::read().map_err(FilesystemError::Table)?;
    match table.at(&place.path) {
        Some(entry) => keep(place, entry),
        None => provide(place, &table),
    }
}

/// What [`apply`] will come to for this place where nothing can be mounted or remounted.
pub fn foresee(place: &Mount, table: &MountTable, no_new_privs: bool) -> Result<(), FilesystemError> {
    let (path, source) = (place.path.clone(), nix::errno::Errno::EPERM);
    match table.at(&place.path) {
        Some(entry) if entry.has("noexec") && place.exec => Err(FilesystemError::Noexec { path }),
        Some(entry) if restricted(entry) || no_new_privs => Ok(()),
        Some(_) => Err(FilesystemError::Flags { path, what: SETUID_OR_DEVICES, source }),
        None if a_directory_will_do(place, table) => {
            let fit = no_new_privs || table.covering(&place.path).is_some_and(restricted);
            if fit { Ok(()) } else { Err(FilesystemError::Flags { path, what: SETUID_OR_DEVICES, source }) }
        }
        None => Err(FilesystemError::Mount { path, source }),
    }
}

fn restricted(entry: &MountEntry) -> bool {
    entry.has("nosuid") && entry.has("nodev")
}

/// Where only we decide what is in it, a directory on a tmpfs of the runtime's is as good as a tmpfs of its own.
fn a_directory_will_do(place: &Mount, table: &MountTable) -> bool {
    !place.exec && table.covering(&place.path).is_some_and(MountEntry::is_tmpfs)
}

const SETUID_OR_DEVICES: &str = "setuid files or devices";

/// A tmpfs that the runtime put on /run is everybody's (mode 1777 unless it was told otherwise): our own state lies in
/// it, so it becomes root's alone.
fn close_run() -> Result<(), FilesystemError> {
    let run = Path::new("/run");
    let table = MountTable::read().map_err(FilesystemError::Table)?;
    if !table.at(run).is_some_and(MountEntry::is_tmpfs) {
        return Ok(());
    }
    let failed = |source| FilesystemError::Owner { path: run.to_owned(), source };
    open_directory(run).and_then(|run| run.set_permissions(Permissions::from_mode(0o755))).map_err(failed)
}

/// A volume, or a tmpfs of the runtime's: kept with all that is in it.
fn keep(place: &Mount, entry: &MountEntry) -> Result<(), FilesystemError> {
    if entry.has("noexec") && place.exec {
        return Err(FilesystemError::Noexec { path: place.path.clone() });
    }
    restrict(place, entry)?;
    own(place)
}

/// Whether a volume is mounted there that the agent may have: its own already, or empty. What is in it is not looked at.
pub fn volume(path: &Path, agent: Owner) -> Result<bool, String> {
    let table = MountTable::read().map_err(|error| crate::report::chain(&error))?;
    let Some(entry) = table.at(path) else { return Ok(false) };
    if entry.read_only() {
        return Err(format!("{} is mounted read-only", path.display()));
    }
    let looked = open_directory(path).and_then(|directory| directory.metadata());
    let metadata = looked.map_err(|error| format!("{}: {error}", path.display()))?;
    let fresh = metadata.uid() == 0 && is_empty(path);
    if fresh || seal::may_write(&metadata, agent) {
        return Ok(true);
    }
    let (path, owner, uid) = (path.display(), metadata.uid(), agent.uid);
    Err(format!(
        "{path} belongs to uid {owner} and is not empty: chown it to {uid}, or mount an empty volume"
    ))
}

/// Forbids what a volume of data has no use for. Where the runtime made the mount and we can't remount it, its files are
/// the agent's as they are everywhere else.
pub fn forbid_execution(path: &Path) {
    let table = MountTable::read().ok();
    let Some(flags) = table.and_then(|table| table.at(path).map(MountEntry::flags)) else { return };
    let flags = flags | MsFlags::MS_NOEXEC | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).ok();
}

/// Takes setuid files and devices from a mount that somebody else made.
fn restrict(place: &Mount, entry: &MountEntry) -> Result<(), FilesystemError> {
    if !restricted(entry) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        match mount(None::<&str>, &place.path, None::<&str>, flags | entry.flags(), None::<&str>) {
            // Said by the verification.
            Err(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) if no_new_privs() => {}
            done => done.map_err(|source| FilesystemError::Flags {
                path: place.path.clone(),
                what: SETUID_OR_DEVICES,
                source,
            })?,
        }
    }
    Ok(())
}

fn provide(place: &Mount, table: &MountTable) -> Result<(), FilesystemError> {
    make_directory(&place.path)?;
    match mount_tmpfs(place) {
        Ok(()) => Ok(()),
        // Without CAP_SYS_ADMIN a directory on a tmpfs of the runtime's will do where only we decide what is in it.
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) if a_directory_will_do(place, table) => {
            own(place)
        }
        Err(source) => Err(FilesystemError::Mount { path: place.path.clone(), source }),
    }
}

fn mount_tmpfs(place: &Mount) -> Result<(), nix::errno::Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &place.path, Some("tmpfs"), flags, Some(place.tmpfs_options().as_str()))
}

/// The places that nobody has mounted, and that a directory will not do for.
pub fn not_mounted(layout: &[Mount]) -> Result<Vec<&Mount>, FilesystemError> {
    let table = MountTable::read().map_err(FilesystemError::Table)?;
    let missing = |place: &&Mount| table.at(&place.path).is_none() && !a_directory_will_do(place, &table);
    Ok(layout.iter().filter(missing).collect())
}

/// The mounts of [`apply`] and nothing else, in a mount namespace that is thrown away: no directory is made and no owner
/// changed, since these would stay.
pub fn rehearse(layout: &[Mount]) -> Vec<FilesystemError> {
    layout.iter().filter_map(|place| rehearse_one(place).err()).collect()
}

fn rehearse_one(place: &Mount) -> Result<(), FilesystemError> {
    let table = MountTable::read().map_err(FilesystemError::Table)?;
    let path = place.path.clone();
    match table.at(&place.path) {
        Some(entry) if entry.has("noexec") && place.exec => Err(FilesystemError::Noexec { path }),
        Some(entry) => restrict(place, entry),
        None if place.path.is_dir() => {
            mount_tmpfs(place).map_err(|source| FilesystemError::Mount { path, source })
        }
        None if table.covering(&place.path).is_some_and(MountEntry::read_only) => {
            let source = std::io::Error::from(nix::errno::Errno::EROFS);
            Err(FilesystemError::Directory { path, source })
        }
        // The boot makes it.
        None => Ok(()),
    }
}

fn make_directory(path: &Path) -> Result<(), FilesystemError> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| FilesystemError::Directory { path: path.to_owned(), source })
}

/// Opens the directory itself, never through a link in its last step.
fn open_directory(path: &Path) -> Result<File, std::io::Error> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A fresh volume belongs to root and is empty: its mount point is given to the owner. A volume in use is somebody's: it
/// is left as it is, and the verification says if the agent can't write there.
fn own(place: &Mount) -> Result<(), FilesystemError> {
    let failed = |source| FilesystemError::Owner { path: place.path.clone(), source };
    let directory = open_directory(&place.path).map_err(failed)?;
    let metadata = directory.metadata().map_err(failed)?;
    let Owner { uid, gid } = place.owner;
    if uid != 0 && metadata.uid() != uid && !(metadata.uid() == 0 && is_empty(&place.path)) {
        return Ok(());
    }
    if (metadata.uid(), metadata.gid()) != (uid, gid) {
        let change = |fd: &OwnedFd| std::os::unix::fs::fchown(fd, Some(uid), Some(gid));
        change(&OwnedFd::from(directory.try_clone().map_err(failed)?)).map_err(failed)?;
    }
    if metadata.mode() & 0o7777 != place.mode {
        directory.set_permissions(Permissions::from_mode(place.mode)).map_err(failed)?;
    }
    Ok(())
}

/// Whether nothing is there, or only what mkfs made.
fn is_empty(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).all(|name| name == "lost+found")
}

/// Whether this process, and with it everybody in the box, `docker exec` included, gains nothing by executing a file.
fn no_new_privs() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// What was found of the places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub detail: String,
    /// Held by something else than the flags that were asked for: which places, and by what.
    pub weaker: Option<String>,
}

/// Looks at the outcome: mounted, with the flags, owner and mode that were asked for.
pub fn verify(layout: &[Mount]) -> Result<Found, String> {
    let mut weaker = Vec::new();
    let table = MountTable::read().map_err(|error| crate::report::chain(&error))?;
    let mut seen = Vec::new();
    for place in layout {
        let path = place.path.display();
        let entry = match table.at(&place.path) {
            Some(entry) => entry,
            None if !place.exec => {
                let covering = table.covering(&place.path).filter(|entry| entry.is_tmpfs());
                covering.ok_or_else(|| format!("{path} is not on a tmpfs"))?
            }
            None => return Err(format!("{path} is not a file system of its own")),
        };
        let without: Vec<&str> = ["nosuid", "nodev"].into_iter().filter(|flag| !entry.has(flag)).collect();
        if !without.is_empty() {
            let flags = without.join(" and ");
            if !no_new_privs() {
                return Err(format!("{path} is mounted without {flags}"));
            }
            weaker.push(format!("{path} (without {flags})"));
        }
        let metadata = std::fs::symlink_metadata(&place.path).map_err(|error| format!("{path}: {error}"))?;
        let as_planned = metadata.uid() == place.owner.uid && metadata.mode() & 0o7777 == place.mode;
        // A kept volume may be anybody's as long as the agent can work in it; our own places may not.
        let kept = place.owner != layout::ROOT && seal::may_write(&metadata, place.owner);
        if !metadata.is_dir() || !(as_planned || kept) {
            let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
            return Err(format!(
                "{path} belongs to uid {uid} with mode {mode:o}: uid {} can't work there (chown the volume)",
                place.owner.uid
            ));
        }
        seen.push(format!("{path} ({})", entry.fs_type));
    }
    let weaker = (!weaker.is_empty()).then(|| {
        let stand_in = "no_new_privs and the runtime's list of devices stand in";
        format!("mounts of the runtime's can't be remounted: {}; {stand_in}", weaker.join(", "))
    });
    Ok(Found { detail: seen.join(", "), weaker })
}

/// Makes a directory of root's below a directory that only root can write.
pub fn private_directory(path: &Path, mode: u32) -> Result<(), FilesystemError> {
    make_directory(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|source| FilesystemError::Directory { path: path.to_owned(), source })
}

/// Writes a file of root's in a directory of root's, replacing what the box's former life left.
pub fn write_root_file(path: &Path, content: &[u8], mode: u32) -> Result<(), FilesystemError> {
    use std::io::Write;
    let failed = |source| FilesystemError::Write { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed(source)),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    // The umask of whoever started us must not decide.
    file.set_permissions(Permissions::from_mode(mode)).map_err(failed)
}
