//! A pattern that the answer must match.

use llmpick_core::{Outcome, Score, Scorer, ScorerError};
use regex::RegexBuilder;

/// 1 when the pattern in the reference matches somewhere in the answer, 0 when it does not.
/// The reference is `/pattern/`, `/pattern/i` to ignore case, or `re:pattern`; any other
/// reference is none of this scorer's business.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pattern;

/// Compiled size that a pattern may take. Matching is linear in the answer's length whatever
/// the pattern.
const SIZE_LIMIT: usize = 1 << 20;

impl Scorer for Pattern {
    fn name(&self) -> &str {
        "regex"
    }

    fn score(&self, outcome: &Outcome) -> Result<Option<Score>, ScorerError> {
        let Some((pattern, ignore_case)) = outcome.reference.as_deref().and_then(parse) else {
            return Ok(None);
        };
        let regex = RegexBuilder::new(pattern)
            .case_insensitive(ignore_case)
            .size_limit(SIZE_LIMIT)
            .build()
            .map_err(|error| ScorerError {
                scorer: self.name().to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Some(Score::from_correct(regex.is_match(&outcome.response))))
    }
}

/// The pattern, and whether it ignores case.
fn parse(reference: &str) -> Option<(&str, bool)> {
    let reference = reference.trim();
    if let Some(pattern) = reference.strip_prefix("re:") {
        return Some((pattern, false));
    }
    let rest = reference.strip_prefix('/')?;
    let parsed = match rest.strip_suffix("/i") {
        Some(pattern) => (pattern, true),
        None => (rest.strip_suffix('/')?, false),
    };
    (!parsed.0.is_empty()).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::score;

    #[test]
    fn the_pattern_may_match_anywhere() {
        assert_eq!(score(&Pattern, "It is Paris.", "/Paris/"), Some(1.0));
        assert_eq!(score(&Pattern, "it is PARIS", "/paris\\b/i"), Some(1.0));
        assert_eq!(score(&Pattern, "it is PARIS", "/paris/"), Some(0.0));
        assert_eq!(score(&Pattern, "42", "re:^\\d+$"), Some(1.0));
    }

    #[test]
    fn other_references_are_left_to_others() {
        for reference in ["Paris", "/", "//", "/usr/bin", "1/2"] {
            assert_eq!(score(&Pattern, "Paris", reference), None, "{reference}");
        }
    }

    #[test]
    fn a_bad_pattern_is_an_error() {
        let outcome = |pattern: &str| Outcome {
            reference: Some(pattern.to_owned()),
            ..Outcome::default()
        };
        assert!(Pattern.score(&outcome("/(/")).is_err());
        assert!(Pattern.score(&outcome("/(a{1000}){1000}/")).is_err());
    }
}
