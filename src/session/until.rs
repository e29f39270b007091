//! When a session ends: a moment, or a time of day. (pure)

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 3600;

/// `session.until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Moment(SystemTime),
    /// So many seconds after midnight, UTC: the next time that it is so late.
    Daily(u64),
}

impl Until {
    /// The moment that is meant, seen from `now`.
    #[must_use]
    pub fn after(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Moment(moment) => moment,
            Self::Daily(second) => {
                let passed = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % DAY;
                now + Duration::from_secs((second + DAY - passed - 1) % DAY + 1)
            }
        }
    }

    /// Reads RFC 3339, or `HH:MM` with `Z` or an offset; the reason if it is neither.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let (place, offset) =
            zone(text).ok_or("it has no zone: it ends in Z or in an offset such as +01:00")?;
        if let Some(second) = clock(place) {
            let shifted = second + 2 * DAY - offset_from_a_day(offset);
            return Ok(Self::Daily(shifted % DAY));
        }
        let moment = humantime::parse_rfc3339(&format!("{place}Z")).map_err(
            |_| "it is no time: write 2030-01-31T07:00:00Z, or 07:00Z for the next time that it is so late",
        )?;
        let shift = Duration::from_secs(offset.unsigned_abs());
        let moment = if offset < 0 { moment.checked_add(shift) } else { moment.checked_sub(shift) };
        moment.map(Self::Moment).ok_or("it is too far away")
    }
}

/// An offset as seconds from a day ahead, which is never negative.
fn offset_from_a_day(offset: i64) -> u64 {
    DAY.saturating_add_signed(offset)
}

/// What stands before the zone, and the zone's offset in seconds (RFC 3339, section 5.6).
fn zone(text: &str) -> Option<(&str, i64)> {
    if let Some(place) = text.strip_suffix(['Z', 'z']) {
        return Some((place, 0));
    }
    let at = text.len().checked_sub(6)?;
    let (place, offset) = (text.get(..at)?, text.get(at..)?);
    let sign = match offset.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let seconds = i64::try_from(clock(offset.get(1..)?)?).ok()?;
    Some((place, sign * seconds))
}

/// `HH:MM` in seconds.
fn clock(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str, end: u64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|value| digits && *value < end)
    };
    Some(number(hours, 24)? * 3600 + number(minutes, 60)? * 60)
}

#[cfg(test)]
mod tests {
    use super::Until;
    use std::time::SystemTime;

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_time_of_day_is_its_next_occurrence() {
        for (text, now, wanted) in [
            ("07:00Z", "2030-01-31T06:59:59Z", "2030-01-31T07:00:00Z"),
            ("07:00Z", "2030-01-31T07:00:00Z", "2030-02-01T07:00:00Z"),
            ("07:00z", "2030-01-31T23:00:00Z", "2030-02-01T07:00:00Z"),
            ("00:30+01:00", "2030-01-31T12:00:00Z", "2030-01-31T23:30:00Z"),
            ("23:30-01:00", "2030-01-31T12:00:00Z", "2030-02-01T00:30:00Z"),
            ("07:00+05:30", "2030-01-31T00:00:00Z", "2030-01-31T01:30:00Z"),
            ("2030-01-31T07:00:00+01:00", "2031-01-01T00:00:00Z", "2030-01-31T06:00:00Z"),
            ("2030-01-31T07:00:00-01:00", "2031-01-01T00:00:00Z", "2030-01-31T08:00:00Z"),
            ("2030-01-31T07:00:00Z", "2031-01-01T00:00:00Z", "2030-01-31T07:00:00Z"),
        ] {
            assert_eq!(Until::parse(text).unwrap().after(at(now)), at(wanted), "{text} seen from {now}");
        }
    }

    #[test]
    fn what_is_no_time_or_has_no_zone_is_refused() {
        for text in [
            "",
            "07:00",
            "tomorrow",
            "24:00Z",
            "7:00Z",
            "07:60Z",
            "07:00+1",
            "2030-01-31",
            "2030-13-31T07:00:00Z",
            "é+01:00",
            "2030-01-31T07:00:00",
        ] {
            assert!(Until::parse(text).is_err(), "{text}");
        }
    }
}
