//! Whether a worker is alive and not only there: it answers pings from where it does its work. (pure)
//!
//! Time is a parameter, and what counts is pings that PID 1 itself was there to send, one after another: a machine that slept, or
//! a box that was paused, lets no worker die.

use std::time::{Duration, Instant};

/// From one ping to the next.
const INTERVAL: Duration = Duration::from_secs(5);
/// Pings without an answer after which a worker hangs: they take [`LIMIT`].
const MOST: u32 = 3;
/// How long a worker that answers nothing is waited for.
pub const LIMIT: Duration = Duration::from_secs(15);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Nothing for so long.
    Wait(Duration),
    Ping,
    Hangs,
}

#[derive(Debug)]
pub struct Pulse {
    unanswered: u32,
    next: Instant,
}

impl Pulse {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { unanswered: 0, next: now + INTERVAL }
    }

    /// Until there is something to be done.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// To be asked when nothing that the worker said is left to be heard: after a long time of our own its answers wait.
    pub fn beat(&mut self, now: Instant) -> Beat {
        let left = self.left(now);
        if !left.is_zero() {
            return Beat::Wait(left);
        }
        if self.unanswered >= MOST {
            return Beat::Hangs;
        }
        self.unanswered += 1;
        // From now, and not from when it was due: what was missed is not caught up.
        self.next = now + INTERVAL;
        Beat::Ping
    }

    /// Whatever a worker says, it lives.
    pub fn heard(&mut self) {
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_answers_nothing_hangs_after_the_limit() {
        let begin = Instant::now();
        let mut pulse = Pulse::new(begin);
        let (mut now, mut pings, mut first) = (begin, 0, None);
        loop {
            match pulse.beat(now) {
                Beat::Wait(time) => now += time,
                Beat::Ping => {
                    pings += 1;
                    first.get_or_insert(now);
                }
                Beat::Hangs => break,
            }
        }
        assert_eq!((pings, now - first.unwrap()), (MOST, LIMIT));
    }

    #[test]
    fn who_answers_lives_and_so_does_who_was_paused_with_us() {
        let mut now = Instant::now();
        let mut pulse = Pulse::new(now);
        for _ in 0..1000 {
            now += INTERVAL;
            assert_eq!(pulse.beat(now), Beat::Ping);
            // All but the last of them were lost.
            if pulse.unanswered == MOST {
                pulse.heard();
            }
        }
        pulse.heard();
        // A night, and a ping was under way.
        assert_eq!(pulse.beat(now + INTERVAL), Beat::Ping);
        now += Duration::from_secs(8 * 3600);
        assert_eq!(pulse.beat(now), Beat::Ping, "nothing is caught up");
        assert_eq!(pulse.beat(now), Beat::Wait(INTERVAL));
        assert_eq!(pulse.unanswered, 2);
    }
}
