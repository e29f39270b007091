//! What is known on the host of its embedded boxes: a directory each below `/run/innkeeper-engine`, root's alone.
//!
//! A record is written before the first effect, so that whatever a killed keeper left can be found and removed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Where the records are; gone with the next boot of the host, like all that they tell of.
pub const DIRECTORY: &str = "/run/innkeeper-engine";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} belongs to somebody else than root: remove it")]
    Foreign { path: PathBuf },
    #[error("the record {path} is damaged: end its box if it runs, then remove that directory")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// A process that can't be mistaken for a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since the host's boot (proc_pid_stat(5)).
    pub started: u64,
}

impl Process {
    /// `None` if there is none of this number.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        (stat.state != 'Z').then_some(Self { pid, started: stat.starttime })
    }

    #[must_use]
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// One box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub keeper: Process,
    /// The first process of the box, once there is one.
    pub guest: Option<Process>,
    pub since: String,
    pub base: u32,
    pub interface: String,
    pub table: String,
    pub guest4: Ipv4Addr,
}

/// The records, while nobody else changes them.
#[derive(Debug)]
pub struct Desk {
    _lock: File,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { what, path: path.to_owned(), source }
}

/// Where this box's files are.
#[must_use]
pub fn directory(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

const RECORD: &str = "box.json";
/// What `net.ipv4.ip_forward` was before the first box changed it.
const FORWARDING: &str = ".ip_forward";

impl Desk {
    /// Waits until nobody else is at it.
    pub fn open() -> Result<Self, StateError> {
        let top = Path::new(DIRECTORY);
        match DirBuilder::new().mode(0o700).create(top) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", top)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let metadata = fs::symlink_metadata(top).map_err(failed("look at", top))?;
        if metadata.uid() != 0 || !metadata.is_dir() || metadata.mode() & 0o077 != 0 {
            return Err(StateError::Foreign { path: top.to_owned() });
        }
        let path = top.join(".lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed("lock", &path)(error.into()))?;
        Ok(Self { _lock: lock })
    }

    /// Every record, by name. One that can't be read may stand for a box that lives, so nothing goes on beside it.
    pub fn records(&self) -> Result<Vec<Record>, StateError> {
        let top = Path::new(DIRECTORY);
        let mut found = Vec::new();
        for entry in fs::read_dir(top).map_err(failed("read", top))?.flatten() {
            let path = entry.path().join(RECORD);
            if !path.is_file() {
                continue;
            }
            let text = fs::read(&path).map_err(failed("read", &path))?;
            found.push(serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })?);
        }
        found.sort_by(|one: &Record, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Writes it, new or again, whole or not at all.
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        let place = directory(&record.name);
        match DirBuilder::new().mode(0o700).create(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &place)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let stage = place.join("root");
        match DirBuilder::new().mode(0o700).create(&stage) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", &stage)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let (path, temporary) = (place.join(RECORD), place.join("box.json.new"));
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| StateError::Damaged { path: path.clone(), source })?;
        let written = File::create(&temporary).and_then(|mut file| file.write_all(&text));
        written.and_then(|()| fs::rename(&temporary, &path)).map_err(failed("write", &path))
    }

    /// Forgets the box, once all that it tells of is gone.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let place = directory(name);
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &place)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Remembers what forwarding was.
    pub fn remember_forwarding(&self, former: &str) -> Result<(), StateError> {
        let path = Path::new(DIRECTORY).join(FORWARDING);
        fs::write(&path, former).map_err(failed("write", &path))
    }

    /// What is to be restored, and forgets it.
    #[must_use]
    pub fn take_forwarding(&self) -> Option<String> {
        let path = Path::new(DIRECTORY).join(FORWARDING);
        let former = fs::read_to_string(&path).ok()?;
        fs::remove_file(&path).ok()?;
        Some(former)
    }
}
