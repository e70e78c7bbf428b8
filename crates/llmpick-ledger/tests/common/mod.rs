//! Routes that a test writes without a router.
#![allow(clippy::unwrap_used, dead_code)]

use std::time::Duration;

use camino::Utf8PathBuf;
use llmpick_core::{
    ArmId, Candidate, ContextKey, Decision, DecisionSource, Locality, Mode, NanoDollars,
    OutcomeKind, RouteId, Score, Usage,
};
use llmpick_ledger::{
    CallEnd, CallId, CandidateRecord, Ledger, NewPart, NewRoute, PartCall, PartEnd, RouteEnd,
    RouteLimits, RouteStatus, ScoredCall,
};

/// A folder that goes with the test, and a ledger's path in it.
pub fn place() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("ledger.db")).unwrap();
    (dir, path)
}

pub fn arm(name: &str) -> ArmId {
    ArmId::new(name).unwrap()
}

pub fn candidate(name: &str) -> CandidateRecord {
    CandidateRecord {
        candidate: Candidate {
            id: arm(name),
            locality: Locality::Local,
            warm: true,
            eligible: true,
            context_tokens: 4096,
            price_in: 0.1 + 0.2,
            price_out: f64::NAN,
            est_cost: 1e-7,
            cost_max: 1.0 / 3.0,
            latency_ms: f64::NAN,
            ttft_ms: f64::NAN,
            score: 0.25,
            n_ok: 3,
            n_err: 1,
            inflight: 2,
        },
        unfit: None,
        resident_bytes: 1 << 40,
        marginal: Some(0.5),
    }
}

pub fn new_route(context: &str) -> NewRoute {
    NewRoute {
        at_ms: 1_000,
        prompt_hash: llmpick_ledger::prompt_hash("hello"),
        prompt: None,
        context: ContextKey(context.into()),
        session: "s1".into(),
        target: "auto".into(),
        router: "tester".into(),
        seed: None,
        base_seed: 7,
        learn: true,
        limits: RouteLimits {
            arms_epoch: u64::MAX,
            allowed_modes: vec![Mode::Single, Mode::AnyWin],
            prompt_tokens: 5,
            max_new_tokens: 100,
            max_cost: f64::NAN,
            max_latency_ms: 1500.0,
            min_score: f64::NAN,
            cost_budget: 0.5,
            max_arms: 3,
            features: vec![0.1, -2.5e-8, f32::MAX],
        },
    }
}

pub fn decision(choices: &[u32], arms: usize) -> Decision {
    Decision {
        choices: choices.to_vec(),
        mode: Mode::AnyWin,
        propensity: 0.125,
        marginals: vec![0.5; arms],
        reason: "because".into(),
        source: DecisionSource::Router,
    }
}

pub fn ended(outcome: OutcomeKind, cost: u64) -> CallEnd {
    CallEnd {
        outcome,
        learn: true,
        usage: Usage {
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens: 20,
        },
        latency: Duration::from_millis(300),
        ttft: Some(Duration::from_millis(100)),
        busy: Duration::from_millis(250),
        prefill: Duration::from_millis(50),
        load: Duration::ZERO,
        cost: NanoDollars(cost),
        error: None,
    }
}

/// One route that ran `name` alone and was scored.
pub fn answered(ledger: &Ledger, name: &str, score: f64, context: &str) -> (RouteId, CallId) {
    let (route, _) = ledger.begin_route(&new_route(context)).unwrap();
    ledger
        .record_decision(route, &[candidate(name)], Some(&decision(&[0], 1)))
        .unwrap();
    let call = ledger
        .start_call(route, 0, &arm(name), NanoDollars(9), 1_001)
        .unwrap();
    ledger.end_call(call, &ended(OutcomeKind::Ok, 4)).unwrap();
    ledger
        .finish_route(&RouteEnd {
            route,
            at_ms: 1_300,
            status: RouteStatus::Done,
            answered: Some(call),
            accepted: Some(true),
            scores: vec![ScoredCall {
                call,
                score: Score::new(score).unwrap(),
                scorer: "exact".into(),
            }],
        })
        .unwrap();
    (route, call)
}

/// One route of three parts: `a` answers the first (score 1) and fails the last, which `b`
/// answers after its own (scores 0.5 and 0).
pub fn with_parts(ledger: &Ledger, context: &str) -> RouteId {
    let (route, _) = ledger.begin_route(&new_route(context)).unwrap();
    let parts = ["one", "two", "three"].map(|name| NewPart {
        name: name.into(),
        prompt_hash: llmpick_ledger::prompt_hash(name),
        prompt: None,
    });
    ledger.record_parts(route, &parts).unwrap();
    let decision = Decision {
        mode: Mode::SumUp,
        ..decision(&[0, 1], 2)
    };
    ledger
        .record_decision(route, &[candidate("a"), candidate("b")], Some(&decision))
        .unwrap();
    let call = |position, part, place, outcome, cost| {
        let name = if place == 0 { "a" } else { "b" };
        let of = PartCall { part, place };
        let call = ledger
            .start_part_call(route, position, of, &arm(name), NanoDollars(9), 1_001)
            .unwrap();
        let end = CallEnd {
            latency: Duration::from_millis(u64::from(position) * 100),
            ..ended(outcome, cost)
        };
        ledger.end_call(call, &end).unwrap();
        call
    };
    let one = call(0, 0, 0, OutcomeKind::Ok, 1);
    let two = call(1, 1, 1, OutcomeKind::Ok, 2);
    call(2, 2, 0, OutcomeKind::Error, 3);
    let three = call(3, 2, 1, OutcomeKind::Ok, 4);
    let scored = |call, score| ScoredCall {
        call,
        score: Score::new(score).unwrap(),
        scorer: "exact".into(),
    };
    let part = |part, call, accepted| PartEnd {
        part,
        answered: Some(call),
        accepted,
    };
    let end = RouteEnd {
        route,
        at_ms: 1_300,
        status: RouteStatus::Done,
        answered: None,
        accepted: None,
        scores: vec![scored(one, 1.0), scored(two, 0.5), scored(three, 0.0)],
    };
    let parts = [
        part(0, one, true),
        part(1, two, true),
        part(2, three, false),
    ];
    ledger.finish_parts(&end, &parts).unwrap();
    route
}
