//! A second router beside the first: recorded, and without effect.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Habit, Setup, Tester, arm, ask, request};
use llmpick_core::{
    Decision, DecisionSource, Feedback, Mode, Router, RouterError, Score, SelectRequest, Snapshot,
};
use llmpick_testkit::{Answer, FakeBackend};

/// Takes the arm with the larger probability, and says both.
struct Shares(&'static str, [f64; 2]);

impl Router for Shares {
    fn name(&self) -> &str {
        self.0
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        // A draw by its shares, from the request's seed.
        let draw = (request.seed >> 11) as f64 / (1_u64 << 53) as f64;
        Ok(Decision {
            choices: vec![u32::from(draw >= self.1[0])],
            mode: Mode::Single,
            propensity: f64::NAN,
            marginals: self.1.to_vec(),
            reason: String::new(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, _: &Feedback) -> Result<(), RouterError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Err(RouterError::State("none".into()))
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Ok(())
    }
}

fn two_arms() -> Vec<FakeBackend> {
    vec![
        FakeBackend::new("a", Answer::text("right")),
        FakeBackend::new("b", Answer::text("wrong")),
    ]
}

#[tokio::test]
async fn what_it_would_have_decided_is_recorded_beside() {
    let setup = Setup::new(two_arms(), Habit::Plan(vec![0], Mode::Single));
    let (dispatch, state) = setup.start();
    let (shadow, shadow_state) = Tester::boxed(Habit::Plan(vec![1], Mode::Single));
    dispatch.set_shadow(shadow).unwrap();
    for _ in 0..5 {
        let summary = ask(&dispatch, request()).await.summary();
        assert_eq!(
            (summary.arm, summary.source),
            (arm("a"), DecisionSource::Router)
        );
    }
    dispatch.shutdown().await;
    assert!(setup.arms[1].calls().is_empty(), "it has no effect");
    let record = dispatch.last_route().unwrap().unwrap();
    let shadow = record.shadow.unwrap();
    assert_eq!((shadow.choices, shadow.error), (vec![1], None));
    let stats = dispatch.ledger().shadow_stats().unwrap();
    assert_eq!((stats[0].asked, stats[0].decided), (5, 5));
    assert_eq!(stats[0].same_first, Some(0.0));
    // At the last question it knew what the first router knew then: four rows of five.
    assert_eq!(shadow_state.lock().unwrap().told, 4);
    assert_eq!(state.lock().unwrap().told, 5);
}

#[tokio::test]
async fn its_failures_touch_nothing() {
    for (habit, why) in [
        (Habit::Fault, "it is ill"),
        (Habit::Panic, "the router panicked"),
        (
            Habit::Plan(vec![9], Mode::Single),
            "the router chose arm number 9, which does not exist",
        ),
    ] {
        let setup = Setup::new(two_arms(), Habit::Plan(vec![0], Mode::Single));
        let (dispatch, _) = setup.start();
        dispatch.set_shadow(Tester::boxed(habit).0).unwrap();
        let summary = ask(&dispatch, request()).await.summary();
        assert_eq!(summary.source, DecisionSource::Router);
        dispatch.shutdown().await;
        let shadow = dispatch.last_route().unwrap().unwrap().shadow.unwrap();
        assert_eq!(shadow.error.as_deref(), Some(why));
    }
}

#[tokio::test]
async fn its_worth_is_estimated_from_the_logged_probabilities() {
    let mut setup = Setup::new(two_arms(), Habit::Wander);
    setup.settings.base_seed = Some(3);
    let (dispatch, _) = setup.start();
    // Arm `a` is always right, `b` never: a router that takes `a` with 0.8 scores 0.8.
    dispatch
        .set_router(Box::new(Shares("half", [0.5, 0.5])))
        .unwrap();
    dispatch
        .set_shadow(Box::new(Shares("mostly", [0.8, 0.2])))
        .unwrap();
    for _ in 0..200 {
        let mut asked = request();
        asked.reference = Some("right".into());
        ask(&dispatch, asked).await.summary();
    }
    dispatch.shutdown().await;
    let stats = dispatch.ledger().shadow_stats().unwrap();
    let line = &stats[0];
    assert_eq!((line.router.as_str(), line.asked), ("mostly", line.decided));
    assert_eq!(line.weighed, line.asked);
    // 200 coins: the estimate's standard deviation is 0.8 · 0.2 / (0.5 · √200) = 0.023.
    let (served, estimated) = (line.served_score.unwrap(), line.estimated_score.unwrap());
    assert!((served - 0.5).abs() < 0.12, "{line:?}");
    assert!((estimated - 0.8).abs() < 0.07, "{line:?}");
    // They draw from the same seed: where `half` takes `a`, so does `mostly`.
    assert!((line.same_first.unwrap() - 0.7).abs() < 0.12, "{line:?}");
    let _ = Score::new(estimated).unwrap();
}
