//! Everybody of some users at once: to ask them to end, and to end them for good.
//!
//! As PID 1 that is everybody of them in this pid namespace, `docker exec` included; elsewhere the namespace has others in
//! it (a pod, a host), and only our own descendants count: as child subreaper we are the parent of every orphan of theirs.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::Spawner;
use super::backoff::pause;

/// Signals these users' processes; returns how many there were.
pub fn kill_all(uids: &[u32], signal: impl Into<Option<Signal>>) -> usize {
    let signal = signal.into();
    let theirs = Everybody::look().of(uids);
    theirs.iter().filter(|seen| nix::sys::signal::kill(Pid::from_raw(seen.pid), signal).is_ok()).count()
}

/// A process of a helper's, a save perhaps, is let work so long.
const HELPERS: Duration = Duration::from_secs(6);
/// Nobody outlives SIGKILL for so long but who hangs in the kernel.
const DEATH: Duration = Duration::from_secs(4);
/// A fork bomb stands still after a few rounds.
const STANDSTILL: Duration = Duration::from_secs(2);

/// Ends every process of this user. What PID 1's own helpers do in the user's name is let end by itself for a while: a
/// save of the work, perhaps. Says how many were ended, or how many are left.
///
/// All are stopped before any is killed: a place that a killed process gives back is one that a fork bomb takes. With
/// everybody stopped in it, the table of processes can only shrink.
pub fn end_all(uid: u32, spawner: &Spawner) -> Result<usize, usize> {
    end_all_but(uid, spawner, &BTreeSet::new())
}

/// The same, but for these, which go on as long as they need.
pub fn end_all_but(uid: u32, spawner: &Spawner, kept: &BTreeSet<i32>) -> Result<usize, usize> {
    let mut ended = BTreeSet::new();
    let helped_until = Instant::now() + HELPERS;
    let dead_by = helped_until + DEATH;
    loop {
        let spare = Instant::now() < helped_until;
        let theirs = strangers(uid, spawner, spare, kept);
        let is_left = |seen: &Seen| !kept.contains(&seen.pid);
        if theirs.is_empty() && (!spare || !Everybody::look().of(&[uid]).iter().any(is_left)) {
            return Ok(ended.len());
        }
        if Instant::now() > dead_by {
            return Err(theirs.len());
        }
        stop_all(uid, spawner, spare, kept);
        for seen in strangers(uid, spawner, spare, kept) {
            seen.signal(uid, rustix::process::Signal::KILL);
            ended.insert(seen.pid);
        }
        // What a helper has started in the agent's name (a filter of git's) comes to us when the helper ends.
        pause(Duration::from_millis(5));
    }
}

/// Until a look finds nobody who runs.
fn stop_all(uid: u32, spawner: &Spawner, spare: bool, kept: &BTreeSet<i32>) {
    let until = Instant::now() + STANDSTILL;
    loop {
        let mut running = strangers(uid, spawner, spare, kept);
        running.retain(|seen| !matches!(seen.state, 'T' | 't'));
        let told = running.iter().filter(|seen| seen.signal(uid, rustix::process::Signal::STOP)).count();
        // One that hangs in the kernel never stops; it forks nothing meanwhile.
        if told == 0 || running.iter().all(|seen| seen.state == 'D') || Instant::now() > until {
            return;
        }
    }
}

/// The user's processes; `spare` leaves out those that a helper of ours has to do with.
fn strangers(uid: u32, spawner: &Spawner, spare: bool, kept: &BTreeSet<i32>) -> Vec<Seen> {
    let everybody = Everybody::look();
    // Asked after the look: who is in it and helps is known by now.
    let helpers = if spare { spawner.helpers() } else { BTreeSet::new() };
    let helps = |pid: i32| {
        kept.contains(&pid)
            || helpers.contains(&pid)
            || helpers.iter().any(|helper| descends(&everybody.parents, pid, *helper))
    };
    everybody.of(&[uid]).into_iter().filter(|seen| !helps(seen.pid)).collect()
}

/// One look at the table of processes.
struct Everybody {
    processes: Vec<Seen>,
    parents: HashMap<i32, i32>,
}

impl Everybody {
    fn look() -> Self {
        let all = procfs::process::all_processes();
        let processes: Vec<Seen> =
            all.into_iter().flatten().flatten().filter_map(|process| Seen::of(&process)).collect();
        let parents = processes.iter().map(|seen| (seen.pid, seen.parent)).collect();
        Self { processes, parents }
    }

    /// Those of these users that live, and are ours.
    fn of(&self, uids: &[u32]) -> Vec<Seen> {
        let us = i32::try_from(std::process::id()).unwrap_or(1);
        let ours = |seen: &&Seen| us == 1 || descends(&self.parents, seen.pid, us);
        let theirs = self.processes.iter().filter(|seen| uids.contains(&seen.uid) && seen.lives());
        theirs.filter(ours).copied().collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    pid: i32,
    parent: i32,
    uid: u32,
    state: char,
}

impl Seen {
    /// A process that ends meanwhile is none.
    fn of(process: &procfs::process::Process) -> Option<Self> {
        let (stat, uid) = (process.stat().ok()?, process.uid().ok()?);
        Some(Self { pid: process.pid, parent: stat.ppid, uid, state: stat.state })
    }

    fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    /// By a descriptor that can't come to mean another process: one of root's that is stopped stays so.
    fn signal(&self, uid: u32, signal: rustix::process::Signal) -> bool {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return false };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // Looked at after the descriptor was taken.
        let now = procfs::process::Process::new(self.pid).and_then(|process| process.uid());
        now.is_ok_and(|now| now == uid) && pidfd_send_signal(&process, signal).is_ok()
    }
}

fn descends(parents: &HashMap<i32, i32>, pid: i32, from: i32) -> bool {
    let mut at = pid;
    // A table read while processes come and go may hold a circle; no chain is longer than the table.
    for _ in 0..parents.len() {
        match parents.get(&at) {
            Some(parent) if *parent == from => return true,
            Some(parent) => at = *parent,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::descends;

    #[test]
    fn only_descendants_are_ours_where_we_are_not_pid_1() {
        let parents =
            [(10, 5), (11, 10), (12, 11), (20, 1), (5, 1), (30, 31), (31, 30)].into_iter().collect();
        assert!(descends(&parents, 12, 10) && descends(&parents, 11, 10));
        assert!(!descends(&parents, 20, 10) && !descends(&parents, 5, 10), "a neighbour, a parent");
        assert!(!descends(&parents, 30, 10), "a circle ends");
    }
}
