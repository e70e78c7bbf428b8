//! Money in whole nano-dollars: sums are exact, and a budget cannot drift.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

/// An amount of money, 10⁻⁹ US dollars each. Never negative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NanoDollars(pub u64);

/// An amount that is negative, not a number, or beyond what fits.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not an amount of dollars between 0 and 10 billion")]
pub struct InvalidMoney(pub f64);

impl NanoDollars {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Reads dollars, rounding up to the next nano-dollar so that a cost is never understated.
    pub fn from_usd(usd: f64) -> Result<Self, InvalidMoney> {
        if !(0.0..=1e10).contains(&usd) {
            return Err(InvalidMoney(usd));
        }
        // A multiple of a nano-dollar may land a hair above itself; a millionth of a
        // nano-dollar is forgiven before rounding up.
        Ok(Self((usd * 1e9 - 1e-6).ceil().max(0.0) as u64))
    }

    /// The amount in dollars, for display and for the plugin boundary.
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The difference, or zero where `other` is larger.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for NanoDollars {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for NanoDollars {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for NanoDollars {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for NanoDollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usd = self.usd();
        let text = match self.0 {
            0 => "$0".to_owned(),
            1..10_000_000 => format!("${usd:.3e}"),
            _ => format!("${usd:.4}"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_round_up_and_come_back() {
        assert_eq!(NanoDollars::from_usd(0.001), Ok(NanoDollars(1_000_000)));
        assert_eq!(NanoDollars::from_usd(1.2e-9), Ok(NanoDollars(2)));
        assert_eq!(NanoDollars::from_usd(0.0), Ok(NanoDollars::ZERO));
        assert_eq!(NanoDollars(1_500_000_000).usd(), 1.5);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for bad in [-0.01, f64::NAN, f64::INFINITY, 1e11] {
            assert!(NanoDollars::from_usd(bad).is_err(), "{bad}");
        }
    }
}
