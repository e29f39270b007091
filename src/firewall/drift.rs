//! Whether the kernel's sets are what the book says (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::book::{Book, Pair};
use super::nftables::Element;

/// The kernel's clock for elements ticks in jiffies and starts when they arrive, a little later than ours.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The first difference, in words.
pub(super) fn difference(book: &Book, open: &[Element], held: &[Pair], now: Instant) -> Option<String> {
    let mut expected: BTreeMap<Pair, Duration> =
        book.open_pairs().map(|(pair, until)| (pair, until.saturating_duration_since(now))).collect();
    for element in open {
        let pair = (element.address, element.port);
        let place = || format!("{} port {}", element.address, element.port);
        match expected.remove(&pair) {
            None if element.timeout > TOLERANCE => return Some(format!("{} was opened", place())),
            Some(left) if element.timeout > left.saturating_add(TOLERANCE) => {
                return Some(format!("{} was opened for longer", place()));
            }
            Some(left) if element.timeout.saturating_add(TOLERANCE) < left => {
                return Some(format!("{} was opened for less long", place()));
            }
            None | Some(_) => {}
        }
    }
    if let Some(((address, port), _)) = expected.into_iter().find(|(_, left)| *left > TOLERANCE) {
        return Some(format!("{address} port {port} was closed"));
    }
    let (held, expected): (BTreeSet<Pair>, _) = (held.iter().copied().collect(), book.held_pairs());
    if let Some((address, port)) = held.difference(&expected).next() {
        return Some(format!("flows to {address} port {port} were let on"));
    }
    if let Some((address, port)) = expected.difference(&held).next() {
        return Some(format!("flows to {address} port {port} were ended"));
    }
    None
}
