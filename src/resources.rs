//! What the box has and how much of it is used up: memory and its kills as the cgroup counts them, and the fill of
//! the places where the agent writes.
//!
//! A thread looks every two seconds, and `status` shows the last look: a place that does not answer (a volume whose
//! server is gone) holds up nobody. Root never walks a path here that the agent could lead elsewhere: every place is
//! opened once, as the mount that the boot made or verified, without following a link, and asked by its descriptor.

pub mod cgroup;
pub mod warnings;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstatvfs, openat2};

use crate::report::{event, inert};
use crate::status::report::{Fill, Memory, Resources};
use crate::supervisor::Exit;
use cgroup::Cgroup;
use warnings::Alarms;

/// How often it is looked. Filling half a gigabyte of tmpfs takes a moment, noticing it so soon is soon enough.
const INTERVAL: Duration = Duration::from_secs(2);
/// A death belongs to a kill that was counted so soon before or after it.
const SAME: Duration = Duration::from_secs(6);
/// Victims and unexplained deaths that are remembered.
const REMEMBERED: usize = 8;

/// Looks, and remembers.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    last: Mutex<Resources>,
    /// Children that SIGKILL ended although nobody here sent it.
    deaths: Mutex<VecDeque<(Instant, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place and the descriptor by which it is asked.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    mount: OwnedFd,
}

impl Place {
    /// No link is followed anywhere on the way, and O_PATH reads nothing of what is there.
    fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mount = openat2(CWD, path, flags, Mode::empty(), resolve).ok()?;
        Some(Self { path: path.to_owned(), mount })
    }

    fn fill(&self) -> Option<Fill> {
        let seen = fstatvfs(&self.mount).ok()?;
        let used = seen.f_blocks.saturating_sub(seen.f_bfree);
        let octets = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
        Some(Fill {
            path: inert(&self.path.display().to_string()),
            size: octets(used.saturating_add(seen.f_bavail)),
            used: octets(used),
            inodes: seen.f_files,
            inodes_used: seen.f_files.saturating_sub(seen.f_ffree),
        })
    }
}

impl Watcher {
    /// Begins to look at these places and at the cgroup of this process.
    pub fn start(&self, places: &[PathBuf]) -> std::io::Result<()> {
        let places: Vec<Place> = places.iter().filter_map(|path| Place::open(path)).collect();
        let shared = Arc::clone(&self.shared);
        crate::supervisor::thread("resources", move || {
            let mut looker = Looker::new(places, Cgroup::find(Path::new("/sys/fs/cgroup")));
            loop {
                looker.look(&shared);
                crate::supervisor::backoff::pause(INTERVAL);
            }
        })
    }

    /// A child of ours ended by SIGKILL, and nobody here had sent it.
    pub fn killed(&self, name: &str) {
        let mut deaths = lock(&self.shared.deaths);
        deaths.push_back((Instant::now(), inert(name)));
        while deaths.len() > REMEMBERED {
            deaths.pop_front();
        }
    }

    /// The kills that the box's cgroup has counted, now.
    #[must_use]
    pub fn oom_kills_now(&self) -> u64 {
        Cgroup::find(Path::new("/sys/fs/cgroup")).map_or(0, |cgroup| cgroup.oom_kills())
    }

    /// Who sent a SIGKILL, which says nothing itself; blank for another end. `before` is what [`Self::oom_kills_now`] was
    /// at the start.
    #[must_use]
    pub fn who_killed(&self, exit: Exit, before: u64, ours: Option<&str>) -> String {
        if exit != Exit::Signal(nix::libc::SIGKILL) {
            return String::new();
        }
        if let Some(ours) = ours {
            return format!(": by PID 1, as it {ours}");
        }
        if self.oom_kills_now() > before {
            return ": by the kernel, as the box's memory was used up".to_owned();
        }
        ": by a process of the agent's own, or from outside the box".to_owned()
    }

    /// The last look.
    #[must_use]
    pub fn report(&self) -> Resources {
        lock(&self.shared.last).clone()
    }
}

struct Looker {
    places: Vec<Place>,
    cgroup: Option<Cgroup>,
    alarms: Alarms,
    /// The kills that the cgroup had counted before this box: a restarted container may keep its cgroup.
    before: u64,
    victims: VecDeque<String>,
    /// A kill whose victim is not known yet, and since when.
    unexplained: Option<(Instant, u64)>,
}

impl Looker {
    fn new(places: Vec<Place>, cgroup: Option<Cgroup>) -> Self {
        let before = cgroup.as_ref().map_or(0, Cgroup::oom_kills);
        Self {
            places,
            cgroup,
            alarms: Alarms::default(),
            before,
            victims: VecDeque::new(),
            unexplained: None,
        }
    }

    fn look(&mut self, shared: &Shared) {
        let memory: Option<Memory> = self.cgroup.as_ref().and_then(Cgroup::memory);
        let kills = self.cgroup.as_ref().map_or(0, Cgroup::oom_kills).saturating_sub(self.before);
        let known = lock(&shared.last).oom_kills;
        if kills > known {
            let more = kills - known;
            let pending = self.unexplained.map_or(0, |(_, count)| count);
            self.unexplained = Some((Instant::now(), pending + more));
            event("memory", &format!("the kernel ended {more} processes: the box's memory was used up"));
        }
        self.explain(shared);
        let mounts = self.places.iter().filter_map(Place::fill).collect();
        let oom_victims = self.victims.iter().cloned().collect();
        let now = Resources { memory, oom_kills: kills, oom_victims, mounts };
        for news in self.alarms.news(&now) {
            event("resources", &news);
        }
        *lock(&shared.last) = now;
    }

    /// A kill and a death by SIGKILL that come together belong together. Which process it was otherwise, only the
    /// kernel's log says, which no container may read.
    fn explain(&mut self, shared: &Shared) {
        let Some((since, count)) = self.unexplained else { return };
        let mut deaths = lock(&shared.deaths);
        deaths.retain(|(at, _)| at.elapsed() < SAME);
        let mut left = count;
        while left > 0
            && let Some((_, name)) = deaths.pop_front()
        {
            self.remember(&format!("{name}, probably"));
            left -= 1;
        }
        self.unexplained = (left > 0).then_some((since, left));
        if left > 0 && since.elapsed() >= SAME {
            self.remember(&format!(
                "{left}× a process that is not PID 1's own (the host's kernel log names it)"
            ));
            self.unexplained = None;
        }
    }

    fn remember(&mut self, victim: &str) {
        self.victims.push_front(format!("{} {victim}", crate::report::now()));
        self.victims.truncate(REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::{Looker, Place, Shared, cgroup::Cgroup, lock};

    fn directory(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("innkeeper-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_place_behind_a_link_is_not_looked_at() {
        let directory = directory("places");
        std::fs::create_dir(directory.join("real")).unwrap();
        std::os::unix::fs::symlink("/", directory.join("link")).unwrap();
        let real = Place::open(&directory.join("real")).unwrap().fill().unwrap();
        assert!(real.size > 0 && real.used <= real.size, "{real:?}");
        assert!(Place::open(&directory.join("link")).is_none());
        assert!(Place::open(&directory.join("link/tmp")).is_none());
        assert!(Place::open(&directory.join("none")).is_none());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_kill_and_a_death_that_come_together_belong_together() {
        let directory = directory("kills");
        let write = |kills: u64| {
            std::fs::write(directory.join("memory.events"), format!("oom 9\noom_kill {kills}\n")).unwrap();
        };
        std::fs::write(directory.join("memory.current"), "1000\n").unwrap();
        std::fs::write(directory.join("memory.max"), "max\n").unwrap();
        write(5);
        let cgroup = Cgroup::at(&directory, &directory);
        let (mut looker, shared) = (Looker::new(Vec::new(), cgroup), Shared::default());
        looker.look(&shared);
        assert_eq!(lock(&shared.last).oom_kills, 0, "kills of a former life are not this box's");
        write(7);
        lock(&shared.deaths).push_back((std::time::Instant::now(), "tmux".to_owned()));
        looker.look(&shared);
        let seen = lock(&shared.last).clone();
        assert_eq!(seen.oom_kills, 2);
        assert_eq!(seen.oom_victims.len(), 1, "the other may be told yet: {seen:?}");
        assert!(seen.oom_victims[0].contains("tmux"), "{seen:?}");
        looker.look(&shared);
        assert_eq!(lock(&shared.last).oom_victims.len(), 1, "one death explains one kill");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
