//! A router judged by a real ledger file whose arms' truth is known.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use camino::Utf8Path;
use llmpick_bandit::baselines::{Baseline, BaselineLearner, Fixed};
use llmpick_bandit::chance::{coin, pick, seeded};
use llmpick_bandit::stats::TableConfig;
use llmpick_core::{
    ArmId, Candidate, ContextKey, Decision, DecisionSource, Locality, Mode, NanoDollars,
    OutcomeKind, Router, Score, Usage,
};
use llmpick_ledger::{
    CallEnd, CandidateRecord, Ledger, NewRoute, RouteEnd, RouteLimits, RouteStatus, ScoredCall,
};

use super::native::native;
use super::replaying::{Probe, Told};
use crate::{Estimate, Log, LogReport, LogSettings, Watch};

const ARMS: [&str; 3] = ["a", "b", "c"];
/// Of each arm, in the contexts `x` and `y`.
const MEANS: [[f64; 3]; 2] = [[0.9, 0.5, 0.2], [0.3, 0.5, 0.8]];
/// Nano-dollars of a call.
const COSTS: [u64; 3] = [3000, 2000, 1000];
/// How the logging router chooses.
const SHARES: [f64; 3] = [0.3, 0.5, 0.2];

/// One route, begun at `at`: who chose, what with, and how it was graded.
struct Line {
    at_ms: u64,
    context: usize,
    source: DecisionSource,
    arm: usize,
    score: Option<f64>,
}

fn candidates() -> Vec<CandidateRecord> {
    let record = |(k, name): (usize, &&str)| CandidateRecord {
        candidate: Candidate {
            id: ArmId::new(name).unwrap(),
            locality: Locality::Remote,
            warm: true,
            eligible: true,
            context_tokens: 4096,
            price_in: 1.0,
            price_out: 1.0,
            est_cost: COSTS[k] as f64 * 1e-9,
            cost_max: COSTS[k] as f64 * 2e-9,
            latency_ms: f64::NAN,
            ttft_ms: f64::NAN,
            score: f64::NAN,
            n_ok: 0,
            n_err: 0,
            inflight: 0,
        },
        unfit: None,
        resident_bytes: 0,
        marginal: Some(SHARES[k]),
    };
    ARMS.iter().enumerate().map(record).collect()
}

fn write(ledger: &Ledger, line: &Line) {
    let new = NewRoute {
        at_ms: line.at_ms,
        prompt_hash: String::new(),
        prompt: None,
        context: ContextKey(["x", "y"][line.context].to_owned()),
        session: String::new(),
        target: "auto".to_owned(),
        router: "logger".to_owned(),
        seed: None,
        base_seed: 1,
        learn: true,
        limits: RouteLimits {
            arms_epoch: 1,
            allowed_modes: vec![Mode::Single],
            prompt_tokens: 1,
            max_new_tokens: 1,
            max_cost: f64::NAN,
            max_latency_ms: f64::NAN,
            min_score: f64::NAN,
            cost_budget: f64::NAN,
            max_arms: 1,
            features: Vec::new(),
        },
    };
    let (route, _) = ledger.begin_route(&new).unwrap();
    let decision = Decision {
        choices: vec![line.arm as u32],
        mode: Mode::Single,
        propensity: SHARES[line.arm],
        marginals: SHARES.to_vec(),
        reason: String::new(),
        source: line.source.clone(),
    };
    ledger
        .record_decision(route, &candidates(), Some(&decision))
        .unwrap();
    let arm = ArmId::new(ARMS[line.arm]).unwrap();
    let cost = NanoDollars(COSTS[line.arm]);
    let call = ledger.start_call(route, 0, &arm, cost, line.at_ms).unwrap();
    let end = CallEnd {
        outcome: OutcomeKind::Ok,
        learn: true,
        usage: Usage::default(),
        latency: Duration::from_millis(5),
        ttft: None,
        busy: Duration::ZERO,
        prefill: Duration::ZERO,
        load: Duration::ZERO,
        cost,
        error: None,
    };
    ledger.end_call(call, &end).unwrap();
    let score = line.score.map(|score| ScoredCall {
        call,
        score: Score::new(score).unwrap(),
        scorer: "test".to_owned(),
    });
    ledger
        .finish_route(&RouteEnd {
            route,
            at_ms: line.at_ms + 50,
            status: RouteStatus::Done,
            answered: Some(call),
            accepted: None,
            scores: score.into_iter().collect(),
        })
        .unwrap();
}

/// Decisions by chance, each tenth by somebody else, each eleventh without a grade; one comes
/// every ten ms and takes fifty.
fn written(lines: u64) -> Log {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path())
        .unwrap()
        .join("ledger.db");
    let mut rng = seeded(11);
    {
        let ledger = Ledger::open(&path).unwrap();
        for i in 0..lines {
            let context = usize::from(coin(0.5, &mut rng));
            let arm = pick(&SHARES, &mut rng).unwrap();
            let score = f64::from(u8::from(coin(MEANS[context][arm], &mut rng)));
            write(
                &ledger,
                &Line {
                    at_ms: 10 * i,
                    context,
                    source: match i % 20 {
                        0 => DecisionSource::Pinned,
                        10 => DecisionSource::Fallback("late".to_owned()),
                        _ => DecisionSource::Router,
                    },
                    arm,
                    score: Some(score).filter(|_| i % 11 != 5),
                },
            );
        }
    }
    Log::read(&Ledger::open(&path).unwrap()).unwrap()
}

const ALONG: LogSettings = LogSettings {
    seed: 1,
    learn_first: None,
};

fn judged(log: &Log, baseline: Baseline, settings: &LogSettings) -> LogReport {
    let learner = BaselineLearner::new(baseline, TableConfig::default()).unwrap();
    let router = native(learner)().unwrap();
    log.judge(router, "it", settings, &Watch::default())
        .unwrap()
}

fn contains(estimate: Estimate, truth: f64) {
    let (low, high) = (estimate.low.unwrap(), estimate.high.unwrap());
    assert!(
        low <= truth && truth <= high,
        "{truth} is not in {estimate:?}"
    );
}

#[test]
fn a_ledger_tells_what_an_arm_never_always_chosen_is_worth() {
    let log = written(800);
    assert_eq!(log.len(), 800);
    for (k, name) in ARMS.iter().enumerate() {
        let always = Baseline::Fixed(Fixed::Arms(vec![(*name).to_owned()]));
        let report = judged(&log, always, &ALONG);
        // 80 were somebody else's; of the other 720 each eleventh was not graded.
        let ungraded = (0..800).filter(|i| i % 10 != 0 && i % 11 == 5).count() as u64;
        assert_eq!(report.left_out.without_propensity, 80);
        assert_eq!(report.left_out.ungraded, ungraded);
        assert_eq!(report.judged as u64, 720 - ungraded);
        assert_eq!((report.untried, report.fallbacks), (0.0, 0));
        assert_eq!(report.warning, None, "{report:?}");
        let truth = (MEANS[0][k] + MEANS[1][k]) / 2.0;
        for part in [report.judgement.reward.snips, report.judgement.reward.dr] {
            contains(part, truth);
        }
        // One arm costs one price: known without any doubt.
        let cost = report.judgement.cost;
        assert!(
            (cost.snips.mean - COSTS[k] as f64 * 1e-9).abs() < 1e-15,
            "{cost:?}"
        );
        let mean = report.judged as f64 * SHARES[k];
        assert!(
            (report.judgement.effective / mean - 1.0).abs() < 0.2,
            "{report:?}"
        );
    }
    let logged = judged(&log, Baseline::RoundRobin, &ALONG).logged_reward;
    let of = |x: usize| (0..3).map(|k| SHARES[k] * MEANS[x][k]).sum::<f64>();
    contains(logged, (of(0) + of(1)) / 2.0);
}

#[test]
fn a_learner_sees_the_past_alone() {
    let log = written(60);
    let (asked, learnt): (Arc<Mutex<Vec<Told>>>, Arc<Mutex<Vec<_>>>) = Default::default();
    let play = |settings: &LogSettings| {
        let probe: Box<dyn Router> = Box::new(Probe(Arc::clone(&asked), Arc::clone(&learnt)));
        log.judge(probe, "it", settings, &Watch::default()).unwrap()
    };
    let report = play(&ALONG);
    assert_eq!(asked.lock().unwrap().len(), report.judged);
    let rows = std::mem::take(&mut *learnt.lock().unwrap());
    // A route takes 50 ms and the next come meanwhile: the last five were never heard of.
    assert_eq!(rows.len(), 55);
    // Somebody else chose, as far as this router is concerned.
    assert!(rows.iter().all(|row| row.fallback && row.route_id.0 <= 55));
    let half = LogSettings {
        learn_first: Some(0.5),
        ..ALONG
    };
    let report = play(&half);
    // What the first thirty taught by the time the thirty-first came, and nothing after it.
    assert_eq!(learnt.lock().unwrap().len(), 26);
    assert!(report.judged < 30 && report.routes == 60);
}

#[test]
fn too_little_overlap_is_said() {
    let report = judged(
        &written(30),
        Baseline::Fixed(Fixed::Arms(vec!["c".to_owned()])),
        &ALONG,
    );
    let warning = report.warning.unwrap();
    assert!(warning.contains("times only"), "{warning}");
    let json = serde_json::to_value(judged(&written(30), Baseline::RoundRobin, &ALONG)).unwrap();
    for key in ["ips", "snips", "dr"] {
        assert!(json["reward"][key]["mean"].is_number(), "{json}");
    }
}
