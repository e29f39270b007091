//! Which places are writable for whom, and how large they may grow. (pure)

use std::path::PathBuf;

/// Everything of PID 1's that other processes may see: the control socket, and `etc` with generated settings.
pub const STATE: &str = "/run/innkeeper";
/// Settings that PID 1 generates for git, gh and others; readable by everybody, writable by root.
pub const STATE_ETC: &str = "/run/innkeeper/etc";
/// What nobody but root may see.
pub const STATE_PRIVATE: &str = "/run/innkeeper/private";
pub const WORKSPACE: &str = "/workspace";
pub const TMP: &str = "/tmp";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

pub const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// A place that must be a file system of its own, nosuid and nodev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub path: PathBuf,
    /// Bytes that a tmpfs made by us may hold.
    pub size: u64,
    pub mode: u32,
    pub owner: Owner,
    /// Programs are executed there; a runtime's noexec would break builds.
    pub exec: bool,
}

impl Mount {
    #[must_use]
    pub fn tmpfs_options(&self) -> String {
        let Owner { uid, gid } = self.owner;
        format!("size={},mode={:o},uid={uid},gid={gid}", self.size, self.mode)
    }
}

/// The sizes that the configuration sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub workspace: u64,
    pub tmp: u64,
    pub home: u64,
}

/// The defaults of the configuration.
pub const DEFAULTS: Sizes = Sizes { workspace: 512 << 20, tmp: 512 << 20, home: 1 << 30 };

impl Sizes {
    /// Memory that a full tmpfs holds can't be won back by ending processes: all of them would be ended, PID 1 last. So
    /// sizes that nobody chose stay within shares of the memory that leave room to work.
    #[must_use]
    pub fn within(self, memory: u64) -> Self {
        let share = |size: u64, default: u64, percent: u64| {
            if size == default { size.min(memory / 100 * percent) } else { size }
        };
        Self {
            workspace: share(self.workspace, DEFAULTS.workspace, 25),
            tmp: share(self.tmp, DEFAULTS.tmp, 15),
            home: share(self.home, DEFAULTS.home, 20),
        }
    }
}

/// PID 1's own state is small: sockets and generated settings.
const STATE_SIZE: u64 = 8 << 20;
/// The agent's runtime directory holds sockets.
const RUNTIME_SIZE: u64 = 16 << 20;

/// The layout, in the order in which it is made.
#[must_use]
pub fn plan(agent: Owner, home: &str, sizes: Sizes) -> Vec<Mount> {
    let place =
        |path: &str, size, mode, owner, exec| Mount { path: PathBuf::from(path), size, mode, owner, exec };
    vec![
        place(STATE, STATE_SIZE, 0o711, ROOT, false),
        place(&runtime_directory(agent.uid), RUNTIME_SIZE, 0o700, agent, false),
        place(WORKSPACE, sizes.workspace, 0o755, agent, true),
        place(TMP, sizes.tmp, 0o1777, ROOT, true),
        place(home, sizes.home, 0o700, agent, true),
    ]
}

/// A volume of the agent's on which nothing is executed. It is never made: somebody mounted it, or it is not there.
#[must_use]
pub fn volume(agent: Owner, path: &str) -> Mount {
    Mount { path: PathBuf::from(path), size: 0, mode: 0o700, owner: agent, exec: false }
}

/// XDG_RUNTIME_DIR of the agent: the tmux socket is there.
#[must_use]
pub fn runtime_directory(uid: u32) -> String {
    format!("/run/user/{uid}")
}

/// A warning with numbers when tmpfs may grow beyond what the memory can carry.
#[must_use]
pub fn memory_warning(sizes: Sizes, memory: u64) -> Option<String> {
    let total = sizes.workspace.saturating_add(sizes.tmp).saturating_add(sizes.home);
    (total > memory).then(|| {
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "the tmpfs may grow to {} MiB (workspace {}, tmp {}, home {}) but the memory limit is {} MiB: \
             a full disk would end processes; lower filesystem.*_size or raise the limit",
            mib(total),
            mib(sizes.workspace),
            mib(sizes.tmp),
            mib(sizes.home),
            mib(memory)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{Owner, Sizes, memory_warning, plan};

    #[test]
    fn sizes_that_do_not_fit_are_named_with_numbers() {
        let sizes = Sizes { workspace: 512 << 20, tmp: 512 << 20, home: 1 << 30 };
        assert_eq!(memory_warning(sizes, 4 << 30), None);
        let warning = memory_warning(sizes, 1 << 30).unwrap();
        assert!(warning.contains("2048 MiB") && warning.contains("1024 MiB"), "{warning}");
    }

    #[test]
    fn sizes_that_nobody_chose_leave_room_to_work() {
        let default = Sizes { workspace: 512 << 20, tmp: 512 << 20, home: 1 << 30 };
        assert_eq!(default.within(8 << 30), default);
        let small = default.within(300 << 20);
        assert!(small.workspace + small.tmp + small.home < 200 << 20, "{small:?}");
        let chosen = Sizes { tmp: 600 << 20, ..default };
        assert_eq!(chosen.within(300 << 20).tmp, 600 << 20, "what was chosen is kept, with a warning");
    }

    #[test]
    fn only_the_agents_places_belong_to_the_agent() {
        let agent = Owner { uid: 1000, gid: 1000 };
        let sizes = Sizes { workspace: 1, tmp: 2, home: 3 };
        let owned: Vec<String> = plan(agent, "/home/claude", sizes)
            .iter()
            .filter(|place| place.owner == agent)
            .map(|place| place.path.display().to_string())
            .collect();
        assert_eq!(owned, ["/run/user/1000", "/workspace", "/home/claude"]);
    }
}
