//! How long to wait before something that ended is started again.

use std::time::{Duration, Instant};

/// Lets this thread rest for so long.
pub fn pause(time: Duration) {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        // May return early for no reason; the loop looks at the clock.
        std::thread::park_timeout(left);
    }
}

/// Doubles from `first` to `most`; a life longer than `good` starts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    good: Duration,
    next: Duration,
}

impl Backoff {
    #[must_use]
    pub const fn new(first: Duration, most: Duration, good: Duration) -> Self {
        Self { first, most, good, next: first }
    }

    /// The pause after a life of this length.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.good {
            self.next = self.first;
        }
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use std::time::Duration;

    #[test]
    fn it_doubles_to_the_cap_and_starts_over_after_a_good_life() {
        let s = Duration::from_secs;
        let mut backoff = Backoff::new(s(1), s(60), s(120));
        let pauses: Vec<u64> = (0..8).map(|_| backoff.after(s(0)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.after(s(121)), s(1));
    }
}
