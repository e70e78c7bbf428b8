//! Loaded scorers: grades are checked, faults are errors of one call.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{moody, panics};
use llmpick_core::{Outcome, Score, Scorer};
use llmpick_plugin_host::{Isolation, ScorerOptions, scorer};

fn outcome(response: &str) -> Outcome {
    Outcome {
        response: response.to_owned(),
        reference: Some("42".to_owned()),
        ..Outcome::default()
    }
}

fn grade(scorer: &Arc<dyn Scorer>, response: &str) -> Result<Option<f64>, String> {
    match scorer.score(&outcome(response)) {
        Ok(score) => Ok(score.map(Score::get)),
        Err(error) => Err(error.to_string()),
    }
}

fn err(text: &str) -> Result<Option<f64>, String> {
    Err(text.to_owned())
}

#[test]
fn grades_are_checked() {
    for isolation in [Isolation::Actor, Isolation::Inline] {
        let options = ScorerOptions {
            isolation,
            quarantine_after: 4,
            ..ScorerOptions::default()
        };
        let says = scorer(&moody(), "says", "", &options).unwrap();
        assert_eq!(says.name(), "says");
        assert_eq!(grade(&says, "0.25"), Ok(Some(0.25)));
        assert_eq!(grade(&says, "abstain"), Ok(None));
        let no_score = |what: &str| {
            err(&format!(
                "score with `says`: a score is a number from 0 to 1, not {what}"
            ))
        };
        assert_eq!(grade(&says, "nan"), no_score("NaN"));
        assert_eq!(grade(&says, "1.5"), no_score("1.5"));
        assert_eq!(grade(&says, "-1"), no_score("-1"));
        assert_eq!(grade(&says, "1"), Ok(Some(1.0)));
        assert_eq!(grade(&says, "fail"), err("score with `says`: cannot say"));
        let quarantined = "score with `says`: it is quarantined after 4 faults";
        assert_eq!(grade(&says, "1"), err(quarantined));
    }
}

#[test]
fn a_panic_costs_one_grade() {
    for isolation in [Isolation::Actor, Isolation::Inline] {
        let options = ScorerOptions {
            isolation,
            ..ScorerOptions::default()
        };
        let grader = scorer(&panics(), "grader", "", &options).unwrap();
        assert_eq!(grade(&grader, "42"), Ok(Some(1.0)));
        let panicked = "score with `grader`: panicked: asked to panic in score";
        assert_eq!(grade(&grader, "boom"), err(panicked));
        assert_eq!(grade(&grader, "41"), Ok(Some(0.0)));
    }
}

#[test]
fn a_scorer_that_hangs_is_replaced() {
    let options = ScorerOptions {
        deadline: Duration::from_secs(1),
        abandon_after: Duration::from_millis(20),
        ..ScorerOptions::default()
    };
    let says = scorer(&moody(), "says", "", &options).unwrap();
    let late = "score with `says`: it did not answer within 1s";
    assert_eq!(grade(&says, "spin"), err(late));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(grade(&says, "0.5"), Ok(Some(0.5)));
}

#[test]
fn many_threads_may_ask() {
    let says = scorer(&moody(), "says", "", &ScorerOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let says = &says;
            scope.spawn(move || {
                for _ in 0..50 {
                    let response = format!("0.{number}");
                    let expected = response.parse().unwrap();
                    assert_eq!(grade(says, &response), Ok(Some(expected)));
                }
            });
        }
    });
}
