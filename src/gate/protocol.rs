//! What PID 1 and the worker `gate` say to each other, over the socketpair that is the worker's standard input. (pure)
//!
//! The first frame to the worker is [`ToWorker::Setup`] and carries the listening sockets by SCM_RIGHTS, in the order of
//! [`Setup::sockets`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::upstream::Proxy;
use crate::allowlist::DomainName;
use crate::worker::policy::Policy;
use crate::worker::protocol::{Attributes, ClientDenial, Frame, MAX_POLICY, News, Order};

/// The largest frame from PID 1: a policy.
pub const MAX_TO_WORKER: usize = MAX_POLICY;
/// The largest frame that PID 1 accepts from the worker: [`MAX_USES`] uses.
pub const MAX_FROM_WORKER: usize = 64 << 10;
/// Uses in one frame.
pub const MAX_USES: usize = 128;

/// What arrives on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Connections that the firewall sent here; the kernel knows where they were going.
    Redirected,
    /// Clients come here themselves, as to their proxy.
    Explicit,
}

/// From PID 1 to the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum ToWorker {
    Setup(Setup),
    /// Answered with [`FromWorker::Pong`], by a worker that does not hang.
    Ping,
    Policy(Policy),
    /// PID 1 has looked who was refused ([`ClientDenial::id`]): the client may have its answer.
    Attributed {
        id: u64,
    },
}

/// Everything that the worker needs to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub sockets: Vec<Door>,
    /// The box's own resolver.
    pub resolver: SocketAddr,
    pub policy: Policy,
    /// Whose connections may not take the last places.
    pub agent_uid: u32,
    /// Through which everything goes whose rule is not `private`.
    pub proxy: Option<Proxy>,
    /// A connection on which nothing moves for so long ends.
    pub idle_s: u64,
    /// So does one that is so old.
    pub lifetime_s: u64,
}

/// From the worker to PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum FromWorker {
    /// Sockets taken over, policy understood: connections are judged from now on.
    Serving,
    Pong,
    Denied(ClientDenial),
    Totals(Totals),
    Used {
        uses: Vec<Used>,
    },
}

/// Since the worker began; sent at most once a second, when something changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections that were let through.
    pub connections: u64,
    pub denied: u64,
    /// Allowed, and nobody answered.
    pub failed: u64,
    /// Living now, the ones that have not said their name yet included.
    pub open: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// What came on top since the last frame, of one name, address, port and uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub name: DomainName,
    pub address: IpAddr,
    pub port: u16,
    pub uid: Option<u32>,
    /// Connections that began.
    pub count: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

impl Frame for ToWorker {
    const LIMIT: usize = MAX_TO_WORKER;
}

impl Frame for FromWorker {
    const LIMIT: usize = MAX_FROM_WORKER;
}

impl News for FromWorker {
    fn is_metered(&self) -> bool {
        true
    }
}

impl Order for ToWorker {
    const WORKER: &'static str = "gate";
    type Setup = Setup;

    fn into_setup(self) -> Option<(Setup, usize)> {
        match self {
            Self::Setup(setup) => {
                let sockets = setup.sockets.len();
                Some((setup, sockets))
            }
            Self::Ping | Self::Policy(_) | Self::Attributed { .. } => None,
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
