//! The audit log on a volume: lines are added by a thread of their own, and nobody waits for it.
//!
//! The file is root's, in directories that only root can write, on a file system of its own: the agent never gets there
//! (`prerequisites::log_file` sees to that before the boot, the self-attack afterwards). A box that begins goes on
//! after the last line of the one before it. What can't be written is counted and said in the next line that can.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2, renameat};
use rustix::io::Errno;

use super::chain::Chain;
use super::event::Entry;
use crate::report;
use crate::status::report::Audit;

#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    #[error("{0} is no absolute path of a file")]
    Path(PathBuf),
    #[error("cannot open the directory {path} without following links")]
    Directory { path: PathBuf, source: Errno },
    #[error("cannot open the audit log {path}")]
    Open { path: PathBuf, source: Errno },
    #[error("the audit log {path} is {what}")]
    Kind { path: PathBuf, what: &'static str },
    #[error("another box writes the audit log {path}")]
    Shared { path: PathBuf },
    #[error("cannot read the end of the audit log {path}")]
    Read { path: PathBuf, source: std::io::Error },
}

/// Lines that wait to be written.
const QUEUE: usize = 256;
/// The longest line that is looked for at the end of an older log.
const MAX_LINE: u64 = 1 << 20;
/// After this without a new line what was written is on the disk.
const SETTLE: Duration = Duration::from_secs(1);

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    directory: OwnedFd,
    name: String,
    file: File,
    /// Octets of whole lines.
    length: u64,
    limit: u64,
    chain: Chain,
}

impl LogFile {
    /// Opens or makes it. No part of the path may be a link.
    pub fn open(path: &Path, limit: u64) -> Result<Self, LogFileError> {
        let wrong = || LogFileError::Path(path.to_owned());
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?.to_owned();
        let parent = path.parent().filter(|_| path.is_absolute()).ok_or_else(wrong)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = openat2(rustix::fs::CWD, parent, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
            .map_err(|source| LogFileError::Directory { path: parent.to_owned(), source })?;
        let file = open_in(&directory, &name)
            .map_err(|source| LogFileError::Open { path: path.to_owned(), source })?;
        let mut log =
            Self { path: path.to_owned(), directory, name, file, length: 0, limit, chain: Chain::default() };
        log.take_over()?;
        Ok(log)
    }

    /// Sees that it is nobody else's, and goes on after its last line.
    fn take_over(&mut self) -> Result<(), LogFileError> {
        let read = |source| LogFileError::Read { path: self.path.clone(), source };
        let metadata = self.file.metadata().map_err(read)?;
        let kind = |what| Err(LogFileError::Kind { path: self.path.clone(), what });
        match () {
            () if !metadata.is_file() => return kind("no regular file"),
            () if metadata.uid() != 0 => return kind("not root's"),
            () if metadata.mode() & 0o022 != 0 => return kind("writable for others than root"),
            () if metadata.nlink() != 1 => return kind("a file with a second name (a hard link)"),
            () => {}
        }
        if flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(LogFileError::Shared { path: self.path.clone() });
        }
        self.length = metadata.len();
        let tail = self.length.min(MAX_LINE);
        let mut end = Vec::new();
        self.file.seek(SeekFrom::Start(self.length - tail)).map_err(read)?;
        (&self.file).take(tail).read_to_end(&mut end).map_err(read)?;
        if !end.is_empty() && end.last() != Some(&b'\n') {
            // A machine that lost its power in mid-line: the rest stays as it is, and the next line names its hash.
            self.file.write_all(b"\n").map_err(read)?;
            self.length += 1;
            end.push(b'\n');
        }
        if let Some(whole) = end.strip_suffix(b"\n") {
            let last = whole.rsplit(|octet| *octet == b'\n').next().unwrap_or_default();
            self.chain = Chain::after(last);
        }
        Ok(())
    }

    /// Adds a line as a whole, or not at all.
    fn add(&mut self, object: &str) -> std::io::Result<()> {
        let mut line = self.chain.link(object, super::box_id());
        if self.length > 0 && self.length + line.len() as u64 + 1 > self.limit {
            self.turn_over()?;
        }
        line.push('\n');
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line of a full disk is taken back; a disk that can't do that either keeps it.
            self.file.set_len(self.length).ok();
            return Err(error);
        }
        self.length += line.len() as u64;
        self.chain.advance(line.trim_end_matches('\n'));
        Ok(())
    }

    /// The full file becomes `NAME.1` in place of the one before; the chain goes on in a new one.
    fn turn_over(&mut self) -> std::io::Result<()> {
        let former = format!("{}.1", self.name);
        match renameat(&self.directory, &self.name, &self.directory, former) {
            // It has its other name already: a turn before this one had no room for a new file.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        self.file = open_in(&self.directory, &self.name)?;
        self.length = 0;
        // Nobody else can be in this directory but a second box, which the first file's lock kept out.
        flock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(())
    }
}

/// Never through a link, never a device that would wait to be opened.
fn open_in(directory: &OwnedFd, name: &str) -> rustix::io::Result<File> {
    let flags = OFlags::CREATE
        | OFlags::APPEND
        | OFlags::RDWR
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    openat2(directory, name, flags, Mode::RUSR | Mode::WUSR, resolve).map(File::from)
}

enum Message {
    Line(String),
    /// Everything before it is on the disk when this end is dropped.
    Flush(SyncSender<()>),
}

struct Sink {
    queue: SyncSender<Message>,
    /// What the log held when the file came: the thread has it.
    begun_at: u64,
}

static SINK: OnceLock<Sink> = OnceLock::new();
static STATE: Mutex<Audit> = Mutex::new(Audit { entries: 0, file: None, head: None, lost: 0, trouble: None });

fn with_state<T>(act: impl FnOnce(&mut Audit) -> T) -> T {
    act(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Starts the thread that writes, beginning with what there is already.
pub(super) fn begin(file: LogFile, backlog: Vec<Entry>, begun_at: u64) -> std::io::Result<()> {
    let (queue, lines) = sync_channel(QUEUE);
    with_state(|state| {
        state.file = Some(file.path.display().to_string());
        state.head = Some(file.chain.head().to_owned());
    });
    std::thread::Builder::new().name("log file".to_owned()).spawn(move || write(file, &backlog, &lines))?;
    SINK.set(Sink { queue, begun_at }).ok();
    Ok(())
}

/// Whether there is a file.
pub(crate) fn is_open() -> bool {
    SINK.get().is_some()
}

/// Adds an entry; one that does not fit into the queue is counted.
pub(crate) fn add(entry: &Entry) {
    let Some(sink) = SINK.get().filter(|sink| entry.seq > sink.begun_at) else { return };
    let line = Message::Line(serde_json::to_string(entry).unwrap_or_default());
    if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sink.queue.try_send(line) {
        with_state(|state| state.lost += 1);
    }
}

/// Adds an entry when the box ends: there is a moment to wait for room, until `deadline`.
pub(crate) fn add_at_end(entry: &Entry, deadline: Instant) {
    let Some(sink) = SINK.get() else { return };
    let line = Message::Line(serde_json::to_string(entry).unwrap_or_default());
    if !report::send_until(&sink.queue, line, deadline) {
        with_state(|state| state.lost += 1);
    }
}

/// Waits until everything is on the disk, but not beyond `deadline`.
pub(crate) fn flush(deadline: Instant) {
    let Some(sink) = SINK.get() else { return };
    let (done, ended) = sync_channel::<()>(0);
    if report::send_until(&sink.queue, Message::Flush(done), deadline) {
        ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    }
}

pub(super) fn state() -> Audit {
    with_state(|state| state.clone())
}

fn write(file: LogFile, backlog: &[Entry], lines: &Receiver<Message>) {
    let mut writer = Writer { file, said: 0, is_dirty: false };
    for entry in backlog {
        writer.line(&serde_json::to_string(entry).unwrap_or_default());
    }
    loop {
        match lines.recv_timeout(SETTLE) {
            Ok(Message::Line(line)) => writer.line(&line),
            Ok(Message::Flush(done)) => {
                writer.tell_lost();
                writer.settle();
                drop(done);
            }
            Err(RecvTimeoutError::Timeout) => writer.settle(),
            Err(RecvTimeoutError::Disconnected) => return writer.settle(),
        }
    }
}

/// The thread's side.
struct Writer {
    file: LogFile,
    /// Lost lines that were told in the file.
    said: u64,
    is_dirty: bool,
}

impl Writer {
    fn line(&mut self, object: &str) {
        self.tell_lost();
        if !self.add(object) {
            with_state(|state| state.lost += 1);
        }
    }

    fn tell_lost(&mut self) {
        let lost = with_state(|state| state.lost);
        if lost > self.said {
            let told = format!("{} lines are missing here: the file was full or slow", lost - self.said);
            let told = super::note("log", &told);
            if self.add(&serde_json::to_string(&told).unwrap_or_default()) {
                self.said = lost;
            }
        }
    }

    fn add(&mut self, object: &str) -> bool {
        let result = self.file.add(object);
        self.is_dirty = true;
        let trouble = result.as_ref().err().map(ToString::to_string);
        let before = with_state(|state| {
            state.head = Some(self.file.chain.head().to_owned());
            std::mem::replace(&mut state.trouble, trouble.clone())
        });
        match (&before, &trouble) {
            (None, Some(error)) => {
                let path = self.file.path.display();
                report::event(
                    "log",
                    &format!("cannot write {path}: {error}; the box goes on, lines are lost"),
                );
            }
            (Some(_), None) => report::event("log", "the audit log's file can be written again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        result.is_ok()
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            // Where it fails the next write will say so.
            self.file.file.sync_data().ok();
        }
    }
}

#[cfg(test)]
mod tests;
