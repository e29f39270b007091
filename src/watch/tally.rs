//! Packets on their way to PID 1: counted, bounded and metered; and which of them got lost. (pure)
//!
//! However fast the agent sends, PID 1 gets a few frames a second and the counts are right. Time is a parameter.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::protocol::{Flow, Target};
use crate::worker::meter::Meter;

/// Different places (by uid) that wait to be told at a time; the rest share one line.
const MAX_FLOWS: usize = 512;
/// Frames to PID 1: so many at once, then one for each interval.
const BURST: u32 = 20;
/// One frame in this time, once the burst is used up.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// Whose packets and where to; none for the shared line.
type Key = (Option<Target>, Option<u32>);

/// What waits to be told. One for the refused and one for the used, so that a flood of refusals hides no use.
#[derive(Debug)]
pub struct Tally {
    pending: HashMap<Key, Flow>,
    order: VecDeque<Key>,
    frames: Meter,
}

impl Tally {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { pending: HashMap::new(), order: VecDeque::new(), frames: Meter::new(BURST, INTERVAL, now) }
    }

    /// Whether a packet of this kind waits already, so that nobody needs to look for its socket.
    #[must_use]
    pub fn knows(&self, target: Target, uid: Option<u32>) -> bool {
        self.pending.contains_key(&(Some(target), uid)) || self.pending.len() >= MAX_FLOWS
    }

    /// Notes one packet that was read at `at` (milliseconds since 1970). One that was sent `again` is not counted.
    pub fn add(&mut self, target: Target, uid: Option<u32>, inode: Option<u64>, at: u64, again: bool) {
        let one = u64::from(!again);
        let key = (Some(target), uid);
        let listed = self.pending.contains_key(&key) || self.pending.len() < MAX_FLOWS;
        let (key, inode) = if listed { (key, inode) } else { ((None, None), None) };
        if let Some(flow) = self.pending.get_mut(&key) {
            flow.count += one;
            flow.packets += 1;
            flow.last = flow.last.max(at);
            return;
        }
        let (target, uid) = key;
        self.pending.insert(key, Flow { target, uid, inode, first: at, last: at, count: one, packets: 1 });
        self.order.push_back(key);
    }

    /// The next frame that may be sent now: oldest first.
    pub fn take(&mut self, now: Instant) -> Option<Flow> {
        if self.order.is_empty() || !self.frames.take(now) {
            return None;
        }
        self.pending.remove(&self.order.pop_front()?)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// First packets of connections that are remembered, to know one that is sent again. A server that does not answer
/// makes Linux send it seven times within two minutes (`tcp_syn_retries`).
const MAX_BEGUN: usize = 256;

/// Connections that began lately.
#[derive(Debug, Default)]
pub struct Begun {
    recent: VecDeque<(SocketAddr, SocketAddr, u32)>,
}

impl Begun {
    /// Whether this first packet, from here to there with TCP's sequence number, was seen before.
    pub fn again(&mut self, from: SocketAddr, to: SocketAddr, sequence: u32) -> bool {
        let packet = (from, to, sequence);
        if self.recent.contains(&packet) {
            return true;
        }
        if self.recent.len() == MAX_BEGUN {
            self.recent.pop_front();
        }
        self.recent.push_back(packet);
        false
    }
}

/// The kernel's count of a group's packets: a gap in it is what got lost.
#[derive(Debug)]
pub struct Sequence {
    next: u32,
}

impl Sequence {
    #[must_use]
    pub fn new(next: u32) -> Self {
        Self { next }
    }

    /// How many are missing before the packet with this number. The count goes round at 2³²; one that went back
    /// means that somebody made the group anew, and nothing is known of a loss.
    pub fn lost(&mut self, number: u32) -> u32 {
        let gap = number.wrapping_sub(self.next);
        self.next = number.wrapping_add(1);
        if gap > u32::MAX / 2 { 0 } else { gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u32, port: u16) -> Target {
        let address = std::net::Ipv4Addr::from(0xc633_6400 + last);
        Target { address: Some(address.into()), protocol: Some(6), port: Some(port), icmp: None }
    }

    #[test]
    fn the_same_place_of_the_same_uid_is_counted() {
        let now = Instant::now();
        let mut tally = Tally::new(now);
        assert!(!tally.knows(to(66, 443), Some(1000)));
        for at in 5..10 {
            tally.add(to(66, 443), Some(1000), Some(at), at, false);
        }
        assert!(tally.knows(to(66, 443), Some(1000)));
        assert!(!tally.knows(to(66, 443), Some(0)));
        tally.add(to(66, 443), Some(0), None, 11, false);
        tally.add(to(66, 80), Some(1000), None, 12, false);
        let flow = tally.take(now).unwrap();
        assert_eq!((flow.uid, flow.inode, flow.first, flow.last, flow.count), (Some(1000), Some(5), 5, 9, 5));
        assert_eq!(tally.take(now).unwrap().uid, Some(0));
        assert_eq!(tally.take(now).unwrap().target.unwrap().port, Some(80));
        assert_eq!(tally.take(now), None);
        assert!(tally.is_empty());
    }

    #[test]
    fn memory_and_frames_are_bounded_and_no_count_is_lost() {
        let mut now = Instant::now();
        let mut tally = Tally::new(now);
        for i in 0..100_000 {
            tally.add(to(i % 5000, 443), Some(1000), None, 0, false);
        }
        assert!(tally.pending.len() <= MAX_FLOWS + 1 && tally.order.len() <= MAX_FLOWS + 1);
        let (mut counted, mut others, mut seconds) = (0, 0, 0);
        while !tally.is_empty() {
            let mut frames = 0;
            while let Some(flow) = tally.take(now) {
                counted += flow.count;
                others += u64::from(flow.target.is_none());
                frames += 1;
            }
            assert!(frames <= 20, "{frames} frames in one second");
            now += Duration::from_secs(1);
            seconds += 1;
        }
        assert_eq!((counted, others), (100_000, 1));
        assert!(seconds >= 20, "{seconds}");
    }

    #[test]
    fn a_packet_that_is_sent_again_is_no_other_connection() {
        let now = Instant::now();
        let (mut tally, mut begun) = (Tally::new(now), Begun::default());
        let (from, there) = ("203.0.113.2:40000".parse().unwrap(), "198.51.100.66:443".parse().unwrap());
        for sequence in [7, 8, 7, 7] {
            tally.add(to(66, 443), Some(1000), None, 0, begun.again(from, there, sequence));
        }
        let flow = tally.take(now).unwrap();
        assert_eq!((flow.count, flow.packets), (2, 4));
        for sequence in 0..10_000 {
            begun.again(from, there, sequence);
        }
        assert!(begun.recent.len() <= MAX_BEGUN);
    }

    #[test]
    fn gaps_are_what_got_lost() {
        let mut sequence = Sequence::new(0);
        assert_eq!([0, 1, 5, 6].map(|number| sequence.lost(number)), [0, 0, 3, 0]);
        assert_eq!(sequence.lost(2), 0, "a group made anew");
        assert_eq!(sequence.lost(3), 0);
        let mut sequence = Sequence::new(u32::MAX);
        assert_eq!([u32::MAX, 0, 2].map(|number| sequence.lost(number)), [0, 0, 1]);
    }
}
