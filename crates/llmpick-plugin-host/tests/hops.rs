//! What a call costs, by where the plugin runs. Prints and asserts nothing:
//! `cargo test --release -p llmpick-plugin-host --test hops -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::time::Instant;

use common::{child_program, feedback, make, moody, panics, patient};
use llmpick_core::{Candidate, DecisionSource};
use llmpick_plugin_host::{Isolation, use_child_program};
use llmpick_testkit::{candidate, select_request};

#[test]
#[ignore = "a measurement, for people"]
fn what_a_call_costs() {
    use_child_program(child_program());
    let arms: Vec<Candidate> = (0..32).map(candidate).collect();
    let all = [Isolation::Inline, Isolation::Actor, Isolation::Process];
    // One in C, and one in Rust through the SDK.
    let ways = [("moody", moody()), ("panics", panics())];
    let ways = ways
        .iter()
        .flat_map(|way| all.map(|isolation| (way, isolation)));
    for ((name, library), isolation) in ways {
        let mut router = make(library, name, "", &patient(isolation));
        let mut times: Vec<f64> = Vec::new();
        for route in 0..22_000 {
            let request = select_request(&arms, route);
            let start = Instant::now();
            let decision = router.select(&request).unwrap();
            times.push(start.elapsed().as_secs_f64() * 1e6);
            assert_eq!(decision.source, DecisionSource::Router);
            router.feedback(&feedback(route, 1, 0.5)).unwrap();
        }
        let mut times = times.split_off(2_000);
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[(part * times.len() as f64) as usize];
        println!(
            "{name} {isolation:?}: p50 {:.2} µs, p90 {:.2} µs, p99 {:.2} µs, p99.9 {:.2} µs",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999)
        );
    }
}
