//! From a name that was judged to the addresses that the gate dials: asked from the box's own resolver, which has PID 1
//! open them before it answers. What the client resolved, or made up, plays no part.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use crate::allowlist::DomainName;
use crate::dns::answer::Family;
use crate::dns::name_server::NameServer;
use crate::dns::upstream::{Response, UpstreamError, Upstreams};

/// The worker `dns` gives its upstreams four seconds.
const BUDGET: Duration = Duration::from_secs(5);
/// Names that are remembered.
const MOST: usize = 1024;
/// An address is open for longer than its answer lives (`firewall::admission::GRACE`), but a policy may change.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    #[error("the box's resolver did not answer")]
    Ask(#[source] UpstreamError),
    #[error("it has no address here that may be opened")]
    NoAddress,
}

type Known = HashMap<(DomainName, Family), (Arc<[IpAddr]>, Instant)>;

/// Asks, and remembers for as long as the answers live.
#[derive(Debug)]
pub struct Names {
    resolver: Upstreams,
    known: Mutex<Known>,
}

impl Names {
    pub fn new(resolver: SocketAddr) -> Result<Self, hickory_resolver::net::NetError> {
        Ok(Self { resolver: Upstreams::new(&[NameServer::plain(resolver)], None)?, known: Mutex::default() })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of a name.
    #[must_use]
    pub fn remembered(&self, name: &DomainName, family: Family) -> Option<Arc<[IpAddr]>> {
        let known = self.known();
        let (addresses, until) = known.get(&(name.clone(), family))?;
        (*until > Instant::now()).then(|| Arc::clone(addresses))
    }

    /// The addresses of a name, of one family.
    pub async fn ask(&self, name: &DomainName, family: Family) -> Result<Arc<[IpAddr]>, NamesError> {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let Ok(asked) = Name::from_labels(name.as_str().split('.').map(str::as_bytes)) else {
            return Err(NamesError::NoAddress);
        };
        let records = match self.resolver.ask(&asked, kind, BUDGET).await.map_err(NamesError::Ask)? {
            Response::Records(records) => records,
            Response::Nothing { .. } => return Err(NamesError::NoAddress),
        };
        let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
        let addresses: Arc<[IpAddr]> = records.iter().filter_map(address).collect();
        if addresses.is_empty() {
            return Err(NamesError::NoAddress);
        }
        let lifetime = Duration::from_secs(ttl.into()).min(LONGEST);
        let now = Instant::now();
        let mut known = self.known();
        if known.len() >= MOST {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert((name.clone(), family), (Arc::clone(&addresses), now + lifetime));
        Ok(addresses)
    }

    /// An address of it did not open, or another policy is in force: the next look is a question.
    pub fn forget(&self, name: &DomainName) {
        let mut known = self.known();
        for family in [Family::V4, Family::V6] {
            known.remove(&(name.clone(), family));
        }
    }

    pub fn forget_all(&self) {
        self.known().clear();
    }
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    }
}
