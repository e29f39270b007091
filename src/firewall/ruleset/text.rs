//! The text form of a rule set (pure), word for word as `nft list table` prints it.

use std::fmt::{Display, Formatter, Result};
use std::net::{IpAddr, SocketAddr};

use super::{
    Action, Base, Chain, Content, Direction, Family, Hook, Icmp6, Kind, Match, Policy, Protocol, Rule,
    Ruleset, SNAPLEN, Set, State, TABLE, Transport,
};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "table inet {TABLE} {{")?;
        let mut gap = "";
        for name in &self.counters {
            write!(f, "{gap}\tcounter {name} {{\n\t\tpackets 0 bytes 0\n\t}}\n")?;
            gap = "\n";
        }
        for set in &self.sets {
            write!(f, "{gap}{set}")?;
            gap = "\n";
        }
        for chain in &self.chains {
            write!(f, "{gap}{chain}")?;
            gap = "\n";
        }
        writeln!(f, "}}")
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let family = match self.family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        writeln!(f, "\tset {} {{\n\t\ttype {family} . inet_service", self.name)?;
        match &self.content {
            Content::Timed => writeln!(f, "\t\tflags timeout")?,
            Content::Lasting => {}
            Content::Constant(pairs) => {
                write!(f, "\t\tflags constant\n\t\telements = {{ ")?;
                for (i, pair) in pairs.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ",\n\t\t\t     " };
                    write!(f, "{comma}{} . {}", pair.ip(), pair.port())?;
                }
                writeln!(f, " }}")?;
            }
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let kind = match self.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {kind} hook {hook} priority ")?;
        match self.priority {
            0 => write!(f, "filter")?,
            number => write!(f, "{number}")?,
        }
        write!(f, "; policy {policy};")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        for action in &self.actions {
            write!(f, "{action} ")?;
        }
        write!(f, "comment \"{}\"", self.comment)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Self::InLoopback => write!(f, "iif \"lo\""),
            Self::OutLoopback => write!(f, "oif \"lo\""),
            Self::OutNotLoopback => write!(f, "oif != \"lo\""),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Family(Family::V4) => write!(f, "meta nfproto ipv4"),
            Self::Family(Family::V6) => write!(f, "meta nfproto ipv6"),
            Self::Protocol(Protocol::Tcp) => write!(f, "meta l4proto tcp"),
            Self::Protocol(Protocol::Icmp) => write!(f, "meta l4proto icmp"),
            Self::Protocol(Protocol::Icmp6) => write!(f, "meta l4proto ipv6-icmp"),
            Self::Destination(IpAddr::V4(address)) => write!(f, "ip daddr {address}"),
            Self::Destination(IpAddr::V6(address)) => write!(f, "ip6 daddr {address}"),
            Self::DestinationLoopback4 => write!(f, "ip daddr 127.0.0.0/8"),
            Self::SourceNet(net) => write!(f, "ip6 saddr {net}"),
            Self::DestinationNet(net) => write!(f, "ip6 daddr {net}"),
            Self::SourcePort(transport, port) => write!(f, "{transport} sport {port}"),
            Self::DestinationPort(transport, port) => write!(f, "{transport} dport {port}"),
            Self::DestinationIn(Family::V4, transport, set) => {
                write!(f, "ip daddr . {transport} dport @{set}")
            }
            Self::DestinationIn(Family::V6, transport, set) => {
                write!(f, "ip6 daddr . {transport} dport @{set}")
            }
            Self::SourceIn(Family::V4, transport, set) => {
                write!(f, "ip saddr . {transport} sport @{set}")
            }
            Self::SourceIn(Family::V6, transport, set) => {
                write!(f, "ip6 saddr . {transport} sport @{set}")
            }
            Self::Direction(Direction::Original) => write!(f, "ct direction original"),
            Self::Direction(Direction::Reply) => write!(f, "ct direction reply"),
            Self::State(State::New) => write!(f, "ct state new"),
            Self::State(State::Established) => write!(f, "ct state established"),
            Self::State(State::Related) => write!(f, "ct state related"),
            Self::Redirected => write!(f, "ct status dnat"),
            Self::Marked(mark) => write!(f, "ct mark {:#010x}", mark.number()),
            Self::NotSyn => write!(f, "tcp flags != syn / syn,ack"),
            Self::Icmp6(kind) => write!(f, "icmpv6 type {kind}"),
            Self::Unreachable4 => write!(f, "icmp type destination-unreachable"),
            Self::Options4 => write!(f, "ip hdrlength != 5"),
            Self::Routing6 => write!(f, "exthdr rt exists"),
            Self::HopLimit(limit) => write!(f, "ip6 hoplimit {limit}"),
        }
    }
}

impl Display for Transport {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Display for Icmp6 {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Unreachable => "destination-unreachable",
            Self::PacketTooBig => "packet-too-big",
            Self::ListenerQuery => "mld-listener-query",
            Self::ListenerReport => "mld-listener-report",
            Self::ListenerDone => "mld-listener-done",
            Self::RouterSolicit => "nd-router-solicit",
            Self::RouterAdvert => "nd-router-advert",
            Self::NeighbourSolicit => "nd-neighbor-solicit",
            Self::NeighbourAdvert => "nd-neighbor-advert",
            Self::ListenerReport2 => "mld2-listener-report",
        })
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Count(name) => write!(f, "counter name \"{name}\""),
            Self::Log { group, threshold } => {
                write!(f, "log group {group} snaplen {SNAPLEN} queue-threshold {threshold}")
            }
            Self::Dnat(to @ SocketAddr::V4(_)) => write!(f, "dnat ip to {to}"),
            Self::Dnat(to @ SocketAddr::V6(_)) => write!(f, "dnat ip6 to {to}"),
            Self::Mark(mark) => write!(f, "ct mark set {:#010x}", mark.number()),
            Self::RejectReset => write!(f, "reject with tcp reset"),
            Self::RejectProhibited => write!(f, "reject with icmpx admin-prohibited"),
        }
    }
}
