//! Plugins in processes of their own: whatever they do there costs one call.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::time::{Duration, Instant};

use common::{
    ANYWHERE, Folder, ask, cc, child_program, feedback, load, make, moody, panics, patient, why,
};
use llmpick_core::{DecisionSource, Outcome, RouterError, SelectRequest};
use llmpick_plugin_host::{
    CreateError, Isolation, Library, RouterOptions, ScorerOptions, router, scorer,
    use_child_program,
};
use llmpick_testkit::{router_suite, select_request};

fn apart() -> RouterOptions {
    use_child_program(child_program());
    patient(Isolation::Process)
}

#[test]
fn a_router_apart_keeps_the_promises_of_one_that_is_here() {
    let options = apart();
    router_suite(|| make(&moody(), "moody", "", &options));
    router_suite(|| make(&panics(), "panics", "{}", &options));
}

#[test]
fn it_decides_exactly_as_it_would_here() {
    let folder = Folder::new();
    let library = load(&cc(
        &folder,
        "plugins/examples/c-router/router.c",
        "c.so",
        &[],
    ));
    let mut there = make(&library, "c-example", "", &apart());
    let mut here = make(&library, "c-example", "", &patient(Isolation::Inline));
    for route in 0..200 {
        let (a, b) = (ask(&mut *there, route), ask(&mut *here, route));
        // As text, in which NaN is like NaN.
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
        let told = feedback(route, a.choices[0], (route % 7) as f64 / 7.0);
        there.feedback(&told).unwrap();
        here.feedback(&told).unwrap();
    }
    assert_eq!(there.snapshot().unwrap(), here.snapshot().unwrap());
}

#[test]
fn none_of_its_code_runs_here() {
    let options = apart();
    let folder = Folder::new();
    let path = cc(
        &folder,
        "tests/plugins/moody.c",
        "apart.so",
        &["-DTELL_PROCESS"],
    );
    let library = Library::load_apart(&path, &ANYWHERE).unwrap();
    assert!(library.is_apart());
    assert_eq!(library.plugins().len(), 2);
    let mut there = make(&library, "moody", "", &options);
    let reason = ask(&mut *there, 1).reason;
    let (process, parent) = reason.split_once(' ').unwrap();
    assert_ne!(process, std::process::id().to_string());
    assert_eq!(parent, std::process::id().to_string());
    for isolation in [Isolation::Actor, Isolation::Inline] {
        let here = router(&library, "moody", "", &patient(isolation)).err();
        assert!(matches!(here, Some(CreateError::Apart { .. })), "{here:?}");
    }
}

#[test]
fn a_crash_costs_one_decision_and_nothing_that_was_learnt() {
    let segv = "its process died of SIGSEGV: it used memory that is not its own";
    let cases = [
        ("crash", segv.to_owned()),
        ("exit", "it ended its process with code 3".to_owned()),
        (
            "abort",
            "its process died of SIGABRT: it gave up (it said: corrupted)".to_owned(),
        ),
    ];
    for (fault, expected) in cases {
        let config = format!(r#"{{"fault": "{fault}", "from": 5, "to": 6}}"#);
        let mut router = make(&moody(), "moody", &config, &apart());
        router.feedback(&feedback(1, 1, 0.4)).unwrap();
        router.snapshot().unwrap();
        router.feedback(&feedback(1, 0, 0.9)).unwrap();
        assert_eq!(ask(&mut *router, 1).choices, [0]);
        let decision = ask(&mut *router, 5);
        assert_eq!(why(&decision.source), format!("`moody` failed: {expected}"));
        assert_eq!(decision.choices, [2], "the fallback's");
        let decision = ask(&mut *router, 6);
        assert_eq!((why(&decision.source), decision.choices), ("", vec![0]));
    }
}

#[test]
fn an_endless_loop_is_ended() {
    let options = RouterOptions {
        deadline: Duration::from_millis(300),
        ..apart()
    };
    let config = r#"{"fault": "busy_loop", "from": 5, "to": 6}"#;
    let mut router = make(&moody(), "moody", config, &options);
    router.feedback(&feedback(1, 1, 0.4)).unwrap();
    assert_eq!(ask(&mut *router, 1).choices, [1]);
    let decision = ask(&mut *router, 5);
    assert_eq!(
        why(&decision.source),
        "`moody` failed: it did not answer within 300ms"
    );
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let decision = ask(&mut *router, 6);
        match why(&decision.source) {
            "" => break assert_eq!(decision.choices, [1]),
            why => assert!(why.contains("still busy") && Instant::now() < end, "{why}"),
        }
    }
}

#[test]
fn a_crash_in_feedback_loses_that_feedback_only() {
    let config = r#"{"fault": "feedback_crash", "from": 5, "to": 6}"#;
    let mut router = make(&moody(), "moody", config, &apart());
    for route in 0..10 {
        router.feedback(&feedback(route, 1, 0.5)).unwrap();
    }
    let state = router.snapshot().unwrap().state;
    let count = f64::from_le_bytes(state[16 + 72..16 + 80].try_into().unwrap());
    assert_eq!(count, 9.0);
}

#[test]
fn it_is_quarantined_like_any_other() {
    let config = r#"{"fault": "crash"}"#;
    let mut router = make(&moody(), "moody", config, &apart());
    for route in 0..3 {
        assert!(why(&ask(&mut *router, route).source).contains("SIGSEGV"));
    }
    let decision = ask(&mut *router, 4);
    assert!(why(&decision.source).contains("quarantined after 3 faults"));
}

#[test]
fn a_snapshot_that_crashes_or_never_ends_is_an_error() {
    let options = RouterOptions {
        max_snapshot_bytes: 1 << 20,
        ..apart()
    };
    let config = r#"{"fault": "huge_snapshot"}"#;
    let mut router = make(&moody(), "moody", config, &options);
    let error = router.snapshot();
    let expected = RouterError::Fault("its snapshot has more than 1048576 bytes".into());
    assert_eq!(error, Err(expected));
    let config = r#"{"fault": "snapshot_crash"}"#;
    let mut router = make(&moody(), "moody", config, &options);
    router.feedback(&feedback(1, 1, 0.5)).unwrap();
    let error = router.snapshot().err().unwrap().to_string();
    assert!(error.contains("SIGSEGV"), "{error}");
    assert_eq!(
        ask(&mut *router, 2).choices,
        [1],
        "rebuilt from what it was told"
    );
}

#[test]
fn what_it_prints_and_logs_does_not_disturb_the_talk() {
    for fault in ["print", "flood"] {
        let config = format!(r#"{{"fault": "{fault}"}}"#);
        let mut router = make(&moody(), "moody", &config, &apart());
        for route in 0..3 {
            assert_eq!(why(&ask(&mut *router, route).source), "", "{fault}");
        }
    }
}

#[test]
fn a_large_state_moves_both_ways() {
    let options = apart();
    let mut left = make(&panics(), "panics", "", &options);
    for route in 0..50 {
        left.feedback(&feedback(route, 1, 0.5)).unwrap();
    }
    let snapshot = left.snapshot().unwrap();
    let mut right = make(&panics(), "panics", "", &options);
    right.restore(&snapshot).unwrap();
    assert_eq!(ask(&mut *right, 1).reason, "saw 50");
    let other = llmpick_core::Snapshot {
        version: 77,
        ..snapshot
    };
    assert!(matches!(right.restore(&other), Err(RouterError::State(_))));
    assert_eq!(ask(&mut *right, 1).reason, "saw 50", "it stays as it was");
}

#[test]
fn a_prompt_stays_here_unless_it_is_needed() {
    // `moody` did not declare that it needs the prompt: a request of any size costs nothing.
    let mut router = make(&moody(), "moody", "", &apart());
    let prompt = "x".repeat(200 << 20);
    let arms = common::arms();
    let request = SelectRequest {
        prompt: Some(&prompt),
        ..select_request(&arms, 1)
    };
    let decision = router.select(&request).unwrap();
    assert_eq!(decision.source, DecisionSource::Router);
}

#[test]
fn a_refused_configuration_says_why_and_a_constructor_that_dies_too() {
    let options = RouterOptions {
        control_deadline: Duration::from_secs(1),
        ..apart()
    };
    let error = |config: &str| {
        let error = router(&moody(), "moody", config, &options).err();
        error.unwrap().to_string()
    };
    assert_eq!(
        error(r#"{"fault": "refuse"}"#),
        "configure plugin `moody`: refused, as the configuration asks"
    );
    assert_eq!(
        error(r#"{"fault": "create_hangs"}"#),
        "start plugin `moody`: it did not answer within 1s"
    );
    assert_eq!(
        error(r#"{"fault": "create_crash"}"#),
        "start plugin `moody`: its process died of SIGSEGV: it used memory that is not its own"
    );
}

#[test]
fn a_scorer_apart_is_as_careful() {
    use_child_program(child_program());
    let options = ScorerOptions {
        isolation: Isolation::Process,
        deadline: Duration::from_secs(2),
        ..ScorerOptions::default()
    };
    let says = scorer(&moody(), "says", "", &options).unwrap();
    let grade = |response: &str| {
        let outcome = Outcome {
            response: response.to_owned(),
            ..Outcome::default()
        };
        says.score(&outcome)
            .map(|score| score.map(f64::from))
            .map_err(|error| error.reason)
    };
    assert_eq!(grade("0.25"), Ok(Some(0.25)));
    assert_eq!(grade("abstain"), Ok(None));
    assert!(grade("crash").unwrap_err().contains("SIGSEGV"));
    assert_eq!(grade("0.5"), Ok(Some(0.5)));
    assert_eq!(grade("spin"), Err("it did not answer within 2s".to_owned()));
    assert_eq!(grade("1"), Ok(Some(1.0)));
}

#[test]
fn a_child_dies_with_its_parent() {
    use_child_program(child_program());
    let folder = Folder::new();
    let flags = ["-DTELL_PROCESS"];
    let path = cc(&folder, "tests/plugins/moody.c", "moody.so", &flags);
    let mut parent = std::process::Command::new(child_program())
        .args(["hold", path.as_str()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = parent.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let (child, _) = line.split_once(' ').unwrap();
    let child = format!("/proc/{child}");
    assert!(std::path::Path::new(&child).exists(), "{line}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let gone = || match std::fs::read_to_string(format!("{child}/stat")) {
        // Waited for by nobody here, it may stay as a zombie.
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    while !gone() {
        assert!(Instant::now() < end, "it outlives its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}
