//! The entries of the audit log: the shapes that people read by `log --json`, standard error and the file. (pure)

use serde::{Deserialize, Serialize};

use crate::report;
use crate::resources::warnings::octets;
use crate::status::report::{RequestState, SessionState};

/// One entry. `seq` grows; an entry that is counted up gets a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Entry {
    pub schema: u8,
    pub seq: u64,
    /// RFC 3339: when it was written, or last counted up.
    pub time: String,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase", tag = "event")]
pub enum What {
    /// Something happened in this room of the box.
    Note {
        source: String,
        message: String,
    },
    Policy(PolicyChange),
    Denied(Refused),
    Used(Use),
    /// The session became another, or Claude told something of it.
    Session(SessionChange),
    /// A worker started or ended.
    Worker(WorkerChange),
    /// A person came to the box, or left it.
    Operator(Visit),
    /// The agent asked for a name, or somebody decided on that.
    Request(RequestChange),
}

impl What {
    /// Whether a person did it, or a box on a person's behalf: written whatever the agent does meanwhile.
    #[must_use]
    pub fn is_of_people(&self) -> bool {
        match self {
            Self::Policy(_) | Self::Operator(_) => true,
            Self::Request(change) => change.by != BY_AGENT,
            Self::Note { .. } | Self::Denied(_) | Self::Used(_) | Self::Session(_) | Self::Worker(_) => false,
        }
    }
}

/// Who asked, in a [`RequestChange`].
pub const BY_AGENT: &str = "agent";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionChange {
    pub state: SessionState,
    /// What led to it.
    pub detail: String,
    pub claude_pid: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkerChange {
    pub name: String,
    /// None: it has ended.
    pub pid: Option<i32>,
    pub restarts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Coming {
    Entered,
    Left,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Visit {
    /// The same number when the person leaves.
    pub id: u64,
    pub action: Coming,
    /// What was entered: `session`, or a root `shell`.
    pub place: String,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RequestChange {
    pub id: u64,
    pub rule: String,
    pub state: RequestState,
    /// Whose doing this is: the agent's, the operator's, the clock's, the policy's.
    pub by: String,
    /// The agent's words.
    pub reason: String,
    /// What became of it.
    pub detail: String,
}

/// The policy became another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyChange {
    pub generation: u64,
    pub rules: usize,
    /// Who: the operator, a file that was read again, or the clock.
    pub by: String,
    /// What came of each rule, one a line.
    pub change: String,
}

/// What was refused, so often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refused {
    pub layer: String,
    #[serde(rename = "what")]
    pub target: String,
    pub uid: Option<u32>,
    pub process: Option<String>,
    pub reason: String,
    /// The command that would allow it.
    pub allow: String,
    /// RFC 3339.
    pub first: String,
    pub last: String,
    pub count: u64,
}

/// Connections that the policy let out, to one address and port by one uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Use {
    /// The allowlisted name through which the address is open.
    pub name: String,
    /// Others that share the address: which of them was meant is not known to a packet filter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    pub address: String,
    pub port: u16,
    /// The rule that allows it, and where that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    pub uid: Option<u32>,
    /// RFC 3339.
    pub first: String,
    pub last: String,
    pub count: u64,
    /// Octets, where the gate carried it: a packet filter does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
}

/// Entries after a given one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Page {
    /// The box's id, which `log --json` adds to each.
    #[serde(rename = "box")]
    pub box_: String,
    pub entries: Vec<Entry>,
    /// Ask for what comes after this next.
    pub last: u64,
}

impl std::fmt::Display for Entry {
    /// One line for a person. Everything from outside was made inert when it came in; it is once more here.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match &self.what {
            What::Note { source, message } => format!("{source:<9} {message}"),
            What::Policy(change) => format!(
                "policy    generation {}, {} rules ({}): {}",
                change.generation,
                change.rules,
                change.by,
                change.change.replace('\n', "; ")
            ),
            What::Session(change) => format!("session   {change}"),
            What::Worker(change) => format!("worker    {change}"),
            What::Operator(visit) => format!("operator  {visit}"),
            What::Request(change) => format!("request   {change}"),
            What::Denied(refused) => format!(
                "denied    {} {}, {}×, {}: {}; {}",
                refused.layer,
                refused.target,
                refused.count,
                who(refused.uid, refused.process.as_deref()),
                refused.reason,
                refused.allow
            ),
            What::Used(used) => {
                let also = match used.also.len() {
                    0 => String::new(),
                    others => format!(" or {others} more names of this address"),
                };
                let carried = match (used.bytes_out, used.bytes_in) {
                    (Some(out), Some(inward)) => format!(", {} out, {} in", octets(out), octets(inward)),
                    (Some(_) | None, _) => String::new(),
                };
                let who = who(used.uid, None);
                format!(
                    "used      {}:{}{also} ({}), {}×{carried}, {who}",
                    used.name, used.port, used.address, used.count
                )
            }
        };
        write!(f, "{} {}", self.time, report::inert(&text))
    }
}

impl std::fmt::Display for SessionChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.state)?;
        if let Some(pid) = self.claude_pid {
            write!(f, ", pid {pid}")?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::fmt::Display for WorkerChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} runs, pid {pid}, {} restarts", self.name, self.restarts),
            None => write!(f, "{} has ended, {} restarts", self.name, self.restarts),
        }
    }
}

impl std::fmt::Display for Visit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let action = match self.action {
            Coming::Entered => "entered",
            Coming::Left => "left",
        };
        let how = if self.read_only { ", read-only" } else { "" };
        write!(f, "visitor {} {action} the {}{how}", self.id, self.place)
    }
}

impl std::fmt::Display for RequestChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for {}: {} by {}", self.id, self.rule, self.state, self.by)?;
        if !self.detail.is_empty() {
            write!(f, ", {}", self.detail)?;
        }
        if self.reason.is_empty() { Ok(()) } else { write!(f, "; the agent says: {}", self.reason) }
    }
}

fn who(uid: Option<u32>, process: Option<&str>) -> String {
    let uid = uid.map_or_else(|| "uid unknown".to_owned(), |uid| format!("uid {uid}"));
    process.map_or_else(|| uid.clone(), |process| format!("{uid} {process}"))
}
