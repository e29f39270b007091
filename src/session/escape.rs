//! The keys by which an operator leaves whatever the session does: Ctrl-] four times within two seconds. (pure)
//!
//! tmux's own way out (Ctrl-b d) is the tmux server's, and the server is the agent's: it may be stopped, or not want to.

use std::time::{Duration, Instant};

/// Ctrl-] as a plain terminal sends it, with xterm's modifyOtherKeys, and as CSI u.
const KEYS: [&[u8]; 3] = [b"\x1d", b"\x1b[27;5;93~", b"\x1b[93;5u"];
const TIMES: u32 = 4;
const WITHIN: Duration = Duration::from_secs(2);

/// How often the key came by now.
#[derive(Debug, Default)]
pub(super) struct Escape {
    count: u32,
    first: Option<Instant>,
}

impl Escape {
    /// Whether these keys end the visit. They go to the session all the same.
    pub(super) fn typed(&mut self, mut keys: &[u8], now: Instant) -> bool {
        while !keys.is_empty() {
            let Some(rest) = KEYS.iter().find_map(|key| keys.strip_prefix(*key)) else {
                *self = Self::default();
                return false;
            };
            keys = rest;
            if self.first.is_none_or(|first| now.saturating_duration_since(first) > WITHIN) {
                *self = Self { count: 0, first: Some(now) };
            }
            self.count += 1;
            if self.count >= TIMES {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Escape;
    use std::time::{Duration, Instant};

    #[test]
    fn four_quick_ones_and_nothing_else_leave() {
        let now = Instant::now();
        for key in ["\x1d", "\x1b[27;5;93~", "\x1b[93;5u"] {
            let mut escape = Escape::default();
            let mut press = |after: u64| escape.typed(key.as_bytes(), now + Duration::from_millis(after));
            assert_eq!([press(0), press(200), press(400), press(600)], [false, false, false, true]);
        }
        assert!(Escape::default().typed(b"\x1d\x1d\x1d\x1d", now));
        let mut escape = Escape::default();
        assert!(!escape.typed(b"\x1d\x1d\x1dx\x1d", now), "another key between them");
        let mut slow = Escape::default();
        assert!((0..10).all(|nth| !slow.typed(b"\x1d", now + Duration::from_millis(nth * 900))));
    }
}
