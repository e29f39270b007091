//! Recognizes our own questions when they come back.
//!
//! Docker's 127.0.0.11 forwards from a socket inside the box's network namespace. If that traffic is redirected to this
//! server, every question returns to us for ever. Questions to a resolver on loopback therefore carry a random mark, an
//! EDNS option for local use (RFC 6891 §9), which forwarders pass on. No other upstream sees it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_server::proto::op::Edns;
use hickory_server::proto::rr::rdata::opt::{EdnsCode, EdnsOption};

const OPTION: u16 = 65_313;

#[derive(Debug)]
pub struct LoopMark {
    octets: [u8; 8],
    seen: AtomicU64,
}

impl Default for LoopMark {
    fn default() -> Self {
        Self { octets: RandomState::new().hash_one(OPTION).to_le_bytes(), seen: AtomicU64::new(0) }
    }
}

impl LoopMark {
    /// Whether a loop through this upstream is possible.
    #[must_use]
    pub fn concerns(upstream: IpAddr) -> bool {
        upstream.to_canonical().is_loopback()
    }

    pub fn put_on(&self, edns: &mut Edns) {
        edns.options_mut().insert(EdnsOption::Unknown(OPTION, self.octets.to_vec()));
    }

    /// Whether a question is one of ours; counts those that are.
    #[must_use]
    pub fn is_on(&self, edns: &Edns) -> bool {
        let is_ours = matches!(
            edns.option(EdnsCode::Unknown(OPTION)),
            Some(EdnsOption::Unknown(_, octets)) if *octets == self.octets
        );
        if is_ours {
            self.seen.fetch_add(1, Ordering::Relaxed);
        }
        is_ours
    }

    /// How many came back so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mark_is_recognized() {
        let (ours, theirs) = (LoopMark::default(), LoopMark::default());
        let mut edns = Edns::new();
        assert!(!ours.is_on(&edns));
        theirs.put_on(&mut edns);
        assert!(!ours.is_on(&edns));
        let mut edns = Edns::new();
        ours.put_on(&mut edns);
        assert!(ours.is_on(&edns));
        assert_eq!(ours.seen(), 1);
    }

    #[test]
    fn only_upstreams_on_loopback_see_it() {
        assert!(LoopMark::concerns([127, 0, 0, 11].into()));
        assert!(!LoopMark::concerns([203, 0, 113, 53].into()));
    }
}
