//! The kernel's nf_tables over netlink: loads rule sets, opens and closes addresses, reads back what is there.
//!
//! It touches the table [`TABLE`](crate::firewall::ruleset::TABLE) and no other. Everything is synchronous: the
//! kernel answers inside the system call. One thread owns it. What is open, and why, is not decided here.

mod attribute;
mod channel;
mod element;
mod fingerprint;
mod rule;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_netfilter::nftables::{GenMessage, NfTablesMessage, SetElementList, SetElementMessage};
use nix::errno::Errno;

use self::channel::{Batch, Channel, Refusal};
use self::element::Operation;
use super::ruleset::{DENIED4, DENIED6, Family, OPEN4, OPEN6, Ruleset, TABLE};

pub use self::fingerprint::Fingerprint;

/// Elements in one batch. A netlink attribute ends at 64 KiB and a batch at the socket's send buffer (208 KiB by
/// default); 512 elements of IPv6 take 23 KB an attribute and 68 KB in all.
const CHUNK: usize = 512;
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

/// An open address: packets to it pass for as long as `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    pub address: IpAddr,
    pub port: u16,
    /// When written, the whole lifetime; when read, what is left of it.
    pub timeout: Duration,
}

/// The connection to nf_tables in the network namespace that this thread was in when it was opened.
#[derive(Debug)]
pub struct Nftables {
    channel: Channel,
    batch: Batch,
}

impl Nftables {
    /// Opens the connection and asks a first question, so that what is missing is known before anything is changed.
    pub fn open() -> Result<Self, NftablesError> {
        let mut channel = Channel::open()?;
        let question = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        if let Err(Refusal { source, .. }) = channel.probe(question)? {
            return Err(match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM) => NftablesError::NotPermitted { source },
                // nfnetlink's answer for a subsystem that isn't there.
                Some(Errno::EINVAL | Errno::EOPNOTSUPP) => NftablesError::NoNfTables { source },
                _ => NftablesError::Read { source },
            });
        }
        Ok(Self { channel, batch: Batch::default() })
    }

    /// Replaces our table by this one in a single transaction: no packet sees anything between old and new.
    pub fn load(&mut self, ruleset: &Ruleset) -> Result<(), NftablesError> {
        self.batch.begin(&self.channel);
        let mut objects = Vec::new();
        for step in table::steps(ruleset) {
            self.batch.push(step.message, step.flags);
            objects.push(step.object);
        }
        self.channel.commit(&mut self.batch)?.map_err(|refusal| {
            let object = refusal.place.and_then(|place| objects.into_iter().nth(place));
            NftablesError::refused(object.unwrap_or_else(|| "the rule set".to_owned()), refusal.source)
        })
    }

    /// Opens addresses, or renews them. *Add, delete, add*: kernels before 6.12 accept a new lifetime for an element
    /// that is there and change nothing. In one transaction, so that the address is never closed in between.
    pub fn admit(&mut self, elements: &[Element]) -> Result<(), NftablesError> {
        let steps = [Operation::Add, Operation::Delete, Operation::Add];
        match elements {
            [_] => self.change(elements, &steps),
            _ => longest(elements).chunks(CHUNK).try_for_each(|chunk| self.change(chunk, &steps)),
        }
    }

    /// Closes addresses; one that isn't open is no error. Established flows are left alone.
    pub fn withdraw(&mut self, pairs: &[(IpAddr, u16)]) -> Result<(), NftablesError> {
        let lifetime = Duration::from_secs(1);
        let elements: Vec<_> =
            pairs.iter().map(|&(address, port)| Element { address, port, timeout: lifetime }).collect();
        let steps = [Operation::Add, Operation::Delete];
        longest(&elements).chunks(CHUNK).try_for_each(|chunk| self.change(chunk, &steps))
    }

    fn change(&mut self, elements: &[Element], steps: &[Operation]) -> Result<(), NftablesError> {
        let split = elements.partition_point(|e| Family::of(e.address) == Family::V4);
        let (v4, v6) = elements.split_at(split);
        let mut tries = 0_usize;
        loop {
            self.batch.begin(&self.channel);
            for (set, elements) in [(OPEN4, v4), (OPEN6, v6)] {
                for step in steps.iter().filter(|_| !elements.is_empty()) {
                    self.batch.raw(|out, sequence| element::encode(out, sequence, *step, set, elements));
                }
            }
            let Err(refusal) = self.channel.commit(&mut self.batch)? else { return Ok(()) };
            tries = tries.saturating_add(1);
            if refusal.source.kind() != io::ErrorKind::NotFound || tries == TRIES {
                return Err(NftablesError::refused("open addresses".to_owned(), refusal.source));
            }
        }
    }

    /// What is open now, and for how long.
    pub fn elements(&mut self) -> Result<Vec<Element>, NftablesError> {
        let mut found = Vec::new();
        for set in [OPEN4, OPEN6] {
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

    /// What our table is now, without what changes by itself; to be compared with what it was after `load`.
    pub fn fingerprint(&mut self) -> Result<Fingerprint, NftablesError> {
        fingerprint::read(&mut self.channel)
    }
}

/// IPv4 first, each pair once, with the longest lifetime asked for: a batch that deletes a pair twice is refused.
fn longest(elements: &[Element]) -> Vec<Element> {
    let mut pairs = BTreeMap::new();
    for element in elements {
        let timeout = pairs.entry((element.address, element.port)).or_insert(element.timeout);
        *timeout = element.timeout.max(*timeout);
    }
    pairs.into_iter().map(|((address, port), timeout)| Element { address, port, timeout }).collect()
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

    #[test]
    fn a_pair_is_written_once_with_its_longest_lifetime() {
        let element = |address: &str, seconds| Element {
            address: address.parse().unwrap(),
            port: 443,
            timeout: Duration::from_secs(seconds),
        };
        let given = [element("2001:db8::1", 5), element("192.0.2.1", 9), element("192.0.2.1", 3)];
        assert_eq!(longest(&given), [element("192.0.2.1", 9), element("2001:db8::1", 5)]);
    }
}
