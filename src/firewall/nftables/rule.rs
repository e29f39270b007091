//! Rule sets as nf_tables messages: tables, sets, chains, and rules as expressions of the kernel's register machine.
//!
//! Numbers that `netlink-packet-netfilter` doesn't name are those of linux/netfilter/nf_tables.h.

use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv6Net;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::nftables::Bitwise;
use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta, MetaKey,
    Operator, Payload, Register, RuleAttribute, RuleMessage, Verdict, VerdictAttribute,
};

use crate::firewall::ruleset::{
    Action, Chain, Direction, Family, Match, Protocol, Rule, SNAPLEN, State, TABLE, Transport,
};

/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_ICMP: u8 = 1;
/// `ICMP_DEST_UNREACH`
const ICMP_UNREACHABLE: u8 = 3;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;

/// The routing header's number (RFC 8200 §4.4), and `NFT_EXTHDR_F_PRESENT`.
const IPPROTO_ROUTING: u8 = 43;
const EXTHDR_PRESENT: u32 = 1;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Where TCP's flags are, and two of them (RFC 9293 §3.1).
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// `NFTNL_UDATA_RULE_COMMENT`: how `nft(8)` marks a comment in a rule's user data.
const UDATA_COMMENT: u8 = 0;

type Expression = ListAttribute<ExpressionAttribute>;

/// The message that appends one rule.
pub(super) fn message(chain: &Chain, rule: &Rule) -> RuleMessage {
    let mut machine = Machine::default();
    for condition in &rule.matches {
        machine.condition(*condition);
    }
    for action in &rule.actions {
        machine.action(*action);
    }
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.name.to_owned()),
            RuleAttribute::Expressions(machine.expressions),
            RuleAttribute::UserData(comment(rule.comment)),
        ],
    }
}

/// Type, length, text with its final zero byte. `nft(8)` shows at most 127 characters.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let text = text.as_bytes().get(..text.len().min(127)).unwrap_or_default();
    let length = u8::try_from(text.len().saturating_add(1)).unwrap_or(u8::MAX);
    [&[UDATA_COMMENT, length], text, &[0]].concat()
}

/// Collects the expressions of one rule, and what they presuppose only once.
#[derive(Default)]
struct Machine {
    expressions: Vec<Expression>,
    family: Option<Family>,
    protocol: Option<u8>,
}

impl Machine {
    fn push(&mut self, expressions: Expressions) {
        self.expressions.push(expressions.into());
    }

    fn condition(&mut self, condition: Match) {
        match condition {
            Match::InLoopback => self.meta(MetaKey::Iif, Operator::Equal, &LOOPBACK.to_ne_bytes()),
            Match::OutLoopback => self.meta(MetaKey::Oif, Operator::Equal, &LOOPBACK.to_ne_bytes()),
            Match::OutNotLoopback => self.meta(MetaKey::Oif, Operator::NotEqual, &LOOPBACK.to_ne_bytes()),
            Match::Uid(uid) => self.meta(MetaKey::SocketUserId, Operator::Equal, &uid.to_ne_bytes()),
            Match::Family(family) => self.family(family),
            Match::Protocol(Protocol::Tcp) => self.protocol(IPPROTO_TCP),
            Match::Protocol(Protocol::Icmp) => self.protocol(IPPROTO_ICMP),
            Match::Protocol(Protocol::Icmp6) => self.protocol(IPPROTO_ICMPV6),
            Match::Destination(address) => {
                self.load_address(Family::of(address), false);
                match address {
                    IpAddr::V4(address) => self.compare(Operator::Equal, &address.octets()),
                    IpAddr::V6(address) => self.compare(Operator::Equal, &address.octets()),
                }
            }
            Match::DestinationLoopback4 => {
                self.family(Family::V4);
                self.load(NETWORK_HEADER, 16, 1, Register::Reg1);
                self.compare(Operator::Equal, &[127]);
            }
            Match::SourceNet(net) => self.net(net, 8),
            Match::DestinationNet(net) => self.net(net, 24),
            Match::SourcePort(transport, port) => self.port(transport, 0, port),
            Match::DestinationPort(transport, port) => self.port(transport, 2, port),
            Match::DestinationIn(family, transport, set) => self.pair_in(family, transport, set, false),
            Match::SourceIn(family, transport, set) => self.pair_in(family, transport, set, true),
            Match::Direction(direction) => self.direction(direction),
            Match::State(State::Established) => self.conntrack(CT_STATE, 1 << 1),
            Match::State(State::Related) => self.conntrack(CT_STATE, 1 << 2),
            Match::State(State::New) => self.conntrack(CT_STATE, 1 << 3),
            Match::Redirected => self.conntrack(CT_STATUS, IPS_DST_NAT),
            Match::Marked(mark) => {
                self.other("ct", vec![number(2, CT_MARK), number(1, Register::Reg1.into())]);
                self.compare(Operator::Equal, &mark.number().to_ne_bytes());
            }
            Match::NotSyn => {
                self.protocol(IPPROTO_TCP);
                self.load(TRANSPORT_HEADER, TCP_FLAGS, 1, Register::Reg1);
                self.mask(&[TCP_SYN | TCP_ACK]);
                self.compare(Operator::NotEqual, &[TCP_SYN]);
            }
            Match::Icmp6(kind) => self.icmp(IPPROTO_ICMPV6, kind.number()),
            Match::Unreachable4 => self.icmp(IPPROTO_ICMP, ICMP_UNREACHABLE),
            Match::Options4 => {
                self.family(Family::V4);
                self.load(NETWORK_HEADER, 0, 1, Register::Reg1);
                self.mask(&[0x0f]);
                self.compare(Operator::NotEqual, &[5]);
            }
            Match::Routing6 => self.routing(),
            Match::HopLimit(limit) => {
                self.family(Family::V6);
                self.load(NETWORK_HEADER, 7, 1, Register::Reg1);
                self.compare(Operator::Equal, &[limit]);
            }
        }
    }

    fn icmp(&mut self, protocol: u8, kind: u8) {
        self.protocol(protocol);
        self.load(TRANSPORT_HEADER, 0, 1, Register::Reg1);
        self.compare(Operator::Equal, &[kind]);
    }

    fn routing(&mut self) {
        self.family(Family::V6);
        self.other(
            "exthdr",
            vec![
                number(1, Register::Reg1.into()),
                DefaultNla::new(2, vec![IPPROTO_ROUTING]),
                number(3, 0),
                number(4, 1),
                number(5, EXTHDR_PRESENT),
            ],
        );
        self.compare(Operator::Equal, &[1]);
    }

    fn direction(&mut self, direction: Direction) {
        self.other("ct", vec![number(2, CT_DIRECTION), number(1, Register::Reg1.into())]);
        let number = match direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        self.compare(Operator::Equal, &[number]);
    }

    fn action(&mut self, action: Action) {
        match action {
            Action::Accept => self.verdict(Verdict::Other(1), None),
            Action::Drop => self.verdict(Verdict::Other(0), None),
            Action::Goto(chain) => self.verdict(Verdict::Goto, Some(chain)),
            Action::Count(name) => self.other("objref", vec![number(1, 1), string(2, name)]),
            Action::Log { group, threshold } => self.other(
                "log",
                vec![
                    DefaultNla::new(1, group.to_be_bytes().into()),
                    number(3, SNAPLEN),
                    DefaultNla::new(4, threshold.to_be_bytes().into()),
                ],
            ),
            Action::Dnat(to) => self.dnat(to),
            Action::Mark(mark) => {
                self.push(Expressions::Immediate(vec![
                    Immediate::DestinationRegister(Register::Reg1),
                    Immediate::Data(DataAttribute::Value(mark.number().to_ne_bytes().into())),
                ]));
                self.other("ct", vec![number(2, CT_MARK), number(4, Register::Reg1.into())]);
            }
            Action::RejectReset => {
                self.protocol(IPPROTO_TCP);
                self.other("reject", vec![number(1, 1)]);
            }
            Action::RejectProhibited => {
                self.other("reject", vec![number(1, 2), DefaultNla::new(2, vec![3])]);
            }
        }
    }

    fn meta(&mut self, key: MetaKey, operator: Operator, value: &[u8]) {
        self.push(Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]));
        self.compare(operator, value);
    }

    /// In an `inet` table every look into a header presupposes its family.
    fn family(&mut self, family: Family) {
        if self.family == Some(family) {
            return;
        }
        self.family = Some(family);
        let value = match family {
            Family::V4 => NFPROTO_IPV4,
            Family::V6 => NFPROTO_IPV6,
        };
        self.meta(MetaKey::Nfproto, Operator::Equal, &[value]);
    }

    fn protocol(&mut self, protocol: u8) {
        if self.protocol == Some(protocol) {
            return;
        }
        self.protocol = Some(protocol);
        self.meta(MetaKey::L4Proto, Operator::Equal, &[protocol]);
    }

    fn transport(&mut self, transport: Transport) {
        self.protocol(match transport {
            Transport::Tcp => IPPROTO_TCP,
            Transport::Udp => IPPROTO_UDP,
        });
    }

    fn compare(&mut self, operator: Operator, value: &[u8]) {
        self.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value.to_vec())),
        ]));
    }

    fn load(&mut self, base: u32, offset: u32, length: u32, register: Register) {
        self.push(Expressions::Payload(vec![
            Payload::DestinationRegister(register),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ]));
    }

    fn load_address(&mut self, family: Family, source: bool) {
        self.family(family);
        match (family, source) {
            (Family::V4, true) => self.load(NETWORK_HEADER, 12, 4, Register::Reg1),
            (Family::V4, false) => self.load(NETWORK_HEADER, 16, 4, Register::Reg1),
            (Family::V6, true) => self.load(NETWORK_HEADER, 8, 16, Register::Reg1),
            (Family::V6, false) => self.load(NETWORK_HEADER, 24, 16, Register::Reg1),
        }
    }

    /// Where the prefix ends with an octet only those before are looked at, as `nft` does.
    fn net(&mut self, net: Ipv6Net, offset: u32) {
        self.family(Family::V6);
        let whole = net.prefix_len().is_multiple_of(8);
        let octets = if whole { usize::from(net.prefix_len() / 8) } else { 16 };
        let (address, mask) = (net.network().octets(), net.netmask().octets());
        let prefix = |octets_of: &[u8; 16]| octets_of.iter().copied().take(octets).collect::<Vec<u8>>();
        self.load(NETWORK_HEADER, offset, u32::try_from(octets).unwrap_or(16), Register::Reg1);
        if !whole {
            self.mask(&prefix(&mask));
        }
        self.compare(Operator::Equal, &prefix(&address));
    }

    fn port(&mut self, transport: Transport, offset: u32, port: u16) {
        self.transport(transport);
        self.load(TRANSPORT_HEADER, offset, 2, Register::Reg1);
        self.compare(Operator::Equal, &port.to_be_bytes());
    }

    /// The port goes into the 4-byte register behind the address: together they are the key.
    fn pair_in(&mut self, family: Family, transport: Transport, set: &str, source: bool) {
        self.family(family);
        self.transport(transport);
        self.load_address(family, source);
        let behind = match family {
            Family::V4 => Register::Reg32_01,
            Family::V6 => Register::Reg2,
        };
        self.load(TRANSPORT_HEADER, if source { 0 } else { 2 }, 2, behind);
        self.push(Expressions::Lookup(vec![
            Lookup::Set(set.to_owned()),
            Lookup::SourceRegister(Register::Reg1),
        ]));
    }

    /// One of the bits must be set.
    fn conntrack(&mut self, key: u32, bits: u32) {
        self.other("ct", vec![number(2, key), number(1, Register::Reg1.into())]);
        self.mask(&bits.to_ne_bytes());
        self.compare(Operator::NotEqual, &[0; 4]);
    }

    fn mask(&mut self, bits: &[u8]) {
        self.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(u32::try_from(bits.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(bits.to_vec())),
            Bitwise::Xor(DataAttribute::Value(vec![0; bits.len()])),
        ]));
    }

    fn verdict(&mut self, code: Verdict, chain: Option<&str>) {
        let mut verdict = vec![VerdictAttribute::Code(code)];
        verdict.extend(chain.map(|name| VerdictAttribute::Chain(name.to_owned())));
        self.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(verdict)),
        ]));
    }

    fn dnat(&mut self, to: SocketAddr) {
        let (family, address) = match to.ip() {
            IpAddr::V4(address) => (NFPROTO_IPV4, address.octets().to_vec()),
            IpAddr::V6(address) => (NFPROTO_IPV6, address.octets().to_vec()),
        };
        for (register, value) in [(Register::Reg1, address), (Register::Reg2, to.port().to_be_bytes().into())]
        {
            self.push(Expressions::Immediate(vec![
                Immediate::DestinationRegister(register),
                Immediate::Data(DataAttribute::Value(value)),
            ]));
        }
        self.other(
            "nat",
            vec![
                number(1, 1),
                number(2, family.into()),
                number(3, Register::Reg1.into()),
                number(5, Register::Reg2.into()),
            ],
        );
    }

    fn other(&mut self, name: &str, attributes: Vec<DefaultNla>) {
        self.push(Expressions::Other { expression_type: name.to_owned(), attributes });
    }
}

/// `NFT_CT_STATE`, `NFT_CT_DIRECTION`, `NFT_CT_STATUS`, and the status bit of a rewritten destination.
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const IPS_DST_NAT: u32 = 1 << 5;

pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().into())
}

pub(super) fn string(kind: u16, text: &str) -> DefaultNla {
    DefaultNla::new(kind, [text.as_bytes(), &[0]].concat())
}

pub(super) fn nested(kind: u16, content: Vec<u8>) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, content)
}
