//! The image's iptables as a backend: the same rule sets and the same sets of pairs as in nf_tables, in chains of our own.
//!
//! One jump, the first rule of each built-in chain, leads to them; policies and rules of others stay. Pairs are in the
//! kernel's ipset, spoken by netlink, or in rules where it has none. What needs a program is done by [`Programs`].

mod ipset;
pub mod listing;
pub mod pairs;
pub mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::ipset::Ipset;
use self::listing::Listing;
use self::pairs::{FILLED, PairChain};
use self::render::{Form, Rendered, SET_PREFIX, render, set_name};
use super::backend::{Change, Edit, Element, Fingerprint};
use super::book::Pair;
use super::ground::{Backend, Candidate, Storage};
use super::nftables::{Nftables, NftablesError};
use super::programs::{Answer, Job, Programs, ProgramsError, Variant};
use super::ruleset::{Family, Ruleset};

pub use self::render::PREFIX;

/// Why iptables could not change or read the kernel's tables.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    #[error("the kernel has no ipset")]
    NoIpset { source: io::Error },
    #[error("the kernel's sets may not be changed: the capability NET_ADMIN is missing")]
    NotPermitted { source: io::Error },
    #[error("cannot reach the kernel's ipset")]
    IpsetChannel { source: NftablesError },
    #[error("ipset refused {object}")]
    Ipset { object: String, source: io::Error },
    #[error("cannot run iptables")]
    Programs(#[source] ProgramsError),
    #[error("iptables failed for {family}: {said}")]
    Failed { family: Family, said: String },
    #[error("no iptables for {family}: {said}")]
    Missing { family: Family, said: String },
    #[error("iptables loaded the rules of {family}, and something else is there: {what}")]
    Different { family: Family, what: String },
}

/// How often the tables are read to see whether somebody changed them, where the kernel doesn't number the changes.
/// T46 gives ten seconds.
const READ_BACK: Duration = Duration::from_secs(4);
/// A listing is still the present after this.
const FRESH: Duration = Duration::from_millis(100);

/// The tables of each family, as they are listed.
type Tables = Vec<(Family, Vec<Listing>)>;

#[derive(Debug)]
pub struct Iptables {
    programs: Arc<dyn Programs>,
    variant: Variant,
    storage: Storage,
    comments: bool,
    /// Those that the kernel has.
    families: Vec<Family>,
    sets: Option<Ipset>,
    /// The number of the sets in use, if the loaded rules name any.
    number: Option<u32>,
    /// Sets of earlier rules, which the kernel lets go of a little later than the rules.
    old_sets: bool,
    pairs: Vec<PairChain>,
    open: BTreeMap<Pair, Instant>,
    held: BTreeSet<Pair>,
    /// The nft variant's changes are numbered like all of nf_tables'.
    changes: Option<Box<Nftables>>,
    known: Option<u32>,
    looked: Option<Instant>,
    seen: Option<(Instant, Tables)>,
}

impl Iptables {
    /// Prepares for a candidate that was found fit; nothing is programmed yet.
    pub fn open(programs: Arc<dyn Programs>, candidate: &Candidate) -> Result<Self, IptablesError> {
        let variant = match candidate.backend {
            Backend::IptablesLegacy => Variant::Legacy,
            Backend::IptablesNft | Backend::Nftables => Variant::Nft,
        };
        let sets = match candidate.storage {
            Storage::Ipset => Some(Ipset::open()?),
            Storage::Rules | Storage::Sets => None,
        };
        let offers = [(Family::V4, &candidate.ipv4), (Family::V6, &candidate.ipv6)];
        let families = offers.into_iter().filter(|(_, offer)| !offer.absent()).map(|(family, _)| family);
        Ok(Self {
            programs,
            variant,
            storage: candidate.storage,
            comments: candidate.comments,
            families: families.collect(),
            sets,
            number: None,
            old_sets: false,
            pairs: Vec::new(),
            open: BTreeMap::new(),
            held: BTreeSet::new(),
            changes: (variant == Variant::Nft).then(|| Nftables::open().ok()).flatten().map(Box::new),
            known: None,
            looked: None,
            seen: None,
        })
    }

    #[must_use]
    pub fn describe(&self) -> String {
        let backend = match self.variant {
            Variant::Nft => Backend::IptablesNft,
            Variant::Legacy => Backend::IptablesLegacy,
        };
        format!("{backend}, {}", self.storage)
    }

    /// Replaces our chains by these, and what the sets hold: in one commit a table. New sets are filled beforehand and
    /// the new rules name them, so content and rules change at one moment. Returns what was read back.
    pub fn load(&mut self, ruleset: &Ruleset, content: &Edit) -> Result<Fingerprint, IptablesError> {
        let number = self.prepare(ruleset, content)?;
        let form = Form { sets: number, comments: self.comments };
        let rendered: Vec<(Family, Rendered)> =
            self.families.iter().map(|family| (*family, render(ruleset, *family, form, content))).collect();
        let bodies = rendered.iter().map(|(family, one)| (*family, one.bodies.clone())).collect();
        self.seen = None;
        self.known = None;
        let listed = self.listed(&Job::Load(self.variant, bodies))?;
        self.number = number;
        self.pairs = rendered.iter().flat_map(|(_, one)| one.pairs.clone()).collect();
        let now = Instant::now();
        self.open = content.open.iter().map(|one| ((one.address, one.port), end(now, one.timeout))).collect();
        self.held = content.hold.iter().copied().collect();
        self.old_sets = true;
        self.forget();
        for (family, one) in &rendered {
            let tables = listed.iter().find(|(of, _)| of == family).map(|(_, tables)| tables);
            for body in &one.bodies {
                let table = tables.and_then(|all| all.iter().find(|table| table.table == body.table));
                let found = table.map_or_else(|| Err(format!("no table {}", body.table)), |t| t.check(body));
                found.map_err(|what| IptablesError::Different { family: *family, what })?;
            }
        }
        self.looked = Some(now);
        Ok(self.parts(&listed))
    }

    /// New sets with all they are to hold, beside those in use.
    fn prepare(&mut self, ruleset: &Ruleset, content: &Edit) -> Result<Option<u32>, IptablesError> {
        let Some(sets) = self.sets.as_mut().filter(|_| !ruleset.sets.is_empty()) else { return Ok(None) };
        // Also if what follows fails: what was made by then is nobody's.
        self.old_sets = true;
        let numbers = sets.names()?.into_iter().filter_map(|name| number_of(&name));
        let number = numbers.max().unwrap_or_default().checked_add(1).unwrap_or_default();
        for (set, family, timed) in FILLED {
            let name = set_name(number, set);
            sets.create(&name, family, timed)?;
            let elements = if timed { content.open.clone() } else { lasting(&content.hold) };
            let elements: Vec<Element> =
                elements.into_iter().filter(|one| Family::of(one.address) == family).collect();
            sets.add(&name, family, &elements, timed)?;
        }
        Ok(Some(number))
    }

    /// Sets of rules that are gone. The kernel may still hold them for a moment; then the next look takes them.
    fn forget(&mut self) {
        let Some(sets) = self.sets.as_mut().filter(|_| self.old_sets) else { return };
        let Ok(names) = sets.names() else { return };
        let old = names.iter().filter(|name| number_of(name).is_some_and(|n| Some(n) != self.number));
        self.old_sets = old.filter(|name| sets.destroy(name).is_err()).count() > 0;
    }

    /// Changes the pairs. In rules it is one commit a family; in sets one after the other, and in this order nothing is
    /// ever open that isn't held.
    pub fn apply(&mut self, edit: &Edit) -> Result<(), IptablesError> {
        if edit.is_empty() {
            return Ok(());
        }
        let (Some(sets), Some(number)) = (self.sets.as_mut(), self.number) else {
            return self.rewrite(edit);
        };
        let open = |edit: &Edit, family: Family| -> Vec<Element> {
            edit.open.iter().copied().filter(|one| Family::of(one.address) == family).collect()
        };
        let of = |pairs: &[Pair], family: Family| -> Vec<Element> {
            let mut elements = lasting(pairs);
            elements.retain(|one| Family::of(one.address) == family);
            elements
        };
        for step in 0..4_u8 {
            for (set, family, timed) in FILLED {
                let name = set_name(number, set);
                match (step, timed) {
                    (0, false) => sets.add(&name, family, &of(&edit.hold, family), false)?,
                    (1, true) => sets.add(&name, family, &open(edit, family), true)?,
                    (2, true) => sets.delete(&name, family, &of(&edit.close, family))?,
                    (3, false) => sets.delete(&name, family, &of(&edit.release, family))?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The same where pairs are rules. Who has a pair already keeps its rule: only its end is another.
    fn rewrite(&mut self, edit: &Edit) -> Result<(), IptablesError> {
        let (mut open, mut held) = (self.open.clone(), self.held.clone());
        let now = Instant::now();
        held.extend(&edit.hold);
        open.extend(edit.open.iter().map(|one| ((one.address, one.port), end(now, one.timeout))));
        open.retain(|pair, _| !edit.close.contains(pair));
        held.retain(|pair| !edit.release.contains(pair));
        self.change_rules(open, held)
    }

    fn change_rules(
        &mut self,
        open: BTreeMap<Pair, Instant>,
        held: BTreeSet<Pair>,
    ) -> Result<(), IptablesError> {
        let before: BTreeSet<Pair> = self.open.keys().copied().collect();
        let after: BTreeSet<Pair> = open.keys().copied().collect();
        let mut texts = Vec::new();
        for family in &self.families {
            let mut lines = Vec::new();
            for chain in self.pairs.iter().filter(|chain| chain.family() == *family) {
                let (was, is) = if chain.open() { (&before, &after) } else { (&self.held, &held) };
                let ours = |pair: &&Pair| Family::of(pair.0) == *family;
                for pair in is.difference(was).filter(ours) {
                    lines.push(format!("-I {} 1 {}", chain.chain, chain.rule(*pair)));
                }
                for pair in was.difference(is).filter(ours) {
                    lines.push(format!("-D {} {}", chain.chain, chain.rule(*pair)));
                }
            }
            if !lines.is_empty() {
                texts.push((*family, format!("*filter\n{}\nCOMMIT\n", lines.join("\n"))));
            }
        }
        if !texts.is_empty() {
            self.seen = None;
            self.known = None;
            answers(self.programs.perform(&Job::Restore(self.variant, texts)))?;
        }
        (self.open, self.held) = (open, held);
        Ok(())
    }

    /// Where no kernel timer does it.
    pub fn expire(&mut self, now: Instant) -> Result<(), IptablesError> {
        self.forget();
        if self.sets.is_some() || self.open.values().all(|until| *until > now) {
            return Ok(());
        }
        let open = self.open.iter().filter(|(_, until)| **until > now).map(|(pair, until)| (*pair, *until));
        self.change_rules(open.collect(), self.held.clone())
    }

    pub(super) fn variant(&self) -> Variant {
        self.variant
    }

    pub(super) fn change(&mut self, now: Instant, forced: bool) -> Result<Change, IptablesError> {
        let due =
            forced || self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= READ_BACK);
        let Some(changes) = &mut self.changes else {
            return Ok(Change { rules: due, elements: due, generation: 0 });
        };
        let generation = changes.generation().map_err(|source| IptablesError::IpsetChannel { source })?;
        let rules = due && (forced || self.known != Some(generation));
        let elements = if self.sets.is_some() { due } else { rules };
        Ok(Change { rules, elements, generation })
    }

    pub(super) fn acknowledge(&mut self, change: Change, now: Instant) {
        self.known = Some(change.generation);
        self.looked = Some(now);
    }

    /// What our chains and jumps are now.
    pub fn fingerprint(&mut self) -> Result<Fingerprint, IptablesError> {
        let listed = self.listed(&Job::Read(self.variant, self.families.clone()))?;
        let parts = self.parts(&listed);
        self.seen = Some((Instant::now(), listed));
        Ok(parts)
    }

    fn parts(&self, listed: &[(Family, Vec<Listing>)]) -> Fingerprint {
        let parts = listed
            .iter()
            .flat_map(|(family, tables)| tables.iter().flat_map(|table| table.parts(*family, &self.pairs)));
        Fingerprint { parts: parts.collect() }
    }

    /// What is open now, and for how long.
    pub fn elements(&mut self) -> Result<Vec<Element>, IptablesError> {
        if self.sets.is_some() {
            return self.in_sets(true);
        }
        let now = Instant::now();
        let pairs = self.in_rules(true)?;
        let left = |pair: &Pair| self.open.get(pair).map(|until| until.saturating_duration_since(now));
        Ok(pairs
            .into_iter()
            .map(|pair| Element {
                address: pair.0,
                port: pair.1,
                timeout: left(&pair).unwrap_or(Duration::MAX),
            })
            .filter(|element| !element.timeout.is_zero())
            .collect())
    }

    /// Where flows may go on: in both directions.
    pub fn held(&mut self) -> Result<Vec<Pair>, IptablesError> {
        if self.sets.is_some() {
            let held = self.in_sets(false)?;
            return Ok(held.into_iter().map(|element| (element.address, element.port)).collect());
        }
        Ok(self.in_rules(false)?.into_iter().collect())
    }

    fn in_sets(&mut self, timed: bool) -> Result<Vec<Element>, IptablesError> {
        let (Some(sets), Some(number)) = (self.sets.as_mut(), self.number) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for (set, _, of) in FILLED {
            if of == timed {
                found.extend(sets.read(&set_name(number, set))?);
            }
        }
        Ok(found)
    }

    /// The pairs that are open, or else those that are held, of which several chains have each its own rule. One that we
    /// know and that any of them lacks is there no more; one that is in a single one was put there by somebody.
    fn in_rules(&mut self, open: bool) -> Result<BTreeSet<Pair>, IptablesError> {
        if self.seen.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            self.fingerprint()?;
        }
        let Some((_, listed)) = &self.seen else { return Ok(BTreeSet::new()) };
        let known = |pair: &Pair| if open { self.open.contains_key(pair) } else { self.held.contains(pair) };
        let mut found = BTreeSet::new();
        for (family, tables) in listed {
            let filter = |chain| -> BTreeSet<Pair> {
                let tables = tables.iter().filter(|table| table.table == "filter");
                tables.flat_map(|table| table.pairs(chain)).collect()
            };
            let chains = self.pairs.iter().filter(|chain| chain.open() == open && chain.family() == *family);
            let each: Vec<BTreeSet<Pair>> = chains.map(filter).collect();
            let all = each.iter().flatten().copied();
            found.extend(all.filter(|pair| !known(pair) || each.iter().all(|pairs| pairs.contains(pair))));
        }
        Ok(found)
    }

    /// How many outgoing packets were refused since the rules were loaded.
    pub fn denied(&mut self) -> Result<u64, IptablesError> {
        let listed = self.listed(&Job::Read(self.variant, self.families.clone()))?;
        let tables = listed.iter().flat_map(|(_, tables)| tables);
        Ok(tables.fold(0_u64, |sum, table| sum.saturating_add(table.denied())))
    }

    /// Takes our chains, jumps and sets away.
    pub fn remove(&mut self) -> Result<(), IptablesError> {
        let none = self.families.iter().map(|family| (*family, Vec::new())).collect();
        self.seen = None;
        answers(self.programs.perform(&Job::Load(self.variant, none)))?;
        (self.number, self.old_sets) = (None, true);
        self.forget();
        Ok(())
    }

    fn listed(&self, job: &Job) -> Result<Tables, IptablesError> {
        let answers = answers(self.programs.perform(job))?;
        let tables = |answer: Answer| -> Vec<Listing> {
            answer.tables.iter().map(|(table, text)| Listing::read(table, text)).collect()
        };
        Ok(answers.into_iter().map(|answer| (answer.family, tables(answer))).collect())
    }
}

/// All of them, or the first that failed.
fn answers(given: Result<Vec<Answer>, ProgramsError>) -> Result<Vec<Answer>, IptablesError> {
    let given = given.map_err(IptablesError::Programs)?;
    for answer in &given {
        let family = answer.family;
        match &answer.failure {
            Some(failure) if failure.missing => {
                return Err(IptablesError::Missing { family, said: failure.said.clone() });
            }
            Some(failure) => return Err(IptablesError::Failed { family, said: failure.said.clone() }),
            None => {}
        }
    }
    Ok(given)
}

fn lasting(pairs: &[Pair]) -> Vec<Element> {
    pairs.iter().map(|&(address, port)| Element { address, port, timeout: Duration::MAX }).collect()
}

fn end(now: Instant, timeout: Duration) -> Instant {
    now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(30 * 24 * 3600))
}

/// The number in the name of a set of ours.
fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix(SET_PREFIX)?.split('.').next()?.parse().ok()
}

/// Takes away what an earlier life left in a variant that is not in use: chains, jumps, sets. An image without the
/// programs for it has left nothing.
pub(super) fn sweep(programs: &dyn Programs, variant: Variant) -> Result<(), IptablesError> {
    let none = vec![(Family::V4, Vec::new()), (Family::V6, Vec::new())];
    match answers(programs.perform(&Job::Load(variant, none))) {
        Ok(_) | Err(IptablesError::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A set of each family, for rules that are only tried.
#[derive(Debug)]
pub(super) struct TrialSets {
    sets: Ipset,
    names: [String; 2],
}

/// The kernel lets go of a set a moment after its rules.
const RELEASE: Duration = Duration::from_millis(1);
const RELEASES: usize = 100;

impl TrialSets {
    pub(super) fn make() -> Result<Self, IptablesError> {
        let mut sets = Ipset::open()?;
        let names = [set_name(0, "try4"), set_name(0, "try6")];
        for (name, family) in names.iter().zip([Family::V4, Family::V6]) {
            match sets.create(name, family, true) {
                Err(IptablesError::Ipset { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                }
                made => made?,
            }
        }
        Ok(Self { sets, names })
    }

    pub(super) fn name(&self, family: Family) -> &str {
        let [four, six] = &self.names;
        match family {
            Family::V4 => four,
            Family::V6 => six,
        }
    }
}

impl Drop for TrialSets {
    fn drop(&mut self) {
        for name in &self.names {
            for _ in 0..RELEASES {
                if self.sets.destroy(name).is_ok() {
                    break;
                }
                std::thread::park_timeout(RELEASE);
            }
        }
    }
}
