//! Everything that a box needs is looked for, and the plan made, before anything on the host is changed.

use std::fs;
use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::Path;

use nix::unistd::Pid;

use super::EmbeddedError;
use super::network::{self, Routes};
use super::plan::{Given, IDS, Link, Plan};
use super::programs::{self, Programs};
use super::state::{Process, Record, directory};
use super::{files, ids};
use crate::config::{self, Environment, Sources};
use crate::dns::resolv_conf;
use crate::engine::Run;
use crate::engine::environment::{self, handed_over};
use crate::filesystem::layout::Sizes;
use crate::firewall::nftables::passage::{self, INTERFACES, TABLES};
use crate::report;

/// Everything is looked for before anything is changed.
pub(super) fn prepare(
    options: &Run,
    others: &[Record],
) -> Result<(Plan, Record, Vec<IpAddr>), EmbeddedError> {
    // The sysctl is there where the kernel has them (namespaces(7)).
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if most.trim().is_empty() || most.trim() == "0" {
        return Err(EmbeddedError::NoUserNamespaces);
    }
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
    // How engines say who they are (systemd.io/CONTAINER_INTERFACE).
    environment.push(("container".to_owned(), "innkeeper".to_owned()));
    if let (true, Ok(terminal)) = (io::stdin().is_terminal(), std::env::var("TERM")) {
        environment.push(("TERM".to_owned(), terminal));
    }
    environment
}

fn own_process() -> Result<Process, EmbeddedError> {
    let pid = Pid::this().as_raw();
    let missing = || EmbeddedError::Start {
        what: "find this process in /proc",
        source: io::ErrorKind::NotFound.into(),
    };
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
        task: None,
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
        let servers: Vec<IpAddr> =
            resolv_conf::parse(&text).servers.iter().map(|server| server.ip()).collect();
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
    taken.extend(others.iter().map(|other| (other.base, IDS)));
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
