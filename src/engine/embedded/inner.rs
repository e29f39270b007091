//! `innkeeper engine-inner`: the first process of an embedded box, before it becomes `innkeeper init`. The keeper has
//! started it in a new pid namespace; it puts the root together, enters the other namespaces, gives up what the box does
//! not need, and executes. The order is the security of it and is commented step by step.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use caps::CapSet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::plan::{INTERFACE, Link, PREFIX4, PREFIX6, Plan};
use super::root;
use crate::namespace::asked;
use crate::prerequisites::privileges::REQUIRED;
use crate::report::{self, exit};

/// Descriptors that the keeper handed over, by number.
#[derive(Debug, Clone, clap::Args)]
pub struct Inner {
    /// Holds the plan.
    #[arg(long)]
    pub plan_fd: i32,
    /// Written to when the namespaces are there.
    #[arg(long)]
    pub tell_fd: i32,
    /// Read from before anything is executed; its end is the keeper's.
    #[arg(long)]
    pub hear_fd: i32,
    /// Standard input is a terminal of the box's own.
    #[arg(long)]
    pub terminal: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum InnerError {
    #[error("cannot read the plan")]
    Read(#[source] io::Error),
    #[error("the plan is damaged")]
    Damaged(#[source] serde_json::Error),
    #[error("cannot make the box's {0} namespaces")]
    Unshare(&'static str, #[source] nix::errno::Errno),
    #[error("cannot make the box's root")]
    Root(#[from] root::RootError),
    #[error("the keeper is gone")]
    Keeper(#[source] io::Error),
    #[error("cannot {0}")]
    Become(&'static str, #[source] nix::errno::Errno),
    #[error("cannot {0}")]
    Capabilities(&'static str, #[source] caps::errors::CapsError),
    #[error("cannot take the box's terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot set {path}")]
    Sysctl { path: &'static str, source: io::Error },
    #[error("cannot set up the box's end of the link")]
    Link(#[source] rtnetlink::Error),
    #[error("cannot open a routing socket")]
    Socket(#[source] io::Error),
    #[error("the link {INTERFACE} is not there")]
    NoLink,
    #[error("cannot execute innkeeper in the box")]
    Exec(#[source] io::Error),
}

/// Becomes the box; returns only with a failure's exit status.
pub fn run(inner: &Inner) -> u8 {
    let error = match become_box(inner) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report::last_words("engine", &report::chain(&error));
    match error {
        InnerError::Unshare(..) => {
            report::last_words(
                "next",
                "the kernel must allow user namespaces: sysctl user.max_user_namespaces=1024, and CONFIG_USER_NS",
            );
            exit::CONFIG
        }
        InnerError::Root(_) => exit::CONFIG,
        _ => exit::INTERNAL,
    }
}

fn become_box(inner: &Inner) -> Result<std::convert::Infallible, InnerError> {
    let plan = take_plan(inner.plan_fd)?;
    let mut tell = open(inner.tell_fd, false).map_err(InnerError::Keeper)?;
    let mut hear = open(inner.hear_fd, true).map_err(InnerError::Keeper)?;
    if inner.terminal {
        super::terminal::take().map_err(InnerError::Terminal)?;
    }
    // The root while the host's rights are still there: its mounts then belong to a mount namespace above the box's own,
    // so that the box can neither uncover nor loosen them.
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| InnerError::Unshare("mount", error))?;
    root::enter(&plan)?;
    // All at once: the kernel makes the user namespace first, and the others are its property.
    let others = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(others).map_err(|error| InnerError::Unshare("user, network and other", error))?;
    // The keeper maps the ids and puts the interface in.
    tell.write_all(b"u").map_err(InnerError::Keeper)?;
    let mut go = [0; 1];
    hear.read_exact(&mut go).map_err(InnerError::Keeper)?;
    become_root()?;
    nix::unistd::sethostname(&plan.name).map_err(|error| InnerError::Become("name the box", error))?;
    // The engines do the same: who binds low ports is the firewall's business, and PID 1 needs one capability less.
    let path = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    std::fs::write(path, "0").map_err(|source| InnerError::Sysctl { path, source })?;
    asked(InnerError::Socket, async |handle| configure(&handle, &plan.link).await)?;
    root::close_proc()?;
    give_up()?;
    // After the last change of ids, which would clear it (prctl(2), PR_SET_PDEATHSIG): a box that nobody keeps ends.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| InnerError::Become("tie the box to its keeper", error))?;
    // The keeper may have died before that: it says once more that it is there.
    tell.write_all(b"r").map_err(InnerError::Keeper)?;
    hear.read_exact(&mut go).map_err(InnerError::Keeper)?;
    drop((tell, hear));
    Err(InnerError::Exec(execute(&plan)))
}

/// Opened anew by its name in /proc: a number alone can't be owned without unsafe code.
fn open(fd: i32, read: bool) -> io::Result<std::fs::File> {
    let file = std::fs::OpenOptions::new().read(read).write(!read).open(format!("/proc/self/fd/{fd}"))?;
    nix::unistd::close(fd)?;
    Ok(file)
}

fn take_plan(fd: i32) -> Result<Plan, InnerError> {
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    open(fd, true).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(InnerError::Read)?;
    serde_json::from_slice(&bytes).map_err(InnerError::Damaged)
}

pub(super) fn become_root() -> Result<(), InnerError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setgroups(&[]).map_err(|error| InnerError::Become("drop the host's groups", error))?;
    nix::unistd::setresgid(gid, gid, gid)
        .map_err(|error| InnerError::Become("become the box's group", error))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(|error| InnerError::Become("become the box's root", error))
}

/// Leaves the bounding set with what the box needs, in the box's own user namespace, so over nothing of the host's. Innkeeper then runs without SYS_ADMIN: it finds every mount made.
pub(super) fn give_up() -> Result<(), InnerError> {
    let kept = |capability| REQUIRED.iter().any(|(needed, _, _)| *needed == capability);
    for capability in caps::all() {
        if !kept(capability) {
            caps::drop(None, CapSet::Bounding, capability)
                .map_err(|error| InnerError::Capabilities("reduce the bounding set", error))?;
        }
    }
    caps::clear(None, CapSet::Inheritable)
        .map_err(|error| InnerError::Capabilities("clear inheritable capabilities", error))?;
    caps::clear(None, CapSet::Ambient)
        .map_err(|error| InnerError::Capabilities("clear ambient capabilities", error))?;
    // Set-uid programs of the host's /usr give nobody anything, besides their mounts being nosuid.
    rustix::thread::set_no_new_privs(true).map_err(|error| {
        InnerError::Become("set no_new_privs", nix::errno::Errno::from_raw(error.raw_os_error()))
    })
}

async fn configure(handle: &Handle, link: &Link) -> Result<(), InnerError> {
    let index = super::network::index(handle, INTERFACE).await.map_err(InnerError::Link)?;
    let index = index.ok_or(InnerError::NoLink)?;
    for index in [LOOPBACK, index] {
        let up = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        handle.link().set(up).execute().await.map_err(InnerError::Link)?;
    }
    super::network::add_address(handle, index, IpAddr::V4(link.guest), PREFIX4)
        .await
        .map_err(InnerError::Link)?;
    let out =
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(link.host).output_interface(index).build();
    handle.route().add(out).execute().await.map_err(InnerError::Link)?;
    if let Some(v6) = link.v6 {
        super::network::add_address(handle, index, IpAddr::V6(v6.guest), PREFIX6)
            .await
            .map_err(InnerError::Link)?;
        let out =
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(v6.host).output_interface(index).build();
        handle.route().add(out).execute().await.map_err(InnerError::Link)?;
    }
    Ok(())
}

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

fn execute(plan: &Plan) -> io::Error {
    let binary = PathBuf::from("/usr/local/bin/innkeeper");
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let environment = plan.environment.iter().map(|(name, value)| (name, value));
    Command::new(binary).arg0("innkeeper").arg("init").env_clear().envs(environment).current_dir("/").exec()
}
