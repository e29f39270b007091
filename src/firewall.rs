//! The box's firewall and its owner: one thread in PID 1, so that reaping and spawning never delay an answer.
//!
//! Everybody else holds a [`Firewall`], which sends orders and waits for the kernel's acknowledgement.

pub mod admission;
pub mod foreign;
pub mod nftables;
pub mod ruleset;

use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use admission::{Book, Open};
use nftables::{Element, Fingerprint, Nftables, NftablesError};
use ruleset::FirewallPlan;

use crate::allowlist::{Allowlist, DomainName};
use crate::dns::protocol::Learned;
use crate::status::report::{Firewall as Report, OpenAddress};

#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    #[error("cannot reach the kernel's packet filter")]
    Open(#[source] NftablesError),
    #[error("cannot load the rule set")]
    Load(#[source] NftablesError),
    #[error("cannot read the rule set back")]
    ReadBack(#[source] NftablesError),
    #[error("the firewall's thread has ended")]
    Gone,
    #[error("cannot start the firewall's thread")]
    Thread(#[source] std::io::Error),
}

/// An address was refused although its name is allowed; for the log.
pub type Refused = Box<dyn Fn(&DomainName, IpAddr, &str) + Send>;

enum Order {
    Lockdown(Sender<Result<(), FirewallError>>),
    Load(Box<FirewallPlan>, Allowlist, Sender<Result<(), FirewallError>>),
    Policy(Allowlist, Sender<Result<(), FirewallError>>),
    Admit(Learned, Sender<Admission>),
    Claims(Vec<(IpAddr, u16)>, Sender<Vec<Vec<DomainName>>>),
    NamesAt(IpAddr, Sender<Vec<(DomainName, Vec<u16>)>>),
    Verify(Sender<Result<String, String>>),
    Report(Sender<Report>),
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
    pub fn start(refused: Refused) -> Result<Self, FirewallError> {
        let (orders, receiver) = mpsc::channel();
        let run = move || {
            let mut owner = Owner::new(refused);
            owner.run(&receiver);
        };
        std::thread::Builder::new().name("firewall".into()).spawn(run).map_err(FirewallError::Thread)?;
        Ok(Self { orders })
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, FirewallError> {
        let (reply, answer) = mpsc::channel();
        self.orders.send(order(reply)).map_err(|_| FirewallError::Gone)?;
        answer.recv().map_err(|_| FirewallError::Gone)
    }

    /// Drops everything, both families, in and out: the first act of the boot.
    pub fn lockdown(&self) -> Result<(), FirewallError> {
        self.ask(Order::Lockdown)?
    }

    /// Replaces the lockdown by the complete rule set, in one transaction.
    pub fn load(&self, plan: FirewallPlan, allowlist: Allowlist) -> Result<(), FirewallError> {
        self.ask(|reply| Order::Load(Box::new(plan), allowlist, reply))?
    }

    /// Another policy: what it does not allow is closed before this returns.
    pub fn policy(&self, allowlist: Allowlist) -> Result<(), FirewallError> {
        self.ask(|reply| Order::Policy(allowlist, reply))?
    }

    /// The names for which these pairs are open, the one that was admitted last first.
    #[must_use]
    pub fn claims(&self, pairs: Vec<(IpAddr, u16)>) -> Vec<Vec<DomainName>> {
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

    /// Reads the live rule set and compares it with what was loaded.
    pub fn verify(&self) -> Result<String, String> {
        self.ask(Order::Verify).map_err(|error| error.to_string())?
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

/// The thread's state.
struct Owner {
    kernel: Option<Nftables>,
    loaded: Option<Fingerprint>,
    allowlist: Allowlist,
    book: Book,
    refused: Refused,
}

impl Owner {
    fn new(refused: Refused) -> Self {
        Self { kernel: None, loaded: None, allowlist: Allowlist::default(), book: Book::default(), refused }
    }

    fn run(&mut self, orders: &Receiver<Order>) {
        // A reply that nobody waits for any more is no error: the asker gave up or ended.
        while let Ok(order) = orders.recv() {
            match order {
                Order::Lockdown(reply) => drop(reply.send(self.lockdown())),
                Order::Load(plan, allowlist, reply) => drop(reply.send(self.load(&plan, allowlist))),
                Order::Policy(allowlist, reply) => drop(reply.send(self.policy(allowlist))),
                Order::Admit(learned, reply) => drop(reply.send(self.admit(&learned))),
                Order::Claims(pairs, reply) => drop(reply.send(self.claims(&pairs))),
                Order::NamesAt(address, reply) => drop(reply.send(self.names_at(address))),
                Order::Verify(reply) => drop(reply.send(self.verify())),
                Order::Report(reply) => drop(reply.send(self.report())),
            }
        }
    }

    fn kernel(&mut self) -> Result<&mut Nftables, FirewallError> {
        match &mut self.kernel {
            Some(kernel) => Ok(kernel),
            none => Ok(none.insert(Nftables::open().map_err(FirewallError::Open)?)),
        }
    }

    fn lockdown(&mut self) -> Result<(), FirewallError> {
        let kernel = self.kernel()?;
        kernel.load(&ruleset::lockdown()).map_err(FirewallError::Load)?;
        self.loaded = Some(kernel.fingerprint().map_err(FirewallError::ReadBack)?);
        Ok(())
    }

    fn load(&mut self, plan: &FirewallPlan, allowlist: Allowlist) -> Result<(), FirewallError> {
        let kernel = self.kernel()?;
        kernel.load(&ruleset::skeleton(plan)).map_err(FirewallError::Load)?;
        self.loaded = Some(kernel.fingerprint().map_err(FirewallError::ReadBack)?);
        self.allowlist = allowlist;
        self.book = Book::default();
        Ok(())
    }

    fn policy(&mut self, allowlist: Allowlist) -> Result<(), FirewallError> {
        let closed = self.book.restrict(&allowlist);
        // If the kernel refuses, the old policy stays; what it could not close ends by its own timeout.
        self.kernel()?.withdraw(&closed).map_err(FirewallError::Load)?;
        self.allowlist = allowlist;
        Ok(())
    }

    fn claims(&self, pairs: &[(IpAddr, u16)]) -> Vec<Vec<DomainName>> {
        let of = |(address, port): &(IpAddr, u16)| {
            let claims =
                self.book.iter().filter(|(_, open)| open.address == *address && open.ports.contains(port));
            claims.map(|(name, _)| name.clone()).collect()
        };
        pairs.iter().map(of).collect()
    }

    fn names_at(&self, address: IpAddr) -> Vec<(DomainName, Vec<u16>)> {
        let here = self.book.iter().filter(|(_, open)| open.address == address);
        here.map(|(name, open)| (name.clone(), open.ports.clone())).collect()
    }

    fn admit(&mut self, learned: &Learned) -> Admission {
        // Refused: the worker asked under a policy that has changed meanwhile; it learns so by the empty answer.
        let Ok(decision) = admission::decide(&self.allowlist, learned) else { return Admission::default() };
        for (address, reason) in &decision.refused {
            (self.refused)(&learned.name, *address, reason);
        }
        let now = Instant::now();
        self.book.expire(now);
        let until = now + decision.lifetime;
        let elements = self.renewals(&decision, now, until);
        match self.kernel().and_then(|kernel| kernel.admit(&elements).map_err(FirewallError::Load)) {
            Ok(()) => {}
            Err(error) => {
                let message = format!("cannot open {}: {}", learned.name, crate::report::chain(&error));
                crate::report::event("firewall", &message);
                return Admission::default();
            }
        }
        let ports = &decision.ports;
        let open =
            |address: &IpAddr| Open { address: *address, ports: ports.clone(), until, stale: learned.stale };
        let evicted = self.book.enter(&learned.name, decision.open.iter().map(open).collect());
        if !evicted.is_empty()
            && let Err(error) =
                self.kernel().and_then(|kernel| kernel.withdraw(&evicted).map_err(FirewallError::Load))
        {
            // They end by their own timeout; too many open for a while is not too few.
            crate::report::event("firewall", &crate::report::chain(&error));
        }
        Admission { open: decision.open, forgotten: Vec::new() }
    }

    /// The pairs whose timeout in the kernel is to be set: never shortened, since another name may share them.
    fn renewals(&self, decision: &admission::Decision, now: Instant, until: Instant) -> Vec<Element> {
        let mut elements = Vec::new();
        for address in &decision.open {
            for port in &decision.ports {
                let known = self.book.open_until(*address, *port);
                let until = known.map_or(until, |known| known.max(until));
                let timeout = until.saturating_duration_since(now);
                elements.push(Element { address: *address, port: *port, timeout });
            }
        }
        elements
    }

    fn verify(&mut self) -> Result<String, String> {
        let Some(loaded) = self.loaded.clone() else { return Err("no rule set is loaded".to_owned()) };
        let kernel = self.kernel().map_err(|error| crate::report::chain(&error))?;
        let live = kernel.fingerprint().map_err(|error| crate::report::chain(&error))?;
        match loaded.difference(&live) {
            None => Ok("rules as loaded".to_owned()),
            Some(difference) => Err(format!("somebody changed the table inet innkeeper: {difference}")),
        }
    }

    fn report(&mut self) -> Report {
        let now = Instant::now();
        self.book.expire(now);
        let denied = self.kernel().ok().and_then(|kernel| kernel.denied().ok()).unwrap_or_default();
        let mut addresses: Vec<OpenAddress> = self
            .book
            .iter()
            .map(|(name, open)| OpenAddress {
                name: name.to_string(),
                address: open.address.to_string(),
                ports: open.ports.clone(),
                expires_at: rfc3339(open.until.saturating_duration_since(now)),
                stale: open.stale,
            })
            .collect();
        addresses.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        Report { backend: "nftables".to_owned(), addresses, denied }
    }
}

fn rfc3339(left: Duration) -> String {
    crate::report::time(SystemTime::now() + left)
}
