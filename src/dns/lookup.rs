//! From an allowed name to addresses that are open: cache, upstream, PID 1's admission, stale answers.
//!
//! Identical questions are asked once. The address is open in the kernel before this returns it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_server::proto::rr::Name;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::answer::{Chain, Family, TTL_FLOOR_S, bounded_ttl, follow};
use super::cache::{Cache, Failure, Key, Known};
use super::link::Link;
use super::protocol::LastGood;
use super::upstream::{BUDGET, Response, UpstreamError, Upstreams};
use crate::allowlist::{Allowlist, DomainName, RuleError, Verdict};
use crate::policy::remedy::Remedies;
use crate::worker::policy::Policy;

/// Names of patterns that are remembered. An entry takes some 300 octets.
const PATTERN_NAMES: usize = 4096;
/// Questions of clients that are with the upstreams at a time; refreshes have their own bound.
const UPSTREAM_QUESTIONS: usize = 128;
/// Names that are being resolved at a time; more are refused at once instead of queued without end.
const MAX_IN_FLIGHT: usize = 1024;
/// RFC 8767 §5: a client with stale data to get needn't wait for the whole budget.
const STALE_AFTER: Duration = Duration::from_millis(1800);
/// RFC 8767 §5: the TTL of stale addresses.
pub const STALE_TTL_S: u32 = 30;
/// How long stale addresses are answered before the upstreams are asked again.
const STALE_RECHECK: Duration = Duration::from_secs(5);
/// RFC 9520 §3.2: a failure is remembered for at least a second. `get` wants a whole one to be left.
const FAILURE_TTL: Duration = Duration::from_millis(1999);
/// How often a name is admitted anew because PID 1 had to close addresses of it meanwhile.
const ADMISSIONS: u32 = 3;
/// "No such name" is believed for at most this long: operators add names and want them at once.
const NEGATIVE_CAP_S: u32 = 30;

/// RFC 8914.
const EDE_OTHER: u16 = 0;
const EDE_NO_REACHABLE_AUTHORITY: u16 = 22;
const EDE_NETWORK_ERROR: u16 = 23;

/// The policy in force.
#[derive(Debug)]
pub struct Rules {
    pub generation: u64,
    pub allowlist: Allowlist,
    pub remedies: Remedies,
    exact: HashSet<DomainName>,
}

impl Rules {
    /// One rule that is not understood makes the whole policy unusable: it might have been a denial.
    pub fn new(policy: &Policy) -> Result<Self, RuleError> {
        let allowlist = policy.allowlist()?;
        let exact = allowlist.exact_names().into_iter().collect();
        Ok(Self { generation: policy.generation, allowlist, remedies: policy.remedies()?, exact })
    }

    #[must_use]
    pub fn exact_names(&self) -> &HashSet<DomainName> {
        &self.exact
    }

    /// Whether both let the name be used in the same way.
    fn agrees(&self, other: &Self, name: &DomainName) -> bool {
        match (self.allowlist.verdict(name), other.allowlist.verdict(name)) {
            (Verdict::Allowed(ours), Verdict::Allowed(theirs)) => {
                ours.ports == theirs.ports && ours.private == theirs.private
            }
            (Verdict::Denied(_), _) | (_, Verdict::Denied(_)) => false,
        }
    }
}

/// What a client is told, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub known: Known,
    pub ttl_s: u32,
}

type Flight = (u64, Key);

/// A question on its way, for whoever else asks the same.
#[derive(Debug)]
struct Flying {
    outcome: watch::Receiver<Option<Outcome>>,
    /// PID 1 closed addresses of the name meanwhile: what it admitted before that doesn't count.
    overtaken: Arc<AtomicBool>,
}

#[derive(Debug)]
pub struct Lookups {
    rules: Mutex<Arc<Rules>>,
    cache: Mutex<Cache>,
    in_flight: Mutex<HashMap<Flight, Flying>>,
    upstreams: Upstreams,
    link: Arc<Link>,
    permits: Semaphore,
}

enum Found {
    Addresses { addresses: Vec<IpAddr>, ttl_s: u32 },
    Nothing { nxdomain: bool, ttl_s: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Client,
    Refresh,
}

impl Lookups {
    #[must_use]
    pub fn new(rules: Rules, upstreams: Upstreams, link: Arc<Link>) -> Self {
        Self {
            rules: Mutex::new(Arc::new(rules)),
            cache: Mutex::new(Cache::new(PATTERN_NAMES)),
            in_flight: Mutex::default(),
            upstreams,
            link,
            permits: Semaphore::new(UPSTREAM_QUESTIONS),
        }
    }

    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        locked(&self.rules).clone()
    }

    #[must_use]
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// The new policy holds for every question from now on. What it treats as before stays known.
    pub fn replace_rules(&self, rules: Rules) {
        let rules = Arc::new(rules);
        let old = std::mem::replace(&mut *locked(&self.rules), rules.clone());
        locked(&self.cache).retain(|name| rules.agrees(&old, name));
    }

    /// What a former worker knew and the policy still allows: it may stand in when upstreams fail.
    pub fn restore(&self, known: Vec<LastGood>) {
        let (rules, now) = (self.rules(), Instant::now());
        let mut cache = locked(&self.cache);
        for LastGood { name, addresses, ended_s } in known {
            let Some(first) = addresses.first() else { continue };
            if rules.allowlist.denial(&name).is_none() {
                let family = if first.is_ipv4() { Family::V4 } else { Family::V6 };
                let exact = rules.exact.contains(&name);
                let ended = Duration::from_secs(ended_s);
                cache.restore(&Key { name, family }, addresses, ended, exact, now);
            }
        }
    }

    /// Addresses of these names were closed: whoever asks gets them from the upstreams again.
    pub fn forget(&self, names: &[DomainName]) {
        let now = Instant::now();
        let mut cache = locked(&self.cache);
        names.iter().for_each(|name| cache.expire(name, now));
        drop(cache);
        for ((_, key), flying) in locked(&self.in_flight).iter() {
            if names.contains(&key.name) {
                flying.overtaken.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Nothing that is known counts as fresh any more.
    pub fn expire_all(&self) {
        locked(&self.cache).expire_all(Instant::now());
    }

    /// For a client: what is known now.
    #[must_use]
    pub fn find_now(&self, key: &Key) -> Option<Outcome> {
        let (known, ttl_s) = locked(&self.cache).get(key, Instant::now())?;
        Some(Outcome { known, ttl_s })
    }

    /// For a client: from the cache if it can be.
    pub async fn find(self: &Arc<Self>, key: Key) -> Outcome {
        match self.find_now(&key) {
            Some(outcome) => outcome,
            None => self.fly(key, Purpose::Client).await,
        }
    }

    /// For the refresh of an exact name: always from the upstreams, unless they are known to be down.
    pub async fn refresh(self: &Arc<Self>, key: Key) -> Outcome {
        self.fly(key, Purpose::Refresh).await
    }

    /// Whether the name is known and needn't be asked for now.
    #[must_use]
    pub fn is_fresh(&self, key: &Key) -> bool {
        let known = locked(&self.cache).get(key, Instant::now());
        matches!(known, Some((Known::Addresses { stale: false, .. } | Known::Empty, _)))
    }

    async fn fly(self: &Arc<Self>, key: Key, purpose: Purpose) -> Outcome {
        let Some(mut receiver) = self.join_or_start(key, purpose) else {
            return failed(EDE_OTHER, "too many names are being resolved");
        };
        match receiver.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| failed(EDE_OTHER, "internal error")),
            Err(_task_died) => failed(EDE_OTHER, "internal error"),
        }
    }

    /// A task of its own resolves, so that it goes on for the others when the client that began it goes away.
    fn join_or_start(
        self: &Arc<Self>,
        key: Key,
        purpose: Purpose,
    ) -> Option<watch::Receiver<Option<Outcome>>> {
        let rules = self.rules();
        let flight = (rules.generation, key);
        let mut in_flight = locked(&self.in_flight);
        if let Some(receiver) = in_flight.get(&flight) {
            return Some(receiver.outcome.clone());
        }
        if purpose == Purpose::Client && in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let (sender, receiver) = watch::channel(None);
        let overtaken = Arc::new(AtomicBool::new(false));
        let flying = Flying { outcome: receiver.clone(), overtaken: overtaken.clone() };
        in_flight.insert(flight.clone(), flying);
        let lookups = self.clone();
        tokio::spawn(async move {
            let landing = Landing { lookups, flight };
            let flown = Flown { key: &landing.flight.1, rules: &rules, overtaken: &overtaken };
            let outcome = landing.lookups.resolve(flown, purpose).await;
            drop(landing);
            sender.send_replace(Some(outcome));
        });
        Some(receiver)
    }

    async fn resolve(&self, flown: Flown<'_>, purpose: Purpose) -> Outcome {
        let key = flown.key;
        let good = locked(&self.cache).last_good(key, Instant::now());
        let budget = if good.is_some() { STALE_AFTER } else { BUDGET };
        let found = match purpose {
            Purpose::Refresh if self.upstreams.all_down() => Err(UpstreamError::Timeout.into()),
            Purpose::Refresh => self.chase(key, budget).await,
            Purpose::Client => timeout(budget, async {
                let _permit = self.permits.acquire().await;
                self.chase(key, budget).await
            })
            .await
            .unwrap_or_else(|_elapsed| Err(UpstreamError::Timeout.into())),
        };
        let outcome = match (found, good) {
            (Ok(Found::Addresses { addresses, ttl_s }), _) => {
                self.admit(flown, addresses, bounded_ttl(ttl_s), false).await
            }
            (Ok(Found::Nothing { nxdomain, ttl_s }), _) => {
                let known = if nxdomain { Known::NxDomain } else { Known::Empty };
                let ttl = Duration::from_secs(ttl_s.into());
                self.keep(flown, known.clone(), ttl, Instant::now());
                Outcome { known, ttl_s }
            }
            (Err(_), Some(good)) => self.admit(flown, good.to_vec(), STALE_TTL_S, true).await,
            (Err(failure), None) => {
                let known = Known::Failed(failure.into());
                self.keep(flown, known.clone(), FAILURE_TTL, Instant::now());
                Outcome { known, ttl_s: 0 }
            }
        };
        self.unless_revoked(flown, outcome)
    }

    /// Asks for the name, and for what it is an alias of where an upstream leaves that to us.
    async fn chase(&self, key: &Key, budget: Duration) -> Result<Found, Failure> {
        let deadline = Instant::now() + budget;
        let labels = key.name.as_str().split('.').map(str::as_bytes);
        let unusable = |_| Failure { code: EDE_OTHER, text: "the name can't be asked for".to_owned() };
        let mut name = Name::from_labels(labels).map_err(unusable)?;
        name.set_fqdn(true);
        let (mut hops, mut ttl_s) = (0, u32::MAX);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let records = match self.upstreams.ask(&name, key.family.record_type(), left).await? {
                Response::Records(records) => records,
                Response::Nothing { nxdomain, ttl_s } => {
                    let ttl_s = ttl_s.unwrap_or(TTL_FLOOR_S).clamp(2, NEGATIVE_CAP_S);
                    return Ok(Found::Nothing { nxdomain, ttl_s });
                }
            };
            match follow(&name, key.family, &records, hops, ttl_s) {
                Chain::Addresses { addresses, ttl_s } => return Ok(Found::Addresses { addresses, ttl_s }),
                Chain::Continues { target, ttl_s: lowest, hops: so_far } => {
                    (name, ttl_s, hops) = (target, lowest, so_far);
                }
                Chain::Empty => return Ok(Found::Nothing { nxdomain: false, ttl_s: TTL_FLOOR_S }),
                Chain::TooLong => {
                    let text = "the chain of CNAMEs is a loop or too long".to_owned();
                    return Err(Failure { code: EDE_OTHER, text });
                }
            }
        }
    }

    async fn admit(&self, flown: Flown<'_>, addresses: Vec<IpAddr>, ttl_s: u32, stale: bool) -> Outcome {
        let mut left = ADMISSIONS;
        loop {
            left -= 1;
            flown.overtaken.store(false, Ordering::Relaxed);
            // Before asking: PID 1 counts from later, so that what we count ends first.
            let now = Instant::now();
            let admitted = self.link.admit(&flown.key.name, addresses.clone(), ttl_s, stale).await;
            let Ok(admitted) = admitted else {
                return failed(EDE_OTHER, "the firewall did not confirm the addresses in time");
            };
            if flown.overtaken.load(Ordering::Relaxed) {
                if left > 0 {
                    continue;
                }
                return failed(EDE_OTHER, "the firewall has no room for so many addresses");
            }
            if admitted.is_empty() {
                let ttl = Duration::from_secs(TTL_FLOOR_S.into());
                self.keep(flown, Known::NoneAdmitted, ttl, now);
                return Outcome { known: Known::NoneAdmitted, ttl_s: TTL_FLOOR_S };
            }
            let known = Known::Addresses { addresses: admitted.into(), stale };
            let ttl = if stale { STALE_RECHECK } else { Duration::from_secs(ttl_s.into()) };
            self.keep(flown, known.clone(), ttl, now);
            return Outcome { known, ttl_s };
        }
    }

    /// Only what was learned under the policy in force is remembered.
    fn keep(&self, flown: Flown<'_>, known: Known, ttl: Duration, now: Instant) {
        let current = locked(&self.rules);
        if current.generation == flown.rules.generation {
            let exact = current.exact.contains(&flown.key.name);
            locked(&self.cache).put(flown.key.clone(), known, ttl, exact, now);
        }
    }

    fn unless_revoked(&self, flown: Flown<'_>, outcome: Outcome) -> Outcome {
        let current = self.rules();
        if current.generation == flown.rules.generation || current.agrees(flown.rules, &flown.key.name) {
            return outcome;
        }
        failed(EDE_OTHER, "the policy changed while the name was resolved; ask again")
    }
}

/// What is resolved, under which policy, and whether PID 1 overtook it.
#[derive(Clone, Copy)]
struct Flown<'a> {
    key: &'a Key,
    rules: &'a Rules,
    overtaken: &'a AtomicBool,
}

/// Takes a flight out of the list, also when its task panics.
struct Landing {
    lookups: Arc<Lookups>,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        locked(&self.lookups.in_flight).remove(&self.flight);
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        let code = match &error {
            UpstreamError::None | UpstreamError::Timeout | UpstreamError::Unreachable => {
                EDE_NO_REACHABLE_AUTHORITY
            }
            UpstreamError::Unusable(_) | UpstreamError::Code(_) | UpstreamError::Loop => EDE_NETWORK_ERROR,
        };
        Self { code, text: error.to_string() }
    }
}

fn failed(code: u16, text: &str) -> Outcome {
    Outcome { known: Known::Failed(Failure { code, text: text.to_owned() }.into()), ttl_s: 0 }
}

/// A panic while a lock was held left whole values behind: every critical section here is one assignment or call.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
