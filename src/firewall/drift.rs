//! Whether the kernel's sets are what the book says (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::backend::Element;
use super::book::{Book, Pair};

/// The kernel's clock for elements ticks in jiffies and starts when they arrive, a little later than ours.
const TOLERANCE: Duration = Duration::from_secs(2);

/// How the kernel differs from what it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) what: String,
    /// More may pass than should. Else only less.
    pub(super) leaks: bool,
}

/// The first difference, one that leaks before any other. Reading took from `began` to `ended`: what is left of a lifetime
/// was measured in between.
pub(super) fn difference(
    book: &Book,
    open: &[Element],
    held: &[Pair],
    (began, ended): (Instant, Instant),
) -> Option<Drift> {
    let drift = |leaks| move |what| Drift { what, leaks };
    let lack = || lack(book, open, held, ended).map(drift(false));
    leak(book, open, held, began).map(drift(true)).or_else(lack)
}

fn leak(book: &Book, open: &[Element], held: &[Pair], now: Instant) -> Option<String> {
    let expected: BTreeMap<Pair, Instant> = book.open_pairs().collect();
    for element in open {
        let until = expected.get(&(element.address, element.port));
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if element.timeout > left.saturating_add(TOLERANCE) {
            let longer = if until.is_some() { " for longer" } else { "" };
            return Some(format!("{} port {} was opened{longer}", element.address, element.port));
        }
    }
    let held: BTreeSet<Pair> = held.iter().copied().collect();
    let (address, port) = held.difference(&book.held_pairs()).next().copied()?;
    Some(format!("flows to {address} port {port} were let on"))
}

fn lack(book: &Book, open: &[Element], held: &[Pair], now: Instant) -> Option<String> {
    let found: BTreeMap<Pair, Duration> =
        open.iter().map(|element| ((element.address, element.port), element.timeout)).collect();
    for ((address, port), until) in book.open_pairs() {
        let left = found.get(&(address, port)).copied().unwrap_or_default();
        if left.saturating_add(TOLERANCE) < until.saturating_duration_since(now) {
            return Some(format!("{address} port {port} was closed"));
        }
    }
    let held: BTreeSet<Pair> = held.iter().copied().collect();
    let (address, port) = book.held_pairs().difference(&held).next().copied()?;
    Some(format!("flows to {address} port {port} were ended"))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{Drift, difference};
    use crate::allowlist::DomainName;
    use crate::firewall::admission::Class;
    use crate::firewall::backend::Element;
    use crate::firewall::book::{Book, Open};
    use std::time::{Duration, Instant};

    #[test]
    fn t46_what_leaks_is_told_before_what_is_missing_and_clocks_may_differ_a_little() {
        let (mut book, now) = (Book::default(), Instant::now());
        let address: IpAddr = "192.0.43.7".parse().unwrap();
        let until = now + Duration::from_secs(60);
        let open = Open { address, ports: vec![22, 443], until, stale: false };
        book.enter(&DomainName::parse("a.test").unwrap(), Class::Exact, vec![open]);
        let element = |port, seconds| Element { address, port, timeout: Duration::from_secs(seconds) };
        let (sound, held) = ([element(22, 60), element(443, 60)], [(address, 22), (address, 443)]);
        let found = |open: &[Element], held: &[_]| difference(&book, open, held, (now, now));
        let leak = |what: &str| Some(Drift { what: what.to_owned(), leaks: true });
        let lack = |what: &str| Some(Drift { what: what.to_owned(), leaks: false });
        assert_eq!(found(&sound, &held), None);
        assert_eq!(found(&[element(22, 59), element(443, 61)], &held), None);
        // About to end: the book let go of it a moment before.
        assert_eq!(found(&[element(22, 60), element(443, 60), element(80, 1)], &held), None);
        assert_eq!(found(&[element(80, 60)], &[]), leak("192.0.43.7 port 80 was opened"));
        assert_eq!(
            found(&[element(22, 70), sound[1]], &held),
            leak("192.0.43.7 port 22 was opened for longer")
        );
        let for_ever = Element { timeout: Duration::MAX, ..sound[0] };
        assert_eq!(found(&[for_ever], &held), leak("192.0.43.7 port 22 was opened for longer"));
        assert_eq!(found(&[element(22, 50), sound[1]], &held), lack("192.0.43.7 port 22 was closed"));
        assert_eq!(found(&sound[..1], &held), lack("192.0.43.7 port 443 was closed"));
        assert_eq!(found(&sound, &held[..1]), lack("flows to 192.0.43.7 port 443 were ended"));
        let more = [held[0], held[1], (address, 80)];
        assert_eq!(found(&sound, &more), leak("flows to 192.0.43.7 port 80 were let on"));
        // A reading that took ten seconds may have measured any moment of them, and is no news.
        let slow = (now, now + Duration::from_secs(10));
        for seconds in [50, 60] {
            let read = [element(22, seconds), element(443, seconds)];
            assert_eq!(difference(&book, &read, &held, slow), None);
        }
        assert!(difference(&book, &[element(22, 47), element(443, 60)], &held, slow).is_some());
    }
}
