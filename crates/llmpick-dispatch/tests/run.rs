//! One request through every way it can go.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Habit, Setup, arm, ask, request};
use futures::StreamExt;
use llmpick_core::{
    BackendError, DecisionSource, Mode, NanoDollars, Outcome, OutcomeKind, Price, Score, Scorer,
    ScorerError, Usage,
};
use llmpick_dispatch::{DispatchError, Measured, RouteEvent, RouteRequest, StatsFilter, Target};
use llmpick_ledger::{Budget, RouteStatus, Window};
use llmpick_testkit::{Answer, FakeBackend};

fn says(name: &str, text: &str) -> FakeBackend {
    FakeBackend::new(name, Answer::text(text))
}

fn broken(name: &str) -> FakeBackend {
    let down = || BackendError::Load("it is broken".into());
    FakeBackend::new(name, Answer::refusal(down))
}

fn single(choice: u32) -> Habit {
    Habit::Plan(vec![choice], Mode::Single)
}

fn cascade(setup: &mut Setup, choices: &[u32]) {
    setup.settings.modes = vec![Mode::AnyWin];
    setup.habit = Habit::Plan(choices.to_vec(), Mode::AnyWin);
}

#[tokio::test]
async fn an_answer_is_streamed_paid_scored_recorded_and_learnt() {
    let setup = Setup::new(vec![says("a", "never"), says("b", "three four")], single(1));
    let (dispatch, state) = setup.start();
    let mut asked = request();
    asked.reference = Some("three four".into());
    let seen = ask(&dispatch, asked).await;
    assert_eq!(
        (seen.chosen.join(" "), seen.text.as_str()),
        ("b".into(), "three four")
    );
    let summary = seen.summary();
    assert_eq!(
        (summary.arm.as_str(), summary.text.as_str()),
        ("b", "three four")
    );
    assert_eq!(summary.usage.completion_tokens, 2);
    // 30 ms of device time at 0.36 dollars an hour.
    assert_eq!(summary.cost, NanoDollars(3_000));
    assert_eq!(summary.score, Score::new(1.0).ok());
    assert_eq!(
        (summary.accepted, summary.source),
        (None, DecisionSource::Router)
    );

    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(record.status, RouteStatus::Done);
    assert_eq!(
        record.prompt, None,
        "the text is not kept unless the settings say so"
    );
    assert_eq!(record.prompt_hash.len(), 64);
    assert_eq!(record.candidates.len(), 2);
    assert_eq!(record.calls.len(), 1);
    assert_eq!(record.calls[0].cost, NanoDollars(3_000));
    assert_eq!(record.calls[0].scorer.as_deref(), Some("same"));
    assert_eq!(record.feedback.len(), 1);
    dispatch.shutdown().await;
    assert_eq!(state.lock().unwrap().told, 1);

    // What was measured is told the next time.
    let planned = dispatch.route(request()).await.unwrap();
    let b = &planned.candidates[1];
    assert_eq!((b.n_ok, b.score), (1, 1.0));
    assert!(b.price_in > 0.0 && b.est_cost > 0.0 && b.cost_max > b.est_cost);
    assert!(planned.candidates[0].est_cost.is_nan(), "never measured");
    let record = dispatch.route_record(planned.route_id).unwrap();
    assert_eq!(
        (record.status, record.calls.len()),
        (RouteStatus::Planned, 0)
    );
}

#[tokio::test]
async fn another_arm_takes_over_before_the_first_content() {
    let setup = Setup::new(vec![broken("a"), says("b", "hello")], single(0));
    let (dispatch, _) = setup.start();
    let seen = ask(&dispatch, request()).await;
    assert_eq!(seen.chosen, ["a", "b"]);
    let summary = seen.summary();
    assert_eq!(summary.arm, arm("b"));
    let attempts: Vec<_> = summary.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(attempts, [OutcomeKind::Error, OutcomeKind::Ok]);
    assert_eq!(summary.attempts[0].cost, NanoDollars::ZERO);
    let error = summary.attempts[0].error.as_deref();
    assert_eq!(error, Some("load the model: it is broken"));
    let record = dispatch.route_record(summary.route_id).unwrap();
    let told: Vec<_> = record
        .feedback
        .iter()
        .map(|row| {
            (
                row.feedback.position,
                row.feedback.outcome,
                row.feedback.score.is_some(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [(0, OutcomeKind::Error, false), (1, OutcomeKind::Ok, true)]
    );
}

#[tokio::test]
async fn when_nobody_answers_the_reasons_are_named() {
    let setup = Setup::new(vec![broken("a"), broken("b")], single(0));
    let (dispatch, _) = setup.start();
    let mut stream = dispatch.run(request()).await.unwrap();
    let error = stream.committed().await.unwrap_err();
    let DispatchError::AllArmsFailed {
        route_id, failures, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(
        failures,
        "a: load the model: it is broken; b: load the model: it is broken"
    );
    let record = dispatch.route_record(route_id).unwrap();
    assert_eq!(
        (record.status, record.calls.len()),
        (RouteStatus::Failed, 2)
    );
}

#[tokio::test]
async fn an_answer_cut_after_its_first_content_is_an_error() {
    let lost = || BackendError::Transport("reset".into());
    let cut = FakeBackend::new("a", Answer::text("one two three").failing_after(2, lost));
    let setup = Setup::new(vec![cut, says("b", "hello")], single(0));
    let (dispatch, _) = setup.start();
    let seen = ask(&dispatch, request()).await;
    assert_eq!((seen.chosen.len(), seen.text.as_str()), (1, "one two"));
    let error = seen.error();
    let DispatchError::Cut { route_id, .. } = error else {
        panic!("{error:?}")
    };
    let record = dispatch.route_record(route_id).unwrap();
    assert_eq!(record.calls[0].outcome, Some(OutcomeKind::Error));
    assert_eq!(
        record.calls[0].usage.completion_tokens, 2,
        "what came is counted"
    );
    assert_eq!(record.feedback.len(), 1);
}

#[tokio::test]
async fn a_named_model_runs_alone_and_is_not_the_routers_choice() {
    let setup = Setup::new(vec![broken("a"), says("b", "hello")], single(0));
    let (dispatch, _) = setup.start();
    let pin = |name| RouteRequest {
        target: Target::Pinned(arm(name)),
        ..request()
    };
    let summary = ask(&dispatch, pin("b")).await.summary();
    assert_eq!(summary.source, DecisionSource::Pinned);
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert!(record.feedback[0].feedback.fallback);
    assert_eq!(record.target, "b");

    let error = ask(&dispatch, pin("a")).await.error();
    assert!(
        matches!(error, DispatchError::Arm { .. }),
        "nobody takes over: {error:?}"
    );
    let error = dispatch.run(pin("c")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no arm `c`; the pool holds `a`, `b`"
    );

    let outside = Arc::new(says("file.gguf", "from a file"));
    let request = RouteRequest {
        target: Target::Outside(outside),
        ..request()
    };
    assert_eq!(ask(&dispatch, request).await.text, "from a file");
    // Nothing here was the router's: its share is nobody's.
    let stats = dispatch.stats(&StatsFilter::default()).unwrap();
    assert!(stats.iter().all(|line| line.share == 0.0), "{stats:?}");
}

#[tokio::test]
async fn a_cascade_shows_only_the_accepted_answer() {
    let unsure = FakeBackend::new("a", Answer::text("well maybe").logprob(-2.0));
    let mut setup = Setup::new(
        vec![unsure, says("b", "surely"), says("c", "never")],
        single(0),
    );
    cascade(&mut setup, &[0, 1, 2]);
    let (dispatch, _) = setup.start();
    let seen = ask(&dispatch, request()).await;
    assert_eq!(
        (seen.chosen.join(" "), seen.text.as_str()),
        ("a b".into(), "surely")
    );
    let summary = seen.summary();
    assert_eq!((summary.arm.as_str(), summary.accepted), ("b", Some(true)));
    assert_eq!(
        summary.cost,
        NanoDollars(3_000 + 2_000),
        "both are paid for"
    );
    assert!(summary.attempts[0].score < summary.attempts[1].score);
    assert_eq!(setup.arms[2].calls().len(), 0);
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(
        record.feedback.len(),
        2,
        "an arm that did not run gives none"
    );
}

#[tokio::test]
async fn a_cascade_without_an_accepted_answer_shows_the_best_marked() {
    let unsure = |name, logprob| {
        FakeBackend::new(name, Answer::text(format!("from {name}")).logprob(logprob))
    };
    let arms = vec![unsure("a", -3.0), unsure("b", -1.0), unsure("c", -2.0)];
    let mut setup = Setup::new(arms, single(0));
    cascade(&mut setup, &[0, 1, 2]);
    let (dispatch, _) = setup.start();
    let seen = ask(&dispatch, request()).await;
    assert_eq!(seen.text, "from b");
    let summary = seen.summary();
    assert_eq!((summary.arm.as_str(), summary.accepted), ("b", Some(false)));
    // The user's own threshold.
    let easy = RouteRequest {
        min_score: Score::new(0.01).ok(),
        ..request()
    };
    let summary = ask(&dispatch, easy).await.summary();
    assert_eq!((summary.arm.as_str(), summary.accepted), ("a", Some(true)));
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_arm_and_pays_for_what_ran() {
    let slow = Answer::text("one two three").hanging_after(1);
    let remote = FakeBackend::new("a", slow).remote().price(Price::PerToken {
        input_usd: 1.0,
        output_usd: 2.0,
    });
    let mut setup = Setup::new(vec![remote], single(0));
    setup.settings.budgets = vec!["day".into()];
    let (dispatch, _) = setup.start();
    let mut stream = dispatch.run(request()).await.unwrap();
    let route = stream.route_id();
    loop {
        let event = stream.next().await.unwrap().unwrap();
        if matches!(event, RouteEvent::Token(_)) {
            break;
        }
    }
    assert!(dispatch.ledger().budget("day", 0).unwrap().reserved > NanoDollars::ZERO);
    drop(stream);
    dispatch.shutdown().await;
    assert_eq!(setup.arms[0].cancelled(), 1);
    let record = dispatch.route_record(route).unwrap();
    assert_eq!(record.status, RouteStatus::Cancelled);
    let call = &record.calls[0];
    assert_eq!(call.outcome, Some(OutcomeKind::Cancelled));
    assert_eq!(call.usage.completion_tokens, 1);
    assert!(call.cost > NanoDollars::ZERO);
    let budget = dispatch.ledger().budget("day", 0).unwrap();
    assert_eq!(
        (budget.spent, budget.reserved),
        (call.cost, NanoDollars::ZERO)
    );
    assert_eq!(record.feedback[0].feedback.outcome, OutcomeKind::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_cannot_pass_the_budget() {
    let remote = says("a", "four words of text")
        .remote()
        .price(Price::PerToken {
            input_usd: 100.0,
            output_usd: 1_000.0,
        });
    let mut setup = Setup::new(vec![remote], single(0));
    setup.settings.budgets = vec!["total".into()];
    let (dispatch, _) = setup.start();
    let limit = NanoDollars::from_usd(0.1).unwrap();
    let budget = Budget {
        key: "total".into(),
        window: Window::Forever,
        limit,
    };
    dispatch.ledger().set_budget(&budget).unwrap();
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let dispatch = dispatch.clone();
            tokio::spawn(async move {
                match dispatch.run(request()).await {
                    Ok(stream) => Some(common::read(stream).await.summary().cost),
                    Err(DispatchError::Budget { .. }) => None,
                    Err(other) => panic!("{other:?}"),
                }
            })
        })
        .collect();
    let mut spent = NanoDollars::ZERO;
    let mut refused = 0;
    for task in tasks {
        match task.await.unwrap() {
            Some(cost) => spent += cost,
            None => refused += 1,
        }
    }
    dispatch.shutdown().await;
    let state = dispatch.ledger().budget("total", 0).unwrap();
    assert_eq!((state.spent, state.reserved), (spent, NanoDollars::ZERO));
    assert!(
        spent <= limit && refused > 0 && refused < 40,
        "{spent} {refused}"
    );
}

#[tokio::test]
async fn arms_that_may_not_run_say_why() {
    let dear = Price::PerToken {
        input_usd: 1e4,
        output_usd: 1e4,
    };
    let setup = Setup::new(
        vec![
            says("down", "x"),
            says("small", "x").context_tokens(3),
            says("dear", "x").remote().price(dear),
        ],
        Habit::Wander,
    );
    setup.arms[0].set_unavailable(Some("it rests"));
    let (dispatch, _) = setup.start();
    let limited = RouteRequest {
        max_cost: Some(NanoDollars(1_000)),
        ..request()
    };
    // The rough estimate of the length is no reason to refuse: the largest counts for itself.
    let error = ask(&dispatch, limited.clone()).await.end;
    let record = dispatch.last_route().unwrap().unwrap();
    let reasons: Vec<_> = record.candidates.iter().map(|c| c.unfit.clone()).collect();
    assert_eq!(reasons[0].as_deref(), Some("it rests"));
    assert_eq!(reasons[1], None);
    let dear = reasons[2].as_deref().unwrap_or_default();
    assert!(dear.ends_with("and the request allows $1.000e-6"), "{dear}");
    let Some(Err(DispatchError::Arm {
        source: BackendError::ContextExceeded { .. },
        ..
    })) = error
    else {
        panic!("{error:?}")
    };
    assert!(
        record.feedback.is_empty(),
        "a small context is no failure to learn from"
    );

    setup.arms[1].set_unavailable(Some("it rests too"));
    let error = dispatch.run(limited).await.unwrap_err().to_string();
    assert!(error.contains("small: it rests too"), "{error}");
    let record = dispatch.last_route().unwrap().unwrap();
    assert_eq!(record.status, RouteStatus::Refused);
}

#[tokio::test]
async fn a_router_that_breaks_costs_no_answer() {
    for (habit, why) in [
        (Habit::Fault, "it is ill"),
        (Habit::Panic, "the router panicked"),
        (
            Habit::Plan(vec![7], Mode::Single),
            "the router chose arm number 7, which does not exist",
        ),
        (Habit::Plan(vec![], Mode::Single), "the router chose no arm"),
        (
            Habit::Plan(vec![0], Mode::SumUp),
            "the router chose the mode SumUp, which is not allowed",
        ),
    ] {
        let setup = Setup::new(vec![says("a", "hello"), says("b", "hello")], habit);
        let (dispatch, _) = setup.start();
        let summary = ask(&dispatch, request()).await.summary();
        assert_eq!(summary.source, DecisionSource::Fallback(why.into()));
        let record = dispatch.route_record(summary.route_id).unwrap();
        assert!(record.feedback[0].feedback.fallback);
    }
}

#[tokio::test]
async fn a_deadline_ends_what_hangs() {
    let hangs = FakeBackend::new("a", Answer::text("one").hanging_after(0));
    let setup = Setup::new(vec![hangs, says("b", "hello")], single(0));
    let (dispatch, _) = setup.start();
    let hurried = RouteRequest {
        max_latency: Some(Duration::from_millis(30)),
        ..request()
    };
    let error = ask(&dispatch, hurried).await.error();
    let timeout =
        matches!(error.backend(), Some(BackendError::Timeout(limit)) if limit.as_millis() == 30);
    assert!(timeout, "{error:?}");
    let record = dispatch.last_route().unwrap().unwrap();
    assert_eq!(record.calls[0].outcome, Some(OutcomeKind::Timeout));
    assert_eq!(setup.arms[0].cancelled(), 1);
}

/// Takes a second for each grade.
struct Slow;

impl Scorer for Slow {
    fn name(&self) -> &str {
        "slow"
    }

    fn score(&self, _: &Outcome) -> Result<Option<Score>, ScorerError> {
        std::thread::sleep(Duration::from_millis(300));
        Ok(Score::new(0.75).ok())
    }
}

#[tokio::test]
async fn a_slow_scorer_holds_nobody_up_and_is_learnt_later() {
    let mut setup = Setup::new(vec![says("a", "hello")], single(0));
    setup.scorers = vec![Arc::new(Slow)];
    setup.settings.score_wait = Duration::from_millis(1);
    let (dispatch, _) = setup.start();
    let summary = ask(&dispatch, request()).await.summary();
    assert_eq!(summary.score, None);
    dispatch.shutdown().await;
    let record = dispatch.route_record(summary.route_id).unwrap();
    let rows: Vec<_> = record
        .feedback
        .iter()
        .map(|row| (row.origin.as_str(), row.feedback.score.map(Score::get)))
        .collect();
    assert_eq!(rows, [("run", None), ("slow", Some(0.75))]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let setup = Setup::new(vec![says("a", "hello")], single(0));
    let (dispatch, _) = setup.start();
    let refused = async |request: RouteRequest| match dispatch.run(request).await {
        Err(DispatchError::InvalidRequest(why)) => why,
        other => panic!("{other:?}"),
    };
    let scorer = RouteRequest {
        scorer: Some("vibes".into()),
        ..request()
    };
    assert_eq!(
        refused(scorer).await,
        "there is no scorer `vibes`; there are same"
    );
    let mode = RouteRequest {
        mode: Some(Mode::AllIn),
        ..request()
    };
    assert!(
        refused(mode)
            .await
            .starts_with("the mode all_in needs a request with `parts`")
    );
    let rho = RouteRequest {
        cost_budget: Some(f64::NAN),
        ..request()
    };
    assert!(
        refused(rho)
            .await
            .starts_with("the cost budget is an amount")
    );
    let none = RouteRequest {
        max_arms: Some(0),
        ..request()
    };
    assert_eq!(refused(none).await, "max_arms is at least 1, not 0");
    assert_eq!(dispatch.ledger().count_routes().unwrap(), 0);

    let empty = Setup::new(vec![], single(0));
    let error = empty.start().0.run(request()).await.unwrap_err();
    assert!(matches!(error, DispatchError::NoArms));
}

#[tokio::test]
async fn work_of_the_caller_goes_the_same_way() {
    let mut setup = Setup::new(vec![says("a", "unused"), says("b", "unused")], single(0));
    cascade(&mut setup, &[0, 1]);
    let (dispatch, _) = setup.start();
    let measured = |score| Measured {
        text: "looked up".into(),
        usage: Usage {
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 1,
        },
        busy: Duration::from_secs(1),
        latency: Duration::from_secs(2),
        ttft: Some(Duration::from_millis(500)),
        score: Score::new(score).ok(),
        ..Measured::default()
    };
    let work = |id: llmpick_core::ArmId| async move {
        Ok(measured(if id.as_str() == "b" { 1.0 } else { 0.0 }))
    };
    let summary = dispatch.run_with(request(), work).await.unwrap();
    assert_eq!((summary.arm.as_str(), summary.accepted), ("b", Some(true)));
    assert_eq!(summary.latency, Duration::from_secs(4));
    assert_eq!(summary.ttft, Some(Duration::from_millis(2_500)));
    assert_eq!(summary.cost, NanoDollars(200_000));
    assert_eq!(
        dispatch
            .route_record(summary.route_id)
            .unwrap()
            .feedback
            .len(),
        2
    );
    assert!(setup.arms.iter().all(|arm| arm.calls().is_empty()));

    // A caller that loses interest leaves nothing open.
    let forever = dispatch.run_with(request(), |_| std::future::pending());
    assert!(
        tokio::time::timeout(Duration::from_millis(20), forever)
            .await
            .is_err()
    );
    dispatch.shutdown().await;
    let record = dispatch.last_route().unwrap().unwrap();
    assert_eq!(record.status, RouteStatus::Cancelled);
}
