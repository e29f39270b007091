//! Memory as the cgroup of this process counts it, by version 2 or 1 (Documentation/admin-guide/cgroup-v2.rst,
//! cgroup-v1/memory.rst). Reads the kernel's files only.

use std::path::{Path, PathBuf};

use crate::status::report::Memory;

/// The files of one version, by what they tell.
#[derive(Debug, Clone, Copy)]
struct Names {
    used: &'static str,
    limit: &'static str,
    events: &'static str,
    /// Within memory.stat: file pages that are given back at once. They are no need.
    cache: &'static str,
}

const V2: Names =
    Names { used: "memory.current", limit: "memory.max", events: "memory.events", cache: "inactive_file" };
const V1: Names = Names {
    used: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    events: "memory.oom_control",
    cache: "total_inactive_file",
};

/// Version 1 says "no limit" by a number near 2⁶³.
const NO_LIMIT: u64 = 1 << 60;

/// The cgroup that bounds this box.
#[derive(Debug, Clone)]
pub struct Cgroup {
    names: Names,
    directory: PathBuf,
    /// What can be seen of the hierarchy ends here.
    root: PathBuf,
}

impl Cgroup {
    /// The cgroup of this process below `root`, where cgroups are mounted.
    #[must_use]
    pub fn find(root: &Path) -> Option<Self> {
        let of_us = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (legacy, unified) = (root.join("memory"), path_of(&of_us, ""));
        Self::at(&below(root, unified), root)
            .or_else(|| Self::at(&below(&legacy, path_of(&of_us, "memory")), &legacy))
    }

    /// The cgroup with this directory, if it counts memory.
    #[must_use]
    pub fn at(directory: &Path, root: &Path) -> Option<Self> {
        let names = [V2, V1].into_iter().find(|names| directory.join(names.used).exists())?;
        Some(Self { names, directory: directory.to_owned(), root: root.to_owned() })
    }

    /// What is used and not given back at once, and the lowest limit that can be seen from here.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        let current = number(&self.directory.join(self.names.used))?;
        let cache = self.entry("memory.stat", self.names.cache).unwrap_or(0);
        let ancestors = self.directory.ancestors().take_while(|place| place.starts_with(&self.root));
        let limits = ancestors.filter_map(|place| number(&place.join(self.names.limit)));
        let hierarchical = self.entry("memory.stat", "hierarchical_memory_limit");
        let limit = limits.chain(hierarchical).filter(|limit| *limit < NO_LIMIT).min();
        Some(Memory { used: current.saturating_sub(cache), limit })
    }

    /// Processes that the kernel ended for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.entry(self.names.events, "oom_kill").unwrap_or(0)
    }

    fn entry(&self, file: &str, key: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.directory.join(file)).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The path of `/proc/self/cgroup` in the hierarchy with this controller; the unified one has none.
fn path_of<'a>(text: &'a str, controller: &str) -> &'a str {
    let mut hierarchies = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let found = hierarchies.find(|(controllers, _)| controllers.split(',').any(|one| one == controller));
    found.map_or("/", |(_, path)| path)
}

/// Containers see their own cgroup as the root of the mount, whatever its path is called outside.
fn below(root: &Path, path: &str) -> PathBuf {
    let place = root.join(path.trim_start_matches('/'));
    if place.is_dir() && !path.contains("..") { place } else { root.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Cgroup, below, path_of};
    use crate::status::report::Memory;
    use std::path::{Path, PathBuf};

    fn directory(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("innkeeper-cgroup-{name}-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&directory));
        for (file, text) in files {
            let path = directory.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        directory
    }

    #[test]
    fn version_2_has_the_lowest_limit_on_the_way_up() {
        let root = directory(
            "v2",
            &[
                ("memory.current", "9\n"),
                ("a/memory.max", "5000\n"),
                ("a/b/memory.current", "4000\n"),
                ("a/b/memory.max", "max\n"),
                ("a/b/memory.stat", "anon 1\ninactive_file 1500\nactive_file 7\n"),
                ("a/b/memory.events", "low 0\noom 3\noom_kill 2\n"),
            ],
        );
        let cgroup = Cgroup::at(&root.join("a/b"), &root).unwrap();
        assert_eq!(cgroup.memory(), Some(Memory { used: 2500, limit: Some(5000) }));
        assert_eq!(cgroup.oom_kills(), 2);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn version_1_has_its_own_names_and_no_limit_is_a_large_number() {
        let root = directory(
            "v1",
            &[
                ("memory.usage_in_bytes", "4000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.stat", "total_inactive_file 1000\nhierarchical_memory_limit 9223372036854771712\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            ],
        );
        let cgroup = Cgroup::at(&root, &root).unwrap();
        assert_eq!(cgroup.memory(), Some(Memory { used: 3000, limit: None }));
        assert_eq!(cgroup.oom_kills(), 4);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_is_missing_or_odd_is_not_known() {
        let root = directory("odd", &[("memory.current", "-1 kB\n")]);
        let cgroup = Cgroup::at(&root, &root).unwrap();
        assert_eq!((cgroup.memory(), cgroup.oom_kills()), (None, 0));
        assert!(Cgroup::at(Path::new("/proc"), Path::new("/proc")).is_none());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_own_cgroup_is_found_by_its_path_or_is_the_root() {
        let text = "9:name=systemd:/x\n4:cpu,memory:/docker/b\n0::/user.slice\n";
        assert_eq!((path_of(text, "memory"), path_of(text, "")), ("/docker/b", "/user.slice"));
        assert_eq!(path_of("", "memory"), "/");
        assert_eq!(below(Path::new("/"), "/proc"), Path::new("/proc"));
        assert_eq!(below(Path::new("/proc"), "/docker/b"), Path::new("/proc"));
        assert_eq!(below(Path::new("/proc"), "/../etc"), Path::new("/proc"));
    }
}
