//! The keys by which an operator leaves whatever the session does: Ctrl-] four times within two seconds. (pure)
//!
//! tmux's own way out (Ctrl-b d) is the tmux server's, and the server is the agent's: it may be stopped, or not want to.
//! Who only looks leaves by Ctrl-b d too, which the relay then understands itself: none of their keys go further.

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

/// Ctrl-b and d, in the same three ways.
const PREFIX: [&[u8]; 3] = [b"\x02", b"\x1b[27;5;98~", b"\x1b[98;5u"];
const DETACH: [&[u8]; 3] = [b"d", b"\x1b[27;1;100~", b"\x1b[100u"];

/// The keys of who only looks.
#[derive(Debug, Default)]
pub(super) struct Looking {
    /// The beginning of a key whose rest has not come.
    begun: Vec<u8>,
    prefixed: bool,
}

impl Looking {
    /// Whether these keys leave as tmux's would.
    pub(super) fn typed(&mut self, keys: &[u8]) -> bool {
        self.begun.extend_from_slice(keys);
        let keys = std::mem::take(&mut self.begun);
        let mut keys = keys.as_slice();
        while let Some((_, after)) = keys.split_first() {
            let rest_of = |known: [&[u8]; 3]| known.into_iter().find_map(|key| keys.strip_prefix(key));
            if self.prefixed && rest_of(DETACH).is_some() {
                return true;
            }
            if let Some(rest) = rest_of(PREFIX) {
                (self.prefixed, keys) = (true, rest);
            } else if PREFIX.iter().chain(&DETACH).any(|key| key.starts_with(keys)) {
                // At most one octet less than the longest of them.
                self.begun = keys.to_vec();
                return false;
            } else {
                (self.prefixed, keys) = (false, after);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{Escape, Looking};
    use std::time::{Duration, Instant};

    #[test]
    fn who_only_looks_leaves_by_tmuxs_key_however_it_comes() {
        for keys in
            ["\x02d", "ls\r\x02d", "\x02\x02d", "\x1b[98;5ud", "\x1b[98;5u\x1b[100u", "\x1b[27;5;98~d"]
        {
            assert!(Looking::default().typed(keys.as_bytes()), "{keys:?}");
            let mut looking = Looking::default();
            let octets: Vec<bool> = keys.bytes().map(|octet| looking.typed(&[octet])).collect();
            assert_eq!(octets.iter().filter(|left| **left).count(), 1, "{keys:?} octet by octet");
            assert_eq!(octets.last(), Some(&true));
        }
        for keys in
            ["d", "\x02xd", "\x02\x1b[Ad", "\x1b[<0;5;5M", "\x1b[98;5x", "\x02", "exit\r", "\x1b\x1b\x1bd"]
        {
            let mut looking = Looking::default();
            assert!(!looking.typed(keys.as_bytes()), "{keys:?}");
            assert!(looking.begun.len() < 12);
        }
    }

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
