//! Refusals that Innkeeper itself asks for (pure): each packet of its self-attack is taken off the count once.
//!
//! The self-attack wears the agent's very identity, so neither uid nor process tells its packets from the agent's. What
//! does is that PID 1 knows which packets it is about to send, how often (once each: the refusal is at once) and when.
//! The agent's own tries of the same places stay counted, even in the same moment: only the sum gets less by one.

use std::time::{Duration, Instant};

use super::protocol::Target;

/// A packet is told within milliseconds; what was not sent (no route) is forgotten after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than an attack has attempts. Attacks come no faster than every ten seconds.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub struct Expected {
    packets: Vec<(Target, Instant)>,
}

impl Expected {
    /// From now on one packet to each of these is ours.
    pub fn announce(&mut self, targets: &[Target], now: Instant) {
        self.packets.retain(|(_, until)| *until > now);
        let room = MOST.saturating_sub(self.packets.len());
        self.packets.extend(targets.iter().take(room).map(|target| (*target, now + PATIENCE)));
    }

    /// How many of `count` packets to `target` are not ours.
    pub fn left(&mut self, target: Target, count: u64, now: Instant) -> u64 {
        self.packets.retain(|(_, until)| *until > now);
        let mut left = count;
        self.packets.retain(|(announced, _)| {
            let ours = left > 0 && *announced == target;
            left -= u64::from(ours);
            !ours
        });
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> Target {
        let address = std::net::Ipv4Addr::new(169, 254, 169, 254);
        Target { address: Some(address.into()), protocol: Some(6), port: Some(port), icmp: None }
    }

    #[test]
    fn one_packet_of_each_is_taken_off_and_the_agents_stay() {
        let now = Instant::now();
        let mut expected = Expected::default();
        assert_eq!(expected.left(to(80), 3, now), 3);
        expected.announce(&[to(80), to(443)], now);
        assert_eq!(expected.left(to(80), 3, now), 2);
        assert_eq!(expected.left(to(80), 1, now), 1, "once only");
        assert_eq!(expected.left(to(443), 1, now), 0);
        expected.announce(&[to(80)], now);
        assert_eq!(expected.left(to(80), 1, now + PATIENCE), 1, "too late to be ours");
    }

    #[test]
    fn it_is_bounded() {
        let now = Instant::now();
        let mut expected = Expected::default();
        for _ in 0..100 {
            expected.announce(&[to(80); 10], now);
        }
        assert_eq!(expected.left(to(80), 1000, now), 1000 - 64);
    }
}
