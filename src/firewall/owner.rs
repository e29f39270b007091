//! The firewall's thread: takes orders, keeps the book and the kernel equal, and looks after its own rules.
//!
//! Whoever is root in this namespace can change them. The kernel numbers every change of any rule set, and ours are
//! known, so that a look costs one question as long as nobody else did anything.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::admission::{self, Decision, NEVER};
use super::backend::{BackendError, Edit, Element, Fingerprint, Kernel};
use super::book::{Book, Open, Pair};
use super::drift::{self, Drift};
use super::ground::{Backend, Candidate};
use super::iptables::Iptables;
use super::nftables::Nftables;
use super::programs::{Direct, Programs};
use super::ruleset::{self, Family, FirewallPlan, Ruleset};
use super::{Admission, FirewallError, Notices, Order};
use crate::allowlist::{Allowlist, DomainName};
use crate::dns::protocol::Learned;
use crate::report::{chain, event};
use crate::status::report::{Firewall as Report, OpenAddress};

/// How often we look whether somebody changed our rules.
const LOOK: Duration = Duration::from_secs(2);
/// Of repairs no more than one is told in this time.
const QUIET: Duration = Duration::from_secs(60);
/// How often rules are loaded anew when somebody else makes changes meanwhile.
const TRIES: usize = 8;

pub(super) struct Owner {
    kernel: Option<Kernel>,
    /// The way in which the rules that hold now were loaded, until those of the next are.
    former: Option<Kernel>,
    choice: Option<(Arc<dyn Programs>, Candidate)>,
    /// Families whose addresses are never opened here.
    closed: Vec<Family>,
    /// What the loaded rules were made from; the gated ports are those of the policy.
    plan: Option<FirewallPlan>,
    ruleset: Option<Ruleset>,
    loaded: Option<Fingerprint>,
    /// There were no rules of ours before the lockdown.
    fresh: bool,
    allowlist: Allowlist,
    book: Book,
    notices: Notices,
    next_look: Instant,
    /// The kernel may not have what the book says.
    doubt: bool,
    /// The last repair did not succeed.
    failed: bool,
    /// Refused packets that were counted by tables which are gone.
    denied: u64,
    told: Option<Instant>,
    untold: u32,
}

impl Owner {
    pub(super) fn new(notices: Notices) -> Self {
        Self {
            kernel: None,
            former: None,
            choice: None,
            closed: Vec::new(),
            plan: None,
            ruleset: None,
            loaded: None,
            fresh: false,
            allowlist: Allowlist::default(),
            book: Book::default(),
            notices,
            next_look: Instant::now() + LOOK,
            doubt: false,
            failed: false,
            denied: 0,
            told: None,
            untold: 0,
        }
    }

    pub(super) fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(self.next_look.saturating_duration_since(Instant::now())) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Also between orders, however many wait.
            if Instant::now() >= self.next_look {
                self.look();
                self.next_look = Instant::now() + LOOK;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        // A reply that nobody waits for any more is no error: the asker gave up or ended.
        match order {
            Order::Choose(programs, candidate, reply) => {
                self.choose(programs, *candidate);
                reply.send(()).ok();
            }
            Order::Backend(reply) => {
                drop(reply.send(self.backend()));
            }
            Order::Lockdown(reply) => drop(reply.send(self.lockdown())),
            Order::Withdraw(reply) => drop(reply.send(self.withdraw())),
            Order::Load(plan, allowlist, reply) => drop(reply.send(self.load(&plan, allowlist))),
            Order::Policy(allowlist, reply) => drop(reply.send(self.policy(allowlist))),
            Order::Admit(learned, reply) => drop(reply.send(self.admit(&learned))),
            Order::Claims(pairs, reply) => drop(reply.send(self.claims(&pairs))),
            Order::NamesAt(address, reply) => drop(reply.send(self.book.names_at(address))),
            Order::Verify(reply) => drop(reply.send(self.verify())),
            Order::Again(reply) => drop(reply.send(self.again())),
            Order::Report(reply) => drop(reply.send(self.report())),
            Order::Rules(reply) => {
                drop(reply.send(self.plan.as_ref().map(|plan| ruleset::skeleton(plan).to_string())));
            }
        }
    }

    fn kernel(&mut self) -> Result<&mut Kernel, FirewallError> {
        match &mut self.kernel {
            Some(kernel) => Ok(kernel),
            none => Ok(none.insert(open(self.choice.as_ref()).map_err(FirewallError::Open)?)),
        }
    }

    fn choose(&mut self, programs: Arc<dyn Programs>, candidate: Candidate) {
        let same =
            matches!((&self.kernel, candidate.backend), (Some(Kernel::Nftables(_)), Backend::Nftables));
        self.choice = Some((programs, candidate));
        // What closes the box now stays until the new way's rules are in.
        self.former = if same { None } else { self.kernel.take().or(self.former.take()) };
    }

    fn lockdown(&mut self) -> Result<(), FirewallError> {
        (self.book, self.plan) = (Book::default(), None);
        self.fresh = self.kernel()?.is_fresh();
        self.replace(ruleset::lockdown())
    }

    fn withdraw(&mut self) -> Result<bool, FirewallError> {
        if !self.fresh {
            return Ok(false);
        }
        // Before anything else: what is gone on purpose is not to be repaired.
        (self.plan, self.ruleset, self.loaded, self.book) = (None, None, None, Book::default());
        // The supervisor has ended: nobody reaps, and nobody else runs programs any more.
        let choice =
            self.choice.take().map(|(_, candidate)| (Arc::new(Direct) as Arc<dyn Programs>, candidate));
        let mut kernel = open(choice.as_ref()).map_err(FirewallError::Open)?;
        kernel.remove().map_err(FirewallError::Load)?;
        // What closed the box before another way was chosen, and closes it if that fails; iptables has the same chains
        // whatever it stores.
        if let Some(mut former @ Kernel::Nftables(_)) = self.former.take() {
            former.remove().map_err(FirewallError::Load)?;
        }
        Ok(true)
    }

    fn load(&mut self, plan: &FirewallPlan, allowlist: Allowlist) -> Result<(), FirewallError> {
        self.book = Book::default();
        self.closed.clone_from(&plan.closed);
        let plan = plan.with_ports(&allowlist);
        self.replace(ruleset::skeleton(&plan))?;
        self.plan = Some(plan);
        self.allowlist = allowlist;
        self.sweep();
        Ok(())
    }

    fn replace(&mut self, ruleset: Ruleset) -> Result<(), FirewallError> {
        self.loaded = None;
        self.put(&ruleset)?;
        self.ruleset = Some(ruleset);
        Ok(())
    }

    /// Takes away what is ours and was loaded another way, by an earlier life or by the lockdown: what is in force now was
    /// read back. What is left over only closes more, so it is told and no error.
    fn sweep(&mut self) {
        let mut outcomes = Vec::new();
        let replaced =
            |former: &Kernel| self.kernel.as_ref().is_some_and(|kernel| kernel.shares_place(former));
        // What has the same chains was replaced, and is in force: taking it away would open the box.
        if let Some(mut former) = self.former.take_if(|former| !replaced(former)) {
            outcomes.push(former.remove());
        }
        self.former = None;
        let programs = self.choice.as_ref().map(|(programs, _)| Arc::clone(programs));
        if let Some(kernel) = &mut self.kernel {
            outcomes.push(kernel.sweep_others(programs.as_deref()));
        }
        for error in outcomes.into_iter().filter_map(Result::err) {
            event("firewall", &format!("rules of an earlier start can't be taken away: {}", chain(&error)));
        }
    }

    /// Loads rules with all that the book says, and reads them back. What is read is only ours if nobody changed
    /// anything in between.
    fn put(&mut self, ruleset: &Ruleset) -> Result<(), FirewallError> {
        for _ in 0..TRIES {
            let content = self.content(Instant::now());
            let known = self.loaded.clone();
            let kernel = self.kernel()?;
            let live = kernel.put(ruleset, &content, known.as_ref()).map_err(FirewallError::Load)?;
            if let Some(live) = live {
                self.loaded = Some(live);
                self.doubt = false;
                return Ok(());
            }
        }
        Err(FirewallError::Disturbed)
    }

    /// All that the sets should hold.
    fn content(&mut self, now: Instant) -> Edit {
        self.book.expire(now);
        // Said with everything else.
        drop(self.book.take_changes());
        let open = self.book.open_pairs().map(|(pair, until)| element(pair, until, now)).collect();
        Edit { hold: self.book.held_pairs().into_iter().collect(), open, ..Edit::default() }
    }

    /// Tells the kernel what changed in the book, in one transaction.
    fn settle(&mut self, now: Instant) -> Result<(), FirewallError> {
        let changes = self.book.take_changes();
        if changes.is_empty() {
            return Ok(());
        }
        let open = changes.open.into_iter().map(|(pair, until)| element(pair, until, now)).collect();
        let edit = Edit { hold: changes.hold, open, close: changes.close, release: changes.release };
        let told = self.kernel().and_then(|kernel| kernel.apply(&edit).map_err(FirewallError::Load));
        if told.is_err() {
            // The book is ahead of the kernel now.
            self.doubt = true;
            self.next_look = now;
        }
        told
    }

    fn policy(&mut self, allowlist: Allowlist) -> Result<(), FirewallError> {
        let now = Instant::now();
        self.book.expire(now);
        self.book.follow(&allowlist);
        let plan = self.plan.as_ref().map(|plan| plan.with_ports(&allowlist));
        let changed = plan.filter(|plan| self.plan.as_ref() != Some(plan));
        let (told, former) = match changed {
            None => (self.settle(now), None),
            // Other ports are the gate's now: other rules, and what is open by the new policy, at one moment.
            Some(plan) => {
                self.keep_denied();
                let ruleset = ruleset::skeleton(&plan);
                let told = self.put(&ruleset);
                (told, Some((self.ruleset.replace(ruleset), self.plan.replace(plan))))
            }
        };
        if let Err(error) = told {
            // All anew, or else all closed: what the operator took back must not stay open.
            let drift = Drift { what: format!("a change was refused ({})", chain(&error)), leaks: true };
            if let Err(error) = self.mend(&drift) {
                // The policy of before goes on, so its ports are the gate's once it can be mended.
                if let Some(former) = former {
                    (self.ruleset, self.plan) = former;
                }
                return Err(error);
            }
        }
        self.allowlist = allowlist;
        Ok(())
    }

    /// Rules that are replaced take their counters along.
    fn keep_denied(&mut self) {
        if let Ok(denied) = self.kernel().and_then(|kernel| kernel.denied().map_err(FirewallError::ReadBack))
        {
            self.denied = self.denied.saturating_add(denied);
        }
    }

    fn claims(&self, pairs: &[Pair]) -> Vec<Vec<DomainName>> {
        pairs.iter().map(|pair| self.book.claims(*pair)).collect()
    }

    fn admit(&mut self, learned: &Learned) -> Admission {
        // Refused: the worker asked under a policy that has changed meanwhile; it learns so by the empty answer.
        let Ok(decision) = admission::decide(&self.allowlist, learned) else { return Admission::default() };
        for (address, reason) in &decision.refused {
            (self.notices.refused)(&learned.name, *address, reason);
        }
        let Decision { class, ports, mut open, lifetime, .. } = decision;
        open.retain(|address| {
            let family = Family::of(*address);
            let closed = self.closed.contains(&family);
            if closed {
                (self.notices.refused)(
                    &learned.name,
                    *address,
                    &format!("{family} is closed on this host and {NEVER}"),
                );
            }
            !closed
        });
        let now = Instant::now();
        let until = now + lifetime;
        let opens = open.iter().map(|address| Open {
            address: *address,
            ports: ports.clone(),
            until,
            stale: learned.stale,
        });
        self.book.expire(now);
        let forgotten = self.book.enter(&learned.name, class, opens.collect());
        let Err(error) = self.settle(now) else { return Admission { open, forgotten } };
        event("firewall", &format!("cannot open {}: {}", learned.name, chain(&error)));
        // The likely cause is that somebody took our table away. What the book says is open once that is repaired.
        self.look();
        let open = if self.doubt { Vec::new() } else { open };
        Admission { open, forgotten }
    }

    /// What is not as it should be; the elements only if somebody else changed anything. `rules`: look at the rules in
    /// any case.
    fn inspect(&mut self, rules: bool) -> Result<Option<Drift>, FirewallError> {
        let now = Instant::now();
        self.book.expire(now);
        if !self.doubt {
            self.settle(now)?;
        }
        let leaking = |what| Ok(Some(Drift { what, leaks: true }));
        let (doubt, loaded) = (self.doubt, self.loaded.clone());
        let Some(loaded) = loaded else { return leaking("no rule set is loaded".to_owned()) };
        let filled = self.ruleset.as_ref().is_some_and(|ruleset| !ruleset.sets.is_empty());
        let kernel = self.kernel()?;
        kernel.expire(now).map_err(FirewallError::Load)?;
        let change = kernel.change(now, rules || doubt).map_err(FirewallError::ReadBack)?;
        let elements = filled && (change.elements || doubt);
        if !change.rules && !elements {
            return Ok(None);
        }
        if change.rules {
            let live = kernel.fingerprint().map_err(FirewallError::ReadBack)?;
            if let Some(difference) = loaded.difference(&live) {
                return leaking(difference);
            }
        }
        if elements {
            let open = kernel.elements().map_err(FirewallError::ReadBack)?;
            let held = kernel.held().map_err(FirewallError::ReadBack)?;
            let found = drift::difference(&self.book, &open, &held, (now, Instant::now()));
            if found.is_some() {
                return Ok(found);
            }
            self.doubt = false;
            drop(self.book.take_changes());
        }
        self.kernel()?.acknowledge(change, now);
        Ok(None)
    }

    fn look(&mut self) {
        if self.loaded.is_none() {
            return;
        }
        if self.untold > 0 && self.told.is_none_or(|told| told.elapsed() >= QUIET) {
            let ours = self.ours();
            self.tell(&format!("somebody changed {ours} again; repaired"), true);
        }
        match self.inspect(false) {
            Ok(None) => {}
            // Told already.
            Ok(Some(found)) => drop(self.mend(&found)),
            Err(error) => self.tell(&format!("cannot look at the rules: {}", chain(&error)), false),
        }
    }

    /// Loads everything anew in one transaction: no packet passes in between, and flows that may go on do. If that
    /// fails, what leaks is closed with everything else; what only lacks something stays as it is.
    fn mend(&mut self, found: &Drift) -> Result<(), FirewallError> {
        let Some(ruleset) = self.ruleset.clone() else { return Err(FirewallError::Disturbed) };
        self.keep_denied();
        let mended = self.put(&ruleset);
        let outcome = match &mended {
            Ok(()) => "repaired".to_owned(),
            Err(error) => {
                self.doubt = true;
                let then = if found.leaks { self.close() } else { "the rest holds" };
                format!("it can't be repaired ({}); {then}", chain(error))
            }
        };
        let turned = std::mem::replace(&mut self.failed, mended.is_err()) != mended.is_err();
        self.tell(&format!("{}; {outcome}", self.accusation(found)), turned);
        mended
    }

    fn close(&mut self) -> &'static str {
        let closed = self.kernel().and_then(|kernel| {
            kernel.load(&ruleset::lockdown(), &Edit::default()).map_err(FirewallError::Load)
        });
        match closed {
            Ok(()) => "everything is closed until it can be",
            Err(_) => "nor can everything be closed",
        }
    }

    fn tell(&mut self, what: &str, at_once: bool) {
        if !at_once && self.told.is_some_and(|told| told.elapsed() < QUIET) {
            self.untold = self.untold.saturating_add(1);
            return;
        }
        self.told = Some(Instant::now());
        match std::mem::take(&mut self.untold) {
            0 => (self.notices.repaired)(what),
            more => (self.notices.repaired)(&format!("{what} ({more} times since it was last told)")),
        }
    }

    fn verify(&mut self) -> Result<String, String> {
        match self.inspect(true) {
            Ok(None) => Ok("rules as loaded".to_owned()),
            Ok(Some(found)) => Err(match self.mend(&found) {
                Ok(()) => format!("{}; repaired", self.accusation(&found)),
                Err(error) => format!("{}; {}", self.accusation(&found), chain(&error)),
            }),
            Err(error) => Err(chain(&error)),
        }
    }

    fn again(&mut self) -> Result<String, String> {
        self.doubt = true;
        match self.inspect(true).map_err(|error| chain(&error))? {
            None => Ok("rules as loaded".to_owned()),
            Some(found) => match self.mend(&found) {
                Ok(()) => Ok(format!("{}; repaired", self.accusation(&found))),
                Err(error) => Err(format!("{}; {}", self.accusation(&found), chain(&error))),
            },
        }
    }

    fn accusation(&self, found: &Drift) -> String {
        format!("somebody changed {}: {}", self.ours(), found.what)
    }

    fn ours(&self) -> String {
        self.kernel.as_ref().map_or_else(|| "the rules".to_owned(), Kernel::ours)
    }

    fn backend(&self) -> String {
        self.kernel.as_ref().map(Kernel::describe).unwrap_or_default()
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
                ports: open.ports,
                expires_at: rfc3339(open.until.saturating_duration_since(now)),
                stale: open.stale,
            })
            .collect();
        addresses.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        Report { backend: self.backend(), addresses, denied: self.denied.saturating_add(denied) }
    }
}

/// nf_tables, unless another way was chosen.
fn open(choice: Option<&(Arc<dyn Programs>, Candidate)>) -> Result<Kernel, BackendError> {
    match choice {
        Some((programs, candidate)) if candidate.backend != Backend::Nftables => {
            Ok(Kernel::Iptables(Box::new(Iptables::open(Arc::clone(programs), candidate)?)))
        }
        Some(_) | None => Ok(Kernel::Nftables(Box::new(Nftables::open()?))),
    }
}

fn element((address, port): Pair, until: Instant, now: Instant) -> Element {
    Element { address, port, timeout: until.saturating_duration_since(now) }
}

fn rfc3339(left: Duration) -> String {
    crate::report::time(SystemTime::now() + left)
}
