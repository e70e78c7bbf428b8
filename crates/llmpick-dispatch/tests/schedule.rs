//! A router that gives marginals only, and a scheduler that draws from them.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Habit, Setup, arm, ask, request};
use llmpick_core::{
    DecisionSource, Schedule, ScheduleRequest, ScheduledArm, Scheduler, SchedulerError,
};
use llmpick_testkit::{Answer, FakeBackend};

/// Answers what it was told to, and keeps what it was asked.
struct Scripted {
    answer: Result<Schedule, SchedulerError>,
    asked: Mutex<Vec<Vec<ScheduledArm>>>,
}

impl Scheduler for Scripted {
    fn schedule(&self, request: &ScheduleRequest<'_>) -> Result<Schedule, SchedulerError> {
        self.asked.lock().unwrap().push(request.arms.to_vec());
        self.answer.clone()
    }
}

fn setup(shares: &[f64]) -> Setup {
    let arms = ["a", "b", "c"].map(|name| FakeBackend::new(name, Answer::text("yes")));
    Setup::new(arms.into(), Habit::Share(shares.to_vec()))
}

fn drawn(choices: &[u32]) -> Result<Schedule, SchedulerError> {
    Ok(Schedule {
        choices: choices.to_vec(),
        marginals: vec![0.0, 0.2, 0.8],
        note: "`a` is full".to_owned(),
    })
}

/// The decision in the ledger, and what the scheduler was asked.
async fn decide(
    setup: &Setup,
    answer: Option<Result<Schedule, SchedulerError>>,
) -> (llmpick_core::Decision, Vec<Vec<ScheduledArm>>) {
    let (dispatch, _) = setup.start();
    let scripted = answer.map(|answer| {
        Arc::new(Scripted {
            answer,
            asked: Mutex::default(),
        })
    });
    if let Some(scripted) = &scripted {
        dispatch.set_scheduler(Arc::clone(scripted) as Arc<dyn Scheduler>);
    }
    let summary = ask(&dispatch, request()).await.summary();
    let record = dispatch.route_record(summary.route_id).unwrap();
    let asked = scripted.map_or_else(Vec::new, |s| s.asked.lock().unwrap().clone());
    (record.decision.unwrap(), asked)
}

#[tokio::test]
async fn what_was_drawn_and_what_it_was_drawn_from_is_in_the_ledger() {
    let setup = setup(&[0.5, 0.1, 0.4]);
    let (decision, asked) = decide(&setup, Some(drawn(&[2]))).await;
    assert_eq!(decision.choices, [2]);
    assert_eq!(decision.marginals, [0.0, 0.2, 0.8]);
    assert_eq!(decision.reason, "habit; `a` is full");
    assert_eq!(decision.source, DecisionSource::Router);
    let want: Vec<ScheduledArm> = [("a", 0.5), ("b", 0.1), ("c", 0.4)]
        .map(|(name, marginal)| ScheduledArm {
            id: arm(name),
            eligible: true,
            marginal,
        })
        .into();
    assert_eq!(asked, [want]);
}

#[tokio::test]
async fn an_open_decision_is_answered_whatever_the_scheduler_does() {
    let away = Err(SchedulerError::Away("nobody listens".to_owned()));
    for (answer, why) in [
        (None, "the router chose no arm"),
        (Some(away), "nobody listens"),
        (Some(drawn(&[3])), "arm number 3"),
        (Some(drawn(&[])), "no arm"),
    ] {
        let (decision, _) = decide(&setup(&[0.5, 0.1, 0.4]), answer).await;
        match &decision.source {
            DecisionSource::Fallback(said) => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?} where {why}"),
        }
    }
}

#[tokio::test]
async fn marginals_of_another_number_of_arms_are_no_decision() {
    let (decision, asked) = decide(&setup(&[0.5, 0.5]), Some(drawn(&[0]))).await;
    assert!(matches!(decision.source, DecisionSource::Fallback(_)));
    assert!(asked.is_empty(), "the scheduler was not bothered");
}
