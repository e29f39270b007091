//! What the worker `watch` tells in numbers becomes denials and uses on the board: who, by what name, why, and what
//! would allow it. PID 1's side; nothing is decided here.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::expected::Expected;
use super::protocol::{Flow, FromWorker, Setup, Target};
use super::wording;
use crate::attribution::Attributor;
use crate::audit::{self, Use};
use crate::firewall::Firewall;
use crate::status::Board;
use crate::status::report::Denial;
use crate::worker::lock;

/// The rule by which a name is allowed on a port, and where it is written.
pub type Rules = Arc<dyn Fn(&str, u16) -> Option<String> + Send + Sync>;

/// Who knows the names behind the numbers.
pub struct Reporter {
    board: Arc<Board>,
    firewall: Firewall,
    attributor: Attributor,
    expected: Mutex<Expected>,
    /// Packets of each socket that are accounted for.
    heard: Mutex<Setup>,
    rules: Rules,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    #[must_use]
    pub fn new(board: Arc<Board>, firewall: Firewall, attributor: Attributor, rules: Rules) -> Self {
        let (expected, heard) = (Mutex::default(), Mutex::default());
        Self { board, firewall, attributor, expected, heard, rules }
    }

    /// From now on one refused packet to each of these is Innkeeper's own.
    pub fn announce(&self, targets: &[Target]) {
        lock(&self.expected).announce(targets, Instant::now());
    }

    /// What the next worker begins with.
    #[must_use]
    pub fn heard(&self) -> Setup {
        *lock(&self.heard)
    }

    /// One frame of the worker's.
    pub fn hear(&self, frame: &FromWorker) {
        match frame {
            FromWorker::Serving | FromWorker::Pong => {}
            FromWorker::Refused(flow) => {
                count(&mut lock(&self.heard).refused, flow.packets);
                self.refused(flow);
            }
            FromWorker::Used(flow) => {
                count(&mut lock(&self.heard).used, flow.packets);
                if flow.count > 0 {
                    audit::used(&self.describe(flow));
                }
            }
            FromWorker::Lost { refused, used } => {
                count(&mut lock(&self.heard).refused, *refused);
                count(&mut lock(&self.heard).used, *used);
                self.lost(*refused, *used);
            }
        }
    }

    fn refused(&self, flow: &Flow) {
        // The process first: it may be about to end.
        let process = flow.inode.and_then(|inode| self.attributor.process(flow.uid, inode));
        let count = match flow.target {
            Some(target) => lock(&self.expected).left(target, flow.count, Instant::now()),
            None => flow.count,
        };
        if count == 0 {
            return;
        }
        let address = flow.target.and_then(|target| target.address);
        let claims = address.map_or_else(Vec::new, |address| self.firewall.names_at(address));
        let why = wording::explain(flow.target, &claims);
        self.board.deny(Denial {
            time: time(flow.last),
            layer: "firewall".to_owned(),
            what: wording::what(flow.target),
            uid: flow.uid,
            process,
            reason: why.reason,
            count,
            allow: why.allow,
        });
    }

    /// A use as the audit log has it.
    #[must_use]
    pub fn describe(&self, flow: &Flow) -> Use {
        let target = flow.target.unwrap_or_default();
        let port = target.port.unwrap_or(0);
        let (name, also) = self.claimed(target.address, port);
        let rule = (self.rules)(&name, port);
        Use {
            rule,
            name,
            also,
            address: target.address.map_or_else(|| wording::what(flow.target), |address| address.to_string()),
            port,
            uid: flow.uid,
            first: time(flow.first),
            last: time(flow.last),
            count: flow.count,
            bytes_out: None,
            bytes_in: None,
        }
    }

    /// The names for which a pair is open; one that nobody claims any more is called by its address.
    fn claimed(&self, address: Option<IpAddr>, port: u16) -> (String, Vec<String>) {
        let Some(address) = address else { return (wording::what(None), Vec::new()) };
        let claims = self.firewall.claims(vec![(address, port)]).into_iter().next().unwrap_or_default();
        let mut names = claims.iter().map(ToString::to_string);
        let name = names.next().unwrap_or_else(|| address.to_string());
        (name, names.collect())
    }

    /// What was not read is said too, so that the numbers add up.
    fn lost(&self, refused: u64, used: u64) {
        if refused > 0 {
            self.board.deny(Denial {
                time: crate::report::now(),
                layer: "firewall".to_owned(),
                what: "(packets that were not listed)".to_owned(),
                uid: None,
                process: None,
                reason: "refused; they came faster than they could be read".to_owned(),
                count: refused,
                allow: String::new(),
            });
        }
        if used > 0 {
            let text = format!("{used} connections were let out and are not listed: they came too fast");
            crate::report::event("watch", &text);
        }
    }
}

/// As the kernel counts: round at 2³².
fn count(heard: &mut u32, more: u64) {
    let low = u32::try_from(more & u64::from(u32::MAX)).unwrap_or(0);
    *heard = heard.wrapping_add(low);
}

/// The worker's clock, never ahead of ours.
fn time(milliseconds: u64) -> String {
    let now = SystemTime::now();
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    crate::report::time(at.map_or(now, |at| at.min(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_lies_about_the_time_breaks_nothing() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert!(time(u64::MAX) <= crate::report::now());
    }

    #[test]
    fn the_count_goes_round_as_the_kernels() {
        let mut heard = u32::MAX;
        count(&mut heard, (3 << 32) + 2);
        assert_eq!(heard, 1);
    }
}
