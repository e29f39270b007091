//! The orders in which the book must find things: by pair, by expiry and by age. (pure)
//!
//! Few large trees rather than many small ones: most pairs have one name, and a tree of its own for each would be
//! mostly room.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use super::{Class, Pair, Unit};

/// The number of an admission: the least is the oldest.
pub(super) type Age = u64;

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Who has a pair open, the last admitted first.
    claims: BTreeSet<(Pair, Reverse<Age>)>,
    /// Until when, the latest first; `None` comes before all and is where a search begins.
    untils: BTreeSet<(Pair, Option<Reverse<Instant>>, Age)>,
    /// Who had a pair.
    formers: BTreeSet<(Pair, Reverse<Age>)>,
    expiry: BTreeSet<(Instant, Age)>,
    exact: Order,
    pattern: Order,
}

/// Of one class, the oldest first.
#[derive(Debug, Default)]
struct Order {
    open: BTreeSet<Age>,
    former: BTreeSet<Age>,
}

impl Index {
    pub(super) fn insert(&mut self, age: Age, unit: &Unit, class: Class) {
        for pair in unit.pairs() {
            if let Some(until) = unit.until {
                self.claims.insert((pair, Reverse(age)));
                self.untils.insert((pair, Some(Reverse(until)), age));
            } else {
                self.formers.insert((pair, Reverse(age)));
            }
        }
        if let Some(until) = unit.until {
            self.expiry.insert((until, age));
            self.order(class).open.insert(age);
        } else {
            self.order(class).former.insert(age);
        }
    }

    pub(super) fn remove(&mut self, age: Age, unit: &Unit, class: Class) {
        for pair in unit.pairs() {
            if let Some(until) = unit.until {
                self.claims.remove(&(pair, Reverse(age)));
                self.untils.remove(&(pair, Some(Reverse(until)), age));
            } else {
                self.formers.remove(&(pair, Reverse(age)));
            }
        }
        if let Some(until) = unit.until {
            self.expiry.remove(&(until, age));
            self.order(class).open.remove(&age);
        } else {
            self.order(class).former.remove(&age);
        }
    }

    fn order(&mut self, class: Class) -> &mut Order {
        match class {
            Class::Exact => &mut self.exact,
            Class::Pattern => &mut self.pattern,
        }
    }

    pub(super) fn open(&self, class: Class) -> &BTreeSet<Age> {
        match class {
            Class::Exact => &self.exact.open,
            Class::Pattern => &self.pattern.open,
        }
    }

    pub(super) fn former(&self, class: Class) -> &BTreeSet<Age> {
        match class {
            Class::Exact => &self.exact.former,
            Class::Pattern => &self.pattern.former,
        }
    }

    /// Until when a pair is open for any name. The kernel has one timeout for a pair, names may share it.
    pub(super) fn until(&self, pair: Pair) -> Option<Instant> {
        let (found, until, _) = self.untils.range((pair, None, 0)..).next()?;
        until.filter(|_| *found == pair).map(|Reverse(until)| until)
    }

    pub(super) fn claims(&self, pair: Pair) -> impl Iterator<Item = Age> {
        of(&self.claims, pair)
    }

    /// Who has any port of an address open.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = Age> {
        self.claims
            .range(((address, 0), Reverse(Age::MAX))..)
            .take_while(move |((found, _), _)| *found == address)
            .map(|(_, Reverse(age))| *age)
    }

    pub(super) fn formers(&self, pair: Pair) -> impl Iterator<Item = Age> {
        of(&self.formers, pair)
    }

    /// Some address whose time is over.
    pub(super) fn expired(&self, now: Instant) -> Option<Age> {
        self.expiry.first().filter(|(until, _)| *until <= now).map(|(_, age)| *age)
    }

    pub(super) fn open_pairs(&self) -> impl Iterator<Item = (Pair, Instant)> {
        let mut last = None;
        self.untils.iter().filter_map(move |(pair, until, _)| {
            let first = last.replace(*pair) != Some(*pair);
            until.filter(|_| first).map(|Reverse(until)| (*pair, until))
        })
    }
}

fn of(set: &BTreeSet<(Pair, Reverse<Age>)>, pair: Pair) -> impl Iterator<Item = Age> {
    set.range((pair, Reverse(Age::MAX))..)
        .take_while(move |(found, _)| *found == pair)
        .map(|(_, Reverse(age))| *age)
}
