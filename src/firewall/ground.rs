//! What the kernel of this network namespace can do for the box (pure): found by trying, used by the boot, which
//! chooses by it, and by `doctor`, which shows it.

use std::fmt;

use super::ruleset::Family;

/// Who programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables over netlink, by ourselves.
    Nftables,
    /// The image's iptables, in the variant that translates to nf_tables.
    IptablesNft,
    /// The image's iptables in its own, older kernel interface.
    IptablesLegacy,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables (nf_tables)",
            Self::IptablesLegacy => "iptables (legacy)",
        })
    }
}

/// Where the open addresses are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Sets of nf_tables.
    Sets,
    /// `ipset(8)`.
    Ipset,
    /// A rule each.
    Rules,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sets => "sets",
            Self::Ipset => "ipset",
            Self::Rules => "plain rules",
        })
    }
}

/// What one address family gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// All that the policy needs.
    Whole,
    /// It can be closed, but not opened safely: what is missing (connection tracking, redirection). The family answers no
    /// names.
    Closed(String),
    /// The kernel does not have the family at all, or it is switched off: nothing can pass.
    Absent(String),
    /// There, and it can't even be closed.
    Unfit(String),
}

impl Offer {
    /// Whether addresses of this family may be opened.
    #[must_use]
    pub fn opens(&self) -> bool {
        matches!(self, Self::Whole)
    }

    #[must_use]
    pub fn fit(&self) -> bool {
        !matches!(self, Self::Unfit(_))
    }

    #[must_use]
    pub fn absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }

    /// Why it is not whole.
    #[must_use]
    pub fn lack(&self) -> Option<&str> {
        match self {
            Self::Whole => None,
            Self::Closed(why) | Self::Absent(why) | Self::Unfit(why) => Some(why),
        }
    }
}

/// One way to program the kernel, and what it would give here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub backend: Backend,
    pub storage: Storage,
    pub ipv4: Offer,
    pub ipv6: Offer,
    /// Why packets are counted but not listed; `None` where NFLOG works.
    pub no_log: Option<String>,
    /// Whether rules can say what they are for.
    pub comments: bool,
}

impl Candidate {
    /// What a kernel of these days gives: worth loading before anything is tried.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            backend: Backend::Nftables,
            storage: Storage::Sets,
            ipv4: Offer::Whole,
            ipv6: Offer::Whole,
            no_log: None,
            comments: true,
        }
    }

    /// The families that are there and may not be opened.
    #[must_use]
    pub fn closed(&self) -> Vec<Family> {
        let offers = [(Family::V4, &self.ipv4), (Family::V6, &self.ipv6)];
        let closed = offers.into_iter().filter(|(_, offer)| matches!(offer, Offer::Closed(_)));
        closed.map(|(family, _)| family).collect()
    }

    /// Whether a box could be built on it: both families can at least be closed, and one can be opened.
    #[must_use]
    pub fn fit(&self) -> bool {
        self.ipv4.fit() && self.ipv6.fit() && (self.ipv4.opens() || self.ipv6.opens())
    }
}
