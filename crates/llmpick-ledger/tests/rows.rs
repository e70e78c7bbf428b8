//! What is written is what is read.
#![allow(clippy::unwrap_used)]

mod common;

use common::{answered, arm, candidate, decision, ended, new_route, with_parts};
use llmpick_core::{ContextKey, NanoDollars, OutcomeKind, RouteId, Score};
use llmpick_ledger::{
    Cursor, LateScore, Ledger, RouteEnd, RouteFilter, RouteStatus, ScoredCall, StatsFilter,
};

fn late(route: RouteId, score: f64, origin: &str) -> LateScore {
    LateScore {
        route,
        call: None,
        score: Score::new(score).unwrap(),
        origin: origin.into(),
        at_ms: 9_000,
    }
}

#[test]
fn a_route_reads_back_bit_for_bit() {
    let ledger = Ledger::open_in_memory().unwrap();
    let new = new_route("maths");
    let (route, seed) = ledger.begin_route(&new).unwrap();
    let candidates = [candidate("a"), candidate("b")];
    let decision = decision(&[1, 0], 2);
    ledger
        .record_decision(route, &candidates, Some(&decision))
        .unwrap();
    let record = ledger.route(route).unwrap().unwrap();
    // NaN is not equal to itself; its text is.
    assert_eq!(
        format!("{:?}", record.candidates),
        format!("{candidates:?}")
    );
    assert_eq!(format!("{:?}", record.limits), format!("{:?}", new.limits));
    assert_eq!(record.decision, Some(decision));
    assert_eq!(record.seed, seed);
    assert_eq!(record.status, RouteStatus::Running);
    assert_eq!(
        record.candidates[0].candidate.price_in.to_bits(),
        (0.1_f64 + 0.2).to_bits()
    );
    assert!(ledger.route(RouteId(99)).unwrap().is_none());
    assert_eq!(ledger.last_route().unwrap().unwrap().id, route);
}

#[test]
fn seeds_come_from_base_and_number() {
    let seeds = |base_seed| {
        let ledger = Ledger::open_in_memory().unwrap();
        let new = common::new_route("");
        let new = llmpick_ledger::NewRoute { base_seed, ..new };
        [
            ledger.begin_route(&new).unwrap().1,
            ledger.begin_route(&new).unwrap().1,
        ]
    };
    assert_eq!(seeds(7), seeds(7));
    assert_ne!(seeds(7), seeds(8));
    assert_ne!(seeds(7)[0], seeds(7)[1]);
}

#[test]
fn every_arm_that_ran_gives_one_feedback_and_late_scores_follow() {
    let ledger = Ledger::open_in_memory().unwrap();
    let (route, _) = ledger.begin_route(&new_route("maths")).unwrap();
    ledger
        .record_decision(
            route,
            &[candidate("a"), candidate("b"), candidate("c")],
            Some(&decision(&[0, 1], 3)),
        )
        .unwrap();
    let start = |position, name| {
        ledger
            .start_call(route, position, &arm(name), NanoDollars(9), 1_001)
            .unwrap()
    };
    let first = start(0, "a");
    ledger
        .end_call(first, &ended(OutcomeKind::Error, 1))
        .unwrap();
    let second = start(1, "b");
    ledger.end_call(second, &ended(OutcomeKind::Ok, 4)).unwrap();
    ledger
        .finish_route(&RouteEnd {
            route,
            at_ms: 1_300,
            status: RouteStatus::Done,
            answered: Some(second),
            accepted: None,
            scores: vec![ScoredCall {
                call: second,
                score: Score::new(0.5).unwrap(),
                scorer: "exact".into(),
            }],
        })
        .unwrap();
    assert!(ledger.late_score(&late(route, 1.0, "user")).unwrap());

    let rows = ledger.feedback_after(0, 10).unwrap();
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            let f = &row.feedback;
            (
                row.cursor.id,
                row.origin.as_str(),
                f.arm.as_str(),
                f.position,
                f.outcome,
                f.score,
            )
        })
        .collect();
    let score = |s| Some(Score::new(s).unwrap());
    assert_eq!(
        told,
        [
            (1, "run", "a", 0, OutcomeKind::Error, None),
            (2, "run", "b", 1, OutcomeKind::Ok, score(0.5)),
            (3, "user", "b", 1, OutcomeKind::Ok, score(1.0)),
        ]
    );
    assert_eq!(rows[1].feedback.cost, 4e-9);
    assert_eq!(rows[1].feedback.task, "maths");
    assert!(rows[2].feedback.cost.is_nan() && rows[2].feedback.latency_ms.is_nan());
    assert!(!rows[1].for_router("tester").fallback);
    assert!(
        rows[1].for_router("another").fallback,
        "to another router it is not its own"
    );
    assert_eq!(ledger.feedback_after(2, 10).unwrap().len(), 1);

    let record = ledger.route(route).unwrap().unwrap();
    assert_eq!(record.calls[1].score, score(0.5));
    assert_eq!(record.calls[1].user_score, score(1.0));
    assert_eq!(record.feedback.len(), 3);
    assert!(!ledger.late_score(&late(RouteId(99), 1.0, "user")).unwrap());
    assert!(
        ledger.end_call(second, &ended(OutcomeKind::Ok, 4)).is_err(),
        "a call ends once"
    );
}

#[test]
fn a_frozen_route_is_recorded_and_not_learnt() {
    let ledger = Ledger::open_in_memory().unwrap();
    let new = llmpick_ledger::NewRoute {
        learn: false,
        ..new_route("")
    };
    let (route, _) = ledger.begin_route(&new).unwrap();
    ledger
        .record_decision(route, &[candidate("a")], Some(&decision(&[0], 1)))
        .unwrap();
    let call = ledger
        .start_call(route, 0, &arm("a"), NanoDollars(9), 1)
        .unwrap();
    ledger.end_call(call, &ended(OutcomeKind::Ok, 4)).unwrap();
    let end = RouteEnd {
        route,
        at_ms: 2,
        status: RouteStatus::Done,
        answered: Some(call),
        accepted: None,
        scores: Vec::new(),
    };
    ledger.finish_route(&end).unwrap();
    assert!(ledger.late_score(&late(route, 1.0, "user")).unwrap());
    assert!(ledger.feedback_after(0, 10).unwrap().is_empty());
    assert_eq!(
        ledger.stats(&StatsFilter::default()).unwrap()[0].mean_score,
        Some(1.0)
    );
}

#[test]
fn a_cursor_is_known_only_with_its_nonce() {
    let ledger = Ledger::open_in_memory().unwrap();
    answered(&ledger, "a", 1.0, "");
    let cursor = ledger.feedback_after(0, 1).unwrap()[0].cursor;
    assert!(ledger.knows(Cursor::default()).unwrap());
    assert!(ledger.knows(cursor).unwrap());
    let another = Cursor {
        nonce: cursor.nonce ^ 1,
        ..cursor
    };
    assert!(!ledger.knows(another).unwrap());
    assert!(!ledger.knows(Cursor { id: 2, ..cursor }).unwrap());
}

#[test]
fn statistics_count_what_was_asked_for() {
    let ledger = Ledger::open_in_memory().unwrap();
    for score in [1.0, 1.0, 0.0] {
        answered(&ledger, "a", score, "maths");
    }
    let (last, _) = answered(&ledger, "b", 0.5, "prose");
    let filter = StatsFilter {
        recent: 2,
        ..StatsFilter::default()
    };
    let stats = ledger.stats(&filter).unwrap();
    let [a, b] = stats.as_slice() else {
        panic!("{stats:?}")
    };
    assert_eq!((a.pulls, a.scored, a.errors), (3, 3, 0));
    assert!((a.mean_score.unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!((a.share, a.recent_share), (0.75, 0.5));
    assert_eq!((b.share, b.recent_share), (0.25, 0.5));
    assert_eq!(a.mean_latency_ms, Some(300.0));
    assert!((a.total_cost - 12e-9).abs() < 1e-20);

    let prose = StatsFilter {
        context: Some(ContextKey("prose".into())),
        ..filter.clone()
    };
    let stats = ledger.stats(&prose).unwrap();
    assert_eq!((stats.len(), stats[0].share), (1, 1.0));
    let nobody = StatsFilter {
        router: Some("nobody".into()),
        ..filter
    };
    assert!(ledger.stats(&nobody).unwrap().is_empty());

    let listed = ledger
        .routes(&RouteFilter {
            limit: 2,
            ..RouteFilter::default()
        })
        .unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (listed[0].id, listed[0].arm.clone()),
        (last, Some(arm("b")))
    );
    assert_eq!(listed[0].score.map(Score::get), Some(0.5));
    assert_eq!(ledger.count_routes().unwrap(), 4);
}

#[test]
fn what_was_measured_is_smoothed() {
    let ledger = Ledger::open_in_memory().unwrap();
    answered(&ledger, "a", 1.0, "");
    answered(&ledger, "a", 0.0, "");
    let measured = ledger.measured().unwrap()[&arm("a")];
    assert_eq!((measured.n_ok, measured.n_err), (2, 0));
    assert_eq!(measured.latency_ms, 300.0);
    assert_eq!((measured.prefill_ms, measured.decode_ms), (5.0, 10.0));
    assert!((measured.score - 0.8).abs() < 1e-12);
}

#[test]
fn an_arm_that_worked_on_several_parts_gives_one_feedback() {
    let ledger = Ledger::open_in_memory().unwrap();
    let route = with_parts(&ledger, "maths");
    let record = ledger.route(route).unwrap().unwrap();
    let calls: Vec<_> = record
        .calls
        .iter()
        .map(|call| (call.position, call.part, call.place, call.arm.as_str()))
        .collect();
    assert_eq!(
        calls,
        [
            (0, Some(0), Some(0), "a"),
            (1, Some(1), Some(1), "b"),
            (2, Some(2), Some(0), "a"),
            (3, Some(2), Some(1), "b"),
        ]
    );
    let ended: Vec<_> = record
        .parts
        .iter()
        .map(|part| (part.name.as_str(), part.answered, part.accepted))
        .collect();
    let id = |call: usize| Some(record.calls[call].id);
    assert_eq!(
        ended,
        [
            ("one", id(0), Some(true)),
            ("two", id(1), Some(true)),
            ("three", id(3), Some(false)),
        ]
    );
    let told: Vec<_> = record
        .feedback
        .iter()
        .map(|row| {
            let f = &row.feedback;
            (
                f.arm.as_str(),
                f.position,
                f.outcome,
                f.cost,
                f.latency_ms,
                f.completion_tokens,
                f.score.map(Score::get),
            )
        })
        .collect();
    // The part that `a` failed is a 0 beside its 1; both of b's parts were graded.
    assert_eq!(
        told,
        [
            ("a", 0, OutcomeKind::Ok, 4e-9, 200.0, 40, Some(0.5)),
            ("b", 1, OutcomeKind::Ok, 6e-9, 300.0, 40, Some(0.25)),
        ]
    );
    assert!(!ledger.late_score(&late(route, 1.0, "user")).unwrap());
}

#[test]
fn what_is_learnt_has_the_features_of_its_request() {
    let ledger = Ledger::open_in_memory().unwrap();
    let (route, _) = answered(&ledger, "a", 1.0, "");
    assert!(ledger.late_score(&late(route, 0.0, "user")).unwrap());
    let mut plain = new_route("");
    plain.limits.features.clear();
    let (none, _) = ledger.begin_route(&plain).unwrap();
    let want = [0.1_f32, -2.5e-8, f32::MAX];
    let rows = ledger.feedback_after(0, 10).unwrap();
    assert_eq!(rows.len(), 2, "the call and the later grade");
    for row in rows
        .iter()
        .chain(&ledger.route(route).unwrap().unwrap().feedback)
    {
        assert_eq!(row.feedback.features, want);
    }
    assert!(
        ledger
            .route(none)
            .unwrap()
            .unwrap()
            .limits
            .features
            .is_empty()
    );
}
