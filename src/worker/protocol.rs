//! What is the same in the frames of all workers: their size's bound, the setup that comes first, and refused clients.
//! (pure)
//!
//! The frames themselves are in the `protocol.rs` of each worker's room; how they go over the channel is in
//! [`channel`](crate::channel).

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::socket_table::Owner;

/// What one side says to the other.
pub trait Frame: Serialize + DeserializeOwned {
    /// The largest one, in octets of JSON.
    const LIMIT: usize;
}

/// From PID 1 to a worker.
pub trait Order: Frame {
    /// What the worker is called, in `status` and in the log.
    const WORKER: &'static str;
    /// Everything that the worker needs to begin.
    type Setup;
    /// The setup, and how many sockets come with it; none of any other frame.
    fn into_setup(self) -> Option<(Self::Setup, usize)>;
    /// A worker that does its work answers this, between one piece of it and the next ([`Pulse`](super::pulse::Pulse)).
    fn ping() -> Self;
}

/// To a worker whose refused clients wait until PID 1 has looked who they are.
pub trait Attributes: Order {
    /// PID 1 has looked ([`ClientDenial::id`]): the client may have its answer.
    fn attributed(id: u64) -> Self;
}

/// From a worker to PID 1.
pub trait News: Frame {
    /// Whether more than a few hundred a second can't be honest ([`Bound`](super::meter::Bound)).
    fn is_metered(&self) -> bool;
}

/// The largest frame that carries a policy: one of 10,000 names is under 1 MiB.
pub const MAX_POLICY: usize = 16 << 20;

/// A client that was refused, as a worker tells it. `what` came from the agent: render it inert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientDenial {
    pub what: String,
    pub reason: String,
    pub uid: Option<u32>,
    /// Inode of the client's socket, by which PID 1 may find the process.
    pub inode: Option<u64>,
    pub count: u64,
    /// Set while the client is kept waiting, so that its process still exists when PID 1 looks; PID 1 answers with
    /// [`Attributes::attributed`].
    pub id: Option<u64>,
    /// The rule that would let it pass, where that is not the bare name's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl ClientDenial {
    /// One refusal, for which nobody waits.
    #[must_use]
    pub fn one(what: &str, reason: &impl Display, owner: Option<Owner>, rule: Option<String>) -> Self {
        let (uid, inode) = (owner.map(|owner| owner.uid), owner.map(|owner| owner.inode));
        Self { what: what.to_owned(), reason: reason.to_string(), uid, inode, count: 1, id: None, rule }
    }
}
