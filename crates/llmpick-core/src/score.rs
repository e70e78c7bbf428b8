//! How good an answer was.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A grade: finite and in 0..=1 from construction on.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Score(f64);

/// A number that is no score.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a score is a number from 0 to 1, not {0}")]
pub struct InvalidScore(pub f64);

impl Score {
    /// Checks that `raw` is finite and in 0..=1.
    pub fn new(raw: f64) -> Result<Self, InvalidScore> {
        if (0.0..=1.0).contains(&raw) {
            Ok(Self(raw))
        } else {
            Err(InvalidScore(raw))
        }
    }

    /// 1 for a right answer, 0 for a wrong one.
    pub fn from_correct(correct: bool) -> Self {
        Self(f64::from(u8::from(correct)))
    }

    /// The grade as a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Score {
    type Error = InvalidScore;
    fn try_from(raw: f64) -> Result<Self, InvalidScore> {
        Self::new(raw)
    }
}

impl From<Score> for f64 {
    fn from(score: Score) -> f64 {
        score.0
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.3}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_zero_to_one_is_a_score() {
        assert_eq!(Score::new(0.25).map(Score::get), Ok(0.25));
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Score::new(bad).is_err(), "{bad}");
        }
    }
}
