//! The configuration of the box: every source read, every problem found, one typed value.
//!
//! Order of precedence: `INNKEEPER_SECTION_KEY`, a variable of other tools that means the same, `innkeeper.toml`, the
//! default; of a secret `NAME`, `NAME_FILE`, `/run/secrets/NAME`. Nothing is applied here: what comes out is complete
//! and consistent, or it is a report of all that is wrong.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::allowlist::{Ceiling, Rule};
use crate::control::protocol::Task;
use crate::dns::name_server::NameServer;
use crate::gate::upstream::Proxy;
use crate::notices::webhook::Webhook;
use crate::secrets::{Holder, SecretName, Secrets};
use crate::telemetry::Telemetry;

mod build;
mod claude;
mod credentials;
pub mod environment;
mod files;
mod notices;
pub mod policy;
pub mod problems;
pub mod provider;
mod proxy;
mod raw;
pub mod repository;
pub mod settings;
mod telemetry;
pub mod units;
mod values;
mod variables;

pub use environment::Environment;
pub use problems::{Cause, Problem, Problems};
pub use provider::{AgentValue, AgentVariable, Model};
pub use repository::{RepoUrl, Repository};
pub use units::ByteSize;

/// Where the configuration is looked for.
#[derive(Debug)]
pub struct Sources {
    pub env: Environment,
    pub toml_path: PathBuf,
    pub allowlist_path: PathBuf,
    pub profiles_dir: PathBuf,
    pub ceiling_path: PathBuf,
    pub secrets_dir: PathBuf,
    /// The task that the operator brought later; from then on nothing may be missing.
    pub task: Option<Task>,
}

impl Sources {
    /// The same with a task: what it brings wins.
    #[must_use]
    pub fn with_task(&self, task: &Task) -> Self {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let secrets = task.secrets.iter().map(|(name, value)| pair(name, value));
        let prompt = task.prompt.iter().map(|prompt| pair(PROMPT, prompt));
        let given = self.env.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            env: secrets.chain(prompt).chain(given).collect(),
            toml_path: self.toml_path.clone(),
            allowlist_path: self.allowlist_path.clone(),
            profiles_dir: self.profiles_dir.clone(),
            ceiling_path: self.ceiling_path.clone(),
            secrets_dir: self.secrets_dir.clone(),
            task: Some(task.clone()),
        }
    }
}

/// The variable that is `session.prompt`.
const PROMPT: &str = "INNKEEPER_SESSION_PROMPT";

impl Default for Sources {
    /// The places of the design, and no environment.
    fn default() -> Self {
        Self {
            env: Environment::default(),
            toml_path: "/etc/innkeeper/innkeeper.toml".into(),
            allowlist_path: "/etc/innkeeper/network/domains.conf".into(),
            profiles_dir: "/etc/innkeeper/network/profiles".into(),
            ceiling_path: "/etc/innkeeper/ceiling.conf".into(),
            secrets_dir: "/run/secrets".into(),
            task: None,
        }
    }
}

/// The whole configuration.
#[derive(Debug)]
pub struct Config {
    pub model: Model,
    pub secrets: Secrets,
    /// What `secrets.required` names.
    pub required_secrets: Vec<SecretName>,
    pub network: Network,
    pub filesystem: Filesystem,
    pub repositories: Vec<Repository>,
    pub session: Session,
    pub agent: AgentPermissions,
    pub claude: Claude,
    /// None: nothing is sent.
    pub telemetry: Option<Telemetry>,
    pub tls: Tls,
    pub persist: Persist,
    pub log: Log,
    pub notices: Notices,
    pub boot: Boot,
    pub identity: Identity,
    /// What a box that waits for its task still lacks: names of secrets, each with what needs it.
    pub missing: Vec<String>,
    /// What is odd, but no reason not to start.
    pub warnings: Vec<String>,
}

impl Config {
    /// What the agent's environment gets by configuration: the provider's variables, and what `secrets.required`
    /// names unless somebody else than the agent holds it.
    #[must_use]
    pub fn agent_variables(&self) -> Vec<AgentVariable<'_>> {
        let mut variables = self.model.variables(&self.secrets);
        for name in &self.required_secrets {
            let held = self.secrets.credential(name.as_str()).filter(|one| one.held_by == Holder::Agent);
            if let Some(credential) = held
                && variables.iter().all(|variable| variable.name != name.as_str())
            {
                variables.push(AgentVariable::of_secret(credential));
            }
        }
        variables
    }
}

/// What the box may reach, and how that is enforced.
#[derive(Debug)]
pub struct Network {
    /// Every effective rule with its origin, the repositories' hosts and the model's names included.
    pub rules: Vec<Rule>,
    pub ceiling: Ceiling,
    pub profiles: Vec<String>,
    /// DNS servers; those of the old resolv.conf if empty.
    pub upstreams: Vec<NameServer>,
    pub backend: Backend,
    pub gate: Gate,
    pub refresh: Duration,
    pub boot_timeout: Duration,
    pub inbound: Vec<ListenPort>,
    pub loopback: Vec<ListenPort>,
    pub requests: Requests,
    /// Through which the world is reached where there is no other way.
    pub proxy: Option<Proxy>,
}

/// What becomes of a name that the agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// Nobody is asked.
    Deny,
    /// It waits for the operator.
    Queue,
}

/// What the firewall is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Auto,
    Nftables,
    Iptables,
}

/// How connections come to the egress gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Sent there by the kernel; where it can't, as by [`Gate::Proxy`].
    Auto,
    /// Sent there by the kernel, or the boot ends.
    Redirect,
    /// Programs ask it, and have no other way out.
    Proxy,
}

/// A port and its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenPort {
    pub port: u16,
    pub transport: Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for ListenPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.port)
    }
}

/// The sizes of the writable places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    pub workspace_size: ByteSize,
    pub tmp_size: ByteSize,
    pub home_size: ByteSize,
}

/// How the agent works, and when it ends.
#[derive(Debug)]
pub struct Session {
    pub agent: Agent,
    /// Further arguments of the agent.
    pub args: Vec<String>,
    /// What runs in the agent's place; the agent if empty.
    pub command: Vec<String>,
    pub prompt: Option<Prompt>,
    pub start: Start,
    pub mode: Mode,
    pub on_exit: OnExit,
    pub limits: crate::session::Limits,
    pub stop_timeout: Duration,
}

/// When the task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the boot.
    Boot,
    /// When the operator brings it: `innkeeper start`.
    Wait,
}

/// How the agent works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On a terminal that operators can come to.
    Tmux,
    /// Without one, to an end.
    Headless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    Claude,
}

/// What happens when the agent exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    Restart,
    Shell,
    Stop,
}

/// The task of the agent. It is nobody else's business: logs name its SHA-256 only.
#[derive(Clone, PartialEq, Eq)]
pub struct Prompt(String);

impl Prompt {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prompt({} octets)", self.0.len())
    }
}

/// Kernel features that the agent is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AgentPermissions {
    /// New user namespaces.
    pub userns: bool,
    pub ptrace: bool,
}

/// What Claude Code is given beside its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claude {
    pub on: Vec<Comfort>,
    /// The file of patterns, without any fault.
    pub formatters: Option<PathBuf>,
    /// The text of the operator's CLAUDE.md.
    pub instructions: Option<String>,
    pub skills: Option<PathBuf>,
    pub plugins: Option<PathBuf>,
}

impl Claude {
    #[must_use]
    pub fn has(&self, comfort: Comfort) -> bool {
        self.on.contains(&comfort)
    }
}

/// What can be switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comfort {
    StatusLine,
    Notes,
    Hints,
    SessionNames,
    SyncFork,
}

/// Trust beside every tool's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// A PEM file with at least one certificate.
    pub ca_certs: Option<PathBuf>,
}

/// What is saved on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persist {
    /// Zero: no timer.
    pub interval: Duration,
    pub size: ByteSize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// The audit log on a volume.
    pub file: Option<PathBuf>,
    /// Octets of it, after which it is turned over.
    pub file_size: ByteSize,
}

/// What the operator is told, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notices {
    /// Program and arguments.
    pub command: Vec<String>,
    pub webhook: Option<Webhook>,
    pub on: Vec<crate::notices::Kind>,
}

impl Notices {
    /// Whether they need a user to be sent as.
    #[must_use]
    pub fn are_sent(&self) -> bool {
        !self.command.is_empty() || self.webhook.is_some()
    }
}

/// How events are written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Protections given up, by name.
    pub accept: Vec<String>,
}

impl Boot {
    #[must_use]
    pub fn accepts(&self, protection: &str) -> bool {
        self.accept.iter().any(|accepted| accepted == protection)
    }
}

/// The author of the agent's commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub email: String,
}

/// Reads and checks everything. An error holds all problems, each once, without any secret.
pub fn load(sources: &Sources) -> Result<Config, Problems> {
    build::build(sources)
}

#[cfg(test)]
mod tests;
