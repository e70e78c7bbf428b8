//! How sure the model itself was.

use llmpick_core::{Outcome, Score, Scorer, ScorerError};

/// exp of the mean natural log-probability of the answer's tokens: the geometric mean of the
/// probabilities the model gave them. `None` where no log-probabilities are known.
///
/// It tells a fluent answer from a groping one, not a right one from a wrong one.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogProb;

impl Scorer for LogProb {
    fn name(&self) -> &str {
        "logprob"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        if outcome.logprobs.is_empty() {
            return Ok(None);
        }
        let sum: f64 = outcome.logprobs.iter().map(|p| f64::from(*p)).sum();
        let mean = (sum / outcome.logprobs.len() as f64).exp();
        // Rounding may leave a log-probability a hair above 0. (`min` would make 1 of NaN.)
        Score::new(if mean > 1.0 { 1.0 } else { mean })
            .map(Some)
            .map_err(|error| ScorerError {
                scorer: self.name().to_owned(),
                reason: format!("the backend's log-probabilities are no such thing: {error}"),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logprob(logprobs: &[f32]) -> Result<Option<f64>, ScorerError> {
        let outcome = Outcome {
            logprobs: logprobs.to_vec(),
            ..Outcome::default()
        };
        LogProb.score(&outcome).map(|score| score.map(f64::from))
    }

    #[test]
    fn it_is_the_geometric_mean_of_the_probabilities() {
        assert_eq!(logprob(&[]), Ok(None));
        assert_eq!(logprob(&[0.0, 0.0]), Ok(Some(1.0)));
        let half = logprob(&[0.25_f32.ln(), 1.0_f32.ln()]);
        assert!(
            matches!(half, Ok(Some(p)) if (p - 0.5).abs() < 1e-6),
            "{half:?}"
        );
        assert_eq!(logprob(&[f32::NEG_INFINITY]), Ok(Some(0.0)));
        assert_eq!(logprob(&[1e-7]), Ok(Some(1.0)));
    }

    #[test]
    fn nan_is_an_error_and_no_grade() {
        assert!(logprob(&[f32::NAN]).is_err());
    }
}
