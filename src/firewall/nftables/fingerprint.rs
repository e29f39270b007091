//! Reads the fingerprint of our table.
//!
//! Left out is what changes without anybody's hand: handles, use counts, counters, and the elements of sets that are filled at run time.

use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetFlags, SetMessage,
    TableMessage,
};

use super::attribute::{Attribute, attributes, text, value};
use super::channel::Channel;
use super::{NftablesError, element};
use crate::firewall::backend::{Fingerprint, Part};
use crate::firewall::ruleset::TABLE;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_CHAIN_FLAGS: u16 = 10;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_EXPR_NAME: u16 = 1;

/// Reads tables, chains, sets and rules by dumps. Kinds of attributes are those of linux/netfilter/nf_tables.h.
pub(super) fn read(channel: &mut Channel) -> Result<Fingerprint, NftablesError> {
    let mut parts = Vec::new();
    for entry in channel.dump(&NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }))? {
        let found = entry.attributes()?;
        if text(&found, NFTA_TABLE_NAME) == TABLE {
            parts.push(part(format!("table {TABLE}"), &found, &[NFTA_TABLE_FLAGS]));
        }
    }
    if parts.is_empty() {
        return Ok(Fingerprint { parts });
    }
    chains(channel, &mut parts)?;
    sets(channel, &mut parts)?;
    rules(channel, &mut parts)?;
    Ok(Fingerprint { parts })
}

/// The named attributes, in the kernel's order.
fn part(name: String, attributes: &[Attribute<'_>], wanted: &[u16]) -> Part {
    let content = attributes
        .iter()
        .filter(|(kind, _)| wanted.contains(kind))
        .map(|(kind, value)| [&kind.to_be_bytes()[..], value].concat())
        .collect();
    Part { name, content }
}

fn chains(channel: &mut Channel, parts: &mut Vec<Part>) -> Result<(), NftablesError> {
    // The kernel doesn't filter this dump by table.
    for entry in channel.dump(&NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }))? {
        let chain = entry.attributes()?;
        if text(&chain, NFTA_CHAIN_TABLE) == TABLE {
            let name = format!("chain {}", text(&chain, NFTA_CHAIN_NAME));
            let wanted = [NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_CHAIN_FLAGS];
            parts.push(part(name, &chain, &wanted));
        }
    }
    Ok(())
}

fn sets(channel: &mut Channel, parts: &mut Vec<Part>) -> Result<(), NftablesError> {
    let request = SetMessage { attributes: vec![SetAttribute::Table(TABLE.to_owned())] };
    for entry in channel.dump(&NfTablesMessage::GetSet(request))? {
        let set = entry.attributes()?;
        let name = text(&set, NFTA_SET_NAME);
        let wanted = [NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, NFTA_SET_TIMEOUT];
        parts.push(part(format!("set {name}"), &set, &wanted));
        let flags = value(&set, NFTA_SET_FLAGS).try_into().map_or(0, u32::from_be_bytes);
        if SetFlags::from_bits_retain(flags).contains(SetFlags::Constant) {
            let mut content = Vec::new();
            for entry in channel.dump(&super::element_request(&name))? {
                content.extend(element::keys(&entry)?);
            }
            content.sort_unstable();
            parts.push(Part { name: format!("elements of set {name}"), content });
        }
    }
    Ok(())
}

fn rules(channel: &mut Channel, parts: &mut Vec<Part>) -> Result<(), NftablesError> {
    let request = RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned())] };
    let mut place = 0_usize;
    let mut last = String::new();
    for entry in channel.dump(&NfTablesMessage::GetRule(request))? {
        let rule = entry.attributes()?;
        let chain = text(&rule, NFTA_RULE_CHAIN);
        place = if chain == last { place.saturating_add(1) } else { 1 };
        let mut content = vec![value(&rule, NFTA_RULE_USERDATA).to_vec()];
        for (_, expression) in attributes(value(&rule, NFTA_RULE_EXPRESSIONS))? {
            content.push(lasting(expression)?);
        }
        parts.push(Part { name: format!("rule {place} of chain {chain}"), content });
        last = chain;
    }
    Ok(())
}

/// An anonymous counter, quota or limit carries its state along with its definition: only its name stays.
fn lasting(expression: &[u8]) -> Result<Vec<u8>, NftablesError> {
    let name = text(&attributes(expression)?, NFTA_EXPR_NAME);
    let stateful = ["counter", "quota", "limit", "connlimit", "last"].contains(&name.as_str());
    Ok(if stateful { name.into_bytes() } else { expression.to_vec() })
}
