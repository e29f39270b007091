//! A whole rule set as the messages of one batch, and what to call each of them in an error.

use std::net::SocketAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook as ChainHook, HookNumber, InetHookNumber,
    ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage,
    SetFlags, SetMessage, TableAttribute, TableMessage,
};

use super::attribute::{Entry, attributes, text, value};
use super::{NftablesError, rule};
use crate::firewall::ruleset::{Base, Chain, Content, Family, Hook, Kind, Policy, Ruleset, Set, TABLE};

/// Types of nft's own, for whoever lists the table: `ipv4_addr . inet_service`, 6 bits a part.
const TYPE_V4_PORT: u32 = 7 << 6 | 13;
const TYPE_V6_PORT: u32 = 8 << 6 | 13;

const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// One message, its flags, and the object that it makes.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) object: String,
    pub(super) message: NfTablesMessage,
    pub(super) flags: u16,
}

/// Removes what an earlier life left under our name and builds everything anew. Deleting asks for existence, which
/// the first message sees to.
pub(super) fn steps(ruleset: &Ruleset) -> Vec<Step> {
    let mut steps = Vec::from(removal());
    steps.push(step("table".into(), NfTablesMessage::NewTable(table()), NLM_F_CREATE));
    for name in &ruleset.counters {
        steps.push(step(format!("counter {name}"), counter(name), NLM_F_CREATE));
    }
    for (id, set) in (1..).zip(&ruleset.sets) {
        let message = NfTablesMessage::NewSet(set_message(set, id));
        steps.push(step(format!("set {}", set.name), message, NLM_F_CREATE));
        if let Content::Constant(pairs) = &set.content {
            let message = NfTablesMessage::NewSetElement(elements(set.name, pairs));
            steps.push(step(format!("elements of set {}", set.name), message, NLM_F_CREATE));
        }
    }
    for chain in &ruleset.chains {
        let message = NfTablesMessage::NewChain(chain_message(chain));
        steps.push(step(format!("chain {}", chain.name), message, NLM_F_CREATE));
    }
    for chain in &ruleset.chains {
        for entry in &chain.rules {
            let message = NfTablesMessage::NewRule(rule::message(chain, entry));
            let object = format!("rule \"{entry}\" of chain {}", chain.name);
            steps.push(step(object, message, NLM_F_CREATE | NLM_F_APPEND));
        }
    }
    steps
}

/// Takes our table away, also where there is none.
pub(super) fn removal() -> [Step; 2] {
    [
        step("table".into(), NfTablesMessage::NewTable(table()), NLM_F_CREATE),
        step("old table".into(), NfTablesMessage::DeleteTable(table()), 0),
    ]
}

/// What no kernel does: a table that isn't there can't be deleted.
pub(super) fn impossible() -> Step {
    let name = format!("{TABLE} that nobody makes");
    let message = NfTablesMessage::DeleteTable(TableMessage { attributes: vec![TableAttribute::Name(name)] });
    step("the last step".into(), message, 0)
}

fn step(object: String, message: NfTablesMessage, flags: u16) -> Step {
    Step { object, message, flags }
}

pub(super) fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] }
}

fn counter(name: &str) -> NfTablesMessage {
    NfTablesMessage::NewObject(vec![
        rule::string(NFTA_OBJ_TABLE, TABLE),
        rule::string(NFTA_OBJ_NAME, name),
        rule::number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER),
        rule::nested(NFTA_OBJ_DATA, Vec::new()),
    ])
}

/// Asks for all counters of our table.
pub(super) fn counters() -> NfTablesMessage {
    NfTablesMessage::GetObject(vec![
        rule::string(NFTA_OBJ_TABLE, TABLE),
        rule::number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER),
    ])
}

/// Name and number of packets of one counter.
pub(super) fn counted(entry: &Entry) -> Result<(String, u64), NftablesError> {
    let object = entry.attributes()?;
    let data = attributes(value(&object, NFTA_OBJ_DATA))?;
    let packets = value(&data, NFTA_COUNTER_PACKETS).try_into().map_or(0, u64::from_be_bytes);
    Ok((text(&object, NFTA_OBJ_NAME), packets))
}

fn set_message(set: &Set, id: u32) -> SetMessage {
    let flags = match set.content {
        Content::Timed => SetFlags::Timeout,
        Content::Lasting => SetFlags::empty(),
        Content::Constant(_) => SetFlags::Constant,
    };
    let (kind, length) = match set.family {
        Family::V4 => (TYPE_V4_PORT, 8),
        Family::V6 => (TYPE_V6_PORT, 20),
    };
    SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(set.name.to_owned()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(kind),
            SetAttribute::KeyLen(length),
            SetAttribute::Id(id),
        ],
    }
}

fn elements(set: &str, pairs: &[SocketAddr]) -> SetElementMessage {
    let element = |pair: &SocketAddr| {
        let mut key = match pair {
            SocketAddr::V4(pair) => pair.ip().octets().to_vec(),
            SocketAddr::V6(pair) => pair.ip().octets().to_vec(),
        };
        key.extend_from_slice(&pair.port().to_be_bytes());
        key.extend_from_slice(&[0; 2]);
        ListAttribute::Element(vec![SetElementAttribute::Key(DataAttribute::Value(key))])
    };
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(pairs.iter().map(element).collect()),
        ],
    }
}

fn chain_message(chain: &Chain) -> ChainMessage {
    let mut attributes =
        vec![ChainAttribute::Table(TABLE.to_owned()), ChainAttribute::Name(chain.name.to_owned())];
    if let Some(base) = &chain.base {
        attributes.extend(base_attributes(base));
    }
    ChainMessage { attributes }
}

fn base_attributes(base: &Base) -> [ChainAttribute; 3] {
    let hook = match base.hook {
        Hook::Input => InetHookNumber::LocalIn,
        Hook::Forward => InetHookNumber::Forward,
        Hook::Output => InetHookNumber::LocalOut,
        Hook::Postrouting => InetHookNumber::PostRouting,
    };
    let policy = match base.policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    };
    let kind = match base.kind {
        Kind::Filter => "filter",
        Kind::Nat => "nat",
    };
    let priority = base.priority.cast_unsigned();
    [
        ChainAttribute::Hook(vec![ChainHook::Number(HookNumber::Inet(hook)), ChainHook::Priority(priority)]),
        ChainAttribute::Policy(policy),
        ChainAttribute::Type(kind.to_owned()),
    ]
}
