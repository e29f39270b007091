//! The book against a model that scans everything, and what its bounds are for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::{Book, Limits, Open, Pair};
use crate::allowlist::{Allowlist, DomainName, Origin, Verdict, parse_rules};
use crate::firewall::admission::{Class, MAX_PER_NAME};

fn policy(text: &str) -> Allowlist {
    let (rules, problems) = parse_rules(text, |line| Origin::File { path: "t".into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    Allowlist::new(rules)
}

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0102_0000 + number).into()
}

fn open(address: IpAddr, ports: &[u16], until: Instant) -> Open {
    Open { address, ports: ports.to_vec(), until, stale: false }
}

/// What the kernel would hold after what it was told.
#[derive(Debug, Default)]
struct Sets {
    open: BTreeMap<Pair, Instant>,
    held: BTreeSet<Pair>,
}

impl Sets {
    fn apply(&mut self, book: &mut Book, now: Instant) {
        let changes = book.take_changes();
        self.open.retain(|_, until| *until > now);
        for pair in changes.hold {
            assert!(self.held.insert(pair), "{pair:?} was held before");
        }
        self.open.extend(changes.open);
        for pair in changes.close {
            assert!(self.open.remove(&pair).is_some(), "{pair:?} was not open");
        }
        for pair in changes.release {
            assert!(self.held.remove(&pair), "{pair:?} was not held");
        }
        assert!(book.take_changes().is_empty());
    }
}

/// One address of a name, as simple as can be.
#[derive(Debug, Clone)]
struct Item {
    age: usize,
    name: DomainName,
    class: Class,
    open: Open,
    former: bool,
}

#[derive(Debug)]
struct Model {
    items: Vec<Item>,
    age: usize,
    limits: Limits,
}

impl Model {
    fn enter(&mut self, name: &DomainName, class: Class, opens: &[Open]) -> BTreeSet<DomainName> {
        let first = self.age;
        for item in self.items.iter_mut().filter(|item| item.name == *name) {
            item.class = class;
        }
        for open in opens {
            let mut open = open.clone();
            let same = |item: &Item| item.name == *name && item.open.address == open.address;
            if let Some(at) = self.items.iter().position(same) {
                let old = self.items.remove(at);
                if !old.former {
                    open.until = open.until.max(old.open.until);
                }
            }
            self.age += 1;
            self.items.push(Item { age: self.age, name: name.clone(), class, open, former: false });
        }
        let mut forgotten = BTreeSet::new();
        let retire = |model: &mut Self, which: &dyn Fn(&Item) -> bool, most, lost: &mut BTreeSet<_>| {
            while model.items.iter().filter(|item| !item.former && which(item)).count() > most {
                let oldest = model.items.iter_mut().filter(|item| !item.former && which(item));
                let oldest = oldest.min_by_key(|item| item.age).unwrap();
                oldest.former = true;
                if oldest.name != *name || oldest.age > first {
                    lost.insert(oldest.name.clone());
                }
            }
        };
        let limits = self.limits;
        let most = if class == Class::Exact { limits.exact } else { limits.pattern };
        retire(self, &|item| item.name == *name, limits.per_name, &mut forgotten);
        retire(self, &|item| item.class == class, most, &mut forgotten);
        self.forget(name, class);
        forgotten
    }

    fn forget(&mut self, name: &DomainName, class: Class) {
        let drop = |model: &mut Self, which: &dyn Fn(&Item) -> bool, most| {
            while model.items.iter().filter(|item| item.former && which(item)).count() > most {
                let former = model.items.iter().enumerate().filter(|(_, item)| item.former && which(item));
                let oldest = former.min_by_key(|(_, item)| item.age).unwrap().0;
                model.items.remove(oldest);
            }
        };
        let limits = self.limits;
        drop(self, &|item| item.name == *name, limits.former_per_name);
        drop(
            self,
            &|item| item.class == class,
            match class {
                Class::Exact => limits.former_exact,
                Class::Pattern => limits.former_pattern,
            },
        );
    }

    fn expire(&mut self, now: Instant) {
        let mut retired = BTreeMap::new();
        for item in self.items.iter_mut().filter(|item| !item.former && item.open.until <= now) {
            item.former = true;
            retired.insert(item.name.clone(), item.class);
        }
        for (name, class) in retired {
            self.forget(&name, class);
        }
    }

    fn follow(&mut self, allowlist: &Allowlist) {
        for item in &mut self.items {
            let ports = match allowlist.verdict(&item.name) {
                Verdict::Allowed(allowed) => {
                    item.class = Class::of(&allowed);
                    allowed.ports
                }
                Verdict::Denied(_) => Vec::new(),
            };
            if item.former {
                item.open.ports.retain(|port| ports.contains(port));
            } else {
                item.open.ports = ports;
            }
        }
        self.items.retain(|item| !item.open.ports.is_empty());
    }

    fn pairs(&self, former: bool) -> impl Iterator<Item = (Pair, &Item)> {
        let items = self.items.iter().filter(move |item| item.former == former);
        items.flat_map(|item| item.open.ports.iter().map(move |port| ((item.open.address, *port), item)))
    }

    fn sets(&self) -> Sets {
        let mut sets = Sets::default();
        for (pair, item) in self.pairs(false) {
            let until = sets.open.entry(pair).or_insert(item.open.until);
            *until = item.open.until.max(*until);
        }
        sets.held = self.pairs(false).chain(self.pairs(true)).map(|(pair, _)| pair).collect();
        sets
    }

    fn claims(&self, pair: Pair) -> Vec<DomainName> {
        for former in [false, true] {
            let mut found: Vec<_> = self.pairs(former).filter(|(p, _)| *p == pair).collect();
            found.sort_by_key(|(_, item)| std::cmp::Reverse(item.age));
            if !found.is_empty() {
                return found
                    .into_iter()
                    .take(super::MAX_CLAIMS)
                    .map(|(_, item)| item.name.clone())
                    .collect();
            }
        }
        Vec::new()
    }
}

/// Knuth's MMIX generator: reproducible, and good enough to choose between few things.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap() % most
    }
}

const POLICIES: [&str; 5] = [
    "e1.test;e2.test:22,443;*.w.test;e3.w.test",
    "e1.test:443,8443;*.w.test:80",
    "*.test",
    "e2.test;*.w.test;!p1.w.test",
    "e3.w.test;p2.w.test:443,22",
];
const NAMES: [&str; 8] =
    ["e1.test", "e2.test", "e3.w.test", "p1.w.test", "p2.w.test", "p3.w.test", "p4.w.test", "p5.w.test"];

#[test]
fn the_book_does_what_a_scan_of_everything_would_do() {
    let limits =
        Limits { per_name: 4, pattern: 6, exact: 7, former_per_name: 3, former_pattern: 8, former_exact: 9 };
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let mut now = Instant::now();
        let (mut book, mut sets) = (Book::new(limits), Sets::default());
        let mut model = Model { items: Vec::new(), age: 0, limits };
        let mut allowlist = policy(POLICIES[0]);
        for _ in 0..300 {
            match dice.below(10) {
                0 => {
                    now += Duration::from_secs(u64::from(dice.below(40)));
                    book.expire(now);
                    model.expire(now);
                }
                1 => {
                    allowlist = policy(POLICIES[dice.below(5) as usize]);
                    book.follow(&allowlist);
                    model.follow(&allowlist);
                }
                _ => {
                    let name = name(NAMES[dice.below(8) as usize]);
                    let Verdict::Allowed(allowed) = allowlist.verdict(&name) else { continue };
                    let count = 1 + dice.below(4);
                    let mut chosen = BTreeSet::new();
                    chosen.extend((0..count).map(|_| dice.below(12)));
                    let mut opened = |number| {
                        let lives = Duration::from_secs(u64::from(1 + dice.below(60)));
                        open(address(number), &allowed.ports, now + lives)
                    };
                    let opens: Vec<Open> = chosen.into_iter().map(&mut opened).collect();
                    book.expire(now);
                    model.expire(now);
                    let class = Class::of(&allowed);
                    let expected = model.enter(&name, class, &opens);
                    let forgotten = book.enter(&name, class, opens);
                    assert_eq!(forgotten, expected.into_iter().collect::<Vec<_>>());
                }
            }
            sets.apply(&mut book, now);
            compare(&book, &sets, &model);
        }
    }
}

fn compare(book: &Book, sets: &Sets, model: &Model) {
    let expected = model.sets();
    assert_eq!(sets.open, expected.open);
    assert_eq!(sets.held, expected.held);
    assert_eq!(book.open_pairs().collect::<BTreeMap<_, _>>(), expected.open);
    assert_eq!(book.held_pairs(), expected.held);
    assert_eq!(book.iter().count(), model.items.iter().filter(|item| !item.former).count());
    for pair in (0..12).flat_map(|number| [22, 80, 443].map(|port| (address(number), port))) {
        assert_eq!(book.claims(pair), model.claims(pair));
    }
}

#[test]
fn a_rotating_name_stays_within_its_cap_and_the_oldest_goes_but_its_flows_go_on() {
    let (mut book, now, cdn) = (Book::default(), Instant::now(), name("cdn.test"));
    let until = now + Duration::from_secs(60);
    for i in 0..400 {
        // It is its own old address that goes, and what is cached of the name is newer.
        assert!(book.enter(&cdn, Class::Exact, vec![open(address(i), &[443], until)]).is_empty());
    }
    assert_eq!(book.iter().count(), MAX_PER_NAME);
    let open: Vec<_> = book.open_pairs().map(|(pair, _)| pair).collect();
    assert_eq!(open.first(), Some(&(address(400 - 128), 443)));
    assert_eq!(book.held_pairs().len(), 400);
}

#[test]
fn a_shared_address_stays_open_while_one_name_claims_it() {
    let (mut book, now) = (Book::default(), Instant::now());
    let (a, b) = (name("a.test"), name("b.test"));
    let (short, long) = (now + Duration::from_secs(60), now + Duration::from_secs(600));
    book.enter(&a, Class::Exact, vec![open(address(1), &[22, 443], long)]);
    book.enter(&b, Class::Exact, vec![open(address(1), &[443], short)]);
    assert_eq!(book.claims((address(1), 443)), [b.clone(), a.clone()]);
    let opened = book.take_changes();
    assert_eq!(opened.open, [((address(1), 22), long), ((address(1), 443), long)]);
    book.follow(&policy("b.test"));
    let changes = book.take_changes();
    assert_eq!(
        (&changes.close[..], &changes.release[..]),
        (&[(address(1), 22)][..], &[(address(1), 22)][..])
    );
    // The kernel had the longer lifetime of the two: it must be told the other.
    assert_eq!(changes.open, [((address(1), 443), short)]);
    book.expire(short);
    assert_eq!(book.iter().count(), 0);
    assert!(book.take_changes().is_empty(), "the kernel let it expire by itself, and flows go on");
    // Whose flow it was can still be said; without the rule it ends.
    assert_eq!(book.claims((address(1), 443)), [b]);
    book.follow(&policy("other.test"));
    assert_eq!(book.take_changes().release, [(address(1), 443)]);
    assert!(book.claims((address(1), 443)).is_empty());
}

/// Who makes up names below a wildcard closes names below wildcards, never one that the policy spells out.
#[test]
fn a_flood_below_a_wildcard_takes_nothing_from_exact_names() {
    let (mut book, now) = (Book::default(), Instant::now());
    // The exact names' answers end first: by time alone they would be the ones to go.
    let (soon, late) = (now + Duration::from_secs(30), now + Duration::from_secs(3_600));
    for i in 0..1_000 {
        let name = name(&format!("e{i}.test"));
        book.enter(&name, Class::Exact, (0..4).map(|k| open(address(i * 4 + k), &[443], soon)).collect());
    }
    let limit = u32::try_from(Limits::default().pattern).unwrap();
    for i in 0..limit + 500 {
        let made_up = name(&format!("x{i}.w.test"));
        let opens = vec![open(address(100_000 + i), &[443], late)];
        let forgotten = book.enter(&made_up, Class::Pattern, opens);
        let expected: &[DomainName] =
            &if i < limit { vec![] } else { vec![name(&format!("x{}.w.test", i - limit))] };
        assert_eq!(forgotten, expected);
    }
    let open: BTreeSet<Pair> = book.open_pairs().map(|(pair, _)| pair).collect();
    assert_eq!(open.len(), 4_000 + 16_384);
    assert!((0..4_000).all(|i| open.contains(&(address(i), 443))));
}

#[test]
fn ten_thousand_exact_names_fit() {
    let (mut book, until) = (Book::default(), Instant::now() + Duration::from_secs(60));
    for i in 0..10_000 {
        let name = name(&format!("e{i}.test"));
        let opens = (0..12).map(|k| open(address(i * 12 + k), &[443], until)).collect();
        assert!(book.enter(&name, Class::Exact, opens).is_empty());
    }
    assert_eq!(book.iter().count(), 120_000);
}

/// A rule that loses its word `private` closes private addresses and nothing else; one that gains a port opens it.
#[test]
fn t36_a_rule_that_changes_changes_what_is_open() {
    let (mut book, until) = (Book::default(), Instant::now() + Duration::from_secs(60));
    let (inner, outer): (IpAddr, IpAddr) = ("10.0.0.5".parse().unwrap(), address(1));
    let opens = [inner, outer].map(|address| open(address, &[443], until)).to_vec();
    book.enter(&name("git.test"), Class::Exact, opens);
    book.take_changes();
    book.follow(&policy("git.test"));
    let changes = book.take_changes();
    assert_eq!((changes.close, changes.release), (vec![(inner, 443)], vec![(inner, 443)]));
    book.follow(&policy("git.test:443,22"));
    let changes = book.take_changes();
    assert_eq!((changes.open, changes.hold), (vec![((outer, 22), until)], vec![(outer, 22)]));
    assert!(changes.close.is_empty() && changes.release.is_empty());
}
