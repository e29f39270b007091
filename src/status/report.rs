//! `status --json`: the shapes that people script against. (pure)

use serde::{Deserialize, Serialize};

/// The version of every shape here; a field may be added without a new one.
pub const SCHEMA: u8 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    pub schema: u8,
    pub version: String,
    pub phase: Phase,
    #[serde(rename = "box")]
    pub box_: BoxIdentity,
    pub boot: Boot,
    pub protections: Vec<Protection>,
    pub policy: Policy,
    pub dns: Dns,
    pub firewall: Firewall,
    pub gate: Gate,
    pub denials: Vec<Denial>,
    pub workers: Vec<Worker>,
    pub session: Session,
    pub secrets: Vec<SecretHeld>,
    pub repositories: Vec<Repository>,
    /// What a person should know and no field above says: accepted risks, too small a memory, ignored settings.
    pub warnings: Vec<String>,
    /// What the agent asked to be allowed, the newest last.
    pub requests: Vec<AccessRequest>,
    /// Who is in the box now.
    pub operators: Vec<Operator>,
    pub resources: Resources,
    /// Octets by name and port, the most first.
    pub traffic: Vec<Traffic>,
    /// Why octets are not measured here, or not all of them.
    #[serde(default)]
    pub traffic_note: Option<String>,
    pub audit: Audit,
    #[serde(default)]
    pub persist: Persist,
    /// Where Claude Code's telemetry goes, and whether content is in it; none: there is none.
    #[serde(default)]
    pub telemetry: Option<String>,
    /// Whom this was told: the agent does not get everything.
    #[serde(default)]
    pub audience: Audience,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    #[default]
    Operator,
    Agent,
}

/// The agent's wish for a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AccessRequest {
    pub id: u64,
    pub rule: String,
    /// The agent's words, inert.
    pub reason: String,
    pub state: RequestState,
    /// RFC 3339.
    pub time: String,
    pub decided_at: Option<String>,
    /// Until when it is granted; none: until the box ends.
    pub until: Option<String>,
    /// Why it was refused, or what came of it.
    pub detail: String,
    /// How often it was asked.
    pub count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RequestState {
    Pending,
    Granted,
    Refused,
    /// Nobody answered in time, or the grant's time is over.
    Expired,
}

impl std::fmt::Display for RequestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Expired => "expired",
        })
    }
}

/// A person in the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Operator {
    pub id: u64,
    /// RFC 3339.
    pub since: String,
    /// `session` or `shell`.
    pub place: String,
    pub read_only: bool,
}

/// What the box has, and how much of it is used up. Octets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Resources {
    /// None where no cgroup tells.
    pub memory: Option<Memory>,
    pub oom_kills: u64,
    /// The newest first: who was killed, as far as it is known.
    pub oom_victims: Vec<String>,
    pub mounts: Vec<Fill>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Memory {
    pub used: u64,
    /// None: no limit but the host's.
    pub limit: Option<u64>,
}

/// A file system of the box.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fill {
    pub path: String,
    /// What is used and what can be: without what the file system keeps back for root.
    pub size: u64,
    pub used: u64,
    /// Zero where the file system has no fixed number of them.
    pub inodes: u64,
    pub inodes_used: u64,
}

/// What went to a name, and came from it. Octets of TCP's payload, as the kernel counted them for each connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Traffic {
    pub name: String,
    pub port: u16,
    pub connections: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// The state of the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Audit {
    /// Entries written so far.
    pub entries: u64,
    /// Where they are kept beyond the box's life.
    pub file: Option<String>,
    /// The hash of the file's last line: who knows it notices a file that was cut.
    pub head: Option<String>,
    /// Lines that the file did not get: it was full or slow.
    pub lost: u64,
    /// Why the file can't be written now.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Booting,
    Ready,
    Stopping,
    Failed,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BoxIdentity {
    pub id: String,
    pub name: String,
    pub image_digest: Option<String>,
    pub policy_sha256: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Boot {
    pub lockdown_ms: Option<f64>,
    pub ready_ms: Option<f64>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Step {
    pub name: String,
    pub state: StepState,
    pub ms: Option<f64>,
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    Pending,
    Running,
    Ok,
    Degraded,
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Protection {
    pub name: String,
    pub held: bool,
    pub how: String,
    pub verified_at: String,
    pub detail: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Policy {
    pub generation: u64,
    pub rules: Vec<PolicyRule>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyRule {
    pub rule: String,
    pub by: String,
    /// Who: the file and line, the operator, or the request that was granted.
    pub origin: String,
    /// RFC 3339.
    pub since: String,
    /// Why: what was said when it was added.
    pub reason: Option<String>,
    pub expires_at: Option<String>,
    /// What decides about its connections: `sni` (the name that TLS shows), `host` (the one of each HTTP request), `address`
    /// (whatever answers at the name's addresses).
    #[serde(default)]
    pub judged_by: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Dns {
    pub queries: u64,
    pub allowed: u64,
    pub denied: u64,
    pub upstreams: Vec<Upstream>,
    /// Exact names that could not be resolved, and why.
    pub failing: Vec<FailingName>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Upstream {
    pub address: String,
    pub healthy: bool,
    /// What is odd about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FailingName {
    pub name: String,
    pub cause: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Firewall {
    pub backend: String,
    pub addresses: Vec<OpenAddress>,
    pub denied: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OpenAddress {
    pub name: String,
    pub address: String,
    pub ports: Vec<u16>,
    pub expires_at: String,
    /// The upstreams failed; this is the last good answer (RFC 8767).
    pub stale: bool,
}

/// The egress gate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Gate {
    /// Connections that were let through.
    pub connections: u64,
    pub denied: u64,
    /// Allowed, and nobody could be reached.
    #[serde(default)]
    pub failed: u64,
    /// Living now.
    #[serde(default)]
    pub open: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// How connections get there.
    #[serde(default)]
    pub how: String,
    /// What it does not see, and is accepted.
    #[serde(default)]
    pub unseen: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Denial {
    pub time: String,
    pub layer: String,
    pub what: String,
    pub uid: Option<u32>,
    pub process: Option<String>,
    pub reason: String,
    pub count: u64,
    pub allow: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Worker {
    pub name: String,
    pub pid: Option<i32>,
    pub uptime_s: f64,
    pub restarts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    Starting,
    Running,
    Waiting,
    Limited,
    Exited,
    Backoff,
    Parked,
    Done,
}

impl std::fmt::Display for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Limited => "limited",
            Self::Exited => "exited",
            Self::Backoff => "backoff",
            Self::Parked => "parked",
            Self::Done => "done",
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Session {
    pub state: SessionState,
    pub since: String,
    pub until: Option<String>,
    pub claude_pid: Option<i32>,
    pub restarts: u64,
    pub last_exit: Option<String>,
    /// Why it is in this state, where the state alone does not say.
    pub detail: String,
    /// What Claude said last when it finished a turn: hearsay, inert but for its line ends, at most 2000 characters.
    #[serde(default)]
    pub last_message: Option<String>,
    /// RFC 3339: when the session ends by `session.until` or `session.max_time`.
    #[serde(default)]
    pub deadline: Option<String>,
    /// US dollars, by Claude's own account: hearsay but for the result of a headless run.
    #[serde(default)]
    pub cost_usd: Option<f64>,
    /// How much of its context Claude has used: hearsay.
    #[serde(default)]
    pub context_percent: Option<u8>,
    /// What the conversation is called: hearsay.
    #[serde(default)]
    pub name: Option<String>,
    /// What was last on the screen of a Claude that ended: inert but for its line ends, at most 2000 characters.
    #[serde(default)]
    pub last_output: Option<String>,
    /// Whether it works without a terminal: nobody can enter it.
    #[serde(default)]
    pub headless: bool,
    /// The final result of a headless run, inert but for its line ends, at most 2000 characters.
    #[serde(default)]
    pub result: Option<String>,
}

/// What of the agent's work outlives the box.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Persist {
    /// Where it is saved; none: there is no volume.
    pub path: Option<String>,
    /// RFC 3339: the last save that is whole.
    pub saved_at: Option<String>,
    pub bytes: u64,
    pub took_ms: f64,
    /// Why the last try failed.
    pub trouble: Option<String>,
    /// What the last save left out, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// What was restored at boot.
    pub restored: Option<String>,
    /// What would be lost with the box now, as far as it was looked at.
    pub at_risk: Vec<AtRisk>,
    /// RFC 3339: when that was looked at.
    pub looked_at: Option<String>,
}

/// Work in a repository that is nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AtRisk {
    pub path: String,
    /// Commits that no remote has.
    pub commits: u64,
    /// Files that are changed or new, and in no commit.
    pub files: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SecretHeld {
    pub name: String,
    pub source: String,
    pub held_by: String,
    /// Whether the agent can read its value by some way; said, not hidden.
    pub agent_can_read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RepositoryState {
    Cloning,
    Cloned,
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Repository {
    pub path: String,
    pub url: String,
    pub state: RepositoryState,
    pub detail: String,
}
