//! What the boot asks of the host, and what it tells the operator when the host says no.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use super::places::{agent_environment, agent_identity};
use super::step::Trouble;
use crate::config::provider::AgentValue;
use crate::config::{Config, ListenPort, Mode, OnExit, Transport};
use crate::control::protocol::ClaudeStart;
use crate::dns::keeper;
use crate::dns::resolv_conf::{self, Upstreams};
use crate::filesystem::layout;
use crate::firewall::foreign;
use crate::firewall::ruleset::EngineDns;
use crate::firewall::{self, backend::BackendError, iptables::IptablesError, nftables::NftablesError};
use crate::headless;
use crate::innkeeper::Innkeeper;
use crate::namespace::Listener;
use crate::prerequisites::limits;
use crate::prerequisites::programs::CLAUDE;
use crate::report::chain;
use crate::session;
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, processes};

pub(super) const NEXT_FIREWALL: &str =
    "somebody else changed the table inet innkeeper during the boot: find out who";

/// Whether this is a Fly Machine: a machine of our own in which the platform's init is pid 1.
pub(super) fn fly_machine(innkeeper: &Innkeeper) -> bool {
    innkeeper.given("FLY_MACHINE_ID").is_some() && Path::new("/.fly").exists()
}

/// The remedy by the cause.
pub(super) fn firewall_trouble(error: &firewall::FirewallError) -> Trouble {
    let source = match error {
        firewall::FirewallError::Open(source)
        | firewall::FirewallError::Load(source)
        | firewall::FirewallError::ReadBack(source) => Some(source),
        firewall::FirewallError::Disturbed
        | firewall::FirewallError::Gone
        | firewall::FirewallError::Thread(_) => None,
    };
    let next = match source {
        Some(
            BackendError::Nftables(NftablesError::NotPermitted { .. })
            | BackendError::Iptables(IptablesError::NotPermitted { .. }),
        ) => "add the capability: docker run --cap-add NET_ADMIN …",
        Some(BackendError::Nftables(NftablesError::NoNfTables { .. })) => {
            "run on a kernel with nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET), or leave network.backend to \
             auto and put iptables into the image"
        }
        Some(BackendError::Iptables(IptablesError::Missing { .. })) => {
            "put iptables and ip6tables into the image (Debian: apt-get install iptables), or run on a kernel with \
             nf_tables"
        }
        // iptables asks the kernel by a raw socket: in the legacy variant always, in the other for ipset.
        Some(BackendError::Iptables(IptablesError::Failed { said, .. }))
            if said.contains("ermission denied") =>
        {
            "add the capability: docker run --cap-add NET_RAW …"
        }
        Some(BackendError::Iptables(_)) => {
            "the kernel lacks a part of iptables that the line above names: load its module on the host, or run on a \
             kernel with nf_tables"
        }
        Some(BackendError::Nftables(_)) | None => {
            "the kernel lacks a part of nf_tables: CONFIG_NFT_CT, NFT_NAT, NFT_REJECT_INET, NFT_LOG are needed"
        }
    };
    Trouble::unfit(chain(error), next)
}

/// How many processes the agent may have: the box's own bound less a reserve, beside what its uid has elsewhere.
pub(super) fn process_limit(innkeeper: &Innkeeper) -> Option<u64> {
    let agent = &innkeeper.accounts.agent;
    let count = Launch::own("count-processes", Some(Identity::worker(agent.uid, agent.gid)));
    let said = innkeeper.spawner.listen(count, COUNT_LIMIT, 64);
    let in_use = said.ok().filter(|said| said.exit.success()).and_then(|said| said.text.trim().parse().ok());
    if in_use.is_none() {
        innkeeper.board().warn("the agent's processes could not be counted, so their number is not limited");
    }
    Some(processes::limit(in_use?, limits::processes()))
}

/// Some twenty threads that end at once.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// Sockets that listen before ours: closed to the agent but for what the operator opened.
pub(super) fn closed_listeners(listeners: &[Listener], opened: &[ListenPort]) -> Vec<SocketAddr> {
    let opens = |open: &ListenPort, listener: &Listener| {
        open.port == listener.address.port() && (open.transport == Transport::Udp) == listener.udp
    };
    let mut closed: Vec<SocketAddr> = listeners
        .iter()
        .filter(|listener| !opened.iter().any(|open| opens(open, listener)))
        .map(|listener| listener.address)
        // The engine's resolver has rules of its own, on every port.
        .filter(|address| address.ip() != IpAddr::V4(resolv_conf::ENGINE))
        .collect();
    closed.sort();
    closed.dedup();
    closed
}

/// Says that somebody's listener is out of the agent's reach, and how to give it.
pub(super) fn listener_warning(listener: SocketAddr) -> String {
    format!(
        "{listener} listened before the box: closed to the agent; opened by network.loopback = [\"{}\"]",
        listener.port()
    )
}

/// Where it can't be written every packet to port 53 comes to us all the same.
pub(super) fn write_resolv_conf(path: &Path, former: &Upstreams, innkeeper: &Innkeeper) {
    let text = resolv_conf::render(IpAddr::V4(keeper::LISTEN_V4), former);
    // The embedded engine has written it, below a root that is read-only.
    if std::fs::read_to_string(path).is_ok_and(|written| written == text) {
        return;
    }
    let before = std::fs::read(path);
    match (overwrite(path, text.as_bytes()), before) {
        // For a boot that fails later.
        (Ok(()), Ok(before)) => drop(innkeeper.resolv_conf.set(before)),
        (Ok(()), Err(_)) => {}
        (Err(error), _) => innkeeper.board().warn(format!(
            "{} can't be written ({error}); programs that read it reach the box's resolver by redirection",
            path.display()
        )),
    }
}

/// In its place, since it is a mount of its own; never through a link.
pub(super) fn overwrite(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).truncate(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    file.write_all(content)
}

/// Rules of others that may stop or redirect what is allowed here; they are left alone.
pub(super) fn foreign_rules(innkeeper: &Innkeeper) {
    let path = ("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let launch = Launch::own("foreign-rules", None).env(vec![path]);
    let said = innkeeper.spawner.listen(launch, FOREIGN_LIMIT, 64 << 10);
    let said = said.map_err(|error| chain(&error)).and_then(|said| {
        serde_json::from_str::<foreign::Foreign>(&said.text)
            .map_err(|_| format!("{}: {}", said.exit, said.text))
    });
    let found = match said {
        Ok(found) => found,
        Err(error) => {
            let what = "whether rules of others stop allowed packets could not be looked at";
            return innkeeper.board().warn(format!("{what}: {}", crate::report::inert(error.trim())));
        }
    };
    for rule in found.conflicts {
        innkeeper
            .board()
            .warn(format!("a rule of somebody else may stop or redirect allowed packets: {rule}"));
    }
}

/// Listing a few chains takes milliseconds; waiting for the lock of another iptables may take longer.
const FOREIGN_LIMIT: Duration = Duration::from_secs(20);

pub(super) fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "nobody".to_owned() } else { texts.join(", ") }
}

pub(super) fn engine_warning(engine: &EngineDns) -> String {
    let whom = if engine.forwards_to.is_empty() {
        "any resolver, since this engine does not say whom it asks".to_owned()
    } else {
        list(&engine.forwards_to)
    };
    format!(
        "accepted: the engine's own resolver forwards from a uid-0 socket inside the box, so uid 0 may ask {whom} on \
         port 53 (the agent may not)"
    )
}

/// Claude's own settings that an agent or a repository must not turn: seen with the real binary, a settings file
/// that sets ANTHROPIC_BASE_URL or a proxy makes it send its token there, unless the host claims the provider.
const CLAUDE_ENV: &[(&str, &str)] = &[
    ("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "1"),
    ("CLAUDE_CODE_SANDBOXED", "1"),
    ("CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL", "1"),
];

/// The session: Claude Code, or what the operator put in its place.
pub(super) fn session_plan(
    innkeeper: &Innkeeper,
    config: &Config,
    repository: Option<String>,
) -> session::Plan {
    let workdir = repository.unwrap_or_else(|| layout::WORKSPACE.to_owned());
    let mut env = agent_environment(innkeeper);
    env.extend(CLAUDE_ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let (mut oauth_token, mut files) = (None, Vec::new());
    for variable in config.agent_variables() {
        match variable.value {
            AgentValue::Plain(value) => env.push((variable.name.to_owned(), value)),
            AgentValue::Secret(secret) if variable.name == "CLAUDE_CODE_OAUTH_TOKEN" => {
                oauth_token = Some(secret.expose().to_owned());
            }
            AgentValue::Secret(secret) => env.push((variable.name.to_owned(), secret.expose().to_owned())),
            AgentValue::SecretFile(secret) => {
                files.push((variable.name.to_owned(), secret.expose().to_owned()));
            }
        }
    }
    let (program, mut args) = match config.session.command.split_first() {
        Some((program, args)) => (program.clone(), args.to_vec()),
        None => {
            env.extend(super::comforts::telemetry_variables(innkeeper, config));
            let mut args = vec!["--dangerously-skip-permissions".to_owned()];
            args.extend(super::comforts::plugin_arguments(innkeeper));
            (CLAUDE.to_owned(), args)
        }
    };
    if config.session.mode == Mode::Headless && config.session.command.is_empty() {
        args.extend(headless::arguments());
    }
    args.extend(config.session.args.iter().cloned());
    let start = ClaudeStart {
        program,
        args,
        env,
        cwd: workdir.clone(),
        prompt: config.session.prompt.as_ref().map(|prompt| prompt.as_str().to_owned()),
        resume: false,
        oauth_token,
        files,
    };
    let on_exit = match config.session.on_exit {
        OnExit::Restart => session::OnExit::Restart,
        OnExit::Shell => session::OnExit::Shell,
        OnExit::Stop => session::OnExit::Stop,
    };
    session::Plan {
        identity: agent_identity(innkeeper, &workdir),
        env: agent_environment(innkeeper),
        workdir,
        start,
        goes_on: session::GoesOn::default(),
        is_claude: config.session.command.is_empty(),
        on_exit,
        limits: config.session.limits,
        notices: None,
        resources: innkeeper.resources.clone(),
    }
}
