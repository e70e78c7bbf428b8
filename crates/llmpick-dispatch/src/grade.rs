//! Asking the scorers.

use std::sync::Arc;

use llmpick_core::{Outcome, Score, Scorer};
use tracing::warn;

use crate::DispatchError;

/// A grade and who gave it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grade {
    pub(crate) score: Score,
    pub(crate) scorer: String,
}

/// The scorers that one request is graded by, in order.
#[derive(Clone)]
pub(crate) struct Jury(Vec<Arc<dyn Scorer>>);

impl Jury {
    /// The one that was named, or all of them in their order.
    pub(crate) fn new(all: &[Arc<dyn Scorer>], named: Option<&str>) -> Result<Self, DispatchError> {
        let Some(named) = named else {
            return Ok(Self(all.to_vec()));
        };
        match all.iter().find(|scorer| scorer.name() == named) {
            Some(scorer) => Ok(Self(vec![Arc::clone(scorer)])),
            None => {
                let known: Vec<&str> = all.iter().map(|scorer| scorer.name()).collect();
                Err(DispatchError::InvalidRequest(format!(
                    "there is no scorer `{named}`; there are {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// The first grade that a scorer has something to go by for. Blocks as long as they take.
    pub(crate) fn grade(&self, outcome: &Outcome) -> Option<Grade> {
        self.0
            .iter()
            .find_map(|scorer| match scorer.score(outcome) {
                Ok(score) => score.map(|score| Grade {
                    score,
                    scorer: scorer.name().to_owned(),
                }),
                // A broken scorer costs one grade, never an answer.
                Err(error) => {
                    warn!(scorer = scorer.name(), %error, "answer was not scored");
                    None
                }
            })
    }
}
