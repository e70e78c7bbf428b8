//! A router that misbehaves costs one decision's quality, never an answer.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Folder, arms, ask, cargo, cc, feedback, load, make, moody, panics, patient, resident, why,
};
use llmpick_core::{Candidate, DecisionSource, RouterError};
use llmpick_plugin_host::{CreateError, Isolation, RouterOptions, router};
use llmpick_testkit::{candidate, router_suite, select_request};

const BOTH: [Isolation; 2] = [Isolation::Actor, Isolation::Inline];

#[test]
fn loaded_routers_keep_the_promises_of_native_ones() {
    let folder = Folder::new();
    let c_example = load(&cc(
        &folder,
        "plugins/examples/c-router/router.c",
        "c.so",
        &[],
    ));
    let rust_example = load(&cargo(
        "plugins/examples/rust-router",
        "librouter_example.so",
    ));
    for isolation in BOTH {
        let options = patient(isolation);
        router_suite(|| make(&moody(), "moody", "", &options));
        router_suite(|| make(&panics(), "panics", "{}", &options));
        router_suite(|| make(&c_example, "c-example", "", &options));
        router_suite(|| make(&rust_example, "example", "", &options));
    }
}

#[test]
fn a_router_in_c_learns() {
    let mut router = make(&moody(), "moody", "", &patient(Isolation::Actor));
    let first = ask(&mut *router, 1);
    assert_eq!(
        (first.choices, first.source),
        (vec![0], DecisionSource::Router)
    );
    assert_eq!((first.reason.as_str(), first.propensity), ("best", 1.0));
    assert_eq!(first.marginals, [1.0, 0.0, 0.0, 0.0]);
    for (arm, score) in [(0, 0.2), (1, 0.8), (2, 0.4)] {
        router.feedback(&feedback(1, arm, score)).unwrap();
    }
    assert_eq!(ask(&mut *router, 2).choices, [1]);
}

#[test]
fn a_wrong_answer_is_replaced_and_named() {
    let cases = [
        ("range", "it chose arm 4 of 4"),
        ("duplicate", "it chose `arm-0` twice"),
        (
            "empty",
            "it chose no arm, and NaN is no marginal to draw `arm-0` by",
        ),
        ("ineligible", "it chose `arm-3`, which is not eligible"),
        (
            "million",
            "it says that it chose 1000000 arms where 2 may run",
        ),
        ("no_mode", "it chose mode 0x0, which is not one mode"),
        ("two_modes", "it chose mode 0x3, which is not one mode"),
        (
            "other_mode",
            "it chose mode AllIn, which is not allowed here",
        ),
        ("error", "out of sorts"),
        ("unknown_status", "it answered status 42"),
        ("long_error", "it answered status -6"),
    ];
    for isolation in BOTH {
        for (fault, expected) in cases {
            let config = format!(r#"{{"fault": "{fault}", "to": 2}}"#);
            let mut router = make(&moody(), "moody", &config, &patient(isolation));
            let decision = ask(&mut *router, 1);
            assert_eq!(why(&decision.source), format!("`moody` failed: {expected}"));
            assert_eq!(
                decision.choices,
                [2],
                "the fallback goes by the measured score"
            );
            let decision = ask(&mut *router, 2);
            assert_eq!(
                (why(&decision.source), decision.choices),
                ("", vec![0]),
                "{fault}"
            );
        }
    }
}

#[test]
fn odd_numbers_and_texts_do_not_spoil_a_choice() {
    let options = patient(Isolation::Actor);
    for fault in ["odd_numbers", "nan"] {
        let config = format!(r#"{{"fault": "{fault}"}}"#);
        let mut router = make(&moody(), "moody", &config, &options);
        let decision = ask(&mut *router, 1);
        assert_eq!(
            (decision.choices, decision.source),
            (vec![0], DecisionSource::Router)
        );
        assert!(decision.propensity.is_nan() && decision.marginals.is_empty());
    }
    let mut router = make(&moody(), "moody", r#"{"fault": "escape"}"#, &options);
    let reason = ask(&mut *router, 1).reason;
    assert!(!reason.chars().any(char::is_control), "{reason:?}");
}

#[test]
fn the_host_rounds_marginals_from_the_seed() {
    let options = patient(Isolation::Inline);
    let mut router = make(&moody(), "moody", r#"{"fault": "round"}"#, &options);
    // Three eligible arms, so that 1/4 of an ineligible one would be a fault: leave it out.
    let arms: Vec<Candidate> = (0..4).map(candidate).collect();
    let mut draw = |seed| {
        let decision = router.select(&select_request(&arms, seed)).unwrap();
        assert_eq!(why(&decision.source), "");
        assert_eq!(decision.marginals, [0.25; 4]);
        decision.choices
    };
    let first: Vec<_> = (0..50).map(&mut draw).collect();
    let second: Vec<_> = (0..50).map(&mut draw).collect();
    assert_eq!(first, second, "one seed, one set");
    assert!((0..4).all(|arm| first.contains(&vec![arm])), "{first:?}");
}

#[test]
fn abstaining_is_no_fault() {
    let options = patient(Isolation::Actor);
    let mut router = make(
        &moody(),
        "moody",
        r#"{"fault": "abstain", "to": 10}"#,
        &options,
    );
    for route in 0..10 {
        assert_eq!(why(&ask(&mut *router, route).source), "`moody` abstained");
    }
    assert_eq!(
        why(&ask(&mut *router, 10).source),
        "",
        "it was not quarantined"
    );
}

#[test]
fn no_eligible_arm_is_an_answer_of_its_own() {
    let mut router = make(&moody(), "moody", "", &patient(Isolation::Actor));
    let mut none = arms();
    none.iter_mut().for_each(|arm| arm.eligible = false);
    for arms in [&none[..], &[]] {
        let answer = router.select(&select_request(arms, 1));
        assert_eq!(answer, Err(RouterError::NoEligibleArm));
    }
}

#[test]
fn three_faults_and_only_the_fallback_answers() {
    for isolation in BOTH {
        let config = r#"{"fault": "error", "to": 3}"#;
        let mut router = make(&moody(), "moody", config, &patient(isolation));
        for route in 0..3 {
            assert_eq!(
                why(&ask(&mut *router, route).source),
                "`moody` failed: out of sorts"
            );
        }
        // It would answer well now, but it is asked no more.
        let decision = ask(&mut *router, 3);
        assert_eq!(
            why(&decision.source),
            "`moody` is quarantined after 3 faults, the last: `moody` failed: out of sorts"
        );
        assert_eq!(decision.choices, [2]);
        assert_eq!(router.feedback(&feedback(3, 2, 0.5)), Ok(()));
        assert!(matches!(router.snapshot(), Err(RouterError::Fault(_))));
    }
}

#[test]
fn good_answers_are_forgiving() {
    let options = RouterOptions {
        forgive_after: 5,
        ..patient(Isolation::Inline)
    };
    let config = r#"{"fault": "error", "from": 100, "to": 200}"#;
    let mut router = make(&moody(), "moody", config, &options);
    for round in 0..4 {
        for fault in 0..2 {
            let decision = ask(&mut *router, 100 + fault);
            assert_eq!(
                why(&decision.source),
                "`moody` failed: out of sorts",
                "{round}"
            );
        }
        for good in 0..5 {
            assert_eq!(why(&ask(&mut *router, good).source), "");
        }
    }
}

#[test]
fn a_late_answer_is_discarded() {
    let options = RouterOptions {
        deadline: Duration::from_millis(500),
        abandon_after: Duration::from_secs(60),
        ..RouterOptions::default()
    };
    let config = r#"{"fault": "slow", "sleep": {"ms": 4000}, "to": 1}"#;
    let mut router = make(&moody(), "moody", config, &options);
    let decision = ask(&mut *router, 0);
    assert_eq!(
        why(&decision.source),
        "`moody` failed: it did not answer within 500ms"
    );
    // While it sleeps the fallback answers without waiting, and that is no further fault.
    for route in 1..10 {
        let why = ask(&mut *router, route).source;
        let busy = "`moody` failed: it is still busy with an earlier call";
        assert_eq!(why, DecisionSource::Fallback(busy.to_owned()));
    }
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let decision = ask(&mut *router, 99);
        match why(&decision.source) {
            "" => break assert_eq!(decision.choices, [0]),
            why => assert!(why.contains("still busy") && Instant::now() < end, "{why}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_endless_loop_costs_a_thread_and_not_an_answer() {
    let options = RouterOptions {
        deadline: Duration::from_secs(1),
        abandon_after: Duration::from_millis(50),
        ..RouterOptions::default()
    };
    let mut router = make(
        &moody(),
        "moody",
        r#"{"fault": "spin", "from": 5, "to": 6}"#,
        &options,
    );
    router.feedback(&feedback(1, 1, 0.9)).unwrap();
    router.snapshot().unwrap();
    router.feedback(&feedback(1, 2, 1.0)).unwrap();
    assert_eq!(ask(&mut *router, 1).choices, [2]);
    assert!(why(&ask(&mut *router, 5).source).contains("did not answer"));
    // Learnt while the old thread hangs: it must reach the new instance.
    for _ in 0..30 {
        router.feedback(&feedback(5, 0, 1.0)).unwrap();
    }
    router.feedback(&feedback(5, 2, 0.0)).unwrap();
    std::thread::sleep(Duration::from_millis(80));
    let decision = ask(&mut *router, 6);
    assert_eq!(why(&decision.source), "", "another instance took over");
    assert_eq!(decision.choices, [0], "with all that was learnt");
    // The process ends although the thread never does: nothing here joins it.
}

#[test]
fn a_constructor_that_hangs_is_given_up() {
    let options = RouterOptions {
        control_deadline: Duration::from_millis(50),
        ..RouterOptions::default()
    };
    let error = router(&moody(), "moody", r#"{"fault": "create_hangs"}"#, &options).err();
    assert!(
        matches!(error, Some(CreateError::TimedOut { .. })),
        "{error:?}"
    );
}

#[test]
fn a_refused_configuration_says_why() {
    let error = |config: &str| {
        let error = router(&moody(), "moody", config, &RouterOptions::default()).err();
        error.unwrap().to_string()
    };
    assert_eq!(
        error(r#"{"fault": "refuse"}"#),
        "configure plugin `moody`: refused, as the configuration asks"
    );
    assert_eq!(
        error(r#"{"from": "one"}"#),
        "configure plugin `moody`: `from` must be a whole number"
    );
    assert_eq!(
        error("[1]"),
        "configure plugin `moody`: its settings must be a JSON object"
    );
    assert!(error("{nonsense").starts_with("configure plugin `moody`: its settings are no JSON"));
    let other = router(&moody(), "says", "", &RouterOptions::default())
        .err()
        .unwrap();
    let other = other.to_string();
    assert!(
        other.ends_with("holds no router `says`; it holds router `moody`, scorer `says`"),
        "{other}"
    );
    let unknown = router(
        &panics(),
        "panics",
        r#"{"panicin": ""}"#,
        &RouterOptions::default(),
    );
    let unknown = unknown.err().unwrap().to_string();
    assert!(unknown.contains("unknown field `panicin`"), "{unknown}");
}

#[test]
fn a_snapshot_without_end_is_cut_off() {
    for isolation in BOTH {
        let options = RouterOptions {
            max_snapshot_bytes: 1 << 20,
            ..patient(isolation)
        };
        let mut router = make(&moody(), "moody", r#"{"fault": "huge_snapshot"}"#, &options);
        assert_eq!(
            router.snapshot(),
            Err(RouterError::Fault(
                "its snapshot has more than 1048576 bytes".into()
            ))
        );
        assert_eq!(why(&ask(&mut *router, 1).source), "");
    }
}

#[test]
fn a_snapshot_of_a_gibibyte_is_refused_before_it_is_copied() {
    for isolation in BOTH {
        let config = r#"{"fault": "gib_snapshot"}"#;
        let mut router = make(&moody(), "moody", config, &patient(isolation));
        let before = resident();
        let error = router.snapshot();
        let sentence = "its snapshot has more than 67108864 bytes";
        assert_eq!(error, Err(RouterError::Fault(sentence.into())));
        let grown = resident().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes");
    }
}

#[test]
fn a_log_flood_is_survived() {
    let mut router = make(
        &moody(),
        "moody",
        r#"{"fault": "flood"}"#,
        &patient(Isolation::Actor),
    );
    assert_eq!(why(&ask(&mut *router, 1).source), "");
}

#[test]
fn feedback_beyond_the_backlog_drops_the_oldest() {
    let options = RouterOptions {
        backlog: 4,
        deadline: Duration::from_millis(1),
        ..patient(Isolation::Actor)
    };
    let config = r#"{"fault": "slow_feedback", "sleep": {"ms": 300}}"#;
    let mut router = make(&moody(), "moody", config, &options);
    for (arm, rounds) in [(0, 50), (1, 4)] {
        for route in 0..rounds {
            router.feedback(&feedback(route, arm, 0.5)).unwrap();
        }
    }
    // The state holds how often each arm was heard of: all of the last four, and of the
    // first fifty only those that were begun before the others pushed them out.
    let state = router.snapshot().unwrap().state;
    let count = |arm: &str| {
        let known = state[16..]
            .chunks_exact(80)
            .find(|known| known.starts_with(arm.as_bytes()));
        known.map_or(0.0, |known| {
            f64::from_le_bytes(known[72..80].try_into().unwrap())
        })
    };
    assert_eq!(count("arm-1"), 4.0);
    assert!(count("arm-0") < 50.0, "{}", count("arm-0"));
}

#[test]
fn a_failure_to_learn_counts_against_it() {
    for isolation in BOTH {
        let config = r#"{"fault": "feedback_error"}"#;
        let mut router = make(&moody(), "moody", config, &patient(isolation));
        for route in 0..3 {
            let result = router.feedback(&feedback(route, 1, 0.5));
            assert_eq!(result.is_err(), isolation == Isolation::Inline);
        }
        // Waits for what is queued; the first choice after it sees the count.
        let _ = router.snapshot();
        assert!(why(&ask(&mut *router, 9).source).contains("quarantined"));
    }
}

#[test]
fn a_panic_in_select_costs_one_decision() {
    for isolation in BOTH {
        let config = r#"{"panic_in": "select", "at": 7}"#;
        let mut router = make(&panics(), "panics", config, &patient(isolation));
        for route in 0..5 {
            router.feedback(&feedback(route, 1, 0.5)).unwrap();
        }
        assert_eq!(ask(&mut *router, 6).reason, "saw 5");
        let decision = ask(&mut *router, 7);
        assert_eq!(
            why(&decision.source),
            "`panics` failed: panicked: no message"
        );
        let decision = ask(&mut *router, 8);
        assert_eq!(
            (why(&decision.source), decision.reason.as_str()),
            ("", "saw 5")
        );
    }
}

#[test]
fn a_panic_in_feedback_loses_that_feedback_only() {
    for isolation in BOTH {
        let config = r#"{"panic_in": "feedback", "at": 600}"#;
        let mut router = make(&panics(), "panics", config, &patient(isolation));
        for route in 1..=700 {
            let result = router.feedback(&feedback(route, 1, 0.5));
            assert_eq!(
                result.is_err(),
                route == 600 && isolation == Isolation::Inline
            );
        }
        let decision = ask(&mut *router, 8);
        assert_eq!(
            (why(&decision.source), decision.reason.as_str()),
            ("", "saw 699")
        );
    }
}

#[test]
fn a_panic_in_snapshot_is_an_error_and_the_router_goes_on() {
    for isolation in BOTH {
        let config = r#"{"panic_in": "snapshot"}"#;
        let mut router = make(&panics(), "panics", config, &patient(isolation));
        router.feedback(&feedback(1, 1, 0.5)).unwrap();
        assert!(matches!(router.snapshot(), Err(RouterError::Fault(_))));
        let decision = ask(&mut *router, 2);
        assert_eq!(
            (why(&decision.source), decision.reason.as_str()),
            ("", "saw 1")
        );
    }
}

#[test]
fn a_panic_in_create_is_an_error() {
    let cases = [
        (
            r#"{"panic_in": "create"}"#,
            "panicked: asked to panic in create",
        ),
        // Its payload's drop would panic again.
        (r#"{"panic_in": "create", "at": 1}"#, "panicked: no message"),
    ];
    for isolation in BOTH {
        for (config, expected) in cases {
            let error = router(&panics(), "panics", config, &patient(isolation));
            let error = error.err().unwrap().to_string();
            assert_eq!(error, format!("start plugin `panics`: {expected}"));
        }
    }
}

#[test]
fn two_instances_share_nothing() {
    let options = patient(Isolation::Actor);
    let (mut left, mut right) = (
        make(&moody(), "moody", "", &options),
        make(&moody(), "moody", "", &options),
    );
    left.feedback(&feedback(1, 1, 1.0)).unwrap();
    assert_eq!(ask(&mut *left, 2).choices, [1]);
    assert_eq!(ask(&mut *right, 2).choices, [0]);
}

#[test]
fn routers_move_between_threads_and_run_side_by_side() {
    let library = panics();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let library = Arc::clone(&library);
            std::thread::spawn(move || {
                let mut router = make(&library, "panics", "", &patient(Isolation::Inline));
                for route in 0..200 {
                    ask(&mut *router, route);
                    router.feedback(&feedback(route, 1, 0.5)).unwrap();
                }
                router
            })
        })
        .collect();
    for thread in threads {
        let mut router = thread.join().unwrap();
        assert_eq!(ask(&mut *router, 1).reason, "saw 200");
    }
}
