//! The host's rules for an embedded box: its way out, and the second lock between it and the host itself.
//!
//! One table a box, under the box's own name; and, only in base chains of others that drop what is forwarded, two rules
//! in front that carry that name as their comment. All of it is found again by the name, so what a killed keeper left is
//! removed by whoever comes next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload,
    Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};

use super::attribute::{attributes, text, value};
use super::channel::{Batch, Channel};
use super::{NftablesError, rule};

/// What the rules are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The table, and the comment of rules in the tables of others.
    pub name: String,
    /// The host's end of the link.
    pub interface: String,
    pub guest4: Ipv4Addr,
    pub guest6: Option<Ipv6Addr>,
    /// Resolvers on the host's own addresses: all that the box may reach of the host.
    pub resolvers: Vec<IpAddr>,
}

/// Every interface of a box's begins with it, so that boxes don't reach each other.
pub const INTERFACES: &str = "ikbox";
/// Every table of a box's begins with it.
pub const TABLES: &str = "innkeeper-box-";

const FAMILIES: [NetfilterProtoFamily; 3] =
    [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6, NetfilterProtoFamily::Inet];
/// Before the filters of others, which come at 0 (NF_IP_PRI_FILTER) and may accept.
const EARLY: i32 = -10;
/// NF_IP_PRI_NAT_SRC.
const SOURCE_NAT: i32 = 100;

const ESTABLISHED_RELATED: u32 = 1 << 1 | 1 << 2;
const DNAT: u32 = 1 << 5;
const ICMPV6: u8 = 58;
/// Neighbour solicitation and advertisement (RFC 4861).
const NEIGHBOURS: [u8; 2] = [135, 136];

type Expression = ListAttribute<ExpressionAttribute>;

/// The expressions of one rule, in order.
#[derive(Debug, Default, Clone)]
struct Line(Vec<Expression>);

impl Line {
    fn push(mut self, expression: Expressions) -> Self {
        self.0.push(expression.into());
        self
    }

    fn compare(self, operator: Operator, value: &[u8]) -> Self {
        self.push(Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value.to_vec())),
        ]))
    }

    fn meta(self, key: MetaKey, operator: Operator, value: &[u8]) -> Self {
        self.push(Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]))
            .compare(operator, value)
    }

    fn entering(self, interface: &str) -> Self {
        self.meta(MetaKey::Iifname, Operator::Equal, &padded(interface))
    }

    fn leaving(self, interface: &str) -> Self {
        self.meta(MetaKey::Oifname, Operator::Equal, &padded(interface))
    }

    /// A header's octets; `base` 1 is the network header, 2 the transport header.
    fn header(self, base: u32, offset: u32, operator: Operator, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.push(Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ]))
        .compare(operator, value)
    }

    fn address(self, address: IpAddr, source: bool, operator: Operator) -> Self {
        match address {
            IpAddr::V4(address) => self.meta(MetaKey::Nfproto, Operator::Equal, &[2]).header(
                1,
                if source { 12 } else { 16 },
                operator,
                &address.octets(),
            ),
            IpAddr::V6(address) => self.meta(MetaKey::Nfproto, Operator::Equal, &[10]).header(
                1,
                if source { 8 } else { 24 },
                operator,
                &address.octets(),
            ),
        }
    }

    /// One of the bits of connection tracking's state (key 0) or status (key 2).
    fn tracked(self, key: u32, bits: u32) -> Self {
        let load = vec![rule::number(2, key), rule::number(1, Register::Reg1.into())];
        self.push(Expressions::Other { expression_type: "ct".to_owned(), attributes: load })
            .push(Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(4),
                Bitwise::Mask(DataAttribute::Value(bits.to_ne_bytes().into())),
                Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
            ]))
            .compare(Operator::NotEqual, &[0; 4])
    }

    fn verdict(self, code: u32) -> Self {
        self.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(code))])),
        ]))
    }

    fn accept(self) -> Self {
        self.verdict(1)
    }

    fn drop(self) -> Self {
        self.verdict(0)
    }

    fn masquerade(self) -> Self {
        self.push(Expressions::Other { expression_type: "masq".to_owned(), attributes: Vec::new() })
    }
}

/// A whole name of an interface, as the kernel compares it (IFNAMSIZ).
fn padded(name: &str) -> Vec<u8> {
    let mut octets = name.as_bytes().to_vec();
    octets.resize(16, 0);
    octets
}

type Chains = [(&'static str, InetHookNumber, &'static str, i32, Vec<(Line, &'static str)>); 3];

impl Passage {
    fn chains(&self) -> Chains {
        [
            ("input", InetHookNumber::LocalIn, "filter", EARLY, self.input()),
            ("forward", InetHookNumber::Forward, "filter", EARLY, self.forward()),
            ("postrouting", InetHookNumber::PostRouting, "nat", SOURCE_NAT, self.postrouting()),
        ]
    }

    fn entering(&self) -> Line {
        Line::default().entering(&self.interface)
    }

    /// The box has its own firewall; here it is shut out of the host a second time.
    fn input(&self) -> Vec<(Line, &'static str)> {
        let mut rules = vec![(
            self.entering().tracked(0, ESTABLISHED_RELATED).accept(),
            "answers to the host's own questions",
        )];
        for kind in NEIGHBOURS {
            let line = self.entering().meta(MetaKey::L4Proto, Operator::Equal, &[ICMPV6]);
            rules.push((line.header(2, 0, Operator::Equal, &[kind]).accept(), "neighbour discovery"));
        }
        for resolver in &self.resolvers {
            for protocol in [17_u8, 6] {
                let line = self.entering().address(*resolver, false, Operator::Equal);
                let line = line.meta(MetaKey::L4Proto, Operator::Equal, &[protocol]);
                let line = line.header(2, 2, Operator::Equal, &53_u16.to_be_bytes());
                rules.push((line.accept(), "the host's own resolver"));
            }
        }
        rules.push((self.entering().drop(), "nothing else of the host"));
        rules
    }

    fn forward(&self) -> Vec<(Line, &'static str)> {
        let mut rules = vec![(
            self.entering().address(self.guest4.into(), true, Operator::NotEqual).drop(),
            "the box's own address and no other",
        )];
        rules.push(match self.guest6 {
            Some(guest) => (
                self.entering().address(guest.into(), true, Operator::NotEqual).drop(),
                "the box's own address and no other",
            ),
            None => {
                (self.entering().meta(MetaKey::Nfproto, Operator::Equal, &[10]).drop(), "the box has no IPv6")
            }
        });
        let other_box = self.entering().meta(MetaKey::Oifname, Operator::Equal, INTERFACES.as_bytes());
        let to_box = Line::default().leaving(&self.interface);
        rules.extend([
            (other_box.drop(), "boxes do not meet"),
            (self.entering().tracked(2, DNAT).drop(), "nothing that the host publishes by rewriting"),
            (to_box.clone().tracked(0, ESTABLISHED_RELATED).accept(), "answers"),
            (to_box.drop(), "nobody else comes in"),
        ]);
        rules
    }

    fn postrouting(&self) -> Vec<(Line, &'static str)> {
        let guests = [Some(IpAddr::V4(self.guest4)), self.guest6.map(IpAddr::V6)];
        let out = |guest| {
            let line = Line::default().address(guest, true, Operator::Equal);
            let line = line.meta(MetaKey::Oifname, Operator::NotEqual, &padded(&self.interface));
            (line.masquerade(), "out under the host's address")
        };
        guests.into_iter().flatten().map(out).collect()
    }

    /// Loads the table, and opens the chains of others that would drop what is forwarded.
    pub fn open(&self) -> Result<(), NftablesError> {
        let mut channel = Channel::open()?;
        let closed = forward_chains(&mut channel)?;
        let mut batch = Batch::default();
        batch.begin(&channel);
        batch.push(NfTablesMessage::NewTable(table(&self.name)), NLM_F_CREATE);
        for (name, hook, kind, priority, rules) in self.chains() {
            batch.push(NfTablesMessage::NewChain(self.chain(name, hook, kind, priority)), NLM_F_CREATE);
            for (line, comment) in rules {
                let message = message(&self.name, name, line, comment);
                batch.push(NfTablesMessage::NewRule(message), NLM_F_CREATE | NLM_F_APPEND);
            }
        }
        for place in closed {
            for line in [self.entering(), Line::default().leaving(&self.interface)] {
                // Without NLM_F_APPEND a rule comes in front.
                let message = message(&place.table, &place.chain, line.accept(), &self.name);
                batch.push_in(place.family, NfTablesMessage::NewRule(message), NLM_F_CREATE);
            }
        }
        let object = format!("the table {}", self.name);
        channel.commit(&mut batch)?.map_err(|refusal| NftablesError::refused(object, refusal.source))
    }

    fn chain(&self, name: &str, hook: InetHookNumber, kind: &str, priority: i32) -> ChainMessage {
        ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.name.clone()),
                ChainAttribute::Name(name.to_owned()),
                ChainAttribute::Hook(vec![
                    Hook::Number(HookNumber::Inet(hook)),
                    Hook::Priority(priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(1),
                ChainAttribute::Type(kind.to_owned()),
            ],
        }
    }
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

fn message(table: &str, chain: &str, line: Line, comment: &str) -> RuleMessage {
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(line.0),
            RuleAttribute::UserData(rule::comment(comment)),
        ],
    }
}

/// A base chain of somebody else's.
#[derive(Debug)]
struct Place {
    family: NetfilterProtoFamily,
    table: String,
    chain: String,
}

/// linux/netfilter/nf_tables.h.
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_INET_FORWARD: u32 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_TABLE_NAME: u16 = 1;

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Base chains whose policy drops what is forwarded, as Docker sets it: an acceptance elsewhere would not help.
fn forward_chains(channel: &mut Channel) -> Result<Vec<Place>, NftablesError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let question = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        for entry in channel.dump_in(family, &question)? {
            let chain = entry.attributes()?;
            let hook = attributes(value(&chain, NFTA_CHAIN_HOOK))?;
            let forwards = word(value(&hook, NFTA_HOOK_HOOKNUM)) == Some(NF_INET_FORWARD);
            let table = text(&chain, NFTA_CHAIN_TABLE);
            if forwards && word(value(&chain, NFTA_CHAIN_POLICY)) == Some(0) && !table.starts_with(TABLES) {
                found.push(Place { family, table, chain: text(&chain, NFTA_CHAIN_NAME) });
            }
        }
    }
    Ok(found)
}

/// The boxes' tables that are there, by name.
pub fn tables() -> Result<Vec<String>, NftablesError> {
    let mut channel = Channel::open()?;
    let question = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let mut names = Vec::new();
    for entry in channel.dump(&question)? {
        names.extend(
            Some(text(&entry.attributes()?, NFTA_TABLE_NAME)).filter(|name| name.starts_with(TABLES)),
        );
    }
    Ok(names)
}

/// Removes everything under this name; what is gone is no error.
pub fn close(name: &str) -> Result<(), NftablesError> {
    let mut channel = Channel::open()?;
    let mut batch = Batch::default();
    let rules = commented(&mut channel, name)?;
    batch.begin(&channel);
    // Deleting asks for existence, which the first message sees to.
    batch.push(NfTablesMessage::NewTable(table(name)), NLM_F_CREATE);
    batch.push(NfTablesMessage::DeleteTable(table(name)), 0);
    for (place, handle) in rules {
        let message = RuleMessage {
            attributes: vec![
                RuleAttribute::Table(place.table),
                RuleAttribute::Chain(place.chain),
                RuleAttribute::Handle(handle),
            ],
        };
        batch.push_in(place.family, NfTablesMessage::DeleteRule(message), 0);
    }
    let object = format!("the removal of the table {name}");
    channel.commit(&mut batch)?.map_err(|refusal| NftablesError::refused(object, refusal.source))
}

/// Rules in the tables of others that have this comment.
fn commented(channel: &mut Channel, name: &str) -> Result<Vec<(Place, u64)>, NftablesError> {
    let wanted = rule::comment(name);
    let mut found = Vec::new();
    for family in FAMILIES {
        let question = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
        for entry in channel.dump_in(family, &question)? {
            let rule = entry.attributes()?;
            let handle = value(&rule, NFTA_RULE_HANDLE).try_into().map(u64::from_be_bytes);
            let (table, chain) = (text(&rule, NFTA_RULE_TABLE), text(&rule, NFTA_RULE_CHAIN));
            if let (true, Ok(handle)) = (value(&rule, NFTA_RULE_USERDATA) == wanted, handle)
                && table != name
            {
                found.push((Place { family, table, chain }, handle));
            }
        }
    }
    Ok(found)
}
