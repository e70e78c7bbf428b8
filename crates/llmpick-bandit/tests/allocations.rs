//! Learning allocates nothing once every arm and context is known, and choosing a bounded amount.
//! A binary of its own, for the allocator counts the calls of all its threads.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use llmpick_bandit::baselines::{Baseline, BaselineLearner};
use llmpick_bandit::c2mabv::{C2mabv, C2mabvConfig};
use llmpick_bandit::chance::{seeded, unit};
use llmpick_bandit::cluster::ClusterConfig;
use llmpick_bandit::pickllm::{Manner, Method, PickLlm, PickLlmConfig};
use llmpick_bandit::stats::TableConfig;
use llmpick_bandit::{ArmView, Learner, Mode, Observation, Question};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory of
// the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn during(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

const ARMS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const CONTEXTS: [&str; 3] = ["", "law", "code"];

fn check(name: &str, learner: &mut impl Learner) {
    let mut rng = seeded(1);
    // Drawn beforehand: features, scores and costs.
    let calls: Vec<([f32; 2], f64, f64)> = (0..10_000)
        .map(|i| {
            let side = (i / 7 % 2) as f32;
            ([side, 1.0 - side], unit(&mut rng), unit(&mut rng))
        })
        .collect();
    let learn = |learner: &mut _, calls: &[([f32; 2], f64, f64)]| {
        for (i, (features, score, cost)) in calls.iter().enumerate() {
            Learner::observe(
                learner,
                &Observation {
                    arm: ARMS[i % ARMS.len()],
                    context: CONTEXTS[i / 5 % CONTEXTS.len()],
                    features,
                    cost: *cost,
                    score: Some(*score),
                    latency_ms: 100.0 + i as f64,
                    prompt_tokens: 10,
                    completion_tokens: 20,
                    ..Observation::default()
                },
            );
        }
    };
    learn(learner, &calls);
    let learning = during(|| learn(learner, &calls));
    assert_eq!(learning, 0, "{name}: 10000 observations allocated");
    let arms: Vec<ArmView<'_>> = ARMS.iter().map(|id| ArmView::stranger(id)).collect();
    for mode in [Mode::Single, Mode::AnyWin, Mode::SumUp, Mode::AllIn] {
        let question = Question {
            arms: &arms,
            mode,
            max_arms: 3,
            budget: 0.7,
            context: "law",
            features: &[0.0, 1.0],
        };
        for seed in 0..20 {
            let choosing = during(|| drop(learner.select(&question, &mut seeded(seed)).unwrap()));
            assert!(
                choosing <= 400,
                "{name}, {mode:?}: a choice allocated {choosing} times"
            );
        }
    }
}

#[test]
fn learning_allocates_nothing_and_choosing_a_bounded_amount() {
    let table = TableConfig {
        clusters: Some(ClusterConfig::default()),
        discount: 0.999,
        ..TableConfig::default()
    };
    let config = C2mabvConfig {
        table,
        ..C2mabvConfig::default()
    };
    check("c2mabv", &mut C2mabv::new(config).unwrap());
    for method in [
        Method::default(),
        Method::Pursuit {
            step: 0.05,
            warm_up: 5,
        },
        Method::q_learning(),
    ] {
        let config = PickLlmConfig {
            manner: Manner {
                method,
                ..Manner::default()
            },
            ..PickLlmConfig::default()
        };
        check(&format!("{method:?}"), &mut PickLlm::new(config).unwrap());
    }
    let table = TableConfig::default();
    let mut thompson = BaselineLearner::new(Baseline::Thompson, table).unwrap();
    check("thompson", &mut thompson);
}
