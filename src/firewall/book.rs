//! The book of what is open: for which name, until when, and what a name had before. (pure)
//!
//! The kernel's sets hold no names and can't say who else needs an address; the book can, and every change of the sets
//! is computed here ([`Book::take_changes`]). A *former* address is one that a name had and has no more, by rotation or
//! expiry: nothing new may go there, but the flows that began in time go on, until the name's rule is removed.
//!
//! Everything is indexed, so that an admission costs the logarithm of what is open, however much that is.

mod index;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use super::admission::{Class, MAX_PER_NAME};
use crate::addresses::{AddressClass, class};
use crate::allowlist::{Allowlist, DomainName, Verdict};
use index::{Age, Index};

/// Where a TCP connection goes.
pub type Pair = (IpAddr, u16);

/// How much is kept; beyond, the oldest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Addresses open for one name.
    pub per_name: usize,
    /// Addresses open for names that only a wildcard covers, in all.
    pub pattern: usize,
    /// Addresses open for names that the policy spells out, in all. What is below wildcards does not count, so nobody
    /// can use it up by names that he made up.
    pub exact: usize,
    /// Former addresses of one name that are remembered; the flows to those that are forgotten end.
    pub former_per_name: usize,
    /// Former addresses of names that only a wildcard covers, in all.
    pub former_pattern: usize,
    /// Former addresses of names that the policy spells out, in all.
    pub former_exact: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_name: MAX_PER_NAME,
            // Bounds the kernel's memory against a flood of names below a wildcard.
            pattern: 16_384,
            // 10,000 names with 12 addresses each fit.
            exact: 131_072,
            // To a name that brings 8 new addresses a minute a flow can live through 8 hours of that.
            former_per_name: 4_096,
            // What a flood of names below a wildcard may cost PID 1 stays small.
            former_pattern: 8_192,
            former_exact: 32_768,
        }
    }
}

/// Names that are told for one pair; a pair can have thousands.
const MAX_CLAIMS: usize = 16;

/// One address that is open for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub address: IpAddr,
    pub ports: Vec<u16>,
    pub until: Instant,
    pub stale: bool,
}

/// What the kernel's sets must be told: in one transaction, or else in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Flows to these may go on from now on.
    pub hold: Vec<Pair>,
    /// Open until then, whatever was before.
    pub open: Vec<(Pair, Instant)>,
    /// Open no more.
    pub close: Vec<Pair>,
    /// Nor may flows go on.
    pub release: Vec<Pair>,
}

impl Changes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hold.is_empty() && self.open.is_empty() && self.close.is_empty() && self.release.is_empty()
    }
}

/// An address of a name, open or former.
#[derive(Debug, Clone)]
struct Unit {
    name: DomainName,
    address: IpAddr,
    ports: Vec<u16>,
    /// None for a former one.
    until: Option<Instant>,
    stale: bool,
}

#[derive(Debug)]
struct Named {
    class: Class,
    addresses: HashMap<IpAddr, Age>,
    open: BTreeSet<Age>,
    former: BTreeSet<Age>,
}

/// What the kernel was last told of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    until: Option<Instant>,
    held: bool,
}

/// What is open and what was, for which name. Mirrors the kernel's sets.
#[derive(Debug, Default)]
pub struct Book {
    names: HashMap<DomainName, Named>,
    units: HashMap<Age, Unit>,
    index: Index,
    /// Admissions so far: the least is the oldest.
    age: Age,
    /// The pairs that were changed since the kernel was told, and what it knows of them.
    touched: BTreeMap<Pair, State>,
    limits: Limits,
}

impl Book {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Writes an admission down. Returns the names that lost an address to make room, this one only if it lost one of
    /// these.
    pub fn enter(&mut self, name: &DomainName, class: Class, opens: Vec<Open>) -> Vec<DomainName> {
        let first = self.age;
        let name = match self.names.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => name.clone(),
        };
        self.reclassify(&name, class);
        for open in opens {
            let known = self.names.get(&name).and_then(|named| named.addresses.get(&open.address));
            // Who got the earlier answer may count on it to its end, also if this one ends before.
            let earlier = known.copied().and_then(|age| self.remove(age)).and_then(|unit| unit.until);
            let until = Some(earlier.map_or(open.until, |earlier| earlier.max(open.until)));
            let Open { address, ports, stale, .. } = open;
            self.age += 1;
            self.insert(self.age, Unit { name: name.clone(), address, ports, until, stale }, class);
        }
        let mut forgotten = BTreeSet::new();
        while let Some(oldest) = self.surplus(&name, class) {
            let Some(unit) = self.retire(oldest) else { break };
            if unit != name || oldest > first {
                forgotten.insert(unit);
            }
        }
        self.forget_former(&name, class);
        forgotten.into_iter().collect()
    }

    /// The oldest open address of a name or class that has too many.
    fn surplus(&self, name: &DomainName, class: Class) -> Option<Age> {
        let own = self.names.get(name).map(|named| &named.open);
        let own = own.filter(|open| open.len() > self.limits.per_name);
        let most = match class {
            Class::Exact => self.limits.exact,
            Class::Pattern => self.limits.pattern,
        };
        let all = Some(self.index.open(class)).filter(|open| open.len() > most);
        own.or(all)?.first().copied()
    }

    /// Forgets the oldest former addresses of a name or class that has too many.
    fn forget_former(&mut self, name: &DomainName, class: Class) {
        while let Some(former) = self.names.get(name).map(|named| &named.former)
            && former.len() > self.limits.former_per_name
            && let Some(oldest) = former.first().copied()
        {
            self.remove(oldest);
        }
        let former = |book: &Self| {
            let all = book.index.former(class);
            let most = match class {
                Class::Exact => book.limits.former_exact,
                Class::Pattern => book.limits.former_pattern,
            };
            if all.len() > most { all.first().copied() } else { None }
        };
        while let Some(oldest) = former(self) {
            self.remove(oldest);
        }
    }

    /// An open address becomes a former one.
    fn retire(&mut self, age: Age) -> Option<DomainName> {
        let class = self.class(age)?;
        let unit = self.remove(age)?;
        let name = unit.name.clone();
        self.insert(age, Unit { until: None, ..unit }, class);
        Some(name)
    }

    fn class(&self, age: Age) -> Option<Class> {
        self.units.get(&age).and_then(|unit| self.names.get(&unit.name)).map(|named| named.class)
    }

    fn reclassify(&mut self, name: &DomainName, class: Class) {
        let Some(named) = self.names.get_mut(name).filter(|named| named.class != class) else { return };
        let ages: Vec<Age> = named.addresses.values().copied().collect();
        let units: Vec<_> = ages.into_iter().filter_map(|age| Some((age, self.remove(age)?))).collect();
        for (age, unit) in units {
            self.insert(age, unit, class);
        }
    }

    /// Takes down what the kernel has let expire by itself: flows to it go on.
    pub fn expire(&mut self, now: Instant) {
        let mut retired = BTreeSet::new();
        while let Some(age) = self.index.expired(now) {
            let pairs: Vec<Pair> = self.units.get(&age).map(Unit::pairs).unwrap_or_default();
            for pair in pairs {
                // Only once no name has it open any longer is the kernel's element gone too.
                let until = self.index.until(pair).filter(|until| *until > now);
                self.touched.entry(pair).or_insert(State { until, held: true });
            }
            let Some(name) = self.retire(age) else { break };
            retired.insert(name);
        }
        for name in retired {
            if let Some(class) = self.names.get(&name).map(|named| named.class) {
                self.forget_former(&name, class);
            }
        }
    }

    /// Another policy: names, ports and private addresses that it does not allow are neither open nor held, and what
    /// is open for a name is open for all its ports.
    pub fn follow(&mut self, allowlist: &Allowlist) {
        let names: Vec<DomainName> = self.names.keys().cloned().collect();
        for name in names {
            let (ports, private, class) = match allowlist.verdict(&name) {
                Verdict::Allowed(allowed) => {
                    let class = Class::of(&allowed);
                    (allowed.ports, allowed.private, class)
                }
                Verdict::Denied(_) => (Vec::new(), false, Class::Pattern),
            };
            self.reclassify(&name, class);
            let Some(named) = self.names.get(&name) else { continue };
            let ages: Vec<Age> = named.addresses.values().copied().collect();
            for age in ages {
                let Some(known) = self.units.get(&age) else { continue };
                let kept = known.under(&ports, private);
                if kept == known.ports {
                    continue;
                }
                let Some(unit) = self.remove(age) else { continue };
                if !kept.is_empty() {
                    self.insert(age, Unit { ports: kept, ..unit }, class);
                }
            }
        }
    }

    fn insert(&mut self, age: Age, unit: Unit, class: Class) {
        for pair in unit.pairs() {
            self.touch(pair);
        }
        self.index.insert(age, &unit, class);
        let named = self.names.entry(unit.name.clone()).or_insert_with(|| Named::new(class));
        named.class = class;
        named.addresses.insert(unit.address, age);
        match unit.until {
            Some(_) => named.open.insert(age),
            None => named.former.insert(age),
        };
        self.units.insert(age, unit);
    }

    fn remove(&mut self, age: Age) -> Option<Unit> {
        let class = self.class(age)?;
        let unit = self.units.remove(&age)?;
        for pair in unit.pairs() {
            self.touch(pair);
        }
        self.index.remove(age, &unit, class);
        if let Some(named) = self.names.get_mut(&unit.name) {
            named.addresses.remove(&unit.address);
            named.open.remove(&age);
            named.former.remove(&age);
            if named.addresses.is_empty() {
                self.names.remove(&unit.name);
            }
        }
        Some(unit)
    }

    fn touch(&mut self, pair: Pair) {
        let state = self.state(pair);
        self.touched.entry(pair).or_insert(state);
    }

    fn state(&self, pair: Pair) -> State {
        let until = self.index.until(pair);
        State { until, held: until.is_some() || self.index.formers(pair).next().is_some() }
    }

    /// What the kernel does not know yet.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for (pair, before) in std::mem::take(&mut self.touched) {
            let now = self.state(pair);
            match now.until {
                Some(until) if before.until != Some(until) => changes.open.push((pair, until)),
                None if before.until.is_some() => changes.close.push(pair),
                Some(_) | None => {}
            }
            match (before.held, now.held) {
                (false, true) => changes.hold.push(pair),
                (true, false) => changes.release.push(pair),
                (true, true) | (false, false) => {}
            }
        }
        changes
    }

    /// The names that hold a pair, the one that was admitted last first; where it is open for none, those that had it.
    #[must_use]
    pub fn claims(&self, pair: Pair) -> Vec<DomainName> {
        let names = |ages: &mut dyn Iterator<Item = Age>| -> Vec<DomainName> {
            let units = ages.filter_map(|age| self.units.get(&age));
            units.take(MAX_CLAIMS).map(|unit| unit.name.clone()).collect()
        };
        let open = names(&mut self.index.claims(pair));
        if open.is_empty() { names(&mut self.index.formers(pair)) } else { open }
    }

    /// The names for which an address is open, at most so many, each with its ports.
    #[must_use]
    pub fn names_at(&self, address: IpAddr) -> Vec<(DomainName, Vec<u16>)> {
        let mut found: BTreeMap<Age, &Unit> = BTreeMap::new();
        for age in self.index.at(address).take(MAX_CLAIMS) {
            found.extend(self.units.get(&age).map(|unit| (age, unit)));
        }
        found.into_values().rev().map(|unit| (unit.name.clone(), unit.ports.clone())).collect()
    }

    /// Every open pair once, in order, and until when.
    pub fn open_pairs(&self) -> impl Iterator<Item = (Pair, Instant)> {
        self.index.open_pairs()
    }

    /// Every pair to which flows may go on, in order.
    #[must_use]
    pub fn held_pairs(&self) -> BTreeSet<Pair> {
        self.units.values().flat_map(Unit::pairs).collect()
    }

    /// Everything that is open, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&DomainName, Open)> {
        self.units.values().filter_map(|unit| {
            let (address, ports) = (unit.address, unit.ports.clone());
            Some((&unit.name, Open { address, ports, until: unit.until?, stale: unit.stale }))
        })
    }
}

impl Named {
    fn new(class: Class) -> Self {
        Self { class, addresses: HashMap::new(), open: BTreeSet::new(), former: BTreeSet::new() }
    }
}

impl Unit {
    fn pairs(&self) -> Vec<Pair> {
        self.ports.iter().map(|port| (self.address, *port)).collect()
    }

    /// The ports that it has under another policy. To a former address nothing begins, so it gains none.
    fn under(&self, ports: &[u16], private: bool) -> Vec<u16> {
        match class(self.address) {
            AddressClass::Private(_) if !private => Vec::new(),
            AddressClass::Never(_) => Vec::new(),
            AddressClass::Global | AddressClass::Private(_) if self.until.is_some() => ports.to_vec(),
            AddressClass::Global | AddressClass::Private(_) => {
                self.ports.iter().copied().filter(|port| ports.contains(port)).collect()
            }
        }
    }
}
