//! A router knows what the ledger knows, whatever happened in between.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use camino::Utf8PathBuf;
use common::{Habit, Setup, State, Tester, ask, request};
use llmpick_core::{BackendError, Mode, RouteId, Score};
use llmpick_dispatch::{ContextFrom, DispatchError, MOST_FEATURES, RouteRequest};
use llmpick_ledger::{Ledger, RouteFilter, RouteStatus};
use llmpick_testkit::{Answer, FakeBackend};

fn arms() -> Vec<FakeBackend> {
    let down = || BackendError::Transport("down".into());
    vec![
        FakeBackend::new("a", Answer::text("one")).then(Answer::refusal(down)),
        FakeBackend::new("b", Answer::text("one two").logprob(-0.7)),
        FakeBackend::new("c", Answer::text("one two three").logprob(-1.5)),
    ]
}

fn on_disk(dir: &Path) -> Setup {
    let path = Utf8PathBuf::from_path_buf(dir.join("ledger.db")).unwrap();
    let mut setup = Setup::new(arms(), Habit::Wander);
    setup.ledger = Arc::new(Ledger::open(&path).unwrap());
    setup.snapshot_dir = Some(dir.join("routers"));
    setup.settings.snapshot_every = 5;
    setup
}

/// What a fresh router makes of the whole ledger.
fn replayed(ledger: &Ledger) -> State {
    let (mut router, state) = Tester::boxed(Habit::Wander);
    for row in ledger.feedback_after(0, u32::MAX).unwrap() {
        router.feedback(&row.for_router("tester")).unwrap();
    }
    *state.clone().lock().unwrap()
}

#[tokio::test]
async fn replaying_the_ledger_rebuilds_the_router_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let setup = on_disk(dir.path());
    let (dispatch, state) = setup.start();
    let mut chosen = Vec::new();
    for n in 0..23 {
        let summary = ask(&dispatch, request()).await.summary();
        chosen.push(summary.arm.clone());
        if n % 4 == 0 {
            let score = Score::new(0.1 * f64::from(n % 10)).unwrap();
            dispatch
                .feedback(summary.route_id, score, "user")
                .await
                .unwrap();
        }
    }
    dispatch.shutdown().await;
    let lived = *state.lock().unwrap();
    assert!(lived.told >= 23 + 6, "{lived:?}");
    assert_eq!(lived, replayed(&setup.ledger));
    chosen.dedup();
    assert!(chosen.len() > 3, "the router does wander: {chosen:?}");

    // From the snapshot, without a row to replay; then without the snapshot.
    let snapshot = dir.path().join("routers");
    assert!(snapshot.is_dir());
    let (_again, state) = setup.start();
    assert_eq!(*state.lock().unwrap(), lived);
    std::fs::remove_dir_all(snapshot).unwrap();
    let (_again, state) = setup.start();
    assert_eq!(*state.lock().unwrap(), lived);
}

#[tokio::test]
async fn one_seed_gives_one_run() {
    let run = async |base_seed| {
        let mut setup = Setup::new(arms(), Habit::Wander);
        setup.settings.base_seed = Some(base_seed);
        let (dispatch, _) = setup.start();
        let mut arms = Vec::new();
        for _ in 0..20 {
            arms.push(ask(&dispatch, request()).await.summary().arm);
        }
        arms
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

#[tokio::test]
async fn a_decision_replays_from_its_record() {
    let setup = Setup::new(arms(), Habit::Wander);
    let (dispatch, _) = setup.start();
    for _ in 0..8 {
        ask(&dispatch, request()).await.summary();
    }
    let (mut router, _) = Tester::boxed(Habit::Wander);
    let rows = setup.ledger.feedback_after(0, u32::MAX).unwrap();
    for id in 1..=8 {
        let record = dispatch.route_record(RouteId(id)).unwrap();
        let candidates: Vec<_> = record
            .candidates
            .iter()
            .map(|c| c.candidate.clone())
            .collect();
        let limits = &record.limits;
        let decision = router
            .select(&llmpick_core::SelectRequest {
                route_id: record.id,
                seed: record.seed,
                arms_epoch: limits.arms_epoch,
                time_budget: std::time::Duration::ZERO,
                candidates: &candidates,
                allowed_modes: &limits.allowed_modes,
                task: &record.context.0,
                session: &record.session,
                prompt: None,
                features: None,
                prompt_tokens: limits.prompt_tokens,
                max_new_tokens: limits.max_new_tokens,
                max_cost: limits.max_cost,
                max_latency_ms: limits.max_latency_ms,
                min_score: limits.min_score,
                cost_budget: limits.cost_budget,
                max_arms: limits.max_arms,
            })
            .unwrap();
        assert_eq!(
            Some(&decision.choices),
            record.decision.as_ref().map(|d| &d.choices)
        );
        for row in rows.iter().filter(|row| row.feedback.route_id == record.id) {
            router.feedback(&row.for_router("tester")).unwrap();
        }
    }
}

#[tokio::test]
async fn two_programs_on_one_ledger_learn_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (on_disk(dir.path()), on_disk(dir.path()));
    let ((first, state), (second, other)) = (one.start(), two.start());
    for _ in 0..6 {
        ask(&first, request()).await.summary();
        ask(&second, request()).await.summary();
    }
    first.shutdown().await;
    second.shutdown().await;
    assert_eq!(*state.lock().unwrap(), *other.lock().unwrap());
    assert!(state.lock().unwrap().told >= 12);
}

#[tokio::test]
async fn frozen_routes_teach_nothing() {
    let setup = Setup::new(arms(), Habit::Wander);
    let (dispatch, state) = setup.start();
    let frozen = RouteRequest {
        learn: false,
        ..request()
    };
    let summary = ask(&dispatch, frozen).await.summary();
    dispatch
        .feedback(summary.route_id, Score::new(1.0).unwrap(), "user")
        .await
        .unwrap();
    dispatch.shutdown().await;
    assert_eq!(state.lock().unwrap().told, 0);
    let record = dispatch.route_record(summary.route_id).unwrap();
    assert_eq!(
        record.calls.last().unwrap().user_score,
        Score::new(1.0).ok()
    );
}

#[tokio::test]
async fn feedback_needs_an_answer_to_be_about() {
    let setup = Setup::new(arms(), Habit::Wander);
    let (dispatch, _) = setup.start();
    let good = Score::new(1.0).unwrap();
    let error = dispatch
        .feedback(RouteId(5), good, "user")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the ledger has no route r5");
    let planned = dispatch.route(request()).await.unwrap().route_id;
    let error = dispatch.feedback(planned, good, "user").await.unwrap_err();
    assert!(
        matches!(error, DispatchError::NothingToScore(_)),
        "{error:?}"
    );
    let error = dispatch.feedback(planned, good, "run").await.unwrap_err();
    assert!(
        matches!(error, DispatchError::InvalidRequest(_)),
        "{error:?}"
    );
}

/// In the child: answer on and on, and say which routes were answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn child_that_answers_until_killed() {
    let Ok(dir) = std::env::var("LLMPICK_TEST_DIR") else {
        return;
    };
    let (dispatch, _) = on_disk(Path::new(&dir)).start();
    let client = |dispatch: Arc<llmpick_dispatch::Dispatch>| async move {
        // A test that lost its parent ends by itself.
        for _ in 0..10_000 {
            let summary = ask(&dispatch, request()).await.summary();
            println!("answered {}", summary.route_id);
        }
    };
    let clients = (0..3).map(|_| tokio::spawn(client(dispatch.clone())));
    let _: Vec<Result<(), _>> = futures::future::join_all(clients).await;
}

#[tokio::test]
async fn a_kill_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Killed, restarted on what is left, and killed again.
    for answers in [1, 40, 17] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_answers_until_killed", "--nocapture"])
            .env("LLMPICK_TEST_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answered: Vec<RouteId> = Vec::new();
        let read = |line: String| {
            line.split("answered ")
                .nth(1)
                .map(|id| id.parse::<RouteId>().unwrap())
        };
        while answered.len() < answers {
            answered.extend(read(lines.next().unwrap().unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        answered.extend(rest.into_iter().filter_map(read));

        let setup = on_disk(dir.path());
        let (dispatch, state) = setup.start();
        assert_eq!(*state.lock().unwrap(), replayed(&setup.ledger));
        for id in answered {
            let record = dispatch.route_record(id).unwrap();
            assert_eq!(record.status, RouteStatus::Done, "{id}");
            let calls = record.calls.len();
            assert!(
                calls >= 1 && record.feedback.len() == calls,
                "{id}: {record:?}"
            );
        }
        let all = RouteFilter {
            limit: u32::MAX,
            ..RouteFilter::default()
        };
        for route in setup.ledger.routes(&all).unwrap() {
            let open = matches!(route.status, RouteStatus::Deciding | RouteStatus::Running);
            assert!(!open, "{} was left open", route.id);
        }
    }
}

#[tokio::test]
async fn features_are_recorded_and_shown_to_routers_that_need_them() {
    let with = |features: &[f32]| RouteRequest {
        features: features.to_vec(),
        ..request()
    };
    for (habit, chosen) in [
        (Habit::Features, "b"),
        (Habit::Plan(vec![0], Mode::Single), "a"),
    ] {
        let needs = matches!(habit, Habit::Features);
        let arms = ["a", "b"].map(|name| FakeBackend::new(name, Answer::text("yes")));
        let setup = Setup::new(arms.into(), habit);
        let (dispatch, state) = setup.start();
        let seen = ask(&dispatch, with(&[1.0, 0.3, -7.5e-3])).await;
        assert_eq!(seen.chosen, [chosen]);
        let route = seen.summary().route_id;
        let record = dispatch.route_record(route).unwrap();
        assert_eq!(record.limits.features, [1.0, 0.3, -7.5e-3]);
        // What a router that needs them is told comes from the ledger, bit for bit.
        let (mut router, told) = Tester::boxed(Habit::Wander);
        for row in setup.ledger.feedback_after(0, 10).unwrap() {
            let mut feedback = row.for_router("tester");
            assert_eq!(feedback.features, [1.0, 0.3, -7.5e-3]);
            if !needs {
                feedback.features.clear();
            }
            router.feedback(&feedback).unwrap();
        }
        assert_eq!(*state.lock().unwrap(), *told.lock().unwrap());
        for bad in [
            &[f32::NAN][..],
            &[f32::INFINITY],
            &vec![0.0; MOST_FEATURES + 1],
        ] {
            let error = dispatch.run(with(bad)).await.unwrap_err();
            assert!(matches!(error, DispatchError::InvalidRequest(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn the_context_is_the_tag_or_the_session_as_the_settings_say() {
    let asked = |tag: &str, session: &str| RouteRequest {
        context: llmpick_core::ContextKey(tag.into()),
        session: session.into(),
        ..request()
    };
    for (from, want) in [
        (ContextFrom::Task, ["maths", "maths"]),
        (ContextFrom::Session, ["alice", "maths"]),
    ] {
        let arms = vec![FakeBackend::new("a", Answer::text("yes"))];
        let mut setup = Setup::new(arms, Habit::Plan(vec![0], Mode::Single));
        setup.settings.context = from;
        let (dispatch, _) = setup.start();
        for (session, want) in ["alice", ""].iter().zip(want) {
            let route = ask(&dispatch, asked("maths", session))
                .await
                .summary()
                .route_id;
            let record = dispatch.route_record(route).unwrap();
            assert_eq!(record.context.0, want, "{from:?}");
            assert_eq!(record.feedback[0].feedback.task, want, "{from:?}");
            assert_eq!(record.session, *session);
        }
    }
}
