//! Requests with parts: dealt over the arms, run at the same time, reported one by one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Habit, Setup, arm, request};
use futures::StreamExt;
use llmpick_core::{
    Backend, BackendError, Message, Mode, NanoDollars, OutcomeKind, Price, Prompt, Score,
};
use llmpick_dispatch::{
    Dispatch, DispatchError, Part, RouteRequest, Target, TaskEvent, TaskSummary,
};
use llmpick_ledger::{Budget, RouteStatus, Window};
use llmpick_testkit::{Answer, FakeBackend};

/// Answers each part with its last word.
fn echo(name: &str) -> FakeBackend {
    FakeBackend::replying(name, |request| {
        let text = request.prompt.text();
        Answer::text(text.split_whitespace().last().unwrap_or_default())
    })
}

fn broken(name: &str) -> FakeBackend {
    let down = || BackendError::Load("it is broken".into());
    FakeBackend::new(name, Answer::refusal(down))
}

/// A part that is right when it says `right`.
fn part(name: &str, right: &str) -> Part {
    Part {
        name: name.into(),
        messages: vec![Message::user(format!("say {name}"))],
        reference: Some(right.into()),
        scorer: None,
    }
}

/// Parts `p0`, `p1`, … that an echo gets right.
fn task(mode: Mode, count: usize) -> RouteRequest {
    let mut request = request();
    request.generate.prompt = Prompt::Chat(vec![Message::system("Be brief.")]);
    request.mode = Some(mode);
    request.parts = (0..count)
        .map(|i| part(&format!("p{i}"), &format!("p{i}")))
        .collect();
    request
}

fn over(mode: Mode, arms: Vec<FakeBackend>) -> Setup {
    let choices = (0..arms.len() as u32).collect();
    Setup::new(arms, Habit::Plan(choices, mode))
}

async fn run(dispatch: &Arc<Dispatch>, request: RouteRequest) -> TaskSummary {
    let mut stream = dispatch.task(request).await.unwrap();
    let mut ended = 0;
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            TaskEvent::Started { .. } => {}
            TaskEvent::Ended(_) => ended += 1,
            TaskEvent::Finished(summary) => {
                assert_eq!(ended, summary.parts.len(), "every part is told");
                assert!(stream.next().await.is_none(), "nothing comes after the end");
                return summary;
            }
        }
    }
    panic!("the end did not come")
}

#[tokio::test]
async fn parts_go_round_the_plan_and_add_up() {
    let setup = over(Mode::SumUp, vec![echo("a"), echo("b")]);
    let (dispatch, state) = setup.start();
    let mut asked = task(Mode::SumUp, 5);
    asked.parts[1].reference = Some("something else".into());
    let summary = run(&dispatch, asked).await;
    let who: Vec<_> = summary
        .parts
        .iter()
        .map(|p| {
            (
                p.name.as_str(),
                p.arm.clone().unwrap(),
                p.score.map(Score::get),
            )
        })
        .collect();
    assert_eq!(
        who,
        [
            ("p0", arm("a"), Some(1.0)),
            ("p1", arm("b"), Some(0.0)),
            ("p2", arm("a"), Some(1.0)),
            ("p3", arm("b"), Some(1.0)),
            ("p4", arm("a"), Some(1.0)),
        ]
    );
    assert!(summary.success, "{:?}", summary.failure);
    assert_eq!((summary.score_sum, summary.mode), (Some(4.0), Mode::SumUp));
    assert_eq!(summary.arms, [arm("a"), arm("b")]);
    // 20 ms of device time at 0.36 dollars an hour, five times.
    assert_eq!(summary.cost, NanoDollars(10_000));
    let seen = setup.arms[0].calls()[0].prompt.clone();
    let Prompt::Chat(messages) = seen else {
        panic!()
    };
    assert_eq!(messages[0], Message::system("Be brief."));

    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!((record.status, record.answered), (RouteStatus::Done, None));
    assert_eq!((record.parts.len(), record.calls.len()), (5, 5));
    assert!(!record.parts[1].accepted.unwrap() && record.parts[4].accepted.unwrap());
    let told: Vec<_> = record
        .feedback
        .iter()
        .map(|row| {
            let f = &row.feedback;
            (f.arm.as_str(), f.position, f.cost, f.score.map(Score::get))
        })
        .collect();
    assert_eq!(
        told,
        [("a", 0, 6e-6, Some(1.0)), ("b", 1, 4e-6, Some(0.5))],
        "one feedback for each arm: its cost summed, its scores averaged"
    );
    dispatch.shutdown().await;
    assert_eq!(state.lock().unwrap().told, 2);
}

#[tokio::test]
async fn arms_work_at_the_same_time_and_a_local_one_queues() {
    let hangs = |name: &str| FakeBackend::new(name, Answer::text("one").hanging_after(0));
    // All four parts are begun before any has ended, but for those that wait for a local arm.
    for (arms, begun) in [
        (vec![hangs("a"), hangs("b")], 2),
        (vec![hangs("c").remote()], 4),
    ] {
        let setup = over(Mode::SumUp, arms);
        let (dispatch, _) = setup.start();
        let mut asked = task(Mode::SumUp, 4);
        asked.max_latency = Some(Duration::from_millis(300));
        let summary = run(&dispatch, asked).await;
        assert!(!summary.success);
        let tries: usize = summary.parts.iter().map(|p| p.attempts.len()).sum();
        assert_eq!(tries, begun);
        assert!(summary.parts[3].error.is_some());
        let outcomes = summary.parts.iter().flat_map(|p| &p.attempts);
        assert!(
            outcomes
                .into_iter()
                .all(|a| a.outcome == OutcomeKind::Timeout)
        );
    }
}

#[tokio::test]
async fn a_part_that_fails_is_taken_over_once_or_reported() {
    let setup = over(Mode::SumUp, vec![broken("a"), echo("b")]);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::SumUp, 4)).await;
    assert!(summary.success);
    let arms = summary.parts.iter().map(|p| p.arm.clone().unwrap());
    assert!(arms.into_iter().all(|a| a == arm("b")));
    let tries: Vec<_> = summary.parts[0]
        .attempts
        .iter()
        .map(|a| a.outcome)
        .collect();
    assert_eq!(tries, [OutcomeKind::Error, OutcomeKind::Ok]);
    let record = dispatch.route_record(summary.route_id).unwrap();
    let positions: std::collections::BTreeSet<u32> =
        record.calls.iter().map(|call| call.position).collect();
    assert_eq!(
        positions.len(),
        6,
        "four parts and two that were taken over"
    );
    let told: Vec<_> = record
        .feedback
        .iter()
        .map(|row| {
            (
                row.feedback.arm.as_str(),
                row.feedback.position,
                row.feedback.outcome,
            )
        })
        .collect();
    assert_eq!(
        told,
        [("a", 0, OutcomeKind::Error), ("b", 1, OutcomeKind::Ok)]
    );

    // Two broken arms of three: what there is, is the result.
    let setup = over(Mode::SumUp, vec![broken("a"), broken("b"), echo("c")]);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::SumUp, 3)).await;
    assert!(summary.success, "what there is, is the result");
    let failed: Vec<_> = summary
        .parts
        .iter()
        .map(|p| {
            p.error
                .as_deref()
                .map(|e| e.matches("it is broken").count())
        })
        .collect();
    assert_eq!(failed, [Some(2), None, None], "{summary:?}");
}

#[tokio::test]
async fn an_arm_outside_the_plan_stands_behind_it() {
    let mut setup = over(Mode::SumUp, vec![broken("a"), echo("b")]);
    setup.habit = Habit::Plan(vec![0], Mode::SumUp);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::SumUp, 2)).await;
    assert_eq!(summary.arms, [arm("a")]);
    let record = dispatch.route_record(summary.route_id).unwrap();
    let told: Vec<_> = record
        .feedback
        .iter()
        .map(|row| (row.feedback.arm.as_str(), row.feedback.position))
        .collect();
    assert_eq!(told, [("a", 0), ("b", 1)]);
}

#[tokio::test]
async fn when_no_part_is_answered_the_request_fails() {
    let setup = over(Mode::SumUp, vec![broken("a"), broken("b")]);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::SumUp, 2)).await;
    assert!(!summary.success);
    let why = summary.failure.unwrap();
    assert!(
        why.starts_with("part `p0` failed: a: load the model: it is broken; b:"),
        "{why}"
    );
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(record.status, RouteStatus::Failed);
}

#[tokio::test]
async fn all_in_names_the_part_that_failed() {
    let setup = over(Mode::AllIn, vec![echo("a"), echo("b")]);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::AllIn, 3)).await;
    assert!(summary.success && summary.failure.is_none());
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(
        (record.status, record.accepted),
        (RouteStatus::Done, Some(true))
    );

    let mut asked = task(Mode::AllIn, 3);
    asked.parts[1].reference = Some("something else".into());
    asked.min_score = Score::new(0.9).ok();
    let summary = run(&dispatch, asked).await;
    assert!(!summary.success);
    assert_eq!(
        summary.failure.as_deref(),
        Some("part `p1` scored 0.000, and 0.900 was asked for")
    );
    assert_eq!(summary.parts[2].text, "p2", "what succeeded is delivered");
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(
        (record.status, record.accepted),
        (RouteStatus::Failed, Some(false))
    );
    assert_eq!(record.feedback.len(), 2, "arms that worked are heard of");

    // An arm that fails, with nobody to take over.
    let setup = over(Mode::AllIn, vec![broken("a")]);
    let (dispatch, _) = setup.start();
    let summary = run(&dispatch, task(Mode::AllIn, 1)).await;
    assert_eq!(
        summary.failure.as_deref(),
        Some("part `p0` failed: a: load the model: it is broken")
    );
}

fn dear(name: &str) -> FakeBackend {
    echo(name).remote().price(Price::PerToken {
        input_usd: 100.0,
        output_usd: 1_000.0,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_of_tasks_cannot_pass_the_budget() {
    let mut setup = over(Mode::SumUp, vec![dear("a"), dear("b")]);
    setup.settings.budgets = vec!["total".into()];
    let (dispatch, _) = setup.start();
    let limit = NanoDollars::from_usd(0.4).unwrap();
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
                match dispatch.task(task(Mode::SumUp, 3)).await {
                    Ok(mut stream) => {
                        while let Some(event) = stream.next().await {
                            let state = dispatch.ledger().budget("total", 0).unwrap();
                            assert!(state.spent + state.reserved <= limit);
                            if let TaskEvent::Finished(summary) = event.unwrap() {
                                return Some(summary.cost);
                            }
                        }
                        panic!("no end")
                    }
                    Err(DispatchError::Budget { .. }) => None,
                    // The last part of the budget does not hold even one share.
                    Err(DispatchError::NoEligibleArm { .. }) => None,
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
async fn the_requests_own_limit_shortens_the_plan_or_refuses() {
    let cheap = echo("b").remote().price(Price::PerToken {
        input_usd: 1.0,
        output_usd: 1.0,
    });
    let mut setup = over(Mode::SumUp, vec![cheap, dear("a")]);
    setup.settings.max_attempts = 1;
    let (dispatch, _) = setup.start();
    let mut asked = task(Mode::SumUp, 4);
    // One part fits on `a`, two do not.
    asked.max_cost = NanoDollars::from_usd(0.03).ok();
    let summary = run(&dispatch, asked.clone()).await;
    assert_eq!(summary.arms, [arm("b")], "fewer arms get more parts each");
    asked.max_cost = Some(NanoDollars(200_000));
    let error = dispatch.task(asked).await.unwrap_err();
    let DispatchError::Budget { key, needed, left } = error else {
        panic!("{error:?}")
    };
    assert_eq!((key.as_str(), left), ("max_cost", NanoDollars(200_000)));
    assert!(needed > left);
    let record = dispatch.last_route().unwrap().unwrap();
    assert_eq!(record.status, RouteStatus::Refused);
}

#[tokio::test]
async fn a_client_that_goes_away_stops_every_part() {
    let hangs = |name: &str| {
        FakeBackend::new(name, Answer::text("one two three").hanging_after(1))
            .remote()
            .price(Price::PerToken {
                input_usd: 1.0,
                output_usd: 2.0,
            })
    };
    let mut setup = over(Mode::AllIn, vec![hangs("a"), echo("b"), hangs("c")]);
    setup.settings.budgets = vec!["total".into()];
    let (dispatch, _) = setup.start();
    let mut stream = dispatch.task(task(Mode::AllIn, 3)).await.unwrap();
    let route = stream.route_id();
    let (mut started, mut ended) = (0, 0);
    while started < 3 || ended < 1 {
        match stream.next().await.unwrap().unwrap() {
            TaskEvent::Started { .. } => started += 1,
            TaskEvent::Ended(part) => {
                assert_eq!(part.name, "p1");
                ended += 1;
            }
            TaskEvent::Finished(_) => panic!("two parts hang"),
        }
    }
    while setup
        .arms
        .iter()
        .step_by(2)
        .any(|arm| arm.state().inflight == 0)
    {
        tokio::task::yield_now().await;
    }
    drop(stream);
    dispatch.shutdown().await;
    assert_eq!(
        (setup.arms[0].cancelled(), setup.arms[2].cancelled()),
        (1, 1)
    );
    let record = dispatch.route_record(route).unwrap();
    assert_eq!(record.status, RouteStatus::Cancelled);
    let outcomes: Vec<_> = record
        .calls
        .iter()
        .map(|call| call.outcome.unwrap())
        .collect();
    assert_eq!(
        outcomes,
        [
            OutcomeKind::Cancelled,
            OutcomeKind::Ok,
            OutcomeKind::Cancelled
        ]
    );
    let spent: NanoDollars = record.calls.iter().map(|call| call.cost).sum();
    assert!(
        record.calls[0].cost > NanoDollars::ZERO,
        "it had read the prompt"
    );
    let budget = dispatch.ledger().budget("total", 0).unwrap();
    assert_eq!((budget.spent, budget.reserved), (spent, NanoDollars::ZERO));
    assert_eq!(record.parts[1].accepted, Some(true));
    assert_eq!(record.feedback.len(), 3);
}

#[tokio::test]
async fn a_deadline_ends_the_parts_that_hang() {
    let hangs = FakeBackend::new("a", Answer::text("one").hanging_after(0));
    let setup = over(Mode::SumUp, vec![hangs, echo("b")]);
    let (dispatch, _) = setup.start();
    let mut asked = task(Mode::SumUp, 4);
    asked.max_latency = Some(Duration::from_millis(500));
    let summary = run(&dispatch, asked).await;
    assert!(summary.success);
    let errors: Vec<_> = summary.parts.iter().map(|p| p.error.is_some()).collect();
    assert_eq!(errors, [true, false, true, false]);
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(record.calls.len(), 3, "the fourth part never got its arm");
    assert_eq!(record.calls[0].outcome, Some(OutcomeKind::Timeout));
}

#[tokio::test]
async fn a_named_model_gets_all_parts() {
    let setup = over(Mode::SumUp, vec![echo("a"), echo("b")]);
    let (dispatch, _) = setup.start();
    let mut asked = task(Mode::SumUp, 3);
    asked.target = Target::Pinned(arm("b"));
    let summary = run(&dispatch, asked).await;
    assert_eq!(summary.arms, [arm("b")]);
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(record.feedback.len(), 1);
    assert!(record.feedback[0].feedback.fallback);
}

#[tokio::test]
async fn parts_that_make_no_sense_are_refused() {
    let setup = over(Mode::SumUp, vec![echo("a")]);
    let (dispatch, _) = setup.start();
    let refused = async |change: &dyn Fn(&mut RouteRequest)| {
        let mut request = task(Mode::SumUp, 2);
        change(&mut request);
        match dispatch.task(request).await {
            Err(DispatchError::InvalidRequest(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    type Change<'a> = &'a dyn Fn(&mut RouteRequest);
    let cases: [(Change<'_>, &str); 7] = [
        (&|r| r.parts.clear(), "there are no parts to deal over arms"),
        (
            &|r| r.parts[1].name = "p0".into(),
            "two parts are named `p0`",
        ),
        (&|r| r.parts[1].name = String::new(), "part 2 has no name"),
        (
            &|r| r.parts[0].messages.clear(),
            "the part `p0` asks nothing",
        ),
        (
            &|r| r.mode = Some(Mode::AnyWin),
            "a request with `parts` runs as sum_up or all_in",
        ),
        (
            &|r| r.parts[0].scorer = Some("vibes".into()),
            "there is no scorer `vibes`; there are same",
        ),
        (
            &|r| r.generate.prompt = Prompt::Text("raw".into()),
            "parts are conversations, and go with no plain text before them",
        ),
    ];
    for (change, why) in cases {
        assert_eq!(refused(change).await, why);
    }
    let error = dispatch.run(task(Mode::SumUp, 2)).await.unwrap_err();
    assert!(matches!(error, DispatchError::InvalidRequest(_)), "{error}");
    assert_eq!(dispatch.ledger().count_routes().unwrap(), 0);
}
