//! A share of the time for work that somebody else causes (pure): a flood of causes is answered by doing less of it.

use std::time::{Duration, Instant};

/// What may be spent: a little at once, then a share of the time that passes.
#[derive(Debug)]
pub struct TimeShare {
    /// Seconds; below zero after an expensive piece of work.
    credit: f64,
    most: f64,
    share: f64,
    at: Instant,
}

impl TimeShare {
    /// At most `most` at once and `share` (0 to 1) of the time in the long run.
    #[must_use]
    pub fn new(most: Duration, share: f64, now: Instant) -> Self {
        let most = most.as_secs_f64();
        Self { credit: most, most, share, at: now }
    }

    /// Whether work may begin now.
    pub fn may(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.credit = (self.credit + passed * self.share).min(self.most);
        self.credit > 0.0
    }

    /// Whether more than half of what may be spent at once is left: for work that is worth less.
    #[must_use]
    pub fn is_ample(&self) -> bool {
        self.credit > self.most / 2.0
    }

    /// The work took so long.
    pub fn spent(&mut self, time: Duration) {
        self.credit -= time.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_pays_for_its_time() {
        let now = Instant::now();
        let mut share = TimeShare::new(Duration::from_millis(200), 0.1, now);
        for _ in 0..40 {
            assert!(share.may(now));
            share.spent(Duration::from_millis(4));
        }
        share.spent(Duration::from_millis(140));
        assert!(!share.may(now + Duration::from_millis(900)));
        assert!(share.may(now + Duration::from_millis(1100)));
        assert!(share.may(now), "a clock that seems to go back takes nothing away");
    }

    #[test]
    fn a_long_rest_saves_up_no_more_than_the_most() {
        let now = Instant::now();
        let mut share = TimeShare::new(Duration::from_millis(10), 0.5, now);
        let later = now + Duration::from_secs(3600);
        assert!(share.may(later));
        share.spent(Duration::from_millis(10));
        assert!(!share.may(later));
    }
}
