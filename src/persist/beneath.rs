//! Files and directories below one that was opened, and nowhere else: no link is followed, no step leads up, and what is
//! opened is a regular file.
//!
//! openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS has the kernel look, so that nothing can be exchanged between
//! a look and its use. This runs as the agent: it keeps what is restored where it belongs, and the child from waiting on
//! a FIFO for ever.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::path::RelPath;

const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

/// What is in a directory, without what was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: FileType,
}

impl Directory {
    /// A directory whose path nobody but root and ourselves decides.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn open_below(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            match rustix::fs::openat2(&self.0, path, flags, mode, RESOLVE) {
                // Something was renamed at the same time (openat2(2)).
                Err(Errno::AGAIN) => {}
                // A sandbox kernel or an old seccomp profile: the same, step by step.
                Err(Errno::NOSYS | Errno::PERM) => return self.step_by_step(path, flags, mode),
                done => return Ok(done?),
            }
        }
    }

    /// The same without openat2(2): every step is opened for itself, and none may be a link.
    fn step_by_step(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = self.0.try_clone()?;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if matches!(part, "" | "..") {
                return Err(Errno::XDEV.into());
            }
            let (flags, mode) = if parts.peek().is_some() { (step, Mode::empty()) } else { (flags, mode) };
            at = rustix::fs::openat(&at, part, flags, mode)?;
        }
        Ok(at)
    }

    /// A directory below this one.
    pub fn below(&self, path: &RelPath) -> io::Result<Self> {
        self.open_below(path.as_str(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(Self)
    }

    /// The same by a name of ours.
    pub fn named(&self, name: &str) -> io::Result<Self> {
        self.open_below(name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(Self)
    }

    /// A directory below this one; what of it is not there is made.
    pub fn make(&self, parts: &[&str]) -> io::Result<Self> {
        let mut at = Self(self.0.try_clone()?);
        for part in parts {
            match rustix::fs::mkdirat(&at.0, *part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = at.named(part)?;
        }
        Ok(at)
    }

    /// Opens a regular file to read it, and says what it is. Without O_NONBLOCK a FIFO would wait for its writer.
    pub fn read(&self, path: &str) -> io::Result<(File, Stat)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_below(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok((File::from(file), stat))
    }

    /// A small file, whole; a larger one is an error.
    pub fn read_whole(&self, path: &str, most: u64) -> io::Result<Vec<u8>> {
        let (file, _) = self.read(path)?;
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
            return Err(io::Error::other("it is too large"));
        }
        Ok(bytes)
    }

    /// Makes a new file; nothing may be there. Never setuid, setgid or sticky.
    pub fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.open_below(name, flags, Mode::from_raw_mode(mode & 0o777))?))
    }

    /// What is at this name, not followed.
    pub fn look(&self, name: &str) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file, a link or whatever else is no directory. What is not there is no error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    pub fn rename(&self, from: &str, to: &Self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &to.0, name)?)
    }

    /// The target of a link that is here.
    pub fn link_target(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes())
    }

    /// Its entries by name, at most so many; names that are no text are left out.
    pub fn entries(&self, most: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            if entries.len() == most {
                break;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    self.look(name)?.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
                }
                known => known,
            };
            entries.push(Entry { name: name.to_owned(), kind });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// What is written in it survives a power cut.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// The same for everything on its file system.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Directory;
    use crate::persist::path::RelPath;
    use rustix::fs::{Mode, OFlags};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn path(text: &str) -> RelPath {
        RelPath::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn t206_nothing_is_followed_and_nothing_but_files_is_opened() {
        let base = std::env::temp_dir().join(format!("innkeeper-beneath-{}", std::process::id()));
        drop(fs::remove_dir_all(&base));
        let inside = base.join("inside");
        fs::create_dir_all(inside.join("real")).unwrap();
        fs::write(base.join("secret"), "secret").unwrap();
        fs::write(inside.join("real/file"), "content").unwrap();
        symlink("../secret", inside.join("link")).unwrap();
        symlink("real", inside.join("directory")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        nix::unistd::mkfifo(&inside.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let directory = Directory::open(&inside).unwrap();
        assert_eq!(directory.read_whole("real/file", 100).unwrap(), b"content");
        assert!(directory.read_whole("real/file", 3).is_err(), "more than was allowed");
        for odd in
            ["link", "directory/file", "up/secret", "../secret", "/etc/passwd", "fifo", "real", "absent"]
        {
            assert!(directory.read(odd).is_err(), "{odd} was opened");
            let (flags, none) = (OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty());
            let other = directory.step_by_step(odd, flags, none);
            assert!(other.is_err() || matches!(odd, "fifo" | "real"), "{odd} was opened step by step");
        }
        assert!(directory.below(&path("directory")).is_err() && directory.below(&path("up")).is_err());
        assert!(directory.make(&["up", "x"]).is_err() && directory.make(&["directory", "x"]).is_err());
        assert!(
            directory.create("link", 0o644).is_err() && directory.create("directory/new", 0o644).is_err()
        );
        assert!(Directory::open(&inside.join("directory")).is_err());
        drop(directory.create("setuid", 0o6755).unwrap());
        assert_eq!(fs::metadata(inside.join("setuid")).unwrap().permissions().mode() & 0o7000, 0);
        assert_eq!(fs::read_to_string(base.join("secret")).unwrap(), "secret");
        fs::remove_dir_all(base).unwrap();
    }
}
