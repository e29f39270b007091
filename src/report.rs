//! The only user of standard error in the box: event lines, error chains, and the table of exit statuses.
//!
//! PID 1 never waits for whoever reads its standard error: lines go through a bounded queue to a thread of their
//! own, and what does not fit is counted and said later.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use crate::audit::chain::Chain;
use crate::audit::{self, Entry};

mod words;

pub use words::{chain, exit, inert};

/// How event lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();
static JSON: AtomicBool = AtomicBool::new(false);
/// The console shows the session: text lines would tear its screen.
static QUIET: AtomicBool = AtomicBool::new(false);
static DROPPED: AtomicU64 = AtomicU64::new(0);

const QUEUE_LINES: usize = 1024;

enum Line {
    /// As it stands.
    Text(String),
    /// An object of a stream of JSON lines, which it becomes a link of when it is written.
    Object(String),
}

enum Message {
    Line(Line),
    /// Everything before it has been written when this end is dropped.
    Flush(SyncSender<()>),
}

/// From now on lines go through the queue, in this format. Before it they are written directly.
pub fn begin(format: Format) {
    JSON.store(format == Format::Json, Ordering::Relaxed);
    let (sender, receiver) = sync_channel(QUEUE_LINES);
    // Without a thread nobody would read the queue: then lines are written directly, as before.
    let writer = std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&receiver));
    if writer.is_ok() {
        QUEUE.set(sender).ok();
    }
}

fn write_lines(receiver: &Receiver<Message>) {
    while let Ok(message) = receiver.recv() {
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let told = format!("{dropped} lines were dropped: standard error was blocked");
            write_line(render("log", &told, &audit::note("log", &told)));
        }
        match message {
            Message::Line(line) => write_line(line),
            Message::Flush(done) => drop(done),
        }
    }
}

static CHAIN: Mutex<Option<Chain>> = Mutex::new(None);

fn write_line(line: Line) {
    // A closed standard error is the reader's choice; enforcement goes on without it.
    match line {
        Line::Text(text) => drop(std::io::stderr().lock().write_all(text.as_bytes())),
        Line::Object(object) => {
            let mut chain = CHAIN.lock().unwrap_or_else(PoisonError::into_inner);
            let chain = chain.get_or_insert_default();
            let line = chain.link(&object, audit::box_id());
            chain.advance(&line);
            drop(std::io::stderr().lock().write_all((line + "\n").as_bytes()));
        }
    }
}

/// The end of the log: the last counts, then the reason for the end, as the last line everywhere. A reader that does not
/// read does not hold it up for longer than [`END_LIMIT`].
pub fn end(reason: impl FnOnce()) {
    let deadline = Instant::now() + END_LIMIT;
    audit::close(deadline);
    // The few lines that come last find places.
    flush(deadline);
    reason();
    flush(Instant::now() + FLUSH_LIMIT);
}

/// Waits until everything is written that was said so far, but not beyond `deadline`.
fn flush(deadline: Instant) {
    audit::file::flush(deadline);
    let Some(queue) = QUEUE.get() else { return };
    let (done, ended) = sync_channel::<()>(0);
    if send_until(queue, Message::Flush(done), deadline) {
        ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    }
}

/// Sends as soon as there is room; false if there is none until `deadline`.
pub(crate) fn send_until<T>(queue: &SyncSender<T>, mut message: T, deadline: Instant) -> bool {
    loop {
        match queue.try_send(message) {
            Ok(()) => return true,
            Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => return false,
        }
        crate::supervisor::backoff::pause(Duration::from_millis(1));
    }
}

/// For up to some two thousand last counts.
const END_LIMIT: Duration = Duration::from_millis(700);
const FLUSH_LIMIT: Duration = Duration::from_millis(300);

/// While the console shows the session, text lines would damage its screen.
pub fn quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// One event. `source` names the room, `message` says what happened; both inert. Rooms whose events the agent can
/// cause at will are bounded: the log is the host's disk.
pub fn event(source: &'static str, message: &str) {
    match take_place(source) {
        None => {}
        Some(0) => tell(source, message),
        Some(count) => {
            tell(source, &format!("{count} more lines were left out: too many at a time"));
            tell(source, message);
        }
    }
}

/// Into the audit log, and to standard error unless that shows the session.
fn tell(source: &str, message: &str) {
    let entry = audit::note(source, message);
    audit::file::add(&entry);
    if JSON.load(Ordering::Relaxed) || !QUIET.load(Ordering::Relaxed) {
        emit(render(source, message, &entry));
    }
}

/// An entry of the audit log that is no plain event: a line of the file and of JSON; else `text`, if it is for people.
/// `kind` has its own bound: the agent causes refusals and uses at will. Returns whether it was within that.
pub fn entry(kind: &'static str, entry: &Entry, text: Option<&str>) -> bool {
    let line = match text {
        _ if JSON.load(Ordering::Relaxed) => Some(object(entry)),
        Some(text) if !QUIET.load(Ordering::Relaxed) => Some(render(kind, text, entry)),
        Some(_) | None => None,
    };
    if line.is_none() && !audit::file::is_open() {
        return true;
    }
    // People are no flood, and what they did is never left out.
    let place = if entry.what.is_of_people() { Some(0) } else { take_place(kind) };
    let Some(left_out) = place else { return false };
    if left_out > 0 {
        tell("log", &format!("{left_out} lines about {kind} were left out: too many at a time"));
    }
    audit::file::add(entry);
    if let Some(line) = line {
        emit(line);
    }
    true
}

/// The last state of what goes on to be counted, when the box ends.
pub fn last(entry: &Entry, deadline: Instant) {
    audit::file::add_at_end(entry, deadline);
    let Some(queue) = QUEUE.get().filter(|_| JSON.load(Ordering::Relaxed)) else { return };
    if !send_until(queue, Message::Line(object(entry)), deadline) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn object(entry: &Entry) -> Line {
    Line::Object(serde_json::to_string(entry).unwrap_or_default())
}

static BUCKETS: Mutex<BTreeMap<&'static str, Bucket>> = Mutex::new(BTreeMap::new());

/// Whether this room may write a line now, and how many were left out before it.
fn take_place(room: &'static str) -> Option<u64> {
    let now = Instant::now();
    let mut buckets = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    buckets.entry(room).or_insert_with(|| Bucket::new(now)).take(now)
}

/// Lines of one room at once, and after that per second.
const BURST: f64 = 50.0;
const PER_SECOND: f64 = 0.5;

struct Bucket {
    lines: f64,
    at: Instant,
    left_out: u64,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, at: now, left_out: 0 }
    }

    /// Whether a line may be written, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.lines = (self.lines + passed * PER_SECOND).min(BURST);
        self.at = now;
        if self.lines < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Like [`event`], but also while the console shows the session: the reason for the end.
pub fn last_words(source: &str, message: &str) {
    let entry = audit::note(source, message);
    audit::file::add(&entry);
    emit(render(source, message, &entry));
}

fn emit(line: Line) {
    let Some(queue) = QUEUE.get() else { return write_line(line) };
    if let Err(TrySendError::Full(_)) = queue.try_send(Message::Line(line)) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// What happened as standard error has it: in JSON the entry, else lines for people.
fn render(source: &str, message: &str, entry: &Entry) -> Line {
    if JSON.load(Ordering::Relaxed) {
        return object(entry);
    }
    let mut text = String::new();
    for line in message.lines() {
        // CR too: the console may be a terminal in raw mode.
        write!(text, "innkeeper: {source}: {}\r\n", inert(line)).ok();
    }
    Line::Text(text)
}

/// The time in RFC 3339, to the millisecond.
#[must_use]
pub fn now() -> String {
    time(SystemTime::now())
}

#[must_use]
pub fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// What our own clock (CLOCK_BOOTTIME) calls `at`, by the wall's clock as it stands now.
#[must_use]
pub fn moment(at: Duration, now: Duration, wall: SystemTime) -> String {
    let shown = if at < now { wall.checked_sub(now - at) } else { wall.checked_add(at - now) };
    time(shown.unwrap_or(wall))
}

/// Octets as hexadecimal digits.
#[must_use]
pub fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// A text's SHA-256, by which it can be named without being shown.
#[must_use]
pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// A text from outside as people and streams may have it: bounded, then inert.
#[must_use]
pub fn harmless(text: &str, characters: usize) -> String {
    inert(&bounded(text, characters))
}

/// Bounds a text from outside; cut at a character, with a mark.
#[must_use]
pub fn bounded(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Bucket, bounded, inert};
    use std::time::{Duration, Instant};

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        let written = (0..10_000).filter(|_| bucket.take(now).is_some()).count();
        assert_eq!(written, 50);
        assert_eq!(bucket.take(now + Duration::from_secs(2)), Some(9_950));
        assert_eq!(bucket.take(now + Duration::from_secs(2)), None);
    }

    #[test]
    fn text_from_outside_is_inert() {
        assert_eq!(inert("a\x1b]0;pwned\x07b"), "a\\u{1b}]0;pwned\\u{7}b");
        assert_eq!(inert("line\r\nfeed"), "line\\u{d}\\u{a}feed");
        assert_eq!(inert("\u{202e}txt.exe"), "\\u{202e}txt.exe");
        assert_eq!(inert("plain ünïcode"), "plain ünïcode");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(bounded("ü123", 2), "ü1…");
        assert_eq!(bounded("ü1", 2), "ü1");
    }
}
