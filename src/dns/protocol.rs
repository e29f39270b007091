//! What PID 1 and the worker `dns` say to each other, over the socketpair that is the worker's standard input.
//!
//! The first frame to the worker is [`ToWorker::Setup`] and carries the listening sockets by SCM_RIGHTS, in the order of
//! [`Setup::sockets`].

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::name_server::NameServer;
use crate::allowlist::{Allowlist, DomainName, Origin, RuleError, parse_rule};

/// The largest frame from PID 1: a policy of 10,000 names is under 1 MiB.
pub const MAX_TO_WORKER: usize = 16 << 20;
/// The largest frame that PID 1 accepts from the worker: a name, its addresses and little else.
pub const MAX_FROM_WORKER: usize = 16 << 10;

/// The kind of each socket that comes with the setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketKind {
    Udp,
    Tcp,
}

/// From PID 1 to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum ToWorker {
    Setup(Setup),
    Policy(Policy),
    Admitted(Admitted),
    /// Addresses of these names were closed to make room: what was learned of the names is no longer true.
    Forget {
        names: Vec<DomainName>,
    },
    /// PID 1 has looked who asked ([`DnsDenial::id`]): the client may have its answer.
    Attributed {
        id: u64,
    },
    /// Time was lost (a suspended machine, a paused container), or the network is another: every exact name is asked
    /// again now.
    Refresh {
        /// As in the setup.
        ipv6: bool,
    },
}

/// Everything that the worker needs to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub sockets: Vec<SocketKind>,
    pub upstreams: Vec<NameServer>,
    /// Certificates of authorities (PEM), where an upstream is asked by TLS: the worker reads no files.
    pub roots: Option<String>,
    pub policy: Policy,
    /// How often every exact name is asked again at the latest, in seconds.
    pub refresh_s: u64,
    /// False where the host can't open IPv4 safely: then A is answered empty.
    pub ipv4: bool,
    /// Whether the host has a route for IPv6: without one AAAA is answered empty, so that no client waits on it.
    pub ipv6: bool,
    /// The world is reached through a proxy: what the upstreams don't know leads to the gate all the same.
    #[serde(default)]
    pub proxied: bool,
    /// What a former worker had learned last.
    pub known: Vec<LastGood>,
}

/// The last good addresses of a name, of one family: they may stand in when upstreams fail (RFC 8767), after PID 1 has
/// admitted them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    pub name: DomainName,
    pub addresses: Vec<IpAddr>,
    /// How long ago the answer's own time was over, in seconds.
    pub ended_s: u64,
}

/// The rules, as text in the grammar of `network/domains.conf` without origins, and their generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub generation: u64,
    pub rules: Vec<String>,
    /// Whether the agent can ask for what is refused (`network.requests`).
    #[serde(default)]
    pub requests: bool,
}

/// PID 1's answer to [`Learned`]: the addresses that are now open in the kernel, perhaps none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    pub id: u64,
    pub addresses: Vec<IpAddr>,
}

/// From the worker to PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum FromWorker {
    /// Sockets taken over, policy understood: questions are answered from now on.
    Serving,
    Learned(Learned),
    /// Every exact name of this policy generation has been answered or has failed once.
    Primed {
        generation: u64,
    },
    /// A name could not be resolved; what is open for it stays open until it expires.
    Failed {
        name: DomainName,
        cause: String,
    },
    Denied(DnsDenial),
    Health(Health),
}

/// "Name resolved to these addresses for so many seconds": a request to open them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    pub id: u64,
    pub name: DomainName,
    pub addresses: Vec<IpAddr>,
    pub ttl_s: u32,
    /// The upstreams failed and this is the last good answer (RFC 8767).
    pub stale: bool,
}

/// A question that was refused. `what` came from the agent: render it inert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsDenial {
    pub what: String,
    pub reason: String,
    pub uid: Option<u32>,
    /// Inode of the client's socket, by which PID 1 may find the process.
    pub inode: Option<u64>,
    pub count: u64,
    /// Set while the client is kept waiting, so that its process still exists when PID 1 looks; PID 1 answers with
    /// [`ToWorker::Attributed`].
    pub id: Option<u64>,
    /// The rule that would let it pass, where that is not the bare name's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl Policy {
    /// The rules as they decide.
    pub fn allowlist(&self) -> Result<Allowlist, RuleError> {
        let name: Arc<str> = "policy".into();
        let origin = || Origin::Setting { name: name.clone() };
        let rules =
            self.rules.iter().map(|text| parse_rule(text, origin())).collect::<Result<Vec<_>, _>>()?;
        Ok(Allowlist::new(rules))
    }
}

/// Sent at most once a second, when something changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub queries: u64,
    pub allowed: u64,
    pub denied: u64,
    pub upstreams: Vec<UpstreamHealth>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamHealth {
    pub server: NameServer,
    pub healthy: bool,
    /// What is odd about it.
    pub note: Option<String>,
}
