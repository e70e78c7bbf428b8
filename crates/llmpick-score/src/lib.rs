//! The scorers we ship.
//!
//! Each has something to go by for some outcomes and says `None` for the others, so that they
//! can be asked in a row: [`all`] puts the ones that need a special reference first.
//!
//! | name | reference | takes an answer that |
//! |---|---|---|
//! | `regex` | `/pattern/`, `/pattern/i` or `re:pattern` | the pattern matches somewhere |
//! | `choice` | a letter, with or without the option's text: `B`, `(B)`, `B. lead apron` | names the letter, or that option's text and no other's |
//! | `numeric` | a number, also as `#### 18` | gives the same number last |
//! | `exact` | any text | is the same but for case, spaces and punctuation |
//! | `logprob` | none | is scored by the model's own mean token probability |

mod choice;
mod exact;
mod logprob;
mod numeric;
mod pattern;

use std::sync::Arc;

use llmpick_core::Scorer;

pub use choice::Choice;
pub use exact::Exact;
pub use logprob::LogProb;
pub use numeric::Numeric;
pub use pattern::Pattern;

/// Every scorer of this crate, in the order in which to ask them.
pub fn all() -> Vec<Arc<dyn Scorer>> {
    vec![
        Arc::new(Pattern),
        Arc::new(Choice),
        Arc::new(Numeric::default()),
        Arc::new(Exact),
        Arc::new(LogProb),
    ]
}

#[cfg(test)]
pub(crate) mod check {
    //! One way to ask a scorer.
    use llmpick_core::{Outcome, Scorer};

    /// What `scorer` gives this answer.
    pub(crate) fn score(scorer: &dyn Scorer, response: &str, reference: &str) -> Option<f64> {
        let outcome = Outcome {
            response: response.to_owned(),
            reference: Some(reference.to_owned()),
            ..Outcome::default()
        };
        scorer.score(&outcome).ok().flatten().map(f64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmpick_core::Outcome;

    /// Who grades first, as dispatch asks them.
    fn first(reference: Option<&str>) -> Option<String> {
        let outcome = Outcome {
            response: "B".into(),
            reference: reference.map(str::to_owned),
            logprobs: vec![-0.5],
            ..Outcome::default()
        };
        let scorers = all();
        let grades = |scorer: &&Arc<dyn Scorer>| matches!(scorer.score(&outcome), Ok(Some(_)));
        scorers
            .iter()
            .find(grades)
            .map(|scorer| scorer.name().to_owned())
    }

    #[test]
    fn the_kind_of_reference_decides_who_grades() {
        let grader = |reference| first(reference).unwrap_or_default();
        assert_eq!(grader(Some("/b/i")), "regex");
        assert_eq!(grader(Some("(B)")), "choice");
        assert_eq!(grader(Some("1,024")), "numeric");
        assert_eq!(grader(Some("lead apron")), "exact");
        assert_eq!(grader(None), "logprob");
    }

    #[test]
    fn without_a_reference_only_the_model_itself_is_asked() {
        let outcome = Outcome {
            response: "B".into(),
            ..Outcome::default()
        };
        for scorer in all() {
            assert_eq!(scorer.score(&outcome), Ok(None), "{}", scorer.name());
        }
    }
}
