//! Sizes and durations as people write them.  (pure)

use std::fmt;
use std::time::Duration;

/// An amount of memory: absolute, or a share of what the box may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteSize {
    Bytes(u64),
    /// Percent of the box's memory limit, 1 to 100.
    Share(u8),
}

/// Why a size or a duration can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("it is blank")]
    Blank,
    #[error("it has no unit")]
    NoUnit,
    #[error("it is not a whole number with a unit")]
    NotANumber,
    #[error("the unit \"{0}\" is not known")]
    Unit(String),
    #[error("the number is too large")]
    TooLarge,
    #[error("a share is from 1% to 100%")]
    Share,
    #[error("it is less than the least possible, {0}")]
    BelowMinimum(String),
    #[error("it is more than the most possible, {0}")]
    AboveMaximum(String),
}

/// The least size a file system of the box is given: below this not even an agent's settings fit.
pub const SIZE_MIN: u64 = 1 << 20;
/// More than any machine has; a typo, not a wish.
pub const SIZE_MAX: u64 = 1 << 50;

impl ByteSize {
    /// Reads `512M`, `1G`, `1048576`, `25%`. Units are powers of 1024; `MiB`, `MB` and `M` say the same, as in
    /// tmpfs(5) and Docker's options.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(UnitError::Blank);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
        if number.is_empty() {
            return Err(UnitError::NotANumber);
        }
        let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
        if unit.trim() == "%" {
            let share = u8::try_from(number).ok().filter(|share| (1..=100).contains(share));
            return share.map(Self::Share).ok_or(UnitError::Share);
        }
        let bytes = number.checked_mul(factor(unit.trim())?).ok_or(UnitError::TooLarge)?;
        if bytes < SIZE_MIN {
            return Err(UnitError::BelowMinimum(Self::Bytes(SIZE_MIN).to_string()));
        }
        if bytes > SIZE_MAX {
            return Err(UnitError::AboveMaximum(Self::Bytes(SIZE_MAX).to_string()));
        }
        Ok(Self::Bytes(bytes))
    }

    /// The size in bytes, given the memory that the box may use.
    #[must_use]
    pub fn resolve(self, memory: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // Divided first: a share of u64::MAX ("no limit") must not overflow.
            Self::Share(percent) => (memory / 100).saturating_mul(u64::from(percent)).max(SIZE_MIN),
        }
    }
}

fn factor(unit: &str) -> Result<u64, UnitError> {
    match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Ok(1),
        "k" | "kb" | "kib" => Ok(1 << 10),
        "m" | "mb" | "mib" => Ok(1 << 20),
        "g" | "gb" | "gib" => Ok(1 << 30),
        "t" | "tb" | "tib" => Ok(1 << 40),
        _ if unit.starts_with('.') || unit.starts_with(',') => Err(UnitError::NotANumber),
        _ => Err(UnitError::Unit(unit.to_owned())),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => {
                let units = [(1u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
                match units.iter().find(|(size, _)| *bytes >= *size && bytes.is_multiple_of(*size)) {
                    Some((size, unit)) => write!(f, "{}{unit}", bytes / size),
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

/// Reads `300s`, `8s`, `1h 30m` and refuses what lies outside the bounds.
pub fn parse_duration(text: &str, min: Duration, max: Duration) -> Result<Duration, UnitError> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // "0" is the one number that humantime takes without a unit; ours always have one.
        return Err(UnitError::NoUnit);
    }
    let duration = humantime::parse_duration(text).map_err(|error| unit_error(&error))?;
    if duration < min {
        return Err(UnitError::BelowMinimum(humantime::format_duration(min).to_string()));
    }
    if duration > max {
        return Err(UnitError::AboveMaximum(humantime::format_duration(max).to_string()));
    }
    Ok(duration)
}

fn unit_error(error: &humantime::DurationError) -> UnitError {
    use humantime::DurationError;
    match error {
        DurationError::Empty => UnitError::Blank,
        DurationError::NumberOverflow => UnitError::TooLarge,
        DurationError::UnknownUnit { unit, .. } if unit.is_empty() => UnitError::NoUnit,
        DurationError::UnknownUnit { unit, .. } => UnitError::Unit(unit.clone()),
        DurationError::InvalidCharacter(_) | DurationError::NumberExpected(_) => UnitError::NotANumber,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_alike() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("1G", 1 << 30, "1G"),
            (" 1024m ", 1 << 30, "1G"),
            ("2 GiB", 2 << 30, "2G"),
            ("1048576", 1 << 20, "1M"),
            ("1048577b", (1 << 20) + 1, "1048577"),
            ("2000kB", 2000 << 10, "2000K"),
            ("1T", 1 << 40, "1T"),
        ] {
            let size = ByteSize::parse(text).unwrap();
            assert_eq!(size, ByteSize::Bytes(bytes), "{text}");
            assert_eq!(size.to_string(), shown);
        }
        assert_eq!(ByteSize::parse("25%"), Ok(ByteSize::Share(25)));
        assert_eq!(ByteSize::parse("100 %").unwrap().to_string(), "100%");
    }

    #[test]
    fn a_share_is_of_the_memory_limit_and_never_overflows() {
        assert_eq!(ByteSize::Share(25).resolve(4 << 30), (4u64 << 30) / 100 * 25);
        assert_eq!(ByteSize::Share(100).resolve(u64::MAX), u64::MAX / 100 * 100);
        assert_eq!(ByteSize::Share(1).resolve(0), SIZE_MIN);
        assert_eq!(ByteSize::Bytes(7 << 20).resolve(1), 7 << 20);
    }

    #[test]
    fn bad_sizes_say_what_is_wrong() {
        for (text, error) in [
            ("", UnitError::Blank),
            ("   ", UnitError::Blank),
            ("M", UnitError::NotANumber),
            ("-5M", UnitError::NotANumber),
            ("1.5G", UnitError::NotANumber),
            ("5 parsecs", UnitError::Unit("parsecs".to_owned())),
            ("0%", UnitError::Share),
            ("101%", UnitError::Share),
            ("300%", UnitError::Share),
            ("99999999999999999999", UnitError::TooLarge),
            ("99999999999999T", UnitError::TooLarge),
            ("1K", UnitError::BelowMinimum("1M".to_owned())),
            ("0", UnitError::BelowMinimum("1M".to_owned())),
            ("2000T", UnitError::AboveMaximum("1024T".to_owned())),
        ] {
            assert_eq!(ByteSize::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_stay_in_bounds() {
        let parse = |text| parse_duration(text, Duration::from_secs(1), Duration::from_secs(7200));
        assert_eq!(parse("8s"), Ok(Duration::from_secs(8)));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse(" 1500ms "), Ok(Duration::from_millis(1500)));
        for (text, error) in [
            ("", UnitError::Blank),
            ("8", UnitError::NoUnit),
            ("0", UnitError::NoUnit),
            ("8 fortnights", UnitError::Unit("fortnights".to_owned())),
            ("fast", UnitError::NotANumber),
            ("-8s", UnitError::NotANumber),
            ("0s", UnitError::BelowMinimum("1s".to_owned())),
            ("3h", UnitError::AboveMaximum("2h".to_owned())),
            ("99999999999999999999s", UnitError::TooLarge),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn every_error_is_a_sentence() {
        for (error, text) in [
            (UnitError::Blank, "it is blank"),
            (UnitError::NoUnit, "it has no unit"),
            (UnitError::NotANumber, "it is not a whole number with a unit"),
            (UnitError::Unit("q".to_owned()), "the unit \"q\" is not known"),
            (UnitError::TooLarge, "the number is too large"),
            (UnitError::Share, "a share is from 1% to 100%"),
            (UnitError::BelowMinimum("1s".to_owned()), "it is less than the least possible, 1s"),
            (UnitError::AboveMaximum("2h".to_owned()), "it is more than the most possible, 2h"),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
