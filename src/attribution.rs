//! Whose socket it is: from a socket's inode to the name of a process that holds it.
//!
//! PID 1 looks, since no worker may read another uid's descriptors. Neither may PID 1, where it lacks CAP_SYS_PTRACE;
//! but a thread whose file-system uid and gid are the agent's may read what the agent itself may (ptrace(2):
//! `PTRACE_MODE_FSCREDS`, and setfsuid(2) is per thread). So there are two threads: one like the agent, without any
//! capability, which never does anything else; and one with PID 1's own rights, for everybody else's sockets.
//!
//! What a process says it is, is hearsay: the agent names its processes as it likes. The name is rendered inert, and no
//! decision depends on it. Looking never follows a path of the agent's, never waits for it (`/proc/PID/cmdline` does, on
//! the process's memory lock, and is not read), and is bounded in time, whatever the number of processes and
//! descriptors: who hides behind very many has no name.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{CWD, Dir, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::report::inert;
use crate::time_share::TimeShare;

/// What who asks waits at most: a client may be waiting for its answer meanwhile.
const PATIENCE: Duration = Duration::from_millis(50);
/// One look at all processes. Some 10,000 descriptors can be read in this time.
const LOOK: Duration = Duration::from_millis(20);
/// Processor time for looks: so much at once, then this share of one processor.
const MOST_LOOKING: Duration = Duration::from_millis(200);
const SHARE_LOOKING: f64 = 0.05;
/// Questions that wait; more are not answered.
const QUESTIONS: usize = 16;
/// Processes that were found last are looked at first.
const REMEMBERED: usize = 4;
/// How often a walk looks at the clock.
const STRIDE: usize = 32;

/// Looks processes up, on threads of its own and within a share of the time.
#[derive(Debug, Clone)]
pub struct Attributor {
    shared: Arc<Shared>,
}

/// Hears why processes have no name.
type Tell = Arc<dyn Fn(&str) + Send + Sync>;

struct Shared {
    uid: u32,
    gid: u32,
    tell: Tell,
    /// Started by the first question, so that a boot does not wait for them.
    threads: OnceLock<Threads>,
}

#[derive(Debug)]
struct Threads {
    like_agent: SyncSender<Question>,
    as_ourselves: SyncSender<Question>,
    /// Whether our own rights reach the agent's processes that even the agent may not read.
    ptrace: bool,
}

#[derive(Debug)]
struct Question {
    uid: Option<u32>,
    inode: u64,
    until: Instant,
    answer: SyncSender<Option<String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Attributor {
    /// `uid`, `gid`: the agent's, whose descriptors are read by taking them as a thread's file-system uid and gid. Both
    /// count: the kernel compares them with all of a process's (`__ptrace_may_access`). `tell` hears if that can't be.
    #[must_use]
    pub fn new(uid: u32, gid: u32, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared { uid, gid, tell: Arc::new(tell), threads: OnceLock::new() }) }
    }

    /// The name of the process that holds the socket with this inode; none if it is gone, or may not be looked at, or
    /// if looking would take too much of the time. Waits for the answer, 50 ms at most.
    #[must_use]
    pub fn process(&self, uid: Option<u32>, inode: u64) -> Option<String> {
        let until = Instant::now() + PATIENCE;
        let ask = |thread: &SyncSender<Question>| {
            let (answer, answered) = sync_channel(1);
            thread.try_send(Question { uid, inode, until, answer }).ok()?;
            answered.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?
        };
        let Shared { uid: agent, gid, tell, threads } = &*self.shared;
        let threads = threads.get_or_init(|| Threads::start(*agent, *gid, tell));
        if uid.is_some_and(|uid| uid != *agent) {
            return ask(&threads.as_ourselves);
        }
        let found = ask(&threads.like_agent);
        if found.is_none() && threads.ptrace { ask(&threads.as_ourselves) } else { found }
    }
}

impl Threads {
    fn start(uid: u32, gid: u32, tell: &Tell) -> Self {
        let ptrace = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap_or(false);
        let heard = Arc::clone(tell);
        let like_agent = start("attribution", tell, move || become_agent(uid, gid, &heard));
        let as_ourselves = start("attribution-own", tell, || true);
        Self { like_agent, as_ourselves, ptrace }
    }
}

/// Starts a thread; where there is none to be had, nobody has a name.
fn start(
    name: &'static str,
    tell: &Tell,
    prepare: impl FnOnce() -> bool + Send + 'static,
) -> SyncSender<Question> {
    let (questions, asked) = sync_channel(QUESTIONS);
    let run = move || {
        if prepare() {
            answer(&asked);
        }
    };
    if let Err(error) = crate::supervisor::thread(name, run) {
        tell(&format!("no process behind a refused packet will have a name: {error}"));
    }
    questions
}

/// This thread's rights from here on: what the agent may read, and no capability. Whether it is so.
fn become_agent(uid: u32, gid: u32, tell: &Tell) -> bool {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    let none = CapsHashSet::new();
    let dropped = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
        .into_iter()
        .all(|set| caps::set(None, set, &none).is_ok());
    // They return no error; an id that can't be taken asks for the one that is there (setfsuid(2)).
    let taken = setfsuid(Uid::from_raw(u32::MAX)) == uid && setfsgid(Gid::from_raw(u32::MAX)) == gid;
    if !(dropped && taken) {
        tell(
            "cannot take the agent's file-system uid: the agent's processes behind refused packets have no name",
        );
    }
    dropped && taken
}

fn answer(questions: &Receiver<Question>) {
    let mut share = TimeShare::new(MOST_LOOKING, SHARE_LOOKING, Instant::now());
    let mut known = Vec::new();
    while let Ok(question) = questions.recv() {
        let now = Instant::now();
        let found = if now < question.until && share.may(now) {
            let began = cpu_time();
            let found = look(&question, now + LOOK, &mut known);
            share.spent(cpu_time().saturating_sub(began));
            found
        } else {
            None
        };
        // Who asked may have stopped waiting.
        question.answer.try_send(found).ok();
    }
}

/// A thread that has to wait for the processor, because of a fork bomb say, has not used it.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

/// A process that vanishes meanwhile, or may not be looked at, is passed over.
fn look(question: &Question, until: Instant, known: &mut Vec<u32>) -> Option<String> {
    let late = || Instant::now() >= until;
    let link = format!("socket:[{}]", question.inode);
    let mut pids = processes(late)?;
    // Newest first: whoever was refused began something, mostly just now.
    pids.sort_unstable_by(|a, b| b.cmp(a));
    let recent = known.clone();
    for pid in recent.iter().chain(&pids) {
        if late() {
            return None;
        }
        let Some(process) = open(CWD, &format!("/proc/{pid}"), OFlags::PATH | OFlags::DIRECTORY) else {
            continue;
        };
        // The directory belongs to the effective uid, dumpable or not (`task_dump_owner`).
        let owner = fstat(&process).map_or(u32::MAX, |stat| stat.st_uid);
        if question.uid.is_some_and(|uid| uid != owner) || !holds(&process, &link, late) {
            continue;
        }
        known.retain(|other| other != pid);
        known.insert(0, *pid);
        known.truncate(REMEMBERED);
        return name(&process);
    }
    None
}

fn processes(late: impl Fn() -> bool) -> Option<Vec<u32>> {
    let mut pids = Vec::new();
    for (count, entry) in std::fs::read_dir("/proc").ok()?.enumerate() {
        if count % STRIDE == 0 && late() {
            return None;
        }
        pids.extend(entry.ok()?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Some(pids)
}

/// Whether one of the process's descriptors leads to this socket. No file can pose as one: its link begins with `/`.
/// Threads that went apart from the others (`CLONE_FILES`) have descriptors that are not listed here.
fn holds(process: &OwnedFd, link: &str, late: impl Fn() -> bool) -> bool {
    let Some(directory) = open(process, "fd", OFlags::RDONLY | OFlags::DIRECTORY) else { return false };
    let Ok(entries) = Dir::read_from(&directory) else { return false };
    let mut buffer = Vec::new();
    for (count, entry) in entries.enumerate() {
        let Ok(entry) = entry else { return false };
        if count % STRIDE == 0 && late() {
            return false;
        }
        match readlinkat(&directory, entry.file_name(), std::mem::take(&mut buffer)) {
            Ok(found) if found.as_bytes() == link.as_bytes() => return true,
            Ok(found) => buffer = found.into_bytes(),
            // Listing takes less than following (`proc_fd_permission`): of this process nothing can be read.
            Err(Errno::ACCESS | Errno::PERM) => return false,
            Err(_) => {}
        }
    }
    false
}

/// Sixteen octets at most (`TASK_COMM_LEN`), of which the last is no longer there; they may be any.
fn name(process: &OwnedFd) -> Option<String> {
    let file = open(process, "comm", OFlags::RDONLY)?;
    let mut octets = [0; 64];
    let length = rustix::io::read(&file, &mut octets).ok()?;
    let text = String::from_utf8_lossy(octets.get(..length).unwrap_or_default());
    let name = inert(text.strip_suffix('\n').unwrap_or(&text));
    (!name.is_empty()).then_some(name)
}

fn open(from: impl std::os::fd::AsFd, path: &str, flags: OFlags) -> Option<OwnedFd> {
    openat(from, path, flags | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        text.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
    }

    #[test]
    fn our_own_socket_leads_to_our_own_name() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let uid = rustix::process::getuid().as_raw();
        let attributor = Attributor::new(uid.wrapping_add(1), uid.wrapping_add(1), |_| {});
        let name = std::fs::read_to_string("/proc/self/comm").unwrap();
        // A look is bounded in time, and this machine may have other work.
        let found = (0..50).find_map(|_| attributor.process(Some(uid), inode(&socket)));
        assert_eq!(found.as_deref(), Some(name.trim_end()));
        assert_eq!(attributor.process(Some(uid), u64::MAX), None);
        assert_eq!(attributor.process(Some(uid ^ 1), inode(&socket)), None, "another uid's it is not");
    }

    #[test]
    fn a_look_ends_at_its_time() {
        let (answer, _answered) = sync_channel(1);
        let now = Instant::now();
        let question = Question { uid: None, inode: 1, until: now, answer };
        assert_eq!(look(&question, now, &mut Vec::new()), None);
    }
}
