//! Arms that come, go and change their price while requests run.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::{StillClock, TestScorer, arm, ask, request};
use llmpick_core::{
    Backend, Candidate, Decision, DecisionSource, Feedback, Mode, Price, Router, RouterError,
    SelectRequest, Snapshot,
};
use llmpick_dispatch::{Dispatch, DispatchSettings, Parts, StatsFilter};
use llmpick_ledger::Ledger;
use llmpick_testkit::{Answer, FakeBackend, ManualClock};

type Learnt = Arc<Mutex<BTreeMap<String, (u32, f64)>>>;
type Shown = Arc<Mutex<Vec<Candidate>>>;

/// Takes the arms in turn, and keeps what each one earned by its name.
#[derive(Default)]
struct InTurn {
    learnt: Learnt,
    shown: Shown,
}

impl Router for InTurn {
    fn name(&self) -> &str {
        "in-turn"
    }

    fn select(&mut self, request: &SelectRequest<'_>) -> Result<Decision, RouterError> {
        *self.shown.lock().unwrap() = request.candidates.to_vec();
        let choice = request.route_id.0 % request.candidates.len() as u64;
        Ok(Decision {
            choices: vec![choice as u32],
            mode: Mode::Single,
            propensity: f64::NAN,
            marginals: Vec::new(),
            reason: String::new(),
            source: DecisionSource::Router,
        })
    }

    fn feedback(&mut self, feedback: &Feedback) -> Result<(), RouterError> {
        let mut learnt = self.learnt.lock().unwrap();
        let known = learnt.entry(feedback.arm.to_string()).or_default();
        known.0 += 1;
        known.1 += feedback.cost;
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, RouterError> {
        Err(RouterError::State("none".into()))
    }

    fn restore(&mut self, _: &Snapshot) -> Result<(), RouterError> {
        Err(RouterError::State("none".into()))
    }
}

fn backend(name: &str, usd: f64) -> Arc<dyn Backend> {
    let price = Price::PerToken {
        input_usd: 0.0,
        output_usd: usd,
    };
    Arc::new(
        FakeBackend::new(name, Answer::text("one two three four"))
            .remote()
            .price(price),
    )
}

fn shown(shown: &Shown, name: &str) -> Candidate {
    let shown = shown.lock().unwrap();
    shown.iter().find(|c| c.id == arm(name)).unwrap().clone()
}

#[tokio::test]
async fn what_was_learnt_of_an_arm_outlives_its_absence_and_its_price() {
    let router = InTurn::default();
    let (learnt, seen) = (Arc::clone(&router.learnt), Arc::clone(&router.shown));
    let dispatch = Dispatch::new(Parts {
        ledger: Arc::new(Ledger::open_in_memory().unwrap()),
        arms: vec![backend("a", 2.0), backend("b", 5.0)],
        router: Box::new(router),
        scorers: vec![Arc::new(TestScorer)],
        settings: DispatchSettings::default(),
        snapshot_dir: None,
        clock: Arc::new(StillClock(ManualClock::new())),
    })
    .unwrap();
    let rounds = async |n: u32| {
        for _ in 0..n {
            ask(&dispatch, request()).await.summary();
        }
    };
    rounds(6).await;
    let a = learnt.lock().unwrap()["a"];
    assert_eq!(a.0, 3);
    let first = shown(&seen, "a");
    // Four words at two dollars a million tokens.
    assert!((first.est_cost - 8e-6).abs() < 1e-15, "{}", first.est_cost);
    let epoch = |route| dispatch.route_record(route).unwrap().limits.arms_epoch;
    let before = epoch(llmpick_core::RouteId(1));

    dispatch
        .set_arms(vec![backend("b", 5.0), backend("c", 1.0)])
        .unwrap();
    rounds(4).await;
    assert_eq!(learnt.lock().unwrap()["a"], a, "nobody forgot it");
    assert_eq!(learnt.lock().unwrap()["c"].0, 2);
    assert_ne!(
        epoch(llmpick_core::RouteId(7)),
        before,
        "another set, another epoch"
    );

    // Back again, at ten times the price.
    dispatch
        .set_arms(vec![backend("a", 20.0), backend("b", 5.0)])
        .unwrap();
    rounds(1).await;
    let back = shown(&seen, "a");
    assert_eq!(
        (back.n_ok, back.n_err),
        (first.n_ok + 1, 0),
        "its calls are remembered"
    );
    assert_eq!(back.score.to_bits(), first.score.to_bits());
    assert!((back.est_cost - 8e-5).abs() < 1e-14, "{}", back.est_cost);
    assert_eq!(back.price_out, 20.0);
    assert_eq!(
        epoch(llmpick_core::RouteId(11)),
        before,
        "the same set, the same epoch"
    );
    rounds(1).await;
    let now = learnt.lock().unwrap()["a"];
    assert_eq!(now.0, a.0 + 1);
    assert!(
        (now.1 - a.1 - 8e-5).abs() < 1e-12,
        "it is paid at the new price"
    );
    let stats = dispatch.stats(&StatsFilter::default()).unwrap();
    let names: Vec<&str> = stats.iter().map(|s| s.arm.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}
