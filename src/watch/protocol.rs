//! What PID 1 and the worker `watch` say to each other, over the socketpair that is the worker's standard input.
//!
//! The first frame to the worker is [`ToWorker::Setup`] and carries the two NFLOG sockets by SCM_RIGHTS, that of the
//! refused packets first. There is no second one.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::worker::protocol::{Frame, News, Order};

/// The sockets that come with the setup.
const SOCKETS: usize = 2;
/// The largest frame from PID 1.
pub const MAX_TO_WORKER: usize = 4 << 10;
/// The largest frame that PID 1 accepts: numbers only.
pub const MAX_FROM_WORKER: usize = 4 << 10;

/// From PID 1 to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum ToWorker {
    Setup(Setup),
    /// Answered with [`FromWorker::Pong`], by a worker that does not hang.
    Ping,
}

/// The number that the next packet of each socket has, if none got lost: what earlier workers told PID 1, they had
/// read; what is missing after that was lost with them or in the socket's queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub refused: u32,
    pub used: u32,
}

/// From the worker to PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "op")]
pub enum FromWorker {
    /// The sockets were taken over.
    Serving,
    Pong,
    Refused(Flow),
    Used(Flow),
    /// So many packets were not read: they came faster than the worker could, or a worker died over them.
    Lost {
        refused: u64,
        used: u64,
    },
}

/// Packets of one uid to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// None for what came while too many different places were waiting to be told.
    pub target: Option<Target>,
    pub uid: Option<u32>,
    /// Inode of the socket that sent the first of them, by which PID 1 may find the process.
    pub inode: Option<u64>,
    /// Milliseconds since 1970.
    pub first: u64,
    pub last: u64,
    pub count: u64,
    /// More than counted where a connection's first packet had to be sent again: that is no other connection.
    pub packets: u64,
}

/// Where packets went; what could not be read is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub address: Option<IpAddr>,
    /// IANA's number.
    pub protocol: Option<u8>,
    pub port: Option<u16>,
    /// Type of an ICMP or ICMPv6 message.
    pub icmp: Option<u8>,
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
    const WORKER: &'static str = "watch";
    type Setup = Setup;

    fn into_setup(self) -> Option<(Setup, usize)> {
        match self {
            Self::Setup(setup) => Some((setup, SOCKETS)),
            Self::Ping => None,
        }
    }

    fn ping() -> Self {
        Self::Ping
    }
}
