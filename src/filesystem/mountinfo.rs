//! The mount table as the kernel shows it in /proc/self/mountinfo (proc_pid_mountinfo(5)), read with procfs.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use procfs::process::Process;

#[derive(Debug, thiserror::Error)]
#[error("cannot read /proc/self/mountinfo")]
pub struct MountTableError(#[from] procfs::ProcError);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    pub path: PathBuf,
    pub fs_type: String,
    /// Per-mount options: `ro`, `nosuid` …; not the superblock's.
    pub options: Vec<String>,
    /// Options of the file system itself: an `ro` here holds for every mount of it.
    pub super_options: Vec<String>,
}

impl MountEntry {
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }

    #[must_use]
    pub fn read_only(&self) -> bool {
        self.has("ro") || self.super_options.iter().any(|have| have == "ro")
    }

    #[must_use]
    pub fn is_tmpfs(&self) -> bool {
        self.fs_type == "tmpfs"
    }

    /// The per-mount flags it has: a bind remount must repeat those that it does not mean to clear, and may not
    /// clear locked ones at all (mount_namespaces(7)).
    #[must_use]
    pub fn flags(&self) -> MsFlags {
        let table = [
            ("ro", MsFlags::MS_RDONLY),
            ("nosuid", MsFlags::MS_NOSUID),
            ("nodev", MsFlags::MS_NODEV),
            ("noexec", MsFlags::MS_NOEXEC),
            ("noatime", MsFlags::MS_NOATIME),
            ("nodiratime", MsFlags::MS_NODIRATIME),
            ("relatime", MsFlags::MS_RELATIME),
        ];
        table.iter().filter(|(name, _)| self.has(name)).map(|(_, flag)| *flag).collect()
    }
}

/// Every mount of this mount namespace, in mount order: a later one hides an earlier one at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountTable(Vec<MountEntry>);

impl MountTable {
    pub fn read() -> Result<Self, MountTableError> {
        let mounts = Process::myself()?.mountinfo()?;
        let entry = |mount: procfs::process::MountInfo| MountEntry {
            path: mount.mount_point,
            fs_type: mount.fs_type,
            options: mount.mount_options.into_keys().collect(),
            super_options: mount.super_options.into_keys().collect(),
        };
        Ok(Self(mounts.into_iter().map(entry).collect()))
    }

    #[must_use]
    pub fn new(entries: Vec<MountEntry>) -> Self {
        Self(entries)
    }

    /// The visible mount whose mount point is exactly this path.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&MountEntry> {
        self.0.iter().rev().find(|entry| entry.path == path)
    }

    /// The mount in which this path lies.
    #[must_use]
    pub fn covering(&self, path: &Path) -> Option<&MountEntry> {
        path.ancestors().find_map(|ancestor| self.at(ancestor))
    }

    /// The visible mounts: of several at one path only the last.
    pub fn visible(&self) -> impl Iterator<Item = &MountEntry> {
        self.0.iter().enumerate().filter_map(|(index, entry)| {
            let hidden = self.0.iter().skip(index + 1).any(|later| later.path == entry.path);
            (!hidden).then_some(entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{MountEntry, MountTable};
    use std::path::Path;

    fn entry(path: &str, fs_type: &str, options: &[&str]) -> MountEntry {
        MountEntry {
            path: path.into(),
            fs_type: fs_type.into(),
            options: options.iter().map(|s| (*s).to_owned()).collect(),
            super_options: Vec::new(),
        }
    }

    #[test]
    fn the_last_mount_at_a_path_is_the_visible_one() {
        let table = MountTable::new(vec![
            entry("/", "overlay", &["rw"]),
            entry("/tmp", "tmpfs", &["rw"]),
            entry("/tmp", "ext4", &["ro"]),
        ]);
        assert_eq!(table.at(Path::new("/tmp")).unwrap().fs_type, "ext4");
        assert_eq!(table.visible().count(), 2);
        assert_eq!(table.covering(Path::new("/tmp/a/b")).unwrap().fs_type, "ext4");
        assert_eq!(table.covering(Path::new("/usr/bin")).unwrap().fs_type, "overlay");
    }
}
