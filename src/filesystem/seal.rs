//! Nothing is writable for the agent but a fixed list: every other mount becomes read-only.
//!
//! Remounts are per mount (MS_BIND|MS_REMOUNT|MS_RDONLY): the superblock of an overlay can't be remounted from
//! inside, and the superblock of a volume is the host's.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::layout::{Owner, STATE};
use super::mountinfo::{self, MountEntry, MountTable};

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("cannot read the mount table")]
    Table(#[source] mountinfo::MountTableError),
    #[error("cannot change the mount {path}")]
    Remount { path: PathBuf, source: Errno },
}

/// Kernel file systems whose files decide for themselves who may write; their dangerous parts are surfaces
/// (`surfaces.rs`), and a read-only /proc would break what processes write about themselves.
const SELF_GOVERNED: &[&str] = &["proc", "devpts", "mqueue"];

/// Mounts that stay writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writable {
    places: Vec<PathBuf>,
    agent: Owner,
    /// PID 1 writes below them, and nobody else can.
    kept: Vec<PathBuf>,
}

impl Writable {
    /// The layout's places, and the shared memory of POSIX.
    #[must_use]
    pub fn new(layout: &[super::layout::Mount], agent: Owner) -> Self {
        let mut paths: Vec<PathBuf> = layout.iter().map(|place| place.path.clone()).collect();
        paths.extend(["/dev/shm", "/dev/mqueue", "/dev/pts"].map(PathBuf::from));
        Self { places: paths, agent, kept: Vec::new() }
    }

    /// The mount in which this file of root's lies stays writable: for root, which is looked at as everywhere.
    #[must_use]
    pub fn keeping(mut self, file: Option<&Path>) -> Self {
        let table = file.and_then(|_| MountTable::read().ok());
        let mount =
            file.zip(table).and_then(|(file, table)| table.covering(file).map(|entry| entry.path.clone()));
        // The root file system is never spared: a file there is refused before anything is touched.
        self.kept.extend(mount.filter(|mount| mount != Path::new("/")));
        self
    }

    fn keeps(&self, entry: &MountEntry) -> bool {
        self.kept.contains(&entry.path)
    }

    /// The mounts that must become read-only and are not.
    #[must_use]
    pub fn others(&self, table: &MountTable) -> Vec<MountEntry> {
        self.sealable(table).into_iter().filter(|entry| !entry.read_only()).collect()
    }

    /// The mounts that are to be read-only and nosuid, and are not both.
    fn sealable(&self, table: &MountTable) -> Vec<MountEntry> {
        table
            .visible()
            .filter(|entry| !self.places.contains(&entry.path))
            .filter(|entry| !(entry.read_only() && entry.has("nosuid")))
            .filter(|entry| !SELF_GOVERNED.contains(&entry.fs_type.as_str()))
            .filter(|entry| !Self::holds_state(entry))
            .cloned()
            .collect()
    }

    /// /run as the runtime's tmpfs holds our own state: PID 1 goes on writing there, and nobody else can.
    fn holds_state(entry: &MountEntry) -> bool {
        entry.is_tmpfs() && entry.path != Path::new("/") && Path::new(STATE).starts_with(&entry.path)
    }

    /// The mount points that are sealed now, for the attack.
    #[must_use]
    pub fn sealed_mounts(&self) -> Vec<PathBuf> {
        let Ok(table) = MountTable::read() else { return Vec::new() };
        let sealed = |entry: &&MountEntry| {
            !self.places.contains(&entry.path) && !SELF_GOVERNED.contains(&entry.fs_type.as_str())
        };
        table.visible().filter(sealed).map(|entry| entry.path.clone()).collect()
    }
}

/// Makes every other mount read-only. Goes on after a failure, so that as much as possible is closed.
pub fn apply(writable: &Writable) -> Result<(), SealError> {
    let table = MountTable::read().map_err(SealError::Table)?;
    let mut failed = None;
    for entry in writable.sealable(&table) {
        // nosuid too: no setuid file or file capability of the image has an effect any more, for anybody.
        let read_only = if writable.keeps(&entry) { MsFlags::empty() } else { MsFlags::MS_RDONLY };
        let flags = entry.flags() | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | read_only | MsFlags::MS_NOSUID;
        if let Err(source) = mount(None::<&str>, &entry.path, None::<&str>, flags, None::<&str>) {
            failed = failed.or(Some(SealError::Remount { path: entry.path, source }));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Looks at the mount table: what is still writable for the agent beside the list, by name. Without such: the mounts that
/// are writable for root alone.
pub fn verify(writable: &Writable) -> Result<Vec<PathBuf>, String> {
    let table = MountTable::read().map_err(|error| crate::report::chain(&error))?;
    let others = writable.others(&table);
    let open: Vec<String> =
        others.iter().filter_map(|entry| place_for(&entry.path, writable.agent)).collect();
    if !open.is_empty() {
        return Err(format!("still writable: {}", open.join(", ")));
    }
    // Runtimes make /dev and the directory of cgroups of these.
    let left = others.into_iter().filter(|entry| !entry.is_tmpfs() && !writable.keeps(entry));
    Ok(left.map(|entry| entry.path).collect())
}

/// What stays writable for root, in words; `None` if nothing does.
#[must_use]
pub fn left_to_root(paths: &[PathBuf]) -> Option<String> {
    let list: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let what = "stays writable for root";
    (!list.is_empty())
        .then(|| format!("{what}: {} (the agent finds no place to write there)", list.join(", ")))
}

/// Undoes the seal of one mount, for a boot that failed and puts back what it wrote there.
pub fn open(path: &Path) -> Result<(), SealError> {
    let table = MountTable::read().map_err(SealError::Table)?;
    let Some(entry) = table.at(path).filter(|entry| entry.has("ro")) else { return Ok(()) };
    let flags = (entry.flags() - MsFlags::MS_RDONLY) | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    let opened = mount(None::<&str>, path, None::<&str>, flags, None::<&str>);
    opened.map_err(|source| SealError::Remount { path: path.to_owned(), source })
}

/// Files of a mount that is looked through when it can't be made read-only; /dev has a few dozen.
const MAX_LOOKED_AT: usize = 20_000;

/// A place in a writable mount where the agent may write: what counts is not the mount's flag but whether there is one.
/// Devices and sockets decide for themselves; their mount's flag never mattered to them.
fn place_for(mount: &Path, agent: Owner) -> Option<String> {
    // A FUSE mount of somebody's may be closed to root and open to its owner.
    let hidden = |path: &Path, error: &std::io::Error| {
        let gone = error.kind() == std::io::ErrorKind::NotFound;
        (!gone).then(|| format!("{} (can't be looked at: {error})", path.display()))
    };
    let device = match std::fs::symlink_metadata(mount) {
        Ok(metadata) => metadata.dev(),
        Err(error) => return hidden(mount, &error),
    };
    let mut pending = vec![mount.to_owned()];
    let mut seen = 0;
    while let Some(path) = pending.pop() {
        seen += 1;
        if seen > MAX_LOOKED_AT {
            return Some(format!("{} (too large to look through)", mount.display()));
        }
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => match hidden(&path, &error) {
                None => continue,
                found => return found,
            },
        };
        if metadata.dev() != device {
            continue;
        }
        if (metadata.is_dir() || metadata.is_file()) && may_write(&metadata, agent) {
            return Some(path.display().to_string());
        }
        if metadata.is_dir() {
            match std::fs::read_dir(&path) {
                Ok(entries) => pending.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) => match hidden(&path, &error) {
                    None => {}
                    found => return found,
                },
            }
        }
    }
    None
}

pub(crate) fn may_write(metadata: &std::fs::Metadata, agent: Owner) -> bool {
    let mode = metadata.mode();
    // An owner may give itself what it lacks.
    metadata.uid() == agent.uid || mode & 0o002 != 0 || metadata.gid() == agent.gid && mode & 0o020 != 0
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Owner, Sizes, plan};
    use super::{MountEntry, MountTable, Writable, place_for};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn entry(path: &str, fs_type: &str, option: &str) -> MountEntry {
        MountEntry {
            path: path.into(),
            fs_type: fs_type.into(),
            options: vec![option.to_owned()],
            super_options: Vec::new(),
        }
    }

    #[test]
    fn everything_but_the_list_is_to_be_sealed() {
        let sizes = Sizes { workspace: 1, tmp: 1, home: 1 };
        let agent = Owner { uid: 1000, gid: 1000 };
        let writable = Writable::new(&plan(agent, "/home/claude", sizes), agent);
        let table = MountTable::new(vec![
            entry("/", "overlay", "rw"),
            entry("/proc", "proc", "rw"),
            entry("/sys", "sysfs", "ro"),
            entry("/dev", "tmpfs", "rw"),
            entry("/dev/shm", "tmpfs", "rw"),
            entry("/workspace", "ext4", "rw"),
            entry("/data", "ext4", "rw"),
            entry("/etc/hosts", "ext4", "rw"),
            entry("/run", "tmpfs", "rw"),
            entry("/home/claude", "tmpfs", "rw"),
        ]);
        let paths: Vec<String> =
            writable.others(&table).iter().map(|e| e.path.display().to_string()).collect();
        assert_eq!(paths, ["/", "/dev", "/data", "/etc/hosts"]);
    }

    #[test]
    fn f09_a_mount_that_stays_writable_counts_by_what_the_agent_could_do_in_it() {
        let mount = std::env::temp_dir().join(format!("innkeeper-seal-{}", std::process::id()));
        std::fs::create_dir_all(mount.join("below")).unwrap();
        let me = std::fs::symlink_metadata(&mount).unwrap();
        let somebody = Owner { uid: me.uid() + 1, gid: me.gid() + 1 };
        assert_eq!(place_for(&mount, somebody), None);
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(mount.join("below"), open).unwrap();
        assert_eq!(place_for(&mount, somebody), Some(mount.join("below").display().to_string()));
        assert_eq!(place_for(std::path::Path::new("/dev/null"), somebody), None);
        std::fs::remove_dir_all(mount).unwrap();
    }

    #[test]
    fn a_root_that_is_a_tmpfs_is_sealed_too() {
        let sizes = Sizes { workspace: 1, tmp: 1, home: 1 };
        let agent = Owner { uid: 1000, gid: 1000 };
        let writable = Writable::new(&plan(agent, "/home/claude", sizes), agent);
        let table = MountTable::new(vec![entry("/", "tmpfs", "rw")]);
        assert_eq!(writable.others(&table).len(), 1);
    }
}
