//! Amounts of money: millionths of a US dollar. (pure)

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whole millionths: what is added up and compared stays exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Microusd(pub u64);

const DOLLAR: u64 = 1_000_000;

impl Microusd {
    /// What is no amount is none.
    #[must_use]
    pub fn from_usd(usd: f64) -> Self {
        let micro = (usd * 1e6).round();
        if !micro.is_finite() || micro <= 0.0 {
            return Self(0);
        }
        // Printed and read again: a cast would truncate in silence.
        Self(format!("{micro:.0}").parse().unwrap_or(u64::MAX))
    }

    /// Reads an amount as people write it, `5` or `5.00`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 6 || whole.len() > 6 {
            return None;
        }
        let part: u64 = format!("{part:0<6}").parse().ok()?;
        whole.parse::<u64>().ok()?.checked_mul(DOLLAR)?.checked_add(part).map(Self)
    }

    /// As a number of dollars, for JSON.
    #[must_use]
    pub fn usd(self) -> f64 {
        // An account of more than four thousand million dollars is none.
        let whole = |number: u64| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        whole(self.0 / DOLLAR) + whole(self.0 % DOLLAR) / 1e6
    }

    /// All digits and nothing else, as an argument.
    #[must_use]
    pub fn digits(self) -> String {
        format!("{}.{:06}", self.0 / DOLLAR, self.0 % DOLLAR)
    }

    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// `$1.24`: in cents, rounded up, so that what cost something never looks free.
impl fmt::Display for Microusd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cents = self.0.div_ceil(DOLLAR / 100);
        write!(f, "${}.{:02}", cents / 100, cents % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::Microusd;

    #[test]
    fn costs_are_amounts() {
        for (usd, micro) in
            [(0.0, 0), (1.5, 1_500_000), (-1.0, 0), (f64::NAN, 0), (f64::INFINITY, 0), (1e300, u64::MAX)]
        {
            assert_eq!(Microusd::from_usd(usd), Microusd(micro), "{usd}");
        }
    }

    #[test]
    fn an_amount_is_read_and_shown_in_each_form() {
        for (text, micro, shown, digits) in [
            ("5", 5_000_000, "$5.00", "5.000000"),
            (" 5.00 ", 5_000_000, "$5.00", "5.000000"),
            ("0.4212", 421_200, "$0.43", "0.421200"),
            ("0.000001", 1, "$0.01", "0.000001"),
            ("0", 0, "$0.00", "0.000000"),
        ] {
            let amount = Microusd::parse(text).unwrap();
            assert_eq!(
                (amount.0, amount.to_string().as_str(), amount.digits().as_str()),
                (micro, shown, digits)
            );
            assert_eq!(Microusd::from_usd(amount.usd()), amount);
        }
        for text in ["", "-1", "1.", ".5", "1e3", "5 USD", "1.0000001", "1000000"] {
            assert_eq!(Microusd::parse(text), None, "{text}");
        }
    }
}
