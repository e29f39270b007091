//! How often something may happen: a token bucket, and with one what PID 1 hears of a worker. (pure)
//!
//! Time is a parameter.

use std::time::{Duration, Instant};

/// So many at once, then one for each interval.
#[derive(Debug)]
pub struct Meter {
    tokens: u32,
    most: u32,
    interval: Duration,
    filled: Instant,
}

impl Meter {
    #[must_use]
    pub fn new(most: u32, interval: Duration, now: Instant) -> Self {
        Self { tokens: most, most, interval, filled: now }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        while self.tokens < self.most && now.saturating_duration_since(self.filled) >= self.interval {
            self.tokens += 1;
            self.filled += self.interval;
        }
        if self.tokens == self.most {
            self.filled = now;
        }
        let Some(left) = self.tokens.checked_sub(1) else { return false };
        self.tokens = left;
        true
    }
}

/// Frames that PID 1 hears of one life of a worker: so many at once, then 200 a second. A worker meters itself: of refusals it
/// tells 30 a second, of packets 40, of uses at most 64 frames; only one that was taken over gets here.
const BURST: u32 = 2000;
const INTERVAL: Duration = Duration::from_millis(5);
/// What was not heard is said at most this often.
const SAY: Duration = Duration::from_secs(30);

/// The bound on what a worker may tell.
#[derive(Debug)]
pub struct Bound {
    meter: Meter,
    dropped: u64,
    said: Option<Instant>,
}

impl Bound {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { meter: Meter::new(BURST, INTERVAL, now), dropped: 0, said: None }
    }

    /// Whether a frame is heard now; one that is not is counted.
    pub fn hears(&mut self, now: Instant) -> bool {
        let hears = self.meter.take(now);
        self.dropped += u64::from(!hears);
        hears
    }

    /// How many were not heard that nobody was told of: at the end of a life.
    #[must_use]
    pub fn unsaid(&self) -> u64 {
        self.dropped
    }

    /// How many were not heard, where it is time to say so.
    pub fn to_say(&mut self, now: Instant) -> Option<u64> {
        if self.dropped == 0 || self.said.is_some_and(|said| now.saturating_duration_since(said) < SAY) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_honest_workers_tell_is_always_heard() {
        let mut now = Instant::now();
        let mut bound = Bound::new(now);
        // The most of everything at once, and again each second: refusals, uses, packets of two sockets, numbers.
        for _ in 0..3600 {
            for _ in 0..30 + 64 + 40 + 2 {
                assert!(bound.hears(now));
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(bound.to_say(now), None);
    }

    #[test]
    fn a_worker_that_was_taken_over_floods_nobody() {
        let begin = Instant::now();
        let mut bound = Bound::new(begin);
        let (mut heard, mut said, mut lines) = (0_u64, 0, 0);
        // 100,000 frames a second for a minute.
        for frame in 0..6_000_000_u64 {
            let now = begin + Duration::from_micros(frame * 10);
            heard += u64::from(bound.hears(now));
            if let Some(count) = bound.to_say(now) {
                (said, lines) = (said + count, lines + 1);
            }
        }
        assert!((2000 + 59 * 200..=2000 + 60 * 200).contains(&heard), "{heard}");
        assert_eq!(lines, 2);
        let later = begin + Duration::from_secs(120);
        assert_eq!(heard + said + bound.to_say(later).unwrap(), 6_000_000, "nothing is lost silently");
        assert!(bound.hears(later), "who is quiet is heard again");
    }
}
