//! What can only be tried in a process of its own: its namespaces end with it.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{AccessFlags, access};

use crate::account::Account;
use crate::filesystem::seal::{self, Writable};
use crate::filesystem::surfaces;
use crate::filesystem::{self, layout::Mount};
use crate::prerequisites::Lack;
use crate::prerequisites::places::{self, seal_lack};
use crate::report::chain;
use crate::supervisor::run_as::Identity;

/// A hidden `doctor --trial WHAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Trial {
    /// The boot's mounts in a mount namespace that ends with the process.
    Mounts,
    /// A user namespace, as the agent.
    UserNamespace,
    /// Whether the agent may open a door of the host's.
    Door,
}

impl Trial {
    fn word(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::UserNamespace => "user-namespace",
            Self::Door => "door",
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "doctor is no box: no reaper runs in this process")]
fn output(command: &mut Command) -> Result<std::process::Output, String> {
    command.stdin(Stdio::null()).output().map_err(|error| error.to_string())
}

/// What a program of the image says on its standard output.
pub(super) fn said(program: &str, args: &[&str]) -> String {
    let output = output(Command::new(program).args(args).stderr(Stdio::null()));
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Runs a trial as root, in the same environment; what it lacks.
pub(super) fn run(trial: Trial) -> Result<Vec<Lack>, String> {
    let mut command = Command::new("/proc/self/exe");
    let said = output(command.args(["doctor", "--trial", trial.word()]))?;
    if !said.status.success() {
        return Err(reason(&said.stderr));
    }
    serde_json::from_slice(&said.stdout).map_err(|error| error.to_string())
}

/// Runs a trial as the agent, without its seccomp filter.
pub(super) fn run_as_agent(agent: &Account, trial: Trial, path: &Path) -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().arg("run-as").args(Identity::worker(agent.uid, agent.gid).to_args());
    command.args(["--", "/proc/self/exe", "doctor", "--trial", trial.word(), "--path"]);
    let said = output(command.arg(path))?;
    if said.status.success() { Ok(()) } else { Err(reason(&said.stderr)) }
}

/// A trial's last words without our own name.
fn reason(words: &[u8]) -> String {
    String::from_utf8_lossy(words).trim().trim_start_matches("innkeeper: trial: ").to_owned()
}

/// In the child.
pub(super) fn user_namespace() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| format!("a user namespace is refused: {error}"))
}

/// In the child: by its modes alone, nobody is disturbed.
pub(super) fn door(path: &Path) -> Result<(), String> {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    // Connecting asks for the right to write (unix(7)).
    let right = if socket { AccessFlags::W_OK } else { AccessFlags::R_OK };
    access(path, right).map_err(|error| error.to_string())
}

/// In the child: the boot's mounts and seal, in a mount namespace whose mounts reach no other.
pub(super) fn mounts(layout: &[Mount], agent: &Account, rootfs: bool) -> Result<Vec<Lack>, String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("a mount namespace is refused: {error}"))?;
    let apart = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    if let Err(source) = mount(None::<&str>, "/", None::<&str>, apart, None::<&str>) {
        let refused = |place: &Mount| filesystem::FilesystemError::Mount { path: place.path.clone(), source };
        let missing = filesystem::not_mounted(layout).map_err(|error| chain(&error))?;
        return Ok(places::lacks(missing.into_iter().map(refused).collect(), layout, true));
    }
    let mut lacks = places::lacks(filesystem::rehearse(layout), layout, true);
    let writable = Writable::new(layout, agent.owner());
    // As in the boot: what counts is what the verification finds.
    drop(seal::apply(&writable));
    if rootfs && let Err(found) = seal::verify(&writable) {
        lacks.push(seal_lack(found, true));
    }
    let doors = surfaces::find().map_err(|error| chain(&error))?;
    if let Some(door) = doors.iter().find(|door| surfaces::rehearse(door).is_err()) {
        lacks.push(places::door_lack(&door.display().to_string(), true));
    }
    Ok(lacks)
}
