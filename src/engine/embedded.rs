//! The embedded engine: the keeper of one box. It makes sure that nothing is missing, starts the box's first process in
//! a new pid namespace, gives it ids and a link, waits for its end, and takes everything back.
//!
//! Isolation is weaker than an engine's: the host's programs are shared, there is no cgroup of its own and no profile of
//! an LSM. What holds it is a user namespace over a block of ids that nobody on the host has, all other namespaces,
//! and Innkeeper's own firewall and seal.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use super::environment::{self, handed_over};
use super::network::{self, LinkError, Routes};
use super::plan::{Given, Link, Plan};
use super::programs::{self, ProgramError, Programs};
use super::state::{Desk, Process, Record, StateError, directory};
use super::{Run, files, ids};
use crate::config::{self, Environment, Sources};
use crate::dns::resolv_conf;
use crate::filesystem::layout::Sizes;
use crate::firewall::nftables::NftablesError;
use crate::firewall::nftables::passage::{self, INTERFACES, Passage, TABLES};
use crate::report::{self, exit};

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("the embedded engine needs root, to make namespaces and a link: run it with sudo -E")]
    NotRoot,
    #[error("a box named {0} is running; enter it: innkeeper in {0}; another one: --name OTHER")]
    Taken(String),
    #[error("a program that the box needs is missing")]
    Program(#[from] ProgramError),
    #[error("the configuration is not fit for a box: {0}")]
    Config(String),
    #[error("cannot read {path}")]
    Given { path: PathBuf, source: io::Error },
    #[error("every resolver of this host listens on its loopback ({0}), which no box can reach")]
    Resolvers(String),
    #[error("cannot keep the record of the box")]
    State(#[from] StateError),
    #[error("no block of 65536 ids is free on this host")]
    NoIds,
    #[error("cannot link the box to the host's network")]
    Link(#[from] LinkError),
    #[error("cannot set the host's rules for the box")]
    Rules(#[from] NftablesError),
    #[error("cannot change {path}")]
    Sysctl { path: &'static str, source: io::Error },
    #[error("cannot {what}")]
    Start { what: &'static str, source: io::Error },
    #[error("the box ended before it began (status {0})")]
    Stillborn(i32),
}

impl EmbeddedError {
    /// Who tries again unchanged gets the same answer.
    fn status(&self) -> u8 {
        match self {
            Self::Taken(_) => exit::USAGE,
            Self::Start { .. } => exit::INTERNAL,
            Self::Stillborn(status) => u8::try_from(*status).unwrap_or(exit::INTERNAL),
            Self::NotRoot
            | Self::Program(_)
            | Self::Config(_)
            | Self::Given { .. }
            | Self::Resolvers(_)
            | Self::State(_)
            | Self::NoIds
            | Self::Link(_)
            | Self::Rules(_)
            | Self::Sysctl { .. } => exit::CONFIG,
        }
    }

    fn next(&self) -> Option<&'static str> {
        match self {
            Self::Program(ProgramError::NoTmux(_)) => Some("install tmux 3.6 or newer, or run ./scripts/programs"),
            Self::Program(ProgramError::NoClaude(_)) => {
                Some("run ./scripts/programs, which fetches Claude Code by its name, or name the directory: --programs DIR")
            }
            Self::Resolvers(_) => Some("name resolvers that the box can reach: INNKEEPER_NETWORK_UPSTREAMS=192.0.2.53"),
            Self::Rules(NftablesError::NoNfTables { .. }) => {
                Some("the embedded engine needs a kernel with nf_tables; Docker and Podman do without")
            }
            Self::NotRoot
            | Self::Taken(_)
            | Self::Program(_)
            | Self::Config(_)
            | Self::Given { .. }
            | Self::State(_)
            | Self::NoIds
            | Self::Link(_)
            | Self::Rules(_)
            | Self::Sysctl { .. }
            | Self::Start { .. }
            | Self::Stillborn(_) => None,
        }
    }
}

/// Runs a box to its end; returns its exit status.
pub(super) fn run(options: &Run) -> u8 {
    match keep(options) {
        Ok(status) => u8::try_from(status).unwrap_or(exit::INTERNAL),
        Err(error) => {
            if !matches!(error, EmbeddedError::Stillborn(_)) {
                report::last_words("run", &report::chain(&error));
            }
            if let Some(next) = error.next() {
                report::last_words("next", next);
            }
            error.status()
        }
    }
}

const EXPERIMENTAL: &str = "the embedded engine is experimental, and its isolation is weaker than an engine's: the box \
     shares this host's programs and kernel, and has no cgroup of its own";

fn keep(options: &Run) -> Result<i32, EmbeddedError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(EmbeddedError::NotRoot);
    }
    close_inherited();
    // Heard from the first moment on: what comes while the box is being made must not leave half of it.
    let mut signals = Signals::register()?;
    let desk = Desk::open()?;
    sweep(&desk)?;
    let others = desk.records()?;
    if others.iter().any(|other| other.name == options.name) {
        return Err(EmbeddedError::Taken(options.name.clone()));
    }
    let outcome = prepare(options, &others);
    let (plan, record, resolvers) = match outcome {
        Ok(prepared) => prepared,
        Err(error) => {
            // Nothing but the directory of this name was made.
            desk.remove(&options.name)?;
            return Err(error);
        }
    };
    report::last_words("run", EXPERIMENTAL);
    desk.write(&record)?;
    let started = start(&desk, &plan, record.clone(), &resolvers);
    drop(desk);
    let status = started.and_then(|mut child| signals.wait(&mut child));
    let desk = Desk::open()?;
    let left = take_back(&desk, &record);
    let status = status?;
    left?;
    Ok(status)
}

/// What the operator's shell left open would lead out of the box. This process has opened nothing yet.
pub(super) fn close_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in numbers {
        // The one by which they were listed is closed already.
        nix::unistd::close(fd).ok();
    }
}

/// Everything is looked for before anything is changed.
fn prepare(options: &Run, others: &[Record]) -> Result<(Plan, Record, Vec<IpAddr>), EmbeddedError> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| handed_over(name))
        .collect();
    let files = given(options)?;
    let config = check(options, &environment, &files)?;
    let need_claude = config.session.command.is_empty();
    let Programs { tmux, claude, warning } = programs::find(&options.programs(), need_claude)?;
    if let Some(warning) = warning {
        report::last_words("run", &warning);
    }
    let routes = network::look()?;
    let configured: Vec<IpAddr> = config.network.upstreams.iter().map(|server| server.address.ip()).collect();
    let upstreams = if configured.is_empty() { upstreams()? } else { configured };
    let resolvers = upstreams.iter().copied().filter(|ip| routes.addresses.contains(ip)).collect();
    let base = free_ids(others)?;
    let (host, guest) = routes.free(&others.iter().map(|other| other.guest4).collect::<Vec<_>>())?;
    let link = Link { host, guest, v6: forwards_ipv6(&routes).then(network::unique_local) };
    let number = free_number(others)?;
    let record = Record {
        name: options.name.clone(),
        keeper: own_process()?,
        guest: None,
        since: report::now(),
        base,
        interface: format!("{INTERFACES}{number}"),
        table: format!("{TABLES}{number}"),
        guest4: guest,
    };
    let memory = <procfs::Meminfo as procfs::Current>::current().map_or(u64::MAX, |info| info.mem_total);
    let sizes = Sizes {
        workspace: config.filesystem.workspace_size.resolve(memory),
        tmp: config.filesystem.tmp_size.resolve(memory),
        home: config.filesystem.home_size.resolve(memory),
    };
    let plan = Plan {
        name: options.name.clone(),
        stage: directory(&options.name).join("root"),
        base,
        link,
        upstreams,
        room: sizes.within(memory).into(),
        tmux,
        claude,
        files,
        environment: complete(environment),
    };
    Ok((plan, record, resolvers))
}

/// What the image sets, and the terminal's kind where there is a terminal.
fn complete(mut environment: Vec<(String, String)>) -> Vec<(String, String)> {
    environment.push(("PATH".to_owned(), environment::PATH.to_owned()));
    environment.push(("LANG".to_owned(), "C.UTF-8".to_owned()));
    if let (true, Ok(terminal)) = (io::stdin().is_terminal(), std::env::var("TERM")) {
        environment.push(("TERM".to_owned(), terminal));
    }
    environment
}

fn own_process() -> Result<Process, EmbeddedError> {
    let pid = Pid::this().as_raw();
    let missing = || EmbeddedError::Start { what: "find this process in /proc", source: io::ErrorKind::NotFound.into() };
    Process::of(pid).ok_or_else(missing)
}

/// The files below /etc/innkeeper: the operator's, else those that came with this binary.
fn given(options: &Run) -> Result<Vec<Given>, EmbeddedError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| EmbeddedError::Given { path: path.to_owned(), source })
    };
    let mut files = Vec::new();
    match &options.network {
        None => files.extend(files::NETWORK.iter().map(|(path, text)| Given {
            path: format!("/etc/innkeeper/network/{path}"),
            text: (*text).to_owned(),
        })),
        Some(top) => {
            for directory in ["", "profiles"] {
                let place = top.join(directory);
                let Ok(entries) = fs::read_dir(&place) else { continue };
                for entry in entries.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "conf")) {
                    let path = Path::new("/etc/innkeeper/network").join(directory).join(entry.file_name());
                    let text = read(&entry.path())?;
                    files.push(Given { path: path.display().to_string(), text });
                }
            }
            if files.is_empty() {
                read(&top.join("domains.conf"))?;
            }
        }
    }
    if let Some(config) = &options.config {
        files.push(Given { path: "/etc/innkeeper/innkeeper.toml".to_owned(), text: read(config)? });
    }
    Ok(files)
}

/// Reads the configuration as the box will, so that a typing error is known before anything is made.
fn check(
    options: &Run,
    environment: &[(String, String)],
    files: &[Given],
) -> Result<config::Config, EmbeddedError> {
    let place = directory(&options.name).join("check");
    let written = |given: &Given| {
        let path = place.join(given.path.trim_start_matches('/'));
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&path, &given.text)
    };
    for given in files {
        written(given).map_err(|source| EmbeddedError::Given { path: place.join(&given.path), source })?;
    }
    let env: Environment = environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let sources = Sources {
        env,
        toml_path: place.join("etc/innkeeper/innkeeper.toml"),
        allowlist_path: place.join("etc/innkeeper/network/domains.conf"),
        profiles_dir: place.join("etc/innkeeper/network/profiles"),
        ceiling_path: place.join("etc/innkeeper/ceiling.conf"),
        secrets_dir: place.join("run/secrets"),
    };
    let loaded = config::load(&sources).map_err(|problems| EmbeddedError::Config(problems.to_string()));
    fs::remove_dir_all(&place).map_err(|source| EmbeddedError::Given { path: place.clone(), source })?;
    loaded
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What systemd-resolved asks itself, where resolv.conf names its stub on 127.0.0.53 (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Whom this host asks: resolvers that a box can reach too.
fn upstreams() -> Result<Vec<IpAddr>, EmbeddedError> {
    let mut loopback = Vec::new();
    for path in [RESOLV_CONF, BEHIND_STUB] {
        let text = fs::read_to_string(path).unwrap_or_default();
        let servers: Vec<IpAddr> = resolv_conf::parse(&text).servers.iter().map(|server| server.ip()).collect();
        let (unreachable, reachable): (Vec<IpAddr>, Vec<IpAddr>) =
            servers.into_iter().partition(IpAddr::is_loopback);
        if !reachable.is_empty() {
            return Ok(reachable);
        }
        loopback.extend(unreachable.iter().map(ToString::to_string));
    }
    if loopback.is_empty() { Ok(Vec::new()) } else { Err(EmbeddedError::Resolvers(loopback.join(", "))) }
}

fn free_ids(others: &[Record]) -> Result<u32, EmbeddedError> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut taken = Vec::new();
    for path in ["/etc/passwd", "/etc/group"] {
        taken.extend(ids::of_accounts(&text(path)));
    }
    for path in ["/etc/subuid", "/etc/subgid"] {
        taken.extend(ids::of_subordinates(&text(path)));
    }
    taken.extend(others.iter().map(|other| (other.base, super::plan::IDS)));
    // Whoever runs now, with an id that no file knows.
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let uids = processes.filter_map(|process| {
        process.file_name().to_str()?.parse::<u32>().ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&process.metadata().ok()?))
    });
    taken.extend(uids.map(|uid| (uid, 1)));
    ids::free(&taken).ok_or(EmbeddedError::NoIds)
}

/// The first number that no interface and no table has, nor another box.
fn free_number(others: &[Record]) -> Result<u32, EmbeddedError> {
    let tables = passage::tables()?;
    let names = network::names()?;
    let taken = |number: &u32| {
        let (interface, table) = (format!("{INTERFACES}{number}"), format!("{TABLES}{number}"));
        tables.contains(&table)
            || names.contains(&interface)
            || others.iter().any(|other| other.interface == interface || other.table == table)
    };
    (0..).find(|number| !taken(number)).ok_or(EmbeddedError::NoIds)
}

/// Only where the host forwards IPv6 already: to switch it on would make the host ignore router advertisements, and
/// might cut it off (ip-sysctl, `accept_ra`).
fn forwards_ipv6(routes: &Routes) -> bool {
    let forwards = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding");
    routes.ipv6_default && forwards.is_ok_and(|text| text.trim() == "1")
}

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn forward(desk: &Desk) -> Result<(), EmbeddedError> {
    let failed = |source| EmbeddedError::Sysctl { path: IP_FORWARD, source };
    let former = fs::read_to_string(IP_FORWARD).map_err(failed)?;
    if former.trim() == "1" {
        return Ok(());
    }
    desk.remember_forwarding(former.trim())?;
    report::last_words("run", "net.ipv4.ip_forward is set to 1 for as long as boxes run");
    fs::write(IP_FORWARD, "1").map_err(failed)
}

/// Starts the first process of the box and gives it what only the host can give.
fn start(desk: &Desk, plan: &Plan, mut record: Record, resolvers: &[IpAddr]) -> Result<Child, EmbeddedError> {
    let failed = |what| move |source| EmbeddedError::Start { what, source };
    let (mut told, tell) = io::pipe().map_err(failed("make a pipe"))?;
    let (hear, mut say) = io::pipe().map_err(failed("make a pipe"))?;
    let mut child = spawn(plan, tell, hear)?;
    let pid = child.id();
    let mut byte = [0; 1];
    let begun = (|| {
        record.guest = i32::try_from(pid).ok().and_then(Process::of);
        desk.write(&record)?;
        told.read_exact(&mut byte).map_err(failed("hear from the box's first process"))?;
        for map in ["uid_map", "gid_map"] {
            let text = format!("0 {} {}", plan.base, super::plan::IDS);
            fs::write(format!("/proc/{pid}/{map}"), text).map_err(failed("map the box's ids"))?;
        }
        forward(desk)?;
        let passage = Passage {
            name: record.table.clone(),
            interface: record.interface.clone(),
            guest4: plan.link.guest,
            guest6: plan.link.v6.map(|v6| v6.guest),
            resolvers: resolvers.to_vec(),
        };
        // The rules before the link: there is no moment in which the box is connected and the host open.
        passage.open()?;
        network::make(&record.interface, &plan.link, pid)?;
        say.write_all(b"g").map_err(failed("speak to the box's first process"))?;
        told.read_exact(&mut byte).map_err(failed("hear from the box's first process"))?;
        say.write_all(b"g").map_err(failed("speak to the box's first process"))
    })();
    match begun {
        Ok(()) => Ok(child),
        Err(error) => {
            drop((told, say));
            let ended = end(&mut child);
            // Its own message is the reason where it spoke last.
            Err(match (error, ended) {
                (EmbeddedError::Start { what, .. }, Some(status)) if what.starts_with("hear") => {
                    EmbeddedError::Stillborn(status)
                }
                (error, _) => error,
            })
        }
    }
}

/// Ends a box that did not begin; the status with which it ended by itself, if it did.
fn end(child: &mut Child) -> Option<i32> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
    // Its end of the pipe is closed, so it is about to end, or waits for us in vain.
    let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|count| count > 0);
    if !ended {
        // It may have ended in between.
        child.kill().ok();
    }
    let status = child.wait().ok()?;
    ended.then(|| super::status_of(status))
}

fn spawn(plan: &Plan, tell: io::PipeWriter, hear: io::PipeReader) -> Result<Child, EmbeddedError> {
    let failed = |what| move |source| EmbeddedError::Start { what, source };
    let text = serde_json::to_vec(plan).map(zeroize::Zeroizing::new);
    let text = text.map_err(|error| EmbeddedError::Start { what: "write the plan", source: error.into() })?;
    let plan = rustix::fs::memfd_create("plan", rustix::fs::MemfdFlags::CLOEXEC);
    let mut plan = fs::File::from(plan.map_err(|error| failed("write the plan")(error.into()))?);
    plan.write_all(&text).map_err(failed("write the plan"))?;
    for fd in [plan.as_fd(), tell.as_fd(), hear.as_fd()] {
        fcntl_setfd(fd, FdFlags::empty()).map_err(|error| failed("hand a descriptor over")(error.into()))?;
    }
    let own = fs::File::open("/proc/self/ns/pid").map_err(failed("open the pid namespace"))?;
    unshare(CloneFlags::CLONE_NEWPID)
        .map_err(|error| EmbeddedError::Start { what: "make a pid namespace", source: error.into() })?;
    let child = Command::new("/proc/self/exe")
        .arg0("innkeeper")
        .arg("engine-inner")
        .args(["--plan-fd", &plan.as_raw_fd().to_string()])
        .args(["--tell-fd", &tell.as_raw_fd().to_string()])
        .args(["--hear-fd", &hear.as_raw_fd().to_string()])
        .env_clear()
        .current_dir("/")
        .spawn();
    // Only that child was to be in it.
    setns(own, CloneFlags::CLONE_NEWPID)
        .map_err(|error| EmbeddedError::Start { what: "leave the pid namespace", source: error.into() })?;
    child.map_err(failed("start the box's first process"))
}

/// Takes back all that was done for a box. Everything is tried; the first failure is told.
pub(super) fn take_back(desk: &Desk, record: &Record) -> Result<(), EmbeddedError> {
    // The kernel removed it with the box's network namespace, or is about to.
    let link = network::remove(&record.interface).map_err(EmbeddedError::from);
    let rules = passage::close(&record.table).map_err(EmbeddedError::from);
    let forgotten = link.and(rules).and_then(|()| desk.remove(&record.name).map_err(EmbeddedError::from));
    let last = desk.records()?.iter().all(|other| other.name == record.name);
    let restored = match desk.take_forwarding().filter(|_| last) {
        Some(former) => fs::write(IP_FORWARD, former)
            .map_err(|source| EmbeddedError::Sysctl { path: IP_FORWARD, source }),
        None => Ok(()),
    };
    forgotten.and(restored)
}

/// Takes back what killed keepers left.
pub(super) fn sweep(desk: &Desk) -> Result<(), EmbeddedError> {
    for record in desk.records()?.into_iter().filter(|record| !record.keeper.alive()) {
        if let Some(guest) = record.guest.filter(|guest| guest.alive()) {
            kill(guest);
        }
        take_back(desk, &record)?;
        report::last_words("run", &format!("removed what an earlier box named {} had left", record.name));
    }
    Ok(())
}

/// Asks a box to end, as its keeper would, and waits for its keeper to have taken everything back.
pub(super) fn stop(record: &Record) -> Result<(), EmbeddedError> {
    let Some(pid) = rustix::process::Pid::from_raw(record.keeper.pid) else { return Ok(()) };
    let opened = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    if let (Ok(keeper), true) = (opened, record.keeper.alive()) {
        // It passes this on, and the box has `session.stop_timeout` for its end.
        rustix::process::pidfd_send_signal(&keeper, rustix::process::Signal::TERM).ok();
        poll(&mut [PollFd::new(&keeper, PollFlags::IN)], Some(&STOP_LIMIT)).ok();
    }
    if let Some(guest) = record.guest.filter(|guest| guest.alive()) {
        kill(guest);
    }
    let desk = Desk::open()?;
    sweep(&desk)
}

/// Longer than a box may take.
const STOP_LIMIT: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };

/// The first process of a box, and all of it with it; returns when it is gone.
pub(super) fn kill(process: Process) {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    // The number may have been given anew since it was read.
    if process.alive() {
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).ok();
    }
}

/// Signals as something to poll.
struct Signals {
    ended: UnixStream,
    stop: Vec<(Signal, UnixStream)>,
    hangup: UnixStream,
}

impl Signals {
    fn register() -> Result<Self, EmbeddedError> {
        let pipe = |signal| {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, writer)?;
            Ok(reader)
        };
        let failed = |source| EmbeddedError::Start { what: "listen for signals", source };
        let stop = [(Signal::SIGTERM, SIGTERM), (Signal::SIGINT, SIGINT)];
        let stop = stop.map(|(signal, number)| Ok((signal, pipe(number)?)));
        Ok(Self {
            ended: pipe(SIGCHLD).map_err(failed)?,
            stop: stop.into_iter().collect::<io::Result<_>>().map_err(failed)?,
            // A terminal that is gone ends the operator's view, not the box.
            hangup: pipe(SIGHUP).map_err(failed)?,
        })
    }

    /// Waits for the end of the box, and passes on what asks for it.
    fn wait(&mut self, child: &mut Child) -> Result<i32, EmbeddedError> {
        let failed = |source| EmbeddedError::Start { what: "wait for the box", source };
        // The terminal gives Ctrl-C to the box as well: it is in the same process group.
        let both = io::stdin().is_terminal();
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(super::status_of(status));
            }
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
            for (signal, pipe) in &mut self.stop {
                if drained(pipe) && !(both && *signal == Signal::SIGINT) {
                    // Not reaped yet, so the number is still its own.
                    nix::sys::signal::kill(pid, *signal).ok();
                }
            }
            drained(&mut self.hangup);
            let pipes = self.stop.iter().map(|(_, pipe)| pipe).chain([&self.ended, &self.hangup]);
            let mut polled: Vec<PollFd> = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            drop(polled);
            drained(&mut self.ended);
        }
    }
}

/// Whether something was in it.
fn drained(pipe: &mut UnixStream) -> bool {
    let mut buffer = [0; 64];
    let mut found = false;
    while let Ok(1..) = pipe.read(&mut buffer) {
        found = true;
    }
    found
}
