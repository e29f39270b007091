//! Rule sets as values (pure): what is matched, what happens, and one comment a rule saying what it is for.
//!
//! [`lockdown`] closes everything; [`skeleton`] is the complete policy around the sets of open and of held addresses,
//! which are filled while the box lives. `Display` is the syntax of `nft(8)`, as `nft list table` prints it: goldens,
//! `--print-rules` and the comparison with the kernel use it. Nothing here talks to the kernel.

mod plan;
mod text;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

pub use plan::{EngineDns, FirewallPlan, GateMode, GatePlan, lockdown, skeleton};

/// The only table that Innkeeper touches; Docker's, Kubernetes' and the operator's own stay as they are.
pub const TABLE: &str = "innkeeper";
/// Open (address, port) pairs of IPv4, with a lifetime each.
pub const OPEN4: &str = "open4";
/// Open (address, port) pairs of IPv6, with a lifetime each.
pub const OPEN6: &str = "open6";
/// (address, port) pairs of IPv4 that an allowed name has or had: a flow that began while it was open may go on.
pub const HELD4: &str = "held4";
/// (address, port) pairs of IPv6 that an allowed name has or had: a flow that began while it was open may go on.
pub const HELD6: &str = "held6";
/// Counts refused outgoing IPv4 packets.
pub const DENIED4: &str = "denied4";
/// Counts refused outgoing IPv6 packets.
pub const DENIED6: &str = "denied6";
/// Counts dropped incoming packets. It is no denial of the agent's: neighbours broadcast all the time.
pub const INBOUND: &str = "inbound";

/// One complete `inet` table, loaded at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub counters: Vec<&'static str>,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// A set of (address, port) pairs of one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub family: Family,
    pub content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Filled and renewed at run time; every element has its own lifetime.
    Timed,
    /// Filled at run time; an element stays until it is taken out.
    Lasting,
    /// Fixed when the table is loaded; the kernel refuses changes.
    Constant(Vec<SocketAddr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A chain; without a hook it is reached by [`Action::Goto`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where in the kernel a chain is attached, and what happens to a packet that no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: Kind,
    pub hook: Hook,
    pub priority: i32,
    pub policy: Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Filter,
    Nat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Input,
    Forward,
    Output,
    Postrouting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Accept,
    Drop,
}

/// Conditions that must all hold, then actions in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub actions: Vec<Action>,
    pub comment: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    InLoopback,
    OutLoopback,
    OutNotLoopback,
    /// The uid of the sending socket; packets without a socket never match.
    Uid(u32),
    Family(Family),
    Protocol(Protocol),
    Destination(IpAddr),
    /// 127.0.0.0/8: no single address can name it.
    DestinationLoopback4,
    SourceNet(Ipv6Net),
    DestinationNet(Ipv6Net),
    SourcePort(Transport, u16),
    DestinationPort(Transport, u16),
    /// `ip daddr . tcp dport @set`
    DestinationIn(Family, Transport, &'static str),
    /// `ip saddr . tcp sport @set`
    SourceIn(Family, Transport, &'static str),
    State(State),
    Direction(Direction),
    /// Connection tracking says that the destination was rewritten.
    Redirected,
    /// Connection tracking's mark of the flow: see [`Action::Mark`].
    Marked(Mark),
    /// TCP, and not what begins a connection. Within a flow that it remembers (half closed, or established) connection
    /// tracking lets a SYN pass unjudged, as part of that flow, and begins it anew if the far side answers
    /// (`nf_conntrack_tcp_packet`, `TCP_CONNTRACK_IGNORE`): whoever binds the port of a socket that is gone would inherit
    /// its permission.
    NotSyn,
    Icmp6(Icmp6),
    /// IPv4's *destination unreachable*, which says the path's MTU too (RFC 1191).
    Unreachable4,
    HopLimit(u8),
    /// The IPv4 header carries options.
    Options4,
    /// IPv6's header for a route of the sender's choice.
    Routing6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Icmp,
    Icmp6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    New,
    Established,
    Related,
}

/// Which end of a flow sent the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The one that began it.
    Original,
    Reply,
}

/// The ICMPv6 types that IPv6 itself needs on a link (RFC 4861, RFC 2710, RFC 9777).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp6 {
    Unreachable,
    PacketTooBig,
    ListenerQuery,
    ListenerReport,
    ListenerDone,
    RouterSolicit,
    RouterAdvert,
    NeighbourSolicit,
    NeighbourAdvert,
    ListenerReport2,
}

impl Icmp6 {
    /// The number in the packet.
    pub fn number(self) -> u8 {
        match self {
            Self::Unreachable => 1,
            Self::PacketTooBig => 2,
            Self::ListenerQuery => 130,
            Self::ListenerReport => 131,
            Self::ListenerDone => 132,
            Self::RouterSolicit => 133,
            Self::RouterAdvert => 134,
            Self::NeighbourSolicit => 135,
            Self::NeighbourAdvert => 136,
            Self::ListenerReport2 => 143,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Accept,
    Drop,
    Goto(&'static str),
    Count(&'static str),
    /// To this NFLOG group, cut after [`SNAPLEN`] bytes; `threshold` packets a datagram.
    Log {
        group: u16,
        threshold: u16,
    },
    /// Rewrites the destination; the packet is routed anew.
    Dnat(SocketAddr),
    /// Sets connection tracking's mark of the flow.
    Mark(Mark),
    RejectReset,
    RejectProhibited,
}

/// What a flow is known by for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It came in from outside. Without it a flow that the agent makes up inside the box, from a foreign source
    /// (`IPV6_FREEBIND`) to its own listener, would be answered outside.
    Inbound,
    /// The egress gate began it. Without it what the agent began on a port goes on when the port becomes the gate's.
    Gate,
}

impl Mark {
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Inbound => 1,
            Self::Gate => 2,
        }
    }
}

/// Enough for IPv6 and TCP headers with options; what the agent put behind them has no place in a log.
pub const SNAPLEN: u32 = 128;
