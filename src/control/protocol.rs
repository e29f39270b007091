//! What clients and PID 1 say on the control socket: one line of JSON each way, and who may say what. (pure)

use serde::{Deserialize, Serialize};

use crate::audit::Page;
use crate::money::Microusd;
use crate::morning::work::RepositoryWork;
use crate::policy::check::Checked;
use crate::policy::lint::Finding;
use crate::policy::suggest::Suggestion;
use crate::status::report::{AccessRequest, Denial, Phase, Report, Session, Step};

/// Where PID 1 listens. The directory is root's, so nobody else can put a socket there.
pub const SOCKET: &str = "/run/innkeeper/control.sock";

/// The longest request of others than the operator: a name, a host, an exit status.
pub const MAX_REQUEST: usize = 4096;
/// The operator may bring a whole list of rules.
pub const MAX_OPERATOR_REQUEST: usize = 256 << 10;
/// The longest answer that a client takes: a status with a large allowlist.
pub const MAX_RESPONSE: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Everything about the box.
    Status,
    /// How far the boot is, for `attach`.
    Progress,
    /// The policy's verdict on a name or URL.
    Check { what: String },
    /// Read the policy again.
    Reload,
    /// Add rules to the policy, for so many seconds if they are given.
    Allow {
        rules: Vec<String>,
        for_s: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Take rules back.
    Revoke { rules: Vec<String> },
    /// Wish that a name be allowed.
    Ask { rule: String, reason: String },
    /// What became of a wish.
    Wish { id: u64 },
    /// All wishes.
    Requests,
    /// Allow what was asked for, for so many seconds if they are given.
    Grant { id: u64, for_s: Option<u64> },
    /// Do not.
    Refuse {
        id: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// What a person should know of the policy.
    Lint,
    /// The smallest allowlist that would have served.
    Suggest,
    /// What the audit log has after an entry; refusals only if so asked.
    Log { after: u64, denied: bool },
    /// The rule set that was loaded, as text.
    Rules,
    /// What was done in the repositories since then (seconds since 1970), else since the box began.
    Work {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<u64>,
    },
    /// The credential for a forge's host.
    Credential { host: String },
    /// This connection is the pane in which Claude runs; PID 1 sends orders on it.
    Pane,
    /// An operator is in the box as long as this connection is open; PID 1 rings on it.
    Seat { place: Place, read_only: bool },
    /// Claude Code's own hooks tell what it does: hearsay, as all that the agent says.
    Hook { turn: Turn, text: String },
    /// Claude Code's status line tells how far it is: hearsay.
    Gauge { gauge: Gauge },
    /// What this conversation is called; from `text`, if there is any, it is given a name.
    Name { conversation: String, text: String },
    /// What was refused to the agent in the last so many milliseconds.
    Refusals { last_ms: u64 },
    /// Begin the session anew, or stop it. Everything of the agent's ends first.
    Session { order: SessionOrder },
    /// Save the work to the volume now.
    Save,
    /// The task of a box that waits for one, or one more repository.
    Start { task: Task },
}

/// What the operator can have done with the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionOrder {
    Restart,
    Stop,
}

/// What Claude Code gives to its status line. All of it is hearsay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gauge {
    /// What the conversation cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_microusd: Option<Microusd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_percent: Option<u8>,
    /// When a usage limit that is reached ends: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_until: Option<u64>,
    /// What the conversation is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a box is told to do after its boot.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<TaskRepository>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Names and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<(String, String)>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the prompt nor a secret.
        f.debug_struct("Task").field("repositories", &self.repositories).finish_non_exhaustive()
    }
}

/// A repository as it was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskRepository {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
}

/// What an operator enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Session,
    Shell,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Shell => "shell",
        })
    }
}

/// Where Claude's turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    /// It waits for its first task.
    Idle,
    /// It works.
    Began,
    /// It needs an answer before it can go on.
    Asks,
    /// It has done what it was told, and waits for the next.
    Ended,
    /// The model's API did not let it go on.
    Failed,
}

impl Request {
    /// Reads a request strictly: what it would not say itself is no request of ours. (For internally tagged variants
    /// without fields serde ignores what stands beside the tag.)
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        let request: Self = serde_json::from_value(value.clone())?;
        if serde_json::to_value(&request)? == value {
            Ok(request)
        } else {
            Err(serde::de::Error::custom("it has fields that this request does not take"))
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Response {
    Status {
        report: Box<Report>,
    },
    Progress {
        phase: Phase,
        steps: Vec<Step>,
        session: Session,
        /// Whether the session can be entered, whatever Claude does in it.
        open: bool,
    },
    Verdict(Box<Checked>),
    Request {
        request: AccessRequest,
    },
    Requests {
        requests: Vec<AccessRequest>,
    },
    /// Not now: there were too many.
    Later {
        reason: String,
    },
    Lint {
        findings: Vec<Finding>,
    },
    Suggestion {
        suggestion: Suggestion,
    },
    Rules {
        text: String,
    },
    /// The policy is another now.
    Changed {
        generation: u64,
        rules: usize,
        /// What came of each rule.
        said: Vec<String>,
    },
    Log {
        page: Page,
    },
    Work {
        repositories: Vec<RepositoryWork>,
    },
    Credential {
        username: String,
        password: String,
    },
    Refusals {
        denials: Vec<Denial>,
    },
    Named {
        name: Option<String>,
    },
    /// It was taken note of.
    Heard,
    /// It was done; what there is to say of it, a line each.
    Done {
        said: Vec<String>,
    },
    /// The request is not for this uid.
    Refused {
        reason: String,
    },
    /// The request itself is wrong.
    Invalid {
        reason: String,
    },
    /// The request could not be done.
    Failed {
        reason: String,
    },
}

/// PID 1's orders to the pane, which shows Claude's terminal and knows nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum PaneOrder {
    /// It is the pane: how large is it?
    Join,
    /// The master of Claude's terminal comes with it. Whether Claude has drawn on it before: then it has to again.
    Show { again: bool },
    /// Claude has ended: show what it wrote last, and say when that is done.
    Ended,
    /// Tell the person who looks at the pane something, and wait.
    Say { text: String },
    /// Become a shell: `on_exit = "shell"`.
    Shell,
}

/// How Claude is to be started.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaudeStart {
    pub program: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    /// The first prompt, not yet worked on.
    pub prompt: Option<String>,
    /// Continue the last conversation if there is one.
    pub resume: bool,
    /// Given to Claude on a descriptor.
    pub oauth_token: Option<String>,
    /// Variables whose value is the path of a file with this content, as Google's client wants it.
    pub files: Vec<(String, String)>,
}

impl std::fmt::Debug for ClaudeStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // No field that may hold a secret.
        f.debug_struct("ClaudeStart")
            .field("program", &self.program)
            .field("cwd", &self.cwd)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

/// What the pane tells PID 1: hearsay, since it runs as the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "news", deny_unknown_fields)]
pub enum PaneNews {
    /// It is there, and so large.
    Joined { rows: u16, columns: u16 },
    /// What Claude wrote last has been shown.
    Drained,
}

/// Who asks, by uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    Operator,
    Agent,
    Other(u32),
}

impl Asker {
    #[must_use]
    pub fn new(uid: u32, agent: u32) -> Self {
        match uid {
            0 => Self::Operator,
            uid if uid == agent => Self::Agent,
            uid => Self::Other(uid),
        }
    }

    /// Whether this asker may make this request; the reason if not.
    pub fn may(self, request: &Request) -> Result<(), String> {
        let allowed = match (self, request) {
            // A pane and Claude's hooks run in the agent's session and nowhere else.
            (Self::Operator, Request::Pane | Request::Hook { .. } | Request::Gauge { .. }) => false,
            (Self::Operator, _) => true,
            (
                Self::Agent,
                Request::Status
                | Request::Progress
                | Request::Check { .. }
                | Request::Ask { .. }
                | Request::Wish { .. }
                | Request::Requests
                | Request::Credential { .. }
                | Request::Hook { .. }
                | Request::Gauge { .. }
                | Request::Refusals { .. }
                | Request::Name { .. }
                | Request::Pane,
            ) => true,
            (
                Self::Agent,
                Request::Reload
                | Request::Work { .. }
                | Request::Rules
                | Request::Allow { .. }
                | Request::Revoke { .. }
                | Request::Grant { .. }
                | Request::Refuse { .. }
                | Request::Lint
                | Request::Suggest
                | Request::Seat { .. }
                | Request::Session { .. }
                | Request::Save
                | Request::Start { .. }
                | Request::Log { .. },
            )
            | (Self::Other(_), _) => false,
        };
        if allowed { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(self) -> String {
        match self {
            Self::Operator => "this request is the session's own".to_owned(),
            Self::Agent => "only the operator may do this: run it as root, outside of the session".to_owned(),
            Self::Other(uid) => format!("uid {uid} has no business with the control socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Asker, Request};

    #[test]
    fn operator_requests_are_for_uid_0_alone() {
        let reload = Request::Reload;
        assert!(Asker::new(0, 1000).may(&reload).is_ok());
        assert!(Asker::new(1000, 1000).may(&reload).is_err());
        assert!(Asker::new(901, 1000).may(&reload).is_err());
        assert!(Asker::new(901, 1000).may(&Request::Status).is_err());
        assert!(Asker::new(0, 1000).may(&Request::Pane).is_err());
        assert!(Asker::new(1000, 1000).may(&Request::Credential { host: "github.com".into() }).is_ok());
    }

    #[test]
    fn unknown_and_padded_requests_are_refused() {
        for text in ["{}", r#"{"op":"shutdown"}"#, r#"{"op":"status","as":"root"}"#, "[]", "null", ""] {
            assert!(Request::parse(text).is_err(), "{text}");
        }
        assert_eq!(Request::parse(r#"{"op":"reload"}"#).unwrap(), Request::Reload);
    }
}
