//! Grades of choices, and how sure an accuracy is.

use serde::{Deserialize, Serialize};

/// Which of several given continuations a model prefers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceGrade {
    /// lm-evaluation-harness's `acc`: the highest summed log-probability is the gold one.
    pub acc: bool,
    /// Its `acc_norm`: the same, each sum divided by the choice's length in bytes.
    pub acc_norm: bool,
}

/// One choice as a model sees it: summed log-probability and length in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Likelihood {
    /// Natural logarithm, summed over the choice's tokens.
    pub logprob: f64,
    /// Bytes of the choice's text, without the space before it.
    pub bytes: usize,
}

/// Compares the choices; the first of equals counts as preferred, as in the harness's argmax.
pub fn grade_choices(likelihoods: &[Likelihood], gold: usize) -> ChoiceGrade {
    let plain = first_max(likelihoods.iter().map(|choice| choice.logprob));
    let norm = first_max(
        likelihoods
            .iter()
            .map(|choice| choice.logprob / choice.bytes.max(1) as f64),
    );
    ChoiceGrade {
        acc: plain == Some(gold),
        acc_norm: norm == Some(gold),
    }
}

fn first_max(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, value) in values.enumerate() {
        if !value.is_nan() && best.is_none_or(|(_, most)| value > most) {
            best = Some((index, value));
        }
    }
    best.map(|(index, _)| index)
}

/// A share with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Mean score.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// How many were scored.
    pub n: usize,
}

/// Wilson's score interval for a mean of `n` scores in 0..=1 (exact for right and wrong; for
/// scores between, it is wider than needed, since their variance is smaller).
/// Wilson, JASA 22 (1927), 209–212.
pub fn accuracy(scores: impl IntoIterator<Item = f64>) -> Accuracy {
    const Z: f64 = 1.959_963_984_540_054;
    let (mut sum, mut n) = (0.0, 0usize);
    for score in scores {
        sum += score;
        n += 1;
    }
    if n == 0 {
        return Accuracy {
            mean: f64::NAN,
            low: 0.0,
            high: 1.0,
            n,
        };
    }
    let count = n as f64;
    let mean = sum / count;
    let z2 = Z * Z / count;
    let centre = (mean + z2 / 2.0) / (1.0 + z2);
    let half = Z
        * (mean * (1.0 - mean) / count + z2 / (4.0 * count))
            .max(0.0)
            .sqrt()
        / (1.0 + z2);
    Accuracy {
        mean,
        low: (centre - half).max(0.0),
        high: (centre + half).min(1.0),
        n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_can_change_the_winner() {
        let choices = [
            Likelihood {
                logprob: -4.0,
                bytes: 2,
            },
            Likelihood {
                logprob: -6.0,
                bytes: 12,
            },
        ];
        assert_eq!(
            grade_choices(&choices, 0),
            ChoiceGrade {
                acc: true,
                acc_norm: false
            }
        );
        assert_eq!(
            grade_choices(&choices, 1),
            ChoiceGrade {
                acc: false,
                acc_norm: true
            }
        );
    }

    #[test]
    fn wilson_matches_a_published_value() {
        // Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
        let interval = accuracy((0..263).map(|i| if i < 81 { 1.0 } else { 0.0 }));
        assert!((interval.low - 0.2553).abs() < 5e-5, "{interval:?}");
        assert!((interval.high - 0.3662).abs() < 5e-5, "{interval:?}");
    }

    #[test]
    fn nothing_scored_says_so() {
        let interval = accuracy([]);
        assert!(interval.mean.is_nan());
        assert_eq!((interval.low, interval.high, interval.n), (0.0, 1.0, 0));
    }
}
