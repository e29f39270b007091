//! Notices lost time: a laptop that slept, a container that was paused, a clock that somebody set. Everything that
//! was known before is then verified and asked for again.
//!
//! Deadlines of the box are monotonic, so a clock that is set moves none of them; but what the world answered may be
//! hours old, and TLS fails where the clock is wrong. What lost time means is decided here (pure); [`watch`] looks.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the clocks are compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// Less than this is a busy machine or NTP at work.
const TOLERANCE: Duration = Duration::from_secs(5);

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// CLOCK_MONOTONIC: stands still while the machine sleeps.
    pub monotonic: Duration,
    /// CLOCK_BOOTTIME: goes on.
    pub boottime: Duration,
    /// CLOCK_REALTIME since 1970: can be set.
    pub wall: Duration,
}

/// What happened between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// The machine slept: kernel timeouts stood still too.
    Slept(Duration),
    /// Nothing of ours ran: the container was paused, or the machine was overwhelmed.
    Stopped(Duration),
    /// Somebody set the clock.
    SetForward(Duration),
    SetBack(Duration),
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |time: &Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
        match self {
            Self::Slept(time) => write!(f, "the machine slept for {}", show(time)),
            Self::Stopped(time) => write!(f, "the box stood still for {}", show(time)),
            Self::SetForward(time) => write!(f, "the clock was set forward by {}", show(time)),
            Self::SetBack(time) => write!(f, "the clock was set back by {}", show(time)),
        }
    }
}

impl Jump {
    /// Compares two readings that should be [`INTERVAL`] apart.
    #[must_use]
    pub fn between(before: &Reading, after: &Reading) -> Option<Self> {
        let monotonic = after.monotonic.saturating_sub(before.monotonic);
        let boottime = after.boottime.saturating_sub(before.boottime);
        let slept = boottime.saturating_sub(monotonic);
        if slept > TOLERANCE {
            return Some(Self::Slept(slept));
        }
        let overdue = monotonic.saturating_sub(INTERVAL);
        if overdue > TOLERANCE {
            return Some(Self::Stopped(overdue));
        }
        let expected = before.wall.saturating_add(boottime);
        let (forward, back) = (after.wall.saturating_sub(expected), expected.saturating_sub(after.wall));
        if forward > TOLERANCE {
            Some(Self::SetForward(forward))
        } else if back > TOLERANCE {
            Some(Self::SetBack(back))
        } else {
            None
        }
    }

    /// Whether what was learned of the world may be old.
    #[must_use]
    pub fn lost_time(self) -> bool {
        matches!(self, Self::Slept(_) | Self::Stopped(_))
    }
}

impl Reading {
    /// Now.
    #[must_use]
    pub fn take() -> Self {
        Self {
            monotonic: clock(rustix::time::ClockId::Monotonic),
            boottime: boottime(),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }
}

/// Time since the machine was started: goes on while it sleeps, and nobody sets it.
#[must_use]
pub fn boottime() -> Duration {
    clock(rustix::time::ClockId::Boottime)
}

fn clock(id: rustix::time::ClockId) -> Duration {
    let now = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Looks for ever: `tick` is called each time, `jumped` when time was lost or the clock was set.
pub fn watch(
    tick: impl Fn() + Send + 'static,
    jumped: impl Fn(Jump) + Send + 'static,
) -> std::io::Result<()> {
    crate::supervisor::thread("clock", move || {
        let mut before = Reading::take();
        loop {
            crate::supervisor::backoff::pause(INTERVAL);
            let now = Reading::take();
            if let Some(jump) = Jump::between(&before, &now) {
                jumped(jump);
            }
            tick();
            // Anew: what `jumped` took is no lost time.
            before = Reading::take();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Jump, Reading};
    use std::time::Duration;

    fn reading(monotonic: u64, boottime: u64, wall: u64) -> Reading {
        let seconds = |n| Duration::from_secs(n + 1_000_000);
        Reading { monotonic: seconds(monotonic), boottime: seconds(boottime), wall: seconds(wall) }
    }

    #[test]
    fn f19_lost_time_is_told_from_a_clock_that_was_set() {
        let before = reading(100, 200, 5000);
        let jump = |after: Reading| Jump::between(&before, &after);
        assert_eq!(jump(reading(101, 201, 5001)), None);
        assert_eq!(jump(reading(104, 204, 5004)), None, "a busy machine");
        let minutes = |n: u64| Duration::from_secs(n * 60);
        assert_eq!(jump(reading(102, 802, 5602)), Some(Jump::Slept(minutes(10))));
        assert_eq!(jump(reading(701, 801, 5601)), Some(Jump::Stopped(minutes(10))));
        assert_eq!(jump(reading(102, 202, 8602)), Some(Jump::SetForward(minutes(60))));
        assert_eq!(jump(reading(102, 202, 1402)), Some(Jump::SetBack(minutes(60))));
        let decade = 10 * 365 * 86_400;
        assert!(matches!(jump(reading(102, 202, 5002 + decade)), Some(Jump::SetForward(_))));
        // Paused, and the clock was put right meanwhile: what was learned is old either way.
        assert!(jump(reading(702, 802, 9999)).is_some_and(Jump::lost_time));
        // Clocks never run backwards; should one, nothing panics.
        assert_eq!(jump(reading(1, 1, 5000)), None);
    }
}
