//! A million calls with everything going wrong now and then: every call has an answer, and
//! nothing grows.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{arms, child_program, feedback, make, moody, panics, resident, why};
use llmpick_core::Router;
use llmpick_plugin_host::{Isolation, Library, RouterOptions, use_child_program};
use llmpick_testkit::select_request;

/// Faults never add up to a quarantine here, or the plugin would be asked no more.
fn options(isolation: Isolation) -> RouterOptions {
    RouterOptions {
        isolation,
        deadline: Duration::from_secs(10),
        control_deadline: Duration::from_secs(30),
        quarantine_after: u32::MAX,
        ..RouterOptions::default()
    }
}

/// What came of some calls.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    own: u64,
    fallback: u64,
}

/// Asks `calls` times, with a feedback every 16th. Each answer is checked.
fn run(router: &mut dyn Router, first: u64, calls: u64) -> Tally {
    let arms = arms();
    let mut tally = Tally::default();
    for route in first..first + calls {
        let decision = router.select(&select_request(&arms, route)).unwrap();
        assert_eq!(decision.choices.len(), 1);
        assert!(arms[decision.choices[0] as usize].eligible);
        match why(&decision.source) {
            "" => tally.own += 1,
            _ => tally.fallback += 1,
        }
        if route % 16 == 0 {
            // A feedback may fail; an inline one says so.
            let _ = router.feedback(&feedback(route, decision.choices[0], 0.5));
        }
    }
    tally
}

/// Bytes that a run may leave behind: the allocator keeps some, and threads have stacks.
const FEW: usize = 8 << 20;

/// The tests of this file share one memory, and each looks at its size.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Warms up, runs, and compares; `expected` of every `calls` are the fallback's.
fn check(
    library: &Arc<Library>,
    name: &str,
    config: &str,
    isolation: Isolation,
    calls: u64,
) -> Tally {
    let _alone = alone();
    let mut router = make(library, name, config, &options(isolation));
    run(&mut *router, 0, calls / 4);
    let before = resident();
    let tally = run(&mut *router, calls / 4, calls);
    let grown = resident().saturating_sub(before);
    assert!(grown < FEW, "{name} {config} {isolation:?}: {grown} bytes");
    assert_eq!(
        tally.own + tally.fallback,
        calls,
        "an answer for every call"
    );
    tally
}

/// Every fault that answers at once, each on one call of eight.
const FAULTS: [&str; 9] = [
    "range",
    "million",
    "duplicate",
    "empty",
    "ineligible",
    "no_mode",
    "error",
    "abstain",
    "long_error",
];

#[test]
fn half_a_million_calls_on_the_callers_thread() {
    for fault in FAULTS {
        let config = format!(r#"{{"fault": "{fault}", "every": 8}}"#);
        let calls = 50_000;
        let tally = check(&moody(), "moody", &config, Isolation::Inline, calls);
        assert_eq!(tally.fallback, calls / 8, "{fault}");
    }
    let config = r#"{"fault": "odd_numbers", "every": 8}"#;
    let tally = check(&moody(), "moody", config, Isolation::Inline, 50_000);
    assert_eq!(tally.fallback, 0);
}

#[test]
fn half_a_million_calls_on_its_own_thread() {
    for fault in FAULTS {
        let config = format!(r#"{{"fault": "{fault}", "every": 8}}"#);
        let calls = 50_000;
        let tally = check(&moody(), "moody", &config, Isolation::Actor, calls);
        assert_eq!(tally.fallback, calls / 8, "{fault}");
    }
    let config = r#"{"fault": "escape", "every": 8}"#;
    let tally = check(&moody(), "moody", config, Isolation::Actor, 50_000);
    assert_eq!(tally.fallback, 0);
}

#[test]
fn thousands_of_panics_and_rebuilds() {
    // The SDK writes each panic to stderr, and forgets its payload: a few bytes each.
    for isolation in [Isolation::Inline, Isolation::Actor] {
        for place in ["select", "feedback"] {
            let config = format!(r#"{{"panic_in": "{place}", "every": 512}}"#);
            let tally = check(&panics(), "panics", &config, isolation, 20_000);
            let expected = if place == "select" { 20_000 / 512 } else { 0 };
            assert!(tally.fallback.abs_diff(expected) <= 1, "{tally:?}");
        }
    }
}

#[test]
fn answers_that_come_too_late() {
    let quick = RouterOptions {
        deadline: Duration::from_millis(2),
        abandon_after: Duration::from_secs(60),
        ..options(Isolation::Actor)
    };
    // One call of 500 sleeps beyond the deadline; those behind it are answered at once.
    let config = r#"{"fault": "slow", "sleep": {"ms": 8}, "every": 500}"#;
    let _alone = alone();
    let mut router = make(&moody(), "moody", config, &quick);
    run(&mut *router, 0, 5_000);
    let before = resident();
    let tally = run(&mut *router, 5_000, 50_000);
    assert_eq!(tally.own + tally.fallback, 50_000);
    assert!(tally.fallback >= 1, "{tally:?}");
    let grown = resident().saturating_sub(before);
    assert!(grown < FEW, "{grown} bytes");
}

#[test]
fn processes_that_die_and_come_back() {
    use_child_program(child_program());
    for fault in ["crash", "error", "million"] {
        // A process is dear to start: one death in 2,000 calls.
        let every = if fault == "crash" { 2_000 } else { 8 };
        let config = format!(r#"{{"fault": "{fault}", "every": {every}}}"#);
        let tally = check(&moody(), "moody", &config, Isolation::Process, 20_000);
        assert!(tally.fallback >= 20_000 / every, "{fault}: {tally:?}");
    }
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(descriptors < 200, "{descriptors} descriptors are open");
}
