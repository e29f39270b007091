//! The kernel's nf_tables over netlink: loads rule sets, opens and closes addresses, reads back what is there.
//!
//! It touches the table [`TABLE`](crate::firewall::ruleset::TABLE) and no other. Everything is synchronous: the
//! kernel answers inside the system call. One thread owns it. What is open, and why, is not decided here.

pub(super) mod attribute;
pub(super) mod channel;
mod element;
mod fingerprint;
pub mod passage;
mod rule;
mod table;

use std::io;
use std::time::Duration;

use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage, SetElementList, SetElementMessage};
use nix::errno::Errno;

use self::attribute::{Entry, value};
use self::channel::{Batch, Channel, Refusal};
use self::element::{FOR_EVER, Operation};
use super::book::Pair;
use super::ruleset::{DENIED4, DENIED6, Family, HELD4, HELD6, OPEN4, OPEN6, Ruleset, TABLE};

pub use super::backend::{Edit, Element, Fingerprint};

/// Elements in one message. A netlink attribute ends at 64 KiB; 512 elements of IPv6 take 23 KB.
const CHUNK: usize = 512;
/// The most that [`CHUNK`] elements take in all the messages that are sent for them.
const CHUNK_ROOM: usize = 128 * 1024;
const NFTA_GEN_ID: u16 = 1;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`
const GETCHAIN: u16 = 0x0a04;
const NFTA_CHAIN_NAME: u16 = 3;
/// An element can expire between two messages of one batch; the second try then finds it gone from the start.
const TRIES: usize = 3;

/// Why the kernel's firewall could not be reached, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error("the kernel has no nf_tables")]
    NoNfTables { source: io::Error },
    #[error("the kernel's firewall may not be changed: the capability NET_ADMIN is missing")]
    NotPermitted { source: io::Error },
    #[error("cannot open a netfilter netlink socket")]
    Open { source: io::Error },
    #[error("cannot send to nf_tables")]
    Send { source: io::Error },
    #[error("cannot receive from nf_tables")]
    Receive { source: io::Error },
    #[error("nf_tables gave no complete answer, and neither when asked again")]
    Unanswered,
    #[error("nf_tables refused {object}")]
    Refused { object: String, source: io::Error },
    #[error("cannot read the rule set back")]
    Read { source: io::Error },
    #[error("nf_tables answered something that can't be decoded")]
    Decode { source: netlink_packet_core::DecodeError },
}

impl NftablesError {
    fn decode(source: netlink_packet_core::DecodeError) -> Self {
        Self::Decode { source }
    }

    fn refused(object: String, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => Self::NotPermitted { source },
            _ => Self::Refused { object, source },
        }
    }
}

/// *Add, delete, add*: kernels before 6.12 accept a new lifetime for an element that is there and change nothing. In one
/// transaction, so that the address is never closed in between.
const RENEW: [Operation; 3] = [Operation::Add, Operation::Delete, Operation::Add];
/// What isn't there can't be deleted, so it is added before.
const REMOVE: [Operation; 2] = [Operation::Add, Operation::Delete];
const ADD: [Operation; 1] = [Operation::Add];

const OPEN: [&str; 2] = [OPEN4, OPEN6];
const HELD: [&str; 2] = [HELD4, HELD6];

/// The connection to nf_tables in the network namespace that this thread was in when it was opened.
#[derive(Debug)]
pub struct Nftables {
    channel: Channel,
    batch: Batch,
    /// The kernel's generation if nobody but us has changed anything since it was last known.
    generation: Option<u32>,
}

impl Nftables {
    /// Opens the connection and asks a first question, so that what is missing is known before anything is changed.
    pub fn open() -> Result<Self, NftablesError> {
        let mut kernel = Self { channel: Channel::open()?, batch: Batch::default(), generation: None };
        kernel.generation()?;
        Ok(kernel)
    }

    /// The number of the last change of any rule set of this namespace, whoever made it.
    pub fn generation(&mut self) -> Result<u32, NftablesError> {
        let question = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        match self.channel.probe(question)? {
            Ok(found) => {
                let attributes = found.first().map(Entry::attributes).transpose()?.unwrap_or_default();
                Ok(value(&attributes, NFTA_GEN_ID).try_into().map_or(0, u32::from_be_bytes))
            }
            Err(Refusal { source, .. }) => Err(match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM) => NftablesError::NotPermitted { source },
                // nfnetlink's answer for a subsystem that isn't there.
                Some(Errno::EINVAL | Errno::EOPNOTSUPP) => NftablesError::NoNfTables { source },
                _ => NftablesError::Read { source },
            }),
        }
    }

    /// Whether all changes up to this generation are ours, or were looked at.
    #[must_use]
    pub fn knows(&self, generation: u32) -> bool {
        self.generation == Some(generation)
    }

    /// What was there at this generation was looked at and is as it should be.
    pub fn acknowledge(&mut self, generation: u32) {
        self.generation = Some(generation);
    }

    /// Replaces our table by this one in a single transaction: no packet sees anything between old and new. Where the
    /// kernel refuses so large a batch, the last of the elements follow in more of them.
    pub fn load(&mut self, ruleset: &Ruleset, content: &Edit) -> Result<(), NftablesError> {
        self.batch.begin(&self.channel);
        let mut objects = Vec::new();
        for step in table::steps(ruleset) {
            self.batch.push(step.message, step.flags);
            objects.push(step.object);
        }
        self.fill(HELD, &ADD, &lasting(&content.hold))?;
        self.fill(OPEN, &ADD, &content.open)?;
        self.commit()?.map_err(|refusal| {
            let object = refusal.place.and_then(|place| objects.into_iter().nth(place));
            NftablesError::refused(object.unwrap_or_else(|| "the rule set".to_owned()), refusal.source)
        })
    }

    /// Changes the sets in one transaction; each list in order, IPv4 first, no pair twice.
    pub fn apply(&mut self, edit: &Edit) -> Result<(), NftablesError> {
        if edit.is_empty() {
            return Ok(());
        }
        let mut tries = 0_usize;
        loop {
            self.batch.begin(&self.channel);
            // In this order also where one batch can't take it all: nothing is open that isn't held.
            self.fill(HELD, &ADD, &lasting(&edit.hold))?;
            self.fill(OPEN, &RENEW, &edit.open)?;
            self.fill(OPEN, &REMOVE, &elements(&edit.close, Duration::from_secs(1)))?;
            self.fill(HELD, &REMOVE, &lasting(&edit.release))?;
            let Err(refusal) = self.commit()? else { return Ok(()) };
            tries = tries.saturating_add(1);
            if refusal.source.kind() != io::ErrorKind::NotFound || tries == TRIES {
                return Err(NftablesError::refused("open addresses".to_owned(), refusal.source));
            }
        }
    }

    fn fill(
        &mut self,
        [v4, v6]: [&str; 2],
        steps: &[Operation],
        elements: &[Element],
    ) -> Result<(), NftablesError> {
        let split = elements.partition_point(|e| Family::of(e.address) == Family::V4);
        let (four, six) = elements.split_at(split);
        for (set, elements) in [(v4, four), (v6, six)] {
            for chunk in elements.chunks(CHUNK) {
                if self.batch.len().saturating_add(CHUNK_ROOM) > self.channel.room() {
                    self.commit()?.map_err(|refusal| {
                        NftablesError::refused("open addresses".to_owned(), refusal.source)
                    })?;
                    self.batch.begin(&self.channel);
                }
                for step in steps {
                    self.batch.raw(|out, sequence| element::encode(out, sequence, *step, set, chunk));
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<Result<(), Refusal>, NftablesError> {
        let answer = self.channel.commit(&mut self.batch)?;
        if answer.is_ok() {
            // `nf_tables_commit`: the next number, never zero.
            self.generation = self.generation.map(|last| last.checked_add(1).unwrap_or(1));
        }
        Ok(answer)
    }

    /// What is open now, and for how long.
    pub fn elements(&mut self) -> Result<Vec<Element>, NftablesError> {
        self.read(OPEN)
    }

    /// Where flows may go on.
    pub fn held(&mut self) -> Result<Vec<Pair>, NftablesError> {
        Ok(self.read(HELD)?.into_iter().map(|element| (element.address, element.port)).collect())
    }

    fn read(&mut self, sets: [&str; 2]) -> Result<Vec<Element>, NftablesError> {
        let mut found = Vec::new();
        for set in sets {
            for entry in self.channel.dump(&element_request(set))? {
                found.extend(element::decode(&entry)?);
            }
        }
        Ok(found)
    }

    /// How many outgoing packets were refused since the table was loaded.
    pub fn denied(&mut self) -> Result<u64, NftablesError> {
        let mut sum = 0_u64;
        for entry in self.channel.dump(&table::counters())? {
            let (name, packets) = table::counted(&entry)?;
            if [DENIED4, DENIED6].contains(&name.as_str()) {
                sum = sum.saturating_add(packets);
            }
        }
        Ok(sum)
    }

    /// Whether any table of this namespace has a chain whose name begins so: those of iptables' nft variant are tables of
    /// nf_tables too.
    pub fn has_chains(&mut self, prefix: &str) -> Result<bool, NftablesError> {
        // Of every family: NFPROTO_UNSPEC in the header.
        match self.channel.dump_raw(GETCHAIN, &[0; 4])? {
            Ok(found) => {
                for entry in found {
                    if attribute::text(&entry.attributes()?, NFTA_CHAIN_NAME).starts_with(prefix) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Err(Refusal { source, .. }) => Err(NftablesError::Read { source }),
        }
    }

    /// Takes our table away; where there is none it is no error.
    pub fn remove(&mut self) -> Result<(), NftablesError> {
        self.batch.begin(&self.channel);
        for step in table::removal() {
            self.batch.push(step.message, step.flags);
        }
        self.commit()?.map_err(|refusal| NftablesError::refused("the old table".to_owned(), refusal.source))
    }

    /// Tries this rule set without effect: the batch ends with a step that can't succeed, so that the kernel undoes it.
    /// Returns what of it was refused, object by object, with the reason.
    pub fn attempt(&mut self, ruleset: &Ruleset) -> Result<Vec<(String, io::Error)>, NftablesError> {
        self.batch.begin(&self.channel);
        let mut objects = Vec::new();
        for step in table::steps(ruleset) {
            self.batch.push(step.message, step.flags);
            objects.push(step.object);
        }
        let spoiler = table::impossible();
        self.batch.push(spoiler.message, spoiler.flags);
        let mut refused = self.channel.trial(&mut self.batch)?;
        if refused.is_empty() {
            return Err(NftablesError::Unanswered);
        }
        refused.sort_by_key(|refusal| refusal.place);
        let named = refused.into_iter().filter_map(|refusal| {
            let Some(place) = refusal.place else { return Some(("the batch".to_owned(), refusal.source)) };
            Some((objects.get(place)?.clone(), refusal.source))
        });
        Ok(named.collect())
    }

    /// What our table is now, without what changes by itself; to be compared with what it was after `load`.
    pub fn fingerprint(&mut self) -> Result<Fingerprint, NftablesError> {
        fingerprint::read(&mut self.channel)
    }
}

/// Reads one datagram of the kernel's as every kind of answer that is understood here, for who wants to feed it
/// anything: elements, keys and counters. (pure)
pub fn read_offline(datagram: &[u8]) -> Result<Vec<Element>, NftablesError> {
    let mut found = Vec::new();
    for entry in channel::entries(datagram)? {
        table::counted(&entry)?;
        element::keys(&entry)?;
        found.extend(element::decode(&entry)?);
    }
    Ok(found)
}

fn lasting(pairs: &[Pair]) -> Vec<Element> {
    elements(pairs, FOR_EVER)
}

fn elements(pairs: &[Pair], timeout: Duration) -> Vec<Element> {
    pairs.iter().map(|&(address, port)| Element { address, port, timeout }).collect()
}

fn element_request(set: &str) -> NfTablesMessage {
    NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![SetElementList::Table(TABLE.to_owned()), SetElementList::Set(set.to_owned())],
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// Each says what failed, and leaves the cause to its source.
    #[test]
    fn every_error_reads_well() {
        let source = || io::Error::from_raw_os_error(2);
        let object = "rule \"accept\" of chain output".to_owned();
        for error in [
            NftablesError::NoNfTables { source: source() },
            NftablesError::NotPermitted { source: source() },
            NftablesError::Open { source: source() },
            NftablesError::Send { source: source() },
            NftablesError::Receive { source: source() },
            NftablesError::Refused { object, source: source() },
            NftablesError::Read { source: source() },
            NftablesError::Decode { source: "short".into() },
            NftablesError::Unanswered,
        ] {
            let text = error.to_string();
            assert!(!text.contains("os error") && !text.ends_with('.'), "{text}");
            assert_eq!(error.source().is_none(), matches!(error, NftablesError::Unanswered), "{text}");
        }
    }
}
