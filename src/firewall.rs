//! The box's firewall and its owner: one thread in PID 1, so that reaping and spawning never delay an answer.
//!
//! Everybody else holds a [`Firewall`], which sends orders and waits for the kernel's acknowledgement.

pub mod admission;
pub mod backend;
pub mod book;
pub mod detect;
mod drift;
pub mod foreign;
pub mod ground;
pub mod iptables;
pub mod nftables;
mod owner;
pub mod programs;
pub mod ruleset;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use backend::BackendError;
use book::Pair;
use ground::Candidate;
use owner::Owner;
use programs::Programs;
use ruleset::FirewallPlan;

use crate::allowlist::{Allowlist, DomainName};
use crate::dns::protocol::Learned;
use crate::status::report::Firewall as Report;

#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot reach the kernel's packet filter")]
    Open(#[source] BackendError),
    #[error("cannot load the rule set")]
    Load(#[source] BackendError),
    #[error("cannot read the rule set back")]
    ReadBack(#[source] BackendError),
    #[error("somebody else changes the rules of this namespace all the time")]
    Disturbed,
    #[error("the firewall's thread has ended")]
    Gone,
    #[error("cannot start the firewall's thread")]
    Thread(#[source] std::io::Error),
}

/// An address was refused although its name is allowed; for the log.
pub type Refused = Box<dyn Fn(&DomainName, IpAddr, &str) + Send>;

/// What the thread has to say by itself. It waits while it is heard: nothing here may block or ask it back.
pub struct Notices {
    pub refused: Refused,
    /// Somebody changed our rules: what was found, and what became of it. At most one a minute.
    pub repaired: Box<dyn Fn(&str) + Send>,
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notices")
    }
}

enum Order {
    Choose(Arc<dyn Programs>, Box<Candidate>, Sender<()>),
    Backend(Sender<String>),
    Lockdown(Sender<Result<(), FirewallError>>),
    Withdraw(Sender<Result<bool, FirewallError>>),
    Load(Box<FirewallPlan>, Allowlist, Sender<Result<(), FirewallError>>),
    Policy(Allowlist, Sender<Result<(), FirewallError>>),
    Admit(Learned, Sender<Admission>),
    Claims(Vec<Pair>, Sender<Vec<Vec<DomainName>>>),
    NamesAt(IpAddr, Sender<Vec<(DomainName, Vec<u16>)>>),
    Verify(Sender<Result<String, String>>),
    Again(Sender<Result<String, String>>),
    Report(Sender<Report>),
    Rules(Sender<Option<String>>),
}

/// What came of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Open in the kernel now.
    pub open: Vec<IpAddr>,
    /// Names that lost an address to make room; who still holds an answer for them must ask again.
    pub forgotten: Vec<DomainName>,
}

/// The way to the firewall's thread.
#[derive(Debug, Clone)]
pub struct Firewall {
    orders: Sender<Order>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl Firewall {
    /// Starts the thread; nothing is programmed yet.
    pub fn start(notices: Notices) -> Result<Self, FirewallError> {
        let (orders, receiver) = mpsc::channel();
        let run = move || Owner::new(notices).run(&receiver);
        std::thread::Builder::new().name("firewall".into()).spawn(run).map_err(FirewallError::Thread)?;
        Ok(Self { orders })
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, FirewallError> {
        let (reply, answer) = mpsc::channel();
        self.orders.send(order(reply)).map_err(|_| FirewallError::Gone)?;
        answer.recv().map_err(|_| FirewallError::Gone)
    }

    /// Says how the kernel is to be programmed from the next [`Firewall::lockdown`] or [`Firewall::load`] on; nf_tables
    /// unless said otherwise. What the former way put there is taken away once the new rules are in.
    pub fn choose(&self, programs: Arc<dyn Programs>, candidate: Candidate) -> Result<(), FirewallError> {
        self.ask(|reply| Order::Choose(programs, Box::new(candidate), reply))
    }

    /// What programs the kernel now, as `status` shows it.
    #[must_use]
    pub fn backend(&self) -> String {
        self.ask(Order::Backend).unwrap_or_default()
    }

    /// Drops everything, both families, in and out: the first act of the boot.
    pub fn lockdown(&self) -> Result<(), FirewallError> {
        self.ask(Order::Lockdown)?
    }

    /// Takes our rules back as the last act of a boot that failed before any agent existed, if there were none of ours
    /// before it. Otherwise the namespace was closed when we came and stays so. Whether they are gone.
    pub fn withdraw(&self) -> Result<bool, FirewallError> {
        self.ask(Order::Withdraw)?
    }

    /// Replaces the lockdown by the complete rule set, in one transaction.
    pub fn load(&self, plan: FirewallPlan, allowlist: Allowlist) -> Result<(), FirewallError> {
        self.ask(|reply| Order::Load(Box::new(plan), allowlist, reply))?
    }

    /// Another policy: what it does not allow is closed before this returns, and flows to it end.
    pub fn policy(&self, allowlist: Allowlist) -> Result<(), FirewallError> {
        self.ask(|reply| Order::Policy(allowlist, reply))?
    }

    /// The names for which these pairs are open, the one that was admitted last first, at most 16 of each. Where a pair
    /// is open no more: those for which it was.
    #[must_use]
    pub fn claims(&self, pairs: Vec<Pair>) -> Vec<Vec<DomainName>> {
        self.ask(|reply| Order::Claims(pairs, reply)).unwrap_or_default()
    }

    /// The names for which this address is open, and on which ports.
    #[must_use]
    pub fn names_at(&self, address: IpAddr) -> Vec<(DomainName, Vec<u16>)> {
        self.ask(|reply| Order::NamesAt(address, reply)).unwrap_or_default()
    }

    /// Opens what the policy lets of an answer; returns what is open once the kernel has acknowledged it.
    #[must_use]
    pub fn admit(&self, learned: Learned) -> Admission {
        self.ask(|reply| Order::Admit(learned, reply)).unwrap_or_default()
    }

    /// Reads the live rule set and compares it with what was loaded. What differs is repaired, and is an error all the
    /// same: until now it was not held.
    pub fn verify(&self) -> Result<String, String> {
        self.ask(Order::Verify).map_err(|error| error.to_string())?
    }

    /// Compares everything, the open addresses too, and repairs it: for when time was lost. An error only if that
    /// fails.
    pub fn again(&self) -> Result<String, String> {
        self.ask(Order::Again).map_err(|error| error.to_string())?
    }

    /// The text of the rules that hold now; none while there is nothing but the lockdown.
    #[must_use]
    pub fn rules(&self) -> Option<String> {
        self.ask(Order::Rules).ok().flatten()
    }

    #[must_use]
    pub fn report(&self) -> Report {
        self.ask(Order::Report).unwrap_or_default()
    }
}

/// The proof that the firewall is in and verified: what lets anybody out asks for it.
#[derive(Debug, Clone)]
pub struct EgressLocked(());

impl EgressLocked {
    /// Looks at the live rule set.
    pub fn verify(firewall: &Firewall) -> Result<Self, String> {
        firewall.verify().map(|_| Self(()))
    }
}
