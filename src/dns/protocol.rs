//! What PID 1 and the worker `dns` say to each other, over the socketpair that is the worker's standard input.
//!
//! The first frame to the worker is [`ToWorker::Setup`] and carries the listening sockets by SCM_RIGHTS, in the order of
//! [`Setup::sockets`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::name_server::NameServer;
use crate::allowlist::DomainName;
use crate::worker::policy::Policy;
use crate::worker::protocol::{Attributes, ClientDenial, Frame, MAX_POLICY, News, Order};

/// The largest frame from PID 1: a policy.
pub const MAX_TO_WORKER: usize = MAX_POLICY;
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
    /// Answered with [`FromWorker::Pong`], by a worker that does not hang.
    Ping,
    Policy(Policy),
    Admitted(Admitted),
    /// Addresses of these names were closed to make room: what was learned of the names is no longer true.
    Forget {
        names: Vec<DomainName>,
    },
    /// PID 1 has looked who asked ([`ClientDenial::id`]): the client may have its answer.
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
    Pong,
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
    Denied(ClientDenial),
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

impl Frame for ToWorker {
    const LIMIT: usize = MAX_TO_WORKER;
}

impl Frame for FromWorker {
    const LIMIT: usize = MAX_FROM_WORKER;
}

impl News for FromWorker {
    fn is_metered(&self) -> bool {
        match self {
            Self::Pong | Self::Denied(_) | Self::Health(_) => true,
            // As many as there are names, at once after a boot or while the upstreams are down. Nothing of it is written down:
            // the firewall bounds what it admits, and few of the names that fail are kept.
            Self::Serving | Self::Learned(_) | Self::Primed { .. } | Self::Failed { .. } => false,
        }
    }
}

impl Order for ToWorker {
    const WORKER: &'static str = "dns";
    type Setup = Setup;

    fn into_setup(self) -> Option<(Setup, usize)> {
        match self {
            Self::Setup(setup) => {
                let sockets = setup.sockets.len();
                Some((setup, sockets))
            }
            Self::Ping
            | Self::Policy(_)
            | Self::Admitted(_)
            | Self::Forget { .. }
            | Self::Attributed { .. }
            | Self::Refresh { .. } => None,
        }
    }

    fn ping() -> Self {
        Self::Ping
    }
}

impl Attributes for ToWorker {
    fn attributed(id: u64) -> Self {
        Self::Attributed { id }
    }
}
