//! Bursts, crashes and windows.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{arm, candidate, decision, ended, new_route, place};
use llmpick_core::{NanoDollars, OutcomeKind, RouteId};
use llmpick_ledger::{Budget, Ledger, Reservation, Reserved, RouteEnd, RouteStatus, Window};

const KEY: &str = "default";

fn limit(ledger: &Ledger, limit: u64, window: Window) {
    let budget = Budget {
        key: KEY.into(),
        window,
        limit: NanoDollars(limit),
    };
    ledger.set_budget(&budget).unwrap();
}

fn begin(ledger: &Ledger) -> RouteId {
    let (route, _) = ledger.begin_route(&new_route("")).unwrap();
    ledger
        .record_decision(route, &[candidate("a")], Some(&decision(&[0], 1)))
        .unwrap();
    route
}

fn reserve(ledger: &Ledger, route: RouteId, position: u32, amount: u64, now: u64) -> Reserved {
    let amount = NanoDollars(amount);
    let reservation = Reservation { position, amount };
    ledger
        .reserve(route, &[reservation], &[KEY.into()], now)
        .unwrap()
}

/// (spent, reserved)
fn state(ledger: &Ledger, now: u64) -> (u64, u64) {
    let state = ledger.budget(KEY, now).unwrap();
    (state.spent.0, state.reserved.0)
}

fn finish(ledger: &Ledger, route: RouteId) {
    let end = RouteEnd {
        route,
        at_ms: 1,
        status: RouteStatus::Done,
        answered: None,
        accepted: None,
        scores: Vec::new(),
    };
    ledger.finish_route(&end).unwrap();
}

#[test]
fn reserved_then_settled() {
    let ledger = Ledger::open_in_memory().unwrap();
    limit(&ledger, 100, Window::Forever);
    let route = begin(&ledger);
    assert_eq!(reserve(&ledger, route, 0, 60, 0), Reserved::Granted);
    assert_eq!(state(&ledger, 0), (0, 60));
    let refused = Reserved::Short {
        key: KEY.into(),
        left: NanoDollars(40),
    };
    assert_eq!(reserve(&ledger, route, 1, 41, 0), refused);
    assert_eq!(reserve(&ledger, route, 1, 40, 0), Reserved::Granted);
    let call = ledger
        .start_call(route, 0, &arm("a"), NanoDollars(60), 0)
        .unwrap();
    ledger.end_call(call, &ended(OutcomeKind::Ok, 25)).unwrap();
    assert_eq!(state(&ledger, 0), (25, 40));
    finish(&ledger, route);
    assert_eq!(state(&ledger, 0), (25, 0), "what did not run is let go");
    assert_eq!(ledger.budgets(0).unwrap()[0].left(), Some(NanoDollars(75)));
    assert!(ledger.remove_budget(KEY).unwrap());
    assert_eq!(ledger.budget(KEY, 0).unwrap().left(), None);
}

#[test]
fn a_window_starts_anew() {
    let ledger = Ledger::open_in_memory().unwrap();
    limit(&ledger, 100, Window::Every(Duration::from_secs(1)));
    let route = begin(&ledger);
    assert_eq!(reserve(&ledger, route, 0, 100, 1_999), Reserved::Granted);
    assert_ne!(reserve(&ledger, route, 1, 1, 1_000), Reserved::Granted);
    assert_eq!(reserve(&ledger, route, 1, 1, 2_000), Reserved::Granted);
}

#[test]
fn a_burst_over_many_connections_cannot_pass_the_limit() {
    let (_dir, path) = place();
    limit(&Ledger::open(&path).unwrap(), 1_000, Window::Forever);
    let (granted, barrier) = (AtomicU64::new(0), Barrier::new(8));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Two threads share each connection; four connections share the file.
            let ledger = std::sync::Arc::new(Ledger::open(&path).unwrap());
            for _ in 0..2 {
                let (ledger, granted, barrier) = (ledger.clone(), &granted, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for _ in 0..25 {
                        let route = begin(&ledger);
                        if reserve(&ledger, route, 0, 30, 0) != Reserved::Granted {
                            finish(&ledger, route);
                            continue;
                        }
                        granted.fetch_add(1, Ordering::SeqCst);
                        let (spent, reserved) = state(&ledger, 0);
                        assert!(spent + reserved <= 1_000, "{spent} + {reserved}");
                        let cost = NanoDollars(30);
                        let call = ledger.start_call(route, 0, &arm("a"), cost, 0).unwrap();
                        ledger.end_call(call, &ended(OutcomeKind::Ok, 30)).unwrap();
                        finish(&ledger, route);
                    }
                });
            }
        }
    });
    assert_eq!(granted.into_inner(), 33, "200 asked, 33 × 30 fit into 1000");
    assert_eq!(state(&Ledger::open(&path).unwrap(), 0), (990, 0));
}

/// In the child: reserve twice, run one of the two, and die without a word.
#[test]
fn child_that_dies_in_mid_call() {
    let Ok(path) = std::env::var("LLMPICK_TEST_LEDGER") else {
        return;
    };
    let ledger = Ledger::open(path.as_str().into()).unwrap();
    let done = begin(&ledger);
    let call = ledger
        .start_call(done, 0, &arm("a"), NanoDollars(0), 0)
        .unwrap();
    ledger.end_call(call, &ended(OutcomeKind::Ok, 7)).unwrap();
    let route = begin(&ledger);
    assert_eq!(reserve(&ledger, route, 0, 60, 0), Reserved::Granted);
    assert_eq!(reserve(&ledger, route, 1, 30, 0), Reserved::Granted);
    ledger
        .start_call(route, 0, &arm("a"), NanoDollars(60), 0)
        .unwrap();
    std::process::abort();
}

#[test]
fn a_crash_leaks_nothing() {
    let (dir, path) = place();
    let survivor = Ledger::open(&path).unwrap();
    limit(&survivor, 100, Window::Forever);
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_dies_in_mid_call", "--nocapture"])
        .env("LLMPICK_TEST_LEDGER", &path)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the child must have died");
    assert_eq!(state(&survivor, 0), (0, 90), "its money is still set aside");

    // Nobody restarts: the survivor finds out when it needs the money.
    let route = begin(&survivor);
    assert_eq!(reserve(&survivor, route, 0, 40, 0), Reserved::Granted);
    assert_eq!(
        state(&survivor, 0),
        (60, 40),
        "what ran is charged, the rest let go"
    );
    let lost = survivor.route(RouteId(2)).unwrap().unwrap();
    assert_eq!(lost.status, RouteStatus::Lost);
    assert_eq!(lost.calls[0].outcome, Some(OutcomeKind::Error));
    assert_eq!(lost.calls[0].cost, NanoDollars(60));
    // The call that had ended is learnt; the one that died with its program is not.
    let rows = survivor.feedback_after(0, 10).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].feedback.route_id, RouteId(1));
    drop(survivor);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 1, "no lock file stays behind");
}
