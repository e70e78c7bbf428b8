//! The contract of everything that grades an answer.

use serde::{Deserialize, Serialize};

use crate::{ArmId, RouteId, Score};

/// What there is to grade: one arm's answer to one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The request.
    pub route_id: Option<RouteId>,
    /// Who answered.
    pub arm: Option<ArmId>,
    /// Context tag, may be empty.
    pub task: String,
    /// What was asked.
    pub prompt: String,
    /// What was answered.
    pub response: String,
    /// The right answer, where one is known.
    pub reference: Option<String>,
    /// Natural log-probabilities of the answer's tokens, where known.
    pub logprobs: Vec<f32>,
    /// Chance for scorers that sample; same seed, same score.
    pub seed: u64,
}

/// Grades answers. Pure, or blocking work that dispatch keeps off the response path.
pub trait Scorer: Send + Sync {
    /// Name for people and for the ledger, for example `numeric`.
    fn name(&self) -> &str;

    /// A grade, or `None` where this scorer has nothing to go by.
    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError>;
}

/// Why a scorer could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("score with `{scorer}`: {reason}")]
pub struct ScorerError {
    /// Its name.
    pub scorer: String,
    /// What went wrong.
    pub reason: String,
}
