//! Whether the box's places will be there: foreseen from the mount table where nothing can be mounted, in the words of
//! the step that would fail.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::privileges::Privileges;
use super::{Lack, limits};
use crate::account::Account;
use crate::config::Config;
use crate::filesystem::layout::{self, Mount, Sizes};
use crate::filesystem::mountinfo::MountTable;
use crate::filesystem::seal::{self, Writable};
use crate::filesystem::{self, FilesystemError};
use crate::report::chain;

/// The sizes that the configuration sets, or that the memory leaves room for.
#[must_use]
pub fn sizes(config: &Config) -> Sizes {
    let memory = limits::memory();
    let sizes = &config.filesystem;
    let sizes = Sizes {
        workspace: sizes.workspace_size.resolve(memory),
        tmp: sizes.tmp_size.resolve(memory),
        home: sizes.home_size.resolve(memory),
    };
    sizes.within(memory)
}

/// The places of this box.
#[must_use]
pub fn layout(config: &Config, agent: &Account) -> Vec<Mount> {
    let mut layout = layout::plan(agent.owner(), &agent.home, sizes(config));
    if filesystem::volume(Path::new(crate::persist::VOLUME), agent.owner()) == Ok(true) {
        layout.push(layout::volume(agent.owner(), crate::persist::VOLUME));
    }
    layout
}

/// What gives the right to mount.
const MAY_MOUNT: &str = "add --cap-add SYS_ADMIN";
/// Debian and Ubuntu hosts load a profile for containers that refuses every mount.
const APPARMOR: &str = "let AppArmor allow mounts with --security-opt apparmor=unconfined";
const SECCOMP: &str = "let seccomp allow mounts (Docker's own profile does with --cap-add SYS_ADMIN)";
const READ_ONLY: &str = "--read-only and the mount read-only (-v …:ro)";

/// The flag by which the runtime itself makes a place.
fn tmpfs_flag(place: &Mount) -> String {
    let path = place.path.display();
    match (place.exec, place.mode & 0o1000) {
        // PID 1's own state and the agent's runtime directory.
        (false, _) => "--tmpfs /run".to_owned(),
        (true, 0) => format!("--tmpfs {path}:exec"),
        (true, _) => format!("--tmpfs {path}:exec,mode={:o}", place.mode),
    }
}

/// What made the kernel, or somebody before it, refuse a mount.
fn permission(refusal: Errno, may_mount: bool) -> &'static str {
    match (may_mount, refusal) {
        (false, _) => MAY_MOUNT,
        (true, Errno::EACCES) => APPARMOR,
        (true, _) => SECCOMP,
    }
}

/// The remedy of a place that could not be made or kept.
#[must_use]
pub fn lack(error: &FilesystemError, layout: &[Mount], may_mount: bool) -> Lack {
    let flag = |path: &PathBuf| {
        let place = layout.iter().find(|place| place.path == *path);
        place.map_or_else(|| format!("--tmpfs {}:exec", path.display()), tmpfs_flag)
    };
    let next = match error {
        FilesystemError::Noexec { path } => format!("mount it with exec: {}", flag(path)),
        FilesystemError::Mount { path, source } => format!(
            "let the runtime make it: --read-only {}; or {}",
            flag(path),
            permission(*source, may_mount)
        ),
        FilesystemError::Flags { source, .. } => format!(
            "add --security-opt no-new-privileges, by which no file gives anybody a right; or {}",
            permission(*source, may_mount)
        ),
        FilesystemError::NotMounted { path } => format!("let the runtime make it: {}", flag(path)),
        FilesystemError::Directory { path, .. } => format!(
            "let the runtime make it: {}; is the root file system read-only, and are CHOWN, FOWNER and DAC_OVERRIDE \
             there?",
            flag(path)
        ),
        FilesystemError::Owner { .. } => {
            "is the volume writable, and are the capabilities CHOWN, FOWNER and DAC_OVERRIDE there?"
                .to_owned()
        }
        FilesystemError::Table(_) | FilesystemError::Write { .. } => {
            "this is a fault of innkeeper: please report it with the boot log".to_owned()
        }
    };
    Lack::new(chain(error), next)
}

/// The same for several: what the runtime must mount is one thing to mend.
#[must_use]
pub fn lacks(errors: Vec<FilesystemError>, layout: &[Mount], may_mount: bool) -> Vec<Lack> {
    let (mut paths, mut flags, mut refusal, mut lacks) = (Vec::new(), Vec::new(), None, Vec::new());
    for error in errors {
        let FilesystemError::Mount { path, source } = error else {
            lacks.push(lack(&error, layout, may_mount));
            continue;
        };
        let flag = layout.iter().find(|place| place.path == path).map(tmpfs_flag);
        flags.extend(flag.filter(|flag| !flags.contains(flag)));
        paths.push(path.display().to_string());
        refusal = Some(source);
    }
    if let Some(refusal) = refusal {
        let what = format!("cannot mount a tmpfs on {}: {refusal}", paths.join(", "));
        let (flags, allow) = (flags.join(" "), permission(refusal, may_mount));
        lacks.insert(0, Lack::new(what, format!("let the runtime make it: --read-only {flags}; or {allow}")));
    }
    lacks
}

/// What is still writable, and what closes it.
#[must_use]
pub fn seal_lack(found: String, may_mount: bool) -> Lack {
    let mounting = if may_mount { APPARMOR } else { MAY_MOUNT };
    let next = format!("add {READ_ONLY}; or {mounting}; to give this up: INNKEEPER_BOOT_ACCEPT=rootfs");
    Lack::new(found, next)
}

/// A door of the host that stays open to the agent.
#[must_use]
pub fn door_lack(door: &str, may_mount: bool) -> Lack {
    let mounting = if may_mount { APPARMOR } else { MAY_MOUNT };
    let next = format!(
        "leave its mount out (-v …); or {mounting}, by which innkeeper covers it; to give this up: \
         INNKEEPER_BOOT_ACCEPT=host-doors"
    );
    Lack::new(format!("{door} leads to the host, and can't be covered"), next)
}

/// All that will be missing where the runtime must have made it: without CAP_SYS_ADMIN nothing changes any more.
#[must_use]
pub fn foreseen(layout: &[Mount], writable: &Writable, rootfs: bool, given: &Privileges) -> Vec<Lack> {
    if given.may_mount() {
        return Vec::new();
    }
    let table = match MountTable::read() {
        Ok(table) => table,
        Err(error) => return vec![lack(&FilesystemError::Table(error), layout, false)],
    };
    let foresee = |place| filesystem::foresee(place, &table, given.no_new_privs).err();
    let mut lacks = lacks(layout.iter().filter_map(foresee).collect(), layout, false);
    // A place that is not mounted belongs to the root file system: what is writable there would be said twice.
    if rootfs
        && lacks.is_empty()
        && let Err(found) = seal::verify(writable)
    {
        lacks.push(seal_lack(found, false));
    }
    lacks
}

#[cfg(test)]
mod tests {
    use super::{lack, tmpfs_flag};
    use crate::filesystem::FilesystemError;
    use crate::filesystem::layout::{Owner, Sizes, plan};
    use nix::errno::Errno;

    #[test]
    fn f09_the_remedy_is_by_the_place_and_by_who_refused() {
        let agent = Owner { uid: 1000, gid: 1000 };
        let layout = plan(agent, "/home/claude", Sizes { workspace: 1, tmp: 1, home: 1 });
        let flags: Vec<String> = layout.iter().map(tmpfs_flag).collect();
        let documented = ["/run", "/run", "/workspace:exec", "/tmp:exec,mode=1777", "/home/claude:exec"]
            .map(|place| format!("--tmpfs {place}"));
        assert_eq!(flags, documented);
        let refused = |source| FilesystemError::Mount { path: "/tmp".into(), source };
        let next = |error: &FilesystemError, may_mount| lack(error, &layout, may_mount).next;
        assert!(next(&refused(Errno::EPERM), false).ends_with("add --cap-add SYS_ADMIN"));
        assert!(next(&refused(Errno::EACCES), true).contains("apparmor=unconfined"));
        assert!(next(&refused(Errno::EPERM), true).contains("seccomp"));
        assert!(next(&refused(Errno::EPERM), true).contains("--tmpfs /tmp:exec,mode=1777"));
        let noexec = FilesystemError::Noexec { path: "/workspace".into() };
        assert_eq!(next(&noexec, false), "mount it with exec: --tmpfs /workspace:exec");
    }
}
