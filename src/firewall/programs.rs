//! The image's iptables programs: what they are to do as a job, and who does it.
//!
//! In PID 1 nobody may wait for a child, so the firewall's thread has the job done by a hidden subcommand of this binary
//! ([`Supervised`]): JSON on its standard input, JSON back. Tests and `doctor` do the same in their own process
//! ([`Direct`]).

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::iptables::listing::{Listing, compose};
use super::iptables::render::Body;
use super::ruleset::Family;
use crate::supervisor::{Launch, Spawner, Stream};

/// Which of its two kernel interfaces iptables speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    Nft,
    Legacy,
}

/// What is to be done, family by family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Puts our part of the tables in the place of what of ours is there, and reads it back. Without bodies: takes all
    /// of ours away.
    Load(Variant, Vec<(Family, Vec<Body>)>),
    /// Reads the tables that we have something in, or may have.
    Read(Variant, Vec<Family>),
    /// Texts for `iptables-restore`, each by itself: the next also where one fails.
    Restore(Variant, Vec<(Family, String)>),
}

/// What one family's, or one text's, part of the job came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub family: Family,
    /// Each table that was read: its name and what `iptables -v -S` said.
    pub tables: Vec<(String, String)>,
    pub failure: Option<Failure>,
}

/// Why a program did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// There is no such program.
    pub missing: bool,
    /// What it said, with the line of the text that it is about.
    pub said: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    #[error("cannot write down what iptables is to do")]
    Write(#[source] std::io::Error),
    #[error("cannot start what runs iptables")]
    Start(#[source] crate::supervisor::SupervisorError),
    #[error("what runs iptables gave no answer: {0}")]
    Answer(String),
}

/// Who has jobs done.
pub trait Programs: Send + Sync + std::fmt::Debug {
    fn perform(&self, job: &Job) -> Result<Vec<Answer>, ProgramsError>;
}

/// In this process, and in the network namespace of the calling thread. Never in PID 1 beside its reaper.
#[derive(Debug, Clone, Copy)]
pub struct Direct;

impl Programs for Direct {
    fn perform(&self, job: &Job) -> Result<Vec<Answer>, ProgramsError> {
        Ok(perform(job))
    }
}

/// By a child of PID 1's, which its one reaper waits for.
#[derive(Debug)]
pub struct Supervised {
    spawner: Spawner,
}

impl Supervised {
    #[must_use]
    pub fn new(spawner: Spawner) -> Self {
        Self { spawner }
    }
}

/// Its programs wait at most [`LOCK`] for the lock, one after the other.
const LIMIT: Duration = Duration::from_secs(30);
/// A listing of as many pairs as the book knows.
const MAX_ANSWER: u64 = 256 << 20;

impl Programs for Supervised {
    fn perform(&self, job: &Job) -> Result<Vec<Answer>, ProgramsError> {
        let text = serde_json::to_vec(job).map_err(|error| ProgramsError::Write(error.into()))?;
        let write = |error: rustix::io::Errno| ProgramsError::Write(error.into());
        let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC).map_err(write)?);
        file.write_all(&text).and_then(|()| file.rewind()).map_err(ProgramsError::Write)?;
        let launch = Launch { stdin: Stream::Fd(file.into()), ..Launch::own("tables", None) };
        let said = self.spawner.listen(launch, LIMIT, MAX_ANSWER).map_err(ProgramsError::Start)?;
        serde_json::from_str(&said.text)
            .map_err(|_| ProgramsError::Answer(crate::report::bounded(&said.text, 200)))
    }
}

/// The hidden subcommand: a job from standard input, what came of it as text.
pub fn run() -> Result<String, ProgramsError> {
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text).map_err(ProgramsError::Write)?;
    let job = serde_json::from_str(&text).map_err(|error| ProgramsError::Answer(error.to_string()))?;
    serde_json::to_string(&perform(&job)).map_err(|error| ProgramsError::Answer(error.to_string()))
}

/// Both families at once: they share nothing but, in the legacy variant, a lock.
fn perform(job: &Job) -> Vec<Answer> {
    match job {
        Job::Load(variant, families) => {
            at_once(families, |(family, bodies)| (*family, load(*variant, *family, bodies)))
        }
        Job::Read(variant, families) => at_once(families, |family| (*family, tables(*variant, *family, &[]))),
        Job::Restore(variant, texts) => texts
            .iter()
            .map(|(family, text)| answer(*family, restore(*variant, *family, text).map(|()| Vec::new())))
            .collect(),
    }
}

type Tables = Vec<(String, String)>;

fn answer(family: Family, outcome: Result<Tables, Failure>) -> Answer {
    match outcome {
        Ok(tables) => Answer { family, tables, failure: None },
        Err(failure) => Answer { family, tables: Vec::new(), failure: Some(failure) },
    }
}

fn at_once<T: Sync>(
    parts: &[T],
    work: impl Fn(&T) -> (Family, Result<Tables, Failure>) + Sync,
) -> Vec<Answer> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(move || work(part))).collect();
        let answers = threads.into_iter().filter_map(|thread| thread.join().ok());
        answers.map(|(family, outcome)| answer(family, outcome)).collect()
    })
}

fn load(variant: Variant, family: Family, bodies: &[Body]) -> Result<Tables, Failure> {
    let wanted: Vec<&str> = bodies.iter().map(|body| body.table.as_str()).collect();
    let present: Vec<Listing> =
        tables(variant, family, &wanted)?.iter().map(|(table, text)| Listing::read(table, text)).collect();
    let text = compose(bodies, &present);
    if !text.is_empty() {
        restore(variant, family, &text)?;
    }
    tables(variant, family, &wanted)
}

/// The tables that can hold something of ours.
const TABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// Reads by the crate `iptables`, which reads one table at a time. The legacy variant makes a table by looking at it, so
/// only those are looked at that are there, or that we are about to use.
fn tables(variant: Variant, family: Family, wanted: &[&str]) -> Result<Tables, Failure> {
    let there = match variant {
        Variant::Nft => None,
        Variant::Legacy => {
            let path = match family {
                Family::V4 => "/proc/thread-self/net/ip_tables_names",
                Family::V6 => "/proc/thread-self/net/ip6_tables_names",
            };
            Some(std::fs::read_to_string(path).unwrap_or_default())
        }
    };
    let there = |table: &str| there.as_ref().is_none_or(|names| names.lines().any(|name| name == table));
    let mut listed = Tables::new();
    for table in TABLES {
        if !wanted.contains(&table) && !there(table) {
            continue;
        }
        match list(variant, family, table) {
            Ok(text) => listed.push((table.to_owned(), text)),
            // A kernel without NAT has no such table, and nothing of ours in it.
            Err(failure) if failure.missing || wanted.contains(&table) || table == "filter" => {
                return Err(failure);
            }
            Err(_) => {}
        }
    }
    Ok(listed)
}

/// Seconds that a program waits for another one's lock on the legacy tables.
const LOCK: &str = "5";

fn list(variant: Variant, family: Family, table: &str) -> Result<String, Failure> {
    let cmd = find(variant, family, Tool::List)?;
    let tables = iptables::IPTables { cmd, has_check: true, has_wait: false, is_numeric: false };
    let output = tables
        .execute(table, &format!("-w {LOCK} -v -S"))
        .map_err(|error| Failure { missing: false, said: format!("{cmd}: {error}") })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure { missing: false, said: said(&output.stderr) })
}

#[expect(clippy::disallowed_methods, reason = "not in PID 1: no reaper runs in this process")]
fn restore(variant: Variant, family: Family, text: &str) -> Result<(), Failure> {
    let program = find(variant, family, Tool::Restore)?;
    let failed = |error: std::io::Error| Failure { missing: false, said: format!("{program}: {error}") };
    let mut child = Command::new(program)
        .args(["--noflush", "--wait", LOCK])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // What it did not want to read it says itself.
        input.write_all(text.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = said(&output.stderr);
    // "line 7 failed" in the one variant, "at line: 7" in the other.
    let line = said.rsplit("line").next().and_then(|rest| {
        let rest = rest.trim_start_matches([':', ' ']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        text.lines().nth(digits.parse::<usize>().ok()?.checked_sub(1)?)
    });
    let said = line.map_or_else(|| said.clone(), |line| format!("{said} ({line})"));
    Err(Failure { missing: false, said })
}

fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    crate::report::bounded(&lines.join("; "), 400)
}

#[derive(Debug, Clone, Copy)]
enum Tool {
    List,
    Restore,
}

/// The places where distributions put them, and nowhere else.
macro_rules! places {
    ($name:literal) => {
        [
            concat!("/usr/sbin/", $name),
            concat!("/sbin/", $name),
            concat!("/usr/bin/", $name),
            concat!("/bin/", $name),
        ]
    };
}

/// The program of this variant; where only one without a variant's name is installed, that one if it is of this variant.
fn find(variant: Variant, family: Family, tool: Tool) -> Result<&'static str, Failure> {
    let (named, plain) = match (variant, family, tool) {
        (Variant::Nft, Family::V4, Tool::List) => (places!("iptables-nft"), places!("iptables")),
        (Variant::Nft, Family::V6, Tool::List) => (places!("ip6tables-nft"), places!("ip6tables")),
        (Variant::Nft, Family::V4, Tool::Restore) => {
            (places!("iptables-nft-restore"), places!("iptables-restore"))
        }
        (Variant::Nft, Family::V6, Tool::Restore) => {
            (places!("ip6tables-nft-restore"), places!("ip6tables-restore"))
        }
        (Variant::Legacy, Family::V4, Tool::List) => (places!("iptables-legacy"), places!("iptables")),
        (Variant::Legacy, Family::V6, Tool::List) => (places!("ip6tables-legacy"), places!("ip6tables")),
        (Variant::Legacy, Family::V4, Tool::Restore) => {
            (places!("iptables-legacy-restore"), places!("iptables-restore"))
        }
        (Variant::Legacy, Family::V6, Tool::Restore) => {
            (places!("ip6tables-legacy-restore"), places!("ip6tables-restore"))
        }
    };
    let exists = |path: &&'static str| Path::new(path).exists();
    let [first, ..] = named;
    named
        .into_iter()
        .find(exists)
        .or_else(|| plain.into_iter().find(exists).filter(|path| speaks(path) == Some(variant)))
        .ok_or_else(|| Failure { missing: true, said: format!("there is no program {first}") })
}

/// The variant of a program, as its version says; those before 1.8 are all legacy and don't say.
#[expect(clippy::disallowed_methods, reason = "not in PID 1: no reaper runs in this process")]
fn speaks(path: &str) -> Option<Variant> {
    let output = Command::new(path).arg("--version").env_clear().output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(if text.contains("(nf_tables)") { Variant::Nft } else { Variant::Legacy })
}
