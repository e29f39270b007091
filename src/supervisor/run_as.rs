//! The trampoline `innkeeper run-as`: gives everything up, looks that it is gone, then executes the program.
//!
//! It exists because the same steps between fork and exec (`pre_exec`) would need unsafe code, and because a
//! failure here has an exit status and a message of its own. The order matters and is commented step by step.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use caps::{CapSet, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};

use super::confinement::{self, Allowances};

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line with a name of its own"
)]
/// Whom a child runs as, and how far it is confined. Travels as arguments: nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Identity {
    #[arg(long)]
    pub uid: u32,
    #[arg(long)]
    pub gid: u32,
    /// Entered after the identity was taken, so root follows no path of the agent's.
    #[arg(long, default_value = "/")]
    pub cwd: PathBuf,
    /// Make standard input the controlling terminal.
    #[arg(long)]
    pub tty: bool,
    /// The agent's seccomp filter.
    #[arg(long)]
    pub confine: bool,
    #[arg(long)]
    pub allow_userns: bool,
    #[arg(long)]
    pub allow_ptrace: bool,
    /// Soft and hard limit of processes, where the cgroup does not set one.
    #[arg(long)]
    pub processes: Option<u64>,
    /// Added to the badness by which the kernel's OOM killer chooses.
    #[arg(long, default_value_t = 0)]
    pub oom_score_adj: i32,
}

impl Identity {
    /// A worker: a uid of its own, nothing else.
    #[must_use]
    pub fn worker(uid: u32, gid: u32) -> Self {
        Self {
            uid,
            gid,
            cwd: PathBuf::from("/"),
            tty: false,
            confine: false,
            allow_userns: false,
            allow_ptrace: false,
            processes: None,
            oom_score_adj: 0,
        }
    }

    /// The same as arguments.
    #[must_use]
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec![
            "--uid".into(),
            self.uid.to_string().into(),
            "--gid".into(),
            self.gid.to_string().into(),
            "--cwd".into(),
            self.cwd.clone().into(),
            format!("--oom-score-adj={}", self.oom_score_adj).into(),
        ];
        let flags = [
            (self.tty, "--tty"),
            (self.confine, "--confine"),
            (self.allow_userns, "--allow-userns"),
            (self.allow_ptrace, "--allow-ptrace"),
        ];
        args.extend(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| OsString::from(flag)));
        if let Some(processes) = self.processes {
            args.extend(["--processes".into(), processes.to_string().into()]);
        }
        args
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunAsError {
    #[error("cannot {0}")]
    Errno(&'static str, #[source] std::io::Error),
    #[error("cannot {0}")]
    Capabilities(&'static str, #[source] caps::errors::CapsError),
    #[error("descriptor {0} would be inherited; only 0, 1 and 2 may be")]
    Descriptor(RawFd),
    #[error("after the drop {0} is still there: refusing to execute")]
    Leftover(&'static str),
    #[error("cannot install the seccomp filter")]
    Seccomp(#[source] confinement::ConfinementError),
    #[error("cannot enter {path}")]
    Directory { path: String, source: std::io::Error },
    #[error("cannot execute {program}")]
    Exec { program: String, source: std::io::Error },
}

fn errno(what: &'static str) -> impl FnOnce(nix::errno::Errno) -> RunAsError {
    move |error| RunAsError::Errno(what, error.into())
}

/// Becomes `identity` and executes `command`. Returns only with an error.
pub fn run(identity: &Identity, command: &[OsString]) -> RunAsError {
    match become_agent(identity) {
        Ok(()) => exec(command),
        Err(error) => error,
    }
}

/// Becomes `identity` in this very process, for good, without an exec.
pub fn become_agent(identity: &Identity) -> Result<(), RunAsError> {
    drop_everything(identity, identity.uid)
}

/// Becomes `identity` in this very process, but for its real and saved uid. Files, sockets and SO_PEERCRED see the
/// effective uid; kill(2) and ptrace(2) look at the real and saved ones, so that the identity's own processes can't stop
/// or change this one. An exec would undo it (execve(2): the saved uid becomes the effective one).
pub fn become_untouchable(identity: &Identity) -> Result<(), RunAsError> {
    drop_everything(identity, NOBODY)
}

/// The overflow uid, which owns no process and no file here.
const NOBODY: u32 = 65_534;

fn drop_everything(identity: &Identity, real_uid: u32) -> Result<(), RunAsError> {
    // Descriptors first: once the uid has changed, /proc/self/fd belongs to root.
    refuse_inherited_descriptors()?;
    take_session(identity.tty)?;
    limit(identity)?;
    if nix::unistd::geteuid().is_root() {
        become_user(identity, real_uid)?;
    }
    // After the uid, so that a root without CAP_SETPCAP can't have half of it.
    caps::clear(None, CapSet::Inheritable)
        .map_err(|e| RunAsError::Capabilities("clear inheritable capabilities", e))?;
    caps::clear(None, CapSet::Ambient)
        .map_err(|e| RunAsError::Capabilities("clear ambient capabilities", e))?;
    caps::set(None, CapSet::Effective, &CapsHashSet::new())
        .map_err(|e| RunAsError::Capabilities("clear effective capabilities", e))?;
    caps::set(None, CapSet::Permitted, &CapsHashSet::new())
        .map_err(|e| RunAsError::Capabilities("clear permitted capabilities", e))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| RunAsError::Errno("set no_new_privs", e.into()))?;
    // As the agent, never as root: the directory may be the agent's.
    std::env::set_current_dir(&identity.cwd)
        .map_err(|source| RunAsError::Directory { path: identity.cwd.display().to_string(), source })?;
    look_again(identity, real_uid)?;
    if identity.confine {
        // Last, since the filter may forbid what the steps above need.
        let allow = Allowances { userns: identity.allow_userns, ptrace: identity.allow_ptrace };
        confinement::apply(allow).map_err(RunAsError::Seccomp)?;
    }
    Ok(())
}

fn refuse_inherited_descriptors() -> Result<(), RunAsError> {
    let listing =
        std::fs::read_dir("/proc/self/fd").map_err(|e| RunAsError::Errno("list the open descriptors", e))?;
    for entry in listing.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|text| text.parse::<RawFd>().ok()) else {
            continue;
        };
        // Std opens with CLOEXEC, and so do we: what lacks it was not meant to be handed on.
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let cloexec = flags
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
            .is_some_and(|flags| flags & O_CLOEXEC != 0);
        if fd > 2 && !cloexec && !flags.is_empty() {
            return Err(RunAsError::Descriptor(fd));
        }
    }
    Ok(())
}

/// O_CLOEXEC as /proc/PID/fdinfo shows it (asm-generic/fcntl.h).
const O_CLOEXEC: u32 = 0o2_000_000;

fn take_session(tty: bool) -> Result<(), RunAsError> {
    // EPERM: it leads a group already, as a child of a shell's job control may.
    match nix::unistd::setsid() {
        Ok(_) | Err(nix::errno::Errno::EPERM) => {}
        Err(error) => return Err(errno("make a new session")(error)),
    }
    if tty {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
            .map_err(|e| RunAsError::Errno("take the controlling terminal", e.into()))?;
    }
    Ok(())
}

fn limit(identity: &Identity) -> Result<(), RunAsError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(errno("forbid core dumps"))?;
    if identity.confine {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(errno("read the descriptor limit"))?;
        let descriptors = hard.min(AGENT_DESCRIPTORS);
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors).map_err(errno("limit descriptors"))?;
    }
    if let Some(processes) = identity.processes {
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).map_err(errno("read the process limit"))?;
        let processes = processes.min(hard);
        setrlimit(Resource::RLIMIT_NPROC, processes, processes).map_err(errno("limit processes"))?;
    }
    if identity.oom_score_adj > 0 {
        // Raising needs no capability (proc_pid_oom_score_adj(5)).
        std::fs::write("/proc/self/oom_score_adj", identity.oom_score_adj.to_string())
            .map_err(|e| RunAsError::Errno("raise oom_score_adj", e))?;
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Node, cargo and watchers open thousands of files; more than this is a leak or an attack.
const AGENT_DESCRIPTORS: u64 = 65_536;

fn become_user(identity: &Identity, real_uid: u32) -> Result<(), RunAsError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::unistd::setgroups(&[gid]).map_err(errno("drop supplementary groups"))?;
    // The bounding set while CAP_SETPCAP is still there.
    caps::clear(None, CapSet::Bounding).map_err(|e| RunAsError::Capabilities("empty the bounding set", e))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(errno("change the group"))?;
    let real = Uid::from_raw(real_uid);
    nix::unistd::setresuid(real, uid, real).map_err(errno("change the user"))
}

/// Looks at the outcome: a step that said "done" and was not would hand the agent a key.
fn look_again(identity: &Identity, real_uid: u32) -> Result<(), RunAsError> {
    let ids = nix::unistd::getresuid().map_err(errno("read the user"))?;
    let (uid, real) = (Uid::from_raw(identity.uid), Uid::from_raw(real_uid));
    let groups = nix::unistd::getgroups().unwrap_or_default();
    // Somebody who was not root keeps the uid that he had.
    let kept = ids.real == uid && ids.saved == uid;
    if ids.effective != uid || !(kept || ids.real == real && ids.saved == real) {
        return Err(RunAsError::Leftover("another user id"));
    }
    if groups.iter().any(|group| group.as_raw() != identity.gid) {
        return Err(RunAsError::Leftover("a supplementary group"));
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient, CapSet::Bounding]
    {
        let left = caps::read(None, set).map_err(|e| RunAsError::Capabilities("read capabilities", e))?;
        if !left.is_empty() {
            return Err(RunAsError::Leftover("a capability"));
        }
    }
    match rustix::thread::no_new_privs() {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(RunAsError::Leftover("the way to new privileges")),
    }
}

fn exec(command: &[OsString]) -> RunAsError {
    let Some((program, args)) = command.split_first() else {
        return RunAsError::Exec { program: String::new(), source: std::io::ErrorKind::InvalidInput.into() };
    };
    let mut exec = Command::new(program);
    if program == "/proc/self/exe" {
        exec.arg0("innkeeper");
    }
    let source = exec.args(args).exec();
    RunAsError::Exec { program: program.to_string_lossy().into_owned(), source }
}
