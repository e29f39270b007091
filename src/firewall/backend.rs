//! What the firewall's thread speaks to, whichever way the kernel is programmed: nf_tables over netlink, or the image's
//! iptables. Both load the same [`Ruleset`] and hold the same sets of open and of held pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::book::Pair;
use super::iptables::{Iptables, IptablesError};
use super::nftables::{Nftables, NftablesError};
use super::programs::{Programs, Variant};
use super::ruleset::Ruleset;

/// Why the kernel's packet filter could not be reached, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Nftables(#[from] NftablesError),
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// An open address: packets to it pass for as long as `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    pub address: IpAddr,
    pub port: u16,
    /// When written, the whole lifetime; when read, what is left of it. `Duration::MAX`: for ever.
    pub timeout: Duration,
}

/// Changes of the sets, to be made together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// Flows to these may go on.
    pub hold: Vec<Pair>,
    /// Opened, or given another lifetime.
    pub open: Vec<Element>,
    pub close: Vec<Pair>,
    pub release: Vec<Pair>,
}

impl Edit {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hold.is_empty() && self.open.is_empty() && self.close.is_empty() && self.release.is_empty()
    }
}

/// What the kernel says our rules are, as a value to compare with an earlier one: drift, by whoever is root, shows. The
/// parts are in a fixed order, each with its name. Left out is what changes without anybody's hand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint {
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) content: Vec<Vec<u8>>,
}

impl Fingerprint {
    /// Whether the kernel has our rules at all.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.parts.is_empty()
    }

    /// The first part in which the two differ, in words; `None` when they are equal.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<String> {
        for part in &self.parts {
            match now.parts.iter().find(|other| other.name == part.name) {
                None => return Some(format!("{} is gone", part.name)),
                Some(other) if other.content != part.content => {
                    return Some(format!("{} changed", part.name));
                }
                Some(_) => {}
            }
        }
        let known = |name: &str| self.parts.iter().any(|part| part.name == name);
        if let Some(added) = now.parts.iter().find(|part| !known(&part.name)) {
            return Some(format!("{} was added", added.name));
        }
        (self != now).then(|| "the order changed".to_owned())
    }
}

/// What may have changed by somebody else's hand since it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) rules: bool,
    pub(super) elements: bool,
    /// To be acknowledged once it was looked at and found as it should be.
    pub(super) generation: u32,
}

/// One way to program the kernel. The enum is here, and not a trait object, because there are two and will be two.
#[derive(Debug)]
pub enum Kernel {
    Nftables(Box<Nftables>),
    Iptables(Box<Iptables>),
}

impl Kernel {
    /// Whether what one of them loads takes the place of what the other one loaded.
    pub(super) fn shares_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nftables(_), Self::Nftables(_)) => true,
            (Self::Iptables(one), Self::Iptables(other)) => one.variant() == other.variant(),
            (Self::Nftables(_), Self::Iptables(_)) | (Self::Iptables(_), Self::Nftables(_)) => false,
        }
    }

    /// As `status` shows it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Nftables(_) => "nftables".to_owned(),
            Self::Iptables(kernel) => kernel.describe(),
        }
    }

    /// What somebody has changed who changes our rules.
    #[must_use]
    pub fn ours(&self) -> String {
        match self {
            Self::Nftables(_) => format!("the table inet {}", super::ruleset::TABLE),
            Self::Iptables(_) => format!("the chains {}*", super::iptables::PREFIX),
        }
    }

    /// Replaces our rules and all that the sets hold. No packet sees more than the old rules or the new ones allow.
    pub fn load(&mut self, ruleset: &Ruleset, content: &Edit) -> Result<(), BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.load(ruleset, content)?),
            Self::Iptables(kernel) => Ok(kernel.load(ruleset, content).map(drop)?),
        }
    }

    /// Loads, and reads back what was loaded. `None`: somebody else changed something meanwhile, so that what was read
    /// need not be ours.
    pub(super) fn put(
        &mut self,
        ruleset: &Ruleset,
        content: &Edit,
        known: Option<&Fingerprint>,
    ) -> Result<Option<Fingerprint>, BackendError> {
        match self {
            Self::Nftables(kernel) => {
                let before = kernel.generation()?;
                kernel.acknowledge(before);
                kernel.load(ruleset, content)?;
                let live = kernel.fingerprint()?;
                let after = kernel.generation()?;
                Ok((kernel.knows(after) || known == Some(&live)).then_some(live))
            }
            Self::Iptables(kernel) => Ok(Some(kernel.load(ruleset, content)?)),
        }
    }

    /// Changes the sets; each list in order, IPv4 first, no pair twice.
    pub fn apply(&mut self, edit: &Edit) -> Result<(), BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.apply(edit)?),
            Self::Iptables(kernel) => Ok(kernel.apply(edit)?),
        }
    }

    /// Takes down what the kernel does not let expire by itself.
    pub fn expire(&mut self, now: Instant) -> Result<(), BackendError> {
        match self {
            Self::Nftables(_) => Ok(()),
            Self::Iptables(kernel) => Ok(kernel.expire(now)?),
        }
    }

    /// `forced`: the rules are to be looked at in any case.
    pub(super) fn change(&mut self, now: Instant, forced: bool) -> Result<Change, BackendError> {
        match self {
            Self::Nftables(kernel) => {
                let generation = kernel.generation()?;
                let unknown = !kernel.knows(generation);
                Ok(Change { rules: unknown || forced, elements: unknown, generation })
            }
            Self::Iptables(kernel) => Ok(kernel.change(now, forced)?),
        }
    }

    /// What was there at this change was looked at and is as it should be.
    pub(super) fn acknowledge(&mut self, change: Change, now: Instant) {
        match self {
            Self::Nftables(kernel) => kernel.acknowledge(change.generation),
            Self::Iptables(kernel) => kernel.acknowledge(change, now),
        }
    }

    /// What our rules are now; to be compared with what they were after [`Kernel::load`].
    pub fn fingerprint(&mut self) -> Result<Fingerprint, BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.fingerprint()?),
            Self::Iptables(kernel) => Ok(kernel.fingerprint()?),
        }
    }

    /// Whether nothing of ours was here before, in whichever way it was loaded. Where it can't be told, something was.
    pub(super) fn is_fresh(&mut self) -> bool {
        // Who has tables of the legacy variant could only be told by running it.
        let absent = self.fingerprint().is_ok_and(|found| found.is_absent()) && !legacy_in_use();
        match self {
            Self::Nftables(kernel) => {
                absent && kernel.has_chains(super::iptables::PREFIX).is_ok_and(|has| !has)
            }
            Self::Iptables(_) => absent,
        }
    }

    /// What is open now, and for how long.
    pub fn elements(&mut self) -> Result<Vec<Element>, BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.elements()?),
            Self::Iptables(kernel) => Ok(kernel.elements()?),
        }
    }

    /// Where flows may go on.
    pub fn held(&mut self) -> Result<Vec<Pair>, BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.held()?),
            Self::Iptables(kernel) => Ok(kernel.held()?),
        }
    }

    /// How many outgoing packets were refused since the rules were loaded.
    pub fn denied(&mut self) -> Result<u64, BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.denied()?),
            Self::Iptables(kernel) => Ok(kernel.denied()?),
        }
    }

    /// Takes our rules away, with all that belongs to them; where there are none it is no error.
    pub fn remove(&mut self) -> Result<(), BackendError> {
        match self {
            Self::Nftables(kernel) => Ok(kernel.remove()?),
            Self::Iptables(kernel) => Ok(kernel.remove()?),
        }
    }

    /// Takes away what is ours in the other ways to program the kernel. Without programs only nf_tables can be looked at.
    pub(super) fn sweep_others(&mut self, programs: Option<&dyn Programs>) -> Result<(), BackendError> {
        let legacy = legacy_in_use();
        match (self, programs) {
            (Self::Nftables(_), None) => {}
            (Self::Nftables(kernel), Some(programs)) => {
                if kernel.has_chains(super::iptables::PREFIX)? {
                    super::iptables::sweep(programs, Variant::Nft)?;
                }
                if legacy {
                    super::iptables::sweep(programs, Variant::Legacy)?;
                }
            }
            (Self::Iptables(kernel), programs) => {
                // A kernel without nf_tables has none of its rules.
                if let Ok(mut other) = Nftables::open() {
                    if !other.fingerprint()?.is_absent() {
                        other.remove()?;
                    }
                    let has = other.has_chains(super::iptables::PREFIX)?;
                    if let Some(programs) = programs.filter(|_| has && kernel.variant() == Variant::Legacy) {
                        super::iptables::sweep(programs, Variant::Nft)?;
                    }
                }
                if let Some(programs) = programs.filter(|_| legacy && kernel.variant() == Variant::Nft) {
                    super::iptables::sweep(programs, Variant::Legacy)?;
                }
            }
        }
        Ok(())
    }

    /// Opens addresses and holds them, or renews them.
    pub fn admit(&mut self, elements: &[Element]) -> Result<(), BackendError> {
        let open = longest(elements);
        let hold = open.iter().map(|element| (element.address, element.port)).collect();
        self.apply(&Edit { hold, open, ..Edit::default() })
    }

    /// Closes addresses; one that isn't open is no error. Flows go on.
    pub fn withdraw(&mut self, pairs: &[Pair]) -> Result<(), BackendError> {
        self.apply(&Edit { close: unique(pairs), ..Edit::default() })
    }

    /// Closes addresses and ends the flows to them.
    pub fn cut(&mut self, pairs: &[Pair]) -> Result<(), BackendError> {
        let pairs = unique(pairs);
        self.apply(&Edit { close: pairs.clone(), release: pairs, ..Edit::default() })
    }
}

/// Whether this namespace has tables of the legacy variant. Reading the names makes none.
fn legacy_in_use() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|names| {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}"));
        names.is_ok_and(|names| !names.trim().is_empty())
    })
}

fn unique(pairs: &[Pair]) -> Vec<Pair> {
    pairs.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
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

#[cfg(test)]
mod tests {
    use super::{Element, longest};
    use std::time::Duration;

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
