//! The boot: from a namespace that nobody has touched to a box in which the agent may exist.
//!
//! Read this file as the product's table of contents. Steps 1 to 10 make the box *ready*; the task (repositories,
//! session) comes after. Every step looks at its outcome, and the proofs that later steps ask for can't be had
//! otherwise. What the host can't give stops the boot, unless the operator gave up that protection by its name.

mod host;
mod protections;
pub mod step;

use std::net::SocketAddrV6;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use step::{Failure, Step, Steps, Trouble, Verified};

use crate::config::{Model, Repository};
use crate::control;
use crate::dns::keeper::{self, Keeper, Sockets};
use crate::dns::resolv_conf::{self, EngineForwarding, Upstreams};
use crate::filesystem::layout::{self, Mount};
use crate::filesystem::seal::Writable;
use crate::filesystem::{self, Sealed};
use crate::firewall::ruleset::{EngineDns, FirewallPlan};
use crate::firewall::{EgressLocked, Firewall};
use crate::identity::{self, home};
use crate::innkeeper::{CREDENTIAL_HOSTS, Innkeeper};
use crate::namespace::Network;
use crate::report::{chain, event};
use crate::session::Session;
use crate::status::milliseconds;
use crate::status::report::{Denial, Phase, StepState};
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, thread};
use crate::workspace;

const CONFIG: Step = Step { name: "config", limit: Duration::from_secs(5) };
const LOCKDOWN: Step = Step { name: "lockdown", limit: Duration::from_secs(10) };
const MOUNTS: Step = Step { name: "mounts", limit: Duration::from_secs(10) };
const HOME: Step = Step { name: "home", limit: Duration::from_secs(20) };
const DNS: Step = Step { name: "dns", limit: Duration::from_secs(10) };
/// Longer than `network.boot_timeout` can be.
const FIREWALL: Step = Step { name: "firewall", limit: Duration::from_secs(120) };
const IDENTITY: Step = Step { name: "identity", limit: Duration::from_secs(20) };
const SEAL: Step = Step { name: "seal", limit: Duration::from_secs(20) };
const READINESS: Step = Step { name: "readiness", limit: Duration::from_secs(30) };
const STEPS: [Step; 9] = [CONFIG, LOCKDOWN, MOUNTS, HOME, DNS, FIREWALL, IDENTITY, SEAL, READINESS];

/// NFLOG group of refused packets.
const NFLOG_GROUP: u16 = 100;
/// The home, and the directories in which Claude Code works without asking whether it may.
fn home_arguments(innkeeper: &Innkeeper) -> Vec<String> {
    let mut args = vec!["--home".to_owned(), innkeeper.accounts.agent.home.clone()];
    let mut trust = vec![layout::WORKSPACE.to_owned()];
    let paths = innkeeper.config.repositories.iter().map(|repository| &repository.path);
    trust.extend(paths.map(|path| format!("{}/{path}", layout::WORKSPACE)));
    args.extend(trust.into_iter().flat_map(|directory| ["--trust".to_owned(), directory]));
    args
}

/// Enough to see what is wrong with a home.
const HOME_PROBLEMS: usize = 5;
/// A child that furnishes the home copies a few small files.
const HOME_LIMIT: Duration = Duration::from_secs(15);

/// Boots, then starts the task. Returns when both are under way.
pub fn run(innkeeper: &Arc<Innkeeper>) -> Result<(), Failure> {
    let steps = Steps::new(Arc::clone(innkeeper.board()), innkeeper.spawner.clone(), &STEPS);
    config(innkeeper, &steps)?;
    let network = lockdown(innkeeper, &steps)?;
    let places = mounts(innkeeper, &steps)?;
    furnish(innkeeper, &steps)?;
    let resolver = dns(innkeeper, &steps, &network)?;
    let locked = firewall(innkeeper, &steps, resolver)?;
    identity(innkeeper, &steps)?;
    let sealed = seal(innkeeper, &steps, &places)?;
    readiness(innkeeper, &steps, &sealed, &locked)?;
    ready(innkeeper);
    task(innkeeper, &locked, &sealed);
    Ok(())
}

/// What this version does not close; shown for ever, since an operator who signs must know.
const ACCEPTED: [&str; 1] =
    ["not in this version: the egress gate (names that share an address share what is open) \
     and the credential broker (what an allowed name is used for, an upload say, is not checked)"];

// --- 1: config ---

/// Everything was parsed before the first effect; here is what it came to.
fn config(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let config = &innkeeper.config;
    let plan = || {
        host::privileges()?;
        match config.session.command.first() {
            Some(program) if !Path::new(program).is_absolute() => Err(Trouble::unfit(
                "session.command is not an absolute path",
                "write the program's whole path",
            )),
            Some(_) | None => Ok(()),
        }
    };
    steps.run(
        CONFIG,
        plan,
        |()| Ok(()),
        |()| {
            for warning in config.warnings.iter().map(String::as_str).chain(ACCEPTED) {
                innkeeper.board().warn(warning);
            }
            protections::show_secrets(innkeeper);
            let rules = config.network.rules.len();
            Ok(Verified::new((), format!("{rules} rules, {} secrets", config.secrets.iter().count())))
        },
    )
}

// --- 2: lockdown ---

fn lockdown(innkeeper: &Innkeeper, steps: &Steps) -> Result<Network, Failure> {
    let config = &innkeeper.config;
    let plan = || {
        let network = innkeeper.surroundings.network().map_err(|error| Trouble::internal(&error))?;
        let machine = innkeeper.given("FLY_MACHINE_ID").is_some() && Path::new("/.fly").exists();
        match network.shared(std::process::id() == 1, machine) {
            Some(why) if !network.initial && config.boot.accepts("shared-network") => {
                innkeeper.board().warn(format!("{why}: accepted by boot.accept=shared-network"));
                Ok(network)
            }
            Some(why) => {
                Err(Trouble::unfit(why, "give the box a network of its own: leave out --network host"))
            }
            None => Ok(network),
        }
    };
    let board = Arc::clone(innkeeper.board());
    let refused = move |name: &crate::allowlist::DomainName, address: std::net::IpAddr, reason: &str| {
        board.deny(Denial {
            time: crate::report::now(),
            layer: "firewall".to_owned(),
            what: format!("{name} → {address}"),
            uid: None,
            process: None,
            reason: reason.to_owned(),
            count: 1,
            allow: format!("innkeeper allow '{name} private'"),
        });
    };
    let firewall = Firewall::start(Box::new(refused))
        .map_err(|error| Failure { step: LOCKDOWN.name, trouble: Trouble::internal(&error) })?;
    let network = steps.run(
        LOCKDOWN,
        plan,
        |_| {
            firewall.lockdown().map_err(|error| host::firewall_trouble(&error))?;
            // The kernel has acknowledged: from here on nothing passes. Looking at it comes after.
            let took = milliseconds(crate::init::since(innkeeper.began));
            innkeeper.board().update(|report| report.boot.lockdown_ms = Some(took));
            Ok(())
        },
        |network| {
            let detail = firewall.verify().map_err(|found| Trouble::unfit(found, host::NEXT_FIREWALL))?;
            Ok(Verified::new(network.clone(), format!("nothing passes; {detail}")))
        },
    )?;
    // Where it can't begin now, the step that needs it looks itself.
    innkeeper.surroundings.look_for_listeners().ok();
    // Nobody else sets it: the boot is one thread.
    drop(innkeeper.firewall.set(firewall));
    Ok(network)
}

// --- 3: mounts ---

fn mounts(innkeeper: &Arc<Innkeeper>, steps: &Steps) -> Result<Vec<Mount>, Failure> {
    let agent = &innkeeper.accounts.agent;
    let memory = host::memory();
    let sizes = &innkeeper.config.filesystem;
    let sizes = layout::Sizes {
        workspace: sizes.workspace_size.resolve(memory),
        tmp: sizes.tmp_size.resolve(memory),
        home: sizes.home_size.resolve(memory),
    }
    .within(memory);
    if let Some(warning) = layout::memory_warning(sizes, memory) {
        innkeeper.board().warn(warning);
    }
    let places = steps.run(
        MOUNTS,
        || Ok(layout::plan(agent.owner(), &agent.home, sizes)),
        |places| filesystem::apply(places).map_err(|error| host::mount_trouble(&error)),
        |places| {
            let detail =
                filesystem::verify(places).map_err(|found| Trouble::unfit(found, host::NEXT_MOUNTS))?;
            Ok(Verified::new(places.clone(), detail))
        },
    )?;
    open_control(innkeeper)?;
    Ok(places)
}

/// As soon as /run/innkeeper is there: `attach` and `status` show the rest of the boot.
fn open_control(innkeeper: &Arc<Innkeeper>) -> Result<(), Failure> {
    let failed = |trouble| Failure { step: MOUNTS.name, trouble };
    let private = filesystem::private_directory(Path::new(layout::STATE_PRIVATE), 0o700);
    private.map_err(|error| failed(Trouble::internal(&error)))?;
    let desk = innkeeper.shared();
    control::server::serve(Path::new(control::protocol::SOCKET), innkeeper.accounts.agent.uid, desk)
        .map_err(|error| failed(Trouble::internal(&error)))
}

// --- 4: home ---

/// Whom the agent's processes run as, wherever PID 1 starts them.
#[must_use]
pub fn agent_identity(innkeeper: &Innkeeper, cwd: &str) -> Identity {
    let agent = &innkeeper.accounts.agent;
    Identity {
        cwd: PathBuf::from(cwd),
        confine: true,
        allow_userns: innkeeper.config.agent.userns,
        allow_ptrace: innkeeper.config.agent.ptrace,
        processes: *innkeeper.processes.get_or_init(|| host::process_limit(innkeeper)),
        oom_score_adj: 500,
        ..Identity::worker(agent.uid, agent.gid)
    }
}

/// The agent's environment, without any secret.
#[must_use]
pub fn agent_environment(innkeeper: &Innkeeper) -> Vec<(String, String)> {
    let extra_ca = innkeeper.config.tls.ca_certs.is_some();
    identity::environment(&innkeeper.accounts.agent, extra_ca, |name| innkeeper.given(name))
}

/// Runs a hidden subcommand of ours as the agent, to its end; returns what it said.
fn as_agent(innkeeper: &Innkeeper, subcommand: &'static str, args: Vec<String>) -> Result<String, Trouble> {
    let identity = agent_identity(innkeeper, "/");
    let launch = Launch::own(subcommand, Some(identity)).args(args).env(agent_environment(innkeeper));
    let next = "look at the volume at the agent's home: is it reachable and writable for its uid?";
    let said = innkeeper.spawner.listen(launch, HOME_LIMIT, 4096);
    let said = said.map_err(|error| Trouble::unfit(chain(&error), next))?;
    if said.exit.success() {
        return Ok(said.text);
    }
    let words = crate::report::inert(said.text.trim());
    Err(Trouble::unfit(format!("`innkeeper {subcommand}` as the agent: {}: {words}", said.exit), next))
}

fn furnish(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let agent = &innkeeper.accounts.agent;
    let plan = || {
        if Path::new(home::SKELETON).is_dir() {
            Ok(home_arguments(innkeeper))
        } else {
            let what = format!("the image has no {}", home::SKELETON);
            Err(Trouble::unfit(what, "build the image from innkeeper's Dockerfile"))
        }
    };
    let mut problems = String::new();
    let apply = |args: &Vec<String>| {
        problems = as_agent(innkeeper, "home", args.clone())?;
        Ok(())
    };
    steps.run(HOME, plan, apply, |_| {
        // The link itself, not what it leads to: the home is the agent's.
        let claude = Path::new(&agent.home).join(".claude.json");
        std::fs::symlink_metadata(&claude).map_err(|error| {
            let next = "is the home, or the volume there, writable for the agent's uid?";
            Trouble::unfit(format!("{} was not made: {error}", claude.display()), next)
        })?;
        Ok(Verified::new((), agent.home.clone()))
    })?;
    // What a former agent left in a kept home is its own affair, but to be known.
    for problem in problems.lines().take(HOME_PROBLEMS) {
        innkeeper.board().warn(format!("home: {}", crate::report::inert(problem)));
    }
    Ok(())
}

// --- 5: dns ---

/// What the firewall step needs of this one.
struct Resolver {
    sockets: Sockets,
    upstreams: Upstreams,
    plan: FirewallPlan,
    ipv6: bool,
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

fn dns(innkeeper: &Innkeeper, steps: &Steps, network: &Network) -> Result<Resolver, Failure> {
    let configured = &innkeeper.config.network.upstreams;
    let plan = || {
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let mut upstreams = resolv_conf::parse(&text);
        if !configured.is_empty() {
            upstreams.servers.clone_from(configured);
        }
        if upstreams.servers.is_empty() {
            innkeeper.board().warn(format!(
                "no upstream resolver: {RESOLV_CONF} names none and network.upstreams is empty; no name resolves"
            ));
        }
        // Looked at before our own listeners exist: whatever listened then is not the agent's.
        let listeners = innkeeper.surroundings.listeners();
        Ok((upstreams, host::closed_listeners(&listeners, &innkeeper.config.network.loopback)))
    };
    let mut sockets = None;
    let resolver = steps.run(
        DNS,
        plan,
        |(upstreams, _)| {
            sockets = Some(Sockets::open().map_err(|error| {
                Trouble::unfit(chain(&error), "something else listens on port 53 of this network: stop it")
            })?);
            host::write_resolv_conf(Path::new(RESOLV_CONF), upstreams, innkeeper.board());
            Ok(())
        },
        |(upstreams, closed)| {
            let detail =
                format!("listening on {}, asking {}", keeper::LISTEN_V4, host::list(&upstreams.servers));
            Ok(Verified::new((upstreams.clone(), closed.clone()), detail))
        },
    )?;
    let (upstreams, closed) = resolver;
    let Some(sockets) = sockets else {
        let trouble = Trouble::unfit("no socket was opened", "please report this");
        return Err(Failure { step: DNS.name, trouble });
    };
    let dns_v6 = sockets.v6.then(|| SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, keeper::PORT, 0, 0));
    let plan = FirewallPlan {
        dns_uid: innkeeper.accounts.dns.uid,
        dns_v4: std::net::SocketAddrV4::new(keeper::LISTEN_V4, keeper::PORT),
        dns_v6,
        upstreams: upstreams.servers.clone(),
        engine_dns: engine(&upstreams),
        inbound: innkeeper.config.network.inbound.iter().map(|port| port.port).collect(),
        closed_loopback: closed,
        nflog_group: NFLOG_GROUP,
        vm: network.initial && network.initial_pids,
    };
    Ok(Resolver { sockets, upstreams, plan, ipv6: network.ipv6_route })
}

/// Docker's server forwards from a uid-0 socket inside the box only to what it did not mark as `host(…)`.
fn engine(upstreams: &Upstreams) -> Option<EngineDns> {
    match upstreams.engine.as_ref()? {
        EngineForwarding::To(servers) if servers.is_empty() => None,
        EngineForwarding::To(servers) => Some(EngineDns { forwards_to: servers.clone() }),
        EngineForwarding::Unknown => Some(EngineDns { forwards_to: Vec::new() }),
    }
}

// --- 6: firewall ---

fn firewall(innkeeper: &Innkeeper, steps: &Steps, resolver: Resolver) -> Result<EgressLocked, Failure> {
    let Some(firewall) = innkeeper.firewall.get() else {
        let trouble = Trouble::unfit("the lockdown is gone", "please report this");
        return Err(Failure { step: FIREWALL.name, trouble });
    };
    let Resolver { sockets, upstreams, plan, ipv6 } = resolver;
    if let Some(engine) = &plan.engine_dns {
        innkeeper.board().warn(host::engine_warning(engine));
    }
    let limit = innkeeper.config.network.boot_timeout;
    steps.run(
        FIREWALL,
        || Ok(plan),
        |plan| {
            let allowlist = innkeeper.allowlist();
            let loaded = firewall.load(plan.clone(), (*allowlist).clone());
            loaded.map_err(|error| host::firewall_trouble(&error))?;
            let worker = keeper::Plan {
                identity: Identity::worker(innkeeper.accounts.dns.uid, innkeeper.accounts.dns.gid),
                upstreams: upstreams.servers.clone(),
                refresh: innkeeper.config.network.refresh,
                ipv6,
            };
            let policy = innkeeper.worker_policy();
            let (spawner, board) = (innkeeper.spawner.clone(), Arc::clone(innkeeper.board()));
            let started = Keeper::start(worker, sockets, policy, spawner, board, firewall.clone());
            let (keeper, primed) = started.map_err(|error| Trouble::internal(&error))?;
            drop(innkeeper.keeper.set(keeper));
            drop(innkeeper.upstreams.set(upstreams.servers.clone()));
            drop(innkeeper.rules.set(crate::firewall::ruleset::skeleton(plan).to_string()));
            if primed.recv_timeout(limit).is_err() {
                event("boot", "not every name was answered in time; it goes on in the background");
            }
            Ok(())
        },
        |_| {
            let locked =
                EgressLocked::verify(firewall).map_err(|found| Trouble::unfit(found, host::NEXT_FIREWALL))?;
            let open = firewall.report().addresses.len();
            let names = innkeeper.allowlist().exact_names().len();
            if open == 0 && names > 0 {
                let detail = "no name was answered yet; all are asked again in the background";
                return Ok(Verified::degraded(locked, detail));
            }
            Ok(Verified::new(locked, format!("{open} addresses open; the rest is refused")))
        },
    )
}

// --- 8: identity ---

fn identity(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let config = &innkeeper.config;
    let plan = || {
        let extra_ca = match &config.tls.ca_certs {
            Some(path) => Some(identity::certificates(&path.display().to_string()).map_err(|error| {
                Trouble::unfit(chain(&error), "tls.ca_certs must name a PEM file that is in the box")
            })?),
            None => None,
        };
        let with_token = config.secrets.get("GH_TOKEN").is_some();
        let hosts = CREDENTIAL_HOSTS.iter().filter(|_| with_token).map(|host| (*host).to_owned()).collect();
        let (name, email) = (config.identity.name.clone(), config.identity.email.clone());
        let model_url = match &config.model {
            Model::Anthropic => Some("https://api.anthropic.com".to_owned()),
            Model::Gateway { url } => Some(url.as_str().to_owned()),
            Model::Bedrock { .. } | Model::Vertex { .. } => None,
        };
        Ok(identity::Plan { name, email, extra_ca, credential_hosts: hosts, model_url })
    };
    steps.run(
        IDENTITY,
        plan,
        |plan| identity::apply(plan).map_err(|error| Trouble::internal(&error)),
        |plan| {
            let found = identity::verify(plan);
            let next = "the image must link /etc/gitconfig to /run/innkeeper/etc/gitconfig";
            found.map(|detail| Verified::new((), detail)).map_err(|found| Trouble::unfit(found, next))
        },
    )
}

// --- 9: seal ---

fn seal(innkeeper: &Innkeeper, steps: &Steps, places: &[Mount]) -> Result<Sealed, Failure> {
    let accepted = |name: &str| innkeeper.config.boot.accepts(name);
    let plan = || {
        let doors = filesystem::surfaces::find().map_err(|error| Trouble::internal(&error))?;
        Ok((Writable::new(places, innkeeper.accounts.agent.owner()), doors))
    };
    steps.run(
        SEAL,
        plan,
        |(writable, doors)| {
            // Both go on after a failure; what counts is what the verification finds.
            if let Err(error) = filesystem::surfaces::cover(doors) {
                event("seal", &chain(&error));
            }
            if let Err(error) = filesystem::seal::apply(writable) {
                event("seal", &chain(&error));
            }
            Ok(())
        },
        |(writable, doors)| match filesystem::seal::verify(writable) {
            Ok(()) => {
                let detail = if doors.is_empty() {
                    "read-only but for the agent's places".to_owned()
                } else {
                    format!("read-only but for the agent's places; {} host doors covered", doors.len())
                };
                Ok(Verified::new(Sealed::new(writable.clone(), doors.clone()), detail))
            }
            Err(found) if accepted("rootfs") => {
                let detail = format!("given up by boot.accept=rootfs: {found}");
                Ok(Verified::degraded(Sealed::new(writable.clone(), doors.clone()), detail))
            }
            Err(found) => Err(Trouble::unfit(found, host::NEXT_SEAL)),
        },
    )
}

// --- 10: readiness ---

fn readiness(
    innkeeper: &Arc<Innkeeper>,
    steps: &Steps,
    sealed: &Sealed,
    _: &EgressLocked,
) -> Result<(), Failure> {
    steps.run(
        READINESS,
        || Ok(protections::Attack::plan(innkeeper, sealed)),
        |_| Ok(()),
        |attack| {
            let attempts = attack.run().map_err(|error| Trouble::internal(&error))?;
            protections::register(innkeeper, attack, sealed)?;
            Ok(Verified::new((), crate::readiness::summary(&attempts, None)))
        },
    )
}

fn ready(innkeeper: &Innkeeper) {
    let took = crate::init::since(innkeeper.began);
    innkeeper.board().update(|report| {
        if report.phase == Phase::Booting {
            report.phase = Phase::Ready;
        }
        report.boot.ready_ms = Some(milliseconds(took));
        report.session.detail = "the box is ready; the task begins".to_owned();
    });
    event("boot", &format!("ready after {:.0} ms", took.as_secs_f64() * 1e3));
}

// --- 11, 12: the task ---

fn task(innkeeper: &Arc<Innkeeper>, locked: &EgressLocked, _: &Sealed) {
    let cloned = repositories(innkeeper, &innkeeper.config.repositories, locked);
    innkeeper.board().step("repositories", StepState::Ok, None, cloned.detail);
    let plan = host::session_plan(innkeeper, cloned.first);
    if let Some(prompt) = &plan.start.prompt {
        event("session", &format!("the prompt has the SHA-256 {}", host::sha256(prompt)));
    }
    let (spawner, board) = (innkeeper.spawner.clone(), Arc::clone(innkeeper.board()));
    match Session::start(plan, spawner, board, locked) {
        Ok(session) => drop(innkeeper.session.set(session)),
        Err(error) => event("session", &format!("cannot start its thread: {error}")),
    }
    let looking = Arc::clone(innkeeper);
    let look = thread("look", move || {
        crate::image_audit::run(&looking);
        host::foreign_rules(&looking);
    });
    if let Err(error) = look {
        event("audit", &format!("the image was not looked at: {error}"));
    }
}

struct Cloned {
    first: Option<String>,
    detail: String,
}

/// Every repository on a thread of its own; one that fails or takes long does not hold up the session for ever.
fn repositories(innkeeper: &Arc<Innkeeper>, repositories: &[Repository], locked: &EgressLocked) -> Cloned {
    if repositories.is_empty() {
        return Cloned { first: None, detail: "none configured".to_owned() };
    }
    let board = innkeeper.board();
    board.step("repositories", StepState::Running, None, String::new());
    let (sender, done) = std::sync::mpsc::channel();
    for (index, repository) in repositories.iter().enumerate() {
        let plan = workspace::Plan {
            repository: repository.clone(),
            identity: agent_identity(innkeeper, layout::WORKSPACE),
            env: agent_environment(innkeeper),
        };
        let (sender, innkeeper, locked) = (sender.clone(), Arc::clone(innkeeper), locked.clone());
        let cloning = thread("clone", move || {
            let worked = workspace::clone(&plan, &innkeeper.spawner, innkeeper.board(), &locked);
            // Nobody listens any more when it took too long.
            drop(sender.send((index, worked.then(|| plan.directory()))));
        });
        if let Err(error) = cloning {
            event("repositories", &format!("cannot begin a clone: {error}"));
        }
    }
    drop(sender);
    let deadline = std::time::Instant::now() + workspace::PATIENCE;
    let mut cloned = Vec::new();
    while let Ok(result) = done.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
        cloned.push(result);
    }
    cloned.sort();
    let directories: Vec<String> = cloned.into_iter().filter_map(|(_, directory)| directory).collect();
    let detail = format!("{} of {} in place", directories.len(), repositories.len());
    Cloned { first: directories.into_iter().next(), detail }
}

/// For the attack's plan: directories where nobody but root may make a file.
#[must_use]
pub fn sealed_directories(writable: &Writable) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> =
        ["/", "/etc", "/usr/local/bin", "/opt", "/var", "/run", "/root", "/dev", "/run/innkeeper"]
            .map(PathBuf::from)
            .to_vec();
    directories.extend(writable.sealed_mounts());
    directories.retain(|path| {
        std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && !m.file_type().is_socket())
    });
    directories.sort();
    directories.dedup();
    directories
}
