//! The same text, but for what does not matter.

use llmpick_core::{Outcome, Score, Scorer, ScorerError};

/// 1 when answer and reference are equal after normalising, or when what follows the last
/// "answer is" or "answer:" in the answer's last line is; 0 otherwise.
///
/// Normalising keeps letters, digits and whatever is inside a word or number (`3.5`, `e-mail`),
/// lower-cased and separated by single spaces; English articles go, as in SQuAD's metric.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exact;

impl Scorer for Exact {
    fn name(&self) -> &str {
        "exact"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        let Some(reference) = &outcome.reference else {
            return Ok(None);
        };
        let reference = normalise(reference);
        let response = outcome.response.trim();
        let same = normalise(response) == reference
            || after_answer(response).is_some_and(|answer| normalise(answer) == reference);
        Ok(Some(Score::from_correct(same)))
    }
}

/// What follows the last "answer is" or "answer:" of the last line that has one.
pub(crate) fn after_answer(response: &str) -> Option<&str> {
    let line = response
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())?;
    // Lower-casing ASCII only keeps byte offsets.
    let lower = line.to_ascii_lowercase();
    ["answer is", "answer:"]
        .iter()
        .filter_map(|cue| lower.rfind(cue).map(|at| at + cue.len()))
        .max()
        .and_then(|at| line.get(at..))
        .map(|rest| rest.trim_start_matches([':', ' ']))
}

/// Lower case, single spaces, no punctuation around words, no articles.
pub(crate) fn normalise(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()))
        .filter(|word| !word.is_empty());
    let kept: Vec<&str> = words
        .clone()
        .filter(|word| !matches!(*word, "a" | "an" | "the"))
        .collect();
    // An answer that is nothing but an article ("A") is the letter.
    match kept.is_empty() {
        true => words.collect::<Vec<_>>().join(" "),
        false => kept.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::score;

    #[test]
    fn case_spaces_and_punctuation_do_not_matter() {
        for response in [
            "Lead apron",
            " a lead  apron. ",
            "**lead apron**",
            "The answer is: lead apron.",
            "It shields.\nAnswer: the lead apron\n",
        ] {
            assert_eq!(
                score(&Exact, response, "lead apron"),
                Some(1.0),
                "{response}"
            );
        }
    }

    #[test]
    fn anything_else_is_wrong() {
        for response in [
            "",
            "lead",
            "lead apron and gloves",
            "no lead apron",
            "läd apron",
        ] {
            assert_eq!(
                score(&Exact, response, "lead apron"),
                Some(0.0),
                "{response}"
            );
        }
        assert_eq!(score(&Exact, "3.5", "35"), Some(0.0));
        assert_eq!(score(&Exact, "ИСТИНА", "истина"), Some(1.0));
    }
}
